"""The servers that are attacked, each started once for all tests that need its settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.server import FakeProviders
from tests.system.attacks.listener import Listener
from tests.system.attacks.server import Attacked


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as running:
        yield running


@pytest.fixture(scope="session")
def fakes() -> Iterator[FakeProviders]:
    with FakeProviders() as running:
        yield running


@pytest.fixture(scope="session")
def trap() -> Iterator[Listener]:
    """Where every variable of the attacked server's environment points to."""
    with Listener() as running:
        yield running


@pytest.fixture(scope="session")
def attacked(
    tmp_path_factory: pytest.TempPathFactory, static_files: None, trap: Listener
) -> Iterator[Attacked]:
    """Embedded as after `make run`, in an environment full of other people's settings."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    urls = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL", "AWS_ENDPOINT_URL")
    env = {
        **dict.fromkeys((*proxies, *urls, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"), trap.url),
        "OPENAI_API_KEY": "sk-canary-of-the-environment-1",
        "ANTHROPIC_API_KEY": "sk-canary-of-the-environment-2",
        "ANTHROPIC_AUTH_TOKEN": "sk-canary-of-the-environment-3",
        "AWS_ACCESS_KEY_ID": "AKIACANARYENVIRONMENT",
        "AWS_SECRET_ACCESS_KEY": "canary-of-the-environment-4",
        "PATCHBAY_TITLES": "off",
    }
    with Attacked(tmp_path_factory.mktemp("attacked"), env=env) as running:
        yield running
