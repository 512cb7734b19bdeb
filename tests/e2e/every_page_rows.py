"""The world of `tests.world` in a running server, and where its pages are: `manage.py shell` calls
`tell` in the environment of the server."""

from __future__ import annotations

import json

from django.urls import reverse

from sessions.models import ChatSession, Message, Turn
from tests.test_routes import expected, routes
from tests.world import World, make_talk, make_world

RICH = """# Packing

A **list** with `code` and [a link](https://example.com/):

1. one
2. two

| day | rain |
|-----|-----:|
| Mon | 3 mm |

> Said before.

```python
def pack(things: list[str]) -> int:
    return len(things)  # all of them
```
"""


def own_sessions(world: World) -> dict[str, str]:
    """An instance admin's: one with all that a reply can show, and one that is still empty."""
    alice = world.people["alice"]
    chat = make_talk(world.support, alice, world.connection, shared=True).chat
    for number, state in ((2, "done"), (3, "failed"), (4, "interrupted")):
        turn = Turn.objects.create(
            chat=chat,
            number=number,
            state=state,
            error_kind="auth" if state == "failed" else "",
            model="small",
            started_by=alice,
        )
        said = {"chat": chat, "turn": turn}
        Message.objects.create(
            **said, seq=number * 10, role="user", author=alice, text=RICH, delivery="sent"
        )
        parts = [
            {"t": "thinking", "text": "Think first.", "sig": ""},
            {"t": "tool_call", "id": "c", "name": "current_time", "args": {"zone": "UTC"}},
            {"t": "tool_result", "id": "c", "name": "current_time", "text": "12:00"},
            {"t": "text", "text": RICH},
        ]
        Message.objects.create(
            **said,
            seq=number * 10 + 1,
            role="assistant",
            text=RICH,
            parts=parts,
            step=1,
            is_complete=True,
        )
    fresh = ChatSession.objects.create(workspace=world.support, owner=alice)
    return {
        "sessions:delete": reverse("sessions:delete", args=["support", chat.pk]),
        "sessions:transfer": reverse("sessions:transfer", args=["support", chat.pk]),
        "a session of all": chat.get_absolute_url(),
        "a new session": fresh.get_absolute_url(),
    }


def pages() -> dict[str, dict[str, str]]:
    """Name of a route → address, of every GET: what answers an instance admin with 200, what
    answers everybody, and all the others."""
    found: dict[str, dict[str, str]] = {"admin": {}, "anybody": {}, "others": {}}
    world = make_world()
    found["admin"] |= own_sessions(world)
    for name, route in routes(world).items():
        if "GET" not in route.methods or name in found["admin"]:
            continue
        for attempt in route.tries:
            answers = expected(route, attempt, "alice", "GET")
            if 200 in answers:
                kind = "anybody" if attempt.gate == "everybody" else "admin"
                found[kind][name] = reverse(name, args=attempt.args)
                break
        else:
            found["others"][name] = reverse(name, args=route.tries[0].args)
    return found


def tell() -> None:
    print(json.dumps(pages()))
