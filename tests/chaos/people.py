"""People who use sessions while things break, and what must be true when it is quiet again.

Each person has sessions of their own and follows each on an open page; one session is shared by
all. What a person sends is tried again with the same key until the server says yes, as a page does;
now and then somebody gives up, and nobody knows then whether the message arrived.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.system.harness import ADMIN, Client
from tests.system.page import Message, Page, plain
from tests.system.parts import IDLE, Chat, Parts

# (connection, model): what waits and what is steered, text alone and tools between, short and long.
KINDS = (
    ("queue", "fast-60tps-120"),
    ("steer", "tools-2-0.2s"),
    ("steer-anthropic", "tools-1-0.1s"),
    ("queue", "echo"),
    ("steer", "fast-60tps-240"),
)
WHOLE_TEXT = ("echo", "fast-60tps-120", "fast-60tps-240")  # one step, plain words
MOST = 5  # messages of a session between two checks: they are all to be answered
TRY_AGAIN = 0.3  # seconds between two tries of one message


@dataclass
class Said:
    """A message that somebody sent."""

    text: str
    key: str
    accepted: bool = False  # else nobody knows
    tries: int = 0


@dataclass
class Talk:
    """A session, with everything that was sent to it."""

    chat: Chat
    model: str
    mode: str  # the connection's slug
    said: list[Said] = field(default_factory=list)
    stopped: bool = False  # somebody pressed Stop: what waited may have been cancelled
    checked: int = 0  # messages of `said` that an earlier check has counted


class OpenPage(Page):
    """As a browser: once a reply is over, what is stored counts. A worker that was killed may have
    shown up to a second of text that it had not saved."""

    def _blend(self, old: Message, fresh: Message, *, rebuild: bool) -> Message:
        return fresh if fresh.is_complete else super()._blend(old, fresh, rebuild=rebuild)


class Follower(threading.Thread):
    """Keeps a page open until it is told to end; `problem` says what the page refused."""

    def __init__(self, talk: Talk, client: Client) -> None:
        super().__init__(daemon=True)
        self.talk, self.client = talk, client
        self.page: OpenPage | None = None
        self.problem = ""
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.is_set() and not self.problem:
            try:
                if self.page is None:
                    self.page = OpenPage(self.talk.chat, client=self.client)
                self.page.follow_once(lambda page: self.over.is_set())
            except httpx.HTTPError:
                pass
            except Exception as error:
                self.problem = f"the page of {self.talk.chat.id} stopped: {error!r}"
            self.over.wait(0.3)


class People:
    """Everybody, with their sessions. `act` until `pause`; then `violations` after quiet."""

    def __init__(self, parts: Parts, seed: int, count: int, webs: list[str]) -> None:
        self.parts, self.seed = parts, seed
        self.talks: list[Talk] = []
        self.followers: list[Follower] = []
        self.problems: list[str] = []  # answers that nobody should get
        self.resumes = 0
        self._going = threading.Event()
        self._ended = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self._made = threading.Lock()
        self._numbers = iter(range(10**9))
        self._requests_seen = 0
        self._asked: Counter[tuple[Any, ...]] = Counter()
        self.clients: list[dict[str, Client]] = []
        for _ in range(count):
            clients = {web: self._sign_in(web) for web in webs}
            self.clients.append(clients)
        kinds = [KINDS[number % len(KINDS)] for number in range(2 * count)]
        for number, (mode, model) in enumerate([*kinds, KINDS[0]]):
            client = self.clients[number // 2 % count][webs[number % len(webs)]]
            chat = Chat(parts, model, connection=mode, client=client)
            talk = Talk(chat, model, mode)
            self.talks.append(talk)
            self.followers.append(Follower(talk, client))
        self.threads = [
            threading.Thread(target=self._live, args=(number,), daemon=True)
            for number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def _sign_in(self, web: str) -> Client:
        client = Client(self.parts.url_of(web))
        self.parts._clients.append(client)
        answer = client.sign_in(ADMIN["email"], ADMIN["password"])
        assert answer.status_code == 302, answer.status_code
        return client

    # -- what they do ------------------------------------------------------------------------------

    def act(self) -> None:
        self._going.set()

    def pause(self, seconds: float = 90) -> None:
        """Returns when everybody has had an answer to what they sent last."""
        self._going.clear()
        until = time.monotonic() + seconds
        while self._busy and time.monotonic() < until:
            time.sleep(0.05)

    def end(self) -> None:
        self._ended.set()
        self._going.set()
        for follower in self.followers:
            follower.over.set()

    def _live(self, number: int) -> None:
        chance = random.Random(f"{self.seed}-{number}")
        own = self.talks[2 * number : 2 * number + 2]
        while True:
            self._going.wait()
            if self._ended.is_set():
                return
            with self._lock:
                self._busy += 1
            try:
                talk = chance.choice([*own, *own, self.talks[-1]])
                if len([one for one in talk.said[talk.checked :] if one.accepted]) < MOST:
                    self._do(number, talk, chance)
            except Exception as error:
                self.problems.append(f"person {number}: {error!r}")
            finally:
                with self._lock:
                    self._busy -= 1
            self._ended.wait(chance.uniform(0.05, 0.6))

    def _do(self, number: int, talk: Talk, chance: random.Random) -> None:
        if chance.random() < 0.05:
            talk.stopped = True
            self._post(number, talk, chance, "stop", queued="continue")
            return
        with self._made:
            said = Said(f"person {number} says {next(self._numbers)}", uuid.uuid4().hex)
            talk.said.append(said)
        gives_up = chance.random() < 0.1
        while not self._ended.is_set():
            said.tries += 1
            if self._post(number, talk, chance, "send", text=said.text, client_key=said.key):
                said.accepted = True
                return
            if gives_up and said.tries > 2:
                return
            self._ended.wait(TRY_AGAIN)

    def _post(self, number: int, talk: Talk, chance: random.Random, verb: str, **data: str) -> bool:
        """Whether the server said yes, by whichever web process was asked."""
        client = chance.choice(list(self.clients[number].values()))
        try:
            answer = client.post(f"{talk.chat.url}{verb}/", data=data, timeout=8)
        except httpx.HTTPError:
            return False
        if answer.status_code == 303:
            return True
        if answer.status_code not in (502, 503):
            raise AssertionError(f"{verb}: {answer.status_code}")
        return False

    # -- what is true afterwards -------------------------------------------------------------------

    def is_quiet(self) -> bool:
        return all(talk.chat.is_idle for talk in self.talks)

    def paused(self) -> list[Talk]:
        """Sessions whose queue waits for a person."""
        paused = {
            str(row["id"]).replace("-", "")
            for row in self.parts.rows(
                "SELECT id FROM agent_sessions_chatsession WHERE queue_paused <> ''"
            )
        }
        return [talk for talk in self.talks if talk.chat.id.hex in paused]

    def resume(self) -> None:
        """What a page offers once a provider is back."""
        for talk in self.paused():
            self.resumes += 1
            talk.chat.post("resume")

    def stuck(self) -> Iterator[str]:
        for talk in self.talks:
            if not talk.chat.is_idle:
                waiting = [m["delivery"] for m in talk.chat.messages() if m["delivery"] in WAITS]
                states = [state for state in talk.chat.states() if state not in IDLE]
                paused = "paused, " if talk in self.paused() else ""
                yield f"{talk.mode} {talk.model}: {paused}{states} {Counter(waiting)}"

    def violations(self) -> Iterator[str]:
        problems, self.problems = self.problems, []
        yield from problems
        for talk in self.talks:
            yield from _stored(talk)
        yield from self._provider()
        yield from self._pages()

    def counts(self) -> Counter[str]:
        """Of what was sent since the last time: accepted, answered, failed (visibly), unsure."""
        found: Counter[str] = Counter()
        for talk in self.talks:
            states = {turn["number"]: turn["state"] for turn in talk.chat.turns()}
            rows = {row["client_key"]: row for row in talk.chat.messages()}
            for said in talk.said[talk.checked :]:
                found["accepted" if said.accepted else "unsure"] += 1
                if said.key in rows and rows[said.key]["number"]:
                    state = states[rows[said.key]["number"]]
                    found["answered" if state == "done" else "failed"] += 1
            talk.checked = len(talk.said)
        return found

    def _provider(self) -> Iterator[str]:
        """No step of a turn was accepted twice: the same words at the same round are one step."""
        for record in self.parts.fakes.requests()[self._requests_seen :]:
            self._requests_seen += 1
            if record["status"] not in (200, None) or not record.get("last_user"):
                continue
            step = (*(text["text"] for text in record["texts"]), record["rounds"])
            self._asked[step] += 1
            if self._asked[step] == 2:
                yield f"the provider was asked twice: {record['last_user']!r} {record['rounds']}"

    def begin_anew(self) -> None:
        """The provider's records were dropped."""
        self._requests_seen = 0
        self._asked.clear()

    def _pages(self) -> Iterator[str]:
        for follower in self.followers:
            yield from follower_violations(follower)


WAITS = ("steering", "queued")


def _stored(talk: Talk) -> Iterator[str]:
    """What the database says of a session's messages."""
    rows = talk.chat.messages()
    turns = {turn["number"]: turn for turn in talk.chat.turns()}
    name = f"{talk.mode} {talk.model}"
    found = Counter(row["client_key"] for row in rows)
    sent = {said.key: said for said in talk.said}
    for said in talk.said:
        if said.accepted and not found[said.key]:
            yield f"{name}: {said.text!r} was accepted and is lost"
    for key, count in found.items():
        if count > 1 or key not in sent:
            yield f"{name}: {count} messages of {sent[key].text if key in sent else key!r}"
    for row in rows:
        if row["delivery"] == "cancelled" or row["number"] is None:
            yield f"{name}: {row['text']!r} is {row['delivery']} and belongs to no turn"
        elif turns[row["number"]]["state"] == "done" and not talk.chat.reply(row["number"]):
            yield f"{name}: {row['text']!r} counts as answered and has no reply"
    if [turn["number"] for turn in turns.values()] != list(range(1, len(turns) + 1)):
        yield f"{name}: the turns are numbered {list(turns)}"
    in_order = [row["text"] for row in rows if row["number"]]
    if talk.mode == "queue" and in_order != talk.chat.transcript():
        yield f"{name}: answered out of order"
    for number in turns:
        steps = [row["step"] for row in rows if row["number"] == number]
        if steps != sorted(steps):
            yield f"{name}: turn {number} took its messages out of order"


def _same(page: Page, fresh: Page) -> bool:
    """A fresh page has the newest turns alone; one that stayed open has them all."""
    shown = fresh.shown()
    return page.shown()[-len(shown) :] == shown if shown else not page.shown()


def follower_violations(follower: Follower) -> Iterator[str]:
    """A page that stayed open through everything shows what a fresh one shows, and what is
    stored."""
    if follower.problem:
        yield follower.problem
        follower.page, follower.problem = None, ""
        return
    talk, page = follower.talk, follower.page
    name = f"{talk.mode} {talk.model}"
    until = time.monotonic() + 20
    fresh = Page(talk.chat, client=follower.client)
    while page is None or page.version < fresh.version or not _same(page, fresh):
        if time.monotonic() > until:
            yield f"{name}: the open page differs from what is stored"
            follower.page = None  # a reload
            return
        time.sleep(0.2)
        page = follower.page
        fresh = Page(talk.chat, client=follower.client)
    if talk.model in WHOLE_TEXT:
        for number, turn in fresh.turns.items():
            shown = [
                plain(block.html + block.tail)
                for message in turn
                if message.role == "assistant"
                for block in message.blocks
                if block.kind == "text"
            ]
            if " ".join(shown) != " ".join(talk.chat.reply(number).split()):
                yield f"{name}: turn {number} shows other words than are stored"
