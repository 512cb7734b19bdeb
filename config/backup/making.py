"""Making a backup, of a server that may be running."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, transaction
from django.utils import timezone

import sessions.models as conversations
from config.backup import archive, database
from connections.models import Connection
from workspaces import audit, rotation, vault
from workspaces.models import Installation, User, Workspace

COUNTED = {
    "people": User,
    "workspaces": Workspace,
    "connections": Connection,
    "sessions": conversations.ChatSession,
    "messages": conversations.Message,
}


def make(target: Path, passphrase: str, say: Callable[[str], None]) -> archive.Manifest:
    """Writes a backup to `target`, whole or not at all; an older one of that name is replaced.

    Everything committed before this is called is in it. `passphrase` "": without the instance
    keys. Returns its manifest. Raises `BackupError`.
    """
    draft = Path()
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".patchbay-backup-", dir=target.absolute().parent))
        draft = folder / "archive"
        with transaction.atomic():
            audit.record(
                "command",
                "backup.create",
                Installation(id=1),
                label=target.name,
                with_keys=bool(passphrase),
            )
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            manifest = _fill(archive.Writer(file), folder, passphrase, say)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except DatabaseError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise archive.BackupError(f"The database can't be read: {reason}") from None
    except OSError as error:
        raise archive.BackupError(
            f"The backup can't be written to {target} ({error.strerror or error})."
        ) from None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _fill(
    writer: archive.Writer, folder: Path, passphrase: str, say: Callable[[str], None]
) -> archive.Manifest:
    say("Reading the database …")
    with database.snapshot(folder) as taken:
        manifest = archive.Manifest(
            engine=database.engine(),
            version=_version(),
            made_at=timezone.now().isoformat(timespec="seconds"),
            migrations=database.migrations_in(taken.query),
            keys=sorted(key for key in rotation.rows_by_key() if key),
            rows=database.rows_in(taken.query, COUNTED),
            audit=database.audit_head_in(taken.query),
        )
        for path in taken.files:
            writer.add_file(f"database/{path.name}", path)
            path.unlink()
        say("Adding attachments …")
        # Read after the snapshot: a file is written before its row is.
        for name in database.files_in(taken.query):
            try:
                writer.add_file(f"attachments/{name}", settings.MEDIA_ROOT / name)
            except FileNotFoundError:
                manifest.missing.append(name)
    if passphrase:
        keys = list(settings.SECRET_KEYS)
        with contextlib.suppress(FileNotFoundError):
            keys = keys or vault.file_keys()
        writer.add_bytes(archive.KEYS, archive.wrap(keys, passphrase))
    writer.close(manifest)
    return manifest


def _version() -> str:
    with (settings.BASE_DIR / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["version"]
