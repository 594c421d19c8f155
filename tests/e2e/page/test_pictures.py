# ruff: noqa: RUF001 - sizes have a true multiplication sign
"""The way of a picture on the page at /: chosen, sent, made, compared, saved."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from handler import jobs
from handler.jobs import Backend
from handler.storage import LocalStorage
from tests.e2e.page.browser import Open, Visit, saved_by, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


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
