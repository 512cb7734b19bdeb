"""From a connection to what a call needs: the one place where secrets are opened for use.

The error tree; `reason` says which sentence a person reads::

    TargetError(reason)
    ├── NotAvailable      this build has no such provider, or not with this way to authenticate
    ├── SecretMissing     none is stored
    ├── BindingMismatch   one is stored, for another address, provider or way to authenticate
    ├── NotSignedIn       nobody has signed in, or for something else
    ├── SignInEnded       somebody had, and the issuer renews it no more
    ├── OAuthOff          the operator hasn't set up signing in to this provider
    ├── SecretUnreadable  its key isn't at hand, or the stored bytes were changed or moved
    ├── CodexMissing      the binary isn't there, or isn't one of the operator's any more
    ├── EnvironmentOff    the operator doesn't lend the server's own credentials to this provider
    └── EnvironmentEmpty  the operator does, but there are none
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from django.conf import settings

from connections import providers
from connections.choices import AuthType, ProviderType
from connections.issuers import issuer_for
from connections.models import Connection, Secret
from connections.providers.base import ErrorKind, Provider, Target
from connections.renewal import Renewed, stored_tokens
from connections.sentences import Fault, Reason
from workspaces import vault


class TargetError(Exception):
    """A connection can't be called as it is. Never carries a secret."""

    reason: ClassVar[Fault]

    def __init__(self) -> None:
        super().__init__(self.reason.value)


class NotAvailable(TargetError):
    reason = Reason.NOT_AVAILABLE


class SecretMissing(TargetError):
    reason = Reason.INCOMPLETE


class BindingMismatch(TargetError):
    reason = Reason.INCOMPLETE


class NotSignedIn(TargetError):
    reason = Reason.NOT_SIGNED_IN


class SignInEnded(TargetError):
    reason = ErrorKind.SIGN_IN_AGAIN


class OAuthOff(TargetError):
    reason = Reason.OAUTH_OFF


class SecretUnreadable(TargetError):
    reason = Reason.SEALED


class CodexMissing(TargetError):
    reason = Reason.CODEX_MISSING


class EnvironmentOff(TargetError):
    reason = Reason.ENVIRONMENT_OFF


class EnvironmentEmpty(TargetError):
    reason = Reason.ENVIRONMENT_EMPTY


# The variables of the server that hold a key. The clouds have chains of their own, which their
# providers ask.
_VARIABLES = {
    ProviderType.ANTHROPIC: "ANTHROPIC_API_KEY",
    ProviderType.OPENAI: "OPENAI_API_KEY",
}


def availability(connection: Connection) -> Fault | None:
    """Why this connection can't be used now, or None. No network; no query when `secrets` is
    prefetched, else one. Opens the secrets (about 20 µs each) and forgets them."""
    if connection.deleted_at is not None:
        return Reason.DELETED
    if not connection.enabled:
        return Reason.DISABLED
    return configuration_fault(connection)


def configuration_fault(
    connection: Connection,
    *,
    secret: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Fault | None:
    """As `availability`, but a paused connection may be tested too, and with another `secret` and
    other extra `headers`."""
    if connection.deleted_at is not None:
        return Reason.DELETED
    try:
        target_of(connection, secret=secret, headers=headers)
    except TargetError as error:
        return error.reason
    if not (connection.default_model or connection.models):
        return Reason.NO_MODEL
    return None


def provider_of(connection: Connection) -> Provider:
    """The provider that speaks for this connection. Raises `NotAvailable`."""
    provider = providers.PROVIDERS.get(connection.provider_type)
    if provider is None or connection.auth_type not in provider.auth_types:
        raise NotAvailable
    return provider


def target_of(
    connection: Connection,
    *,
    secret: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Target:
    """The connection with its secrets opened, for one call or turn. `secret` and `headers`: those
    that are tried in place of the stored ones. Raises `TargetError`."""
    provider_of(connection)
    fresh: Renewed | None = None
    on_codex = connection.provider_type == ProviderType.OPENAI
    codex_path = codex_path_of(connection) if on_codex else ""
    if secret is not None:
        fields = dict(secret)
    elif connection.auth_type == AuthType.ENVIRONMENT:
        fields = _lent(connection)
    elif connection.auth_type == AuthType.OAUTH:
        fresh = _signed_in(connection)
        fields = fresh.fields
    else:
        fields = _opened(connection, Secret.Purpose.AUTH)
    if connection.needs_secret and not fields:
        raise SecretMissing
    on_aws = connection.provider_type == ProviderType.BEDROCK
    return Target(
        provider_type=connection.provider_type,
        auth_type=connection.auth_type,
        base_url=connection.base_url,
        wire=connection.wire,
        secret=fields,
        extra_headers=_opened(connection, Secret.Purpose.HEADERS) if headers is None else headers,
        auth_header=connection.auth_header,
        max_tokens_field=connection.max_tokens_field,
        region=connection.aws_region if on_aws else connection.gcp_region,
        project=connection.gcp_project_id,
        token_url=settings.GOOGLE_TOKEN_URL,
        codex_path=codex_path,
        fresh=fresh,
    )


def codex_path_of(connection: Connection) -> str:
    """The binary, which must be one of the operator's: what is stored was allowed once. Raises
    `CodexMissing`."""
    path = connection.codex_path or next(iter(settings.CODEX_PATHS), "")
    is_allowed = path in settings.CODEX_PATHS and Path(path).is_absolute()
    if not is_allowed or not Path(path).is_file() or not os.access(path, os.X_OK):
        raise CodexMissing
    return path


def _lent(connection: Connection) -> dict[str, str]:
    """What the server's own environment holds for the provider, {} where a chain will be asked."""
    if connection.provider_type not in settings.ENVIRONMENT_AUTH or connection.base_url:
        # No form and no file gives such a one an address; the operator's key stays here anyway.
        raise EnvironmentOff
    name = _VARIABLES.get(ProviderType(connection.provider_type))
    if name is None:
        return {}
    if not (key := os.environ.get(name, "").strip()):
        raise EnvironmentEmpty
    return {"api_key": key}


def _signed_in(connection: Connection) -> Renewed:
    """The tokens at hand, and who renews them when it is time; the refresh token stays behind."""
    if issuer_for(connection.provider_type) is None:
        raise OAuthOff
    stored = connection.secret_for(Secret.Purpose.AUTH)
    if stored is None or stored.binding != connection.binding:
        raise NotSignedIn
    if stored.ended_at is not None:
        raise SignInEnded
    try:
        return Renewed(stored.pk, stored_tokens(stored))
    except (vault.VaultError, ValueError):
        raise SecretUnreadable from None


def _opened(connection: Connection, purpose: Secret.Purpose) -> dict[str, str]:
    stored = connection.secret_for(purpose)
    if stored is None:
        return {}
    if stored.binding != connection.binding:
        raise BindingMismatch
    try:
        return json.loads(stored.value.open())
    except (vault.VaultError, ValueError):
        raise SecretUnreadable from None
