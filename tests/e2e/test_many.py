"""Many of everything: lists, menus and selects that would have no end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.system.harness import Client, Patchbay

MANY = """
from connections.models import Connection
from workspaces.models import Membership, User, Workspace
def make(slug, **fields):
    return Connection(
        slug=slug, name=slug.title(), provider_type="openai_compat", auth_type="none",
        base_url="http://127.0.0.1:9/v1", health="valid", **fields
    )
models = [f"vendor-{n % 7}/a-model-with-a-long-name-{n}" for n in range(60)]
made = [make(f"connection-{n:02}", models=["small"], default_model="small", position=n)
    for n in range(60)]
made[0].models, made[0].default_model, made[0].is_default = models, models[0], True
Connection.objects.bulk_create(made)
Workspace.objects.bulk_create(Workspace(slug=f"w{n}", name=f"Branch {n:02}") for n in range(40))
Workspace.objects.create(slug="zurich", name="Zürich")
support = Workspace.objects.get(slug="support")
people = [User(email=f"p{n:02}@example.com", name=f"Person {n:02}") for n in range(60)]
User.objects.bulk_create(people)
Membership.objects.bulk_create(Membership(workspace=support, user=one) for one in people)
"""


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay) -> Client:
    client = patchbay.setup_admin()
    patchbay.manage("shell", "--no-imports", "-c", MANY)
    return client


@pytest.fixture(params=[(1440, 900), (390, 844)], ids=["desk", "phone"])
def page(
    request: pytest.FixtureRequest, patchbay: Patchbay, admin: Client, browser: Browser
) -> Iterator[Page]:
    width, height = request.param
    context = browser.new_context(
        base_url=patchbay.url,
        viewport={"width": width, "height": height},
        has_touch=width < 400,
        is_mobile=width < 400,
    )
    context.set_default_timeout(15_000)
    context.add_cookies(
        [
            {"name": cookie.name, "value": cookie.value or "", "url": patchbay.url}
            for cookie in admin.cookies.jar
        ]
    )
    yield context.new_page()
    context.close()


def test_a_new_session_begins_with_what_it_would_run_on(page: Page, admin: Client):
    page.goto(admin.post("/w/support/sessions/new/").headers["location"])
    expect(page.get_by_role("heading", name="What shall this session run on?")).to_be_in_viewport()
    expect(page.locator("[name=connection]:checked")).to_be_in_viewport()
    page.locator("#log").hover()
    page.mouse.wheel(0, 300)
    expect(page.get_by_role("heading", name="What shall this")).not_to_be_in_viewport()
    expect(page.locator("#jump")).to_be_hidden()  # nothing is newer than the rest
    # One of the others is found by a part of its name.
    other = page.get_by_label("Another connection")
    whole = other.locator("option").count()
    assert whole > 40
    narrow = page.locator("#other-connection").locator("xpath=preceding-sibling::input[1]")
    narrow.fill("NECTION 5 7")
    expect(other.locator("option")).to_have_text(["Connection-57"])
    narrow.press("Enter")  # sends nothing
    narrow.fill("")
    expect(other.locator("option")).to_have_count(whole)
    narrow.fill("connection-57")
    expect(other).to_have_value("connection-57")
    page.get_by_role("button", name="Use this connection").click()
    expect(page.locator("[name=connection][value=connection-57]")).to_be_checked()


def test_the_menus_of_the_composer_stay_within_the_page(page: Page, admin: Client):
    page.goto(admin.post("/w/support/sessions/new/").headers["location"])
    button = page.get_by_role("button", name="Thinking and length")
    expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    [at, send] = [one.bounding_box() for one in (button, page.locator("#send"))]
    assert at
    assert send
    assert at["x"] + at["width"] <= send["x"]  # neither covers the other
    button.click()
    expect(page.locator("#options-menu")).to_be_in_viewport(ratio=1)
    expect(page.get_by_label("Longest reply")).to_be_in_viewport(ratio=1)


def test_of_many_models_those_found_are_ticked_at_once(page: Page):
    page.goto("/w/support/settings/ai/connection-00/models/")
    ticked = page.locator("[name=model]:checked")
    expect(ticked).to_have_count(60)
    page.get_by_label("All").uncheck()
    expect(ticked).to_have_count(0)
    narrow = page.get_by_label("Find in the list")
    narrow.fill("vendor-3")
    expect(page.locator(".ticks label:visible")).to_have_count(9)
    page.get_by_label("All").check()
    expect(ticked).to_have_count(9)
    narrow.fill("")
    expect(page.locator(".ticks label:visible")).to_have_count(60)
    expect(ticked).to_have_count(9)
    expect(page.get_by_text("9 selected")).to_be_visible()
    page.get_by_role("button", name="Save models").click()
    page.wait_for_url("**/settings/ai/")
    page.goto("/w/support/settings/ai/connection-00/models/")
    expect(ticked).to_have_count(9)
    page.get_by_label("All").check()
    page.get_by_role("button", name="Save models").click()
    page.wait_for_url("**/settings/ai/")


def test_a_workspace_is_gone_to_by_its_first_letter(page: Page):
    page.goto("/w/zurich/")
    if (menu := page.get_by_role("button", name="Menu")).is_visible():
        menu.click()
    page.get_by_role("button", name="Workspace: Zürich").click()
    here = page.locator("#workspaces").get_by_role("link", name="Zürich")
    expect(here).to_be_in_viewport(ratio=1)  # far down, and shown as where one is
    page.keyboard.press("s")
    support = page.locator("#workspaces").get_by_role("link", name="Support")
    expect(support).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/w/support/")


def test_pages_of_a_list_are_near_and_nothing_is_wider_than_the_window(page: Page):
    page.goto("/connections/")
    page.get_by_role("link", name="Page 2").click()
    expect(page.locator('[aria-current="page"]').filter(has_text="2")).to_be_visible()
    expect(page.locator("#connection-connection-45")).to_be_visible()
    for path in ("/connections/", "/w/support/settings/ai/", "/w/support/members/", "/people/"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
