"""What goes to the provider: the history as each wire wants it, mended where a turn broke off."""

from __future__ import annotations

import pytest

from connections.providers.base import ModelRequest, ToolSpec, Turnlet
from connections.providers.wire.anthropic_messages import AnthropicMessages
from connections.providers.wire.history import INTERRUPTED
from connections.providers.wire.openai_completions import OpenAICompletions


def text(words, **more):
    return {"t": "text", "text": words, **more}


def call(number, **more):
    return {"t": "tool_call", "id": f"c{number}", "name": "clock", "args": {"n": number}, **more}


def result(number, words="ok", **more):
    return {"t": "tool_result", "id": f"c{number}", "name": "clock", "text": words, **more}


def user(*parts):
    return Turnlet("user", parts)


def assistant(*parts):
    return Turnlet("assistant", parts)


IMAGE = {"t": "image", "media_type": "image/png", "data": "aGk="}


def a_call(number):
    return {"type": "tool_use", "id": f"c{number}", "name": "clock", "input": {"n": number}}


def a_result(number, words="ok", **more):
    return {"type": "tool_result", "tool_use_id": f"c{number}", "content": words, **more}


def a_text(words):
    return {"type": "text", "text": words}


def o_call(number):
    function = {"name": "clock", "arguments": f'{{"n":{number}}}'}
    return {"id": f"c{number}", "type": "function", "function": function}


def o_result(number, words="ok"):
    return {"role": "tool", "tool_call_id": f"c{number}", "content": words}


CASES = {
    "a question": (
        [user(text("hi"))],
        [{"role": "user", "content": [a_text("hi")]}],
        [{"role": "user", "content": "hi"}],
    ),
    "a conversation": (
        [user(text("hi")), assistant(text("hello")), user(text("and?"))],
        [
            {"role": "user", "content": [a_text("hi")]},
            {"role": "assistant", "content": [a_text("hello")]},
            {"role": "user", "content": [a_text("and?")]},
        ],
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "and?"},
        ],
    ),
    "neighbours of one role are merged": (
        [user(text("a")), user(text("b")), assistant(text("c")), assistant(text("d"))],
        [
            {"role": "user", "content": [a_text("a"), a_text("b")]},
            {"role": "assistant", "content": [a_text("c"), a_text("d")]},
        ],
        [
            {"role": "user", "content": "a\n\nb"},
            {"role": "assistant", "content": "c\n\nd"},
        ],
    ),
    "empty texts are dropped, and messages of nothing else": (
        [user(text("a"), text("")), assistant(text(" \n")), user(text("b"))],
        [{"role": "user", "content": [a_text("a"), a_text("b")]}],
        [{"role": "user", "content": "a\n\nb"}],
    ),
    "a steered text follows the tool results": (
        [
            user(text("go")),
            assistant(text("so:"), call(1), call(2)),
            user(result(1), result(2, "no", is_error=True), text("faster")),
        ],
        [
            {"role": "user", "content": [a_text("go")]},
            {"role": "assistant", "content": [a_text("so:"), a_call(1), a_call(2)]},
            {
                "role": "user",
                "content": [a_result(1), a_result(2, "no", is_error=True), a_text("faster")],
            },
        ],
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "so:", "tool_calls": [o_call(1), o_call(2)]},
            o_result(1),
            o_result(2, "no"),
            {"role": "user", "content": "faster"},
        ],
    ),
    "a steered text that came before the results still follows them": (
        [user(text("go")), assistant(call(1)), user(text("faster")), user(result(1))],
        [
            {"role": "user", "content": [a_text("go")]},
            {"role": "assistant", "content": [a_call(1)]},
            {"role": "user", "content": [a_result(1), a_text("faster")]},
        ],
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [o_call(1)]},
            o_result(1),
            {"role": "user", "content": "faster"},
        ],
    ),
    "a call without a result was interrupted": (
        [user(text("go")), assistant(call(1), call(2)), user(result(2), text("still there?"))],
        [
            {"role": "user", "content": [a_text("go")]},
            {"role": "assistant", "content": [a_call(1), a_call(2)]},
            {
                "role": "user",
                "content": [
                    a_result(1, INTERRUPTED, is_error=True),
                    a_result(2),
                    a_text("still there?"),
                ],
            },
        ],
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [o_call(1), o_call(2)]},
            o_result(1, INTERRUPTED),
            o_result(2),
            {"role": "user", "content": "still there?"},
        ],
    ),
    "calls at the very end were interrupted too": (
        [user(text("go")), assistant(call(1))],
        [
            {"role": "user", "content": [a_text("go")]},
            {"role": "assistant", "content": [a_call(1)]},
            {"role": "user", "content": [a_result(1, INTERRUPTED, is_error=True)]},
        ],
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [o_call(1)]},
            o_result(1, INTERRUPTED),
        ],
    ),
    "results of no call, and second results, are dropped": (
        [user(result(9), text("go")), assistant(call(1)), user(result(1), result(1, "again"))],
        [
            {"role": "user", "content": [a_text("go")]},
            {"role": "assistant", "content": [a_call(1)]},
            {"role": "user", "content": [a_result(1)]},
        ],
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [o_call(1)]},
            o_result(1),
        ],
    ),
    "an image": (
        [user(text("look"), IMAGE)],
        [
            {
                "role": "user",
                "content": [
                    a_text("look"),
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
                    },
                ],
            }
        ],
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                ],
            }
        ],
    ),
    "an image that was steered in": (
        [user(text("go")), assistant(call(1)), user(result(1), IMAGE)],
        [
            {"role": "user", "content": [a_text("go")]},
            {"role": "assistant", "content": [a_call(1)]},
            {
                "role": "user",
                "content": [
                    a_result(1),
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
                    },
                ],
            },
        ],
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [o_call(1)]},
            o_result(1),
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
                ],
            },
        ],
    ),
    "half a surrogate pair and NUL are replaced": (
        [user(text("a\ud800b\0c")), assistant(call(1)), user(result(1, "\udfff"))],
        [
            {"role": "user", "content": [a_text("a\ufffdb\ufffdc")]},
            {"role": "assistant", "content": [a_call(1)]},
            {"role": "user", "content": [a_result(1, "\ufffd")]},
        ],
        [
            {"role": "user", "content": "a\ufffdb\ufffdc"},
            {"role": "assistant", "content": None, "tool_calls": [o_call(1)]},
            o_result(1, "\ufffd"),
        ],
    ),
    "thinking that was stopped is not sent": (
        [user(text("a")), assistant({"t": "thinking", "text": "hm"}), user(text("b"))],
        [{"role": "user", "content": [a_text("a"), a_text("b")]}],
        [{"role": "user", "content": "a\n\nb"}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_history_on_the_anthropic_wire(name):
    history, expected, _ = CASES[name]
    body = AnthropicMessages().body(ModelRequest("m", history, 100))
    assert body == {"model": "m", "max_tokens": 100, "stream": True, "messages": expected}


@pytest.mark.parametrize("name", CASES)
def test_the_history_on_the_openai_wire(name):
    history, _, expected = CASES[name]
    body = OpenAICompletions().body(ModelRequest("m", history, 100))
    assert body == {
        "model": "m",
        "max_tokens": 100,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": expected,
    }


def test_anthropic_thinking_goes_back_with_its_signature():
    history = [
        user(text("a")),
        assistant(
            {"t": "thinking", "text": "hm", "sig": "s1"},
            {"t": "thinking", "text": "", "sig": {"redacted": "xyz"}},
            {"t": "thinking", "text": "of another wire", "sig": {"field": "reasoning"}},
            call(1),
        ),
        user(result(1)),
    ]
    content = AnthropicMessages().body(ModelRequest("m", history, 1))["messages"][1]["content"]
    assert content == [
        {"type": "thinking", "thinking": "hm", "signature": "s1"},
        {"type": "redacted_thinking", "data": "xyz"},
        a_call(1),
    ]


def test_openai_reasoning_of_an_answer_that_used_tools_goes_back_and_no_other():
    def thought(words, field):
        return {"t": "thinking", "text": words, "sig": {"field": field}}

    loop = [
        user(text("a")),
        assistant(thought("one", "reasoning_content"), call(1)),
        user(result(1), text("steered")),
        assistant(thought("two", "reasoning"), call(2)),
        user(result(2)),
    ]
    messages = OpenAICompletions().body(ModelRequest("m", loop, 1))["messages"]
    assert messages[1]["reasoning_content"] == "one"
    assert messages[4]["reasoning"] == "two"
    later = [
        *loop,
        assistant(thought("three", "reasoning_content"), text("done")),
        user(text("next")),
        assistant(thought("four", "reasoning_content"), text("no tools")),
        user(text("last")),
    ]
    messages = OpenAICompletions().body(ModelRequest("m", later, 1))["messages"]
    thoughts = [one.get("reasoning_content") or one.get("reasoning") for one in messages]
    assert [one for one in thoughts if one] == ["one", "two", "three"]


def test_system_and_tools_stand_where_each_wire_has_them():
    schema = {"type": "object", "properties": {}}
    request = ModelRequest(
        "m", [user(text("a"))], 7, system="Be brief.", tools=[ToolSpec("clock", "Time.", schema)]
    )
    anthropic = AnthropicMessages().body(request)
    assert anthropic["system"] == "Be brief."
    assert anthropic["tools"] == [{"name": "clock", "description": "Time.", "input_schema": schema}]
    openai = OpenAICompletions().body(request, max_tokens_field="max_completion_tokens")
    assert openai["messages"][0] == {"role": "system", "content": "Be brief."}
    assert openai["tools"] == [
        {
            "type": "function",
            "function": {"name": "clock", "description": "Time.", "parameters": schema},
        }
    ]
    assert openai["max_completion_tokens"] == 7
    assert "max_tokens" not in openai


@pytest.mark.parametrize("wire", [AnthropicMessages(), OpenAICompletions()])
def test_the_history_handed_in_is_not_changed(wire):
    part = text("a\ud800")
    wire.body(ModelRequest("m", [user(part), assistant(call(1))], 1))
    assert part == text("a\ud800")
