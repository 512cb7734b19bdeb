"""Sending, many times at once and at the worst moments: each message is answered exactly once."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.system.harness import wait_for
from tests.system.page import Page, plain
from tests.system.parts import Chat, Parts


def check_each_answered_once(chat: Chat, sent: set[str]) -> None:
    """Every text is one message, bound to one turn, and stands once, in the order that the page
    shows, in what the model was told last."""
    messages = chat.messages()
    assert Counter(one["text"] for one in messages) == Counter(sent)
    assert all(one["turn_id"] and one["delivery"] in ("sent", "delivered") for one in messages)
    assert set(chat.states()) == {"done"}
    transcript = chat.transcript()
    assert Counter(transcript) == Counter(sent)
    shown = [plain(one.html) for one in Page(chat).messages("user")]  # the newest turns
    assert shown == transcript[-len(shown) :]
    asked = [one for one in chat.parts.fakes.requests() if one["texts"][0]["text"] == transcript[0]]
    told = "\n".join(one["text"] for one in asked[-1]["texts"] if one["role"] == "user")
    assert told.split("\n") == transcript
    # A request for each turn, and one more for each tool round: none was made twice.
    assert len(asked) == len(chat.messages("assistant"))


def test_fifty_sends_from_five_tabs_are_each_answered_once_in_the_order_shown(parts: Parts):
    chat = Chat(parts)
    clients = [parts.sign_in_admin() for _ in range(5)]
    busiest, over = [], threading.Event()

    def watch() -> None:
        while not over.is_set():
            busiest.append(sum(state in ("pending", "running") for state in chat.states()))
            time.sleep(0.01)

    def use_tab(number: int) -> set[str]:
        chance = random.Random(number)
        texts = set()
        for count in range(10):
            text, key = f"tab {number} message {count}", uuid.uuid4().hex
            texts.add(text)
            match chance.randrange(3):
                case 0:
                    chat.send(text, key, client=clients[number])
                case 1:  # a double click
                    with ThreadPoolExecutor(2) as pool:
                        again = pool.submit(chat.send, text, key, client=clients[number])
                        chat.send(text, key, client=clients[number])
                        again.result()
                case 2:  # no answer came, so the browser sends it again
                    with pytest.raises(httpx.TimeoutException):
                        clients[number].post(
                            f"{chat.url}send/",
                            data={"text": text, "client_key": key},
                            timeout=httpx.Timeout(10, read=0.001),
                        )
                    chat.send(text, key, client=clients[number])
        return texts

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        sent = set().union(*pool.map(use_tab, range(5)))
    accepted = time.monotonic() - started
    chat.wait_until_idle(90)
    over.set()
    watching.join()
    print(f"50 sends accepted in {accepted:.1f} s, answered in {time.monotonic() - started:.1f} s")
    assert max(busiest) == 1
    assert len(sent) == 50
    check_each_answered_once(chat, sent)
    assert [one["text"] for one in chat.messages()] == [
        one["last_user"] for one in parts.fakes.requests()
    ]


@pytest.mark.parametrize(
    ("connection", "model"),
    [("queue", "fast-60tps-12"), ("steer", "fast-60tps-12"), ("steer", "tools-1-0.1s")],
)
def test_a_message_at_the_instant_a_turn_ends_is_answered_once(
    parts: Parts, connection: str, model: str
):
    """Ten times in each of four sessions: a first message, and a second that is sent when the turn
    of the first is about to end, a little earlier or later each time."""

    def loop(number: int) -> tuple[Chat, set[str], Counter[str]]:
        chance = random.Random(number)
        chat, sent, became = Chat(parts, model, connection=connection), set(), Counter()
        typical = 0.3
        for count in range(10):
            first, second = f"{number} first {count}", f"{number} second {count}"
            before = len(chat.turns())
            began = time.monotonic()
            chat.send(first)
            due = began + typical + chance.uniform(-0.1, 0.05)
            wait_for(lambda due=due: time.monotonic() >= due)
            chat.send(second)
            chat.wait_until_idle()
            sent |= {first, second}
            turn = chat.turns()[before]
            typical = parts.rows(
                "SELECT (julianday(ended_at) - julianday(created_at)) * 86400 AS s"
                " FROM agent_sessions_turn WHERE id = ?",
                turn["id"],
            )[0]["s"]
            became[chat.messages()[-1]["delivery"]] += 1
        return chat, sent, became

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(loop, range(4)))
    print(connection, model, dict(sum((became for _, _, became in results), Counter())))
    for chat, sent, _ in results:
        check_each_answered_once(chat, sent)


def test_a_steer_that_cannot_be_delivered_is_shown_as_queued_then_answered_once(parts: Parts):
    chat = Chat(parts, "fast-60tps-120", connection="steer")
    page = Page(chat)
    chat.send("first")
    chat.wait_for_reply()
    chat.send("and this")
    page.follow(lambda page: [how for _, how in page.waiting] == ["steering"])
    page.follow(lambda page: len(page.turns) == 2)  # no step came that could take it
    assert page.waiting == []
    chat.post("stop")
    chat.wait_until_idle()
    assert [(one["text"], one["delivery"]) for one in chat.messages()] == [
        ("first", "sent"),
        ("and this", "sent"),
    ]
    assert len(parts.requests_with("and this")) == 1
