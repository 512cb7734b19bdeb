from django.urls import path

from connections import views

app_name = "ai"
urlpatterns = [
    path("", views.ai_settings, name="settings"),
    path("default/", views.ai_default, name="default"),
    path("<str:slug>/models/", views.ai_models, name="models"),
]
