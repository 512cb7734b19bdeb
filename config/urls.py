from django.contrib import admin
from django.urls import include, path, re_path

from config import guide, palette, views

handler400 = "config.views.bad_request"
handler403 = "config.views.forbidden"
handler404 = "config.views.not_found"
handler500 = "config.views.server_error"

urlpatterns = [
    path("", include("workspaces.urls")),
    path("accounts/", include("workspaces.account_urls")),
    path("profile/", include("workspaces.profile_urls")),
    path("", include("workspaces.audit_urls")),
    path("", include("workspaces.people_urls")),
    path("people/", include("workspaces.directory_urls")),
    path("", include("sessions.usage_urls")),
    path("connections/", include("connections.urls")),
    path("start/", include("connections.start_urls")),
    path("w/<str:workspace>/settings/", include("workspaces.settings_urls")),
    path("w/<str:workspace>/settings/ai/", include("connections.workspace_urls")),
    path("w/<str:workspace>/settings/tools/", include("sessions.tool_urls")),
    path("w/<str:workspace>/", include("sessions.urls")),
    path("admin/", admin.site.urls),
    path("palette/", palette.palette, name="palette"),
    path("shortcuts/", palette.shortcuts, name="shortcuts"),
    path("help/", guide.guide_index, name="help"),
    path("help/<slug:page>/", guide.guide_page, name="help_page"),
    path("patterns/", views.patterns, name="patterns"),
    re_path(r"^healthz/?$", views.healthz, name="healthz"),
    re_path(r"^readyz/?$", views.readyz, name="readyz"),
    re_path(r"^metrics/?$", views.metrics, name="metrics"),
]
