"""The pages of signing in: those of allauth that are used, one by one, and our own."""

from allauth.account import views
from allauth.mfa.recovery_codes import views as recovery
from allauth.mfa.totp import views as totp
from django.urls import path, re_path

from workspaces import account_views, passkey_views, profile_views, sso

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
    path("reauthenticate/", views.reauthenticate, name="account_reauthenticate"),
    path("2fa/", profile_views.second_factor, name="mfa_index"),
    path("2fa/code/", account_views.second_step, name="mfa_authenticate"),
    path("2fa/again/", account_views.code_again, name="mfa_reauthenticate"),
    path("2fa/app/", totp.activate_totp, name="mfa_activate_totp"),
    path("2fa/app/off/", account_views.app_off, name="mfa_deactivate_totp"),
    path("2fa/recovery/", recovery.view_recovery_codes, name="mfa_view_recovery_codes"),
    path("2fa/recovery/new/", recovery.generate_recovery_codes, name="mfa_generate_recovery_codes"),
    path(
        "2fa/recovery/file/",
        recovery.download_recovery_codes,
        name="mfa_download_recovery_codes",
    ),
    path("passkeys/begin/", passkey_views.begin, name="account_passkey_begin"),
    path("passkeys/sign-in/", passkey_views.sign_in, name="account_passkey"),
    path("passkeys/again/", passkey_views.again, name="mfa_reauthenticate_webauthn"),
    path("passkeys/new/", passkey_views.add, name="mfa_add_webauthn"),
    path("passkeys/<int:pk>/rename/", passkey_views.rename, name="mfa_edit_webauthn"),
    path("passkeys/<int:pk>/remove/", passkey_views.remove, name="mfa_remove_webauthn"),
    path("sso/", sso.sso, name="account_sso"),
    path("sso/callback/", sso.sso_callback, name="account_sso_callback"),
]
