from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class WorkspacesConfig(AppConfig):
    name = "workspaces"
    verbose_name = _("People and workspaces")

    def ready(self) -> None:
        from workspaces import signals  # noqa: F401
