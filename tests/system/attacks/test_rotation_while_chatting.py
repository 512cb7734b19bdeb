"""The instance keys are rotated, killed half way and run again, while people chat."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from tests.system.attacks.server import Attacked
from tests.system.harness import ROOT, wait_for
from workspaces.vault import Keyring

ROWS = 1200
SEED = f"""
from tests.builders import make_connection, make_secret
from connections.models import Connection, Secret
from workspaces.vault import Plain
made = Connection.objects.bulk_create(
    Connection(slug=f"c{{n}}", name=f"c{{n}}", position=100 + n, provider_type="anthropic",
               auth_type="api_key", enabled=False) for n in range({ROWS}))
Secret.objects.bulk_create(
    Secret(connection=one, binding=one.binding, value=Plain(one.slug)) for one in made)
"""
COUNT_OPEN = """
from connections.models import Secret
print(sum(s.readable for s in Secret.objects.select_related("connection")))
"""


def key_ids(server: Attacked) -> list[str]:
    lines = (server.data / "keys" / "secret.keys").read_text().splitlines()
    return list(Keyring.parse([one for one in lines if "#" not in one], source="test").ids)


def sealed_with(server: Attacked, key_id: str) -> int:
    found = server.rows(
        "SELECT count(*) n FROM connections_secret WHERE hex(substr(value, 2, 8)) = ?",
        key_id.upper(),
    )
    return found[0]["n"]


def test_chats_go_on_while_the_key_is_replaced(tmp_path, static_files, fakes):
    with Attacked(tmp_path, env={"PATCHBAY_TITLES": "off"}) as server:
        models = "echo\nfast-30tps-400"
        keys = [f"sk-fake-good-rotation-{n}" for n in range(3)]
        for n, key in enumerate(keys):
            server.add(f"live-{n}", fakes.openai, key, models=models)
        server.manage("shell", "-v0", "-c", SEED)
        (old,) = key_ids(server)
        total = sealed_with(server, old)
        fakes.reset()

        streams = [server.send(f"live-{n}", "long", model="fast-30tps-400") for n in range(3)]
        wait_for(lambda: len(fakes.requests(model="fast-30tps-400")) == 3, what="all stream")
        asked: list[str] = []
        over = threading.Event()

        def keep_asking() -> None:
            client = server.sign_in("alice@example.com")
            while not over.is_set():
                asked.append(server.send(f"live-{len(asked) % 3}", "hello", client=client))
                time.sleep(0.2)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            command = [sys.executable, "manage.py", "rotate_secrets"]
            rotation = subprocess.Popen(
                [*command, "--new-key"], cwd=ROOT, env=server.env, stdout=subprocess.DEVNULL
            )
            wait_for(lambda: sealed_with(server, old) < total or rotation.poll() is not None, 60)
            rotation.kill()
            rotation.wait()
            new, kept = key_ids(server)
            assert kept == old
            moved = sealed_with(server, new)
            assert 0 < moved < total, "the rotation was to be killed half way"
            assert moved + sealed_with(server, old) == total
            server.manage("rotate_secrets", "--remove-key", old)
            assert key_ids(server) == [new]
            assert sealed_with(server, new) == total
            after = len(asked)
            wait_for(lambda: len(asked) >= after + 3, 60, "messages after the rotation")
        finally:
            over.set()
            asking.join(30)

        for url in [*streams, *asked]:
            assert server.wait_for_turn(url)["state"] == "done"
        replies = {server.turns(url)[0]["text"] for url in streams}
        assert len(replies) == 1
        assert len(replies.pop().split()) == 400
        assert {one["status"] for one in fakes.requests()} == {200}
        assert len({one["key"] for one in fakes.requests()}) == 3
        for n in range(3):
            assert server.validate(f"live-{n}")["passed"] == 1
        opened = server.manage("shell", "-v0", "-c", COUNT_OPEN).stdout.strip()
        assert opened == str(total)
