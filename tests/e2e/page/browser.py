"""A real browser on the page of a real service: Debian's Chromium, driven by playwright.

The page forbids eval, as its policy says, so nothing here waits for an expression: tests look until it is so.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_server
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from handler.local import Workers
from handler.settings import Settings
from handler.storage import LocalStorage
from handler.web.app import build
from tests.integration.work import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from starlette.types import ASGIApp

#: A window of a phone, with a touch screen.
PHONE = {"viewport": {"width": 375, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def start_browser() -> Iterator[Browser]:
    """The body of a fixture; skips where there is no browser, and says what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def serve(
    folder: Path,
    *,
    workers: bool = True,
    around: Callable[[ASGIApp], ASGIApp] | None = None,
    **values: Any,
) -> Iterator[str]:
    """The service on this machine; gives the address of its page.

    Args:
        folder: where it keeps pictures and jobs.
        workers: whether there are any; without, jobs wait for ever.
        around: what stands before the application.
        values: settings.
    """
    settings = Settings(**{"data_dir": folder, "rate_limit": "none", "warm_model": "none", "bucket": "", **values})
    storage = LocalStorage(folder)
    threads = Workers(storage, settings) if workers else None
    app: ASGIApp = build(settings, storage, threads.put if threads else lambda _: None)
    app = around(app) if around else app
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    if threads:
        threads.start()
    with create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
            if threads:
                threads.stop(30)


class Visit:
    """A page in a window of its own, with everything that went wrong in it.

    Attributes:
        page: playwright's.
        complaints: errors of scripts, and what the Content-Security-Policy forbade.
        abroad: requests to other servers.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.complaints, self.abroad = page, list[str](), list[str]()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("request", lambda request: self._look(request.url, address))
        # While somebody listens, no dialogue opens; playwright does not wait until its browser knows of a new listener.
        page.on("filechooser", lambda _: None)
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and not text.startswith("Failed to load resource"):  # answers that are errors: tests ask for
            self.complaints.append(text)

    def _look(self, url: str, address: str) -> None:
        if not url.startswith((address.split("/")[0] + "//" + address.split("/")[2], "data:", "blob:")):
            self.abroad.append(url)

    def text(self, selector: str) -> str:
        """What people read there; a space is a space."""
        return self.page.inner_text(selector).replace("\u00a0", " ")

    def until(self, looks: Callable[[], object], what: str = "") -> None:
        """Look again and again."""
        end = time.monotonic() + PATIENCE
        while not looks():
            if time.monotonic() > end:
                rows, error = self.page.locator("li").all_inner_texts(), self.text("#error")
                raise AssertionError(f"waited in vain for {what or looks}: {rows} {error!r} {self.complaints}")
            self.page.wait_for_timeout(50)

    def until_still(self) -> None:
        """Until nothing of the comparison moves any more: the page scrolls to it, and fingers leave it in motion."""
        places: list[object] = []

        def still() -> bool:
            boxes = [self.page.locator(part).bounding_box() for part in ("#view", "#after", "#handle")]
            places.append((boxes, self.page.evaluate("scrollY")))
            return len(places) > 4 and all(place == places[-1] for place in places[-4:])

        self.until(still, "the comparison to rest")

    def states(self) -> list[str]:
        """Of the pictures in the list, in order."""
        return [row.get_attribute("data-state") or "" for row in self.page.locator("#list > li").all()]

    def choose(self, *files: Path) -> None:
        """By the button that people press."""
        before = len(self.states())
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#choose")
        chooser.value.set_files(list(files))
        self.until(lambda: len(self.states()) == before + len(files), "rows")

    def enlarge(self) -> None:
        """Press the button, and wait for the end of everything."""
        self.until(lambda: self.page.is_enabled("#go"), "the button")
        self.page.click("#go")
        self.until(lambda: not {"ready", "waiting", "working"} & set(self.states()), "the end of the work")

    def wait_for_result(self) -> None:
        """Until the comparison is on show."""
        self.until(
            lambda: self.page.is_visible("#result") and self.page.locator("#view.compared").count(), "the result"
        )

    def focus(self) -> str:
        """The id of what has the keyboard."""
        return str(self.page.evaluate("document.activeElement.id"))

    def check_accessibility(self) -> None:
        """axe-core finds nothing."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
        )
        found = axe.Axe().run(self.page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, found.generate_report()

    def check_width(self) -> None:
        """Nothing reaches beyond the window."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0


#: Opens an address in a window of its own.
Open = Callable[..., Visit]


def saved_by(visit: Visit, button: str) -> tuple[str, bytes]:
    """What a press of the button downloads."""
    with visit.page.expect_download() as download:
        visit.page.click(button)
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()
