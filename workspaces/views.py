from __future__ import annotations

from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from workspaces import permissions
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
