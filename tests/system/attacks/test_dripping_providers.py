"""A provider that sends a byte now and then, for ever: no pause is too long, the whole is. The
product runs in this process, with a turn's fifteen minutes cut to seconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from connections import actions
from sessions import agent, sending
from sessions.models import ChatSession, Message, Turn
from sessions.worker import Crew
from tests.crew import running_crew
from tests.system.attacks.listener import Listener, Request, response
from tests.system.attacks.test_hostile_providers import (
    BEFORE,
    OPENED,
    chunk,
    delta,
    frame,
    head,
    said,
)
from tests.system.harness import wait_for

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = {
    "openai_compat": {"auth_type": "api_key_with_endpoint", "custom_endpoint_api": ""},
    "bedrock": {"auth_type": "api_key", "aws_region": "eu-central-1"},
    "openai": {"auth_type": "api_key_with_endpoint"},
}
DROPS = {"openai_compat": b": \n", "bedrock": frame("x", b""), "openai": b": \n"}
STARTS = {
    "openai_compat": [head(), chunk(content=BEFORE)],
    "bedrock": [head("application/vnd.amazon.eventstream"), delta(BEFORE)],
    "openai": [head(), OPENED, said(BEFORE)],
}


@pytest.fixture
def crew() -> Iterator[Crew]:
    with running_crew() as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_given_up_with_what_came_before(crew, alice, workspace, monkeypatch, kind):
    monkeypatch.setattr(agent, "MAX_SECONDS", 5.0)
    gone = []

    def answer(request: Request) -> bytes | Iterator[bytes]:
        if request.method == "GET":
            return response(200, {"data": []})
        return drip()

    def drip() -> Iterator[bytes]:
        yield from STARTS[kind]
        try:
            for _ in itertools.count():
                yield DROPS[kind]
                time.sleep(0.05)
        finally:
            gone.append(True)

    with Listener(answer) as provider:
        data = {
            "name": kind,
            "provider_type": kind,
            "base_url": f"{provider.url}/v1",
            "models": ["m"],
            "default_model": "m",
            **KINDS[kind],
        }
        made = actions.create(alice, data, secret={"api_key": "sk-drips"})
        chat = ChatSession.objects.create(workspace=workspace, owner=alice, connection=made)
        started = sending.send(chat.pk, alice, "hello", ring=False).turn
        assert crew.take(started.pk)
        wait_for(lambda: not Turn.objects.get(pk=started.pk).is_active, 30)
        started.refresh_from_db()
        assert (started.state, started.error_kind) == (Turn.State.FAILED, "turn_timeout")
        assert Message.objects.get(turn=started, role="assistant").text == BEFORE
        wait_for(lambda: gone, 20, "the provider's side is closed")
