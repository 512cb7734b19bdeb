from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponseBase
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy as _


class PatchbayAdminSite(admin.AdminSite):
    """Instance admins only. There is one sign-in, with its throttling: the product's own."""

    site_header = _("Patchbay operator's workbench")
    site_title = _("Patchbay admin")
    index_title = _("Everything in this installation")
    site_url = "/"

    @method_decorator(login_not_required)
    def login(self, request: HttpRequest, extra_context: object = None) -> HttpResponseBase:
        if request.user.is_authenticated:
            raise Http404
        return redirect_to_login(
            request.GET.get("next") or reverse("admin:index"), reverse("account_login")
        )
