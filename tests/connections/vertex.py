"""What the tests of Vertex AI share: a target on the fakes, and the two wires' model ids."""

from __future__ import annotations

from typing import Any

from connections.providers.base import Target
from tests.fakes.server import FakeProviders
from tests.fakes.vertex import PROJECT, service_account

PUBLISHERS = ("google", "anthropic")


def target(fakes: FakeProviders, account: str = "good", **more: Any) -> Target:
    about = {
        "provider_type": "vertex",
        "auth_type": "service_account_file",
        "base_url": fakes.vertex,
        "secret": {"service_account_json": service_account(account)},
        "region": "us-central1",
        "project": PROJECT,
        "token_url": fakes.google_token,
    }
    return Target(**(about | more))


def spoken(publisher: str, behaviour: str) -> str:
    """The id of a model of this publisher that behaves so."""
    return f"anthropic/{behaviour}" if publisher == "anthropic" else behaviour
