"""The servers that are attacked, each started once for all tests that need its settings."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.fakes.server import FakeProviders
from tests.system.attacks.bait import Bait
from tests.system.attacks.listener import Listener
from tests.system.attacks.server import Attacked
from tests.system.harness import Client


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
def home_bait(tmp_path_factory: pytest.TempPathFactory) -> Bait:
    """What the cloud SDKs' own files name, in the attacked server's home directory."""
    return Bait(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def attacked(
    tmp_path_factory: pytest.TempPathFactory,
    static_files: None,
    trap: Listener,
    home_bait: Bait,
) -> Iterator[Attacked]:
    """Embedded as after `make run`, in an environment full of other people's settings."""
    home = home_bait.program.parent
    (home / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    (home / ".netrc").chmod(0o600)
    (home / ".aws").mkdir()
    (home / ".aws" / "config").write_text(
        f"[default]\ncredential_process = {home_bait.program}\n"
        f"ca_bundle = {home_bait.file}\nendpoint_url = {trap.url}\n"
    )
    google = {
        "type": "external_account",
        "audience": "canary",
        "token_url": trap.url,
        "credential_source": {"executable": {"command": str(home_bait.program)}},
    }
    (home / "google.json").write_text(json.dumps(google))
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    urls = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL", "AWS_ENDPOINT_URL")
    env = {
        **dict.fromkeys((*proxies, *urls, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"), trap.url),
        "HOME": str(home),
        "OPENAI_API_KEY": "sk-canary-of-the-environment-1",
        "ANTHROPIC_API_KEY": "sk-canary-of-the-environment-2",
        "ANTHROPIC_AUTH_TOKEN": "sk-canary-of-the-environment-3",
        "AWS_PROFILE": "default",
        "AWS_BEARER_TOKEN_BEDROCK": "canary-of-the-environment-4",
        "GOOGLE_APPLICATION_CREDENTIALS": str(home / "google.json"),
        "ANTHROPIC_CUSTOM_HEADERS": "X-Canary: canary-of-the-environment-5",
        "AWS_ACCESS_KEY_ID": "AKIACANARY0000000006",
        "AWS_SECRET_ACCESS_KEY": "canary-of-the-environment-7",
        "AWS_SESSION_TOKEN": "canary-of-the-environment-8",
        "AWS_REGION": "canary-region-1",
        "AWS_CA_BUNDLE": str(home_bait.file),
        "OPENAI_ORG_ID": "canary-of-the-environment-9",
        "CODEX_HOME": str(home),
        "CODEX_API_KEY": "canary-of-the-environment-10",
        "GOOGLE_CLOUD_PROJECT": "canary-project",
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES": "1",
        "PATCHBAY_TITLES": "off",
    }
    with Attacked(tmp_path_factory.mktemp("attacked"), env=env) as running:
        yield running


@pytest.fixture(scope="session")
def people(attacked: Attacked) -> dict[str, Client]:
    """Everybody who is not an instance admin, and nobody."""
    return attacked.add_people()
