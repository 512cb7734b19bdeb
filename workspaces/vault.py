"""Sealing of secrets: AES-256-GCM in an envelope, under the operator's instance keys.

Every secret has a data key of its own; the data key is wrapped by an instance key. What is stored
(all lengths in bytes)::

    version 1 | key id 8 | wrap nonce 12 | wrapped data key 48 | nonce 12 | ciphertext + tag 16

so the key id can be read without any key, and a rotation re-wraps 48 bytes without ever seeing the
secret. The ciphertext's associated data is its context: the table, the row, the field, and what the
secret is bound to. Moved to another row, or opened for another destination, it does not open.

The error tree, one line each for a person::

    VaultError
    ├── KeyMissing        the instance key that seals it is not at hand
    ├── SecretUnreadable  damaged, moved, or bound to something else
    └── BadKeys           the instance keys themselves can't be used

This module knows no models: `workspaces.fields` puts it on them, `workspaces.rotation` looks after
which keys a database uses.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import itertools
import logging
import os
import secrets
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.utils.translation import gettext_lazy as _

logger = logging.getLogger(__name__)

VERSION = b"\x01"
KEY_BYTES = 32
ID_BYTES = 8
_NONCE = 12
_WRAPPED = KEY_BYTES + 16
HEAD = len(VERSION) + ID_BYTES  # bytes that name the format and the key
_WRAP_END = HEAD + _NONCE + _WRAPPED
_SMALLEST = _WRAP_END + _NONCE + 16


class VaultError(Exception):
    """Something sealed can't be opened, or can't be sealed. Never carries key or secret."""


class KeyMissing(VaultError):
    """The instance key `key_id` ("" when there is none at all) is not at hand."""

    def __init__(self, key_id: str = "") -> None:
        self.key_id = key_id
        super().__init__(
            _("This secret is sealed with the key %(id)s, which this server does not have.")
            % {"id": key_id}
            if key_id
            else _("This server has no instance key, so nothing can be sealed.")
        )


class SecretUnreadable(VaultError):
    """The sealed bytes are damaged, were moved here from elsewhere, or are bound to something
    else than what they are opened for: which of them can't be told, and makes no difference."""

    def __init__(self) -> None:
        super().__init__(_("This secret is unreadable. Enter it again."))


class BadKeys(VaultError):
    """The instance keys can't be used; the text is one line for the operator."""


class Plain:
    """A secret that is about to be sealed. Assign it to a sealed field and save.

    It has the same reading side as a sealed value, so that a form not yet saved can be tested.
    Its `repr` shows nothing and it can't be pickled.
    """

    __slots__ = ("_value",)
    key_id = ""
    readable = True

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    def open(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return "<Plain>"

    def __deepcopy__(self, memo: object) -> Plain:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A plain secret can't be pickled: save it first.")


def context(*parts: str) -> bytes:
    """Associated data from texts: each with its length, so that no two lists look the same."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def key_id_of(blob: bytes) -> str:
    """The id of the key that seals these bytes; "" when they were never sealed by this vault."""
    if len(blob) < _SMALLEST or not blob.startswith(VERSION):
        return ""
    return blob[len(VERSION) : HEAD].hex()


def head_of(key_id: str) -> bytes:
    """How everything sealed with this key begins."""
    return VERSION + bytes.fromhex(key_id)


# -- the keys --------------------------------------------------------------------------------------


class Keyring:
    """The instance keys at hand: the first seals, all open. Immutable; `repr` shows only ids."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        for number, key in enumerate(keys, start=1):
            if fault := _fault(key):
                raise BadKeys(f"key {number} {fault}")
        self._keys = {_id(key): AESGCM(key) for key in keys}
        self._raw = {_id(key): key for key in keys}

    @classmethod
    def parse(cls, texts: Iterable[str], *, source: str) -> Keyring:
        """From base64 texts, padded or not. Raises `BadKeys` with a line that begins with
        `source` and says which key is wrong and how, without any part of it."""
        try:
            return cls([_decode(number, text) for number, text in enumerate(texts, start=1)])
        except BadKeys as error:
            raise BadKeys(
                f"{source}: {error}. A key is {KEY_BYTES} random bytes in base64; make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            ) from None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def primary(self) -> str:
        """The id of the key that seals. Raises `KeyMissing` when there is none."""
        for key_id in self._keys:
            return key_id
        raise KeyMissing

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys) or 'empty'}>"

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Seal with the first key. Raises `KeyMissing` when there is none."""
        data_key = AESGCM.generate_key(bit_length=KEY_BYTES * 8)
        nonce = secrets.token_bytes(_NONCE)
        sealed = AESGCM(data_key).encrypt(nonce, plaintext, VERSION + context)
        return self._wrap(data_key) + nonce + sealed

    def open(self, blob: bytes, context: bytes) -> bytes:
        """The plaintext. Raises `KeyMissing` or `SecretUnreadable`; there is no third way."""
        data_key = self._unwrap(blob)
        nonce, sealed = blob[_WRAP_END : _WRAP_END + _NONCE], blob[_WRAP_END + _NONCE :]
        try:
            return AESGCM(data_key).decrypt(nonce, sealed, VERSION + context)
        except InvalidTag:
            raise SecretUnreadable from None

    def rewrap(self, blob: bytes) -> bytes:
        """The same secret under the first key. Needs no context: the secret stays sealed."""
        return self._wrap(self._unwrap(blob)) + blob[_WRAP_END:]

    def mac(self, key_id: str, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 under a key derived for `purpose` from an instance key. Raises
        `KeyMissing`."""
        if key_id not in self._raw:
            raise KeyMissing(key_id)
        derived = hmac.digest(self._raw[key_id], b"patchbay " + purpose.encode(), "sha256")
        return hmac.digest(derived, data, "sha256")

    def _wrap(self, data_key: bytes) -> bytes:
        head = head_of(self.primary)
        nonce = secrets.token_bytes(_NONCE)
        return head + nonce + self._keys[self.primary].encrypt(nonce, data_key, head)

    def _unwrap(self, blob: bytes) -> bytes:
        key_id = key_id_of(blob)
        if not key_id:
            raise SecretUnreadable
        if key_id not in self._keys:
            raise KeyMissing(key_id)
        nonce, wrapped = blob[HEAD : HEAD + _NONCE], blob[HEAD + _NONCE : _WRAP_END]
        try:
            return self._keys[key_id].decrypt(nonce, wrapped, blob[:HEAD])
        except InvalidTag:
            raise SecretUnreadable from None


def _id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[: 2 * ID_BYTES]


def _decode(number: int, text: str) -> bytes:
    text = text.strip().rstrip("=").translate(str.maketrans("+/", "-_"))
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadKeys(f"key {number} is not base64") from None


def _fault(key: bytes) -> str:
    """What is wrong with a key, "" for nothing. What no random generator gives is refused: 32
    random bytes fail one of these rules less than once in 10**13 keys."""
    if len(key) != KEY_BYTES:
        return f"is {len(key)} bytes long"
    steps = {(b - a) % 256 for a, b in itertools.pairwise(key)}
    if len(set(key)) < KEY_BYTES // 2 or len(steps) < KEY_BYTES // 4:
        return "is a pattern, not random"
    if all(chr(byte) in string.printable for byte in key):
        return "is readable text, not random"
    return ""


# -- where they come from --------------------------------------------------------------------------


def keyring() -> Keyring:
    """This process's keys: PATCHBAY_SECRET_KEYS, else the key file, else none.

    The file is looked at on every call (one `stat`), so a key added to it counts at once. Raises
    `BadKeys`.
    """
    if settings.SECRET_KEYS:
        return _from_texts(tuple(settings.SECRET_KEYS))
    path = key_file()
    try:
        found = path.stat()
    except FileNotFoundError:
        return Keyring()
    return _from_file(path, found.st_mtime_ns, found.st_size, found.st_mode)


def key_file() -> Path:
    return settings.KEYS_DIR / "secret.keys"


def make_key_file() -> Path:
    """Write a key file with one new key, mode 0600, unless there is one already (another process
    may be faster: then its key stands). The caller knows that nothing is sealed yet."""
    path = key_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_key_file([secrets.token_urlsafe(KEY_BYTES)], replace=False)
    return path


def write_key_file(keys: Sequence[str], *, replace: bool) -> None:
    """Put the keys, first the one that seals, on the disk as a whole or not at all."""
    path = key_file()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    text = "# Patchbay's instance keys, one a line. The first seals, all open. Keep a copy.\n"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text + "".join(f"{key}\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            try:
                path.hardlink_to(draft)  # unlike a rename, this never replaces a file
            except FileExistsError:
                return
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_keys() -> list[str]:
    """The key file's keys as texts."""
    lines = (line.strip() for line in key_file().read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@functools.lru_cache(maxsize=8)
def _from_texts(texts: tuple[str, ...]) -> Keyring:
    return Keyring.parse(texts, source="PATCHBAY_SECRET_KEYS")


@functools.lru_cache(maxsize=8)
def _from_file(path: Path, mtime_ns: int, size: int, mode: int) -> Keyring:
    if mode & 0o077:
        logger.warning("%s can be read by other accounts: set its mode to 0600.", path)
    try:
        texts = file_keys()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeys(f"{path}: the file can't be read ({type(error).__name__})") from None
    if not texts:
        raise BadKeys(f"{path}: the file holds no key")
    return Keyring.parse(texts, source=str(path))
