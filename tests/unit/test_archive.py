"""Names of results, lists, groups and estimates of an archive: what needs no store."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
from handler.archive import document, estimation, listing, planning, targets
from handler.archive.document import Picture, Row
from handler.archive.spool import open_spool
from handler.storage import InvalidKey, LocalStorage, check_key

OPTIONS = core.Options()
#: Parts of keys as people and programs make them; the empty one and the dots make `//` and `./`.
PARTS = st.one_of(
    st.sampled_from(["", ".", "..", "%", "%2E", "a", "a b", "a+b", "été", "{stem}", "a-x2", "a.tif", "a.jpg", "фото"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=12),
)
ENDINGS = st.sampled_from([".tif", ".TIF", ".tiff", ".jpg", ".jpeg", ".png", ".gif", ".heic"])
KEYS = st.builds(lambda parts, ending: "scans/" + "/".join(parts) + ending, st.lists(PARTS, min_size=1), ENDINGS)


@settings(deadline=None)
@given(st.lists(KEYS, unique=True, max_size=40), st.sampled_from([None, "png", "jpeg"]))
def test_no_two_sources_have_one_result(keys: list[str], format: str | None) -> None:
    options = replace(OPTIONS, format=format)
    with open_spool() as spool:
        found = []
        for key in keys:
            try:
                names = targets.target_keys(key, "scans/", "results/", targets.TEMPLATE, options)
                found.append(next(name for name in names if spool.take(name)))
            except InvalidKey:
                assert len(key.encode()) > 300  # a longer key than its source may be too long; nothing else is refused
    assert len(set(found)) == len(found)
    assert all(check_key(key).startswith("results/") for key in found)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("scans/a/b.tif", "results/a/b-x2.tif"),
        ("scans/b.TIF", "results/b-x2.TIF"),
        ("scans/a//b.tif", "results/a/%/b-x2.tif"),
        ("scans/./b.tif", "results/%2E/b-x2.tif"),
        ("scans/{stem}/{ending}.tif", "results/{stem}/{ending}-x2.tif"),
        ("scans/a.heic", "results/a-x2.jpg"),
        ("scans/.tif", "results/.tif-x2"),
        ("scans/" + "n" * 300 + ".tif", "results/" + "n" * 248 + "-x2.tif"),
    ],
)
def test_the_paths_are_mirrored(source: str, result: str) -> None:
    assert next(targets.target_keys(source, "scans/", "results/", targets.TEMPLATE, OPTIONS)) == result


def test_the_ending_follows_the_content() -> None:
    assert targets.with_ending("results/a-x2.JPG", "jpeg") == "results/a-x2.JPG"
    assert targets.with_ending("results/a.b/c-x2.jpg", "png") == "results/a.b/c-x2.png"
    assert targets.with_ending("results/1.5-x2", "png") == "results/1.5-x2.png"


@pytest.mark.parametrize("template", ["", "{stem}", "{path}{ending}", "{stem}{ending}.bak", "{stem}{0}{ending}"])
def test_a_template_names_each_result(template: str) -> None:
    with pytest.raises(core.OptionsError):
        targets.check_template(template)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("uploads/", "x/"),
        ("jobs/", "x/"),
        ("a/", "a/"),
        ("a/", "a/b/"),
        ("a/b/", "a/"),
        ("a/", "jobs/"),
        ("a/", "work/x/"),
        ("sweep/", "x/"),
        ("orders/", "x/"),
        ("", "archives/"),
    ],
)
def test_prefixes_that_would_eat_each_other_are_refused(source: str, target: str) -> None:
    with pytest.raises(core.OptionsError):
        targets.check_prefixes(source, target)
    targets.check_prefixes("scans/", "results/")


@settings(deadline=None, max_examples=20)  # files
@given(st.lists(KEYS.filter(lambda key: not key.endswith("/")), unique=True, max_size=10))
def test_an_inventory_is_read_as_s3_writes_it(keys: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch.setattr(tempfile, "tempdir", name)
        store = LocalStorage(folder / "store")
        lines = [f'"bucket","{quote(key)}","{number}","e{number}"\r\n' for number, key in enumerate(keys)]
        (folder / "list.csv.gz").write_bytes(gzip.compress("".join(lines).encode()))
        expected = [Picture(key, f"e{number}", number) for number, key in enumerate(keys)]
        assert list(listing.read_list(store, str(folder / "list.csv.gz"), "bucket")) == expected
        store.put("inventory/data/1.csv.gz", (folder / "list.csv.gz").read_bytes(), "application/gzip")
        schema = {"fileSchema": "Bucket, Key, Size, ETag", "files": [{"key": "inventory/data/1.csv.gz"}]}
        store.put("inventory/manifest.json", json.dumps(schema).encode(), "application/json")
        assert list(listing.read_list(store, "inventory/manifest.json", "bucket")) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("other,a.tif\n", "another bucket"),
        ("bucket\n", "no key"),
        ("Size,ETag\n1,2\n", "no CSV|another bucket|no key"),
        ("bucket,\xff.tif\n", "UTF-8"),
    ],
)
def test_a_list_that_says_nothing_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(core.OptionsError, match=sentence):
        list(listing.read_list(LocalStorage(tmp_path / "store"), str(tmp_path / "list.csv"), "bucket"))


def test_a_list_of_keys_alone_has_a_header(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("Key\nscans/a+b %41.tif\n\nscans/c.tif\n")
    found = list(listing.read_list(LocalStorage(tmp_path / "store"), str(tmp_path / "list.csv"), "bucket"))
    assert [picture.source for picture in found] == ["scans/a+b %41.tif", "scans/c.tif"]


@given(st.lists(st.floats(0, 2000), max_size=200))
def test_groups_keep_order_and_size(seconds: list[float]) -> None:
    pictures = [Picture(str(number), "", 0) for number in range(len(seconds))]
    parts = list(planning.group(pictures, lambda picture: seconds[int(picture.source)]))
    assert [picture for part in parts for picture in part] == pictures
    for part in parts:
        assert 0 < len(part) <= planning.MOST_PICTURES
        assert len(part) == 1 or sum(seconds[int(p.source)] for p in part) <= planning.PART_SECONDS * 1.001


@given(st.lists(st.builds(Row, source=st.text(st.characters(exclude_categories=["Cs"])))))
def test_rows_survive_their_file(rows: list[Row]) -> None:
    """Also with line separators that are no line feeds."""
    assert document.load_rows(document.dump_lines(rows)) == rows


def test_the_forecast_adds_up() -> None:
    found = estimation.forecast(100_000, 2_500, 3_000_000, rate=0.5, at_once=20)
    assert found.seconds == 3_000_000 * 0.5 + 100_000 * estimation.PICTURE_SECONDS + 2_500 * estimation.START_SECONDS
    assert found.hours == pytest.approx(found.seconds / 3600 / 20)
    assert found.machine == pytest.approx(found.seconds / 3600 * estimation.MACHINE_HOUR)
    assert found.spot < found.machine
    text = estimation.describe(found, here=False, rate=0.5)
    assert "list price" in text
    assert "verify" in text
    assert "USD" not in estimation.describe(found, here=True, rate=0.5)
