from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config import backup
from config.backup.archive import read_passphrase


class Command(BaseCommand):
    help = (
        "Writes the database and the attachments into one file, while people work. With a "
        "passphrase the instance keys go in, sealed under it; without, keep them elsewhere: no "
        "secret can be read without them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--passphrase-file",
            type=Path,
            metavar="PATH",
            help="a file whose first line is the passphrase for the instance keys",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        path = options["passphrase_file"]
        try:
            made = backup.make(
                options["file"], read_passphrase(path) if path else "", self.stderr.write
            )
        except backup.BackupError as error:
            raise CommandError(str(error)) from None
        held = ", ".join(f"{count} {word}" for word, count in made.rows.items())
        self.stdout.write(f"{options['file']}: {held}.")
        for name in made.missing[:20]:
            self.stderr.write(f"The file of an attachment is missing: {name}")
        if not path:
            self.stdout.write(
                "The instance keys are not in it: keep a copy of them, else no secret in this "
                "backup can be read."
            )
