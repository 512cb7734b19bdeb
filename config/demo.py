"""`make demo`: a whole team on the bundled fake providers, for those who have no key at hand."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from django.conf import settings
from django.db import transaction

from connections import actions, grants
from connections.models import Connection
from connections.tasks import request_validation
from workspaces import setup
from workspaces.models import Membership, Role, User

EMAIL, PASSWORD = "demo@example.com", "patchbay demo"
KEY = "sk-fake-good-key-0123456789abcdef"  # what the bundled providers accept

_PEOPLE = (
    ("bob@example.com", "Bob", "support", Role.ADMIN),
    ("carol@example.com", "Carol", "support", Role.MEMBER),
    ("dan@example.com", "Dan", "research", Role.MEMBER),
    ("vera@example.com", "Vera", "research", Role.VIEWER),
)
_VISION = {"id": "vision", "supportsImages": True}
# The last one makes the titles, where none is called mini or flash.
_CHAT = ["markdown", "fast-30tps", "slow-2s", "long-2000", _VISION, "echo"]
_AGENT = ["tools-3", "tools", "thinking", "thinking-tools", "markdown", "echo"]
_FAULTS = ["err-429-then-ok", "err-401", "err-quota", "err-529", "cut", "stall", "error-mid"]


def providers_command(port: int) -> list[str]:
    return [sys.executable, "-m", "tests.fakes", "--port", str(port)]


def _kept_port() -> Path:
    return settings.DATA_DIR / "demo-port"


def holds_something_else() -> bool:
    """Whether this data directory is an installation that the demo didn't make."""
    return setup.is_set_up() and not _kept_port().exists()


def provider_port() -> int:
    """The same one at every start of a data directory: connections name it."""
    kept = _kept_port()
    if kept.exists():
        return int(kept.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept.write_text(str(port))
    return port


def environment() -> dict[str, str]:
    """The fake providers get nothing of ours."""
    return {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}


@transaction.atomic
def seed(port: int) -> None:
    """Makes the people, workspaces and connections, once."""
    if setup.is_set_up():
        return
    admin, support = setup.set_up(email=EMAIL, password=PASSWORD, workspace="Support")
    admin.name = "Demo admin"
    admin.save(update_fields=["name"])
    research = setup.create_workspace(admin, "Research")
    research.instructions = "You help a small research team. Be brief and name your sources."
    research.save(update_fields=["instructions"])
    spaces = {space.slug: space for space in (support, research)}
    for email, name, space, role in _PEOPLE:
        person = User.objects.create_user(email, PASSWORD, name=name)
        Membership.objects.create(workspace=spaces[space], user=person, role=role)
    connections = _connections(admin, f"http://127.0.0.1:{port}")
    agent = next(connection for connection in connections if connection.slug == "agent")
    grants.set_workspace_default(admin, research, agent)
    request_validation(connections, admin, "save")


def _connections(admin: User, url: str) -> list[Connection]:
    openai = {"provider_type": "openai_compat", "auth_type": "api_key_with_endpoint"}
    rows: list[tuple[dict[str, object], str]] = [
        (
            {
                **openai,
                "name": "Chat models",
                "slug": "chat",
                "base_url": f"{url}/openai/v1",
                "models": _CHAT,
                "mid_stream_behavior": "queue",
                "note": "Fast, plain replies. Messages sent mid-stream are queued.",
            },
            KEY,
        ),
        (
            {
                "provider_type": "anthropic_compat",
                "auth_type": "api_key_with_endpoint",
                "name": "Agent models",
                "slug": "agent",
                "base_url": f"{url}/anthropic",
                "models": _AGENT,
                "mid_stream_behavior": "steer",
                "note": "Calls tools, so that there is something to steer.",
            },
            KEY,
        ),
        (
            {
                "provider_type": "openai_compat",
                "auth_type": "none",
                "name": "On this machine",
                "slug": "local",
                "base_url": f"{url}/openai-nokey/v1",
                "models": ["echo", "thinking"],
                "note": "No key, as with Ollama or LM Studio.",
            },
            "",
        ),
        (
            {
                **openai,
                "name": "Things that go wrong",
                "slug": "faults",
                "base_url": f"{url}/openai/v1",
                "models": _FAULTS,
            },
            KEY,
        ),
        (
            {
                **openai,
                "name": "An expired key",
                "slug": "expired",
                "base_url": f"{url}/openai/v1",
                "models": ["echo"],
            },
            "sk-fake-expired-key-9876543210",
        ),
    ]
    return [
        actions.create(
            admin,
            {**data, "default_model": _first(data["models"])},
            secret={"api_key": key} if key else None,
        )
        for data, key in rows
    ]


def _first(models: object) -> str:
    assert isinstance(models, list)
    return models[0] if isinstance(models[0], str) else models[0]["id"]
