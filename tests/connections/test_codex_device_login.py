"""The device-code login of the real Codex binary, against a fake issuer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from django.conf import settings

from connections.providers import codex_login
from connections.providers.base import ErrorKind, ProviderError
from connections.providers.codex_login import DeviceCode, device_login
from connections.providers.wire.oauth import Tokens
from tests.connections.codex import homes, processes
from tests.fakes.device import DeviceIssuer


def login(issuer: DeviceIssuer, path: str = ""):
    path = path or settings.CODEX_PATHS[0]
    return device_login(path, client_id="ours", issuer=issuer.url)


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert processes() == []
    assert homes() == []


@pytest.mark.parametrize("checks_fail", [False, True])
@pytest.mark.parametrize(("plan", "kind"), [("plus", "personal"), ("business", "organisation")])
async def test_a_code_is_shown_and_its_approval_gives_the_tokens(plan, kind, checks_fail):
    async with DeviceIssuer(plan=plan) as issuer:
        issuer.checks_fail = checks_fail
        steps = login(issuer)
        code = await anext(steps)
        assert code == DeviceCode(f"{issuer.url}/codex/device", "ABCD-12345")
        issuer.approve()
        found = await anext(steps)
        assert isinstance(found, Tokens)
        assert found.access_token == issuer.tokens["access_token"]
        assert found.refresh_token == issuer.tokens["refresh_token"]
        assert (found.account, found.kind) == ("carol@example.com", kind)
        assert found.more == {"account_id": "account-7"}
        assert issuer.client_ids == {"ours"}
        assert 3500 < (found.lifetime or 0) <= 3600
        for secret in issuer.tokens.values():
            assert secret not in repr(found)
        with pytest.raises(StopAsyncIteration):
            await anext(steps)
        assert homes() == []
        kept = [p for p in (Path(settings.DATA_DIR) / "codex").rglob("*") if p.is_file()]
        assert not [p for p in kept if issuer.tokens["refresh_token"].encode() in p.read_bytes()]


async def test_a_login_that_is_denied_is_an_auth_error():
    async with DeviceIssuer() as issuer:
        steps = login(issuer)
        await anext(steps)
        issuer.state = "denied"
        with pytest.raises(ProviderError) as caught:
            await anext(steps)
    assert caught.value.kind is ErrorKind.AUTH


async def test_a_login_that_is_given_up_ends_its_process():
    async with DeviceIssuer() as issuer:
        steps = login(issuer)
        await anext(steps)
        assert len(processes()) == 1
        waiting = asyncio.ensure_future(anext(steps))
        while not [p for p in issuer.paths if p.endswith("/token")]:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait({waiting})
        await steps.aclose()


async def test_a_code_that_nobody_enters_runs_out(monkeypatch):
    monkeypatch.setattr(codex_login, "CODE_SECONDS", -29.5)
    async with DeviceIssuer() as issuer:
        steps = login(issuer)
        await anext(steps)
        with pytest.raises(ProviderError) as caught:
            await anext(steps)
    assert caught.value.kind is ErrorKind.TIMEOUT


async def test_an_issuer_that_gives_no_code_is_a_connect_error():
    async with DeviceIssuer() as issuer:
        issuer.refuses_codes = True
        with pytest.raises(ProviderError) as caught:
            await anext(login(issuer))
    assert caught.value.kind is ErrorKind.CONNECT


async def test_a_code_of_a_strange_form_is_not_shown():
    async with DeviceIssuer() as issuer:
        issuer.code = "A" * 41
        with pytest.raises(ProviderError) as caught:
            await anext(login(issuer))
    assert caught.value.kind is ErrorKind.PROTOCOL


async def test_a_binary_that_is_none_has_its_own_kind(tmp_path):
    async with DeviceIssuer() as issuer:
        with pytest.raises(ProviderError) as caught:
            await anext(login(issuer, str(tmp_path / "codex")))
    assert caught.value.kind is ErrorKind.PROCESS
