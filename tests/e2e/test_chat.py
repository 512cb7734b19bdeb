"""A session in a real browser: from the first message to the stored reply, on the running product
with a fake provider."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from sessions.transcript import PAGE
from tests.e2e.hands import Finger, middle
from tests.fakes.server import GOOD_KEY, FakeProviders
from tests.sessions.hostile import load_hostile
from tests.system.harness import Client, Patchbay, wait_for

MODELS = [
    *("markdown", "thinking-tools", "fast-30tps-90", "fast-30tps-200", "fast-30tps-3000"),
    "tools-3-1s",
    *("tools-forever-1s", "long-600", "err-401", "vision"),
]
END = re.compile("done|failed|stopped|interrupted")


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay, fakes: FakeProviders) -> Client:
    """The admin of a server with the connections `steer` (the default) and `queue`."""
    client = patchbay.setup_admin()
    for behaviour in ("steer", "queue"):
        answer = client.post(
            "/connections/new/",
            data={
                "name": behaviour,
                "provider_type": "openai_compat",
                "auth_type": "api_key_with_endpoint",
                "base_url": fakes.openai,
                "models": json.dumps([{"id": "echo", "supportsThinking": True}, *MODELS]),
                "default_model": "markdown",
                "api_key": GOOD_KEY,
                "supports_images": "true",
                "mid_stream_behavior": behaviour,
            },
        )
        assert answer.status_code == 303, answer.text
    return client


@pytest.fixture
def context(patchbay: Patchbay, admin: Client, browser: Browser) -> BrowserContext:
    """A browser that the admin has signed in with."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    _sign_in(context, patchbay, admin)
    return context


def _sign_in(context: BrowserContext, patchbay: Patchbay, admin: Client) -> None:
    context.add_cookies(
        [
            {"name": cookie.name, "value": cookie.value or "", "url": patchbay.url}
            for cookie in admin.cookies.jar
        ]
    )


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def new_session(admin: Client, model: str, connection: str = "steer") -> str:
    """The path of a new session."""
    path = admin.post("/w/support/sessions/new/").headers["location"]
    assert admin.post(f"{path}connection/", data={"connection": connection}).status_code == 303
    assert admin.post(f"{path}model/", data={"model": model}).status_code == 303
    return path


def send(page: Page, text: str) -> None:
    page.locator("#draft").fill(text)
    page.locator("#draft").press("Enter")


def expect_state(page: Page, state: str | re.Pattern[str]) -> None:
    expect(page.locator("[data-session]")).to_have_attribute(
        "data-turn-state", state, timeout=60_000
    )


def complaints_of(page: Page) -> list[str]:
    """What the browser refuses or stumbles over from now on."""
    found: list[str] = []
    page.on("console", lambda m: found.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


# The transcript as a person sees it, message by message: role and text.
SHOWN = """() => [...document.querySelectorAll("#transcript [data-message]")].map((message) => {
  const body = message.querySelector(".message-body").cloneNode(true);
  for (const copy of body.querySelectorAll(".copy")) copy.remove();
  return [message.dataset.role, message.dataset.delivery, body.textContent.replace(/\\s+/g, " ")];
})"""


def expect_as_stored(page: Page) -> None:
    """What stands on the page is what a fresh page shows."""
    shown = page.evaluate(SHOWN)
    page.reload()
    assert page.evaluate(SHOWN) == shown


def test_the_first_message_locks_the_session_and_the_reply_streams(
    patchbay: Patchbay, admin: Client, page: Page
):
    complaints = complaints_of(page)
    page.goto(f"{patchbay.url}/w/support/")
    page.get_by_role("button", name="New session").click()
    root = page.locator("[data-session]")
    expect(root).to_have_attribute("data-locked", "false")
    page.get_by_role("radio", name=re.compile("^queue")).check()
    expect(root).to_have_attribute("data-connection", "queue")
    send(page, "A week on the coast")
    expect(root).to_have_attribute("data-locked", "true")
    expect(page.locator("#welcome .capability")).to_have_count(0)
    # It grows: text is there before the end.
    reply = page.locator("[data-message][data-role=assistant]")
    expect(reply).to_contain_text("A week on the coast")
    expect(root).to_have_attribute("data-turn-state", "running")
    expect_state(page, "done")
    expect(reply.locator("table td")).to_have_count(9)
    expect(reply.locator(".code .k").first).to_be_visible()
    expect(reply.locator("[data-open], [data-tail]")).to_have_count(0)
    expect(page.locator("#announce")).to_have_text("Reply finished.")
    expect(page.locator(".chat-connection")).to_contain_text("queue")
    expect(page).not_to_have_title(re.compile("New session"))
    expect_as_stored(page)
    assert complaints == []


def test_a_new_session_is_read_from_its_beginning(patchbay: Patchbay, admin: Client, page: Page):
    page.set_viewport_size({"width": 390, "height": 600})
    path = admin.post("/w/support/sessions/new/").headers["location"]
    page.goto(patchbay.url + path)
    title = page.get_by_role("heading", name="What shall this session run on?")
    expect(title).to_be_in_viewport()
    expect(page.locator("#jump")).to_be_hidden()
    # Also when what it shows has grown.
    page.locator("#welcome details").evaluate("details => (details.open = true)")
    expect(page.locator("#welcome .trace li").first).to_be_visible()
    expect(title).to_be_in_viewport()
    page.locator("#log").evaluate("log => log.scrollTop = 80")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    expect(page.locator("#jump")).to_be_hidden()


def test_a_message_is_steered_in_and_another_is_queued(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "tools-3-1s"))
    send(page, "Look at the clock")
    page.locator("[data-kind=tool]").first.wait_for()
    expect(page.get_by_text("Will be steered into the running reply")).to_be_visible()
    send(page, "In UTC")
    steered = page.locator("#transcript [data-message][data-delivery=delivered]")
    expect(steered).to_contain_text("In UTC")
    answer = admin.post("/connections/steer/mid-stream/", data={"mid_stream_behavior": "queue"})
    assert answer.status_code == 303
    try:
        send(page, "And then a song")
        expect(page.locator("#waiting [data-delivery=queued]")).to_contain_text("And then a song")
    finally:
        admin.post("/connections/steer/mid-stream/", data={"mid_stream_behavior": "steer"})
    expect(page.locator("#turn-2 [data-role=user]")).to_contain_text("And then a song")
    expect(page.locator("#waiting > li")).to_have_count(0)
    expect(page.locator("#turn-2")).to_contain_text("Done after 3 tool rounds.", timeout=30_000)
    expect_state(page, "done")
    expect(page.locator("#turn-1")).to_contain_text("You added: In UTC")
    expect_as_stored(page)


def test_waiting_messages_are_edited_moved_promoted_and_cancelled(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    send(page, "Begin")
    expect_state(page, "running")
    waiting = page.locator("#waiting > li")
    for number, text in enumerate(("one", "two", "three"), 1):
        send(page, text)
        expect(waiting).to_have_count(number)
    waiting.nth(0).get_by_label("Send later").click()
    expect(waiting.nth(0)).to_contain_text("two")
    waiting.nth(1).get_by_label("Edit this message").click()
    waiting.nth(1).locator("textarea").fill("one, better")
    # What others do meanwhile doesn't take it away.
    waiting.nth(2).get_by_label("Cancel this message").click()
    expect(waiting).to_have_count(2)
    expect(waiting.nth(1).locator("textarea")).to_have_value("one, better")
    waiting.nth(1).get_by_role("button", name="Save message").click()
    expect(waiting.nth(1).locator(".message-body")).to_have_text("one, better")
    waiting.nth(0).get_by_role("button", name="Steer now").click()
    steered = page.locator("#transcript [data-message][data-delivery=delivered]")
    expect(steered).to_contain_text("two")
    expect(waiting).to_have_count(1)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="come back to me").click()
    expect_state(page, "stopped")


def test_what_changes_between_press_and_release_takes_no_press_away(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    send(page, "Begin")
    expect_state(page, "running")
    waiting = page.locator("#waiting > li")
    for number, text in enumerate(("one", "two", "three"), 1):
        send(page, text)
        expect(waiting).to_have_count(number)
    edited = waiting.nth(1)
    edited.get_by_label("Edit this message").click()
    edited.locator("textarea").fill("two, better")
    edited.get_by_role("button", name="Save message").hover()
    page.mouse.down()
    # Another tab puts the message first, whose buttons change with it, then cancels one.
    path = page.url.removeprefix(patchbay.url)
    key = edited.get_attribute("data-message")
    assert admin.post(f"{path}messages/{key}/move/", data={"direction": "earlier"}).is_redirect
    expect(waiting.nth(0).locator("textarea")).to_have_value("two, better")
    last = waiting.nth(2).get_attribute("data-message")
    assert admin.post(f"{path}messages/{last}/cancel/").is_redirect
    expect(waiting).to_have_count(2)
    expect(waiting.nth(0).locator("textarea")).to_be_visible()
    button = waiting.nth(0).get_by_role("button", name="Save message")
    button.evaluate("button => button.addEventListener('click', () => (window.__pressed = true))")
    box = button.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert page.evaluate("window.__pressed")
    expect(waiting.nth(0).locator(".message-body")).to_have_text("two, better")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="come back to me").click()
    expect_state(page, "stopped")


class Held:
    """Requests to addresses that end so are held back, until they are let go one by one."""

    def __init__(self, page: Page, ending: str) -> None:
        self._routes: list[Route] = []
        self._page = page
        page.route(f"**{ending}", lambda route: self._routes.append(route))

    def let_go(self, number: int = 0) -> None:
        deadline = time.monotonic() + 30
        while len(self._routes) <= number:
            assert time.monotonic() < deadline, "no such request was made"
            self._page.wait_for_timeout(20)
        self._routes.pop(number).continue_()


def test_choices_in_quick_succession_end_with_the_last(
    patchbay: Patchbay, admin: Client, page: Page
):
    complaints = complaints_of(page)
    path = admin.post("/w/support/sessions/new/").headers["location"]
    page.goto(patchbay.url + path)
    held = Held(page, "/connection/")
    session = page.locator("[data-session]")
    # The answer to the first choice comes after the second was made.
    page.get_by_role("radio", name=re.compile("^queue")).check()
    page.get_by_role("radio", name=re.compile("^steer")).check()
    held.let_go()
    held.let_go()
    expect(session).to_have_attribute("data-connection", "steer")
    expect(page.get_by_role("radio", name=re.compile("^steer"))).to_be_checked()
    # One that was changed back is the first one still.
    for name in ("queue", "steer", "queue"):
        page.get_by_role("radio", name=re.compile(f"^{name}")).check()
    held.let_go()
    expect(session).to_have_attribute("data-connection", "queue")
    expect(page.get_by_role("radio", name=re.compile("^queue"))).to_be_checked()
    page.get_by_role("radio", name=re.compile("^steer")).check()
    held.let_go()
    expect(session).to_have_attribute("data-connection", "steer")
    expect(page.get_by_role("radio", name=re.compile("^steer"))).to_be_checked()
    page.unroute_all()

    held = Held(page, "/model/")
    model = page.get_by_role("combobox", name="Model")
    model.select_option("echo")
    model.select_option("fast-30tps-90")
    send(page, "one")  # waits for the model that was chosen last
    held.let_go()
    held.let_go()
    expect_state(page, END)
    expect(page.locator(".turn-end")).to_contain_text("fast-30tps-90")
    assert complaints == []


def test_the_level_of_thinking_and_the_length_are_chosen_beside_the_model(
    patchbay: Patchbay, admin: Client, page: Page, fakes: FakeProviders
):
    page.goto(patchbay.url + new_session(admin, "echo"))
    complaints = complaints_of(page)
    page.get_by_role("button", name="Thinking and length").click()
    page.get_by_label("Thinking", exact=True).select_option("high")
    send(page, "think first")  # waits for the answer to the choice
    expect_state(page, END)
    asked = fakes.requests(last_user="think first")[-1]
    assert (asked["thinking"], asked["max_tokens"]) == ("high", 16_384)
    page.get_by_role("button", name="Thinking and length").click()
    expect(page.get_by_label("Thinking", exact=True)).to_have_value("high")
    page.get_by_label("Longest reply").select_option("8192")
    expect(page.get_by_label("Longest reply")).to_have_value("8192")
    page.locator("select[name=model]").select_option("markdown")
    no_levels = page.get_by_text("This model has no levels of thinking.")
    expect(no_levels).to_be_attached()
    page.get_by_role("button", name="Thinking and length").click()
    expect(no_levels).to_be_visible()
    expect(page.get_by_label("Longest reply")).to_have_value("8192")
    assert complaints == []


def test_a_message_sent_while_another_is_on_its_way_goes_behind_it(
    patchbay: Patchbay, admin: Client, page: Page
):
    path = new_session(admin, "tools-3-1s", "queue")
    complaints = complaints_of(page)
    page.goto(patchbay.url + path)
    held = Held(page, "/send/")
    send(page, "first")
    expect(page.locator("#draft")).to_have_value("")
    send(page, "second")
    expect(page.locator("#draft")).to_have_value("second")
    held.let_go()
    expect(page.locator("#draft")).to_have_value("")
    held.let_go()
    expect(page.locator("#waiting > li")).to_contain_text("second")
    expect(page.locator("#turn-1 [data-role=user]")).to_contain_text("first")
    assert complaints == []


def test_two_changes_of_waiting_messages_at_once_both_show(
    patchbay: Patchbay, admin: Client, page: Page
):
    path = new_session(admin, "tools-forever-1s", "queue")
    complaints = complaints_of(page)
    page.goto(patchbay.url + path)
    send(page, "first")
    expect_state(page, "running")
    for number, text in enumerate(("second", "third", "fourth"), start=1):
        send(page, text)
        expect(page.locator("#waiting > li")).to_have_count(number)
    held = Held(page, "/cancel/")
    waiting = page.locator("#waiting > li")
    waiting.filter(has_text="second").get_by_role("button", name="Cancel this message").click()
    waiting.filter(has_text="third").get_by_role("button", name="Cancel this message").click()
    held.let_go(1)
    held.let_go(0)
    expect(waiting).to_have_count(1)
    expect(waiting).to_contain_text("fourth")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="go on in their order").click()
    expect(waiting).to_have_count(0)
    assert complaints == []


def test_stop_gives_the_queued_texts_back_to_the_composer(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "fast-30tps-3000", "queue"))
    send(page, "Tell me a tale")
    expect(page.locator("[data-role=assistant]")).to_contain_text("harbour")
    send(page, "first wish")
    expect(page.locator("#waiting > li")).to_have_count(1)
    send(page, "second wish")
    expect(page.locator("#waiting > li")).to_have_count(2)
    page.locator("#draft").fill("half a thought")
    page.keyboard.press("Escape")
    expect_state(page, "stopped")
    draft = page.locator("#draft")
    expect(draft).to_have_value("half a thought\n\nfirst wish\n\nsecond wish")
    expect(page.locator("#waiting > li")).to_have_count(0)
    expect(page.locator("[data-role=assistant]")).to_contain_text("harbour")
    expect(page.locator("#turn-1-end")).to_contain_text("Stopped")
    expect_as_stored(page)


def test_texts_come_back_though_the_stop_button_is_gone_before_its_answer(
    patchbay: Patchbay, admin: Client, page: Page
):
    complaints = complaints_of(page)
    page.goto(patchbay.url + new_session(admin, "fast-30tps-3000", "queue"))
    send(page, "Tell me a tale")
    expect(page.locator("[data-role=assistant]")).to_contain_text("harbour")
    send(page, "a wish")
    expect(page.locator("#waiting > li")).to_have_count(1)

    def late(route: Route) -> None:
        answer = route.fetch()
        page.locator("#stop").wait_for(state="detached")  # the stream brought the end
        route.fulfill(response=answer)

    page.route("**/stop/", late)
    page.keyboard.press("Escape")
    expect_state(page, "stopped")
    expect(page.locator("#draft")).to_have_value("a wish")
    assert complaints == []


def test_the_queue_is_kept_in_order_by_keyboard_alone(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    send(page, "Begin")
    expect_state(page, "running")
    waiting = page.locator("#waiting > li")
    for number, text in enumerate(("one", "two", "three"), 1):
        send(page, text)
        expect(waiting).to_have_count(number)
    expect(page).to_have_title(re.compile("^Working…: "))
    pencil = waiting.nth(0).get_by_label("Edit this message")
    pencil.focus()
    page.keyboard.press("Enter")
    expect(waiting.nth(0).locator("textarea")).to_be_focused()
    page.keyboard.insert_text("never mind")
    page.keyboard.press("Escape")  # ends the editing, not the reply
    expect(pencil).to_be_focused()
    expect(waiting.nth(0).locator(".message-body")).to_have_text("one")
    waiting.nth(0).get_by_label("Send later").focus()
    page.keyboard.press("Enter")
    expect(waiting.nth(0)).to_contain_text("two")
    expect(page.locator("#waiting :focus")).to_have_attribute("aria-label", "Send later")
    waiting.nth(2).get_by_label("Cancel this message").focus()
    page.keyboard.press("Enter")
    expect(waiting).to_have_count(2)
    expect(page.locator("#waiting :focus")).to_have_attribute("aria-label", "Cancel this message")
    expect_state(page, "running")
    page.locator("#draft").focus()
    page.keyboard.press("Escape")
    expect_state(page, "stopped")


def test_a_reload_in_mid_stream_goes_on_without_gap_or_repeat(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "fast-30tps-90"))
    send(page, "Tell me a tale")
    reply = page.locator("[data-role=assistant] .message-body")
    expect(reply).to_contain_text("harbour")
    for _ in range(3):
        before = len(reply.inner_text())
        page.reload()
        wait_for(lambda: len(reply.inner_text()) > before, what="the reply grows")  # noqa: B023
    expect_state(page, "done")
    expect_as_stored(page)
    stored = json.loads(_stored_texts(patchbay, page))
    assert " ".join(reply.inner_text().split()) == " ".join(stored[-1].split())


def _stored_texts(patchbay: Patchbay, page: Page) -> str:
    chat = page.locator("[data-session]").get_attribute("data-session")
    code = (
        "import json; from sessions.models import Message;"
        f"print(json.dumps([m.text for m in Message.objects.filter(chat={chat!r})]))"
    )
    return patchbay.manage("shell", "-v", "0", "-c", code).stdout


# Every text that the growing reply has shown, frame by frame.
WATCH = """() => {
  window.__seen = [];
  const look = () => {
    const reply = document.querySelector("[data-role=assistant] .message-body");
    const text = reply?.textContent.replace(/\\s+/g, " ").trim();
    if (text && text !== window.__seen.at(-1)) window.__seen.push(text);
    requestAnimationFrame(look);
  };
  look();
}"""


def test_a_growing_reply_shows_the_beginning_of_what_it_will_be(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "fast-30tps-90"))
    page.evaluate(WATCH)
    send(page, "Tell me a tale")
    expect_state(page, "done")
    seen = page.evaluate("window.__seen")
    assert len(seen) > 20
    assert [text for text in seen if not seen[-1].startswith(text)] == []
    assert seen == sorted(seen, key=len), "no text goes backwards"


def test_a_stream_that_breaks_and_loses_events_is_taken_up_again(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.add_init_script(
        """const Whole = window.EventSource;
        window.__breaks = 0;
        window.EventSource = class extends Whole {
          left = 3 + Math.floor(Math.random() * 8);
          addEventListener(name, handler) {
            super.addEventListener(name, (event) => {
              if (name !== "text" || --this.left > 1) return handler(event);
              if (this.left === 1) return void (window.__breaks += 1); // lost on the way
              handler(event);
              if (this.readyState !== Whole.CLOSED) this.onerror(new Event("error"));
            });
          }
        };"""
    )
    page.goto(patchbay.url + new_session(admin, "fast-30tps-200"))
    page.evaluate(WATCH)
    send(page, "Tell me a tale")
    expect_state(page, "done")
    assert page.evaluate("window.__breaks") > 1
    seen = page.evaluate("window.__seen")
    assert [text for text in seen if not seen[-1].startswith(text)] == []
    expect_as_stored(page)


def test_two_pages_show_the_same(patchbay: Patchbay, admin: Client, context: BrowserContext):
    path = new_session(admin, "thinking-tools")
    pages = [context.new_page() for _ in range(2)]
    for page in pages:
        page.goto(patchbay.url + path)
    send(pages[0], "What time is it?")
    for page in pages:
        expect_state(page, "done")
    first, second = (page.evaluate(SHOWN) for page in pages)
    assert first == second
    assert len(first) > 2
    expect(pages[1].locator("details.tool")).to_have_count(1)
    expect_as_stored(pages[1])


def test_eight_pages_at_once_all_follow(patchbay: Patchbay, admin: Client, context: BrowserContext):
    """More than the connections that a browser allows to one host."""
    path = new_session(admin, "fast-30tps-90")
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        page.goto(patchbay.url + path)
        expect(page.locator("#draft")).to_be_visible()
    send(pages[7], "Tell me a tale")
    for page in pages:
        expect(page.locator("[data-role=assistant]")).to_contain_text("harbour")
    for page in pages:
        expect_state(page, "done")
    texts = {json.dumps(page.evaluate(SHOWN)) for page in pages}
    assert len(texts) == 1


def test_a_double_click_sends_once_and_a_refusal_keeps_the_text(
    patchbay: Patchbay, admin: Client, page: Page
):
    path = new_session(admin, "echo")
    page.goto(patchbay.url + path)
    page.locator("#draft").fill("only once")
    page.locator("#send").dblclick()
    expect_state(page, "done")
    expect(page.locator("#transcript [data-role=user]")).to_have_count(1)
    draft = page.locator("#draft")
    # Nobody answers; then the message is refused; then the connection is paused.
    page.context.set_offline(True)
    send(page, "not lost")
    expect(page.locator("#toasts")).to_contain_text("No answer from the server.")
    expect(draft).to_have_value("not lost")
    page.context.set_offline(False)
    draft.evaluate("draft => (draft.value = 'x'.repeat(200_001))")
    draft.press("Enter")
    expect(page.locator("#problem")).to_contain_text("200001 characters")
    assert draft.evaluate("draft => draft.value.length") == 200_001
    draft.fill("not lost")
    page.reload()
    expect(draft).to_have_value("not lost")
    admin.post("/connections/steer/enable/", data={"enabled": "false"})
    try:
        draft.press("Enter")
        expect(page.locator("#reason")).to_contain_text("paused")
        expect(page.locator("#send")).to_be_disabled()
        expect(draft).to_have_value("not lost")
    finally:
        admin.post("/connections/steer/enable/", data={"enabled": "true"})


def test_a_failed_turn_says_why_and_can_be_tried_again(
    patchbay: Patchbay, admin: Client, page: Page
):
    page.goto(patchbay.url + new_session(admin, "err-401"))
    send(page, "Hello")
    expect_state(page, "failed")
    end = page.locator("#turn-1-end")
    expect(end).to_contain_text("The provider rejected this key.")
    expect(end.get_by_text("Incorrect API key")).to_be_hidden()
    end.get_by_text("The provider's own words").click()
    expect(end.get_by_text("Incorrect API key")).to_be_visible()
    page.locator("select[name=model]").select_option("echo")
    expect(page.locator("select[name=model]")).to_have_value("echo")
    end.get_by_role("button", name="Retry").click()
    expect_state(page, "done")
    expect(page.locator("#transcript [data-role=user]")).to_have_count(1)
    expect(page.locator("#transcript [data-role=assistant]")).to_contain_text("Hello")


def test_images_are_shown_before_and_after_they_are_sent(
    patchbay: Patchbay, admin: Client, page: Page
):
    complaints = complaints_of(page)
    page.goto(patchbay.url + new_session(admin, "vision"))
    picture = _picture(40, 30)
    page.locator("#images").set_input_files(
        [
            {"name": f"{name}.png", "mimeType": "image/png", "buffer": picture}
            for name in ("one", "two")
        ]
    )
    expect(page.locator("#files img")).to_have_count(2)
    page.get_by_label("Remove this file").first.click()
    expect(page.locator("#files img")).to_have_count(1)
    send(page, "What is this?")
    expect_state(page, "done")
    expect(page.locator("[data-role=assistant]")).to_contain_text("I see 1 images")
    expect(page.locator("#files img")).to_have_count(0)
    shown = page.locator("#transcript .message-images img")
    expect(shown).to_have_count(1)
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 40
    assert complaints == []


def _picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def test_text_files_are_dropped_and_pasted_and_go_to_any_model(
    patchbay: Patchbay, admin: Client, page: Page, fakes: FakeProviders
):
    complaints = complaints_of(page)
    page.goto(patchbay.url + new_session(admin, "echo"))
    give = """(target, [kind, name, text]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name, { type: "text/plain" }));
      const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      target.dispatchEvent(event);
    }"""
    draft = page.locator("#draft")
    draft.evaluate(give, ["drop", "dropped.txt", "one"])
    draft.evaluate(give, ["paste", "pasted.csv", "a,b"])
    page.locator("#text-files").set_input_files(
        [{"name": "chosen.md", "mimeType": "text/markdown", "buffer": b"# three\n"}]
    )
    chips = page.locator("#files > li")
    expect(chips).to_have_count(3)
    chips.nth(1).get_by_label("Remove this file").click()
    expect(chips).to_have_count(2)
    send(page, "What do they say?")
    expect_state(page, "done")
    expect(chips).to_have_count(0)
    files = page.locator("#turn-1 details.file")
    expect(files).to_have_count(2)
    expect(files.nth(1).locator("pre")).to_be_hidden()
    files.nth(1).locator("summary").click()
    expect(files.nth(1).locator("pre")).to_have_text("# three")
    # One that isn't text is refused by its name, and all stays to be sent.
    complaints.clear()
    draft.evaluate(give, ["drop", "what.bin", "\u0000\u0001"])
    send(page, "And this?")
    expect(page.locator("#problem")).to_contain_text("“what.bin” isn't a text file.")
    expect(draft).to_have_value("And this?")
    expect(chips).to_have_count(1)


def test_hostile_texts_stay_texts(patchbay: Patchbay, admin: Client, page: Page):
    """As the person's text, the model's, and the title: no script runs, nothing leaves, the policy
    has nothing to refuse."""
    complaints = complaints_of(page)
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda r: (
            elsewhere.append(r.url) if not r.url.startswith((patchbay.url, "data:")) else None
        ),
    )
    path = new_session(admin, "echo")
    page.goto(patchbay.url + path)
    # A few dozen texts a message; what is long to make readers slow has tests of its own.
    corpus = [text for text in load_hostile() if text.strip() and len(text) < 1_500]
    assert len(corpus) > 200
    batches = [corpus[start : start + 40] for start in range(0, len(corpus), 40)]
    for batch in batches:
        answer = admin.post(f"{path}send/", data={"text": _storable("\n\n".join(batch))})
        assert answer.status_code == 303, answer.text
    replies = page.locator("#transcript [data-role=assistant][data-complete]")
    expect(replies).to_have_count(len(batches), timeout=120_000)
    _expect_harmless(page)
    for text in corpus[:: len(corpus) // 12]:
        assert admin.post(f"{path}rename/", data={"title": _storable(text)}).status_code == 303
        page.reload()
    _expect_harmless(page)
    page.goto(f"{patchbay.url}/w/support/")
    _expect_harmless(page)
    assert elsewhere == []
    assert complaints == []


def _expect_harmless(page: Page) -> None:
    assert page.evaluate("window.__hit") is None
    inside = "main :is(script, iframe, object, embed, style, base, meta, link, [onerror], [style])"
    assert page.locator(inside).count() == 0
    assert (
        page.locator(".message-body :is([hx-get], [hx-post], [data-hx-get], [id], img)").count()
        == 0
    )
    assert page.locator("#toasts").count() == 1


def _storable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_a_session_works_without_javascript(patchbay: Patchbay, admin: Client, browser: Browser):
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(30_000)
    _sign_in(context, patchbay, admin)
    page = context.new_page()
    page.goto(f"{patchbay.url}/w/support/")
    page.get_by_role("button", name="New session", exact=True).click()
    page.get_by_role("radio", name=re.compile("^queue")).check()
    page.get_by_role("button", name="Use this connection").click()
    expect(page.locator("[data-session]")).to_have_attribute("data-connection", "queue")
    page.locator("#draft").fill("A week on the coast")
    page.locator("#send").click()
    # The page fetches itself until the reply is there.
    expect_state(page, "done")
    expect(page.locator("[data-role=assistant] table td")).to_have_count(9)
    page.locator("#chat-title").fill("By hand")
    page.locator("#chat-title").press("Enter")
    expect(page).to_have_title(re.compile("^By hand"))

    # While one runs, the page can be held still, so that what is typed isn't lost to a reload.
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    page.locator("#draft").fill("Begin")
    page.locator("#send").click()
    expect_state(page, "running")
    expect(page.locator("head meta[http-equiv=refresh]")).to_have_count(1)
    page.get_by_role("link", name="Hold it still").click()
    expect(page.get_by_role("link", name="Follow it")).to_be_visible()
    expect(page.locator("head meta[http-equiv=refresh]")).to_have_count(0)
    page.locator("#draft").fill("And then this")
    page.locator("#send").click()
    expect(page.locator("#waiting > li")).to_contain_text("And then this")
    page.get_by_role("link", name="Hold it still").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="come back to me").click()
    expect(page.locator("#draft")).to_have_value("And then this")
    expect(page.get_by_role("link", name="Follow it")).to_have_count(0)  # it would be lost
    page.goto(page.url.removesuffix("stop/"))
    expect_state(page, "stopped")
    context.close()


def test_nothing_moves_above_the_text_that_grows(patchbay: Patchbay, admin: Client, page: Page):
    page.goto(patchbay.url + new_session(admin, "markdown"))
    send(page, "Once")
    expect_state(page, "done")
    page.reload()
    # Where the parts of the first turn stand in the conversation, in every frame from now on.
    page.evaluate(
        """() => {
          window.__places = new Set();
          const log = document.getElementById("log");
          const look = () => {
            const top = log.getBoundingClientRect().top - log.scrollTop;
            const parts = [...document.querySelectorAll("#turn-1 :is(p, li, pre, table)")];
            const places = parts.map((part) => Math.round(part.getBoundingClientRect().top - top));
            window.__places.add(places.join(" "));
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    send(page, "And once more")
    expect(page.locator("#turn-2-end")).to_contain_text("tokens")
    (places,) = page.evaluate("[...window.__places]")
    assert len(places.split()) > 5
    # One who reads further up is left there.
    page.evaluate("document.getElementById('log').scrollTop = 100")
    expect(page.locator("#jump")).to_be_visible()
    send_at = page.evaluate("document.getElementById('log').scrollTop")
    admin.post(page.url.removeprefix(patchbay.url) + "send/", data={"text": "A third time"})
    expect(page.locator("#turn-3-end")).to_contain_text("tokens")
    assert page.evaluate("document.getElementById('log').scrollTop") == send_at
    page.locator("#jump").click()
    expect(page.locator("#jump")).to_be_hidden()


def test_a_colleague_who_loses_access_is_told(
    patchbay: Patchbay, admin: Client, browser: Browser, page: Page
):
    code = (
        "from tests.builders import *; from workspaces.models import Workspace;"
        "make_member(Workspace.objects.get(slug='support'), make_user('bob@example.com'))"
    )
    patchbay.manage("shell", "-c", code)
    bob = patchbay.sign_in("bob@example.com")
    path = new_session(admin, "echo")
    assert bob.get(path).status_code == 404
    admin.post(f"{path}share/", data={"shared": "true"})
    context = browser.new_context()
    context.set_default_timeout(30_000)
    _sign_in(context, patchbay, bob)
    theirs = context.new_page()
    theirs.goto(patchbay.url + path)
    admin.post(f"{path}send/", data={"text": "Hello, Bob"})
    expect(theirs.locator("[data-role=assistant]")).to_contain_text("Hello, Bob")
    admin.post(f"{path}share/", data={"shared": "false"})
    expect(theirs.locator("#notice")).to_contain_text("no longer have access")
    context.close()


def test_older_turns_come_above_and_the_place_stays(patchbay: Patchbay, admin: Client, page: Page):
    path = new_session(admin, "echo")
    chat = path.rstrip("/").rpartition("/")[2]
    code = (
        "from sessions import sending; from sessions.models import *\n"
        "from workspaces.models import User\n"
        f"chat, alice = ChatSession.objects.get(pk={chat!r}), User.objects.get(is_superuser=True)\n"
        "for number in range(1, 51):\n"
        "    turn = sending.send(chat.pk, alice, f'Question {number}', ring=False).turn\n"
        "    Turn.objects.filter(pk=turn.pk).update(state='done', left_out_before=45)"
    )
    patchbay.manage("shell", "-c", code)
    page.goto(patchbay.url + path)
    expect(page.locator("#transcript > [data-turn]")).to_have_count(PAGE)
    expect(page.locator("#turn-45 > .seam")).to_be_visible()
    link = page.get_by_role("link", name="Show older turns")
    link.focus()  # brings it into sight, which is enough
    expect(page.locator("#transcript > [data-turn]")).to_have_count(50)
    expect(link).to_have_count(0)
    expect(page.locator("#turn-21")).to_be_in_viewport()
    numbers = page.locator("#transcript > [data-turn]").evaluate_all(
        "turns => turns.map((turn) => Number(turn.dataset.turn))"
    )
    assert numbers == list(range(1, 51))


def test_a_message_is_edited_and_sent_again_in_a_new_session(
    patchbay: Patchbay, admin: Client, page: Page
):
    complaints = complaints_of(page)
    path = new_session(admin, "echo")
    page.goto(patchbay.url + path)
    for number, text in enumerate(("first thing", "second thing"), 1):
        send(page, text)
        expect(page.locator(f"#turn-{number}-end")).to_contain_text("tokens")
    # Up from an empty field; Escape leaves it as it is.
    draft = page.locator("#draft")
    draft.press("ArrowUp")
    page.wait_for_url("**/again/")
    expect(draft).to_have_value("second thing")
    expect(draft).to_be_focused()
    expect(page.locator("[data-turn]")).to_have_count(1)
    expect(page.locator(".seam")).to_contain_text("begins a new session from here")
    draft.press("Escape")
    page.wait_for_url(f"**{path}#turn-2")
    page.locator("#turn-1 [data-role=user]").hover()
    page.locator("#turn-1").get_by_label("Edit and send again").click()
    page.wait_for_url("**/again/")
    # What is refused stays in the field.
    draft.evaluate("draft => (draft.value = 'x'.repeat(200_001))")
    draft.press("Enter")
    expect(page.locator("#problem")).to_contain_text("200001 characters")
    assert draft.evaluate("draft => draft.value.length") == 200_001
    complaints.clear()  # the browser notes the refusal
    page.go_back()
    page.locator("#draft").press("ArrowUp")
    page.wait_for_url("**/again/")
    draft.fill("second thing, better")
    page.locator("#send").dblclick()
    page.wait_for_url(lambda url: "/again/" not in url and path not in url)
    expect_state(page, "done")
    expect(page.locator("#turn-1")).to_contain_text("first thing")
    expect(page.locator("#turn-2 [data-role=user]")).to_contain_text("second thing, better")
    expect(page.locator("#seam-began")).to_contain_text("Asked again from here on.")
    new = page.url
    page.get_by_role("link", name="The version before").click()
    page.wait_for_url(f"**{path}#turn-2")
    expect(page.locator("#turn-2 [data-role=user] .message-body")).to_have_text("second thing")
    links = page.locator("#turn-2-end a")
    expect(links).to_have_count(1)  # however often it was pressed
    links.click()
    page.wait_for_url(f"{new}#turn-2")
    assert complaints == []


def test_an_answer_is_asked_for_again_and_the_old_one_stays(
    patchbay: Patchbay, admin: Client, page: Page
):
    path = new_session(admin, "echo")
    page.goto(patchbay.url + path)
    complaints = complaints_of(page)
    send(page, "say it")
    expect_state(page, "done")
    button = page.get_by_role("button", name="Ask for this answer again")
    button.dblclick()
    page.wait_for_url(lambda url: path not in url)
    expect_state(page, "done")
    expect(page.locator("[data-role=assistant]")).to_contain_text("say it")
    expect(page.locator("#transcript [data-message]")).to_have_count(2)
    page.goto(patchbay.url + path)
    expect(page.locator("[data-role=assistant]")).to_contain_text("say it")
    expect(page.locator("#turn-1-end a")).to_have_count(1)
    # Looked back at, it makes another one.
    button.click()
    page.wait_for_url(lambda url: path not in url)
    page.go_back()
    page.wait_for_url(f"**{path}")
    button.click()
    page.wait_for_url(lambda url: path not in url)
    page.goto(patchbay.url + path)
    expect(page.locator("#turn-1-end a")).to_have_count(3)
    # The button belongs to the last answer alone, and comes and goes without moving anything.
    top = page.locator("#turn-1-end").bounding_box()
    send(page, "and this")
    expect(page.locator("#turn-2-end")).to_contain_text("tokens")
    expect(page.locator("#turn-1").get_by_role("button")).to_have_count(0)
    assert top == {**(page.locator("#turn-1-end").bounding_box() or {}), "y": top and top["y"]}
    assert complaints == []


def test_versions_are_made_without_javascript(patchbay: Patchbay, admin: Client, browser: Browser):
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(30_000)
    _sign_in(context, patchbay, admin)
    page = context.new_page()
    path = new_session(admin, "echo")
    admin.post(f"{path}send/", data={"text": "by hand"})
    page.goto(patchbay.url + path)
    expect_state(page, "done")
    page.get_by_label("Edit and send again").click()
    page.locator("#draft").fill("  ")
    page.locator("#send").click()
    expect(page.locator("#problem")).to_contain_text("Write a message first.")
    page.locator("#draft").fill("by hand, better")
    page.locator("#send").click()
    expect_state(page, "done")
    expect(page.locator("[data-role=assistant]")).to_contain_text("by hand, better")
    page.get_by_role("button", name="Ask for this answer again").click()
    expect_state(page, "done")
    expect(page.locator("#seam-began")).to_contain_text("Asked again from here on.")
    context.close()


def test_the_first_reply_is_followed_on_a_phone_under_a_long_title(
    patchbay: Patchbay, admin: Client, browser: Browser
):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(30_000)
    _sign_in(context, patchbay, admin)
    page = context.new_page()
    page.goto(patchbay.url + new_session(admin, "markdown"))
    send(page, "What should I pack for a week on the coast, and for the days after it?")
    expect_state(page, "done")
    expect(page.locator("#turn-1-end")).to_contain_text("tokens")
    expect(page.locator("#turn-1-end")).to_be_in_viewport(ratio=1)
    expect(page.locator("#jump")).to_be_hidden()
    expect(page.locator("#chat-title")).to_be_in_viewport(ratio=1)
    context.close()


SHOWN_VERSION = "Number(document.querySelector('[data-session]').dataset.version)"


def wait_with(page: Page, *texts: str) -> Locator:
    """The messages that wait behind a reply that doesn't end."""
    send(page, "Begin")
    expect_state(page, "running")
    waiting = page.locator("#waiting > li")
    for number, text in enumerate(texts, 1):
        send(page, text)
        expect(waiting).to_have_count(number)
    return waiting


def expect_waiting(page: Page, *texts: str) -> None:
    expect(page.locator("#waiting .message-body")).to_have_text(list(texts))


def expect_queue(page: Page, *texts: str) -> None:
    """As the page shows it, and as it comes anew."""
    expect(page.locator("#waiting")).not_to_have_attribute("aria-busy", "true")
    expect_waiting(page, *texts)
    page.reload()
    expect_waiting(page, *texts)


def test_a_waiting_message_is_dragged_to_its_place(patchbay: Patchbay, admin: Client, page: Page):
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    complaints = complaints_of(page)
    waiting = wait_with(page, "one", "two", "three")
    handle = page.get_by_role("button", name="Move three")
    page.mouse.move(*middle(handle))
    page.mouse.down()
    page.mouse.move(*middle(waiting.nth(0)), steps=8)
    expect_waiting(page, "three", "one", "two")  # before it is let go
    # What the reply does meanwhile takes it out of nobody's hand.
    version = page.evaluate(SHOWN_VERSION)
    wait_for(lambda: page.evaluate(SHOWN_VERSION) > version + 1, what="more of the reply")
    expect(waiting.nth(0)).to_have_attribute("data-lifted", "")
    expect_waiting(page, "three", "one", "two")
    page.mouse.up()
    expect_queue(page, "three", "one", "two")

    # Put back, it shows what came meanwhile.
    page.mouse.move(*middle(handle))
    page.mouse.down()
    x, y = middle(waiting.nth(2))
    page.mouse.move(x, y + 10, steps=8)
    expect_waiting(page, "one", "two", "three")
    action = waiting.nth(0).locator("form.waiting-actions").get_attribute("action")
    assert admin.post(f"{action}").status_code == 303  # cancels “one” from elsewhere
    version = page.evaluate(SHOWN_VERSION)
    wait_for(lambda: page.evaluate(SHOWN_VERSION) > version, what="one is cancelled")
    page.keyboard.press("Escape")
    expect_waiting(page, "three", "two")
    expect_state(page, "running")  # Escape was for the message
    page.mouse.up()
    assert complaints == []
    page.locator("#draft").press("Escape")
    expect_state(page, "stopped")


def test_a_waiting_message_is_moved_by_keys(patchbay: Patchbay, admin: Client, page: Page):
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    wait_with(page, "one", "two", "three")
    page.get_by_role("button", name="Move three").focus()
    said = page.locator("#order-said")
    page.keyboard.press("Enter")
    expect(said).to_contain_text("three is lifted, at place 3.")
    page.keyboard.press("ArrowUp")
    expect(said).to_have_text("three: place 2.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Move three")).to_be_focused()
    expect_queue(page, "one", "three", "two")
    page.locator("#draft").press("Escape")
    expect_state(page, "stopped")


def test_a_waiting_message_is_dragged_by_a_finger_on_a_phone(
    patchbay: Patchbay, admin: Client, browser: Browser
):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    context.set_default_timeout(30_000)
    _sign_in(context, patchbay, admin)
    page = context.new_page()
    page.goto(patchbay.url + new_session(admin, "tools-forever-1s", "queue"))
    send_by_button = page.get_by_role("button", name="Send", exact=True)
    for number, text in enumerate(("Begin", "one", "two", "three")):
        page.locator("#draft").fill(text)
        send_by_button.tap()
        expect(page.locator("#waiting > li")).to_have_count(number)
        if not number:
            expect_state(page, "running")
    three = page.locator("#waiting > li").nth(2)
    # All that can be done with it is in reach of the finger.
    three.scroll_into_view_if_needed()
    for name in ("Send earlier", "Cancel this message", "Move three"):
        expect(three.get_by_role("button", name=name)).to_be_in_viewport(ratio=0.9)
    page.locator("#draft").tap()
    finger, (x, y) = Finger(page), middle(page.get_by_role("button", name="Move three"))
    finger.down(x, y)
    finger.move(x, middle(page.locator("#waiting > li").nth(0))[1] - 8)
    expect_waiting(page, "three", "one", "two")
    finger.up()
    expect(page.locator("#draft")).to_be_focused()  # the keyboard on the screen stays
    expect_queue(page, "three", "one", "two")
    page.locator("#draft").press("Escape")
    expect_state(page, "stopped")
    context.close()


def test_a_reply_that_nobody_saw_is_marked_in_the_list_and_in_the_session(
    patchbay: Patchbay, admin: Client, context: BrowserContext
):
    path = new_session(admin, "echo")
    page, overview = context.new_page(), context.new_page()
    page.goto(patchbay.url + path)
    send(page, "first")
    expect_state(page, "done")
    page.goto("about:blank")
    overview.goto(f"{patchbay.url}/w/support/")
    state = overview.locator(f"#state-{path.rstrip('/').rpartition('/')[2]}")
    expect(state).to_be_empty()
    admin.post(f"{path}send/", data={"text": "second"})
    expect(state).to_contain_text("New reply")  # without a reload
    page.goto(patchbay.url + path)
    expect(page.locator("#news + #turn-2")).to_be_visible()
    expect(state).to_be_empty()
    page.reload()
    expect(page.locator("#news")).to_have_count(0)
    # A tab that nobody looks at says so in its title.
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    admin.post(f"{path}send/", data={"text": "third"})
    expect(page).to_have_title(re.compile("^New reply: "))
    page.evaluate("Object.defineProperty(document, 'hidden', {value: false})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page).not_to_have_title(re.compile("^New reply: "))


LONG = """
from sessions.models import *
from workspaces.models import User
chat, alice = ChatSession.objects.get(pk={chat!r}), User.objects.get(is_superuser=True)
numbers = range(1, 2_501)
turns = [
    Turn(chat=chat, number=n, state="done", model="echo", started_by=alice) for n in numbers
]
Turn.objects.bulk_create(turns, batch_size=500)
said = {{"chat": chat, "delivery": "sent"}}
Message.objects.bulk_create(
    [
        Message(**said, seq=2 * turn.number + reply, turn=turn, step=reply, text=text,
            role=("user", "assistant")[reply], author=(alice, None)[reply],
            parts=[{{"t": "text", "text": text}}])
        for turn in turns
        for reply, text in enumerate((f"Question {{turn.number}}", f"Answer {{turn.number}}"))
    ],
    batch_size=500,
)
"""


def test_five_thousand_messages_come_as_one_scrolls_up(
    patchbay: Patchbay, admin: Client, page: Page
):
    path = new_session(admin, "echo")
    complaints = complaints_of(page)
    patchbay.manage("shell", "-v", "0", "-c", LONG.format(chat=path.rstrip("/").rpartition("/")[2]))
    page.goto(patchbay.url + path)
    shown = page.locator("#transcript > [data-turn]")
    expect(shown).to_have_count(PAGE)  # none more before one scrolls
    expect(page.locator("#turn-2500")).to_be_in_viewport()
    for pages in (2, 3, 4):
        first = shown.first.get_attribute("id")
        page.evaluate("document.getElementById('log').scrollTop = 20")
        before = page.locator(f"#{first}").bounding_box()
        expect(shown).to_have_count(pages * PAGE)
        after = page.locator(f"#{first}").bounding_box()
        assert before and after
        assert abs(before["y"] - after["y"]) < 60
    numbers = shown.evaluate_all("turns => turns.map((turn) => Number(turn.dataset.turn))")
    assert numbers == list(range(2_501 - 4 * PAGE, 2_501))
    send(page, "and now")
    expect(page.locator("#turn-2501-end")).to_contain_text("tokens")
    assert complaints == []


SHIFTS = """() => {
  window.__shifts = [];
  new PerformanceObserver((list) => {
    for (const { value, sources } of list.getEntries())
      window.__shifts.push([value, sources.map(({ node }) => node?.id || node?.nodeName)]);
  }).observe({ type: "layout-shift" });
}"""


@pytest.mark.parametrize("model", ["markdown", "thinking-tools", "fast-30tps-200"])
def test_the_layout_stays_while_a_reply_streams_and_nothing_leaves_the_origin(
    patchbay: Patchbay, admin: Client, page: Page, model: str
):
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda r: (
            elsewhere.append(r.url) if not r.url.startswith((patchbay.url, "data:")) else None
        ),
    )
    path = new_session(admin, model)
    page.goto(patchbay.url + path)
    send(page, "Once")
    expect_state(page, "done")
    page.evaluate(SHIFTS)
    send(page, "And once more")
    expect(page.locator("#turn-2-end")).to_contain_text("tokens")
    shifts = page.evaluate("window.__shifts")
    assert sum(value for value, _ in shifts) < 0.05, shifts
    assert elsewhere == []
