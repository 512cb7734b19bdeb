"""AWS Bedrock: Converse for the models of all vendors, with IAM credentials, an API key, or the
server's own credentials.

Without a base URL the calls go to AWS's hosts of the region; with one (a VPC endpoint, a proxy)
all of them go there, since a secret belongs to the address it was entered for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from connections.providers import aws_environment
from connections.providers.base import (
    ErrorKind,
    Event,
    ListedModel,
    ModelRequest,
    ProviderError,
    Target,
    Turnlet,
)
from connections.providers.http import HTTPProvider
from connections.providers.wire.converse import Converse
from connections.providers.wire.sigv4 import AccessKey, sign

MAX_PAGES = 10  # of inference profiles, 1,000 each

_REGION = re.compile(r"[a-z0-9-]{1,40}")
# The partitions' domains by how their regions' names begin.
_DOMAINS = (
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
)
_NO_LIST = frozenset({ErrorKind.FORBIDDEN, ErrorKind.ENDPOINT_NOT_FOUND})
_UNREACHABLE = frozenset({ErrorKind.CONNECT, ErrorKind.TLS, ErrorKind.TIMEOUT})
# Some models take no tools while they stream, or no system prompt, and say so in these words only.
_NO_TOOLS = "This model doesn't support tool use"
_NO_SYSTEM = "This model doesn't support system messages"


class Bedrock(HTTPProvider):
    provider_type = "bedrock"
    auth_types = frozenset({"iam_credentials", "api_key", "environment"})
    default_wire = Converse.name

    def origin(self, target: Target) -> str:
        return target.base_url or _host("bedrock-runtime", target.region)

    def wire(self, target: Target, model: str = "") -> Converse:
        return Converse(target.region, model)

    async def list_models(self, client: httpx.AsyncClient, target: Target) -> list[ListedModel]:
        """The models that can be called, and the inference profiles. One of the two lists may be
        forbidden, or not there; raises when both are."""
        target = await _opened(target)
        models, profiles = await asyncio.gather(
            self._models(client, target), self._profiles(client, target), return_exceptions=True
        )
        for found in (models, profiles):
            if isinstance(found, BaseException) and not isinstance(found, ProviderError):
                raise found
        failed = [found for found in (models, profiles) if isinstance(found, ProviderError)]
        grave = next((error for error in failed if error.kind not in _NO_LIST), None)
        if grave is not None or len(failed) == 2:
            error = grave or failed[0]
            if not target.base_url and error.kind in _UNREACHABLE:
                # another host than that of the chat: a private network may not lead there
                raise ProviderError(ErrorKind.ENDPOINT_NOT_FOUND, error.message)
            raise error
        models = [] if isinstance(models, ProviderError) else models
        profiles = [] if isinstance(profiles, ProviderError) else profiles
        wire = self.wire(target)
        return wire.models(models) + wire.profiles(profiles, models)

    async def check_auth(self, client: httpx.AsyncClient, target: Target, model: str) -> bool:
        """STS tells whose IAM credentials these are, whatever they may do. It knows no API keys:
        for these AWS's list of models is asked, which answers nobody without a right key. What
        stands at a base URL can refuse, but its answers prove nothing."""
        target = await _opened(target)
        iam = "api_key" not in target.secret
        try:
            if iam and not target.base_url:
                host = _host("sts", target.region)
                query = "Action=GetCallerIdentity&Version=2011-06-15"
                await self.lookup(client, target, f"{host}/?{query}")
            else:
                await self._models(client, target)
        except ProviderError as error:
            # Anything else is about this call, not about the credentials.
            if error.kind is ErrorKind.AUTH:
                raise
            return False
        return not target.base_url

    async def stream(
        self, client: httpx.AsyncClient, target: Target, request: ModelRequest
    ) -> AsyncIterator[Event]:
        target = await _opened(target)
        while True:
            begun = False
            try:
                async with aclosing(super().stream(client, target, request)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except ProviderError as error:
                less = None if begun else _with_less(request, error)
                if less is None:
                    raise
                request = less

    async def authorize(
        self, client: httpx.AsyncClient, target: Target, request: httpx.Request
    ) -> None:
        if "api_key" in target.secret:
            await super().authorize(client, replace(target, auth_header=""), request)
            return
        secret = target.secret
        key = AccessKey(
            secret.get("access_key_id", ""),
            secret.get("secret_access_key", ""),
            secret.get("session_token", ""),
        )
        if not (key.id and key.secret):
            raise ProviderError(ErrorKind.AUTH, "There are no AWS credentials to sign with.")
        if not all(re.fullmatch(r"[\x21-\x7e]*", part) for part in (key.id, key.token)):
            message = "The credentials have characters that none can have; nothing was sent."
            raise ProviderError(ErrorKind.AUTH, message)
        if not request.url.host:
            raise ProviderError(ErrorKind.CONNECT, "The address can't be used.")
        service = "bedrock"
        if not target.base_url and request.url.host.startswith("sts."):
            service = "sts"
            request.headers["accept"] = "application/json"  # else it answers in XML
        sign(request, key, service=service, region=target.region)

    async def lookup(self, client: httpx.AsyncClient, target: Target, path: str) -> Any:
        return await super().lookup(client, await _opened(target), path)

    async def _models(self, client: httpx.AsyncClient, target: Target) -> list[Any]:
        answer = await self.lookup(client, target, f"{_control(target)}/foundation-models")
        return _entries(answer, "modelSummaries")

    async def _profiles(self, client: httpx.AsyncClient, target: Target) -> list[Any]:
        entries: list[Any] = []
        more = ""
        for _ in range(MAX_PAGES):
            path = f"{_control(target)}/inference-profiles?maxResults=1000{more}"
            answer = await self.lookup(client, target, path)
            entries += _entries(answer, "inferenceProfileSummaries")
            token = answer.get("nextToken")
            if not isinstance(token, str) or not token:
                break
            more = f"&nextToken={quote(token, safe='')}"
        return entries


async def _opened(target: Target) -> Target:
    """For the server's own credentials the target that holds them, so that they are scrubbed from
    messages as any others; else the same."""
    if target.auth_type != "environment" or target.secret:
        return target
    return replace(target, secret=await aws_environment.credentials())


def _host(service: str, region: str) -> str:
    """The address of one of AWS's services, "" where the region is none."""
    if not _REGION.fullmatch(region):
        return ""
    domain = next((domain for start, domain in _DOMAINS if region.startswith(start)), None)
    return f"https://{service}.{region}.{domain or 'amazonaws.com'}"


def _control(target: Target) -> str:
    """Before the path of a call about models, "" for the base URL."""
    return "" if target.base_url else _host("bedrock", target.region)


def _entries(answer: Any, key: str) -> list[Any]:
    entries = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ProviderError(ErrorKind.PROTOCOL, "The list of models is not a list.")
    return entries


def _with_less(request: ModelRequest, error: ProviderError) -> ModelRequest | None:
    """The request without what the model was said not to take, None if that isn't the error. A
    system prompt becomes the beginning of the first message."""
    if error.kind is not ErrorKind.BAD_REQUEST:
        return None
    if request.tools and error.message.startswith(_NO_TOOLS):
        return replace(request, tools=())
    if request.system and error.message.startswith(_NO_SYSTEM):
        first = Turnlet("user", [{"t": "text", "text": request.system}])
        return replace(request, system="", history=[first, *request.history])
    return None
