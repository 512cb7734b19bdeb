"""From the first-run page to the first reply by the short path."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Browser, expect

from tests.fakes.server import FakeProviders
from tests.system.harness import ADMIN, Patchbay


def test_from_setup_to_the_first_reply_on_a_server_that_was_found(
    start_patchbay: Callable[..., Patchbay], browser: Browser
):
    with FakeProviders() as fakes:
        patchbay = start_patchbay(env={"PATCHBAY_LOCAL_SERVERS": f"ollama={fakes.ollama}"})
        context = browser.new_context()
        context.set_default_timeout(60_000)
        page, complaints = context.new_page(), []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(patchbay.url)
        for name, value in {"token": patchbay.token, **ADMIN}.items():
            page.fill(f"[name={name}]", value)
        page.get_by_role("button", name="Create and sign in").click()
        page.wait_for_url("**/connections/")

        step = page.locator('.steps [aria-current="step"]')
        expect(step).to_have_text("Provider")
        found = page.locator("#found")
        # It is asked for a moment only: a machine that is busy asks again.
        while not found.get_by_role("link").count():
            with page.expect_response("**/start/local/"):
                page.reload()
        expect(found).to_contain_text("Answers with 3 models.")
        # What comes by itself takes no focus.
        assert page.evaluate("document.activeElement === document.body")
        expect(found.get_by_role("link", name="LM Studio")).to_have_count(0)
        found.get_by_role("link", name="Ollama").click()
        expect(step).to_have_text("Details")
        while not page.get_by_text("Ollama answers on this machine").count():
            page.reload()
        expect(page.get_by_label("Default model")).to_have_value("llama3.2:latest")
        expect(page.get_by_label("Default model")).to_be_focused()
        page.get_by_role("button", name="Save and check").click()
        page.wait_for_url("**/start/check/ollama/")
        check = page.locator("#check")
        expect(check).to_have_attribute("data-status", "valid", timeout=60_000)
        expect(check.locator('.ladder > [data-outcome="passed"]')).to_have_count(6)
        expect(step).to_have_text("First session")
        begin = page.get_by_role("button", name="Begin the first session")
        expect(begin).to_be_focused()
        page.keyboard.press("Enter")
        page.wait_for_url("**/sessions/**")
        draft = page.locator("#draft")
        expect(draft).to_be_focused()
        page.keyboard.type("Hello from the first session")
        page.keyboard.press("Enter")
        root = page.locator("[data-session]")
        expect(root).to_have_attribute("data-turn-state", "done", timeout=60_000)
        expect(page.locator("[data-role=assistant]")).to_contain_text("Hello from the first")
        expect(root).to_have_attribute("data-connection", "ollama")
        assert complaints == []
        context.close()


def test_a_wrong_key_is_put_right_where_the_ladder_stopped_it(
    start_patchbay: Callable[..., Patchbay], browser: Browser
):
    patchbay = start_patchbay()
    admin = patchbay.setup_admin()
    cookies = [
        {"name": cookie.name, "value": cookie.value or "", "url": patchbay.url}
        for cookie in admin.cookies.jar
    ]
    with FakeProviders() as fakes:
        context = browser.new_context()
        context.set_default_timeout(60_000)
        context.add_cookies(cookies)
        page = context.new_page()
        page.goto(f"{patchbay.url}/connections/")
        expect(page.locator("#found li")).to_have_count(0)
        page.get_by_role("link", name="OpenAI-compatible").click()
        page.get_by_label("Base URL").fill("nonsense")
        page.get_by_label("API key").fill("sk-typed-once")
        page.get_by_role("button", name="Save and check").click()
        expect(page.get_by_role("alert")).to_contain_text("Start the address with https://")
        expect(page.get_by_label("API key")).to_have_value("sk-typed-once")
        page.get_by_label("API key").fill("")
        page.get_by_label("Base URL").fill(fakes.openai)
        page.get_by_label("Default model").fill("held")
        page.get_by_role("button", name="Save and check").click()
        page.wait_for_url("**/start/check/**")  # on this machine a key is optional
        check = page.locator("#check")
        expect(check).to_have_attribute("data-status", "failed", timeout=60_000)
        expect(check.locator('.ladder > [data-outcome="failed"]')).to_have_count(1)
        key = page.get_by_label("API key")
        expect(key).to_be_focused()
        key.fill(fakes.good_key)

        # Rung by rung: one is under way while others have passed.
        fakes.hold("Reply with the one word OK.")
        page.get_by_role("button", name="Save and check again").click()
        running = check.locator('.ladder > [data-outcome="running"]')
        expect(running).to_contain_text("Answer")
        expect(check.locator('.ladder > [data-outcome="passed"]')).to_have_count(3)
        fakes.release("Reply with the one word OK.")
        expect(check).to_have_attribute("data-status", "valid", timeout=60_000)
        assert fakes.good_key not in page.content()
        context.close()

        # The same without JavaScript.
        context = browser.new_context(java_script_enabled=False)
        context.set_default_timeout(60_000)
        context.add_cookies(cookies)
        page = context.new_page()
        page.goto(f"{patchbay.url}/start/vllm/")
        page.get_by_label("Name").fill("Plain")
        page.get_by_label("Base URL").fill(fakes.openai)
        page.get_by_label("API key").fill(fakes.good_key)
        page.get_by_label("Default model").fill("echo")
        page.get_by_role("button", name="Save and check").click()
        page.wait_for_url("**/start/check/plain/")
        begin = page.get_by_role("button", name="Begin a session")
        while not begin.count():
            page.get_by_role("link", name="See how far it is").click()
        begin.click()
        page.wait_for_url("**/sessions/**")
        context.close()
