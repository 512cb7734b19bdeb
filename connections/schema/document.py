"""What a file says and what would become of it, as dataclasses; the reference's names of fields."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy

from connections.models import Connection
from workspaces.models import Workspace

MAX_BYTES = 2 * 1024 * 1024
# Together below the number of fields a form may have: each is a box to tick on the page.
MAX_CONNECTIONS = 500
MAX_WORKSPACES = 400

# The reference's names of what a connection holds as a plain value.
PLAIN_FIELDS = {
    "name": "name",
    "slug": "slug",
    "providerType": "provider_type",
    "authType": "auth_type",
    "baseUrl": "base_url",
    "models": "models",
    "defaultModel": "default_model",
    "midStreamBehavior": "mid_stream_behavior",
    "codexPath": "codex_path",
    "awsRegion": "aws_region",
    "gcpProjectId": "gcp_project_id",
    "gcpRegion": "gcp_region",
    # Patchbay's own; the reference keeps them as unknown fields.
    "authHeader": "auth_header",
    "maxTokensField": "max_tokens_field",
    "enabled": "enabled",
    "note": "note",
}
KNOWN = frozenset({*PLAIN_FIELDS, "customEndpoint", "createdAt", "lastUsedAt"})


def reference_name(name: str) -> str:
    """The reference's name of a field of the model."""
    own = {
        "custom_endpoint_api": "customEndpoint.api",
        "supports_images": "customEndpoint.supportsImages",
    }
    return own.get(name) or next((t for t, ours in PLAIN_FIELDS.items() if ours == name), name)


class BadFile(Exception):
    """The file can't be used at all. The text is a sentence for the person who chose it; nothing
    was changed."""


class Refused(Exception):
    """Why a connection of the file isn't taken."""


class Result(models.TextChoices):
    NEW = "new", gettext_lazy("New")
    CHANGED = "changed", gettext_lazy("Changed")
    SAME = "same", gettext_lazy("Same as here")
    REFUSED = "refused", gettext_lazy("Refused")

    @property
    def tone(self) -> str:
        return {"new": "success", "changed": "info", "refused": "danger"}.get(self.value, "neutral")


@dataclass(frozen=True, slots=True)
class Item:
    """One connection of a file. `values` is what `clean_connection` gave (slug "" when the file has
    none), {} when `refused` has a reason. `given` names the reference's fields that were there.
    `notes` are sentences about what was left out or read in another way. `entry` is the file's own
    JSON, without what looked like a secret."""

    number: int
    slug: str
    name: str
    values: dict[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    unknown_fields: dict[str, Any] = field(default_factory=dict)
    imported_as: dict[str, Any] = field(default_factory=dict)
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None
    notes: tuple[str, ...] = ()
    refused: str = ""
    entry: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class FileWorkspace:
    """A workspace of a file and its default connection ("" when it names none)."""

    name: str
    slug: str
    default: str


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. `default` is the slug of the global default, "" for none."""

    items: tuple[Item, ...] = ()
    default: str = ""
    workspaces: tuple[FileWorkspace, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A field that would differ, under the reference's name; None: it isn't set. `kept_only`: it is
    only written in another way in the file, which counts for nothing but the next export."""

    field: str
    old: Any
    new: Any
    kept_only: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of one connection of the file. `values` are the whole new field values (for
    `changed` those of `changes` only differ). `needs_secret`: it can't be used before one is
    entered; `loses_secret`: one is stored now, for another address or sign-in, and goes."""

    number: int
    slug: str
    name: str
    result: Result
    reason: str = ""
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    unknown_fields: dict[str, Any] = field(default_factory=dict)
    imported_as: dict[str, Any] = field(default_factory=dict)
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None
    existing: Connection | None = None
    needs_secret: bool = False
    loses_secret: bool = False

    @property
    def key(self) -> str:
        """Its name among the items of a plan."""
        return f"connection-{self.number}"

    @property
    def stamp(self) -> str:
        """Differs when what would happen differs: what was shown is then no longer true."""
        changes = [[c.field, c.old, c.new, c.kept_only] for c in self.changes]
        return _digest([self.result, self.slug, changes, self.needs_secret, self.loses_secret])


@dataclass(frozen=True, slots=True)
class DefaultRow:
    """What becomes of a default: the global one (`number` 0) or that of a workspace of the file.

    `slug` becomes the default in place of `old` ("" for none). `new`: there is no such workspace,
    and it is made with `label` as its name and `space_slug`, if that is asked for. `reason` says
    why it is refused, or why a new workspace gets no default.
    """

    label: str
    slug: str
    workspace: Workspace | None = None
    result: Result = Result.CHANGED
    reason: str = ""
    old: str = ""
    number: int = 0
    space_slug: str = ""

    @property
    def key(self) -> str:
        return f"workspace-{self.number}" if self.number else "default"

    @property
    def can_differ(self) -> bool:
        """Whether another connection would become the default."""
        return bool(self.slug) and self.result in (Result.NEW, Result.CHANGED)

    @property
    def stamp(self) -> str:
        made = self.result == Result.NEW  # in a dry run it has a row for a moment
        space = str(self.workspace.pk) if self.workspace and not made else ""
        return _digest([self.result, self.slug, self.old, self.label, space])


@dataclass(frozen=True, slots=True)
class Plan:
    rows: tuple[Row, ...] = ()
    default: DefaultRow | None = None
    workspaces: tuple[DefaultRow, ...] = ()

    @property
    def defaults(self) -> tuple[DefaultRow, ...]:
        return (*((self.default,) if self.default else ()), *self.workspaces)

    def count(self, result: Result) -> int:
        return sum(row.result == result for row in self.rows)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]
