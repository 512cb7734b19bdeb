"""The list of sessions, with its search and filters, and what is done to a session from there."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from connections.models import Connection
from connections.resolve import resolve
from sessions import export, keeping, search
from sessions.access import owned_chat, readable_chat, transferable_chat, visible_chats
from sessions.keeping import Sharing
from sessions.models import ChatSession, Flag, SearchText, Turn
from sessions.refusals import Refused
from sessions.views import answer, back_to, number_of
from workspaces import people
from workspaces.forms import LongSelect
from workspaces.models import Role
from workspaces.people_views import ReceiverForm
from workspaces.permissions import Access, workspace_for
from workspaces.place import remember

PAGE = 30
MOST_OFFERED = 50  # connections to filter by, those used last


class Filter(forms.Form):
    """Which sessions; every field may be empty."""

    SHOW = (
        ("", gettext_lazy("All")),
        ("mine", gettext_lazy("Mine")),
        ("shared", gettext_lazy("Shared by colleagues")),
        ("flagged", gettext_lazy("Flagged")),
        ("unseen", gettext_lazy("Unread")),
        ("working", gettext_lazy("Working")),
        ("archived", gettext_lazy("Archived")),
    )

    q = forms.CharField(
        label=gettext_lazy("Search"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"type": "search", "autocomplete": "off"}),
    )
    show = forms.ChoiceField(label=gettext_lazy("Show"), choices=SHOW, required=False)
    connection = forms.ChoiceField(
        label=gettext_lazy("Connection"), required=False, widget=LongSelect
    )

    def __init__(self, *args: Any, access: Access, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access = access
        used = Connection.objects.filter(pk__in=visible_chats(access).values("connection"))
        named = used.order_by("-last_used_at", "name").values_list("slug", "name")[:MOST_OFFERED]
        self.fields["connection"].choices = [("", _("Any")), *named]

    @property
    def is_set(self) -> bool:
        return any(self.data.get(name) for name in self.fields)

    def chats(self) -> QuerySet[ChatSession]:
        """Of a valid form, without the search. Archived ones only when asked for, or found."""
        data, user = self.cleaned_data, self.access.user
        chats = visible_chats(self.access)
        if data["show"] == "archived":
            chats = chats.exclude(archived_at=None)
        elif not data["q"]:
            chats = chats.filter(archived_at=None)
        if data["show"] == "mine":
            chats = chats.filter(owner=user)
        elif data["show"] == "shared":
            chats = chats.exclude(owner=user)
        elif data["show"] == "flagged":
            chats = chats.filter(flags__user=user)
        elif data["show"] == "unseen":
            chats = chats.filter(keeping.unseen_by(user))
        elif data["show"] == "working":
            chats = chats.filter(turns__state__among=Turn.ACTIVE)
        if data["connection"]:
            chats = chats.filter(connection__slug=data["connection"])
        return chats


@dataclass(frozen=True, slots=True)
class Row:
    chat: ChatSession
    here: str
    menu: SafeString
    excerpt: tuple[str, str, str] | None  # before, at and after what was searched for
    is_owner: bool

    @property
    def menu_id(self) -> str:
        return f"menu-{self.chat.pk}"


class _Menus(dict[tuple[bool, bool, bool], str]):
    """The rows' menus, which differ in the address alone once three things are known: each kind is
    rendered once, as it is most of what a row costs."""

    HERE = "/HERE/"  # no session's

    def __missing__(self, kind: tuple[bool, bool, bool]) -> str:
        owned, transferable, archived = kind
        context = {
            "here": self.HERE,
            "owned": owned,
            "transferable": transferable,
            "archived": archived,
        }
        self[kind] = render_to_string("sessions/menu.html", context)
        return self[kind]

    def of(self, chat: ChatSession, here: str, *, owned: bool, transferable: bool) -> SafeString:
        menu = self[owned, transferable, chat.archived_at is not None]
        return mark_safe(menu.replace(self.HERE, here))  # noqa: S308 (an address is made of our own)


@require_safe
def chat_list(request: HttpRequest, workspace: str) -> HttpResponse:
    """The workspace's sessions that the person may read, newest first. Queries: constant."""
    access = workspace_for(request, workspace)
    form = Filter(request.GET, access=access)
    if request.htmx and (listed := request.GET.getlist("of")):
        return _states(request, access, listed)
    is_valid = form.is_valid()
    chats = form.chats() if is_valid else ChatSession.objects.none()
    query = form.cleaned_data.get("q", "") if is_valid else ""
    found = search.find(chats, query) if query else {}
    if query:
        chats = ChatSession.objects.filter(pk__in=list(found))
    # First which, then what: a page far back would make the rows of all before it.
    page = Paginator(chats.values_list("pk", flat=True), PAGE).get_page(request.GET.get("page"))
    keys = list(page)
    chats = ChatSession.objects.filter(pk__in=keys).select_related("owner", "connection")
    shown = _with_state(chats, access).annotate(
        flagged=Exists(Flag.objects.filter(chat=OuterRef("pk"), user=access.user))
    )
    hits = [found[key] for key in keys if key in found]
    givers = {access.user.pk} if access.has(Role.MEMBER) else set()
    if access.has(Role.ADMIN):
        givers |= people.gone_among(access.workspace, {chat.owner for chat in shown})
    texts = SearchText.objects.exclude(message=None).select_related("message").in_bulk(hits)
    menus, rows = _Menus(), []
    for chat in shown:
        here = reverse("sessions:detail", args=[workspace, chat.pk])
        owned, transferable = chat.owner_id == access.user.pk, chat.owner_id in givers
        said = texts.get(found.get(chat.pk))
        excerpt = search.excerpt(said.message.text, query) if said else None
        menu = menus.of(chat, here, owned=owned, transferable=transferable)
        rows.append(Row(chat, here, menu, excerpt, owned))
    is_empty = not rows and not form.is_set and page.number == 1
    resolution = resolve(access.workspace) if is_empty else None
    kept = {name: form.data[name] for name in form.fields if form.data.get(name)}
    context = {
        "access": access,
        "workspace": access.workspace,
        "form": form,
        "query": query,
        "page": page,
        "rows": rows,
        "is_empty": is_empty,
        "kept": _urlencode(kept),
        "may_create": access.has(Role.MEMBER),
        "resolution": resolution,
        "refusal": resolution.refusal_text(admin=access.user.is_instance_admin)
        if resolution
        else "",
    }
    status = 200 if is_valid else 422
    page_shown = render(request, "sessions/list.html", context, status=status)
    return remember(request, page_shown, access.workspace)


def _with_state(chats: QuerySet[ChatSession], access: Access) -> QuerySet[ChatSession]:
    return chats.annotate(
        active=Exists(Turn.objects.filter(chat=OuterRef("pk"), state__among=Turn.ACTIVE)),
        unseen=keeping.unseen_by(access.user),
    )


def _states(request: HttpRequest, access: Access, shown: list[str]) -> HttpResponse:
    """The state of the sessions that an open list shows. One query."""
    ids = [key for key in map(_uuid, shown[:PAGE]) if key is not None]
    chats = _with_state(visible_chats(access).filter(pk__in=ids), access)
    return render(request, "sessions/list.html#states", {"chats": chats, "oob": True})


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _urlencode(kept: dict[str, Any]) -> str:
    query = QueryDict(mutable=True)
    query.update(kept)
    return query.urlencode()


@require_POST
def chat_share(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """`shared` = true: colleagues follow, and members send; read: they only follow; anything else:
    the owner alone."""
    chat = owned_chat(request, workspace, chat_id)
    wanted = request.POST.get("shared", "")
    sharing = Sharing(wanted) if wanted in list(Sharing) else Sharing.PRIVATE
    keeping.share(chat.pk, request.user, sharing)
    return answer(request, chat)


@require_POST
def chat_flag(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """`flag` = true or false: the person's own mark."""
    chat = readable_chat(request, workspace, chat_id)
    keeping.flag(chat, request.user, request.POST.get("flag") == "true")
    return _to_list(request, chat)


@require_POST
def chat_seen(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """`turn` = the number of the last turn whose end the person has before their eyes."""
    chat = readable_chat(request, workspace, chat_id)
    keeping.see(chat, request.user, number_of(request.POST.get("turn", "")))
    return HttpResponse(status=204)


@require_POST
def chat_archive(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """`archive` = true or false."""
    chat = owned_chat(request, workspace, chat_id)
    on = request.POST.get("archive") == "true"
    keeping.archive(chat.pk, on)
    said = _("Archived. A new message brings it back.") if on else _("It is in the list again.")
    messages.success(request, said)
    return _to_list(request, chat)


@require_http_methods(["GET", "HEAD", "POST"])
def chat_delete(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """Asks first; POST deletes it for good."""
    chat = owned_chat(request, workspace, chat_id)
    if request.method == "POST":
        try:
            keeping.delete(chat.pk, request.user)
        except Refused as refusal:
            messages.error(request, str(refusal))
            return back_to(chat)
        messages.success(request, _("The session was deleted."))
        return _to_list(request, chat)
    sessions = reverse("sessions:list", args=[workspace])
    context = {
        "chat": chat,
        "workspace": chat.workspace,
        "count": chat.messages.count(),
        "crumbs": [
            {"label": _("Sessions"), "url": sessions},
            {"label": chat.heading, "url": chat.get_absolute_url()},
            {"label": _("Delete"), "url": ""},
        ],
    }
    return render(request, "sessions/confirm_delete.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def chat_transfer(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """Hands a session to another member: by its owner, or by an admin of the workspace where the
    owner is gone. POST: `receiver`."""
    chat = transferable_chat(request, workspace, chat_id)
    form = ReceiverForm(
        request.POST if request.method == "POST" else None, chat.workspace, chat.owner, must=True
    )
    problem, status = "", 200
    if request.method == "POST":
        status = 422
        if form.is_valid() and form.heir:
            try:
                keeping.transfer(chat.pk, request.user, form.heir)
            except Refused as refusal:
                problem, status = str(refusal), 409
            else:
                said = _("The session is %(who)s's now.") % {"who": form.heir.label}
                messages.success(request, said)
                response = redirect("sessions:list", workspace)
                response.status_code = 303
                return response
    context = {
        "chat": chat,
        "workspace": chat.workspace,
        "form": form,
        "problem": problem,
        "is_owner": chat.owner_id == request.user.pk,
        "crumbs": [
            {"label": _("Sessions"), "url": reverse("sessions:list", args=[workspace])},
            {"label": chat.heading, "url": chat.get_absolute_url()},
            {"label": _("Hand over"), "url": ""},
        ],
    }
    return render(request, "sessions/transfer.html", context, status=status)


@require_safe
def chat_export(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """The whole conversation as a file: `?format=` markdown (the default) or json."""
    chat = readable_chat(request, workspace, chat_id)
    if request.GET.get("format") == "json":
        body, kind, suffix = export.as_json(chat), "application/json", "json"
    else:
        body, kind, suffix = export.as_markdown(chat), "text/markdown; charset=utf-8", "md"
    response = HttpResponse(body, content_type=kind)
    response.headers["Content-Disposition"] = f'attachment; filename="session-{chat.pk}.{suffix}"'
    return response


def _to_list(request: HttpRequest, chat: ChatSession) -> HttpResponse:
    """Back to the list as it was filtered (`kept`), or with `next=session` to the session."""
    if request.POST.get("next") == "session":
        return back_to(chat)
    there = reverse("sessions:list", args=[chat.workspace.slug])
    asked = QueryDict(request.POST.get("kept", "")[:500])
    names = (*Filter.base_fields, "page")
    kept = _urlencode({name: asked[name] for name in names if asked.get(name)})
    response = redirect(f"{there}?{kept}" if kept else there)
    response.status_code = 303
    return response
