"""`manage.py doctor`: each fault has its line, and no line has a secret."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import logging
import os
import re
import secrets
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from redis.exceptions import ConnectionError as RedisDown

from config import doctor
from config.doctor import Level
from sessions.models import ChatSession, Turn
from tests.builders import KEY, make_connection, make_user, make_workspace
from workspaces import rotation

pytestmark = pytest.mark.django_db

OTHER_KEY = secrets.token_urlsafe(32)


class FakeRedis:
    """A Redis that answers what doctor asks."""

    clock, policy, down = None, "noeviction", False

    def __enter__(self):
        if self.down:
            raise RedisDown("redis://:canary-password@host/0 refused")
        return self

    def __exit__(self, *failure):
        pass

    def info(self):
        return {"redis_version": "9.0", "server_name": "valkey"}

    def time(self):
        return self.clock or timezone.now().timestamp(), 0

    def config_get(self, name):
        return {name: self.policy}


@pytest.fixture(autouse=True)
def healthy(settings, tmp_path, monkeypatch):
    """An installation without a fault; each test breaks one thing."""
    for name in list(os.environ):
        if name.startswith("PATCHBAY_") and name not in (
            "PATCHBAY_DATA_DIR",
            "PATCHBAY_SECRET_KEYS",
        ):
            monkeypatch.delenv(name)
    settings.DATA_DIR = tmp_path / "data"
    settings.KEYS_DIR = settings.DATA_DIR / "keys"
    settings.KEYS_DIR.mkdir(parents=True, mode=0o700)
    settings.DATA_DIR.chmod(0o700)
    settings.STATIC_ROOT = tmp_path / "static"
    settings.STATIC_ROOT.mkdir()
    (settings.STATIC_ROOT / "staticfiles.json").write_text("{}")
    settings.VALKEY_PASSWORD = ""
    monkeypatch.setattr(doctor.Redis, "from_url", lambda *a, **k: FakeRedis())
    for name, value in (("clock", None), ("policy", "noeviction"), ("down", False)):
        monkeypatch.setattr(FakeRedis, name, value)


def lines(subject, level=None):
    found = [f for f in doctor.examine() if f.subject == subject]
    return [f for f in found if level is None or f.level == level]


def run(*arguments):
    out = StringIO()
    try:
        call_command("doctor", *arguments, stdout=out, no_color=True)
    except SystemExit as end:
        return end.code, out.getvalue()
    return 0, out.getvalue()


def test_a_healthy_installation_has_no_fault():
    code, out = run()
    assert code == 0, out
    assert "fail" not in out.split()
    for subject in doctor._LOOKS:
        assert subject in out


def test_the_json_is_a_list_of_findings_and_the_code_tells_a_fault(settings):
    settings.CODEX_PATHS = ("/nowhere/codex",)
    code, out = run("--json")
    assert code == 1
    found = json.loads(out)
    assert {"subject", "level", "text", "todo"} == set(found[0])
    assert [f["subject"] for f in found if f["level"] == "fail"] == ["codex"]


def binary(folder: Path, says: str) -> str:
    path = folder / "codex"
    path.write_text(f"#!/bin/sh\n/bin/echo '{says}'\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("says", "level", "words"),
    [
        ("codex-cli 0.163.0", "ok", "version 0.163.0"),
        ("codex-cli 9.9.9", "warn", "9.9.9, which Patchbay was not tested with"),
        ("something else", "fail", "can't be run"),
    ],
)
def test_the_version_of_the_codex_binary_is_told(settings, tmp_path, says, level, words):
    settings.CODEX_PATHS = (binary(tmp_path, says),)
    found = [f for f in json.loads(run("--json")[1]) if f["subject"] == "codex"]
    assert [f["level"] for f in found] == [level]
    assert words in found[0]["text"]


def test_without_a_codex_binary_the_command_is_named(settings):
    settings.CODEX_PATHS = ()
    found = [f for f in json.loads(run("--json")[1]) if f["subject"] == "codex"]
    assert [f["level"] for f in found] == ["ok"]
    assert "make codex" in found[0]["text"]


def test_a_warning_alone_is_no_fault(monkeypatch):
    monkeypatch.setenv("PATCHBAY_TYPO", "1")
    code, out = run()
    assert (code, "PATCHBAY_TYPO" in out) == (0, True)


def test_a_debug_page_in_production_is_a_fault(settings):
    settings.DEBUG, settings.PRODUCTION = True, True
    assert lines("environment", Level.FAIL)


def test_an_address_without_tls_beyond_this_machine_is_a_warning(settings):
    settings.ALLOWED_HOSTS = ["patchbay.example"]
    assert "https" in lines("environment", Level.WARN)[0].text


def test_a_variable_given_twice_is_a_warning(monkeypatch):
    monkeypatch.setenv("PORT", "8000")
    monkeypatch.setenv("PATCHBAY_DATA_DIR_FILE", "/somewhere")
    assert any("both set" in f.text for f in lines("environment", Level.WARN))


def test_an_open_key_file_is_a_fault(settings):
    path = settings.KEYS_DIR / "secret.keys"
    path.write_text("x")
    path.chmod(0o644)
    [found] = lines("data directory", Level.FAIL)
    assert found.todo == f"chmod 600 {path}"


def test_a_full_disk_is_a_fault(monkeypatch):
    usage = doctor.shutil.disk_usage("/")._replace(free=1024)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert lines("data directory", Level.FAIL)


def test_a_missing_data_directory_is_made_by_the_start(settings, tmp_path):
    settings.DATA_DIR = tmp_path / "none"
    assert lines("data directory", Level.WARN)


def test_a_migration_that_is_not_applied_is_a_fault():
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'connections'")
    assert "migrations" in lines("database", Level.FAIL)[0].text


def test_a_database_that_cannot_be_reached_is_a_fault_without_its_password(monkeypatch):
    def broken(*arguments):
        raise ConnectionError("postgres://u:canary-password@h/db")

    monkeypatch.setattr(connection, "cursor", broken)
    [found] = [doctor.Finding("database", *line) for line in list(doctor._database())]
    assert found.level == Level.FAIL
    assert "canary" not in found.text + found.todo


def test_a_dead_redis_is_a_fault_without_its_password(monkeypatch):
    monkeypatch.setattr(FakeRedis, "down", True)
    code, out = run()
    assert code == 1
    assert "canary" not in out


def test_a_redis_that_drops_keys_or_has_another_time_is_a_warning(monkeypatch):
    monkeypatch.setattr(FakeRedis, "policy", "allkeys-lru")
    monkeypatch.setattr(FakeRedis, "clock", 1.0)
    assert len(lines("redis", Level.WARN)) == 2


def test_an_embedded_one_that_is_not_running_is_a_warning(settings):
    settings.VALKEY_PASSWORD = "own"
    assert "make run" in lines("redis", Level.WARN)[0].todo
    with (settings.DATA_DIR / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert lines("redis", Level.OK)


def test_the_keys_in_use_missing_and_removable_are_told(settings):
    first = settings.SECRET_KEYS[0]
    make_connection()
    assert "1 secrets so far" in lines("keys", Level.OK)[0].text
    settings.SECRET_KEYS = [OTHER_KEY, first]
    rotation.register(rotation.vault.keyring().primary)
    assert "rotate_secrets" in lines("keys", Level.WARN)[0].todo
    list(rotation.rotate())
    assert "seals nothing any more" in lines("keys", Level.WARN)[0].text
    settings.SECRET_KEYS = [first]
    assert "is missing: 1 secrets" in lines("keys", Level.FAIL)[0].text
    settings.START_SEALED = True
    assert not lines("keys", Level.FAIL)


def test_a_bad_key_is_a_fault_that_does_not_repeat_it(settings):
    settings.SECRET_KEYS = ["canary-not-a-key"]
    [found] = lines("keys", Level.FAIL)
    assert "canary" not in found.text + found.todo


def test_a_message_that_no_worker_takes_is_a_fault():
    chat = ChatSession.objects.create(workspace=make_workspace(), owner=make_user())
    turn = Turn.objects.create(chat=chat, number=1)
    assert not lines("workers", Level.FAIL)
    Turn.objects.filter(pk=turn.pk).update(created_at=timezone.now() - dt.timedelta(minutes=5))
    assert "1 messages wait" in lines("workers", Level.FAIL)[0].text


def test_a_check_long_overdue_is_a_warning():
    make_connection(next_check_at=timezone.now() - dt.timedelta(hours=1))
    assert lines("workers", Level.WARN)


@pytest.mark.parametrize("name", ["EGRESS_ALLOW", "TOOL_EGRESS_ALLOW"])
def test_a_wrong_allow_list_is_a_fault(settings, name):
    setattr(settings, name, "10.0.0.0/99")
    assert f"PATCHBAY_{name}" in lines("way out", Level.FAIL)[0].text


def test_static_files_that_are_missing_or_old_are_told(settings, tmp_path):
    manifest = settings.STATIC_ROOT / "staticfiles.json"
    os.utime(manifest, (1, 1))
    assert lines("static files", Level.WARN)
    manifest.unlink()
    assert lines("static files", Level.FAIL)


def test_a_clock_far_behind_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor.time, "time", lambda: 1_000_000_000.0)
    assert [line[0] for line in doctor._clock()] == [Level.FAIL]


def test_no_line_and_no_log_has_a_secret(settings, caplog):
    caplog.set_level(logging.DEBUG)
    make_connection()
    settings.SECRET_KEYS = [*settings.SECRET_KEYS, OTHER_KEY]
    text = run()[1] + run("--json")[1] + caplog.text
    for value in (KEY, settings.SECRET_KEY, *settings.SECRET_KEYS):
        assert value not in text


def test_every_variable_the_settings_read_is_in_the_operations_manual():
    root = Path(__file__).resolve().parents[2]
    manual = (root / "docs" / "operations.md").read_text()
    names = re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', (root / "config" / "settings.py").read_text())
    assert len(names) > 15
    for name in names:
        assert f"`{name}`" in manual, name
