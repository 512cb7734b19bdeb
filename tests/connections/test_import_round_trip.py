"""Brought in and taken out again, a connection that nobody edited is what it was: many generated
files, in the words of each generation and in mixed ones."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest

from connections import schema
from connections.models import Connection
from connections.schema import Generation, Result
from connections.schema.generations import milliseconds

FILES = 120  # of each generation, with up to eight connections each
PI_PROVIDERS = ["openrouter", "groq", "deepseek", "mistral", "xai", "openai", "google", "together"]
REFERENCE_PAIRS = [
    *(("anthropic", "api_key"), ("anthropic", "oauth")),
    ("anthropic_compat", "api_key_with_endpoint"),
    *(("openai", "api_key"), ("openai", "oauth")),
    *(("openai_compat", "api_key_with_endpoint"), ("openai_compat", "none")),
    *(("bedrock", "bearer_token"), ("bedrock", "iam_credentials"), ("bedrock", "environment")),
    *(("vertex", "service_account_file"), ("vertex", "environment")),
]
PI_PAIRS = [
    *(("anthropic", "api_key", None), ("anthropic", "oauth", None)),
    *(("pi", "oauth", "openai-codex"), ("pi", "iam_credentials", "amazon-bedrock")),
    *(("pi", "environment", "amazon-bedrock"), ("pi", "environment", "google-vertex")),
    *(("pi", "api_key", "anthropic"), ("pi", "bearer_token", "amazon-bedrock")),
    *(("pi", "api_key", provider) for provider in PI_PROVIDERS),
    *(("pi_compat", "api_key_with_endpoint", None), ("pi_compat", "none", None)),
]
TEXTS = [
    "",
    " ",
    "plain",
    " blanks around ",
    "Größe № 1",
    "日本語",
    "<b>x</b>",
    "a\tb"[:1],
    "{{ 7 }}",
]


class Maker:
    """Connections as different versions and people wrote them, from one seed."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)

    def maybe(self, share: float) -> bool:
        return self.chance.random() < share

    def word(self, size: int = 6) -> str:
        return "".join(self.chance.choices(string.ascii_lowercase, k=size))

    def value(self, depth: int = 0) -> Any:
        kinds = [
            lambda: None,
            lambda: self.maybe(0.5),
            lambda: self.chance.randrange(-(10**9), 10**15),
            lambda: self.chance.uniform(-1e6, 1e6),
            lambda: self.chance.choice(TEXTS),
            lambda: [self.value(depth + 1) for _ in range(self.chance.randrange(4))],
            lambda: {f"f{self.word()}": self.value(depth + 1) for _ in range(3)},
        ]
        return self.chance.choice(kinds if depth < 4 else kinds[:5])()

    def model(self, model_id: str) -> Any:
        if self.maybe(0.4):
            return model_id
        entry: dict[str, Any] = {"id": model_id}
        extra = {
            "name": "A model",
            "shortName": self.chance.choice(["m", " m ", None]),
            "contextWindow": self.chance.choice([1000, 128000, 32768.0, None]),
            "supportsImages": self.chance.choice([True, False, None]),
            "description": self.value(),
            "pricing": {"input": 0.25},
        }
        entry |= {k: v for k, v in extra.items() if self.maybe(0.3)}
        return entry

    def base_url(self, wire: str = "/v1") -> str:
        host = f"{self.word()}.example.com"
        forms = [
            f"https://{host}{wire}",
            f"https://{host.upper()}/",
            f" https://{host}:443{wire}/ ",
            f"https://{host}/v1/chat/completions",
            f"https://{host}/v1/messages",
            "http://localhost:11434/v1",
        ]
        return self.chance.choice(forms)

    def connection(self, number: int, generation: Generation) -> dict[str, Any]:
        through = None
        if generation == Generation.PI:
            provider, auth, through = self.chance.choice(PI_PAIRS)
        else:
            provider, auth = self.chance.choice(REFERENCE_PAIRS)
        entry: dict[str, Any] = {
            "slug": f"c-{number}",
            "name": self.chance.choice([f"C {number}", " padded ", "日本語", "<b>x</b>"]),
            "providerType": provider,
            "authType": auth,
        }
        if through:
            entry["piAuthProvider"] = through
        prefix = "pi/" if provider == "pi" and self.maybe(0.9) else ""
        ids = [f"{prefix}{self.word()}" for _ in range(self.chance.randrange(1, 5))]
        compat = provider.endswith("_compat")
        needs_model = compat or through in PI_PROVIDERS  # which become endpoints of their own
        if compat or self.maybe(0.7):
            entry["models"] = [self.model(one) for one in ids]
        elif self.maybe(0.3):
            entry["models"] = self.chance.choice([[], None])
        if (not entry.get("models") and needs_model) or self.maybe(0.7):
            entry["defaultModel"] = self.chance.choice(ids)
        elif self.maybe(0.2):
            entry["defaultModel"] = self.chance.choice(["", None])
        if compat:
            entry["baseUrl"] = self.base_url()
        elif provider == "anthropic" and self.maybe(0.5):
            entry["baseUrl"] = self.chance.choice(["https://api.anthropic.com", "", None])
        if compat and self.maybe(0.7):
            api = self.chance.choice(["openai-completions", "anthropic-messages"])
            entry["customEndpoint"] = {"api": api}
            if self.maybe(0.4):
                entry["customEndpoint"]["supportsImages"] = self.maybe(0.5)
            if self.maybe(0.3):
                entry["customEndpoint"]["timeoutMs"] = 5000
        elif self.maybe(0.1):
            entry["customEndpoint"] = self.chance.choice([{}, None])
        if provider == "bedrock" or through == "amazon-bedrock":
            entry["awsRegion"] = "eu-central-1"
        if provider == "vertex" or through == "google-vertex":
            entry |= {"gcpProjectId": "team-project", "gcpRegion": " us-central1 "}
        return entry | self.extras(generation)

    def extras(self, generation: Generation) -> dict[str, Any]:
        extra = {
            "midStreamBehavior": self.chance.choice(["steer", "queue", "", "later", None]),
            "codexPath": "/tmp/not/allowed",
            "enabled": self.chance.choice([True, False, None]),
            "note": self.chance.choice(["", "two\nlines", " padded "]),
            "createdAt": self.chance.choice([1737451800123, 5, 1.5, -1, None, "yesterday"]),
            "lastUsedAt": self.chance.choice([1737451800999, 0, None, True, [1]]),
            "type": self.chance.choice(["anthropic", "openai"]),
        }
        found = {k: v for k, v in extra.items() if self.maybe(0.3)}
        if generation == Generation.PI and self.maybe(0.5):
            found["modelSelectionMode"] = "userDefined3Tier"
        found |= {f"x{self.word()}": self.value() for _ in range(self.chance.randrange(5))}
        return found

    def file(self, generation: Generation) -> list[dict[str, Any]]:
        return [self.connection(n, generation) for n in range(self.chance.randrange(1, 9))]


def made_of(row: schema.Row) -> Connection:
    """The connection that an import makes, as it comes back from the database."""
    kept = json.loads(json.dumps([row.values, row.unknown_fields, row.imported_as]))
    values, unknown, originals = kept
    return Connection(
        **values,
        unknown_fields=unknown,
        imported_as=originals,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
    )


def planned(entries: list[dict[str, Any]], there: list[Connection] | None = None) -> schema.Plan:
    document = schema.read(json.dumps({"llmConnections": entries}).encode())
    return schema.plan(document, connections=there or [])


def expected(entry: dict[str, Any], made: Connection) -> dict[str, Any]:
    """What comes out: the file's own, and the date of making where it names none."""
    made_at = milliseconds(made.created_at)
    found = {"createdAt": made_at, **entry}
    return found | ({"createdAt": made_at} if entry.get("createdAt") is None else {})


@pytest.mark.parametrize("generation", [Generation.REFERENCE, Generation.PI])
def test_what_was_not_edited_comes_out_as_it_went_in(generation):
    compared = 0
    for seed in range(FILES):
        entries = Maker(f"{generation} {seed}").file(generation)
        rows = planned(entries).rows
        assert [row.reason for row in rows if row.result == Result.REFUSED] == []
        made = [made_of(row) for row in rows]
        for asked in (generation, Generation.OWN):
            found = schema.export(made, generation=asked)
            assert found.left_out == (), (seed, found.left_out)
            for entry, out, one in zip(
                entries, found.document["llmConnections"], made, strict=True
            ):
                assert out == expected(entry, one), (seed, asked)
                compared += 1
        again = planned(entries, made)
        assert {row.result for row in again.rows} == {Result.SAME}, seed
    assert compared > 4 * FILES


@pytest.mark.parametrize(
    ("written", "asked"),
    [(Generation.REFERENCE, Generation.PI), (Generation.PI, Generation.REFERENCE)],
)
def test_in_the_other_generation_each_is_there_or_named(written, asked):
    translated = left_out = 0
    for seed in range(FILES):
        made = [made_of(row) for row in planned(Maker(f"{written} {seed}").file(written)).rows]
        found = schema.export(made, generation=asked)
        entries = found.document["llmConnections"]
        named = {left.label for left in found.left_out}
        assert {entry["slug"] for entry in entries} | named == {one.slug for one in made}
        assert len(entries) + len(named) == len(made)
        left_out += len(named)
        by_slug = {one.slug: one for one in made}
        for row in planned(entries).rows:
            one = by_slug[row.slug]
            if one.provider_type == "openai" and not one.default_model:
                continue  # there an endpoint like others, which needs a model here
            assert row.result == Result.NEW, (seed, row.reason)
            assert row.values["models"] == one.models
            assert row.values["default_model"] == one.default_model
            assert row.values["mid_stream_behavior"] == one.mid_stream_behavior
            assert Connection(**row.values).wire == one.wire or one.provider_type == "openai"
            entry = next(entry for entry in entries if entry["slug"] == row.slug)
            unknown = {k: v for k, v in one.unknown_fields.items() if k.startswith("x")}
            assert {k: v for k, v in entry.items() if k.startswith("x")} == unknown
            translated += 1
    assert translated > FILES
    assert left_out > 0


PLACES = [
    # (our pair, in the reference, in the pi generation); None: no place
    ("anthropic", "api_key", ("anthropic", "api_key"), ("anthropic", "api_key", None)),
    ("anthropic", "oauth", ("anthropic", "oauth"), ("anthropic", "oauth", None)),
    ("anthropic", "environment", None, None),
    (
        *("anthropic_compat", "api_key_with_endpoint"),
        ("anthropic_compat", "api_key_with_endpoint"),
        ("pi_compat", "api_key_with_endpoint", None),
    ),
    ("anthropic_compat", "none", None, ("pi_compat", "none", None)),
    ("openai", "api_key", ("openai", "api_key"), ("pi", "api_key", "openai")),
    ("openai", "api_key_with_endpoint", None, None),
    ("openai", "oauth", ("openai", "oauth"), ("pi", "oauth", "openai-codex")),
    ("openai", "environment", None, None),
    (
        *("openai_compat", "api_key_with_endpoint"),
        ("openai_compat", "api_key_with_endpoint"),
        ("pi_compat", "api_key_with_endpoint", None),
    ),
    ("openai_compat", "none", ("openai_compat", "none"), ("pi_compat", "none", None)),
    (
        *("bedrock", "iam_credentials"),
        ("bedrock", "iam_credentials"),
        ("pi", "iam_credentials", "amazon-bedrock"),
    ),
    ("bedrock", "api_key", ("bedrock", "bearer_token"), None),
    (
        *("bedrock", "environment"),
        ("bedrock", "environment"),
        ("pi", "environment", "amazon-bedrock"),
    ),
    ("vertex", "service_account_file", ("vertex", "service_account_file"), None),
    ("vertex", "environment", ("vertex", "environment"), ("pi", "environment", "google-vertex")),
]


@pytest.mark.parametrize(("provider", "auth", "reference", "pi"), PLACES)
def test_each_pair_has_its_place_in_a_generation_or_is_left_out(provider, auth, reference, pi):
    one = Connection(
        slug="one",
        name="One",
        provider_type=provider,
        auth_type=auth,
        base_url="https://llm.example.com/v1" if provider.endswith("compat") else "",
        models=["m", {"id": "n"}],
        default_model="m",
    )
    for generation, place in ((Generation.REFERENCE, reference), (Generation.PI, pi)):
        found = schema.export([one], generation=generation)
        if place is None:
            assert found.document["llmConnections"] == []
            [left] = found.left_out
            assert left.label == "one"
            assert str(generation.label) in left.reason
            continue
        [entry] = found.document["llmConnections"]
        words = (entry["providerType"], entry["authType"], entry.get("piAuthProvider"))
        assert words[: len(place)] == place
        prefix = "pi/" if place[0] == "pi" else ""
        assert entry["models"] == [f"{prefix}m", {"id": f"{prefix}n"}]
        assert entry["defaultModel"] == f"{prefix}m"
        if place[0] == "pi_compat":
            assert entry["customEndpoint"]["api"] == one.wire
        assert found.left_out == ()


def test_every_pair_of_ours_is_in_that_table():
    from connections.choices import ALLOWED_AUTH

    ours = [(p.value, a.value) for p, auths in ALLOWED_AUTH.items() for a in auths]
    assert sorted(ours) == sorted((row[0], row[1]) for row in PLACES)


def test_a_default_goes_with_the_connection_it_points_at():
    from workspaces.models import Workspace

    one = Connection(
        slug="one", name="One", provider_type="openai", auth_type="environment", is_default=True
    )
    found = schema.export(
        [one], [(Workspace(name="Support", slug="support"), "one")], generation=Generation.PI
    )
    assert "defaultLlmConnection" not in found.document
    assert found.document["workspaces"][0]["defaults"] == {}
    assert [left.label for left in found.left_out] == [
        "one",
        "Default of Support",
        "Global default",
    ]


def test_an_edited_field_comes_out_edited_and_the_others_as_they_were():
    entry = {
        "slug": "one",
        "name": " One ",
        "providerType": "pi",
        "piAuthProvider": "openrouter",
        "authType": "api_key",
        "models": ["pi/a", "b"],
        "defaultModel": "pi/a",
        "midStreamBehavior": "later",
        "note": "",
        "createdAt": 5,
    }
    made = made_of(planned([entry]).rows[0])
    assert schema.export_connection(made) == entry
    made.models = ["a", "c"]
    made.note = "ours"
    out = schema.export_connection(made)
    assert out == {**entry, "models": ["pi/a", "pi/c"], "note": "ours"}
