"""Messages that wait, and how one comes to its turn.

A message sent into a running turn steers it or is queued. Until it is claimed it can be edited,
moved, promoted to steer, or cancelled. A queued one has a turn of its own when the turn before has
ended, unless the queue waits after a failure or is paused.
"""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction
from django.db.models import QuerySet, prefetch_related_objects
from django.utils import timezone
from django.utils.translation import gettext as _

from connections import budgets
from connections.providers.base import ErrorKind
from connections.sentences import Reason
from sessions import doorbell, limits, locking
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from sessions.texts import check_length, clean_text, parts_of
from workspaces.models import User
from workspaces.statements import Select, insert, update

# What another try can't cure: the queue stands still until a person resumes it.
PAUSING = frozenset(
    {
        ErrorKind.AUTH,
        ErrorKind.SIGN_IN_AGAIN,
        ErrorKind.FORBIDDEN,
        ErrorKind.QUOTA,
        *Reason,
    }
) - {
    Reason.DNS,
    Reason.INTERNAL,
    Reason.WORKER_LOST,
    Reason.TURN_TIMEOUT,
    Reason.TOO_MANY_STEPS,
}
# A fault of the person, not of the connection: the messages of others go on at once.
PASSING = frozenset({Reason.ACCESS_ENDED})
FIRST_DELAY = 5.0  # seconds until the next queued message after a failure, doubling
FAILURES_IN_A_ROW = 3


def waiting(chat: ChatSession) -> QuerySet[Message]:
    """The steering and queued messages, in the order in which they will go."""
    return (
        Message.objects.filter(chat=chat, delivery__among=Message.WAITING)
        .select_related("author")
        .prefetch_related("attachments")
        .order_by("-delivery", "place", "seq")  # "steering" goes before "queued"
    )


_WAITING = Select(
    lambda chat_id: (
        Message.objects.filter(chat_id=chat_id, delivery__among=Message.WAITING)
        .select_related("author")
        .order_by("-delivery", "place", "seq")  # "steering" goes before "queued"
    )
)


def waiting_messages(chat: ChatSession) -> list[Message]:
    """What `waiting` finds. One query, two when anything waits."""
    found = _WAITING.all(chat.pk)
    prefetch_related_objects(found, "attachments")
    return found


def begin_turn(chat: ChatSession, author_id: uuid.UUID | None) -> Turn:
    number = (_TOP_NUMBER.first(chat.pk) or (0,))[0] + 1
    turn = Turn(chat=chat, number=number, model=chat.model, started_by_id=author_id)
    insert(turn)
    return turn


_TOP_NUMBER = Select(
    lambda chat_id: (
        Turn.objects.filter(chat_id=chat_id).order_by("-number").values_list("number", "state")[:1]
    )
)


def _start_turn(chat: ChatSession, message: Message) -> Turn:
    turn = begin_turn(chat, message.author_id)
    message.turn, message.step, message.delivery = turn, 0, Message.Delivery.SENT
    update(message, "turn", "step", "delivery")
    return turn


def advance(chat: ChatSession) -> Turn | None:
    """Starts the next queued message's turn when nothing stands against it. Under the lock."""
    if chat.queue_paused or locking.active_turn(chat) is not None:
        return None
    if chat.queue_not_before is not None and chat.queue_not_before > timezone.now():
        return None
    message = (
        Message.objects.filter(chat=chat, delivery=Message.Delivery.QUEUED)
        .order_by("place", "seq")
        .first()
    )
    if message is None:
        return None
    if budgets.refusal(chat.workspace_id, chat.connection_id):
        chat.queue_paused, chat.queue_not_before = Reason.BUDGET, None
        locking.changed(chat, "queue_paused", "queue_not_before")
        return None
    chat.queue_not_before = None
    turn = _start_turn(chat, message)
    locking.changed(chat, "queue_not_before")
    doorbell.ring(turn)
    return turn


@transaction.atomic
def resume(chat_id: uuid.UUID) -> Turn | None:
    """Lets a paused queue go on. Raises `Refused` while a budget is used up. Locks the session."""
    chat = locking.lock(chat_id)
    limits.check_budget(chat)
    chat.queue_paused, chat.queue_not_before, chat.failures = "", None, 0
    locking.changed(chat, "queue_paused", "queue_not_before", "failures")
    return advance(chat)


def settle(chat: ChatSession, turn: Turn) -> bool:
    """How the queue goes on after a turn that has ended: at once, later, or when a person resumes
    it; undelivered steering is queued. Whether anything waits. Under the lock; the caller writes
    `failures`, `queue_paused` and `queue_not_before`."""
    waits = _WAITS.all(chat.pk)
    if (Message.Delivery.STEERING,) in waits:
        requeue_steering(chat)
    if turn.state == Turn.State.FAILED and turn.error_kind not in PASSING:
        chat.failures += 1
        if turn.error_kind in PAUSING or chat.failures >= FAILURES_IN_A_ROW:
            chat.queue_paused, chat.queue_not_before = turn.error_kind or "failed", None
        else:
            delay = turn.retry_after or FIRST_DELAY * 2 ** (chat.failures - 1)
            chat.queue_not_before = timezone.now() + dt.timedelta(seconds=min(delay, 3600))
    else:
        chat.failures, chat.queue_not_before = 0, None
    if not waits:
        # The next message starts at once, whatever happened to the last.
        chat.queue_paused, chat.queue_not_before = "", None
    return bool(waits)


_WAITS = Select(
    lambda chat_id: (
        Message.objects.filter(chat_id=chat_id, delivery__among=Message.WAITING)
        .order_by()
        .values_list("delivery")
        .distinct()
    )
)


def requeue_steering(chat: ChatSession) -> None:
    Message.objects.filter(chat=chat, delivery=Message.Delivery.STEERING).update(
        delivery=Message.Delivery.QUEUED, turn=None
    )


@transaction.atomic
def edit(chat_id: uuid.UUID, message_id: uuid.UUID, actor: User, text: str) -> Message:
    """Changes one's own message that waits. Raises `Refused` once it was claimed. Locks the
    session."""
    chat = locking.lock(chat_id)
    message = _waiting_message(chat, message_id)
    if message.author_id != actor.pk:
        # It goes out under its author's name.
        raise Refused("not_yours", _("Only who wrote a message can change it."))
    text = clean_text(text)
    if not text.strip():
        raise Refused("empty", _("Write a message first, or cancel this one."))
    files = [part for part in message.parts if "file" in part]
    check_length(text, files)
    message.text, message.parts = text, parts_of(text, files)
    message.save(update_fields=["text", "parts"])
    locking.changed(chat)
    return message


@transaction.atomic
def cancel(chat_id: uuid.UUID, message_id: uuid.UUID) -> Message:
    """Takes a message back that waits. Raises `Refused` once it was claimed. Locks the session."""
    chat = locking.lock(chat_id)
    message = _waiting_message(chat, message_id)
    message.delivery = Message.Delivery.CANCELLED
    message.save(update_fields=["delivery"])
    locking.changed(chat)
    return message


@transaction.atomic
def promote(chat_id: uuid.UUID, message_id: uuid.UUID) -> Message:
    """A queued message is steered into the running turn instead. Locks the session."""
    chat = locking.lock(chat_id)
    message = _waiting_message(chat, message_id)
    turn = locking.active_turn(chat)
    if turn is None or turn.stop_requested_at:
        raise Refused("no_turn", _("There is no running reply to steer."))
    message.delivery = Message.Delivery.STEERING
    message.save(update_fields=["delivery"])
    locking.changed(chat)
    return message


@transaction.atomic
def move(
    chat_id: uuid.UUID, message_id: uuid.UUID, *, earlier: bool = False, before: str | None = None
) -> None:
    """Swaps a queued message with its neighbour, or puts it before the one whose id is `before`:
    behind all for "", first for one that no longer waits. Locks the session."""
    chat = locking.lock(chat_id)
    message = _waiting_message(chat, message_id)
    row = list(
        Message.objects.filter(chat=chat, delivery=Message.Delivery.QUEUED).order_by("place", "seq")
    )
    index = next((i for i, other in enumerate(row) if other.pk == message.pk), None)
    if index is None:
        raise Refused("not_queued", _("Only queued messages have an order to change."))
    places = sorted(queued.place for queued in row)
    moved = row.pop(index)
    if before is None:
        target = max(0, index - 1) if earlier else index + 1
    elif before:
        target = next((i for i, other in enumerate(row) if str(other.pk) == before), 0)
    else:
        target = len(row)
    if before == str(moved.pk) or target == index:
        return
    row.insert(target, moved)
    for place, queued in zip(places, row, strict=True):
        queued.place = place
    Message.objects.bulk_update(row, ["place"])
    locking.changed(chat)


def _waiting_message(chat: ChatSession, message_id: uuid.UUID) -> Message:
    message = Message.objects.filter(chat=chat, pk=message_id).first()
    # One that waits and has a turn is claimed: it is with the provider, its receipt on the way.
    if message is None or message.delivery not in Message.WAITING or message.turn_id is not None:
        raise Refused("gone", _("This message is on its way already and can't be changed."))
    return message
