"""Who is told that a connection fails or a budget is used, and how: for instance admins."""

from __future__ import annotations

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect

from connections import alerts
from connections.alert_forms import AlertsForm
from connections.models import Alert
from connections.sentences import sentence
from connections.views import SeeOther, connection_crumbs
from workspaces.permissions import need_instance_admin

ALERTS_SHOWN = 50


@sensitive_post_parameters("webhook_url", "webhook_secret")
@require_http_methods(["GET", "HEAD", "POST"])
def alert_settings(request: HttpRequest) -> HttpResponse:
    """The settings, and what was told last. Four queries."""
    person = need_instance_admin(request)
    now = alerts.current()
    form = AlertsForm(request.POST if request.method == "POST" else None, now=now)
    if form.is_bound and form.is_valid() and form.save(person):
        messages.success(request, _("The alerts are saved."))
        here = reverse("connections:alerts")
        return HttpResponseClientRedirect(here) if request.htmx else SeeOther(here)
    told = Alert.objects.filter(connection__deleted_at=None)
    told = told.select_related("connection", "workspace")
    context = {
        "form": form,
        "now": now,
        "mail_is_set_up": settings.MAIL_IS_SET_UP,
        "mail_fault": alerts.fault_text(now.mail_error),
        "webhook_fault": alerts.fault_text(now.webhook_error),
        "wants_mail": alerts.wants_mail(person),
        "told": [(alert, alerts.page_of(alert), _title(alert)) for alert in told[:ALERTS_SHOWN]],
        "crumbs": connection_crumbs(_("Alerts")),
    }
    status = 422 if form.is_bound else 200
    part = "#form" if request.htmx else ""
    return render(request, f"connections/alerts.html{part}", context, status=status)


def _title(alert: Alert) -> str:
    if alert.state == Alert.State.FAILING and alert.connection:
        return sentence(alert.error_kind, alert.connection.auth_type).title
    return alert.limit


@require_POST
def alerts_to_me(request: HttpRequest) -> HttpResponse:
    """`mail`: no for no mail to oneself, anything else for mail."""
    person = need_instance_admin(request)
    wanted = request.POST.get("mail") != "no"
    alerts.set_wants_mail(person, wanted)
    said = _("You get mail about connections.") if wanted else _("You get no more of this mail.")
    messages.success(request, said)
    return SeeOther(reverse("connections:alerts"))


@require_POST
def alerts_test(request: HttpRequest) -> HttpResponse:
    """Sends a test now, by mail to who asks. Blocks for 25 seconds at most."""
    person = need_instance_admin(request)
    found = alerts.test(person)
    if not found:
        messages.warning(request, _("There is nothing to test: mail is off and no webhook is set."))
    for channel, fault in found.items():
        name = _("The mail") if channel == alerts.MAIL else _("The webhook's message")
        if fault:
            words = {"name": name, "fault": alerts.fault_text(fault)}
            messages.error(request, _("%(name)s didn't leave. %(fault)s") % words)
        else:
            messages.success(request, _("%(name)s was taken.") % {"name": name})
    return SeeOther(reverse("connections:alerts"))
