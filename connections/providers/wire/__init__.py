"""Wire formats: bytes and JSON in both directions, without addresses, keys or sockets.

A `Wire` is one HTTP dialect::

    anthropic-messages    anthropic, *_compat, vertex    anthropic_messages.AnthropicMessages
    openai-completions    *_compat                       openai_completions.OpenAICompletions
    gemini                vertex                         gemini.Gemini
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

from connections.providers.base import Event, ListedModel, ModelRequest


class Parser(Protocol):
    """Cuts the bytes of a response into events, `(name, data)`. Raises ProviderError when they
    can't be."""

    def feed(self, chunk: bytes) -> Iterable[tuple[bytes, bytes]]: ...

    def close(self) -> Iterable[tuple[bytes, bytes]]:
        """What stands unfinished at the end, where that may still be an event."""
        ...


class Decoder(Protocol):
    """Reads one reply. `reason` is empty until the provider's final word has come, then one of
    `Done`'s reasons; `over` says that nothing more is to come."""

    reason: str
    over: bool

    def feed(self, name: bytes, data: bytes, out: list[Event]) -> None:
        """Appends what one event means to `out`. Raises ProviderError when it
        reports a failure or can't be read."""
        ...

    def finish(self, out: list[Event]) -> None:
        """Appends what was held back for the end; `Done` is the caller's."""
        ...


class Wire(Protocol):
    name: ClassVar[str]
    auth_header: ClassVar[str]  # where the key goes unless the connection says otherwise
    headers: ClassVar[Mapping[str, str]]
    models_path: ClassVar[str]

    def chat_path(self, model: str) -> str: ...

    def body(self, request: ModelRequest, *, max_tokens_field: str = "") -> dict[str, Any]: ...

    def parser(self) -> Parser: ...

    def decoder(self, scrub: Callable[[str], str]) -> Decoder: ...

    def models(self, entries: list[Any]) -> list[ListedModel]: ...
