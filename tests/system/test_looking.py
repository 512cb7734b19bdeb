"""From outside, on the running product: looking changes nothing, nonsense breaks nothing, and every
answer carries the headers, whoever made it."""

from __future__ import annotations

import contextlib
import random
import socket
import sqlite3
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from tests.system.harness import Client, Patchbay
from tests.test_bad_input import BODIES, PATHS, QUERIES, TYPES
from tests.test_routes import check_headers

MADE = """
from tests.world import make_talk
from tests.builders import make_connection, make_user, make_member
from workspaces.models import User, Workspace
space = Workspace.objects.get(slug="support")
connection = make_connection("local", is_default=True, supports_images=True)
bob = make_user("bob@example.com")
make_member(space, bob)
make_talk(space, User.objects.get(is_superuser=True), connection, shared=True)
print(make_talk(space, bob, connection, shared=True).chat.pk)
"""


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay) -> Client:
    return patchbay.setup_admin()


@pytest.fixture(scope="module")
def chat(patchbay: Patchbay, admin: Client) -> str:
    """The address of a session with a turn, an image and a waiting message."""
    made = patchbay.manage("shell", "-v0", "-c", MADE).stdout.split()
    return f"/w/support/sessions/{made[-1]}/"


class Links(HTMLParser):
    """Everything a page would fetch or lead to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "hx-get", "data-stream") and value:
                self.found.append(value)


def dump(patchbay: Patchbay) -> list[str]:
    """Every row of the database, as SQL."""
    file = f"file:{patchbay.data / 'patchbay.sqlite3'}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True, timeout=20)) as database:
        return list(database.iterdump())


def crawl(client: Client, *starts: str) -> Iterator[httpx.Response]:
    """Follows every link of every page, forms of the address alone included."""
    seen, ahead = set(starts), list(starts)
    while ahead:
        path = ahead.pop()
        if path.partition("?")[0].endswith("/stream/"):
            continue
        answer = client.get(path)
        yield answer
        if "html" not in answer.headers.get("content-type", ""):
            continue
        for link in Links(answer.text).found:
            there = urlsplit(urljoin(str(answer.url), link))
            if there.netloc != urlsplit(str(client.base_url)).netloc:
                continue
            onward = there.path + (f"?{there.query}" if there.query else "")
            # Of the admin site's lists one order and one filter each are enough.
            key = there.path if there.path.startswith("/admin/") else onward
            if key not in seen:
                seen.add(key)
                ahead.append(onward)


def test_reading_every_page_leaves_the_database_as_it_was(
    patchbay: Patchbay, admin: Client, chat: str
):
    starts = ("/", chat, "/connections/", "/admin/", "/patterns/", "/accounts/logout/")
    for path in starts:
        admin.get(path)
    # What a worker takes in by itself isn't the work of a look.
    patchbay.manage("shell", "-v0", "-c", "from sessions.search import take_in; take_in(100)")
    before, pages, statuses = dump(patchbay), 0, set()
    for answer in crawl(admin, *starts, "/accounts/password/change/", "/nothing/"):
        pages += 1
        statuses.add(answer.status_code)
        assert answer.status_code < 500, answer.url
        if answer.url.path.startswith("/static/") and answer.status_code == 200:
            check_static(answer)
        else:
            check_headers(answer.headers, str(answer.url))
    assert pages > 60
    assert 200 in statuses
    assert dump(patchbay) == before


def check_static(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; img-src 'self' data:" in policy
    for part in ("base-uri", "object-src", "frame-ancestors", "form-action"):
        assert f"{part} 'none'" in policy, answer.url
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_the_stream_carries_the_headers(admin: Client, chat: str):
    with admin.stream("GET", f"{chat}stream/") as answer:
        assert answer.status_code == 200
        check_headers(answer.headers, "the stream")
        assert "no-store" in answer.headers["cache-control"]


def test_answers_before_any_page_carry_the_headers(patchbay: Patchbay, admin: Client):
    large = admin.post("/connections/new/", content=b"x" * (25 * 1024 * 1024))
    assert large.status_code == 413
    check_headers(large.headers, "too large")
    for path, host in (("/", "evil.example"), ("/%00", "127.0.0.1"), ("/?a=%00", "127.0.0.1")):
        answer = httpx.get(patchbay.url + path, headers={"Host": host}, trust_env=False)
        assert answer.status_code == 400
        check_headers(answer.headers, path)
    foreign = admin.post("/accounts/logout/", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    check_headers(foreign.headers, "a foreign origin")


def test_nonsense_leaves_the_process_alive(patchbay: Patchbay, admin: Client, chat: str):
    chance = random.Random("nonsense")
    pids = patchbay.pids()
    paths = [
        *(chat, f"{chat}send/", f"{chat}stop/", f"{chat}turns/", f"{chat}model/", "/connections/"),
        *("/connections/new/", "/connections/local/edit/", "/w/support/", "/accounts/login/"),
        *("/connections/local/order/", "/w/support/settings/ai/default/", "/setup/"),
    ]
    for number in range(300):
        path = chance.choice(paths if number % 3 else [p for p in PATHS if p.isascii()])
        method = chance.choice(["GET", "POST", "PUT", "OPTIONS", "HEAD", "DELETE", "PATCH"])
        query = f"?{chance.choice(QUERIES)}" if chance.random() < 0.3 and "?" not in path else ""
        kind = chance.choice([one for one in TYPES if one.isprintable()])
        raw = f"{method} {path.replace(' ', '%20')}{query} HTTP/1.1\r\n"
        status = _ask(patchbay, admin, raw, kind, chance.choice(BODIES))
        assert status < 500, (number, method, path[:80], query[:80], status)
    assert patchbay.pids() == pids
    assert admin.get("/healthz").status_code == 200


def test_broken_requests_leave_the_process_alive(patchbay: Patchbay, admin: Client):
    pids = patchbay.pids()
    for raw in (
        *(
            b"\x00" * 100,
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
        ),
        *(b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"POST /setup/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\nx",
        b"POST /setup/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /setup/ HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET //evil.example/%2f.. HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ):
        answer = _send(patchbay, raw)
        assert not answer.startswith(b"HTTP/1.1 5"), (raw[:60], answer[:60])
    assert patchbay.pids() == pids
    assert admin.get("/connections/").status_code == 200


def _ask(patchbay: Patchbay, admin: Client, line: str, kind: str, body: bytes) -> int:
    """A request as it stands, with the admin's cookies and token; the status."""
    cookies = {one.name: one.value or "" for one in admin.cookies.jar}
    head = (
        f"{line}Host: 127.0.0.1\r\nOrigin: {patchbay.url}\r\nConnection: close\r\n"
        f"Cookie: {'; '.join(f'{name}={value}' for name, value in cookies.items())}\r\n"
        f"X-CSRFToken: {cookies['patchbay_csrf']}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    answer = _send(patchbay, head.encode() + body)
    return int(answer.split(b" ", 2)[1]) if answer else 400  # closed without a word


def _send(patchbay: Patchbay, raw: bytes) -> bytes:
    """The beginning of what is answered within ten seconds."""
    with socket.create_connection(("127.0.0.1", patchbay.port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(raw)
        with contextlib.suppress(OSError):
            return connection.recv(65_536)
    return b""
