from django.urls import path

from sessions import tool_views as views

app_name = "tools"
urlpatterns = [
    path("", views.server_list, name="list"),
    path("new/", views.server_create, name="create"),
    path("<uuid:server_id>/", views.server_edit, name="edit"),
    path("<uuid:server_id>/test/", views.server_test, name="test"),
    path("<uuid:server_id>/enable/", views.server_enable, name="enable"),
    path("<uuid:server_id>/delete/", views.server_delete, name="delete"),
]
