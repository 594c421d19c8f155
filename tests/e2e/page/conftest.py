"""A browser, the service, and pictures for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.page.browser import Open, Visit, serve, start_browser
from tests.unit.pictures import corners, saved

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    yield from start_browser()


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
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
