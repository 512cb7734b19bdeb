"""What every test may use: people, a workspace, clients, the running product. No network."""

from __future__ import annotations

import gc
import ipaddress
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_django
from django.conf import settings
from django.db import connection
from django.test import Client
from django.utils import translation

from tests.builders import make_member, make_user, make_workspace
from tests.fakes.server import FakeProviders
from tests.system.harness import Patchbay, collect_static
from workspaces.models import AuditEvent, User, Workspace

# -- no network but loopback -----------------------------------------------------------------------

_connect, _connect_ex, _getaddrinfo = (
    socket.socket.connect,
    socket.socket.connect_ex,
    socket.getaddrinfo,
)


class NetworkUsed(RuntimeError):
    """A test tried to leave this machine. Not an OSError: no product code swallows it."""


def _check_address(sock: socket.socket, address: Any) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(str(address[0])):
        raise NetworkUsed(f"a test connects to {address[0]}")


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        socket.inet_aton(name)  # also `10.1` and `0x0a000001`, which no name server is asked for
    except OSError:
        return ":" in name
    return True


def _guarded_connect(self: socket.socket, address: Any) -> None:
    _check_address(self, address)
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    _check_address(self, address)
    return _connect_ex(self, address)


def _guarded_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    """Names lead nowhere, as on a machine without a network."""
    name = host.decode() if isinstance(host, bytes) else host
    if name and not _is_local(name) and not _is_address(name):
        raise socket.gaierror(socket.EAI_NONAME, "no names in tests")
    return _getaddrinfo(host, *arguments, **options)


def pytest_configure(config: pytest.Config) -> None:
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = _guarded_getaddrinfo


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(settings.DATA_DIR, ignore_errors=True)  # tests/settings.py made it


# -- which tests -----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database-only", action="store_true", help="only tests that use the test database"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_place)
    for item in items:
        for folder in ("system", "e2e"):
            if folder in item.path.parts:
                item.add_marker(getattr(pytest.mark, folder))
    if config.getoption("--database-only"):
        wanted = [item for item in items if _uses_database(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(wanted)])
        items[:] = wanted


# A file's tests are one process's. The long ones begin, and the many short ones at the end let all
# processes end together.
LONG = ("e2e", "system", "test_bad_input.py", "test_routes.py")


def _place(item: pytest.Item) -> int:
    return min((n for n, name in enumerate(LONG) if name in item.path.parts), default=len(LONG))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The thousands of tests are no garbage: looking at them again and again takes its time."""
    gc.collect()
    gc.freeze()


def _uses_database(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    marked = any(item.get_closest_marker(name) for name in ("django_db", "both_databases"))
    return marked or bool(fixtures & {"db", "transactional_db", "live_server"})


@pytest.fixture(scope="session")
def django_db_setup(
    django_db_setup: None, django_db_blocker: pytest_django.DjangoDbBlocker
) -> Iterator[None]:
    """pytest-django's, and at the end nobody holds the database: a process's database threads keep
    their connections, and PostgreSQL drops no database that is connected to."""
    if connection.vendor == "postgresql":
        connection.ops.sql_flush = _delete_all
    yield
    if connection.vendor == "postgresql":
        with django_db_blocker.unblock(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


def _delete_all(
    style: Any, tables: Iterable[str], *, reset_sequences: bool = False, allow_cascade: bool = False
) -> list[str]:
    """Empties PostgreSQL's tables row by row: there are few rows, and TRUNCATE writes new files for
    every table and index. In this role no trigger and no foreign key is looked at."""
    assert not reset_sequences
    deletes = [f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables]
    return ["SET LOCAL session_replication_role = replica", *deletes] if deletes else []


@pytest.fixture(autouse=True)
def _no_language_stays() -> Iterator[None]:
    """A request of a test client leaves the language it was answered in."""
    yield
    translation.deactivate()


# -- people ----------------------------------------------------------------------------------------


@pytest.fixture
def workspace(db: None) -> Workspace:
    """“Support”, where bob is a member."""
    return make_workspace("support")


@pytest.fixture
def alice(db: None) -> User:
    """The instance admin."""
    return make_user("alice@example.com", is_superuser=True)


@pytest.fixture
def bob(workspace: Workspace) -> User:
    """A member of `workspace`."""
    user = make_user("bob@example.com")
    make_member(workspace, user)
    return user


@pytest.fixture
def charlie(db: None) -> User:
    """Somebody with an account who belongs to no workspace."""
    return make_user("charlie@example.com")


@pytest.fixture
def client_for() -> Callable[..., Client]:
    """`client_for(user)`: a test client signed in as the person; `client_for(None)`: as nobody.
    Options are those of `django.test.Client`."""

    def make(user: User | None, **options: Any) -> Client:
        client = Client(**options)
        if user is not None:
            client.force_login(user, settings.AUTHENTICATION_BACKENDS[0])
            # Somebody who signed in long ago: what the test does is all that the audit holds.
            AuditEvent.objects.filter(action="user.sign_in").delete()
        return client

    return make


# -- the outside -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fakes() -> Iterator[FakeProviders]:
    """Providers on loopback, for all tests of a module."""
    with FakeProviders() as running:
        yield running


# -- the running product ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def static_files() -> None:
    """What `make run` collects before it starts the server."""
    collect_static()


@pytest.fixture
def start_patchbay(tmp_path: Path, static_files: None) -> Iterator[Callable[..., Patchbay]]:
    """`start_patchbay(env={…}, data=Path, from_nothing=True)`: a running server of its own, stopped
    after the test."""
    started: list[Patchbay] = []

    def start(**options: Any) -> Patchbay:
        folder = tmp_path / f"patchbay-{len(started)}"
        started.append(Patchbay(folder, **options))
        return started[-1].start()

    yield start
    for patchbay in started:
        patchbay.stop()


@pytest.fixture(scope="module")
def patchbay(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Patchbay]:
    """One running server for all tests of a module."""
    with Patchbay(tmp_path_factory.mktemp("patchbay")) as running:
        yield running
