"""A person who is switched off, removed or made a viewer: nothing of theirs reaches a model any
more, and the messages of others go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sessions import leases, sending, turns
from sessions.models import ChatSession, Message, Turn
from tests.builders import make_member, make_user
from workspaces.models import Membership, Role, User

pytestmark = pytest.mark.django_db(transaction=True)

WITHDRAWALS: dict[str, Callable[[User], object]] = {
    "switched off": lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
    "removed": lambda user: Membership.objects.filter(user=user).delete(),
    "made a viewer": lambda user: Membership.objects.filter(user=user).update(role=Role.VIEWER),
    "deleted": lambda user: Turn.objects.filter(started_by=user).update(started_by=None),
}


@pytest.fixture(params=WITHDRAWALS.values(), ids=WITHDRAWALS.keys())
def withdraw(request: pytest.FixtureRequest) -> Callable[[User], object]:
    return request.param


def test_a_pending_turn_is_refused_when_a_worker_comes_for_it(chat, bob, withdraw):
    sent = sending.send(chat.pk, bob, "read this")
    withdraw(bob)
    assert turns.claim(sent.turn.pk) is None
    turn = Turn.objects.get(pk=sent.turn.pk)
    assert (turn.state, turn.error_kind) == (Turn.State.FAILED, "access_ended")
    assert turn.claims == 0
    assert not turn.request_sent


def test_a_queued_message_of_a_colleague_goes_on_after_a_refused_one(chat, bob, workspace):
    dora = make_user("dora@example.com")
    make_member(workspace, dora)
    ChatSession.objects.filter(pk=chat.pk).update(shared=True)
    first = turns.claim(sending.send(chat.pk, dora, "first").turn.pk)
    sending.send(chat.pk, bob, "bob's, queued")
    sending.send(chat.pk, dora, "dora's, queued")
    Message.objects.filter(delivery="steering").update(delivery="queued")
    User.objects.filter(pk=bob.pk).update(is_active=False)
    turns.end(first, first.lease_token, Turn.State.DONE)
    refused = Turn.objects.get(chat=chat, number=2)
    assert turns.claim(refused.pk) is None
    chat.refresh_from_db()
    assert (chat.queue_paused, chat.failures) == ("", 0)
    following = Turn.objects.get(chat=chat, number=3)
    assert following.started_by == dora
    assert turns.claim(following.pk) is not None


def test_a_running_turn_is_among_those_to_stop(chat, bob, withdraw):
    turn = turns.claim(sending.send(chat.pk, bob, "go").turn.pk)
    assert leases.without_access([turn.lease_token]) == set()
    withdraw(bob)
    assert leases.without_access([turn.lease_token]) == {turn.lease_token}


def test_an_instance_admin_needs_no_membership(chat, alice):
    turn = turns.claim(sending.send(chat.pk, alice, "go").turn.pk)
    assert turn is not None
    assert leases.without_access([turn.lease_token]) == set()
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert leases.without_access([turn.lease_token]) == {turn.lease_token}
