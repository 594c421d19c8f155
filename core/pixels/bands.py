"""Pictures from top to bottom: bands of rows, so that no picture has to be held whole."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[Any]

#: Rows of a band that somebody here has to choose; a multiple of what `core.pixels.alpha` works on.
ROWS = 256


@dataclass(frozen=True)
class Bands:
    """The pixels of a picture in consecutive bands of rows, as often as they are asked for.

    Attributes:
        height: of the picture, pixels.
        width: of the picture, pixels.
        channels: of colour: 1 or 3.
        alpha: whether one more channel, the last, is opacity.
        dtype: of the samples.
        read: begins at the top again: (rows, width, channels + alpha) each, `height` rows in all.
        read_from: begins at a row, or somewhat above it: which row that is, and the bands; None where a decoder has to
            go through all that is above.
    """

    height: int
    width: int
    channels: int
    alpha: bool
    dtype: np.dtype[Any]
    read: Callable[[], Iterator[Samples]]
    read_from: Callable[[int], tuple[int, Iterator[Samples]]] | None = None

    def __iter__(self) -> Iterator[Samples]:
        return self.read()

    @property
    def samples(self) -> int:
        """Channels, opacity included."""
        return self.channels + self.alpha

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.samples * self.dtype.itemsize


def bands_of(pixels: Samples, alpha: Samples | None = None) -> Bands:
    """The bands of a picture that is held: (h, w, 1 or 3), and (h, w) of the same type or None."""

    def read() -> Iterator[Samples]:
        for start in range(0, len(pixels), ROWS):
            rows = pixels[start : start + ROWS]
            yield rows if alpha is None else np.dstack([rows, alpha[start : start + ROWS]])

    height, width, channels = pixels.shape
    return Bands(height, width, channels, alpha is not None, pixels.dtype, read)


def gather(bands: Bands) -> tuple[Samples, Samples | None]:
    """All bands together: (h, w, 1 or 3), and opacity (h, w) or None."""
    pixels = np.empty((bands.height, bands.width, bands.channels), bands.dtype)
    alpha = np.empty((bands.height, bands.width), bands.dtype) if bands.alpha else None
    done = 0
    for band in bands:
        pixels[done : done + len(band)] = band[:, :, : bands.channels]
        if alpha is not None:
            alpha[done : done + len(band)] = band[:, :, -1]
        done += len(band)
    if done != bands.height:
        raise ValueError(f"{done} rows came where {bands.height} were announced")
    return pixels, alpha


def mirrored(bands: Bands) -> Bands:
    """The same with left and right exchanged."""

    def read_from(row: int) -> tuple[int, Iterator[Samples]]:
        top, below = from_row(bands, row)
        return top, (np.ascontiguousarray(band[:, ::-1]) for band in below)

    return replace(bands, read=lambda: read_from(0)[1], read_from=read_from)


def from_row(bands: Bands, row: int) -> tuple[int, Iterator[Samples]]:
    """The bands from a row on, or from somewhat above it: which row they begin with, and the bands."""
    return (0, iter(bands)) if bands.read_from is None else bands.read_from(row)


def in_rows(bands: Iterable[Samples], rows: int) -> Iterator[Samples]:
    """The same rows in bands of `rows` each; only the last may have fewer."""
    held: list[Samples] = []
    count = 0
    for band in bands:
        start = 0
        while start < len(band):
            part = band[start : start + rows - count]
            start += len(part)
            count += len(part)
            held.append(part)
            if count == rows:
                full = held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
                yield full
                del full, part
        del band
    if held:
        yield held[0] if len(held) == 1 else np.concatenate(held)


class RowBuffer:
    """The rows of a picture that are needed now, from bands that are read no further than necessary."""

    def __init__(self, bands: Iterable[Samples], top: int = 0) -> None:
        """Args: bands: consecutive; top: row of the picture that they begin with."""
        self._bands = iter(bands)
        self._held: list[Samples] = []
        self._top, self._stop = top, top

    def rows(self, start: int, stop: int) -> Samples:
        """Rows [start, stop) of the picture; what is above `start` is let go of, so it must not become smaller.

        Raises:
            ValueError: the bands end before that, or `start` is above what is held.
        """
        while self._held and self._top + len(self._held[0]) <= start:
            self._top += len(self._held.pop(0))
        while self._stop < stop:
            band = next(self._bands, None)
            if band is None:
                raise ValueError("the picture ends before its last row")
            self._stop += len(band)
            if self._stop > start:
                self._held.append(band)
            else:
                self._top = self._stop
            del band
        if start < self._top:
            raise ValueError(f"row {start} is no longer held")
        # One array, cut to what is held from now on: parts of it are asked for again as halos of the rows below.
        if len(self._held) > 1 or self._top < start:
            joined = np.concatenate([self._held[0][start - self._top :], *self._held[1:]])
            self._held, self._top = [joined], start
        return self._held[0][: stop - start] if self._held else np.empty(0)


#: Bytes of bands that are made in advance; where one is larger, it is one.
_AHEAD = 1 << 24


def ahead(
    items: Iterator[Samples], stopped: threading.Event | None = None, *, most: int = _AHEAD
) -> Generator[Samples]:
    """The same bands, made by another thread while the caller is busy with those before.

    So many are made in advance that small ones bridge what a caller does at once, who may wait for some of them before
    it works. What the thread raises is raised here.

    Args:
        items: what to make; closed when the caller stops early.
        stopped: is set then, so that a long item can be given up; None makes one.
        most: bytes that are made in advance; one item is in any case.
    """
    changed = threading.Condition()
    made: deque[Samples] = deque()
    stopped = stopped or threading.Event()
    failure: list[BaseException] = []
    ended = False

    def has_room() -> bool:
        return stopped.is_set() or not made or sum(item.nbytes for item in made) + made[-1].nbytes <= most

    def work() -> None:
        nonlocal ended
        try:
            for item in items:
                with changed:
                    made.append(item)
                    changed.notify()
                    del item  # else it is held while the next is made
                    changed.wait_for(has_room)
                if stopped.is_set():
                    break
        except BaseException as error:  # raised where the items are used
            failure.append(error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            with changed:
                ended = True
                changed.notify()

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: made or ended)
                if not made:
                    break
                item = made.popleft()
                changed.notify()
            yield item
            del item
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        with changed:
            changed.notify()
        thread.join()
