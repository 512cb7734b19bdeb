"""The members of a workspace, and the page behind an invitation's link."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from workspaces import people, registry
from workspaces.forms import LongSelect
from workspaces.models import Invitation, Membership, Role, User, Workspace
from workspaces.permissions import Access, workspace_for
from workspaces.place import remember

PAGE = 50


class InviteForm(forms.Form):
    email = forms.EmailField(
        label=gettext_lazy("E-mail address"),
        required=False,
        error_messages={
            "invalid": gettext_lazy(
                "This isn't an e-mail address. Enter one like name@example.com."
            )
        },
    )
    role = forms.ChoiceField(label=gettext_lazy("Role"), choices=Role.choices, initial=Role.MEMBER)


class Search(forms.Form):
    """Which members; empty: all."""

    q = forms.CharField(
        label=gettext_lazy("Name or address"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"type": "search", "autocomplete": "off"}),
    )

    def members(self, found: QuerySet[Membership]) -> QuerySet[Membership]:
        if not self.is_valid():
            return found.none()
        text = self.cleaned_data["q"].strip()
        match = Q(user__email__icontains=text) | Q(user__name__icontains=text)
        return found.filter(match) if text else found


class ReceiverForm(forms.Form):
    """Who gets a person's sessions in a workspace; nobody, where that may be."""

    receiver = forms.ChoiceField(
        label=gettext_lazy("Hand the sessions to"), required=False, widget=LongSelect
    )

    def __init__(
        self,
        data: Any,
        workspace: Workspace,
        giver: User,
        *,
        must: bool = False,
        prefix: str = "",
        among: Sequence[User] | None = None,
    ) -> None:
        """`among`: who may get them, where that was looked up already."""
        super().__init__(data, prefix=prefix or None)
        if among is None:
            among = people.offered([workspace], giver)[workspace.pk]
        self.people = {str(one.pk): one for one in among}
        named = [(key, _named(one)) for key, one in self.people.items()]
        nobody = _("Choose somebody") if must else _("Nobody: leave them as they are")
        self.fields["receiver"].choices = [("", nobody), *named]
        self.fields["receiver"].required = must
        self.fields["receiver"].error_messages = {
            "required": _("Choose somebody."),
            "invalid_choice": _("Choose a member of this workspace who may hold sessions."),
        }

    @property
    def heir(self) -> User | None:
        """Of a valid form."""
        return self.people.get(self.cleaned_data["receiver"])


def _named(person: User) -> str:
    return f"{person.name} ({person.email})" if person.name else person.email


class JoinForm(forms.Form):
    """A new person's own part of an invitation."""

    email = forms.EmailField(
        label=gettext_lazy("Your e-mail address"),
        widget=forms.EmailInput(attrs={"autocomplete": "username"}),
    )
    name = forms.CharField(
        label=gettext_lazy("Your name"),
        max_length=150,
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    password = forms.CharField(
        label=gettext_lazy("Password"),
        max_length=200,
        strip=False,
        help_text=gettext_lazy("At least 10 characters."),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )

    def __init__(self, *args: Any, invitation: Invitation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if invitation.email:
            self.fields["email"].initial = invitation.email
            self.fields["email"].disabled = True

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if password := data.get("password"):
            person = User(email=data.get("email", ""), name=data.get("name", ""))
            try:
                validate_password(password, person)
            except ValidationError as error:
                self.add_error("password", error)
        return data


@require_safe
def member_list(request: HttpRequest, workspace: str) -> HttpResponse:
    access = workspace_for(request, workspace)
    return remember(request, _page(request, access), access.workspace)


@require_POST
def member_invite(request: HttpRequest, workspace: str) -> HttpResponse:
    """The answer is the page itself with the link, which is shown this once."""
    access = workspace_for(request, workspace, Role.ADMIN)
    form = InviteForm(request.POST)
    if not form.is_valid():
        return _page(request, access, form=form, status=422)
    email, role = form.cleaned_data["email"], Role(form.cleaned_data["role"])
    try:
        invitation, link = people.invite(access.user, access.workspace, role=role, email=email)
    except ValidationError as error:
        form.add_error("email", error)
        return _page(request, access, form=form, status=422)
    mailed = bool(email) and settings.MAIL_IS_SET_UP and people.mail(invitation, link)
    return _page(request, access, link=link, mailed=mailed, invited=email)


@require_POST
def member_revoke(request: HttpRequest, workspace: str, invitation: uuid.UUID) -> HttpResponse:
    access = workspace_for(request, workspace, Role.ADMIN)
    people.revoke(access.user, access.workspace, invitation)
    return _back(access)


@require_POST
def member_role(request: HttpRequest, workspace: str, membership: uuid.UUID) -> HttpResponse:
    access = workspace_for(request, workspace, Role.ADMIN)
    role = request.POST.get("role", "")
    if role not in Role.values:
        return _page(request, access, problem=_("Choose a role."), status=422)
    try:
        person = people.change_role(access.user, access.workspace, membership, Role(role))
    except ValidationError as error:
        return _page(request, access, problem=" ".join(error.messages), status=409)
    return _back(access, request, person)


@require_http_methods(["GET", "HEAD", "POST"])
def member_remove(request: HttpRequest, workspace: str, membership: uuid.UUID) -> HttpResponse:
    """Asks first, and offers to hand the sessions to somebody: `receiver`, or nobody."""
    access = workspace_for(request, workspace, Role.ADMIN)
    space = access.workspace
    found = Membership.objects.filter(workspace=space, pk=membership).select_related("user").first()
    if found is None:
        if request.method == "POST":
            return _back(access, request)  # somebody was faster
        raise Http404
    sessions = registry.sessions_by_workspace(found.user).get(space.pk, 0)
    form = ReceiverForm(request.POST if request.method == "POST" else None, space, found.user)
    problem, status = "", 200
    if request.method == "POST":
        status = 422
        if form.is_valid():
            try:
                people.remove(access.user, space, membership, heir=form.heir)
            except ValidationError as error:
                problem, status = " ".join(error.messages), 409
            else:
                return _back(access, request, found.user)
    context = {
        "workspace": space,
        "member": found,
        "sessions": sessions,
        "form": form,
        "problem": problem,
        "next": _next(request),
        "crumbs": [
            {"label": _("Members"), "url": reverse("members:list", args=[space.slug])},
            {"label": found.user.label, "url": ""},
        ],
    }
    return render(request, "workspaces/member_remove.html", context, status=status)


@require_http_methods(["GET", "HEAD", "POST"])
def member_transfer(request: HttpRequest, workspace: str, person: uuid.UUID) -> HttpResponse:
    """Hands over all sessions that somebody left behind here: no admin takes those of a member
    who is still there."""
    access = workspace_for(request, workspace, Role.ADMIN)
    space = access.workspace
    giver = User.objects.filter(pk=person).first()
    sessions = registry.sessions_by_workspace(giver).get(space.pk, 0) if giver else 0
    if giver is None or not sessions or not people.is_gone(space, giver):
        raise Http404
    form = ReceiverForm(request.POST if request.method == "POST" else None, space, giver, must=True)
    if request.method == "POST" and form.is_valid() and form.heir:
        try:
            count = people.hand_over(access.user, space, giver, form.heir)
        except ValidationError as error:
            form.add_error("receiver", error)
        else:
            said = ngettext(
                "%(who)s has %(count)d more session.", "%(who)s has %(count)d more sessions.", count
            )
            messages.success(request, said % {"who": form.heir.label, "count": count})
            return _back(access, request, giver)
    context = {
        "workspace": space,
        "giver": giver,
        "sessions": sessions,
        "form": form,
        "next": _next(request),
        "crumbs": [
            {"label": _("Members"), "url": reverse("members:list", args=[space.slug])},
            {"label": giver.label, "url": ""},
        ],
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "workspaces/member_transfer.html", context, status=status)


@require_POST
def member_leave(request: HttpRequest, workspace: str) -> HttpResponse:
    access = workspace_for(request, workspace)
    mine = Membership.objects.filter(workspace=access.workspace, user=access.user).first()
    try:
        if mine is not None:
            people.remove(access.user, access.workspace, mine.pk)
    except ValidationError as error:
        return _page(request, access, problem=" ".join(error.messages), status=409)
    messages.success(request, _("You left %(workspace)s.") % {"workspace": access.workspace.name})
    return _to("/")


def _page(
    request: HttpRequest,
    access: Access,
    *,
    form: InviteForm | None = None,
    link: str = "",
    mailed: bool = False,
    invited: str = "",
    problem: str = "",
    status: int = 200,
) -> HttpResponse:
    """Two queries for the lists, whatever their length."""
    members = (
        Membership.objects.filter(workspace=access.workspace)
        .select_related("user")
        .order_by("user__email")
    )
    search = Search(request.GET)
    page = Paginator(search.members(members), PAGE).get_page(request.GET.get("page"))
    text = request.GET.get("q", "")
    is_admin = access.has(Role.ADMIN)
    context = {
        "workspace": access.workspace,
        "access": access,
        "page": page,
        "search": search if text or page.has_other_pages() else None,
        "query": f"{urlencode({'q': text})}&" if text else "",
        "roles": Role.choices,
        "is_admin": is_admin,
        "invitations": people.open_invitations(access.workspace) if is_admin else [],
        "left_behind": registry.left_behind(access.workspace) if is_admin else [],
        "form": form or InviteForm(),
        "link": link,
        "mailed": mailed,
        "invited": invited,
        "mail_is_set_up": settings.MAIL_IS_SET_UP,
        "problem": problem,
    }
    if status == 200 and search.errors:
        status = 422
    return render(request, "workspaces/members.html", context, status=status)


def _next(request: HttpRequest) -> str:
    """“person”, when it was asked for from the page of a person."""
    asked = request.POST if request.method == "POST" else request.GET
    return "person" if asked.get("next") == "person" else ""


def _back(
    access: Access, request: HttpRequest | None = None, person: User | None = None
) -> HttpResponse:
    if person and request and _next(request) and access.user.is_instance_admin:
        answer = redirect("people:detail", person.pk)
    else:
        answer = redirect("members:list", access.workspace.slug)
    answer.status_code = 303
    return answer


def _to(address: str) -> HttpResponse:
    answer = redirect(address)
    answer.status_code = 303
    return answer


@login_not_required
@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
def invitation_accept(request: HttpRequest, token: str) -> HttpResponse:
    """Joining: with one press for who is signed in, with a new account for who has none."""
    invitation = people.find(token)
    if invitation is None:
        return render(request, "workspaces/join.html", {"invitation": None}, status=404)
    user = request.user if request.user.is_authenticated else None
    form = None if user else JoinForm(request.POST or None, invitation=invitation)
    problem = ""
    if request.method == "POST" and (form is None or form.is_valid()):
        data = form.cleaned_data if form else {}
        try:
            joined = people.accept(token, user=user, **data)
        except people.InvitationRefused as refusal:
            problem = str(refusal)
        else:
            if user is None:
                backend = "allauth.account.auth_backends.AuthenticationBackend"
                login(request, joined, backend=backend)
            return _to(invitation.workspace.get_absolute_url())
    context = {
        "invitation": invitation,
        "form": form,
        "problem": problem,
        "user_here": user,
        "known": not user
        and bool(invitation.email)
        and User.objects.filter(email=invitation.email).exists(),
        "here": request.path,
        "token": token,
        "issuer": settings.OIDC["name"] if settings.OIDC_IS_SET_UP else "",
        "by_password": not settings.SSO_ONLY,
    }
    status = 422 if problem or (form is not None and form.is_bound) else 200
    return render(request, "workspaces/join.html", context, status=status)
