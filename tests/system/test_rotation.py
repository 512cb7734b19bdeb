"""The rotation of instance keys, killed without warning and run again."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import sqlite3
import subprocess
import sys

import pytest

from tests.system.harness import ROOT, wait_for

pytestmark = pytest.mark.system

ROWS = 1500

SEED = f"""
from connections.models import Connection, Secret
from workspaces.vault import Plain
made = Connection.objects.bulk_create(
    Connection(slug=f"c{{n}}", name=f"c{{n}}", position=n, provider_type="anthropic",
               auth_type="api_key") for n in range({ROWS}))
Secret.objects.bulk_create(
    Secret(connection=one, binding=one.binding, value=Plain(one.slug)) for one in made)
"""
COUNT_OPEN = """
from connections.models import Secret
print(sum(s.value.open().decode() == s.connection.slug
          for s in Secret.objects.select_related("connection")))
"""


class Installation:
    """A data directory and the commands that run on it."""

    def __init__(self, data):
        self.database = data / "patchbay.sqlite3"
        self.env = {**os.environ, "PATCHBAY_DATA_DIR": str(data)}
        self.env.pop("DJANGO_SETTINGS_MODULE", None)

    def start(self, keys, *args):
        return subprocess.Popen(
            [sys.executable, "manage.py", *args],
            cwd=ROOT,
            env={**self.env, "PATCHBAY_SECRET_KEYS": ",".join(keys)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, keys, *args):
        process = self.start(keys, *args)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    def sealed_with(self, key_id):
        """How many stored secrets name this key in their first bytes, read past Django."""
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            return database.execute(
                "SELECT count(*) FROM connections_secret WHERE hex(substr(value, 2, 8)) = ?",
                [key_id.upper()],
            ).fetchone()[0]


def key_and_id():
    key = secrets.token_bytes(32)
    return base64.urlsafe_b64encode(key).decode(), hashlib.sha256(key).hexdigest()[:16]


def test_a_rotation_killed_half_way_and_run_again_leaves_every_secret_usable(tmp_path):
    (old, old_id), (new, new_id) = key_and_id(), key_and_id()
    here = Installation(tmp_path)
    here.run([old], "migrate", "-v", "0")
    here.run([old], "shell", "-v", "0", "-c", SEED)
    assert here.sealed_with(old_id) == ROWS

    rotation = here.start([new, old], "rotate_secrets")
    wait_for(lambda: here.sealed_with(new_id) or rotation.poll() is not None, 60)
    rotation.kill()
    rotation.communicate()
    moved = here.sealed_with(new_id)
    assert 0 < moved < ROWS, "the rotation was to be killed half way"
    assert moved + here.sealed_with(old_id) == ROWS
    assert here.run([new, old], "shell", "-v", "0", "-c", COUNT_OPEN).strip() == str(ROWS)

    out = here.run([new, old], "rotate_secrets")
    assert f"{ROWS - moved} secrets re-encrypted" in out
    assert here.sealed_with(old_id) == 0
    assert here.run([new], "shell", "-v", "0", "-c", COUNT_OPEN).strip() == str(ROWS)
