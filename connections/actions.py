"""The verbs: every change of a connection and its secrets, each with its audit row (who may use it:
`connections.grants`).

Each verb opens its own transaction and takes the locks it names; the audit row is written in the
same one, so that a change without it can't happen. Looking an address up takes time, so it is done
before the transaction (`resolve=False`: by the caller, before a transaction of its own).
A refusal is a `ValidationError` by field name.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from connections import sync
from connections.choices import (
    SECRET_FIELDS,
    AuthType,
    MidStream,
    ProviderType,
    Status,
)
from connections.models import Connection, Secret, SecretCandidate, SignIn
from connections.providers.base import ListedModel
from connections.validation import (
    FIELDS,
    RESERVED_SLUGS,
    clean_connection,
    clean_secret,
    parse_headers,
)
from workspaces import egress
from workspaces.audit import record
from workspaces.models import User
from workspaces.slugs import make_slug
from workspaces.vault import Plain, VaultError

Actor = User | str

# An edit of one of these can change what a call does: what was validated is no longer what runs.
MATTERS = frozenset(
    {
        "provider_type",
        "auth_type",
        "base_url",
        "models",
        "default_model",
        "custom_endpoint_api",
        "codex_path",
        "aws_region",
        "gcp_project_id",
        "gcp_region",
        "auth_header",
        "max_tokens_field",
    }
)
HEALTH_FIELDS = ("revision", "health", "health_at", "health_error", "checking_until")
_SYNC = ("models_synced", "sync_due_at", "syncing_until", "synced_at", "sync_error")
_KEPT_FOR_EXPORT = ("unknown_fields", "imported_as")
_NO_GRANT = {
    "account": "",
    "account_kind": "",
    "expires_at": None,
    "renew_at": None,
    "ended_at": None,
    "renewing_until": None,
    "renewing_token": None,
    "renewal_error": "",
    "reminded_at": None,
}
HINT_FROM = 20  # characters: the last four of a shorter value would give too much of it away


# -- making and changing ---------------------------------------------------------------------------


def create(
    actor: Actor,
    data: Mapping[str, Any],
    *,
    secret: Mapping[str, Any] | None = None,
    headers: Any = None,
    unknown_fields: Mapping[str, Any] | None = None,
    imported_as: Mapping[str, Any] | None = None,
    models_synced: bool | None = None,
    created_at: dt.datetime | None = None,
    last_used_at: dt.datetime | None = None,
    resolve: bool = True,
) -> Connection:
    """A new connection, at the end of the list; the first one becomes the global default.

    `data` by the names of `validation.FIELDS`; `secret` by the auth type's form names; `headers`
    as text or mapping. Without a secret it is stored as "secret needed". An empty slug is made
    from the name. `models_synced` None: as `unknown_fields` say, else a list made by hand.
    """
    unknown = sync.with_mode(unknown_fields or {}, models_synced)
    values = _cleaned(data)
    secret_values, header_values = cleaned_secrets(values["auth_type"], secret, headers)
    _check_address(values["base_url"], resolve=resolve)
    typed_slug = values.pop("slug")
    while True:
        slug = typed_slug or _free_slug(values["name"])
        try:
            with transaction.atomic():
                if typed_slug:
                    _check_slug(typed_slug)
                connection = Connection.objects.create(
                    **values,
                    slug=slug,
                    position=end_of_list(),
                    created_by=actor if isinstance(actor, User) else None,
                    created_at=created_at or timezone.now(),
                    last_used_at=last_used_at,
                    unknown_fields=unknown,
                    models_synced=sync.is_synced(unknown),
                    imported_as=dict(imported_as or {}),
                )
                record(
                    actor,
                    "connection.create",
                    connection,
                    slug=slug,
                    provider_type=connection.provider_type,
                    auth_type=connection.auth_type,
                    host=connection.origin,
                )
                if secret_values:
                    store_secret(actor, connection, Secret.Purpose.AUTH, secret_values)
                if header_values:
                    store_secret(actor, connection, Secret.Purpose.HEADERS, header_values)
                if not Connection.objects.living().filter(is_default=True).exists():
                    _claim_default(actor, connection)
                return connection
        except IntegrityError:
            # Somebody took the slug between the look and the insert.
            if typed_slug or not Connection.objects.filter(slug=slug).exists():
                _check_slug(slug)
                raise


def update(
    actor: Actor,
    connection: Connection,
    changes: Mapping[str, Any],
    *,
    secret: Mapping[str, Any] | None = None,
    headers: Any = None,
    forget_secrets: bool = False,
    unknown_fields: Mapping[str, Any] | None = None,
    imported_as: Mapping[str, Any] | None = None,
    models_synced: bool | None = None,
    resolve: bool = True,
) -> list[str]:
    """Changes the named fields only; returns the names of those that changed. Takes the
    connection's row lock.

    A secret belongs to the scheme, host, port, provider and auth type it was entered for: with any
    of these changed it must be given again, else the change is refused at the secret's field
    (`forget_secrets`: it is destroyed instead, as an import has none to give). An empty `secret`
    and `headers` of None keep what is stored; `headers` of {} or "{}" remove them. `models_synced`
    None keeps what is, or takes what `unknown_fields` say.
    """
    url = _cleaned(_merged(connection, changes))["base_url"]
    _check_address(url, connection.base_url, resolve=resolve)
    with transaction.atomic():
        row = lock_connection(connection)
        values = _cleaned(_merged(row, changes))
        secret_values, header_values = cleaned_secrets(values["auth_type"], secret, headers)
        if values.pop("slug") != row.slug:
            raise ValidationError({"slug": [_("The slug of a connection never changes.")]})
        changed = [name for name, value in values.items() if getattr(row, name) != value]
        before, old_host = row.binding, row.origin
        for name in changed:
            setattr(row, name, values[name])
            row.imported_as.pop(_reference_name(name), None)
        extra = []
        unknown = row.unknown_fields if unknown_fields is None else dict(unknown_fields)
        unknown = sync.with_mode(unknown, models_synced)
        if sync.is_synced(unknown) != row.models_synced:
            row.models_synced = sync.is_synced(unknown)
            row.sync_due_at = row.syncing_until = row.synced_at = None
            row.sync_error = ""
            extra.append("models_synced")
        if row.unknown_fields != unknown:
            row.unknown_fields = unknown
            if unknown_fields is not None:
                extra.append("unknown_fields")
        if imported_as is not None and row.imported_as != imported_as:
            row.imported_as = dict(imported_as)
            extra.append("imported_as")
        stored = {s.purpose: s for s in row.secrets.all()}
        forgotten = _unfit_secrets(row, stored, secret_values, header_values)
        if forgotten and not forget_secrets:
            raise ValidationError(_asks_for_secrets(row, forgotten, stored))
        if not (changed or extra or secret_values or header_values is not None):
            return []
        new_secrets = bool(secret_values) or header_values is not None or before != row.binding
        if new_secrets or not MATTERS.isdisjoint(changed):
            mark_unchecked(row)
        row.save(update_fields=[*changed, *_KEPT_FOR_EXPORT, *HEALTH_FIELDS, *_SYNC])
        if changed or extra:
            hosts = {} if old_host == row.origin else {"old_host": old_host, "host": row.origin}
            record(actor, "connection.update", row, changed=[*changed, *extra], **hosts)
        for purpose in forgotten:
            destroy_secret(actor, row, stored[purpose])
        if _takes_no_secret(row) and Secret.Purpose.AUTH in stored:
            destroy_secret(actor, row, stored[Secret.Purpose.AUTH])
        if new_secrets:
            # It was entered for another destination, or these are the newer.
            is_newer = bool(secret_values) or header_values is not None
            discard_candidate(actor, row, "replaced" if is_newer else "edited")
        if secret_values:
            store_secret(actor, row, Secret.Purpose.AUTH, secret_values)
        if header_values:
            store_secret(actor, row, Secret.Purpose.HEADERS, header_values)
        elif header_values is not None and Secret.Purpose.HEADERS in stored:
            destroy_secret(actor, row, stored[Secret.Purpose.HEADERS])
    connection.refresh_from_db()
    return [*changed, *extra]


def store_secret(
    actor: Actor,
    connection: Connection,
    purpose: str,
    values: Mapping[str, str],
    *,
    grant: Mapping[str, Any] | None = None,
    action: str = "secret.store",
    **details: Any,
) -> Secret:
    """Seals a secret for what the connection is set to now, in place of the one stored. Expects
    the connection's row lock. `grant`: what stands beside the tokens of a sign-in; a renewal that
    is under way then finds its lease gone. `action` and `details`: for the audit."""
    secret = connection.secrets.filter(purpose=purpose).first()
    old_host = host_of(secret.binding) if secret else ""
    value = Plain(json.dumps(dict(values)))
    secret = secret or Secret(connection=connection, purpose=purpose, value=value)
    secret.binding, secret.value = connection.binding, value
    secret.hints = hints_of({} if grant is not None else values)
    for name, none in _NO_GRANT.items():
        setattr(secret, name, (grant or {}).get(name, none))
    secret.created_at = timezone.now()
    secret.created_by = actor if isinstance(actor, User) else None
    try:
        secret.save()
    except VaultError as error:
        field = "extra_headers" if purpose == Secret.Purpose.HEADERS else next(iter(values))
        raise ValidationError({field: [str(error)]}) from None
    record(
        actor,
        action,
        connection,
        purpose=str(purpose),
        host=host_of(secret.binding),
        **({"old_host": old_host} if old_host else {}),
        **details,
    )
    return secret


def hints_of(values: Mapping[str, str]) -> dict[str, str]:
    """The last four characters of each value that is long enough to lose them."""
    return {
        name: value[-4:] if len(value) >= HINT_FROM and name != "service_account_json" else ""
        for name, value in values.items()
    }


def discard_candidate(actor: Actor, connection: Connection, reason: str) -> bool:
    """Destroys the secret that is being tried, if there is one. Expects the connection's row lock.

    `reason`, for the audit: "asked", "edited", "replaced", "deleted", "expired".
    """
    candidate = SecretCandidate.objects.filter(connection=connection).defer("value").first()
    if candidate is None:
        return False
    record(actor, "secret.discard", connection, host=host_of(candidate.binding), reason=reason)
    candidate.delete()
    return True


def store_sign_in(
    actor: Actor, connection: Connection, values: Mapping[str, str], *, grant: Mapping[str, Any]
) -> None:
    """Seals the tokens of a sign-in; what was validated before no longer counts. Expects the
    connection's row lock."""
    store_secret(actor, connection, Secret.Purpose.AUTH, values, grant=grant)
    mark_unchecked(connection)
    connection.save(update_fields=[*HEALTH_FIELDS])
    record(
        actor,
        "connection.sign_in",
        connection,
        account=grant["account"],
        account_kind=grant["account_kind"],
    )


def sign_out(actor: Actor, connection: Connection) -> bool:
    """Destroys the tokens of a sign-in and closes what is open; False when there are none. Takes
    the row lock."""
    with transaction.atomic():
        row = lock_connection(connection)
        stored = row.secrets.filter(purpose=Secret.Purpose.AUTH).first()
        row.sign_ins.filter(state=SignIn.State.OPEN).update(state=SignIn.State.CANCELLED)
        if row.auth_type != AuthType.OAUTH or stored is None:
            return False
        record(actor, "connection.sign_out", row, account=stored.account)
        destroy_secret(actor, row, stored)
        mark_unchecked(row)
        row.save(update_fields=[*HEALTH_FIELDS])
    return True


def set_enabled(
    actor: Actor, connection: Connection, enabled: bool, *, message: str | None = None
) -> None:
    """Pauses or resumes it; `message` (None: unchanged) is what people read while it is paused.
    Takes the row lock."""
    with transaction.atomic():
        row = lock_connection(connection)
        row.enabled = enabled
        if message is not None:
            row.paused_message = _cleaned(_merged(row, {"paused_message": message}))[
                "paused_message"
            ]
        row.save(update_fields=["enabled", "paused_message"])
        record(actor, "connection.enable" if enabled else "connection.disable", row)
    connection.enabled, connection.paused_message = row.enabled, row.paused_message


def set_mid_stream(actor: Actor, connection: Connection, behaviour: str) -> None:
    """`steer`, `queue`, or "" for the provider type's own; counts from the next message on. Takes
    the row lock."""
    if behaviour not in ("", *MidStream.values):
        raise ValidationError({"mid_stream_behavior": [_("Use steer, queue, or nothing.")]})
    with transaction.atomic():
        row = lock_connection(connection)
        row.mid_stream_behavior = behaviour
        row.imported_as.pop("midStreamBehavior", None)
        row.save(update_fields=["mid_stream_behavior", "imported_as"])
        record(actor, "connection.mid_stream", row, behaviour=behaviour)
    connection.mid_stream_behavior = behaviour


def take_models(
    actor: Actor, connection: Connection, listed: Sequence[ListedModel]
) -> sync.Merged | None:
    """Brings the list in step with what the provider listed; None when it is no longer to be (a
    list made by hand is never touched) or when the settings were edited meanwhile. What was
    validated stays validated. Takes the row lock."""
    with transaction.atomic():
        row = lock_connection(connection)
        if not row.models_synced or row.revision != connection.revision:
            return None
        merged = sync.merge(row.models, listed, row.default_model)
        if row.unlisted_default != merged.unlisted_default:
            row.unlisted_default = merged.unlisted_default
            row.save(update_fields=["unlisted_default"])
        if merged.models != row.models:
            row.models = merged.models
            row.imported_as.pop("models", None)
            row.save(update_fields=["models", "imported_as"])
            record(
                actor,
                "connection.models",
                row,
                added=merged.added,
                removed=merged.removed,
                models=len(merged.models),
            )
    return merged


# -- the list --------------------------------------------------------------------------------------


def set_global_default(actor: Actor, connection: Connection) -> Connection | None:
    """Returns the one that was it before. Takes the locks of the list."""
    with transaction.atomic():
        rows = lock_list()
        row = rows.get(connection.pk)
        if row is None:
            raise ValidationError(_("This connection was deleted."))
        before = next((other for other in rows.values() if other.is_default), None)
        move_default(actor, row)
    connection.is_default = True
    return before


def reorder(actor: Actor, ids: Sequence[uuid.UUID]) -> None:
    """Puts the list in this order; those not named (made meanwhile) keep theirs, after it. Takes
    the locks of the list."""
    with transaction.atomic():
        rows = lock_list()
        order = {pk: place for place, pk in enumerate(dict.fromkeys(ids)) if pk in rows}
        ordered = sorted(rows.values(), key=lambda row: order.get(row.pk, len(order)))
        moved = [row for place, row in enumerate(ordered) if row.position != place]
        for place, row in enumerate(ordered):
            row.position = place
        Connection.objects.bulk_update(moved, ["position"])
        if moved:
            record(actor, "connection.reorder", ordered[0], order=[row.slug for row in ordered])


@dataclass(frozen=True, slots=True)
class Moved:
    """Where a connection stands now (`place` counts from 1), and after which one it stood before:
    None where it was the first."""

    place: int
    total: int
    stood_after: Connection | None


def move(
    actor: Actor,
    connection: Connection,
    to: int | None = None,
    *,
    by: int = 0,
    before: str = "",
    after: str = "",
) -> Moved:
    """To the place `to` of the list (0 is first; beyond the end is last), or `by` so many places,
    or right `before` or `after` the connection with that slug. Reads the places under the locks of
    the list, which it takes: of two admins' moves each finds what the other left."""
    with transaction.atomic():
        rows = list(lock_list().values())
        here = next((n for n, row in enumerate(rows) if row.pk == connection.pk), None)
        if here is None:
            raise ValidationError(_("This connection was deleted."))
        stood_after = rows[here - 1] if here else None
        moved = rows.pop(here)
        if before or after:
            named = next((n for n, row in enumerate(rows) if row.slug == (before or after)), None)
            if named is None:
                raise ValidationError(
                    _("The list was changed meanwhile. Look at it again, then move “%(name)s”.")
                    % {"name": moved.name}
                )
            to = named if before else named + 1
        elif to is None:
            to = here + by
        place = min(max(0, to), len(rows))
        rows.insert(place, moved)
        reorder(actor, [row.pk for row in rows])
    return Moved(place + 1, len(rows), stood_after)


# -- the parts -------------------------------------------------------------------------------------


def lock_connection(connection: Connection) -> Connection:
    row = Connection.objects.select_for_update().filter(pk=connection.pk, deleted_at=None).first()
    if row is None:
        raise ValidationError(_("This connection was deleted."))
    return row


def lock_list() -> dict[uuid.UUID, Connection]:
    """Every living connection in the list's order, locked (in the order of ids, so that two of
    these wait for each other instead of for ever)."""
    rows = list(Connection.objects.select_for_update().filter(deleted_at=None).order_by("pk"))
    rows.sort(key=lambda row: (row.position, row.created_at, str(row.pk)))
    return {row.pk: row for row in rows}


def _merged(connection: Connection, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(connection, name) for name in FIELDS} | dict(changes)


def _cleaned(data: Mapping[str, Any]) -> dict[str, Any]:
    result = clean_connection(data)
    result.raise_errors()
    return result.values


def cleaned_secrets(
    auth_type: str, secret: Mapping[str, Any] | None, headers: Any
) -> tuple[dict[str, str], dict[str, str] | None]:
    """The secret's fields, {} for none given; the headers, None for not given."""
    result = clean_secret(auth_type, secret or {})
    errors = dict(result.errors)
    header_values = None
    if headers is not None and headers != "":
        try:
            header_values = parse_headers(headers, auth_type=auth_type)
        except ValidationError as error:
            errors["extra_headers"] = error.messages
    if errors:
        raise ValidationError(errors)
    return result.values, header_values


def _check_address(url: str, known: str = "", *, resolve: bool = True) -> None:
    if not url or url == known:
        return
    try:
        egress.check_url(url, egress.provider_policy(), resolve=resolve)
    except egress.URLRefused as error:
        raise ValidationError({"base_url": [str(error)]}) from None


def _free_slug(name: str) -> str:
    def taken(slug: str) -> bool:
        return slug in RESERVED_SLUGS or Connection.objects.filter(slug=slug).exists()

    return make_slug(name, taken=taken, fallback="connection")


def _check_slug(slug: str) -> None:
    there = Connection.objects.filter(slug=slug).first()
    if there is None:
        return
    if there.deleted_at is None:
        sentence = _("Another connection has this slug. Choose another one.")
    else:
        sentence = _(
            "A deleted connection had this slug, and it is kept for its sessions. Choose another."
        )
    raise ValidationError({"slug": [sentence]})


def end_of_list() -> int:
    last = Connection.objects.living().aggregate(last=models.Max("position"))["last"]
    return 0 if last is None else last + 1


def _claim_default(actor: Actor, connection: Connection) -> None:
    # Two first connections at once: the constraint lets one of them be the default.
    try:
        with transaction.atomic():
            move_default(actor, connection)
    except IntegrityError:
        connection.is_default = False


def move_default(actor: Actor, connection: Connection) -> None:
    Connection.objects.filter(is_default=True).exclude(pk=connection.pk).update(is_default=False)
    connection.is_default = True
    connection.save(update_fields=["is_default"])
    record(actor, "connection.default", connection)


def mark_unchecked(connection: Connection) -> None:
    """What was validated is no longer there; the result of a probe under way isn't taken."""
    connection.revision += 1
    connection.health = Status.UNCHECKED
    connection.health_at = None
    connection.health_error = ""
    connection.checking_until = None


def _takes_no_secret(connection: Connection) -> bool:
    return not SECRET_FIELDS[AuthType(connection.auth_type)] and (
        connection.auth_type != AuthType.OAUTH
    )


def _unfit_secrets(
    connection: Connection,
    stored: Mapping[str, Secret],
    secret_values: Mapping[str, str],
    header_values: Mapping[str, str] | None,
) -> list[str]:
    """The purposes whose stored secret was entered for something else and isn't given again."""
    unfit = []
    for purpose, secret in stored.items():
        if secret.binding == connection.binding:
            continue
        if purpose == Secret.Purpose.AUTH and (secret_values or _takes_no_secret(connection)):
            continue
        if purpose == Secret.Purpose.HEADERS and header_values is not None:
            continue
        unfit.append(purpose)
    return unfit


def _asks_for_secrets(
    connection: Connection, purposes: Iterable[str], stored: Mapping[str, Secret]
) -> dict[str, list[str]]:
    errors = {}
    for purpose in purposes:
        binding = stored[purpose].binding
        if purpose == Secret.Purpose.HEADERS:
            field = "extra_headers"
        else:
            field = next(iter(SECRET_FIELDS[AuthType(connection.auth_type)]), "auth_type")
        if field != "auth_type":
            text = _(
                "Enter this again: what is stored was entered for %(host)s with other settings, "
                "and is sent nowhere else."
            )
        elif binding.split(" ")[1] == AuthType.OAUTH:
            text = _(
                "Sign out on the connection's page first: it is signed in for %(host)s with other "
                "settings, and the sign-in is sent nowhere else."
            )
        else:
            text = _(
                "A key for %(host)s is stored here. Keep it, and add another connection for "
                "signing in."
            )
        errors[field] = [text % {"host": host_of(binding)}]
    return errors


def destroy_secret(actor: Actor, connection: Connection, secret: Secret) -> None:
    record(
        actor,
        "secret.destroy",
        connection,
        purpose=secret.purpose,
        host=host_of(secret.binding),
    )
    secret.delete()


def host_of(binding: str) -> str:
    """For people and the audit: the origin a binding names, else the provider."""
    provider_type, _auth_type, origin = binding.split(" ", 2)
    return origin if origin != "own" else str(ProviderType(provider_type).label)


def _reference_name(name: str) -> str:
    if name in ("custom_endpoint_api", "supports_images"):
        return "customEndpoint"
    head, *tail = name.split("_")
    return head + "".join(part.title() for part in tail)
