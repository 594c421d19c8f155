"""How fast the service is on this machine: python -m bench.service

Import of `handler.api`, start of the process to the first byte of the first answer, latency when warm, and requests
a second. Everything runs on this machine, client included, so leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "samples" / "astronaut.jpg"


def picture(pixels: int) -> bytes:
    """The sample as a square JPEG of about so many pixels."""
    side = round(pixels**0.5)
    stream = io.BytesIO()
    with Image.open(SAMPLE) as sample:
        sample.resize((side, side), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def import_seconds() -> float:
    """What `-X importtime` says of handler.api, the median of five processes, disk warm."""
    code = [sys.executable, "-X", "importtime", "-c", "import handler.api"]
    found = []
    for _ in range(6):
        lines = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
        [line] = [line for line in lines if re.search(r"\| handler\.api$", line)]
        found.append(int(line.split("|")[1]) / 1e6)
    return statistics.median(found[1:])


@contextmanager
def server() -> Iterator[tuple[str, float]]:
    """A server without a rate limit, in a directory of its own: its address, and when its process was started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PORT": str(port),
            "DATA_DIR": folder,
            "RATE_LIMIT": "none",
            "BUCKET": "",
            "INLINE_SECONDS": "3600",
        }
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "handler"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{port}", start
        finally:
            process.terminate()
            process.wait()


def first_byte(url: str, data: bytes) -> float:
    """The time at which the first byte of an answer comes, asking from when the port is open."""
    while True:
        try:
            with httpx.stream("POST", f"{url}/upscale", files={"file": ("a.jpg", data)}, timeout=120) as answer:
                answer.raise_for_status()
                next(answer.iter_raw(1))
                return time.perf_counter()
        except httpx.ConnectError:
            time.sleep(0.005)


def latency(client: httpx.Client, data: bytes, times: int) -> float:
    """Median seconds of an upscaling by two, the whole answer received."""
    taken = []
    for _ in range(times + 1):  # the first meets new tile sizes
        start = time.perf_counter()
        client.post("/upscale", files={"file": ("a.jpg", data)}).raise_for_status()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def load(client: httpx.Client, data: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """Pictures made a second, and requests sent away a second (503), by so many clients that never rest."""
    end = time.perf_counter() + seconds

    def work() -> tuple[int, int]:
        made = refused = 0
        while time.perf_counter() < end:
            status = client.post("/upscale", files={"file": ("a.jpg", data)}).status_code
            made += status == 200
            refused += status == 503
            if status == 503:
                time.sleep(0.1)
        return made, refused

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        counts = [call.result() for call in [pool.submit(work) for _ in range(clients)]]
    taken = time.perf_counter() - start
    return sum(made for made, _ in counts) / taken, sum(refused for _, refused in counts) / taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="measurements of a latency (5)")
    parser.add_argument("--seconds", type=float, default=10, help="of load for each number of clients (10)")
    arguments = parser.parse_args()

    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print(f"import handler.api: {import_seconds():.2f} s")
    firsts = []
    for _ in range(3):
        with server() as (url, start):
            firsts.append(first_byte(url, SAMPLE.read_bytes()) - start)
    print(f"process start to the first byte of the first answer, astronaut.jpg: {statistics.median(firsts):.2f} s")
    with (
        server() as (url, _),
        httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=64)) as client,
    ):
        first_byte(url, picture(10_000))
        for pixels in (100_000, 1_000_000):
            taken = latency(client, picture(pixels), arguments.times)
            print(f"warm latency, {pixels / 1e6:g} megapixels: {taken:.3f} s")
        small = picture(16_384)
        for clients in (1, 4, 16):
            made, refused = load(client, small, clients, arguments.seconds)
            print(f"{clients} clients, 128x128 px: {made:.1f} pictures/s, {refused:.1f} refused/s")


if __name__ == "__main__":
    main()
