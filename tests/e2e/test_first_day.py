"""The main job in one go, in a browser alone: from the first-run page of a fresh server to a locked
session with a steered and a queued message."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Browser, expect

from tests.fakes.server import FakeProviders
from tests.system.harness import ADMIN, Patchbay


def test_from_the_first_run_to_a_steered_and_a_queued_message(
    start_patchbay: Callable[..., Patchbay], browser: Browser
):
    patchbay, context = start_patchbay(from_nothing=True), browser.new_context()
    context.set_default_timeout(60_000)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    with FakeProviders() as fakes:
        # The first run: the token from the console makes the first admin.
        page.goto(patchbay.url)
        page.wait_for_url("**/setup/")
        for name, value in {"token": patchbay.token, **ADMIN}.items():
            page.fill(f"[name={name}]", value)
        page.get_by_role("button", name="Create and sign in").click()
        page.wait_for_url("**/connections/")

        # A connection, validated up to a streamed answer.
        page.get_by_role("link", name="OpenAI-compatible").click()
        page.get_by_role("link", name="All settings").click()
        page.get_by_label("Name").fill("Ours")
        page.get_by_label("Base URL").fill(fakes.openai)
        page.locator("#id_api_key").fill(fakes.good_key)
        page.get_by_label("Models").fill("tools-9-2s\necho")
        page.get_by_label("Default model").fill("echo")
        page.get_by_label("Messages sent mid-stream").select_option("steer")
        page.get_by_role("button", name="Save and validate").click()
        expect(page.locator("#health")).to_have_attribute("data-status", "valid", timeout=60_000)

        # A session: the first message locks it, and the reply streams.
        page.get_by_role("link", name="Sessions").click()
        page.get_by_role("button", name="New session").first.click()
        root, draft = page.locator("[data-session]"), page.locator("#draft")
        expect(root).to_have_attribute("data-connection", "ours")
        expect(root).to_have_attribute("data-locked", "false")
        page.locator("select[name=model]").select_option("tools-9-2s")
        session = page.url
        draft.fill("Look at the clock")
        draft.press("Enter")
        expect(root).to_have_attribute("data-locked", "true")
        page.locator("[data-kind=tool]").first.wait_for()
        draft.fill("In UTC")
        draft.press("Enter")
        expect(page.locator("#transcript [data-delivery=delivered]")).to_contain_text("In UTC")

        # The connection's setting changes in another tab; the next message is queued.
        other = context.new_page()
        other.goto(f"{patchbay.url}/connections/ours/edit/")
        other.get_by_label("Messages sent mid-stream").select_option("queue")
        other.get_by_role("button", name="Save").first.click()
        other.wait_for_url("**/connections/ours/")
        draft.fill("And then a song")
        draft.press("Enter")
        waiting = page.locator("#waiting [data-delivery=queued]")
        expect(waiting).to_contain_text("And then a song")
        expect(root).to_have_attribute("data-turn-state", "running")
        expect(page.locator("#turn-1")).to_contain_text("You added: In UTC", timeout=60_000)
        expect(page.locator("#turn-2")).to_contain_text("And then a song", timeout=60_000)
        expect(page.locator("#waiting > li")).to_have_count(0)
        expect(page.locator("#turn-2")).to_contain_text("Done after 9", timeout=60_000)
        expect(root).to_have_attribute("data-turn-state", "done")
        assert page.url == session
        assert complaints == []
