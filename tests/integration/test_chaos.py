"""Workers that are killed, events that come twenty times, stores and webhooks that do not answer."""

from __future__ import annotations

import http.client
import itertools
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote_plus

import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

import core
from handler import jobs, s3_event, webhook, worker
from handler.attempt import with_retries
from handler.jobs import Backend, Job, State, WebhookState
from handler.settings import Settings
from handler.storage import LocalStorage, S3Storage, Unavailable
from handler.storage import local as store_module
from tests.integration.together import quick_processes
from tests.integration.work import (
    AT_ONCE,
    PATIENCE,
    Context,
    configured,
    event,
    left_behind,
    one_tile_only,
    picture,
    queued,
    result,
    results,
    wait_for,
)

pytestmark = pytest.mark.slow

KILLS = 10
#: Several tiles, so that there is something to interrupt.
SLOW = {"tile_size": 48}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return quick_processes()


def uploads_of(keys: list[str]) -> dict[str, Any]:
    """One event that tells of these uploads."""
    [record] = event("s3_put.json")["Records"]
    records = []
    for key in keys:
        # Which version of a file it was plays no part here.
        item = {**record["s3"]["object"], "key": quote_plus(key, safe="/"), "eTag": ""}
        records.append({**record, "s3": {**record["s3"], "object": item}})
    return {"Records": records}


def prepare(folder: Path, settings: Settings) -> LocalStorage:
    """What a worker process does first."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    tempfile.tempdir = str(folder / "scratch")
    storage = LocalStorage(settings.data_dir)
    setattr(s3_event, "open_from_environment", lambda: (settings, storage))  # noqa: B010 - mypy refuses the other way
    return storage


def deliver(folder: Path, settings: Settings, sent: dict[str, Any], held: bool = False, until: float = 0.0) -> None:
    """A process that is Lambda for one event.

    Args:
        folder: for its temporary files and its log, and for what it notes: the seconds of a processor that it took.
        settings: of the service.
        sent: the event.
        held: whether it gets no further than one tile.
        until: seconds of a processor after which the process is killed by the system; 0 for never. A machine's other
            work changes them little.
    """
    prepare(folder, settings)
    if held:
        one_tile_only()
    begun = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, until)
    s3_event.handler(sent, cast(LambdaContext, Context()))
    (folder / "seconds").write_text(str(time.process_time() - begun))


def start(
    context: ForkServerContext, folder: Path, settings: Settings, sent: dict[str, Any], **how: Any
) -> ForkServerProcess:
    """Deliver an event to a new process."""
    (folder / "scratch").mkdir(exist_ok=True)
    process = context.Process(target=deliver, args=(folder, settings, sent), kwargs=how)
    process.start()
    return process


def nothing_temporary(folder: Path, storage: LocalStorage) -> bool:
    """Whether neither working folders nor half-written objects are left, once the store has been swept."""
    storage.sweep(jobs.utc_now() - timedelta(days=7))
    return not left_behind(folder / "scratch") and not list((storage.root / ".tmp").iterdir())


def test_killed_at_ten_moments_every_job_succeeds_once_with_the_same_result(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    settings = configured(tmp_path, lease_seconds=1, **SLOW)
    storage = LocalStorage(settings.data_dir)
    keys = [f"uploads/undisturbed/{i}.png" for i in range(2)] + [f"uploads/killed/{i}.png" for i in range(KILLS)]
    for key in keys:
        storage.put(key, picture(120, 100), "image/png")

    def by_key() -> dict[str, Job]:
        return {job.input.key: job for job in jobs.every(storage)}

    for key in keys[:2]:  # the first also warms the disk's cache
        start(processes, tmp_path, settings, uploads_of([key])).join()
    whole = float((tmp_path / "seconds").read_text())
    expected = result(storage, by_key()[keys[1]])

    states = []
    for number, key in enumerate(keys[2:]):
        until = whole * (number + random.uniform(0.1, 1)) / KILLS
        start(processes, tmp_path, settings, uploads_of([key]), until=until).join()
        job = by_key().get(key)
        states.append(job.state if job else None)
    assert State.RUNNING in states, f"no kill met a worker at work: {states}"

    start(processes, tmp_path, settings, uploads_of(keys[2:])).join()
    after = by_key()
    for key in keys[2:]:
        job = after[key]
        assert (job.state, job.error) == (State.SUCCEEDED, None), (states, (tmp_path / "log").read_text()[-3000:])
        assert result(storage, job) == expected
        assert job.output
        assert results(storage, job) == [job.output.key]
        assert job.attempt == 1 + job.lost <= 2
    assert len(after) == len(keys)
    assert nothing_temporary(tmp_path, storage)


def deliver_and_die(folder: Path, settings: Settings, sent: dict[str, Any], point: int) -> None:
    """A process that kills itself when it touches the store for the given time, if it ever does."""
    prepare(folder, settings)
    touched = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal touched
            touched += 1
            if touched == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    # Each call, and in each write the moment at which all is written, but not under its name yet.
    for name in ("get", "read_range", "download", "upload", "create", "swap", "delete", "head", "list"):
        setattr(LocalStorage, name, counted(getattr(LocalStorage, name)))
    for name in ("move_synced",):  # as the store sees it
        setattr(store_module, name, counted(getattr(store_module, name)))
    s3_event.handler(sent, cast(LambdaContext, Context()))


def test_killed_at_every_touch_of_the_store_the_job_succeeds_once_all_the_same(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    settings = configured(tmp_path, lease_seconds=2)
    storage = LocalStorage(settings.data_dir)
    (tmp_path / "scratch").mkdir()
    data = picture()

    def died_at(point: int) -> bool:
        key = f"uploads/{point}.png"
        storage.put(key, data, "image/png")
        process = processes.Process(target=deliver_and_die, args=(tmp_path, settings, uploads_of([key]), point))
        process.start()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), (tmp_path / "log").read_text()[-3000:]
        return process.exitcode != 0

    # How often a run touches the store goes by its time, too: until one has ended before the touch to die at.
    points = list(itertools.takewhile(died_at, itertools.count(1)))
    assert len(points) > 10
    again = uploads_of([f"uploads/{point}.png" for point in points])
    start(processes, tmp_path, settings, again).join()
    done = {job.input.key: job for job in jobs.every(storage)}
    assert len(done) == 1 + len(points)
    expected = core.upscale(data).data
    for job in done.values():
        assert (job.state, job.error) == (State.SUCCEEDED, None)
        assert job.output
        assert results(storage, job) == [job.output.key], job.input.key
        assert result(storage, job) == expected
    assert nothing_temporary(tmp_path, storage)


def five(folder: Path, settings: Settings, sent: dict[str, Any], together: Any) -> None:
    """A process that gets the same event five times at once; it writes a line for each piece of work."""
    storage = prepare(folder, settings)
    upscale = core.upscale

    def counted(*arguments: Any, **named: Any) -> core.Result:
        with (folder / "work").open("a") as file:
            file.write("one\n")
        return upscale(*arguments, **named)

    core.upscale = counted
    [upload] = s3_event.uploads(sent)
    assert isinstance(upload, s3_event.Upload)

    def once(_: int) -> None:
        together.wait(PATIENCE)
        s3_event.process_upload(storage, settings, upload, cast(LambdaContext, Context()))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(once, range(5)))


def test_twenty_identical_events_are_one_piece_of_work(processes: ForkServerContext, tmp_path: Path) -> None:
    settings = configured(tmp_path, lease_seconds=30)
    storage = LocalStorage(settings.data_dir)
    (tmp_path / "scratch").mkdir()
    storage.put("uploads/a.png", data := picture(), "image/png")
    barrier = processes.Barrier(20)
    workers = [
        processes.Process(target=five, args=(tmp_path, settings, uploads_of(["uploads/a.png"]), barrier))
        for _ in range(4)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0] * 4, (tmp_path / "log").read_text()
    [job] = jobs.every(storage)
    assert (job.state, job.attempt, job.lost) == (State.SUCCEEDED, 1, 0)
    assert (tmp_path / "work").read_text() == "one\n"
    assert len(results(storage, job)) == 1
    assert result(storage, job) == core.upscale(data).data
    assert nothing_temporary(tmp_path, storage)


def test_a_job_cancelled_from_outside_stops(processes: ForkServerContext, tmp_path: Path) -> None:
    settings = configured(tmp_path, lease_seconds=30, **SLOW)
    storage = LocalStorage(settings.data_dir)
    job = queued(storage, picture(120, 100))
    process = start(processes, tmp_path, settings, uploads_of([job.input.key]), held=True)
    wait_for(lambda: jobs.get(storage, job.id).progress.done or not process.is_alive(), "the first tile")
    jobs.cancel(storage, job.id)
    process.join()
    now = jobs.get(storage, job.id)
    assert (now.state, now.output) == (State.CANCELLED, None)
    assert 0 < now.progress.done < now.progress.total
    assert not results(storage, job)
    assert nothing_temporary(tmp_path, storage)


class Proxy:
    """A server before an S3 server, that fails as it is told to.

    Attributes:
        url: its address.
        rule: given method and path, "503" or "hang" for a request that fails, else None.
        failed: how many did.
    """

    def __init__(self, endpoint: str) -> None:
        self.rule: Callable[[str, str], str | None] = lambda _method, _path: None
        self.failed = 0
        self.release = threading.Event()
        target = endpoint.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.rule(self.command, self.path)
                if fault:
                    proxy.failed += 1
                    self.close_connection = True
                    if fault == "hang":
                        proxy.release.wait(PATIENCE)
                        return
                    self.send_response(503, "Slow Down")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(target, timeout=PATIENCE)
                try:
                    # The host stays as the client wrote it, because the signature covers it.
                    headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    data = answer.read()
                finally:
                    connection.close()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815 - the names of the protocol

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(ConnectionError):  # a client that stopped waiting
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def proxy(seaweedfs_bucket: tuple[str, str]) -> Iterator[Proxy]:
    proxy = Proxy(seaweedfs_bucket[0])
    thread = threading.Thread(target=proxy.server.serve_forever)
    thread.start()
    yield proxy
    proxy.release.set()
    proxy.server.shutdown()
    thread.join()
    proxy.server.server_close()


@pytest.fixture
def store(proxy: Proxy, seaweedfs_bucket: tuple[str, str]) -> S3Storage:
    """The bucket behind the proxy, from a client that asks once and is patient."""
    return S3Storage(seaweedfs_bucket[1], endpoint_url=proxy.url, attempts=1, timeout=PATIENCE)


def run(storage: S3Storage | LocalStorage, settings: Settings, job: Job, **named: Any) -> Job | None:
    named = {"retry_delays": AT_ONCE, "backend": Backend.LAMBDA, **named}
    return worker.run_job(storage, settings, job.id, worker="test", **named)


def test_a_store_that_answers_503_now_and_then_delays_the_job(proxy: Proxy, store: S3Storage, tmp_path: Path) -> None:
    job = queued(store, picture())
    seen: set[tuple[str, str]] = set()

    def the_first_time(method: str, path: str) -> str | None:
        if (method, path) in seen:
            return None
        seen.add((method, path))
        return "503"

    proxy.rule = the_first_time
    done = run(store, configured(tmp_path), job)
    assert done
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert proxy.failed >= 5  # the document and the upload read, the document and the result written, the header
    proxy.rule = lambda _method, _path: None
    assert results(store, done) == [done.output and done.output.key]


@pytest.mark.parametrize("fault", ["503", "hang"])
@pytest.mark.parametrize("where", ["/uploads/", "/results/"])
def test_a_store_that_fails_for_long_ends_in_a_clear_state(
    proxy: Proxy, store: S3Storage, tmp_path: Path, fault: str, where: str
) -> None:
    job = queued(store, picture())
    proxy.rule = lambda _, path: fault if where in path else None
    # Only where nothing is answered it has to be one that gives up.
    asks = S3Storage(store.bucket, endpoint_url=proxy.url, attempts=1, timeout=2.0) if fault == "hang" else store
    done = run(asks, configured(tmp_path), job, retry_delays=AT_ONCE[:1])
    assert done
    assert (done.state, done.output) == (State.FAILED, None)
    assert done.error
    assert done.error.code == "storage_unavailable"
    assert proxy.failed >= 2
    assert run(store, configured(tmp_path), job) is None


def test_a_store_that_is_gone_for_a_while_costs_a_try(proxy: Proxy, store: S3Storage, tmp_path: Path) -> None:
    job = queued(store, picture())
    settings = configured(tmp_path, lease_seconds=1)

    def breaks() -> bool:
        proxy.rule = lambda _method, _path: "503"
        return False

    with pytest.raises(Unavailable):
        run(store, settings, job, stop=breaks)
    proxy.rule = lambda _method, _path: None
    # A connection may have been kept that is closed at the other end by now.
    assert with_retries(lambda: jobs.get(store, job.id), AT_ONCE).state is State.RUNNING
    assert worker.wait_until_claimable(store, job.id)
    done = run(store, settings, job)
    assert done
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)


@contextmanager
def silence() -> Iterator[tuple[str, threading.Event]]:
    """A web server that takes connections and says nothing until the event is set; then it says 200."""
    speak = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                speak.wait(PATIENCE)
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook", speak
        finally:
            speak.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_nothing_waits_for_a_webhook_that_hangs(tmp_path: Path) -> None:
    settings = configured(tmp_path, webhook_allow_private=True)
    storage = LocalStorage(settings.data_dir)
    calls: list[threading.Thread] = []

    def notify(storage: Any, settings: Settings, job: Job) -> None:
        call = webhook.notify(storage, settings, job)
        assert call
        calls.append(call)

    with silence() as (url, speak):
        done = run(storage, settings, queued(storage, picture(), webhook=url), notify=notify)
        assert done
        assert done.state is State.SUCCEEDED
        assert calls[0].is_alive()
        speak.set()
        calls[0].join()
    told = jobs.get(storage, done.id)
    assert told.webhook
    assert told.webhook.state is WebhookState.DELIVERED
    assert result(storage, told)


def test_the_records_of_an_event_do_not_wait_for_each_others_webhooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(tmp_path, webhook_allow_private=True)
    storage = LocalStorage(settings.data_dir)
    monkeypatch.setattr(s3_event, "open_from_environment", lambda: (settings, storage))
    with silence() as (url, speak):
        waiting = [queued(storage, picture(), webhook=url) for _ in range(2)]
        sent = uploads_of([job.input.key for job in waiting])
        call = threading.Thread(target=s3_event.handler, args=(sent, Context()))
        call.start()
        wait_for(
            lambda: all(jobs.get(storage, job.id).state is State.SUCCEEDED for job in waiting), "the end of both jobs"
        )
        assert call.is_alive()  # its threads would stop with it
        speak.set()
        call.join()
        told = [jobs.get(storage, job.id).webhook for job in waiting]
    assert [webhook.state for webhook in told if webhook] == [WebhookState.DELIVERED] * 2
