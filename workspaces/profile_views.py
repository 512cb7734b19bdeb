"""What a person changes of their own: name, language, devices, the account at the issuer."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from allauth.account.internal.flows.reauthentication import did_recently_reauthenticate
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from allauth.usersessions.models import UserSession
from django import forms
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import translation
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from workspaces import audit, erasing, passkeys
from workspaces.devices import Device, devices_of, end_others
from workspaces.directory_views import TypedForm, deletion_context
from workspaces.languages import language_of, speaking_to
from workspaces.models import languages


class ProfileForm(forms.Form):
    name = forms.CharField(
        label=gettext_lazy("Your name"),
        max_length=150,
        required=False,
        help_text=gettext_lazy("As colleagues see it. Without one they see your address."),
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    language = forms.ChoiceField(
        label=gettext_lazy("Language"),
        choices=languages,
        required=False,
        help_text=gettext_lazy("Of pages, and of mail to you."),
    )


@dataclass(frozen=True, slots=True)
class Passkey:
    id: int
    name: str
    added: dt.datetime
    used: dt.datetime | None

    @classmethod
    def of(cls, row: Authenticator) -> Passkey:
        return cls(row.pk, row.wrap().name, row.created_at, row.last_used_at)


@require_http_methods(["GET", "HEAD", "POST"])
def profile(request: HttpRequest) -> HttpResponse:
    user = request.user
    kept = {"name": user.name, "language": language_of(user)}
    form = ProfileForm(request.POST or None, initial=kept)
    if request.method == "POST" and form.is_valid():
        asked = {"name": form.cleaned_data["name"].strip()}
        if "language" in form.data:  # what a program left out stays
            asked["language"] = form.cleaned_data["language"]
        for name, value in asked.items():
            setattr(user, name, value)
        with transaction.atomic():
            user.save(update_fields=[*asked])
            audit.record(user, "user.update", user, fields=[*asked])
        browsers = translation.get_language_from_request(request)
        with speaking_to(user, browsers):
            messages.success(request, _("Your profile is saved."))
        return _back()
    current = request.session.session_key or ""
    devices: list[Device] = devices_of(user, current)
    context = {
        "form": form,
        "devices": devices,
        "others": sum(not device.is_current for device in devices),
        "issuer": settings.OIDC["name"] if settings.OIDC_IS_SET_UP else "",
        "linked": SocialAccount.objects.filter(user=user, provider=settings.OIDC_PROVIDER).first(),
        "may_unlink": user.has_usable_password() and not settings.SSO_ONLY,
        "factors": set(Authenticator.objects.filter(user=user).values_list("type", flat=True)),
        "passkeys": [Passkey.of(row) for row in passkeys.of(user)],
        "passkey_problem": passkeys.problem(request),
        "sso_only": settings.SSO_ONLY,
        "has_password": user.has_usable_password() and not settings.SSO_ONLY,
    }
    status = 422 if form.is_bound and not form.is_valid() else 200
    return render(request, "workspaces/profile.html", context, status=status)


@require_safe
def second_factor(request: HttpRequest) -> HttpResponse:
    """Where allauth goes after a change of it."""
    return redirect("profile:show")


@require_POST
def sign_out_device(request: HttpRequest, device: int) -> HttpResponse:
    """Ends the sign-in of another browser of one's own; its open pages close within seconds."""
    found = UserSession.objects.filter(pk=device, user=request.user).first()
    if found is None:
        raise Http404
    with transaction.atomic():
        audit.record(request.user, "user.devices", request.user, ended=1)
        found.end()
    messages.success(request, _("That device is signed out."))
    return _back()


@require_POST
def sign_out_others(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        ended = end_others(request.user, request.session.session_key or "")
        audit.record(request.user, "user.devices", request.user, ended=ended)
    messages.success(request, _("All other devices are signed out."))
    return _back()


@require_http_methods(["GET", "HEAD", "POST"])
def delete(request: HttpRequest) -> HttpResponse:
    """Deletes one's own data, after a look at what that is: who didn't prove the password lately
    is asked for it, and who has none types the address alone."""
    person = request.user
    if not did_recently_reauthenticate(request):
        answer = redirect(
            f"{reverse('account_reauthenticate')}?{urlencode({'next': request.path})}"
        )
        answer.status_code = 303
        return answer
    form = TypedForm(request.POST if request.method == "POST" else None, person=person)
    if request.method == "POST" and form.is_valid():
        try:
            erasing.begin(person, person)
        except ValidationError as error:
            form.add_error(None, error)
        else:
            request.session.flush()
            return render(request, "workspaces/profile_deleted.html")
    context = {**deletion_context(person), "form": form, "back": reverse("profile:show")}
    context["is_self"] = True
    context["crumbs"] = [
        {"label": _("Profile"), "url": reverse("profile:show")},
        {"label": _("Delete"), "url": ""},
    ]
    status = 422 if request.method == "POST" else 200
    return render(request, "workspaces/person_delete.html", context, status=status)


@require_POST
def unlink(request: HttpRequest) -> HttpResponse:
    """Takes the account at the issuer away; not the only way in."""
    if not request.user.has_usable_password() or settings.SSO_ONLY:
        messages.error(request, _("It is your only way to sign in. Choose a password first."))
        return _back()
    with transaction.atomic():
        gone, _rows = SocialAccount.objects.filter(user=request.user).delete()
        if gone:
            audit.record(request.user, "user.unlink", request.user)
    messages.success(request, _("The link is taken away."))
    return _back()


def _back() -> HttpResponse:
    answer = redirect("profile:show")
    answer.status_code = 303
    return answer
