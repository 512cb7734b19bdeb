"""`make run`: everything starts together, ends together, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from config import serve
from tests.system.harness import ROOT, Patchbay, wait_for


@pytest.fixture(scope="module")
def patchbay(tmp_path_factory, static_files):
    env = {
        "PATCHBAY_SECRET_KEYS": "2sp1Q3nFKfwGcTuzK7cTzjNXGnlbqDc1kcEqxzZ0cvo",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    with Patchbay(tmp_path_factory.mktemp("patchbay"), env=env, from_nothing=True) as running:
        yield running


def gone(patchbay: Patchbay) -> bool:
    return not patchbay.leftovers()


def test_the_first_page_is_there_and_the_token_opens_it(patchbay):
    answer = httpx.get(patchbay.url, follow_redirects=True, trust_env=False)
    assert answer.status_code == 200
    assert answer.url.path == "/setup/"
    admin = patchbay.setup_admin()
    assert patchbay.client().get("/setup/").status_code == 404
    assert admin.get("/connections/").status_code == 200


def test_all_four_processes_run_in_a_group_of_their_own(patchbay):
    pids = patchbay.pids()
    assert set(pids) == {"web", "worker", "beat", "valkey"}
    groups = {os.getpgid(pid) for pid in pids.values()}
    assert len(groups) == 1
    assert os.getpgid(patchbay.process.pid) not in groups


def test_what_is_kept_can_be_read_by_this_account_only(patchbay):
    assert stat.S_IMODE(patchbay.data.stat().st_mode) == 0o700
    for file in ("keys/django.key", "keys/valkey.password", "run/valkey.conf", "patchbay.sqlite3"):
        assert stat.S_IMODE((patchbay.data / file).stat().st_mode) == 0o600, file
    assert not (patchbay.data / "run" / "valkey.sock").stat().st_mode & 0o077


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_each_process_gets_only_the_environment_it_needs(patchbay):
    seen = {}
    for name, pid in patchbay.pids().items():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        seen[name] = {variable.split(b"=")[0].decode() for variable in variables if variable}
    assert seen["valkey"] == set()
    for name in ("web", "worker"):
        assert "PATCHBAY_SECRET_KEYS" in seen[name]
    assert "PATCHBAY_SECRET_KEYS" not in seen["beat"]
    assert [name for name in seen if "AWS_SECRET_ACCESS_KEY" in seen[name]] == ["worker"]
    assert not any("HTTPS_PROXY" in variables for variables in seen.values())


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_no_command_line_holds_a_password(patchbay):
    password = (patchbay.data / "keys" / "valkey.password").read_text()
    for pid in patchbay.pids().values():
        assert password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert password not in patchbay.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_ends_well_and_leaves_nothing(start_patchbay, number):
    patchbay = start_patchbay()
    with socket.create_connection(("127.0.0.1", patchbay.port)) as unfinished:
        unfinished.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        started = time.monotonic()
        assert patchbay.stop(number) == 0
        assert time.monotonic() - started < serve.GRACE_SECONDS
    assert patchbay.leftovers() == []
    assert "Traceback" not in patchbay.output()


@pytest.mark.parametrize("name", ["web", "valkey"])
def test_when_one_process_dies_all_end_and_the_exit_code_says_so(start_patchbay, name):
    patchbay = start_patchbay()
    patchbay.kill(name)
    assert patchbay.wait() == 1
    assert f"{name} ended by itself (signal 9)" in patchbay.output()
    wait_for(lambda: gone(patchbay), what="all processes are gone")


def test_a_killed_supervisor_leaves_no_orphan_and_the_next_one_starts_at_once(start_patchbay):
    first = start_patchbay()
    left = first.pids().values()
    first.process.kill()
    second = start_patchbay(data=first.data)
    assert second.client().get("/healthz").text == "ok\n"
    wait_for(lambda: not any(alive(pid) for pid in left), what="the first one's are gone")


def test_a_killed_supervisor_leaves_no_orphans_child_either(tmp_path):
    # What a provider's own process is to the worker, and deaf to polite signals.
    grandchild = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
    )
    child = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}, sys.argv[1]]); time.sleep(300)"
    )
    driver = (
        "import os, sys; from config.serve import Supervisor\n"
        "with Supervisor(keep_open=os.open(os.devnull, os.O_RDONLY)) as supervisor:\n"
        f"    supervisor.start('child', [sys.executable, '-c', {child!r}, sys.argv[1]], {{}})\n"
        "    while True: supervisor.turn(None)\n"
    )
    note = tmp_path / "pid"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", driver, str(note)],
        cwd=ROOT,
        env={**os.environ, "PATCHBAY_DATA_DIR": str(tmp_path / "data")},
    )
    try:
        pid = int(wait_for(lambda: note.exists() and note.read_text(), what="the grandchild"))
        os.kill(pid, 0)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_for(lambda: not alive(pid), what="the grandchild is gone")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_two_run_side_by_side(start_patchbay):
    first, second = start_patchbay(), start_patchbay()
    assert first.token != second.token
    assert first.stop() == 0
    assert second.client().get("/healthz").text == "ok\n"


@pytest.mark.parametrize(
    "name", ["d" * 60 + "/" + "e" * 60, "a b#c%20?d&ü"], ids=["long", "odd characters"]
)
def test_any_data_directory_works(start_patchbay, tmp_path, name):
    patchbay = start_patchbay(data=tmp_path / name)
    wait_for(patchbay.worker_is_ready, what="the worker waits for tasks")
    told = dict.fromkeys(("database", "redis", "worker", "beat"), "ok")
    wait_for(lambda: patchbay.client().get("/readyz").json() == told, what="all is ready")
    assert patchbay.stop() == 0


def test_a_port_in_use_is_one_sentence_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        patchbay = Patchbay(tmp_path, env={"PORT": str(port)}).start(wait=False)
        assert patchbay.wait() == 1
    assert patchbay.output() == (
        f"Patchbay can't start: port {port} is in use; set PORT to a free one\n"
    )
    assert not (patchbay.data / "patchbay.sqlite3").exists()


def test_a_second_one_on_the_same_data_is_refused_in_one_sentence(patchbay, tmp_path):
    second = Patchbay(tmp_path, data=patchbay.data).start(wait=False)
    assert second.wait() == 1
    assert second.output() == (
        f"Patchbay can't start: another Patchbay runs on {patchbay.data}; end it, or set "
        "PATCHBAY_DATA_DIR\n"
    )
    assert patchbay.client().get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PORT": "http"}, "PORT: use a whole number from 1 to 65535"),
        ({"PATCHBAY_URL": "patchbay.example"}, "PATCHBAY_URL: use http://host[:port]"),
        ({"DATABASE_URL": "mysql://u:canary@h/x"}, "DATABASE_URL: use postgres://"),
        ({"PATCHBAY_SECRET_KEYS": "c2hvcnQ"}, "PATCHBAY_SECRET_KEYS: key 1 is 5 bytes long"),
        ({"DATABASE_URL": "postgres://u:canary@127.0.0.1:1/x"}, "The database can't be used"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_used_is_refused_in_one_line(tmp_path, env, sentence):
    patchbay = Patchbay(tmp_path, env=env).start(wait=False)
    assert patchbay.wait(60) == 1
    lines = patchbay.output().strip().splitlines()
    assert lines[-1].startswith(f"Patchbay can't start: {sentence}")
    assert "Traceback" not in patchbay.output()
    assert "canary" not in patchbay.output()


def test_someone_elses_runtime_directory_is_refused(tmp_path, settings):
    target = tmp_path / "theirs"
    target.mkdir()
    link = tmp_path / "run"
    link.symlink_to(target)
    with pytest.raises(serve.CantStart, match="isn't a directory of this account"):
        serve._private(link)
