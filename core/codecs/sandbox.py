"""Decoding in a separate process, for pictures of strangers: a crash, a hang or a memory blow-up ends only that.

One small process is started when the first picture comes. It imports the decoders once and then forks for each picture,
one fork ahead, so that a picture costs milliseconds and never meets what an earlier one left behind. A fork gets the
file as an open descriptor and limits on CPU time, memory and time; it cannot write files and sees none of the
environment's secrets. What it sends back is read as numbers and bytes of checked sizes, never unpickled. This holds
accidents; it is no jail for code that an attacker got to run, which has the rights of this user: for that, give the
whole service a separate user or container.

In AWS Lambda the invocation itself is such a place (one request at a time, its own memory and time limit), and there
is no need for this.
"""

from __future__ import annotations

import atexit
import gc
import io
import itertools
import json
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core import errors
from core.codecs.base import Source
from core.codecs.decode import open_source
from core.errors import InputError, TooLarge, UnreadableImage, describe
from core.limits import Limits
from core.metadata.carried import MAX_BLOCK, MAX_TEXT, Metadata
from core.picture import Picture, Pixels, Probe, SampleRange, Scan, held, scan_of
from core.pixels.bands import Bands, Samples

_BLOCKS = ("icc", "exif", "xmp", "iptc", "tiff")
_MAX_HEADER = 8 * MAX_TEXT
_PIECE = 1 << 20  # bytes
_HELD_PIXELS = 1 << 18  # a page of so many comes with its header: another process for its bands would cost more
_lock = threading.Lock()
_server: tuple[int, subprocess.Popen[bytes], socket.socket] | None = None


def probe(source: Source, limits: Limits) -> Probe:
    """`core.codecs.read.probe`, in the other process."""
    for header, _ in _asked("probe", source, limits):
        return Probe(**header["probe"])
    raise UnreadableImage("the picture is damaged: its header could not be read")


def scans(source: Source, limits: Limits) -> Generator[Picture | Scan]:
    """`core.codecs.read.scans`, in the other process. The next page is decoded while this one is worked on."""
    for index, (header, blobs) in enumerate(_asked("pages", source, limits)):
        described = deserialize(header["picture"], blobs)
        if isinstance(described, Scan):
            described = replace(described, bands=_bands(described.bands, index, source, limits))
        yield described


def _bands(announced: Bands, page: int, source: Source, limits: Limits) -> Bands:
    """The bands of a page that is not held: the file is opened anew each time that they are asked for."""

    def read() -> Iterator[Samples]:
        left = announced.height
        with closing(_asked("bands", source, limits, page)) as messages:
            for _, blobs in messages:
                data = next(blobs, bytearray())
                rows = len(data) // announced.row_bytes
                if not 0 < rows <= left or rows * announced.row_bytes != len(data):
                    raise UnreadableImage("the picture broke its decoder")
                left -= rows
                yield np.frombuffer(data, announced.dtype).reshape(rows, announced.width, announced.samples)
        if left:
            raise UnreadableImage("the picture is damaged: it ends before its last row")

    return replace(announced, read=read)


def _asked(
    what: str, source: Source, limits: Limits, page: int = 0
) -> Generator[tuple[dict[str, Any], Iterator[bytearray]]]:
    """Messages of the process that does it, until it says that it is done."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, _as_file(source, limits) as file:
            _send_to_server(theirs.fileno(), file.fileno())
        # Waiting is bounded by the clock as well: a process that sleeps takes no CPU time.
        ours.settimeout(2 * limits.worker_seconds + 30)
        try:
            _send(ours, {"what": what, "limits": asdict(limits), "page": page}, [])
            while True:
                header = _receive_header(ours)
                if "error" in header:
                    raise _error(header)
                if "done" in header:
                    return
                yield header, _receive_blobs(ours, header, limits)
        except (OSError, EOFError, ValueError, KeyError, TypeError, struct.error) as error:
            raise UnreadableImage(
                f"the picture could not be decoded within {limits.worker_seconds} s and "
                f"{limits.worker_bytes / 1e6:,.0f} MB, or broke its decoder"
            ) from error


def _error(header: dict[str, Any]) -> InputError:
    kind = getattr(errors, str(header["error"]), UnreadableImage)
    if not (isinstance(kind, type) and issubclass(kind, InputError)):
        kind = UnreadableImage
    return kind(describe(ValueError(str(header.get("message", "damaged")))))


def _as_file(source: Source, limits: Limits) -> BinaryIO:
    """The source as an open file, whose descriptor can be handed on.

    Raises:
        UnreadableImage: there is no such file.
        TooLarge: over the limit.
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            return Path(source).open("rb")
        if not isinstance(source, (bytes, bytearray, memoryview)):
            source.seek(0)  # it may have been read before
            if (file := _opened_again(source)) is not None:
                return file
        return _copied(io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source, limits)
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"cannot read the input: {describe(error)}") from error


def _opened_again(stream: BinaryIO) -> BinaryIO | None:
    """The file of a stream with a position that is not the stream's; None where the stream is no file, or not here."""
    try:
        stream.flush()  # of one that is written to
        descriptor = stream.fileno()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return Path(f"/proc/self/fd/{descriptor}").open("rb")
    except (OSError, AttributeError):  # another system than Linux; not ours to open
        return None


def _copied(stream: BinaryIO, limits: Limits) -> BinaryIO:
    """What is left of a stream as a file, in pieces: many large uploads at once must not be held in memory.

    Raises:
        TooLarge: over the limit.
        OSError, ValueError: the stream cannot be read.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        while piece := stream.read(_PIECE):
            file.write(piece)
            if file.tell() > limits.input_bytes:
                raise TooLarge(f"the input is over the limit of {limits.input_bytes:,} bytes")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _send_to_server(*descriptors: int) -> None:
    """Hand descriptors to the process that forks; it is started when there is none, or when it has died."""
    global _server
    with _lock:
        for attempt in range(2):
            if _server is None or _server[0] != os.getpid() or _server[1].poll() is not None:
                _stop()
                _server = _start()
            try:
                socket.send_fds(_server[2], [b"\0"], descriptors)
                return
            except OSError:
                _stop()
                if attempt:
                    raise


def _start() -> tuple[int, subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).parents[2])
    call = f"from core.codecs import sandbox; sandbox._serve({theirs.fileno()})"
    code = f"import sys; sys.path.insert(0, {root!r}); {call}"
    kept = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # threads do not survive a fork
    with theirs:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code],
            env=environment,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    atexit.register(_stop)
    return os.getpid(), process, ours


def _stop() -> None:
    """End the process that forks, if it is ours: it ends by itself when its socket is closed."""
    global _server
    if _server is not None and _server[0] == os.getpid():
        _server[2].close()
        try:
            _server[1].wait(5)
        except subprocess.TimeoutExpired:
            _server[1].kill()
            _server[1].wait()
    _server = None


def _send(connection: socket.socket, header: dict[str, Any], blobs: list[memoryview]) -> None:
    data = json.dumps({**header, "blobs": [blob.nbytes for blob in blobs]}).encode()
    connection.sendall(struct.pack(">I", len(data)) + data)
    for blob in blobs:
        connection.sendall(blob)


def _receive(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return data


def _receive_header(connection: socket.socket) -> dict[str, Any]:
    (size,) = struct.unpack(">I", _receive(connection, 4))
    if size > _MAX_HEADER:
        raise ValueError("header too large")
    header = json.loads(_receive(connection, size))
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header


def _receive_blobs(connection: socket.socket, header: dict[str, Any], limits: Limits) -> Iterator[bytearray]:
    sizes = [int(size) for size in header["blobs"]]
    if (
        any(size < 0 for size in sizes)
        or sum(sizes) > 8 * min(limits.input_pixels, limits.held_pixels) + len(_BLOCKS) * MAX_BLOCK
    ):
        raise ValueError("more than was allowed")
    return iter([_receive(connection, size) for size in sizes])


def serialize(picture: Picture | Scan) -> tuple[dict[str, Any], list[memoryview]]:
    """A picture as a header for JSON and the bytes that follow it: pixels, alpha, then the blocks of its metadata.

    The pixels of a scan do not follow: they are asked for.
    """
    meta, bands = picture.meta, scan_of(picture).bands
    layers: list[Pixels] = []
    if isinstance(picture, Picture):
        layers = [np.ascontiguousarray(layer) for layer in (picture.pixels, picture.alpha) if layer is not None]
    blocks = {name: getattr(meta, name) for name in _BLOCKS if getattr(meta, name) is not None}
    header = {
        "shape": (bands.height, bands.width, bands.channels),
        "dtype": str(bands.dtype),
        "alpha": bands.alpha,
        "held": isinstance(picture, Picture),
        "blocks": list(blocks),
        "dpi": meta.dpi,
        "text": meta.text,
        "levels": None if picture.levels is None else asdict(picture.levels),
        "duration": picture.duration,
        "lossless": picture.lossless,
        "quality": picture.quality,
        "subsampling": picture.subsampling,
        "notes": picture.notes,
    }
    return header, [layer.data.cast("B") for layer in layers] + [memoryview(block) for block in blocks.values()]


def deserialize(header: dict[str, Any], blobs: Iterator[bytearray]) -> Picture | Scan:
    """The picture that `serialize` took apart, with every number, type and size checked; a scan has no rows yet.

    Raises:
        UnreadableImage: it is not one.
    """
    try:
        height, width, channels = (int(side) for side in header["shape"])
        if header["dtype"] not in ("uint8", "uint16") or channels not in (1, 3) or min(height, width) < 1:
            raise ValueError("no pixels")
        dtype = np.dtype(header["dtype"])

        def layer(*shape: int) -> Pixels:
            return np.frombuffer(next(blobs), dtype).reshape(shape)

        pixels = layer(height, width, channels) if header["held"] else None
        alpha = layer(height, width) if header["alpha"] and pixels is not None else None
        blocks = {name: bytes(next(blobs)) for name in header["blocks"] if name in _BLOCKS}
        dpi, levels = header["dpi"], header["levels"]
        text = tuple((str(key), str(value)) for key, value in header["text"])
        meta = Metadata(**blocks, dpi=None if dpi is None else (float(dpi[0]), float(dpi[1])), text=text)
        if levels is not None:
            if str(levels["dtype"]) not in {np.dtype(name).str[1:] for name in "bhilqBHILQefd"}:
                raise ValueError("no numbers")
            numbers = {name: float(levels[name]) for name in ("low", "high", "middle", "scale")}
            nodata = None if levels["nodata"] is None else float(levels["nodata"])
            levels = SampleRange(str(levels["dtype"]), **numbers, nodata=nodata)
        described: dict[str, Any] = {
            "meta": meta,
            "duration": float(header["duration"]),
            "levels": levels,
            "lossless": bool(header["lossless"]),
            "quality": None if header["quality"] is None else int(header["quality"]),
            "subsampling": None if header["subsampling"] is None else str(header["subsampling"]),
            "notes": tuple(str(note) for note in header["notes"]),
        }
        if pixels is not None:
            return Picture(pixels, alpha, **described)
        bands = Bands(height, width, channels, bool(header["alpha"]), dtype, partial(iter, ()))
        return Scan(bands=bands, **described)
    except (ValueError, KeyError, TypeError, StopIteration, OverflowError) as error:
        raise UnreadableImage("the picture broke its decoder") from error


# What follows runs in the other processes.


def _serve(descriptor: int) -> None:
    """Fork for each pair of descriptors that comes, until the other end is closed."""
    import pyvips  # noqa: F401 - starts no threads, which would not survive a fork
    import tifffile  # noqa: F401
    from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, ImageCms, PngImagePlugin, WebPImagePlugin  # noqa: F401

    from core.codecs import (
        heif,  # noqa: F401
        pillow,  # noqa: F401
        segments,  # noqa: F401
        tiff,  # noqa: F401
    )

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are reaped by the system
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it marks
    with socket.socket(fileno=descriptor) as server:
        while _next_one(server):
            pass


def _next_one(server: socket.socket) -> bool:
    """Fork, before it is wanted, a process for the next picture; returns once that has come: False at the end."""
    taken, tell = os.pipe()
    if os.fork() == 0:
        try:
            os.close(taken)
            _, descriptors, _, _ = socket.recv_fds(server, 1, 2)
            server.close()
            if len(descriptors) == 2:
                os.write(tell, b"\0")
                os.close(tell)
                _work(*descriptors)
        finally:
            os._exit(0)
    os.close(tell)
    try:
        return os.read(taken, 1) == b"\0"
    finally:
        os.close(taken)


def _work(connection_descriptor: int, file_descriptor: int) -> None:
    """Decode one picture, in a fork."""
    with socket.socket(fileno=connection_descriptor) as connection, open(file_descriptor, "rb") as file:
        request = _receive_header(connection)
        limits = Limits(**request["limits"])
        _confine(limits)
        try:
            patience = 2 * limits.worker_seconds + 10
            signal.alarm(patience)
            with open_source(file, limits) as (found, decode_pages):
                if request["what"] == "probe":
                    _send(connection, {"probe": asdict(found)}, [])
                elif request["what"] == "bands":
                    [picture] = itertools.islice(decode_pages(), int(request["page"]), int(request["page"]) + 1)
                    for band in scan_of(picture).bands:
                        signal.alarm(0)  # the other end may take its time
                        _send(connection, {}, [np.ascontiguousarray(band).data.cast("B")])
                        signal.alarm(patience)
                else:
                    for page in decode_pages():
                        picture = held(page) if _is_small(page) else page
                        signal.alarm(0)  # the other end may take its time
                        header, blobs = serialize(picture)
                        _send(connection, {"picture": header}, blobs)
                        signal.alarm(patience)
            _send(connection, {"done": True}, [])
        except InputError as error:
            _send(connection, {"error": type(error).__name__, "message": str(error)}, [])


def _is_small(page: Picture | Scan) -> bool:
    bands = scan_of(page).bands
    return bands.height * bands.width <= _HELD_PIXELS


def _confine(limits: Limits) -> None:
    """Limits of the operating system on this process."""
    try:
        in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + limits.worker_bytes,) * 2)
    except (OSError, ValueError):
        pass  # not Linux: CPU time is limited there, memory is not
    resource.setrlimit(resource.RLIMIT_CPU, (limits.worker_seconds, limits.worker_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
