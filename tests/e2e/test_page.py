# ruff: noqa: RUF001 - sizes have a true multiplication sign
"""The page at / as people use it: with the mouse, the keyboard, a finger, and a screen reader."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from handler import jobs
from handler.jobs import Backend
from handler.storage import LocalStorage
from tests.e2e.browser import Visit, serve, start_browser
from tests.unit.pictures import corners, saved

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.slow

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from start_browser()


@pytest.fixture(scope="module")
def service(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("service"), max_upload_bytes=2_000_000) as address:
        yield address


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens an address in a window of its own; afterwards nothing may have gone wrong in it."""
    visits = []

    def open(address: str, **window: Any) -> Visit:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **window}
        )
        visits.append(Visit(context.new_page(), address))
        return visits[-1]

    yield open
    for found in visits:
        found.page.context.close()
        assert found.complaints == []
        assert found.abroad == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small pictures, one of each kind that matters here."""
    import pillow_heif
    import tifffile

    folder = tmp_path_factory.mktemp("pictures")
    for name, format in (("one.jpg", "JPEG"), ("two.png", "PNG"), ("three.webp", "WEBP")):
        (folder / name).write_bytes(saved(corners(60, 90), format))
    tifffile.imwrite(folder / "deep.tif", corners(60, 90).astype(np.uint16) * 257, photometric="rgb")
    pillow_heif.from_pillow(Image.fromarray(corners(64, 96))).save(folder / "phone.heic")
    (folder / "broken.jpg").write_bytes((folder / "one.jpg").read_bytes()[:150])
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    (folder / "heavy.png").write_bytes(saved(noise, "PNG"))
    (folder / "notes.txt").write_text("no picture")
    (folder / "wide.png").write_bytes(saved(corners(130, 300), "PNG"))
    return folder


def saved_by(visit: Visit, button: str) -> tuple[str, bytes]:
    """What a press of the button downloads."""
    with visit.page.expect_download() as download:
        visit.page.click(button)
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


# -- the way of a picture ---------------------------------------------------------------------------------------------


def test_a_picture_by_click(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    assert "2.0 MB and 100 megapixels" in seen.text("#limits")  # before anything is sent
    seen.choose(pictures / "one.jpg")
    seen.until(lambda: seen.text("#estimate"), "the estimate")
    assert re.fullmatch(r"180 × 120 pixels, about \d+ s", seen.text("#estimate"))
    seen.enlarge()
    seen.wait_for_result()
    assert seen.states() == ["done"]
    assert seen.focus() == "result-title"
    assert seen.text("#result-title") == "one-x2.jpg"
    assert "photo-x2" in seen.text("#made")
    assert seen.text("#live") == "one.jpg is done: 180 × 120 pixels."
    assert seen.page.evaluate("[after.naturalWidth, before.naturalWidth]") == [180, 90]
    for button in ("#save", "[aria-label='Download one.jpg']"):
        name, data = saved_by(seen, button)
        assert name == "one-x2.jpg"
        assert Image.open(io.BytesIO(data)).size == (180, 120)


def test_choices(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    seen.choose(pictures / "one.jpg")
    seen.page.select_option("#scale", "exact")
    assert seen.page.is_disabled("#go")  # no size is given yet
    seen.page.fill("#width", "100")
    seen.page.select_option("#format", "webp")
    seen.page.click("#more summary")
    seen.page.fill("#quality", "30")
    seen.until(lambda: seen.page.locator("#model option").count() > 5, "the models")
    seen.page.select_option("#model", "compact-x2")
    assert seen.text("#about").startswith("Embedded")
    seen.enlarge()
    seen.wait_for_result()
    assert "100 × 67 pixels" in seen.text("#made")
    assert "compact-x2" in seen.text("#made")
    assert seen.text("#result-title").endswith(".webp")
    # Other choices make another result, and the first one stays.
    seen.page.select_option("#scale", "3")
    seen.until(lambda: seen.text("#go") == "Enlarge again" and seen.page.is_enabled("#go"), "the button")
    seen.enlarge()
    seen.until(lambda: "270 × 180" in seen.text("#made"), "the other result")
    assert seen.states() == ["done", "done"]
    assert seen.page.is_disabled("#go")  # there is nothing else to make


def give(seen: Visit, kind: str, *files: Path) -> None:
    """Drop or paste files: the events that a browser makes, with the same data."""
    data = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in files]
    seen.page.evaluate(
        """([kind, files]) => {
          const transfer = new DataTransfer();
          for (const [name, text] of files) {
            const data = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            transfer.items.add(new File([data], name, { type: "image/jpeg" }));
          }
          const options = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(kind === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
        }""",
        [kind, data],
    )


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_by(kind: str, service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    give(seen, kind, pictures / "one.jpg")
    seen.until(lambda: seen.states() == ["ready"], "the row")
    seen.enlarge()
    seen.wait_for_result()


def test_several_pictures(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    seen.choose(pictures / "one.jpg", pictures / "two.png", pictures / "three.webp")
    seen.until(lambda: seen.text("#go") == "Enlarge 3 pictures", "the button")
    seen.enlarge()
    seen.wait_for_result()
    assert seen.states() == ["done"] * 3
    seen.page.click("[aria-label='Compare two.png']")
    seen.until(lambda: seen.text("#result-title") == "two-x2.png", "the result")
    # The same name twice in one archive.
    seen.choose(pictures / "one.jpg")
    seen.enlarge()
    name, data = saved_by(seen, "#zip")
    assert name == "larger-pictures.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["one-x2.jpg", "two-x2.png", "three-x2.webp", "one-x2 (2).jpg"]
        assert Image.open(io.BytesIO(archive.read("two-x2.png"))).size == (180, 120)


def test_a_folder(service: str, visit: Open, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "holidays"
    folder.mkdir()
    for name in ("one.jpg", "notes.txt"):
        (folder / name).write_bytes((pictures / name).read_bytes())
    seen = visit(service)
    seen.page.set_input_files("#folder", folder)
    seen.until(lambda: seen.states() == ["ready"], "the row")
    assert "holidays/one.jpg" in seen.text("#list")
    assert seen.text("#error") == "1 file is left out: no picture in a format that is read."


def test_formats_that_browsers_do_not_show(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    seen.choose(pictures / "deep.tif", pictures / "phone.heic")
    seen.until(lambda: seen.text("#list").count("pixels") == 2, "the sides")
    assert "90 × 60 pixels" in seen.text("#list")
    assert seen.page.locator(".thumb[src^='blob:']").count() == 2
    seen.enlarge()
    seen.page.click("[aria-label='Compare deep.tif']")
    seen.until(lambda: seen.text("#result-title") == "deep-x2.tif", "the result")
    seen.wait_for_result()
    assert seen.page.evaluate("[after.naturalWidth, before.naturalWidth]") == [180, 90]


def test_a_sample(service: str, visit: Open) -> None:
    seen = visit(service)
    seen.page.click("#sample")
    seen.wait_for_result()
    assert seen.text("#result-title") == "sample-x2.jpg"


def test_what_cannot_be_made(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    asked = []
    seen.page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    seen.choose(pictures / "broken.jpg", pictures / "heavy.png")
    seen.until(lambda: seen.states() == ["failed", "failed"], "the objections")
    assert "damaged" in seen.text("#list > li:first-child")
    assert "Too large: 2.4 MB, and this service takes at most 2.0 MB." in seen.text("#list")
    assert seen.page.is_disabled("#go")
    assert "jobs" not in asked  # nothing was sent only to be refused
    seen.choose(pictures / "one.jpg")
    seen.page.select_option("#scale", "exact")
    seen.page.fill("#width", "20")
    seen.until(lambda: seen.text("#error"), "the estimate's objection")
    assert seen.text("#error")[0].isupper()
    seen.page.select_option("#scale", "2")
    seen.until(lambda: not seen.text("#error"), "no objection")


def test_results_are_there_after_a_reload(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    seen.choose(pictures / "two.png")
    seen.enlarge()
    seen.page.reload()
    seen.until(lambda: seen.page.locator("#earlier-list > li").count() == 1, "the list")
    assert "180 × 120 pixels" in seen.text("#earlier-list")
    seen.page.click("[aria-label='Show two.png']")
    seen.until(lambda: seen.page.evaluate("after.naturalWidth") == 180, "the result")
    assert saved_by(seen, "#save")[0] == "two-x2.png"
    seen.page.click("[aria-label='Remove two.png']")
    seen.page.reload()
    assert seen.page.is_hidden("#earlier")


# -- while it is being made -------------------------------------------------------------------------------------------


@pytest.fixture
def idle(browser: Browser, tmp_path: Path) -> Iterator[str]:
    """A service where jobs wait until the test works on them."""
    with serve(tmp_path, workers=False) as address:
        yield address


def test_cancel(idle: str, visit: Open, pictures: Path, tmp_path: Path) -> None:
    seen = visit(idle)
    seen.choose(pictures / "one.jpg", pictures / "two.png")
    seen.page.click("#go")
    seen.until(lambda: seen.text("#list").count("Waiting for a free place") == 2, "the queue")
    seen.page.click("[aria-label='Cancel one.jpg']")
    seen.until(lambda: seen.states() == ["cancelled", "working"], "the end")
    store = LocalStorage(tmp_path)
    seen.until(lambda: sorted(job.state for job in jobs.every(store)) == ["cancelled", "queued"], "the job's end")
    seen.page.click("[aria-label='Try again one.jpg']")
    seen.until(lambda: seen.text("#list").count("Waiting for a free place") == 2, "the queue")


def test_time_left(idle: str, visit: Open, pictures: Path, tmp_path: Path) -> None:
    seen = visit(idle)
    seen.choose(pictures / "wide.png")
    seen.page.select_option("#scale", "8")
    seen.until(lambda: seen.page.is_enabled("#go"), "the button")
    seen.page.click("#go")
    seen.until(lambda: "Waiting for a free place" in seen.text("#list"), "the queue")
    store = LocalStorage(tmp_path)
    [job] = jobs.every(store)
    claimed = jobs.claim(store, job.id, worker="test", backend=Backend.LAMBDA, lease_seconds=60)
    assert claimed
    seen.until(
        lambda: re.search(r"At work, (about \d+ (s|min) left|nearly there)", seen.text("#list")), "the estimate's time"
    )
    job = jobs.progress(store, claimed, 3, 12)
    seen.until(
        lambda: re.search(r"3 of 12 tiles, (about \d+ (s|min) left|nearly there)", seen.text("#list")),
        "the tiles' time",
    )
    assert seen.page.locator("#list progress").evaluate("bar => bar.value") == 0.25
    jobs.fail(store, job, "out_of_memory", "not enough memory for this picture")
    seen.until(lambda: seen.states() == ["failed"], "the end")
    assert "Not enough memory for this picture." in seen.text("#list")
    assert seen.text("#live") == "wide.png: Not enough memory for this picture."


def test_another_picture_does_not_disturb_the_comparison(service: str, visit: Open, pictures: Path) -> None:
    seen = visit(service)
    seen.choose(pictures / "one.jpg")
    seen.enlarge()
    seen.wait_for_result()
    seen.page.hover("#view")
    seen.choose(pictures / "two.png")
    seen.until(lambda: seen.page.is_enabled("#go"), "the button")
    assert seen.text("#result-title") == "one-x2.jpg"
    seen.page.click("#go")
    seen.page.hover("#view")
    seen.until(lambda: seen.states() == ["done", "done"], "the end")
    assert seen.text("#result-title") == "one-x2.jpg"


# -- the comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compared(service: str, visit: Open, pictures: Path) -> Callable[..., Visit]:
    """A result of 600 x 260 pixels on show, in a window where it must be made smaller."""

    def open(**window: Any) -> Visit:
        seen = visit(service, **{"viewport": {"width": 500, "height": 900}, **window})
        seen.choose(pictures / "wide.png")
        seen.enlarge()
        seen.wait_for_result()
        seen.page.wait_for_timeout(600)  # the page scrolls to it
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
    seen.page.wait_for_timeout(200)


PHONE = {"viewport": {"width": 375, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


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


# -- everybody --------------------------------------------------------------------------------------------------------


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
