"""Every address of the product, tried by everybody, with every method, on every kind of object.

A row of `ROUTES` names the gate that stands before an address and what it answers whom it lets in.
An address without a row fails, so a new page comes with its rights.
"""

from __future__ import annotations

import copy
import itertools
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import transaction
from django.test import Client, override_settings
from django.urls import get_resolver, reverse
from django.urls.resolvers import URLPattern, URLResolver

from tests.world import PEOPLE, World, digest, make_world, png

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
GET, POST, FORM = ("GET", "HEAD"), ("POST",), ("GET", "HEAD", "POST")

SIGN_IN, REFUSED, HIDDEN, WRONG_METHOD, LATE = 302, 403, 404, 405, 409

# Who passes, and what the others are answered. Nobody signed in is sent to sign in.
OK = 0
GATES: dict[str, dict[str, int]] = {
    "everybody": dict.fromkeys(PEOPLE, OK),
    "signed in": {},
    "reads the workspace": {"charlie": HIDDEN},
    "sends in the workspace": {"charlie": HIDDEN, "viewer": REFUSED},
    "workspace admin": {
        "charlie": HIDDEN,
        "viewer": REFUSED,
        "colleague": REFUSED,
        "owner": REFUSED,
    },
    "reads": {"charlie": HIDDEN},
    "sends": {"charlie": HIDDEN, "viewer": REFUSED},
    "its author": {
        "charlie": HIDDEN,
        "viewer": REFUSED,
        **dict.fromkeys(("colleague", "wadmin", "alice"), LATE),
    },
    "owner": {
        "charlie": HIDDEN,
        "viewer": REFUSED,
        "colleague": REFUSED,
        "wadmin": REFUSED,
        "alice": REFUSED,
    },
    "owner alone": {
        **dict.fromkeys(("charlie", "viewer", "colleague", "wadmin", "alice"), HIDDEN),
    },
    "instance admin": dict.fromkeys(("charlie", "viewer", "colleague", "owner", "wadmin"), REFUSED),
    "instance admin of a workspace": {
        "charlie": HIDDEN,
        **dict.fromkeys(("viewer", "colleague", "owner", "wadmin"), REFUSED),
    },
    "nobody": dict.fromkeys(("charlie", "viewer", "colleague", "owner", "wadmin", "alice"), HIDDEN),
}

# What a request may not smuggle in, sent along with every form.
SMUGGLED = {
    "role": "admin",
    "is_superuser": "on",
    "is_staff": "on",
    "is_active": "",
    "owner": "",
    "workspace": "sales",
    "workspace_id": "",
    "author": "",
    "started_by": "",
    "locked_at": "",
    "owner_id": "",
    "chat": "",
    "turn": "",
    "user": "",
    "members": "",
    "access": "chosen",
}


@dataclass(frozen=True)
class Try:
    """A route on one object: the gate before it, and the answers for whom it lets in."""

    gate: str
    get: tuple[int, ...] = (200,)
    post: tuple[int, ...] = ()
    args: tuple[Any, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    changes_people: bool = False  # for whom it lets in


@dataclass(frozen=True)
class Route:
    methods: tuple[str, ...]
    tries: tuple[Try, ...]
    others: tuple[int, ...] = (WRONG_METHOD,)


def _on_sessions(world: World, name: str, methods: tuple[str, ...], gate: str, **more: Any) -> Any:
    """A route of a session on every kind of session: shared, private, another workspace's, one
    under the wrong workspace, one that doesn't exist."""
    message, attachment = more.pop("message", False), more.pop("attachment", False)

    def args(space: str, talk: Any, nested: Any = None) -> tuple[Any, ...]:
        nested = nested or talk
        inner = [nested.queued.pk] if message else [nested.attachment.pk] if attachment else []
        return (space, talk.chat.pk, *inner)

    private, shared, foreign = world.private, world.shared, world.foreign
    tries = [
        Try(gate, args=args("support", shared), **more),
        Try("owner alone", args=args("support", private), **more),
        Try("nobody", args=args("support", foreign), **more),
        Try("nobody", args=("support", uuid.uuid4(), *args("support", shared)[2:]), **more),
        Try("nobody", args=args("no-such", shared), **more),
    ]
    # A session's id under the address of a workspace it isn't in.
    tries.append(Try("nobody", args=args("sales", shared), **more))
    if message:
        # Under the shared session: a message of the private one, of another workspace's, of none.
        answer = more | {"post": (409,)}
        for nested in (private, foreign):
            tries.append(Try(gate, args=args("support", shared, nested), **answer))
        tries.append(Try(gate, args=("support", shared.chat.pk, uuid.uuid4()), **answer))
    if attachment:
        for nested in (private, foreign):
            tries.append(Try("nobody", args=args("support", shared, nested), **more))
    return f"sessions:{name}", Route(methods, tuple(tries))


def routes(world: World) -> dict[str, Route]:
    def one(name: str, methods: tuple[str, ...], *tries: Try) -> tuple[str, Route]:
        return name, Route(methods, tries)

    def membership(space: str) -> uuid.UUID:
        who = world.people["owner" if space == "support" else "charlie"]
        return who.memberships.get().pk

    def members(name: str, own: uuid.UUID, foreign: uuid.UUID) -> tuple[str, Route]:
        """On the workspace's own row; on another's and on none nothing happens."""
        return one(
            f"members:{name}",
            POST,
            Try("workspace admin", args=("support", own), post=(303,), changes_people=True),
            Try("workspace admin", args=("support", foreign), post=(303,)),
            Try("workspace admin", args=("support", uuid.uuid4()), post=(303,)),
            Try("nobody", args=("no-such", own)),
        )

    def admins(name: str, methods: tuple[str, ...], **answers: Any) -> tuple[str, Route]:
        data = answers.pop("data", {})
        return one(
            f"connections:{name}",
            methods,
            Try("instance admin", args=("local",), data=data, **answers),
            Try(
                "instance admin",
                args=("no-such",),
                get=(200, 404) if name == "row" else (404,),
                post=(404,),
            ),
        )

    def person(name: str, methods: tuple[str, ...], **answers: Any) -> tuple[str, Route]:
        return one(
            f"people:{name}",
            methods,
            Try("instance admin", args=(world.people["owner"].pk,), **answers),
            Try("instance admin", args=(uuid.uuid4(),), get=(404,), post=(404,)),
        )

    def chat(name: str, methods: tuple[str, ...], gate: str, **more: Any) -> tuple[str, Route]:
        return _on_sessions(world, name, methods, gate, **more)

    def tools(name: str, methods: tuple[str, ...], **answers: Any) -> tuple[str, Route]:
        ours, theirs = world.server.pk, world.foreign_server.pk
        return one(
            f"tools:{name}",
            methods,
            Try("workspace admin", args=("support", ours), **answers),
            Try("nobody", args=("sales", ours)),
            Try("nobody", args=("no-such", ours)),
            # Another workspace's server, and none: for an admin as if they weren't there.
            *(
                Try("workspace admin", get=(404,), post=(404,), args=("support", pk))
                for pk in (theirs, uuid.uuid4())
            ),
        )

    posted = {"post": (200, 303)}
    text = {"text": "changed"}
    return dict(
        [
            one("workspaces:home", GET, Try("everybody", get=(200, 302))),
            one(
                "workspaces:sign_in_link",
                FORM,
                Try("everybody", args=("x",), get=(404,), post=(404,)),
            ),
            one("workspaces:setup", FORM, Try("nobody once set up", get=(404,), post=(404,))),
            one("account_login", FORM, Try("everybody", get=(200, 302), post=(200, 302))),
            one("account_logout", FORM, Try("everybody", get=(200, 302), post=(302,))),
            one("account_signup", FORM, Try("everybody", get=(200, 302), post=(200, 302))),
            (
                "account_change_password",  # a class of Django's, for which PUT is a POST
                Route(FORM, (Try("signed in", post=(200,)),), others=(200, WRONG_METHOD)),
            ),
            one("account_inactive", GET, Try("everybody")),
            one("account_reset_password", FORM, Try("everybody", post=(200,))),
            one("account_reset_password_done", FORM, Try("everybody", post=(405,))),
            one(
                "account_reset_password_from_key",
                FORM,
                Try("everybody", args=("x", "y"), get=(400,), post=(400,)),
            ),
            one("account_reset_password_from_key_done", FORM, Try("everybody", post=(405,))),
            one("mfa_index", GET, Try("signed in", get=(302, 303))),
            # Classes of allauth's: what isn't served is answered like GET or refused.
            *(
                (
                    name,
                    Route(
                        methods,
                        (Try(gate, get=(code, 303), post=(code, 303)),),
                        others=(code, 200, 405),
                    ),
                )
                for name, methods, gate, code in (
                    ("account_reauthenticate", FORM, "signed in", 200),
                    ("mfa_authenticate", FORM, "everybody", 302),
                    ("mfa_reauthenticate", FORM, "signed in", 302),
                    ("mfa_reauthenticate_webauthn", FORM, "signed in", 302),
                    ("mfa_add_webauthn", FORM, "signed in", 302),
                    ("mfa_activate_totp", FORM, "signed in", 302),
                    ("mfa_deactivate_totp", FORM, "signed in", 404),
                    ("mfa_view_recovery_codes", GET, "signed in", 404),
                    ("mfa_generate_recovery_codes", FORM, "signed in", 302),
                    ("mfa_download_recovery_codes", GET, "signed in", 404),
                )
            ),
            *(
                (
                    name,
                    Route(
                        FORM,
                        (Try("signed in", args=(1,), get=(302, 303), post=(302, 303)),),
                        others=(302, 405),
                    ),
                )
                for name in ("mfa_edit_webauthn", "mfa_remove_webauthn")
            ),
            # At a number as the address there are no passkeys; tests/workspaces/test_passkeys.py.
            one("account_passkey", POST, Try("everybody", post=(404,))),
            one("account_passkey_begin", POST, Try("everybody", post=(404,))),
            one("account_sso", POST, Try("everybody", post=(404,))),
            one("account_sso_callback", GET, Try("everybody", get=(404,))),
            one("profile:show", FORM, Try("signed in", post=(303,))),
            one("profile:sign_out_others", POST, Try("signed in", post=(303,))),
            one("profile:sign_out_device", POST, Try("signed in", args=(1,), post=(404,))),
            one("profile:unlink", POST, Try("signed in", post=(303,))),
            one("palette", GET, Try("signed in")),
            one("shortcuts", GET, Try("signed in")),
            one("help", GET, Try("signed in")),
            one(
                "help_page",
                GET,
                Try("signed in", args=("health",)),
                Try("signed in", args=("no-such",), get=(404,)),
            ),
            one("patterns", GET, Try("instance admin")),
            one("healthz", GET, Try("everybody")),
            one("readyz", GET, Try("everybody", get=(200,))),
            one("metrics", GET, Try("everybody", get=(404,))),
            # -- connections
            one("audit:instance", GET, Try("instance admin")),
            one("audit:instance_export", POST, Try("instance admin", post=(200,))),
            one(
                "audit:workspace",
                GET,
                Try("workspace admin", args=("support",)),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "audit:workspace_export",
                POST,
                Try("workspace admin", args=("support",), post=(200,)),
                Try("nobody", args=("no-such",)),
            ),
            one("usage:instance", GET, Try("instance admin")),
            one(
                "usage:budget",
                FORM,
                Try("instance admin of a workspace", args=("support",), post=(303,)),
                Try("nobody", args=("no-such",)),
            ),
            one("usage:instance_export", GET, Try("instance admin")),
            *(
                one(
                    name,
                    GET,
                    Try("reads the workspace", args=("support",)),
                    Try("nobody", args=("no-such",)),
                )
                for name in ("usage:workspace", "usage:workspace_export")
            ),
            one(
                "members:list",
                GET,
                Try("reads the workspace", args=("support",)),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "members:invite",
                POST,
                Try("workspace admin", args=("support",), post=(200,)),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "members:leave",
                POST,
                Try("reads the workspace", args=("support",), post=(303, 409), changes_people=True),
                Try("nobody", args=("no-such",)),
            ),
            members("revoke", world.invitation.pk, world.foreign_invitation.pk),
            members("role", membership("support"), membership("sales")),
            one(
                "members:remove",
                FORM,
                Try(
                    "workspace admin",
                    args=("support", membership("support")),
                    post=(303,),
                    changes_people=True,
                ),
                Try(
                    "workspace admin",
                    args=("support", membership("sales")),
                    get=(404,),
                    post=(303,),
                ),
                Try("workspace admin", args=("support", uuid.uuid4()), get=(404,), post=(303,)),
                Try("nobody", args=("no-such", membership("support"))),
            ),
            one(
                "members:transfer",
                FORM,
                Try("workspace admin", args=("support", world.left.chat.owner_id), post=(422,)),
                # Somebody who is still there keeps what is his.
                Try(
                    "workspace admin",
                    args=("support", world.people["owner"].pk),
                    get=(404,),
                    post=(404,),
                ),
                Try("nobody", args=("no-such", world.left.chat.owner_id)),
            ),
            one(
                "settings:workspace",
                FORM,
                Try("workspace admin", args=("support",), post=(422,)),
                Try("nobody", args=("no-such",)),
            ),
            # -- people
            one("people:list", GET, Try("instance admin")),
            one("people:invite", FORM, Try("instance admin", post=(200,))),
            person("detail", GET),
            person("add", POST, post=(303,), changes_people=True),
            person("admin", POST, data={"admin": "true"}, post=(303,), changes_people=True),
            person("deactivate", FORM, post=(303,), changes_people=True),
            person("activate", POST, post=(303,)),
            person("sign_out", POST, post=(303,)),
            person("second_factor", POST, post=(303,)),
            person("sign_in_link", POST, post=(200,)),
            person("delete", FORM, post=(422,)),
            person("progress", GET, get=(404,)),
            one("profile:delete", FORM, Try("signed in", get=(303,), post=(303,))),
            one("members:accept", FORM, Try("everybody", args=("x",), get=(404,), post=(404,))),
            one("connections:list", GET, Try("instance admin")),
            one("connections:create", FORM, Try("instance admin", post=(422,))),
            one("connections:import", FORM, Try("instance admin", post=(422,))),
            one(
                "connections:import_result",
                GET,
                Try("instance admin", args=(world.imported.pk,)),
                Try("instance admin", args=(uuid.uuid4(),), get=(404,)),
            ),
            one("connections:export", FORM, Try("instance admin", post=(200,))),
            one("connections:validate_many", POST, Try("instance admin", **posted)),
            one(
                "connections:selected",
                POST,
                Try("instance admin", data={"action": "pause", "slug": "local"}, **posted),
            ),
            one("connections:progress", GET, Try("instance admin")),
            one("start:local", GET, Try("instance admin")),
            one(
                "start:form",
                FORM,
                Try("instance admin", args=("anthropic",), post=(422,)),
                Try("instance admin", args=("no-such",), get=(404,), post=(404,)),
            ),
            one(
                "start:check",
                FORM,
                Try("instance admin", args=("local",), post=(303,)),
                Try("instance admin", args=("no-such",), get=(404,), post=(404,)),
            ),
            one("connections:deleted", GET, Try("instance admin")),
            one("connections:alerts", FORM, Try("instance admin", post=(422,))),
            one("connections:alerts_to_me", POST, Try("instance admin", post=(303,))),
            one("connections:alerts_test", POST, Try("instance admin", post=(303,))),
            one("connections:status", GET, Try("instance admin")),
            one(
                "connections:restore",
                POST,
                Try("instance admin", args=("gone",), post=(303,)),
                Try("instance admin", args=("local",), post=(404,)),
            ),
            admins("budget", FORM, post=(303,)),
            admins("access", FORM, post=(303,), data={"access": "all"}),
            one(
                "connections:grant",
                FORM,
                Try("instance admin", args=("local", "support"), post=(303,)),
                Try("instance admin", args=("local", "no-such"), get=(404,), post=(404,)),
            ),
            admins("detail", GET),
            admins("row", GET),
            admins("health", GET),
            admins("edit", FORM, post=(303,)),  # what is left out stays as it is
            admins("sign_in", POST, post=(400,)),  # it authenticates by a key
            admins("sign_in_finish", POST, post=(400,)),
            admins("sign_in_cancel", POST, **posted),
            admins("sign_out", POST, **posted),
            admins("secret", FORM, post=(422,)),
            admins("secret_again", POST, post=(400,)),  # there is none
            admins("secret_use", POST, post=(400,)),
            admins("secret_discard", POST, post=(400,)),
            admins("live_stop", POST, post=(303,), data={"turn": str(uuid.uuid4())}),
            admins("validate", POST, **posted),
            admins("refresh_models", POST, post=(409,)),  # its list is made by hand
            admins("default", POST, **posted),
            admins("mid_stream", POST, data={"mid_stream_behavior": "queue"}, **posted),
            admins("enable", POST, **posted),
            admins("order", POST, data={"direction": "up"}, **posted),
            admins("delete", POST, **posted),
            admins("confirm_delete", GET),
            # -- a workspace's AI settings
            one(
                "ai:settings",
                GET,
                Try("reads the workspace", args=("support",)),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "ai:default",
                POST,
                Try("workspace admin", args=("support",), data={"connection": "local"}, **posted),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "ai:models",
                FORM,
                Try(
                    "workspace admin", args=("support", "local"), data={"model": "small"}, **posted
                ),
                Try("nobody", args=("no-such", "local")),
            ),
            # -- a workspace's tool servers
            one(
                "tools:list",
                GET,
                Try("reads the workspace", args=("support",)),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "tools:create",
                FORM,
                Try("workspace admin", args=("support",), post=(422,)),
                Try("nobody", args=("no-such",)),
            ),
            tools("edit", FORM, post=(303,)),  # what is left out stays as it is
            tools("test", POST, **posted),
            tools("enable", POST, **posted),
            tools("delete", FORM, **posted),
            # -- sessions
            one(
                "sessions:list",
                GET,
                Try("reads the workspace", args=("support",)),
                Try("nobody", args=("no-such",)),
            ),
            one(
                "sessions:create",
                POST,
                Try("sends in the workspace", args=("support",), post=(302, 303)),
                Try("nobody", args=("no-such",)),
            ),
            chat("detail", GET, "reads"),
            chat("turns", GET, "reads"),
            chat("attachment", GET, "reads", attachment=True),
            chat("send", POST, "sends", data={"text": "hello"}, **posted),
            chat("stop", POST, "sends", **posted),
            chat("retry", POST, "sends", **posted),
            chat("resume", POST, "sends", **posted),
            chat("connection", POST, "sends", data={"connection": "local"}, post=(409,)),
            chat("model", POST, "sends", data={"model": "large"}, **posted),
            chat("continue", POST, "sends", post=(422,)),
            chat("regenerate", POST, "sends", data={"turn": "1"}, post=(409,)),
            chat("options", POST, "sends", data={"max_output": "1024"}, **posted),
            chat("rename", POST, "sends", data={"title": "Another"}, **posted),
            chat("share", POST, "owner", data={"shared": "false"}, **posted),
            chat("flag", POST, "reads", data={"flag": "true"}, **posted),
            chat("seen", POST, "reads", data={"turn": "1"}, post=(204,)),
            chat("archive", POST, "owner", data={"archive": "true"}, **posted),
            chat("delete", FORM, "owner", **posted),
            chat("transfer", FORM, "owner", post=(422,)),
            chat("export", GET, "reads"),
            # 409 for a colleague: the message goes out under its author's name.
            chat("message_edit", POST, "its author", message=True, data=text, post=(200, 303, 409)),
            # The message that waits isn't one that can be sent again; one that was sent is.
            one(
                "sessions:message_again",
                FORM,
                *(
                    Try(gate, get=get, post=post, args=("support", talk.chat.pk, pk), data=text)
                    for gate, talk, pk, get, post in (
                        ("sends", world.shared, world.shared.said.pk, (200,), (200, 303)),
                        ("sends", world.shared, world.shared.queued.pk, (404,), (404,)),
                        ("sends", world.shared, world.private.said.pk, (404,), (404,)),
                        ("owner alone", world.private, world.private.said.pk, (200,), (200, 303)),
                        ("nobody", world.foreign, world.foreign.said.pk, (404,), (404,)),
                    )
                ),
            ),
            chat("message_cancel", POST, "sends", message=True, **posted),
            chat("message_promote", POST, "sends", message=True, post=(409,)),
            chat("message_move", POST, "sends", message=True, **posted),
        ]
    )


STREAM = "sessions:stream"  # has a test of its own below: it closes the test's connections


def walk(resolver: URLResolver, route: str = "", space: str = "") -> Iterator[tuple[str, str]]:
    """(name, pattern) of every address."""
    for pattern in resolver.url_patterns:
        here = route + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield f"{space}:{pattern.name}" if space else str(pattern.name), here
        else:
            inner = [space, pattern.namespace] if pattern.namespace else [space]
            yield from walk(pattern, here, ":".join(filter(None, inner)))


@pytest.fixture
def world(db: None, settings: Any) -> World:
    settings.MAIL_IS_SET_UP = True
    return make_world()


@pytest.fixture
def clients(world: World, client_for: Any) -> dict[str, Client]:
    return make_clients(world, client_for)


def make_clients(world: World, client_for: Any) -> dict[str, Client]:
    """Everybody's browser; whoever is switched off was signed in before."""
    found = {name: client_for(world.people[name]) for name in PEOPLE}
    gone = world.people["switched off"]
    gone.is_active = False
    gone.save(update_fields=["is_active"])
    for client in found.values():
        client.raise_request_exception = False
    return found


def test_every_address_has_a_row(world: World):
    listed = set(routes(world)) | {STREAM}
    found = {name for name, route in walk(get_resolver()) if not route.startswith("admin/")}
    assert found == listed


def expected(route: Route, attempt: Try, person: str, method: str) -> tuple[int, ...]:
    if attempt.gate == "nobody once set up":
        return (404,) if method in route.methods else (405,)
    allowed = method in route.methods
    if attempt.gate == "everybody":
        answers = attempt.post if method == "POST" else attempt.get
        return answers if allowed else (200, 302, WRONG_METHOD)
    if person in ("anonymous", "switched off"):
        return (SIGN_IN,)
    if not allowed:
        # Nothing is told before the method is right, nor after.
        return route.others
    gate = GATES[attempt.gate].get(person, OK)
    if gate != OK:
        return (gate,)
    return attempt.post if method == "POST" else attempt.get


PEOPLES_ROWS = ("workspaces.User", "workspaces.Membership", "workspaces.Workspace")
# A session id's row and the time of a sign-in belong to the browser that asks, not to the attack.
OWN_ROWS = ("sessions.Session",)


@pytest.mark.parametrize("person", PEOPLE)
def test_each_address_answers_each_person_as_its_gate_says(
    world: World, clients: dict[str, Client], person: str
):
    client, wrong, tried = clients[person], [], 0
    cookies, everything, people = client.cookies, digest(*OWN_ROWS), digest(only=PEOPLES_ROWS)
    for name, route in routes(world).items():
        for attempt, method in itertools.product(route.tries, METHODS):
            address = reverse(name, args=attempt.args)
            answers = expected(route, attempt, person, method)
            data = {**SMUGGLED, **attempt.data} if method in ("POST", "PUT", "PATCH") else None
            client.cookies = copy.deepcopy(cookies)
            with transaction.atomic():
                response = client.generic(method, address, **(_body(data) if data else {}))
                tried += 1
                if response.status_code not in answers:
                    wrong.append(f"{method} {address}: {response.status_code}, not {answers}")
                if answers == (SIGN_IN,) and attempt.gate != "everybody":
                    assert response.headers["location"].startswith("/accounts/login/"), address
                may = attempt.changes_people and answers == attempt.post
                if method == "POST" and not may and digest(only=PEOPLES_ROWS) != people:
                    wrong.append(f"{method} {address}: people, roles or workspaces changed")
                if method == "POST" and answers != attempt.post and digest(*OWN_ROWS) != everything:
                    wrong.append(f"{method} {address}: {response.status_code} and a row changed")
                _read(response)
                transaction.set_rollback(True)
    assert digest(*OWN_ROWS) == everything
    assert wrong == []
    assert tried > 800


def _read(response: Any) -> None:
    """To the end: the client then closes the file without closing the test's connection."""
    if response.streaming:
        response.getvalue()


def _body(data: dict[str, str]) -> dict[str, Any]:
    from urllib.parse import urlencode

    return {"data": urlencode(data), "content_type": "application/x-www-form-urlencoded"}


def _admin_addresses(world: World) -> Iterator[str]:
    """Every address of the admin site, each with the id of a row that exists."""
    talk = world.shared
    ids = {
        "workspaces_user": world.people["owner"].pk,
        "workspaces_workspace": world.support.pk,
        "workspaces_membership": world.people["owner"].memberships.get().pk,
        "connections_connection": world.connection.pk,
        "workspaces_erasure": uuid.uuid4(),
        "agent_sessions_chatsession": talk.chat.pk,
        "agent_sessions_turn": talk.turn.pk,
        "agent_sessions_message": talk.said.pk,
        "agent_sessions_attachment": talk.attachment.pk,
        "agent_sessions_toolserver": world.server.pk,
    }
    for name, route in walk(get_resolver()):
        if not route.startswith("admin/") or name == "admin:login":
            continue
        model = name.removeprefix("admin:").rpartition("_")[0]
        pk = str(ids.get(model, uuid.uuid4()))
        known = {"content_type_id": "1", "object_id": pk, "id": pk, "app_label": "workspaces"}
        for key, value in known.items():
            route = re.sub(rf"<(path:)?{key}>|\(\?P<{key}>[^)]*\)", value, route)
        yield "/" + re.sub(r"\(\?P<url>\.\*\)|[$^]", "", route)


@pytest.mark.parametrize("person", [name for name in PEOPLE if name != "alice"])
def test_the_admin_site_is_for_instance_admins_alone(
    world: World, clients: dict[str, Client], person: str
):
    client, before, tried = clients[person], digest(*OWN_ROWS), 0
    answer = SIGN_IN if person in ("anonymous", "switched off") else REFUSED
    for address in _admin_addresses(world):
        for method in ("GET", "POST", "DELETE"):
            body = {**SMUGGLED, "post": "yes", "is_superuser": "on"} if method == "POST" else None
            response = client.generic(method, address, **_body(body) if body else {})
            assert response.status_code == answer, f"{method} {address}"
            tried += 1
    assert digest(*OWN_ROWS) == before
    assert tried > 200


def test_an_instance_admin_reads_every_page_of_the_admin_site(
    world: World, clients: dict[str, Client]
):
    before = digest(*OWN_ROWS)
    for address in _admin_addresses(world):
        response = clients["alice"].get(address)
        # 302: a row that isn't there, and the old addresses; 403: rows nobody makes by hand.
        assert response.status_code in (200, 302, 403, 404, 405), address
    assert digest(*OWN_ROWS) == before


@pytest.mark.django_db(transaction=True)
def test_a_stream_answers_nobody_who_may_not_read(client_for: Any):
    world = make_world()
    clients = make_clients(world, client_for)
    _, route = _on_sessions(world, "stream", GET, "reads")
    for person, attempt in itertools.product(PEOPLE, route.tries):
        response = clients[person].get(reverse(STREAM, args=attempt.args))
        if response.status_code == 200:
            assert response.streaming
            assert response.headers["content-type"] == "text/event-stream"
        assert response.status_code in expected(route, attempt, person, "GET"), (person, attempt)
    response = clients["owner"].post(reverse(STREAM, args=("support", world.shared.chat.pk)))
    assert response.status_code == WRONG_METHOD


# -- tokens ----------------------------------------------------------------------------------------

FOREIGN = ("https://evil.example", "null", "http://testserver.evil.example", "http://testserver:81")


def _unsafe_addresses(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, route in routes(world).items():
        if "POST" in route.methods:
            yield reverse(name, args=route.tries[0].args), route.tries[0].data
    yield reverse("admin:workspaces_user_add"), {"email": "eve@example.com", "is_superuser": "on"}
    yield reverse("admin:connections_connection_changelist"), {"action": "pause_selected"}
    yield reverse("admin:logout"), {}


def test_no_change_without_the_forms_token_or_from_elsewhere(world: World, client_for: Any):
    tried = 0
    for person in ("alice", "owner", "anonymous"):
        client = client_for(world.people[person], enforce_csrf_checks=True)
        client.get("/accounts/login/" if person == "anonymous" else "/accounts/password/change/")
        token = client.cookies["patchbay_csrf"].value
        before = digest()
        for address, data in _unsafe_addresses(world):
            attacks = [{}, {"HTTP_X_CSRFTOKEN": "x" * 32}, {"HTTP_X_CSRFTOKEN": "y" * 64}]
            attacks += [{"HTTP_X_CSRFTOKEN": token, "HTTP_ORIGIN": origin} for origin in FOREIGN]
            for headers in attacks:
                response = client.post(address, data, **headers)
                assert response.status_code == REFUSED, (address, headers)
                tried += 1
            for headers in ({"HTTP_X_HTTP_METHOD_OVERRIDE": "GET"}, {"HTTP_HX_REQUEST": "true"}):
                assert client.post(address, data, **headers).status_code == REFUSED, address
        assert digest() == before
    assert tried > 400


def test_the_right_token_from_here_is_taken(world: World, client_for: Any):
    client = client_for(world.people["owner"], enforce_csrf_checks=True)
    client.get("/accounts/password/change/")
    token = client.cookies["patchbay_csrf"].value
    address = reverse("sessions:rename", args=("support", world.private.chat.pk))
    headers = {"HTTP_X_CSRFTOKEN": token, "HTTP_ORIGIN": "http://testserver"}
    assert client.post(address, {"title": "New"}, **headers).status_code == 303


# -- looking changes nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("person", PEOPLE)
def test_looking_at_every_page_changes_no_row(
    world: World, clients: dict[str, Client], person: str
):
    before = digest()
    for name, route in routes(world).items():
        for attempt in route.tries:
            for query in ("", "?page=2&before=1&since=1&preset=openai&next=/&remember=1"):
                _read(clients[person].get(reverse(name, args=attempt.args) + query))
    if person == "alice":
        for address in _admin_addresses(world):
            clients[person].get(address)
    assert digest() == before


# -- headers ---------------------------------------------------------------------------------------

DIRECTIVES = {
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "object-src": "'none'",
    "frame-ancestors": "'none'",
    "form-action": "'self'",
}


def check_headers(headers: Any, address: str) -> None:
    """What every answer carries, whatever it is."""
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy, address
    assert "*" not in policy, address
    parts = dict(part.strip().partition(" ")[::2] for part in policy.split(";") if part.strip())
    assert parts["default-src"] == "'none'", address
    if "sandbox" in parts:  # an uploaded file: nothing at all
        assert set(parts) == {"default-src", "sandbox"}, address
    else:
        for name, value in DIRECTIVES.items():
            assert parts[name] in (value, "'none'"), (address, name)
    assert headers["x-content-type-options"] == "nosniff", address
    assert headers["referrer-policy"] == "same-origin", address
    stored = headers["cache-control"]
    private = "no-store" in stored or "private" in stored
    assert private, (address, stored)


@override_settings(DEBUG=False)
def test_every_answer_carries_the_headers(world: World, clients: dict[str, Client]):
    seen = set()
    for person in ("anonymous", "charlie", "viewer", "owner", "alice"):
        client = clients[person]
        for name, route in routes(world).items():
            for attempt, method in itertools.product(route.tries[:2], ("GET", "POST", "PUT")):
                address = reverse(name, args=attempt.args)
                with transaction.atomic():
                    response = client.generic(method, address)
                    transaction.set_rollback(True)
                check_headers(response.headers, f"{method} {address}")
                seen.add(response.status_code)
                _read(response)
            if name == "account_logout" and world.people[person]:
                client.force_login(world.people[person])
    for address in ("/nothing/", "/w/support/sessions/x/", "//", "/static/nothing.css", "/%ff/"):
        response = clients["owner"].get(address)
        check_headers(response.headers, address)
        seen.add(response.status_code)
    assert seen >= {200, 302, 303, 403, 404, 405, 422}


def test_an_unexpected_fault_carries_the_headers(
    world: World, clients: dict[str, Client], monkeypatch
):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a fault with a secret-looking text: sk-1234")

    monkeypatch.setattr("sessions.views_keeping.visible_chats", fail)
    response = clients["owner"].get("/w/support/")
    assert response.status_code == 500
    check_headers(response.headers, "a fault")
    assert b"sk-1234" not in response.content


def test_an_image_is_served_as_nothing_but_an_image(world: World, clients: dict[str, Client]):
    talk = world.shared
    address = reverse("sessions:attachment", args=("support", talk.chat.pk, talk.attachment.pk))
    response = clients["viewer"].get(address)
    assert response.getvalue() == png()
    assert response.headers["content-type"] == "image/png"
    assert "sandbox" in response.headers["content-security-policy"]
    assert response.headers["content-disposition"] == (
        f'inline; filename="{talk.attachment.pk}.png"'
    )
