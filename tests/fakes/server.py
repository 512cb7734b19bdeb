"""The fake providers for a test: in a thread of the test's process, on a free port."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import orjson
import uvloop

from tests.fakes.app import GOOD_KEY, App, key_hash
from tests.fakes.http import Server
from tests.fakes.issuer import CLIENT_ID, REDIRECT_URI, SCOPES, Issuer

__all__ = ["GOOD_KEY", "FakeProviders", "key_hash"]


class FakeProviders:
    """A context manager; `with FakeProviders() as fakes: fakes.openai, fakes.requests()`."""

    good_key = GOOD_KEY

    def __enter__(self) -> Self:
        self._loop = uvloop.new_event_loop()
        self._app = App()
        self._thread = threading.Thread(target=self._run, name="fake-providers", daemon=True)
        self._thread.start()
        self.url: str = self.on_loop(self._app.start())
        self._servers = [self._app.server]
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            self.on_loop(server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def serve_tls(self, context: ssl.SSLContext) -> int:
        """Answers by TLS too, as the hosts in `tests.fakes.app.HOSTS` and AWS's; the port."""
        server = Server(self._app.handle)
        self._servers.append(server)
        return self.on_loop(server.start(tls=context))

    @property
    def openai(self) -> str:
        """Base URL of the endpoint that wants a Bearer key."""
        return f"{self.url}/openai/v1"

    @property
    def openai_nokey(self) -> str:
        return f"{self.url}/openai-nokey/v1"

    @property
    def ollama(self) -> str:
        """Base URL of a server like Ollama on somebody's machine."""
        return f"{self.url}/ollama/v1"

    @property
    def ollama_empty(self) -> str:
        return f"{self.url}/ollama-empty/v1"

    @property
    def lm_studio(self) -> str:
        return f"{self.url}/lm-studio/v1"

    @property
    def anthropic(self) -> str:
        """Base URL of the endpoint that wants an x-api-key."""
        return f"{self.url}/anthropic"

    @property
    def late(self) -> str:
        """As `openai`, each answer 0.3 s late."""
        return f"{self.url}/late/openai/v1"

    @property
    def anthropic_nokey(self) -> str:
        return f"{self.url}/anthropic-nokey"

    @property
    def bedrock(self) -> str:
        """Base URL that stands for all of AWS but STS; the keys are in `tests.fakes.bedrock`."""
        return f"{self.url}/bedrock"

    @property
    def vertex(self) -> str:
        """Base URL in place of Vertex AI's."""
        return f"{self.url}/vertex"

    @property
    def google_token(self) -> str:
        """In place of Google's token endpoint."""
        return f"{self.url}/google/token"

    def revoke_tokens(self) -> None:
        """Every token that Google gave is void from now on."""
        self._ask(self._app.vertex.tokens.revoke_all)

    @property
    def anthropic_oauth(self) -> str:
        """Base URL of the endpoint that wants an access token of `issuer`."""
        return f"{self.url}/anthropic-oauth"

    @property
    def issuer(self) -> Issuer:
        return self._app.issuer

    def oauth_settings(self, **changes: Any) -> dict[str, Any]:
        """`settings.OAUTH` for the fake issuer; `changes` are of its Anthropic part."""
        anthropic = {
            "client_id": CLIENT_ID,
            "authorize_url": f"{self.url}/issuer/authorize?code=true",
            "token_url": f"{self.url}/issuer/token",
            "redirect_uri": REDIRECT_URI,
            "scopes": SCOPES,
            "json_body": True,
        }
        return {"anthropic": anthropic | changes}

    def oauth_env(self) -> dict[str, str]:
        """The same as a server's environment."""
        return {
            f"PATCHBAY_OAUTH_ANTHROPIC_{name.upper()}": str(value)
            for name, value in self.oauth_settings()["anthropic"].items()
            if name != "json_body"
        }

    def go_away(self) -> None:
        """Every connection is reset, new ones are refused, until `come_back`."""
        self.on_loop(self._app.server.stop())

    def come_back(self) -> None:
        self.on_loop(self._app.start(int(self.url.rpartition(":")[2])))

    def hold(self, text: str) -> None:
        """The model `held` waits when this is what was said last, until `release`."""
        self._ask(lambda: self._app.held.add(text))

    def release(self, text: str) -> None:
        self._ask(lambda: self._app.held.discard(text))

    def requests(self, **wanted: Any) -> list[dict[str, Any]]:
        """What came, oldest first; `wanted` narrows it: `requests(model="echo", status=200)`."""

        def found() -> list[dict[str, Any]]:
            return [
                record
                for record in self._app.records
                if all(record.get(name) == value for name, value in wanted.items())
            ]

        return orjson.loads(self._ask(lambda: orjson.dumps(found())))

    def stats(self) -> dict[str, Any]:
        return orjson.loads(self._ask(lambda: orjson.dumps(self._app.stats())))

    def reset(self) -> None:
        self._ask(self._app.reset)

    def wait_for(self, condition: Callable[[], Any], seconds: float = 10) -> Any:
        """The first true value of `condition`, asked for again and again."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.01)
        return value

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def on_loop(self, coroutine: Any) -> Any:
        """What a coroutine returns on the fakes' loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _ask(self, function: Callable[[], Any]) -> Any:
        async def ask() -> Any:
            return function()

        return self.on_loop(ask())
