"""The steps of a running turn, as its worker writes them: begun, steered, saved, finished.

begin_step (takes the steering) ─► request, save_progress … ─► finish_step ─► begin_step …
                                      └─► claim_steering (into the running step) ─► receipt
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection as database
from django.db import transaction

from sessions import leases, locking
from sessions.leases import LeaseLost
from sessions.models import ChatSession, Message, Turn
from workspaces.statements import Select, insert, update


@dataclass(frozen=True, slots=True)
class Step:
    """A step begun: its number, the row its reply goes to, and what was steered in before it."""

    number: int
    message_id: uuid.UUID
    steered: Sequence[Message]


_BEGUN = Select(
    lambda turn_id, step: Message.objects.filter(
        turn_id=turn_id, step=step, role=Message.Role.ASSISTANT
    )[:1]
)


@transaction.atomic
def begin_step(
    turn: Turn, token: uuid.UUID, number: int, *, receipt: uuid.UUID | None = None
) -> Step:
    """Before a request leaves: takes the steering messages (from the second step on), makes the
    reply's row and records `request_sent`. With the `receipt` of a message that was claimed, the
    request has left and this one alone is delivered. Called again, when nobody knows whether the
    commit arrived, it gives the same step. Raises `LeaseLost`. Locks the session."""
    chat = locking.lock(turn.chat_id)
    mine = Turn(pk=turn.pk, step=number, request_sent=True)
    if not update(mine, "step", "request_sent", lease_token=token, state=Turn.State.RUNNING):
        raise LeaseLost
    if begun := _BEGUN.first(turn.pk, number):
        if receipt is not None or number == 1:  # of a turn that was retried, step 0 has it all
            return Step(number, begun.pk, [])
        delivered = Message.objects.filter(
            turn=turn, step=number - 1, delivery=Message.Delivery.DELIVERED
        ).prefetch_related("attachments")
        return Step(number, begun.pk, list(delivered.order_by("place", "seq")))
    steered: list[Message] = []
    if receipt is not None:
        _deliver(turn, receipt, number - 1)
    elif number > 1:
        steered = _steering(chat)
        for message in steered:
            message.delivery, message.turn, message.step = (
                Message.Delivery.DELIVERED,
                turn,
                number - 1,
            )
        Message.objects.bulk_update(steered, ["delivery", "turn", "step"])
    reply = Message(
        chat=chat,
        seq=locking.next_seq(chat),
        role=Message.Role.ASSISTANT,
        turn=turn,
        step=number,
        is_complete=False,
    )
    insert(reply)
    locking.changed(chat)
    return Step(number, reply.pk, steered)


def _steering(chat: ChatSession) -> list[Message]:
    """What waits to be steered and is not with a provider yet, in the order of sending."""
    return list(
        Message.objects.filter(chat=chat, delivery=Message.Delivery.STEERING, turn=None)
        .prefetch_related("attachments")
        .order_by("place", "seq")
    )


def claim_steering(turn: Turn, token: uuid.UUID) -> list[Message]:
    """Takes the steering messages for a provider that puts them into the running step: from now on
    nobody can change them. Each is delivered by its receipt (`begin_step`, `deliver_steered`); one
    without is queued when the turn ends. Raises `LeaseLost`. Locks the session, if any waits."""
    waits = Message.objects.filter(
        chat_id=turn.chat_id, delivery=Message.Delivery.STEERING, turn=None
    )
    if not waits.exists():
        return []
    with transaction.atomic():
        chat = locking.lock(turn.chat_id)
        held = leases.held_turn(turn.pk, token).first()
        if held is None:
            raise LeaseLost
        if held.stop_requested_at is not None:
            return []
        claimed = _steering(chat)
        for message in claimed:
            message.turn = turn
        Message.objects.bulk_update(claimed, ["turn"])
        locking.changed(chat)
    return claimed


def _deliver(turn: Turn, message_id: uuid.UUID, step: int) -> None:
    """Nothing when the message was queued or cancelled meanwhile, as Stop does."""
    Message.objects.filter(
        pk=message_id, turn=turn, chat_id=turn.chat_id, delivery=Message.Delivery.STEERING
    ).update(delivery=Message.Delivery.DELIVERED, step=step)


@transaction.atomic
def deliver_steered(turn: Turn, token: uuid.UUID, message_id: uuid.UUID, step: int) -> None:
    """The receipt of a claimed message that stands beside the one which began the next step.
    Raises `LeaseLost`. Locks the session."""
    chat = locking.lock(turn.chat_id)
    if not leases.held_turn(turn.pk, token).exists():
        raise LeaseLost
    _deliver(turn, message_id, step)
    locking.changed(chat)


@dataclass(frozen=True, slots=True)
class Progress:
    """A growing reply as it stands, of the turn that holds the lease `token`."""

    turn_id: uuid.UUID
    token: uuid.UUID
    message_id: uuid.UUID
    text: str
    parts: list[dict[str, Any]]
    cursor: str


def save_progress(rows: Sequence[Progress]) -> set[uuid.UUID]:
    """Checkpoints of growing replies, in one transaction: the tokens of leases that are lost. One
    statement for all rows; by hand, since a query built for each costs several times its own work.
    """
    values = {
        name: Message._meta.get_field(name)
        for name in ("text", "parts", "cursor", "id", "turn", "is_complete")
    }
    lease, state = Turn._meta.get_field("lease_token"), Turn._meta.get_field("state")

    def prepared(field: Any, value: Any) -> Any:
        return field.get_db_prep_value(value, database)

    message, turn = Message._meta.db_table, Turn._meta.db_table
    statement = (
        f'UPDATE "{message}" SET text = %s, parts = %s, cursor = %s'  # noqa: S608 (our own tables)
        " WHERE id = %s AND turn_id = %s AND is_complete = %s"
        f' AND EXISTS (SELECT 1 FROM "{turn}" t WHERE t.id = "{message}".turn_id'
        " AND t.lease_token = %s AND t.state = %s)"
    )
    with transaction.atomic(), database.cursor() as cursor:
        cursor.executemany(
            statement,
            [
                (
                    row.text,
                    prepared(values["parts"], row.parts),
                    row.cursor,
                    prepared(values["id"], row.message_id),
                    prepared(values["turn"], row.turn_id),
                    prepared(values["is_complete"], False),
                    prepared(lease, row.token),
                    prepared(state, Turn.State.RUNNING.value),
                )
                for row in rows
            ],
        )
        if cursor.rowcount == len(rows):
            return set()
        # A reply that was finished meanwhile isn't lost.
        tokens = [row.token for row in rows]
        return set(tokens) - leases.held(tokens)


@transaction.atomic
def finish_step(
    turn_id: uuid.UUID,
    token: uuid.UUID,
    message_id: uuid.UUID,
    *,
    text: str,
    parts: list[dict[str, Any]],
    usage: dict[str, int],
    left_out_before: int,
) -> None:
    """Stores a step's whole reply with the results of its tools; again does nothing. Raises
    `LeaseLost`."""
    mine = leases.locked_turn(turn_id, token)
    reply = Message(pk=message_id, text=text, parts=parts, is_complete=True)
    if not update(reply, "text", "parts", "is_complete", is_complete=False):
        return
    for name, value in usage.items():
        before = 0 if name == "context_tokens" else getattr(mine, name)
        setattr(mine, name, before + value)
    mine.left_out_before = left_out_before
    update(mine, "left_out_before", *usage)


@transaction.atomic
def mark_shortened(
    turn: Turn, token: uuid.UUID, kept: Mapping[uuid.UUID, Mapping[str, int]]
) -> None:
    """Notes of tool results how many characters the model is sent from now on: message → call →
    characters. The text itself stays. Raises `LeaseLost`. Locks the session."""
    chat = locking.lock(turn.chat_id)
    if not leases.held_turn(turn.pk, token).select_for_update(of=("self",)).exists():
        raise LeaseLost
    for message in Message.objects.filter(turn=turn, pk__in=kept):
        for part in message.parts:
            if part["t"] == "tool_result" and part["id"] in kept[message.pk]:
                part["kept"] = kept[message.pk][part["id"]]
        message.save(update_fields=["parts"])
    locking.changed(chat)
