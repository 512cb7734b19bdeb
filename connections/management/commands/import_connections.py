from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from connections import schema
from connections.schema import DefaultRow, Result, Row
from connections.transfer import import_document


class Command(BaseCommand):
    help = (
        "Brings in the connections of a Craft config.json. What is there already under the same "
        "slug is changed; secrets are never in such a file and are entered afterwards."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", help="the config.json; - reads standard input")
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would happen and change nothing"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            document = schema.read(_bytes(options["file"]))
        except schema.BadFile as error:
            raise CommandError(f"{error} Nothing was changed.") from None
        plan = import_document("command", document, dry_run=options["dry_run"])
        for row in plan.rows:
            self._connection(row)
        for default in filter(None, (plan.default, *plan.workspaces)):
            self._default(default)
        counts = ", ".join(f"{plan.count(r)} {str(r.label).lower()}" for r in Result)
        dry = " Nothing was changed: this was a dry run." if options["dry_run"] else ""
        self.stdout.write(f"{counts}.{dry}")

    def _connection(self, row: Row) -> None:
        name = row.slug or f"entry {row.number}"
        line = f"{row.result.label}: {name}"
        if row.result == Result.REFUSED:
            self.stderr.write(f"{line}. {row.reason}")
        else:
            self.stdout.write(f"{line} ({', '.join(row.changes)})" if row.changes else line)
        for note in row.notes:
            self.stderr.write(f"  {name}: {note}")

    def _default(self, row: DefaultRow) -> None:
        what = f"{row.label}: {row.slug}"
        if row.result == Result.REFUSED:
            self.stderr.write(f"{what} is not made the default. {row.reason}")
        else:
            self.stdout.write(f"Default of {what}" if row.workspace else what)


def _bytes(path: str) -> bytes:
    """The file, or one byte more than may be read. Raises `CommandError`."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(schema.MAX_BYTES + 1)
        with Path(path).open("rb") as file:
            return file.read(schema.MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}.") from None
