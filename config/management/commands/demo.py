import sys
from typing import Any

from django.core.management.base import BaseCommand

from config import demo
from config.serve import CantStart, Supervisor, serve


class Command(BaseCommand):
    help = "Run everything with sample people and connections on bundled fake providers."

    requires_system_checks = []  # made once it is known that they may be

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(serve(self._before_web))

    def _before_web(self, supervisor: Supervisor) -> None:
        port = demo.provider_port()
        made = demo.seed(port)
        if not made and not (demo.settings.DATA_DIR / "demo-port").exists():
            raise CantStart("this data directory holds an installation; choose another")
        supervisor.start("providers", demo.providers_command(port), demo.environment())
        self.stdout.write(f"Sign in as {demo.EMAIL} with the password: {demo.PASSWORD}")
