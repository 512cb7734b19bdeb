from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ConnectionsConfig(AppConfig):
    name = "connections"
    verbose_name = _("LLM connections")

    def ready(self) -> None:
        from connections import commands
        from connections.alerts import Wishes
        from workspaces import palette
        from workspaces.registry import keep_with

        palette.offer(commands.commands, place=2)
        keep_with(Wishes())
