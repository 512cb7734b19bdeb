"""What a person reads when a connection can't be used or a call failed: what happened, what to do.

`sentence(kind)` knows every `ErrorKind` of a provider call and every `Reason` for which no call is
made at all, in the words of a key; where a connection authenticates otherwise, `sentence(kind,
auth_type)` has the fitting ones. A provider's own words never stand in them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _

from connections.choices import AuthType
from connections.providers.base import ErrorKind


class Reason(enum.StrEnum):
    """Why a connection isn't called, or a call wasn't made; stored beside the error kinds."""

    INCOMPLETE = "incomplete"
    NOT_SIGNED_IN = "not_signed_in"
    OAUTH_OFF = "oauth_off"
    SEALED = "sealed"
    NOT_AVAILABLE = "not_available"
    ENVIRONMENT_OFF = "environment_off"
    ENVIRONMENT_EMPTY = "environment_empty"
    CODEX_MISSING = "codex_missing"
    DISABLED = "disabled"
    DELETED = "deleted"
    NO_MODEL = "no_model"
    NO_ACCESS = "no_access"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    NO_CONNECTION = "no_connection"
    ACCESS_ENDED = "access_ended"
    BUDGET = "budget"
    DNS = "dns"
    WORKER_LOST = "worker_lost"
    TURN_TIMEOUT = "turn_timeout"
    TOO_MANY_STEPS = "too_many_steps"
    INTERNAL = "internal"


Fault = Reason | ErrorKind


# Their nouns are written large wherever they stand, and most titles begin with one.
_KEEP_CAPITALS = frozenset({"de"})


@dataclass(frozen=True, slots=True)
class Sentence:
    """`title` is two or three words; `what` happened; `fix` is what an admin does about it, `ask`
    what anybody else does (the same unless given)."""

    title: Any
    what: Any
    fix: Any
    ask: Any = ""
    tone: str = "danger"

    @property
    def text(self) -> str:
        """For who may change the connection."""
        return f"{self.what} {self.fix}"

    @property
    def member_text(self) -> str:
        """For who may not."""
        return f"{self.what} {self.ask or self.fix}"

    @property
    def phrase(self) -> str:
        """The title within another sentence."""
        title = str(self.title)
        if get_language() in _KEEP_CAPITALS:
            return title
        return title[:1].lower() + title[1:]


def sentence(kind: str, auth_type: str = "") -> Sentence:
    """The sentence of an `ErrorKind` or `Reason`; an unknown kind (a row of a newer version) gets
    that of an unexpected fault."""
    fitting = _BY_AUTH.get((auth_type, kind))
    return fitting or _SENTENCES.get(kind, _SENTENCES[Reason.INTERNAL])


_ASK_ADMIN = _("Ask an admin to look at this connection.")
_TRY_AGAIN = _("Try again in a moment.")

# (auth type, kind): where nobody can paste a key.
_BY_AUTH: dict[tuple[str, str], Sentence] = {
    (AuthType.IAM_CREDENTIALS, ErrorKind.AUTH): Sentence(
        _("Credentials rejected"),
        _("AWS rejected these IAM credentials: wrong, deactivated or expired."),
        _("Enter the access key again, with its session token if it is temporary, then validate."),
        _("Ask an admin to enter new ones."),
    ),
    (AuthType.IAM_CREDENTIALS, ErrorKind.FORBIDDEN): Sentence(
        _("Not permitted"),
        _("AWS knows these IAM credentials, but doesn't permit this."),
        _("Allow bedrock:InvokeModelWithResponseStream on the model in IAM, then validate again."),
        _ASK_ADMIN,
    ),
    (AuthType.NONE, ErrorKind.AUTH): Sentence(
        _("Key wanted"),
        _("The server wants a key, and this connection has none."),
        _("Set its authentication to an API key with endpoint, enter the key, and validate again."),
        _("Ask an admin to enter one."),
    ),
    (AuthType.OAUTH, ErrorKind.FORBIDDEN): Sentence(
        _("Not permitted"),
        _("The provider knows this connection's sign-in, but doesn't permit this."),
        _("Choose a model that the account's plan has, or sign in with another account."),
        _ASK_ADMIN,
    ),
    (AuthType.ENVIRONMENT, ErrorKind.AUTH): Sentence(
        _("Credentials rejected"),
        _("The server's own credentials are missing or expired, or the provider rejected them."),
        _("Have the operator renew them in the worker's environment, then validate again."),
        _ASK_ADMIN,
    ),
    (AuthType.ENVIRONMENT, ErrorKind.FORBIDDEN): Sentence(
        _("Not permitted"),
        _("The provider knows the server's own credentials, but doesn't permit this."),
        _("Give the server's account or role access to the model, then validate again."),
        _ASK_ADMIN,
    ),
}

_SENTENCES: dict[str, Sentence] = {
    ErrorKind.AUTH: Sentence(
        _("Key rejected"),
        _("The provider rejected this key."),
        _("Paste a new key and validate again."),
        _("Ask an admin to enter a new one."),
    ),
    ErrorKind.SIGN_IN_AGAIN: Sentence(
        _("Sign in again"),
        _("The provider doesn't take this connection's sign-in any more."),
        _("Sign in again on the connection's page."),
        _("Ask an admin to sign the connection in again."),
        tone="warning",
    ),
    ErrorKind.FORBIDDEN: Sentence(
        _("Not permitted"),
        _("The provider knows the key, but doesn't permit this."),
        _("Give the key access to the model in the provider's console, then validate again."),
        _ASK_ADMIN,
    ),
    ErrorKind.QUOTA: Sentence(
        _("Quota used up"),
        _("The account at the provider has no credit or quota left."),
        _("Add credit or raise the limit in the provider's console."),
        _("Ask an admin, or go on with another connection."),
    ),
    ErrorKind.RATE_LIMITED: Sentence(
        _("Rate limited"),
        _("The provider takes no more requests from this key for now."),
        _TRY_AGAIN,
        tone="warning",
    ),
    ErrorKind.MODEL_NOT_FOUND: Sentence(
        _("Model not found"),
        _("The provider doesn't have this model, or not for this key."),
        _("Check the model's id and the connection's list of models."),
        _("Choose another model, or ask an admin."),
    ),
    ErrorKind.ENDPOINT_NOT_FOUND: Sentence(
        _("Endpoint not found"),
        _("A server answers at this address, but not as the API."),
        _("Check the base URL's path and the wire format."),
        _ASK_ADMIN,
    ),
    ErrorKind.BAD_REQUEST: Sentence(
        _("Request refused"),
        _("The provider understood the request and refused its form."),
        _("Check the wire format, the output-limit field and the model; the details have more."),
        _("Try another model, or ask an admin."),
    ),
    ErrorKind.TOO_LARGE: Sentence(
        _("Too large"),
        _("The request was larger than the provider takes."),
        _("Send less or smaller images."),
    ),
    ErrorKind.CONTEXT_TOO_LONG: Sentence(
        _("Context too long"),
        _("The conversation no longer fits the model's context window."),
        _("Start a new session, or choose a model with a larger window."),
    ),
    ErrorKind.OVERLOADED: Sentence(
        _("Overloaded"),
        _("The provider has too much to do right now."),
        _TRY_AGAIN,
        tone="warning",
    ),
    ErrorKind.SERVER: Sentence(
        _("Provider error"),
        _("The provider had a fault of its own."),
        _("Try again in a moment; its status page may say more."),
        tone="warning",
    ),
    ErrorKind.TIMEOUT: Sentence(
        _("No answer in time"),
        _("The provider didn't answer in time."),
        _("Try again; if it stays so, check the address and the provider's status page."),
        _TRY_AGAIN,
    ),
    ErrorKind.CONNECT: Sentence(
        _("Unreachable"),
        _("No connection to the provider's server could be made."),
        _("Check the host and port of the base URL, and that the server is running."),
        _("Try again in a moment, or ask an admin."),
    ),
    ErrorKind.TLS: Sentence(
        _("TLS failed"),
        _("The server's certificate could not be verified, or it speaks no TLS."),
        _("Check the address; a plain server needs http://, an own one a trusted certificate."),
        _ASK_ADMIN,
    ),
    ErrorKind.TRUNCATED: Sentence(
        _("Answer cut off"),
        _("The provider's answer broke off before its end."),
        _TRY_AGAIN,
        tone="warning",
    ),
    ErrorKind.PROTOCOL: Sentence(
        _("Unreadable answer"),
        _("The server's answer isn't what this wire format asks for."),
        _("Check the base URL and the wire format."),
        _ASK_ADMIN,
    ),
    ErrorKind.REDIRECT: Sentence(
        _("Redirected"),
        _("The server sent the request elsewhere; it was not followed, as the key would go along."),
        _("Enter the final address as the base URL."),
        _ASK_ADMIN,
    ),
    ErrorKind.EGRESS: Sentence(
        _("Address not allowed"),
        _("This address is private or special, and the egress policy doesn't allow it."),
        _("Use a public address, or have the operator name it in PATCHBAY_EGRESS_ALLOW."),
        _ASK_ADMIN,
    ),
    ErrorKind.PROCESS: Sentence(
        _("Codex stopped"),
        _("The Codex process on this server ended before the reply did."),
        _("Try again; if it stays so, run manage.py doctor, which tells the binary's version."),
        _TRY_AGAIN,
        tone="warning",
    ),
    Reason.INCOMPLETE: Sentence(
        _("Secret needed"),
        _("This connection has no secret for the address and authentication it is set to."),
        _("Enter it on the connection's edit page."),
        _("Ask an admin to enter it."),
        tone="warning",
    ),
    Reason.NOT_SIGNED_IN: Sentence(
        _("Not signed in"),
        _("Nobody has signed this connection in yet."),
        _("Sign in on the connection's page."),
        _("Ask an admin to sign it in."),
        tone="warning",
    ),
    Reason.OAUTH_OFF: Sentence(
        _("Signing in is off"),
        _("Signing in to this provider isn't set up on this server."),
        _("Have the operator set the provider's client id (PATCHBAY_OAUTH_…_CLIENT_ID)."),
        _ASK_ADMIN,
        tone="warning",
    ),
    Reason.SEALED: Sentence(
        _("Secret unreadable"),
        _("The stored secret can't be opened with this server's keys, so nothing is sent."),
        _("Bring the missing key back, or enter the secret again."),
        _ASK_ADMIN,
    ),
    Reason.NOT_AVAILABLE: Sentence(
        _("Not available in this build"),
        _("This provider or way of authenticating is not available in this build."),
        _("The settings are kept; choose another one to use it now."),
        _("Use another connection."),
        tone="neutral",
    ),
    Reason.ENVIRONMENT_OFF: Sentence(
        _("Environment not lent"),
        _("The server's own credentials may not be used for this provider."),
        _("Have the operator name the provider in PATCHBAY_ENVIRONMENT_AUTH."),
        _ASK_ADMIN,
        tone="warning",
    ),
    Reason.ENVIRONMENT_EMPTY: Sentence(
        _("No credentials there"),
        _("The server's environment holds no credentials for this provider."),
        _("Have the operator set them for the worker, or choose another way to authenticate."),
        _ASK_ADMIN,
        tone="warning",
    ),
    Reason.CODEX_MISSING: Sentence(
        _("Codex not installed"),
        _("The Codex binary of this connection is not on the server, or the operator took it off."),
        _("Have the operator run make codex, or list its path in PATCHBAY_CODEX_PATHS."),
        _ASK_ADMIN,
        tone="warning",
    ),
    Reason.DISABLED: Sentence(
        _("Disabled"),
        _("This connection is paused."),
        _("Enable it on its page."),
        _("Ask an admin, or use another connection."),
        tone="neutral",
    ),
    Reason.DELETED: Sentence(
        _("Deleted"),
        _("This connection was deleted."),
        _("Go on with another connection in a new session."),
    ),
    Reason.NO_MODEL: Sentence(
        _("No model"),
        _("This connection has no model that may be used here."),
        _("Set a default model, or allow one for the workspace."),
        _ASK_ADMIN,
        tone="warning",
    ),
    Reason.NO_ACCESS: Sentence(
        _("No access"),
        _("This workspace has no access to the connection."),
        _("Give the workspace access on the connection's page."),
        _("Ask an admin, or use another connection."),
        tone="neutral",
    ),
    Reason.MODEL_NOT_ALLOWED: Sentence(
        _("Model not allowed"),
        _("This model may not be used in this workspace, or is no longer in the list."),
        _("Choose another model."),
    ),
    Reason.NO_CONNECTION: Sentence(
        _("No connection"),
        _("No connection can be used in this workspace yet."),
        _("Add one under Connections, or repair one that is there."),
        _("Ask an admin to add one."),
        tone="warning",
    ),
    Reason.ACCESS_ENDED: Sentence(
        _("Access ended"),
        _("Whoever sent this may no longer send here, so it was not sent to the model."),
        _("Give them access again, or send it yourself."),
        _("Send it yourself, or ask an admin."),
        tone="neutral",
    ),
    Reason.BUDGET: Sentence(
        _("Budget used up"),
        _("The budget set for this is used up."),
        _("Raise it, or wait for the next month, then try again."),
        _("Ask an admin, or try again next month."),
    ),
    Reason.DNS: Sentence(
        _("Host not found"),
        _("The name of the host could not be resolved."),
        _("Check the host's spelling in the base URL."),
        _ASK_ADMIN,
    ),
    Reason.WORKER_LOST: Sentence(
        _("Not begun"),
        _("Three workers stopped before this message could be sent to the model."),
        _("Retry; if it happens again, look at the worker's log."),
        _("Retry; if it happens again, tell an admin."),
    ),
    Reason.TURN_TIMEOUT: Sentence(
        _("Out of time"),
        _("The reply took longer than 15 minutes and was ended; what had come is kept."),
        _("Ask for less at once, or retry."),
    ),
    Reason.TOO_MANY_STEPS: Sentence(
        _("Too many steps"),
        _("The model went on calling tools for 25 steps and was ended there."),
        _("Send a message to let it go on, or ask for less at once."),
    ),
    Reason.INTERNAL: Sentence(
        _("Unexpected fault"),
        _("Something went wrong within Patchbay; the server's log has the details."),
        _TRY_AGAIN,
    ),
}
# There is no key to paste, and the token was renewed before the provider rejected it.
_BY_AUTH[AuthType.OAUTH, ErrorKind.AUTH] = _SENTENCES[ErrorKind.SIGN_IN_AGAIN]
