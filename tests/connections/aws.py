"""What the tests of Bedrock share: targets on the fake, and a client whose AWS leads there."""

from __future__ import annotations

from typing import Any

import httpx

from connections.providers.base import Target
from tests.fakes.bedrock import (
    ACCESS_KEY,
    SECRET_KEY,
    SESSION_ACCESS_KEY,
    SESSION_SECRET_KEY,
    SESSION_TOKEN,
)
from tests.fakes.server import GOOD_KEY, FakeProviders

IAM = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
SESSION = {
    "access_key_id": SESSION_ACCESS_KEY,
    "secret_access_key": SESSION_SECRET_KEY,
    "session_token": SESSION_TOKEN,
}
SECRETS = {"iam_credentials": IAM, "api_key": {"api_key": GOOD_KEY}}


def target(fakes: FakeProviders | None, auth: str = "iam_credentials", **more: Any) -> Target:
    """On the fake by its base URL; without `fakes` at AWS's own addresses (see `aws_client`)."""
    about = {
        "provider_type": "bedrock",
        "auth_type": auth,
        "base_url": fakes.bedrock if fakes else "",
        "secret": SECRETS.get(auth, {}),
        "region": "us-east-1",
    }
    return Target(**(about | more))


class _AWSHere(httpx.AsyncHTTPTransport):
    """AWS's names lead to the fake, which knows them by the Host header; anything else fails."""

    def __init__(self, fakes: FakeProviders) -> None:
        super().__init__(trust_env=False)
        self._port = httpx.URL(fakes.url).port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host.endswith((".amazonaws.com", ".amazonaws.com.cn")), request.url
        assert request.url.scheme == "https"
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


def aws_client(fakes: FakeProviders) -> httpx.AsyncClient:
    """For targets without a base URL."""
    return httpx.AsyncClient(transport=_AWSHere(fakes), trust_env=False)
