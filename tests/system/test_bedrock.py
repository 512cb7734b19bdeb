"""A Bedrock connection as people use it: entered in the form, validated, chatted with, stopped."""

from __future__ import annotations

import io
import uuid

import httpx
import pytest
from PIL import Image

from tests.fakes.bedrock import SESSION_ACCESS_KEY, SESSION_SECRET_KEY, SESSION_TOKEN
from tests.fakes.server import GOOD_KEY, key_hash
from tests.system.harness import wait_for
from tests.system.page import Page
from tests.system.parts import Chat, Parts

MODELS = [
    *("us.anthropic.echo-v1:0", "fast-60tps-240", "thinking-tools", "tools-2-0.2s", "tools-3-3s"),
    *("vision", "err-400-context", "error-mid"),
]
IAM = {
    "auth_type": "iam_credentials",
    "access_key_id": SESSION_ACCESS_KEY,
    "secret_access_key": SESSION_SECRET_KEY,
    "session_token": SESSION_TOKEN,
}
KEY = {"auth_type": "api_key", "api_key": GOOD_KEY}


def configure(parts: Parts, **fields: str) -> str:
    """Through the form; the slug, once its validation has ended."""
    slug = f"bedrock-{uuid.uuid4().hex[:8]}"
    data = {
        "name": "Bedrock",
        "slug": slug,
        "provider_type": "bedrock",
        "aws_region": "eu-central-1",
        "base_url": parts.fakes.bedrock,
        "models": "\n".join(MODELS),
        "default_model": MODELS[0],
        **fields,
    }
    answer = parts.admin.post("/connections/new/", data=data)
    assert answer.status_code in (302, 303), answer.text
    wait_for(lambda: status(parts, slug) in ("valid", "failed"), what="it is validated")
    return slug


def status(parts: Parts, slug: str) -> str:
    sql = "SELECT health, checking_until FROM connections_connection WHERE slug = ?"
    [row] = parts.rows(sql, slug)
    return "checking" if row["checking_until"] else row["health"]


def rungs(parts: Parts, slug: str) -> str:
    return parts.admin.get(f"/connections/{slug}/").text


@pytest.mark.parametrize("how", [IAM, KEY], ids=["IAM", "key"])
def test_it_is_configured_validated_and_chatted_with(parts: Parts, how: dict[str, str]):
    slug = configure(parts, **how)
    assert status(parts, slug) == "valid"
    hashed = key_hash(how.get("access_key_id") or how["api_key"])
    assert {record["key"] for record in parts.fakes.requests()} == {hashed}

    chat = Chat(parts, "tools-2-0.2s", connection=slug)
    page = Page(chat)
    chat.send("what time is it?")
    wait_for(lambda: parts.requests_with("what time is it?"), what="the first step")
    chat.send("and be brief")  # Bedrock's default is to steer
    page.follow(lambda page: page.state == "done")
    assert "Done after 2 tool rounds." in page.text()
    assert "You added: and be brief" in page.text()
    chat.wait_until_idle()
    assert chat.states() == ["done"]
    assert [one["delivery"] for one in chat.messages()] == ["sent", "delivered"]
    [turn] = chat.turns()
    assert turn["input_tokens"] and turn["output_tokens"]

    thinker = Chat(parts, "thinking-tools", connection=slug)
    thinker.send("think about it")
    thinker.wait_until_idle()
    thinker.send("and again")
    thinker.wait_until_idle()
    assert thinker.states() == ["done", "done"], thinker.turns()[-1]["error_detail"]

    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    chat.choose("vision")
    answer = chat.client.post(
        f"{chat.url}send/",
        data={"text": "look", "client_key": uuid.uuid4().hex},
        files={"images": ("red.png", picture.getvalue(), "image/png")},
    )
    assert answer.status_code in (200, 303)
    chat.wait_until_idle()
    assert chat.reply(2).startswith("I see 1 images: image/png")

    written = parts.output() + parts.database.read_bytes().decode("latin-1")
    for secret in (SESSION_ACCESS_KEY, SESSION_SECRET_KEY, SESSION_TOKEN, GOOD_KEY):
        assert secret not in written
        assert secret not in rungs(parts, slug)


def test_stop_closes_the_stream_and_keeps_the_text(parts: Parts):
    chat = Chat(parts, "fast-60tps-240", connection=configure(parts, **IAM))
    chat.send("go on")
    chat.wait_for_reply(20)
    chat.post("stop")
    wait_for(lambda: parts.requests_with("go on")[-1]["end"] == "aborted", 5, "it is closed")
    chat.wait_until_idle()
    assert chat.states() == ["stopped"]
    assert chat.reply(1)


def test_failures_say_what_to_do(parts: Parts):
    slug = configure(parts, **IAM | {"secret_access_key": "wrong/but/long/enough/0123456789"})
    assert status(parts, slug) == "failed"
    assert "AWS rejected these IAM credentials" in rungs(parts, slug)

    chat = Chat(parts, "error-mid", connection=configure(parts, **IAM))
    chat.send("half of it")
    chat.wait_until_idle()
    [turn] = chat.turns()
    assert (turn["state"], turn["error_kind"]) == ("failed", "overloaded")
    assert chat.reply(1) == "Halfway there"


def test_the_region_may_change_without_the_secret_and_nothing_else(parts: Parts):
    """S1. Without a base URL the secret belongs to AWS; the listener would see a call elsewhere."""
    slug = f"bedrock-{uuid.uuid4().hex[:8]}"
    made = {
        "name": "Bedrock",
        "slug": slug,
        "provider_type": "bedrock",
        "aws_region": "eu-central-1",
        "models": "us.anthropic.echo-v1:0",
        **IAM,
    }

    def edit(**changes: str) -> httpx.Response:
        data = {**made, "access_key_id": "", "secret_access_key": "", "session_token": ""}
        return parts.admin.post(f"/connections/{slug}/edit/", data=data | changes)

    def secret() -> dict:
        [row] = parts.rows(
            "SELECT s.binding, s.value FROM connections_secret s"
            " JOIN connections_connection c ON c.id = s.connection_id WHERE c.slug = ?",
            slug,
        )
        return row

    assert parts.admin.post("/connections/new/", data=made).status_code in (302, 303)
    before = secret()
    assert before["binding"] == "bedrock iam_credentials own"
    assert edit(aws_region="us-west-2").status_code in (302, 303)
    assert secret() == before
    for changes in (
        {"base_url": parts.fakes.bedrock},
        {"auth_type": "api_key"},
        {"provider_type": "anthropic", "auth_type": "api_key"},
        {"aws_region": "us-east-1.evil.example"},
    ):
        assert edit(**changes).status_code == 422, changes
    assert secret() == before
    assert parts.fakes.requests() == []
