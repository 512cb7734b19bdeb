"""Fake providers on loopback: real wire formats, strict readers, faults on demand.

Endpoints (the base URL of a connection is the part before the slash-slash):

    /openai/v1          //chat/completions, //models    Bearer key
    /openai-xkey/v1     the same                        x-api-key
    /openai-nokey/v1    the same                        no key
    (each of the three also has //responses, the wire that Codex speaks)
    /anthropic          //v1/messages, //v1/models      x-api-key
    /anthropic-bearer   the same                        Bearer key
    /anthropic-nokey    the same                        no key
    /ollama/v1          the same, as Ollama             no key
    /ollama-empty/v1    the same, before any model was pulled
    /lm-studio/v1       the same, as LM Studio          no key
    /late/…             any of these, each answer 0.3 s late
    /bedrock            tests.fakes.bedrock             SigV4, or a Bearer key
    /vertex             tests.fakes.vertex              a token of /google/token
    /anthropic-oauth    the same                        an access token of the issuer, with its beta
    /issuer             OAuth (tests.fakes.issuer)      /token

A request whose Host is one of the providers' own (`HOSTS`, and AWS's) is answered as by that host.

Keys that begin with `sk-fake-good` are right, all others are 401. What happens is chosen by the
model's name (tests.fakes.models; GET …/models lists them).

For tests: GET /_requests (what came, with keys as hashes), GET /_stats, POST /_reset,
GET /_page (some text, for fetch_url), and GET /_service-account (a key for /google/token).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from tests.fakes import bedrock, issuer, models
from tests.fakes.http import Cut, Exchange, Hang, Server
from tests.fakes.http import Step as Chunk
from tests.fakes.issuer import Issuer
from tests.fakes.responses import Responses
from tests.fakes.vertex import Vertex, service_account
from tests.fakes.wires import Anthropic, Asked, OpenAI, Refusal

GOOD_KEY = "sk-fake-good-key-0123456789abcdef"
MAX_RECORDS = 20_000
LATE = 0.3  # seconds
MAX_TEXT = 4_000  # characters of a text that are recorded

ENDPOINTS = {
    "/openai/v1": (OpenAI(), "bearer"),
    "/openai-xkey/v1": (OpenAI(), "x-api-key"),
    "/openai-nokey/v1": (OpenAI(), ""),
    "/anthropic/v1": (Anthropic(), "x-api-key"),
    "/anthropic-bearer/v1": (Anthropic(), "bearer"),
    "/anthropic-nokey/v1": (Anthropic(), ""),
    "/anthropic-oauth/v1": (Anthropic(), "oauth"),
    "/ollama/v1": (OpenAI(), ""),
    "/ollama-empty/v1": (OpenAI(), ""),
    "/lm-studio/v1": (OpenAI(), ""),
}
# Servers with models of their own, each of which repeats the last user text.
LOCAL_MODELS = {
    "/ollama/v1": ("nomic-embed-text:latest", "llama3.2:latest", "qwen3:8b"),
    "/ollama-empty/v1": (),
    "/lm-studio/v1": ("text-embedding-nomic-embed-text-v1.5", "qwen2.5-7b-instruct"),
}
# Host → (the path's beginning there, and here)
HOSTS = (
    (re.compile(r"api\.anthropic\.com"), "/", "/anthropic/"),
    (re.compile(r"api\.openai\.com"), "/", "/openai/"),
    (re.compile(r"chatgpt\.com"), "/backend-api/codex/", "/openai-nokey/v1/"),
    (re.compile(r"[a-z0-9-]*aiplatform\.googleapis\.com"), "/", "/vertex/"),
)
SECRET_HEADERS = ("authorization", "x-api-key", "cookie", "proxy-authorization")
SECRET_HEADERS += ("x-amz-security-token",)


def key_hash(key: str) -> str:
    """How a key shows in the records."""
    return hashlib.sha256(key.encode()).hexdigest()[:12] if key else ""


class App:
    def __init__(self) -> None:
        self.server = Server(self.handle)
        self.issuer = Issuer()
        self.url = ""
        self.vertex = Vertex()
        self.held: set[str] = set()  # last user texts at which the model `held` waits
        self.reset()

    def reset(self) -> None:
        """Forgets all records; replies that are under way go on unrecorded."""
        self.records: list[dict[str, Any]] = []
        self._seen: Counter[tuple[str, str, str]] = Counter()

    async def start(self, port: int = 0) -> str:
        number = await self.server.start(port=port)
        self.url = f"http://127.0.0.1:{number}"
        return self.url

    def stats(self) -> dict[str, Any]:
        ends = Counter(record["end"] or "open" for record in self.records)
        return {
            "requests": len(self.records),
            "open": ends.pop("open", 0),
            "connections": len(self.server.connections),
            "ends": ends,
            "aborted": ends["aborted"],
            "by_model": Counter(record["model"] for record in self.records),
            "by_key": Counter(record["key"] for record in self.records),
            "by_status": Counter(str(record["status"]) for record in self.records),
        }

    # -- one request -------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/late/"):
            exchange.path = exchange.path.removeprefix("/late")
            asyncio.get_running_loop().call_later(LATE, self.handle, exchange)
            return
        if exchange.path.startswith("/_") and exchange.path != "/_elsewhere":
            self._control(exchange)
            return
        for host, there, here in HOSTS:
            if host.fullmatch(exchange.headers.get("host", "")) and exchange.path.startswith(there):
                exchange.path = here + exchange.path.removeprefix(there)
        record = self._record(exchange)
        if place := bedrock.place_of(exchange):
            bedrock.handle(self, exchange, place, record)
            return
        if exchange.path.startswith(("/vertex/", "/google/")):
            self.vertex.handle(self, exchange, record)
            return
        if exchange.path.startswith("/issuer/"):
            self.issuer.handle(exchange, record)
            return
        base, _, rest = exchange.path.partition("/v1/")
        wire, auth = ENDPOINTS.get(f"{base}/v1", (OpenAI(), ""))
        if rest == "responses" and type(wire) is OpenAI:
            wire = Responses()
        try:
            if f"{base}/v1" not in ENDPOINTS:
                raise Refusal("endpoint", f"Invalid URL ({exchange.method} {exchange.path})")
            self._check_key(exchange, auth)
            chat = "messages" if isinstance(wire, Anthropic) else "chat/completions"
            chat = "responses" if isinstance(wire, Responses) else chat
            if (exchange.method, rest) == ("GET", "models"):
                record["status"] = 200
                there = LOCAL_MODELS.get(f"{base}/v1")
                exchange.respond(200, self._list(wire) if there is None else _local_list(there))
            elif (exchange.method, rest) == ("POST", chat):
                self._chat(exchange, wire, record)
            else:
                raise Refusal("endpoint", f"Invalid URL ({exchange.method} {exchange.path})")
        except Refusal as refusal:
            self._refuse(exchange, wire, refusal, record)

    def _chat(self, exchange: Exchange, wire: OpenAI | Anthropic, record: dict[str, Any]) -> None:
        kind = exchange.headers.get("content-type", "")
        if kind.partition(";")[0] != "application/json":
            raise Refusal("bad_request", "Content-Type must be application/json")
        try:
            body = orjson.loads(exchange.body)
        except orjson.JSONDecodeError:
            raise Refusal("bad_request", "The request body is not valid JSON") from None
        try:
            asked = wire.read(body, exchange.headers)
        except (AttributeError, KeyError, TypeError) as error:
            raise Refusal("bad_request", f"The request is malformed: {error!r}") from None
        self._record_asked(record, asked)
        there = LOCAL_MODELS.get(exchange.path.removesuffix("/chat/completions"), ())
        model, match = models.find("echo" if asked.model in there else asked.model)
        place = (exchange.path, asked.model, asked.last_user)
        held = functools.partial(self.held.__contains__, asked.last_user)
        context = models.Context(asked, match, self.url, self._seen[place], held)
        self._seen[place] += 1
        steps = model.behaviour(context)
        first = next(steps)  # raises what is refused before the reply begins
        reply = wire.reply(asked, record["n"])
        record["status"] = 200
        stream = getattr(wire, "content_type", "text/event-stream; charset=utf-8")
        headers = {"content-type": stream, "cache-control": "no-cache"}
        headers["x-request-id"] = f"req_fake_{record['n']}"
        exchange.play(chunks(first, steps, reply, asked, record), headers)

    def _check_key(self, exchange: Exchange, auth: str) -> None:
        if not auth:
            return
        if auth == "oauth":
            self._check_access_token(exchange)
            return
        if auth == "bearer":
            scheme, _, key = exchange.headers.get("authorization", "").partition(" ")
            given = key if scheme == "Bearer" else ""
        else:
            given = exchange.headers.get("x-api-key", "")
        if not given:
            raise Refusal("auth", "You didn't provide an API key.")
        if not given.startswith("sk-fake-good"):
            raise Refusal("auth", f"Incorrect API key provided: {given[:6]}****{given[-4:]}.")

    def _check_access_token(self, exchange: Exchange) -> None:
        scheme, _, token = exchange.headers.get("authorization", "").partition(" ")
        if "x-api-key" in exchange.headers:
            raise Refusal("auth", "Send an API key or an access token, not both.")
        if issuer.BETA not in exchange.headers.get("anthropic-beta", "").split(","):
            raise Refusal("auth", "OAuth authentication is currently not supported.")
        if scheme != "Bearer" or not self.issuer.is_good(token):
            raise Refusal("auth", f"OAuth token has expired: {token}")

    def _refuse(
        self,
        exchange: Exchange,
        wire: OpenAI | Anthropic,
        refusal: Refusal,
        record: dict[str, Any],
    ) -> None:
        if refusal.kind == "hang":
            return
        headers = {"request-id": f"req_fake_{record['n']}"}
        payload: Any = b""
        if refusal.kind == "redirect":
            status = refusal.extra["status"]
            headers["location"] = refusal.message
        elif refusal.kind == "html":
            status, payload = 200, b"<!doctype html><title>Welcome</title><h1>It works</h1>"
            headers["content-type"] = "text/html"
        elif refusal.kind == "json-200":
            status, payload = 200, {"error": "Unexpected endpoint or method."}
        else:
            status, payload = wire.error(refusal)
            headers |= refusal.extra.get("headers", {})
        record["status"] = status
        exchange.respond(status, payload, headers)

    def _list(self, wire: OpenAI | Anthropic) -> dict[str, Any]:
        names = [model.name for model in models.MODELS]
        if isinstance(wire, OpenAI):
            data = [{"id": name, "object": "model", "owned_by": "fake"} for name in names]
            return {"object": "list", "data": data}
        data = [{"type": "model", "id": name, "display_name": name.capitalize()} for name in names]
        return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}

    # -- records -----------------------------------------------------------------------------------

    def _record(self, exchange: Exchange) -> dict[str, Any]:
        headers = dict(exchange.headers)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        key = key_hash(headers.get("x-api-key") or bearer)
        for name in SECRET_HEADERS:
            if name in headers:
                headers[name] = f"sha256:{key_hash(headers[name].removeprefix('Bearer '))}"
        record: dict[str, Any] = {
            "n": len(self.records),
            "time": time.time(),
            "received_ns": time.monotonic_ns(),
            "first_token_ns": None,  # when the first token of text or thinking was sent
            "ended_ns": None,
            "end": "",  # "done", "cut", "aborted" (by the client) or still empty
            "method": exchange.method,
            "path": exchange.path,
            "query": exchange.query,
            "key": key,
            "headers": headers,
            "bytes": len(exchange.body),
            "status": None,
            "model": "",
        }

        def end(how: str) -> None:
            record["end"] = how
            record["ended_ns"] = time.monotonic_ns()

        exchange.on_end = end
        if len(self.records) < MAX_RECORDS:
            self.records.append(record)
        return record

    def _record_asked(self, record: dict[str, Any], asked: Asked) -> None:
        record |= {
            "model": asked.model,
            "max_tokens": asked.max_tokens,
            "fields": sorted(asked.fields),
            "system": asked.system[:MAX_TEXT],
            "texts": [{"role": role, "text": text[:MAX_TEXT]} for role, text in asked.texts],
            "last_user": asked.last_user[:MAX_TEXT],
            "tools": asked.tools,
            "rounds": asked.rounds,
            "results": [text[:MAX_TEXT] for text in asked.results],
            "steered": [text[:MAX_TEXT] for text in asked.steered],
            "images": asked.images,
            "thinking": asked.thinking,
        }

    def _control(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path:
            case "GET", "/_requests":
                exchange.respond(200, self.records)
            case "GET", "/_stats":
                exchange.respond(200, self.stats())
            case "POST", "/_reset":
                self.reset()
                exchange.respond(200, {})
            case "GET", "/_service-account":
                exchange.respond(200, service_account().encode())
            case "GET", "/_page":
                page = b"<html><title>A page</title><p>Some words for fetch_url.</p></html>"
                exchange.respond(200, page, {"content-type": "text/html"})
            case _:
                exchange.respond(404, {})


def _local_list(names: tuple[str, ...]) -> dict[str, Any]:
    # Without a model Ollama says null.
    entries = [{"id": name, "object": "model", "owned_by": "library"} for name in names]
    return {"object": "list", "data": entries or None}


def chunks(
    first: models.Step,
    steps: Iterator[models.Step],
    reply: Any,
    asked: Asked,
    record: dict[str, Any],
) -> Iterator[Chunk]:
    """The steps of a behaviour as a wire's chunks."""
    tokens = 0
    step: models.Step | None = first
    if not isinstance(step, models.Raw) and (opening := reply.begin()):
        yield opening
    while step is not None:
        kind = type(step)
        if kind is models.Say or kind is models.Think:
            if tokens == 0:
                record["first_token_ns"] = time.monotonic_ns()
            if asked.max_tokens is not None and tokens >= asked.max_tokens:
                step = models.Stop("length")
                continue
            tokens += 1
            yield reply.say(step.text) if kind is models.Say else reply.think(step.text)
        elif kind is float or kind is int:
            yield float(step)
        elif kind is models.Call:
            yield reply.call(step.name, step.arguments)
        elif kind is models.Stop:
            yield reply.end(step.reason, tokens, step.cached)
            return
        elif kind is models.Fail:
            yield reply.fail(step.refusal)
        elif kind is models.Raw:
            yield step.data
        elif step is models.Redacted:
            if data := reply.redacted():
                yield data
        elif step is Cut or step is Hang:
            yield step
        else:  # End
            return
        step = next(steps, None)
