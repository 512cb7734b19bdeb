"""Google Vertex AI: Gemini and Claude in a Google Cloud project.

The publisher of a model chooses the wire::

    claude-sonnet-4-5@20250929, anthropic/claude-…, publishers/anthropic/models/…   Anthropic's
    gemini-2.5-pro, google/gemini-…, publishers/google/models/…, all others         Gemini's

A base URL of the connection's own (a private endpoint, a proxy) takes the calls; tokens are minted
at Google's all the same.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import quote

import httpx

from connections.providers import google_token
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
from connections.providers.wire import Wire
from connections.providers.wire.anthropic_messages import AnthropicMessages
from connections.providers.wire.gemini import Gemini, contents
from connections.providers.wire.lenient_json import clean

ANTHROPIC_VERSION = "vertex-2023-10-16"
MAX_PAGES = 20  # of the list of one publisher's models

_SPELLED_OUT = re.compile(r"(?:.*/)?publishers/([a-z0-9-]+)/models/([^/]+)")
# What of Google's own can hold a conversation.
_GEMINI = re.compile(r"gemini-(?!.*(embedding|image|tts|live))[a-z0-9.@-]+")
_DAY = re.compile(r"[0-9]{8}")
# The free call tells nothing against the key then: the answer will tell.
_ABOUT_THE_MODEL = frozenset(
    {
        ErrorKind.MODEL_NOT_FOUND,
        ErrorKind.ENDPOINT_NOT_FOUND,
        ErrorKind.BAD_REQUEST,
        ErrorKind.PROTOCOL,
    }
)


class Vertex(HTTPProvider):
    provider_type = "vertex"
    auth_types = frozenset({"service_account_file", "environment"})
    default_wire = "gemini"

    def origin(self, target: Target) -> str:
        if target.base_url:
            return target.base_url.removesuffix("/v1")  # as Google's own libraries are given it
        if target.region == "global":
            return "https://aiplatform.googleapis.com"
        if target.region in ("us", "eu"):  # all regions of a continent
            return f"https://aiplatform.{target.region}.rep.googleapis.com"
        return f"https://{target.region}-aiplatform.googleapis.com"

    def wire(self, target: Target, model: str = "") -> Wire:
        publisher, name = place_of(model)
        if publisher == "anthropic":
            return _Claude(_path(target, publisher, name))
        if publisher == "google":
            return Gemini(_path(target, publisher, name))
        raise ProviderError(
            ErrorKind.MODEL_NOT_FOUND, f"Models of the publisher {publisher} are not supported."
        )

    async def authorize(
        self, client: httpx.AsyncClient, target: Target, request: httpx.Request
    ) -> None:
        request.headers["authorization"] = f"Bearer {target.secret['access_token']}"
        if project := target.secret.get("quota_project"):
            request.headers.setdefault("x-goog-user-project", project)

    async def stream(
        self, client: httpx.AsyncClient, target: Target, request: ModelRequest
    ) -> AsyncIterator[Event]:
        with_token = await _with_token(client, target)
        async with aclosing(super().stream(client, with_token, request)) as events:
            try:
                async for event in events:
                    yield event
            except ProviderError as error:
                _note(error, target)
                raise

    async def lookup(
        self,
        client: httpx.AsyncClient,
        target: Target,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        model: str = "",
    ) -> Any:
        with_token = await _with_token(client, target)
        try:
            return await super().lookup(client, with_token, path, body=body, model=model)
        except ProviderError as error:
            _note(error, target)
            raise

    async def check_auth(self, client: httpx.AsyncClient, target: Target, model: str) -> bool:
        """A token proves the key; counting tokens, which is free, what the project permits it."""
        await google_token.token_for(client, target)
        publisher, name = place_of(model)
        asked = ModelRequest(model, [Turnlet("user", [{"t": "text", "text": "OK"}])], 1)
        if publisher == "anthropic":
            path = f"{_path(target, publisher, 'count-tokens')}:rawPredict"
            body = {
                "anthropic_version": ANTHROPIC_VERSION,
                "model": name,
                "messages": AnthropicMessages().body(asked)["messages"],
            }
        else:
            path = f"{_path(target, publisher, name)}:countTokens"
            body = {"contents": contents(asked)}
        try:
            await self.lookup(client, target, path, body=body, model=model)
        except ProviderError as error:
            # Claude's are counted in some regions only, which a 400 says in several ways.
            if error.kind not in _ABOUT_THE_MODEL and error.status != 400:
                raise
        return True

    async def list_models(self, client: httpx.AsyncClient, target: Target) -> list[ListedModel]:
        """Both publishers' models that hold conversations. The list is a right of its own, which a
        key that may chat often lacks: then it counts as not there."""
        found: list[ListedModel] = []
        refusal: ProviderError | None = None
        for publisher in ("google", "anthropic"):
            try:
                found += await self._published(client, target, publisher)
            except ProviderError as error:
                if error.kind not in (*_ABOUT_THE_MODEL, ErrorKind.FORBIDDEN):
                    raise
                refusal = error
        if not found and refusal is not None:
            raise ProviderError(
                ErrorKind.ENDPOINT_NOT_FOUND,
                refusal.message,
                status=refusal.status,
                code=refusal.code,
            )
        return found

    async def _published(
        self, client: httpx.AsyncClient, target: Target, publisher: str
    ) -> list[ListedModel]:
        found: dict[str, ListedModel] = {}
        page = ""
        for _ in range(MAX_PAGES):
            path = f"/v1beta1/publishers/{publisher}/models?pageSize=100"
            answer = await self.lookup(client, target, path + page)
            entries = answer.get("publisherModels", []) if isinstance(answer, dict) else None
            if not isinstance(entries, list):
                raise ProviderError(ErrorKind.PROTOCOL, "The list of models is not a list.")
            for entry in entries:
                if model := _listed(entry, publisher):
                    found.setdefault(model.id, model)
            token = answer.get("nextPageToken")
            if not isinstance(token, str) or not token:
                break
            page = f"&pageToken={quote(token, safe='')}"
        return list(found.values())


def place_of(model: str) -> tuple[str, str]:
    """(publisher, name) of a model's id."""
    if spelled := _SPELLED_OUT.fullmatch(model):
        return spelled[1], spelled[2]
    publisher, slash, name = model.partition("/")
    if slash:
        return publisher, name
    return ("anthropic" if model.startswith("claude") else "google"), model


def _path(target: Target, publisher: str, name: str) -> str:
    project, region, model = (quote(x, safe="@") for x in (target.project, target.region, name))
    return f"/v1/projects/{project}/locations/{region}/publishers/{publisher}/models/{model}"


async def _with_token(client: httpx.AsyncClient, target: Target) -> Target:
    """The target as it authenticates. The key goes along so that no error quotes it."""
    token = await google_token.token_for(client, target)
    secret = {**target.secret, "access_token": token.value, "quota_project": token.quota_project}
    return replace(target, secret=secret)


def _note(error: ProviderError, target: Target) -> None:
    if error.kind is ErrorKind.AUTH:
        google_token.forget(target)


def _listed(entry: Any, publisher: str) -> ListedModel | None:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        return None
    model = clean(name.rpartition("/")[2])
    if publisher == "google":
        return ListedModel(model) if _GEMINI.fullmatch(model) else None
    if not model.startswith("claude"):
        return None
    version = entry.get("versionId")
    dated = isinstance(version, str) and _DAY.fullmatch(version) and "@" not in model
    return ListedModel(f"{model}@{version}" if dated else model)


class _Claude(AnthropicMessages):
    """Anthropic's messages with the model in the address and the version in the body."""

    name: ClassVar[str] = "anthropic-vertex"
    auth_header: ClassVar[str] = "bearer"
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, place: str) -> None:
        self._place = place

    def chat_path(self, model: str) -> str:
        return f"{self._place}:streamRawPredict"

    def body(self, request: ModelRequest, *, max_tokens_field: str = "") -> dict[str, Any]:
        body = super().body(request)
        del body["model"]
        return {"anthropic_version": ANTHROPIC_VERSION, **body}
