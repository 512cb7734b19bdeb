"""Which connection a session uses: one function, with its reason.

1. the session's connection (final once chosen or locked: usable, or refused; never another one)
2. the workspace's default connection
3. the global default connection
4. the first connection in the list
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from connections.capabilities import first_model, usable_models
from connections.choices import AccessMode
from connections.models import Connection, Secret, WorkspaceConnection
from connections.sentences import Reason, sentence
from connections.targets import availability
from workspaces.models import Workspace
from workspaces.permissions import Access
from workspaces.statements import Select, prefetched


class Rule(enum.StrEnum):
    """The rungs, in their order."""

    SESSION = "session"
    WORKSPACE = "workspace"
    GLOBAL = "global"
    FIRST = "first"

    @property
    def label(self) -> str:
        return {
            Rule.SESSION: _("Session's connection"),
            Rule.WORKSPACE: _("Workspace default"),
            Rule.GLOBAL: _("Global default"),
            Rule.FIRST: _("First in the list"),
        }[self]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session says: the connection it chose, if any, and since when that is locked."""

    connection_id: uuid.UUID | None = None
    locked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found on one rung. `reason` is None when it was taken or had nothing to look at;
    `accessible` tells whether the workspace has access to the connection."""

    rule: Rule
    connection: Connection | None
    reason: Reason | None
    taken: bool
    sentence: str
    accessible: bool = True


@dataclass(frozen=True, slots=True)
class Resolution:
    """`connection` and the `rule` that chose it, or the `refusal`. `model` is what a new session
    would use. With a refusal of a chosen connection, `rule` is `session`."""

    connection: Connection | None
    rule: Rule | None
    model: str = ""
    refusal: Reason | None = None
    trace: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        return self.connection is not None

    def trace_for(self, access: Access) -> list[Finding]:
        """The rungs a person may see: an instance admin all, others none of a connection that the
        workspace has no access to."""
        if access.user.is_instance_admin:
            return list(self.trace)
        return [finding for finding in self.trace if finding.accessible]

    def refusal_text(self, *, admin: bool) -> str:
        """The refusal for a person, "" without one; with the admin's own message where a connection
        is paused."""
        if self.refusal is None:
            return ""
        words = sentence(self.refusal)
        text = words.text if admin else words.member_text
        refused = self.trace[-1].connection
        if self.refusal is Reason.DISABLED and refused and refused.paused_message:
            text = f"{words.what} {refused.paused_message}"
        elif self.refusal is Reason.NO_CONNECTION:
            text = " ".join([text, *self._paused()])
        return text

    def _paused(self) -> list[str]:
        """What admins wrote of the paused connections that were passed over."""
        return [
            _("“%(name)s” is paused: %(message)s") % {"name": one.name, "message": message}
            for finding in self.trace
            if finding.reason is Reason.DISABLED and finding.accessible
            for one in [finding.connection]
            if one is not None and (message := one.paused_message)
        ][:3]

    def as_json(self) -> dict[str, Any]:
        return {
            "connection": self.connection.slug if self.connection else None,
            "rule": self.rule.value if self.rule else None,
            "model": self.model,
            "refusal": self.refusal.value if self.refusal else None,
            "trace": [
                {
                    "rule": finding.rule.value,
                    "connection": finding.connection.slug if finding.connection else None,
                    "taken": finding.taken,
                    "reason": finding.reason.value if finding.reason else None,
                    "sentence": finding.sentence,
                }
                for finding in self.trace
            ],
        }


@dataclass(frozen=True, slots=True)
class Usable:
    """A connection that a workspace can use now, and the models of it that it may use."""

    connection: Connection
    models: list[str]
    first_model: str


LOADED_FIRST = 100  # connections; it takes as many unusable ones to need the others


@dataclass(slots=True)
class Candidates:
    """The list as one workspace sees it, loaded once: what `resolve` and a page's cards share. Of a
    long one the beginning, with the defaults; the rest when nothing there can be used."""

    workspace: Workspace
    connections: list[Connection]  # those loaded so far
    rows: dict[uuid.UUID, WorkspaceConnection]
    is_whole: bool = True
    _faults: dict[uuid.UUID, Reason | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        *,
        only: uuid.UUID | None = None,
        also: uuid.UUID | None = None,
    ) -> Candidates:
        """Three queries: the list (of it only the one that a session has chosen; or also one that
        may stand far back), its secrets, the workspace's rows."""
        if only is not None:
            return cls._of_one(workspace, only)
        rows = WorkspaceConnection.objects.filter(workspace=workspace)
        first = Connection.objects.living().values("pk")[:LOADED_FIRST]
        own = rows.filter(is_default=True)
        some = Q(pk__in=first) | Q(is_default=True) | Q(pk__in=own.values("connection"))
        if also is not None:
            some |= Q(pk=also)
        found = list(_loaded().filter(some))
        by_connection = {row.connection_id: row for row in rows}
        return cls(workspace, found, by_connection, is_whole=len(found) < LOADED_FIRST)

    @classmethod
    def _of_one(cls, workspace: Workspace, connection_id: uuid.UUID) -> Candidates:
        connections, secrets = _ONE.all(connection_id), _SECRETS_OF_ONE.all(connection_id)
        for connection in connections:
            for secret in secrets:
                secret.connection = connection
            prefetched(connection, "secrets", secrets, Secret)
        rows = _ROWS_OF_ONE.all(workspace.pk, connection_id)
        by_connection = {row.connection_id: row for row in rows}
        return cls(workspace, connections, by_connection, is_whole=True)

    def load(self, connection_ids: Iterable[uuid.UUID]) -> list[Connection]:
        """Those of the list with these ids. Two queries where some weren't loaded yet."""
        wanted = set(connection_ids)
        missing = wanted - {one.pk for one in self.connections}
        if missing and not self.is_whole:
            self.connections += _loaded().filter(pk__in=missing)
        return [one for one in self.connections if one.pk in wanted]

    def all(self) -> Iterator[Connection]:
        """The list, loaded as far as one asks; two queries for all that is left."""
        yield from list(self.connections)
        if not self.is_whole:
            seen = {one.pk for one in self.connections}
            rest = [one for one in _loaded() if one.pk not in seen]
            self.connections += rest
            self.is_whole = True
            yield from rest

    def get(self, connection_id: uuid.UUID) -> Connection | None:
        return next(iter(self.load([connection_id])), None)

    def without(self, connection: Connection) -> Candidates:
        """The same list as if `connection` were disabled."""
        return replace(self, _faults={connection.id: Reason.DISABLED})

    def accessible(self, connection: Connection) -> bool:
        return connection.access == AccessMode.ALL or connection.id in self.rows

    def fault(self, connection: Connection) -> Reason | None:
        """Why the workspace can't use it, or None."""
        if connection.id not in self._faults:
            self._faults[connection.id] = self._fault(connection)
        return self._faults[connection.id]

    def _fault(self, connection: Connection) -> Reason | None:
        if not self.accessible(connection):
            return Reason.NO_ACCESS
        if reason := availability(connection):
            return reason
        if not usable_models(connection, self.rows.get(connection.id)):
            return Reason.NO_MODEL
        return None

    def usable(self) -> list[Usable]:
        """What the workspace can use, in the list's order."""
        return [usable for c in self.all() for usable in self._usable(c)]

    def usable_one(self, connection_id: uuid.UUID) -> Usable | None:
        """The one of them with this id, if the workspace can use it."""
        connection = self.get(connection_id)
        return next(iter(self._usable(connection)), None) if connection else None

    def offer(self, most: int) -> tuple[list[Usable], list[tuple[str, str]]]:
        """The first that the workspace can use, and slug and name of those that it may be able to
        use besides: nobody looked at their secrets. One query."""
        found: list[Usable] = []
        looked: set[str] = set()
        for connection in self.all():
            if len(found) == most:
                break
            looked.add(connection.slug)
            found += self._usable(connection)
        others = Connection.objects.visible_to(self.workspace).filter(enabled=True)
        return found, [pair for pair in others.values_list("slug", "name") if pair[0] not in looked]

    def _usable(self, connection: Connection) -> list[Usable]:
        """It, or nothing."""
        if self.fault(connection) is not None:
            return []
        row = self.rows.get(connection.id)
        return [Usable(connection, usable_models(connection, row), first_model(connection, row))]


_ONE = Select(lambda connection_id: Connection.objects.living().filter(pk=connection_id))
_SECRETS_OF_ONE = Select(lambda connection_id: Secret.objects.filter(connection_id=connection_id))
_ROWS_OF_ONE = Select(
    lambda workspace_id, connection_id: WorkspaceConnection.objects.filter(
        workspace_id=workspace_id, connection_id=connection_id
    )
)


def resolve(
    workspace: Workspace, choice: Choice | None = None, *, among: Candidates | None = None
) -> Resolution:
    """The connection of a session, with the rule that chose it and what was passed over.

    Three queries, none when `among` is given. Takes no lock: who writes the answer down holds the
    session's.
    """
    if among is None:
        among = Candidates.of(workspace, only=choice.connection_id if choice else None)
    if choice is not None and (choice.connection_id or choice.locked_at):
        return _chosen(among, choice)
    trace = [Finding(Rule.SESSION, None, None, False, _("This session has chosen no connection."))]
    seen: set[uuid.UUID] = set()
    for rule, connection in _in_order(among):
        if connection is None:
            trace.append(Finding(rule, None, None, False, _NOTHING[rule]()))
            continue
        if connection.id in seen:  # passed over on an earlier rung, with the reason
            continue
        seen.add(connection.id)
        reason = among.fault(connection)
        trace.append(_finding(among, rule, connection, reason))
        if reason is None:
            model = first_model(connection, among.rows.get(connection.id))
            return Resolution(connection, rule, model, trace=tuple(trace))
    return Resolution(None, None, refusal=Reason.NO_CONNECTION, trace=tuple(trace))


def _chosen(among: Candidates, choice: Choice) -> Resolution:
    connection = among.get(choice.connection_id) if choice.connection_id else None
    if connection is None:
        text = _("The session's connection was deleted.")
        finding = Finding(Rule.SESSION, None, Reason.DELETED, False, text)
        return Resolution(None, Rule.SESSION, refusal=Reason.DELETED, trace=(finding,))
    reason = among.fault(connection)
    trace = (_finding(among, Rule.SESSION, connection, reason),)
    if reason is not None:
        return Resolution(None, Rule.SESSION, refusal=reason, trace=trace)
    model = first_model(connection, among.rows.get(connection.id))
    return Resolution(connection, Rule.SESSION, model, trace=trace)


def _in_order(among: Candidates) -> Iterator[tuple[Rule, Connection | None]]:
    own = next((row.connection_id for row in among.rows.values() if row.is_default), None)
    yield Rule.WORKSPACE, among.get(own) if own else None
    yield Rule.GLOBAL, next((c for c in among.connections if c.is_default), None)
    if not among.connections:
        yield Rule.FIRST, None
    for connection in among.all():
        yield Rule.FIRST, connection


def _loaded() -> QuerySet[Connection]:
    return Connection.objects.living().with_secrets().defer("unknown_fields", "imported_as")


_NOTHING = {
    Rule.WORKSPACE: lambda: _("This workspace has no default."),
    Rule.GLOBAL: lambda: _("There is no global default."),
    Rule.FIRST: lambda: _("The list has no connection."),
}


def _finding(
    among: Candidates, rule: Rule, connection: Connection, reason: Reason | None
) -> Finding:
    words = {"rule": rule.label, "name": connection.name}
    if reason is None:
        text = _("%(rule)s “%(name)s”: used.") % words
    else:
        words["problem"] = sentence(reason).phrase
        text = _("%(rule)s “%(name)s”: %(problem)s.") % words
        if reason is Reason.DISABLED and connection.paused_message:
            text = f"{text} {connection.paused_message}"
    return Finding(rule, connection, reason, reason is None, text, among.accessible(connection))
