"""Who is in a workspace: invitations, roles, leaving. Each verb in a transaction with its audit
row."""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import secrets
import uuid
from collections.abc import Collection

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _

from workspaces import audit, registry
from workspaces.languages import speaking_to
from workspaces.models import Invitation, Membership, Role, User, Workspace

logger = logging.getLogger(__name__)

LASTS = dt.timedelta(days=7)
MOST_OPEN = 200  # invitations of one workspace
MOST_OFFERED = 500  # people to hand sessions to


class InvitationRefused(Exception):
    """The link can't be used; the text is for the person."""


def invite(
    actor: User, workspace: Workspace, *, role: Role, email: str = ""
) -> tuple[Invitation, str]:
    """An invitation and its link, which is shown this once. Raises `ValidationError`."""
    if role not in Role:
        raise ValidationError(_("Choose a role."))
    email = User.objects.normalize_email(email)
    with transaction.atomic():
        Workspace.objects.select_for_update().get(pk=workspace.pk)
        if email and Membership.objects.filter(workspace=workspace, user__email=email).exists():
            raise ValidationError(_("This person is a member already."))
        if _open(workspace).count() >= MOST_OPEN:
            raise ValidationError(
                _("So many invitations are open that no more can be made. Take some back.")
            )
        token = secrets.token_urlsafe(32)
        invitation = Invitation.objects.create(
            workspace=workspace,
            role=role,
            email=email,
            token_hash=_hash(token),
            created_by=actor,
            expires_at=timezone.now() + LASTS,
        )
        audit.record(
            actor,
            "invitation.create",
            invitation,
            workspace_id=workspace.pk,
            label=workspace.name,
            role=role,
            email=email,
        )
    return invitation, settings.PUBLIC_URL + reverse("members:accept", args=[token])


def mail(invitation: Invitation, link: str) -> bool:
    """Sends the link, to who has no account yet in the language of who invites; whether it left.
    The address is the person's own affair: not in the log."""
    known = User.objects.filter(email=User.objects.normalize_email(invitation.email)).first()
    with speaking_to(known, get_language() or ""):
        words = {
            "workspace": invitation.workspace.name,
            "who": invitation.created_by.label if invitation.created_by else _("Somebody"),
            "link": link,
            "days": LASTS.days,
        }
        subject = _("You are invited to %(workspace)s on Patchbay") % words
        text = _(
            "%(who)s invites you to the workspace %(workspace)s on Patchbay.\n\n"
            "Open this link to join; it works once, for %(days)d days:\n\n%(link)s\n"
        )
    try:
        send_mail(subject.replace("\n", " "), text % words, None, [invitation.email])
    except OSError as error:  # of which every SMTP error is one
        logger.warning("an invitation could not be mailed (%s)", type(error).__name__)
        return False
    return True


def open_invitations(workspace: Workspace) -> list[Invitation]:
    return list(_open(workspace).select_related("created_by"))


def _open(workspace: Workspace) -> QuerySet[Invitation]:
    return Invitation.objects.filter(
        workspace=workspace, used_at=None, revoked_at=None, expires_at__gt=timezone.now()
    )


@transaction.atomic
def revoke(actor: User, workspace: Workspace, invitation_id: uuid.UUID) -> None:
    """Takes an open invitation back; nothing for one that isn't."""
    invitation = _open(workspace).select_for_update(of=("self",)).filter(pk=invitation_id).first()
    if invitation is None:
        return
    invitation.revoked_at = timezone.now()
    invitation.save(update_fields=["revoked_at"])
    audit.record(
        actor,
        "invitation.revoke",
        invitation,
        workspace_id=workspace.pk,
        label=workspace.name,
        email=invitation.email,
    )


def find(token: str) -> Invitation | None:
    """The open invitation of a link. One query."""
    found = Invitation.objects.select_related("workspace", "created_by").filter(
        token_hash=_hash(token)
    )
    invitation = found.first()
    return invitation if invitation and invitation.is_open else None


@transaction.atomic
def accept(
    token: str,
    *,
    user: User | None,
    email: str = "",
    name: str = "",
    password: str = "",
    sso: bool = False,
) -> User:
    """Lets in who is signed in (`user`), or makes a new person: with a password, or with none who
    comes from the issuer (`sso`). Of many attempts with one link one wins. Raises
    `InvitationRefused`."""
    if user is None and settings.SSO_ONLY and not sso:
        raise InvitationRefused(_("Passwords are switched off here. Join through the sign-in."))
    invitation = (
        Invitation.objects.select_for_update(of=("self",))
        .select_related("workspace")
        .filter(token_hash=_hash(token))
        .first()
    )
    if invitation is None or not invitation.is_open:
        raise InvitationRefused(_("This invitation was used, taken back, or has ended."))
    if user is not None or (invitation.email and not sso):
        email = user.email if user else invitation.email
    email = User.objects.normalize_email(email)
    if invitation.email and email != invitation.email:
        raise InvitationRefused(_("This invitation is for another address."))
    if user is None:
        if User.objects.filter(email=email).exists():
            raise InvitationRefused(
                _("This address has an account already. Sign in, then open the link again.")
            )
        user = User.objects.create_user(email, password or None, name=name.strip()[:150])
        audit.record(user, "user.create", user, via="invitation", sso=sso)
    elif not user.is_active:
        raise InvitationRefused(_("This account is switched off."))
    invitation.used_at = timezone.now()
    invitation.save(update_fields=["used_at"])
    membership, made = Membership.objects.get_or_create(
        workspace=invitation.workspace, user=user, defaults={"role": invitation.role}
    )
    audit.record(
        user,
        "invitation.accept",
        invitation,
        workspace_id=invitation.workspace_id,
        label=invitation.workspace.name,
        role=membership.role,
        was_member=not made,
    )
    return user


@transaction.atomic
def change_role(
    actor: User, workspace: Workspace, membership_id: uuid.UUID, role: Role
) -> User | None:
    """Whose it is, None when nobody was there. Raises `ValidationError` when it would leave the
    workspace without an admin."""
    membership = _membership(workspace, membership_id)
    if membership is None or membership.role == role:
        return membership.user if membership else None
    if role != Role.ADMIN:
        _keep_an_admin(actor, workspace, membership)
    before, membership.role = membership.role, role
    membership.save(update_fields=["role"])
    audit.record(
        actor,
        "membership.update",
        membership,
        workspace_id=workspace.pk,
        label=membership.user.email,
        role=role,
        before=before,
    )
    return membership.user


@transaction.atomic
def remove(
    actor: User, workspace: Workspace, membership_id: uuid.UUID, *, heir: User | None = None
) -> bool:
    """Takes a member out, or lets one leave; open pages close, and what runs is stopped, within
    seconds. The sessions go to the `heir`, or stay behind. Raises `ValidationError` for the last
    admin. False when nobody was there."""
    membership = _membership(workspace, membership_id)
    if membership is None:
        return False
    _keep_an_admin(actor, workspace, membership)
    audit.record(
        actor,
        "membership.leave" if membership.user_id == actor.pk else "membership.delete",
        membership,
        workspace_id=workspace.pk,
        label=membership.user.email,
        role=membership.role,
    )
    if heir is not None:
        hand_over(actor, workspace, membership.user, heir)
    membership.delete()
    return True


def receivers(workspace: Workspace, giver: User) -> QuerySet[User]:
    """Who may be given the sessions of `giver`: whoever else may hold sessions there."""
    return User.objects.filter(
        is_active=True,
        memberships__workspace=workspace,
        memberships__role__in=(Role.ADMIN, Role.MEMBER),
    ).exclude(pk=giver.pk)


def offered(spaces: Collection[Workspace], giver: User) -> dict[uuid.UUID, list[User]]:
    """The first of them in each of these workspaces, by address. One query."""
    places = Membership.objects.filter(
        workspace__in=spaces, role__in=(Role.ADMIN, Role.MEMBER), user__is_active=True
    ).exclude(user=giver)
    found: dict[uuid.UUID, list[User]] = {space.pk: [] for space in spaces}
    people: dict[uuid.UUID, User] = {}
    rows = places.order_by("user__email").values_list(
        "workspace", "user", "user__email", "user__name"
    )
    for space, pk, email, name in rows:
        if len(found[space]) < MOST_OFFERED:
            person = people.setdefault(pk, User(pk=pk, email=email, name=name))
            found[space].append(person)
    return found


def is_gone(workspace: Workspace, person: User) -> bool:
    """Whether somebody can no longer look after his sessions here. At most one query."""
    return person.pk in gone_among(workspace, [person])


def gone_among(workspace: Workspace, found: Collection[User]) -> set[uuid.UUID]:
    """Of these people those who can no longer look after their sessions here. At most one query."""
    asked = [one.pk for one in found if one.is_active and not one.is_superuser]
    members = Membership.objects.filter(workspace=workspace, user__in=asked)
    here = set(members.values_list("user_id", flat=True))
    off = {one.pk for one in found if not one.is_active}
    return off | (set(asked) - here)


def gone(owner: str, workspace: str) -> Q:
    """The same of rows that have an owner and a workspace, in a query."""
    here = Membership.objects.filter(user=OuterRef(owner), workspace=OuterRef(workspace))
    return Q(**{f"{owner}__is_active": False}) | (
        Q(**{f"{owner}__is_superuser": False}) & ~Exists(here)
    )


@transaction.atomic
def hand_over(actor: User, workspace: Workspace, giver: User, receiver: User) -> int:
    """Gives all of a person's sessions in a workspace to another member; how many. Private ones
    are the new owner's alone. A reply that runs goes on, and what waits too, while who asked for it
    may still send. Raises `ValidationError` for a receiver who may not hold sessions there."""
    if not receivers(workspace, giver).filter(pk=receiver.pk).exists():
        raise ValidationError(_("Choose a member of this workspace who may hold sessions."))
    count = registry.hand_over(workspace, giver, receiver)
    if count:
        audit.record(
            actor,
            "session.transfer",
            workspace,
            workspace_id=workspace.pk,
            label=ngettext("%(count)d session", "%(count)d sessions", count) % {"count": count},
            sessions=count,
            giver=str(giver),
            receiver=str(receiver),
        )
    return count


def _membership(workspace: Workspace, membership_id: uuid.UUID) -> Membership | None:
    """Under the lock of all the workspace's memberships: two admins can't step down at once."""
    rows = Membership.objects.select_for_update(of=("self",)).filter(workspace=workspace)
    found = {row.pk: row for row in rows.select_related("user").order_by("pk")}
    return found.get(membership_id)


def _keep_an_admin(actor: User, workspace: Workspace, membership: Membership) -> None:
    if membership.role != Role.ADMIN or actor.is_instance_admin:
        return
    others = Membership.objects.filter(workspace=workspace, role=Role.ADMIN, user__is_active=True)
    if not others.exclude(pk=membership.pk).exists():
        raise ValidationError(_("A workspace needs an admin. Make another member an admin first."))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
