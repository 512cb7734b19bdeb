"""Who uses a connection now, and stopping them: for instance admins."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from connections.registry import stop_live
from connections.views import SeeOther, answers_refusals, connection_for


@require_POST
@answers_refusals
def live_stop(request: HttpRequest, slug: str) -> HttpResponse:
    """`turn`: the id of one reply, or `all`."""
    connection = connection_for(request, slug)
    asked = request.POST.get("turn", "")
    try:
        turn_id = None if asked == "all" else uuid.UUID(asked)
    except ValueError:
        raise ValidationError(_("Use turn=all, or the id of a reply.")) from None
    stopped = stop_live(connection.pk, turn_id, request.user)
    if stopped:
        said = ngettext(
            "%(n)d reply is being stopped.", "%(n)d replies are being stopped.", stopped
        )
        messages.success(request, said % {"n": stopped})
    else:
        messages.info(request, _("Nothing to stop: it has ended already."))
    return SeeOther(f"{resolve_url(connection)}#live")
