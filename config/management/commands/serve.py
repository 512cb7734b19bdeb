import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from config.serve import CantStart, become, commands, serve


class Command(BaseCommand):
    help = (
        "Run everything on this machine: Valkey, web, worker and beat, until Ctrl-C. With a name: "
        "that process alone, for containers; run `prepare` once before."
    )

    requires_system_checks = []  # `prepare` makes them, once it is known that it may

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("process", nargs="?", choices=list(commands()))
        parser.add_argument(
            "--host", default="127.0.0.1", help="the address that web alone listens on"
        )

    def handle(self, *args: Any, process: str | None, host: str, **options: Any) -> None:
        if process is None:
            sys.exit(serve())
        try:
            become(process, host)
        except CantStart as error:
            raise CommandError(str(error)) from error
