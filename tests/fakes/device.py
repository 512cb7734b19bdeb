"""ChatGPT's issuer of device codes, as the Codex app-server asks it. On the caller's loop."""

from __future__ import annotations

import json
import secrets
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any, Self
from urllib.parse import parse_qs

import orjson

from tests.fakes.http import Exchange, Server


def token(**claims: Any) -> str:
    def part(value: dict[str, Any]) -> str:
        return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.{secrets.token_urlsafe(24)}"


class DeviceIssuer:
    """`async with DeviceIssuer() as issuer`: `approve()` or `deny()` what a person was shown."""

    def __init__(self, *, plan: str = "plus", account: str = "account-7") -> None:
        self.plan, self.account = plan, account
        self.code = "ABCD-12345"
        self.state = "pending"
        self.checks_fail = False
        self.refuses_codes = False
        self.paths: list[str] = []
        self.tokens: dict[str, str] = {}
        self.client_ids: set[str] = set()
        self._server = Server(self._handle)

    async def __aenter__(self) -> Self:
        self.url = f"http://127.0.0.1:{await self._server.start()}"
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._server.stop()

    def approve(self) -> None:
        self.state = "approved"

    def make_tokens(self) -> None:
        about = {"chatgpt_account_id": self.account, "chatgpt_plan_type": self.plan}
        claims = {"exp": int(time.time()) + 3600, "https://api.openai.com/auth": about}
        self.tokens = {
            "id_token": token(email="carol@example.com", **claims),
            "access_token": token(**claims),
            "refresh_token": f"rt-{secrets.token_urlsafe(24)}",
        }

    def _handle(self, exchange: Exchange) -> None:
        self.paths.append(exchange.path)
        match exchange.method, exchange.path:
            case "POST", "/api/accounts/deviceauth/usercode":
                if self.refuses_codes:
                    exchange.respond(503, {})
                    return
                self.client_ids.add(orjson.loads(exchange.body)["client_id"])
                exchange.respond(
                    200,
                    {"device_auth_id": "device-1", "user_code": self.code, "interval": "1"},
                )
            case "POST", "/api/accounts/deviceauth/token":
                asked = orjson.loads(exchange.body)
                assert (asked["device_auth_id"], asked["user_code"]) == ("device-1", self.code)
                if self.state == "pending":
                    exchange.respond(403, {})
                elif self.state == "denied":
                    exchange.respond(400, {"error": "access_denied"})
                else:
                    verifier = "v" * 50
                    digest = sha256(verifier.encode()).digest()
                    challenge = urlsafe_b64encode(digest).decode().rstrip("=")
                    self._verifier = verifier
                    exchange.respond(
                        200,
                        {
                            "authorization_code": "code-1",
                            "code_challenge": challenge,
                            "code_verifier": verifier,
                        },
                    )
            case "POST", "/oauth/token" if exchange.headers["content-type"] == "application/json":
                asked = orjson.loads(exchange.body)
                assert set(asked) == {"grant_type", "client_id", "refresh_token"}
                self.client_ids.add(asked["client_id"])
                if asked["refresh_token"] != self.tokens["refresh_token"]:
                    exchange.respond(401, {"error": {"code": "refresh_token_reused"}})
                    return
                self.make_tokens()
                exchange.respond(200, self.tokens)
            case "POST", "/oauth/token":
                form = parse_qs(exchange.body.decode())
                self.client_ids.add(form["client_id"][0])
                assert form["grant_type"] == ["authorization_code"]
                assert form["code"] == ["code-1"]
                assert form["code_verifier"] == [self._verifier]
                self.make_tokens()
                exchange.respond(200, self.tokens)
            case "GET", "/backend-api/wham/accounts/check" if not self.checks_fail:
                about = {"id": self.account, "plan_type": self.plan}
                about |= {"workspace_backend_origin": "https://chatgpt.example"}
                about |= {"account_routing_override": "NO_CONSTRAINT"}
                exchange.respond(200, {"accounts": [about]})
            case _:
                exchange.respond(404, {})
