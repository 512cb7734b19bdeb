from django.urls import path

from workspaces import views

app_name = "workspaces"
urlpatterns = [
    path("", views.home, name="home"),
    path("setup/", views.setup, name="setup"),
    path("sign-in-link/<str:token>/", views.sign_in_link, name="sign_in_link"),
]
