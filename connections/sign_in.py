"""Signing a connection in: the verbs, each with its audit row (out: `actions.sign_out`).

A person opens the provider's page, agrees there, and pastes the code back. Between the two the
attempt (`SignIn`) keeps what proves that the code is meant for it. With ChatGPT it is the other way
round: a worker gets the code (`connections.device`), and the person types it at the provider. A
refusal is a `ValidationError` by field name; nothing typed and nothing stored is lost by one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import secrets
import uuid
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from connections import actions
from connections.choices import AuthType
from connections.issuers import client_id_setting, issuer_for
from connections.models import Connection, SignIn
from connections.providers.base import ErrorKind, ProviderError
from connections.providers.wire import oauth
from connections.providers.wire.oauth import Issuer, Tokens
from connections.renewal import times_of, values_of
from connections.sentences import sentence
from workspaces import egress
from workspaces.audit import record
from workspaces.models import User
from workspaces.vault import Plain, VaultError

VALID_FOR = dt.timedelta(minutes=15)
MOST_OPEN = 10  # attempts of one connection at a time; the oldest give way
MOST_TRIES = 5  # codes pasted into one attempt
BUSY_FOR = dt.timedelta(seconds=oauth.SECONDS + 10)


@dataclass(frozen=True, slots=True)
class Step:
    """An attempt as its page shows it. Holds what proves it: never logged or stored. `url` and
    `code` are "" until a worker has them; `problem` is why it came to nothing."""

    attempt: SignIn
    url: str = ""
    code: str = ""
    problem: str = ""

    @property
    def is_open(self) -> bool:
        return not self.problem


def begin(actor: User, connection: Connection) -> SignIn:
    """Opens an attempt. Takes the connection's row lock."""
    issuer = _issuer(connection)
    with transaction.atomic():
        row = _locked(connection)
        _check_auth_type(row)
        still_open = row.sign_ins.filter(state=SignIn.State.OPEN).order_by("-started_at")
        by_device = not issuer.authorize_url
        if by_device:  # each holds a process of a worker: one is enough
            surplus = list(still_open.values_list("pk", flat=True))
            proof = {}
        else:
            surplus = list(still_open.values_list("pk", flat=True)[MOST_OPEN - 1 :])
            proof = {"state": secrets.token_urlsafe(32), "verifier": oauth.make_verifier()}
        row.sign_ins.filter(pk__in=surplus).update(state=SignIn.State.CANCELLED)
        attempt = SignIn(
            by_device=by_device,
            connection=row,
            started_by=actor,
            expires_at=timezone.now() + VALID_FOR,
            binding=row.binding,
            value=Plain(json.dumps(proof)),
        )
        try:
            attempt.save()
        except VaultError as error:
            raise ValidationError(str(error)) from None
        record(actor, "connection.sign_in_begin", row, host=issuer.origin)
    return attempt


def step_of(user: User, connection: Connection) -> Step | None:
    """Where this person's newest attempt here stands; None when there is nothing to tell of it.
    One query."""
    issuer = issuer_for(connection.provider_type)
    now = timezone.now()
    attempt = connection.sign_ins.filter(started_by=user).order_by("-started_at").first()
    if issuer is None or attempt is None or attempt.binding != connection.binding:
        return None
    if attempt.by_device and attempt.state == SignIn.State.FAILED:
        words = sentence(attempt.error).text
        if attempt.error == ErrorKind.AUTH:
            words = _("The provider refused the sign-in. Begin again.")
        return Step(attempt, problem=f"{words} ({attempt.detail})" if attempt.detail else words)
    if attempt.by_device and attempt.state == SignIn.State.OPEN and attempt.expires_at <= now:
        return Step(attempt, problem=_("The code has expired. Begin again."))
    if not attempt.is_open:
        return None
    try:
        proof = json.loads(attempt.value.open())
    except VaultError:
        return None
    if not attempt.by_device:
        url = oauth.authorize_url(issuer, state=proof["state"], verifier=proof["verifier"])
        return Step(attempt, url)
    if proof and (attempt.busy_until is None or attempt.busy_until < now):
        return Step(attempt, problem=_("The worker that waited was stopped. Begin again."))
    return Step(attempt, proof.get("url", ""), proof.get("code", ""))


def cancel(actor: User, connection: Connection) -> None:
    """Closes this person's open attempts."""
    with transaction.atomic():
        mine = connection.sign_ins.filter(started_by=actor, state=SignIn.State.OPEN)
        if mine.update(state=SignIn.State.CANCELLED):
            record(actor, "connection.sign_in_cancel", connection)


def finish(actor: User, connection: Connection, *, attempt_id: str, pasted: str) -> None:
    """Exchanges the pasted code for tokens and stores them. One call to the issuer, of at most
    `oauth.SECONDS`, outside any transaction. Not for a running event loop."""
    issuer = _issuer(connection)
    code, state = oauth.split_code(pasted)
    if not code:
        raise _wrong(_("Paste the code that the provider's page showed at the end."))
    attempt, proof = _claim(actor, connection, attempt_id, state)
    if attempt is None:
        return  # a second click on a sign-in that is done
    try:
        tokens = asyncio.run(
            oauth.exchange(
                egress.provider_policy(),
                issuer,
                code=code,
                state=proof["state"],
                verifier=proof["verifier"],
            )
        )
    except ProviderError as error:
        _give_back(actor, attempt, error)
        raise _wrong(_refusal(connection, issuer, error)) from None
    keep(actor, connection, attempt, tokens, issuer)


# -- finishing -------------------------------------------------------------------------------------


def _claim(
    actor: User, connection: Connection, attempt_id: str, state: str
) -> tuple[SignIn | None, dict[str, str]]:
    """The attempt, ours for the time of a call; (None, {}) when it has been finished already."""
    with transaction.atomic():
        mine = connection.sign_ins.filter(started_by=actor, by_device=False)
        attempt = mine.select_for_update().filter(pk=_uuid(attempt_id)).first()
        if attempt is None:
            raise _wrong(_("This sign-in isn't known any more. Begin again."))
        proof = _proof(attempt)
        if state and state != proof["state"]:
            # Another tab's: its page began a sign-in of its own.
            found = [(one, _proof(one)) for one in mine.filter(state=SignIn.State.OPEN)]
            matching = [pair for pair in found if pair[1]["state"] == state]
            if not matching:
                raise _wrong(
                    _(
                        "This code belongs to another sign-in. Open the provider's page with the "
                        "link here, and paste the code that it shows then."
                    )
                )
            attempt, proof = matching[0]
            attempt = mine.select_for_update().get(pk=attempt.pk)
        now = timezone.now()
        if attempt.state == SignIn.State.DONE:
            return None, {}
        if attempt.state != SignIn.State.OPEN:
            raise _wrong(_("This sign-in was ended. Begin again."))
        if attempt.expires_at <= now:
            raise _wrong(_("This sign-in took too long and has expired. Begin again."))
        if attempt.binding != connection.binding:
            raise _wrong(_("The connection's settings were changed meanwhile. Begin again."))
        if attempt.busy_until is not None and attempt.busy_until > now:
            raise _wrong(_("This sign-in is being finished already. Reload the page in a moment."))
        attempt.tries += 1
        attempt.busy_until, attempt.busy_token = now + BUSY_FOR, uuid.uuid4()
        attempt.save(update_fields=["tries", "busy_until", "busy_token"])
    return attempt, proof


def _give_back(actor: User, attempt: SignIn, error: ProviderError) -> None:
    """A wrong code, or no answer: the attempt stays open for another try."""
    with transaction.atomic():
        held = SignIn.objects.select_for_update().filter(
            pk=attempt.pk, busy_token=attempt.busy_token, state=SignIn.State.OPEN
        )
        over = attempt.tries >= MOST_TRIES
        held.update(
            busy_until=None,
            busy_token=None,
            state=SignIn.State.FAILED if over else SignIn.State.OPEN,
        )
        record(actor, "connection.sign_in_failed", attempt.connection, error=error.kind.value)


def keep(
    actor: User, connection: Connection, attempt: SignIn, tokens: Tokens, issuer: Issuer
) -> None:
    """Stores what an attempt brought, for whoever holds it. Takes the connection's row lock."""
    with transaction.atomic():
        row = _locked(connection)
        actor.refresh_from_db(fields=["is_active", "is_superuser"])
        if not actor.is_instance_admin:
            raise _wrong(_("Only an admin of this installation can sign a connection in."))
        held = SignIn.objects.select_for_update().filter(
            pk=attempt.pk, busy_token=attempt.busy_token, state=SignIn.State.OPEN
        )
        if row.binding != attempt.binding or not held.exists():
            raise _wrong(_("The sign-in was ended or the settings changed meanwhile. Begin again."))
        grant = {"account": tokens.account, "account_kind": tokens.kind, **times_of(tokens)}
        actions.store_sign_in(actor, row, values_of(tokens, issuer), grant=grant)
        held.update(state=SignIn.State.DONE, busy_until=None, busy_token=None)
        row.sign_ins.filter(state=SignIn.State.OPEN).update(state=SignIn.State.CANCELLED)


# -- the parts -------------------------------------------------------------------------------------


def _locked(connection: Connection) -> Connection:
    row = Connection.objects.select_for_update().filter(pk=connection.pk, deleted_at=None).first()
    if row is None:
        raise ValidationError(_("This connection was deleted."))
    return row


def _issuer(connection: Connection) -> Issuer:
    _check_auth_type(connection)
    issuer = issuer_for(connection.provider_type)
    if issuer is None:
        raise ValidationError(off_text(connection.provider_type))
    return issuer


def off_text(provider_type: str) -> str:
    """Why nobody can sign in to this provider, and who can change it."""
    return _("Signing in is off: the operator must set %(setting)s first.") % {
        "setting": client_id_setting(provider_type)
    }


def _check_auth_type(connection: Connection) -> None:
    if connection.auth_type != AuthType.OAUTH:
        raise ValidationError(_("This connection doesn't authenticate by signing in."))


def _proof(attempt: SignIn) -> dict[str, str]:
    try:
        return json.loads(attempt.value.open())
    except VaultError as error:
        raise _wrong(str(error)) from None


def _refusal(connection: Connection, issuer: Issuer, error: ProviderError) -> str:
    """Why the issuer gave no tokens, for the admin who signs in."""
    if error.kind is ErrorKind.SIGN_IN_AGAIN:
        return _(
            "The provider didn't take this code: it was used already, is too old, or wasn't copied "
            "whole. Open the provider's page again and paste the new code."
        )
    if error.code == "invalid_client":
        return _(
            "The provider doesn't know this installation's client id. The operator must correct "
            "%(setting)s."
        ) % {"setting": client_id_setting(connection.provider_type)}
    words = {"host": issuer.origin, "title": sentence(error.kind).phrase, "detail": error.message}
    if error.kind is ErrorKind.EGRESS:
        return _("%(host)s was not called: %(detail)s") % words
    text = _("%(host)s gave no tokens: %(title)s. Try again; your code may still be good.") % words
    return text if not error.message else f"{text} ({error.message})"


def _wrong(text: str) -> ValidationError:
    return ValidationError({"code": [text]})


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
