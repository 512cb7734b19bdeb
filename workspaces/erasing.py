"""Deleting a person's data: asked for on a page, done by a worker piece by piece, and gone on with
after a worker was killed.

The person is switched off and signed out at once. Then go the sessions with their images and their
texts in the search; then what says the name elsewhere, the audit included; last the account. The
row of the person stays, as nobody's, since rows of others point at it.
"""

from __future__ import annotations

import datetime as dt
import uuid

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib.admin.models import LogEntry
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from workspaces import audit, audit_chain, directory, registry
from workspaces.devices import end_others
from workspaces.models import AuditEvent, Erasure, Invitation, Membership, User

NOBODY = "Deleted person"  # stored; not translated, since everybody reads the same row
NOBODYS_DOMAIN = "deleted.invalid"  # RFC 2606: no mail leaves for it
LEASE = dt.timedelta(minutes=1)
SLICE = 5.0  # seconds between two looks at the lease
BUDGET = 40.0  # seconds of one task; the next goes on


@transaction.atomic
def begin(actor: User, person: User) -> Erasure:
    """Switches the person off, for good, and notes that the data is to go; a worker does the rest.
    Raises `ValidationError` for the last instance admin. Asked twice it is one."""
    last = directory.is_last_admin(person)
    person = User.objects.select_for_update().get(pk=person.pk)
    if (found := Erasure.objects.filter(user=person).first()) is not None:
        return found
    if last:
        raise ValidationError(directory.LAST_ADMIN)
    total = sum(registry.sessions_by_workspace(person).values())
    erasure = Erasure.objects.create(user=person, asked_by=actor, total=total, left=total)
    audit.record(actor, "user.erase", person, own=actor.pk == person.pk)
    person.is_active = person.is_superuser = False
    person.set_unusable_password()
    person.save(update_fields=["is_active", "is_superuser", "password"])
    end_others(person, "")

    from workspaces.tasks import ask_to_erase

    transaction.on_commit(lambda: ask_to_erase(erasure.pk))
    return erasure


def due() -> list[uuid.UUID]:
    """Those that no worker is at."""
    idle = Q(busy_until=None) | Q(busy_until__lt=timezone.now())
    return list(Erasure.objects.filter(idle, finished_at=None).values_list("pk", flat=True)[:20])


def run(erasure_id: uuid.UUID, *, budget: float = BUDGET) -> bool:
    """Goes on with a deletion for about `budget` seconds; whether it is at its end. Two at once do
    no harm: the second finds it taken. Raises `vault.KeyMissing`."""
    now = timezone.now()
    idle = Q(busy_until=None) | Q(busy_until__lt=now)
    mine = Erasure.objects.filter(pk=erasure_id, finished_at=None)
    if not mine.filter(idle).update(busy_until=now + LEASE):
        return True
    try:
        erasure = Erasure.objects.select_related("user").get(pk=erasure_id)
        until = now + dt.timedelta(seconds=budget)
        while left := registry.erase_some(erasure.user, seconds=SLICE):
            stood = left == erasure.left
            erasure.left = left
            mine.update(left=left, busy_until=timezone.now() + LEASE)
            if stood or timezone.now() >= until:  # a reply that is ending, or enough for now
                return False
        mine.update(left=0, busy_until=timezone.now() + LEASE * 10)
        _finish(erasure)
    finally:
        mine.update(busy_until=None)
    return True


def _finish(erasure: Erasure) -> None:
    """What bears the name, and the account. Each part may be done twice."""
    person = erasure.user
    registry.forget(person)
    addresses = {person.email} | set(
        AuditEvent.objects.filter(actor=person).order_by().values_list("actor_label", flat=True)
    )
    addresses |= set(EmailAddress.objects.filter(user=person).values_list("email", flat=True))
    named = {one for one in addresses if "@" in one}
    audit_chain.redact(person, named, NOBODY)
    with transaction.atomic():
        for authenticator in Authenticator.objects.filter(user=person):
            authenticator.delete()  # one by one: its keys in the vault follow by a signal
        for rows in (
            SocialAccount.objects.filter(user=person),
            EmailAddress.objects.filter(user=person),
            Membership.objects.filter(user=person),
            Invitation.objects.filter(email__in=named),
        ):
            rows.delete()
        end_others(person, "")
        about = Q(object_id=str(person.pk))
        for one in named:
            about |= Q(object_repr__icontains=one) | Q(change_message__icontains=one)
        LogEntry.objects.filter(about).delete()
        person.groups.clear()
        person.user_permissions.clear()
        person.email = f"{person.pk.hex}@{NOBODYS_DOMAIN}"
        person.name, person.last_login, person.erased_at = NOBODY, None, timezone.now()
        person.language = ""
        person.is_active = person.is_superuser = False
        person.set_unusable_password()
        person.save()
        erasure.left, erasure.finished_at = 0, timezone.now()
        erasure.save(update_fields=["left", "finished_at"])
        audit.record("worker", "user.erased", person, sessions=erasure.total)


def check_typed(person: User, typed: str) -> None:
    """Raises `ValidationError` unless it is the person's address."""
    if User.objects.normalize_email(typed) != person.email:
        raise ValidationError(_("This isn't the address. Type it as it stands above."))
