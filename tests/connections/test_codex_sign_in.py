"""Codex with somebody's sign-in: the process holds a stand-in, the relay the token."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from connections import providers
from connections.providers.base import Done, ErrorKind, ProviderError, Target, TextDelta
from tests.connections.codex import homes, processes, readable_memory, target
from tests.connections.test_codex_secrets import lineage
from tests.connections.wires import asking, client, replies, text_of
from tests.fakes.server import FakeProviders, key_hash

CODEX = providers.get("openai")
OLD, NEW = "sk-fake-bad-access-token-0123456789", "sk-fake-good-access-token-9876543210"


class Tokens:
    """Gives out `NEW` once `OLD` was rejected; counts the calls that would reach an issuer."""

    def __init__(self, first: str, failure: ProviderError | None = None) -> None:
        self.token, self.failure = first, failure
        self.renewals = 0

    async def __call__(self, *, rejected: str = "") -> Mapping[str, str]:
        if rejected:
            self.renewals += 1
            if self.failure is not None:
                raise self.failure
            assert rejected == self.token
            self.token = NEW
        return {"access_token": self.token, "account_id": "account-7"}


def signed_in(fakes: FakeProviders, tokens: Tokens) -> Target:
    fakes.reset()
    return target(fakes, auth_type="oauth", secret={}, fresh=tokens)


async def test_a_turn_goes_out_with_the_token_and_the_account(fakes):
    tokens = Tokens(NEW)
    async with client() as http:
        events, error = await replies(http, signed_in(fakes, tokens), asking("echo", "hello"))
    assert (error, text_of(events), events[-1]) == (None, "hello", Done("stop"))
    (record,) = fakes.requests()
    assert record["key"] == key_hash(NEW)
    assert record["headers"]["chatgpt-account-id"] == "account-7"
    assert record["headers"]["originator"] == "patchbay"
    assert record["max_tokens"] is None
    assert tokens.renewals == 0


async def test_a_refused_token_is_renewed_once_and_the_turn_goes_on(fakes):
    tokens = Tokens(OLD)
    async with client() as http:
        events, error = await replies(http, signed_in(fakes, tokens), asking("echo", "hello"))
    assert (error, text_of(events)) == (None, "hello")
    assert [record["key"] for record in fakes.requests()] == [key_hash(OLD), key_hash(NEW)]
    assert tokens.renewals == 1


async def test_a_token_that_is_refused_again_is_an_auth_error(fakes):
    class Same(Tokens):
        async def __call__(self, *, rejected: str = "") -> Mapping[str, str]:
            self.renewals += bool(rejected)
            return {"access_token": OLD, "account_id": "account-7"}

    tokens = Same(OLD)
    async with client() as http:
        _, error = await replies(http, signed_in(fakes, tokens), asking("echo"))
    assert (error.kind, error.status) == (ErrorKind.AUTH, 401)
    assert 1 <= tokens.renewals <= 2
    assert len(fakes.requests()) <= 3


@pytest.mark.parametrize("kind", [ErrorKind.AUTH, ErrorKind.CONNECT])
async def test_a_renewal_that_fails_is_the_turns_failure(fakes, kind):
    tokens = Tokens(OLD, ProviderError(kind, "the issuer says no"))
    async with client() as http:
        events, error = await replies(http, signed_in(fakes, tokens), asking("echo"))
    assert (events, error.kind, error.message) == ([], kind, "the issuer says no")


async def test_a_token_that_can_not_be_had_starts_no_process(fakes):
    async def none(*, rejected: str = "") -> Mapping[str, str]:
        raise ProviderError(ErrorKind.AUTH, "signed out")

    async with client() as http:
        _, error = await replies(http, signed_in(fakes, none), asking("echo"))
    assert error.message == "signed out"
    assert homes() == []


async def test_the_process_never_holds_the_token(fakes):
    async with client() as http:
        stream = CODEX.stream(http, signed_in(fakes, Tokens(NEW)), asking("stall"))
        assert isinstance(await anext(stream), TextDelta)
        (pid,) = processes()
        for one in lineage(pid):
            assert NEW.encode() not in readable_memory(one)
        (home,) = homes()
        assert not [p for p in home.rglob("*") if p.is_file() and NEW.encode() in p.read_bytes()]
        await stream.aclose()


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ({"access_token": "line\nbreak", "account_id": "a"}, ErrorKind.AUTH),
        ({"access_token": NEW, "account_id": "a\r\nx-evil: 1"}, ErrorKind.AUTH),
    ],
)
async def test_what_no_header_can_hold_is_not_sent(fakes, secret, kind):
    fakes.reset()
    async with client() as http:
        where = target(fakes, auth_type="oauth", secret=secret)
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is kind
    assert fakes.requests() == []
