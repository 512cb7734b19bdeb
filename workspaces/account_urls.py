"""The pages of signing in: those of allauth that are used, one by one, and our own."""

from allauth.account import views
from django.urls import path, re_path

from workspaces import account_views, sso

urlpatterns = [
    path("login/", account_views.sign_in, name="account_login"),
    path("logout/", views.logout, name="account_logout"),
    path("signup/", views.signup, name="account_signup"),
    path("password/change/", views.password_change, name="account_change_password"),
    path("password/reset/", account_views.reset, name="account_reset_password"),
    path("password/reset/done/", account_views.reset_done, name="account_reset_password_done"),
    re_path(
        r"^password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        account_views.reset_from_key,
        name="account_reset_password_from_key",
    ),
    path(
        "password/reset/key/done/",
        account_views.reset_from_key_done,
        name="account_reset_password_from_key_done",
    ),
    path("inactive/", views.account_inactive, name="account_inactive"),
    path("sso/", sso.sso, name="account_sso"),
    path("sso/callback/", sso.sso_callback, name="account_sso_callback"),
]
