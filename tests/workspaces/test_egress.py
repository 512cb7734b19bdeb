"""The way out: what is refused when a URL is saved, and again when a connection is made."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import logging
import socket
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from workspaces import egress
from workspaces.egress import EgressBlocked, Policy, ResponseTooLarge, URLRefused, check_url

NOTHING = Policy()
LOOPBACK = Policy.parse("127.0.0.0/8,::1")
PUBLIC = "93.184.215.14"

# {p} is the port of a server that listens on 127.0.0.1.
THIS_MACHINE = [
    "http://127.0.0.1:{p}/",
    "http://127.0.0.1:{p}/v1?x=1",
    "http://127.0.0.53:{p}/",
    "http://127.1:{p}/",
    "http://127.0.1:{p}/",
    "http://127.0.0.1.:{p}/",
    "http://2130706433:{p}/",
    "http://017700000001:{p}/",
    "http://0177.0.0.1:{p}/",
    "http://0177.0.0.01:{p}/",
    "http://0x7f.0.0.1:{p}/",
    "http://0x7F000001:{p}/",
    "http://0x7f.1:{p}/",
    "http://0:{p}/",
    "http://0.0.0.0:{p}/",
    "http://0x0:{p}/",
    "http://localhost:{p}/",
    "http://LOCALHOST:{p}/",
    "http://localhost.:{p}/",
    "http://app.localhost:{p}/",
    "http://[::1]:{p}/",
    "http://[0:0:0:0:0:0:0:1]:{p}/",
    "http://[::]:{p}/",
    "http://[::127.0.0.1]:{p}/",
    "http://[::ffff:127.0.0.1]:{p}/",
    "http://[::ffff:7f00:1]:{p}/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:{p}/",
    "http://[::ffff:0:127.0.0.1]:{p}/",
    "http://[64:ff9b::127.0.0.1]:{p}/",
    "http://[64:ff9b:1::7f00:1]:{p}/",
    "http://[2002:7f00:1::]:{p}/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{p}/",
    "http://１２７.0.0.1:{p}/",
    "http://127。0。0。1:{p}/",
    "http://127．0．0．1:{p}/",
    "http://①②⑦.0.0.1:{p}/",
    "http://ｌｏｃａｌｈｏｓｔ:{p}/",
    "http://ⓛocalhost:{p}/",
    "http://127.0.0.1%2f@example.com:{p}/",
    "http://%31%32%37.0.0.1:{p}/",
    "http://127.0.0.1%00.example.com:{p}/",
    "http://[::1%25lo]:{p}/",
    "http://[fe80::1%25eth0]:{p}/",
]
ELSEWHERE = [
    "http://10.0.0.1/",
    "http://10.1:80/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[fd00:ec2::254]/",
    "http://[fc00::1]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[100::1]/",
    "http://[2001:db8::1]/",
    "http://[2001:2::1]/",
    "http://[5f00::1]/",
]
MALFORMED = [
    "",
    "api.example.com",
    "ftp://api.example.com/",
    "file:///etc/passwd",
    "unix:///run/docker.sock",
    "http:/api.example.com",
    "http://",
    "http:///v1",
    "http://:8080/",
    "https://user:password@api.example.com/",
    "https://key@api.example.com/",
    "https://api.example.com/v1#here",
    "https://api.example.com#@10.0.0.1/",
    "https://api.example.com\\@10.0.0.1/",
    "https://api.example.com/v1 ",
    " https://api.example.com/v1",
    "https://api.example.com/\r\nx-header: 1",
    "https://api.exa\u200bmple.com/",
    "https://api.example.com\u2028/",
    "https://api.example.com:0/",
    "https://api.example.com:65536/",
    "https://api.example.com:-1/",
    "https://api.example.com:80:80/",
    "https://api.example.com:８０/",
    "https://api..example.com/",
    "https://-api.example.com/",
    "https://" + "a" * 64 + ".example.com/",
    "https://api.example.com/" + "a" * 3000,
    "https://[::1/",
    "https://1.2.3/4]/",
    "https://[1.2.3.4]/",
    "https://256.1.1.1/",
    "https://1.2.3.4.5/",
    "https://exa mple.com/",
    "https://xn--a-.com/",
]


@pytest.fixture
async def serve():
    """Starts raw servers on 127.0.0.1: `await serve(answer)` gives a port and what it received."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(answer=None, **options):
            seen = Seen()

            async def handle(reader, writer):
                seen.connections += 1
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    while True:
                        head = await reader.readuntil(b"\r\n\r\n")
                        seen.requests.append(head)
                        await (answer or plain)(writer)
                        await writer.drain()
                writer.close()

            server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
            stack.push_async_callback(close, server)
            seen.port = server.sockets[0].getsockname()[1]
            return seen

        async def close(server):
            server.close()
            server.close_clients()
            await server.wait_closed()

        yield start
        await egress.close_clients()


class Seen:
    def __init__(self):
        self.port = 0
        self.connections = 0
        self.requests = []


async def plain(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: a=1\r\ncontent-length: 2\r\n\r\nok")


def answers(text, forever=b"", pause=0.0):
    """An answer of this text, then of these bytes again and again, so many seconds apart."""

    async def answer(writer):
        writer.write(text)
        while forever:
            writer.write(forever)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


@pytest.fixture
def names(monkeypatch):
    """The only names there are, and what they mean; tests change it as an attacker would."""
    known = {}

    def getaddrinfo(host, port, *args, **options):
        if host not in known:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        found = known.get(host, [host])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


# -- when a URL is saved ---------------------------------------------------------------------------


@pytest.mark.parametrize("url", [*THIS_MACHINE, *ELSEWHERE])
def test_a_special_address_in_any_spelling_is_refused_at_save(url):
    with pytest.raises(URLRefused):
        check_url(url.format(p=8000), NOTHING)


@pytest.mark.parametrize("url", MALFORMED)
def test_what_is_no_plain_web_address_is_refused_at_save(url, names):
    with pytest.raises(URLRefused):
        check_url(url, NOTHING)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.openai.com/v1", "api.openai.com"),
        ("HTTPS://API.Example.com:8443/v1?a=b", "api.example.com"),
        ("http://8.8.8.8/", "8.8.8.8"),
        ("https://[2606:4700:4700::abCD]:8443/v1", "2606:4700:4700::abCD"),
        ("https://bücher.example/v1", "xn--bcher-kva.example"),
        ("https://xn--bcher-kva.example/v1", "xn--bcher-kva.example"),
        ("http://my_model_server:8000/v1", "my_model_server"),
        ("https://api.example.com/v1/@me", "api.example.com"),
    ],
)
def test_ordinary_addresses_are_accepted_and_mean_the_same_to_the_client(url, host, names):
    check_url(url, NOTHING)
    assert httpx.URL(url).raw_host.decode() == host


def test_the_refusal_says_which_address_and_what_the_operator_can_do():
    with pytest.raises(URLRefused) as caught:
        check_url("http://2130706433:11434/", NOTHING)
    assert "127.0.0.1" in str(caught.value)
    assert "PATCHBAY_EGRESS_ALLOW" in str(caught.value)
    with pytest.raises(URLRefused, match="PATCHBAY_TOOL_EGRESS_ALLOW"):
        check_url("http://10.0.0.1/", Policy.parse("", setting="PATCHBAY_TOOL_EGRESS_ALLOW"))


def test_an_unusual_spelling_of_an_allowed_address_is_asked_to_be_written_plainly():
    check_url("http://127.0.0.1:11434/", LOOPBACK)
    for url in (
        "http://2130706433/",
        "http://127.1/",
        "http://１２７.0.0.1/",
        "http://127。0。0｡1/",
    ):
        with pytest.raises(URLRefused, match=r"Write the host as 127\.0\.0\.1\.$"):
            check_url(url, LOOPBACK)


def test_a_name_that_leads_to_a_private_address_is_refused_at_save(names):
    names["inside.example"] = ["10.0.0.7"]
    with pytest.raises(URLRefused, match=r"inside\.example leads to 10\.0\.0\.7"):
        check_url("https://inside.example/", NOTHING)
    check_url("https://inside.example/", NOTHING, resolve=False)


def test_a_name_that_cannot_be_looked_up_now_may_be_saved(names):
    check_url("https://not-yet.example/", NOTHING)


def test_a_name_server_that_never_answers_does_not_hold_the_form(monkeypatch):
    monkeypatch.setattr(egress, "_LOOKUP_SECONDS", 0.05)
    release = egress.threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: release.wait(10) and [])
    check_url("https://slow.example/", NOTHING)
    release.set()


# -- the allow list --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "address", "port", "allowed"),
    [
        ("127.0.0.0/8", "127.9.9.9", 80, True),
        ("127.0.0.0/8", "::1", 80, False),
        ("127.0.0.0/8", "::ffff:127.0.0.1", 80, True),
        ("10.1.2.3", "10.1.2.3", 1, True),
        ("10.1.2.3", "10.1.2.4", 1, False),
        ("10.1.2.3:11434", "10.1.2.3", 11434, True),
        ("10.1.2.3:11434", "10.1.2.3", 80, False),
        ("10.0.0.0/8:8000", "10.9.9.9", 8000, True),
        ("10.0.0.0/8:8000", "10.9.9.9", 8001, False),
        ("[fd00::1]:8080", "fd00::1", 8080, True),
        ("[fd00::1]:8080", "fd00::1", 8081, False),
        ("[fd00::]", "fd00::", 8081, True),
        (" 10.0.0.0/8 , 192.168.1.1 ", "192.168.1.1", 80, True),
        ("64:ff9b::/96", "64:ff9b::8.8.8.8", 80, False),
        ("", "127.0.0.1", 80, False),
        ("", "8.8.8.8", 80, True),
    ],
)
def test_the_allow_list_opens_what_it_names(allow, address, port, allowed):
    if allow.count(":") > 1 and "[" not in allow:
        allow, allowed = f"[{allow}]", True
    policy = Policy.parse(allow)
    assert bool(policy.refusal(ipaddress.ip_address(address), port)) is not allowed


def test_a_name_on_the_allow_list_may_lead_inside(names):
    names |= {"ollama": ["172.18.0.5"], "other": ["172.18.0.5"]}
    policy = Policy.parse("ollama:11434")
    check_url("http://ollama:11434/", policy)
    for url in ("http://ollama:80/", "http://other:11434/", "http://172.18.0.5:11434/"):
        with pytest.raises(URLRefused):
            check_url(url, policy)


@pytest.mark.parametrize(
    "item",
    [
        "10.0.0.1/8",
        "10.0.0",
        "10.0.0.1:0",
        "10.0.0.1:70000",
        "http://10.0.0.1",
        "*",
        "a b",
        "[x]:1",
    ],
)
def test_an_item_that_cannot_be_read_is_named(item):
    with pytest.raises(ValueError, match="PATCHBAY_EGRESS_ALLOW") as caught:
        Policy.parse(f"127.0.0.1,{item}")
    assert repr(item) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "embedded", "allowed"),
    [
        (None, True, True),
        (None, False, False),
        ("", True, False),
        ("127.0.0.1", False, True),
        ("10.0.0.0/8", True, False),
    ],
)
def test_loopback_is_allowed_by_default_only_when_embedded(settings, text, embedded, allowed):
    settings.EGRESS_ALLOW, settings.EMBEDDED, settings.TOOL_EGRESS_ALLOW = text, embedded, ""
    here = ipaddress.ip_address("127.0.0.1")
    assert bool(egress.provider_policy().refusal(here, 80)) is not allowed
    assert egress.tool_policy().refusal(here, 80)


def test_tools_have_a_list_of_their_own(settings):
    settings.EGRESS_ALLOW, settings.TOOL_EGRESS_ALLOW = "", "10.0.0.5"
    inside = ipaddress.ip_address("10.0.0.5")
    assert egress.provider_policy().refusal(inside, 80)
    assert not egress.tool_policy().refusal(inside, 80)


# -- when a connection is made ---------------------------------------------------------------------


@pytest.mark.parametrize("url", THIS_MACHINE)
async def test_a_special_address_in_any_spelling_is_refused_at_connect(url, serve):
    server = await serve()
    async with egress.guarded_client(NOTHING) as client:
        # some spellings are no URL or no name to the client, and get no further than that
        with pytest.raises((httpx.ConnectError, httpx.InvalidURL)):
            await client.get(url.format(p=server.port))
    assert server.connections == 0


@pytest.mark.parametrize("url", ELSEWHERE)
async def test_other_special_addresses_are_refused_at_connect(url):
    async with egress.guarded_client(LOOPBACK) as client:
        with pytest.raises(EgressBlocked):
            await client.get(url)


async def test_an_allowed_address_is_reached(serve):
    server = await serve()
    async with egress.guarded_client(LOOPBACK) as client:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
            assert (await client.get(f"http://{host}:{server.port}/")).text == "ok"
    assert len(server.requests) == 3


async def test_localhost_is_reached_when_only_its_ipv4_address_is_allowed(serve):
    server = await serve()
    async with egress.guarded_client(Policy.parse("127.0.0.1")) as client:
        assert (await client.get(f"http://localhost:{server.port}/")).text == "ok"


async def test_a_name_that_was_public_at_save_and_is_loopback_at_call_is_refused(serve, names):
    server = await serve()
    url = f"http://rebound.example:{server.port}/"
    names["rebound.example"] = [PUBLIC]
    check_url(url, NOTHING)
    names["rebound.example"] = ["127.0.0.1"]
    async with egress.guarded_client(NOTHING) as client:
        with pytest.raises(EgressBlocked) as caught:
            await client.post(url, headers={"x-api-key": "sk-canary"}, content=b"prompt")
    assert caught.value.host == "rebound.example"
    assert "127.0.0.1" in caught.value.reason
    assert caught.value.request.method == "POST"
    assert server.connections == 0


@pytest.mark.parametrize("found", [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC]])
async def test_a_name_with_one_refused_address_is_refused(serve, names, found):
    server = await serve()
    names["mixed.example"] = found
    async with egress.guarded_client(NOTHING) as client:
        with pytest.raises(EgressBlocked):
            await client.get(f"http://mixed.example:{server.port}/")
    assert server.connections == 0


async def test_the_name_is_looked_up_once_and_that_answer_is_used(serve, names, monkeypatch):
    server = await serve()
    answers_left = [["127.0.0.1"], ["10.0.0.1"]]
    calls = []

    def flipping(host, port, **options):
        calls.append(host)
        return [(2, 1, 6, "", (answers_left.pop(0)[0], port))]

    monkeypatch.setattr(socket, "getaddrinfo", flipping)
    async with egress.guarded_client(LOOPBACK) as client:
        reply = await client.get(f"http://flipping.example:{server.port}/")
    assert reply.text == "ok"
    assert calls == ["flipping.example"]


async def test_the_next_address_is_tried_when_the_first_refuses(serve, names):
    server = await serve()
    names["two.example"] = ["127.0.0.2", "127.0.0.1"]  # nothing listens on 127.0.0.2
    async with egress.guarded_client(LOOPBACK) as client:
        assert (await client.get(f"http://two.example:{server.port}/")).text == "ok"


async def test_an_unknown_name_is_a_connect_error_and_not_a_refusal(names):
    async with egress.guarded_client(NOTHING) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.get("http://nowhere.example/")
    assert not isinstance(caught.value, EgressBlocked)


async def test_a_name_server_that_never_answers_is_a_connect_timeout(monkeypatch):
    monkeypatch.setattr(egress, "_LOOKUP_SECONDS", 0.05)
    release = egress.threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: release.wait(10) and [])
    async with egress.guarded_client(NOTHING) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://slow.example/")
    release.set()


async def test_local_sockets_are_refused():
    backend = egress._GuardedBackend(LOOPBACK, 1, 1)
    with pytest.raises(EgressBlocked):
        await backend.connect_unix_socket("/run/docker.sock")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(serve, status):
    second = await serve()
    location = f"http://127.0.0.1:{second.port}/steal".encode()
    first = await serve(
        answers(b"HTTP/1.1 %d x\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % (status, location))
    )
    async with egress.guarded_client(LOOPBACK) as client:
        reply = await client.post(
            f"http://127.0.0.1:{first.port}/",
            headers={"x-api-key": "sk-canary"},
            content=b"prompt",
            follow_redirects=True,  # not even when asked
        )
    assert reply.status_code == status
    assert second.connections == 0


async def test_proxies_in_the_environment_are_ignored(serve, monkeypatch):
    proxy, server = await serve(), await serve()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with egress.guarded_client(LOOPBACK) as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "ok"
    assert (proxy.connections, server.connections) == (0, 1)


async def test_a_cookie_set_for_one_call_is_not_sent_with_the_next(serve):
    server = await serve()
    async with egress.guarded_client(LOOPBACK) as client:
        for _ in range(2):
            await client.get(f"http://127.0.0.1:{server.port}/")
    assert len(server.requests) == 2
    assert b"cookie" not in b"".join(server.requests).lower()
    assert b"accept-encoding: identity" in server.requests[0].lower()


async def test_no_address_and_no_header_is_logged(serve, caplog):
    server = await serve()
    with caplog.at_level(logging.DEBUG):
        async with egress.guarded_client(LOOPBACK) as client:
            await client.get(f"http://127.0.0.1:{server.port}/?k=canary", headers={"x": "canary"})
    assert server.connections == 1
    assert "canary" not in caplog.text


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A server context for provider.example, which the clients of this test trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("provider.example")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "provider.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    trusting = ssl.create_default_context(
        cadata=made.public_bytes(serialization.Encoding.PEM).decode()
    )
    monkeypatch.setattr(egress, "_ssl_context", lambda: trusting)
    return server


async def test_the_certificate_is_asked_for_by_name_though_the_address_is_pinned(
    serve, names, certificate
):
    asked = []
    certificate.sni_callback = lambda sock, name, context: asked.append(name)
    server = await serve(ssl=certificate)
    names["provider.example"] = ["127.0.0.1"]
    async with egress.guarded_client(LOOPBACK) as client:
        reply = await client.get(f"https://provider.example:{server.port}/")
    assert reply.text == "ok"
    assert asked == ["provider.example"]


async def test_a_certificate_for_another_name_is_refused(serve, names, certificate):
    server = await serve(ssl=certificate)
    names["other.example"] = ["127.0.0.1"]
    async with egress.guarded_client(LOOPBACK) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"https://other.example:{server.port}/")
    assert not server.requests


async def test_dialling_shakes_hands_and_sends_nothing(serve, names, certificate):
    server = await serve(ssl=certificate)
    names |= {"provider.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    await egress.dial(f"https://provider.example:{server.port}/v1", LOOPBACK)
    with pytest.raises(egress.HandshakeFailed):
        await egress.dial(f"https://other.example:{server.port}/v1", LOOPBACK)
    assert not server.requests


async def test_dialling_tells_an_unknown_name_from_a_refused_address(serve, names):
    server = await serve()
    names["inside.example"] = ["127.0.0.1"]
    with pytest.raises(egress.LookupFailed):
        await egress.dial("https://nowhere.example/", LOOPBACK)
    with pytest.raises(EgressBlocked):
        await egress.dial(f"http://inside.example:{server.port}/", NOTHING)
    assert server.connections == 0


# -- hostile responses -----------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("text", "forever", "error"),
    [
        (OK + b"connection: close\r\n\r\n", b"x" * 65536, ResponseTooLarge),
        (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9999, ResponseTooLarge),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999, ResponseTooLarge),
        (OK, b"x-header: y\r\n" * 999, httpx.RemoteProtocolError),
        (OK + b"x: ", b"y" * 65536, httpx.RemoteProtocolError),
        (b"", b"\x00" * 65536, httpx.RemoteProtocolError),
        (
            OK + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n",
            egress.EncodedResponse,
        ),
    ],
    ids=["body", "chunks", "interim", "headers", "header", "noise", "gzip"],
)
async def test_an_endless_response_is_cut_off(serve, text, forever, error):
    server = await serve(answers(text, forever))
    async with egress.guarded_client(LOOPBACK, max_bytes=300_000) as client:
        with pytest.raises(error):
            await client.get(f"http://127.0.0.1:{server.port}/")


async def test_a_compressed_bomb_is_not_unpacked(serve):
    bomb = gzip.compress(bytes(10_000_000))
    head = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    server = await serve(answers(head + bomb))
    async with egress.guarded_client(LOOPBACK, max_bytes=300_000) as client:
        with pytest.raises(egress.EncodedResponse):
            await client.get(f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize(
    ("text", "drop"),
    [(OK + b"connection: close\r\n\r\n", b"x"), (OK, b"x"), (b"", b"HTTP/1.1 102 P\r\n\r\n")],
    ids=["body", "headers", "interim"],
)
async def test_a_response_that_drips_is_cut_off(serve, text, drop):
    server = await serve(answers(text, drop, pause=0.01))
    async with egress.guarded_client(LOOPBACK, max_seconds=0.2) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"http://127.0.0.1:{server.port}/")


async def test_the_limits_are_those_of_one_response_not_of_the_connection(serve):
    server = await serve(answers(OK + b"content-length: 60000\r\n\r\n" + bytes(60_000)))
    async with egress.guarded_client(LOOPBACK, max_bytes=100_000) as client:
        for _ in range(5):
            reply = await client.get(f"http://127.0.0.1:{server.port}/")
            assert len(reply.content) == 60_000
    assert server.connections == 1


async def test_a_body_is_read_up_to_the_callers_own_limit(serve):
    server = await serve(answers(OK + b"content-length: 1000\r\n\r\n" + b"x" * 1000))
    async with egress.guarded_client(LOOPBACK) as client:
        async with client.stream("GET", f"http://127.0.0.1:{server.port}/") as reply:
            assert len(await egress.bounded_bytes(reply, 1000)) == 1000
        async with client.stream("GET", f"http://127.0.0.1:{server.port}/") as reply:
            with pytest.raises(ResponseTooLarge):
                await egress.bounded_bytes(reply, 999)


class Chunks(httpx.AsyncByteStream):
    def __init__(self, chunks):
        self.chunks = chunks

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk


async def lines(*chunks, limit=100):
    reply = httpx.Response(200, stream=Chunks(chunks))
    return [line async for line in egress.bounded_lines(reply, limit)]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\nc", b"\n"], [b"ab", b"c"]),
        ([b"a\r\n", b"\r", b"\nb"], [b"a", b"", b"b"]),
        ([b"\n\n"], [b"", b""]),
        ([b"\xff\xfe\nx"], [b"\xff\xfe", b"x"]),
        ([b"a\rb\x0b\x85\xe2\x80\xa8\n"], [b"a\rb\x0b\x85\xe2\x80\xa8"]),
        ([], []),
    ],
)
async def test_lines_are_split_at_line_feeds_however_they_arrive(chunks, expected):
    assert await lines(*chunks) == expected


@pytest.mark.parametrize("chunks", [[b"x" * 101 + b"\n"], [b"x" * 60] * 2, [b"ok\n" + b"x" * 101]])
async def test_an_endless_line_is_refused(chunks):
    with pytest.raises(ResponseTooLarge):
        await lines(*chunks)
    assert await lines(b"x" * 100 + b"\n") == [b"x" * 100]


# -- clients ---------------------------------------------------------------------------------------


async def test_a_loop_shares_one_client_a_policy():
    one = egress.client_for(LOOPBACK)
    assert egress.client_for(Policy.parse("127.0.0.0/8,::1")) is one
    assert egress.client_for(NOTHING) is not one
    await egress.close_clients()
    assert one.is_closed
    assert egress.client_for(LOOPBACK) is not one
    await egress.close_clients()


def test_another_loop_gets_another_client():
    async def client():
        found = egress.client_for(LOOPBACK)
        await egress.close_clients()
        return found

    assert asyncio.run(client()) is not asyncio.run(client())


def test_the_clients_of_a_loop_that_ended_are_forgotten():
    async def client():
        egress.client_for(LOOPBACK)

    asyncio.run(client())
    asyncio.run(client())
    assert sum(loop.is_closed() for loop in egress._clients) == 1


async def test_a_hundred_streams_are_open_at_once(serve):
    begun = asyncio.Event()

    async def answer(writer):
        writer.write(OK + b"content-length: 2\r\n\r\n")
        await writer.drain()
        await begun.wait()
        writer.write(b"ok")

    server = await serve(answer)
    client = egress.client_for(LOOPBACK)
    replies = [
        asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/")) for _ in range(120)
    ]
    async with asyncio.timeout(30):
        while server.connections < 120:
            await asyncio.sleep(0.01)
        begun.set()
        assert {reply.text for reply in await asyncio.gather(*replies)} == {"ok"}
