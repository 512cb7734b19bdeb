"""SigV4: the same signature as botocore's own client makes for the same call."""

from __future__ import annotations

import datetime as dt
import logging
from urllib.parse import urlsplit

import botocore.session
import httpx
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from connections import providers
from connections.providers.wire import sigv4
from tests.connections.aws import IAM, SESSION, target
from tests.connections.wires import asking, canned, replies
from tests.fakes.bedrock import SESSION_TOKEN

NOW = dt.datetime(2026, 5, 4, 3, 2, 1)
MODELS = [
    "anthropic.claude-x-v1:0",
    "us.anthropic.claude-x-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3",
    "arn:aws:bedrock:eu-central-1::foundation-model/meta.llama-v1:0",
    "odd ~model*(name)/+%25",
]


@pytest.fixture(autouse=True)
def still_time(monkeypatch):
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: NOW)


def as_botocore_sends(service: str, secret: dict[str, str], call: str, **arguments):
    """The request that botocore's client would send, without sending it."""
    session = botocore.session.Session()
    made = session.create_client(
        service,
        region_name="us-east-1",
        aws_access_key_id=secret["access_key_id"],
        aws_secret_access_key=secret["secret_access_key"],
        aws_session_token=secret.get("session_token"),
        config=Config(retries={"total_max_attempts": 1}),
    )
    sent = []

    def keep(request, **_):
        sent.append(request)
        return AWSResponse(request.url, 200, {}, None)

    made.meta.events.register("before-send", keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AWSResponse, "content", b"{}")
        try:
            getattr(made, call)(**arguments)
        except Exception:
            assert sent, "it failed before it was signed"
        finally:
            made.close()
    return sent[0]


def text_of(value) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("secret", [IAM, SESSION], ids=["IAM", "session"])
@pytest.mark.parametrize("model", MODELS)
def test_the_signature_of_a_chat_is_botocores(monkeypatch, model, secret):
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    theirs = as_botocore_sends(
        "bedrock-runtime",
        secret,
        "converse_stream",
        modelId=model,
        messages=[{"role": "user", "content": [{"text": "hi"}]}],
        inferenceConfig={"maxTokens": 10},
    )
    path = providers.get("bedrock").wire(target(None)).chat_path(model)
    ours = httpx.Request(
        "POST",
        f"https://bedrock-runtime.us-east-1.amazonaws.com{path}",
        content=theirs.body,
        headers={"content-type": "application/json", "x-team": "blue"},
    )
    # The same path leaves, letter for letter ...
    assert ours.url.raw_path.decode() == urlsplit(theirs.url).path
    key = sigv4.AccessKey(
        secret["access_key_id"], secret["secret_access_key"], secret.get("session_token", "")
    )
    sigv4.sign(ours, key, service="bedrock", region="us-east-1")
    # ... and where the same headers are signed, so does the same signature.
    theirs_authorization = text_of(theirs.headers["Authorization"])
    assert "SignedHeaders=content-type;host;x-amz-date" in theirs_authorization
    assert ours.headers["authorization"] == theirs_authorization
    assert ours.headers["x-amz-date"] == text_of(theirs.headers["X-Amz-Date"])
    token = theirs.headers.get("X-Amz-Security-Token")
    assert ours.headers.get("x-amz-security-token") == (text_of(token) if token else None)


@pytest.mark.parametrize("token", ["", "a b/c+d=&é~"])
def test_a_query_is_signed_as_it_goes(token):
    theirs = as_botocore_sends(
        "bedrock",
        IAM,
        "list_inference_profiles",
        maxResults=1000,
        **({"nextToken": token.replace("é", "e").replace(" ", "")} if token else {}),
    )
    ours = httpx.Request("GET", theirs.url)
    key = sigv4.AccessKey(IAM["access_key_id"], IAM["secret_access_key"])
    sigv4.sign(ours, key, service="bedrock", region="us-east-1")
    assert ours.headers["authorization"] == text_of(theirs.headers["Authorization"])


async def test_nothing_of_a_secret_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    where = target(None, secret=SESSION)
    request = httpx.Request("POST", "https://bedrock-runtime.us-east-1.amazonaws.com/", content=b"")
    async with canned() as http:
        await providers.get("bedrock").authorize(http, where, request)
    assert request.headers["x-amz-security-token"] == SESSION_TOKEN
    for secret in SESSION.values():
        assert secret not in caplog.text


@pytest.mark.parametrize("name", ["access_key_id", "session_token"])
@pytest.mark.parametrize("value", ["line\nbreak", "schlüssel", "with space"])
async def test_credentials_that_no_header_can_hold_are_not_sent(name, value):
    where = target(None, secret={**SESSION, name: value})

    def refuse(request):
        raise AssertionError("sent")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind == "auth"
    assert value not in str(error)
