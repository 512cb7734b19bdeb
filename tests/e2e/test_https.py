"""The product under https behind a proxy: cookies, headers, sign-in and sign-out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from tests.system.harness import ADMIN, Client, Patchbay
from tests.system.tls import TlsProxy

ELSEWHERE = [
    *("//evil.example", "///evil.example", "https://evil.example/", "http:evil.example"),
    *("/\\evil.example", "\\\\evil.example", "https:///evil.example", "javascript:alert(1)"),
    *("%2f%2fevil.example", "//evil.example\\@127.0.0.1", "/%09/evil.example", "\t//evil.example"),
    *(
        " //evil.example",
        "https://127.0.0.1@evil.example/",
        "//%5cevil.example",
        "data:text/html,x",
    ),
]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsProxy]:
    with TlsProxy(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(scope="module")
def https(
    tmp_path_factory: pytest.TempPathFactory, static_files: None, proxy: TlsProxy
) -> Iterator[Patchbay]:
    """A server that trusts the proxy, with alice's account; made through the proxy."""
    env = {
        "PATCHBAY_URL": proxy.url,
        "PATCHBAY_TRUSTED_PROXIES": "127.0.0.1",
        "PATCHBAY_SETUP_TOKEN": "token-of-the-https-tests-0123456789",
    }
    with Patchbay(tmp_path_factory.mktemp("https"), env=env) as running:
        proxy.upstream = running.url
        with _client(proxy) as client:
            client.get("/setup/")
            token = running.env["PATCHBAY_SETUP_TOKEN"]
            answer = client.post("/setup/", data={"token": token, **ADMIN})
            assert answer.status_code == 303, answer.text
        yield running


def _client(proxy: TlsProxy) -> Client:
    # Redirects and cookies as a browser's; the certificate is the test's own.
    client = Client(proxy.url, verify=False)
    client.headers["Referer"] = f"{proxy.url}/"
    return client


def _cookies(answer: httpx.Response) -> SimpleCookie:
    jar: SimpleCookie = SimpleCookie()
    for line in answer.headers.get_list("set-cookie"):
        jar.load(line)
    return jar


def test_cookies_are_bound_to_the_host_and_the_session_is_new_at_sign_in(https, proxy):
    with _client(proxy) as client:
        page = client.get("/accounts/login/")
        before = _cookies(page)
        assert set(before) == {"__Host-csrf"}
        planted = "a" * 32
        client.cookies.set("__Host-session", planted, domain="127.0.0.1", path="/")
        answer = client.post(
            "/accounts/login/", data={"login": ADMIN["email"], "password": ADMIN["password"]}
        )
        assert answer.status_code == 302
        jar = _cookies(answer)
        assert {"__Host-session", "__Host-csrf"} <= set(jar)
        assert jar["__Host-session"].value not in ("", planted)
        assert jar["__Host-csrf"].value != before["__Host-csrf"].value
        space = _cookies(client.get("/w/support/"))
        assert set(space) == {"__Host-workspace", "__Host-csrf", "__Host-messages"}
        for cookies in (before, jar, space):
            for name, cookie in cookies.items():
                assert name.startswith("__Host-")
                assert cookie["secure"], name
                assert cookie["path"] == "/", name
                assert not cookie["domain"], name
                assert cookie["samesite"] == "Lax", name
                if cookie["max-age"] != "0" and cookie["max-age"] != 0:  # set, not taken back
                    assert bool(cookie["httponly"]) == (name != "__Host-csrf"), name


def test_pages_are_strict_and_kept_by_nobody(https, proxy):
    with _client(proxy) as client:
        client.sign_in(ADMIN["email"], ADMIN["password"])
        for path in ("/connections/", "/w/support/", "/accounts/login/", "/nothing/", "/admin/"):
            headers = client.get(path).headers
            assert headers["strict-transport-security"] == (
                "max-age=31536000; includeSubDomains; preload"
            ), path
            assert "no-store" in headers["cache-control"], path
            assert "unsafe" not in headers["content-security-policy"], path


def test_plain_http_is_sent_to_https_and_a_forged_host_is_refused(https, proxy):
    plain = httpx.get(f"{https.url}/accounts/login/", trust_env=False)
    assert plain.status_code == 301
    assert plain.headers["location"].startswith("https://127.0.0.1")
    assert "set-cookie" not in plain.headers
    forged = httpx.get(f"{https.url}/", headers={"Host": "evil.example"}, trust_env=False)
    assert forged.status_code == 400


def _stays_home(answer: httpx.Response) -> bool:
    """As browsers read an address: a backslash is a slash, blanks and controls before it are
    nothing, tabs and newlines within it too."""
    address = re.sub(r"[\t\r\n]", "", answer.headers["location"]).replace("\\", "/")
    there = answer.url.join(address.lstrip("".join(map(chr, range(33)))))
    return (there.scheme, there.host, there.port) == ("https", "127.0.0.1", answer.url.port)


@pytest.mark.parametrize("there", ELSEWHERE, ids=range(len(ELSEWHERE)))
def test_nobody_is_sent_elsewhere_after_signing_in_or_out(https, proxy, there: str):
    with _client(proxy) as client:
        client.get("/accounts/login/", params={"next": there})
        answer = client.post(
            "/accounts/login/",
            data={"login": ADMIN["email"], "password": ADMIN["password"], "next": there},
        )
        assert answer.status_code == 302
        assert _stays_home(answer)
        again = client.get("/accounts/login/", params={"next": there})
        assert again.status_code == 302
        assert _stays_home(again)
        answer = client.post("/accounts/logout/", data={"next": there}, params={"next": there})
        assert _stays_home(answer)
        answer = client.get("/admin/login/", params={"next": there})
        assert answer.headers["location"].startswith("/accounts/login/?")


def test_back_after_signing_out_shows_nothing(https, proxy, browser: Browser):
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(f"{proxy.url}/accounts/login/?next=/connections/")
    page.fill("[name=login]", ADMIN["email"])
    page.fill("[name=password]", ADMIN["password"])
    page.click("button[type=submit]")
    page.wait_for_url("**/connections/")
    assert page.locator(".rail").count() == 1
    page.goto(f"{proxy.url}/w/support/")
    page.goto(f"{proxy.url}/accounts/logout/")
    page.click("form button[type=submit]")
    page.wait_for_url("**/accounts/login/**")
    for _ in range(3):
        page.go_back(wait_until="load")
        assert page.locator(".rail").count() == 0, page.url
        assert ADMIN["workspace"] not in page.content(), page.url
    context.close()


def test_the_deployment_check_has_nothing_to_say(https: Patchbay):
    result = https.manage("check", "--deploy", "--fail-level", "WARNING")
    assert "0 silenced" in result.stdout or "no issues" in result.stdout
    assert "WARNING" not in result.stdout + result.stderr


def test_a_stranger_cannot_speak_for_the_proxy(tmp_path: Path, start_patchbay):
    """Without a trusted proxy the forwarded headers count for nothing."""
    patchbay = start_patchbay(env={"PATCHBAY_URL": "https://patchbay.example"})
    answer = httpx.get(
        f"{patchbay.url}/accounts/login/",
        headers={"Host": "patchbay.example", "X-Forwarded-Proto": "https"},
        trust_env=False,
    )
    assert answer.status_code == 301
