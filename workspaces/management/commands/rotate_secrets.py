from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from workspaces import rotation, vault


class Command(BaseCommand):
    help = (
        "Re-encrypts every stored secret with the first key of PATCHBAY_SECRET_KEYS (or of the "
        "key file). Safe to stop, to run again, and to run while people work."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        done = failed = 0
        try:
            for step in rotation.rotate():
                if step.error:
                    failed += 1
                    self.stderr.write(f"{step.table} {step.row}: {step.error}")
                else:
                    done += 1
                    if done % 100 == 0:
                        self.stdout.write(f"{done} secrets re-encrypted…")
            report = rotation.key_report()
        except vault.VaultError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{done} secrets re-encrypted with key {report.primary}.")
        for key_id, rows in sorted(report.in_use.items()):
            if key_id:
                self.stdout.write(f"Key {key_id} seals {rows} secrets.")
        for key_id in report.removable:
            self.stdout.write(
                f"Key {key_id} seals nothing any more. Remove it once every process has been "
                "restarted with the new first key."
            )
        if failed:
            raise CommandError(f"{failed} secrets could not be re-encrypted and stay as they were.")
