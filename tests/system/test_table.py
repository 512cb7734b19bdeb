"""The table: every way to authenticate to every provider, and everything that a connection must do.

`COLUMNS` is made from `ALLOWED_AUTH`, so that a new pair without an entry fails, and every column
has every one of `CELLS`. All of them are on one running server, configured in the form and used
through its pages. Connections with a base URL have a fake's; those of `environment`, which may have
none, and ChatGPT's sign-in call the provider's own host by TLS. Where its name leads is settled by
`tests.system.led`, the settings of this server.

The cells of a column run in their order, as they share its connection; columns run side by side.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from connections.choices import ALLOWED_AUTH, AuthType, ProviderType
from tests.fakes import bedrock
from tests.fakes.device import DeviceIssuer
from tests.fakes.server import GOOD_KEY, FakeProviders, key_hash
from tests.fakes.vertex import PROJECT, service_account
from tests.system.harness import wait_for
from tests.system.page import Page, plain
from tests.system.parts import Chat, Parts
from tests.system.tls import certificate

SIDE_BY_SIDE = 8  # columns
WAITING = "Wait for me, please."  # said by the model `held`
SECONDS = 90.0  # that anything may take, on a machine that does something else too
ANTHROPIC, OPENAI = "api.anthropic.com", "api.openai.com"
CHATGPT = "chatgpt.com"
AWS_REGION = "us-west-2"
# A host each for the two columns that call Google's own, as a test shuts its port.
GOOGLE, GOOGLE_EU = (
    f"{region}-aiplatform.googleapis.com" for region in ("us-east4", "europe-west1")
)
AWS = [f"{service}.{AWS_REGION}.amazonaws.com" for service in ("bedrock", "bedrock-runtime", "sts")]
# Name → pattern of the hosts that lead to the fakes
LED = {host: re.escape(host) for host in (ANTHROPIC, OPENAI, CHATGPT, GOOGLE, GOOGLE_EU)}
LED |= {AWS_REGION: rf"[a-z-]+\.{AWS_REGION}\.amazonaws\.com"}


# -- the columns -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Entry:
    """How a pair is entered. `at` is the fake's property with its base URL, "" for `led`, the key
    in `LED` of the provider's own host; `wrong` is a secret that the provider refuses."""

    at: str = ""
    led: str = ""
    secret: Mapping[str, str] | None = None
    wrong: Mapping[str, str] | None = None
    fields: Mapping[str, str] | None = None
    variant: str = ""
    prefix: str = ""  # of the model ids
    sent_as: str = ""  # what the provider is given, where that isn't a token of an hour


KEY: dict[str, Any] = {
    "secret": {"api_key": GOOD_KEY},
    "wrong": {"api_key": "sk-wrong-but-long-enough-0123456789"},
    "sent_as": GOOD_KEY,
}
IAM = {
    "access_key_id": bedrock.SESSION_ACCESS_KEY,
    "secret_access_key": bedrock.SESSION_SECRET_KEY,
    "session_token": bedrock.SESSION_TOKEN,
}
IN_AWS = {"aws_region": AWS_REGION}
AT_GOOGLE = {"gcp_project_id": PROJECT, "gcp_region": "us-east4"}
AT_GOOGLE_EU = {"gcp_project_id": PROJECT, "gcp_region": "europe-west1"}
ACCOUNT: dict[str, Any] = {
    "at": "vertex",
    "secret": {"service_account_json": service_account()},
    "wrong": {"service_account_json": service_account("deleted")},
    "fields": AT_GOOGLE,
}
# The environment of the worker, for all connections of `environment`.
LENT = {
    "PATCHBAY_ENVIRONMENT_AUTH": "all",
    "ANTHROPIC_API_KEY": f"{GOOD_KEY}-anthropic",
    "OPENAI_API_KEY": f"{GOOD_KEY}-openai",
    "AWS_ACCESS_KEY_ID": bedrock.ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": bedrock.SECRET_KEY,
}
OPENAI_WIRE = {"custom_endpoint_api": "openai-completions"}
ANTHROPIC_WIRE = {"custom_endpoint_api": "anthropic-messages"}

P, A = ProviderType, AuthType
ENTRIES: dict[tuple[ProviderType, AuthType], tuple[Entry, ...]] = {
    (P.ANTHROPIC, A.API_KEY): (Entry("anthropic", **KEY),),
    (P.ANTHROPIC, A.OAUTH): (Entry("anthropic_oauth"),),
    (P.ANTHROPIC, A.ENVIRONMENT): (Entry(led=ANTHROPIC, sent_as=LENT["ANTHROPIC_API_KEY"]),),
    (P.ANTHROPIC_COMPAT, A.API_KEY_WITH_ENDPOINT): (
        Entry("anthropic", **KEY),
        Entry("openai", **KEY, fields=OPENAI_WIRE, variant="openai-completions"),
    ),
    (P.ANTHROPIC_COMPAT, A.NONE): (
        Entry("anthropic_nokey"),
        Entry("openai_nokey", fields=OPENAI_WIRE, variant="openai-completions"),
    ),
    (P.OPENAI, A.API_KEY): (Entry("openai", **KEY),),
    (P.OPENAI, A.API_KEY_WITH_ENDPOINT): (Entry("openai", **KEY),),
    (P.OPENAI, A.OAUTH): (Entry(led=CHATGPT),),
    (P.OPENAI, A.ENVIRONMENT): (Entry(led=OPENAI, sent_as=LENT["OPENAI_API_KEY"]),),
    (P.OPENAI_COMPAT, A.API_KEY_WITH_ENDPOINT): (
        Entry("openai", **KEY),
        Entry("anthropic", **KEY, fields=ANTHROPIC_WIRE, variant="anthropic-messages"),
    ),
    (P.OPENAI_COMPAT, A.NONE): (
        Entry("openai_nokey"),
        Entry("anthropic_nokey", fields=ANTHROPIC_WIRE, variant="anthropic-messages"),
    ),
    (P.BEDROCK, A.IAM_CREDENTIALS): (
        Entry(
            "bedrock",
            secret=IAM,
            wrong=IAM | {"secret_access_key": "wrong/but/long/enough/0123456789"},
            fields=IN_AWS,
            sent_as=IAM["access_key_id"],
        ),
    ),
    (P.BEDROCK, A.API_KEY): (Entry("bedrock", **KEY, fields=IN_AWS),),
    (P.BEDROCK, A.ENVIRONMENT): (
        Entry(led=AWS_REGION, fields=IN_AWS, sent_as=LENT["AWS_ACCESS_KEY_ID"]),
    ),
    (P.VERTEX, A.SERVICE_ACCOUNT_FILE): (
        Entry(**ACCOUNT, variant="gemini", prefix="gemini-"),
        Entry(**ACCOUNT, variant="claude", prefix="anthropic/"),
    ),
    (P.VERTEX, A.ENVIRONMENT): (
        Entry(led=GOOGLE, fields=AT_GOOGLE, variant="gemini", prefix="gemini-"),
        Entry(led=GOOGLE_EU, fields=AT_GOOGLE_EU, variant="claude", prefix="anthropic/"),
    ),
}


@dataclass(frozen=True, eq=False)
class Column:
    provider: ProviderType
    auth: AuthType
    entry: Entry | None

    def __str__(self) -> str:
        name = f"{self.provider}-{self.auth}"
        return f"{name}-{self.entry.variant}" if self.entry and self.entry.variant else name

    @property
    def slug(self) -> str:
        return str(self).replace("_", "-")

    @property
    def on_codex(self) -> bool:
        return self.provider is P.OPENAI

    def model(self, behaviour: str) -> str:
        return f"{self.entry.prefix}{behaviour}"


COLUMNS = [
    Column(provider, auth, entry)
    for provider, auths in ALLOWED_AUTH.items()
    for auth in auths
    for entry in ENTRIES.get((provider, auth), (None,))
]

# -- the failures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """`model` is the default model that fails so, "" where something else is changed."""

    model: str
    kind: str
    title: str  # in the list
    words: str  # on the connection's page


FAILURES = {
    "unauthorized": Failure(
        "err-401",
        "auth",
        "Key rejected",
        "The provider rejected this key. Paste a new key and validate again.",
    ),
    "forbidden": Failure(
        "err-403",
        "forbidden",
        "Not permitted",
        "The provider knows the key, but doesn't permit this. Give the key access to the model in "
        "the provider's console, then validate again.",
    ),
    "model_not_found": Failure(
        "err-404",
        "model_not_found",
        "Model not found",
        "The provider doesn't have this model, or not for this key. Check the model's id and the "
        "connection's list of models.",
    ),
    "rate_limited": Failure(
        "err-429-after-7",
        "rate_limited",
        "Rate limited",
        "The provider takes no more requests from this key for now. Try again in a moment.",
    ),
    "quota": Failure(
        "err-quota",
        "quota",
        "Quota used up",
        "The account at the provider has no credit or quota left. Add credit or raise the limit in "
        "the provider's console.",
    ),
    "context_too_long": Failure(
        "err-400-context",
        "context_too_long",
        "Context too long",
        "The conversation no longer fits the model's context window. Start a new session, or "
        "choose a model with a larger window.",
    ),
    "server_error": Failure(
        "err-500",
        "server",
        "Provider error",
        "The provider had a fault of its own. Try again in a moment; its status page may say more.",
    ),
    "not_json": Failure(
        "html",
        "protocol",
        "Unreadable answer",
        "The server's answer isn't what this wire format asks for. Check the base URL and the wire "
        "format.",
    ),
    "refused": Failure(
        "",
        "connect",
        "Unreachable",
        "No connection to the provider's server could be made. Check the host and port of the base "
        "URL, and that the server is running.",
    ),
}
# Where nobody can paste a key: (auth type, failure) → (kind, title, words).
OTHERWISE = {
    (A.IAM_CREDENTIALS, "unauthorized"): (
        "auth",
        "Credentials rejected",
        "AWS rejected these IAM credentials: wrong, deactivated or expired. Enter the access key "
        "again, with its session token if it is temporary, then validate.",
    ),
    (A.IAM_CREDENTIALS, "forbidden"): (
        "forbidden",
        "Not permitted",
        "AWS knows these IAM credentials, but doesn't permit this. Allow "
        "bedrock:InvokeModelWithResponseStream on the model in IAM, then validate again.",
    ),
    (A.ENVIRONMENT, "unauthorized"): (
        "auth",
        "Credentials rejected",
        "The server's own credentials are missing or expired, or the provider rejected them. Have "
        "the operator renew them in the worker's environment, then validate again.",
    ),
    (A.ENVIRONMENT, "forbidden"): (
        "forbidden",
        "Not permitted",
        "The provider knows the server's own credentials, but doesn't permit this. Give the "
        "server's account or role access to the model, then validate again.",
    ),
    (A.OAUTH, "unauthorized"): (
        "auth",
        "Sign in again",
        "The provider doesn't take this connection's sign-in any more. Sign in again on the "
        "connection's page.",
    ),
    (A.OAUTH, "forbidden"): (
        "forbidden",
        "Not permitted",
        "The provider knows this connection's sign-in, but doesn't permit this. Choose a model "
        "that the account's plan has, or sign in with another account.",
    ),
    (A.NONE, "unauthorized"): (
        "auth",
        "Key wanted",
        "The server wants a key, and this connection has none. Set its authentication to an API "
        "key with endpoint, enter the key, and validate again.",
    ),
}


def failure_of(column: Column, name: str) -> Failure:
    failure = FAILURES[name]
    if (other := OTHERWISE.get((column.auth, name))) is not None:
        return Failure(failure.model, *other)
    return failure


MODELS = [
    *("echo", "fast-60tps-60", "held", "held-tools", "thinking-tools", "vision"),
    *("cached", *(failure.model for failure in FAILURES.values() if failure.model)),
]

# -- what runs -------------------------------------------------------------------------------------


class Rig:
    """The running server, with what it can be signed in to and where the hosts' names lead."""

    def __init__(self, folder: Path, fakes: FakeProviders) -> None:
        self.fakes = fakes
        self.device = DeviceIssuer()
        fakes.on_loop(self.device.__aenter__())
        self._refusing = socket.socket()  # bound, and nobody listens
        self._refusing.bind(("127.0.0.1", 0))
        self.closed: int = self._refusing.getsockname()[1]
        pem = folder / "fakes.pem"
        pem.write_bytes(certificate(ANTHROPIC, OPENAI, CHATGPT, GOOGLE, GOOGLE_EU, *AWS))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._tls = fakes.serve_tls(context)
        self._leads, self._shut = folder / "leads", set[str]()
        self._lock = threading.Lock()
        self._lead()
        google = folder / "google.json"
        google.write_text(service_account(token_uri=fakes.google_token))
        self.parts = Parts(folder / "parts", fakes)
        self.parts.env |= LENT | fakes.oauth_env()
        self.parts.env |= {
            "DJANGO_SETTINGS_MODULE": "tests.system.led",
            "LEADS": str(self._leads),
            "SSL_CERT_FILE": str(pem),
            "GOOGLE_APPLICATION_CREDENTIALS": str(google),
            "PATCHBAY_GOOGLE_TOKEN_URL": fakes.google_token,
            "PATCHBAY_OAUTH_OPENAI_CLIENT_ID": "ours",
            "PATCHBAY_OAUTH_OPENAI_ISSUER": self.device.url,
        }

    def close(self) -> None:
        self.fakes.on_loop(self.device.__aexit__())
        self._refusing.close()

    def shut(self, led: str, *, shut: bool = True) -> None:
        """Whether a host's port refuses connections."""
        with self._lock:
            (self._shut.add if shut else self._shut.discard)(led)
            self._lead()

    def _lead(self) -> None:
        leads = [
            (pattern, self.closed if led in self._shut else self._tls)
            for led, pattern in LED.items()
        ]
        new = self._leads.with_suffix(".new")
        new.write_text(json.dumps(leads))
        new.replace(self._leads)

    # -- one connection --------------------------------------------------------------------------

    def configure(self, column: Column, slug: str, **changes: str) -> None:
        """Through the form, signed in where that is the way."""
        entry = column.entry
        data = {
            "name": slug,
            "slug": slug,
            "provider_type": column.provider.value,
            "auth_type": column.auth.value,
            "base_url": getattr(self.fakes, entry.at) if entry.at else "",
            "models": "\n".join(column.model(one) for one in MODELS),
            "default_model": column.model("echo"),
            "supports_images": "true",
            **(entry.fields or {}),
            **(entry.secret or {}),
            **changes,
        }
        answer = self.parts.admin.post("/connections/new/", data=data)
        assert answer.status_code == 303, plain(answer.text)
        if column.auth is A.OAUTH:
            by_code = column.provider is P.ANTHROPIC
            (self._sign_in_by_code if by_code else self._sign_in_by_device)(slug)

    def edit(self, slug: str, **changes: str) -> None:
        answer = self.parts.admin.post(f"/connections/{slug}/edit/", data=changes)
        assert answer.status_code == 303, plain(answer.text)

    def page(self, slug: str) -> str:
        return self.parts.admin.get(f"/connections/{slug}/").text

    def _sign_in_by_code(self, slug: str) -> None:
        admin = self.parts.admin
        assert admin.post(f"/connections/{slug}/sign-in/").status_code == 303
        html = self.page(slug)
        url = unescape(re.search(r'href="([^"]*/issuer/authorize[^"]*)"', html)[1])
        attempt = re.search(r'name="attempt" value="([^"]+)"', html)[1]
        data = {"attempt": attempt, "code": self.fakes.issuer.agree(url)}
        answer = admin.post(f"/connections/{slug}/sign-in/finish/", data=data)
        assert answer.status_code == 303, plain(answer.text)
        assert "Personal login: dana@example.com" in self.page(slug)

    def _sign_in_by_device(self, slug: str) -> None:
        assert self.parts.admin.post(f"/connections/{slug}/sign-in/").status_code == 303
        wait_for(lambda: self.device.code in self.page(slug), SECONDS, "the code is shown")
        self.device.approve()
        wait_for(
            lambda: "Personal login: carol@example.com" in self.page(slug), SECONDS, "signed in"
        )

    def probed(self, slug: str) -> dict[str, Any]:
        """The probe of the connection as it is now, once it has ended."""
        sql = (
            "SELECT p.passed, p.error_kind, p.rungs FROM connections_proberesult p"
            " JOIN connections_connection c ON c.id = p.connection_id AND c.revision = p.revision"
            " WHERE c.slug = ? AND p.finished_at IS NOT NULL AND c.checking_until IS NULL"
            " ORDER BY p.finished_at DESC"
        )
        found = wait_for(lambda: self.parts.rows(sql, slug), SECONDS, f"{slug} is validated")
        return found[0]

    def check(self, slug: str, status: str, title: str, words: str) -> None:
        """What people see of a connection: its row in the list, and its page."""
        row = self.parts.admin.get(f"/connections/{slug}/row/").text
        assert re.search(r'data-status="([a-z]*)"', row)[1] == status, plain(row)
        assert title in plain(row)
        html = self.page(slug)
        assert re.search(r'id="health" data-status="([a-z]*)"', html)[1] == status
        assert words in plain(html)

    def behave(self, slug: str, behaviour: str) -> None:
        address = f"/connections/{slug}/mid-stream/"
        answer = self.parts.admin.post(address, data={"mid_stream_behavior": behaviour})
        assert answer.status_code == 303, plain(answer.text)

    @contextlib.contextmanager
    def holding(self, text: str) -> Iterator[None]:
        """The model `held` says `WAITING` to this text, and the rest afterwards."""
        self.fakes.hold(text)
        try:
            yield
        finally:
            self.fakes.release(text)

    def chat(self, column: Column, behaviour: str) -> Chat:
        return Chat(self.parts, column.model(behaviour), connection=column.slug)


# -- the cells -------------------------------------------------------------------------------------


def configure(rig: Rig, column: Column) -> None:
    rig.configure(column, column.slug)
    html = rig.page(column.slug)
    assert f"{column.provider.label} · {column.auth.label}" in plain(html)
    html += rig.parts.admin.get(f"/connections/{column.slug}/edit/").text
    secrets = [*(column.entry.secret or {}).values(), LENT["ANTHROPIC_API_KEY"], rig.device.code]
    assert not [secret for secret in secrets if secret in html]


def validate_ok(rig: Rig, column: Column) -> None:
    probe = rig.probed(column.slug)
    assert probe["passed"], probe
    rungs = {one["rung"]: one["outcome"] for one in json.loads(probe["rungs"])}
    assert {rungs[name] for name in ("config", "network", "auth", "answer", "stream")} == {"passed"}
    rig.check(column.slug, "valid", "Valid", "Streaming")


def validate_failure(name: str, rig: Rig, column: Column) -> None:
    slug, entry, failure = column.slug, column.entry, failure_of(column, name)
    if name == "refused":
        if entry.led:
            rig.shut(entry.led)
            rig.parts.admin.post(f"/connections/{slug}/validate/")
            wait_for(lambda: rig.probed(slug)["error_kind"], SECONDS, "the new probe has ended")
        else:
            slug = f"{slug}-shut"
            rig.configure(column, slug, base_url=f"http://127.0.0.1:{rig.closed}/v1")
    elif name == "unauthorized" and entry.wrong:
        rig.edit(slug, **entry.wrong)
    else:
        rig.edit(slug, default_model=column.model(failure.model))
    probe = rig.probed(slug)
    try:
        assert (probe["passed"], probe["error_kind"]) == (False, failure.kind), probe["rungs"]
        rig.check(slug, "failed", failure.title, failure.words)
    finally:
        if name == "refused" and entry.led:
            rig.shut(entry.led, shut=False)
        elif name == "unauthorized" and entry.wrong:
            rig.edit(slug, **entry.secret)


def stream(rig: Rig, column: Column) -> None:
    """What comes is shown while more is to come, and what was shown is kept; the provider was given
    the connection's own credentials."""
    text = f"{column}: stream"
    chat = rig.chat(column, "held")
    page = Page(chat)
    with rig.holding(text):
        chat.send(text)
        page.follow(lambda page: page.messages() and page.text() == WAITING, seconds=SECONDS)
        assert page.state == "running"
    page.follow(lambda page: page.state == "done", seconds=SECONDS)
    assert page.text() == f"{WAITING} Done after 0 tool rounds."
    assert page.rebuilds == 0
    assert Page(chat).text() == page.text()
    [record] = rig.fakes.requests(last_user=text)
    if column.auth is A.OAUTH:
        given = rig.device.tokens.values() if column.on_codex else rig.fakes.issuer.given
        assert record["key"] in map(key_hash, given)
    elif column.entry.sent_as:
        assert record["key"] == key_hash(column.entry.sent_as)
    if column.entry.led:
        assert re.fullmatch(LED[column.entry.led], record["headers"]["host"])


def tool_loop(rig: Rig, column: Column) -> None:
    text = f"{column}: what time is it?"
    if column.on_codex:
        chat = rig.chat(column, "thinking-tools")
        fresh = plain(chat.client.get(chat.url).text)
        assert "Workspace tools don't apply on this connection" in fresh
        chat.send(text)
        chat.wait_until_idle(SECONDS)
        assert chat.reply(1) == "Done after 0 tool rounds."
        # A request with `tools` or `additional_tools` would have been refused by the fake.
        assert [one["tools"] for one in rig.fakes.requests(last_user=text)] == [[]]
        return
    chat = rig.chat(column, "thinking-tools")
    page = Page(chat)
    chat.send(text)
    page.follow(lambda page: page.state == "done", seconds=SECONDS)
    kinds = [block.kind for message in page.messages() for block in message.blocks]
    assert (kinds.count("tool"), kinds[-1]) == (1, "text")
    assert "thinking" in kinds
    assert "Done after 1 tool rounds." in page.text()
    first, second = rig.fakes.requests(last_user=text)
    assert "current_time" in first["tools"]
    assert (len(first["results"]), len(second["results"])) == (0, 1)
    # The next turn sends all of it back, signatures and all, to fakes that look at them.
    chat.send("and now?")
    chat.wait_until_idle(SECONDS)
    assert chat.states() == ["done", "done"], chat.turns()[-1]["error_detail"]


def steer(rig: Rig, column: Column) -> None:
    rig.behave(column.slug, "steer")
    chat = rig.chat(column, "held-tools")
    text, added = f"{column}: steer", f"{column}: be brief"
    with rig.holding(text):
        chat.send(text)
        chat.wait_for_reply(len(WAITING))
        chat.send(added)
        assert [one["delivery"] for one in chat.messages()] == ["sent", "steering"]
    chat.wait_until_idle(SECONDS)
    assert chat.states() == ["done"]
    said = [(one["text"], one["delivery"], one["number"]) for one in chat.messages()]
    assert said == [(text, "sent", 1), (added, "delivered", 1)]
    if column.on_codex:  # native, with its receipt: a second reply within the turn
        assert [one["end"] for one in rig.fakes.requests(last_user=text)] == ["done"]
        assert len(rig.fakes.requests(last_user=added)) == 1
    else:
        assert f"You added: {added}" in chat.reply(1)


def queue(rig: Rig, column: Column) -> None:
    rig.behave(column.slug, "queue")
    chat = rig.chat(column, "held")
    texts = [f"{column}: {word}" for word in ("first", "second", "third")]
    with rig.holding(texts[0]):
        chat.send(texts[0])
        chat.wait_for_reply(len(WAITING))
        for text in texts[1:]:
            chat.send(text)
        assert [one["delivery"] for one in chat.messages()] == ["sent", "queued", "queued"]
    chat.wait_until_idle(SECONDS)
    assert chat.states() == ["done"] * 3
    assert chat.transcript() == texts
    assert [len(rig.fakes.requests(last_user=text)) for text in texts] == [1, 1, 1]


def stop(rig: Rig, column: Column) -> None:
    chat, text = rig.chat(column, "held"), f"{column}: stop"
    with rig.holding(text):
        chat.send(text)
        chat.wait_for_reply(len(WAITING))
        chat.post("stop")
        [record] = wait_for(
            lambda: [one for one in rig.fakes.requests(last_user=text) if one["end"]],
            SECONDS,
            "the provider's stream has ended",
        )
        assert record["end"] == "aborted"
    chat.wait_until_idle(SECONDS)
    assert chat.states() == ["stopped"]
    assert chat.reply(1) == WAITING


def image(rig: Rig, column: Column) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    chat = rig.chat(column, "vision")
    answer = chat.client.post(
        f"{chat.url}send/",
        data={"text": f"{column}: look", "client_key": uuid.uuid4().hex},
        files={"images": ("red.png", picture.getvalue(), "image/png")},
    )
    assert answer.status_code == 303, plain(answer.text)
    chat.wait_until_idle(SECONDS)
    assert chat.reply(1) == "I see 1 images: image/png."


def usage(rig: Rig, column: Column) -> None:
    """What the provider counted is kept for the turn and shown."""
    chat = rig.chat(column, "cached")
    chat.send(f"{column}: how much?")
    chat.wait_until_idle(SECONDS)
    [turn] = chat.turns()
    assert (turn["output_tokens"], turn["cache_read_tokens"]) == (7, 200), turn
    assert turn["input_tokens"] > 0
    shown = plain(chat.client.get(chat.url).text)
    assert "7 tokens" in shown
    assert "as the provider counted them" in unescape(chat.client.get(chat.url).text)


CELLS: dict[str, Callable[[Rig, Column], None]] = {
    "configure": configure,
    "validate_ok": validate_ok,
    "stream": stream,
    "tool_loop": tool_loop,
    "steer": steer,
    "queue": queue,
    "stop": stop,
    "image": image,
    "usage": usage,
    **{
        f"validate_{name}": functools.partial(validate_failure, name)
        # last, as it may end a sign-in
        for name in sorted(FAILURES, key="unauthorized".__eq__)
    },
}


# -- the table -------------------------------------------------------------------------------------

Wanted = dict[Column, list[str]]


class Table:
    """Runs the cells that are wanted, and keeps how each of them ended."""

    def __init__(self, rig: Rig, wanted: Wanted, pool: ThreadPoolExecutor) -> None:
        self.rig, self.stopped = rig, threading.Event()
        self.outcomes: dict[tuple[str, str], Future[None]] = {
            (str(column), cell): Future() for column, cells in wanted.items() for cell in cells
        }
        for column, cells in wanted.items():
            pool.submit(self._run, column, cells)

    def _run(self, column: Column, cells: list[str]) -> None:
        unconfigured: BaseException | None = None
        for cell in dict.fromkeys(["configure", *(cell for cell in CELLS if cell in cells)]):
            outcome = self.outcomes.get((str(column), cell), Future())
            try:
                if unconfigured or self.stopped.is_set():
                    raise AssertionError("the column could not be used") from unconfigured
                CELLS[cell](self.rig, column)
            except BaseException as failure:
                outcome.set_exception(failure)
                if cell == "configure":
                    unconfigured = failure
            else:
                outcome.set_result(None)


@pytest.fixture(scope="module")
def table(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    static_files: None,
) -> Iterator[Table]:
    wanted: Wanted = {}
    for item in request.session.items:
        if item.path == request.path and isinstance(item, pytest.Function):
            about = item.callspec.params if hasattr(item, "callspec") else {}
            if about.get("column") and about["column"].entry:
                wanted.setdefault(about["column"], []).append(about["cell"])
    with FakeProviders() as fakes:
        rig = Rig(tmp_path_factory.mktemp("table"), fakes)
        try:
            with rig.parts, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                made = Table(rig, wanted, pool)
                try:
                    yield made
                finally:
                    made.stopped.set()
        finally:
            rig.close()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_cell(table: Table, column: Column, cell: str) -> None:
    assert column.entry is not None, "a pair of ALLOWED_AUTH without an entry in ENTRIES"
    table.outcomes[str(column), cell].result()


def test_no_secret_is_in_what_was_written_and_no_fault_is_unexpected(table: Table) -> None:
    """After all of the cells: the log, the database with its journal, attachments, homes."""
    wait(table.outcomes.values())
    parts, account = table.rig.parts, json.loads(service_account())
    secrets = [GOOD_KEY, *IAM.values(), LENT["AWS_SECRET_ACCESS_KEY"], account["private_key_id"]]
    secrets += [account["private_key"].splitlines()[3], "ya29.", *table.rig.fakes.issuer.given]
    secrets += [*table.rig.device.tokens.values(), KEY["wrong"]["api_key"]]
    files = [parts.log, *(file for file in parts.data.rglob("*") if file.is_file())]
    assert parts.database in files
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # a journal that was just closed
            written = file.read_bytes()
            found = [secret for secret in secrets if secret.encode() in written]
            assert not found, file
    assert "Traceback" not in parts.output(), parts.output()[-6000:]


def test_the_table_has_no_hole() -> None:
    pairs = {(provider, auth) for provider, auths in ALLOWED_AUTH.items() for auth in auths}
    assert set(ENTRIES) == pairs
    assert len({str(column) for column in COLUMNS}) == len(COLUMNS) >= len(pairs)
