"""The process that decodes for others: the same pictures, and nothing of its misfortunes reaches the caller."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import core
from core.codecs import sandbox
from core.codecs.read import decode, pages
from core.picture import Picture
from tests.unit.pictures import corners, huge_png, saved, with_everything

ELSEWHERE = core.Limits(worker=True)
HERE = core.Limits(input_pixels=250_000_000)


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    sandbox._stop()


def same(one: Picture, other: Picture) -> bool:
    alphas = one.alpha is other.alpha or np.array_equal(one.alpha, other.alpha)  # type: ignore[arg-type]
    facts = [
        (p.meta, p.duration, p.levels, p.lossless, p.quality, p.subsampling, p.notes, p.pixels.dtype)
        for p in (one, other)
    ]
    return bool(np.array_equal(one.pixels, other.pixels) and alphas and facts[0] == facts[1])


def test_pictures_are_the_same(tmp_path: Path) -> None:
    numbers, frames = io.BytesIO(), [Image.fromarray(np.roll(corners(channels=4), i, axis=1)) for i in range(3)]
    tifffile.imwrite(numbers, np.linspace(-2, 9, 600).reshape(20, 30))
    for data in (
        with_everything(corners()),
        saved(corners(channels=4), "PNG"),
        numbers.getvalue(),
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=[10, 20, 30], loop=2),
        saved(corners(channels=1), "GIF", comment="hello"),
    ):
        assert core.probe(data, ELSEWHERE) == core.probe(data)
        here, there = list(pages(data)), list(pages(data, ELSEWHERE))
        assert len(here) == len(there)
        assert all(map(same, here, there))
    path = tmp_path / "in.jpg"
    path.write_bytes(with_everything(corners()))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        assert same(decode(source, ELSEWHERE), decode(path))


def test_a_whole_upscale() -> None:
    data = saved(corners(channels=4), "PNG")
    assert core.upscale(data, limits=ELSEWHERE).data == core.upscale(data).data


def test_errors_are_the_same() -> None:
    good = saved(corners(), "PNG")
    for data in (b"", b"no picture", good[:20], huge_png()):
        for call in (core.probe, decode, core.upscale):
            seen = []
            for limits in (HERE, replace(HERE, worker=True)):
                with pytest.raises(core.InputError) as caught:
                    call(data, limits=limits)
                seen.append((type(caught.value), str(caught.value)))
            assert seen[0] == seen[1]
    with pytest.raises(core.TooLarge, match="bytes"):
        core.probe(good, core.Limits(worker=True, input_bytes=10))
    with pytest.raises(core.UnreadableImage, match="No such file"):
        core.probe("/nowhere/at/all.png", ELSEWHERE)
    with pytest.raises(core.UnreadableImage, match="declared"):
        core.probe(good, ELSEWHERE, declared="image/jpeg")


def test_too_much_memory_ends_only_the_worker() -> None:
    large = saved(Image.new("RGB", (6000, 6000)), "PNG")
    with pytest.raises(core.InputError):
        decode(large, core.Limits(worker=True, worker_bytes=20_000_000))
    assert decode(large, ELSEWHERE).pixels.shape == (6000, 6000, 3)


def test_too_much_time_ends_only_the_worker() -> None:
    flat = saved(Image.new("L", (6000, 6000), 99), "JPEG", progressive=True)
    scan = flat.rindex(b"\xff\xda")
    slow = flat[:scan] + flat[scan:-2] * 180 + b"\xff\xd9"  # each scan goes over the whole picture
    with pytest.raises(core.UnreadableImage, match="within 1 s"):
        decode(slow, core.Limits(worker=True, worker_seconds=1))
    assert core.probe(slow, ELSEWHERE).width == 6000


def test_what_is_a_file_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large uploads lie on disk already; each look at one copied it whole."""
    monkeypatch.setattr(sandbox, "_copied", None)
    (tmp_path / "a.png").write_bytes(data := saved(corners(), "PNG"))
    with (tmp_path / "a.png").open("rb") as file:
        file.seek(7)
        assert core.probe(file, ELSEWHERE) == core.probe(data)
        assert same(decode(file, ELSEWHERE), decode(data))
    with tempfile.SpooledTemporaryFile(max_size=10) as spooled:
        spooled.write(data)
        assert core.probe(spooled, ELSEWHERE) == core.probe(data)  # type: ignore[arg-type]
        with pytest.raises(core.TooLarge):
            core.probe(spooled, replace(ELSEWHERE, input_bytes=len(data) - 1))  # type: ignore[arg-type]


def test_it_is_started_again_when_it_died() -> None:
    core.probe(saved(corners(), "PNG"), ELSEWHERE)
    assert sandbox._server is not None
    first = sandbox._server[1]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert core.probe(saved(corners(), "PNG"), ELSEWHERE).width == 20
    assert sandbox._server[1].pid != first.pid


def test_an_unfinished_animation_leaves_no_process() -> None:
    frames = [Image.fromarray(np.roll(corners(200, 300), i, axis=1)) for i in range(20)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    found = pages(data, ELSEWHERE)
    next(found)
    found.close()
    assert sandbox._server is not None
    children = Path(f"/proc/{sandbox._server[1].pid}/task/{sandbox._server[1].pid}/children")
    if not children.exists():
        pytest.skip("the kernel does not list children")
    for _ in range(100):
        if len(children.read_text().split()) == 1:
            break
        time.sleep(0.05)
    assert len(children.read_text().split()) == 1, "only the one that waits for the next picture"
    sandbox._stop()
    assert not children.exists()


def test_the_process_that_waits_ends_with_the_one_that_forks() -> None:
    core.probe(saved(corners(), "PNG"), ELSEWHERE)
    assert sandbox._server is not None
    server = sandbox._server[1].pid
    children = Path(f"/proc/{server}/task/{server}/children")
    if not children.exists():
        pytest.skip("the kernel does not list children")
    while not (waiting := children.read_text().split()):
        time.sleep(0.01)
    os.kill(server, signal.SIGKILL)
    sandbox._stop()
    state = Path(f"/proc/{waiting[0]}/stat")
    for _ in range(100):
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":  # its new parent has not looked yet
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_small_pages_come_with_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each page's bands costs more than the bands."""
    monkeypatch.setattr(sandbox, "_bands", None)
    data = saved(corners(), "PNG")
    assert same(decode(data, ELSEWHERE), decode(data))


def test_it_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    sandbox._stop()
    core.probe(saved(corners(), "PNG"), ELSEWHERE)
    assert sandbox._server is not None
    environment = Path(f"/proc/{sandbox._server[1].pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc on this system")
    assert b"secret" not in environment.read_bytes()


GOOD: dict[str, Any] = {
    "shape": [2, 3, 3],
    "dtype": "uint8",
    "alpha": False,
    "held": True,
    "blocks": [],
    "dpi": None,
    "text": [],
    "levels": None,
    "duration": 0,
    "lossless": True,
    "quality": None,
    "subsampling": None,
    "notes": [],
}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 3]},
        {"shape": [2, 3, 4]},
        {"shape": [-2, 3, 3]},
        {"shape": [1 << 40, 1 << 40, 3]},
        {"shape": "abc"},
        {"dtype": "object"},
        {"dtype": "uint16"},
        {"alpha": True},
        {"blocks": ["icc"]},
        {"dpi": ["x", 1]},
        {"text": [1]},
        {"levels": {"dtype": "O8", "low": 0, "high": 1}},
        {"levels": {"dtype": "f4"}},
        {"duration": "long"},
        {"notes": 3},
    ],
)
def test_a_worker_that_lies_gives_an_input_error(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()

    def answer(*descriptors: int) -> None:
        connection = socket.socket(fileno=os.dup(descriptors[0]))
        header = json.dumps({"picture": {**GOOD, **change}, "blobs": [18]}).encode()
        connection.sendall(struct.pack(">I", len(header)) + header + bytes(18))
        connection.close()

    ours.close()
    theirs.close()
    monkeypatch.setattr(sandbox, "_send_to_server", answer)
    with pytest.raises(core.UnreadableImage):
        decode(saved(corners(), "PNG"), ELSEWHERE)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b"\0\0\0\x02{}",
        b"\0\0\0\x04nope",
        struct.pack(">I", 40) + b'{"picture":{},"blobs":[999999999999999]}',
        struct.pack(">I", 27) + b'{"picture":{},"blobs":[-1]}',
        struct.pack(">I", 40) + b'{"error":"SystemExit","message":"\\u001b"}',
    ],
)
def test_any_bytes_from_a_worker_give_an_input_error(message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*descriptors: int) -> None:
        connection = socket.socket(fileno=os.dup(descriptors[0]))
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        connection.close()

    monkeypatch.setattr(sandbox, "_send_to_server", answer)
    with pytest.raises(core.UnreadableImage) as caught:
        decode(saved(corners(), "PNG"), ELSEWHERE)
    assert "\x1b" not in str(caught.value)
