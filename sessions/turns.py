"""The turn machine: every change of sessions, messages and turns, as functions.

Each takes its lock inside `atomic()`: the session's row first (on SQLite the IMMEDIATE transaction
is the lock), then what belongs to it. No transaction spans a provider call. Doorbells and stream
events leave after the commit.

    send ─► Message ─► no active turn? ─► Turn(pending) ─► claim ─► begin_step … ─► end
                  └──► active turn: the connection's behaviour, read at that moment
                         steering ─► begin_step (between steps) ─► delivered
                               └───► claim_steering (into a running step) ─► receipt ─► delivered
                         queued ───► a turn of its own when the turn ends
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import OperationalError, transaction
from django.db import connection as database
from django.db.models import (
    Count,
    Exists,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    prefetch_related_objects,
)
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from connections import budgets
from connections.capabilities import capabilities, usable_models
from connections.choices import MidStream
from connections.models import Connection, WorkspaceConnection
from connections.providers.base import ErrorKind
from connections.resolve import Candidates, Choice, Resolution, resolve
from connections.sentences import Reason
from sessions import bus, usage
from sessions.images import CheckedImage
from sessions.models import Attachment, ChatSession, Message, Turn, attachment_path
from workspaces import audit
from workspaces.models import Membership, Role, User
from workspaces.statements import Select, insert, update

logger = logging.getLogger(__name__)

LEASE = dt.timedelta(seconds=15)
MAX_CLAIMS = 3
LEAST_OUTPUT = 256  # tokens that a reply may be bound to
MAX_TEXT = 200_000  # characters of one message
MAX_KEY = 64  # characters of a client key as it is stored
RETRY_RUNNING = 5  # seconds after which it is worth trying whether one of many replies has ended
MAX_WAITING = 200  # messages of one session that wait
FIRST_WORDS = 50  # characters of the first message that make the title at once

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


class Refused(Exception):
    """The request can't be done now; the text is for the person. `kind` is a short name."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence


class Locked(Refused):
    """The session's connection is locked."""


class TooMany(Refused):
    """The person does too much at once; `retry_after` is in seconds."""

    def __init__(self, sentence: str, retry_after: int) -> None:
        super().__init__("too_many", sentence)
        self.retry_after = retry_after


class LeaseLost(Exception):
    """Another worker, a sweep or a person has ended this turn: nothing more may be written."""


@dataclass(frozen=True, slots=True)
class Sent:
    message: Message
    turn: Turn | None
    created: bool


# -- helpers under the session's lock --------------------------------------------------------------


def _lock(chat_id: uuid.UUID) -> ChatSession:
    """The session's row, locked until the transaction's end. Call inside `atomic()`.

    Its connection isn't joined: who waited for the lock would get the row of before, since only
    what is locked is read again.
    """
    chat = _LOCKED.first(chat_id)
    if chat is None:
        raise ChatSession.DoesNotExist
    return chat


_LOCKED = Select(
    lambda chat_id: (
        ChatSession.objects.select_for_update(of=("self",))
        .select_related("workspace")
        .filter(pk=chat_id)
    )
)


def _changed(
    chat: ChatSession, *fields: str, event: str = "changed", said: Mapping[str, Any] | None = None
) -> None:
    """Counts the change, tells open pages after the commit, and has the search look. One UPDATE."""
    chat.version += 1
    chat.search_due = True
    update(chat, "version", "search_due", *fields)
    chat_id, data = chat.pk, {"v": chat.version, **(said or {})}
    transaction.on_commit(lambda: bus.publisher.publish(chat_id, event, data))


def _ring(turn: Turn) -> None:
    """After the commit, tells the workers; when nobody hears, their sweep finds the row."""
    from sessions.tasks import ring

    transaction.on_commit(lambda: ring(turn.pk))


def _active_turn(chat: ChatSession) -> Turn | None:
    return _ACTIVE.first(chat.pk)


_ACTIVE = Select(lambda chat_id: Turn.objects.filter(chat_id=chat_id, state__among=Turn.ACTIVE)[:1])
_TOP_SEQ = Select(
    lambda chat_id: (
        Message.objects.filter(chat_id=chat_id).order_by("-seq").values_list("seq", "place")[:1]
    )
)
_TOP_NUMBER = Select(
    lambda chat_id: (
        Turn.objects.filter(chat_id=chat_id).order_by("-number").values_list("number", "state")[:1]
    )
)


def _next_seq(chat: ChatSession) -> int:
    return (_TOP_SEQ.first(chat.pk) or (0,))[0] + 1


def _new_turn(chat: ChatSession, author_id: uuid.UUID | None) -> Turn:
    number = (_TOP_NUMBER.first(chat.pk) or (0,))[0] + 1
    turn = Turn(chat=chat, number=number, model=chat.model, started_by_id=author_id)
    insert(turn)
    return turn


def _start_turn(chat: ChatSession, message: Message) -> Turn:
    turn = _new_turn(chat, message.author_id)
    message.turn, message.step, message.delivery = turn, 0, Message.Delivery.SENT
    update(message, "turn", "step", "delivery")
    return turn


def waiting(chat: ChatSession) -> QuerySet[Message]:
    """The steering and queued messages, in the order in which they will go."""
    return (
        Message.objects.filter(chat=chat, delivery__among=Message.WAITING)
        .select_related("author")
        .prefetch_related("attachments")
        .order_by("delivery", "place", "seq")
    )


_WAITING = Select(
    lambda chat_id: (
        Message.objects.filter(chat_id=chat_id, delivery__among=Message.WAITING)
        .select_related("author")
        .order_by("delivery", "place", "seq")
    )
)


def waiting_messages(chat: ChatSession) -> list[Message]:
    """What `waiting` finds. One query, two when anything waits."""
    found = _WAITING.all(chat.pk)
    prefetch_related_objects(found, "attachments")
    return found


def _advance(chat: ChatSession) -> Turn | None:
    """Starts the next queued message's turn when nothing stands against it. Under the lock."""
    if chat.queue_paused or _active_turn(chat) is not None:
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
        _changed(chat, "queue_paused", "queue_not_before")
        return None
    chat.queue_not_before = None
    turn = _start_turn(chat, message)
    _changed(chat, "queue_not_before")
    _ring(turn)
    return turn


def _resolved(
    chat: ChatSession, actor: User, choice: Choice, among: Candidates | None = None
) -> Resolution:
    """The resolution, or `Refused` with the reason in the words that the person may act on."""
    resolution = resolve(chat.workspace, choice, among=among)
    if resolution.refusal is not None:
        raise Refused(resolution.refusal, resolution.refusal_text(admin=actor.is_instance_admin))
    return resolution


def _check_there(chat: ChatSession) -> None:
    """Raises `Refused` when the session is being deleted: who held its page may not know yet."""
    if chat.doomed_at is not None:
        raise Refused("gone", _("This session is being deleted."))


def _check_budget(chat: ChatSession, connection_id: uuid.UUID | None = None) -> None:
    """Raises `Refused` when a budget over the session is used up; with `connection_id`, as if it
    were on that connection. One query."""
    if said := budgets.refusal(chat.workspace_id, connection_id or chat.connection_id):
        raise Refused(Reason.BUDGET, said)


def _check_running(person: User) -> None:
    """Raises `TooMany` when so many replies to a person are under way that no other may begin. One
    query. Sends at the same instant in several sessions may pass it together."""
    most = settings.TURNS_PER_PERSON
    if most and Turn.objects.filter(started_by=person, state__among=Turn.ACTIVE).count() >= most:
        raise TooMany(
            ngettext(
                "%(n)d reply to you is under way, as many as there may be at once. Wait for it to "
                "end, then send this again.",
                "%(n)d replies to you are under way, as many as there may be at once. Wait for one "
                "to end, then send this again.",
                most,
            )
            % {"n": most},
            RETRY_RUNNING,
        )


# -- what people do --------------------------------------------------------------------------------


def send(
    chat_id: uuid.UUID,
    author: User,
    text: str,
    *,
    client_key: str = "",
    images: Sequence[CheckedImage] = (),
    files: Sequence[Mapping[str, Any]] = (),
    ring: bool = True,
) -> Sent:
    """Accepts a message; the first one of a session locks its connection, in this transaction.
    `files` are parts as `sessions.textfiles` makes them.

    The same `client_key` again is the same message. Raises `Refused` with a sentence. With `ring`
    off the caller runs the turn itself. Locks the session.
    """
    attachments = [_attachment(position, image) for position, image in enumerate(images)]
    stray = [attachment_path(attachment, attachment.name) for attachment in attachments]
    try:
        # Written before the transaction, which on SQLite holds the only write lock there is.
        for attachment, image in zip(attachments, images, strict=True):
            attachment.file.save(image.name, ContentFile(image.data), save=False)
        with transaction.atomic():
            transaction.on_commit(stray.clear)  # whatever fails after the commit
            sent = _send(chat_id, author, text, client_key, attachments, files, ring)
    except BaseException:
        # No transaction covers the disk: a message that wasn't taken leaves no file there.
        _delete_files(stray)
        raise
    if not sent.created:
        _delete_files([attachment.file.name for attachment in attachments])
    return sent


def _send(
    chat_id: uuid.UUID,
    author: User,
    text: str,
    client_key: str,
    attachments: Sequence[Attachment],
    files: Sequence[Mapping[str, Any]],
    ring: bool,
) -> Sent:
    """In `send`'s transaction."""
    chat = _lock(chat_id)
    _check_there(chat)
    client_key = _storable_key(client_key)
    found = _Standing(*_STANDING.all(chat_id, client_key)[0])
    if client_key and found.same is not None:
        same = Message.objects.select_related("turn").get(pk=found.same)
        return Sent(same, same.turn, created=False)
    text = clean_text(text)
    if not text.strip() and not attachments and not files:
        raise Refused("empty", _("Write a message first."))
    _check_length(text, files)
    connection, locked = _lock_connection(chat, author)
    _check_budget(chat)
    if attachments and not capabilities(connection, chat.model).supports_images:
        raise Refused(
            "images",
            _("The model %(model)s doesn't take images. Remove them, or choose another model.")
            % {"model": chat.model},
        )
    if found.waiting >= MAX_WAITING:
        raise Refused(
            "queue_full", _("So many messages wait already that no more can be taken for now.")
        )
    seq = found.top_seq + 1
    message = Message(
        chat=chat,
        seq=seq,
        place=seq,
        role=Message.Role.USER,
        author=author,
        client_key=client_key or None,
        text=text,
        parts=_parts(text, files),
    )
    turn = _active_turn(chat) if found.is_active else None
    started = None
    if turn is not None:
        steers = connection.mid_stream == MidStream.STEER and not turn.stop_requested_at
        message.delivery = Message.Delivery.STEERING if steers else Message.Delivery.QUEUED
    elif found.is_queued:
        message.delivery = Message.Delivery.QUEUED
    else:
        _check_running(author)
        chat.queue_paused, chat.queue_not_before = "", None
        started = message.turn = _new_turn(chat, author.pk)
    insert(message)
    for attachment in attachments:
        attachment.message = message
        attachment.save(force_insert=True)
    if turn is None and started is None:
        started = _advance(chat)
    chat.updated_at = timezone.now()
    chat.archived_at = None  # who writes on wants it in the list again
    if not chat.title:
        chat.title = first_words(text) or (files[0]["file"] if files else _("Image"))
    fields = ("updated_at", "archived_at", "title", "queue_paused", "queue_not_before")
    _changed(chat, *fields, *locked)
    if ring and message.turn is not None:
        _ring(message.turn)
    return Sent(message, started or turn, created=True)


@dataclass(frozen=True, slots=True)
class _Standing:
    """What a send has to know of its session, read under the lock in one query."""

    top_seq: int
    same: uuid.UUID | None  # the message that came with the same key
    waiting: int
    is_queued: bool
    is_active: bool


def _standing(chat_id: Any, client_key: Any) -> QuerySet[Any]:
    messages = Message.objects.filter(chat_id=OuterRef("pk")).order_by()
    waiting = messages.filter(delivery__among=Message.WAITING)
    return (
        ChatSession.objects.filter(pk=chat_id)
        .annotate(
            top_seq=Coalesce(Subquery(messages.order_by("-seq").values("seq")[:1]), 0),
            same=Subquery(messages.filter(client_key=client_key).values("pk")[:1]),
            waiting=Coalesce(
                Subquery(waiting.values("chat_id").annotate(n=Count("pk")).values("n")), 0
            ),
            is_queued=Exists(waiting.filter(delivery=Message.Delivery.QUEUED)),
            is_active=Exists(Turn.objects.filter(chat_id=OuterRef("pk"), state__among=Turn.ACTIVE)),
        )
        .values_list("top_seq", "same", "waiting", "is_queued", "is_active")
    )


_STANDING = Select(_standing)


def _lock_connection(chat: ChatSession, actor: User) -> tuple[Connection, tuple[str, ...]]:
    """Resolves and locks the session's connection at its first message, or checks that the locked
    one can be used. Returns it, and the fields of the session that the caller is to write. Under
    the session's lock. Raises `Refused`."""
    among = Candidates.of(chat.workspace, only=chat.connection_id)
    resolution = _resolved(chat, actor, Choice(chat.connection_id, chat.locked_at), among)
    connection = resolution.connection
    assert connection is not None
    if chat.locked_at is not None:
        return connection, ()
    chat.connection = connection
    if chat.model not in usable_models(connection, among.rows.get(connection.pk)):
        chat.model = resolution.model
    chat.locked_at = timezone.now()
    audit.record(
        actor,
        "session.lock",
        chat,
        workspace_id=chat.workspace_id,
        label=str(chat.pk),
        connection=connection.slug,
        rule=str(resolution.rule),
    )
    return connection, ("connection", "model", "locked_at")


def _models(chat: ChatSession, connection: Connection) -> list[str]:
    row = WorkspaceConnection.objects.filter(
        workspace_id=chat.workspace_id, connection=connection
    ).first()
    return usable_models(connection, row)


def _delete_files(names: Sequence[str]) -> None:
    for name in names:
        default_storage.delete(name)


def _attachment(position: int, image: CheckedImage) -> Attachment:
    return Attachment(
        position=position,
        media_type=image.media_type,
        name=image.name,
        width=image.width,
        height=image.height,
        size=len(image.data),
    )


def clean_text(text: str) -> str:
    """NUL and lone surrogates can't be stored; CRLF of a form becomes a newline."""
    text = text.replace("\r\n", "\n").replace("\x00", "\ufffd")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _storable_key(client_key: str) -> str:
    """A long key by its hash: cut off, two keys could become one, and a message be lost."""
    key = clean_text(client_key)
    return key if len(key) <= MAX_KEY else hashlib.sha256(key.encode()).hexdigest()


def _check_length(text: str, files: Sequence[Mapping[str, Any]] = ()) -> None:
    count = len(text) + sum(len(part["text"]) for part in files)
    if count > MAX_TEXT:
        said = (
            _("This message and its files have %(count)s characters; %(most)s is the most.")
            if files
            else _("This message has %(count)s characters; %(most)s is the most one can have.")
        )
        raise Refused("too_large", said % {"count": count, "most": MAX_TEXT})


def _parts(text: str, files: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A person's words, then the files."""
    return [*([{"t": "text", "text": text}] if text.strip() else []), *files]


def first_words(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= FIRST_WORDS:
        return line
    head = line[:FIRST_WORDS]
    return (head.rsplit(" ", 1)[0] if " " in head else head).rstrip(".,;:") + "…"


@transaction.atomic
def choose_connection(chat_id: uuid.UUID, actor: User, connection: Connection | None) -> None:
    """The choice before the first message; None goes back to the defaults. Raises `Locked`
    afterwards, `Refused` when the connection can't be used here. Locks the session."""
    chat = _lock(chat_id)
    if chat.locked_at is not None:
        raise Locked(
            "locked",
            _("This session is locked to its connection since the first message."),
        )
    if connection is not None:
        _resolved(chat, actor, Choice(connection.pk))
    chat.connection = connection
    chat.model = ""
    _changed(chat, "connection", "model")


@transaction.atomic
def choose_model(chat_id: uuid.UUID, actor: User, model: str) -> None:
    """Another model of the same connection, from the next turn on. Raises `Refused`."""
    chat = _lock(chat_id)
    connection = chat.connection or _resolved(chat, actor, Choice()).connection
    assert connection is not None
    if model not in _models(chat, connection):
        raise Refused(
            "model", _("%(model)s isn't among this connection's models here.") % {"model": model}
        )
    chat.model = model
    _changed(chat, "model")


@transaction.atomic
def choose_options(chat_id: uuid.UUID, actor: User, wanted: Mapping[str, str]) -> None:
    """How hard the model thinks (`thinking`, a level or "" for its own way) and how long a reply
    may be (`max_output`, tokens or "" for the default), from the next turn on; what isn't named
    stays. Raises `Refused`. Locks the session."""
    chat = _lock(chat_id)
    connection, model = chat.connection, chat.model
    if connection is None or not model:
        resolution = _resolved(chat, actor, Choice(chat.connection_id, chat.locked_at))
        connection, model = resolution.connection, model or resolution.model
        assert connection is not None
    can = capabilities(connection, model)
    thinking, tokens = wanted.get("thinking"), wanted.get("max_output")
    if thinking and thinking not in can.thinking and thinking != chat.thinking:
        raise Refused("thinking", _("This model doesn't take that level of thinking."))
    if thinking is not None:
        chat.thinking = thinking
    if tokens is not None:
        chat.max_output = _output_tokens(tokens, can.longest_output) if tokens.strip() else None
    _changed(chat, "thinking", "max_output")


def _output_tokens(text: str, most: int) -> int:
    least = min(LEAST_OUTPUT, most)
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 9 and least <= int(text) <= most):
        raise Refused(
            "max_output",
            _("The longest output is a number of tokens from %(least)d to %(most)d.")
            % {"least": least, "most": most},
        )
    return int(text)


@transaction.atomic
def rename(chat_id: uuid.UUID, title: str, *, by_model: bool = False) -> None:
    """A title by a person or, once, by a model, which never replaces the former's."""
    chat = _lock(chat_id)
    if by_model and chat.title_is_final:
        return
    chat.title, chat.title_is_final = clean_text(" ".join(title.split()))[:200], True
    _changed(chat, "title", "title_is_final")


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
    chat = _lock(chat_id)
    turn = _active_turn(chat)
    if turn is None or turn_id not in (None, turn.pk):
        return []
    returned: list[Message] = []
    if queued == "return":
        own = waiting(chat).filter(author=actor, attachments=None)
        returned = [message for message in own if not message.files]
        for message in returned:
            message.delivery, message.turn = Message.Delivery.CANCELLED, None
        Message.objects.bulk_update(returned, ["delivery", "turn"])
    _requeue_steering(chat)
    if _ask_to_stop(chat, turn):
        _changed(chat)
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
    turn = _active_turn(chat)
    return turn is not None and _ask_to_stop(chat, turn)


@transaction.atomic
def retry(chat_id: uuid.UUID, actor: User) -> Turn:
    """The last turn once more, when it failed, was stopped or interrupted: what the model had
    said is dropped, what people had said stays. Raises `Refused`. Locks the session."""
    chat = _lock(chat_id)
    _check_there(chat)
    turn = Turn.objects.filter(chat=chat).order_by("-number").first()
    if turn is None or turn.is_active or turn.state == Turn.State.DONE:
        raise Refused("nothing_to_retry", _("There is nothing to try again."))
    _resolved(chat, actor, Choice(chat.connection_id, chat.locked_at))
    _check_budget(chat)
    _check_running(actor)
    Message.objects.filter(turn=turn, role=Message.Role.ASSISTANT).delete()
    Message.objects.filter(turn=turn).update(step=0)
    fresh = Turn(pk=turn.pk, chat=chat, number=turn.number, model=chat.model)
    fresh.started_by, fresh.created_at = actor, turn.created_at
    fresh.save(force_update=True)
    chat.queue_paused, chat.queue_not_before, chat.failures = "", None, 0
    _changed(chat, "queue_paused", "queue_not_before", "failures")
    _ring(fresh)
    return fresh


@transaction.atomic
def resume(chat_id: uuid.UUID) -> Turn | None:
    """Lets a paused queue go on. Raises `Refused` while a budget is used up. Locks the session."""
    chat = _lock(chat_id)
    _check_budget(chat)
    chat.queue_paused, chat.queue_not_before, chat.failures = "", None, 0
    _changed(chat, "queue_paused", "queue_not_before", "failures")
    return _advance(chat)


def _waiting_message(chat: ChatSession, message_id: uuid.UUID) -> Message:
    message = Message.objects.filter(chat=chat, pk=message_id).first()
    # One that waits and has a turn is claimed: it is with the provider, its receipt on the way.
    if message is None or message.delivery not in Message.WAITING or message.turn_id is not None:
        raise Refused("gone", _("This message is on its way already and can't be changed."))
    return message


@transaction.atomic
def edit_waiting(chat_id: uuid.UUID, message_id: uuid.UUID, actor: User, text: str) -> Message:
    """Changes one's own message that waits. Raises `Refused` once it was claimed. Locks the
    session."""
    chat = _lock(chat_id)
    message = _waiting_message(chat, message_id)
    if message.author_id != actor.pk:
        # It goes out under its author's name.
        raise Refused("not_yours", _("Only who wrote a message can change it."))
    text = clean_text(text)
    if not text.strip():
        raise Refused("empty", _("Write a message first, or cancel this one."))
    files = [part for part in message.parts if "file" in part]
    _check_length(text, files)
    message.text, message.parts = text, _parts(text, files)
    message.save(update_fields=["text", "parts"])
    _changed(chat)
    return message


@transaction.atomic
def cancel_waiting(chat_id: uuid.UUID, message_id: uuid.UUID) -> Message:
    """Takes a message back that waits. Raises `Refused` once it was claimed. Locks the session."""
    chat = _lock(chat_id)
    message = _waiting_message(chat, message_id)
    message.delivery = Message.Delivery.CANCELLED
    message.save(update_fields=["delivery"])
    _changed(chat)
    return message


@transaction.atomic
def promote_waiting(chat_id: uuid.UUID, message_id: uuid.UUID) -> Message:
    """A queued message is steered into the running turn instead. Locks the session."""
    chat = _lock(chat_id)
    message = _waiting_message(chat, message_id)
    turn = _active_turn(chat)
    if turn is None or turn.stop_requested_at:
        raise Refused("no_turn", _("There is no running reply to steer."))
    message.delivery = Message.Delivery.STEERING
    message.save(update_fields=["delivery"])
    _changed(chat)
    return message


@transaction.atomic
def move_waiting(
    chat_id: uuid.UUID, message_id: uuid.UUID, *, earlier: bool = False, before: str | None = None
) -> None:
    """Swaps a queued message with its neighbour, or puts it before the one whose id is `before`:
    behind all for "", first for one that no longer waits. Locks the session."""
    chat = _lock(chat_id)
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
    _changed(chat)


# -- what workers do -------------------------------------------------------------------------------


def _memberships_that_send() -> QuerySet[Membership]:
    """Of a turn's person in its workspace."""
    return Membership.objects.filter(
        user=OuterRef("started_by"),
        workspace=OuterRef("chat__workspace"),
        role__in=(Role.MEMBER, Role.ADMIN),
    )


def without_access(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """The leases of running turns whose person was switched off, removed or made a viewer since
    they asked for it. One query."""
    running = Turn.objects.filter(lease_token__in=tokens, state=Turn.State.RUNNING)
    lost = running.exclude(
        Q(started_by__is_superuser=True) | Exists(_memberships_that_send()),
        started_by__is_active=True,
    )
    return set(lost.values_list("lease_token", flat=True))


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
        .annotate(sends=Exists(_memberships_that_send()))
    )
)


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
    turn.lease_until = turn.started_at + LEASE
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
    _changed(chat)
    return turn


def _held(turn_id: uuid.UUID, token: uuid.UUID) -> Any:
    """The turn's row while this worker holds it. Every write of a worker goes through it."""
    return Turn.objects.filter(pk=turn_id, lease_token=token, state=Turn.State.RUNNING)


_HELD = Select(
    lambda turn_id, token: _held(turn_id, token).select_for_update(of=("self",)).order_by()
)


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
    chat = _lock(turn.chat_id)
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
        seq=_next_seq(chat),
        role=Message.Role.ASSISTANT,
        turn=turn,
        step=number,
        is_complete=False,
    )
    insert(reply)
    _changed(chat)
    return Step(number, reply.pk, steered)


def _steering(chat: ChatSession) -> list[Message]:
    """What waits to be steered and is not with a provider yet, in the order of sending."""
    return list(
        Message.objects.filter(chat=chat, delivery=Message.Delivery.STEERING, turn=None)
        .prefetch_related("attachments")
        .order_by("place", "seq")
    )


def _deliver(turn: Turn, message_id: uuid.UUID, step: int) -> None:
    """Nothing when the message was queued or cancelled meanwhile, as Stop does."""
    Message.objects.filter(
        pk=message_id, turn=turn, chat_id=turn.chat_id, delivery=Message.Delivery.STEERING
    ).update(delivery=Message.Delivery.DELIVERED, step=step)


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
        chat = _lock(turn.chat_id)
        held = _held(turn.pk, token).first()
        if held is None:
            raise LeaseLost
        if held.stop_requested_at is not None:
            return []
        claimed = _steering(chat)
        for message in claimed:
            message.turn = turn
        Message.objects.bulk_update(claimed, ["turn"])
        _changed(chat)
    return claimed


@transaction.atomic
def deliver_steered(turn: Turn, token: uuid.UUID, message_id: uuid.UUID, step: int) -> None:
    """The receipt of a claimed message that stands beside the one which began the next step.
    Raises `LeaseLost`. Locks the session."""
    chat = _lock(turn.chat_id)
    if not _held(turn.pk, token).exists():
        raise LeaseLost
    _deliver(turn, message_id, step)
    _changed(chat)


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
        return set(tokens) - held(tokens)


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
    mine = _HELD.first(turn_id, token)
    if mine is None:
        raise LeaseLost
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
    chat = _lock(turn.chat_id)
    if not _held(turn.pk, token).select_for_update(of=("self",)).exists():
        raise LeaseLost
    for message in Message.objects.filter(turn=turn, pk__in=kept):
        for part in message.parts:
            if part["t"] == "tool_result" and part["id"] in kept[message.pk]:
                part["kept"] = kept[message.pk][part["id"]]
        message.save(update_fields=["parts"])
    _changed(chat)


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
    chat = _lock(turn.chat_id)
    # Locked before the reply: a `finish_step` whose caller was cancelled takes them in this order.
    mine = _HELD.first(turn.pk, token)
    if mine is None:
        raise LeaseLost
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
    waits = _WAITS.all(chat.pk)
    if (Message.Delivery.STEERING,) in waits:
        _requeue_steering(chat)
    if state == Turn.State.FAILED and turn.error_kind not in PASSING:
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
    chat.updated_at = timezone.now()
    said = {"turn": str(turn.pk), "state": str(state)}
    fields = ("failures", "queue_paused", "queue_not_before", "updated_at")
    _changed(chat, *fields, event="turn-end", said=said)
    if waits:
        _advance(chat)


_UNFINISHED = Select(
    lambda turn_id: (
        Message.objects.filter(turn_id=turn_id)
        .filter(Q(is_complete=False) | Q(role=Message.Role.ASSISTANT, text=""))
        .values_list("seq", "step")[:1]
    )
)
_WAITS = Select(
    lambda chat_id: (
        Message.objects.filter(chat_id=chat_id, delivery__among=Message.WAITING)
        .order_by()
        .values_list("delivery")
        .distinct()
    )
)


def _requeue_steering(chat: ChatSession) -> None:
    Message.objects.filter(chat=chat, delivery=Message.Delivery.STEERING).update(
        delivery=Message.Delivery.QUEUED, turn=None
    )


def renew(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """The heartbeat of a worker: lengthens its leases, returns those it still holds."""
    Turn.objects.filter(lease_token__in=tokens, state=Turn.State.RUNNING).update(
        lease_until=timezone.now() + LEASE
    )
    return held(tokens)


def held(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these leases still hold."""
    return set(
        Turn.objects.filter(lease_token__in=tokens, state=Turn.State.RUNNING).values_list(
            "lease_token", flat=True
        )
    )


def stops_requested(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    return set(
        Turn.objects.filter(
            lease_token__in=tokens, state=Turn.State.RUNNING, stop_requested_at__isnull=False
        ).values_list("lease_token", flat=True)
    )


# -- the sweep -------------------------------------------------------------------------------------


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
            _advance(_lock(chat_id))
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
    chat = _lock(turn.chat_id)
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
    _changed(chat)
    _ring(turn)
