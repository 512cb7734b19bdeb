"""Input that makes no sense, to every address that takes any: refused or ignored, never a fault."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import reverse

from tests.test_routes import METHODS, make_clients, routes
from tests.world import World, make_world

# Every name that a form of the product reads.
FIELDS = [
    *("name", "slug", "provider_type", "auth_type", "base_url", "models", "default_model"),
    *("custom_endpoint_api", "supports_images", "mid_stream_behavior", "codex_path", "aws_region"),
    *("gcp_project_id", "gcp_region", "api_key", "access_key_id", "secret_access_key", "note"),
    *("session_token", "service_account_json", "enabled", "extra_headers", "auth_header"),
    *("max_tokens_field", "access", "paused_message", "position", "direction", "only", "next"),
    *("text", "client_key", "images", "queued", "connection", "model", "title", "shared", "since"),
    *("thinking", "max_output", "q", "action", "until", "format", "days", "by"),
    *("before", "page", "_refresh", "login", "password", "oldpassword", "password1", "password2"),
    *(
        "file",
        "draft",
        "take",
        "validate",
        "generation",
        "which",
        "successor",
        "without",
        "kept",
        "flag",
    ),
    *("archive", "show", "process", "invitation", "state", "code"),
    *("token", "email", "workspace", "remember", "clear_secret", "workspaces", "models_synced"),
    *("failures", "by_mail", "webhook_url", "webhook_secret", "remove_webhook", "mail"),
    *("prefix", "url", "headers", "tool", "tools_mode"),
    *("receiver", "to-0-receiver", "instructions", "retention_days", "confirmed", "role", "admin"),
    *("factor", "seen", "language", "credential", "keep", "of", "files"),
    *("replaces", "entered_for", "candidate", "turn", "secrets"),
    "after",
    *("soft_cost", "hard_cost", "soft_tokens", "hard_tokens"),
]
DEEP = "[" * 100_000
VALUES = [
    *("", " ", "\x00", "a\x00b", "%%%%", "%00", "%s%n", "'", '"; DROP TABLE x;--', "{{ 7*7 }}"),
    *("null", "None", "undefined", "true", "-1", "0", "1e309", "NaN", "9" * 400, "٣", "²", "𝟙"),
    *("../../etc/passwd", "//evil.example", "http://[::1", "http://a:99999999/", "https://", "::"),
    *("http://%00/", "javascript:1", "file:///etc/passwd", "\ud800", "\ufffe", "\u202e", "é" * 500),
    *("{}", "[]", "[null]", "[[]]", '{"a":', '"x', "[1, 2]", '[{"id": null}]', '[{"id": {}}]'),
    *("[" * 20_000, '{"a":' * 5_000, "x" * 30_000, "\r\n" * 1_000, "a: b\r\nc", "a" * 70, "=" * 9),
]
QUERIES = [
    *("page=%%%%", "page=-1", "page=9e9", "page=" + "9" * 500, "before=x", "since=%FF", "page[]=1"),
    *("v=²", "after=1-2-3", "after=" + "9" * 30, "preset=%00", "preset=../x", "q=%%%%", "&&&=&"),
    *("next=//evil.example", "page=٣", "a=1&" * 500, "%", "=" * 50, "page=0x1", "since=-1"),
]
PATHS = [
    *("//", "///w//support//", "/w//", "/w/support//sessions/", "/w/%00/", "/w/%2e%2e/", "/w/../"),
    *("/connections/%00/", "/connections/..%2f..%2f/", "/connections/%ff%fe/", "/w/%F0%9F%98/"),
    *("/w/support/sessions/not-a-uuid/", "/w/support/sessions/00000000/", "/" + "a" * 5_000),
    *("/w/support/sessions/" + "0" * 32 + "/", "/w/" + "x" * 3_000 + "/", "/%", "/%zz/", "/w/a b/"),
    *("/admin/workspaces/user/%00/change/", "/admin/workspaces/user/_2F/change/", "/admin//"),
    *(
        "/admin/workspaces/user/'/change/",
        "/admin/nothing/",
        "/static/../settings.py",
        "/static/%00",
    ),
    *("/admin/workspaces/auditevent/?q=%%%%", "/admin/workspaces/auditevent/?at__year=x", "/.env"),
    *("/admin/workspaces/auditevent/?p=x", "/admin/connections/connection/?o=9.-9.x", "/?%%%%"),
    *("/admin/connections/connection/?_facets=x&all=1", "/admin/autocomplete/?term=%%%%"),
    *("/admin/workspaces/user/?email__regex=(", "/admin/workspaces/user/?password__startswith=a"),
    *("/admin/workspaces/user/?email__iregex=(a+)+$", "/admin/agent_sessions/turn/?id__exact=x"),
    *("/admin/agent_sessions/message/?seq__gt=" + "9" * 30, "/admin/workspaces/user/?id__in=x"),
    "/admin/workspaces/user/?q=" + "x " * 500,
    *(f"/admin/workspaces/auditevent/?at__year={year}" for year in ("99999999", "0", "1", "9999")),
    "/admin/workspaces/auditevent/?at__year=99999999&at__year=2026",
    "/admin/workspaces/auditevent/?at__iso_year__gte=10000",
    "/admin/agent_sessions/message/?created_at__month=" + "9" * 30,
    *("/admin/agent_sessions/turn/?chat__workspace__slug__regex=(", "/admin/workspaces/user/?x=1"),
    *("/admin/workspaces/auditevent/?at__gte=x", "/admin/workspaces/user/?is_active__exact=x"),
    *("/admin/r/x/y/", "/admin/r/1/%00/", "/admin/jsi18n/?x", "/admin/workspaces/user/?_popup=%%"),
]
TYPES = [
    *(
        "application/json",
        "text/plain",
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ),
    *("multipart/form-data; boundary=x", "application/x-www-form-urlencoded; charset=utf-7"),
    *("application/x-www-form-urlencoded; charset=nothing", "image/png", "x" * 500, "a/b; c=\x7f"),
]
BODIES = [
    *(b"", b"\x00", b"\xff\xfe", b"{", b"[" * 100_000, b"--x\r\n", b"--x--", b"=&" * 500),
    *(b"text=%ff%fe", b"text=%", b"%", b"&".join(b"a%d=1" % n for n in range(1_100))),
    b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="text"; filename="a"\r\n\r\nx\r\n--x--\r\n',
    b"--x\r\nContent-Disposition: form-data\r\nContent-Transfer-Encoding: base64\r\n\r\n!\r\n--x--",
]
HEADERS = [
    {"HTTP_HX_REQUEST": "true", "HTTP_HX_TARGET": "\x00\xff", "HTTP_HX_CURRENT_URL": "%%%"},
    {"HTTP_HX_REQUEST": "true", "HTTP_HX_TRIGGER": "é" * 100, "HTTP_HX_PROMPT": "%ff"},
    {"HTTP_HX_REQUEST": "true", "HTTP_HX_TARGET": "connections"},
    {"HTTP_HX_REQUEST": "true", "HTTP_HX_TARGET": "connection-local"},
    {"HTTP_COOKIE": 'patchbay_session=%00; patchbay_workspace="\\000"; messages=x'},
    {"HTTP_COOKIE": "=;;;=\x00", "HTTP_ACCEPT_LANGUAGE": "x" * 5_000},
    {"HTTP_HOST": "evil.example"},
    {"HTTP_HOST": "a:b:c", "HTTP_X_FORWARDED_HOST": "evil.example"},
    {"HTTP_ACCEPT": "x" * 60_000, "HTTP_REFERER": "%%%", "HTTP_RANGE": "bytes=-,x"},
    {"HTTP_LAST_EVENT_ID": "\x00-²", "HTTP_IF_MODIFIED_SINCE": "never"},
    {"HTTP_X_FORWARDED_FOR": "' OR 1", "HTTP_X_FORWARDED_PROTO": "https"},
]
TRIES = 300


@pytest.fixture
def world(db: None) -> World:
    return make_world()


@pytest.fixture
def clients(world: World, client_for: Any) -> dict[str, Client]:
    return make_clients(world, client_for)


def _addresses(world: World) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(name, address, methods): each with an object that its person may use."""
    for name, route in routes(world).items():
        if name != "account_logout":
            yield name, reverse(name, args=route.tries[0].args), route.methods


def _data(chance: random.Random) -> dict[str, Any]:
    names = chance.sample(FIELDS, chance.randrange(0, 12))
    data: dict[str, Any] = {name: chance.choice(VALUES) for name in names}
    if chance.random() < 0.2 and data:
        name = chance.choice(list(data))
        data[name] = [chance.choice(VALUES) for _ in range(3)]
    if chance.random() < 0.2:
        file = SimpleUploadedFile("x", chance.choice(VALUES).encode("utf-8", "replace"))
        data[chance.choice(FIELDS)] = file
    return {key: _storable(value) for key, value in data.items()}


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return [_storable(one) for one in value] if isinstance(value, list) else value


def _request(
    chance: random.Random, address: str, methods: tuple[str, ...]
) -> tuple[str, str, dict[str, Any]]:
    """Method, address and options of a request, as `Client.generic` takes them. A form has `form`
    in place of `data`."""
    method = chance.choice(methods if chance.random() < 0.9 else METHODS)
    query = f"?{chance.choice(QUERIES)}" if chance.random() < 0.3 else ""
    headers = chance.choice(HEADERS) if chance.random() < 0.4 else {}
    if method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        return method, address + query, headers
    if chance.random() < 0.3:
        kind, body = chance.choice(TYPES), chance.choice(BODIES)
        return method, address + query, {"data": body, "content_type": kind, **headers}
    if chance.random() < 0.2:
        body = json.dumps({name: chance.choice([None, 1, [], {}, True, 1.5]) for name in FIELDS})
        return method, address, {"data": body, "content_type": "application/json", **headers}
    return "POST", address + query, {"form": _data(chance), **headers}


def _ask(client: Client, method: str, address: str, options: dict[str, Any]) -> Any:
    if "form" in options:
        form, headers = options["form"], {k: v for k, v in options.items() if k != "form"}
        return client.post(address, form, **headers)
    return client.generic(method, address, **options)


def _try(what: str, ask: Any) -> str:
    """An empty string, or what went wrong."""
    with transaction.atomic():
        try:
            response = ask()
        except ValueError as error:  # the test's own client refuses to send it
            return "" if "content" in str(error).lower() else f"{what}: {error!r}"
        if response.streaming:
            response.getvalue()
        transaction.set_rollback(True)
    return f"{what}: {response.status_code}" if response.status_code >= 500 else ""


@pytest.mark.parametrize("part", range(4))
def test_nonsense_is_never_a_fault(world: World, clients: dict[str, Client], part: int):
    """Three hundred requests of each address, as the person who may most."""
    wrong = []
    for place, (name, address, methods) in enumerate(_addresses(world)):
        if place % 4 != part:
            continue
        client = clients["owner" if name.startswith("sessions:") else "alice"]
        cookies = client.cookies.output(header="", sep=";")
        asked: set[str | int] = set()
        for number in range(TRIES):
            request = _request(random.Random(f"{name} {number}"), address, methods)
            # All rows are as before, so the same request once more is answered the same. A form may
            # hold a file, whose content `repr` doesn't tell.
            same = number if "form" in request[2] else repr(request)
            if same in asked:
                continue
            asked.add(same)
            problem = _try(f"{name}, try {number}", functools.partial(_ask, client, *request))
            if problem:
                wrong.append(problem)
            client.cookies.load(cookies)
    assert wrong == []


def test_a_nul_in_any_field_is_never_a_fault(world: World, clients: dict[str, Client]):
    """SQLite stores one, PostgreSQL refuses the statement."""
    wrong = []
    for name, address, methods in _addresses(world):
        client = clients["owner" if name.startswith("sessions:") else "alice"]
        for field in FIELDS if "POST" in methods else ():
            data = {"text": "hello", field: "a\x00b"}
            wrong.append(_try(f"{name} {field}", functools.partial(client.post, address, data)))
    assert [one for one in wrong if one] == []


def test_strange_addresses_are_never_a_fault(world: World, clients: dict[str, Client]):
    wrong = []
    for person, path, method in itertools.product(
        ("anonymous", "owner", "alice"), PATHS, ("GET", "POST", "OPTIONS", "PUT")
    ):
        what = f"{method} {path[:60]} by {person}"
        problem = _try(what, functools.partial(clients[person].generic, method, path))
        if problem:
            wrong.append(problem)
    assert wrong == []


@pytest.mark.parametrize("field", ["models", "service_account_json", "extra_headers", "slug"])
def test_deep_and_long_values_are_refused_with_the_form(
    world: World, clients: dict[str, Client], field: str
):
    for value in (DEEP, '{"a":' * 50_000, "[" * 5_000 + "]" * 5_000, "x" * 300_000):
        response = clients["alice"].post("/connections/new/", {"name": "n", field: value})
        assert response.status_code == 422, (field, value[:10])


def test_too_many_fields_are_refused(world: World, clients: dict[str, Client]):
    body = "&".join(f"f{number}=1" for number in range(100_000))
    for person in ("alice", "anonymous"):
        response = clients[person].generic(
            "POST",
            "/connections/new/" if person == "alice" else "/accounts/login/",
            body,
            content_type="application/x-www-form-urlencoded",
        )
        assert response.status_code == 400


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "image/png", ""])
def test_a_body_that_is_no_form_is_refused_everywhere(
    world: World, clients: dict[str, Client], kind: str
):
    """Django takes it for a form without fields, and to stop or to enable none is needed."""
    wrong = []
    for name, address, methods in _addresses(world):
        if "POST" not in methods:
            continue
        client = clients["owner" if name.startswith("sessions:") else "alice"]
        answer = client.generic("POST", address, b'{"text": null}', content_type=kind)
        if answer.status_code != 415:
            wrong.append((name, answer.status_code))
    assert wrong == []


def test_a_post_without_a_body_needs_no_type(clients: dict[str, Client], world: World):
    assert clients["alice"].generic("POST", "/connections/validate/").status_code == 303
