"""The pages of connections: for instance admins under /connections/, for a workspace's people its
AI settings. Each view's first line gets its object through a permission check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import get_object_or_404, render, resolve_url
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect

from connections import (
    actions,
    budgets,
    candidates,
    display,
    grants,
    listing,
    sign_in,
    tasks,
    validation,
)
from connections.capabilities import usable_models
from connections.forms import WRITE_ONLY, ConnectionForm, stored_values
from connections.models import Connection
from connections.presets import PRESETS
from connections.registry import live_on
from connections.resolve import Candidates, Rule, resolve
from connections.sentences import sentence
from workspaces.models import Role
from workspaces.permissions import need_instance_admin, workspace_for

PER_PAGE = 30


class SeeOther(HttpResponseRedirect):
    """After a POST: the next page is fetched with GET."""

    status_code = 303


def answers_refusals(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """A verb's refusal becomes a 400 with its sentence: the pages offer nothing that is refused,
    so it is a script's mistake, or somebody was quicker."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except ValidationError as error:
            text = " ".join(error.messages)
            return HttpResponse(text, status=400, content_type="text/plain; charset=utf-8")

    return wrapped


# -- adding, editing -------------------------------------------------------------------------------


@sensitive_post_parameters(*WRITE_ONLY)
@require_http_methods(["GET", "HEAD", "POST"])
def connection_create(request: HttpRequest) -> HttpResponse:
    """The form, filled in by `?preset=`, or by `?like=` another connection's slug: all but its
    secrets and headers, which are bound to it."""
    need_instance_admin(request)
    url = reverse("connections:create")
    preset = PRESETS.get(request.GET.get("preset", ""))
    initial = preset.initial if preset else None
    slug = request.GET.get("like")
    like = get_object_or_404(Connection.objects.living(), slug=slug) if slug else None
    if like is not None:
        initial = stored_values(like) | {
            "name": _("%(name)s (copy)") % {"name": like.name[:80]},
            "slug": "",
        }
    context = {
        "presets": () if like else PRESETS.values(),
        "preset": preset,
        "like": like,
        "crumbs": connection_crumbs(_("Duplicate") if like else _("Add")),
    }
    return _form_page(request, url, context, initial=initial)


@sensitive_post_parameters(*WRITE_ONLY)
@require_http_methods(["GET", "HEAD", "POST"])
def connection_edit(request: HttpRequest, slug: str) -> HttpResponse:
    connection = connection_for(request, slug, "workspace_rows__workspace")
    url = reverse("connections:edit", args=[slug])
    context = {"crumbs": connection_crumbs(connection, _("Edit")), "connection": connection}
    return _form_page(request, url, context, connection=connection)


def _form_page(
    request: HttpRequest,
    url: str,
    context: dict[str, Any],
    *,
    connection: Connection | None = None,
    initial: Any = None,
) -> HttpResponse:
    """Shows the form, refills it (`_refresh`: another provider was chosen), or saves it."""
    data = request.POST if request.method == "POST" else None
    refill = data is not None and "_refresh" in data
    form = ConnectionForm(data, connection=connection, initial=initial, bind=not refill, url=url)
    status = 200
    if form.is_bound:
        if form.is_valid() and (saved := form.save(request.user)):
            if saved.models_synced and saved.sync_due_at is None:
                tasks.request_refresh(saved, request.user)
            ask_for_validation(request, [saved], "save")
            if request.htmx:
                return HttpResponseClientRedirect(saved.get_absolute_url())
            return SeeOther(saved.get_absolute_url())
        status = 422
    template = "connections/form.html#fields" if request.htmx else "connections/form.html"
    return render(request, template, {**context, "form": form, "url": url}, status=status)


# -- one connection --------------------------------------------------------------------------------


@require_safe
def connection_detail(request: HttpRequest, slug: str) -> HttpResponse:
    """Everything about it; for htmx its health, which asks for itself while it is checked."""
    connection = connection_for(request, slug, "workspace_rows__workspace")
    context: dict[str, Any] = {"connection": connection, "health": display.Health.of(connection)}
    if request.htmx and request.htmx.target == "models":
        return render(request, "connections/detail.html#models", context | _models(connection))
    if request.htmx and request.htmx.target == "health":
        return render(request, "connections/detail.html#health", context)
    if request.htmx and request.htmx.target == "live":
        live = live_on(connection.pk, request.user)
        return render(request, "connections/detail.html#live", context | {"live": live})
    if request.htmx and request.htmx.target == "candidate":
        candidate = display.CandidateShown.of(connection)
        response = render(request, "connections/candidate.html", context | {"shown": candidate})
        if candidate is None:
            response.headers["HX-Refresh"] = "true"  # promoted: all of the page tells how
        return response
    if request.htmx and request.htmx.target == "sign-in":
        shown = display.SignInShown.of(connection, request.user)
        response = render(request, "connections/sign_in.html", context | {"sign_in": shown})
        if shown is None or not shown.is_waiting:
            response.headers["HX-Refresh"] = "true"  # it is over: all of the page tells how
        return response
    return _detail_page(request, connection, context)


@require_POST
@answers_refusals
def connection_sign_in(request: HttpRequest, slug: str) -> HttpResponse:
    """Begins a sign-in; its page is the connection's own."""
    connection = connection_for(request, slug)
    attempt = sign_in.begin(request.user, connection)
    if attempt.by_device:
        tasks.ring_for_sign_in(attempt.pk)
    return SeeOther(f"{resolve_url(connection)}#sign-in")


@sensitive_post_parameters("code")
@require_POST
@answers_refusals
def connection_sign_in_finish(request: HttpRequest, slug: str) -> HttpResponse:
    """`attempt`: which one; `code`: as the provider's page showed it."""
    connection = connection_for(request, slug, "workspace_rows__workspace")
    attempt, code = request.POST.get("attempt", ""), request.POST.get("code", "")
    try:
        sign_in.finish(request.user, connection, attempt_id=attempt, pasted=code)
    except ValidationError as error:
        if not hasattr(error, "error_dict"):
            raise
        context = {"health": display.Health.of(connection), "sign_in_errors": error.messages}
        return _detail_page(request, connection, context, status=422)
    messages.success(request, _("“%(name)s” is signed in.") % {"name": connection.name})
    ask_for_validation(request, [connection], "save")
    return SeeOther(resolve_url(connection))


@require_POST
def connection_sign_in_cancel(request: HttpRequest, slug: str) -> HttpResponse:
    connection = connection_for(request, slug)
    sign_in.cancel(request.user, connection)
    return SeeOther(resolve_url(connection))


@require_POST
@answers_refusals
def connection_sign_out(request: HttpRequest, slug: str) -> HttpResponse:
    connection = connection_for(request, slug)
    if actions.sign_out(request.user, connection):
        said = _("“%(name)s” is signed out; its tokens are destroyed.")
        messages.success(request, said % {"name": connection.name})
    else:
        messages.info(request, _("“%(name)s” was not signed in.") % {"name": connection.name})
    return SeeOther(resolve_url(connection))


@require_POST
def connection_validate(request: HttpRequest, slug: str) -> HttpResponse:
    """Asks for a probe; a second press while one runs asks for nothing."""
    connection = connection_for(request, slug)
    ask_for_validation(request, [connection])
    return after(request, connection)


@require_POST
def connection_refresh_models(request: HttpRequest, slug: str) -> HttpResponse:
    """Asks for the provider's list of models; 409 where the list is made by hand."""
    connection = connection_for(request, slug)
    if not connection.models_synced:
        text = _("This connection's list of models is its admins' own. Change that by editing it.")
        return HttpResponse(text, status=409, content_type="text/plain; charset=utf-8")
    if tasks.request_refresh(connection, request.user):
        messages.info(request, _("The models are being fetched."))
    else:
        messages.info(request, _("The models are being fetched already."))
    return SeeOther(resolve_url(connection))


@require_POST
@answers_refusals
def connection_set_default(request: HttpRequest, slug: str) -> HttpResponse:
    connection = connection_for(request, slug)
    before = actions.set_global_default(request.user, connection)
    said = _("“%(name)s” is the global default now.") % {"name": connection.name}
    undo = ""
    if before is not None and before.pk != connection.pk:
        undo = reverse("connections:default", args=[before.slug])
    say(request, said, undo=undo)
    return after(request, connection)


@require_POST
@answers_refusals
def connection_set_mid_stream(request: HttpRequest, slug: str) -> HttpResponse:
    """`mid_stream_behavior`: steer, queue, or empty for the provider's default."""
    connection = connection_for(request, slug)
    behaviour = request.POST.get("mid_stream_behavior")
    if behaviour is None:
        raise ValidationError(_("Use mid_stream_behavior=steer or queue, or leave it empty."))
    before = connection.mid_stream_behavior
    actions.set_mid_stream(request.user, connection, behaviour)
    said = _("Messages sent mid-stream on “%(name)s”: %(behaviour)s.")
    words = {"name": connection.name, "behaviour": connection.mid_stream.label}
    undo = request.path if before != behaviour else ""
    say(request, said % words, undo=undo, mid_stream_behavior=before)
    return after(request, connection)


@require_POST
@answers_refusals
def connection_enable(request: HttpRequest, slug: str) -> HttpResponse:
    """`enabled` in the words of the form (true, on, 1; false, off, 0), the other one of now when
    left out; `paused_message` if given."""
    connection = connection_for(request, slug)
    enabled = validation.tristate(request.POST.get("enabled", not connection.enabled))
    if enabled is None:
        raise ValidationError(_("Use enabled=true or enabled=false."))
    message = request.POST.get("paused_message")
    before = connection.enabled
    actions.set_enabled(request.user, connection, enabled, message=message)
    said = _("“%(name)s” is enabled.") if connection.enabled else _("“%(name)s” is paused.")
    undo = request.path if before != enabled else ""
    said %= {"name": connection.name}
    say(request, said, undo=undo, enabled="true" if before else "false")
    return after(request, connection)


# -- a workspace's AI settings ---------------------------------------------------------------------


@require_safe
def ai_settings(request: HttpRequest, workspace: str) -> HttpResponse:
    """What the workspace's people see of its connections, and why which one is used; `?without=` a
    slug: which one would be used if that one were disabled."""
    access = workspace_for(request, workspace)
    among = Candidates.of(access.workspace)
    visible = Connection.objects.visible_to(access.workspace)
    open_to = list(visible.values_list("pk", "slug", "name"))
    page = Paginator(open_to, PER_PAGE).get_page(request.GET.get("page"))
    cards = display.cards(among, among.load(key for key, _slug, _name in page.object_list))
    problems = {card.connection.pk: card.problem for card in cards}
    default = next((row.connection_id for row in among.rows.values() if row.is_default), None)
    resolution = resolve(access.workspace, among=among)
    # Only a connection that is seen here can be asked about.
    slug = request.GET.get("without", "")
    asked_for = next((one[0] for one in open_to if one[1] == slug), None)
    asked = among.get(asked_for) if asked_for else None
    context = {
        "access": access,
        "workspace": access.workspace,
        "page": page,
        "cards": cards,
        "choices": [one[1:] for one in open_to],
        # Whose secret isn't opened for this page has no problem told.
        "choices_told": [
            (slug, f"{name} ({problem.title})" if (problem := problems.get(key)) else name)
            for key, slug, name in open_to
        ],
        "default": among.get(default) if default else None,
        "may_change": access.has(Role.ADMIN),
        "trace": [rung for rung in resolution.trace_for(access) if rung.rule is not Rule.SESSION],
        "refusal": resolution.refusal_text(admin=request.user.is_instance_admin),
        "asked": asked,
        "what_if": asked and resolve(access.workspace, among=among.without(asked)),
    }
    return render(request, "connections/workspace.html", context)


@require_POST
@answers_refusals
def ai_default(request: HttpRequest, workspace: str) -> HttpResponse:
    """`connection`: a slug, or empty for none."""
    access = workspace_for(request, workspace, Role.ADMIN)
    slug = request.POST.get("connection", "").replace("\0", "\ufffd")  # PostgreSQL takes no NUL
    visible = Connection.objects.visible_to(access.workspace)
    connection = get_object_or_404(visible, slug=slug) if slug else None
    grants.set_workspace_default(request.user, access.workspace, connection)
    name = connection.name if connection else _("the global default")
    messages.success(request, _("New sessions take %(name)s now.") % {"name": name})
    return SeeOther(reverse("ai:settings", args=[workspace]))


@require_http_methods(["GET", "HEAD", "POST"])
@answers_refusals
def ai_models(request: HttpRequest, workspace: str, slug: str) -> HttpResponse:
    """Which models of a connection the workspace uses: `model`, repeated. All of them ticked means
    every one, also those that come later."""
    access = workspace_for(request, workspace, Role.ADMIN)
    connection = get_object_or_404(Connection.objects.visible_to(access.workspace), slug=slug)
    row = connection.workspace_rows.filter(workspace=access.workspace).first()
    granted = connection.model_ids if row is None else row.among_granted(connection.model_ids)
    if request.method == "POST":
        chosen = list(dict.fromkeys(request.POST.getlist("model")))
        models = None if set(chosen) >= set(granted) else chosen
        grants.set_allowed_models(request.user, access.workspace, connection, models)
        words = {"name": connection.name}
        messages.success(request, _("The models of “%(name)s” are saved.") % words)
        return SeeOther(reverse("ai:settings", args=[workspace]))
    usable = set(usable_models(connection, row))
    context = {
        "workspace": access.workspace,
        "connection": connection,
        "back": reverse("ai:settings", args=[workspace]),
        "choices": [(model, model in usable) for model in granted],
        "crumbs": [
            {"label": _("AI settings"), "url": reverse("ai:settings", args=[workspace])},
            {"label": connection.name},
        ],
    }
    return render(request, "connections/workspace_models.html", context)


# -- the parts -------------------------------------------------------------------------------------


def _detail_page(
    request: HttpRequest, connection: Connection, context: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    context |= {
        "connection": connection,
        "crumbs": connection_crumbs(connection),
        "facts": display.facts(connection),
        **_models(connection),
        "mid_stream_choices": display.MID_STREAM_CHOICES,
        "sign_in": display.SignInShown.of(connection, request.user),
        "shown": display.CandidateShown.of(connection),
        "age": display.SecretAge.of(connection),
        "replaceable": candidates.takes_secret(connection) and any(connection.secrets.all()),
        "live": live_on(connection.pk, request.user),
        "standing": budgets.standing_of(connection),
    }
    return render(request, "connections/detail.html", context, status=status)


def connection_for(request: HttpRequest, slug: str, *also: str) -> Connection:
    """The living connection by its slug, for an instance admin; 403 or 404. Two queries, and those
    of what is to be loaded `also`."""
    need_instance_admin(request)
    found: QuerySet[Connection] = Connection.objects.living().with_secrets()
    return get_object_or_404(found.select_related("created_by").prefetch_related(*also), slug=slug)


def _models(connection: Connection) -> dict[str, Any]:
    failure = sentence(connection.sync_error) if connection.sync_error else None
    return {
        "models": display.models_shown(connection),
        "sync_failure": failure,
        "default_gone": display.default_is_gone(connection),
    }


def ask_for_validation(
    request: HttpRequest, connections: Iterable[Connection], trigger: str = "button"
) -> None:
    since, running = timezone.now(), listing.Progress.of(request)
    begun = len(tasks.request_validation(connections, request.user, trigger))
    if begun:
        said = ngettext("Validation has begun.", "%(n)d validations have begun.", begun)
        messages.info(request, said % {"n": begun})
    else:
        messages.info(request, _("Validation is under way already."))
    # Those that are asked for in the midst of others are counted with them.
    if begun >= listing.MANY and (running is None or running.is_over):
        listing.follow(request, since)


def say(request: HttpRequest, text: str, *, undo: str = "", **value: str) -> None:
    """A message; with `undo`, the address that takes the change back, and with its one `value`, it
    has a button for that (of the form that every page has for such buttons)."""
    if undo:
        back = {"next": request.POST.get("next", ""), "kept": request.POST.get("kept", "")}
        query = urlencode({name: there for name, there in back.items() if there})
        name, content = next(iter(value.items()), ("", ""))
        text = format_html(
            '{} <button class="link" type="submit" form="commands" formaction="{}"'
            ' name="{}" value="{}">{}</button>',
            text,
            f"{undo}?{query}" if query else undo,
            name,
            content,
            _("Undo"),
        )
    messages.success(request, text)


def after(request: HttpRequest, connection: Connection | None = None) -> HttpResponse:
    """After a change: for htmx the row or the list it asked from, with the messages out-of-band;
    else 303 to the page it came from (`next`, and of the list the `kept` filter and page)."""
    target = request.htmx.target if request.htmx else None
    kept = QueryDict(_sent(request, "kept")[:1_000])
    if target == "connections":
        context = {"listed": listing.Listed.of(request, kept)}
        return with_toasts(request, "connections/list.html#list", context)
    if connection is not None and target == f"connection-{connection.slug}":
        row = listing.row_of(Connection.objects.with_secrets().get(pk=connection.pk))
        return with_toasts(request, "connections/list.html#row", {"row": row})
    if connection is not None and _sent(request, "next") == "detail":
        return SeeOther(resolve_url(connection))
    if connection is not None and _sent(request, "next") == "start":
        return SeeOther(reverse("start:check", args=[connection.slug]))
    known = {
        name: kept[name] for name in ("q", "show", "provider", "secrets", "page") if kept.get(name)
    }
    there = reverse("connections:list")
    return SeeOther(f"{there}?{urlencode(known)}" if known else there)


def _sent(request: HttpRequest, name: str) -> str:
    return request.POST.get(name) or request.GET.get(name, "")


def with_toasts(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """A fragment ("" for none) and the messages out-of-band."""
    body = render_to_string(template, context, request) if template else ""
    toasts = {"messages": messages.get_messages(request), "oob": True}
    return HttpResponse(body + render_to_string("components/toasts.html", toasts, request))


def connection_crumbs(*places: Any) -> list[dict[str, str]]:
    crumbs = [{"label": _("Connections"), "url": reverse("connections:list")}]
    for place in places:
        url = resolve_url(place) if isinstance(place, Connection) else ""
        crumbs.append({"label": str(place), "url": url})
    return crumbs
