"""Conversations: sessions, their messages, and the turns that answer them.

The database is the queue of record. Order of a transcript: turn number, step, the assistant's
message of a step before the messages steered in after it, then the order of sending.
"""

from __future__ import annotations

import uuid
from typing import ClassVar
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from connections.models import Connection
from sessions.textfiles import ShownFile, files_of
from workspaces.fields import SealedField
from workspaces.models import Workspace


class ChatSession(models.Model):
    """A conversation in a workspace, locked to one connection at its first message.

    Locked means `locked_at`, never "a connection is set": before the first message `connection` is
    a mere choice. `version` counts every change that a page shows; an open page that misses one
    asks for the transcript again.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="chats")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.PROTECT,
        related_name="chats",
        verbose_name=_("owner"),
    )
    title = models.CharField(_("title"), max_length=200, blank=True)
    title_is_final = models.BooleanField(default=False, editable=False)
    shared = models.BooleanField(_("shared with the workspace"), default=False)
    read_only = models.BooleanField(_("colleagues only read"), default=False)
    archived_at = models.DateTimeField(_("archived"), null=True, blank=True)
    connection = models.ForeignKey(
        Connection,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="chats",
        verbose_name=_("connection"),
    )
    locked_at = models.DateTimeField(_("locked"), null=True, blank=True)
    model = models.CharField(_("model"), max_length=200, blank=True)
    # A level that the model may not take (it is then left alone), and tokens; unset: the defaults.
    thinking = models.CharField(_("thinking"), max_length=8, blank=True, default="")
    max_output = models.PositiveIntegerField(_("longest output"), null=True, blank=True)
    # Another connection's session whose transcript, up to a turn, this one began with.
    continued_from = models.ForeignKey(
        "self",
        models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="continuations",
        verbose_name=_("continues"),
    )
    continued_turns = models.PositiveIntegerField(default=0, editable=False)
    # Of a conversation that was asked again (`versions`): 2 for the first time. Of any other 0.
    nth_version = models.PositiveIntegerField(default=0, editable=False)
    # Hidden since then, and on its way out piece by piece (`keeping.delete_doomed`).
    doomed_at = models.DateTimeField(_("being deleted"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    updated_at = models.DateTimeField(_("last message"), default=timezone.now, db_index=True)
    version = models.PositiveIntegerField(default=0, editable=False)
    # The queue: why it stands still ("" when it goes on), when it goes on by itself, and how many
    # turns failed in a row.
    queue_paused = models.CharField(max_length=24, blank=True, default="", editable=False)
    queue_not_before = models.DateTimeField(null=True, blank=True, editable=False)
    failures = models.PositiveSmallIntegerField(default=0, editable=False)
    # Whether it has texts that the search doesn't know yet (`sessions.search`).
    search_due = models.BooleanField(default=True, editable=False)

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        ordering = ["-updated_at", "id"]
        indexes = [
            models.Index(fields=["workspace", "-updated_at"], name="chat_by_workspace"),
            models.Index(
                fields=["id"], condition=models.Q(search_due=True), name="chats_due_for_search"
            ),
            models.Index(
                fields=["id"], condition=models.Q(doomed_at__isnull=False), name="chats_to_delete"
            ),
        ]

    def __str__(self) -> str:
        return self.title or str(self.id)

    def get_absolute_url(self) -> str:
        return reverse("sessions:detail", args=[self.workspace.slug, self.id])

    @property
    def heading(self) -> str:
        """The title as pages show it: versions of one conversation have the same, and a number."""
        title = self.title or gettext("New session")
        if not self.nth_version:
            return title
        version = {"title": title, "number": self.nth_version}
        return gettext("%(title)s · version %(number)s") % version

    @property
    def is_locked(self) -> bool:
        return self.locked_at is not None


class Flag(models.Model):
    """A person's own mark on a session."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    chat = models.ForeignKey(ChatSession, models.CASCADE, related_name="flags")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")

    class Meta:
        verbose_name = _("flag")
        verbose_name_plural = _("flags")
        constraints = [
            models.UniqueConstraint(fields=["user", "chat"], name="one_flag_a_person_and_session")
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.chat_id}"


class Seen(models.Model):
    """How far a person has followed a session: the last turn whose end they have seen."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    chat = models.ForeignKey(ChatSession, models.CASCADE, related_name="seen")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    number = models.PositiveIntegerField(_("last turn"), default=0)

    class Meta:
        verbose_name = _("what was seen")
        verbose_name_plural = _("what was seen")
        constraints = [
            models.UniqueConstraint(fields=["user", "chat"], name="seen_once_a_person_and_session")
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.chat_id}"


class Turn(models.Model):
    """One run of the agent in answer to one user message; made of steps.

    A worker holds it by `lease_token` until `lease_until`; every write of a worker names the token,
    so that one that lost the lease can't write. `request_sent` is set before the first byte of a
    step leaves for the provider: from then on losing the lease means `interrupted`, never a second
    call.
    """

    class State(models.TextChoices):
        PENDING = "pending", _("Waiting for a worker")
        RUNNING = "running", _("Running")
        DONE = "done", _("Done")
        FAILED = "failed", _("Failed")
        STOPPED = "stopped", _("Stopped")
        INTERRUPTED = "interrupted", _("Interrupted")

    ACTIVE: ClassVar[tuple[str, ...]] = (State.PENDING, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    chat = models.ForeignKey(ChatSession, models.CASCADE, related_name="turns")
    number = models.PositiveIntegerField()
    state = models.CharField(_("state"), max_length=12, choices=State, default=State.PENDING)
    model = models.CharField(_("model"), max_length=200, blank=True)
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    lease_token = models.UUIDField(null=True, blank=True, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    claims = models.PositiveSmallIntegerField(default=0, editable=False)
    request_sent = models.BooleanField(default=False, editable=False)
    stop_requested_at = models.DateTimeField(null=True, blank=True, editable=False)

    step = models.PositiveSmallIntegerField(default=0)
    error_kind = models.CharField(_("error"), max_length=24, blank=True, default="")
    error_detail = models.CharField(_("provider's words"), max_length=600, blank=True, default="")
    retry_after = models.FloatField(null=True, blank=True, editable=False)
    left_out_before = models.PositiveIntegerField(default=0, editable=False)

    input_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    cache_read_tokens = models.PositiveIntegerField(default=0)
    cache_write_tokens = models.PositiveIntegerField(default=0)
    context_tokens = models.PositiveIntegerField(default=0)
    cost = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)

    class Meta:
        verbose_name = _("turn")
        verbose_name_plural = _("turns")
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["chat", "number"], name="turn_number_once"),
            models.UniqueConstraint(
                fields=["chat"],
                condition=models.Q(state__in=["pending", "running"]),
                name="one_active_turn_a_session",
            ),
        ]
        indexes = [
            models.Index(
                fields=["state", "lease_until"],
                condition=models.Q(state__in=["pending", "running"]),
                name="active_turns",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.chat_id} {self.number}"

    @property
    def is_active(self) -> bool:
        return self.state in self.ACTIVE


class Message(models.Model):
    """One message. A user's is bound to a turn when its time comes; an assistant's is one step.

    `parts` is the neutral JSON of `connections.providers.base`; the results of a step's tool calls
    stand after the calls in the same message. `text` is what people read and search.
    """

    class Role(models.TextChoices):
        USER = "user", _("User")
        ASSISTANT = "assistant", _("Assistant")

    class Delivery(models.TextChoices):
        SENT = "sent", _("Sent")
        STEERING = "steering", _("Steering")
        QUEUED = "queued", _("Queued")
        DELIVERED = "delivered", _("Delivered")
        CANCELLED = "cancelled", _("Cancelled")

    WAITING: ClassVar[tuple[str, ...]] = (Delivery.STEERING, Delivery.QUEUED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    chat = models.ForeignKey(ChatSession, models.CASCADE, related_name="messages")
    seq = models.PositiveIntegerField()
    role = models.CharField(max_length=10, choices=Role)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,  # message_by_author has it
    )
    client_key = models.CharField(max_length=64, null=True, blank=True, default=None)
    text = models.TextField(blank=True)
    parts = models.JSONField(default=list)
    delivery = models.CharField(max_length=10, choices=Delivery, default=Delivery.SENT)
    # Queued messages are replayed in the order of `place` (the order of sending until reordered).
    place = models.PositiveIntegerField(default=0)
    turn = models.ForeignKey(Turn, models.CASCADE, null=True, blank=True, related_name="messages")
    step = models.PositiveSmallIntegerField(default=0)
    is_complete = models.BooleanField(default=True)
    # The event of the stream up to which this row holds the text; a page goes on from there.
    cursor = models.CharField(max_length=40, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, db_default=Now(), db_index=True)

    class Meta:
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        ordering = ["seq"]
        constraints = [
            models.UniqueConstraint(fields=["chat", "seq"], name="message_seq_once"),
            models.UniqueConstraint(
                fields=["chat", "client_key"],
                condition=models.Q(client_key__isnull=False),
                name="message_client_key_once",
            ),
        ]
        indexes = [
            models.Index(
                fields=["chat", "place"],
                condition=models.Q(delivery__in=["steering", "queued"]),
                name="waiting_messages",
            ),
            models.Index(fields=["turn", "step"], name="message_by_turn"),
            models.Index(fields=["author", "chat"], name="message_by_author"),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.seq}"

    @property
    def files(self) -> list[ShownFile]:
        """The text files that were sent with it."""
        return files_of(self.parts)


class SearchText(models.Model):
    """A text as the search finds it, in lower case: of a message, or with none a session's title.

    Written by `sessions.search` alone, after a turn's end, so that no message and no token waits
    for an index. On SQLite an FTS5 table follows it by triggers, on PostgreSQL a trigram index.
    """

    id = models.BigAutoField(primary_key=True)
    chat = models.ForeignKey(ChatSession, models.CASCADE, related_name="+")
    message = models.OneToOneField(
        Message, models.CASCADE, null=True, blank=True, related_name="search_text"
    )
    text = models.TextField()

    class Meta:
        verbose_name = _("text of the search")
        verbose_name_plural = _("texts of the search")
        constraints = [
            models.UniqueConstraint(
                fields=["chat"],
                condition=models.Q(message__isnull=True),
                name="one_searched_title_a_session",
            )
        ]

    def __str__(self) -> str:
        return f"{self.chat_id} {self.message_id or 'title'}"


def attachment_path(attachment: Attachment, filename: str) -> str:
    """A generated name: nothing of the person's file name reaches the disk."""
    return f"{attachment.id.hex[:2]}/{attachment.id}{attachment.SUFFIX[attachment.media_type]}"


class Attachment(models.Model):
    """An image sent with a message, decoded and checked when it came in."""

    SUFFIX: ClassVar[dict[str, str]] = {
        "image/png": ".png",
        "image/jpeg": ".jpg",
        "image/webp": ".webp",
        "image/gif": ".gif",
    }

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    message = models.ForeignKey(Message, models.CASCADE, related_name="attachments")
    position = models.PositiveSmallIntegerField(default=0)
    media_type = models.CharField(max_length=20)
    name = models.CharField(_("name"), max_length=120, blank=True)
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    size = models.PositiveIntegerField()
    file = models.FileField(upload_to=attachment_path)

    class Meta:
        verbose_name = _("attachment")
        verbose_name_plural = _("attachments")
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return self.name


class ToolServer(models.Model):
    """A workspace's remote MCP server: where it is, what it is told, which of its tools count.

    `headers` is sealed JSON, names and values, bound to the origin it was entered for. `tools` is
    what the server listed last, for people to see and choose from: {name, title, description}.
    `revision` counts the edits after which a list of tools that a worker remembers is out of date.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="tool_servers")
    name = models.CharField(_("name"), max_length=60)
    prefix = models.CharField(_("prefix"), max_length=20)
    url = models.CharField(_("address"), max_length=2000)
    binding = models.CharField(_("headers entered for"), max_length=2100, blank=True)
    headers = SealedField(bound_to="place", null=True, blank=True)
    header_names = models.JSONField(_("headers"), default=list, blank=True)
    enabled = models.BooleanField(_("enabled"), default=True)
    allowed_tools = models.JSONField(_("chosen tools"), null=True, blank=True, default=None)
    tools = models.JSONField(_("tools"), default=list, blank=True)
    revision = models.PositiveIntegerField(default=0, editable=False)
    listed_at = models.DateTimeField(_("tools listed"), null=True, blank=True)
    last_error = models.CharField(_("last error"), max_length=24, blank=True, default="")
    last_error_detail = models.CharField(
        _("server's words"), max_length=600, blank=True, default=""
    )
    last_error_at = models.DateTimeField(_("time of the last error"), null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("created by"),
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now)

    class Meta:
        verbose_name = _("tool server")
        verbose_name_plural = _("tool servers")
        ordering = ["name", "id"]
        constraints = [
            models.UniqueConstraint(fields=["workspace", "prefix"], name="tool_prefix_once"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def origin(self) -> str:
        """scheme://host:port: what the headers are bound to."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{parts.scheme}://{parts.hostname}:{port}"

    @property
    def place(self) -> str:
        """What the sealed headers are bound to: this workspace's server, at this destination."""
        return f"{self.workspace_id} {self.binding}"

    @property
    def is_failing(self) -> bool:
        """Whether its last failure came after its last success."""
        if self.last_error_at is None:
            return False
        return self.listed_at is None or self.last_error_at >= self.listed_at

    @property
    def offered(self) -> list[dict[str, str]]:
        """The listed tools that sessions may use."""
        return [tool for tool in self.tools if self.allows(tool["name"])]

    def allows(self, tool: str) -> bool:
        return self.allowed_tools is None or tool in self.allowed_tools


class UsageDay(models.Model):
    """What one person's turns used on one day (UTC) of one model on one connection in one
    workspace, counted when each turn ended. Who or what was deleted since keeps its label.

    `unpriced` turns have tokens but no known price; `covered` ones ran on a signed-in account,
    whose plan pays for them.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    day = models.DateField(_("day"))
    workspace = models.ForeignKey(Workspace, models.SET_NULL, null=True, related_name="+")
    workspace_label = models.CharField(_("workspace"), max_length=254)
    connection = models.ForeignKey(Connection, models.SET_NULL, null=True, related_name="+")
    connection_label = models.CharField(_("connection"), max_length=254)
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    person_label = models.CharField(_("person"), max_length=254)
    model = models.CharField(_("model"), max_length=200)
    turns = models.PositiveIntegerField(_("turns"), default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    cache_read_tokens = models.PositiveBigIntegerField(default=0)
    cache_write_tokens = models.PositiveBigIntegerField(default=0)
    cost = models.DecimalField(_("cost"), max_digits=14, decimal_places=6, default=0)
    unpriced = models.PositiveIntegerField(default=0)
    covered = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = _("usage of a day")
        verbose_name_plural = _("usage by day")
        ordering = ["-day", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["day", "workspace", "connection", "model", "person"],
                name="one_usage_row_a_day",
            ),
        ]
        indexes = [models.Index(fields=["workspace", "day"], name="usage_of_a_workspace")]

    def __str__(self) -> str:
        return f"{self.day} {self.model}"
