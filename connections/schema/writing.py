"""Connections as the reference's JSON, in the generation asked for. No query, never a secret."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from connections.models import Connection
from connections.schema.document import PLAIN_FIELDS, Refused
from connections.schema.generations import (
    WORDS,
    Generation,
    fields_of,
    milliseconds,
    moment,
    prefixed,
    speaks,
    worded,
)
from connections.validation import clean_connection
from workspaces.models import Workspace

# Which fields an original text stands for, where that isn't its own alone: when one of them was
# edited, the original isn't put back.
_PAIR = ("provider_type", "auth_type", "auth_header")
_STANDS_FOR = {
    "providerType": _PAIR,
    "authType": _PAIR,
    "piAuthProvider": _PAIR,
    "type": _PAIR,
    "authHeader": _PAIR,
    "customEndpoint": ("custom_endpoint_api", "supports_images"),
}
_DATES = ("createdAt", "lastUsedAt")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a file has no place for: a connection, or the default that pointed at it."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Exported:
    """The file's JSON, and what isn't in it."""

    document: dict[str, Any]
    left_out: tuple[LeftOut, ...] = ()


def export(
    connections: Iterable[Connection],
    workspaces: Iterable[tuple[Workspace, str]] = (),
    *,
    generation: Generation = Generation.OWN,
) -> Exported:
    """These connections as a file. `workspaces`: each with the slug of its default.

    Never with a secret: the sealed ones aren't read, and `read` left out those of unknown fields.
    """
    connections = list(connections)
    entries: dict[str, dict[str, Any]] = {}
    left_out: list[LeftOut] = []
    for connection in connections:
        try:
            entries[connection.slug] = export_connection(connection, generation)
        except Refused as refusal:
            left_out.append(LeftOut(connection.slug, str(refusal)))
    gone = {connection.slug for connection in connections} - entries.keys()
    document: dict[str, Any] = {"workspaces": []}
    for space, slug in workspaces:
        document["workspaces"].append(
            {
                "id": str(space.id),
                "name": space.name,
                "slug": space.slug,
                "createdAt": milliseconds(space.created_at),
                "defaults": {"defaultLlmConnection": slug} if slug in entries else {},
            }
        )
        if slug in gone:
            label = _("Default of %(workspace)s") % {"workspace": space.name}
            left_out.append(LeftOut(label, _default_gone(slug)))
    default = next((c.slug for c in connections if c.is_default), "")
    if default in entries:
        document["defaultLlmConnection"] = default
    elif default:
        left_out.append(LeftOut(_("Global default"), _default_gone(default)))
    document["llmConnections"] = list(entries.values())
    return Exported(document, tuple(left_out))


def _default_gone(slug: str) -> str:
    return _("“%(slug)s” is left out.") % {"slug": slug}


def export_connection(
    connection: Connection, generation: Generation = Generation.OWN
) -> dict[str, Any]:
    """One connection. The original texts of an import stand again for the fields that weren't
    edited since. Raises `Refused` when the generation has no place for it."""
    plain = _plain(connection)
    originals = {k: v for k, v in connection.imported_as.items() if k not in _DATES}
    own = _with_originals(plain, connection, originals)
    if generation != Generation.OWN:
        words = [entry.get(name) for entry in (own, plain) for name in ("providerType", "authType")]
        if not speaks(own, generation, brought_in=words[:2] != words[2:]):
            anywhere = {k: v for k, v in originals.items() if k not in WORDS}
            own = _with_originals(plain, connection, anywhere)
            own = worded(own, connection, generation)
    return {**connection.unknown_fields, **own, **_dates(connection)}


def _plain(connection: Connection) -> dict[str, Any]:
    """Its fields under the reference's names and in our words; unset ones aren't there."""
    plain: dict[str, Any] = {
        theirs: value
        for theirs, ours in PLAIN_FIELDS.items()
        if (value := getattr(connection, ours)) not in ("", [], None)
    }
    if connection.enabled:
        plain.pop("enabled")
    endpoint: dict[str, Any] = {}
    if connection.custom_endpoint_api:
        endpoint["api"] = connection.custom_endpoint_api
    if connection.supports_images is not None:
        endpoint["supportsImages"] = connection.supports_images
    if endpoint:
        plain["customEndpoint"] = endpoint
    return plain


def _dates(connection: Connection) -> dict[str, Any]:
    """Milliseconds, or what the file had in their place, which may be no date at all."""
    found: dict[str, Any] = {}
    for name, date in zip(_DATES, (connection.created_at, connection.last_used_at), strict=True):
        if date is not None:
            found[name] = milliseconds(date)
        original = connection.imported_as.get(name)
        read = moment(original)
        if original is not None and (read == date or (read is None and name == "createdAt")):
            found[name] = original
    return found


def _with_originals(
    plain: dict[str, Any], connection: Connection, originals: dict[str, Any]
) -> dict[str, Any]:
    """An original is put back where reading it again gives what the connection is now."""
    while originals:
        candidate = {k: v for k, v in {**plain, **originals}.items() if v is not None}
        if candidate.get("providerType") == "pi":
            kept = {k: v for k, v in originals.items() if k in ("models", "defaultModel")}
            candidate = {k: v for k, v in {**prefixed(candidate), **kept}.items() if v is not None}
        try:
            values = clean_connection(fields_of(candidate, [])[0]).values
        except Refused:
            return plain
        edited = {name for name, value in values.items() if value != getattr(connection, name)}
        remaining = {k: v for k, v in originals.items() if not edited.intersection(_stands_for(k))}
        if len(remaining) == len(originals):
            return candidate
        originals = remaining
    return plain


def _stands_for(name: str) -> tuple[str, ...]:
    return _STANDS_FOR.get(name) or (PLAIN_FIELDS.get(name, name),)
