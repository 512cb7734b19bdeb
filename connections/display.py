"""What the pages show of a connection, computed once: rows, health, facts, cards. No query beyond
what a docstring says; no right is checked here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from connections import providers, sign_in, sync
from connections.actions import host_of
from connections.capabilities import Capabilities, capabilities, usable_models
from connections.choices import (
    AccessMode,
    AuthType,
    MidStream,
    Outcome,
    ProviderType,
    Rung,
    Status,
    Wire,
)
from connections.health import Strip
from connections.issuers import issuer_for
from connections.ladder import detail_of
from connections.models import Connection, ProbeResult, Secret, SecretCandidate
from connections.providers.base import Target
from connections.registry import Dependents
from connections.resolve import Candidates
from connections.sentences import Reason, Sentence, sentence
from connections.targets import configuration_fault
from workspaces.models import User

PROBES_DRAWN = 60
MODELS_SHOWN = 200
MODELS_IN_A_CARD = 3

MID_STREAM_CHOICES = [*MidStream.choices, ("", _lazy("Provider's default"))]

# What a paused or unreadable connection says of its last probe would mislead.
_AGED = (Status.VALID, Status.FAILED)


def is_aged(connection: Connection) -> bool:
    """Whether the age of its health says something of its status. Cheap when `secrets` is there."""
    return connection.status in _AGED and connection.health_at is not None


def _health_sentence(connection: Connection, status: Status) -> Sentence | None:
    """What to do about the status, None when there is nothing to do."""
    signs_in = connection.auth_type == AuthType.OAUTH
    if status == Status.INCOMPLETE and signs_in:
        return sentence(configuration_fault(connection) or status.value)
    if status in (Status.INCOMPLETE, Status.SEALED):
        return sentence(status.value)
    if status == Status.FAILED:
        return sentence(connection.health_error, connection.auth_type)
    return None


@dataclass(frozen=True, slots=True)
class Row:
    """A connection in the list, with its rendered `menu` and its last days. `poll` is in seconds:
    many rows that are checked at once ask less often each."""

    connection: Connection
    number: int
    status: Status
    menu: str
    poll: int = 1
    strip: Strip | None = None

    @classmethod
    def of(
        cls, connection: Connection, number: int, *, menu: str = "", strip: Strip | None = None
    ) -> Row:
        """No query when `secrets` is prefetched."""
        return cls(connection, number, connection.status, menu, strip=strip)

    @property
    def is_checking(self) -> bool:
        return self.status == Status.CHECKING

    @property
    def is_aged(self) -> bool:
        return self.status in _AGED and self.connection.health_at is not None

    @property
    def problem(self) -> str:
        words = _health_sentence(self.connection, self.status)
        return str(words.title) if words and self.status == Status.FAILED else ""

    @property
    def note(self) -> str:
        if self.status == Status.INCOMPLETE and self.connection.auth_type == AuthType.OAUTH:
            words = _health_sentence(self.connection, self.status)
            return str(words.title) if words else ""
        return self.connection.paused_message if self.status == Status.DISABLED else ""

    @property
    def old_secret(self) -> str:
        """“Secret entered 194 days ago”, "" for one that isn't old."""
        age = SecretAge.of(self.connection)
        if not age or not age.is_old:
            return ""
        return ngettext(
            "Secret: entered %(n)d day ago", "Secret: entered %(n)d days ago", age.days
        ) % {"n": age.days}

    @property
    def account(self) -> str:
        """Whose login it is, "" for a key."""
        stored = self.connection.secret_for(Secret.Purpose.AUTH)
        return account_of(stored) if stored else ""

    @property
    def menu_id(self) -> str:
        return f"menu-{self.connection.slug}"

    @property
    def menu_label(self) -> str:
        return _("Actions for %(name)s") % {"name": self.connection.name}


# -- health ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RungShown:
    """One rung as `components/ladder.html` takes it."""

    label: str
    outcome: str
    ms: int | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One earlier probe: `level` 2 to 5 by how long it took; 5 when it failed."""

    tone: str
    level: int
    label: str


@dataclass(frozen=True, slots=True)
class Health:
    """A connection's health now, the ladder of its last probe, and those before."""

    status: Status
    sentence: Sentence | None
    probe: ProbeResult | None
    rungs: list[RungShown]
    words: list[tuple[str, str]]  # (rung, the provider's own words), for admins
    bars: list[Bar]

    @property
    def is_checking(self) -> bool:
        return self.status == Status.CHECKING

    @property
    def is_aged(self) -> bool:
        """Whether its age says something of the status."""
        return self.status in _AGED

    @classmethod
    def of(cls, connection: Connection) -> Health:
        """One query, two without prefetched `secrets`."""
        probes = list(connection.probes.select_related("requested_by")[:PROBES_DRAWN])
        status = connection.status
        last = probes[0] if probes else None
        return cls(
            status=status,
            sentence=_health_sentence(connection, status),
            probe=last,
            rungs=_rungs(
                last.rungs,
                connection,
                running=status == Status.CHECKING and last.finished_at is None,
            )
            if last
            else [],
            words=_words(last.rungs) if last else [],
            bars=[_bar(probe) for probe in reversed(probes) if probe.finished_at],
        )


def _rungs(
    rungs: Sequence[dict[str, Any]], connection: Connection, *, running: bool
) -> list[RungShown]:
    climbed = {rung["rung"]: rung for rung in rungs}
    shown = []
    for rung in Rung:
        found = climbed.get(rung.value)
        if found is None:
            outcome = "running" if running else Outcome.NOT_TESTED.value
            shown.append(RungShown(str(rung.label), outcome))
            running = False  # only the next one is under way
            continue
        failed = found["outcome"] == Outcome.FAILED
        said = detail_of(found)
        if failed:
            said = sentence(found.get("kind", ""), connection.auth_type).text
        shown.append(RungShown(str(rung.label), found["outcome"], found.get("ms"), said))
    return shown


def _words(rungs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (str(Rung(rung["rung"]).label), detail_of(rung))
        for rung in rungs
        if rung.get("detail") and rung["outcome"] == Outcome.FAILED
    ]


def _bar(probe: ProbeResult) -> Bar:
    ms = probe.latency_ms
    level = 2 + sum((ms or 0) >= step for step in (1_000, 3_000, 10_000))
    if probe.passed:
        outcome, tone = str(Status.VALID.label), "success"
    elif probe.passed is None:
        outcome, tone, level = str(Outcome.NOT_TESTED.label), "neutral", 5
    else:
        outcome, tone, level = str(sentence(probe.error_kind).title), "danger", 5
    when = date_format(localtime(probe.started_at), "SHORT_DATETIME_FORMAT")
    took = (
        ", " + _("%(n)s s") % {"n": number_format(round(ms / 1000, 1), 1)} if ms is not None else ""
    )
    return Bar(tone, level, f"{when}: {outcome}{took}")


# -- a new secret ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CandidateShown:
    """The new secret of a connection that is tried beside the one in use."""

    candidate: SecretCandidate
    host: str
    rungs: list[RungShown]
    sentence: Sentence | None
    words: list[tuple[str, str]]

    @property
    def is_checking(self) -> bool:
        return self.candidate.is_checking

    @property
    def is_unheard(self) -> bool:
        """Whether its check was asked for and no worker came, or one went and didn't return."""
        return self.candidate.state == SecretCandidate.State.CHECKING and not self.is_checking

    @classmethod
    def of(cls, connection: Connection) -> CandidateShown | None:
        """One query. None when there is none, or it has expired."""
        candidate = (
            SecretCandidate.objects.filter(connection=connection)
            .defer("value")
            .select_related("created_by")
            .first()
        )
        if candidate is None or candidate.is_expired:
            return None
        kind = candidate.error_kind
        return cls(
            candidate=candidate,
            host=host_of(candidate.binding),
            rungs=_rungs(candidate.rungs, connection, running=candidate.is_checking),
            sentence=sentence(kind, connection.auth_type) if kind else None,
            words=_words(candidate.rungs),
        )


@dataclass(frozen=True, slots=True)
class SecretAge:
    """How long ago the secret of a connection was entered. No query."""

    secret: Secret
    days: int
    is_old: bool

    @classmethod
    def of(cls, connection: Connection) -> SecretAge | None:
        """None where nothing is stored, and for a sign-in, which renews itself."""
        secret = connection.secret_for(Secret.Purpose.AUTH)
        if secret is None or connection.auth_type == AuthType.OAUTH:
            return None
        days = max(0, (timezone.now() - secret.created_at).days)
        most = settings.SECRET_MAX_AGE_DAYS
        return cls(secret, days, bool(most) and days >= most)

    @property
    def text(self) -> str:
        if not self.days:
            return _("Entered today")
        return ngettext("Entered %(n)d day ago", "Entered %(n)d days ago", self.days) % {
            "n": self.days
        }


# -- signing in ------------------------------------------------------------------------------------


def account_of(secret: Secret) -> str:
    """“Personal login: somebody@example.com”, as far as the provider told; "" for a key."""
    kind = str(secret.get_account_kind_display())
    return ": ".join(filter(None, (kind, secret.account)))


@dataclass(frozen=True, slots=True)
class SignInShown:
    """What the section “Sign in” of a connection's page says."""

    provider: str
    host: str  # where the tokens go
    off: str = ""  # why nobody can sign in now
    secret: Secret | None = None  # of the sign-in there is, or was
    step: sign_in.Step | None = None  # of the sign-in under way

    @property
    def is_signed_in(self) -> bool:
        return self.secret is not None and self.secret.ended_at is None

    @property
    def account(self) -> str:
        return account_of(self.secret) if self.secret else ""

    @property
    def is_waiting(self) -> bool:
        """Whether the page asks for itself: something comes without the person's doing here."""
        return self.step is not None and self.step.is_open and self.step.attempt.by_device

    @classmethod
    def of(cls, connection: Connection, user: User) -> SignInShown | None:
        """None for a connection with another way to authenticate; else at most one query."""
        if connection.auth_type != AuthType.OAUTH:
            return None
        provider = ProviderType(connection.provider_type)
        found = providers.PROVIDERS.get(provider)
        if found is None or AuthType.OAUTH not in found.auth_types:
            return cls(provider.label, "", sentence(Reason.NOT_AVAILABLE).text)
        host = found.origin(Target(provider, AuthType.OAUTH, connection.base_url))
        stored = connection.secret_for(Secret.Purpose.AUTH)
        if stored is not None and stored.binding != connection.binding:
            stored = None
        if issuer_for(provider) is None:
            return cls(provider.label, host, sign_in.off_text(provider), stored)
        if configuration_fault(connection) is Reason.CODEX_MISSING:
            return cls(provider.label, host, sentence(Reason.CODEX_MISSING).text, stored)
        step = sign_in.step_of(user, connection)
        return cls(provider.label, host, secret=stored, step=step)


# -- facts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fact:
    term: Any
    value: Any
    is_code: bool = False


def facts(connection: Connection) -> list[tuple[str, list[Fact]]]:
    """Every field of a connection, grouped, for instance admins. Needs `secrets`, `created_by` and
    `workspace_rows__workspace` loaded."""
    own = connection.mid_stream
    behaviour = own.label
    if not connection.mid_stream_behavior:
        behaviour = _("%(behaviour)s (provider's default)") % {"behaviour": own.label}
    images = {True: _("Yes"), False: _("No"), None: _("Not stated")}
    endpoint = [
        Fact(_("Provider"), connection.get_provider_type_display()),
        Fact(_("Authentication"), connection.get_auth_type_display()),
        Fact(
            _("Base URL"), connection.base_url or _("The provider's own"), bool(connection.base_url)
        ),
    ]
    if connection.wire:
        endpoint.append(Fact(_("Wire format"), Wire(connection.wire).label))
        endpoint.append(Fact(_("Images"), images[connection.supports_images]))
    optional = [
        Fact(_("AWS region"), connection.aws_region, True),
        Fact(_("Google project"), connection.gcp_project_id, True),
        Fact(_("Google region"), connection.gcp_region, True),
        Fact(_("Codex binary"), connection.codex_path, True),
        Fact(_("Key is sent as"), connection.get_auth_header_display()),
        Fact(_("Output limit is sent as"), connection.get_max_tokens_field_display(), True),
    ]
    endpoint += [fact for fact in optional if fact.value]
    endpoint += [
        Fact(
            _("Default model"),
            connection.default_model or _("None"),
            bool(connection.default_model),
        ),
        Fact(_("Mid-stream"), behaviour),
    ]
    about = [
        Fact(_("Slug"), connection.slug, True),
        Fact(_("Place in the list"), connection.position + 1),
        Fact(_("Created"), _moment(connection.created_at)),
        Fact(_("Created by"), connection.created_by or _("Nobody on record")),
        Fact(_("Last used"), _moment(connection.last_used_at) or _("Never")),
    ]
    # How its models are kept stands with them, and is no import's where the form chose it.
    if kept := sorted(set(connection.unknown_fields) - {sync.MODE}):
        about.append(Fact(_("Kept from import"), ", ".join(kept), True))
    return [
        (_("Settings"), endpoint),
        (_("Secrets"), _secret_facts(connection)),
        (_("Access"), _access_facts(connection)),
        (_("About"), about),
    ]


def _secret_facts(connection: Connection) -> list[Fact]:
    shown = []
    for secret in connection.secrets.all():
        if not secret.readable:
            state = _("Unreadable")
        elif secret.binding != connection.binding:
            state = _("Entered for other settings; never sent")
        elif secret.ended_at:
            state = _("Ended %(when)s; sign in again") % {"when": _moment(secret.ended_at)}
        elif connection.auth_type == AuthType.OAUTH and secret.purpose == Secret.Purpose.AUTH:
            state = _("Signed in %(when)s") % {"when": _moment(secret.created_at)}
        else:
            state = _("Stored %(when)s") % {"when": _moment(secret.created_at)}
            if secret.purpose == Secret.Purpose.AUTH and (age := SecretAge.of(connection)):
                state = f"{age.text} ({_moment(secret.created_at)})"
        shown.append(Fact(secret.get_purpose_display(), state))
        if account := account_of(secret):
            shown.append(Fact(_("Account"), account))
        if secret.purpose == Secret.Purpose.AUTH:
            shown += [
                Fact(_SECRET_LABELS.get(name, name), _("ends in …%(last)s") % {"last": last})
                for name, last in secret.hints.items()
                if last
            ]
        else:
            shown.append(Fact(_("Header names"), ", ".join(sorted(secret.hints)), True))
    return shown or [Fact(_("Stored"), _("Nothing"))]


_SECRET_LABELS = {
    "api_key": _lazy("API key"),
    "access_key_id": _lazy("Access key id"),
    "secret_access_key": _lazy("Secret access key"),
    "session_token": _lazy("Session token"),
}


def _access_facts(connection: Connection) -> list[Fact]:
    rows = sorted(connection.workspace_rows.all(), key=lambda row: row.workspace.name)
    shown = []
    if connection.access == AccessMode.ALL:
        shown.append(Fact(_("Workspaces"), AccessMode.ALL.label))
    elif not rows:
        shown.append(Fact(_("Workspaces"), _("None yet")))
    for row in rows:
        allowed = _("every model")
        if row.allowed_models is not None or row.granted_models is not None:
            allowed = ", ".join(usable_models(connection, row)) or _("no model")
        if row.is_default:
            allowed = _("%(models)s; its default") % {"models": allowed}
        shown.append(Fact(row.workspace.name, allowed))
    return shown


def _moment(value: datetime | None) -> str:
    return date_format(localtime(value), "DATETIME_FORMAT") if value else ""


def models_shown(connection: Connection) -> list[Capabilities]:
    """The connection's models and what they can do, the first `MODELS_SHOWN`."""
    return [capabilities(connection, model) for model in connection.model_ids[:MODELS_SHOWN]]


def default_is_gone(connection: Connection) -> bool:
    """Whether the provider no longer lists the default model of a list kept in step: it is kept,
    and said so."""
    return (
        connection.models_synced and connection.unlisted_default == connection.default_model != ""
    )


# -- a workspace's people --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Card:
    """What a workspace's people see of a connection: name, health, models, capabilities."""

    connection: Connection
    status: Status
    is_default: bool
    models: list[Capabilities]
    more: int  # models beyond those shown
    problem: Sentence | None

    @property
    def note(self) -> str:
        """What is the matter, in few words: what an admin wrote about the pause, else ours."""
        if self.status == Status.DISABLED:
            return self.connection.paused_message
        title = str(self.problem.title) if self.problem else ""
        return "" if title == self.status.label else title

    @property
    def is_aged(self) -> bool:
        return self.status in _AGED and self.connection.health_at is not None


def cards(among: Candidates, connections: Iterable[Connection]) -> list[Card]:
    """Of connections that the workspace has access to. No query."""
    shown = []
    for connection in connections:
        row = among.rows.get(connection.pk)
        usable = usable_models(connection, row)
        fault, status = among.fault(connection), connection.status
        shown.append(
            Card(
                connection=connection,
                status=status,
                is_default=bool(row and row.is_default),
                models=[capabilities(connection, m) for m in usable[:MODELS_IN_A_CARD]],
                more=max(0, len(usable) - MODELS_IN_A_CARD),
                problem=sentence(fault) if fault else _health_sentence(connection, status),
            )
        )
    return shown


def effects_of_deleting(
    connection: Connection, dependents: Dependents, defaults: Sequence[str]
) -> Sequence[str]:
    """Sentences: what depends on it, and what is lost for good. `defaults`: names of workspaces."""
    said = [_("Its stored secret is destroyed at once. The rest can be brought back for 7 days.")]
    if n := dependents.sessions:
        said.append(ngettext("%(n)d session uses it.", "%(n)d sessions use it.", n) % {"n": n})
    else:
        said.append(_("No session uses it."))
    if n := dependents.running:
        text = ngettext("%(n)d reply is under way.", "%(n)d replies are under way.", n)
        said.append(text % {"n": n})
    if n := dependents.waiting:
        text = ngettext("%(n)d message waits in a queue.", "%(n)d messages wait in queues.", n)
        said.append(text % {"n": n})
    if connection.is_default:
        said.append(_("It is the global default."))
    if defaults:
        said.append(_("It is the default of: %(names)s.") % {"names": ", ".join(defaults)})
    return said
