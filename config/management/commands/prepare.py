from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.serve import CantStart, prepare
from workspaces.setup import first_run_token


class Command(BaseCommand):
    help = (
        "Bring the database up to date, check the instance keys, and print the first-run token "
        "when nobody has set Patchbay up yet. `serve` does it too; run it once before starting "
        "web, worker and beat by themselves."
    )

    requires_system_checks = []  # `prepare` makes them

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            prepare()
        except CantStart as error:
            raise CommandError(str(error)) from error
        if token := first_run_token():
            self.stdout.write(f"First-run token: {token}")
