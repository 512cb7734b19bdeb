from __future__ import annotations

import secrets
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from workspaces import rotation, vault


class Command(BaseCommand):
    help = (
        "Re-encrypts every stored secret with the first instance key. Safe to stop, to run again, "
        "and to run while people work."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--new-key", action="store_true", help="first put a new key on top of the key file"
        )
        which.add_argument(
            "--remove-key",
            metavar="ID",
            help="afterwards remove this key from the key file; refused while it is in use",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if (options["new_key"] or options["remove_key"]) and settings.SECRET_KEYS:
            raise CommandError(
                "The keys are those of PATCHBAY_SECRET_KEYS: change the list there, restart every "
                "process, and run this command without options."
            )
        try:
            if options["new_key"]:
                new = secrets.token_urlsafe(vault.KEY_BYTES)
                vault.write_key_file([new, *vault.file_keys()], replace=True)
            failed = self.rotate()
            if options["remove_key"]:
                self.remove(options["remove_key"])
        except (vault.VaultError, FileNotFoundError) as error:
            raise CommandError(str(error)) from None
        if failed:
            raise CommandError(f"{failed} secrets could not be re-encrypted and stay as they were.")

    def rotate(self) -> int:
        """Returns how many secrets couldn't be re-encrypted."""
        done = failed = 0
        for step in rotation.rotate():
            if step.error:
                failed += 1
                self.stderr.write(f"{step.table} {step.row}: {step.error}")
            else:
                done += 1
                if done % 100 == 0:
                    self.stdout.write(f"{done} secrets re-encrypted…")
        report = rotation.key_report()
        self.stdout.write(f"{done} secrets re-encrypted with key {report.primary}.")
        for key_id, rows in sorted(report.in_use.items()):
            if key_id:
                self.stdout.write(f"Key {key_id} seals {rows} secrets.")
        for key_id in report.removable:
            self.stdout.write(
                f"Key {key_id} seals nothing any more: once every process has the new first key, "
                "it can be removed."
            )
        return failed

    def remove(self, key_id: str) -> None:
        report = rotation.key_report()
        if key_id not in report.at_hand:
            raise CommandError(f"The key file has no key {key_id}.")
        if key_id not in report.removable:
            rows = report.in_use.get(key_id, 0)
            raise CommandError(f"Key {key_id} is in use: it seals {rows} secrets. It stays.")
        kept = [
            text
            for text in vault.file_keys()
            if vault.Keyring.parse([text], source="key file").primary != key_id
        ]
        vault.write_key_file(kept, replace=True)
        self.stdout.write(f"Key {key_id} removed.")
