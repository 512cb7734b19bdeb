"""Bringing a backup back, or trying whether one could."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import DatabaseError, connections, transaction
from redis import Redis
from redis.exceptions import RedisError

from config import serve
from config.backup import archive, database
from config.backup.archive import KEYS, BackupError, Manifest
from workspaces import audit, vault
from workspaces.fields import sealed_fields
from workspaces.models import Installation, User

_KEPT_ASIDE = "before-restore-"


@dataclass(slots=True)
class Outcome:
    """What a backup held and what became of it. `unreadable` are secrets, as table and row, that
    didn't open; `without_key` those whose instance key isn't at hand."""

    manifest: Manifest
    secrets: int = 0
    unreadable: list[str] = field(default_factory=list)
    without_key: int = 0
    missing_keys: list[str] = field(default_factory=list)
    aside: Path | None = None
    keys_at: Path | None = None
    notes: list[str] = field(default_factory=list)


def restore(path: Path, passphrase: str, *, rehearse: bool, say: Callable[[str], None]) -> Outcome:
    """Puts the backup in the place of what is there, or with `rehearse` into a scratch database
    that is removed again. Everything is unpacked, brought up to date and checked before anything
    here changes; what was here is kept aside. Safe to run again after it was killed.

    Raises `BackupError`: a running server, another engine, a damaged file, a newer version.
    """
    try:
        with contextlib.ExitStack() as stack:
            if not rehearse:
                stack.enter_context(_alone())
            home = Path(tempfile.gettempdir()) if rehearse else settings.DATA_DIR
            folder = Path(tempfile.mkdtemp(prefix=".patchbay-restore-", dir=home))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            return _restore(path, passphrase, folder, rehearse=rehearse, say=say)
    except DatabaseError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BackupError(f"The database can't be used: {reason}") from None
    except OSError as error:
        raise BackupError(f"The disk gives an error ({error.strerror or error}).") from None


def _restore(
    path: Path, passphrase: str, folder: Path, *, rehearse: bool, say: Callable[[str], None]
) -> Outcome:
    say("Checking the backup …")
    manifest = archive.unpack(path, folder)
    if manifest.engine != database.engine():
        raise BackupError(
            f"This backup is of {manifest.engine}, and DATABASE_URL says {database.engine()}: "
            "restore it where the database is of the same kind."
        )
    database.check_known(manifest.migrations)
    keys = _keys(folder, passphrase)
    outcome = Outcome(manifest)
    if passphrase and not keys:
        outcome.notes.append("This backup holds no instance keys; the passphrase wasn't needed.")
    ring = _ring(keys)
    outcome.missing_keys = [key for key in manifest.keys if key not in ring]

    say("Preparing the database …")
    with _prepared(folder, manifest, rehearse=rehearse) as alias:
        say("Opening every secret …")
        _unseal(alias, ring, outcome)
    if rehearse:
        return outcome

    say("Putting it in place …")
    outcome.aside = _set_aside()
    outcome.keys_at = _place_keys(keys)
    if (folder / "attachments").is_dir():
        shutil.move(folder / "attachments", settings.MEDIA_ROOT)
    if manifest.engine == "sqlite":
        (folder / "database" / database.SQLITE_FILE).rename(_sqlite_path())
    _forget_events(outcome)
    with transaction.atomic():
        # Who was signed in then need not be trusted now.
        Session.objects.all().delete()
        audit.record(
            "command",
            "backup.restore",
            Installation(id=1),
            label=path.name,
            made_at=manifest.made_at,
        )
    return outcome


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Nobody else uses this installation. Raises `BackupError`."""
    try:
        with serve.only_one(settings.DATA_DIR):
            if database.engine() == "postgresql":
                if others := database.is_in_use():
                    raise BackupError(
                        f"{others} others are connected to the database: end every process of "
                        "Patchbay first."
                    )
                if database.holds_people("default", User._meta.db_table):
                    raise BackupError(
                        "The database of DATABASE_URL holds an installation already: name an "
                        "empty one."
                    )
            yield
    except serve.CantStart as error:
        raise BackupError(f"Patchbay runs: end it first ({error}).") from None


@contextlib.contextmanager
def _prepared(folder: Path, manifest: Manifest, *, rehearse: bool) -> Iterator[str]:
    """The alias of the backup's database, complete and of this version."""
    with contextlib.ExitStack() as stack:
        if manifest.engine == "sqlite":
            file = folder / "database" / database.SQLITE_FILE
            if not file.exists():
                raise BackupError("This backup holds no database.")
            database.check_sqlite(file)
            alias = stack.enter_context(database.added("restored", NAME=file))
        else:
            alias = "default"
            if rehearse:
                name = "rehearsal" + folder.name.rpartition("-")[2].lower()
                alias = stack.enter_context(database.scratch_postgresql(name))
            database.load_postgresql(alias, folder / "database", manifest.migrations)
        database.bring_up_to_date(alias)
        yield alias


def _unseal(alias: str, ring: vault.Keyring, outcome: Outcome) -> None:
    for model, column in sealed_fields():
        rows = model._base_manager.using(alias).exclude(**{column.attname: None})
        for row in rows.iterator(chunk_size=500):
            outcome.secrets += 1
            try:
                ring.open(getattr(row, column.attname).stored, column.context(row))
            except vault.KeyMissing:
                outcome.without_key += 1
            except vault.VaultError:
                outcome.unreadable.append(f"{model._meta.db_table} {row.pk}")


# -- keys ------------------------------------------------------------------------------------------


def _keys(folder: Path, passphrase: str) -> list[str]:
    member = folder / KEYS
    if not passphrase or not member.exists():
        return []
    return archive.unwrap(member, passphrase)


def _ring(keys: list[str]) -> vault.Keyring:
    """The backup's keys, then those at hand."""
    texts = [*keys, *settings.SECRET_KEYS, *_file_keys()]
    return vault.Keyring.parse(dict.fromkeys(texts), source="the keys of the backup")


def _file_keys() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return vault.file_keys()
    return []


def _place_keys(keys: list[str]) -> Path | None:
    """Where the operator finds the restored keys: on top of the key file, or, where the keys come
    from the environment, in a file beside it. None when there is nothing to do."""
    if settings.SECRET_KEYS:
        fresh = [key for key in keys if key not in settings.SECRET_KEYS]
        if not fresh:
            return None
        place = settings.KEYS_DIR / "restored.keys"
        settings.KEYS_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.touch(mode=0o600)
        place.write_text("".join(f"{key}\n" for key in fresh))
        return place
    if keys:
        settings.KEYS_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        vault.write_key_file(list(dict.fromkeys([*keys, *_file_keys()])), replace=True)
        return vault.key_file()
    if not vault.key_file().exists():
        vault.make_key_file()  # so that secrets can be entered again
    return None


# -- places ----------------------------------------------------------------------------------------


def _sqlite_path() -> Path:
    return Path(connections.databases["default"]["NAME"])


def _set_aside() -> Path | None:
    """Moves what was here before into a directory of its own; None when there was nothing."""
    there = [settings.MEDIA_ROOT]
    if database.engine() == "sqlite":
        connections["default"].close()
        main = _sqlite_path()
        # The log first: a database without its log is older, a log without its database nothing.
        there = [
            main.with_name(f"{main.name}-wal"),
            main.with_name(f"{main.name}-shm"),
            main,
            *there,
        ]
    there = [path for path in there if path.exists()]
    if not there:
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    aside = settings.DATA_DIR / f"{_KEPT_ASIDE}{stamp}"
    aside.mkdir(mode=0o700)
    for path in there:
        shutil.move(path, aside / path.name)
    return aside


def _forget_events(outcome: Outcome) -> None:
    """The event log and the cache are of another time: without them, pages read the database."""
    if settings.VALKEY_PASSWORD:
        shutil.rmtree(settings.DATA_DIR / "valkey", ignore_errors=True)
        return
    try:
        with Redis.from_url(settings.REDIS_URL, socket_timeout=5) as client:
            for key in client.scan_iter("patchbay:*", count=1000):
                client.delete(key)
    except (RedisError, OSError):
        outcome.notes.append(
            "REDIS_URL doesn't answer: remove the keys patchbay:* there before the start."
        )
