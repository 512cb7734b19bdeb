from django.urls import path

from workspaces import audit_views as views

app_name = "audit"
urlpatterns = [
    path("audit/", views.instance_audit, name="instance"),
    path("audit/export/", views.instance_audit_export, name="instance_export"),
    path("w/<str:workspace>/audit/", views.workspace_audit, name="workspace"),
    path("w/<str:workspace>/audit/export/", views.workspace_audit_export, name="workspace_export"),
]
