"""The fakes refuse what the real providers refuse: without that, the other tests show little."""

from __future__ import annotations

import httpx
import orjson
import pytest

from tests.fakes.models import MODELS, find
from tests.fakes.server import GOOD_KEY, key_hash


def post(fakes, path: str, body: dict, headers: dict) -> httpx.Response:
    with httpx.Client(trust_env=False) as http:
        return http.post(fakes.url + path, content=orjson.dumps(body), headers=headers)


JSON = {"content-type": "application/json"}
OPENAI = {
    "model": "empty",
    "stream": True,
    "messages": [{"role": "user", "content": "hi"}],
}
ANTHROPIC = {**OPENAI, "max_tokens": 9}
ANTHROPIC_HEADERS = {**JSON, "x-api-key": GOOD_KEY, "anthropic-version": "2023-06-01"}


def ask_openai(fakes, **changes) -> httpx.Response:
    headers = {**JSON, "authorization": f"Bearer {GOOD_KEY}"}
    return post(fakes, "/openai/v1/chat/completions", OPENAI | changes, headers)


def ask_anthropic(fakes, headers=ANTHROPIC_HEADERS, **changes) -> httpx.Response:
    body = {key: value for key, value in (ANTHROPIC | changes).items() if value is not None}
    return post(fakes, "/anthropic/v1/messages", body, headers)


USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "ok"}
TEXT = {"type": "text", "text": "x"}


def test_a_plain_request_is_accepted(fakes):
    assert ask_openai(fakes).status_code == 200
    assert ask_anthropic(fakes).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": False},
        {"unknown": 1},
        {"max_tokens": 0},
        {"max_tokens": 1, "max_completion_tokens": 1},
        {"tools": [{"name": "f"}]},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "tool", "tool_call_id": "c1", "content": "x"}]},
        {"messages": [USER, {"role": "assistant", "content": ""}, USER]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "x", "extra": 1}, USER]},
        {"messages": [USER, {"role": "system", "content": "late"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "data": ""}]}]},
        {"messages": "hi"},
        {"messages": [1]},
    ],
)
def test_openai_requests_that_are_wrong_get_400_in_openais_format(fakes, changes):
    response = ask_openai(fakes, **changes)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": None},
        {"unknown": 1},
        {"max_tokens": None},
        {"system": ""},
        {"tools": [{"name": "f", "description": "", "parameters": {}}]},
        {"messages": []},
        {"messages": [USER, USER]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [USER, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [RESULT]}]},
        {"messages": [USER, {"role": "assistant", "content": [USE]}]},
        {"messages": [USER, {"role": "assistant", "content": [USE]}, USER]},
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [USE]},
                {"role": "user", "content": [TEXT, RESULT]},
            ]
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "a", "signature": "b"}, TEXT],
                },
                USER,
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": 1},
        {"headers": {**JSON, "x-api-key": GOOD_KEY}},
        {"headers": {**ANTHROPIC_HEADERS, "content-type": "text/plain"}},
    ],
)
def test_anthropic_requests_that_are_wrong_get_400_in_anthropics_format(fakes, changes):
    response = ask_anthropic(fakes, **changes)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "sk-other"},
        {"authorization": f"Bearer {GOOD_KEY}"},
    ],
)
def test_a_wrong_key_is_401(fakes, headers):
    headers = {**JSON, "anthropic-version": "2023-06-01", **headers}
    assert ask_anthropic(fakes, headers=headers).status_code == 401


def test_keys_are_recorded_as_hashes_only(fakes):
    fakes.reset()
    ask_openai(fakes)
    (record,) = fakes.requests()
    assert record["key"] == key_hash(GOOD_KEY)
    assert GOOD_KEY not in str(record)


def test_every_model_is_found_by_its_own_name():
    assert [find(model.name)[0] for model in MODELS] == list(MODELS)
