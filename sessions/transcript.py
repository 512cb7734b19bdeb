"""A session as its page shows it: turns with their messages and blocks, what waits, what it costs.

`build` reads the event stream's place before the database, so that a page never starts behind what
it shows: events it has already are idempotent, events it lacks come.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from django.db.models import Sum
from django.utils.formats import number_format
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connections import budgets
from connections.capabilities import Capabilities, capabilities
from connections.choices import MidStream
from connections.models import Connection
from connections.resolve import Candidates, Choice, Resolution, Usable, resolve
from connections.sentences import Reason, Sentence, sentence
from sessions import bus, queueing
from sessions.access import visible_chats, visible_to
from sessions.models import Attachment, ChatSession, Message, Seen, Turn
from sessions.reply import Block, blocks_of
from workspaces.models import Role
from workspaces.permissions import Access
from workspaces.statements import Select, prefetched

_LEVELS = {
    "off": gettext_lazy("Off"),
    "low": gettext_lazy("Low"),
    "medium": gettext_lazy("Medium"),
    "high": gettext_lazy("High"),
}
_LENGTHS = (1_024, 4_096, 8_192, 16_384, 32_768, 65_536)  # tokens that the page offers

PAGE = 30  # turns a page shows at first; older ones come as one asks for them


MOST_CARDS = 12  # connections that are shown with what they can do; others are offered by name


@dataclass(slots=True)
class Shown:
    """A message with its blocks (a person's has none: its text is shown as it was written)."""

    message: Message
    blocks: list[Block]

    @property
    def is_growing(self) -> bool:
        return not self.message.is_complete


@dataclass(slots=True)
class ShownTurn:
    turn: Turn
    messages: list[Shown]
    is_last: bool = False
    seam: bool = False  # what stands before this turn no longer reaches the model
    auth_type: str = ""  # of the session's connection
    follows: str = ""  # "before" or "after" it the session goes on from another one
    is_news: bool = False  # the first one that the person hasn't seen to its end
    versions: Sequence[ChatSession] = ()  # in which it was asked again

    @property
    def problem(self) -> Sentence | None:
        if self.turn.state != Turn.State.FAILED:
            return None
        return sentence(self.turn.error_kind, self.auth_type)

    @property
    def took(self) -> float | None:
        """Milliseconds from its claim to its end."""
        turn = self.turn
        if turn.started_at is None or turn.ended_at is None:
            return None
        return (turn.ended_at - turn.started_at).total_seconds() * 1000

    @property
    def can_regenerate(self) -> bool:
        return self.is_last and self.turn.state == Turn.State.DONE

    @property
    def can_retry(self) -> bool:
        return self.is_last and self.turn.state in (
            Turn.State.FAILED,
            Turn.State.STOPPED,
            Turn.State.INTERRUPTED,
        )


@dataclass(slots=True)
class Card:
    """A connection that can be chosen, with what it can do."""

    usable: Usable
    capabilities: Capabilities
    is_chosen: bool
    is_resolved: bool

    @property
    def connection(self) -> Connection:
        return self.usable.connection

    @property
    def shown(self) -> dict[str, Any]:
        """As `components/capability_card.html` takes it."""
        connection, can = self.connection, self.capabilities
        return {
            "name": connection.name,
            "slug": connection.slug,
            "tone": connection.status.tone,
            "status": connection.status.label,
            "checked_at": connection.health_at,
            "model": can.name,
            "context_window": can.context_window,
            "window_assumed": can.window_is_assumed,
            "images": can.supports_images,
            "mid_stream": connection.mid_stream.label,
            "no_tools": not can.takes_tools,
            "price": _price(can),
        }


def _price(can: Capabilities) -> str:
    if can.price_input is None or can.price_output is None:
        return ""
    return _("%(input)s in, %(output)s out a million") % {
        "input": budgets.money(can.price_input.normalize(), None),
        "output": budgets.money(can.price_output.normalize(), None),
    }


@dataclass
class Transcript:
    chat: ChatSession
    access: Access
    cursor: str
    turns: list[ShownTurn]
    waiting: list[Message]
    older: int = 0  # the number below which there are older turns; 0: none

    @cached_property
    def _among(self) -> Candidates:
        """The whole list: to choose from, or to go on elsewhere."""
        return Candidates.of(self.chat.workspace, also=self.chat.connection_id)

    @cached_property
    def _own(self) -> Candidates:
        """What decides about this session: once it is locked, its own connection."""
        if not self.chat.is_locked:
            return self._among
        return Candidates.of(self.chat.workspace, only=self.chat.connection_id)

    @property
    def attributes(self) -> dict[str, Any]:
        """The `data-` attributes of the page's root; with every answer the page takes them anew."""
        return {
            "turn-state": self.state,
            "connection": self.connection.slug if self.connection else "",
            "locked": "true" if self.chat.is_locked else "false",
            "version": self.chat.version,
            "cursor": self.cursor,
            "seam": self.seam,
        }

    @property
    def seam(self) -> int:
        """The number of the turn before which nothing reaches the model any more; 0: all does."""
        return _seam([shown.turn for shown in self.turns])

    @cached_property
    def seen(self) -> int:
        """The last turn whose end the person has seen; -1: they never looked. One query."""
        seen = Seen.objects.filter(chat=self.chat, user=self.access.user)
        return next(iter(seen.values_list("number", flat=True)), -1)

    def mark_unseen(self) -> None:
        """Where a line says what is new: not where nothing was seen before, nor at what runs."""
        after = [shown for shown in self.turns if shown.turn.number > self.seen > 0]
        if after and not after[0].turn.is_active:
            after[0].is_news = True

    @property
    def state(self) -> str:
        """`idle`, or the state of the last turn."""
        return self.turns[-1].turn.state if self.turns else "idle"

    @property
    def headline(self) -> str:
        """What the tab says before the title, so that it tells from afar; "" when all is well."""
        if self.pause:
            return _("Paused")
        return {
            Turn.State.PENDING: _("Working…"),
            Turn.State.RUNNING: _("Working…"),
            Turn.State.FAILED: _("Failed"),
            Turn.State.INTERRUPTED: _("Interrupted"),
        }.get(self.state, "")

    @property
    def active(self) -> Turn | None:
        last = self.turns[-1].turn if self.turns else None
        return last if last is not None and last.is_active else None

    @cached_property
    def resolution(self) -> Resolution:
        choice = Choice(self.chat.connection_id, self.chat.locked_at)
        return resolve(self.chat.workspace, choice, among=self._own)

    @property
    def connection(self) -> Connection | None:
        """The locked one (even when it is gone), else the one a first message would lock."""
        if self.chat.is_locked:
            return self.chat.connection
        return self.resolution.connection or self.chat.connection

    @property
    def model(self) -> str:
        return self.chat.model or self.resolution.model

    @property
    def models(self) -> list[str]:
        connection = self.resolution.connection
        found = self._own.usable_one(connection.pk) if connection else None
        return found.models if found else []

    @cached_property
    def capabilities(self) -> Capabilities | None:
        return capabilities(self.connection, self.model) if self.connection else None

    @property
    def thinking_levels(self) -> list[dict[str, str]]:
        """The choice of how hard the model thinks; one that it doesn't take is named as unused."""
        taken = self.capabilities.thinking if self.capabilities else ()
        found = [{"value": "", "label": _("As the model does")}]
        found += [{"value": level, "label": str(_LEVELS[level])} for level in taken]
        if (kept := self.chat.thinking) and kept not in taken:
            label = _("%(level)s (not with this model)") % {"level": _LEVELS.get(kept, kept)}
            found.append({"value": kept, "label": label})
        return found

    @property
    def output_lengths(self) -> list[dict[str, object]]:
        """The choice of how long a reply may be, in tokens."""
        can, chosen = self.capabilities, self.chat.max_output
        assert can is not None
        usual = can.output_for(self.chat.thinking, None)
        lengths = {n for n in _LENGTHS if n <= can.longest_output} | ({chosen} if chosen else set())
        rows: list[dict[str, object]] = [
            {
                "value": "",
                "label": _("Default (%(n)s tokens)")
                % {"n": number_format(usual, force_grouping=True)},
                "chosen": not chosen,
            }
        ]
        return rows + [
            {
                "value": n,
                "label": _("%(n)s tokens") % {"n": number_format(n, force_grouping=True)},
                "chosen": n == chosen,
            }
            for n in sorted(lengths)
        ]

    @cached_property
    def _offer(self) -> tuple[list[Usable], list[tuple[str, str]]]:
        """Those that the session or its workspace chose, and the first connections; slug and name
        of the others."""
        found, others = self._among.offer(MOST_CARDS)
        resolved = self.resolution.connection
        for key in (self.chat.connection_id, resolved and resolved.pk):
            if key and key not in {one.connection.pk for one in found}:
                found = [*filter(None, [self._among.usable_one(key)]), *found]
        shown = {one.connection.slug for one in found}
        return found, [pair for pair in others if pair[0] not in shown]

    @cached_property
    def cards(self) -> list[Card]:
        """The choice before the first message."""
        if self.chat.is_locked:
            return []
        resolved = self.resolution.connection
        return [
            Card(
                usable,
                capabilities(usable.connection, usable.first_model),
                usable.connection.pk == self.chat.connection_id,
                resolved is not None and usable.connection.pk == resolved.pk,
            )
            for usable in self._offer[0]
        ]

    @property
    def other_choices(self) -> list[tuple[str, str]]:
        """Slug and name of what can be chosen besides the cards."""
        return self._offer[1]

    @property
    def trace(self) -> list[object]:
        return list(self.resolution.trace_for(self.access))

    @cached_property
    def successors(self) -> list[tuple[str, str]]:
        """Slug and name of the connections on which the session could go on, the named successor of
        its own first; none while a reply runs."""
        if not self.chat.is_locked or self.active or not self.may_send:
            return []
        found, others = self._among.offer(MOST_CARDS)
        own = self.chat.connection
        heir = own.successor if own and own.successor_id else None
        named = [(u.connection.slug, f"{u.connection.name} ({u.first_model})") for u in found]
        named = [pair for pair in [*named, *others] if own is None or pair[0] != own.slug]
        return sorted(named, key=lambda pair: heir is None or pair[0] != heir.slug)

    @cached_property
    def came_from(self) -> ChatSession | None:
        """The session that this one continues, where the person may read it. One query."""
        if not self.chat.continued_from_id:
            return None
        mine = visible_chats(self.access).select_related("workspace", "connection")
        return mine.filter(pk=self.chat.continued_from_id).first()

    @property
    def is_version(self) -> bool:
        """Whether what it came from was asked again here, rather than continued elsewhere."""
        came_from = self.came_from
        return came_from is not None and came_from.connection_id == self.chat.connection_id

    @property
    def continuations(self) -> list[ChatSession]:
        """The sessions that continue this one on another connection."""
        return [one for one in self.heirs if one.connection_id != self.chat.connection_id]

    @cached_property
    def heirs(self) -> list[ChatSession]:
        """The newest sessions that came from this one, as far as the person may read them, oldest
        first. One query."""
        access = self.access
        return _HEIRS.all(access.workspace.pk, access.user.pk, self.chat.pk)[::-1]

    @property
    def refusal(self) -> str:
        """Why nothing can be sent, "" when it can."""
        return self.resolution.refusal_text(admin=self.access.user.is_instance_admin)

    @property
    def may_send(self) -> bool:
        is_owner = self.chat.owner_id == self.access.user.pk
        return self.access.has(Role.MEMBER) and (is_owner or not self.chat.read_only)

    @property
    def can_send(self) -> bool:
        return self.may_send and not self.refusal

    @property
    def queued(self) -> int:
        """How many messages have an order that can be changed."""
        return sum(message.delivery == Message.Delivery.QUEUED for message in self.waiting)

    @property
    def steers(self) -> bool:
        """Whether a message sent now would be steered rather than queued."""
        return (
            self.active is not None
            and self.connection is not None
            and self.connection.mid_stream == MidStream.STEER
        )

    @property
    def pause(self) -> Sentence | None:
        if self.chat.queue_paused == Reason.BUDGET:
            return self._budget_pause
        return sentence(self.chat.queue_paused) if self.chat.queue_paused else None

    @cached_property
    def _budget_pause(self) -> Sentence:
        """Which budget stands against it, or that none does any more. One query."""
        found = sentence(Reason.BUDGET)
        if said := budgets.refusal(self.chat.workspace_id, self.chat.connection_id):
            fix = _("Raise it, or resume then.")
            return replace(found, what=said, fix=fix, ask=_("Resume then, or ask an admin."))
        what = _("The budget was used up; there is room in it again.")
        return replace(found, what=what, fix=_("Resume to go on."), ask="")

    @property
    def context_tokens(self) -> int:
        """Tokens of the last request and its reply, as the provider counted them; 0: unknown."""
        return next(
            (t.turn.context_tokens for t in reversed(self.turns) if t.turn.context_tokens), 0
        )

    @property
    def context_share(self) -> int:
        """Per cent of the model's window in use."""
        if self.capabilities is None or not self.context_tokens:
            return 0
        return min(100, round(100 * self.context_tokens / self.capabilities.context_window))

    @cached_property
    def cost(self) -> Decimal | None:
        """US dollars of all turns so far whose price is known; None when none is. One query."""
        return _COST.all(self.chat.pk)[0][0]


_HEIRS = Select(
    lambda workspace_id, user_id, chat_id: (
        visible_to(workspace_id, user_id)
        .select_related("workspace", "connection")
        .filter(continued_from_id=chat_id)
        .order_by("-created_at")[:30]
    )
)
_COST = Select(
    lambda chat_id: (
        ChatSession.objects.filter(pk=chat_id)
        .annotate(cost=Sum("turns__cost"))
        .order_by()
        .values_list("cost")
    )
)


def build(chat: ChatSession, access: Access, *, since: int = 0, before: int = 0) -> Transcript:
    """The newest turns of a session; `since` only those from that number on, `before` the page of
    older ones below it. Queries: a constant number."""
    newest = bus.publisher.last_id(chat.pk)
    if since:
        page = _SINCE.all(chat.pk, since)
    else:
        page = _BEFORE.all(chat.pk, before or 10**9)
    older = 0
    if not since and len(page) > PAGE:
        page.pop()
        older = page[-1].number
    page.reverse()
    shown = _shown(chat, page)
    for one in shown:
        one.auth_type = chat.connection.auth_type if chat.connection else ""
        if chat.continued_from_id or chat.continued_turns:
            if one.turn.number == chat.continued_turns:
                one.follows = "after"
            elif one.turn.number == 1 and not chat.continued_turns:
                one.follows = "before"
    if shown and not before:
        shown[-1].is_last = True
    growing = next((m.message for t in shown for m in t.messages if m.is_growing), None)
    cursor = newest if growing is None else (growing.cursor or "0-0")
    waiting = [] if before else queueing.waiting_messages(chat)
    transcript = Transcript(chat, access, cursor, shown, waiting, older)
    for heir in transcript.heirs:
        if heir.connection_id == chat.connection_id:
            for one in shown:
                if one.turn.number == heir.continued_turns + 1:
                    one.versions = [*one.versions, heir]
    return transcript


_TURNS = Turn.objects.select_related("started_by").order_by("-number")
_SINCE = Select(lambda chat_id, since: _TURNS.filter(chat_id=chat_id, number__gte=since)[:200])
_BEFORE = Select(
    lambda chat_id, before: _TURNS.filter(chat_id=chat_id, number__lt=before)[: PAGE + 1]
)
_MESSAGES = Select(
    lambda chat_id, first, last: (
        Message.objects.filter(chat_id=chat_id, turn__number__gte=first, turn__number__lte=last)
        .exclude(delivery__among=Message.WAITING)
        .select_related("author")
        .order_by("step", "role", "place", "seq")
    )
)
_ATTACHED = Select(
    lambda chat_id, first, last: Attachment.objects.filter(
        message__chat_id=chat_id,
        message__turn__number__gte=first,
        message__turn__number__lte=last,
    )
)


def _shown(chat: ChatSession, page: Sequence[Turn]) -> list[ShownTurn]:
    if not page:
        return []
    span = (chat.pk, page[0].number, page[-1].number)
    attached: dict[uuid.UUID, list[Attachment]] = {}
    for attachment in _ATTACHED.all(*span):
        attached.setdefault(attachment.message_id, []).append(attachment)
    by_turn: dict[uuid.UUID, list[Shown]] = {}
    for message in _MESSAGES.all(*span):
        prefetched(message, "attachments", attached.get(message.pk, ()), Attachment)
        blocks = blocks_of(message) if message.role == Message.Role.ASSISTANT else []
        by_turn.setdefault(message.turn_id, []).append(Shown(message, blocks))
    seam = _seam(page)
    return [
        ShownTurn(turn, by_turn.get(turn.pk, []), seam=bool(seam) and turn.number == seam)
        for turn in page
    ]


def _seam(page: Sequence[Turn]) -> int:
    """The seam stands where the newest turn that left something out began to read."""
    return next((turn.left_out_before for turn in reversed(page) if turn.left_out_before), 0)
