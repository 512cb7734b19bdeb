"""Whole turns in this process: the agent against the fake providers, on the test database."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import override_settings
from PIL import Image

from connections.models import Connection
from sessions import choosing, sending, turns
from sessions.agent import Live
from sessions.history import prepare
from sessions.images import check_images
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from sessions.reply import Reply, blocks_of
from sessions.titles import mini_model
from sessions.wording import BECOMES, worded
from sessions.worker import Crew
from tests.builders import make_connection
from tests.crew import running_crew
from tests.fakes.server import FakeProviders
from workspaces.models import User, Workspace

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def crew(fakes: FakeProviders) -> Iterator[Crew]:
    fakes.reset()
    with running_crew() as running:
        yield running


@pytest.fixture
def ask(
    crew: Crew, fakes: FakeProviders, workspace: Workspace, bob: User
) -> Callable[..., ChatSession]:
    """`ask(model, *texts)`: a new session on a connection with that model; each text is sent and
    answered in turn."""

    def start(model: str, *texts: str, **fields: object) -> ChatSession:
        anthropic = fields.pop("anthropic", False)
        connection = Connection.objects.filter(slug="fake").first() or make_connection(
            "fake",
            key=fakes.good_key,
            **{
                "provider_type": "anthropic_compat" if anthropic else "openai_compat",
                "base_url": fakes.anthropic if anthropic else fakes.openai,
                "models": [model],
                "default_model": model,
                **fields,
            },
        )
        chat = ChatSession.objects.create(workspace=workspace, owner=bob, connection=connection)
        for text in texts:
            finish(crew, sending.send(chat.pk, bob, text, ring=False).turn)
        return chat

    return start


def finish(crew: Crew, turn: Turn | None) -> Turn:
    assert turn is not None
    assert crew.take(turn.pk)
    return ended(turn)


def ended(turn: Turn, seconds: float = 30) -> Turn:
    until(lambda: not Turn.objects.get(pk=turn.pk).is_active, seconds)
    turn.refresh_from_db()
    return turn


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def last(chat: ChatSession) -> Turn:
    return Turn.objects.filter(chat=chat).order_by("-number")[0]


def test_a_reply_is_stored_with_its_usage(ask, fakes):
    chat = ask("echo", "Hello there")
    reply = Message.objects.get(chat=chat, role="assistant")
    assert (reply.text, reply.is_complete, reply.step) == ("Hello there", True, 1)
    turn = last(chat)
    assert turn.state == Turn.State.DONE
    assert turn.input_tokens and turn.output_tokens
    assert turn.context_tokens == turn.input_tokens + turn.output_tokens


def test_the_transcript_is_sent_again_with_the_next_turn(ask, fakes):
    ask("echo", "one", "two")
    texts = [(row["role"], row["text"]) for row in fakes.requests()[-1]["texts"]]
    assert texts == [("user", "one"), ("assistant", "one"), ("user", "two")]


def test_the_workspaces_instructions_are_the_system_prompt(ask, fakes, workspace):
    workspace.instructions = "Answer in verse."
    workspace.save()
    ask("echo", "hi")
    assert fakes.requests()[-1]["system"] == "Answer in verse."


@pytest.mark.parametrize("anthropic", [False, True])
def test_a_steered_message_goes_out_between_the_tools_and_the_next_request(
    ask, crew, fakes, bob, anthropic
):
    chat = ask("tools-3-0.3s", anthropic=anthropic, mid_stream_behavior="steer")
    turn = sending.send(chat.pk, bob, "start", ring=False).turn
    assert crew.take(turn.pk)
    until(lambda: fakes.requests(status=200))
    steered = sending.send(chat.pk, bob, "and be brief").message
    assert steered.delivery == Message.Delivery.STEERING
    ended(turn)
    steered.refresh_from_db()
    assert (steered.delivery, steered.turn) == ("delivered", turn)
    assert steered.step >= 1
    assert any("and be brief" in row["text"] for row in fakes.requests()[-1]["texts"])
    assert Turn.objects.filter(chat=chat).count() == 1


def test_tool_calls_and_their_results_are_one_message_a_step(ask):
    chat = ask("tools", "what time is it?")
    steps = list(Message.objects.filter(chat=chat, role="assistant").order_by("step"))
    kinds = [[part["t"] for part in step.parts] for step in steps]
    assert kinds[0] == ["text", "tool_call", "tool_result"]
    assert kinds[-1] == ["text"]


def test_a_rate_limit_before_the_first_token_is_tried_again(ask, fakes):
    chat = ask("err-429-then-ok-after-1", "hello")
    assert last(chat).state == Turn.State.DONE
    assert [record["status"] for record in fakes.requests()] == [429, 200]


def test_a_long_retry_after_fails_at_once(ask, fakes):
    chat = ask("err-429-after-60", "hello")
    turn = last(chat)
    assert (turn.state, turn.error_kind, turn.retry_after) == ("failed", "rate_limited", 60)
    assert len(fakes.requests()) == 1


@pytest.mark.parametrize(
    ("model", "kind"),
    [("err-401", "auth"), ("err-quota", "quota"), ("cut", "truncated"), ("early-end", "truncated")],
)
def test_a_failure_has_its_kind_and_is_not_tried_again(ask, fakes, model, kind):
    chat = ask(model, "hello")
    assert (last(chat).state, last(chat).error_kind) == ("failed", kind)
    assert len(fakes.requests()) == 1


def test_the_text_before_a_cut_is_kept(ask):
    chat = ask("cut", "hello")
    reply = Message.objects.get(chat=chat, role="assistant")
    assert reply.text and reply.is_complete


def test_stop_closes_the_request_and_keeps_the_text(ask, crew, fakes, bob):
    chat = ask("fast-30tps-900")
    turn = sending.send(chat.pk, bob, "go", ring=False).turn
    assert crew.take(turn.pk)
    until(lambda: Message.objects.filter(chat=chat, role="assistant").exclude(text="").exists())
    turns.stop(chat.pk, bob)
    asked = time.monotonic()
    fakes.wait_for(lambda: fakes.requests(end="aborted"), seconds=5)
    assert time.monotonic() - asked < 2
    assert ended(turn).state == Turn.State.STOPPED
    assert Message.objects.get(chat=chat, role="assistant").text


def test_a_disabled_connection_fails_the_turn_without_a_call(ask, crew, fakes, bob):
    chat = ask("echo")
    turn = sending.send(chat.pk, bob, "go", ring=False).turn
    Connection.objects.update(enabled=False)
    assert finish(crew, turn).error_kind == "disabled"
    assert fakes.requests() == []


def test_images_go_to_models_that_take_them_and_are_refused_by_others(ask, crew, fakes, bob):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    images = check_images([SimpleUploadedFile("../x.svg", file.getvalue(), "text/html")])
    plain = ask("echo", models=["echo", {"id": "vision", "supportsImages": True}])
    with pytest.raises(Refused) as refused:
        sending.send(plain.pk, bob, "look", images=images, ring=False)
    assert refused.value.kind == "images"
    choosing.choose_model(plain.pk, bob, "vision")
    finish(crew, sending.send(plain.pk, bob, "look", images=images, ring=False).turn)
    assert "image/png" in Message.objects.get(chat=plain, role="assistant").text


@pytest.mark.parametrize(
    ("anthropic", "said"), [(False, "medium"), (True, "budget 8192")], ids=["openai", "anthropic"]
)
def test_the_level_of_thinking_and_the_longest_reply_go_with_the_next_request(
    ask, crew, fakes, bob, anthropic, said
):
    thinks = {"id": "echo", "supportsThinking": True}
    chat = ask("echo", "as usual", models=[thinks, "thinking"], anthropic=anthropic)
    choosing.choose_options(chat.pk, bob, {"thinking": "medium"})
    finish(crew, sending.send(chat.pk, bob, "think", ring=False).turn)
    choosing.choose_options(chat.pk, bob, {"max_output": "3000"})
    finish(crew, sending.send(chat.pk, bob, "be brief", ring=False).turn)
    # Another model that takes no level is left alone, and the choice is kept.
    choosing.choose_model(chat.pk, bob, "thinking")
    finish(crew, sending.send(chat.pk, bob, "another", ring=False).turn)
    asked = [(r["thinking"], r["max_tokens"]) for r in fakes.requests()]
    brief = "medium" if not anthropic else "budget 1500"
    assert asked == [("", 4_096), (said, 16_384), (brief, 3_000), ("", 3_000)]
    assert ChatSession.objects.get(pk=chat.pk).thinking == "medium"


@pytest.mark.parametrize(
    "wanted",
    [
        {"thinking": "low"},
        {"thinking": "x"},
        {"max_output": "0"},
        {"max_output": "64001"},
        {"max_output": "1e3"},
        {"max_output": "٣٠٠"},
        {"max_output": "-300"},
        {"max_output": "9" * 5000},
    ],
)
def test_what_a_model_does_not_take_is_refused(ask, bob, wanted):
    chat = ask("echo")
    with pytest.raises(Refused) as refused:
        choosing.choose_options(chat.pk, bob, wanted)
    assert refused.value.kind in wanted
    chat.refresh_from_db()
    assert (chat.thinking, chat.max_output) == ("", None)


def test_whole_old_turns_are_left_out_when_the_window_is_full(ask, fakes):
    model = {"id": "fast-500tps-3", "contextWindow": 4_000}
    chat = ask("fast-500tps-3", *(f"{n} " + "word " * 500 for n in range(6)), models=[model])
    turn = last(chat)
    assert turn.state == Turn.State.DONE
    assert turn.left_out_before > 1
    sent = [row["text"] for row in fakes.requests()[-1]["texts"]]
    assert sent[-1].startswith("5 ")
    assert not any(text.startswith("0 ") for text in sent)
    # Turns are left out whole: what remains begins with a person's message.
    assert fakes.requests()[-1]["texts"][0]["role"] == "user"


def test_a_long_session_costs_only_what_the_window_takes(ask, bob, django_assert_max_num_queries):
    chat = ask("echo", models=[{"id": "echo", "contextWindow": 4_000}])
    rows = []
    for number in range(1, 1001):
        turn = Turn.objects.create(chat=chat, number=number, state="done", model="echo")
        rows += [
            Message(chat=chat, seq=2 * number, role="user", turn=turn, text="w " * 100,
                    parts=[{"t": "text", "text": "w " * 100}]),
            Message(chat=chat, seq=2 * number + 1, role="assistant", turn=turn, step=1, text="ok",
                    parts=[{"t": "text", "text": "ok"}]),
        ]  # fmt: skip
    Message.objects.bulk_create(rows)
    sent = sending.send(chat.pk, bob, "now", ring=False)
    turn = turns.claim(sent.turn.pk)
    with django_assert_max_num_queries(8):
        prepared = prepare(turn)
    assert prepared.left_out_before > 900


def test_a_title_is_made_once_after_the_first_turn(ask, crew, fakes, bob):
    with override_settings(TITLES=True):
        chat = ask("echo", "How do I reset a password?", "and then?")
        until(lambda: ChatSession.objects.get(pk=chat.pk).title_is_final)
    asked = [r for r in fakes.requests() if "title of two to five words" in r["texts"][-1]["text"]]
    assert len(asked) == 1


def test_a_title_that_fails_is_silent(ask, fakes):
    with override_settings(TITLES=True):
        chat = ask("err-401", "How do I reset a password, again and again and again, please?")
    chat.refresh_from_db()
    assert chat.title == "How do I reset a password, again and again and…"


def test_the_small_model_makes_the_title():
    claude = Connection(provider_type="anthropic", models=["opus", "haiku-4", "sonnet"])
    other = Connection(provider_type="openai_compat", models=["big", "x-mini", "y-flash"])
    plain = Connection(provider_type="openai_compat", models=["big", "small"])
    assert [mini_model(c, "m") for c in (claude, other, plain)] == ["haiku-4", "x-mini", "small"]


class Page:
    """Collects what a reply publishes, as the page's script applies it."""

    def __init__(self) -> None:
        self.text: dict[int, str] = {}
        self.html: dict[int, str] = {}

    def add_text(self, chat, message, block, kind, offset, text) -> None:
        held = self.text.get(block, "")
        assert offset == len(held.encode("utf-16-le")) // 2
        self.text[block] = held + text

    def add(self, chat, name, data, *, urgent=False) -> None:
        shown = worded(name, data) if name in BECOMES else data
        self.html[data["b"]] = shown["h"]

    def hurry(self) -> None:
        pass


@pytest.mark.parametrize("size", [1, 3, 17, 400])
def test_a_growing_reply_ends_as_the_stored_one_is_drawn(size):
    from tests.fakes.models import MARKDOWN

    page = Page()
    reply = Reply("c", "m", page)
    reply.add_thinking("first 🧠 I think")
    reply.end_thinking(None)
    for start in range(0, len(MARKDOWN), size):
        reply.add_text(MARKDOWN[start : start + size])
        if start % 5 == 0:
            reply.render_open()
    parts = reply.finish()
    stored = blocks_of(Message(parts=parts, is_complete=True))
    assert [page.html[block.index] for block in stored] == [block.html for block in stored]


def test_a_worker_goes_on_after_a_fault_in_its_chores(crew, monkeypatch):
    swept: list[int] = []

    def sweep() -> list[object]:
        swept.append(1)
        if len(swept) == 1:
            raise RuntimeError
        return []

    monkeypatch.setattr(turns, "sweep", sweep)
    crew.start()
    until(lambda: len(swept) > 1)


def test_a_stop_between_the_claim_and_the_start_is_heard(ask, crew, bob, fakes):
    chat = ask("echo")
    turn = turns.claim(sending.send(chat.pk, bob, "never said", ring=False).turn.pk)
    live = Live(turn, turn.lease_token)
    live.cancel("stop")
    crew.live[live.token] = live
    crew.runtime.submit(crew._run(live)).result(15)
    assert ended(turn).state == Turn.State.STOPPED
    assert not fakes.requests()
