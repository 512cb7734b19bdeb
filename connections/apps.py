from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ConnectionsConfig(AppConfig):
    name = "connections"
    verbose_name = _("LLM connections")

    def ready(self) -> None:
        from connections.alerts import Wishes
        from workspaces.registry import keep_with

        keep_with(Wishes())
