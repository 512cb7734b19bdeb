from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand

from connections.transfer import export_document


class Command(BaseCommand):
    help = (
        "Writes every connection and the workspaces' defaults to standard output, as a Craft "
        "config.json. Secrets are never part of it."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        # ASCII: the terminal's encoding makes no difference to the file.
        self.stdout.write(json.dumps(export_document("command"), indent=2))
