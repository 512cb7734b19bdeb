"""The lines of the logs: for people, or with PATCHBAY_LOG_FORMAT=json one JSON object each.

Every line names what it is about, as far as that is known: the web request, the session, the turn,
the task. These stand in a context variable, which threads and coroutines inherit from who began
them. A line never holds a value of anybody: of an exception it has type and places, of a request
the route instead of the path, whose parts may be a token.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, str] = MappingProxyType({})
_about: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "about", default=_NOTHING
)


@contextlib.contextmanager
def about(**names: object) -> Iterator[None]:
    """Lines within it carry these: `request_id`, `session_id`, `turn_id`, `task`."""
    token = _about.set({**_about.get(), **{name: str(value) for name, value in names.items()}})
    try:
        yield
    finally:
        _about.reset(token)


def request_id() -> str:
    """The id of the web request that is being answered, "" elsewhere."""
    return _about.get().get("request_id", "")


def without_values(record: logging.LogRecord) -> bool:
    """A filter that takes out of others' lines what may be a value of somebody."""
    if record.name.startswith("django.security."):
        # Anybody may send a wrong host or 10,000 fields: a line says so, our stack adds nothing.
        record.exc_info = None
    elif record.name == "asyncio":  # what follows its first line are reprs
        record.msg, record.args = record.getMessage().split("\n", 1)[0], None
    elif record.name == "celery.app.trace" and isinstance(record.args, Mapping) and record.exc_info:
        fault = type(record.exc_info[1]).__name__
        record.args = {**record.args, "exc": fault, "args": "", "kwargs": "", "return_value": ""}
    if (request := getattr(record, "request", None)) is not None and record.args:
        path = getattr(request, "path", None)
        named = tuple(record.args) if not isinstance(record.args, Mapping) else ()
        record.args = tuple(route_of(request) if part == path else part for part in named)
    return True


def route_of(request: Any) -> str:
    """The pattern that a request's address matched, "" for none."""
    match = getattr(request, "resolver_match", None)
    return f"/{match.route}" if match else ""


def places_of(error: BaseException | None) -> str:
    """A traceback without the texts of the exceptions, the cause first."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
        kind = type(error)
        inner = ""
        if isinstance(error, BaseExceptionGroup):
            inner = "".join(f"\n\n{places_of(one)}" for one in error.exceptions)
        head = "Traceback (most recent call last):\n"
        parts.append(f"{head}{frames}{kind.__module__}.{kind.__qualname__}{inner}")
        hidden = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or hidden
    return "\n\n".join(reversed(parts))


class Line(logging.Formatter):
    """For people: what it is about stands in brackets at the end of the line."""

    def __init__(self) -> None:
        super().__init__("{asctime} {levelname:<7} {name}: {message}", style="{")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        found = " ".join(f"{name}={value}" for name, value in _about.get().items())
        return f"{text} [{found}]" if found else text

    def formatException(self, ei: Any) -> str:
        return places_of(ei[1])


class JSON(logging.Formatter):
    """`time`, `level`, `logger`, `message`, what it is about, and `exception` where there is one.
    `fields` of a record (`extra=`) are added."""

    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = places_of(record.exc_info[1])
        return json.dumps(line, default=str)


def as_json(logger: str, text: str) -> bytes:
    """A line that something else wrote, as one of ours."""
    record = logging.LogRecord(logger, logging.WARNING, "", 0, text, None, None)
    return JSON().format(record).encode()
