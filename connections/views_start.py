"""The short path to a first session: a provider from the cards, its key, the ladder, and there one
is. Its first step is the empty list of connections."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.forms import Select
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render, resolve_url
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe
from django_htmx.http import HttpResponseClientRedirect

from connections import display, local_servers, tasks
from connections.choices import SECRET_FIELDS, AuthType, Status
from connections.forms import WRITE_ONLY, ConnectionForm
from connections.models import Connection
from connections.presets import PRESETS, Preset
from connections.resolve import resolve
from connections.views import SeeOther, connection_crumbs, connection_for
from workspaces.permissions import need_instance_admin, workspaces_of
from workspaces.place import last_workspace


@require_safe
def start_local(request: HttpRequest) -> HttpResponse:
    """The servers on this machine that answer: a fragment of the cards, or a page."""
    need_instance_admin(request)
    context = {
        "found": local_servers.look(),
        "asked": True,
        "crumbs": connection_crumbs(_("Servers on this machine")),
    }
    part = "#found" if request.htmx else ""
    return render(request, f"connections/start_local.html{part}", context)


@sensitive_post_parameters(*WRITE_ONLY)
@require_http_methods(["GET", "HEAD", "POST"])
def start_form(request: HttpRequest, key: str) -> HttpResponse:
    """What a preset can't know (`Preset.asks`): a key, mostly. Saved, it validates itself."""
    need_instance_admin(request)
    preset = PRESETS.get(key)
    if preset is None:
        raise Http404
    found, status = None, 200
    if request.method == "POST":
        form = ConnectionForm(_whole(preset, request))
        _ask_for_secret(form, preset)
        if form.is_valid() and (made := form.save(request.user)):
            if made.models_synced:
                tasks.request_refresh(made, request.user)
            if made.auth_type == AuthType.OAUTH:
                target = f"{resolve_url(made)}#sign-in"
            else:
                tasks.request_validation([made], request.user, "save")
                target = resolve_url("start:check", made.slug)
            return HttpResponseClientRedirect(target) if request.htmx else SeeOther(target)
        status = 422
    else:
        initial = preset.initial
        found = next(iter(local_servers.look([key])), None)
        if found is not None:
            initial |= {"base_url": found.base_url, "default_model": next(iter(found.models), "")}
        form = ConnectionForm(initial=initial)
        if found is not None and found.models:
            choices = [(model, model) for model in found.models]
            form.fields["default_model"].widget = Select(choices=choices)
    context = {
        "preset": preset,
        "form": form,
        "rows": [form[name] for name in preset.asks],
        "focus": "default_model" if found else next(iter(preset.asks), ""),
        "has_key": bool(SECRET_FIELDS[AuthType(preset.values["auth_type"])]),
        "found": found,
        "is_local": key in settings.LOCAL_SERVERS and request.method != "POST",
        "signs_in": preset.values["auth_type"] == AuthType.OAUTH,
        "crumbs": connection_crumbs(preset.name),
    }
    part = "#form" if request.htmx else ""
    return render(request, f"connections/start_form.html{part}", context, status=status)


def _whole(preset: Preset, request: HttpRequest) -> dict[str, Any]:
    """The form's data: what was typed, and the rest as the preset says."""
    typed = {name: request.POST.get(name, "") for name in preset.asks}
    data = {name: str(value) for name, value in preset.initial.items()} | typed
    if not data.get("models"):
        # One is named; the others come from the provider.
        data |= {"models": data["default_model"], "models_synced": "true"}
    return data


def _ask_for_secret(form: ConnectionForm, preset: Preset) -> None:
    """Elsewhere a connection may wait for its secret; here there would be nothing to check."""
    for name, needed in SECRET_FIELDS[AuthType(preset.values["auth_type"])].items():
        if needed and form.fields[name].required and not form.data.get(name, "").strip():
            form.add_error(name, _("Paste it here: the check needs it."))


@sensitive_post_parameters(*WRITE_ONLY)
@require_http_methods(["GET", "HEAD", "POST"])
def start_check(request: HttpRequest, slug: str) -> HttpResponse:
    """The ladder, which asks for itself while it is climbed, and what comes next: a first session,
    or the secret once more."""
    connection, status = connection_for(request, slug, "workspace_rows__workspace"), 200
    names = SECRET_FIELDS[AuthType(connection.auth_type)]
    form = ConnectionForm(connection=connection)
    if request.method == "POST":
        typed = {name: request.POST.get(name, "") for name in names}
        form = ConnectionForm(typed, connection=connection)
        if form.is_valid() and form.save(request.user):
            # With nothing entered: only checked again.
            tasks.request_validation([connection], request.user, "save")
            return SeeOther(request.path)
        status = 422
    shown = display.Health.of(connection)
    context = {
        "connection": connection,
        "health": shown,
        "form": form,
        "rows": [form[name] for name in names],
        "crumbs": connection_crumbs(connection),
    }
    if shown.status == Status.VALID:
        context |= _next_step(request, connection)
    part = "#check" if request.htmx else ""
    return render(request, f"connections/start_check.html{part}", context, status=status)


def _next_step(request: HttpRequest, connection: Connection) -> dict[str, Any]:
    """In which workspace a session can begin, and which connection it takes there."""
    spaces = workspaces_of(request.user)
    space = spaces.filter(slug=last_workspace(request)).first() or spaces.first()
    chosen = resolve(space).connection if space else None
    return {"space": space, "other": chosen if chosen != connection else None}
