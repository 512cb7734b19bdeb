"""Hostile texts in every place that shows a text, in a real browser: nothing runs, nothing is
fetched from elsewhere, nothing carries a live attribute, and the policy has nothing to refuse."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.e2e.hostile_texts import BEACON, texts
from tests.fakes.server import GOOD_KEY, FakeProviders
from tests.system.harness import Client, Patchbay

WATCH = """
window.__seen = [];
document.addEventListener('securitypolicyviolation',
  event => window.__seen.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
for (const name of ['alert', 'confirm', 'prompt', 'open'])
  window[name] = () => { window.__seen.push(name); };
"""

LOOK = """
beacon => {
  const wrong = [...window.__seen];
  if (window.__hit !== undefined) wrong.push('a script ran');
  const address = /^(href|src|action|formaction|xlink:href|data|poster|srcset|background)$/i;
  for (const element of document.querySelectorAll('*')) {
    const name = element.localName, where = element.outerHTML.slice(0, 150);
    if (/^(iframe|frame|object|embed|applet|base|portal|math)$/.test(name)) wrong.push(where);
    if (name === 'script' && !element.src) wrong.push(where);
    for (const {name: attribute, value} of element.attributes) {
      if (/^on/i.test(attribute) || attribute === 'srcdoc') wrong.push(where);
      if (/^(data-)?hx-/.test(attribute) && attribute !== 'hx-disable'
          && (element.closest('[hx-disable]') || value.includes(beacon))) wrong.push(where);
      if (!address.test(attribute)) continue;
      if (/^[\\s\\x00-\\x20]*(javascript|vbscript|data:text)/i.test(value)) wrong.push(where);
      let leaves = value.includes(beacon);
      try { leaves = new URL(value, location).host.includes(beacon); } catch {}
      if (leaves && !(name === 'a' && attribute === 'href')) wrong.push(where);
      if (leaves && !/noopener|noreferrer/.test(element.rel)) wrong.push(where);
    }
  }
  return wrong;
}
"""


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay) -> Client:
    return patchbay.setup_admin()


@pytest.fixture
def wrong() -> list[str]:
    return []


@pytest.fixture
def page(patchbay: Patchbay, admin: Client, browser: Browser, wrong: list[str]) -> Page:
    """The admin's browser; what it runs, refuses or fetches from elsewhere comes into `wrong`."""
    context: BrowserContext = browser.new_context()
    context.add_init_script(WATCH)
    context.add_cookies(
        [
            {"name": one.name, "value": one.value or "", "url": patchbay.url}
            for one in admin.cookies.jar
        ]
    )
    page = context.new_page()
    page.set_default_timeout(30_000)

    def request(request) -> None:
        if not request.url.startswith((f"{patchbay.url}/", "data:")):
            wrong.append(f"asked for {request.url}")

    def dialog(dialog) -> None:
        wrong.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    page.on("request", request)
    page.on("dialog", dialog)
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on("popup", lambda popup: wrong.append(f"a window: {popup.url}"))
    page.on("console", lambda m: m.type == "error" and wrong.append(f"{page.url}: {m.text}"))
    return page


def look(page: Page, address: str, wrong: list[str]) -> None:
    response = page.goto(address, wait_until="load")
    assert response is not None
    if response.status != 200:
        wrong.append(f"{response.status} {address}")
    wrong.extend(f"{address}: {one}" for one in page.evaluate(LOOK, BEACON))


def test_every_place_shows_a_hostile_text_as_text(
    patchbay: Patchbay, admin: Client, page: Page, wrong: list[str]
):
    tell = "from tests.e2e.hostile_rows import tell; tell()"
    made = patchbay.manage("shell", "-v0", "-c", tell).stdout
    addresses = json.loads(made.splitlines()[-1])
    assert len(addresses["pages"]) > 40
    for address in (*addresses["pages"], *addresses["admin"]):
        look(page, patchbay.url + address, wrong)
        assert wrong == [], "\n".join(wrong[:10])
    assert page.locator("body").inner_text() != ""


def test_a_providers_hostile_words_stay_words(
    patchbay: Patchbay, admin: Client, page: Page, wrong: list[str], fakes: FakeProviders
):
    """Through the provider's error body, the worker, the event stream and the stored turn."""
    answer = admin.post(
        "/connections/new/",
        data={
            "name": "words",
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": fakes.openai,
            "models": "err-echo\necho",
            "default_model": "err-echo",
            "api_key": GOOD_KEY,
        },
    )
    assert answer.status_code == 303, answer.text
    # Errors are cut to a few hundred characters: several sessions, each text near its beginning.
    for batch in (texts()[start : start + 4] for start in range(0, 60, 4)):
        path = admin.post("/w/support/sessions/new/").headers["location"]
        admin.post(f"{path}connection/", data={"connection": "words"})
        page.goto(patchbay.url + path)
        data = {"text": "\n\n".join(batch)}
        assert admin.post(f"{path}send/", data=data).status_code == 303
        page.locator("[data-turn-state=failed]").wait_for()
        wrong.extend(page.evaluate(LOOK, BEACON))
        look(page, patchbay.url + path, wrong)
        assert wrong == [], "\n".join(wrong[:10])
    page.locator("summary", has_text="own words").first.click()
    assert BEACON in page.locator("#main .mono").first.inner_text()


def test_normal_use_of_every_page_breaks_no_policy(
    patchbay: Patchbay, admin: Client, page: Page, wrong: list[str]
):
    for address in (
        *("/", "/connections/", "/connections/new/", "/connections/new/?preset=openai"),
        *("/w/support/", "/w/support/settings/ai/", "/patterns/", "/accounts/password/change/"),
        *("/accounts/logout/", "/admin/", "/healthz", "/readyz"),
    ):
        look(page, patchbay.url + address, wrong)
    # The page asks for the icon of error pages; their answers are what is looked at.
    for address in ("/nothing/", "/w/no-such/", "/setup/"):
        page.goto(patchbay.url + address)
        found = page.evaluate(LOOK, BEACON)
        assert found == [], address
    assert [one for one in wrong if "404" not in one] == []


@pytest.mark.parametrize(
    "markup",
    [
        "<img src=x onerror=window.__hit=1>",
        "<iframe srcdoc=x></iframe>",
        f"<img src=https://{BEACON}/p.png>",
        f"<a href=https://{BEACON}/>no rel</a>",
        "<a href=' javascript:1'>x</a>",
        "<div hx-disable><b hx-get=/x>x</b></div>",
        f"<b data-hx-get=https://{BEACON}/>x</b>",
        "<script>window.__hit = 1</script>",
    ],
)
def test_the_look_itself_sees_what_is_live(page: Page, markup: str):
    page.set_content(markup)
    assert page.evaluate(LOOK, BEACON) != []
