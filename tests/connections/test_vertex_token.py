"""Google's tokens: minted for a service account's key only, once, and kept until shortly before
their end; the server's own credentials only where the operator lends them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import socket
import traceback

import google.auth
import httpx
import pytest
from google.auth import exceptions as google_errors

from config import env
from connections import providers
from connections.ladder import Subject, climb, subject_of
from connections.models import Connection
from connections.providers import google_token
from connections.providers.base import ErrorKind, ProviderError
from connections.sentences import Reason
from connections.targets import target_of
from tests.builders import make_secret
from tests.connections.vertex import target
from tests.connections.wires import Chunks, answering, asking, canned, client, replies, text_of
from tests.fakes.server import key_hash
from tests.fakes.vertex import PROJECT, service_account
from workspaces.egress import Policy, guarded_client


@pytest.fixture(autouse=True)
def fresh(fakes, monkeypatch):
    google_token._kept.clear()
    monkeypatch.setattr(google_token, "_credentials", None)
    fakes.reset()


def mints(fakes) -> int:
    return len(fakes.requests(path="/google/token"))


async def failure(where) -> ProviderError:
    async with client() as http:
        with pytest.raises(ProviderError) as caught:
            await google_token.token_for(http, where)
    return caught.value


# -- minting ---------------------------------------------------------------------------------------


async def test_a_token_is_minted_once_and_goes_with_every_call(fakes):
    async with client() as http:
        for model in ("echo", "anthropic/echo", "echo"):
            events, error = await replies(http, target(fakes), asking(model))
            assert (text_of(events), error) == ("hello there", None)
        token = await google_token.token_for(http, target(fakes))
    assert mints(fakes) == 1
    calls = [one for one in fakes.requests() if one["path"] != "/google/token"]
    assert {one["key"] for one in calls} == {key_hash(token.value)}
    assert not any("x-goog-user-project" in one["headers"] for one in calls)
    assert token.value not in repr(token)


async def test_twenty_turns_at_once_mint_one_token(fakes):
    where = target(fakes, "slow")
    async with client() as http:
        found = await asyncio.gather(
            *(replies(http, where, asking("echo", f"turn {n}")) for n in range(20))
        )
    assert [text_of(events) for events, _ in found] == [f"turn {n}" for n in range(20)]
    assert mints(fakes) == 1


async def test_twenty_turns_at_once_share_a_refusal(fakes):
    where = target(fakes, "deleted")
    async with client() as http:
        found = await asyncio.gather(*(replies(http, where, asking("echo")) for _ in range(20)))
        assert {error.kind for _, error in found} == {ErrorKind.AUTH}
        assert mints(fakes) == 1
        await replies(http, where, asking("echo"))  # who comes later asks again
    assert mints(fakes) == 2


async def test_who_waits_goes_on_when_the_one_who_mints_is_stopped(fakes):
    where = target(fakes, "slow")
    async with client() as http:
        first = asyncio.create_task(google_token.token_for(http, where))
        await asyncio.to_thread(fakes.wait_for, lambda: mints(fakes))
        second = asyncio.create_task(google_token.token_for(http, where))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).value.startswith("ya29.")
    assert first.cancelled()


async def test_each_key_has_its_token(fakes):
    async with client() as http:
        one = await google_token.token_for(http, target(fakes))
        other = await google_token.token_for(http, target(fakes, "unlisted"))
    assert one.value != other.value
    assert mints(fakes) == 2


async def test_a_token_is_renewed_shortly_before_its_end(fakes, monkeypatch):
    where, now = target(fakes), google_token.time.time()
    async with client() as http:
        one = await google_token.token_for(http, where)
        assert 3300 < one.fresh_until - now < 3599 - 200
        monkeypatch.setattr(google_token.time, "time", lambda: one.fresh_until - 1)
        assert await google_token.token_for(http, where) is one
        monkeypatch.undo()
        google_token._kept[google_token._name(where)] = google_token.Token(one.value, now - 1)
        assert (await google_token.token_for(http, where)).value != one.value
    assert mints(fakes) == 2


async def test_a_token_that_google_voids_is_forgotten(fakes):
    async with client() as http:
        await replies(http, target(fakes), asking("echo"))
        fakes.revoke_tokens()
        _, error = await replies(http, target(fakes), asking("echo"))
        assert (error.kind, error.code) == (ErrorKind.AUTH, "ACCESS_TOKEN_EXPIRED")
        events, error = await replies(http, target(fakes), asking("echo"))
    assert (text_of(events), error) == ("hello there", None)


async def test_what_is_kept_has_a_bound(fakes, monkeypatch):
    monkeypatch.setattr(google_token, "MAX_KEPT", 2)
    async with client() as http:
        for account in ("good", "unlisted", "denied"):
            await google_token.token_for(http, target(fakes, account))
    assert len(google_token._kept) == 2


# -- how minting fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("account", "kind", "words"),
    [
        ("deleted", "auth", "it may have been deleted"),
        ("nobody", "auth", "account not found"),
        ("busy", "server", "internal_failure"),
    ],
)
async def test_googles_refusal_has_a_kind_and_words(fakes, account, kind, words):
    error = await failure(target(fakes, account))
    assert error.kind == kind
    assert words in error.message
    assert error.retry_after == (7 if account == "busy" else None)


async def test_another_key_than_the_accounts_is_refused(fakes):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    file = service_account(private_key=key.decode())
    error = await failure(target(fakes, secret={"service_account_json": file}))
    assert (error.kind, error.code) == (ErrorKind.AUTH, "invalid_grant")
    assert "Invalid JWT Signature." in error.message


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://127.0.0.1:9/token", "connect"),
        ("http://no-such-host.example/token", "connect"),
        ("http://169.254.169.254/token", "egress"),
    ],
)
async def test_a_token_endpoint_that_cannot_be_reached(fakes, url, kind):
    assert (await failure(target(fakes, token_url=url))).kind == kind


async def test_a_token_endpoint_without_tls_is_a_tls_error(fakes):
    url = fakes.google_token.replace("http://", "https://")
    assert (await failure(target(fakes, token_url=url))).kind is ErrorKind.TLS


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>", "protocol"),
        (200, b"[]", "protocol"),
        (200, b'{"access_token": 5}', "protocol"),
        (200, b'{"access_token": "a\\nb"}', "protocol"),
        (200, b'{"access_token": "schl\xc3\xbcssel"}', "protocol"),
        (200, b"x" * 70_000, "protocol"),
        (302, b"", "redirect"),
        (307, b"", "redirect"),
        (400, b'{"error": "invalid_client"}', "auth"),
        (401, b'{"error": "unauthorized_client"}', "auth"),
        (400, b'{"error": "invalid_scope", "error_description": 5}', "auth"),
        (400, b'{"error": "invalid_request"}', "bad_request"),
        (403, b'{"error": {"status": "PERMISSION_DENIED", "message": "no"}}', "forbidden"),
        (429, b"", "rate_limited"),
        (503, b"<html>", "overloaded"),
        (500, b'{"error": "internal_failure"}', "server"),
    ],
)
async def test_an_odd_answer_of_the_token_endpoint_has_a_kind(fakes, status, body, kind):
    asked: list[httpx.Request] = []
    async with answering(
        asked, body, status=status, headers={"location": "https://evil.example"}
    ) as http:
        with pytest.raises(ProviderError) as caught:
            await google_token.token_for(http, target(fakes, token_url=""))
    assert caught.value.kind == kind
    assert [str(one.url) for one in asked] == ["https://oauth2.googleapis.com/token"]


@pytest.mark.parametrize("seconds", [None, "soon", -5, 10**9, 0])
async def test_an_odd_lifetime_counts_as_an_hour(fakes, seconds):
    body = json.dumps({"access_token": "ya29.x", "expires_in": seconds}).encode()
    async with canned(body) as http:
        token = await google_token.token_for(http, target(fakes))
    assert 3000 < token.fresh_until - google_token.time.time() < 3600


async def test_silence_of_the_token_endpoint_is_a_timeout(fakes, monkeypatch):
    monkeypatch.setattr(google_token, "SECONDS", 0.1)
    assert (await failure(target(fakes, "slow"))).kind is ErrorKind.TIMEOUT


async def test_no_failure_quotes_the_key_or_the_assertion(fakes, caplog):
    caplog.set_level(logging.DEBUG)

    def answer(request: httpx.Request) -> httpx.Response:
        said.append(request.content.decode())
        quoted = json.dumps({"error": "invalid_grant", "error_description": said[0]})
        return httpx.Response(400, stream=Chunks([quoted.encode()]))

    said: list[str] = []
    file = service_account()
    key_line = json.loads(file)["private_key"].splitlines()[2]
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        with pytest.raises(ProviderError) as caught:
            await google_token.token_for(http, target(fakes))
    written = "".join(traceback.format_exception(caught.value)) + caught.value.message + caplog.text
    assertion = said[0].partition("assertion=")[2]
    assert len(assertion) > 500
    assert not any(assertion[at : at + 20] in written for at in range(0, 500, 20))
    assert key_line not in written


# -- only a service account's key, only Google's endpoint (E4) -------------------------------------

BAD_FILES = {
    "another type": {"type": "external_account"},
    "a person's": {"type": "authorized_user", "refresh_token": "x"},
    "a foreign endpoint": {"token_uri": "https://evil.example/token"},
    "no endpoint": {"token_uri": ""},
    "a foreign universe": {"universe_domain": "evil.example"},
    "a file to read": {"credential_source": {"file": "/etc/passwd"}},
    "a program": {"credential_source": {"executable": {"command": "/bin/true"}}},
    "an address to ask": {"service_account_impersonation_url": "https://evil.example"},
    "a number as the key": {"private_key": 5},
    "no key": {"private_key": ""},
    "no account": {"client_email": ""},
    "a key that is none": {"private_key": "-----BEGIN PRIVATE KEY-----\nno\n-----END-----\n"},
    "a path as the key": {"private_key": "/etc/ssl/private/key.pem"},
}


@pytest.mark.parametrize("change", BAD_FILES.values(), ids=BAD_FILES)
async def test_a_file_of_another_kind_is_refused_at_use_without_a_request(
    fakes, change, monkeypatch
):
    def opened(*arguments, **options):
        raise AssertionError(f"a file is read: {arguments}")

    file = json.dumps({**json.loads(service_account()), **change})
    where = target(fakes, secret={"service_account_json": file})
    async with client() as http:
        monkeypatch.setattr("builtins.open", opened)
        monkeypatch.setattr("subprocess.Popen", opened)
        with pytest.raises(ProviderError) as caught:
            await google_token.token_for(http, where)
        monkeypatch.undo()
    assert caught.value.kind is ErrorKind.AUTH
    assert fakes.requests() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"service_account"', "\ud800"])
async def test_what_is_no_file_at_all_is_refused(fakes, text):
    try:
        error = await failure(target(fakes, secret={"service_account_json": text}))
    except UnicodeEncodeError:
        pytest.fail("an unmapped exception")
    assert error.kind is ErrorKind.AUTH
    assert fakes.requests() == []


async def test_the_servers_own_variables_are_nothing_to_a_service_account(fakes, monkeypatch):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, "/nowhere/at/all.json")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "somebody-elses")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(google.auth, "default", lambda **_: pytest.fail("asked for"))
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("echo"))
    assert (text_of(events), error) == ("hello there", None)
    assert f"/projects/{PROJECT}/" in fakes.requests(model="echo")[0]["path"]


@pytest.mark.parametrize(
    "url",
    [
        "https://oauth2.googleapis.com/token",
        "http://example.com/token",
        "http://127.0.0.1.example.com:80/",
        "http://127.0.0.1@example.com:80/",
        "http://127.0.0.1:80@example.com/",
        "http://127.0.0.1/token",
        "file:///etc/passwd",
        "x",
    ],
)
def test_the_token_endpoint_moves_to_this_machine_only(monkeypatch, url):
    monkeypatch.setenv("PATCHBAY_GOOGLE_TOKEN_URL", url)
    with pytest.raises(env.BadEnv, match="PATCHBAY_GOOGLE_TOKEN_URL: use an address on this"):
        env.loopback_url("PATCHBAY_GOOGLE_TOKEN_URL")


def test_unset_the_token_endpoint_is_googles(monkeypatch):
    monkeypatch.delenv("PATCHBAY_GOOGLE_TOKEN_URL", raising=False)
    assert env.loopback_url("PATCHBAY_GOOGLE_TOKEN_URL") == ""
    monkeypatch.setenv("PATCHBAY_GOOGLE_TOKEN_URL", "http://127.0.0.1:8123/google/token")
    assert env.loopback_url("PATCHBAY_GOOGLE_TOKEN_URL") == "http://127.0.0.1:8123/google/token"


@pytest.mark.django_db
def test_a_connection_carries_the_setting_and_its_region_and_project(settings):
    settings.GOOGLE_TOKEN_URL = "http://127.0.0.1:8123/google/token"
    made = Connection.objects.create(
        slug="v",
        name="V",
        provider_type="vertex",
        auth_type="service_account_file",
        gcp_project_id=PROJECT,
        gcp_region="global",
        default_model="gemini-2.5-pro",
    )
    make_secret(made, {"service_account_json": service_account()})
    where = target_of(made)
    assert (where.token_url, where.project, where.region) == (
        "http://127.0.0.1:8123/google/token",
        PROJECT,
        "global",
    )
    assert "PRIVATE KEY" not in repr(where)


@pytest.mark.django_db
def test_the_servers_own_are_lent_by_the_operator_alone(settings, monkeypatch):
    monkeypatch.setattr(google.auth, "default", lambda **_: pytest.fail("asked for"))
    made = Connection.objects.create(
        slug="v",
        name="V",
        provider_type="vertex",
        auth_type="environment",
        default_model="gemini-2.5-pro",
    )
    settings.ENVIRONMENT_AUTH = frozenset({"bedrock"})
    assert subject_of(made).fault is Reason.ENVIRONMENT_OFF
    settings.ENVIRONMENT_AUTH = frozenset({"vertex"})
    assert subject_of(made).fault is None


# -- the server's own credentials ------------------------------------------------------------------


class Lent:
    """Credentials as google-auth finds them."""

    def __init__(self, token="ya29.lent", failure=None, project=None):
        self.token, self.failure, self.quota_project_id = None, failure, project
        self.expiry = None
        self._given = token

    def refresh(self, request):
        if self.failure:
            raise self.failure
        self.token = self._given
        self.expiry = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(hours=1)


def lend(monkeypatch, found):
    asked = []

    def default(**options):
        asked.append(options["scopes"])
        if isinstance(found, Exception):
            raise found
        return found, "somebody-elses"

    monkeypatch.setattr(google.auth, "default", default)
    return asked


def own(fakes, **more):
    return target(fakes, auth_type="environment", secret={}, **more)


async def test_lent_credentials_are_found_once_and_used(fakes, monkeypatch):
    asked = lend(monkeypatch, Lent(project="pays-for-it"))
    said: list[httpx.Request] = []
    event = b'data: {"candidates": [{"finishReason": "STOP"}]}\n\n'
    async with answering(said, event, headers={"content-type": "text/event-stream"}) as http:
        for _ in range(2):
            _, error = await replies(http, own(fakes, base_url=""), asking("gemini-2.5-pro"))
            assert error is None
    assert asked == [["https://www.googleapis.com/auth/cloud-platform"]]
    assert {one.headers["authorization"] for one in said} == {"Bearer ya29.lent"}
    assert {one.headers["x-goog-user-project"] for one in said} == {"pays-for-it"}
    assert {one.url.host for one in said} == {"us-central1-aiplatform.googleapis.com"}
    assert f"/projects/{PROJECT}/" in said[0].url.path


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (google_errors.DefaultCredentialsError("none"), "environment_empty"),
        (Lent(failure=google_errors.RefreshError("gone")), "auth"),
        (Lent(failure=google_errors.RefreshError("gone", retryable=True)), "server"),
        (Lent(failure=google_errors.TransportError("away")), "connect"),
        (Lent(failure=ValueError("odd")), "auth"),
        (Lent(failure=google_errors.MalformedError("odd")), "auth"),
        (OSError("unreadable"), "auth"),
        (Lent(token=None), "environment_empty"),
    ],
)
async def test_lent_credentials_that_fail_have_a_kind(fakes, monkeypatch, found, kind):
    lend(monkeypatch, found)
    assert (await failure(own(fakes))).kind == kind


async def test_looking_for_credentials_does_not_hold_the_loop(fakes, monkeypatch):
    import threading

    found = threading.Event()

    def default(**options):
        assert found.wait(10)
        return Lent(), None

    monkeypatch.setattr(google.auth, "default", default)
    async with client() as http:
        task = asyncio.create_task(google_token.token_for(http, own(fakes)))
        await asyncio.sleep(0.02)  # goes on
        found.set()
        assert (await task).value == "ya29.lent"


async def test_googles_own_chain_reads_the_file_that_the_operator_names(
    fakes, monkeypatch, tmp_path
):
    """With the real google-auth, which goes where the operator's file says."""
    file = tmp_path / "account.json"
    file.write_text(service_account(token_uri=fakes.google_token))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    async with client() as http:
        events, error = await replies(http, own(fakes), asking("echo"))
    assert (text_of(events), error) == ("hello there", None)
    assert mints(fakes) == 1


async def test_gclouds_own_file_is_read_and_gcloud_is_not_run(fakes, monkeypatch, tmp_path):
    """It would be run with the instance key in its environment, to learn a project."""
    file = json.loads(service_account(token_uri=fakes.google_token))
    del file["project_id"]
    (tmp_path / "application_default_credentials.json").write_text(json.dumps(file))
    program = tmp_path / "gcloud"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\necho a-project\n")
    program.chmod(0o755)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    async with client() as http:
        events, error = await replies(http, own(fakes), asking("echo"))
    assert (text_of(events), error) == ("hello there", None)
    assert not (tmp_path / "was-run").exists()


# -- the ladder ------------------------------------------------------------------------------------


def outcomes(results) -> str:
    marks = {"passed": "+", "failed": "-", "not_tested": "?"}
    return " ".join(f"{r.rung}:{marks[r.outcome]}{r.kind}" for r in results)


@pytest.mark.parametrize("model", ["gemini-echo", "claude-echo@20250101"])
@pytest.mark.parametrize(
    ("account", "expected"),
    [
        ("good", "config:+ network:+ auth:+ models:+ answer:+ stream:+"),
        ("unlisted", "config:+ network:+ auth:+ models:? answer:+ stream:+"),
        ("deleted", "config:+ network:+ auth:-auth models:? answer:? stream:?"),
        ("denied", "config:+ network:+ auth:-forbidden models:? answer:? stream:?"),
        ("busy", "config:+ network:+ auth:-server models:? answer:? stream:?"),
    ],
)
async def test_a_climb_says_where_it_stopped(fakes, account, model, expected):
    async with client() as http:
        subject = Subject(model, target(fakes, account), providers.get("vertex"))
        results = await climb(subject, client=http)
    assert outcomes(results) == expected
    assert "account not found" in results[2].detail or account != "deleted"


@pytest.mark.parametrize("model", ["gemini-nothing", "claude-nothing@20250101"])
async def test_a_model_that_is_not_there_is_found_by_the_answer(fakes, model):
    async with client() as http:
        subject = Subject(model, target(fakes), providers.get("vertex"))
        results = await climb(subject, client=http)
    assert outcomes(results) == (
        "config:+ network:+ auth:+ models:-model_not_found answer:? stream:?"
    )


@pytest.mark.parametrize(
    ("status", "word", "raised"),
    [
        (404, "NOT_FOUND", None),
        (400, "INVALID_ARGUMENT", None),
        (400, "FAILED_PRECONDITION", None),
        (403, "PERMISSION_DENIED", "forbidden"),
        (401, "UNAUTHENTICATED", "auth"),
        (503, "UNAVAILABLE", "overloaded"),
    ],
)
@pytest.mark.parametrize("model", ["gemini-2.5-pro", "claude-opus-4-6"])
async def test_counting_that_is_not_to_be_had_says_nothing_against_the_key(
    fakes, status, word, raised, model
):
    where = target(fakes)
    google_token._kept[google_token._name(where)] = google_token.Token("t" * 20, 1e12)
    body = json.dumps({"error": {"code": status, "message": "no", "status": word}}).encode()
    async with canned(body, status=status) as http:
        try:
            proven = await providers.get("vertex").check_auth(http, where, model)
        except ProviderError as error:
            assert error.kind == raised
        else:
            assert (proven, raised) == (True, None)


async def test_the_free_checks_cost_no_answer(fakes):
    async with client() as http:
        provider = providers.get("vertex")
        for model in ("gemini-echo", "claude-echo"):
            assert await provider.check_auth(http, target(fakes), model)
        listed = [one.id for one in await provider.list_models(http, target(fakes))]
    assert "gemini-tools" in listed
    assert "claude-tools@20250101" in listed
    assert not [one for one in listed if "embedding" in one or "imagen" in one]
    assert len(listed) == len(set(listed))
    verbs = {one["path"].rpartition(":")[2] for one in fakes.requests() if ":" in one["path"]}
    assert verbs == {"countTokens", "rawPredict"}


async def test_an_address_that_may_not_be_reached_gets_no_token(fakes, monkeypatch):
    """The guard stands before the call; the token was minted, and stays here."""
    connected = []
    real = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, where: (connected.append(where), real(self, where))
    )
    where = target(fakes, base_url="http://10.1.2.3")
    async with guarded_client(Policy.parse("127.0.0.1/32")) as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.EGRESS
    assert not [one for one in connected if one[0] == "10.1.2.3"]
