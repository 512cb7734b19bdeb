"""The pages of connections: for instance admins under /connections/, for a workspace's people its
AI settings. Each view's first line gets its object through a permission check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render, resolve_url
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect

from connections import (
    actions,
    alerts,
    budgets,
    candidates,
    display,
    grants,
    health,
    sign_in,
    tasks,
    validation,
)
from connections.capabilities import usable_models
from connections.deleting import recently_deleted
from connections.forms import WRITE_ONLY, ConnectionForm
from connections.models import Connection, Secret
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


# -- the list --------------------------------------------------------------------------------------


@require_safe
def connection_list(request: HttpRequest) -> HttpResponse:
    """Settings → AI; `?secrets=old`: those whose secret is to be replaced."""
    need_instance_admin(request)
    old = request.GET.get("secrets") == "old"
    page = _page(request.GET.get("page"), old=old)
    context = _list_context(page) | {"old": old}
    context["presets"] = None if page.paginator.count or old else PRESETS.values()
    return render(request, "connections/list.html", context)


@require_safe
def connection_row(request: HttpRequest, slug: str) -> HttpResponse:
    """One row of the list, which asks for itself while it is checked. 204 leaves the row alone (a
    menu may be open); a deleted connection's row goes."""
    need_instance_admin(request)
    connection = Connection.objects.living().with_secrets().filter(slug=slug).first()
    if connection is None:
        return HttpResponse()
    row = _row(connection)
    if row.is_checking:
        return HttpResponse(status=204)
    return render(request, "connections/list.html#row", _list_context() | {"row": row})


def _page(number: Any, *, old: bool = False) -> Page:
    """Four queries: the count, the page, its secrets, its last days. `old`: only those whose secret
    is."""
    listed = Connection.objects.living().with_secrets().defer("unknown_fields", "imported_as")
    if old:
        listed = listed.filter(pk__in=_old_secrets().values("connection"))
    page = Paginator(listed, PER_PAGE).get_page(number)
    menus, found = _Menus(), list(page.object_list)
    strips = health.strips([connection.pk for connection in found], health.DAYS_IN_LIST)
    rows = [
        display.Row.of(connection, place, menu=menus.of(connection), strip=strips[connection.pk])
        for place, connection in enumerate(found, page.start_index())
    ]
    # A hundred rows that are checked at once may not ask a hundred times a second.
    poll = 1 + sum(row.is_checking for row in rows) // 10
    page.object_list = [replace(row, poll=poll) for row in rows]
    return page


def _row(connection: Connection) -> display.Row:
    before = Connection.objects.living().filter(position__lt=connection.position).count()
    strip = health.strips([connection.pk], health.DAYS_IN_LIST)[connection.pk]
    return display.Row.of(connection, before + 1, menu=_Menus().of(connection), strip=strip)


def _list_context(page: Page | None = None) -> dict[str, Any]:
    context: dict[str, Any] = {"page": page}
    if page is not None:
        context["deleted"] = recently_deleted().count()
        context["old_secrets"] = _old_secrets().count()
    return context


def _old_secrets() -> QuerySet[Secret]:
    if not settings.SECRET_MAX_AGE_DAYS:
        return Secret.objects.none()
    return Secret.objects.filter(alerts.old_secrets())


class _Menus(dict[tuple[bool, bool, str], str]):
    """The rows' menus, which differ in the slug alone once three switches are set: each kind is
    rendered once, as it is most of what a row costs. A slug has no letter that HTML or a URL would
    write in another way (`slugs.validate_slug`)."""

    SLUG = "SLUG"  # no connection's: theirs are in lower case

    def __missing__(self, kind: tuple[bool, bool, str]) -> str:
        is_default, enabled, behaviour = kind
        connection = Connection(
            slug=self.SLUG, is_default=is_default, enabled=enabled, mid_stream_behavior=behaviour
        )
        choices = display.MID_STREAM_CHOICES
        context = {"connection": connection, "mid_stream_choices": choices, "live": True}
        self[kind] = render_to_string("connections/menu.html", context)
        return self[kind]

    def of(self, connection: Connection) -> SafeString:
        kind = (connection.is_default, connection.enabled, connection.mid_stream_behavior)
        return mark_safe(self[kind].replace(self.SLUG, connection.slug))  # noqa: S308


# -- adding, editing -------------------------------------------------------------------------------


@sensitive_post_parameters(*WRITE_ONLY)
@require_http_methods(["GET", "HEAD", "POST"])
def connection_create(request: HttpRequest) -> HttpResponse:
    """The form, filled in by `?preset=`."""
    need_instance_admin(request)
    url = reverse("connections:create")
    preset = PRESETS.get(request.GET.get("preset", ""))
    context = {"presets": PRESETS.values(), "preset": preset, "crumbs": connection_crumbs(_("Add"))}
    return _form_page(request, url, context, initial=preset.initial if preset else None)


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
    return _after(request, connection)


@require_POST
def connection_validate_many(request: HttpRequest) -> HttpResponse:
    """Those named by `slug`, or all when none is (the button "Validate selected" means none)."""
    need_instance_admin(request)
    slugs, only = request.POST.getlist("slug"), request.POST.get("only", "")
    wanted = Connection.objects.living().with_secrets()
    if only == "selected" or (slugs and only != "all"):
        wanted = wanted.filter(slug__in=[slug for slug in slugs[:1_000] if "\0" not in slug])
    connections = list(wanted)
    if connections:
        ask_for_validation(request, connections)
    else:
        messages.warning(request, _("Select at least one connection first."))
    return _after(request)


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
    actions.set_global_default(request.user, connection)
    said = _("“%(name)s” is the global default now.")
    messages.success(request, said % {"name": connection.name})
    return _after(request, connection)


@require_POST
@answers_refusals
def connection_set_mid_stream(request: HttpRequest, slug: str) -> HttpResponse:
    """`mid_stream_behavior`: steer, queue, or empty for the provider's default."""
    connection = connection_for(request, slug)
    behaviour = request.POST.get("mid_stream_behavior")
    if behaviour is None:
        raise ValidationError(_("Use mid_stream_behavior=steer or queue, or leave it empty."))
    actions.set_mid_stream(request.user, connection, behaviour)
    said = _("Messages sent mid-stream on “%(name)s”: %(behaviour)s.")
    words = {"name": connection.name, "behaviour": connection.mid_stream.label}
    messages.success(request, said % words)
    return _after(request, connection)


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
    actions.set_enabled(request.user, connection, enabled, message=message)
    said = _("“%(name)s” is enabled.") if connection.enabled else _("“%(name)s” is paused.")
    messages.success(request, said % {"name": connection.name})
    return _after(request, connection)


@require_POST
@answers_refusals
def connection_order(request: HttpRequest, slug: str) -> HttpResponse:
    """`direction` up or down, or `position`, counted from 0."""
    connection = connection_for(request, slug)
    order = list(Connection.objects.living().values_list("pk", flat=True))
    here = order.index(connection.pk) if connection.pk in order else 0
    direction, position = request.POST.get("direction"), request.POST.get("position", "")
    if direction in ("up", "down"):
        to = max(0, here - 1) if direction == "up" else here + 1
    elif position.isascii() and position.isdigit() and len(position) < 10:
        to = int(position)
    else:
        raise ValidationError(_("Use direction=up or direction=down, or a position from 0."))
    actions.move(request.user, connection, to)
    return _after(request, connection)


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
        "takes_secret": candidates.takes_secret(connection),
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
    begun = len(tasks.request_validation(connections, request.user, trigger))
    if begun:
        said = ngettext("Validation has begun.", "%(n)d validations have begun.", begun)
        messages.info(request, said % {"n": begun})
    else:
        messages.info(request, _("Validation is under way already."))


def _after(request: HttpRequest, connection: Connection | None = None) -> HttpResponse:
    """After a change: for htmx the row or the list it asked from, with the messages out-of-band;
    else 303 to the page it came from."""
    target = request.htmx.target if request.htmx else None
    if target == "connections":
        page = _page(request.POST.get("page"))
        return _with_toasts(request, "connections/list.html#list", _list_context(page))
    if connection is not None and target == f"connection-{connection.slug}":
        row = _row(Connection.objects.with_secrets().get(pk=connection.pk))
        return _with_toasts(request, "connections/list.html#row", _list_context() | {"row": row})
    if connection is not None and request.POST.get("next") == "detail":
        return SeeOther(resolve_url(connection))
    return SeeOther(reverse("connections:list"))


def _with_toasts(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    body = render_to_string(template, context, request)
    toasts = {"messages": messages.get_messages(request), "oob": True}
    return HttpResponse(body + render_to_string("components/toasts.html", toasts, request))


def connection_crumbs(*places: Any) -> list[dict[str, str]]:
    crumbs = [{"label": _("Connections"), "url": reverse("connections:list")}]
    for place in places:
        url = resolve_url(place) if isinstance(place, Connection) else ""
        crumbs.append({"label": str(place), "url": url})
    return crumbs
