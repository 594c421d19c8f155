"""How fast the service is on this machine: python -m bench.service

`speed`: import of `handler.api`, start of the process to the first byte of the first answer, latency when warm, and
requests a second. `mixed`: small pictures beside large ones. `slow`: clients that send half a request. `uploads`:
memory at many large uploads. `kills`: jobs through kill -9. Everything runs on this machine, client included, so leave
it alone meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
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
def server(folder: Path | None = None, **settings: str) -> Iterator[tuple[str, float, subprocess.Popen[bytes]]]:
    """A server without a rate limit, in a directory of its own: its address, when it was started, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {
            "PORT": str(port),
            "DATA_DIR": str(folder or Path(temporary) / "data"),
            "RATE_LIMIT": "none",
            "BUCKET": "",
            "INLINE_SECONDS": "3600",
            **settings,
        }
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "handler"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{port}", start, process
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


def speed(times: int, seconds: float) -> None:
    """Start, latency, and throughput."""
    print(f"import handler.api: {import_seconds():.2f} s")
    firsts = []
    for _ in range(3):
        with server() as (url, start, _):
            firsts.append(first_byte(url, SAMPLE.read_bytes()) - start)
    print(f"process start to the first byte of the first answer, astronaut.jpg: {statistics.median(firsts):.2f} s")
    with (
        server() as (url, _, _),
        httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=64)) as client,
    ):
        first_byte(url, picture(10_000))
        for pixels in (100_000, 1_000_000):
            taken = latency(client, picture(pixels), times)
            print(f"warm latency, {pixels / 1e6:g} megapixels: {taken:.3f} s")
        small = picture(16_384)
        for clients in (1, 4, 16, 64):
            made, refused = load(client, small, clients, seconds)
            print(f"{clients} clients, 128x128 px: {made:.1f} pictures/s, {refused:.1f} refused/s", flush=True)


def mixed(seconds: float) -> None:
    """How long 128x128 pictures take while others make pictures of a megapixel: 12 clients and 4."""
    small, large = picture(16_384), picture(1_000_000)
    with (
        server() as (url, _, _),
        httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=16)) as one,
    ):
        first_byte(url, small)
        end = time.perf_counter() + seconds

        def work(data: bytes) -> tuple[list[float], int]:
            taken, refused = [], 0
            while (start := time.perf_counter()) < end:
                status = one.post("/upscale", files={"file": ("a.jpg", data)}).status_code
                if status == 200:
                    taken.append(time.perf_counter() - start)
                else:
                    refused += 1
                    time.sleep(0.1)
            return taken, refused

        with ThreadPoolExecutor(16) as pool:
            calls = [pool.submit(work, small if number % 4 else large) for number in range(16)]
            found = [call.result() for call in calls]
    for name, part in (("128x128", [f for n, f in enumerate(found) if n % 4]), ("1 MP", found[::4])):
        taken = sorted(seconds for each, _ in part for seconds in each)
        refused = sum(refused for _, refused in part)
        if not taken:
            print(f"mixed, {name}: none made, {refused} refused")
            continue
        p95 = taken[min(len(taken) - 1, int(0.95 * len(taken)))]
        print(
            f"mixed, {name}: {len(taken)} made, median {statistics.median(taken):.2f} s, p95 {p95:.2f} s, "
            f"longest {taken[-1]:.2f} s, {refused} refused"
        )


def slow(count: int, seconds: float) -> None:
    """How long /health takes while so many clients hold half a request."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 1000), hard))
    with server() as (url, _, process), ExitStack() as stack:
        first_byte(url, picture(10_000))
        port = int(url.rpartition(":")[2])
        before = cpu_seconds(process.pid)
        start = time.perf_counter()
        held: list[socket.socket] = []
        worst, answered = 0.0, 0
        while time.perf_counter() - start < seconds:
            for _ in range(200):
                if len(held) < count:
                    with suppress(OSError):
                        one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                        one.sendall(b"POST /upscale HTTP/1.1\r\nHost: a\r\nX-Half: ")
                        one.setblocking(False)
                        held.append(one)
            asked = time.perf_counter()
            health(port)
            worst, answered = max(worst, time.perf_counter() - asked), answered + 1
            for one in [one for one in held if not is_open(one)]:  # those that were closed come again
                one.close()
                held.remove(one)
            time.sleep(0.2)
        used = (cpu_seconds(process.pid) - before) / (time.perf_counter() - start)
        print(
            f"{count} slow clients, {seconds:g} s: /health {answered} times, longest {worst:.2f} s, "
            f"processor {used:.0%}"
        )


def health(port: int) -> None:
    """Ask /health on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection):
        connection.request("GET", "/health")
        if (status := connection.getresponse().status) != 200:
            raise RuntimeError(f"/health answers {status}")


def is_open(one: socket.socket) -> bool:
    """Whether the server has not closed this connection."""
    try:
        one.recv(1 << 12)  # the end, or the answer before it
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def uploads(count: int, size: int) -> None:
    """The peak of memory while so many uploads of so many bytes arrive at once: the server, and all its processes."""
    body = picture(10_000) + os.urandom(size)  # decoders stop at the end of the picture
    with server() as (url, _, process):
        first_byte(url, picture(10_000))
        before = memory(process.pid)
        peaks, done = [before], threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                peaks.append(memory(process.pid))

        def send(_: int) -> int:
            return httpx.post(
                f"{url}/upscale", files={"file": ("a.jpg", body)}, timeout=300, trust_env=False
            ).status_code

        watching = threading.Thread(target=watch)
        watching.start()
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            codes = list(pool.map(send, range(count)))
        taken = time.perf_counter() - start
        done.set()
        watching.join()
        own, all_of_it = max(peak[0] for peak in peaks), max(peak[1] for peak in peaks)
        print(
            f"{count} uploads of {size / 1e6:.0f} MB in {taken:.0f} s: {codes.count(200)} made; "
            f"the server {before[0]:.0f} to {own:.0f} MB, "
            f"with the processes that it started {before[1]:.0f} to {all_of_it:.0f} MB"
        )


def memory(pid: int) -> tuple[float, float]:
    """Megabytes of a process, and of it with all that it started; what several share is counted once (PSS)."""
    found = []
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        with suppress(OSError):  # it has ended meanwhile
            kept = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
            found.append(int(kept[1]) / 1e3 if kept else 0.0)
            for thread in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return found[0], sum(found)


def kills(count: int, jobs: int) -> None:
    """How many jobs end right when the server is killed so many times."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        ids: list[str] = []
        for number in range(count + 1):
            with server(folder, WARM_MODEL="none") as (url, _, process):
                while True:
                    with suppress(httpx.HTTPError):
                        httpx.get(f"{url}/health", trust_env=False)
                        break
                    time.sleep(0.05)
                while len(ids) < jobs:
                    files = {"file": ("a.jpg", picture(300_000))}
                    answer = httpx.post(f"{url}/upscale", files=files, headers={"prefer": "respond-async"}, timeout=60)
                    ids.append(answer.json()["id"])
                if number < count:
                    time.sleep(chance.uniform(0.2, 3))
                    process.kill()
                    process.wait()
                    continue
                states: list[str] = []
                while len(states) < jobs:
                    found = [httpx.get(f"{url}/jobs/{id}", trust_env=False).json()["state"] for id in ids]
                    states = [state for state in found if state in ("succeeded", "failed", "cancelled")]
                    time.sleep(0.5)
        print(f"{count} times kill -9: {states.count('succeeded')} of {jobs} jobs succeeded")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["speed"], help="speed (the default), mixed, slow, uploads, kills")
    parser.add_argument("--times", type=int, default=5, help="measurements of a latency (5)")
    parser.add_argument("--seconds", type=float, default=10, help="of each kind of load (10)")
    arguments = parser.parse_args()

    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    for what in arguments.what:
        if what == "speed":
            speed(arguments.times, arguments.seconds)
        elif what == "mixed":
            mixed(arguments.seconds)
        elif what == "slow":
            slow(2000, arguments.seconds)
        elif what == "uploads":
            uploads(12, 190_000_000)
        elif what == "kills":
            kills(10, 8)
        else:
            parser.error(f"there is no {what}")


if __name__ == "__main__":
    main()
