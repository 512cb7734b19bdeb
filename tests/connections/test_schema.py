"""The reference's JSON in and out."""

from __future__ import annotations

import datetime as dt
import json
import time

import pytest

from connections import schema
from connections.choices import ALLOWED_AUTH, AuthType, ProviderType
from connections.models import Connection
from connections.schema import BadFile, Result
from workspaces.models import Workspace

REFERENCE = {
    "workspaces": [
        {
            "id": "ws-1",
            "name": "Support",
            "rootPath": "/somewhere",
            "createdAt": 1737451800000,
            "defaults": {"defaultLlmConnection": "local"},
        }
    ],
    "defaultLlmConnection": "anthropic-api",
    "llmConnections": [
        {
            "slug": "anthropic-api",
            "name": "Anthropic (API Key)",
            "providerType": "anthropic",
            "authType": "api_key",
            "baseUrl": "https://api.anthropic.com",
            "defaultModel": "claude-sonnet-4-6",
            "createdAt": 1737451800000,
        },
        {
            "slug": "local",
            "name": "Local",
            "providerType": "openai_compat",
            "authType": "none",
            "baseUrl": "http://localhost:11434/v1",
            "models": ["qwen3", {"id": "llava", "contextWindow": 32768, "supportsImages": True}],
            "customEndpoint": {"api": "openai-completions", "supportsImages": False},
            "midStreamBehavior": "steer",
            "defaultModel": "qwen3",
            "createdAt": 1737451800000,
        },
    ],
}
SIX_TYPES = [
    {"providerType": "anthropic", "authType": "oauth", "defaultModel": "claude-sonnet-4-6"},
    {
        "providerType": "anthropic_compat",
        "authType": "api_key_with_endpoint",
        "baseUrl": "https://openrouter.ai/api",
        "models": ["anthropic/claude-sonnet-4.6"],
        "defaultModel": "anthropic/claude-sonnet-4.6",
        "authHeader": "bearer",
    },
    {"providerType": "openai", "authType": "oauth", "midStreamBehavior": "queue"},
    {
        "providerType": "openai_compat",
        "authType": "api_key_with_endpoint",
        "baseUrl": "https://ai-gateway.vercel.sh/v1",
        "models": ["a/b", {"id": "c/d", "shortName": "d", "reasoning": {"effort": "high"}}],
        "defaultModel": "c/d",
        "maxTokensField": "max_completion_tokens",
    },
    {"providerType": "bedrock", "authType": "iam_credentials", "awsRegion": "eu-central-1"},
    {
        "providerType": "vertex",
        "authType": "service_account_file",
        "gcpProjectId": "team-project",
        "gcpRegion": "us-central1",
    },
]


def file_of(*connections, **more) -> bytes:
    return json.dumps({"llmConnections": list(connections), **more}).encode()


def item_of(**entry) -> schema.Item:
    """The item of a file with one connection, called “One” unless named."""
    return schema.read(file_of({"slug": "one", "name": "One", **entry})).items[0]


def compat(**entry) -> dict:
    return {
        "slug": "one",
        "name": "One",
        "providerType": "openai_compat",
        "authType": "api_key_with_endpoint",
        "baseUrl": "https://api.example.com/v1",
        "models": ["m"],
        "defaultModel": "m",
        "createdAt": 1737451800123,
        **entry,
    }


def connection_of(row: schema.Row | schema.Item, **more) -> Connection:
    """The connection a row would make, unsaved."""
    fields = {**row.values, "unknown_fields": row.unknown_fields, "imported_as": row.imported_as}
    if row.created_at:
        fields["created_at"] = row.created_at
    return Connection(**{**fields, **more})


def there_and_back(entry: dict) -> dict:
    [row] = schema.plan(schema.read(file_of(entry)), connections=[]).rows
    assert row.result == Result.NEW, row.reason
    return schema.export_connection(connection_of(row, last_used_at=row.last_used_at))


# -- a good file -----------------------------------------------------------------------------------


def test_the_reference_s_file_is_read_whole():
    document = schema.read(json.dumps(REFERENCE).encode())
    first, second = document.items
    assert (first.slug, first.values["provider_type"]) == ("anthropic-api", "anthropic")
    assert first.created_at == dt.datetime(2025, 1, 21, 9, 30, tzinfo=dt.UTC)
    assert second.values["models"][1]["contextWindow"] == 32768
    assert second.values["custom_endpoint_api"] == "openai-completions"
    assert second.values["supports_images"] is False
    assert document.default == "anthropic-api"
    assert document.workspaces == (schema.FileWorkspace("Support", "", "local"),)


def test_the_reference_s_file_comes_out_as_it_went_in():
    for entry in REFERENCE["llmConnections"]:
        assert there_and_back(entry) == entry


@pytest.mark.parametrize("entry", SIX_TYPES, ids=lambda e: e["providerType"])
def test_every_provider_type_comes_out_as_it_went_in(entry):
    entry = {"slug": "one", "name": "One", "createdAt": 1, "lastUsedAt": 1737451800123, **entry}
    assert there_and_back(entry) == entry


def test_unknown_fields_come_out_as_they_went_in():
    entry = compat(
        modelSelectionMode="userDefined3Tier",
        future={"deep": [1, 2.5, None, True, "text"], "maxTokens": 8192},
        customEndpoint={"api": "openai-completions", "timeoutMs": 5000},
        models=[{"id": "m", "vendor": {"x": 1}}],
    )
    assert there_and_back(entry) == entry


def test_a_base_url_keeps_its_text_until_it_is_edited():
    entry = compat(baseUrl="https://API.example.com/v1/chat/completions/")
    assert there_and_back(entry) == entry
    item = schema.read(file_of(entry)).items[0]
    assert item.values["base_url"] == "https://api.example.com/v1"
    edited = connection_of(item, base_url="https://other.example.com/v1")
    assert schema.export_connection(edited)["baseUrl"] == "https://other.example.com/v1"


def test_a_byte_order_mark_is_no_fault():
    assert len(schema.read(b"\xef\xbb\xbf" + file_of(compat())).items) == 1


def test_a_missing_name_is_the_slug_and_a_missing_slug_is_made_from_the_name():
    nameless, slugless = compat(slug="team-llm", name=None), compat(slug=None, name="Größe № 1!")
    document = schema.read(file_of(nameless, slugless, compat(slug="", name="日本語")))
    rows = schema.plan(document, connections=[]).rows
    assert [(r.slug, r.name) for r in rows] == [
        ("team-llm", "team-llm"),
        ("groe-no-1", "Größe № 1!"),
        ("connection", "日本語"),
    ]


def test_a_missing_default_model_is_the_first_and_a_missing_date_is_now():
    item = schema.read(file_of(compat(defaultModel=None, models=[{"id": "a"}, "b"]))).items[0]
    assert item.values["default_model"] == "a"
    document = schema.read(file_of(compat(createdAt=None)))
    [row] = schema.plan(document, connections=[]).rows
    assert abs(row.created_at.timestamp() - time.time()) < 60


# -- both generations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "pair", "base_url"),
    [
        (
            {"providerType": "pi", "piAuthProvider": "openai-codex", "authType": "oauth"},
            ("openai", "oauth"),
            "",
        ),
        (
            {"providerType": "pi", "piAuthProvider": "openai", "authType": "api_key"},
            ("openai_compat", "api_key_with_endpoint"),
            "https://api.openai.com/v1",
        ),
        (
            {
                "providerType": "pi",
                "piAuthProvider": "amazon-bedrock",
                "authType": "iam_credentials",
                "awsRegion": "us-east-1",
            },
            ("bedrock", "iam_credentials"),
            "",
        ),
        (
            {
                "providerType": "pi",
                "piAuthProvider": "amazon-bedrock",
                "authType": "bearer_token",
                "awsRegion": "us-east-1",
            },
            ("bedrock", "api_key"),
            "",
        ),
        (
            {
                "providerType": "pi",
                "piAuthProvider": "google-vertex",
                "authType": "environment",
                "gcpProjectId": "team-project",
                "gcpRegion": "global",
            },
            ("vertex", "environment"),
            "",
        ),
        (
            {"providerType": "pi", "piAuthProvider": "anthropic", "authType": "api_key"},
            ("anthropic", "api_key"),
            "",
        ),
        (
            {"providerType": "pi", "piAuthProvider": "openrouter", "authType": "api_key"},
            ("openai_compat", "api_key_with_endpoint"),
            "https://openrouter.ai/api/v1",
        ),
        (
            {"providerType": "pi", "piAuthProvider": "groq", "authType": "api_key"},
            ("openai_compat", "api_key_with_endpoint"),
            "https://api.groq.com/openai/v1",
        ),
        (
            {
                "providerType": "pi_compat",
                "authType": "api_key_with_endpoint",
                "baseUrl": "https://h.example/v1",
                "customEndpoint": {"api": "anthropic-messages"},
            },
            ("anthropic_compat", "api_key_with_endpoint"),
            "https://h.example",
        ),
        (
            {"providerType": "pi_compat", "authType": "none", "baseUrl": "http://localhost:1/v1"},
            ("openai_compat", "none"),
            "http://localhost:1/v1",
        ),
        ({"type": "anthropic", "authType": "oauth"}, ("anthropic", "oauth"), ""),
        ({"type": "openai", "authType": "api_key"}, ("openai", "api_key"), ""),
        (
            {"type": "openai-compat", "authType": "api_key", "baseUrl": "https://h.example/v1"},
            ("openai_compat", "api_key_with_endpoint"),
            "https://h.example/v1",
        ),
        (
            {"type": "openai-compat", "baseUrl": "https://h.example/v1"},
            ("openai_compat", "none"),
            "https://h.example/v1",
        ),
        (
            {
                "providerType": "anthropic",
                "authType": "api_key",
                "baseUrl": "https://api.anthropic.com.evil.example",
            },
            ("anthropic_compat", "api_key_with_endpoint"),
            "https://api.anthropic.com.evil.example",
        ),
        (
            {"providerType": "openai", "authType": "bearer_token"},
            ("openai", "api_key"),
            "",
        ),
        (
            {"providerType": "bedrock", "authType": "bearer_token", "awsRegion": "us-east-1"},
            ("bedrock", "api_key"),
            "",
        ),
    ],
)
def test_each_generation_is_translated_and_comes_out_in_its_own_words(entry, pair, base_url):
    entry = {
        "slug": "one",
        "name": "One",
        "defaultModel": "pi/m" if entry.get("providerType", "").startswith("pi") else "m",
        "createdAt": 5,
        **entry,
    }
    item = schema.read(file_of(entry)).items[0]
    assert item.refused == ""
    assert (item.values["provider_type"], item.values["auth_type"]) == pair
    assert item.values["base_url"] == base_url
    assert item.values["default_model"] == "m"
    assert there_and_back(entry) == entry


def test_a_bearer_token_at_a_base_url_is_sent_as_a_bearer():
    entry = {
        "slug": "one",
        "name": "One",
        "providerType": "anthropic",
        "authType": "bearer_token",
        "baseUrl": "https://openrouter.ai/api/v1",
        "defaultModel": "m",
    }
    item = schema.read(file_of(entry)).items[0]
    assert item.values["provider_type"] == "anthropic_compat"
    assert item.values["auth_header"] == "bearer"
    assert item.values["base_url"] == "https://openrouter.ai/api"


def test_the_newer_generation_s_model_prefix_goes_and_comes_back_even_after_an_edit():
    entry = compat(
        providerType="pi",
        piAuthProvider="openrouter",
        authType="api_key",
        models=["pi/a", {"id": "pi/b", "contextWindow": 1000}],
        defaultModel="pi/b",
    )
    assert there_and_back(entry) == entry
    item = schema.read(file_of(entry)).items[0]
    assert item.values["models"] == ["a", {"id": "b", "contextWindow": 1000}]
    edited = schema.export_connection(connection_of(item, models=["b", "c"]))
    assert (edited["providerType"], edited["models"]) == ("pi", ["pi/b", "pi/c"])


def test_an_edited_provider_type_comes_out_in_the_older_words():
    entry = compat(providerType="pi", piAuthProvider="openai", authType="api_key", baseUrl=None)
    item = schema.read(file_of(entry)).items[0]
    out = schema.export_connection(connection_of(item, auth_type="none"))
    assert (out["providerType"], out["authType"]) == ("openai_compat", "none")
    assert "piAuthProvider" not in out
    assert out["baseUrl"] == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"providerType": "copilot", "authType": "oauth"}, "Copilot"),
        (
            {"providerType": "pi", "piAuthProvider": "github-copilot", "authType": "oauth"},
            "Copilot",
        ),
        (
            {"providerType": "pi", "piAuthProvider": "nobody-knows", "authType": "api_key"},
            "nobody-knows",
        ),
        ({"providerType": "pi", "authType": "api_key"}, "isn't known"),
        ({"providerType": "mystery", "authType": "api_key"}, "anthropic_compat"),
        ({"type": "mystery"}, "mystery"),
        ({"authType": "api_key"}, "providerType"),
        ({"providerType": "bedrock", "authType": "oauth", "awsRegion": "us-east-1"}, "IAM"),
        ({"providerType": "bedrock", "authType": "iam_credentials"}, "awsRegion"),
        ({"providerType": "vertex", "authType": "environment"}, "gcpProjectId"),
        (
            {"providerType": "anthropic", "authType": "oauth", "baseUrl": "https://evil.example"},
            "Anthropic itself",
        ),
        ({"providerType": "anthropic", "authType": "api_key", "models": "m"}, ""),
        ({"providerType": "anthropic", "authType": "api_key", "models": {"id": "m"}}, "models"),
        ({"providerType": "anthropic", "authType": "api_key", "models": [{"x": 1}]}, "models"),
        ({"providerType": "anthropic", "authType": ["api_key"]}, "texts"),
        ({"providerType": "anthropic", "authType": "api_key", "customEndpoint": 1}, "object"),
        (
            {"providerType": "anthropic", "authType": "api_key", "customEndpoint": {"api": "x"}},
            "customEndpoint.api",
        ),
        ({"providerType": "anthropic", "authType": "api_key", "name": 5}, "text"),
        ({"providerType": "anthropic", "authType": "api_key", "name": "x" * 101}, "too long"),
        ({"providerType": "anthropic", "authType": "api_key", "name": "a\x00b"}, "stored"),
        ({"providerType": "anthropic", "authType": "api_key", "name": "a\ud800b"}, "stored"),
        ({"providerType": "anthropic", "authType": "api_key", "x": {"\x00": 1}}, "stored"),
        ({"providerType": "anthropic", "authType": "api_key", "slug": "new"}, "slug"),
        ({"providerType": "anthropic", "authType": "api_key", "slug": "../etc"}, "slug"),
        ({"providerType": "anthropic", "authType": "api_key", "slug": "UPPER"}, "slug"),
        ({"providerType": "anthropic", "authType": "api_key", "slug": "a\n"}, ""),
        ({"providerType": "anthropic", "authType": "api_key", "awsProfile": "root"}, "awsProfile"),
        ({"providerType": "anthropic", "authType": "api_key", "command": "id"}, "command"),
        (
            {"providerType": "bedrock", "authType": "environment", "credential_process": "id"},
            "credential_process",
        ),
        (compat(baseUrl="file:///etc/passwd"), "baseUrl"),
        (compat(baseUrl="https://h.example/v1?x=1"), "baseUrl"),
        (compat(baseUrl=None), "baseUrl"),
        (compat(models=None, defaultModel=None), "defaultModel"),
        (compat(defaultModel="other"), "defaultModel"),
        (compat(models=[{"id": "m", "contextWindow": -1}]), "contextWindow"),
        (compat(filler="x" * 500_001), "too long"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_reason(entry, word):
    item = item_of(**entry)
    if word:
        assert word in item.refused
        assert item.values == {}
    else:  # harmless variants of what a person may write
        assert item.refused == ""


def test_a_refused_connection_keeps_no_other_out():
    document = schema.read(file_of("nonsense", {}, compat(slug="good")))
    assert [bool(i.refused) for i in document.items] == [True, True, False]


# -- secrets ---------------------------------------------------------------------------------------

CANARY = "sk-canary-0123456789abcdef"


@pytest.mark.parametrize(
    "entry",
    [
        {"apiKey": "short"},
        {"x-api-key": "short"},
        {"password": 12345678},
        {"oauth": {"accessToken": "short", "refresh_token": "short"}},
        {"secretAccessKey": "wJalrXUtnFEMI/K7MDENG"},
        {"headers": {"X-Team": "short"}},
        {"anything": CANARY},
        {"list": ["plain", CANARY]},
        {"list": [{"deep": f"Bearer {CANARY}"}]},
        {"anything": "AKIAIOSFODNN7EXAMPLE"},
        {"anything": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"},
        {"anything": "-----BEGIN PRIVATE KEY-----"},
        {"anything": "https://user:pass@h.example/"},
        {"anything": "0a1b2c3d4e5f60718293a4b5c6d7e8f9"},
        {CANARY: True},
        {"models": [{"id": "m", "apiKey": "short"}]},
        {"models": ["m", CANARY]},
        {"customEndpoint": {"api": "openai-completions", "token": "short"}},
    ],
    ids=lambda e: next(iter(e)),
)
def test_what_looks_like_a_secret_is_left_out_and_said_so(entry):
    item = item_of(**compat(**entry))
    assert item.refused == ""
    kept = repr(item) + json.dumps(there_and_back(compat(**entry)))
    for secret in (CANARY, "short", "12345678", "wJalr", "AKIA", "eyJ", "BEGIN", "user:", "0a1b2c"):
        assert secret not in kept
    assert any("looks like a secret" in note for note in item.notes)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": f"Mine {CANARY}"},
        {"slug": CANARY},
        {"baseUrl": f"https://h.example/{CANARY}/v1"},
        {"defaultModel": CANARY},
        {"midStreamBehavior": CANARY},
        {"codexPath": f"/tmp/{CANARY}"},
        {"authType": CANARY},
        {"note": f"the key is {CANARY}"},
    ],
    ids=lambda e: next(iter(e)),
)
def test_a_secret_in_a_field_of_our_own_refuses_the_connection_without_repeating_it(entry):
    item = item_of(**compat(**entry))
    assert item.refused
    assert CANARY not in repr(item)


def test_ordinary_fields_are_not_taken_for_secrets():
    entry = compat(
        slug="a-rather-long-slug-of-team-number-12-in-europe",
        maxTokens=8192,
        tokenizer="cl100k_base",
        uuid="123e4567-e89b-12d3-a456-426614174000",
        keyboard="qwerty",
        hasApiKey=True,
        apiKey="",
        models=["accounts/fireworks/models/llama-v3p1-405b-instruct-long-name-20251001"],
        defaultModel="accounts/fireworks/models/llama-v3p1-405b-instruct-long-name-20251001",
    )
    assert there_and_back(entry) == entry


def test_a_codex_path_is_kept_for_export_and_never_used(settings):
    settings.CODEX_PATHS = ("/opt/codex",)
    entry = {
        "slug": "one",
        "name": "One",
        "providerType": "openai",
        "authType": "oauth",
        "codexPath": "/tmp/evil",
        "createdAt": 1,
    }
    item = schema.read(file_of(entry)).items[0]
    assert item.values["codex_path"] == ""
    assert any("PATCHBAY_CODEX_PATHS" in note for note in item.notes)
    assert there_and_back(entry) == entry
    allowed = schema.read(file_of({**entry, "codexPath": "/opt/codex"})).items[0]
    assert allowed.values["codex_path"] == "/opt/codex"


# -- broken files ----------------------------------------------------------------------------------

GOOD = file_of(compat())
BROKEN = {
    "empty": b"",
    "blank": b" \n\t ",
    "truncated": GOOD[:-20],
    "truncated in a text": GOOD[: GOOD.index(b"example") + 3],
    "trailing": GOOD + b"}",
    "two documents": GOOD + GOOD,
    "trailing comma": b'{"llmConnections": [],}',
    "single quotes": b"{'llmConnections': []}",
    "a comment": b'// hello\n{"llmConnections": []}',
    "not utf-8": b'{"llmConnections": [], "x": "\xff\xfe"}',
    "utf-16": GOOD.decode().encode("utf-16"),
    "binary": bytes(range(256)) * 10,
    "zip": b"PK\x03\x04" + b"\x00" * 100,
    "html": b"<!doctype html><title>Sign in</title>",
    "null": b"null",
    "number": b"42",
    "text": b'"llmConnections"',
    "list": b"[]",
    "list of connections": b"[" + json.dumps(compat()).encode() + b"]",
    "no connections": b"{}",
    "null connections": b'{"llmConnections": null}',
    "connections as object": b'{"llmConnections": {"one": {}}}',
    "connections as text": b'{"llmConnections": "one"}',
    "connections as number": b'{"llmConnections": 1}',
    "default as number": b'{"llmConnections": [], "defaultLlmConnection": 5}',
    "default as list": b'{"llmConnections": [], "defaultLlmConnection": ["a"]}',
    "workspaces as object": b'{"llmConnections": [], "workspaces": {}}',
    "workspace as text": b'{"llmConnections": [], "workspaces": ["Support"]}',
    "huge float": b'{"llmConnections": [], "x": 1e999}',
    "negative huge float": b'{"llmConnections": [], "x": -1e999}',
    "infinity": b'{"llmConnections": [], "x": Infinity}',
    "not a number": b'{"llmConnections": [], "x": NaN}',
    "6,000 digits": b'{"llmConnections": [], "x": ' + b"9" * 6000 + b"}",
    "400 digits": b'{"llmConnections": [], "x": -' + b"9" * 400 + b"}",
    "deep lists": b'{"llmConnections": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"llmConnections": [' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
    "open brackets": b"[" * 1_000_000,
    "10 MB": b'{"llmConnections": [], "x": "' + b"y" * 10_000_000 + b'"}',
    "10 MB of blanks": b" " * 10_000_000,
    "same field twice": b'{"llmConnections": [], "llmConnections": [{}]}',
    "same field twice inside": b'{"llmConnections": [{"authType": "none", "authType": "api_key"}]}',
    "2,000 connections": file_of(*[{} for _ in range(2000)]),
    "2,000 workspaces": file_of(workspaces=[{} for _ in range(2000)]),
    "control character": b'{"llmConnections": [], "x": "\x01"}',
    "half an escape": b'{"llmConnections": [], "x": "\\u12"}',
    "a lone quote": b'"',
    "a broken surrogate in utf-8": b'{"llmConnections": [], "x": "\xed\xa0\x80"}',
    "utf-16 with a mark": b"\xff\xfe" + GOOD.decode().encode("utf-16-le"),
    "utf-32": GOOD.decode().encode("utf-32"),
    "a mark only": b"\xef\xbb\xbf",
    "NUL": b'{"llmConnections": []}\x00',
    "only NULs": b"\x00" * 5_000,
    "an array for the object": b'[{"llmConnections": []}]',
    "workspace as null": b'{"llmConnections": [], "workspaces": [null]}',
    "10 MB of connections": b'{"llmConnections": [' + b'{"slug":"a"},' * 800_000 + b"{}]}",
    "10 MB of digits": b'{"llmConnections": ' + b"9" * 10_000_000 + b"}",
    "yaml": b"llmConnections:\n  - slug: one\n",
    "a number in exponent form": b'{"llmConnections": [], "x": -1E+4000}',
}
# Files in which nothing can be taken: each connection is refused with a reason.
_PLAIN = {"slug": "one", "name": "One", "providerType": "anthropic", "authType": "api_key"}
REFUSED = {
    "duplicate slugs": file_of(compat(), compat(name="Other")),
    "duplicate slugs in other words": file_of(_PLAIN, {"slug": " one ", **compat(slug="one ")}),
    "connections as arrays": file_of([], ["slug", "one"], [{}]),
    "connections as texts and nulls": file_of("one", None, 5, True),
    "empty connections": file_of({}, {"x": 1}),
    "a bad pair": file_of({**_PLAIN, "authType": "iam_credentials"}),
    "every pair that isn't one": file_of(
        *[
            {
                **compat(slug=f"c-{p.value}-{a.value}".replace("_", "-")),
                "providerType": p.value,
                "authType": a.value,
                "awsRegion": "us-east-1",
            }
            for p in ProviderType
            for a in AuthType
            if a not in ALLOWED_AUTH[p] and p != ProviderType.ANTHROPIC
        ]
    ),
    "a pair of numbers": file_of({**_PLAIN, "providerType": 1, "authType": 2}),
    "a pair of lists": file_of({**_PLAIN, "providerType": [], "authType": {}}),
    "copilot": file_of({**_PLAIN, "providerType": "copilot", "authType": "oauth"}),
    "an unknown provider": file_of({**_PLAIN, "providerType": "<script>alert(1)</script>"}),
    "an unknown pi provider": file_of(
        {**_PLAIN, "providerType": "pi", "piAuthProvider": "\x1b[31mred", "authType": "api_key"}
    ),
    "a slug of dots": file_of({**_PLAIN, "slug": "../../etc/passwd"}),
    "a slug with a line end": file_of({**_PLAIN, "slug": "one\ntwo"}),
    "a slug as a number": file_of({**_PLAIN, "slug": 5}),
    "a reserved slug": file_of({**_PLAIN, "slug": "import"}),
    "a slug of 300": file_of({**_PLAIN, "slug": "a" * 300}),
    "a name with NUL": file_of({**_PLAIN, "name": "a\x00b"}),
    "a name with half a pair": file_of({**_PLAIN, "name": "a\ud800b"}),
    "a name with a line end": file_of({**_PLAIN, "name": "One\r\nTwo: x"}),
    "a name with an escape": file_of({**_PLAIN, "name": "\x1b]0;title\x07"}),
    "a name of 300": file_of({**_PLAIN, "name": "n" * 300}),
    "a name as a list": file_of({**_PLAIN, "name": ["One"]}),
    "a name that is a key": file_of({**_PLAIN, "name": "sk-ant-0123456789abcdef0123"}),
    "half a pair in a key": file_of({**_PLAIN, "x\ud800": 1}),
    "deep": b'{"llmConnections": [{"slug": "one", "x": ' + b"[" * 400 + b"]" * 400 + b"}]}",
    "models as a number": file_of(compat(models=5)),
    "models as nulls": file_of(compat(models=[None])),
    "a window below nothing": file_of(compat(models=[{"id": "m", "contextWindow": -5}])),
    "another default model": file_of(compat(defaultModel="not-there")),
    "an address of a file": file_of(compat(baseUrl="file:///etc/passwd")),
    "an address with a password": file_of(compat(baseUrl="https://u:p@h.example/v1")),
    "an address as an object": file_of(compat(baseUrl={"host": "h"})),
    "the metadata address": file_of(compat(baseUrl="http://169.254.169.254/v1")),
    "a program": file_of({**_PLAIN, "command": "/bin/sh", "args": ["-c", "id"]}),
    "a profile": file_of({**_PLAIN, "awsProfile": "root"}),
    "an endpoint as a text": file_of(compat(customEndpoint="openai-completions")),
    "a wire nobody speaks": file_of(compat(customEndpoint={"api": "telnet"})),
    "enabled as an object": file_of({**_PLAIN, "enabled": {"x": 1}}),
    "a default that isn't there": file_of(defaultLlmConnection="\u202eevil"),
    "a workspace's default that isn't there": file_of(
        workspaces=[{"name": "Support", "defaults": {"defaultLlmConnection": "nowhere"}}]
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_error_with_a_sentence(name):
    started = time.process_time()
    with pytest.raises(BadFile) as caught:
        schema.read(BROKEN[name])
    assert time.process_time() - started < 5
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert len(sentence) < 200
    assert "Traceback" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "://" + ":" * 240_000,
        "-eyJ" * 60_000,
        "bearer " * 30_000,
        "bearer" + " " * 240_000,
        "a1" * 120_000,
        "sk-" * 80_000,
    ],
    ids=["colons", "tokens", "bearers", "blanks", "letters", "dashes"],
)
def test_a_hostile_text_costs_no_more_than_its_length(text):
    started = time.process_time()
    schema.read(file_of(compat(extra=text, note=text)))
    assert time.process_time() - started < 5


def test_a_connection_nested_too_deeply_is_refused_alone():
    deep: list = []
    for _ in range(100):
        deep = [deep]
    document = schema.read(file_of(compat(slug="a", x=deep), compat(slug="b")))
    assert [bool(i.refused) for i in document.items] == [True, False]


@pytest.mark.parametrize("value", [-1, "yesterday", True, 1e17, 9_000_000_000_000_000_000, [1], {}])
def test_a_date_that_is_none_counts_as_missing(value):
    item = item_of(**compat(createdAt=value, lastUsedAt=value))
    assert (item.refused, item.created_at, item.last_used_at) == ("", None, None)


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "{{ 7*7 }}", "'; DROP TABLE x; --", "a\u202egnp.exe", "💥" * 25],
)
def test_a_hostile_name_is_only_a_name(name):
    item = item_of(**compat(name=name))
    assert item.values["name"] == name
    assert there_and_back(compat(name=name))["name"] == name


# -- the plan --------------------------------------------------------------------------------------


def planned(*entries, there=(), spaces=(), **more) -> schema.Plan:
    return schema.plan(schema.read(file_of(*entries, **more)), connections=there, workspaces=spaces)


def test_a_file_imported_again_changes_nothing():
    entries = [compat(slug=f"c{n}", name=f"C {n}") for n in range(3)]
    entries += [compat(slug=None, name="No slug"), {**SIX_TYPES[0], "slug": "six"}]
    there = [connection_of(row) for row in planned(*entries).rows]
    assert {r.result for r in planned(*entries, there=there).rows} == {Result.SAME}
    exported = schema.export(there).document["llmConnections"]
    assert {r.result for r in planned(*exported, there=there).rows} == {Result.SAME}


def test_an_unedited_export_changes_nothing_even_where_an_import_would_translate():
    there = Connection(
        slug="proxy",
        name="Proxy",
        provider_type="anthropic",
        auth_type="api_key",
        base_url="https://proxy.example.com",
        default_model="claude-sonnet-4-6",
    )
    exported = schema.export_connection(there)
    [row] = planned(exported, there=[there]).rows
    assert row.result == Result.SAME
    [row] = planned(exported).rows
    assert row.values["provider_type"] == "anthropic_compat"


def test_a_changed_connection_says_which_fields_change():
    there = connection_of(schema.read(file_of(compat())).items[0])
    [row] = planned(compat(name="Two", midStreamBehavior="queue"), there=[there]).rows
    assert row.result == Result.CHANGED
    assert row.existing is there
    assert row.changes == (
        schema.Change("name", "One", "Two"),
        schema.Change("midStreamBehavior", None, "queue"),
    )


def test_a_changed_address_asks_for_the_secret_again():
    there = connection_of(schema.read(file_of(compat())).items[0])
    stored = {there.pk: {"auth": there.binding}}

    def row_of(**entry):
        document = schema.read(file_of(compat(**entry)))
        return schema.plan(document, connections=[there], stored=stored).rows[0]

    moved = row_of(baseUrl="https://other.example.com/v1")
    assert (moved.needs_secret, moved.loses_secret) == (True, True)
    assert any("enter it again" in note for note in moved.notes)
    kept = row_of(baseUrl="https://api.example.com/v2")
    assert (kept.needs_secret, kept.loses_secret, kept.notes) == (False, False, ())
    stored.clear()
    assert any("needs its secret" in note for note in row_of(name="Two").notes)


def test_what_the_reference_loses_stays_here():
    entry = {**SIX_TYPES[4], "slug": "one", "name": "One"}
    there = connection_of(schema.read(file_of(entry)).items[0], note="ours", enabled=False)
    there.gcp_region = "us-central1"
    [row] = planned({**entry, "name": "Two"}, there=[there]).rows
    assert row.changes == (schema.Change("name", "One", "Two"),)
    assert (row.values["note"], row.values["enabled"]) == ("ours", False)


def test_of_two_equal_slugs_neither_is_taken():
    rows = planned(compat(), compat(name="Other"), compat(slug="two")).rows
    assert [row.result for row in rows] == [Result.REFUSED, Result.REFUSED, Result.NEW]
    assert "this slug" in rows[0].reason


def test_a_made_slug_takes_none_that_the_file_names_later():
    made, named = planned(compat(slug=None, name="Two"), compat(slug="two")).rows
    assert (made.slug, named.slug) == ("two-2", "two")


def test_a_tombstone_s_slug_is_refused_when_named_and_passed_over_when_made():
    dead = Connection(slug="one", name="One", deleted_at=dt.datetime.now(dt.UTC))
    named, made = planned(compat(), compat(slug=None), there=[dead]).rows
    assert named.result == Result.REFUSED
    assert (made.result, made.slug) == (Result.NEW, "one-2")


def test_a_made_slug_passes_over_reserved_and_taken_ones():
    there = connection_of(schema.read(file_of(compat(slug="two", name="Another"))).items[0])
    rows = planned(compat(slug=None, name="New"), compat(slug=None, name="Two"), there=[there]).rows
    assert [r.slug for r in rows] == ["new-2", "two-2"]


def test_the_defaults_are_planned_with_their_reasons():
    support = Workspace(name="Support", slug="support")
    twins = [Workspace(name="Twin", slug="twin"), Workspace(name="twin", slug="twin-2")]
    plan = planned(
        compat(),
        {"slug": "bad", "name": "Bad", "providerType": "copilot"},
        spaces=[(support, "one"), *((t, "") for t in twins)],
        defaultLlmConnection="one",
        workspaces=[
            {"name": "SUPPORT", "defaults": {"defaultLlmConnection": "one"}},
            {"slug": "twin", "defaultLlmConnection": "one"},
            {"name": "Twin", "defaults": {"defaultLlmConnection": "one"}},
            {"slug": "twin-2", "defaults": {"defaultLlmConnection": "bad"}},
            {"name": "Nowhere", "defaults": {"defaultLlmConnection": "one"}},
            {"name": "Quiet"},
        ],
    )
    assert (plan.default.slug, plan.default.result) == ("one", Result.CHANGED)
    found = [(w.label, w.result, bool(w.reason)) for w in plan.workspaces]
    assert found == [
        ("Support", Result.SAME, False),
        ("Twin", Result.CHANGED, False),
        ("Twin", Result.REFUSED, True),
        ("twin", Result.REFUSED, True),
        ("Nowhere", Result.NEW, False),
        ("Quiet", Result.NEW, False),
    ]


def test_a_default_that_is_not_there_is_refused():
    plan = planned(compat(), defaultLlmConnection="gone")
    assert plan.default.result == Result.REFUSED
    assert "gone" in plan.default.reason


def test_a_workspace_s_own_file_is_read_too():
    document = schema.read(
        b'{"name": "Support", "defaults": {"defaultLlmConnection": "one"}, "x": 1}'
    )
    assert document == schema.Document(workspaces=(schema.FileWorkspace("Support", "", "one"),))


def test_the_export_names_the_defaults_and_the_workspaces():
    there = connection_of(schema.read(file_of(compat())).items[0], is_default=True)
    support, quiet = Workspace(name="Support", slug="support"), Workspace(name="Q", slug="q")
    out = schema.export([there], [(support, "one"), (quiet, "")]).document
    assert out["defaultLlmConnection"] == "one"
    assert [w["defaults"] for w in out["workspaces"]] == [{"defaultLlmConnection": "one"}, {}]
    assert schema.read(json.dumps(out).encode()).default == "one"
