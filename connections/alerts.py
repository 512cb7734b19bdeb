"""Telling people that a connection fails, that it works again, and that a budget is used: by mail
and by a webhook.

A probe that is written down makes an `Alert` row in its own transaction (`note`): the failure that
makes it so many in a row, and the first success after that. A secret that has grown old makes one
too, once (`remind_of_age`), and a budget that reaches a limit (`of_limit`). Once a minute Celery
sends what is due, each channel in one message that lists everything, at most one a quarter of an
hour. A message is claimed before it is sent, by
moving the channel's `…_after` on: of two workers one sends it. What was refused for certain is due
again with the next message, for a day; what may have arrived isn't sent twice.

The address of a webhook is a secret: sealed, never shown or logged, reached through the guarded
client under the rule of tools. Its messages are signed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hmac
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from connections.choices import AuthType
from connections.models import (
    Alert,
    AlertOptOut,
    AlertSettings,
    Connection,
    ProbeResult,
    Secret,
)
from connections.sentences import sentence
from workspaces import egress
from workspaces.audit import record
from workspaces.languages import speaking_to
from workspaces.models import Membership, Role, User, Workspace
from workspaces.registry import Keeper
from workspaces.runtime import get_runtime
from workspaces.vault import Plain, VaultError

logger = logging.getLogger(__name__)

MAIL, WEBHOOK = "mail", "webhook"
CHANNELS = (MAIL, WEBHOOK)
MOST_FAILURES = 10
ONE_MESSAGE_IN = dt.timedelta(minutes=15)
GIVE_UP_AFTER = dt.timedelta(days=1)
MOST_LISTED = 200  # alerts of one message
POST_SECONDS = 15.0
SECRET_LENGTH = (16, 200)  # characters
# A failing connection is looked at more often than others, while there is somebody to tell.
CONFIRM_EVERY = dt.timedelta(minutes=5)  # until it has failed often enough
WATCH_EVERY = dt.timedelta(minutes=30)  # until it works again

Delivery, State = Alert.Delivery, Alert.State
HEALTH = (State.FAILING, State.RECOVERED)  # of which the newest says how a connection is
LIMITS = (State.SOFT_LIMIT, State.HARD_LIMIT)

_FAULTS = {
    "smtp": gettext_lazy("The mail server refused the message, or can't be reached."),
    "nobody": gettext_lazy("No instance admin wants mail."),
    "sealed": gettext_lazy("The address can't be read any more. Enter it and its secret again."),
    "egress": gettext_lazy(
        "Its address isn't allowed. The operator can allow it in PATCHBAY_TOOL_EGRESS_ALLOW."
    ),
    "connect": gettext_lazy("It can't be reached. Check the address and that it runs."),
    "redirect": gettext_lazy("It redirects elsewhere, which isn't followed. Enter that address."),
    "timeout": gettext_lazy("It didn't answer in time; the message may have arrived."),
}


def fault_text(kind: str) -> str:
    """Why a message didn't leave, for a person; "" for no fault."""
    if kind.startswith("status "):
        return _("It answered with status %(status)s.") % {"status": kind.removeprefix("status ")}
    return str(_FAULTS.get(kind, _FAULTS["connect"])) if kind else ""


_AS_INSTANCE_ADMIN = gettext_lazy("You get this as an instance admin. To stop it: %(url)s")
_AS_ADMIN = gettext_lazy("You get this as an admin of the workspace.")
_AS_WHO_ASKED = gettext_lazy("You get this because you asked for a test.")

_SAVED = [
    *("failures", "of_budgets", "by_mail"),
    *("webhook_origin", "webhook_url", "webhook_secret", "webhook_error"),
]


# -- the settings ----------------------------------------------------------------------------------


def current() -> AlertSettings:
    """The settings that hold; an unsaved row while nobody changed any. One query."""
    return AlertSettings.objects.defer("webhook_url", "webhook_secret").first() or AlertSettings()


def mails(now: AlertSettings) -> bool:
    return now.by_mail and settings.MAIL_IS_SET_UP


def update(
    actor: User,
    *,
    failures: int,
    by_mail: bool,
    of_budgets: bool = True,
    webhook_url: str = "",
    webhook_secret: str = "",
    remove_webhook: bool = False,
) -> list[str]:
    """Changes what differs; returns the names of what did. An empty address and an empty secret
    keep what is stored; a secret is bound to the scheme, host and port it was entered for. Looks
    the address up, so not within a transaction. A refusal is a `ValidationError` by field name."""
    url, origin = _cleaned_url("" if remove_webhook else webhook_url)
    secret = _cleaned_secret("" if remove_webhook else webhook_secret)
    if not 1 <= failures <= MOST_FAILURES:
        text = _("From 1 to %(n)d.") % {"n": MOST_FAILURES}
        raise ValidationError({"failures": [text]})
    with transaction.atomic():
        row = _locked()
        wanted = {"failures": failures, "of_budgets": of_budgets, "by_mail": by_mail}
        changed = [name for name, value in wanted.items() if getattr(row, name) != value]
        for name in changed:
            setattr(row, name, wanted[name])
        hosts: dict[str, str] = {}
        if remove_webhook and row.has_webhook:
            record(actor, "secret.destroy", row, purpose=WEBHOOK, host=row.webhook_origin)
            changed.append(WEBHOOK)
            hosts = {"old_host": row.webhook_origin}
            row.webhook_origin, row.webhook_url, row.webhook_secret = "", None, None
        elif url or secret:
            hosts = _put_webhook(row, url=url, origin=origin, secret=secret)
            record(actor, "secret.store", row, purpose=WEBHOOK, **hosts)
            changed.append(WEBHOOK)
        if WEBHOOK in changed:
            row.webhook_error = ""
        if not changed:
            return []
        try:
            row.save(update_fields=_SAVED)
        except VaultError as error:
            raise ValidationError({"webhook_url": [str(error)]}) from None
        for channel, on in ((MAIL, mails(row)), (WEBHOOK, row.has_webhook)):
            if not on:
                _waiting(channel).update(**{channel: Delivery.OFF})
            elif not of_budgets:
                _waiting(channel).filter(state__in=LIMITS).update(**{channel: Delivery.OFF})
        record(actor, "alerts.update", row, changed=changed, **hosts)
    return changed


def _put_webhook(row: AlertSettings, *, url: str, origin: str, secret: str) -> dict[str, str]:
    """Old and new host, for the audit."""
    old = row.webhook_origin
    origin = origin or old
    if not origin:
        raise ValidationError({"webhook_url": [_("Enter the address that this secret is for.")]})
    if origin != old and not secret:
        asked = _("Enter the secret that messages to this address are signed with.")
        if old:
            asked = _(
                "Enter the signing secret again: what is stored was entered for %(host)s."
            ) % {"host": old}
        raise ValidationError({"webhook_secret": [asked]})
    row.webhook_origin = origin
    if url:
        row.webhook_url = Plain(url)
    if secret:
        row.webhook_secret = Plain(secret)
    return {"host": origin} | ({"old_host": old} if old and old != origin else {})


def _cleaned_url(text: str) -> tuple[str, str]:
    """The address and its origin, both "" for none."""
    url = text.strip()
    if not url:
        return "", ""
    try:
        if not url.isascii():
            raise egress.URLRefused(_("Write the address in ASCII letters."))
        egress.check_url(url, egress.tool_policy())
    except egress.URLRefused as refusal:
        raise ValidationError({"webhook_url": [str(refusal)]}) from None
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return url, f"{parts.scheme}://{parts.hostname}:{port}"


def _cleaned_secret(text: str) -> str:
    secret, (least, most) = text.strip(), SECRET_LENGTH
    if secret and not (least <= len(secret) <= most and secret.isascii() and secret.isprintable()):
        said = _("From %(least)d to %(most)d characters, without line breaks, in ASCII.")
        raise ValidationError({"webhook_secret": [said % {"least": least, "most": most}]})
    return secret


def wants_mail(user: User) -> bool:
    return not AlertOptOut.objects.filter(user=user).exists()


def set_wants_mail(actor: User, wanted: bool) -> None:
    """For oneself."""
    with transaction.atomic():
        if wanted:
            changed = AlertOptOut.objects.filter(user=actor).delete()[0] > 0
        else:
            changed = AlertOptOut.objects.get_or_create(user=actor)[1]
        if changed:
            record(actor, "alerts.opt_in" if wanted else "alerts.opt_out", actor)


def _locked() -> AlertSettings:
    AlertSettings.objects.get_or_create(pk=1)
    return AlertSettings.objects.select_for_update().get(pk=1)


def _waiting(channel: str) -> QuerySet[Alert]:
    return Alert.objects.filter(**{channel: Delivery.DUE})


# -- what a probe tells ----------------------------------------------------------------------------


def note(connection: Connection, result: ProbeResult) -> dt.timedelta | None:
    """Makes the alert that a probe's outcome calls for, in the transaction that writes it down and
    holds the connection's row. How soon the connection is to be looked at again, None for as soon
    as any. Two queries for a success, four for a failure at most."""
    if result.passed is None:
        return None
    now = current()
    is_told = mails(now) or now.has_webhook
    told = Alert.objects.filter(connection=connection, state__in=HEALTH)
    last = told.order_by("-at").first()
    failing = last is not None and last.state == State.FAILING
    if result.passed:
        if failing:
            _make(connection, now, State.RECOVERED, since=last.since)
        return None
    if not failing:
        decided = connection.probes.filter(passed__isnull=False, finished_at__isnull=False)
        newest = list(decided.order_by("-started_at")[: now.failures])
        if len(newest) < now.failures or any(probe.passed for probe in newest):
            return CONFIRM_EVERY if is_told else None
        since = newest[-1].started_at
        _make(connection, now, State.FAILING, since=since, error_kind=result.error_kind)
    return WATCH_EVERY if is_told else None


def remind_of_age(now: dt.datetime | None = None) -> int:
    """Tells once of each secret that has grown old, a sign-in's excepted; how many. One query when
    there is none."""
    if not settings.SECRET_MAX_AGE_DAYS:
        return 0
    now = now or timezone.now()
    old = Secret.objects.filter(old_secrets(now), reminded_at=None)
    told, channels = 0, current()
    for secret in old.select_related("connection").defer("value")[:MOST_LISTED]:
        with transaction.atomic():
            mine = Secret.objects.filter(old_secrets(now), pk=secret.pk, reminded_at=None)
            if mine.update(reminded_at=now):
                _make(secret.connection, channels, State.OLD_SECRET, since=secret.created_at)
                told += 1
    return told


def of_limit(
    target: Connection | Workspace, state: Alert.State, *, limit: str, month: dt.date
) -> None:
    """Tells that a budget reached a limit, in the transaction that writes that down. `limit` is its
    amount for people. Two queries."""
    now = current()
    channels = now if now.of_budgets else None
    since = dt.datetime.combine(month, dt.time(), dt.UTC)
    _make(target, channels, state, limit=limit, since=since)


def old_secrets(now: dt.datetime | None = None) -> Q:
    """Which secrets are old, by the operator's setting, which isn't 0."""
    before = (now or timezone.now()) - dt.timedelta(days=settings.SECRET_MAX_AGE_DAYS)
    return Q(
        ~Q(connection__auth_type=AuthType.OAUTH),
        purpose=Secret.Purpose.AUTH,
        created_at__lte=before,
        connection__deleted_at=None,
    )


def _make(
    target: Connection | Workspace, now: AlertSettings | None, state: str, **fields: Any
) -> Alert:
    """`now`: the settings that hold, None to note it only."""
    return Alert.objects.create(
        **{"workspace" if isinstance(target, Workspace) else "connection": target},
        state=state,
        mail=Delivery.DUE if now and mails(now) else Delivery.OFF,
        webhook=Delivery.DUE if now and now.has_webhook else Delivery.OFF,
        **fields,
    )


# -- one message -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """An alert as a message tells it, in the language of whoever reads that."""

    name: str
    slug: str
    state: str
    time: dt.datetime
    url: str
    alert: Alert | None = field(default=None, repr=False)  # with its rows read; None for a test
    workspace_id: uuid.UUID | None = None  # whose budget it is about

    @classmethod
    def of(cls, alert: Alert) -> Line:
        target = alert.target
        return cls(
            name=" ".join(target.name.split()),
            slug=target.slug,
            state=alert.state,
            time=alert.at,
            url=settings.PUBLIC_URL + page_of(alert),
            alert=alert,
            workspace_id=alert.workspace_id,
        )

    @property
    def sentence(self) -> str:
        if self.alert is None:
            return _("This is a test of the alerts. Nothing is wrong.")
        return _said(self.alert)

    @property
    def title(self) -> str:
        return f"{self.name}: {State(self.state).label}" if self.state in State else self.name


def page_of(alert: Alert) -> str:
    """The path of the page that shows more of it."""
    if alert.workspace:
        return reverse("usage:workspace", args=[alert.workspace.slug])
    page = "health" if alert.state in HEALTH else "detail"
    return reverse(f"connections:{page}", args=[alert.target.slug])


def _said(alert: Alert) -> str:
    at = alert.since.astimezone(dt.UTC)
    if alert.state in LIMITS:
        text = _("The notice level of its budget, %(limit)s for %(month)s, is reached.")
        if alert.state == State.HARD_LIMIT:
            text = _("Its budget of %(limit)s for %(month)s is used up: nothing more is sent.")
        return text % {"limit": alert.limit, "month": date_format(at, "F Y")}
    words = {"since": date_format(at, "DATETIME_FORMAT")}
    if alert.state == State.OLD_SECRET:
        return _("Its secret was entered on %(since)s UTC. Replace it on its page.") % words
    if alert.state == State.RECOVERED:
        return _("It works again; it had failed since %(since)s UTC.") % words
    auth_type = alert.connection.auth_type if alert.connection else ""
    words["sentence"] = sentence(alert.error_kind, auth_type).text
    return _("It fails since %(since)s UTC. %(sentence)s") % words


@dataclass(frozen=True, slots=True)
class Recipient:
    """One who gets a mail, with what concerns that person; `why` stands below it."""

    person: User = field(repr=False)
    lines: list[Line]
    why: Promise


@dataclass(frozen=True, slots=True)
class Message:
    """What one channel sends now. The webhook's address never appears in `repr`."""

    channel: str
    lines: list[Line]
    alerts: list[uuid.UUID] = field(default_factory=list)
    recipients: list[Recipient] = field(default_factory=list)
    url: str = field(default="", repr=False)
    secret: bytes = field(default=b"", repr=False)
    fault: str = ""  # why it can't be sent at all
    id: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def subject(self) -> str:
        bad = sum(line.state == State.FAILING for line in self.lines)
        good = sum(line.state == State.RECOVERED for line in self.lines)
        said = []
        if bad:
            said.append(ngettext("%(n)d connection fails", "%(n)d connections fail", bad))
            said[-1] %= {"n": bad}
        if good:
            text = ngettext("%(n)d connection works again", "%(n)d connections work again", good)
            said.append(text % {"n": good})
        if old := sum(line.state == State.OLD_SECRET for line in self.lines):
            said.append(ngettext("%(n)d secret is old", "%(n)d secrets are old", old) % {"n": old})
        if near := sum(line.state == State.SOFT_LIMIT for line in self.lines):
            text = ngettext(
                "%(n)d budget is at its notice", "%(n)d budgets are at their notice", near
            )
            said.append(text % {"n": near})
        if over := sum(line.state == State.HARD_LIMIT for line in self.lines):
            text = ngettext("%(n)d budget is used up", "%(n)d budgets are used up", over)
            said.append(text % {"n": over})
        return "Patchbay: " + (", ".join(said) or _("a test"))

    @property
    def text(self) -> str:
        parts = [f"{line.title}\n{line.sentence}\n{line.url}" for line in self.lines]
        return "\n\n".join(parts)

    @property
    def body(self) -> bytes:
        """Of the webhook: the same bytes are signed and sent. `text` is what chat services show."""
        alerts = [
            {
                "name": line.name,
                "slug": line.slug,
                "state": line.state,
                "sentence": line.sentence,
                "time": line.time.isoformat(),
                "url": line.url,
            }
            for line in self.lines
        ]
        sent = {
            "id": str(self.id),
            "sent_at": timezone.now().isoformat(),
            "text": f"{self.subject}\n\n{self.text}",
            "alerts": alerts,
        }
        return json.dumps(sent).encode()


def signature(secret: bytes, body: bytes) -> str:
    return "sha256=" + hmac.digest(secret, body, "sha256").hex()


# -- sending ---------------------------------------------------------------------------------------


def anything_due() -> bool:
    """One query, cheap."""
    return Alert.objects.filter(Q(mail=Delivery.DUE) | Q(webhook=Delivery.DUE)).exists()


async def send_due() -> None:
    """Sends what waits, on the runtime's loop. Safe to run twice at once."""
    db = get_runtime().db
    for channel in CHANNELS:
        message = await db(claim, channel)
        if message is None:
            continue
        fault = message.fault or await _deliver(message)
        await db(settle, message, fault)


def claim(channel: str, *, now: dt.datetime | None = None) -> Message | None:
    """The message that is due on a channel, which is then this caller's alone to send; None when
    nothing is due, or the last one was sent less than a quarter of an hour ago."""
    now = now or timezone.now()
    if not _waiting(channel).exists():
        return None
    with transaction.atomic():
        AlertSettings.objects.get_or_create(pk=1)
        free = Q(**{f"{channel}_after": None}) | Q(**{f"{channel}_after__lte": now})
        moved = {f"{channel}_after": now + ONE_MESSAGE_IN}
        if not AlertSettings.objects.filter(free, pk=1).update(**moved):
            return None
        row = AlertSettings.objects.get(pk=1)
        # Whoever had the claim before is gone: nobody sends for a quarter of an hour.
        stale = Alert.objects.filter(**{channel: Delivery.SENDING})
        stale.update(**{channel: Delivery.UNSURE})
        waiting = _waiting(channel)
        waiting.filter(connection__deleted_at__isnull=False).update(**{channel: Delivery.OFF})
        waiting.filter(at__lt=now - GIVE_UP_AFTER).update(**{channel: Delivery.GIVEN_UP})
        if not (mails(row) if channel == MAIL else row.has_webhook):
            waiting.update(**{channel: Delivery.OFF})
            return None
        full = waiting.select_related("connection", "workspace")
        found = list(full.order_by("at", "id")[:MOST_LISTED])
        if not found:
            return None
        keys = [alert.pk for alert in found]
        Alert.objects.filter(pk__in=keys).update(**{channel: Delivery.SENDING})
        lines = [Line.of(alert) for alert in found]
        if channel == MAIL:
            return Message(channel, lines, keys, recipients=recipients(lines))
        return _to_webhook("schedule", row, lines, keys)


def recipients(lines: list[Line]) -> list[Recipient]:
    """Who is mailed what: instance admins who want mail get all of it, a workspace's own admins
    what is about its budget. Two queries at most."""
    out = AlertOptOut.objects.values("user")
    people = User.objects.filter(is_active=True).exclude(pk__in=out).order_by("email")
    told = [
        Recipient(person, lines, _AS_INSTANCE_ADMIN)
        for person in people.filter(is_superuser=True).only("email", "language")
    ]
    spaces = {line.workspace_id for line in lines if line.workspace_id}
    if not spaces:
        return told
    led: dict[User, set[uuid.UUID]] = {}
    rows = Membership.objects.filter(workspace__in=spaces, role=Role.ADMIN, user__in=people)
    rows = rows.filter(user__is_superuser=False).order_by("user__email").select_related("user")
    for row in rows:
        led.setdefault(row.user, set()).add(row.workspace_id)
    return told + [
        Recipient(person, [line for line in lines if line.workspace_id in mine], _AS_ADMIN)
        for person, mine in led.items()
    ]


def _to_webhook(
    actor: User | str, row: AlertSettings, lines: list[Line], keys: Sequence[uuid.UUID] = ()
) -> Message:
    """Opens the address and audits that; within a transaction."""
    try:
        if row.webhook_url is None or row.webhook_secret is None:
            return Message(WEBHOOK, lines, list(keys), fault="sealed")
        url, secret = row.webhook_url.open().decode(), row.webhook_secret.open()
    except VaultError:
        return Message(WEBHOOK, lines, list(keys), fault="sealed")
    record(actor, "secret.use", row, purpose=WEBHOOK, host=row.webhook_origin)
    return Message(WEBHOOK, lines, list(keys), url=url, secret=secret)


async def _deliver(message: Message) -> str:
    """Sends it; why it didn't leave, "" when it did."""
    if message.channel == MAIL:
        return await asyncio.to_thread(_mail, message)
    return await _post(egress.client_for(egress.tool_policy()), message)


def _mail(message: Message) -> str:
    """One to each person, so that nobody reads another's address. As soon as one has left it
    counts as sent."""
    if not message.recipients:
        return "nobody"
    where = settings.PUBLIC_URL + reverse("connections:alerts")
    sent, fault = 0, ""
    for to in message.recipients:
        own = replace(message, lines=to.lines)
        with speaking_to(to.person):
            subject = own.subject
            text = f"{own.text}\n\n--\n{str(to.why) % {'url': where}}\n"
        try:
            send_mail(subject, text, None, [to.person.email])
            sent += 1
        except OSError as error:  # of which every SMTP error is one
            logger.warning("an alert could not be mailed (%s)", type(error).__name__)
            fault = "smtp"
            if not sent:  # the others would wait for the same server
                break
    return "" if sent else fault


async def _post(client: httpx.AsyncClient, message: Message) -> str:
    with speaking_to():
        body = message.body
    headers = {
        "content-type": "application/json",
        "x-patchbay-delivery": str(message.id),
        "x-patchbay-signature": signature(message.secret, body),
    }
    try:
        async with (
            asyncio.timeout(POST_SECONDS),
            client.stream("POST", message.url, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
    except egress.EgressBlocked:
        return "egress"
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL):
        return "connect"
    except (TimeoutError, httpx.HTTPError):  # it was under way
        return "timeout"
    if 200 <= status < 300:
        return ""
    return "redirect" if 300 <= status < 400 else f"status {status}"


def settle(message: Message, fault: str) -> None:
    """Writes down how it went. What certainly wasn't taken is due again."""
    channel, now = message.channel, timezone.now()
    state = Delivery.SENT
    if fault:
        state = Delivery.UNSURE if fault == "timeout" else Delivery.DUE
    if fault == "nobody":
        state, fault = Delivery.OFF, ""
    told = {f"{channel}_error": fault}
    if state == Delivery.SENT:
        told[f"{channel}_sent_at"] = now  # type: ignore[assignment]
    with transaction.atomic():
        mine = Alert.objects.filter(pk__in=message.alerts, **{channel: Delivery.SENDING})
        mine.update(**{channel: state})
        AlertSettings.objects.filter(pk=1).update(**told)


def test(actor: User) -> dict[str, str]:
    """Sends a test now: the webhook, and by mail to who asks. The fault of each channel that is
    on, "" for none. Blocks for 25 seconds at most; not within a transaction."""
    url = settings.PUBLIC_URL + reverse("connections:alerts")
    line = Line("Patchbay", "", "test", timezone.now(), url)
    found: dict[str, str] = {}
    with transaction.atomic():
        row = _locked()
        record(actor, "alerts.test", row)
        posted = _to_webhook(actor, row, [line]) if row.has_webhook else None
    if mails(row):
        to = Recipient(actor, [line], _AS_WHO_ASKED)
        found[MAIL] = _mail(Message(MAIL, [line], recipients=[to]))
    if posted is not None:
        found[WEBHOOK] = posted.fault or asyncio.run(_post_once(posted))
    return found


async def _post_once(message: Message) -> str:
    async with egress.guarded_client(egress.tool_policy()) as client:
        return await _post(client, message)


class Wishes(Keeper):
    """What is kept here of a person: that one wants no mail."""

    def forget(self, person: User) -> None:
        AlertOptOut.objects.filter(user=person).delete()
