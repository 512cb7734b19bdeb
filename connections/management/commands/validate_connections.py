"""`manage.py validate_connections [SLUG…] [--json]`: climbs the ladder in this process."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from connections.ladder import RungResult
from connections.models import Connection, ProbeResult
from connections.sentences import sentence
from connections.tasks import probe
from workspaces.runtime import get_runtime


class Command(BaseCommand):
    help = (
        "Validates the named connections (every enabled one without a name) in this process, with "
        "one short answer each. Exits with 1 when one of them is not proven to work."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slugs", nargs="*", metavar="SLUG")
        parser.add_argument("--json", action="store_true", help="one JSON array on standard output")

    def handle(self, *args: Any, slugs: list[str], **options: Any) -> None:
        connections = _named(slugs)
        runtime = get_runtime()
        pending = [
            (connection, runtime.submit(probe(connection.pk, force=True), name="probe"))
            for connection in connections
        ]
        found = [(connection, future.result()) for connection, future in pending]
        if options["json"]:
            self.stdout.write(json.dumps([_as_json(*one) for one in found], indent=2))
        else:
            for connection, result in found:
                self._tell(connection, result)
        failed = [c.slug for c, result in found if result is None or not result.passed]
        if failed:
            raise CommandError(f"not valid: {', '.join(failed)}", returncode=1)

    def _tell(self, connection: Connection, result: ProbeResult | None) -> None:
        good = bool(result and result.passed)
        self.stdout.write(f"{connection.slug}: {'valid' if good else 'failed'}")
        for stored in result.rungs if result else []:
            rung = RungResult.from_json(stored)
            ms = "" if rung.ms is None else f" {rung.ms} ms"
            self.stdout.write(f"  {rung.rung.label}: {rung.outcome.label}{ms}")
            if rung.kind:
                words = sentence(rung.kind, connection.auth_type)
                self.stdout.write(f"    {words.text}")
            if rung.detail:
                self.stdout.write(f"    {rung.detail}")


def _named(slugs: list[str]) -> list[Connection]:
    if not slugs:
        return list(Connection.objects.living().filter(enabled=True))
    connections = {c.slug: c for c in Connection.objects.living().filter(slug__in=slugs)}
    if missing := [slug for slug in slugs if slug not in connections]:
        raise CommandError(f"no such connection: {', '.join(missing)}")
    return [connections[slug] for slug in dict.fromkeys(slugs)]


def _as_json(connection: Connection, result: ProbeResult | None) -> dict[str, Any]:
    return {
        "slug": connection.slug,
        "passed": result.passed if result else None,
        "error": result.error_kind if result else "deleted",
        "latency_ms": result.latency_ms if result else None,
        "rungs": result.rungs if result else [],
    }
