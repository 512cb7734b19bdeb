"""The list of connections by hand: dragged, moved by keys and by finger, the menu on a right click,
in two tabs, many at once, and without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.e2e.hands import Finger, middle
from tests.fakes.server import GOOD_KEY, FakeProviders
from tests.system.harness import Client, Patchbay

NAMES = ("Ada", "Bea", "Cid", "Dot")
ASKED = "Reply with the one word OK."  # by every validation


@pytest.fixture
def held(fakes: FakeProviders) -> Iterator[Callable[[bool], None]]:
    """`held(True)`: no validation ends; `held(False)`: all of them do."""
    yield lambda on: fakes.hold(ASKED) if on else fakes.release(ASKED)
    fakes.release(ASKED)


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay) -> Client:
    return patchbay.setup_admin()


@pytest.fixture
def four(admin: Client, fakes: FakeProviders) -> Iterator[None]:
    """Ada, Bea, Cid and Dot, in this order; gone afterwards."""
    for name in NAMES:
        data = {
            "name": name,
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": fakes.openai,
            "models": "held",
            "default_model": "held",
            "api_key": GOOD_KEY,
            "slug": "",
        }
        answer = admin.post("/connections/new/", data=data)
        assert answer.status_code == 303, answer.text
    yield
    slugs = stored(admin)
    data = {"action": "delete", "slug": slugs, "confirmed": "yes"}
    assert admin.post("/connections/selected/", data=data).status_code == 303


def stored(admin: Client) -> list[str]:
    return re.findall(r'<tr id="connection-([\w-]+)"', admin.get("/connections/").text)


@pytest.fixture
def context(patchbay: Patchbay, browser: Browser, admin: Client) -> Iterator[Callable[..., Page]]:
    """`context(…)`: a page of a browser of its own, signed in as the admin, at the list."""
    made: list[BrowserContext] = []

    def open_list(**options: object) -> Page:
        one = browser.new_context(reduced_motion="reduce", **options)
        one.set_default_timeout(15_000)
        one.add_cookies(
            [
                {"name": cookie.name, "value": cookie.value or "", "url": patchbay.url}
                for cookie in admin.cookies.jar
            ]
        )
        made.append(one)
        page = one.new_page()
        page.goto(f"{patchbay.url}/connections/")
        return page

    yield open_list
    for one in made:
        one.close()


@pytest.fixture
def page(four: None, context: Callable[..., Page]) -> Page:
    return context()


@pytest.fixture
def complaints(page: Page) -> list[str]:
    found: list[str] = []
    page.on("console", lambda m: found.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def row(page: Page, name: str) -> Locator:
    return page.locator(f'#connections tr[data-name="{name}"]')


def handle(page: Page, name: str) -> Locator:
    return row(page, name).get_by_role("button", name=f"Move {name}")


def expect_order(page: Page, *names: str) -> None:
    expect(page.locator("#connections tbody .row-title")).to_have_text(list(names))


def expect_stored(page: Page, *names: str) -> None:
    """As the page shows it, and as it comes anew."""
    expect_order(page, *names)
    page.reload()
    expect_order(page, *names)


def orders(page: Page) -> list[str]:
    """The requests to move something, from now on: what each sent."""
    sent: list[str] = []

    def note(request: object) -> None:
        if request.url.endswith("/order/"):  # type: ignore[attr-defined]
            sent.append(request.post_data)  # type: ignore[attr-defined]

    page.on("request", note)
    return sent


def test_a_row_is_dragged_to_another_place_and_back(page: Page, complaints: list[str]):
    sent = orders(page)
    x, y = middle(handle(page, "Dot"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, middle(row(page, "Bea"))[1] - 5, steps=8)
    expect_order(page, "Ada", "Dot", "Bea", "Cid")  # before it is let go
    expect(row(page, "Dot")).to_have_attribute("data-lifted", "")
    assert sent == []
    page.mouse.up()
    toasts = page.locator("#toasts")
    expect(toasts).to_contain_text("“Dot” is number 2 of 4 now.")
    assert len(sent) == 1
    assert "before=bea" in sent[0]
    expect(row(page, "Dot")).not_to_have_attribute("data-lifted", "")
    expect(row(page, "Dot")).to_have_attribute("data-place", "2")
    toasts.get_by_role("button", name="Undo").click()
    expect_stored(page, "Ada", "Bea", "Cid", "Dot")
    assert complaints == []


def test_a_drag_to_the_end_goes_after_the_last_and_none_sends_nothing(page: Page):
    sent = orders(page)
    x, y = middle(handle(page, "Ada"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 4)
    page.mouse.up()
    # Escape while it is held puts it back.
    page.mouse.down()
    page.mouse.move(x, middle(row(page, "Dot"))[1] + 20, steps=5)
    expect_order(page, "Bea", "Cid", "Dot", "Ada")
    page.keyboard.press("Escape")
    expect_order(page, *NAMES)
    page.mouse.up()
    assert sent == []
    page.mouse.move(*middle(handle(page, "Ada")))
    page.mouse.down()
    page.mouse.move(x, middle(row(page, "Dot"))[1] + 20, steps=5)
    page.mouse.up()
    expect(page.locator("#toasts")).to_contain_text("“Ada” is number 4 of 4 now.")
    assert [re.findall(r"(before|after)=(\w+)", one) for one in sent] == [[("after", "dot")]]
    expect_stored(page, "Bea", "Cid", "Dot", "Ada")


def test_a_row_is_moved_by_keys_alone_and_every_step_is_said(page: Page, complaints: list[str]):
    sent, said = orders(page), page.locator("#order-said")
    cid = handle(page, "Cid")
    cid.focus()
    page.keyboard.press("Enter")
    expect(said).to_contain_text("Cid is lifted, at place 3.")
    expect(cid).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowUp")
    expect(said).to_have_text("Cid: place 2.")
    page.keyboard.press("Escape")
    expect(said).to_have_text("Cid is back at place 3.")
    expect_order(page, *NAMES)
    # Leaving it puts it back as well.
    page.keyboard.press("Space")
    page.keyboard.press("Home")
    expect_order(page, "Cid", "Ada", "Bea", "Dot")
    page.keyboard.press("Tab")
    expect_order(page, *NAMES)
    assert sent == []

    cid.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # it is the first already
    expect(said).to_have_text("Cid: place 1.")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("“Cid” is number 1 of 4 now.")
    # The list came anew, and the focus is where it was.
    expect(cid).to_be_focused()
    assert len(sent) == 1
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("“Cid” is number 2 of 4 now.")
    expect_stored(page, "Ada", "Cid", "Bea", "Dot")
    assert complaints == []


def test_a_row_is_dragged_by_a_finger_on_a_phone(four: None, context: Callable[..., Page]):
    page = context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    row(page, "Bea").evaluate("(row) => row.scrollIntoView({block: 'center'})")
    x, y = middle(handle(page, "Bea"))
    to = middle(row(page, "Ada"))[1] - 20
    finger = Finger(page)
    before = page.evaluate("scrollY")
    finger.down(x, y)
    finger.move(x, to)
    expect_order(page, "Bea", "Ada", "Cid", "Dot")
    assert page.evaluate("scrollY") == before  # the page stays under the finger
    finger.up()
    expect(page.locator("#toasts")).to_contain_text("“Bea” is number 1 of 4 now.")
    expect_stored(page, "Bea", "Ada", "Cid", "Dot")


def test_a_right_click_opens_the_menu_of_the_row(page: Page, complaints: list[str]):
    menu = page.locator('[id^="menu-"]:popover-open')
    title = row(page, "Bea").get_by_role("link", name="Bea")
    title.click(button="right")
    expect(menu).to_have_count(1)
    expect(menu.get_by_role("link", name="Edit")).to_be_focused()
    # At the pointer, and whole within the window.
    box, x = menu.bounding_box(), middle(title)[0]
    assert box
    assert abs(box["x"] - x) < 3
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= page.viewport_size["height"]  # type: ignore[index]
    page.keyboard.press("ArrowDown")
    expect(menu.get_by_role("button", name="Validate")).to_be_focused()
    page.keyboard.press("End")
    expect(menu.get_by_role("link", name="Delete…")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(menu.get_by_role("link", name="Edit")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    expect(page).to_have_url(re.compile("/connections/$"))

    row(page, "Bea").locator("td").nth(2).click(button="right")
    menu.get_by_role("button", name="Pause").click()
    expect(row(page, "Bea")).to_have_attribute("data-status", "disabled")
    expect(page.locator("#toasts")).to_contain_text("“Bea” is paused.")
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect(row(page, "Bea")).not_to_have_attribute("data-status", "disabled")

    # With the key for it the menu stands at its button; with Shift the browser keeps its own.
    handle(page, "Cid").focus()
    page.keyboard.press("Shift+F10")
    expect(menu.get_by_role("link", name="Edit")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    page.evaluate(
        "document.addEventListener('contextmenu',"
        " (event) => (document.body.dataset.prevented = event.defaultPrevented))"
    )
    page.keyboard.down("Shift")
    row(page, "Cid").locator("td").nth(2).click(button="right")
    page.keyboard.up("Shift")
    expect(page.locator("body")).to_have_attribute("data-prevented", "false")
    expect(menu).to_have_count(0)
    assert complaints == []


def test_two_tabs_move_at_once_and_neither_move_is_lost(page: Page, patchbay: Patchbay):
    other = page.context.new_page()
    other.goto(f"{patchbay.url}/connections/")
    x, y = middle(handle(other, "Dot"))
    other.mouse.move(x, y)
    other.mouse.down()
    other.mouse.move(x, middle(row(other, "Ada"))[1] - 20, steps=8)
    expect_order(other, "Dot", "Ada", "Bea", "Cid")
    # Meanwhile, elsewhere:
    cid = handle(page, "Cid")
    cid.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("“Cid” is number 2 of 4 now.")
    other.mouse.up()
    expect(other.locator("#toasts")).to_contain_text("“Dot” is number 1 of 4 now.")
    expect_stored(other, "Dot", "Ada", "Cid", "Bea")


def test_a_row_that_goes_before_one_deleted_meanwhile_stays_and_says_why(page: Page, admin: Client):
    assert admin.post(f"/connections/{stored(admin)[0]}/delete/").status_code == 303
    dot = handle(page, "Dot")
    dot.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("The list was changed meanwhile.")
    expect_order(page, "Bea", "Cid", "Dot")
    expect(dot).to_be_focused()


def test_a_move_that_does_not_arrive_is_taken_back_and_said(page: Page):
    page.route("**/order/", lambda route: route.abort())
    cid = handle(page, "Cid")
    cid.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("No answer from the server.")
    expect_order(page, *NAMES)
    page.unroute("**/order/")
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect_order(page, "Cid", "Ada", "Bea", "Dot")
    expect(page.locator("#toasts")).to_contain_text("“Cid” is number 1 of 4 now.")


def test_a_bar_shows_how_far_many_validations_are(
    page: Page, held: Callable[[bool], None], complaints: list[str]
):
    for name in NAMES:
        expect(row(page, name)).to_have_attribute("data-status", "valid")
    page.get_by_role("checkbox", name="Select all").check()
    expect(page.locator("[data-count-checked]")).to_have_text("4 selected")
    row(page, "Dot").get_by_role("checkbox").uncheck()
    expect(page.locator("[data-count-checked]")).to_have_text("3 selected")
    held(True)
    page.get_by_role("button", name="Validate selected").click()
    bar = page.locator("#progress")
    expect(bar.locator("progress")).to_have_attribute("max", "3")
    expect(bar).to_contain_text("0 of 3 validated")
    held(False)
    expect(bar).to_contain_text("3 validated: 3 passed.")
    expect(bar.locator("progress")).to_have_count(0)
    # What was selected is so still, for the next thing to do with it.
    expect(page.locator("[data-count-checked]")).to_have_text("3 selected")
    page.get_by_role("button", name="With selected").click()
    page.locator("#selected").get_by_role("button", name="Pause").click()
    expect(page.locator("#toasts")).to_contain_text("3 connections are paused.")
    expect(page.locator('#connections tr[data-status="disabled"]')).to_have_count(3)
    page.get_by_role("button", name="With selected").click()
    page.locator("#selected").get_by_role("button", name="Delete…").click()
    dialog = page.get_by_role("dialog", name="Delete 3 connections?")
    expect(dialog.get_by_role("button", name="Keep them")).to_be_focused()
    dialog.get_by_role("button", name="Delete 3 connections").click()
    expect_order(page, "Dot")
    assert complaints == []


def test_a_row_that_is_checked_does_not_leave_the_hand(
    page: Page, held: Callable[[bool], None], complaints: list[str]
):
    """Its own answers come every second, and wait until it is put down."""
    for name in NAMES:
        expect(row(page, name)).to_have_attribute("data-status", "valid")
    held(True)
    page.get_by_role("button", name="Validate all").click()
    expect(row(page, "Dot")).to_have_attribute("data-status", "checking")
    x, y = middle(handle(page, "Dot"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, middle(row(page, "Ada"))[1] - 20, steps=5)
    held(False)
    expect(page.locator("#progress")).to_contain_text("4 validated: 4 passed.")
    expect(row(page, "Dot")).to_have_attribute("data-lifted", "")
    expect_order(page, "Dot", "Ada", "Bea", "Cid")
    page.mouse.up()
    expect(page.locator("#toasts")).to_contain_text("“Dot” is number 1 of 4 now.")
    for name in NAMES:
        expect(row(page, name)).to_have_attribute("data-status", "valid")
    assert complaints == []


def test_all_of_it_works_without_javascript(four: None, context: Callable[..., Page]):
    page = context(java_script_enabled=False)
    expect(page.locator(".handle").first).to_be_hidden()

    def choose(name: str, entry: str) -> None:
        row(page, name).get_by_role("button", name=f"Actions for {name}").click()
        row(page, name).locator("[popover]").get_by_role("button", name=entry).click()

    choose("Dot", "Move up")
    expect_order(page, "Ada", "Bea", "Dot", "Cid")
    choose("Cid", "Move to the top")
    expect_order(page, "Cid", "Ada", "Bea", "Dot")
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect_order(page, "Ada", "Bea", "Dot", "Cid")
    choose("Ada", "Move to the end")
    expect_order(page, "Bea", "Dot", "Cid", "Ada")
    choose("Bea", "Queue until ready")
    expect(page.locator("#toasts")).to_contain_text("Queue until ready")

    for name in ("Bea", "Cid"):
        row(page, name).get_by_role("checkbox").check()
    page.get_by_role("button", name="With selected").click()
    page.locator("#selected").get_by_role("button", name="Pause").click()
    expect(page.locator('#connections tr[data-status="disabled"]')).to_have_count(2)
    page.get_by_label("Status").select_option("disabled")
    page.get_by_role("button", name="Search").last.click()
    expect_order(page, "Bea", "Cid")
    choose("Bea", "Enable")
    expect_order(page, "Cid")  # still only the paused ones
    row(page, "Cid").get_by_role("checkbox").check()
    page.get_by_role("button", name="With selected").click()
    page.locator("#selected").get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete 1 connection").click()
    page.get_by_role("link", name="Show all", exact=True).click()
    expect_order(page, "Bea", "Dot", "Ada")
    row(page, "Bea").get_by_role("button", name="Actions for Bea").click()
    row(page, "Bea").get_by_role("link", name="Duplicate").click()
    expect(page.get_by_label("Name")).to_have_value("Bea (copy)")
    expect(page.locator("#id_api_key")).to_have_value("")
