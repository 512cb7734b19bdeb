from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config import backup
from config.backup.archive import read_passphrase


class Command(BaseCommand):
    help = (
        "Brings a backup back. What is here now is kept aside; a running server is refused. "
        "--rehearse tries everything in a scratch database and changes nothing."
    )

    requires_system_checks = ()  # they would make an empty database

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--passphrase-file",
            type=Path,
            metavar="PATH",
            help="a file whose first line is the passphrase the backup was made with",
        )
        parser.add_argument(
            "--rehearse",
            action="store_true",
            help="restore into a scratch database, open every secret, and remove it again",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        path = options["passphrase_file"]
        try:
            outcome = backup.restore(
                options["file"],
                read_passphrase(path) if path else "",
                rehearse=options["rehearse"],
                say=self.stderr.write,
            )
        except backup.BackupError as error:
            raise CommandError(str(error)) from None
        self.report(outcome, rehearsed=options["rehearse"])
        if outcome.unreadable or (options["rehearse"] and outcome.without_key):
            raise CommandError(
                f"{len(outcome.unreadable) + outcome.without_key} of {outcome.secrets} secrets "
                "can't be read."
            )

    def report(self, outcome: backup.Outcome, *, rehearsed: bool) -> None:
        manifest = outcome.manifest
        held = ", ".join(f"{count} {word}" for word, count in manifest.rows.items())
        done = "This backup can be restored" if rehearsed else "Restored"
        self.stdout.write(f"{done}: {held}, as of {manifest.made_at}.")
        readable = outcome.secrets - outcome.without_key - len(outcome.unreadable)
        self.stdout.write(f"{readable} of {outcome.secrets} secrets open.")
        for row in outcome.unreadable[:20]:
            self.stderr.write(f"Unreadable: {row}")
        for name in manifest.missing[:20]:
            self.stderr.write(f"The file of an attachment was missing already: {name}")
        for note in outcome.notes:
            self.stdout.write(note)
        if outcome.missing_keys:
            self.stdout.write(
                f"Not at hand: key {', key '.join(outcome.missing_keys)}. Put it back into "
                "PATCHBAY_SECRET_KEYS or the key file; or start with PATCHBAY_START_SEALED=1: "
                "history can be read, and the secrets entered again."
            )
        if outcome.keys_at:
            self.stdout.write(f"The instance keys are in {outcome.keys_at}.")
        if outcome.aside:
            self.stdout.write(f"What was here before is in {outcome.aside}.")
