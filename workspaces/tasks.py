"""What workers do for people: mail, so that no page waits for a mail server, and tidying up."""

from __future__ import annotations

import logging
import uuid

from allauth.account.forms import default_token_generator
from allauth.account.utils import user_pk_to_url_str
from allauth.usersessions.models import UserSession
from celery import shared_task
from django.conf import settings
from django.contrib.sessions.models import Session
from django.core.mail import send_mail
from django.db.models import Exists, OuterRef
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from workspaces import erasing, vault
from workspaces.languages import speaking_to
from workspaces.models import User

logger = logging.getLogger(__name__)


def ask_for_reset(email: str) -> None:
    """Has a link mailed to whoever has this address, who asks in the active language. For an
    address that nobody has the same is done, with an id that nobody has: the two take the same
    time. Never raises."""
    found = User.objects.filter(email=User.objects.normalize_email(email)).only("pk").first()
    try:
        asked = (str(found.pk if found else uuid.uuid4()), get_language() or "")
        mail_reset.apply_async(asked, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("a mail for a new password can't be asked for (%s)", type(error).__name__)


@shared_task(name="workspaces.tasks.mail_reset", ignore_result=True, expires=600)
def mail_reset(user_id: str, language: str = "") -> None:
    user = User.objects.filter(pk=user_id, is_active=True).first()
    if user is None or settings.SSO_ONLY:
        return
    key = default_token_generator.make_token(user)
    path = reverse(
        "account_reset_password_from_key",
        kwargs={"uidb36": user_pk_to_url_str(user), "key": key},
    )
    link = settings.PUBLIC_URL + path
    with speaking_to(user, language):
        subject = _("A new password for Patchbay")
        text = _(
            "Somebody, probably you, asked for a new password on Patchbay.\n\n"
            "Open this link to choose one; it works once, for an hour:\n\n%(link)s\n\n"
            "If it wasn't you, do nothing: your password stays as it is.\n"
        )
    try:
        send_mail(subject, text % {"link": link}, None, [user.email])
    except OSError as error:  # of which every SMTP error is one
        logger.warning("a mail for a new password didn't leave (%s)", type(error).__name__)


@shared_task(name="workspaces.tasks.forget_ended_sign_ins", ignore_result=True)
def forget_ended_sign_ins() -> None:
    """Drops sign-ins that ran out, and what was noted of devices whose sign-in is gone. Two
    queries."""
    Session.objects.filter(expire_date__lt=timezone.now()).delete()
    going_on = Session.objects.filter(session_key=OuterRef("session_key"))
    UserSession.objects.filter(~Exists(going_on)).delete()


def ask_to_erase(erasure_id: uuid.UUID, *, wait: float = 0) -> None:
    """Has a worker go on with the deletion of a person. Never raises: beat asks every minute."""
    try:
        erase_person.apply_async((str(erasure_id),), countdown=wait, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("a deletion can't be asked for (%s)", type(error).__name__)


@shared_task(name="workspaces.tasks.erase_person", ignore_result=True)
def erase_person(erasure_id: str) -> None:
    try:
        ended = erasing.run(uuid.UUID(erasure_id))
    except vault.KeyMissing:
        logger.error("a deletion waits: the audit can't be sealed without an instance key")
        return
    if not ended:
        ask_to_erase(uuid.UUID(erasure_id), wait=2)


@shared_task(name="workspaces.tasks.erase_due", ignore_result=True)
def erase_due() -> None:
    """Goes on with what a killed worker left. One query when there is nothing."""
    for erasure_id in erasing.due():
        erase_person(str(erasure_id))
