from django.urls import path

from connections import views_start

app_name = "start"
urlpatterns = [
    path("local/", views_start.start_local, name="local"),
    path("check/<str:slug>/", views_start.start_check, name="check"),
    path("<str:key>/", views_start.start_form, name="form"),
]
