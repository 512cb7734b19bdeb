"""The addresses of every page, by the table of addresses: what is looked at in a browser."""

from __future__ import annotations

import json

from tests.system.harness import Patchbay

# What answers GET and is no page to look at.
NO_PAGES = {
    *("healthz", "readyz", "metrics"),  # for machines
    *("usage:instance_export", "usage:workspace_export", "sessions:export", "sessions:attachment"),
    # fragments
    *("connections:row", "connections:progress", "sessions:turns", "people:progress"),
    "profile:delete",  # leads to the password, or back with the reason
    *("mfa_download_recovery_codes", "mfa_view_recovery_codes", "mfa_index"),
    *("mfa_activate_totp", "mfa_deactivate_totp", "mfa_generate_recovery_codes"),
    *("mfa_authenticate", "mfa_reauthenticate"),  # asked in the midst of signing in
    *("mfa_add_webauthn", "mfa_edit_webauthn", "mfa_remove_webauthn"),  # e2e/test_passkeys.py
    "mfa_reauthenticate_webauthn",
    *("account_sso_callback", "account_reset_password_from_key", "workspaces:sign_in_link"),
    *("workspaces:setup", "workspaces:home", "account_signup"),
    "members:accept",  # by its token, below
}
MORE = {
    "a preset": "/connections/new/?preset=openrouter",
    "bedrock": "/connections/new/?preset=bedrock",
    "vertex": "/connections/new/?preset=vertex",
    "a sign-in": "/connections/new/?preset=claude-oauth",
    "a copy": "/connections/new/?like=local",
    "a filter": "/connections/?q=nothing+like+it",
    "a short form": "/start/vertex/",
    "nothing found": "/w/support/?q=nothing+like+it",
    "an excerpt": "/w/support/?q=invoice",
    "commands": "/palette/?q=s",
    "the app for codes": "/accounts/2fa/app/",
    "the admin site": "/admin/",
    "a list of the admin site": "/admin/workspaces/user/",
    "no commands": "/palette/?q=nothing+like+it",
}
ANYBODYS = {"an invitation": "/invitations/token-of-the-invitation-to-support/"}


def every_page(patchbay: Patchbay) -> dict[str, dict[str, str]]:
    """Fills a new installation with `tests.world`; name → address, of what an instance admin
    (alice@example.com) sees and of what anybody does."""
    tell = "from tests.e2e.every_page_rows import tell; tell()"
    made = patchbay.manage("shell", "-v0", "-c", tell).stdout
    found = json.loads(made.splitlines()[-1])
    admin = {name: there for name, there in found["admin"].items() if name not in NO_PAGES}
    anybody = {name: there for name, there in found["anybody"].items() if name not in NO_PAGES}
    # A new address is looked at, or named above as none that can be.
    assert set(found["others"]) - NO_PAGES == set()
    return {"admin": admin | MORE, "anybody": anybody | ANYBODYS}
