"""A link that signs a person in once: the operator's way to let somebody back in, without mail.

The token is bound to the password, to the last sign-in and to a time of its own (it is signed with
SECRET_KEY), so it ends when it was used, when another sign-in came first, and after a quarter of an
hour. Nothing of it is stored.
"""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.core import signing
from django.db import transaction
from django.urls import reverse
from django.utils.crypto import constant_time_compare, salted_hmac

from workspaces import audit
from workspaces.models import User

LASTS = dt.timedelta(minutes=15)
_SALT = "patchbay.signin_link"


def make(user: User, actor: User | str = "command") -> str:
    """The link. Audited."""
    with transaction.atomic():
        audit.record(actor, "user.sign_in_link", user)
    token = signing.dumps([str(user.pk), _state(user)], salt=_SALT)
    return settings.PUBLIC_URL + reverse("workspaces:sign_in_link", args=[token])


def person_of(token: str, *, lock: bool = False) -> User | None:
    """Whom it would sign in now; None for anything else. One query."""
    try:
        pk, state = signing.loads(token, salt=_SALT, max_age=LASTS)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    people = User.objects.select_for_update() if lock else User.objects
    user = people.filter(pk=pk, is_active=True).first()
    return user if user and constant_time_compare(state, _state(user)) else None


def _state(user: User) -> str:
    """What the next sign-in or a new password changes."""
    seen = user.last_login.isoformat() if user.last_login else ""
    return salted_hmac(_SALT, f"{user.password}{seen}", algorithm="sha256").hexdigest()
