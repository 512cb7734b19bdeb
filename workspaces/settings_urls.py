from django.urls import path

from workspaces import settings_views as views

app_name = "settings"
urlpatterns = [path("", views.workspace_settings, name="workspace")]
