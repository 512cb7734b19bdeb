"""What every provider type is to the rest of Patchbay: dataclasses, one protocol, one error tree.

Nothing here, nor in any module of `connections.providers`, imports Django's models: a provider
gets a `Target` (where and as whom) and an `httpx.AsyncClient` (the guarded way out) and can be
driven by a test without a database.

The error tree has one class; `kind` says which sentence a person reads and what the queue does::

    ProviderError(kind, …)
    ├── another try may help   rate_limited overloaded server timeout connect tls truncated protocol
    │                          process
    └── it can't               auth sign_in_again forbidden quota model_not_found
                               endpoint_not_found bad_request too_large context_too_long redirect
                               egress no_credentials
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import httpx

MAX_MESSAGE = 500  # characters of a provider's own words that are kept


class ErrorKind(enum.StrEnum):
    """Every way a provider call can fail; the value is stored on turns and probe rungs."""

    AUTH = "auth"
    SIGN_IN_AGAIN = "sign_in_again"  # the issuer takes the stored sign-in no more
    FORBIDDEN = "forbidden"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"
    MODEL_NOT_FOUND = "model_not_found"
    ENDPOINT_NOT_FOUND = "endpoint_not_found"
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    CONTEXT_TOO_LONG = "context_too_long"
    OVERLOADED = "overloaded"
    SERVER = "server"
    TIMEOUT = "timeout"
    CONNECT = "connect"
    TLS = "tls"
    TRUNCATED = "truncated"
    PROTOCOL = "protocol"
    REDIRECT = "redirect"
    EGRESS = "egress"
    # the same word as `sentences.Reason`: an `environment` that turns out to be empty when asked
    NO_CREDENTIALS = "environment_empty"
    PROCESS = "process"  # a program of ours, not the provider, failed


RETRYABLE = frozenset(
    {
        ErrorKind.RATE_LIMITED,
        ErrorKind.OVERLOADED,
        ErrorKind.SERVER,
        ErrorKind.TIMEOUT,
        ErrorKind.CONNECT,
        ErrorKind.TLS,
        ErrorKind.TRUNCATED,
        ErrorKind.PROTOCOL,
        ErrorKind.PROCESS,
    }
)


class ProviderError(Exception):
    """A provider call failed, in a way that has a name.

    `message` is the provider's own text, scrubbed of the target's secrets and cut at 500
    characters: for admins only. People read the sentence that belongs to `kind`
    (`connections.sentences`). `retry_after` is in seconds.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str = "",
        *,
        status: int | None = None,
        code: str = "",
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(f"{kind}: {message}" if message else str(kind))
        self.kind = kind
        self.message = message[:MAX_MESSAGE]
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.request_id = request_id

    @property
    def retryable(self) -> bool:
        return self.kind in RETRYABLE


class Fresh(Protocol):
    """Where the tokens of a signed-in connection come from."""

    async def __call__(self, *, rejected: str = "") -> Mapping[str, str]:
        """The fields of `Target.secret`, with an access token that is valid for some minutes more
        and isn't `rejected`, one that the provider just refused. Nothing is asked while the known
        one will do; else one call to the issuer at most, for all who wait. Raises
        `ProviderError`."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes and as whom: a connection with its secrets opened, for one call or turn.

    `secret` holds the opened fields by their form names (`api_key`, …); it and `extra_headers`
    never appear in `repr`.
    """

    provider_type: str
    auth_type: str
    # reduced to its base by wire, no trailing slash; "" means the provider's own
    base_url: str = ""
    wire: str = ""  # "openai-completions" | "anthropic-messages" | "" (the provider's own)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth_header: str = ""  # "x-api-key" | "bearer" | "" (the wire's own)
    max_tokens_field: str = ""  # "max_tokens" | "max_completion_tokens" | "" (the wire's own)
    region: str = ""
    project: str = ""
    token_url: str = ""  # where Google's tokens are minted; "" means Google's own
    codex_path: str = ""  # the binary that is run; absolute
    # for a signed-in connection; call `freshened` before the token is used
    fresh: Fresh | None = field(default=None, repr=False, compare=False)


async def freshened(target: Target, *, rejected: str = "") -> Target:
    """The target with a token that can be used now; the same one where there is none to renew.
    Raises `ProviderError`."""
    if target.fresh is None:
        return target
    return replace(target, secret=await target.fresh(rejected=rejected))


# -- requests ------------------------------------------------------------------------------------
# A part is neutral JSON, as stored in `Message.parts`; `sig` is provider-opaque and replayed as is:
#   {"t": "text", "text": str, "sig"?: Any}
#   {"t": "thinking", "text": str, "sig"?: Any}
#   {"t": "image", "media_type": "image/png", "data": base64 str}        (only in requests)
#   {"t": "tool_call", "id": str, "name": str, "args": dict, "raw"?: str, "sig"?: Any}
#   {"t": "tool_result", "id": str, "name": str, "text": str, "is_error"?: bool}
# `ms`: how long a result or a thinking took; `file`: a text is the content of a file of that name.
Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turnlet:
    """One entry of the history: `role` is "user" or "assistant"; tool results stand in "user"."""

    role: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of an object


@dataclass(frozen=True, slots=True)
class Steered:
    """A message for a reply that is under way; `id` comes back in its `Delivered`."""

    id: str
    parts: Sequence[Part]


async def nothing_steered() -> Sequence[Steered]:
    return ()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One step: the whole history goes, one reply comes (or several, see `steering`)."""

    model: str
    history: Sequence[Turnlet]
    max_tokens: int
    system: str = ""
    tools: Sequence[ToolSpec] = ()
    thinking: str = ""  # a level of `providers.thinking` that the model takes; "": its own way
    # seconds without any byte from the provider before the call is a `timeout`
    idle_timeout: float = 120.0
    # Takes what people wrote meanwhile, each once. Asked, at the end of every reply, by a provider
    # that can put messages into a running call; the others never ask.
    steering: Callable[[], Awaitable[Sequence[Steered]]] = nothing_steered


# -- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class TextEnd:
    """Closes the open text (or stands for one without words); `sig` is replayed as it came."""

    sig: Any


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingEnd:
    """Closes the open thinking block; `sig` is replayed as it came (a redacted block: sig only)."""

    sig: Any = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call. `args` is {} and `raw` the text when the arguments weren't a JSON object."""

    id: str
    name: str
    args: Mapping[str, Any]
    raw: str = ""
    sig: Any = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one step; `input_tokens` includes the cached ones. The last one of a step wins."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The provider's own final word; its absence is `truncated`. `reason` is normalised to
    "stop", "tool_calls", "length", "refusal" or "other"."""

    reason: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The provider's receipt for a steered message: the reply so far is whole, and what follows
    answers this message (and others whose receipts follow at once). Without it a message wasn't
    delivered, whatever else happened."""

    id: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The call waits for a place in this process, or with `over` has got it."""

    over: bool = False


Event = (
    TextDelta
    | TextEnd
    | ThinkingDelta
    | ThinkingEnd
    | ToolCall
    | Usage
    | Done
    | Delivered
    | Waiting
)


@dataclass(frozen=True, slots=True)
class ListedModel:
    id: str
    name: str = ""
    context_window: int | None = None
    supports_images: bool | None = None


class Provider(Protocol):
    """One provider type. Instances hold no state; every method raises only `ProviderError`
    (and lets `asyncio.CancelledError` and `TimeoutError` of the caller's own timeout pass)."""

    provider_type: ClassVar[str]
    # auth types that work in this build; the table of allowed pairs is in connections.choices
    auth_types: ClassVar[frozenset[str]]
    default_base_url: ClassVar[str]
    takes_tools: ClassVar[bool]  # False: `ModelRequest.tools` never leaves

    def origin(self, target: Target) -> str:
        """The URL whose scheme, host and port the rung `network` dials."""
        ...

    async def list_models(self, client: httpx.AsyncClient, target: Target) -> list[ListedModel]:
        """The provider's models. Raises `endpoint_not_found` where it has no such list."""
        ...

    async def check_auth(self, client: httpx.AsyncClient, target: Target, model: str) -> bool:
        """Whether a free call proved the secret: True proved, False "cannot tell without a paid
        call" (the rung `answer` then decides). Raises when the provider refuses."""
        ...

    def stream(
        self, client: httpx.AsyncClient, target: Target, request: ModelRequest
    ) -> AsyncIterator[Event]:
        """One step, as it comes. Exactly one `Done` last; else `truncated` is raised. Closing the
        generator closes the socket."""
        ...
