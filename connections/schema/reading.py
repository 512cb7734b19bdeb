"""A file's bytes as a `Document`; and a document, cleaned of secrets, through a page and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from django.utils.formats import number_format
from django.utils.translation import gettext as _

from connections.models import Connection
from connections.schema.document import (
    KNOWN,
    MAX_BYTES,
    MAX_CONNECTIONS,
    MAX_WORKSPACES,
    BadFile,
    Document,
    FileWorkspace,
    Item,
    Refused,
    reference_name,
)
from connections.schema.generations import fields_of, moment
from connections.schema.redaction import has_secret_form, shown, without_secrets
from connections.schema.writing import export_connection
from connections.validation import clean_connection, is_plain_json
from workspaces.slugs import is_slug

MAX_ENTRY_CHARACTERS = 500_000
_MAX_DIGITS = 19

# They name programs to run, or files and accounts of the server: never taken from a file.
_REACHING_FIELDS = frozenset(
    {"awsprofile", "command", "credentialprocess", "credentialsource", "executable"}
)
# What an export gives that a file may lack: without them a connection couldn't be named.
_FILLED_IN = frozenset({"slug", "name", "createdAt"})


def read(data: bytes) -> Document:
    """What a file says. Raises `BadFile`; a connection that can't be taken is an `Item` with the
    reason, and doesn't keep the others out."""
    root = _parse(data)
    if not isinstance(root, dict):
        raise BadFile(_("This is not a Craft config: the file must hold one JSON object."))
    entries = root.get("llmConnections")
    own_workspace = entries is None and isinstance(root.get("defaults"), dict)
    if entries is None and not own_workspace:
        raise BadFile(
            _("This is not a Craft config: it has no “llmConnections”. Choose a config.json.")
        )
    if entries is not None and not isinstance(entries, list):
        raise BadFile(_("“llmConnections” must be a list of connections."))
    if len(entries or ()) > MAX_CONNECTIONS:
        raise BadFile(
            _("The file has more than %(most)s connections.")
            % {"most": number_format(MAX_CONNECTIONS, force_grouping=True)}
        )
    spaces = [root] if own_workspace else root.get("workspaces")
    if spaces is not None and not isinstance(spaces, list):
        raise BadFile(_("“workspaces” must be a list of workspaces."))
    if len(spaces or ()) > MAX_WORKSPACES:
        raise BadFile(
            _("The file has more than %(most)s workspaces.")
            % {"most": number_format(MAX_WORKSPACES, force_grouping=True)}
        )
    default = root.get("defaultLlmConnection")
    if default is not None and not isinstance(default, str):
        raise BadFile(_("“defaultLlmConnection” must be the slug of a connection."))
    return Document(
        items=tuple(_item(number, entry) for number, entry in enumerate(entries or (), 1)),
        default="" if own_workspace else _slug_given(default or ""),
        workspaces=tuple(_workspace(entry) for entry in spaces or ()),
    )


def _parse(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        raise BadFile(
            _("The file is larger than %(most)d MB. A config with connections is much smaller.")
            % {"most": MAX_BYTES // 1024 // 1024}
        )
    if not data.strip():
        raise BadFile(_("The file is empty."))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadFile(_("The file is not text in UTF-8. Choose a config.json.")) from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
        )
    except json.JSONDecodeError as error:
        raise BadFile(
            _("The file is not valid JSON: look at line %(line)d, column %(column)d.")
            % {"line": error.lineno, "column": error.colno}
        ) from None
    except RecursionError:
        raise BadFile(_("The file is nested too deeply.")) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two readers may each take another one of the two.
        raise BadFile(_("An object of the file has the same field twice. Remove one of them."))
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise BadFile(_("The file has a number with too many digits."))
    return int(text)


def _number(text: str) -> float:
    number = float(text.replace("Infinity", "inf"))
    if not math.isfinite(number):
        raise BadFile(_("The file has a number that is too large."))
    return number


def _workspace(entry: Any) -> FileWorkspace:
    if not isinstance(entry, dict):
        raise BadFile(_("Each entry of “workspaces” must be an object."))
    defaults = entry.get("defaults")
    places = (defaults if isinstance(defaults, dict) else {}, entry)
    default = next(
        (slug for p in places if isinstance(slug := p.get("defaultLlmConnection"), str)), ""
    )
    return FileWorkspace(shown(entry.get("name")), shown(entry.get("slug")), _slug_given(default))


def _slug_given(text: str) -> str:
    """A slug that points at a connection, or what can be shown of a text that can't be one."""
    text = text.strip()
    if is_slug(text) and not has_secret_form(text):
        return text
    kept = shown(text)
    return f"{kept}…" if is_slug(kept) or (text and not kept) else kept


# -- one connection --------------------------------------------------------------------------------


def _item(number: int, entry: Any) -> Item:
    if not isinstance(entry, dict):
        return Item(number, "", "", refused=_("This entry is not an object."))
    slug, name = shown(entry.get("slug")), shown(entry.get("name"))
    if any(isinstance(t, str) and has_secret_form(t) for t in map(entry.get, ("slug", "name"))):
        reason = _("Its slug or name looks like a secret. Replace that secret: it was in clear.")
        return Item(number, "", "", refused=reason)
    try:
        return _accepted(number, slug, name, entry)
    except Refused as refusal:
        return Item(number, slug, name, refused=str(refusal))


def _accepted(number: int, slug: str, name: str, entry: dict[str, Any]) -> Item:
    if not is_plain_json(entry):
        raise Refused(_("It holds a character that can't be stored, or is nested too deeply."))
    if len(json.dumps(entry)) > MAX_ENTRY_CHARACTERS:
        raise Refused(_("It is too long to be kept."))
    for key in entry:
        if re.sub(r"[^a-z]", "", key.lower()) in _REACHING_FIELDS:
            raise Refused(
                _(
                    "It has the field “%(name)s”, which names a program or an account of the "
                    "machine. Remove the field."
                )
                % {"name": shown(key)}
            )
    if not slug and not name:
        raise Refused(_("It has neither a slug nor a name. Give it one of them."))
    left_out: list[str] = []
    entry = without_secrets(entry, left_out)
    notes = [
        _("“%(name)s” looks like a secret and was left out. Enter it on the connection's page.")
        % {"name": path}
        for path in left_out
    ]
    fields, originals = fields_of(entry, notes)
    result = clean_connection(fields)
    if not result.ok:
        raise Refused(
            " ".join(
                f"{reference_name(n)}: {s}" for n, found in result.errors.items() for s in found
            )
        )
    unknown = {k: v for k, v in entry.items() if k not in KNOWN and k not in originals}
    item = Item(
        number=number,
        slug=result.values["slug"],
        name=result.values["name"],
        values=result.values,
        given=frozenset(k for k, v in entry.items() if v is not None),
        unknown_fields=unknown,
        imported_as=originals,
        created_at=moment(entry.get("createdAt")),
        last_used_at=moment(entry.get("lastUsedAt")),
        notes=tuple(notes),
        entry=entry,
    )
    _keep_as_written(item)
    return item


def _keep_as_written(item: Item) -> None:
    """Adds to the originals whatever an export would give in another way than the file: a text
    that was trimmed, a field that is empty or null, one that isn't there."""
    made = Connection(
        **item.values,
        unknown_fields=item.unknown_fields,
        imported_as=item.imported_as,
        last_used_at=item.last_used_at,
        **({"created_at": item.created_at} if item.created_at else {}),
    )
    written = export_connection(made)
    for name in KNOWN - {"slug"}:
        if name not in item.entry:
            if name in written and name not in _FILLED_IN:
                item.imported_as.setdefault(name, None)
        elif item.entry[name] is None:
            item.unknown_fields[name] = None
            if name in written and name not in _FILLED_IN:
                item.imported_as.setdefault(name, None)
        elif name not in written or written[name] != item.entry[name]:
            item.imported_as.setdefault(name, item.entry[name])


# -- through a page and back -----------------------------------------------------------------------


def carry(document: Document) -> dict[str, Any]:
    """The document as plain JSON, without anything that looked like a secret: what a preview keeps
    until it is applied."""
    return {
        "items": [
            {"slug": item.slug, "name": item.name, "refused": item.refused}
            if item.refused
            else {"entry": item.entry, "notes": list(item.notes)}
            for item in document.items
        ],
        "default": document.default,
        "workspaces": [[w.name, w.slug, w.default] for w in document.workspaces],
    }


def carried(data: Mapping[str, Any]) -> Document:
    """The document that `carry` gave, read again under the rules of now."""
    return Document(
        items=tuple(_item_again(number, kept) for number, kept in enumerate(data["items"], 1)),
        default=data["default"],
        workspaces=tuple(FileWorkspace(*kept) for kept in data["workspaces"]),
    )


def _item_again(number: int, kept: dict[str, Any]) -> Item:
    if "entry" not in kept:
        return Item(number, kept["slug"], kept["name"], refused=kept["refused"])
    item = _item(number, kept["entry"])
    return dataclasses.replace(item, notes=tuple(kept["notes"]))
