"""Turns, pages and many writers while the database is slow, gone for a moment, or full."""

from __future__ import annotations

import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from django.test import Client

from connections.models import Connection
from sessions import agent, sending, steps, titles, turns
from sessions.models import ChatSession, Message, Turn
from sessions.worker import Crew
from tests.builders import make_connection
from tests.crew import running_crew
from tests.fakes.server import FakeProviders
from workspaces.models import User, Workspace

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def crew(fakes: FakeProviders) -> Iterator[Crew]:
    fakes.reset()
    with running_crew(sweeps=False) as running:
        yield running


@pytest.fixture
def chat_on(fakes: FakeProviders, workspace: Workspace, bob: User) -> Callable[[str], ChatSession]:
    def make(model: str) -> ChatSession:
        found = Connection.objects.filter(slug=model).first() or make_connection(
            model, key=fakes.good_key, base_url=fakes.openai, models=[model], default_model=model
        )
        return ChatSession.objects.create(workspace=workspace, owner=bob, connection=found)

    return make


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def failing(
    monkeypatch: pytest.MonkeyPatch, place: str, times: int, *, after: bool = False
) -> list:
    """`MODULE.NAME` of the sessions fails so often: before it does anything, or after its commit,
    when nobody knows whether it arrived."""
    module, name = place.rsplit(".", 1)
    module = importlib.import_module(f"sessions.{module}")
    real, calls = getattr(module, name), []

    def broken(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) > times:
            return real(*arguments, **options)
        if after:
            real(*arguments, **options)
        raise (OperationalError, InterfaceError)[len(calls) % 2]

    monkeypatch.setattr(module, name, broken)
    return calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after the commit"])
@pytest.mark.parametrize("place", ["steps.begin_step", "steps.finish_step", "turns.end"])
def test_a_reply_is_not_lost_while_the_database_is_away(
    crew, chat_on, bob, fakes, monkeypatch, place: str, after: bool
):
    monkeypatch.setattr(agent, "STORE_AGAIN", 0.02)
    calls = failing(monkeypatch, place, 3, after=after)
    chat = chat_on("tools-1-0.1s")
    turn = sending.send(chat.pk, bob, "What time is it?", ring=False).turn
    assert crew.take(turn.pk)
    until(lambda: not crew.live)
    turn.refresh_from_db()
    assert len(calls) > (1 if after and place == "turns.end" else 3)
    assert turn.state == Turn.State.DONE
    replies = Message.objects.filter(chat=chat, role="assistant").order_by("step")
    assert [(one.step, one.is_complete) for one in replies] == [(1, True), (2, True)]
    assert replies[1].text.startswith("Done after 1 tool rounds.")
    assert len(fakes.requests()) == 2


def test_a_steered_message_is_sent_though_nobody_knew_whether_the_step_began(
    crew, chat_on, bob, fakes, monkeypatch
):
    monkeypatch.setattr(agent, "STORE_AGAIN", 0.02)
    chat = chat_on("tools-1-0.1s")
    turn = sending.send(chat.pk, bob, "What time is it?", ring=False).turn
    assert crew.take(turn.pk)
    until(lambda: fakes.requests())
    sending.send(chat.pk, bob, "And in Lisbon?")
    failing(monkeypatch, "steps.begin_step", 1, after=True)
    until(lambda: not crew.live)
    turn.refresh_from_db()
    assert turn.state == Turn.State.DONE
    assert Message.objects.get(text="And in Lisbon?").delivery == Message.Delivery.DELIVERED
    assert fakes.requests()[-1]["last_user"].endswith("And in Lisbon?")


def test_a_database_that_stays_away_leaves_the_turn_to_its_lease(
    crew, chat_on, bob, fakes, monkeypatch
):
    monkeypatch.setattr(agent, "STORE_AGAIN", 0.02)
    monkeypatch.setattr(agent, "STORE_WITHIN", 0.2)
    chat = chat_on("echo")
    failing(monkeypatch, "steps.finish_step", 10_000)
    turn = sending.send(chat.pk, bob, "Hello", ring=False).turn
    assert crew.take(turn.pk)
    until(lambda: not crew.live)
    turn.refresh_from_db()
    assert turn.state == Turn.State.RUNNING
    Turn.objects.filter(pk=turn.pk).update(lease_until=turn.created_at)
    turns.sweep()
    turn.refresh_from_db()
    assert (turn.state, turn.claims) == (Turn.State.INTERRUPTED, 1)
    assert len(fakes.requests()) == 1


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (OperationalError("database or disk is full"), 503),
        (InterfaceError("the connection is closed"), 503),
        (OSError(28, "No space left on device"), 503),
        (OSError(2, "No such file or directory"), 500),
        (ValueError("a fault of ours"), 500),
    ],
)
def test_a_page_says_that_the_database_is_away(
    client_for, workspace, bob, monkeypatch, fault: Exception, status: int
):
    from sessions import views

    def broken(*arguments: object, **options: object) -> None:
        raise fault

    monkeypatch.setattr(views, "audit", type("audit", (), {"record": staticmethod(broken)}))
    client: Client = client_for(bob, raise_request_exception=False)
    answer = client.post(f"/w/{workspace.slug}/sessions/new/")
    assert answer.status_code == status
    assert ("reach its database" in answer.text) == (status == 503)
    assert answer.headers.get("Retry-After") == ("5" if status == 503 else None)
    assert not ChatSession.objects.exists()


def test_six_writers_beside_twenty_streams_meet_no_locked_database(
    crew, chat_on, bob, fakes, monkeypatch
):
    """Each writer makes 300 transactions. Meanwhile no transaction is open for longer than a
    provider takes, and what the streams write is bounded."""
    saves: Counter[int] = Counter()
    real = steps.save_progress

    def counted(rows: object) -> object:
        saves[int(time.monotonic())] += 1
        return real(rows)

    monkeypatch.setattr(steps, "save_progress", counted)
    streams = [chat_on("bench-30tps-300") for _ in range(20)]
    for chat in streams:
        assert crew.take(sending.send(chat.pk, bob, "go", ring=False).turn.pk)
    until(lambda: len(fakes.requests()) == 20)
    faults: list[BaseException] = []
    longest = [0.0]

    def write(chat: ChatSession) -> None:
        try:
            for number in range(300):
                began = time.monotonic()
                titles.rename(chat.pk, f"title {number}")
                longest[0] = max(longest[0], time.monotonic() - began)
        except BaseException as error:
            faults.append(error)
        finally:
            connections.close_all()

    own = [ChatSession.objects.create(workspace=streams[0].workspace, owner=bob) for _ in range(6)]
    threads = [threading.Thread(target=write, args=(chat,)) for chat in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"the longest of 1800 transactions took {longest[0]:.2f} s")
    assert faults == []
    assert {ChatSession.objects.get(pk=chat.pk).title for chat in own} == {"title 299"}
    until(lambda: not crew.live, 60)
    assert set(Turn.objects.values_list("state", flat=True)) == {Turn.State.DONE}
    # All streams of a worker are saved together: by the second, whatever their number.
    assert max(saves.values()) <= 4
    assert sum(saves.values()) >= 2


def test_no_transaction_is_open_while_a_provider_is_silent(crew, chat_on, bob, fakes):
    chat = chat_on("stall-first")
    turn = sending.send(chat.pk, bob, "go", ring=False).turn
    assert crew.take(turn.pk)
    until(lambda: fakes.requests())
    with transaction.atomic(), connection.cursor() as cursor:  # the only writer, at once
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL lock_timeout = '2s'")
        began = time.monotonic()
        ChatSession.objects.filter(pk=chat.pk).update(title="meanwhile")
        Turn.objects.filter(pk=turn.pk).update(model="another")
    assert time.monotonic() - began < 2
    turns.stop(chat.pk, bob)
    until(lambda: not crew.live)
