from __future__ import annotations

import datetime as dt
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from workspaces import audit_chain


class Command(BaseCommand):
    help = (
        "Takes old rows of the audit away, from its beginning on. An anchor stays, so that the "
        "rest can still be verified. Make a backup first."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--keep-days", type=int, required=True, metavar="N")

    def handle(self, *args: Any, **options: Any) -> None:
        days = options["keep_days"]
        if not 1 <= days <= 36_500:
            raise CommandError("Keep at least one day.")
        gone = audit_chain.prune(timezone.now() - dt.timedelta(days=days))
        self.stdout.write(f"{gone} rows were taken away.")
