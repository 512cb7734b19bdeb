from django.urls import path

from workspaces import profile_views as views

app_name = "profile"
urlpatterns = [
    path("", views.profile, name="show"),
    path("devices/sign-out/", views.sign_out_others, name="sign_out_others"),
    path("devices/<int:device>/sign-out/", views.sign_out_device, name="sign_out_device"),
    path("delete/", views.delete, name="delete"),
    path("unlink/", views.unlink, name="unlink"),
]
