"""The browsers in which a person is signed in."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.utils import timezone
from django.utils.translation import gettext as _

from workspaces.models import User

_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("Firefox", "Firefox"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)
_SYSTEMS = (
    ("Windows", "Windows"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)


@dataclass(frozen=True, slots=True)
class Device:
    id: int
    name: str
    address: str
    since: dt.datetime
    is_current: bool


def devices_of(user: User, current: str) -> list[Device]:
    """Those whose sign-in counts still, this one first. Two queries."""
    noted = list(UserSession.objects.filter(user=user).order_by("-last_seen_at")[:100])
    living = set(
        Session.objects.filter(
            session_key__in=[one.session_key for one in noted], expire_date__gt=timezone.now()
        ).values_list("session_key", flat=True)
    )
    devices = [
        Device(one.pk, name_of(one.user_agent), one.ip, one.created_at, one.session_key == current)
        for one in noted
        if one.session_key in living
    ]
    return sorted(devices, key=lambda device: not device.is_current)


def end_others(user: User, current: str) -> int:
    """Signs a person's other browsers out; how many they were. Three queries."""
    others = UserSession.objects.filter(user=user).exclude(session_key=current)
    keys = list(others.values_list("session_key", flat=True))
    Session.objects.filter(session_key__in=keys).delete()
    others.delete()
    return len(keys)


def name_of(agent: str) -> str:
    """A browser's own words in a few: "Firefox on Linux"."""
    browser = next((name for mark, name in _BROWSERS if f"{mark}/" in agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in agent), "")
    if browser and system:
        return _("%(browser)s on %(system)s") % {"browser": browser, "system": system}
    return browser or system or _("A program")
