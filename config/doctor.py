"""What `manage.py doctor` looks at: one function a subject, each giving findings.

Nothing is changed and no secret is read: findings name variables, paths and key ids only. Errors
are told by their class: their text may hold an address with a password.
"""

from __future__ import annotations

import datetime as dt
import enum
import fcntl
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError

from config import env
from connections.models import Connection
from sessions.models import Turn
from workspaces import egress, rotation, vault

UNTAKEN = dt.timedelta(minutes=1)  # the workers' sweep takes a waiting turn within seconds
OVERDUE = dt.timedelta(minutes=15)  # beat asks for due checks every minute
SKEW_SECONDS = 5.0
CODEX_TESTED = ("0.163.0",)
LITTLE_DISK, NO_DISK = 1024**3, 100 * 1024**2


class Level(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do ("" for nothing)."""

    subject: str
    level: Level
    text: str
    todo: str = ""

    def as_json(self) -> dict[str, str]:
        return {
            "subject": self.subject,
            "level": self.level.value,
            "text": self.text,
            "todo": self.todo,
        }


def examine() -> list[Finding]:
    """Every finding, in the order in which faults are best mended. Takes seconds; the database's
    integrity check reads the whole file."""
    findings: list[Finding] = []
    for subject, look in _LOOKS.items():
        try:
            seen = list(look())
        except DatabaseError as error:
            seen = [(Level.FAIL, f"The database gives an error ({_name(error)}).", _SEE_DATABASE)]
        findings += [Finding(subject, *line) for line in seen]
    return findings


_Line = tuple[Level, str] | tuple[Level, str, str]
_SEE_DATABASE = "See the line “database”."


def _name(error: BaseException) -> str:
    return type(error).__name__


def _environment() -> Iterator[_Line]:
    where = "embedded" if settings.EMBEDDED else "with a database or Redis of your own"
    yield Level.OK, f"{settings.PUBLIC_URL}, {where}."
    if settings.DEBUG:
        yield (
            Level.FAIL if settings.PRODUCTION else Level.WARN,
            "PATCHBAY_DEBUG is on: error pages show settings and source.",
            "Unset PATCHBAY_DEBUG.",
        )
    if not settings.PRODUCTION and "127.0.0.1" not in settings.ALLOWED_HOSTS:
        yield (
            Level.WARN,
            "PATCHBAY_URL is not https: passwords and cookies travel in clear.",
            "Put a proxy with a certificate in front and set PATCHBAY_URL to its https address.",
        )
    for name in sorted(os.environ):
        plain = name.removesuffix("_FILE")
        if name.startswith("PATCHBAY_") and not {name, plain} & env.asked():
            yield (
                Level.WARN,
                f"{name} is set and not read here.",
                "Compare it with docs/operations.md, or unset it.",
            )
        if name != plain and plain in os.environ and plain in env.asked():
            yield Level.WARN, f"{plain} and {name} are both set: {plain} wins.", "Unset one."


def _settings() -> Iterator[_Line]:
    found = checks.run_checks(include_deployment_checks=settings.PRODUCTION)
    for message in found:
        if message.is_silenced():
            continue
        level = Level.FAIL if message.is_serious() else Level.WARN
        yield level, f"{message.msg} ({message.id})", str(message.hint or "")
    if not found:
        yield Level.OK, "Django's checks have no complaint."


def _data_directory() -> Iterator[_Line]:
    data = settings.DATA_DIR
    if not data.is_dir():
        yield Level.WARN, f"{data} is not there yet.", "It is made at the first start."
        return
    if not os.access(data, os.W_OK | os.X_OK):
        yield Level.FAIL, f"{data} can't be written.", "Give it to the account of the server."
    open_ones = [p for p in (data, settings.KEYS_DIR, *_key_files()) if _is_open(p)]
    for path in open_ones:
        mode = "700" if path.is_dir() else "600"
        yield (
            Level.FAIL if path != data else Level.WARN,
            f"{path} can be read by other accounts.",
            f"chmod {mode} {path}",
        )
    free = shutil.disk_usage(data).free
    if free < LITTLE_DISK:
        yield (
            Level.FAIL if free < NO_DISK else Level.WARN,
            f"{free // 1024**2} MB are free on its disk.",
            "Make room: without it nothing can be saved.",
        )
    if not open_ones:
        yield Level.OK, f"{data} is private; {free // 1024**3} GB are free."


def _key_files() -> list[Path]:
    folder = settings.KEYS_DIR
    return sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []


def _is_open(path: Path) -> bool:
    return path.exists() and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _database() -> Iterator[_Line]:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:  # psycopg's pool has errors of its own
        yield (
            Level.FAIL,
            f"The database can't be reached ({_name(error)}).",
            "Check DATABASE_URL and that the server runs."
            if connection.vendor == "postgresql"
            else f"Check {settings.DATABASES['default']['NAME']} and its disk.",
        )
        return
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        yield (
            Level.FAIL,
            f"{len(missing)} migrations are not applied.",
            "Run: manage.py prepare (a start does it, too).",
        )
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA quick_check(1)")
            sound = cursor.fetchone()[0] == "ok"
        if not sound:
            yield (
                Level.FAIL,
                "The database file is damaged.",
                "Stop the server, keep a copy of the file, and restore a backup.",
            )
            return
    if not missing:
        yield Level.OK, f"{connection.display_name} answers; every migration is applied."


def _redis() -> Iterator[_Line]:
    own = bool(settings.VALKEY_PASSWORD)
    if own and not _is_serving():
        yield Level.WARN, "Patchbay isn't running, nor its Valkey server.", "Start it: make run"
        return
    try:
        with Redis.from_url(
            settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2
        ) as client:
            info = client.info()
            seconds = float(client.time()[0])
            policy = {} if own else client.config_get("maxmemory-policy")
    except (RedisError, OSError) as error:
        yield (
            Level.FAIL,
            f"Redis doesn't answer ({_name(error)}).",
            "Messages wait in the database meanwhile. Check REDIS_URL and that the server runs.",
        )
        return
    yield Level.OK, f"{info.get('server_name', 'redis')} {info.get('redis_version', '?')} answers."
    if abs(time.time() - seconds) > SKEW_SECONDS:
        yield Level.WARN, "Its clock differs from this machine's.", "Set both by NTP."
    if policy.get("maxmemory-policy", "noeviction") != "noeviction":
        yield (
            Level.WARN,
            "It drops keys when its memory is full.",
            "Set maxmemory-policy to noeviction: a dropped stream breaks the page that reads it.",
        )


def _is_serving() -> bool:
    """Whether the supervisor of `make run` holds this data directory."""
    try:
        handle = os.open(settings.DATA_DIR / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _keys() -> Iterator[_Line]:
    try:
        report = rotation.key_report()
    except vault.BadKeys as error:
        yield Level.FAIL, f"{error}.", "Without a key no secret can be opened."
        return
    lost = report.in_use.get("", 0)
    if lost:
        yield Level.FAIL, f"{lost} secrets are damaged.", "Enter them again."
    for key in report.missing:
        yield (
            Level.WARN if settings.START_SEALED else Level.FAIL,
            f"Key {key} is missing: {report.in_use[key]} secrets can't be opened.",
            f"Put it back into PATCHBAY_SECRET_KEYS or {vault.key_file()}, or enter the secrets "
            "again.",
        )
    for key in report.removable:
        yield (
            Level.WARN,
            f"Key {key} seals nothing any more.",
            "Remove it once every process has been restarted with the new first key.",
        )
    if not report.at_hand:
        level = Level.FAIL if report.in_use else Level.OK
        yield level, "There is no key yet: one is made at the first start."
    elif report.primary:
        old = sum(n for key, n in report.in_use.items() if key in report.at_hand) - (
            report.in_use.get(report.primary, 0)
        )
        if old:
            yield (
                Level.WARN,
                f"{old} secrets are sealed with an older key.",
                "Run: manage.py rotate_secrets",
            )
        yield (
            Level.OK,
            f"Key {report.primary} seals, {report.in_use.get(report.primary, 0)} secrets so far. "
            "Keep a copy of it apart from the backups.",
        )


def _workers() -> Iterator[_Line]:
    now = timezone.now()
    active = Turn.objects.filter(state__among=Turn.ACTIVE)
    waiting = active.filter(
        state=Turn.State.PENDING, created_at__lt=now - UNTAKEN, lease_token=None
    ).count()
    late = Connection.objects.filter(deleted_at=None, next_check_at__lt=now - OVERDUE).count()
    if waiting:
        yield Level.FAIL, f"{waiting} messages wait for a worker.", "Start a worker."
    if late:
        yield (
            Level.WARN,
            f"{late} connections are overdue for their check.",
            "Start worker and beat; look into their logs if they run.",
        )
    if not waiting and not late:
        yield Level.OK, "Nothing waits for a worker."


def _way_out() -> Iterator[_Line]:
    for name, policy in (
        ("PATCHBAY_EGRESS_ALLOW", egress.provider_policy),
        ("PATCHBAY_TOOL_EGRESS_ALLOW", egress.tool_policy),
    ):
        try:
            allowed = policy().allowed
        except ValueError as error:
            yield Level.FAIL, f"{error}.", f"Correct {name}."
            continue
        yield Level.OK, f"{name}: {len(allowed)} special networks or hosts may be reached."


def _static_files() -> Iterator[_Line]:
    manifest = settings.STATIC_ROOT / "staticfiles.json"
    todo = "Run: manage.py collectstatic --noinput (make run does it)."
    if not manifest.exists():
        yield Level.FAIL, "The static files are not collected: pages have no style.", todo
        return
    collected = manifest.stat().st_mtime
    newer = any(
        p.stat().st_mtime > collected
        for found in settings.STATICFILES_DIRS
        for p in Path(found[1] if isinstance(found, tuple) else found).rglob("*")
        if p.is_file()
    )
    if newer:
        yield Level.WARN, "Static files are newer than their collection.", todo
    else:
        yield Level.OK, "The static files are collected."


def _codex() -> Iterator[_Line]:
    if not settings.CODEX_PATHS:
        yield Level.OK, "The Codex binary isn't installed (make codex): OpenAI (Codex) is off."
    for path in settings.CODEX_PATHS:
        version = _codex_version(path)
        if not version:
            yield (
                Level.FAIL,
                f"{path} can't be run.",
                "Run make codex, or correct PATCHBAY_CODEX_PATHS.",
            )
        elif version in CODEX_TESTED:
            yield Level.OK, f"{path} is version {version}."
        else:
            yield (
                Level.WARN,
                f"{path} is version {version}, which Patchbay was not tested with.",
                f"Tested: {', '.join(CODEX_TESTED)}. Validate an OpenAI connection.",
            )


def _codex_version(path: str) -> str:
    """ "" for what is no Codex binary."""
    if not Path(path).is_absolute():
        return ""
    with tempfile.TemporaryDirectory(prefix="codex-") as folder:
        environ = {"HOME": folder, "CODEX_HOME": folder, "PATH": "/nonexistent"}
        try:
            told = subprocess.run(  # noqa: S603 (a path that the operator lists)
                [path, "--version"], env=environ, cwd=folder, capture_output=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return ""
    found = re.fullmatch(rb"codex-cli (\S{1,40})\s*", told.stdout)
    return found[1].decode("ascii", "replace") if found else ""


def _clock() -> Iterator[_Line]:
    newest = max(p.stat().st_mtime for p in Path(__file__).parent.glob("*.py"))
    if time.time() + 3600 < newest:
        yield (
            Level.FAIL,
            "The clock is behind the date of Patchbay's own files.",
            "Set it by NTP: signatures, leases and certificates depend on it.",
        )
        return
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            if abs(time.time() - float(cursor.fetchone()[0])) > SKEW_SECONDS:
                yield Level.WARN, "The database's clock differs.", "Set both by NTP."
                return
    yield Level.OK, f"{timezone.now():%Y-%m-%d %H:%M} UTC."


_LOOKS: dict[str, Callable[[], Iterator[Any]]] = {
    "environment": _environment,
    "settings": _settings,
    "data directory": _data_directory,
    "database": _database,
    "redis": _redis,
    "keys": _keys,
    "workers": _workers,
    "way out": _way_out,
    "static files": _static_files,
    "codex": _codex,
    "clock": _clock,
}
