from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class ConfigConfig(AppConfig):
    name = "config"
    verbose_name = "Patchbay"

    def ready(self) -> None:
        from config import checks as checks
        from config import palette as pages
        from workspaces import palette

        palette.offer(pages.commands, place=0)


class PatchbayAdminConfig(AdminConfig):
    """The admin site, with its sign-in going through the same door as everybody's."""

    default_site = "config.admin.PatchbayAdminSite"
