"""Replacing a connection's secret safely: the new one is checked beside the one in use."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render, resolve_url
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect

from connections import candidates, tasks
from connections.actions import host_of
from connections.display import CandidateShown
from connections.forms import WRITE_ONLY, SecretForm
from connections.models import Connection
from connections.views import (
    SeeOther,
    answers_refusals,
    ask_for_validation,
    connection_crumbs,
    connection_for,
)


@sensitive_post_parameters(*WRITE_ONLY)
@require_http_methods(["GET", "HEAD", "POST"])
def secret_replace(request: HttpRequest, slug: str) -> HttpResponse:
    """The secret's fields alone; `replaces` and `entered_for` say what the person saw. 409 where no
    secret is typed."""
    connection = connection_for(request, slug)
    if not candidates.takes_secret(connection):
        text = _("This connection takes no secret that is typed.")
        return HttpResponse(text, status=409, content_type="text/plain; charset=utf-8")
    shown, status = CandidateShown.of(connection), 200
    replaces = str(shown.candidate.pk) if shown else ""
    data = request.POST if request.method == "POST" else None
    form = SecretForm(connection, data, replaces=replaces)
    if form.is_bound:
        form.is_valid()
        entered = form.save(request.user)
        if entered is not False:
            if entered is None:
                messages.info(request, _("This secret is the one in use already."))
            else:
                tasks.ring_for_candidate(connection.pk)
            if request.htmx:
                return HttpResponseClientRedirect(resolve_url(connection))
            return _back(connection)
        status = 422
    # Sent once more, it is meant for what the page shows now.
    form.replaces, form.entered_for = replaces, connection.binding
    context = {
        "connection": connection,
        "form": form,
        "shown": shown,
        "host": host_of(connection.binding),
        "crumbs": connection_crumbs(connection, _("Replace the secret")),
    }
    part = "#form" if request.htmx else ""
    return render(request, f"connections/secret.html{part}", context, status=status)


@require_POST
@answers_refusals
def secret_again(request: HttpRequest, slug: str) -> HttpResponse:
    """`candidate`: the id of the one that the person saw, as for the two below."""
    connection = connection_for(request, slug)
    if candidates.try_again(request.user, connection, request.POST.get("candidate", "")):
        tasks.ring_for_candidate(connection.pk)
    return _back(connection)


@require_POST
@answers_refusals
def secret_use(request: HttpRequest, slug: str) -> HttpResponse:
    """Promotes it unproven; the connection is then validated as after any edit."""
    connection = connection_for(request, slug)
    candidates.use_anyway(request.user, connection, request.POST.get("candidate", ""))
    said = _("“%(name)s” uses the new secret now; the old one is destroyed.")
    messages.success(request, said % {"name": connection.name})
    ask_for_validation(request, [connection], "save")
    return _back(connection)


@require_POST
@answers_refusals
def secret_discard(request: HttpRequest, slug: str) -> HttpResponse:
    connection = connection_for(request, slug)
    candidates.discard(request.user, connection, request.POST.get("candidate", ""))
    said = _("The new secret is destroyed; “%(name)s” goes on with the one in use.")
    messages.success(request, said % {"name": connection.name})
    return _back(connection)


def _back(connection: Connection) -> HttpResponse:
    return SeeOther(resolve_url(connection))
