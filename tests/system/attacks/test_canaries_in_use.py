"""The newer kinds of secrets, each really used, and quoted back by whoever was sent it: a service
account's key and token, an OAuth pair, IAM credentials, a key behind Codex, a tool server's header,
a webhook's address, and a file's secrets on the pages of import and export. None stands anywhere
but sealed."""

from __future__ import annotations

import base64
import json
import re
import threading
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.system.attacks.canary import hits, quoted
from tests.system.attacks.listener import Listener, Request, response
from tests.system.attacks.server import FORM, Attacked
from tests.system.attacks.test_canaries import collect, record
from tests.system.attacks.test_hostile_providers import OPENED, chunk, head, said
from tests.system.harness import _processes, wait_for

CONTROL = "control-7431-is-no-secret"
CODEX_KEY = "sk-canary-behind-codex-0a1b2c3d4e"
ACCESS_KEY_ID, SECRET_KEY = "AKIACANARY5T8U1V", "iam+secret/canary=used-81"
SESSION = "iam-session+canary/used==4711"
GOOGLE_TOKEN = "ya29.canary-of-google-55aa66bb77"
ACCESS, REFRESH = "oauth-access-canary-9f8e7d6c5b", "oauth-refresh-canary-1a2b3c4d"
CODE, WRONG_CODE = "oauth-code-canary-abcdef42", "oauth-wrong-code-canary-24"
TOOL_HEADER = "mcp-header-canary'\"/+%20-8c7b6a"
EXTRA_HEADER = "extra-header-canary-3344-xyz"
HOOK, SIGNING = "webhook-address-canary-77aa88bb", "webhook-signing-canary-19fe28dc"
IN_FILE = "sk-canary-in-an-import-0f1e2d3c4b"
IN_URL = "canary-password-in-an-address"
IN_NAMED = "canary-by-the-fields-name"
_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
SECRETS = {
    "key behind codex": CODEX_KEY,
    "secret access key": SECRET_KEY,
    "access key id": ACCESS_KEY_ID,
    "session token": SESSION,
    "private key": _KEY.decode().splitlines()[5],
    "google token": GOOGLE_TOKEN,
    "access token": ACCESS,
    "refresh token": REFRESH,
    "code": CODE,
    "wrong code": WRONG_CODE,
    "tool server's header": TOOL_HEADER,
    "extra header": EXTRA_HEADER,
    "webhook's address": HOOK,
    "webhook's signing secret": SIGNING,
    "key in an imported file": IN_FILE,
    "password in an imported address": IN_URL,
    "secret by its field's name": IN_NAMED,
}
SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "project-1",
    "client_email": "robot@project-1.iam.gserviceaccount.com",
    "private_key": _KEY.decode(),
    "token_uri": "https://oauth2.googleapis.com/token",
}
_SENT = ("authorization", "x-api-key", "x-amz-security-token", "x-team", "x-tool-key")


class Repeating:
    """Every provider, issuer and tool server in one; what it was sent, it says again."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.listed = False

    def __call__(self, request: Request) -> bytes | Iterator[bytes]:
        sent = [request.headers[name] for name in _SENT if name in request.headers]
        sent = [piece for value in sent for piece in (value, value.removeprefix("Bearer "))]
        words = " ".join(spelled for one in sent for spelled in sorted(quoted(one)))
        if request.path == "/google":
            return response(200, {"access_token": GOOGLE_TOKEN, "expires_in": 3600})
        if request.path == "/issuer":
            return self.issue(json.loads(request.body))
        if request.path == f"/{HOOK}":
            return response(400, {"error": HOOK})
        if request.path == "/mcp":
            return self.tools(json.loads(request.body or b"{}"), words)
        if request.path.endswith("/responses") and request.model == "stall":
            return self.stall()
        if request.path.endswith("/chat/completions") and request.model == "calls":
            called = any(one["role"] == "tool" for one in json.loads(request.body)["messages"])
            call = {"index": 0, "id": "c", "function": {"name": "shop__look", "arguments": "{}"}}
            body = chunk(content=CONTROL) if called else chunk(tool_calls=[call])
            end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
            return head() + body + end
        message = {"message": f"Not with {words} {request.body.decode()[:200]}", "code": words}
        return response(403 if request.method == "GET" else 401, {"error": message})

    def stall(self) -> Iterator[bytes]:
        yield head()
        yield OPENED
        yield said(CONTROL)
        self.hold.wait(60)

    def issue(self, body: dict[str, str]) -> bytes:
        if body.get("code") == CODE:
            tokens = {"access_token": ACCESS, "refresh_token": REFRESH, "expires_in": 3600}
            return response(200, {**tokens, "account": {"email_address": "carol@example.com"}})
        description = " ".join(quoted(json.dumps(body)) | {*body.values()})
        return response(400, {"error": "invalid_grant", "error_description": description})

    def tools(self, message: dict, words: str) -> bytes:
        match message.get("method"):
            case "initialize":
                result = {"protocolVersion": "2025-11-25", "capabilities": {}}
            case "tools/list":
                tool = {"name": "look", "title": words, "description": f"{CONTROL} {words}"}
                result = {"tools": [{**tool, "inputSchema": {"type": "object"}}]}
            case "tools/call":
                result = {"content": [{"type": "text", "text": f"{CONTROL} {words}"}]}
            case _:
                return response(202)
        return response(200, {"jsonrpc": "2.0", "id": message["id"], "result": result})


@pytest.fixture(scope="module")
def repeating() -> Repeating:
    return Repeating()


@pytest.fixture(scope="module")
def provider(repeating) -> Iterator[Listener]:
    with Listener(repeating) as running:
        yield running


@pytest.fixture(scope="module")
def evidence(tmp_path_factory, static_files, provider, repeating) -> Iterator[dict[str, bytes]]:
    env = {
        "PATCHBAY_DEBUG": "1",
        "PATCHBAY_TITLES": "off",
        "PATCHBAY_TOOL_EGRESS_ALLOW": "127.0.0.0/8",
        "PATCHBAY_GOOGLE_TOKEN_URL": f"{provider.url}/google",
        "PATCHBAY_OAUTH_ANTHROPIC_CLIENT_ID": "client",
        "PATCHBAY_OAUTH_ANTHROPIC_AUTHORIZE_URL": f"{provider.url}/authorize",
        "PATCHBAY_OAUTH_ANTHROPIC_TOKEN_URL": f"{provider.url}/issuer",
    }
    found: dict[str, bytes] = {}
    with Attacked(tmp_path_factory.mktemp("in-use"), env=env) as server:
        record(server, found)
        server.admin.event_hooks["response"].append(lambda answer: unfold(answer, found))
        make_connections(server, provider.url)
        sign_in(server)
        sessions = [server.send(slug, "hello") for slug in ("aws", "google", "claude", "codex")]
        sessions += call_a_tool(server, provider.url)
        for url in sessions:
            server.wait_for_turn(url)
        sessions.append(use_codex(server, repeating, found))
        for slug in ("aws", "google", "claude", "codex"):
            server.validate(slug)
            server.admin.post(f"/connections/{slug}/models/")
        bring_in_and_take_out(server)
        set_alerts(server, provider.url)
        look(server, sessions)
        collect(server, found)
    found["log"] = server.output().encode()
    yield found


def unfold(answer: httpx.Response, found: dict[str, bytes]) -> None:
    """What an import's page carries to the next one, as it is inside."""
    for draft in re.findall(r'name="draft" value="([^"]*)"', answer.text):
        packed = unescape(draft).rsplit(":", 2)[0]
        data = packed.removeprefix(".")
        plain = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
        found[f"{len(found)} draft"] = zlib.decompress(plain) if packed != data else plain


def make_connections(server: Attacked, url: str) -> None:
    forms = {
        "aws": {
            "provider_type": "bedrock",
            "auth_type": "iam_credentials",
            "aws_region": "eu-central-1",
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_KEY,
            "session_token": SESSION,
            "base_url": url,
            "extra_headers": f"X-Team: {EXTRA_HEADER}",
        },
        "google": {
            "provider_type": "vertex",
            "auth_type": "service_account_file",
            "gcp_project_id": "project-1",
            "gcp_region": "europe-west1",
            "service_account_json": json.dumps(SERVICE_ACCOUNT),
            "base_url": url,
        },
        "claude": {"provider_type": "anthropic", "auth_type": "oauth", "base_url": url},
        "codex": {
            "provider_type": "openai",
            "api_key": CODEX_KEY,
            "base_url": f"{url}/v1",
            "models": "refused\nstall",
            "default_model": "refused",
        },
        "calls": {"base_url": f"{url}/v1", "api_key": "x", "models": "calls"},
    }
    for slug, fields in forms.items():
        data = {**FORM, "name": slug, "slug": slug, "default_model": "", **fields}
        if slug == "calls":
            data["default_model"] = "calls"
        answer = server.admin.post("/connections/new/", data=data)
        assert answer.status_code == 303, answer.text
    for slug in forms:
        if slug != "claude":
            server.wait_for_probe(slug)


def sign_in(server: Attacked) -> None:
    """With a wrong code, with the right one. Its token is refused, and then its renewal."""
    page = "/connections/claude/"
    assert server.admin.post(f"{page}sign-in/").status_code == 303
    html = server.admin.get(page).text
    attempt = re.search(r'name="attempt" value="([^"]+)"', html)[1]
    for code, status in ((WRONG_CODE, 422), (CODE, 303)):
        data = {"attempt": attempt, "code": code}
        answer = server.admin.post(f"{page}sign-in/finish/", data=data)
        assert answer.status_code == status, answer.text
    server.wait_for_probe("claude")


def call_a_tool(server: Attacked, url: str) -> list[str]:
    data = {
        "name": "Shop",
        "prefix": "shop",
        "url": f"{url}/mcp",
        "headers": f"X-Tool-Key: {TOOL_HEADER}",
    }
    new = "/w/support/settings/tools/new/"
    assert server.admin.post(new, data={**data, "name": ""}).status_code == 422
    answer = server.admin.post(new, data=data)
    assert answer.status_code == 303, answer.text
    assert server.admin.get(answer.headers["location"]).status_code == 200
    called = server.send("calls", "look")
    assert server.wait_for_turn(called)["state"] == "done"
    return [called]


def use_codex(server: Attacked, repeating: Repeating, found: dict[str, bytes]) -> str:
    """In the middle of a reply: what its process was given, its home, and everybody's else."""
    session = server.send("codex", "hello", model="stall")
    wait_for(lambda: CONTROL in server.turns(session)[0]["text"], what="Codex answers")
    mine = {server.process.pid}
    for _ in range(4):
        mine |= {pid for pid, parent, _ in _processes() if parent in mine}
    names = [text for pid, _, text in _processes() if pid in mine]
    assert any("app-server" in text for text in names)
    for pid in mine:
        for what in ("cmdline", "environ"):
            found[f"{what} of {pid}"] = Path(f"/proc/{pid}/{what}").read_bytes()
    homes = [path for path in (server.data / "codex").rglob("*") if path.is_file()]
    assert any(path.name == "config.toml" for path in homes)
    for path in homes:
        found[f"home {path.name}"] = path.read_bytes()
    assert server.say(session, "and this")
    server.admin.post(f"{session}rename/", data={"title": "Another name"})
    server.admin.post(f"{session}stop/")
    repeating.hold.set()
    server.wait_for_turn(session)
    return session


def bring_in_and_take_out(server: Attacked) -> None:
    entry = {
        "slug": "brought-in",
        "name": "Brought in",
        "providerType": "anthropic",
        "authType": "api_key",
        "models": ["claude-sonnet-4-6"],
        "apiKey": IN_FILE,
        "extra": {"password": IN_NAMED, "remarks": [f"use {IN_FILE}"]},
    }
    compat = {
        **entry,
        "slug": "by-address",
        "providerType": "openai_compat",
        "authType": "api_key_with_endpoint",
        "baseUrl": f"https://user:{IN_URL}@api.example.com/v1",
        "headers": {"Authorization": f"Bearer {IN_FILE}"},
    }
    odd = {**entry, "slug": IN_FILE, "name": f"Name {IN_FILE}", "providerType": IN_FILE}
    text = json.dumps({"llmConnections": [entry, compat, odd], "defaultLlmConnection": IN_FILE})
    post = server.admin.post
    for broken in (text[:-2], f"[{text}]", text.replace("llmConnections", IN_FILE), IN_FILE):
        post("/connections/import/", data={"text": broken})
    answer = post("/connections/import/", files={"file": ("config.json", text.encode())})
    assert answer.status_code == 200, answer.text
    draft = unescape(re.search(r'name="draft" value="([^"]*)"', answer.text)[1])
    take = re.findall(r'name="take" value="([^"]+)"', answer.text)
    assert take
    done = post(
        "/connections/import/", data={"draft": draft, "take": [unescape(one) for one in take]}
    )
    assert done.status_code == 303, done.text
    assert server.admin.get(done.headers["location"]).status_code == 200
    page = server.admin.get("/connections/export/").text
    generations = set(re.findall(r'name="generation"[^>]*value="([^"]+)"', page))
    assert generations
    for generation in generations:
        assert post("/connections/export/", data={"generation": generation}).status_code == 200


def set_alerts(server: Attacked, url: str) -> None:
    data = {"failures": "1", "webhook_url": f"{url}/{HOOK}", "webhook_secret": SIGNING}
    page = "/connections/alerts/"
    assert server.admin.post(page, data={**data, "failures": "x"}).status_code == 422
    assert server.admin.post(page, data={**data, "webhook_secret": ""}).status_code == 422
    assert server.admin.post(page, data=data).status_code == 303
    assert server.admin.post(f"{page}test/").status_code == 303
    assert "It answered with status 400." in server.admin.get(page).text


def look(server: Attacked, sessions: list[str]) -> None:
    get = server.admin.get
    for slug in ("aws", "google", "claude", "codex", "calls", "brought-in"):
        for page in ("", "edit/", "row/"):
            assert get(f"/connections/{slug}/{page}").status_code in (200, 204), slug
    for url in sessions:
        assert get(url).status_code == 200
        assert get(f"{url}turns/?since=0").status_code == 200
    assert get("/w/support/settings/tools/").status_code == 200
    for app, table in (
        *(
            ("connections", name)
            for name in ("connection", "secret", "signin", "proberesult", "alertsettings")
        ),
        *(("agent_sessions", name) for name in ("toolserver", "turn", "message")),
        ("workspaces", "auditevent"),
    ):
        assert get(f"/admin/{app}/{table}/").status_code == 200
        for row in server.rows(f"SELECT id FROM {app}_{table} LIMIT 20"):
            get(f"/admin/{app}/{table}/{row['id']}/change/", follow_redirects=True)


def test_every_secret_was_used(evidence, provider):
    for kind in ("key behind codex", "access key id", "session token", "google token"):
        assert SECRETS[kind].encode() in provider.received, kind
    for kind in (
        "access token",
        "refresh token",
        "code",
        "wrong code",
        "tool server's header",
        "extra header",
        "webhook's address",
    ):
        assert SECRETS[kind].encode() in provider.received, kind
    assert b"assertion=" in provider.received


def test_what_is_no_secret_is_found_where_it_should_be(evidence):
    names = " ".join(hit.partition(":")[0] for hit in hits(CONTROL, evidence))
    for place in ("table agent_sessions_message", "table agent_sessions_toolserver", "file "):
        assert place in names, place
    drafts = [content for name, content in evidence.items() if name.endswith(" draft")]
    assert drafts
    assert all(b"brought-in" in draft for draft in drafts)


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_stands_anywhere(evidence, kind):
    assert hits(SECRETS[kind], evidence) == []
