"""The comparison on the page, before and after: with the mouse, the wheel and fingers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.page.browser import PHONE, Open, Visit

pytestmark = pytest.mark.slow


@pytest.fixture
def compared(service: str, visit: Open, pictures: Path) -> Callable[..., Visit]:
    """A result of 600 x 260 pixels on show, in a window where it must be made smaller."""

    def open(**window: Any) -> Visit:
        usual = {"viewport": {"width": 500, "height": 900}, "reduced_motion": "reduce"}  # no slow scrolling
        seen = visit(service, **{**usual, **window})
        seen.choose(pictures / "wide.png")
        seen.enlarge()
        seen.wait_for_result()
        seen.until_still()
        return seen

    return open


def middle(seen: Visit, selector: str) -> tuple[float, float]:
    box = seen.page.locator(selector).bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_handle(compared: Callable[..., Visit]) -> None:
    seen = compared()
    handle = seen.page.locator("#handle")
    x, y = middle(seen, "#handle")
    seen.page.mouse.move(x, y)
    seen.page.mouse.down()
    seen.page.mouse.move(x + 93.2, y, steps=4)
    seen.page.mouse.up()
    assert abs(middle(seen, "#handle")[0] - x - 93.2) < 2
    assert handle.get_attribute("aria-valuetext") == "70 % before, 30 % after"
    handle.press("ArrowLeft")
    assert handle.get_attribute("aria-valuetext") == "68 % before, 32 % after"
    handle.press("Home")
    assert handle.get_attribute("aria-valuenow") == "0"
    # A press elsewhere moves nothing.
    seen.page.mouse.click(x, y)
    assert handle.get_attribute("aria-valuenow") == "0"


@pytest.mark.parametrize("ratio", [1, 2])
def test_zoom(ratio: int, compared: Callable[..., Visit]) -> None:
    seen = compared(device_scale_factor=ratio)
    view, box = seen.page.locator("#view").bounding_box(), seen.page.locator("#after").bounding_box
    assert view
    whole = box()
    assert whole
    assert whole["height"] <= view["height"]  # all of it is in view
    assert whole["width"] <= view["width"]
    assert view["y"] >= 0
    assert view["y"] + view["height"] <= 900
    seen.page.click("#actual")
    view, actual = seen.page.locator("#view").bounding_box(), box()
    assert view
    assert actual
    assert abs(actual["width"] - 600 / ratio) < 1  # a pixel of the result is a pixel of the screen
    assert seen.text("#percent").startswith("100")
    # The wheel zooms, and what is under the pointer stays there.
    x, y = view["x"] + 200, view["y"] + 100
    seen.page.mouse.move(x, y)
    before = (x - actual["x"]) / actual["width"]
    seen.page.mouse.wheel(0, -400 * ratio)
    seen.until(lambda: (box() or actual)["width"] > actual["width"] * 2, "the zoom")
    closer = box()
    assert closer
    assert abs((x - closer["x"]) / closer["width"] - before) < 0.01
    # Dragging pans.
    seen.page.mouse.down()
    seen.page.mouse.move(x + 50, y + 20, steps=3)
    seen.page.mouse.up()
    moved = box()
    assert moved
    assert abs(moved["x"] - closer["x"] - 50) < 2
    seen.page.focus("#view")
    seen.page.keyboard.press("ArrowRight")
    assert abs((box() or moved)["x"] - moved["x"] + 60) < 2
    seen.page.keyboard.press("0")
    assert abs((box() or moved)["width"] - whole["width"]) < 1
    # With nothing left to zoom out of, the wheel scrolls the page on.
    seen.page.evaluate("scrollTo(0, 0)")
    seen.page.hover("#view", position={"x": 30, "y": 30})
    top = seen.page.evaluate("scrollY")
    seen.page.mouse.wheel(0, 150)
    seen.until(lambda: seen.page.evaluate("scrollY") > top, "the page's scrolling")


def touch(seen: Visit, *paths: tuple[tuple[float, float], tuple[float, float]]) -> None:
    """Fingers that go from one point to another at the same time."""
    devtools = seen.page.context.new_cdp_session(seen.page)

    def send(kind: str, part: float) -> None:
        points = [
            {"x": a[0] + (b[0] - a[0]) * part, "y": a[1] + (b[1] - a[1]) * part, "id": number}
            for number, (a, b) in enumerate(paths)
        ]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if kind == "touchEnd" else points})

    send("touchStart", 0)
    for step in range(1, 9):
        send("touchMove", step / 8)
        seen.page.wait_for_timeout(20)
    send("touchEnd", 1)
    seen.until_still()


def test_fingers(compared: Callable[..., Visit]) -> None:
    seen = compared(**PHONE)
    seen.check_width()
    x, y = middle(seen, "#view")
    at = seen.page.locator("#handle").get_attribute
    top = seen.page.evaluate("scrollY")
    touch(seen, ((x + 80, y - 40), (x + 80, y + 60)))
    assert seen.page.evaluate("scrollY") < top - 50  # a swipe scrolls the page
    x, y = middle(seen, "#view")
    touch(seen, ((x + 60, y), (x + 120, y)))
    assert at("aria-valuenow") == "50"  # only the handle slides
    touch(seen, (middle(seen, "#handle"), (middle(seen, "#handle")[0] + 70, middle(seen, "#handle")[1])))
    assert int(at("aria-valuenow") or 0) > 60
    wide = seen.page.locator("#after").bounding_box()
    x, y = middle(seen, "#view")
    touch(seen, ((x - 90, y), (x - 150, y)), ((x - 60, y), (x + 20, y)))
    pinched = seen.page.locator("#after").bounding_box()
    assert wide
    assert pinched
    assert pinched["width"] > 2 * wide["width"]
    touch(seen, ((x - 60, y), (x - 110, y)))
    panned = seen.page.locator("#after").bounding_box()
    assert panned
    assert panned["x"] < pinched["x"] - 20
