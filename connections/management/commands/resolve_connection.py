"""`manage.py resolve_connection --workspace SLUG [--session UUID] [--json]`: which and why."""

from __future__ import annotations

import json
import uuid
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from connections.registry import choice_of
from connections.resolve import resolve
from workspaces.models import Workspace


class Command(BaseCommand):
    help = (
        "Prints which connection a workspace's new session, or one session of it, uses, and what "
        "was passed over. Exits with 1 when there is none."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--workspace", required=True, metavar="SLUG")
        parser.add_argument("--session", type=uuid.UUID, metavar="UUID")
        parser.add_argument("--json", action="store_true", help="one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        workspace = Workspace.objects.filter(slug=options["workspace"]).first()
        if workspace is None:
            raise CommandError(f"no such workspace: {options['workspace']}")
        choice = None
        if options["session"] is not None:
            choice = choice_of(workspace, options["session"])
            if choice is None:
                raise CommandError("this workspace has no such session")
        found = resolve(workspace, choice)
        if options["json"]:
            self.stdout.write(json.dumps(found.as_json(), indent=2))
        else:
            for finding in found.trace:
                self.stdout.write(finding.sentence)
            if found.connection:
                self.stdout.write(f"{found.connection.slug} ({found.rule.label}, {found.model})")
        if found.connection is None:
            raise CommandError(found.refusal_text(admin=True), returncode=1)
