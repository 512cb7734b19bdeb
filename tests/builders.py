"""Small builders: each makes one row that works, with what a test doesn't care about filled in."""

from __future__ import annotations

import json
from typing import Any

from allauth.mfa.webauthn.internal.auth import WebAuthn
from fido2.utils import websafe_encode

from connections.models import Connection, Secret, WorkspaceConnection
from tests.fakes.passkey import Passkey
from workspaces.models import Membership, Role, User, Workspace
from workspaces.vault import Plain

PASSWORD = "correct horse battery"
KEY = "sk-test-0123456789-abcdef-x7Q2"


def make_user(email: str = "someone@example.com", **fields: Any) -> User:
    """A person with `PASSWORD`; `is_superuser=True` makes an instance admin."""
    return User.objects.create_user(email, PASSWORD, **fields)


def add_passkey(user: User, name: str = "Phone") -> Passkey:
    """The device that keeps it, in software."""
    passkey = Passkey()
    kind = {"residentKey": "required", "userVerification": "required"}
    asked = {
        "user": {"id": websafe_encode(user.pk.bytes)},
        "challenge": "",
        "authenticatorSelection": kind,
    }
    answer = passkey.create(json.dumps({"publicKey": asked}))
    WebAuthn.add(user, name, json.loads(answer))
    return passkey


def make_workspace(slug: str = "support", **fields: Any) -> Workspace:
    return Workspace.objects.create(slug=slug, **{"name": slug.title(), **fields})


def make_member(workspace: Workspace, user: User, role: str = Role.MEMBER) -> Membership:
    return Membership.objects.create(workspace=workspace, user=user, role=role)


def make_connection(slug: str = "local", *, key: str | None = KEY, **fields: Any) -> Connection:
    """A complete openai_compat connection with a key; `key=None` stores none."""
    values: dict[str, Any] = {
        "name": slug.title(),
        "provider_type": "openai_compat",
        "auth_type": "api_key_with_endpoint",
        "base_url": "https://llm.example.com/v1",
        "models": ["small", "large"],
        "default_model": "small",
        "position": Connection.objects.count(),
    }
    if fields.get("provider_type") == "anthropic":
        values |= {"auth_type": "api_key", "base_url": "", "default_model": "claude-sonnet-4-6"}
        values["models"] = ["claude-sonnet-4-6"]
    connection = Connection.objects.create(slug=slug, **(values | fields))
    if key is not None and connection.auth_type in ("api_key", "api_key_with_endpoint"):
        make_secret(connection, {"api_key": key})
    return connection


def make_secret(
    connection: Connection, values: dict[str, str], purpose: str = Secret.Purpose.AUTH
) -> Secret:
    """A secret bound to what the connection is set to now."""
    return Secret.objects.create(
        connection=connection,
        purpose=purpose,
        binding=connection.binding,
        value=Plain(json.dumps(values)),
    )


def give_access(workspace: Workspace, connection: Connection, **fields: Any) -> WorkspaceConnection:
    """The workspace's row: `is_default=True`, `allowed_models=[…]`."""
    return WorkspaceConnection.objects.create(workspace=workspace, connection=connection, **fields)
