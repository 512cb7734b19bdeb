from allauth.usersessions.apps import UserSessionsConfig
from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class WorkspacesConfig(AppConfig):
    name = "workspaces"
    verbose_name = _("People and workspaces")

    def ready(self) -> None:
        from workspaces import commands, palette
        from workspaces import lookups as lookups
        from workspaces import signals as signals

        palette.offer(commands.commands, place=3)


class DevicesConfig(UserSessionsConfig):
    """allauth's list of sign-ins, without its own work at each: that looks every old one up, two
    queries for each. `signals.note_device` notes the new one; `tasks.forget_ended_sign_ins` drops
    the old ones."""

    def ready(self) -> None:
        from allauth.account.signals import password_changed, password_set
        from allauth.usersessions.signals import on_password_changed

        for signal in (password_changed, password_set):
            signal.connect(on_password_changed)
