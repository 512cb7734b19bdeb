from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from connections.schema import Generation
from connections.transfer import export_document


class Command(BaseCommand):
    help = (
        "Writes every connection and the workspaces' defaults to standard output, as a Craft "
        "config.json. Secrets are never part of it. What the generation asked for has no place "
        "for is left out and named on standard error."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        words = "; ".join(f"{g.value}: {str(g.label)[:1].lower()}{g.label[1:]}" for g in Generation)
        parser.add_argument(
            "--generation",
            choices=Generation.values,
            default=Generation.OWN.value,
            help=f"whose words the file is in (default: %(default)s). {words}",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        found = export_document("command", generation=Generation(options["generation"]))
        # ASCII: the terminal's encoding makes no difference to the file.
        self.stdout.write(json.dumps(found.document, indent=2))
        for left in found.left_out:
            self.stderr.write(f"Left out: {left.label}. {left.reason}")
