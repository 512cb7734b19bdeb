"""A workspace's tool servers: every change with its audit row, and their headers opened for use.

Each verb opens its own transaction and takes the row's lock; the audit row is written in the same
one. Addresses are looked up before it. A refusal is a `ValidationError` by field name. Headers are
secrets: bound to the origin they were entered for, and never shown again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connections.providers.base import ErrorKind, ProviderError
from connections.providers.wire.lenient_json import clean
from connections.validation import parse_headers
from sessions import mcp
from sessions.models import ToolServer
from workspaces import egress
from workspaces.audit import record
from workspaces.models import User, Workspace
from workspaces.slugs import make_slug
from workspaces.vault import Plain, VaultError

MAX_SERVERS = 20  # of a workspace
TEST_SECONDS = 10.0
MAX_DESCRIPTION = 500  # characters of a tool's description that the page keeps
PREFIX_LENGTH = 20
# A letter first, as some providers want it of a tool's name; no underscore, so that the two of
# `prefix__tool` stand for themselves.
_PREFIX = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_OWN_HEADERS = re.compile(r"mcp-.*|last-event-id")

SEALED, MISPLACED, GONE = "sealed", "misplaced", "gone"

_SENTENCES: dict[str, Promise] = {
    ErrorKind.AUTH: gettext_lazy("It refuses the credentials. Enter its headers again."),
    ErrorKind.FORBIDDEN: gettext_lazy(
        "It doesn't allow this. Check what its credentials may do, and the address."
    ),
    ErrorKind.QUOTA: gettext_lazy("It wants to be paid first. Check the account there."),
    ErrorKind.RATE_LIMITED: gettext_lazy("It limits the rate. Try again later."),
    ErrorKind.OVERLOADED: gettext_lazy("It is overloaded. Try again later."),
    ErrorKind.SERVER: gettext_lazy("It had an error of its own. Try again later."),
    ErrorKind.ENDPOINT_NOT_FOUND: gettext_lazy(
        "There is no MCP server at this path. Check the address; it often ends in /mcp."
    ),
    ErrorKind.BAD_REQUEST: gettext_lazy("It refused the request."),
    ErrorKind.TOO_LARGE: gettext_lazy("Its answer is too large to be read."),
    ErrorKind.TIMEOUT: gettext_lazy("It didn't answer in time. Try again later."),
    ErrorKind.CONNECT: gettext_lazy("It can't be reached. Check the address and that it runs."),
    ErrorKind.TLS: gettext_lazy("Its TLS certificate isn't trusted, or it has none."),
    ErrorKind.TRUNCATED: gettext_lazy("Its answer broke off in the middle. Try again."),
    ErrorKind.REDIRECT: gettext_lazy(
        "It redirects elsewhere, which isn't followed. Enter the address it redirects to."
    ),
    ErrorKind.EGRESS: gettext_lazy(
        "Its address isn't allowed for tools. The operator can allow it in "
        "PATCHBAY_TOOL_EGRESS_ALLOW."
    ),
    ErrorKind.PROTOCOL: gettext_lazy(
        "It doesn't speak MCP over streamable HTTP as it should. Check the address."
    ),
    SEALED: gettext_lazy("Its headers can't be read any more. Enter them again."),
    MISPLACED: gettext_lazy("Its headers were entered for another address. Enter them again."),
    GONE: gettext_lazy("It was switched off or removed meanwhile."),
}


def sentence(kind: str) -> str:
    """What happened and what to do, for a person and for the model; "" for no error."""
    if not kind:
        return ""
    return str(_SENTENCES.get(kind, _SENTENCES[ErrorKind.PROTOCOL]))


class Unusable(Exception):
    """A server can't be called as it is; `kind` is one of those `sentence` knows."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Opened:
    """A server as a call needs it. The headers never appear in `repr`."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


# -- making and changing ---------------------------------------------------------------------------


def create(
    actor: User,
    workspace: Workspace,
    *,
    name: str,
    url: str,
    prefix: str = "",
    headers: Any = None,
    allowed_tools: Sequence[str] | None = None,
) -> ToolServer:
    """A new server, enabled. An empty prefix is made from the name."""
    values = _cleaned(workspace, None, name=name, url=url, prefix=prefix)
    given = _cleaned_headers(headers) or {}
    if ToolServer.objects.filter(workspace=workspace).count() >= MAX_SERVERS:
        many = _("This workspace has %(n)d servers already. Delete one first.")
        raise ValidationError({"name": [many % {"n": MAX_SERVERS}]})
    server = ToolServer(
        workspace=workspace, **values, allowed_tools=_chosen(allowed_tools), created_by=actor
    )
    _put_headers(server, given)
    with _prefix_is_free(), transaction.atomic():
        _save(server)
        _record(actor, "tool_server.create", server, host=server.origin, prefix=server.prefix)
        if given:
            _record(actor, "secret.store", server, purpose="headers", host=server.origin)
    return server


def update(
    actor: User,
    server: ToolServer,
    *,
    name: str,
    url: str,
    prefix: str,
    headers: Any = None,
    allowed_tools: Sequence[str] | None = None,
) -> list[str]:
    """Changes what differs; returns the names of the fields. Empty `headers` keep what is stored,
    `{}` removes it; with another scheme, host or port stored ones must be given again."""
    values = _cleaned(server.workspace, server, name=name, url=url, prefix=prefix)
    values["allowed_tools"] = _chosen(allowed_tools)
    given = _cleaned_headers(headers)
    with _prefix_is_free(), transaction.atomic():
        row = _locked(server)
        old_host, had = row.origin, row.headers is not None
        changed = [key for key, value in values.items() if getattr(row, key) != value]
        for key in changed:
            setattr(row, key, values[key])
        moved = row.origin != old_host
        if had and given is None and moved:
            asked = _(
                "Enter these again: what is stored was entered for %(host)s, and is sent nowhere "
                "else."
            )
            raise ValidationError({"headers": [asked % {"host": old_host}]})
        if not changed and given is None:
            return []
        if given is not None:
            _put_headers(row, given)
        if given is not None or "url" in changed:
            row.revision += 1
            row.listed_at = row.last_error_at = None
            row.last_error = row.last_error_detail = ""
            if moved:
                row.tools = []
        _save(row)
        if changed:
            hosts = {"old_host": old_host, "host": row.origin} if moved else {}
            _record(actor, "tool_server.update", row, changed=changed, **hosts)
        if given:
            hosts = {"old_host": old_host} if moved and had else {}
            _record(actor, "secret.store", row, purpose="headers", host=row.origin, **hosts)
        elif given is not None and had:
            _record(actor, "secret.destroy", row, purpose="headers", host=old_host)
    server.refresh_from_db()
    return changed


def set_enabled(actor: User, server: ToolServer, enabled: bool) -> None:
    with transaction.atomic():
        row = _locked(server)
        row.enabled = enabled
        row.save(update_fields=["enabled"])
        _record(actor, "tool_server.enable" if enabled else "tool_server.disable", row)
    server.enabled = enabled


def delete(actor: User, server: ToolServer) -> None:
    """With its headers. What sessions said of its tools stays readable."""
    with transaction.atomic():
        row = _locked(server)
        if row.headers is not None:
            _record(actor, "secret.destroy", row, purpose="headers", host=row.origin)
        _record(actor, "tool_server.delete", row, host=row.origin, prefix=row.prefix)
        row.delete()


# -- using -----------------------------------------------------------------------------------------


def open_for_use(
    server_id: uuid.UUID, actor: User | str, *, revision: int | None = None, **details: Any
) -> Opened:
    """The server as it is now, for calls of one turn, list or test. Audits the use of headers.
    Raises `Unusable`. Two queries at most."""
    with transaction.atomic():
        row = ToolServer.objects.filter(pk=server_id).first()
        if row is None or not row.enabled or (revision is not None and row.revision != revision):
            raise Unusable(GONE)
        return _opened(row, actor, **details)


def _opened(row: ToolServer, actor: User | str, **details: Any) -> Opened:
    if row.headers is None:
        return Opened(row.url)
    if row.binding != row.origin:
        raise Unusable(MISPLACED)
    try:
        headers = json.loads(row.headers.open())
    except (VaultError, ValueError):
        raise Unusable(SEALED) from None
    _record(actor, "secret.use", row, purpose="headers", host=row.origin, **details)
    return Opened(row.url, headers)


def note_tools(server_id: uuid.UUID, revision: int, tools: Sequence[mcp.Tool]) -> None:
    """What the server listed, for the pages; nothing when it was edited meanwhile. One UPDATE."""
    ToolServer.objects.filter(pk=server_id, revision=revision).update(
        tools=[_shown(tool) for tool in tools],
        listed_at=timezone.now(),
        last_error="",
        last_error_detail="",
        last_error_at=None,
    )


def note_failure(server_id: uuid.UUID, revision: int, kind: str, detail: str = "") -> None:
    """The last error and its time, for the pages; nothing when it was edited meanwhile."""
    ToolServer.objects.filter(pk=server_id, revision=revision).update(
        last_error=kind, last_error_detail=detail[:600], last_error_at=timezone.now()
    )


def _shown(tool: mcp.Tool) -> dict[str, str]:
    return {
        "name": clean(tool.name)[:200],
        "title": clean(tool.title)[:200],
        "description": clean(tool.description)[:MAX_DESCRIPTION],
    }


def test(actor: User, server: ToolServer) -> str:
    """Connects, lists the tools and notes them or the failure; the kind of the failure, "" when
    there is none. Blocks for ten seconds at most; not within a transaction."""
    with transaction.atomic():
        _record(actor, "tool_server.test", server, host=server.origin)
        try:
            opened = _opened(server, actor, test=True)
        except Unusable as unusable:
            note_failure(server.pk, server.revision, unusable.kind)
            return unusable.kind
    try:
        tools = asyncio.run(_list_once(opened))
    except ProviderError as error:
        note_failure(server.pk, server.revision, error.kind, error.message)
        return error.kind
    note_tools(server.pk, server.revision, tools)
    return ""


async def _list_once(opened: Opened) -> list[mcp.Tool]:
    async with egress.guarded_client(egress.tool_policy()) as client:
        session = mcp.Session(client, opened.url, opened.headers)
        try:
            async with asyncio.timeout(TEST_SECONDS):
                return await session.list_tools()
        except TimeoutError:
            raise ProviderError(ErrorKind.TIMEOUT, "No answer in time.") from None
        finally:
            await session.close()


# -- the parts -------------------------------------------------------------------------------------


def _record(actor: User | str, action: str, server: ToolServer, **details: Any) -> None:
    record(actor, action, server, workspace_id=server.workspace_id, **details)


def _locked(server: ToolServer) -> ToolServer:
    row = ToolServer.objects.select_for_update().filter(pk=server.pk).first()
    if row is None:
        raise ValidationError(_("This server was deleted."))
    return row


def _save(server: ToolServer) -> None:
    try:
        server.save()
    except VaultError as error:
        raise ValidationError({"headers": [str(error)]}) from None


def _put_headers(server: ToolServer, headers: Mapping[str, str]) -> None:
    server.binding = server.origin if headers else ""
    server.header_names = sorted(headers)
    server.headers = Plain(json.dumps(dict(headers))) if headers else None


@contextlib.contextmanager
def _prefix_is_free() -> Iterator[None]:
    """Two servers with one prefix, saved at once: the constraint's word as a sentence."""
    try:
        yield
    except IntegrityError:
        raise ValidationError({"prefix": [_taken()]}) from None


def _taken() -> str:
    return _("Another server of this workspace has this prefix. Choose another one.")


def _cleaned(
    workspace: Workspace, server: ToolServer | None, *, name: str, url: str, prefix: str
) -> dict[str, Any]:
    errors: dict[str, list[str]] = {}
    others = ToolServer.objects.filter(workspace=workspace)
    if server is not None:
        others = others.exclude(pk=server.pk)
    name, url, prefix = name.strip(), url.strip(), prefix.strip().lower()
    if not name:
        errors["name"] = [_("Give the server a name.")]
    elif len(name) > 60 or not name.isprintable():
        errors["name"] = [_("Use at most 60 visible characters.")]
    taken = set(others.values_list("prefix", flat=True))
    if not prefix:
        prefix = _made_prefix(name, taken)
    elif len(prefix) > PREFIX_LENGTH or not _PREFIX.fullmatch(prefix):
        errors["prefix"] = [
            _("Use a-z, 0-9 and hyphens, starting with a letter, at most %(n)d.")
            % {"n": PREFIX_LENGTH}
        ]
    elif prefix in taken:
        errors["prefix"] = [_taken()]
    try:
        if not url:
            raise egress.URLRefused(_("Enter the server's address."))
        if server is None or url != server.url:
            egress.check_url(url, egress.tool_policy())
    except egress.URLRefused as refusal:
        errors["url"] = [str(refusal)]
    if errors:
        raise ValidationError(errors)
    return {"name": name, "url": url, "prefix": prefix}


def _made_prefix(name: str, taken: set[str]) -> str:
    """A free prefix out of a name: "Our CRM" → "our-crm", "our-crm-2"."""
    base = make_slug(name, taken=lambda slug: False, fallback="tools")
    base = base if base[0].isalpha() else f"t-{base}"
    prefix, number = base[:PREFIX_LENGTH].rstrip("-"), 1
    while prefix in taken:
        number += 1
        tail = f"-{number}"
        prefix = base[: PREFIX_LENGTH - len(tail)].rstrip("-") + tail
    return prefix


def _cleaned_headers(given: Any) -> dict[str, str] | None:
    """None when nothing was typed."""
    if given is None or not str(given).strip():
        return None
    try:
        headers = parse_headers(given)
    except ValidationError as error:
        raise ValidationError({"headers": error.messages}) from None
    for name in headers:
        if _OWN_HEADERS.fullmatch(name.lower()):
            sentence = _("The header “%(name)s” is set by Patchbay itself. Leave it out.")
            raise ValidationError({"headers": [sentence % {"name": name}]})
    return headers


def _chosen(tools: Sequence[str] | None) -> list[str] | None:
    return None if tools is None else sorted({clean(str(tool))[:200] for tool in tools})[:500]
