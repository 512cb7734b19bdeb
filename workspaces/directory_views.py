"""Everybody of this installation, for instance admins: the list, a person's page, and what is done
to people from there."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

from allauth.socialaccount.models import SocialAccount
from django import forms
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Prefetch, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from workspaces import directory, erasing, people, registry, second_factor
from workspaces.audit_words import words_of
from workspaces.devices import devices_of
from workspaces.forms import LongSelect
from workspaces.models import AuditEvent, Erasure, Membership, Role, User, Workspace
from workspaces.people_views import InviteForm, ReceiverForm
from workspaces.permissions import need_instance_admin

PAGE = 40
MOST_SHOWN = 4  # workspaces in a row of the list
MOST_EVENTS = 20
MOST_OFFERED = 500  # workspaces to choose from


class Filter(forms.Form):
    """Which people; every field may be empty."""

    SHOW = (
        ("", gettext_lazy("Everybody")),
        ("active", gettext_lazy("Active")),
        ("off", gettext_lazy("Switched off")),
        ("admins", gettext_lazy("Instance admins")),
        ("deleted", gettext_lazy("Deleted")),
    )
    FACTOR = (
        ("", gettext_lazy("With or without")),
        ("yes", gettext_lazy("With")),
        ("no", gettext_lazy("Without")),
    )
    SEEN = (
        ("", gettext_lazy("At any time")),
        ("never", gettext_lazy("Never")),
        ("recently", gettext_lazy("In the last 30 days")),
        ("long_ago", gettext_lazy("Not in the last 30 days")),
    )

    q = forms.CharField(
        label=gettext_lazy("Name or address"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"type": "search", "autocomplete": "off"}),
    )
    show = forms.ChoiceField(label=gettext_lazy("Show"), choices=SHOW, required=False)
    factor = forms.ChoiceField(label=gettext_lazy("Second factor"), choices=FACTOR, required=False)
    seen = forms.ChoiceField(label=gettext_lazy("Signed in"), choices=SEEN, required=False)

    @property
    def is_set(self) -> bool:
        return any(self.data.get(name) for name in self.fields)

    def people(self, found: QuerySet[User]) -> QuerySet[User]:
        """Of a valid form."""
        data = self.cleaned_data
        if data["show"] != "deleted":
            found = found.filter(erased_at=None)
        if text := data["q"].strip():
            found = found.filter(Q(email__icontains=text) | Q(name__icontains=text))
        if data["show"] == "active":
            found = found.filter(is_active=True)
        elif data["show"] == "off":
            found = found.filter(is_active=False)
        elif data["show"] == "admins":
            found = found.filter(is_superuser=True)
        elif data["show"] == "deleted":
            found = found.exclude(erased_at=None)
        if data["factor"]:
            found = found.filter(has_factor=data["factor"] == "yes")
        recently = timezone.now() - dt.timedelta(days=30)
        if data["seen"] == "never":
            found = found.filter(last_login=None)
        elif data["seen"] == "recently":
            found = found.filter(last_login__gte=recently)
        elif data["seen"] == "long_ago":
            found = found.filter(last_login__lt=recently)
        return found


def _workspaces(without: User | None = None) -> list[tuple[str, str]]:
    """Slug and name of each, but for those where that person is a member already."""
    found = Workspace.objects.all()
    if without is not None:
        found = found.exclude(memberships__user=without)
    return list(found.values_list("slug", "name")[:MOST_OFFERED])


class PlaceForm(forms.Form):
    """A place in a workspace."""

    workspace = forms.ChoiceField(label=gettext_lazy("Workspace"), widget=LongSelect)
    role = forms.ChoiceField(label=gettext_lazy("Role"), choices=Role.choices, initial=Role.MEMBER)

    def __init__(self, *args: Any, without: User | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["workspace"].choices = _workspaces(without)

    def clean_workspace(self) -> Workspace:
        return Workspace.objects.get(slug=self.cleaned_data["workspace"])


class PersonInviteForm(InviteForm, PlaceForm):
    field_order = ("email", "workspace", "role")


class TypedForm(forms.Form):
    """The address of who is to be deleted, typed by hand."""

    email = forms.CharField(
        label=gettext_lazy("To go on, type the e-mail address"),
        max_length=254,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        error_messages={"required": gettext_lazy("Type the address as it stands above.")},
    )

    def __init__(self, *args: Any, person: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.person = person

    def clean_email(self) -> str:
        erasing.check_typed(self.person, self.cleaned_data["email"])
        return self.cleaned_data["email"]


def _person(request: HttpRequest, person_id: uuid.UUID, *, whole: bool = False) -> User:
    """The person for an instance admin, or 403 / 404; with `whole`, none whose data is being
    deleted or was."""
    need_instance_admin(request)
    found = User.objects.annotate(has_factor=second_factor.exists_for("pk")).select_related(
        "erasure"
    )
    person = found.filter(pk=person_id).first()
    if person is None or (whole and hasattr(person, "erasure")):
        raise Http404
    return person


@require_safe
def person_list(request: HttpRequest) -> HttpResponse:
    """Everybody, by address. Three queries for the rows, whatever their number."""
    need_instance_admin(request)
    form = Filter(request.GET)
    is_valid = form.is_valid()
    found = User.objects.annotate(has_factor=second_factor.exists_for("pk")).order_by("email")
    found = form.people(found) if is_valid else found.none()
    places = Membership.objects.select_related("workspace").order_by("workspace__name")
    found = found.prefetch_related(Prefetch("memberships", places, to_attr="places"))
    page = Paginator(found, PAGE).get_page(request.GET.get("page"))
    for person in page:
        person.more = max(0, len(person.places) - MOST_SHOWN)
        person.places = person.places[:MOST_SHOWN]
    query = request.GET.copy()
    query.pop("page", None)
    kept = query.urlencode()
    context = {"form": form, "page": page, "query": f"{kept}&" if kept else ""}
    return render(request, "workspaces/people.html", context, status=200 if is_valid else 422)


@require_http_methods(["GET", "HEAD", "POST"])
def person_invite(request: HttpRequest) -> HttpResponse:
    """The answer is the page itself with the link, which is shown this once."""
    actor = need_instance_admin(request)
    form = PersonInviteForm(request.POST if request.method == "POST" else None)
    context: dict[str, Any] = {"mail_is_set_up": settings.MAIL_IS_SET_UP, "crumbs": _crumbs()}
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        email, workspace = data["email"], data["workspace"]
        try:
            invitation, link = people.invite(actor, workspace, role=Role(data["role"]), email=email)
        except ValidationError as error:
            form.add_error("email", error)
        else:
            mailed = bool(email) and settings.MAIL_IS_SET_UP and people.mail(invitation, link)
            context |= {"link": link, "mailed": mailed, "invited": email, "space": workspace}
            form = PersonInviteForm()
    status = 422 if form.errors or (request.method == "POST" and "link" not in context) else 200
    return render(
        request, "workspaces/person_invite.html", {**context, "form": form}, status=status
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A workspace of a person: the membership, if it goes on, and how many sessions are there."""

    workspace: Workspace
    membership: Membership | None
    sessions: int


def _places(person: User) -> list[Place]:
    """Three queries."""
    counts = registry.sessions_by_workspace(person)
    rows = person.memberships.select_related("workspace").order_by("workspace__name")
    places = [Place(row.workspace, row, counts.pop(row.workspace_id, 0)) for row in rows]
    others = Workspace.objects.filter(pk__in=counts)
    return places + [Place(space, None, counts[space.pk]) for space in others]


@dataclass(frozen=True, slots=True)
class Event:
    event: AuditEvent
    words: str


def _events(person: User) -> list[Event]:
    """The newest rows that the person wrote, or that tell of the person. Two queries, by their
    indexes."""
    newest = ("-at", "-id")
    rows = {
        row.pk: row
        for found in (
            AuditEvent.objects.filter(actor=person),
            AuditEvent.objects.filter(target_id=str(person.pk)),
        )
        for row in found.order_by(*newest)[:MOST_EVENTS]
    }
    ordered = sorted(rows.values(), key=lambda row: (row.at, row.pk), reverse=True)
    return [Event(row, words_of(row.action)) for row in ordered[:MOST_EVENTS]]


@require_safe
def person_detail(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    return _page(request, _person(request, person))


def _page(
    request: HttpRequest,
    person: User,
    *,
    link: str = "",
    problem: str = "",
    place_form: PlaceForm | None = None,
    status: int = 200,
) -> HttpResponse:
    is_self = person.pk == request.user.pk
    current = request.session.session_key if is_self else ""
    context = {
        "person": person,
        "is_self": is_self,
        "places": _places(person),
        "devices": devices_of(person, current or ""),
        "linked": SocialAccount.objects.filter(user=person).exists(),
        "factors": second_factor.words_of(person),
        "events": _events(person),
        "roles": Role.choices,
        "place_form": place_form or PlaceForm(without=person),
        "link": link,
        "problem": problem,
        "links_work": not settings.SSO_ONLY,
        "erasure": getattr(person, "erasure", None),
        "crumbs": _crumbs(person.label),
    }
    return render(request, "workspaces/person.html", context, status=status)


def _crumbs(label: str = "") -> list[dict[str, str]]:
    here = {"label": label or _("Invite"), "url": ""}
    return [{"label": _("People"), "url": reverse("people:list")}, here]


@require_POST
def person_add(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    found = _person(request, person, whole=True)
    form = PlaceForm(request.POST)
    if not form.is_valid():
        return _page(request, found, place_form=form, status=422)
    data = form.cleaned_data
    try:
        directory.add(request.user, found, data["workspace"], Role(data["role"]))
    except ValidationError as error:
        return _refused(request, found, error)
    return _back(found)


@require_POST
def person_admin(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    """`admin` = true or false."""
    found = _person(request, person, whole=True)
    wanted = request.POST.get("admin")
    if wanted not in ("true", "false"):
        return _page(request, found, problem=_("Say whether: admin=true or false."), status=422)
    try:
        directory.set_admin(request.user, found, wanted == "true")
    except ValidationError as error:
        return _refused(request, found, error)
    return _back(found)


@require_http_methods(["GET", "HEAD", "POST"])
def person_deactivate(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    """Asks first, and offers to hand the sessions of each workspace to somebody else there."""
    found = _person(request, person, whole=True)
    data = request.POST if request.method == "POST" else None
    places = [place for place in _places(found) if place.sessions]
    heirs = people.offered([place.workspace for place in places], found)
    offers = [
        (
            place,
            ReceiverForm(
                *(data, place.workspace, found),
                prefix=f"to-{number}",
                among=heirs[place.workspace.pk],
            ),
        )
        for number, place in enumerate(places)
    ]
    problem, status = "", 200
    if request.method == "POST":
        if not any(form.errors for _place, form in offers):
            chosen = {place.workspace: form.heir for place, form in offers if form.heir}
            try:
                directory.deactivate(request.user, found, chosen)
            except ValidationError as error:
                problem, status = " ".join(error.messages), 409
            else:
                said = _("%(who)s is switched off and signed out.") % {"who": found.label}
                messages.success(request, said)
                return _back(found)
        else:
            status = 422
    context = {
        "person": found,
        "offers": offers,
        "problem": problem,
        "crumbs": [
            *_crumbs(found.label)[:1],
            {"label": found.label, "url": reverse("people:detail", args=[found.pk])},
            {"label": _("Switch off"), "url": ""},
        ],
    }
    return render(request, "workspaces/person_deactivate.html", context, status=status)


@require_POST
def person_activate(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    found = _person(request, person, whole=True)
    try:
        directory.activate(request.user, found)
    except ValidationError as error:
        return _refused(request, found, error)
    return _back(found)


@require_POST
def person_sign_out(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    found = _person(request, person, whole=True)
    directory.sign_out(request.user, found)
    if found.pk != request.user.pk:
        messages.success(request, _("Signed out everywhere; open pages close within seconds."))
    return _back(found)


@require_POST
def person_second_factor(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    """Takes the second factor away, passkeys among it, for who lost the device."""
    found = _person(request, person, whole=True)
    if second_factor.take_away(request.user, found):
        messages.success(request, _("The next sign-in asks for the password alone."))
    return _back(found)


@sensitive_post_parameters()
@require_POST
def person_sign_in_link(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    """The answer is the page itself with the link, which is shown this once."""
    found = _person(request, person, whole=True)
    try:
        link = directory.make_link(request.user, found)
    except ValidationError as error:
        return _refused(request, found, error)
    return _page(request, found, link=link)


@require_http_methods(["GET", "HEAD", "POST"])
def person_delete(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    """Shows what would go and what would stay, and asks for the address."""
    found = _person(request, person)
    if hasattr(found, "erasure"):
        return _back(found)
    if found.pk == request.user.pk:
        return redirect("profile:delete")  # which asks for the password
    form = TypedForm(request.POST if request.method == "POST" else None, person=found)
    if request.method == "POST" and form.is_valid():
        try:
            erasing.begin(request.user, found)
        except ValidationError as error:
            form.add_error(None, error)
        else:
            return _back(found)
    here = reverse("people:detail", args=[found.pk])
    context = {
        **deletion_context(found),
        "form": form,
        "back": here,
        "crumbs": [
            *_crumbs(found.label)[:1],
            {"label": found.label, "url": here},
            {"label": _("Delete"), "url": ""},
        ],
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "workspaces/person_delete.html", context, status=status)


def deletion_context(person: User) -> dict[str, Any]:
    """What the deletion of a person's data would do, in numbers."""
    spaces = person.memberships.select_related("workspace").order_by("workspace__name")
    return {
        "person": person,
        "holdings": registry.holdings(person),
        "memberships": list(spaces),
        "devices": len(devices_of(person, "")),
    }


@require_safe
def person_progress(request: HttpRequest, person: uuid.UUID) -> HttpResponse:
    """How far the deletion of a person is, for the open page of it."""
    need_instance_admin(request)
    erasure = Erasure.objects.filter(user=person).first()
    if erasure is None:
        raise Http404
    return render(request, "workspaces/person.html#progress", {"erasure": erasure})


def _refused(request: HttpRequest, person: User, error: ValidationError) -> HttpResponse:
    return _page(request, person, problem=" ".join(error.messages), status=409)


def _back(person: User) -> HttpResponse:
    answer = redirect("people:detail", person.pk)
    answer.status_code = 303
    return answer
