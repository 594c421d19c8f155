"""The page for everybody: the keyboard alone, a screen reader, a phone; behind a key, a prefix, a gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.page.browser import PHONE, Open, Visit, saved_by, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.slow


def test_the_keyboard_alone(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    press = seen.page.keyboard.press

    def tab_to(*ids: str) -> None:
        for _ in range(40):
            if seen.focus() in ids:
                return
            press("Tab")
        raise AssertionError(f"the keyboard does not reach {ids}")

    tab_to("choose")
    with seen.page.expect_file_chooser() as chooser:
        press("Enter")
    chooser.value.set_files([pictures / "one.jpg"])
    seen.until(lambda: seen.page.is_enabled("#go"), "the button")
    tab_to("go")
    press("Enter")
    seen.until(lambda: seen.focus() == "result-title", "the focus on the result")
    seen.wait_for_result()
    tab_to("view")
    press("+")
    seen.until(lambda: seen.text("#percent").startswith("125"), "the zoom")
    tab_to("handle")
    press("ArrowRight")
    assert seen.page.get_attribute("#handle", "aria-valuetext") == "52 % before, 48 % after"
    seen.page.focus("#result-title")
    tab_to("save")
    with seen.page.expect_download() as download:
        press("Enter")
    assert download.value.suggested_filename == "one-x2.jpg"
    # A row that goes takes the keyboard nowhere.
    seen.page.focus("[aria-label='Remove one.jpg']")
    press("Enter")
    assert seen.focus() == "choose"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(scheme: str, service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service, color_scheme=scheme)
    seen.check_accessibility()
    seen.page.click("#more summary")
    seen.choose(pictures / "one.jpg", pictures / "two.png", pictures / "broken.jpg")
    seen.until(lambda: "failed" in seen.states(), "the objection")
    seen.page.select_option("#scale", "exact")
    seen.check_accessibility()
    seen.page.select_option("#scale", "2")
    seen.enlarge()
    seen.wait_for_result()
    seen.page.click("#actual")
    seen.check_accessibility()
    dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 200) == (scheme == "dark")


def test_a_narrow_window(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service, **PHONE)
    seen.check_width()
    seen.page.click("#more summary")
    seen.page.select_option("#scale", "exact")
    long = pictures / f"{'a long name without a gap ' * 3}{'x' * 60}.png"
    long.write_bytes((pictures / "two.png").read_bytes())
    seen.choose(pictures / "one.jpg", long, pictures / "broken.jpg")
    seen.check_width()
    seen.page.select_option("#scale", "4")
    seen.enlarge()
    seen.wait_for_result()
    seen.check_width()
    seen.check_accessibility()


@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_docs_need_nothing_from_elsewhere(path: str, service: str, visit: Open) -> None:
    seen = visit(service + path)
    seen.until(lambda: "Make one picture larger" in seen.text("body"), path)
    seen.page.wait_for_timeout(300)
    assert "unsafe" not in seen.page.request.get(service + path).headers["content-security-policy"]


# -- keys and prefixes ------------------------------------------------------------------------------------------------


def ask_and_enter_keys(seen: Visit) -> None:
    seen.until(lambda: seen.page.is_visible("#lock"), "the question")
    assert "key" in seen.text("#lock-words")
    assert seen.focus() == "key"
    seen.check_accessibility()
    seen.page.fill("#key", "opensesam")
    seen.page.press("#key", "Enter")
    seen.until(lambda: "does not fit" in seen.text("#lock-words"), "the answer")
    seen.check_accessibility()
    seen.page.fill("#key", "opensesame ")
    seen.page.click("#lock button")
    seen.until(lambda: seen.page.is_hidden("#lock"), "the page")
    seen.until(lambda: seen.page.locator("#model option").count() > 5, "the models")


def test_the_key(browser: Browser, visit: Open, pictures: Path, tmp_path: Path) -> None:
    with serve(tmp_path, api_key="opensesame") as address:
        seen = visit(address)
        ask_and_enter_keys(seen)
        seen.choose(pictures / "one.jpg", pictures / "deep.tif")
        seen.enlarge()
        seen.wait_for_result()
        assert seen.states() == ["done", "done"]


def below_prefix(app: ASGIApp) -> ASGIApp:
    """What a server makes of requests from a proxy with a prefix, where it was told of it: `uvicorn --root-path`."""

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/tools/upscaler/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"of another service"})
            return
        await app({**scope, "root_path": "/tools/upscaler"}, receive, send)

    return server


def test_a_prefix_and_a_key(browser: Browser, visit: Open, pictures: Path, tmp_path: Path) -> None:
    with serve(tmp_path, api_key="opensesame", around=below_prefix) as address:
        seen = visit(address + "tools/upscaler/")
        ask_and_enter_keys(seen)
        seen.choose(pictures / "one.jpg")
        seen.enlarge()
        seen.wait_for_result()
        assert saved_by(seen, "#save")[0] == "one-x2.jpg"


def behind_gateway(app: ASGIApp) -> ASGIApp:
    """What API Gateway does before the application: a stage that it takes away, and 403 without the right key.

    Not real: API Gateway is only in AWS. /storage/ stands for S3, which is elsewhere and has no stage.
    """

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith("/v1/"):
            scope = {**scope, "path": path[3:], "raw_path": path[3:].encode()}
            key = dict(scope["headers"]).get(b"x-api-key")
            is_open = scope["path"] in ("/", "/docs", "/redoc", "/openapi.json") or scope["path"].startswith("/static/")
            if key == b"opensesame" or is_open:
                await app(scope, receive, send)
                return
        elif path.startswith("/storage/"):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"message":"Forbidden"}'})

    return gateway


def test_a_stage_and_a_key(browser: Browser, visit: Open, pictures: Path, tmp_path: Path) -> None:
    with serve(tmp_path, around=behind_gateway) as address:
        seen = visit(address + "v1/")
        ask_and_enter_keys(seen)
        seen.choose(pictures / "one.jpg")
        seen.enlarge()
        seen.wait_for_result()
        seen = visit(address + "v1/docs")
        seen.until(lambda: "Make one picture larger" in seen.text("body"), "Swagger UI")
        assert "/v1" in seen.text(".servers select")
