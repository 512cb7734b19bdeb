"""What a person does with a mouse or a finger, beyond a click."""

from __future__ import annotations

from playwright.sync_api import Locator, Page


def middle(locator: Locator) -> tuple[float, float]:
    box = locator.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


class Finger:
    """One finger on a page with `has_touch`: the browser decides what comes of it."""

    def __init__(self, page: Page) -> None:
        self._touch = page.context.new_cdp_session(page)
        self._at = (0.0, 0.0)

    def down(self, x: float, y: float) -> None:
        self._at = (x, y)
        self._send("touchStart", self._at)

    def move(self, x: float, y: float, steps: int = 8) -> None:
        x0, y0 = self._at
        for step in range(1, steps + 1):
            self._at = (x0 + (x - x0) * step / steps, y0 + (y - y0) * step / steps)
            self._send("touchMove", self._at)

    def up(self) -> None:
        self._send("touchEnd")

    def _send(self, kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": x, "y": y} for x, y in points]
        self._touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
