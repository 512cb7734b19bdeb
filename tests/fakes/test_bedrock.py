"""The fake of Bedrock refuses what AWS refuses, by the signature first of all."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from connections.providers.wire.sigv4 import AccessKey, sign
from tests.fakes.bedrock import ACCESS_KEY, SECRET_KEY
from tests.fakes.server import GOOD_KEY

KEY = AccessKey(ACCESS_KEY, SECRET_KEY)
TEXT = {"text": "x"}
USER = {"role": "user", "content": [TEXT]}
USE = {"toolUse": {"toolUseId": "c1", "name": "f", "input": {}}}
RESULT = {"toolResult": {"toolUseId": "c1", "content": [TEXT]}}
SCHEMA = {"json": {"type": "object"}}
SPEC = {"toolSpec": {"name": "f", "description": "d", "inputSchema": SCHEMA}}
TOOLS = {"toolConfig": {"tools": [SPEC]}}
CALLED = [USER, {"role": "assistant", "content": [USE]}]
GOOD = {"messages": [USER], "inferenceConfig": {"maxTokens": 9}}


def request(fakes, body: Any = GOOD, *, model: str = "empty") -> httpx.Request:
    return httpx.Request(
        "POST",
        f"{fakes.bedrock}/model/{model}/converse-stream",
        content=orjson.dumps(body),
        headers={"content-type": "application/json"},
    )


def send(request: httpx.Request) -> httpx.Response:
    with httpx.Client(trust_env=False) as http:
        return http.send(request)


def signed(asked: httpx.Request, *, service="bedrock", region="us-east-1", key=KEY):
    sign(asked, key, service=service, region=region)
    return asked


def test_a_signed_request_and_one_with_a_key_are_accepted(fakes):
    assert send(signed(request(fakes))).status_code == 200
    with_key = request(fakes)
    with_key.headers["authorization"] = f"Bearer {GOOD_KEY}"
    answer = send(with_key)
    assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"


def altered(name: str, fakes) -> httpx.Request:
    asked = signed(request(fakes))
    match name:
        case "no signature":
            del asked.headers["authorization"]
        case "another body":
            body = orjson.dumps({**GOOD, "messages": [USER, USER]})
            headers = {**asked.headers, "content-length": str(len(body))}
            asked = httpx.Request("POST", asked.url, content=body, headers=headers)
        case "another path":
            asked.url = asked.url.copy_with(path="/bedrock/model/echo/converse-stream")
        case "a query":
            asked.url = asked.url.copy_with(query=b"a=b")
        case "another content type":
            asked.headers["content-type"] = "application/json; charset=utf-8"
        case "an unsigned header of AWS":
            asked.headers["x-amz-other"] = "1"
        case "a token that goes with another key":
            asked.headers["x-amz-security-token"] = "token"
        case "another time":
            asked.headers["x-amz-date"] = "20200101T000000Z"
        case "another service":
            asked = signed(request(fakes), service="s3")
        case "another secret":
            asked = signed(request(fakes), key=AccessKey(ACCESS_KEY, "other"))
        case "an unknown key":
            asked = signed(request(fakes), key=AccessKey("AKIAOTHER", SECRET_KEY))
        case "a wrong Bearer":
            asked.headers["authorization"] = "Bearer sk-wrong"
        case "another scheme":
            asked.headers["authorization"] = "Basic abc"
    return asked


@pytest.mark.parametrize(
    "name",
    [
        "no signature",
        "another body",
        "another path",
        "a query",
        "another content type",
        "an unsigned header of AWS",
        "a token that goes with another key",
        "another time",
        "another service",
        "another secret",
        "an unknown key",
        "a wrong Bearer",
        "another scheme",
    ],
)
def test_what_was_not_signed_so_is_refused(fakes, name):
    answer = send(altered(name, fakes))
    assert answer.status_code == 403
    assert answer.headers["x-amzn-errortype"]


@pytest.mark.parametrize(
    "body",
    [
        [],
        {**GOOD, "model": "empty"},
        {**GOOD, "stream": True},
        {**GOOD, "system": []},
        {**GOOD, "system": [{"text": " "}]},
        {**GOOD, "inferenceConfig": {"max_tokens": 9}},
        {**GOOD, "inferenceConfig": {"maxTokens": 0}},
        {**GOOD, "toolConfig": {"tools": []}},
        {**GOOD, "toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]}},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [USER, USER]},
        {"messages": [{"role": "assistant", "content": [TEXT]}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"text": ""}]}]},
        {"messages": [{"role": "user", "content": [{**TEXT, "image": {}}]}]},
        {"messages": [{"role": "user", "content": [USE]}], **TOOLS},
        {"messages": [*CALLED, {"role": "user", "content": [RESULT]}]},
        {"messages": CALLED, **TOOLS},
        {"messages": [*CALLED, USER], **TOOLS},
        {"messages": [*CALLED, {"role": "user", "content": [TEXT, RESULT]}], **TOOLS},
        {"messages": [*CALLED, {"role": "user", "content": [RESULT, RESULT]}], **TOOLS},
    ],
)
def test_bodies_that_are_wrong_get_400_in_awss_format(fakes, body):
    answer = send(signed(request(fakes, body)))
    assert answer.status_code == 400
    assert answer.headers["x-amzn-errortype"].startswith("ValidationException")
    assert answer.json()["message"]


def test_results_beside_a_text_are_refused_where_the_vendor_does(fakes):
    mixed = {"messages": [*CALLED, {"role": "user", "content": [RESULT, TEXT]}], **TOOLS}
    for model, status in (("empty", 200), ("us.anthropic.empty", 200), ("us.meta.empty", 400)):
        assert send(signed(request(fakes, mixed, model=model))).status_code == status
