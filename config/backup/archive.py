"""The file itself: members, digests, and the keys under a passphrase."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import secrets
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

FORMAT = 1
MANIFEST, KEYS = "manifest.json", "keys.json"
SHORTEST_PASSPHRASE = 12
_ABOUT = b"patchbay backup keys 1"
# Some 128 MB and half a second: paid once a backup, and once a guess.
_COST = {"n": 2**17, "r": 8, "p": 1}


class BackupError(Exception):
    """A backup can't be made, or can't be used."""


@dataclass(slots=True)
class Manifest:
    """What a backup is. `migrations` are [app, name]; `keys` the ids that seal something in it;
    `members` the digests of the other members; `missing` the files that rows name and nobody
    found."""

    engine: str
    version: str
    made_at: str
    migrations: list[list[str]]
    keys: list[str]
    rows: dict[str, int]
    missing: list[str] = field(default_factory=list)
    audit: list[int | str] = field(default_factory=list)  # the audit's last number and its seal
    members: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


class Writer:
    """Puts members into an archive, and their digests into the manifest at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w:gz", compresslevel=3)  # noqa: SIM115
        self._digests: dict[str, str] = {}

    def add_file(self, name: str, path: Path) -> None:
        """Raises FileNotFoundError when the file is gone."""
        with path.open("rb") as source:
            self._add(name, source, path.stat().st_size)

    def add_bytes(self, name: str, data: bytes) -> None:
        self._add(name, io.BytesIO(data), len(data))

    def _add(self, name: str, source: BinaryIO, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        digest = _Digest(source)
        self._tar.addfile(info, digest)
        self._digests[name] = digest.hexdigest()

    def close(self, manifest: Manifest) -> None:
        manifest.members = self._digests
        data = json.dumps(asdict(manifest), indent=1).encode()
        self._add(MANIFEST, io.BytesIO(data), len(data))
        self._tar.close()


class _Digest:
    """A file that is read once, with the digest of what was read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._sha = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._sha.update(data)
        return data

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def unpack(path: Path, folder: Path) -> Manifest:
    """Every member under `folder`, each checked against its digest. Raises `BackupError`."""
    digests: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                if not info.isreg() or not _is_ours(info.name):
                    raise BackupError("This is no backup of Patchbay: it holds other things.")
                tar.extract(info, folder, filter="data")
                with (folder / info.name).open("rb") as file:
                    digests[info.name] = hashlib.file_digest(file, "sha256").hexdigest()
        digests.pop(MANIFEST, None)
        manifest = _manifest(json.loads((folder / MANIFEST).read_bytes()))
    except FileNotFoundError as error:
        if error.filename == str(path):
            raise BackupError(f"There is no file {path}.") from None
        raise BackupError("This backup is cut off: it has no manifest.") from None
    except (tarfile.TarError, EOFError, ValueError, TypeError) as error:
        raise BackupError(
            f"This is no backup of Patchbay, or it is damaged ({type(error).__name__})."
        ) from None
    except OSError as error:  # zlib's and gzip's own, and a full disk
        raise BackupError(f"The backup can't be read ({error.strerror or error}).") from None
    if digests != manifest.members:
        odd = sorted(name for name, _ in digests.items() ^ manifest.members.items())
        raise BackupError(f"This backup is damaged: {odd[0]} isn't what the manifest says.")
    return manifest


def _is_ours(name: str) -> bool:
    return name in {MANIFEST, KEYS} or name.startswith(("database/", "attachments/"))


def _manifest(data: Any) -> Manifest:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BackupError("This backup has a format that this version doesn't know.")
    return Manifest(**data)


# -- the keys ------------------------------------------------------------------------------------


def read_passphrase(path: Path) -> str:
    """The first line of a file. Raises `BackupError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't text"
        raise BackupError(f"The passphrase can't be read from {path} ({reason}).") from None
    passphrase = lines[0].strip() if lines else ""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise BackupError(
            f"The first line of {path} is the passphrase: use {SHORTEST_PASSPHRASE} characters or "
            "more."
        )
    return passphrase


def wrap(keys: list[str], passphrase: str) -> bytes:
    """The instance keys, as texts, under a passphrase: the member `keys.json`."""
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    sealed = AESGCM(_derive(passphrase, salt, _COST)).encrypt(
        nonce, json.dumps(keys).encode(), _ABOUT
    )
    parts = {"salt": salt, "nonce": nonce, "sealed": sealed}
    texts = {name: base64.b64encode(value).decode() for name, value in parts.items()}
    return json.dumps({"kdf": "scrypt", **_COST, **texts}).encode()


def unwrap(member: Path, passphrase: str) -> list[str]:
    """The instance keys. Raises `BackupError`."""
    try:
        data = json.loads(member.read_bytes())
        cost = {name: int(data[name]) for name in _COST}
        if cost["n"] > 2**20 or cost["r"] > 16 or cost["p"] > 4:
            raise ValueError
        salt, nonce, sealed = (base64.b64decode(data[x]) for x in ("salt", "nonce", "sealed"))
        return json.loads(AESGCM(_derive(passphrase, salt, cost)).decrypt(nonce, sealed, _ABOUT))
    except InvalidTag:
        raise BackupError("This isn't the passphrase that the backup was made with.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise BackupError("The keys in this backup are damaged.") from None


def _derive(passphrase: str, salt: bytes, cost: dict[str, int]) -> bytes:
    return Scrypt(salt=salt, length=32, **cost).derive(passphrase.encode())
