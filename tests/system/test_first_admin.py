"""The first admin: many try at the same moment, with the console's token and without."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

from tests.system.harness import Client, Patchbay

ATTEMPTS = 20


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Results of `act(0..count-1)`, all begun at the same moment."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        results[number] = act(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def rows(patchbay: Patchbay, sql: str) -> list[tuple[Any, ...]]:
    file = f"file:{patchbay.data / 'patchbay.sqlite3'}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True, timeout=20)) as database:
        return database.execute(sql).fetchall()


def fields(token: str, number: int) -> dict[str, str]:
    return {
        "token": token,
        "email": f"admin-{number}@example.com",
        "password": "correct horse battery",
        "workspace": f"Space {number}",
        "is_superuser": "on",
    }


def visitors(patchbay: Patchbay) -> list[Client]:
    found = [patchbay.client() for _ in range(ATTEMPTS)]
    for client in found:
        assert client.get("/setup/").status_code == 200
    return found


def test_of_many_attempts_one_makes_the_admin(start_patchbay: Callable[..., Patchbay]):
    patchbay = start_patchbay()
    token, clients = patchbay.token, visitors(patchbay)

    wrong = ["", " ", "x", token[:-1], token + "x", token.swapcase(), "null", "é" * 20, "\0"]
    answers = at_once(
        ATTEMPTS,
        lambda number: clients[number].post("/setup/", data=fields(wrong[number % 9], number)),
    )
    assert {answer.status_code for answer in answers} <= {422, 400}
    missing = {key: value for key, value in fields("", 1).items() if key != "token"}
    assert clients[0].post("/setup/", data=missing).status_code == 422
    assert rows(patchbay, "SELECT * FROM workspaces_user") == []

    answers = at_once(
        ATTEMPTS, lambda number: clients[number].post("/setup/", data=fields(token, number))
    )
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [303] + [404] * (ATTEMPTS - 1)
    people = rows(patchbay, "SELECT email, is_superuser FROM workspaces_user")
    assert len(people) == 1
    assert people[0][1] == 1
    assert len(rows(patchbay, "SELECT * FROM workspaces_workspace")) == 1
    assert rows(patchbay, "SELECT id FROM workspaces_installation") == [(1,)]
    first = next(n for n, answer in enumerate(answers) if answer.status_code == 303)
    assert people[0][0] == f"admin-{first}@example.com"
    assert clients[first].get("/connections/").status_code == 200
    assert clients[first - 1].get("/connections/").status_code == 302

    # Afterwards there is no such page, with any token, by any way; nor a way to sign up.
    for client in (patchbay.client(), clients[first]):
        assert client.get("/setup/").status_code == 404
        assert client.post("/setup/", data=fields(token, 99)).status_code in (403, 404)
    stranger = patchbay.client()
    stranger.get("/accounts/login/")
    assert stranger.post("/setup/", data=fields(token, 99)).status_code == 404
    sign_up = {
        "email": "eve@example.com",
        "password1": "a long phrase",
        "password2": "a long phrase",
    }
    stranger.get("/accounts/signup/")
    assert "closed" in stranger.post("/accounts/signup/", data=sign_up).text
    for path in ("/accounts/password/reset/", "/accounts/3rdparty/", "/accounts/social/signup/"):
        assert stranger.get(path).status_code in (302, 404)
    assert not (patchbay.data / "keys" / "setup.token").exists()
    assert len(rows(patchbay, "SELECT * FROM workspaces_user")) == 1

    # A restart with the same token set by hand doesn't open it again.
    patchbay.stop()
    patchbay.env["PATCHBAY_SETUP_TOKEN"] = token
    patchbay.start()
    again = patchbay.client()
    again.get("/accounts/login/")
    assert again.get("/setup/").status_code == 404
    assert again.post("/setup/", data=fields(token, 100)).status_code == 404
    assert len(rows(patchbay, "SELECT * FROM workspaces_user")) == 1
