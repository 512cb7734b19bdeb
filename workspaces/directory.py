"""What instance admins do to people: rights, switching off and on, places in workspaces. Each verb
is one transaction with its audit row; one that can't be raises `ValidationError` with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext_lazy as _

from workspaces import audit, people, signin_link
from workspaces.devices import end_others
from workspaces.models import Membership, Role, User, Workspace

LAST_ADMIN = _("This is the last instance admin. Make somebody else one first.")
_NOT_YOURSELF = _("Ask another instance admin: nobody does this to themselves.")


def is_last_admin(person: User) -> bool:
    """Whether nobody else could undo it. Takes the row locks of the instance admins, so that two
    of them can't step down at once: call it in the transaction of the change."""
    admins = User.objects.select_for_update().filter(is_superuser=True, is_active=True)
    return [admin.pk for admin in admins.order_by("pk")] == [person.pk]


def _locked(person: User) -> User:
    return User.objects.select_for_update().get(pk=person.pk)


@transaction.atomic
def set_admin(actor: User, person: User, on: bool) -> None:
    """Makes a person an instance admin, or no longer one: never oneself, never the last."""
    if person.pk == actor.pk and not on:
        raise ValidationError(_NOT_YOURSELF)
    last = is_last_admin(person)
    person = _locked(person)
    if person.is_superuser == on:
        return
    if on and not person.is_active:
        raise ValidationError(_("This account is switched off. Switch it on first."))
    if not on and last:
        raise ValidationError(LAST_ADMIN)
    person.is_superuser = on
    person.save(update_fields=["is_superuser"])
    audit.record(actor, "user.admin" if on else "user.unadmin", person)


@transaction.atomic
def deactivate(actor: User, person: User, heirs: Mapping[Workspace, User] | None = None) -> None:
    """Ends every access: the sign-ins at once, open pages and replies within seconds, what waits
    when its time comes. With `heirs` the person's sessions of a workspace go to somebody there."""
    if person.pk == actor.pk:
        raise ValidationError(_NOT_YOURSELF)
    last = is_last_admin(person)
    person = _locked(person)
    if person.is_active:
        if last:
            raise ValidationError(LAST_ADMIN)
        person.is_active = False
        person.save(update_fields=["is_active"])
        audit.record(actor, "user.deactivate", person)
    end_others(person, "")
    for workspace, heir in (heirs or {}).items():
        people.hand_over(actor, workspace, person, heir)


@transaction.atomic
def activate(actor: User, person: User) -> None:
    """Lets a person sign in again, with the workspaces and the rights of before."""
    person = _locked(person)
    if hasattr(person, "erasure"):
        raise ValidationError(_("This person's data was deleted: invite the person anew."))
    if person.is_active:
        return
    person.is_active = True
    person.save(update_fields=["is_active"])
    audit.record(actor, "user.activate", person)


@transaction.atomic
def add(actor: User, person: User, workspace: Workspace, role: Role) -> None:
    """Makes a person a member. Of who is one already nothing changes."""
    person = _locked(person)
    if not person.is_active:
        raise ValidationError(_("This account is switched off. Switch it on first."))
    membership, made = Membership.objects.get_or_create(
        workspace=workspace, user=person, defaults={"role": role}
    )
    if made:
        audit.record(
            actor,
            "membership.create",
            membership,
            workspace_id=workspace.pk,
            label=person.email,
            role=role,
        )


@transaction.atomic
def sign_out(actor: User, person: User) -> int:
    """Ends every sign-in of a person; how many there were. Open pages close within seconds."""
    ended = end_others(person, "")
    audit.record(actor, "user.sign_out_everywhere", person, ended=ended)
    return ended


def make_link(actor: User, person: User) -> str:
    """A link that signs the person in once, within a quarter of an hour. Stored nowhere."""
    if settings.SSO_ONLY:
        raise ValidationError(
            _("People sign in through the issuer alone here, and such a link goes round it.")
        )
    if not person.is_active:
        raise ValidationError(_("This account is switched off. Switch it on first."))
    return signin_link.make(person, actor)
