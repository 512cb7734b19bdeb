"""The running product as an attacker and its people see it: pages, sessions, files, processes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from html.parser import HTMLParser
from typing import Any

import httpx

from tests.system.harness import ADMIN, Client, Patchbay, wait_for

ENDED = ("done", "failed", "stopped", "interrupted")
PEOPLE = {
    "workspace admin": "carol@example.com",
    "member": "bob@example.com",
    "viewer": "victor@example.com",
    "stranger": "charlie@example.com",
}
_ADD_PEOPLE = """
from tests.builders import make_member, make_user
from workspaces.models import Workspace
space = Workspace.objects.get(slug="support")
for email, role in (("carol", "admin"), ("bob", "member"), ("victor", "viewer"), ("charlie", "")):
    user = make_user(f"{email}@example.com")
    role and make_member(space, user, role)
"""
FORM = {
    "provider_type": "openai_compat",
    "auth_type": "api_key_with_endpoint",
    "models": "echo",
    "default_model": "echo",
}


class Attacked(Patchbay):
    """A running server with alice's account; `admin` is her browser."""

    admin: Client

    def start(self, *, wait: bool = True) -> Attacked:
        super().start(wait=wait)
        if wait and "First-run token:" in self.output():
            self.admin = self.setup_admin()
        return self

    def add_people(self) -> dict[str, Client]:
        """Everybody who is not an instance admin, each signed in; and nobody."""
        self.manage("shell", "-v0", "-c", _ADD_PEOPLE)
        people = {who: self.sign_in(email) for who, email in PEOPLE.items()}
        nobody = self.client()
        nobody.get("/accounts/login/")  # with the token that posts need
        return {**people, "nobody": nobody}

    # -- connections -------------------------------------------------------------------------------

    def add(self, slug: str, /, base_url: str, key: str = "", **fields: str) -> None:
        """A connection, made with the form."""
        fixed = {"name": slug, "slug": slug, "base_url": base_url, "api_key": key}
        data = {**FORM, **fixed, **fields}
        answer = self.admin.post("/connections/new/", data=data)
        assert answer.status_code == 303, answer.text
        self.wait_for_probe(slug)

    def edit(self, slug: str, /, **fields: str) -> httpx.Response:
        """The edit form, sent by alice."""
        return self.admin.post(f"/connections/{slug}/edit/", data=fields)

    def validate(self, slug: str) -> dict[str, Any]:
        """Presses the button; the probe that ended."""
        answer = self.admin.post(f"/connections/{slug}/validate/")
        assert answer.status_code == 303, answer.text
        return self.wait_for_probe(slug)

    def wait_for_probe(self, slug: str) -> dict[str, Any]:
        """The newest probe, once no probe is under way."""
        wait_for(lambda: (found := self.probes(slug)) and found[0]["finished_at"], 60, "the probe")
        return self.probes(slug)[0]

    def probes(self, slug: str) -> list[dict[str, Any]]:
        """Newest first."""
        found = self.rows(
            "SELECT p.* FROM connections_proberesult p JOIN connections_connection c"
            " ON c.id = p.connection_id WHERE c.slug = ? ORDER BY p.started_at DESC",
            slug,
        )
        return [{**row, "rungs": json.loads(row["rungs"])} for row in found]

    def secrets(self, slug: str) -> dict[str, bytes]:
        """The stored bytes of a connection's secrets by their purpose."""
        found = self.rows(
            "SELECT s.purpose, s.value FROM connections_secret s JOIN connections_connection c"
            " ON c.id = s.connection_id WHERE c.slug = ?",
            slug,
        )
        return {row["purpose"]: row["value"] for row in found}

    def status(self, slug: str) -> str:
        """As the list page shows it."""
        page = self.admin.get(f"/connections/?q={slug}")
        assert page.status_code == 200
        row = page.text.partition(f'id="connection-{slug}"')[2]
        return row.partition('data-status="')[2].partition('"')[0]

    # -- sessions ----------------------------------------------------------------------------------

    def ask(
        self, connection: str, text: str, *, model: str = "", client: Client | None = None
    ) -> dict[str, Any]:
        """Sends a text in a new session and waits for the end of its turn."""
        return self.wait_for_turn(self.send(connection, text, model=model, client=client))

    def send(
        self, connection: str, text: str, *, model: str = "", client: Client | None = None
    ) -> str:
        """Sends a text in a new session; the session's address. A connection that the session
        can't take gets no message."""
        client = client or self.admin
        url: str = client.post("/w/support/sessions/new/").headers["location"]
        chosen = client.post(f"{url}connection/", data={"connection": connection})
        if chosen.status_code == 409:
            return url
        assert chosen.status_code == 303, chosen.text
        if model:
            assert client.post(f"{url}model/", data={"model": model}).status_code == 303
        self.say(url, text, client=client)
        return url

    def say(self, url: str, text: str, *, client: Client | None = None) -> bool:
        """One more message in a session; whether it was accepted."""
        data = {"text": text, "client_key": uuid.uuid4().hex}
        answer = (client or self.admin).post(f"{url}send/", data=data)
        assert answer.status_code in (303, 409), answer.text
        return answer.status_code == 303

    def turns(self, url: str) -> list[dict[str, Any]]:
        """Oldest first, each with the `text` of its reply."""
        session = uuid.UUID(url.rstrip("/").rpartition("/")[2]).hex
        found = self.rows(
            "SELECT * FROM agent_sessions_turn WHERE chat_id = ? ORDER BY number", session
        )
        for turn in found:
            replies = self.rows(
                "SELECT text FROM agent_sessions_message WHERE turn_id = ? AND role = 'assistant'"
                " ORDER BY step",
                turn["id"],
            )
            turn["text"] = "\n\n".join(one["text"] for one in replies)
        return found

    def wait_for_turn(self, url: str) -> dict[str, Any]:
        """The session's last turn when it ended; where no message was taken: state "refused"."""
        if not (turns := self.turns(url)):
            return {"state": "refused", "error_kind": "", "error_detail": "", "text": ""}
        wait_for(lambda: self.turns(url)[-1]["state"] in ENDED, 60, f"the end of {turns[-1]}")
        return self.turns(url)[-1]

    # -- behind the product's back -----------------------------------------------------------------

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        file = f"file:{self.data / 'patchbay.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(file, uri=True, timeout=20)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(sql, values)]

    def execute(self, sql: str, *values: Any) -> None:
        file = self.data / "patchbay.sqlite3"
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as database:
            database.execute(sql, values)
            database.commit()

    def audit(self, action: str, slug: str) -> list[dict[str, Any]]:
        """The audit rows of a connection, oldest first."""
        found = self.rows(
            "SELECT a.* FROM workspaces_auditevent a JOIN connections_connection c"
            " ON replace(a.target_id, '-', '') = c.id"
            " WHERE a.action = ? AND c.slug = ? ORDER BY a.rowid",
            action,
            slug,
        )
        return [{**row, "details": json.loads(row["details"])} for row in found]


class _Form(HTMLParser):
    """What a browser would send of the form with the given id, untouched."""

    def __init__(self, form_id: str) -> None:
        super().__init__()
        self._id, self._inside = form_id, False
        self._select = self._textarea = ""
        self.data: dict[str, Any] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("name") or ""
        if tag == "form":
            self._inside = given.get("id") == self._id
        if not self._inside:
            return
        if tag == "input" and name:
            if given.get("type") in ("checkbox", "radio"):
                if "checked" in given:
                    self.data[name] = given.get("value", "on")
            elif given.get("type") not in ("submit", "button"):
                self.data[name] = given.get("value") or ""
        elif tag == "select":
            self._select = name
            self.data.setdefault(name, "")
        elif tag == "option" and self._select and "selected" in given:
            self.data[self._select] = given.get("value") or ""
        elif tag == "textarea":
            self._textarea = name
            self.data[name] = ""

    def handle_data(self, data: str) -> None:
        if self._inside and self._textarea:
            self.data[self._textarea] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
        elif tag == "select":
            self._select = ""
        elif tag == "textarea":
            self.data[self._textarea] = self.data.get(self._textarea, "").removeprefix("\n")
            self._textarea = ""


def untouched(page: str, form_id: str = "connection-form") -> dict[str, Any]:
    """The fields of a form as they stand on the page."""
    form = _Form(form_id)
    form.feed(page)
    return form.data


__all__ = ["ADMIN", "FORM", "PEOPLE", "Attacked", "untouched"]
