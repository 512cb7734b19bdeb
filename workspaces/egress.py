"""The one guarded way out: every call that Patchbay makes for somebody goes through here.

A `Policy` says which special addresses (loopback, private, metadata, …) the operator allows; all
ordinary ones are. `check_url` refuses a bad address in a form; `client_for` gives the client whose
connections are checked again, at the moment they are made, on the very address they go to.

    httpx.ConnectError
    └── EgressBlocked        the policy refuses the address
    httpcore.ConnectError        (httpx.ConnectError when a client's call raises it)
    ├── LookupFailed         the name of the host has no address
    └── HandshakeFailed      `dial`: the server answers, but TLS with it fails
    httpx.RemoteProtocolError
    ├── ResponseTooLarge     more bytes than a response may have
    └── EncodedResponse      compressed, though we ask for plain bytes
    ValueError
    └── URLRefused           `check_url`: the sentence is for the person who typed the URL
"""

# The signatures of the network streams are httpcore's:
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
import functools
import http.cookiejar
import ipaddress
import re
import socket
import ssl
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
import idna
from django.conf import settings
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from workspaces.network import connect

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_BYTES = 64 * 1024 * 1024  # of one response, headers and framing included
MAX_HEAD = 512 * 1024  # bytes until a response's body begins, interim responses included
MAX_SECONDS = 15 * 60.0  # from the last byte of a request to the last byte of its response
MAX_URL = 2048  # characters
_LOOKUP_SECONDS = 5.0
_ADDRESSES = 8  # of one name that are tried
# a host name, with the underscores that container names have and IDNA doesn't
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


class EgressBlocked(httpx.ConnectError):
    """The policy refuses this destination: no byte was sent. `reason` is a sentence for admins."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(reason)
        self.host = host
        self.reason = reason


class LookupFailed(httpcore.ConnectError):
    """The name of the host can't be resolved."""


class HandshakeFailed(httpcore.ConnectError):
    """TLS with the server failed: no TLS there, or a certificate that isn't trusted."""


class ResponseTooLarge(httpx.RemoteProtocolError):
    """A response went past its limit; the connection is closed."""


class EncodedResponse(httpx.RemoteProtocolError):
    """A response came compressed: what it unpacks to can't be bounded, so it isn't read."""


class URLRefused(ValueError):
    """This URL can't be used. The text is one sentence, or two, for a person."""


# -- special addresses -----------------------------------------------------------------------------

_SPECIAL: tuple[tuple[Network, Promise], ...] = tuple(
    (ipaddress.ip_network(network), label)
    for label, networks in (
        (gettext_lazy("a cloud metadata address"), "169.254.169.254/32 100.100.100.200/32"),
        (gettext_lazy("a cloud metadata address"), "168.63.129.16/32 fd00:ec2::/32"),
        (gettext_lazy("a loopback address"), "127.0.0.0/8 ::1/128"),
        (gettext_lazy("a private address"), "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"),
        (gettext_lazy("a link-local address"), "169.254.0.0/16 fe80::/10"),
        (gettext_lazy("a shared carrier address"), "100.64.0.0/10"),
        (gettext_lazy("an unspecified address"), "0.0.0.0/8 ::/128"),
        (gettext_lazy("a multicast address"), "224.0.0.0/4 ff00::/8"),
        (gettext_lazy("a reserved address"), "240.0.0.0/4 192.0.0.0/24 192.88.99.0/24"),
        (gettext_lazy("a reserved address"), "192.31.196.0/24 192.52.193.0/24 192.175.48.0/24"),
        (gettext_lazy("a reserved address"), "2001::/23 2620:4f:8000::/48"),
        (gettext_lazy("a test address"), "192.0.2.0/24 198.18.0.0/15 198.51.100.0/24"),
        (gettext_lazy("a test address"), "203.0.113.0/24 2001:db8::/32 3fff::/20"),
        # what an IPv4 address can hide in
        (gettext_lazy("a translated address"), "64:ff9b::/96 64:ff9b:1::/48 2002::/16 ::/96"),
    )
    for network in networks.split()
)
# The whole of IPv6 outside this is reserved, local or translated: refused without being listed.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")


def special(address: Address) -> str:
    """What makes this address special ("a loopback address"), "" for an ordinary one.

    From the IANA special-purpose registries, plus the clouds' metadata services. Python's
    `is_private` and `is_global` both let several of these pass.
    """
    address = _unmapped(address)
    for network, label in _SPECIAL:
        if address in network:
            return str(label)
    if address.version == 6 and address not in _GLOBAL_V6:
        return _("a reserved address")
    return ""


def _unmapped(address: Address) -> Address:
    # A connection to ::ffff:a.b.c.d goes to a.b.c.d, so it is judged as that.
    return (address.version == 6 and address.ipv4_mapped) or address


# -- the policy ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allowed:
    """One item of an allow list: a network, or a host name; `port` None means every port."""

    network: Network | None
    host: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Which special addresses may be reached. `setting` is the variable that sentences name."""

    allowed: tuple[Allowed, ...] = ()
    setting: str = "PATCHBAY_EGRESS_ALLOW"

    @classmethod
    def parse(cls, text: str, *, setting: str = "PATCHBAY_EGRESS_ALLOW") -> Policy:
        """From `127.0.0.0/8, 10.1.2.3:11434, [fd00::1]:8080, ollama:11434`. Raises ValueError
        with a line that names the setting and the item that can't be read."""
        items = [item for part in text.split(",") if (item := part.strip())]
        return cls(tuple(_allowed(item, setting) for item in items), setting)

    def refusal(self, address: Address, port: int, *, host: str = "") -> str:
        """Why this address can't be reached on this port, "" when it can. `host` is the name
        that led to it."""
        kind = special(address)
        if not kind or any(self._covers(item, address, port, host) for item in self.allowed):
            return ""
        shown = str(address)
        if host and host != shown:
            return _(
                "%(host)s leads to %(address)s, %(kind)s, which Patchbay does not call. "
                "The operator can allow it in %(setting)s."
            ) % {"host": host, "address": shown, "kind": kind, "setting": self.setting}
        return _(
            "%(address)s is %(kind)s, which Patchbay does not call. "
            "The operator can allow it in %(setting)s."
        ) % {"address": shown, "kind": kind, "setting": self.setting}

    def check(self, address: Address, port: int, *, host: str = "") -> None:
        """Raises `EgressBlocked` when `refusal` has a reason."""
        if reason := self.refusal(address, port, host=host):
            raise EgressBlocked(host or str(address), reason)

    def reachable(self, host: str, port: int, addresses: Iterable[Address]) -> list[Address]:
        """The addresses of one name, all of them checked: one refused refuses the name, as a name
        that answers with a public and a private address is an attack. Raises `EgressBlocked`.

        `localhost` is the exception: it always means this machine, and is reached by whichever
        of its two addresses is allowed.
        """
        addresses = list(addresses)
        if _is_localhost(host):
            usable = [one for one in addresses if not self.refusal(one, port, host=host)]
            if usable:
                return usable
        for address in addresses:
            self.check(address, port, host=host)
        return addresses

    @staticmethod
    def _covers(item: Allowed, address: Address, port: int, host: str) -> bool:
        if item.port not in (None, port):
            return False
        if item.network is None:
            return item.host == host.lower().removesuffix(".")
        return _unmapped(address) in item.network or address in item.network


def _allowed(item: str, setting: str) -> Allowed:
    accepted = "use networks (10.0.0.0/8), addresses or names, each with a port or not (host:port)"
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", item)
    inside, outside, digits = found.groups() if found else ("", item, None)
    host = (inside or outside).lower()
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{setting}: {item!r} has no valid port")
    try:
        return Allowed(ipaddress.ip_network(host), port=port)
    except ValueError:
        pass
    if inside or _looks_numeric(host) or not _NAME.fullmatch(host.removesuffix(".")):
        raise ValueError(f"{setting}: {item!r} can't be read; {accepted}") from None
    return Allowed(None, host.removesuffix("."), port)


def provider_policy() -> Policy:
    """For base URLs, which instance admins set: chat, probes, tokens."""
    text = settings.EGRESS_ALLOW
    if text is None:
        text = "127.0.0.0/8,::1" if settings.EMBEDDED else ""
    return _parsed(text, "PATCHBAY_EGRESS_ALLOW")


def tool_policy() -> Policy:
    """For addresses that people and models choose: `fetch_url`, MCP servers, webhooks."""
    return _parsed(settings.TOOL_EGRESS_ALLOW, "PATCHBAY_TOOL_EGRESS_ALLOW")


@functools.lru_cache(maxsize=32)
def _parsed(text: str, setting: str) -> Policy:
    return Policy.parse(text, setting=setting)


# -- names -----------------------------------------------------------------------------------------

# Lookups block a thread for as long as a name server likes: they have threads of their own.
_resolvers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="egress-lookup")


def lookup(host: str, port: int) -> list[Address]:
    """The addresses of a host, each once, in the system's order. Blocks; raises OSError."""
    if _is_localhost(host):
        return list(_LOOPBACK)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))


def _is_localhost(host: str) -> bool:
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def _looks_numeric(host: str) -> bool:
    """Whether resolvers take this for an IPv4 address, in any of its spellings."""
    last = host.removesuffix(".").rpartition(".")[2]
    return bool(re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", last))


# -- URLs in forms ---------------------------------------------------------------------------------


def check_url(url: str, policy: Policy, *, resolve: bool = True) -> None:
    """Refuse what can't be a provider's or tool's address, with a sentence. Raises `URLRefused`.

    Names are looked up for at most five seconds (`resolve=False`: not at all); a name that can't
    be looked up now passes, as the connection is checked again when it is made.
    """
    written, port = _host_and_port(url)
    # as a resolver may read it: full-width letters, circled digits, ideographic full stops
    host = unicodedata.normalize("NFKC", written).replace("\u3002", ".").lower()
    address = _literal(host)
    if address is not None:
        if reason := policy.refusal(address, port, host=host.strip("[]")):
            raise URLRefused(reason)
        name = str(address) if address.version == 4 else host
    else:
        name = _ascii_name(host)
        _check_name(name, port, policy, resolve=resolve)
    if host != written.lower() or (host.isascii() and host != name):
        raise URLRefused(_("Write the host as %(host)s.") % {"host": name})


def _host_and_port(url: str) -> tuple[str, int]:
    """The host as written and the port. Raises `URLRefused` for what no URL here may contain."""
    if len(url) > MAX_URL:
        raise URLRefused(_("The URL is longer than %(n)s characters.") % {"n": MAX_URL})
    if any(char.isspace() or char == "\\" or not char.isprintable() for char in url):
        raise URLRefused(_("The URL contains a space, a backslash or an invisible character."))
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.lower() not in ("http", "https"):
        raise URLRefused(_("The URL must begin with http:// or https://."))
    if "#" in rest:
        raise URLRefused(_("The URL contains a “#”. Remove it and what follows."))
    authority = re.match(r"[^/?]*", rest)[0]
    if "@" in authority:
        raise URLRefused(
            _("The URL contains a user name or password. Remove it; enter keys as the secret.")
        )
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", authority)
    if not found or "%" in authority:
        raise URLRefused(_("The host or the port of the URL is not valid."))
    host, digits = found.groups()
    if not host:
        raise URLRefused(_("The URL has no host."))
    port = int(digits) if digits else {"http": 80, "https": 443}[scheme.lower()]
    if not 0 < port < 65536:
        raise URLRefused(_("The port of the URL must be from 1 to 65535."))
    return host, port


def _literal(host: str) -> Address | None:
    """The address that a host spells out, None for a name. Raises `URLRefused`."""
    if host.startswith("["):
        try:
            return ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise URLRefused(_("The address in brackets is not a valid IPv6 address.")) from None
    if not _looks_numeric(host):
        return None
    try:
        # decimal, octal, hexadecimal and shortened spellings, as resolvers read them
        return ipaddress.IPv4Address(socket.inet_aton(host.removesuffix(".")))
    except OSError:
        raise URLRefused(_("The host is not a valid IPv4 address.")) from None


def _ascii_name(host: str) -> str:
    """A name as it is looked up, without the final full stop. Raises `URLRefused`."""
    name = host.removesuffix(".")
    try:
        name = idna.encode(name).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        if "_" not in name or not _NAME.fullmatch(name):
            raise URLRefused(_("The host of the URL is not a valid name.")) from None
    return name


def _check_name(name: str, port: int, policy: Policy, *, resolve: bool) -> None:
    if not resolve and not _is_localhost(name):
        return
    try:
        addresses = _resolvers.submit(lookup, name, port).result(_LOOKUP_SECONDS)
    except (OSError, UnicodeError, TimeoutError):
        return
    try:
        policy.reachable(name, port, addresses)
    except EgressBlocked as error:
        raise URLRefused(error.reason) from None


# -- the client ------------------------------------------------------------------------------------


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, checks every address, and connects to a checked one: what a name means later, or
    to anybody else, doesn't count. TLS still asks for the name (httpcore passes it on)."""

    def __init__(self, policy: Policy, max_bytes: int, max_seconds: float) -> None:
        self._policy = policy
        self._limits = (max_bytes, max_seconds)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        deadline = time.monotonic() + (_LOOKUP_SECONDS * 2 if timeout is None else timeout)
        found = await self._lookup(host, port, min(_LOOKUP_SECONDS, deadline - time.monotonic()))
        addresses = self._policy.reachable(host, port, found)[:_ADDRESSES]
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            share = (deadline - time.monotonic()) / left
            if share <= 0:
                raise httpcore.ConnectTimeout(f"{host} did not answer in time")
            try:
                stream = await connect(
                    str(address), port, timeout=share, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _BoundedStream(stream, *self._limits)
        raise failure

    async def _lookup(self, host: str, port: int, seconds: float) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                return await loop.run_in_executor(_resolvers, lookup, host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} could not be looked up in time") from None
        except (OSError, UnicodeError):
            raise LookupFailed(f"{host} could not be looked up") from None

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        raise EgressBlocked(path, "Patchbay does not call local sockets.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _BoundedStream(httpcore.AsyncNetworkStream):
    """A connection on which one response, headers and endless interim responses included, has
    only so many bytes and so much time. Writing a request starts the count again; until
    `body_begins` no more than `MAX_HEAD` bytes are read."""

    def __init__(
        self, stream: httpcore.AsyncNetworkStream, max_bytes: int, max_seconds: float
    ) -> None:
        self._stream = stream
        self._limits = (max_bytes, max_seconds)
        self._restart()

    def _restart(self) -> None:
        max_bytes, max_seconds = self._limits
        self._left = min(max_bytes, MAX_HEAD)
        self._after_head = max_bytes - self._left
        self._deadline = time.monotonic() + max_seconds

    def body_begins(self) -> None:
        self._left += self._after_head
        self._after_head = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("The response took too long.")
        data = await self._stream.read(
            max_bytes, timeout=seconds if timeout is None else min(timeout, seconds)
        )
        self._left -= len(data)
        if self._left < 0:
            limit = self._limits[0] - self._after_head
            raise ResponseTooLarge(f"The response is larger than {limit} bytes.")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout=timeout)
        self._restart()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _BoundedStream(stream, *self._limits)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _GuardedTransport(httpx.AsyncHTTPTransport):
    def __init__(self, policy: Policy, limits: httpx.Limits, max_bytes: int, max_seconds: float):
        # The parent's own pool is not built: httpx has no parameter for the network backend.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_GuardedBackend(policy, max_bytes, max_seconds),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        stream = response.extensions.get("network_stream")
        if isinstance(stream, _BoundedStream):
            stream.body_begins()
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            await response.aclose()
            raise EncodedResponse("The response came compressed, which was not asked for.")
        return response


class _GuardedClient(httpx.AsyncClient):
    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        # Custom key headers, and for 307 and 308 the body, would go to the second host.
        return await super().send(request, **{**options, "follow_redirects": False})


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    # One for all clients: loading the roots takes longer than a handshake. The operator's
    # SSL_CERT_FILE counts, so that a company's own authority can be trusted.
    return httpx.create_ssl_context()


def guarded_client(
    policy: Policy,
    *,
    timeout: httpx.Timeout | None = None,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
) -> httpx.AsyncClient:
    """A client for one event loop under one policy; the caller closes it. See `client_for`.

    No redirects, no proxies or netrc from the environment, no cookies, no compression. Raises
    what httpx raises, and the three exceptions above.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30)
    return _GuardedClient(
        transport=_GuardedTransport(policy, limits, max_bytes, max_seconds),
        timeout=timeout or httpx.Timeout(connect=10, read=120, write=30, pool=10),
        trust_env=False,
        headers={"accept-encoding": "identity", "user-agent": "Patchbay"},
        # one client serves many connections: what a provider sets for one is not sent for another
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
    )


_clients: dict[asyncio.AbstractEventLoop, dict[Policy, httpx.AsyncClient]] = {}
_clients_lock = threading.Lock()


def client_for(policy: Policy) -> httpx.AsyncClient:
    """The running loop's client for this policy: made once, shared by everything on the loop."""
    loop = asyncio.get_running_loop()
    with _clients_lock:
        if loop not in _clients:
            for closed in [other for other in _clients if other.is_closed()]:
                del _clients[closed]
            _clients[loop] = {}
        if policy not in _clients[loop]:
            _clients[loop][policy] = guarded_client(policy)
        return _clients[loop][policy]


async def close_clients() -> None:
    """Close the running loop's clients; call it before the loop ends."""
    with _clients_lock:
        clients = _clients.pop(asyncio.get_running_loop(), {})
    for client in clients.values():
        await client.aclose()


async def dial(url: str, policy: Policy, *, seconds: float = 10.0) -> None:
    """Look up, connect and shake hands as a call to `url` would, send nothing, and hang up.

    Raises `EgressBlocked`, `LookupFailed`, `HandshakeFailed`, `httpcore.ConnectTimeout` or
    `httpcore.ConnectError`.
    """
    parts = httpx.URL(url)
    host = parts.raw_host.decode()
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    backend = _GuardedBackend(policy, MAX_BYTES, seconds)
    stream = await backend.connect_tcp(host, port, timeout=seconds)
    try:
        if parts.scheme == "https":
            stream = await stream.start_tls(_ssl_context(), host, timeout=seconds)
    except httpcore.ConnectError as error:
        raise HandshakeFailed(str(error)) from None
    finally:
        await stream.aclose()


# -- reading within bounds -------------------------------------------------------------------------


async def bounded_bytes(response: httpx.Response, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes. Raises `ResponseTooLarge`."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            raise ResponseTooLarge(f"The response is larger than {limit} bytes.")
    return bytes(body)


async def bounded_lines(response: httpx.Response, limit: int = 1 << 20) -> AsyncIterator[bytes]:
    """The body's lines as they arrive, without their line feed (or CR LF). Raises
    `ResponseTooLarge` for a line of more than `limit` bytes."""
    rest = bytearray()
    async for chunk in response.aiter_bytes():
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            rest += chunk[start:end]
            if len(rest) > limit:
                break
            yield bytes(rest.removesuffix(b"\r"))
            rest.clear()
            start = end + 1
        else:
            rest += chunk[start:]
        if len(rest) > limit:
            raise ResponseTooLarge(f"A line of the response is longer than {limit} bytes.")
    if rest:
        yield bytes(rest.removesuffix(b"\r"))
