"""Signing in to ChatGPT with a code, by the Codex app-server: a person types the code on ChatGPT's
own page, on any device, and the process gets the tokens.

This process talks to ChatGPT's login hosts itself. Nothing of a conversation is in it, and its home
is gone when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from connections.providers.base import MAX_MESSAGE, ErrorKind, ProviderError
from connections.providers.codex_home import Home, HomeError, for_sign_in, make_home
from connections.providers.wire import jsonrpc
from connections.providers.wire.lenient_json import clean, loads
from connections.providers.wire.oauth import Tokens, claims_of, lifetime_of

START_SECONDS = 30.0
CODE_SECONDS = 15 * 60.0  # so long the code is good, and the process waits for it
MAX_AUTH = 256 * 1024  # bytes
CLIENT = {"name": "patchbay", "title": "Patchbay", "version": "1"}
_CLAIMS = "https://api.openai.com/auth"


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What the person needs: the page and the code to type there, good for `lifetime` seconds."""

    url: str
    code: str
    lifetime: float = CODE_SECONDS


async def device_login(
    codex_path: str, *, client_id: str = "", issuer: str = ""
) -> AsyncIterator[DeviceCode | Tokens]:
    """First the code, then the tokens, at most 15 minutes later; `more` has their `account_id`.
    Closing the generator gives the attempt up. `client_id` and `issuer` are others than the
    binary's own. Raises `ProviderError`."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(START_SECONDS):
                home = make_home(for_sign_in(f"{issuer}/backend-api" if issuer else ""))
                stack.callback(home.remove)
                environ = home.environment()
                if issuer:
                    environ["CODEX_APP_SERVER_LOGIN_ISSUER"] = issuer
                if client_id:
                    environ["CODEX_APP_SERVER_LOGIN_CLIENT_ID"] = client_id
                peer = await stack.enter_async_context(
                    await jsonrpc.Peer.start(
                        [codex_path, "app-server", "--strict-config"],
                        env=environ,
                        cwd=str(home.cwd),
                    )
                )
                await peer.request(
                    "initialize", {"clientInfo": CLIENT, "capabilities": {"experimentalApi": True}}
                )
                await peer.notify("initialized")
                begun = await peer.request("account/login/start", {"type": "chatgptDeviceCode"})
        except jsonrpc.Refused as error:
            raise ProviderError(ErrorKind.CONNECT, _words(error)) from None
        except TimeoutError:
            raise ProviderError(ErrorKind.TIMEOUT, "No code came in time.") from None
        except (HomeError, jsonrpc.RPCError) as error:
            raise ProviderError(ErrorKind.PROCESS, _words(error)) from None
        login, code = _device_code(begun, issuer)
        stack.push_async_callback(_cancel, peer, login)
        yield code
        try:
            async with asyncio.timeout(CODE_SECONDS + 30):
                failure = await _completed(peer, login)
        except TimeoutError:
            raise ProviderError(ErrorKind.TIMEOUT, "Nobody entered the code in time.") from None
        except jsonrpc.RPCError as error:
            raise ProviderError(ErrorKind.PROCESS, _words(error)) from None
        # A check that comes after the tokens may fail though they are good: they are what counts.
        found = _login(home)
        if found is None:
            raise ProviderError(ErrorKind.AUTH, clean(failure or "No tokens came.")[:MAX_MESSAGE])
        yield found


async def _completed(peer: jsonrpc.Peer, login: str) -> str:
    """Waits for the end of the login; the reason of a failure, "" for none."""
    async with aclosing(peer.notifications()) as notifications:
        async for heard in notifications:
            if heard.method == "account/login/completed" and heard.params.get("loginId") == login:
                return "" if heard.params.get("success") else str(heard.params.get("error"))
    raise AssertionError("the notifications end by an exception")


async def _cancel(peer: jsonrpc.Peer, login: str) -> None:
    with contextlib.suppress(jsonrpc.RPCError):
        await peer.request("account/login/cancel", {"loginId": login}, seconds=1)


def _device_code(begun: Any, issuer: str) -> tuple[str, DeviceCode]:
    begun = begun if isinstance(begun, dict) else {}
    login, url, code = (begun.get(name) for name in ("loginId", "verificationUrl", "userCode"))
    if (
        not (isinstance(login, str) and isinstance(url, str) and isinstance(code, str))
        or not url.startswith(issuer or "https://")
        or not (0 < len(code) <= 40 and code.isascii() and code.isprintable())
    ):
        raise ProviderError(ErrorKind.PROTOCOL, "The issuer's code can't be used.")
    return login, DeviceCode(url, code)


def _login(home: Home) -> Tokens | None:
    try:
        with (home.home / "auth.json").open("rb") as file:
            stored = loads(file.read(MAX_AUTH))
        tokens = stored["tokens"]
        access, refresh = tokens["access_token"], tokens["refresh_token"]
        claims = claims_of(tokens["id_token"])
        about = claims.get(_CLAIMS)
        about = about if isinstance(about, dict) else {}
        account_id = tokens.get("account_id") or about.get("chatgpt_account_id") or ""
        if not all(isinstance(text, str) and text for text in (access, refresh, account_id)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    plan = str(about.get("chatgpt_plan_type") or "")
    organisation = plan in ("business", "enterprise", "edu", "team")
    email = claims.get("email")
    return Tokens(
        access_token=access,
        refresh_token=refresh,
        lifetime=lifetime_of(access),
        account=clean(email)[:200] if isinstance(email, str) else "",
        kind="organisation" if organisation else "personal",
        more={"account_id": account_id},
    )


def _words(error: Exception) -> str:
    return clean(str(error))[:MAX_MESSAGE]
