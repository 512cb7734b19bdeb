import sys
from typing import Any

from django.core.management.base import BaseCommand

from config.serve import serve


class Command(BaseCommand):
    help = "Run everything on this machine: Valkey, web, worker and beat, until Ctrl-C."

    requires_system_checks = []  # `prepare` makes them, once it is known that it may

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(serve())
