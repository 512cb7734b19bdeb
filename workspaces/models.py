"""People, their workspaces, and the record of what they did."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from workspaces.fields import SealedField
from workspaces.slugs import SLUG_LENGTH, validate_slug
from workspaces.vault_models import VaultKey

__all__ = [
    "AuditEvent",
    "AuditHead",
    "Erasure",
    "Installation",
    "Invitation",
    "Membership",
    "Role",
    "User",
    "VaultKey",
    "Workspace",
]


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        user = self.model(email=self.normalize_email(email), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        return self.create_user(email, password, **{**fields, "is_superuser": True})

    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """Addresses are compared without case: the one unique index then says who is who."""
        return (email or "").strip().lower()

    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email=self.normalize_email(username))


def languages() -> list[tuple[str, Any]]:
    return [("", _("As my browser")), *settings.LANGUAGES]


class User(AbstractBaseUser, PermissionsMixin):
    """A person. `is_superuser` is the instance admin: connections, people, everything."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(_("e-mail address"), unique=True)
    name = models.CharField(_("name"), max_length=150, blank=True)
    is_active = models.BooleanField(
        _("active"), default=True, help_text=_("Switch off to end every access of this person.")
    )
    language = models.CharField(
        _("language"), max_length=10, blank=True, default="", choices=languages
    )
    date_joined = models.DateTimeField(_("joined"), default=timezone.now, editable=False)
    # Since when this row stands for nobody (`workspaces.erasing`): others' rows point at it.
    erased_at = models.DateTimeField(_("deleted"), null=True, blank=True, editable=False)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        verbose_name = _("person")
        verbose_name_plural = _("people")
        ordering = ["email"]

    def __str__(self) -> str:
        return self.name if self.erased_at else self.email

    def clean(self) -> None:
        super().clean()
        self.email = UserManager.normalize_email(self.email)

    @property
    def is_staff(self) -> bool:
        """What the admin site asks: instance admins, and nobody else."""
        return self.is_superuser

    @property
    def is_instance_admin(self) -> bool:
        return self.is_active and self.is_superuser

    @property
    def label(self) -> str:
        return self.name or self.email


class Workspace(models.Model):
    """A group of members with its own default connection, access and sessions."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(_("name"), max_length=100)
    slug = models.CharField(
        _("slug"),
        max_length=SLUG_LENGTH,
        unique=True,
        validators=[validate_slug],
        help_text=_("Part of the address; never changes."),
    )
    instructions = models.TextField(
        _("instructions"),
        blank=True,
        max_length=20_000,
        help_text=_("A system prompt for every session of this workspace."),
    )
    # Sessions go so many days after their last message; None: never.
    retention_days = models.PositiveSmallIntegerField(
        _("days that sessions are kept"), null=True, blank=True, editable=False
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    members = models.ManyToManyField(User, through="Membership", related_name="workspaces")

    class Meta:
        verbose_name = _("workspace")
        verbose_name_plural = _("workspaces")
        ordering = ["name", "slug"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("sessions:list", args=[self.slug])


class Role(models.TextChoices):
    ADMIN = "admin", _("Admin")
    MEMBER = "member", _("Member")
    VIEWER = "viewer", _("Viewer")


class Membership(models.Model):
    """A person's role in a workspace: admin (its settings), member (sessions), viewer (reads)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(_("role"), max_length=10, choices=Role, default=Role.MEMBER)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name = _("member")
        verbose_name_plural = _("members")
        constraints = [
            models.UniqueConstraint(fields=["workspace", "user"], name="one_membership_a_person"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.role}"


class Invitation(models.Model):
    """A link that lets one person into a workspace, once. The token stands in the link alone; the
    row has its hash. With `email`, only for that address."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="invitations")
    role = models.CharField(_("role"), max_length=10, choices=Role, default=Role.MEMBER)
    email = models.EmailField(_("e-mail address"), blank=True)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    created_by = models.ForeignKey(
        User, models.SET_NULL, null=True, blank=True, related_name="+", verbose_name=_("invited by")
    )
    created_at = models.DateTimeField(_("invited"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("ends"))
    used_at = models.DateTimeField(_("used"), null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(_("taken back"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("invitation")
        verbose_name_plural = _("invitations")
        ordering = ["-created_at", "id"]

    def __str__(self) -> str:
        return self.email or str(self.id)

    @property
    def is_open(self) -> bool:
        return not self.used_at and not self.revoked_at and self.expires_at > timezone.now()


class Installation(models.Model):
    """The singleton row that the first-run page writes: its primary key lets one attempt win."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    set_up_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name = _("installation")
        verbose_name_plural = _("installation")
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="one_installation"),
        ]

    def __str__(self) -> str:
        return "1"


class AuditEvent(models.Model):
    """Who did what to what, written in the transaction of the change (`workspaces.audit.record`).

    The target is named by type, id and label, without a foreign key: it may be gone. `details`
    never holds a secret.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    at = models.DateTimeField(_("time"), default=timezone.now, editable=False)
    actor = models.ForeignKey(
        User, models.SET_NULL, null=True, blank=True, related_name="+", verbose_name=_("who")
    )
    actor_label = models.CharField(_("who"), max_length=254)
    action = models.CharField(_("action"), max_length=60, db_index=True)
    target_type = models.CharField(_("kind"), max_length=40)
    target_id = models.CharField(max_length=64)
    target_label = models.CharField(_("target"), max_length=254)
    workspace_id = models.UUIDField(null=True, blank=True)
    details = models.JSONField(_("details"), default=dict)
    # Its place in the chain, given by the sealer (`workspaces.audit_chain`) a moment later.
    number = models.PositiveBigIntegerField(null=True, blank=True, unique=True, editable=False)
    seal = models.CharField(max_length=64, blank=True, default="", editable=False)
    key_id = models.CharField(max_length=16, blank=True, default="", editable=False)
    # A second seal, where a deleted person's name was taken out after the first (`key:seal`).
    redaction = models.CharField(max_length=100, blank=True, default="", editable=False)

    class Meta:
        verbose_name = _("audit event")
        verbose_name_plural = _("audit events")
        ordering = ["-at", "id"]
        indexes = [
            models.Index(fields=["-at", "-id"], name="audit_newest_first"),
            models.Index(fields=["workspace_id", "-at", "-id"], name="audit_of_a_workspace"),
            models.Index(fields=["actor", "-at", "-id"], name="audit_by_a_person"),
            models.Index(fields=["target_id", "-at", "-id"], name="audit_about_a_target"),
            models.Index(
                fields=["at", "id"], condition=models.Q(number=None), name="audit_to_seal"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target_label}"


class Erasure(models.Model):
    """The deletion of a person's data, from the asking to the end: what goes on with it when a
    worker was killed, and what a page shows of it. `left` counts sessions."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(User, models.CASCADE, related_name="erasure")
    asked_by = models.ForeignKey(
        User, models.SET_NULL, null=True, blank=True, related_name="+", verbose_name=_("asked by")
    )
    started_at = models.DateTimeField(_("asked"), default=timezone.now)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)
    total = models.PositiveIntegerField(_("sessions"), default=0)
    left = models.PositiveIntegerField(_("sessions left"), default=0)
    # A worker is at it until then; one that was killed leaves it to the next.
    busy_until = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("deletion of a person")
        verbose_name_plural = _("deletions of people")
        ordering = ["-started_at", "id"]

    def __str__(self) -> str:
        return str(self.user_id)

    @property
    def done(self) -> int:
        return max(0, self.total - self.left)


class AuditHead(models.Model):
    """Where the chain of the audit ends, and where it begins: what stood before was pruned, and
    the anchor keeps the last of it. One row."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    number = models.PositiveBigIntegerField(default=0)
    seal = models.CharField(max_length=64, blank=True, default="")
    anchor_number = models.PositiveBigIntegerField(default=0)
    anchor_seal = models.CharField(max_length=64, blank=True, default="")
    pruned_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("end of the audit")
        verbose_name_plural = _("end of the audit")
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="one_audit_head"),
        ]

    def __str__(self) -> str:
        return str(self.number)


class SignInKey(models.Model):
    """A secret of a second factor, sealed: allauth's row (`mfa.Authenticator`) names it by id."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    value = SealedField(bound_to="place")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name = _("key of a second factor")
        verbose_name_plural = _("keys of second factors")

    def __str__(self) -> str:
        return str(self.id)

    @property
    def place(self) -> str:
        return str(self.id)
