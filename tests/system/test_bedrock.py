"""A Bedrock connection as people use it; what every provider does is in `test_table`."""

from __future__ import annotations

import uuid

import httpx

from tests.fakes.bedrock import SESSION_ACCESS_KEY, SESSION_SECRET_KEY, SESSION_TOKEN
from tests.system.harness import wait_for
from tests.system.parts import Chat, Parts

MODELS = ["us.anthropic.echo-v1:0", "error-mid"]
IAM = {
    "auth_type": "iam_credentials",
    "access_key_id": SESSION_ACCESS_KEY,
    "secret_access_key": SESSION_SECRET_KEY,
    "session_token": SESSION_TOKEN,
}


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


def test_an_error_in_mid_stream_keeps_what_was_said(parts: Parts):
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
