"""Values from the environment. Every reader takes `NAME` or the file that `NAME_FILE` names, never
both.

A refusal (`BadEnv`) names the variable and the values it accepts, never the value it got: it may be
a secret in the wrong place.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from urllib.parse import unquote, urlsplit


class BadEnv(Exception):
    """A variable can't be used; the text is one line for the operator."""


_asked: set[str] = set()


def asked() -> frozenset[str]:
    """The names of the variables that were read so far: any other one has no effect."""
    return frozenset(_asked)


def _raw(name: str) -> str | None:
    _asked.add(name)
    value, path = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if value is not None and path:
        raise BadEnv(
            f"{name} and {name}_FILE are both set: which one counts? Leave one of them out"
        )
    if value is not None:
        return value
    if path:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadEnv(f"{name}_FILE: the file can't be read ({type(error).__name__})") from None
    return None


def string(name: str, default: str | None = None) -> str | None:
    """The text, stripped; `default` when the variable isn't set. Set and empty stays empty."""
    value = _raw(name)
    return default if value is None else value.strip()


def address(name: str, default: str) -> str:
    """An http or https URL without credentials or a fragment."""
    return _checked_address(name, string(name) or default)


def addresses(name: str, default: dict[str, str]) -> dict[str, str]:
    """Comma-separated `key=URL`, each key one of the default's; set and empty is none."""
    found = {}
    for item in items(name, tuple(f"{key}={url}" for key, url in default.items())):
        key, _, url = item.partition("=")
        if key not in default:
            raise BadEnv(f"{name}: use KEY=URL with the keys {', '.join(default)}")
        found[key] = _checked_address(name, url)
    return found


def _checked_address(name: str, value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise BadEnv(f"{name}: use https://host/path, without credentials")
    if "#" in value or any(char.isspace() for char in value):
        raise BadEnv(f"{name}: use https://host/path, without a fragment or spaces")
    return value


def boolean(name: str, default: bool = False) -> bool:
    value = (_raw(name) or "").strip().lower()
    if not value:
        return default
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise BadEnv(f"{name}: use 1/true/yes/on or 0/false/no/off")


def integer(name: str, default: int, *, least: int = 0, most: int = 2**31) -> int:
    value = (_raw(name) or "").strip()
    if not value:
        return default
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise BadEnv(f"{name}: use a whole number from {least} to {most}")
    return number


def items(name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Comma-separated values, empty ones dropped."""
    value = _raw(name)
    if value is None:
        return default
    return tuple(item for part in value.split(",") if (item := part.strip()))


def bundled_codex() -> tuple[str, ...]:
    """The binary of the extra `codex`, empty where that isn't installed. Runs nothing."""
    try:
        import codex_cli_bin

        path = codex_cli_bin.bundled_codex_path()
    except (ImportError, OSError):
        return ()
    return (str(path),)


def chosen(name: str, *, among: tuple[str, ...]) -> frozenset[str]:
    """Comma-separated values, each one of `among`; `all` stands for every one."""
    found = items(name)
    if found == ("all",):
        return frozenset(among)
    if not set(found) <= set(among):
        raise BadEnv(f"{name}: use {', '.join(among)} (comma-separated), or all")
    return frozenset(found)


def one_of(name: str, among: list[str]) -> str:
    """One of these, the first when the variable isn't set."""
    value = string(name) or among[0]
    if value not in among:
        raise BadEnv(f"{name}: use {' or '.join(among)}")
    return value


def loopback_url(name: str) -> str:
    """An http address on this machine, "" when the variable isn't set."""
    value = string(name) or ""
    if value and not re.match(r"http://(127\.0\.0\.1|\[::1\]):[0-9]{1,5}/", value):
        raise BadEnv(f"{name}: use an address on this machine, as http://127.0.0.1:PORT/PATH")
    return value


def made_secret(name: str, path: Path, *, bytes_: int = 32) -> str:
    """The variable, else the file at `path`, made on the first call with `bytes_` random bytes in
    hexadecimal: a double click in a console takes the whole of it."""
    if value := (_raw(name) or "").strip():
        return value
    make_private(path.parent)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_when_written(path)
    with os.fdopen(handle, "w") as file:
        file.write(value := secrets.token_hex(bytes_))
    return value


def make_private(folder: Path) -> None:
    """Makes the directory and what is missing above it, for this account only."""
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _read_when_written(path: Path) -> str:
    # Another process may stand between its open and its write: an empty file isn't the secret.
    import time

    for _ in range(100):
        if value := path.read_text().strip():
            return value
        time.sleep(0.02)
    raise BadEnv(f"{path.name}: the file is empty; remove it to have a new one made")


def mailer(url: str) -> dict[str, object]:
    """Django's mailer of `smtp://user:password@host:port` (`smtps://`: TLS at once; `smtp+tls://`:
    STARTTLS) or `console:`."""
    parts = urlsplit(url)
    if parts.scheme in {"", "console"}:
        return {"BACKEND": "django.core.mail.backends.console.EmailBackend"}
    if parts.scheme not in {"smtp", "smtps", "smtp+tls"} or not parts.hostname:
        raise BadEnv("EMAIL_URL: use smtp://, smtp+tls:// or smtps:// with a host, or console:")
    return {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {
            "host": parts.hostname,
            "port": parts.port or (465 if parts.scheme == "smtps" else 587),
            "username": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "use_ssl": parts.scheme == "smtps",
            "use_tls": parts.scheme == "smtp+tls",
            "timeout": 10,
        },
    }
