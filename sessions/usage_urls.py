from django.urls import path

from connections.views_budgets import workspace_budget
from sessions import usage_views as views

app_name = "usage"
urlpatterns = [
    path("usage/", views.instance_usage, name="instance"),
    path("usage/export/", views.instance_usage_export, name="instance_export"),
    path("w/<str:workspace>/usage/", views.workspace_usage, name="workspace"),
    path("w/<str:workspace>/usage/budget/", workspace_budget, name="budget"),
    path("w/<str:workspace>/usage/export/", views.workspace_usage_export, name="workspace_export"),
]
