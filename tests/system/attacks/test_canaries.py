"""Secrets of every kind are entered and used, everything that can go wrong goes wrong with the log
at DEBUG, and then none of them stands anywhere but sealed in its row."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import redis

from tests.system.attacks.canary import hits, quoted
from tests.system.attacks.listener import Listener, Request, reply, response
from tests.system.attacks.server import FORM, Attacked, untouched
from tests.system.harness import ADMIN

CONTROL = "control-7431-is-no-secret"
SHORT = "k7#Q!z"
ODD = """o"d'd%41&<k>\\e+y/=?#{}|~"""
LONG = "sk-canary-Zq81-mP40-long-0123456789"
HEADER = "Basic header%20canary\"'/5e2b"
ACCESS_KEY_ID, SECRET_KEY, SESSION = "AKIACANARY9Q2W7E", "iam+secret/canary=77", "iam-session-c4n"
PRIVATE_KEY = "MIIEcanaryPrivateKeyBody0a9b8c"
SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "project-1",
    "client_email": "robot@project-1.iam.gserviceaccount.com",
    "private_key": f"-----BEGIN PRIVATE KEY-----\n{PRIVATE_KEY}\n-----END PRIVATE KEY-----\n",
    "token_uri": "https://oauth2.googleapis.com/token",
}
IN_FILE = "sk-canary-in-a-file-55d1c0ffee99"
WRONG_CHARACTERS = "sk-schlüssel-canary-☃"
INSTANCE_KEY = "pX3v0cQmE2sYt7WzLr8KdNf1HbUg9JiOa5CeMx4TlSk"
# what each connection sends, and which of them a provider can be called with
USED = {"short": SHORT, "odd": ODD, "long": LONG, "header": HEADER}
SECRETS = {
    **USED,
    "access key id": ACCESS_KEY_ID,
    "secret access key": SECRET_KEY,
    "session token": SESSION,
    "private key": PRIVATE_KEY,
    "key in a file": IN_FILE,
    "key of wrong characters": WRONG_CHARACTERS,
    "instance key": INSTANCE_KEY,
    "password": ADMIN["password"],
}
MODELS = (
    *("good", "refuses", "page", "error-in-200", "error-in-stream", "broken-json", "moves"),
    *("breaks", "bad-header", "html-in-200", "silent"),
)
PROBED = ("refuses", "page", "error-in-200", "moves", "bad-header")
# behaviours of the list of models, by a part of the base URL's path
PATHS = ("refuses", "page", "moves", "breaks")


def leaky(elsewhere: str):
    """A provider that repeats what authenticates a call, in every spelling, wherever it can."""

    def answer(request: Request) -> bytes:
        keys = [
            value.removeprefix("Bearer ")
            for name in ("authorization", "x-api-key", "x-team")
            if (value := request.headers.get(name))
        ]
        text = " ".join(spelled for key in keys for spelled in sorted(quoted(key)))
        key = (keys or [""])[0]
        error = {"error": {"message": f"Incorrect key provided: {text}", "code": key, "type": key}}
        do = request.model or next((one for one in PATHS if f"/{one}/" in request.path), "list")
        header = {"request_id": key} if key.isascii() and " " not in key else {}
        match do:
            case "list":
                return response(200, {"data": [{"id": name} for name in MODELS]})
            case "good":
                return reply(f"{CONTROL} {request.said}")
            case "refuses":
                return response(401, error, **header)
            case "page":
                page = f"<html><h1>Oops</h1><pre>{escape(text)} {text}</pre></html>"
                return response(500, page.encode(), content_type="text/html", **header)
            case "html-in-200":
                return response(200, text.encode(), content_type="text/html", **header)
            case "error-in-200":
                return response(200, error, **header)
            case "error-in-stream":
                body = f"data: {json.dumps(error)}\n\n".encode()
                return response(200, body, content_type="text/event-stream")
            case "broken-json":
                body = f'data: {{"choices": {text}\n\n'.encode()
                return response(200, body, content_type="text/event-stream")
            case "moves":
                where = f"{elsewhere}/{quote(key)}?key={quote(key)}"
                return response(307, text.encode(), location=where)
            case "breaks":
                return f"{text}\r\n\r\n".encode()
            case "bad-header":
                return f"HTTP/1.1 200 OK\r\n{text}\r\n\r\n".encode()
        return b""

    return answer


@pytest.fixture(scope="module")
def second() -> Iterator[Listener]:
    """Where redirects lead."""
    with Listener() as running:
        yield running


@pytest.fixture(scope="module")
def provider(second) -> Iterator[Listener]:
    with Listener(leaky(second.url)) as running:
        yield running


@pytest.fixture(scope="module")
def evidence(tmp_path_factory, static_files, provider) -> Iterator[dict[str, bytes]]:
    """Everything that came out and everything that is kept, by name."""
    folder = tmp_path_factory.mktemp("canaries")
    env = {"PATCHBAY_DEBUG": "1", "PATCHBAY_SECRET_KEYS": INSTANCE_KEY, "PATCHBAY_TITLES": "off"}
    found: dict[str, bytes] = {}
    with Attacked(folder, env=env) as server:
        record(server, found)
        make_connections(server, provider)
        sessions = chat(server, found)
        validate(server)
        run_commands(server, found, folder)
        look_at_every_page(server, sessions)
        break_pages(server)
        collect(server, found)
    found["log"] = server.output().encode()
    yield found


def record(server: Attacked, found: dict[str, bytes]) -> None:
    """Keeps every answer that alice's browser gets."""

    def keep(answer: httpx.Response) -> None:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer.read()
            name = f"{len(found)} {answer.request.method} {answer.url.path} {answer.status_code}"
            found[name] = f"{answer.headers}\n{answer.url}\n".encode() + answer.content

    server.admin.event_hooks["response"].append(keep)


def make_connections(server: Attacked, provider: Listener) -> None:
    base = {**FORM, "models": "\n".join(MODELS), "default_model": "good"}
    nothing = {"api_key": "", "base_url": ""}
    forms = {
        "short": {"api_key": SHORT, "base_url": f"{provider.url}/v1"},
        "odd": {"api_key": ODD, "base_url": f"{provider.url}/v1", "auth_header": "x-api-key"},
        "long": {"api_key": LONG, "base_url": f"{provider.url}/v1"},
        "header": {
            "auth_type": "none",
            "base_url": f"{provider.url}/v1",
            "extra_headers": f"X-Team: {HEADER}",
        },
        "aws": {
            **nothing,
            "provider_type": "bedrock",
            "auth_type": "iam_credentials",
            "aws_region": "eu-central-1",
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_KEY,
            "session_token": SESSION,
        },
        "google": {
            **nothing,
            "provider_type": "vertex",
            "auth_type": "service_account_file",
            "gcp_project_id": "project-1",
            "gcp_region": "europe-west1",
            "service_account_json": json.dumps(SERVICE_ACCOUNT),
        },
    }
    for slug, fields in forms.items():
        data = {**base, "name": slug, "slug": slug, **fields}
        answer = server.admin.post("/connections/new/", data=data)
        assert answer.status_code == 303, answer.text
        # refused, with every secret typed once more
        wrong = {**data, "name": "", "models": '["'}
        assert server.edit(slug, **wrong).status_code == 422
        htmx = {"HX-Request": "true", "HX-Target": "connection-form"}
        for extra in (wrong, {**wrong, "_refresh": "1"}):
            server.admin.post(f"/connections/{slug}/edit/", data=extra, headers=htmx)
    refused = server.edit("long", api_key=WRONG_CHARACTERS)
    assert refused.status_code == 422
    google = {**SERVICE_ACCOUNT, "type": "external_account"}
    assert server.edit("google", service_account_json=json.dumps(google)).status_code == 422
    for slug in forms:
        server.wait_for_probe(slug)


def chat(server: Attacked, found: dict[str, bytes]) -> list[str]:
    """A message to every behaviour of every connection, all at once, one of them watched live."""
    sessions = {
        (slug, model): server.send(slug, f"{model} please", model=model)
        for slug in USED
        for model in MODELS
    }
    live = sessions["long", "silent"]

    def watch() -> None:
        with server.admin.stream("GET", f"{live}stream/?after=0") as stream:
            for chunk in stream.iter_raw():
                found["stream"] = found.get("stream", b"") + chunk
                if b"turn-end" in found["stream"]:
                    break

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for (_, model), url in sessions.items():
        if model == "silent":
            server.admin.post(f"{url}stop/")
        turn = server.wait_for_turn(url)
        wanted = {"good": "done", "silent": "stopped"}.get(model, "failed")
        assert turn["state"] == wanted, (model, turn)
    watcher.join(20)
    for slug in ("aws", "google"):
        assert server.ask(slug, "hello")["state"] in ("refused", "failed")
    return [*sessions.values()]


def validate(server: Attacked) -> None:
    """Each behaviour under the button, and each of the list of models by another path."""
    base = server.rows("SELECT base_url FROM connections_connection WHERE slug = 'long'")
    origin = base[0]["base_url"].removesuffix("/v1")
    for model in PROBED:
        for slug in USED:
            assert server.edit(slug, default_model=model).status_code == 303
        for slug in USED:
            assert server.wait_for_probe(slug)["passed"] == 0, (slug, model)
    for path in PATHS:
        for slug in USED:
            change = {"base_url": f"{origin}/{path}/v1", "default_model": "good"}
            assert server.edit(slug, **change).status_code == 303
        for slug in USED:
            server.wait_for_probe(slug)
    for slug in USED:
        server.edit(slug, base_url=f"{origin}/v1", default_model="refuses")
        server.wait_for_probe(slug)


def run_commands(server: Attacked, found: dict[str, bytes], folder: Path) -> None:
    file = folder / "config.json"
    entry = {
        "slug": "imported",
        "name": "imported",
        "providerType": "anthropic",
        "authType": "api_key",
        "models": ["claude-sonnet-4-6"],
        "apiKey": IN_FILE,
        "note": "from a file",
        "extra": {"headers": {"Authorization": f"Bearer {IN_FILE}"}, "remarks": [IN_FILE]},
    }
    file.write_text(json.dumps({"llmConnections": [entry]}))
    for arguments in (
        ("import_connections", str(file)),
        ("export_connections",),
        ("doctor", "--json"),
        ("validate_connections", "--json"),
        ("validate_connections", *USED),
        ("ask", "--workspace", "support", "--connection", "odd", "hello"),
        ("resolve_connection", "--workspace", "support", "--json"),
        ("rotate_secrets",),
        ("check", "--deploy"),
    ):
        done = server.manage(*arguments, check=False)
        found[f"manage.py {' '.join(arguments[:2])}"] = (done.stdout + done.stderr).encode()
    file.unlink()


def look_at_every_page(server: Attacked, sessions: list[str]) -> None:
    get = server.admin.get
    for slug in (*USED, "aws", "google", "imported"):
        for page in ("", "edit/", "row/", "delete/confirm/"):
            assert get(f"/connections/{slug}/{page}").status_code in (200, 204)
        assert get(f"/w/support/settings/ai/{slug}/models/").status_code == 200
    for url in sessions:
        assert get(url).status_code == 200
        assert get(f"{url}turns/?since=0").status_code == 200
    for page in ("/", "/connections/", "/w/support/", "/w/support/settings/ai/", "/readyz"):
        assert get(page, follow_redirects=True).status_code == 200
    for table in ("connection", "secret", "workspaceconnection", "proberesult"):
        page = get(f"/admin/connections/{table}/?all=1")
        assert page.status_code == 200
        for row in server.rows(f"SELECT id FROM connections_{table} LIMIT 25"):
            get(f"/admin/connections/{table}/{row['id']}/change/", follow_redirects=True)
    assert get("/admin/workspaces/auditevent/?all=1").status_code == 200
    for row in server.rows("SELECT id FROM workspaces_auditevent LIMIT 25"):
        get(f"/admin/workspaces/auditevent/{row['id']}/change/", follow_redirects=True)
    # what doesn't exist, isn't allowed, can't be read
    assert get("/connections/nothing/").status_code == 404
    assert get("/connections/long/validate/").status_code == 405
    assert get("/?x=%00").status_code == 400
    secrets = {"api_key": LONG, "service_account_json": json.dumps(SERVICE_ACCOUNT)}
    nobody = server.client()
    assert nobody.post("/connections/new/", data=secrets).status_code == 403
    odd = {"Content-Type": "multipart/form-data"}
    server.admin.post("/connections/new/", content=LONG, headers=odd)
    for verb in ("validate", "delete", "default", "enable", "order", "mid-stream"):
        server.admin.post(f"/connections/nothing/{verb}/", data=secrets)
    server.admin.post("/connections/long/mid-stream/", data={**secrets, "mid_stream_behavior": "x"})


def break_pages(server: Attacked) -> None:
    """Errors in the middle of everything that takes a secret."""
    broken = "BEFORE INSERT ON {} BEGIN SELECT * FROM nowhere; END"
    tables = ("workspaces_auditevent", "django_session")
    forms = [
        untouched(server.admin.get(f"/connections/{slug}/edit/").text)
        | {
            "api_key": LONG,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_KEY,
            "session_token": SESSION,
            "service_account_json": json.dumps(SERVICE_ACCOUNT),
            "extra_headers": f"X-Team: {HEADER}",
        }
        for slug in ("short", "aws", "google")
    ]
    signing_in = server.client()
    record_other = server.admin.event_hooks["response"][-1]
    signing_in.event_hooks["response"].append(record_other)
    signing_in.get("/accounts/login/")
    for table in tables:
        server.execute(f"CREATE TRIGGER broken_{table} {broken.format(table)}")
    for number, form in enumerate(forms):
        fresh = {**form, "name": f"Broken {number}", "slug": f"broken-{number}"}
        assert server.admin.post("/connections/new/", data=fresh).status_code == 500
    assert server.edit("long", **{**forms[0], "note": "x"}).status_code == 500
    data = {"login": ADMIN["email"], "password": ADMIN["password"]}
    assert signing_in.post("/accounts/login/", data=data).status_code == 500
    for table in tables:
        server.execute(f"DROP TRIGGER broken_{table}")
    assert not server.rows("SELECT 1 FROM connections_connection WHERE slug LIKE 'broken-%'")


def collect(server: Attacked, found: dict[str, bytes]) -> None:
    # each value as Valkey gives it, and its file, uncompressed so that it can be searched
    with redis.Redis(connection_pool=server.redis.connection_pool, decode_responses=False) as store:
        store.config_set("rdbcompression", "no")
        store.save()
    for file in server.data.rglob("*"):
        if file.is_file() and "keys" not in file.parts:
            found[f"file {file.relative_to(server.data)}"] = file.read_bytes()
    for table in server.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
        rows = server.rows(f"SELECT * FROM {table['name']}")
        found[f"table {table['name']}"] = repr(rows).encode()
    keeps_the_instance_key = {server.process.pid}
    for name, pid in {**server.pids(), "serve": server.process.pid}.items():
        found[f"argv of {name}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        if name in ("web", "worker") or pid in keeps_the_instance_key:
            environ = environ.replace(f"PATCHBAY_SECRET_KEYS={INSTANCE_KEY}".encode(), b"")
        found[f"environment of {name}"] = environ


def test_the_provider_got_every_secret_that_it_can_be_called_with(evidence, provider):
    for secret in USED.values():
        assert secret.encode() in provider.received


def test_a_redirect_took_none_of_them_along(evidence, second):
    assert second.connections == 0


def test_what_is_no_secret_is_found_where_it_should_be(evidence):
    """The search works: a text that was in the replies is in pages, database and Valkey."""
    places = {hit.partition(":")[0].partition(" ")[0] for hit in hits(CONTROL, evidence)}
    assert {"file", "table"} <= places
    names = " ".join(hit.partition(":")[0] for hit in hits(CONTROL, evidence))
    assert "GET /w/support/sessions/" in names
    assert ".rdb" in names
    assert b"turn-end" in evidence["stream"]
    assert b" INFO    celery" in evidence["log"]  # only with PATCHBAY_DEBUG
    assert any(b"Oops" in content for content in evidence.values())


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_stands_anywhere(evidence, kind):
    assert hits(SECRETS[kind], evidence) == []
