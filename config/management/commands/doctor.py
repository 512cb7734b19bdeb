from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from config.doctor import Level, examine


class Command(BaseCommand):
    help = (
        "Looks at everything Patchbay needs and says what to do. Changes nothing, shows no "
        "secret; exit code 1 when something is broken."
    )
    requires_system_checks = ()  # it reports them itself

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="a list of objects for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = examine()
        if options["json"]:
            self.stdout.write(json.dumps([f.as_json() for f in findings], indent=2))
        else:
            style = {
                Level.OK: self.style.SUCCESS,
                Level.WARN: self.style.WARNING,
                Level.FAIL: self.style.ERROR,
            }
            for found in findings:
                level = style[found.level](f"{found.level.value:<4}")
                self.stdout.write(f"{level}  {found.subject:<14}  {found.text}")
                if found.todo:
                    self.stdout.write(f"{'':<22}→ {found.todo}")
        if any(found.level == Level.FAIL for found in findings):
            sys.exit(1)
