"""`make bench-pages`: what every list and every heavy page costs in a large installation, against
one with ten of everything, on SQLite and PostgreSQL.

Server time is that of Django's handler with all its middleware, in one process, without a network;
queries are counted in the same requests. Each page is asked for twice before it is measured. `cpu`
is the time that this process and its PostgreSQL server process were on a processor, which says the
same beside other work: a page is over the target when the p95 of it is over 50 ms. `p50` and `p95`
are the clock's. KB are of the page as it is sent, and unpacked.

The installations are kept (--data) and used again while nothing about them changed.

    python -m tests.bench.pages [--connections 1000] [--sessions 10000] [--messages 1000000]
        [--requests 40] [--only sqlite|postgresql] [--page TEXT] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TARGET = 50  # ms
NEEDLE = "quetzalcoatl"
PAGES = {
    "home": "/",
    "connections": "/connections/",
    "connections, last page": "/connections/?page=9999",
    "connections, old secrets": "/connections/?secrets=old",
    "a connection's row": "/connections/{slug}/row/",
    "a connection": "/connections/{slug}/",
    "a connection's form": "/connections/{slug}/edit/",
    "a connection's health": "/connections/{slug}/health/",
    "a connection's access": "/connections/{slug}/access/",
    "a connection's budget": "/connections/{slug}/budget/",
    "deleting a connection": "/connections/{slug}/delete/confirm/",
    "connections' status": "/connections/status/",
    "connections, deleted": "/connections/deleted/",
    "connections' alerts": "/connections/alerts/",
    "connections' export": "/connections/export/",
    "sessions": "/w/bench/",
    "sessions, last page": "/w/bench/?page=9999",
    "sessions, mine": "/w/bench/?show=mine",
    "sessions, shared": "/w/bench/?show=shared",
    "sessions, flagged": "/w/bench/?show=flagged",
    "sessions, working": "/w/bench/?show=working",
    "sessions, archived": "/w/bench/?show=archived",
    "sessions, of a connection": "/w/bench/?connection={slug}",
    "search, a rare word": f"/w/bench/?q={NEEDLE}",
    "search, in every text": "/w/bench/?q=the",
    "search, two letters": "/w/bench/?q=in",
    "search, nothing": "/w/bench/?q=nowhere",
    "palette, recent": "/palette/?workspace=bench",
    "palette, one letter": "/palette/?workspace=bench&q=e",
    "palette, a word": "/palette/?workspace=bench&q=session",
    "palette, two words": "/palette/?workspace=bench&q=invoice+refund",
    "a long session": "/w/bench/sessions/{long}/",
    "a long session, older": "/w/bench/sessions/{long}/turns/?before=2000",
    "a long session, since": "/w/bench/sessions/{long}/turns/?since={last}",
    "a short session": "/w/bench/sessions/{chat}/",
    "a new session": "/w/bench/sessions/{fresh}/",
    "deleting a session": "/w/bench/sessions/{chat}/delete/",
    "handing a session over": "/w/bench/sessions/{chat}/transfer/",
    "AI settings": "/w/bench/settings/ai/",
    "AI settings, models": "/w/bench/settings/ai/{slug}/models/",
    "tools": "/w/bench/settings/tools/",
    "settings": "/w/bench/settings/",
    "settings, days previewed": "/w/bench/settings/?retention_days=30",
    "members": "/w/bench/members/",
    "a workspace's budget": "/w/bench/usage/budget/",
    "usage": "/w/bench/usage/",
    "usage, ninety days": "/w/bench/usage/?days=90",
    "usage of all": "/usage/",
    "audit": "/w/bench/audit/",
    "audit of all": "/audit/",
    "audit, by action": "/audit/?action=connection.update",
    "audit, by a person": "/audit/?q=alice",
    "audit, about": "/audit/?q=Connection+7",
    "audit, nothing": "/audit/?q=nowhere",
    "people": "/people/",
    "people, searched": "/people/?q=person1",
    "a person": "/people/{person}/",
    "deactivating a person": "/people/{person}/deactivate/",
    "deleting a person": "/people/{person}/delete/",
    "profile": "/profile/",
    "deleting oneself": "/profile/delete/",
    "admin": "/admin/",
    "admin: due": "/admin/due/",
    "admin: people": "/admin/workspaces/user/",
    "admin: members": "/admin/workspaces/membership/",
    "admin: audit": "/admin/workspaces/auditevent/",
    "admin: connections": "/admin/connections/connection/",
    "admin: secrets": "/admin/connections/secret/",
    "admin: probes": "/admin/connections/proberesult/",
    "admin: alerts": "/admin/connections/alert/",
    "admin: access": "/admin/connections/workspaceconnection/",
    "admin: sessions": "/admin/agent_sessions/chatsession/",
    "admin: messages": "/admin/agent_sessions/message/",
    "admin: turns": "/admin/agent_sessions/turn/",
    "admin: images": "/admin/agent_sessions/attachment/",
    "admin: usage": "/admin/agent_sessions/usageday/",
    "admin: flags": "/admin/agent_sessions/flag/",
    "admin: search": "/admin/agent_sessions/searchtext/",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-pages", description=__doc__)
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--only", choices=["sqlite", "postgresql"])
    parser.add_argument("--page", default="", help="only the pages with this in their name")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / f"patchbay-pages-{os.getuid()}"
    )
    parser.add_argument("--inside", choices=["ten", "all"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(_inside(chosen)))
        return
    counts = f"{chosen.connections:,} connections, {chosen.sessions:,} sessions, "
    print(f"{counts}{chosen.messages:,} messages, {chosen.requests} requests a page\n")
    for name in ("sqlite", "postgresql"):
        if chosen.only in (None, name):
            _measure(chosen, name)


def _measure(chosen: argparse.Namespace, name: str) -> None:
    """Ten of everything, then all of it, each in a process and a database of its own."""
    found = {}
    for size in ("ten", "all"):
        with _installation(chosen, name, size) as env:
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.pages", *sys.argv[1:], "--inside", size],
                cwd=ROOT,
                env=os.environ | env,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found[size] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:26}  queries   ten: cpu p95    all: cpu p95     p50     p95    KB unpacked")
    weight = found["all"].pop("")
    for page, many in found["all"].items():
        few = found["ten"][page]
        asked = str(few["queries"])
        if few["queries"] != many["queries"]:
            asked += f"/{many['queries']}"
        print(
            f"{page:26}{asked:>9}{few['cpu']:15.1f}{many['cpu']:16.1f}{many['p50']:8.1f}"
            f"{many['p95']:8.1f}{many['sent'] / 1000:6.1f}{many['bytes'] / 1000:9.1f}"
            f"{'  more queries' if '/' in asked else ''}"
            f"{'  over' if many['cpu'] > TARGET else ''}"
        )
    print(
        f"the first page with its {weight['files']} files: {weight['first']:.1f} KB; "
        f"without them: {weight['again']:.1f} KB\n",
        flush=True,
    )


@contextlib.contextmanager
def _installation(chosen: argparse.Namespace, name: str, size: str) -> Iterator[dict[str, str]]:
    """The environment of one. What was made by other sources, or of other counts, is made anew."""
    sha = hashlib.sha256(repr((chosen.connections, chosen.sessions, chosen.messages)).encode())
    sources = [ROOT / "tests" / "bench" / "large.py", *ROOT.glob("*/migrations/*.py")]
    for source in sorted(sources):
        sha.update(source.read_bytes())
    folder = chosen.data / f"{name}-{size}"
    mark, key = folder / "made-of", folder / "key"
    if not mark.exists() or mark.read_text() != sha.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        key.write_text(secrets.token_urlsafe(32))
    env = {
        "PATCHBAY_DATA_DIR": str(folder),
        "SECRET_KEY": secrets.token_urlsafe(50),
        "PATCHBAY_SECRET_KEYS": key.read_text(),
    }
    with contextlib.ExitStack() as stack:
        if name == "postgresql":
            from tests import postgres

            env["DATABASE_URL"] = stack.enter_context(postgres.cluster(folder / "server"))
        if not mark.exists():
            began = time.monotonic()
            making = "from tests.bench import pages; pages.make()"
            subprocess.run(
                [sys.executable, "-c", making],
                cwd=ROOT,
                env=os.environ | env | {"SIZE": json.dumps(_size(chosen, size))},
                check=True,
            )
            mark.write_text(sha.hexdigest())
            if size == "all":
                print(f"{name}: made in {time.monotonic() - began:.0f} s", flush=True)
        yield env


def _size(chosen: argparse.Namespace, size: str) -> list[int]:
    return [] if size == "ten" else [chosen.connections, chosen.sessions, chosen.messages]


def _setup() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()


def make() -> None:
    """In a process with its own, empty database: fills it, to the counts in `SIZE`."""
    _setup()
    from django.core.management import call_command
    from django.db import connection, transaction

    from tests.bench.large import Size, fill

    call_command("migrate", verbosity=0)
    counts = json.loads(os.environ["SIZE"])
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000"):
                cursor.execute(f"PRAGMA {pragma}")
    with transaction.atomic():  # one, as it is faster
        fill(Size.large(*counts) if counts else Size.ten())


def _inside(chosen: argparse.Namespace) -> dict[str, Any]:
    """In a process with its own database: {page: {cpu, p50, p95, queries, sent, bytes}}, times in
    milliseconds."""
    _setup()
    from django.db.backends.utils import CursorWrapper
    from django.test import Client

    # Requests may have threads of their own, and those their own connections.
    count, execute = [0], CursorWrapper.execute

    def counting(self: Any, *args: Any) -> Any:
        count[0] += 1
        return execute(self, *args)

    CursorWrapper.execute = counting  # type: ignore[method-assign]

    places, user = _places()
    client = Client(headers={"host": "127.0.0.1", "accept-encoding": "gzip"})
    client.force_login(user)
    found = {}
    for page, path in PAGES.items():
        if chosen.page not in page:
            continue
        address = path.format(**places)
        response = client.get(address, follow=True)
        assert response.status_code == 200, (address, response.status_code)
        count[0] = 0
        response = client.get(address, follow=True)
        queries = count[0]
        sent = body = response.getvalue()
        if response.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(sent)
        times, cpus = [], []
        for _number in range(chosen.requests):
            began, busy = time.perf_counter(), _busy()
            client.get(address, follow=True)
            cpus.append((_busy() - busy) * 1000)
            times.append((time.perf_counter() - began) * 1000)
        found[page] = {
            "cpu": _p95(cpus),
            "p50": sorted(times)[len(times) // 2],
            "p95": _p95(times),
            "queries": queries,
            "sent": len(sent),
            "bytes": len(body),
        }
    found[""] = _weight()
    return found


def _weight() -> dict[str, float]:
    """KB that a browser takes at the first page: with all its files, and when those are kept."""
    from django.conf import settings
    from django.test import Client

    client = Client(headers={"host": "127.0.0.1", "accept-encoding": "gzip"})
    sent = client.get("/", follow=True).content
    files = set(re.findall(rb'(?:src|href)="/static/([^"#]+)', gzip.decompress(sent)))
    packed = 0
    for name in files:
        path = Path(settings.STATIC_ROOT) / name.decode()
        small = path.with_name(f"{path.name}.gz")  # what whitenoise sends
        packed += (small if small.exists() else path).stat().st_size
    return {"files": len(files), "first": (len(sent) + packed) / 1000, "again": len(sent) / 1000}


def _p95(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.95))]


def _busy() -> float:
    """Seconds on a processor of this process and of the server process it talks to."""
    from django.db import connection

    spent = time.process_time()
    if connection.vendor == "postgresql" and connection.connection is not None:
        pid = connection.connection.info.backend_pid
        with contextlib.suppress(OSError):  # not Linux
            spent += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return spent


def _places() -> tuple[dict[str, Any], Any]:
    """What the addresses name, and who asks."""
    from django.db.models import Max

    from sessions.models import ChatSession, Turn
    from workspaces.models import User

    alice = User.objects.get(email="alice@example.com")
    chats = ChatSession.objects.filter(workspace__slug="bench", locked_at__isnull=False)
    long = chats.order_by("-updated_at").first()
    short = chats.filter(owner=alice, turns__state="done").exclude(pk=long.pk)
    fresh, _made = ChatSession.objects.get_or_create(
        workspace=long.workspace, owner=alice, title="", updated_at="2020-01-01T00:00:00Z"
    )
    return {
        "slug": "connection-0",
        "long": long.pk,
        "last": Turn.objects.filter(chat=long).aggregate(last=Max("number"))["last"],
        "chat": short.first().pk,
        "fresh": fresh.pk,
        "person": User.objects.get(email="person0@example.com").pk,
    }, alice


if __name__ == "__main__":
    main()
