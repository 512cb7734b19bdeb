import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from config import demo
from config.serve import CantStart, Supervisor, serve


class Command(BaseCommand):
    help = "Run everything with sample people and connections on bundled fake providers."

    requires_system_checks = []  # made once it is known that they may be

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(serve(self._before_web))

    def _before_web(self, supervisor: Supervisor) -> None:
        if demo.holds_something_else():
            raise CantStart(
                f"{settings.DATA_DIR} holds an installation; set PATCHBAY_DATA_DIR to another"
            )
        port = demo.provider_port()
        supervisor.start("providers", demo.providers_command(port), demo.environment())
        demo.seed(port)
        self.stdout.write(f"Sign in as {demo.EMAIL} with the password: {demo.PASSWORD}")
        self.stdout.flush()
