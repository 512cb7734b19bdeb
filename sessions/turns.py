"""A turn's life: claimed by a worker, ended by it, by a person or by the sweep, and tried again.

pending ─► claim ─► running: its steps (`steps`) ─► end ─► the queue goes on (`queueing`)
   ▲ └─► stop          └─► the lease ran out: sweep ─► interrupted, failed, or
   └────────────────────────────────────────────────── pending again
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import uuid
from collections.abc import Iterator
from typing import Any

from django.db import OperationalError, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.translation import gettext as _

from connections import budgets
from connections.resolve import Choice
from connections.sentences import Reason
from sessions import choosing, doorbell, leases, limits, locking, queueing, usage
from sessions.access import memberships_that_send
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from workspaces import audit
from workspaces.models import User
from workspaces.statements import Select, update

logger = logging.getLogger(__name__)

MAX_CLAIMS = 3


@transaction.atomic
def claim(turn_id: uuid.UUID) -> Turn | None:
    """Takes a pending turn for this worker, or None when somebody else has it or it is gone, or
    its person may no longer send or a budget is used up: then it ends here.

    The state is read under the session's lock: the same task delivered twice, at the same moment or
    hours later, gives one claim. Writes the audit row for the use of the connection's secret. Locks
    the session.
    """
    chat = _LOCKED_BY_TURN.first(turn_id)
    turn = _PENDING.first(turn_id) if chat is not None else None
    if chat is None or turn is None:
        return None
    if refusal := _refusal_of(chat, turn):
        turn.error_kind = refusal
        _end(chat, turn, Turn.State.FAILED)
        return None
    if turn.claims >= MAX_CLAIMS:
        return None
    turn.state, turn.lease_token = Turn.State.RUNNING, uuid.uuid4()
    turn.started_at = timezone.now()
    turn.lease_until = turn.started_at + leases.LEASE
    turn.claims += 1
    update(turn, "state", "lease_token", "lease_until", "claims", "started_at")
    connection = turn.chat.connection
    if connection is not None:
        audit.record(
            turn.started_by or "worker",
            "secret.use",
            connection,
            workspace_id=chat.workspace_id,
            session=str(chat.pk),
            turn=turn.number,
            host=connection.origin or connection.provider_type,
        )
    locking.changed(chat)
    return turn


def _refusal_of(chat: ChatSession, turn: Any) -> str:
    """Why a turn of `_PENDING` may not begin any more, "" when it may. Under the lock."""
    person = turn.started_by
    if person is None or not person.is_active or not (person.is_superuser or turn.sends):
        return Reason.ACCESS_ENDED
    return Reason.BUDGET if budgets.refusal(chat.workspace_id, chat.connection_id) else ""


_LOCKED_BY_TURN = Select(
    lambda turn_id: (
        ChatSession.objects.select_for_update(of=("self",))
        .select_related("workspace")
        .filter(turns__pk=turn_id, turns__state=Turn.State.PENDING)
    )
)


_PENDING = Select(
    lambda turn_id: (
        Turn.objects.filter(pk=turn_id, state=Turn.State.PENDING)
        .select_related("chat__workspace", "chat__owner", "chat__connection", "started_by")
        .annotate(sends=Exists(memberships_that_send()))
    )
)


@transaction.atomic
def end(
    turn: Turn,
    token: uuid.UUID,
    state: Turn.State,
    *,
    error_kind: str = "",
    error_detail: str = "",
    retry_after: float | None = None,
    cost: Any = None,
    reply: tuple[uuid.UUID, str, list[dict[str, Any]]] | None = None,
) -> None:
    """Ends a turn, keeps the partial reply, and decides how the queue goes on. Raises `LeaseLost`.
    Locks the session."""
    chat = locking.lock(turn.chat_id)
    # Locked before the reply: a `finish_step` whose caller was cancelled takes them in this order.
    mine = leases.locked_turn(turn.pk, token)
    if reply is not None:
        message_id, text, parts = reply
        update(Message(pk=message_id, text=text, parts=parts), "text", "parts")
    mine.cost = cost
    if state == Turn.State.INTERRUPTED and not mine.request_sent:
        # Nothing had left for the provider: another worker takes it. This one ends in good order,
        # which says nothing against the message: the claim doesn't count.
        mine.claims -= 1
        _put_back(chat, mine)
        return
    mine.error_kind, mine.error_detail = error_kind, error_detail[:600]
    mine.retry_after = retry_after
    _end(chat, mine, state)


def _end(chat: ChatSession, turn: Turn, state: Turn.State) -> None:
    """The end of a turn, under the session's lock: undelivered steering is queued, the queue goes
    on, waits or pauses."""
    turn.state, turn.ended_at = state, timezone.now()
    turn.lease_token = turn.lease_until = None
    update(
        turn,
        *("state", "ended_at", "lease_token", "lease_until"),
        *("cost", "error_kind", "error_detail", "retry_after"),
    )
    usage.count(chat, turn)
    if _UNFINISHED.first(turn.pk) is not None:
        Message.objects.filter(turn=turn, is_complete=False).update(is_complete=True)
        # An empty reply of a turn that didn't come to speak isn't a message.
        Message.objects.filter(turn=turn, role=Message.Role.ASSISTANT, text="", parts=[]).delete()
    waits = queueing.settle(chat, turn)
    chat.updated_at = timezone.now()
    said = {"turn": str(turn.pk), "state": str(state)}
    fields = ("failures", "queue_paused", "queue_not_before", "updated_at")
    locking.changed(chat, *fields, event="turn-end", said=said)
    if waits:
        queueing.advance(chat)


_UNFINISHED = Select(
    lambda turn_id: (
        Message.objects.filter(turn_id=turn_id)
        .filter(Q(is_complete=False) | Q(role=Message.Role.ASSISTANT, text=""))
        .values_list("seq", "step")[:1]
    )
)


@transaction.atomic
def stop(
    chat_id: uuid.UUID, actor: User, *, queued: str = "return", turn_id: uuid.UUID | None = None
) -> list[Message]:
    """Asks for the end of the running turn, with `turn_id` only if it is that one. With
    `queued="return"` the person's own waiting messages are cancelled and returned, so that their
    texts go back to the composer; with "continue" they go on. Colleagues' messages, and those with
    images or files, which a composer can't take back, go on in any case. A turn that no worker has
    taken yet ends here. Raises `Refused` for another word. Locks the session."""
    if queued not in ("return", "continue"):
        raise Refused("queued", _("Use queued=return or queued=continue."))
    chat = locking.lock(chat_id)
    turn = locking.active_turn(chat)
    if turn is None or turn_id not in (None, turn.pk):
        return []
    returned: list[Message] = []
    if queued == "return":
        own = queueing.waiting(chat).filter(author=actor, attachments=None)
        returned = [message for message in own if not message.files]
        for message in returned:
            message.delivery, message.turn = Message.Delivery.CANCELLED, None
        Message.objects.bulk_update(returned, ["delivery", "turn"])
    queueing.requeue_steering(chat)
    if _ask_to_stop(chat, turn):
        locking.changed(chat)
    return returned


def _ask_to_stop(chat: ChatSession, turn: Turn) -> bool:
    """Whether it still runs: one that no worker has taken yet ends here. Under the lock."""
    if turn.stop_requested_at is None:
        turn.stop_requested_at = timezone.now()
        turn.save(update_fields=["stop_requested_at"])
    if turn.state == Turn.State.PENDING:
        _end(chat, turn, Turn.State.STOPPED)
        return False
    return True


def halt(chat: ChatSession) -> bool:
    """Ends everything in a session: what waits is cancelled, the reply asked to stop. Whether one
    still runs; its worker ends it within seconds. Under the session's lock."""
    Message.objects.filter(chat=chat, delivery__among=Message.WAITING).update(
        delivery=Message.Delivery.CANCELLED, turn=None
    )
    turn = locking.active_turn(chat)
    return turn is not None and _ask_to_stop(chat, turn)


@transaction.atomic
def retry(chat_id: uuid.UUID, actor: User) -> Turn:
    """The last turn once more, when it failed, was stopped or interrupted. Raises `Refused`. Locks
    the session."""
    chat = locking.lock(chat_id)
    locking.check_there(chat)
    turn = Turn.objects.filter(chat=chat).order_by("-number").first()
    if turn is None or turn.is_active or turn.state == Turn.State.DONE:
        raise Refused("nothing_to_retry", _("There is nothing to try again."))
    choosing.resolved(chat, actor, Choice(chat.connection_id, chat.locked_at))
    limits.check_budget(chat)
    limits.check_running(actor)
    fresh = begin_again(chat, turn, actor)
    chat.queue_paused, chat.queue_not_before, chat.failures = "", None, 0
    locking.changed(chat, "queue_paused", "queue_not_before", "failures")
    doorbell.ring(fresh)
    return fresh


def begin_again(chat: ChatSession, turn: Turn, actor: User) -> Turn:
    """The turn, pending once more for a person: what the model had said is dropped, what people
    had said stays. Under the session's lock; the caller rings."""
    Message.objects.filter(turn=turn, role=Message.Role.ASSISTANT).delete()
    Message.objects.filter(turn=turn).update(step=0)
    fresh = Turn(pk=turn.pk, chat=chat, number=turn.number, model=chat.model)
    fresh.started_by, fresh.created_at = actor, turn.created_at
    fresh.save(force_update=True)
    return fresh


def sweep() -> list[uuid.UUID]:
    """Finds what nobody holds and returns the turns to run: pending ones that no doorbell
    reached, and those put back. Leases that ran out end as interrupted once a request had left, as
    failed after three claims, else go back. Any number of sweeps at once are harmless."""
    now = timezone.now()
    active = Turn.objects.filter(
        state__among=Turn.ACTIVE
    )  # SQLite takes their index for this alone
    held = active.filter(state=Turn.State.RUNNING, lease_until__lt=now)
    for turn_id in held.values_list("pk", flat=True)[:500]:
        with _apart(turn_id):
            _give_up_lease(turn_id)
    waiting = Message.objects.filter(
        delivery__among=Message.WAITING, delivery=Message.Delivery.QUEUED
    )
    waiting_since = ChatSession.objects.filter(
        ~Exists(active.filter(chat=OuterRef("pk"))),
        Q(queue_not_before__isnull=True) | Q(queue_not_before__lte=now),
        queue_paused="",
        pk__in=waiting.values("chat"),
    )
    for chat_id in waiting_since.order_by("pk").values_list("pk", flat=True)[:500]:
        with _apart(chat_id), transaction.atomic():
            queueing.advance(locking.lock(chat_id))
    return list(
        active.filter(state=Turn.State.PENDING, created_at__lt=now - dt.timedelta(seconds=1))
        .order_by("created_at")
        .values_list("pk", flat=True)[:1000]
    )


@contextlib.contextmanager
def _apart(row: uuid.UUID) -> Iterator[None]:
    """One row that can't be dealt with doesn't keep all others waiting."""
    try:
        yield
    except OperationalError:  # the database, not the row
        raise
    except Exception as error:
        logger.error("the sweep can't deal with %s (%s)", row, type(error).__name__)


@transaction.atomic
def _give_up_lease(turn_id: uuid.UUID) -> None:
    turn = Turn.objects.filter(pk=turn_id).first()
    if turn is None:
        return
    chat = locking.lock(turn.chat_id)
    turn.refresh_from_db()
    if (
        turn.state != Turn.State.RUNNING
        or turn.lease_until is None
        or turn.lease_until >= timezone.now()
    ):
        return
    if turn.stop_requested_at is not None:
        _end(chat, turn, Turn.State.STOPPED)
    elif turn.request_sent:
        _end(chat, turn, Turn.State.INTERRUPTED)
    elif turn.claims >= MAX_CLAIMS:
        turn.error_kind = Reason.WORKER_LOST
        _end(chat, turn, Turn.State.FAILED)
    else:
        _put_back(chat, turn)


def _put_back(chat: ChatSession, turn: Turn) -> None:
    turn.state, turn.lease_token, turn.lease_until = Turn.State.PENDING, None, None
    turn.save(update_fields=["state", "lease_token", "lease_until", "claims"])
    locking.changed(chat)
    doorbell.ring(turn)
