from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from workspaces import audit_chain, vault


class Command(BaseCommand):
    help = (
        "Checks the audit's chain: a row that was changed, is missing, or was never sealed. "
        "Exit code 1 when something is found."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="one object for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            findings = list(audit_chain.verify())
        except vault.VaultError as error:
            raise CommandError(str(error)) from None
        number, seal = audit_chain.head()
        if options["json"]:
            found = [dataclasses.asdict(one) for one in findings]
            report = {"head": number, "seal": seal, "findings": found}
            self.stdout.write(json.dumps(report, indent=2))
        else:
            for one in findings:
                self.stdout.write(f"{one.kind}: {one.text}")
            self.stdout.write(f"The chain ends at row {number}.")
        if findings:
            raise CommandError(f"{len(findings)} findings in the audit.")
