"""`make screenshots`: the pictures of the guide, and every page at three widths, light and dark.

    python -m tests.screenshots [--only guide|pages] [--width 390] [--into FOLDER] [NAME …]

The guide's pictures (docs/guide/pictures, kept in the repository) show the team of `tests.team`.
Every page of the product goes into `screenshots/`, which isn't kept: to be looked at. NAME takes
only the pictures, or pages, with this in their name. Ends with 1 where a page had an error in the
browser or was wider than the window.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.e2e.every_page import every_page
from tests.run import find_browser
from tests.system.harness import ADMIN, ROOT, Patchbay, collect_static

WIDTHS = (1440, 1024, 390)
SCHEMES = ("light", "dark")
KEPT = ROOT / "docs" / "guide" / "pictures"
ANA = ADMIN | {"email": "ana@example.com"}
# Enough for text in lines and dots of state; a quarter of the size.
COLOURS = 128


# -- the guide -------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A signed-in window on the team's installation; `at` has the addresses of its sessions."""

    page: Page
    url: str
    at: dict[str, str] = field(default_factory=dict)

    def open(self, address: str) -> Page:
        self.page.goto(f"{self.url}{address}", wait_until="load")
        return self.page


def the_page(scene: Scene, address: str) -> Locator:
    return scene.open(address).locator(".page")


def form(scene: Scene) -> Locator:
    return the_page(scene, "/connections/new/?preset=openrouter")


def secret(scene: Scene) -> Locator:
    return scene.open("/connections/openrouter/").locator("#candidate")


def deleting(scene: Scene) -> Locator:
    page = the_page(scene, "/connections/anthropic/delete/confirm/")
    page.locator("#successor").select_option(label="Bedrock Frankfurt")
    return page


def importing(scene: Scene) -> Locator:
    page = scene.open("/connections/import/")
    brought = {
        "llmConnections": [
            {
                "slug": "anthropic",
                "name": "Anthropic",
                "providerType": "anthropic",
                "authType": "api_key",
                "defaultModel": "claude-opus-5-5",
                "models": ["claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5"],
                "midStreamBehavior": "queue",
            },
            {
                "slug": "vertex-madrid",
                "name": "Vertex Madrid",
                "providerType": "vertex",
                "authType": "service_account_file",
                "gcpProjectId": "shop-assistants",
                "gcpRegion": "europe-southwest1",
            },
        ]
    }
    page.locator("#import-text").fill(json.dumps(brought))
    page.get_by_role("button", name="Show what would change").click()
    page.locator("#preview-title").wait_for()
    page.locator("#preview-title").blur()
    return page.locator(".page")


def palette(scene: Scene) -> Locator:
    page = scene.open("/w/support/")
    page.keyboard.press("Control+k")
    page.keyboard.type("an")
    page.locator("[role=option] mark").first.wait_for()
    return page.locator("#palette")


def answered(scene: Scene) -> Locator:
    page = scene.open(scene.at["session"])
    page.locator(".message[data-role=user]").first.hover()  # its pencil
    return page.locator("body")


def trouble(scene: Scene) -> Locator:
    return scene.open(scene.at["failed"]).locator(".main")


def sessions(scene: Scene) -> Locator:
    return the_page(scene, "/w/support/")


# Name → what is taken, and the size of the window.
PICTURES: dict[str, tuple[Callable[[Scene], Locator], tuple[int, int]]] = {
    "connections": (lambda scene: scene.open("/connections/").locator("body"), (1200, 720)),
    "add-a-connection": (form, (820, 900)),
    "health": (lambda scene: the_page(scene, "/connections/workshop/health/"), (820, 862)),
    "which-connection": (lambda scene: the_page(scene, AI), (900, 412)),
    "replace-a-secret": (secret, (1200, 900)),
    "delete": (deleting, (760, 600)),
    "import": (importing, (820, 900)),
    "first-message": (lambda scene: scene.open(scene.at["fresh"]).locator(".main"), (1000, 760)),
    "while-a-reply-streams": (
        lambda scene: scene.open(scene.at["running"]).locator(".main"),
        (900, 640),
    ),
    "session": (answered, (1200, 700)),
    "when-something-goes-wrong": (trouble, (900, 560)),
    "sessions": (sessions, (900, 788)),
    "members": (lambda scene: the_page(scene, "/w/support/members/"), (900, 760)),
    "your-account": (lambda scene: the_page(scene, "/profile/"), (760, 872)),
    "usage": (lambda scene: the_page(scene, "/w/support/usage/"), (900, 900)),
    "keyboard": (palette, (1000, 640)),
}
AI = "/w/support/settings/ai/?without=anthropic"
FIRST = "first-start"
EDGE = 12  # pixels around a piece of a page; the others have a margin of their own


def take_guide(browser: Browser, names: list[str], complaints: Complaints) -> int:
    """The pictures of the guide, anew; how many."""
    taken = 0
    with (
        tempfile.TemporaryDirectory(prefix="patchbay-guide-") as folder,
        Patchbay(Path(folder)) as server,
        window(browser, (1000, 760), scale=2) as page,
    ):
        url = f"http://localhost:{server.port}"  # at a number there are no passkeys
        page.goto(f"{url}/setup/")
        for name, value in {"token": server.token, **ANA}.items():
            page.fill(f"[name={name}]", value)
        page.get_by_role("button", name="Create and sign in").click()
        page.wait_for_url("**/connections/**")
        if wanted(FIRST, names):
            keep(page.locator(".page"), FIRST)
            taken += 1
        made = server.manage("shell", "-v0", "-c", FILL).stdout
        at = json.loads(made.splitlines()[-1])
        page.goto(f"{url}/w/support/")  # the workspace that the rail shows
        for name, (find, size) in PICTURES.items():
            if not wanted(name, names):
                continue
            page.set_viewport_size({"width": size[0], "height": size[1]})
            with complaints.of(page, name):
                keep(find(Scene(page, url, at)), name)
            taken += 1
    return taken


FILL = "import json; from tests import team; print(json.dumps(team.fill()))"


def keep(what: Locator, name: str) -> None:
    """What of it the window shows, as a small PNG."""
    page = what.page
    settle(page)
    box, size = what.bounding_box(), page.viewport_size
    assert box and size
    edge = 0 if what.evaluate("it => it.matches('body, .main, .page')") else EDGE
    x, y = max(box["x"] - edge, 0), max(box["y"] - edge, 0)
    clip = {
        "x": x,
        "y": y,
        "width": min(box["x"] + box["width"] + edge, size["width"]) - x,
        "height": min(box["y"] + box["height"] + edge, size["height"]) - y,
    }
    png = page.screenshot(clip=clip, animations="disabled", caret="hide")
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(KEPT / f"{name}.png", optimize=True)


# -- every page ------------------------------------------------------------------------------------


NOWHERE = "/nothing/like/it/"


@dataclass
class Pages:
    """Looks at pages; counts them and their pictures."""

    url: str
    names: list[str]
    into: Path
    complaints: Complaints
    seen: set[str] = field(default_factory=set)
    taken: int = 0

    def look(self, page: Page, addresses: dict[str, str]) -> None:
        size = page.viewport_size
        assert size
        width = size["width"]
        for name, address in addresses.items():
            if not wanted(name, self.names):
                continue
            self.seen.add(name)
            with self.complaints.of(page, f"{name} {address} at {width}"):
                answer = page.goto(self.url + address, wait_until="load")
                assert answer is not None
                if answer.status != (404 if address == NOWHERE else 200):
                    self.complaints.say(f"answers {answer.status}")
                settle(page)
                wide = page.evaluate("document.documentElement.scrollWidth")
                if wide > width:
                    self.complaints.say(f"{wide} wide")
                for scheme in SCHEMES:
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    file = self.into / f"{slug(name)}-{width}-{scheme}.png"
                    page.screenshot(path=file, full_page=True, animations="disabled")
                    self.taken += 1


def take_pages(
    browser: Browser, names: list[str], widths: list[int], into: Path, complaints: Complaints
) -> Pages:
    """Every page at these widths, light and dark."""
    into.mkdir(parents=True, exist_ok=True)
    sizes = [(width, 900 if width > 400 else 844) for width in widths]
    with (
        tempfile.TemporaryDirectory(prefix="patchbay-pages-") as folder,
        Patchbay(Path(folder), env={"EMAIL_URL": "smtp://127.0.0.1:9"}) as server,
    ):
        taken = Pages(server.url, names, into, complaints)
        for size in sizes:
            with window(browser, size) as page:
                taken.look(page, {"set up": "/setup/"})
        pages = every_page(server)
        for size in sizes:
            with window(browser, size) as page:
                taken.look(page, pages["anybody"])
                sign_in(page, server.url, ADMIN["email"], ADMIN["password"])
                taken.look(page, pages["admin"] | {"not found": NOWHERE})
    return taken


# -- both ------------------------------------------------------------------------------------------


class Complaints:
    """What was wrong, by the page it was found on."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}
        self._name = ""

    def say(self, what: str) -> None:
        said = self.found.setdefault(self._name, [])
        if what not in said:
            said.append(what)

    @contextmanager
    def of(self, page: Page, name: str) -> Iterator[None]:
        """While it is open: errors in the console and in scripts."""
        self._name = name

        def heard(message) -> None:
            # Chromium reports a page that answers 404 as an error of its own.
            if message.type == "error" and message.location["url"] != page.url:
                self.say(message.text)

        def fell(error) -> None:
            self.say(str(error))

        page.on("console", heard)
        page.on("pageerror", fell)
        try:
            yield
        finally:
            page.remove_listener("console", heard)
            page.remove_listener("pageerror", fell)


@contextmanager
def window(browser: Browser, size: tuple[int, int], *, scale: int = 1) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=scale,
        color_scheme="light",
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    context.set_default_timeout(30_000)
    try:
        yield context.new_page()
    finally:
        context.close()


def sign_in(page: Page, url: str, email: str, password: str) -> None:
    page.goto(f"{url}/accounts/login/")
    page.fill("[name=login]", email)
    page.fill("[name=password]", password)
    page.click("main button[type=submit]")
    page.wait_for_url(lambda at: "/accounts/login" not in at)


def settle(page: Page) -> None:
    """Until fonts are there and nothing is asked for any more by the page itself."""
    page.evaluate("document.fonts.ready")
    expect(page.locator(".htmx-request")).to_have_count(0)


def wanted(name: str, names: list[str]) -> bool:
    return not names or any(part in name for part in names)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--only", choices=["guide", "pages"])
    parser.add_argument("--width", type=int, choices=WIDTHS, action="append")
    parser.add_argument("--into", type=Path, default=ROOT / "screenshots")
    chosen = parser.parse_args()
    complaints = Complaints()
    collect_static()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        if chosen.only != "pages":
            taken = take_guide(browser, chosen.names, complaints)
            size = sum(path.stat().st_size for path in KEPT.glob("*.png"))
            print(f"The guide: {taken} pictures in {shown(KEPT)}, {size / 1000:,.0f} KB in all")
        if chosen.only != "guide":
            widths = chosen.width or list(WIDTHS)
            pages = take_pages(browser, chosen.names, widths, chosen.into, complaints)
            count = f"{len(pages.seen)} pages, {pages.taken} pictures"
            print(f"Every page: {count} in {shown(chosen.into)}")
        browser.close()
    for name, found in complaints.found.items():
        print(f"  {name}: {'; '.join(found)}")
    return 1 if complaints.found else 0


if __name__ == "__main__":
    sys.exit(main())
