"""Django's sessions in the database, with the one query of every request built once."""

from __future__ import annotations

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.models import Session
from django.utils import timezone

from workspaces.statements import Select

_LIVE = Select(lambda key, now: Session.objects.filter(session_key=key, expire_date__gt=now))


class SessionStore(DatabaseStore):
    def _get_session_from_db(self) -> Session | None:
        found = _LIVE.first(self.session_key, timezone.now())
        if found is None:
            self._session_key = None
        return found
