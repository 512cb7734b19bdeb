from __future__ import annotations

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from workspaces import permissions, signin_link
from workspaces.place import last_workspace
from workspaces.setup import AlreadySetUp, SetupForm, is_set_up, set_up


@login_not_required
@sensitive_post_parameters("token", "password")
@require_http_methods(["GET", "HEAD", "POST"])
def setup(request: HttpRequest) -> HttpResponse:
    """The first-run page; a 404 for ever once somebody was first."""
    if is_set_up():
        raise Http404
    form = SetupForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            user, _ = set_up(
                email=data["email"], password=data["password"], workspace=data["workspace"]
            )
        except AlreadySetUp:
            raise Http404 from None
        login(request, user, backend="allauth.account.auth_backends.AuthenticationBackend")
        answer = redirect("connections:list")
        answer.status_code = 303
        return answer
    status = 422 if form.is_bound else 200
    return render(request, "workspaces/setup.html", {"form": form}, status=status)


@login_not_required
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in_link(request: HttpRequest, token: str) -> HttpResponse:
    """Signs in by a link of `manage.py signin_link`, by a press: no program that looks at links
    uses it up."""
    person = None if settings.SSO_ONLY else signin_link.person_of(token)
    if person is not None and request.method == "POST":
        with transaction.atomic():
            # Of two presses one gets in: signing in changes what the link is bound to.
            person = signin_link.person_of(token, lock=True)
            if person is not None:
                backend = "allauth.account.auth_backends.AuthenticationBackend"
                login(request, person, backend=backend)
                answer = redirect("workspaces:home")
                answer.status_code = 303
                return answer
    status = 200 if person else 404
    return render(request, "workspaces/signin_link.html", {"person": person}, status=status)


@login_not_required
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """To where a person left off: set-up, sign-in, the last workspace, or Connections."""
    if not request.user.is_authenticated:
        return redirect("workspaces:setup" if not is_set_up() else "account_login")
    spaces = permissions.workspaces_of(request.user)
    space = spaces.filter(slug=last_workspace(request)).first() or spaces.first()
    if space is not None:
        return redirect(space)
    if request.user.is_instance_admin:
        return redirect("connections:list")
    return render(request, "workspaces/nowhere.html")
