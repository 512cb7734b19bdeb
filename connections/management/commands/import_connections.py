from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from connections import schema
from connections.schema import Change, DefaultRow, Result, Row
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
        parser.add_argument(
            "--make-workspaces",
            action="store_true",
            help="make the workspaces of the file that aren't here",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            document = schema.read(_bytes(options["file"]))
        except schema.BadFile as error:
            raise CommandError(f"{error} Nothing was changed.") from None
        done = import_document(
            "command",
            document,
            dry_run=options["dry_run"],
            make_workspaces=options["make_workspaces"],
        )
        plan = done.plan
        for row in plan.rows:
            self._connection(row)
        for default in plan.defaults:
            self._default(default)
        counts = ", ".join(f"{plan.count(r)} {str(r.label).lower()}" for r in Result)
        dry = " Nothing was changed: this was a dry run." if options["dry_run"] else ""
        self.stdout.write(f"{counts}.{dry}")
        if done.is_refused:
            raise CommandError("Nothing of the file can be taken. Nothing was changed.")

    def _connection(self, row: Row) -> None:
        name = row.slug or f"entry {row.number}"
        line = f"{row.result.label}: {name}"
        if row.result == Result.REFUSED:
            self.stderr.write(f"{line}. {row.reason}")
        else:
            self.stdout.write(line)
        for change in row.changes:
            self.stdout.write(f"  {_change(change)}")
        for note in row.notes:
            self.stderr.write(f"  {name}: {note}")

    def _default(self, row: DefaultRow) -> None:
        what = f"{row.label}: {row.slug or '-'}"
        if row.result == Result.REFUSED:
            self.stderr.write(f"{what} is not made the default. {row.reason}")
            return
        if row.result == Result.NEW:
            self.stdout.write(f"New workspace: {row.label}")
            if row.reason:
                self.stderr.write(f"  {row.label}: no default. {row.reason}")
        if row.slug:
            before = f" (was {row.old})" if row.result == Result.CHANGED and row.old else ""
            self.stdout.write(f"{'Default of ' if row.number else ''}{what}{before}")


def _change(change: Change) -> str:
    """One line of ASCII: what a file holds does nothing to a terminal."""
    kept = " (only in what is kept for export)" if change.kept_only else ""
    field = json.dumps(change.field)[1:-1]
    return f"{field}: {_short(change.old)} -> {_short(change.new)}{kept}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _bytes(path: str) -> bytes:
    """The file, or one byte more than may be read. Raises `CommandError`."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(schema.MAX_BYTES + 1)
        with Path(path).open("rb") as file:
            return file.read(schema.MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}.") from None
