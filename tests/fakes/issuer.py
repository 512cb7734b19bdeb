"""An OAuth issuer as seen from outside: codes with PKCE, and refresh tokens that rotate.

    /issuer/authorize     what a person's browser would open; here `agree` plays the person
    /issuer/token         the token endpoint, which takes JSON
    /issuer/form/token    the same, which takes a form

Codes and refresh tokens are good once; used again they are `invalid_grant`. Attributes of `Issuer`
say what happens: `lifetime`, `holds`, `faults`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import orjson

from tests.fakes.http import Cut, Exchange, Hang

CLIENT_ID = "patchbay-of-the-tests"
REDIRECT_URI = "https://issuer.example/code"
SCOPES = "user:profile user:inference"
BETA = "oauth-2025-04-20"
PERSON = {
    "account": {"uuid": "acc-1", "email_address": "dana@example.com"},
    "organization": {"uuid": "org-1", "name": "Dana's Organization"},
}
TEAM = {
    "account": {"uuid": "acc-2", "email_address": "ops@example.com"},
    "organization": {"uuid": "org-2", "name": "Example", "organization_type": "claude_team"},
}


@dataclass
class Call:
    """One call to the token endpoint."""

    grant: str
    body: dict[str, Any]
    kind: str  # content type
    outcome: str = ""  # "ok", an error's code, "fault"


@dataclass
class _Code:
    challenge: str
    redirect_uri: str
    account: dict[str, Any]
    used: bool = False


@dataclass
class Issuer:
    lifetime: float | None = 3600.0  # seconds; None isn't told
    hold: float = 0.0  # seconds between an answer made (and a token rotated) and the answer sent
    # what the next calls get instead: a status, (status, body), `Cut` or `Hang`
    faults: list[Any] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    client_id: str = CLIENT_ID

    def __post_init__(self) -> None:
        self._codes: dict[str, _Code] = {}
        self._refresh: dict[str, dict[str, Any]] = {}  # living refresh tokens: the account
        self._access: dict[str, float] = {}  # living access tokens: when they end
        self._numbers = itertools.count(1)
        self.given: list[str] = []  # every token there ever was

    # -- for tests ---------------------------------------------------------------------------------

    def agree(self, url: str, account: dict[str, Any] = PERSON) -> str:
        """What a person does on the page at `url`; the text that the page shows at the end."""
        asked = parse_qs(urlsplit(url).query, strict_parsing=True)
        assert asked["client_id"] == [self.client_id], "unknown client"
        assert asked["redirect_uri"] == [REDIRECT_URI], "the redirect isn't registered"
        assert asked["response_type"] == ["code"]
        assert asked["code_challenge_method"] == ["S256"]
        assert asked["scope"] == [SCOPES]
        code = f"code-{next(self._numbers)}-{secrets.token_urlsafe(24)}"
        self._codes[code] = _Code(asked["code_challenge"][0], REDIRECT_URI, account)
        return f"{code}#{asked['state'][0]}"

    def grant(self, account: dict[str, Any] = PERSON) -> dict[str, Any]:
        """Tokens without the way to them: the token endpoint's answer."""
        number = next(self._numbers)
        access = f"sk-fake-oat-{number}-{secrets.token_urlsafe(24)}"
        refresh = f"sk-fake-ort-{number}-{secrets.token_urlsafe(24)}"
        self.given += [access, refresh]
        self._refresh[refresh] = account
        seconds = 3600.0 if self.lifetime is None else self.lifetime
        self._access[access] = time.time() + seconds
        answer = {"token_type": "Bearer", "access_token": access, "refresh_token": refresh}
        if self.lifetime is not None:
            answer["expires_in"] = self.lifetime
        return {**answer, "scope": SCOPES, **account}

    def withdraw(self, access_token: str = "") -> None:
        """That access token, or every one, is good no longer."""
        for token in [access_token] if access_token else list(self._access):
            self._access.pop(token, None)

    def end(self) -> None:
        """Every sign-in is over: nothing is renewed any more."""
        self._refresh.clear()

    def renewals(self) -> list[Call]:
        return [call for call in self.calls if call.grant == "refresh_token"]

    # -- what providers ask ------------------------------------------------------------------------

    def is_good(self, access_token: str) -> bool:
        return self._access.get(access_token, 0) > time.time()

    # -- one request -------------------------------------------------------------------------------

    def handle(self, exchange: Exchange, record: dict[str, Any]) -> None:
        form = {"/issuer/token": False, "/issuer/form/token": True}.get(exchange.path)
        if form is None or exchange.method != "POST":
            record["status"] = 404
            exchange.respond(404, {"error": "not_found"})
            return
        kind = exchange.headers.get("content-type", "").partition(";")[0]
        call = Call("", {}, kind)
        self.calls.append(call)
        status, answer = self._answer(exchange, call, form=form)
        call.outcome = call.outcome or answer.get("error", "ok")
        record["status"] = status

        def send() -> None:
            if not exchange.over:
                exchange.respond(status, answer, {"cache-control": "no-store"})

        if self.faults:
            call.outcome = "fault"
            self._fail(exchange, self.faults.pop(0), send)
        elif self.hold:
            asyncio.get_running_loop().call_later(self.hold, send)
        else:
            send()

    def _fail(self, exchange: Exchange, fault: Any, send: Callable[[], None]) -> None:
        if fault is Hang:
            return
        if fault is Cut:
            exchange.play(iter([Cut]), {})
            return
        status, body = fault if isinstance(fault, tuple) else (fault, {"error": "server_error"})
        headers = {"location": "https://elsewhere.example/token"} if 300 <= status < 400 else {}
        exchange.respond(status, body, headers)

    def _answer(self, exchange: Exchange, call: Call, *, form: bool) -> tuple[int, dict[str, Any]]:
        try:
            if form:
                assert call.kind == "application/x-www-form-urlencoded"
                pairs = parse_qsl(exchange.body.decode(), strict_parsing=True)
                call.body = dict(pairs)
                assert len(call.body) == len(pairs)
            else:
                assert call.kind == "application/json"
                call.body = orjson.loads(exchange.body)
            call.grant = call.body["grant_type"]
        except (AssertionError, KeyError, ValueError):
            return 400, {"error": "invalid_request"}
        if self.faults:
            return 500, {}  # the fault comes instead: nothing is used up
        if call.body.get("client_id") != self.client_id:
            return 401, {"error": "invalid_client", "error_description": "Unknown client"}
        if call.grant == "authorization_code":
            return self._by_code(call.body, form=form)
        if call.grant == "refresh_token":
            if set(call.body) != {"grant_type", "client_id", "refresh_token"}:
                return 400, {"error": "invalid_request"}
            account = self._refresh.pop(call.body["refresh_token"], None)
            if account is None:
                text = f"Refresh token {call.body['refresh_token']} not found or invalid"
                return 400, {"error": "invalid_grant", "error_description": text}
            return 200, self.grant(account)
        return 400, {"error": "unsupported_grant_type"}

    def _by_code(self, body: dict[str, Any], *, form: bool) -> tuple[int, dict[str, Any]]:
        wanted = {"grant_type", "client_id", "code", "redirect_uri", "code_verifier"}
        if set(body) != (wanted if form else wanted | {"state"}):
            return 400, {"error": "invalid_request"}
        code = self._codes.get(body["code"])
        if code is None or code.used:
            return 400, {"error": "invalid_grant", "error_description": "Invalid 'code'"}
        digest = hashlib.sha256(body["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if challenge != code.challenge or body["redirect_uri"] != code.redirect_uri:
            return 400, {"error": "invalid_grant", "error_description": "Wrong verifier"}
        code.used = True
        return 200, self.grant(code.account)
