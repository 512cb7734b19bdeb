from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class SessionsConfig(AppConfig):
    name = "sessions"
    # Django's own django.contrib.sessions has the label "sessions".
    label = "agent_sessions"
    verbose_name = _("Agent sessions")

    def ready(self) -> None:
        from connections import registry
        from sessions import belongings, commands, links
        from workspaces import palette
        from workspaces.registry import keep_with

        registry.count_dependents_with(links.count_dependents)
        registry.find_choices_with(links.find_choice)
        palette.offer(commands.commands, place=1)
        keep_with(belongings.Sessions())
        registry.show_live_with(links.find_live, links.stop_live)
        registry.add_usage_with(links.add_usage)
