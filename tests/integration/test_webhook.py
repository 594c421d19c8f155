"""Webhooks against real servers: signed, tried again until somebody answers, and never by two at the same time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from handler import jobs, upload_queue, webhook
from handler.settings import Settings
from handler.storage import LocalStorage, S3Storage, Unavailable
from handler.sweep import sweep
from handler.webhook import DeliveryOutcome, deliver, deliver_once, verify
from tests.integration.receiver import Receiver
from tests.integration.together import Together
from tests.integration.work import PATIENCE, configured

SECRET = "secret"


def call(url: str, secret: str = SECRET, **kwargs: Any) -> DeliveryOutcome:
    """Deliver without pauses, private addresses allowed unless said otherwise."""
    return deliver(
        url, {"id": "1", "name": "été"}, secret, **{"allow_private": True, "sleep": lambda _: None, **kwargs}
    )


def test_a_signed_call() -> None:
    with Receiver(200) as server:
        assert call(server.url, headers={"X-Upscale-Job": "1"}) == DeliveryOutcome(True, 200, 1)
    [(method, path, headers, body)] = server.requests
    assert (method, path) == ("POST", "/hook?a=b")
    assert json.loads(body) == {"id": "1", "name": "été"}
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["X-Upscale-Job"] == "1"
    timestamp, signature = headers["X-Upscale-Timestamp"], headers["X-Upscale-Signature"]
    now = time.time()
    assert verify(SECRET, timestamp, body, signature, now=now)
    assert not verify("other", timestamp, body, signature, now=now)
    assert not verify(SECRET, timestamp, body + b" ", signature, now=now)
    assert not verify(SECRET, str(int(timestamp) + 1), body, signature, now=now)
    assert not verify(SECRET, timestamp, body, signature, now=now + 400)
    assert not verify(SECRET, timestamp, body, signature, now=now - 400)
    assert not verify(SECRET, "1e9", body, signature, now=now)
    assert not verify(SECRET, timestamp, body, "été", now=now)


def test_the_signature_is_the_documented_one() -> None:
    # printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret
    expected = "sha256=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686"
    assert webhook.sign(SECRET, 1_700_000_000, b'{"a":1}') == expected


def test_without_a_secret_there_is_no_signature() -> None:
    with Receiver() as server:
        assert call(server.url, secret="").delivered
    assert "X-Upscale-Signature" not in server.requests[0][2]


def test_odd_paths_are_quoted() -> None:
    with Receiver() as server:
        assert call(f"http://127.0.0.1:{server.port}/été/%41;x?q=é&b=%20").delivered
    assert server.requests[0][1] == "/%C3%A9t%C3%A9/%41;x?q=%C3%A9&b=%20"


def test_the_environments_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Receiver() as server:
        assert call(server.url).delivered


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


@pytest.mark.parametrize("answer", [500, 502, 503, 408, 425, 429, hang_up])
def test_passing_trouble_is_tried_again(answer: Any) -> None:
    pauses: list[float] = []
    with Receiver(answer, answer, 200) as server:
        assert call(server.url, sleep=pauses.append) == DeliveryOutcome(True, 200, 3)
    assert pauses == [1, 4]
    assert len(server.requests) == 3


def test_not_for_ever() -> None:
    pauses: list[float] = []
    with Receiver(503) as server:
        outcome = call(server.url, sleep=pauses.append)
    assert outcome == DeliveryOutcome(False, 503, 4, "the answer was 503", again=True)
    assert pauses == [1, 4, 16]
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [303, 304, 400, 401, 404, 410])
def test_a_clear_no_is_believed(status: int) -> None:
    with Receiver((status, {"Location": "/elsewhere"})) as server:
        assert call(server.url) == DeliveryOutcome(False, status, 1, f"the answer was {status}")
    assert len(server.requests) == 1


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but nobody listens
        outcome = call(f"http://127.0.0.1:{unused.getsockname()[1]}/", attempts=2)
    assert outcome == DeliveryOutcome(False, None, 2, "no answer: ConnectionRefusedError", again=True)


def test_no_such_name() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror("unknown")

    assert call("http://nowhere.example/", resolve=unknown, attempts=2) == DeliveryOutcome(
        False, None, 2, "no answer: gaierror", again=True
    )


def ended_job(store: LocalStorage, url: str | None) -> str:
    request = jobs.Request(filename="a.jpg", content_type="image/jpeg", bytes=1, webhook=url)
    job = jobs.create(store, request, ttl=timedelta(days=1))
    jobs.cancel(store, job.id)
    return job.id


def state(store: LocalStorage, id: str) -> str:
    hook = jobs.get(store, id).webhook
    assert hook is not None
    return hook.state.value


def test_once(store: LocalStorage) -> None:
    with Receiver(200) as server:
        id = ended_job(store, server.url)
        before = jobs.get(store, id)
        assert deliver_once(store, id, SECRET, allow_private=True) == DeliveryOutcome(True, 200, 1)
        assert deliver_once(store, id, SECRET, allow_private=True) is None
    [(_, _, headers, body)] = server.requests
    assert headers["X-Upscale-Job"] == id
    sent = json.loads(body)
    assert (sent["id"], sent["state"]) == (id, "cancelled")
    assert not {"lease", "request_hash", "revision"} & sent.keys()
    after = jobs.get(store, id)
    assert after.webhook is not None
    assert (after.webhook.state, after.webhook.attempts, after.webhook.status) == ("delivered", 1, 200)
    assert after.webhook.at is not None
    assert after.state is before.state


def test_nothing_to_send(store: LocalStorage) -> None:
    def never(*_: object, **__: object) -> DeliveryOutcome:
        raise AssertionError("called")

    assert deliver_once(store, ended_job(store, None), SECRET, deliver=never) is None
    assert deliver_once(store, jobs.new_id(), SECRET, deliver=never) is None
    request = jobs.Request(filename="a.jpg", content_type="image/jpeg", bytes=1, webhook="http://1.1.1.1/")
    assert deliver_once(store, jobs.create(store, request, ttl=timedelta(days=1)).id, SECRET, deliver=never) is None


def test_a_failed_delivery_is_noted_and_not_repeated(store: LocalStorage) -> None:
    id = ended_job(store, "http://127.0.0.1/")
    outcome = deliver_once(store, id, SECRET)
    assert outcome == DeliveryOutcome(False, None, 1, "the URL leads to a private address")
    hook = jobs.get(store, id).webhook
    assert hook is not None
    assert (hook.state, hook.error) == ("failed", outcome.error)
    assert jobs.get(store, id).state is jobs.State.CANCELLED
    assert deliver_once(store, id, SECRET) is None


def later(**elapsed: float) -> Callable[[], datetime]:
    return lambda: jobs.utc_now() + timedelta(**elapsed)


def test_a_process_that_dies_while_sending_is_given_up_after_a_while(store: LocalStorage) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> DeliveryOutcome:
        raise Killed

    with Receiver() as server:
        id = ended_job(store, server.url)
        with pytest.raises(Killed):
            deliver_once(store, id, SECRET, deliver=die)
        assert state(store, id) == "sending"
        assert deliver_once(store, id, SECRET, deliver=die) is None
        assert deliver_once(store, id, SECRET, allow_private=True, clock=later(minutes=6)) is not None
    assert state(store, id) == "delivered"
    assert [headers["webhook-id"] for _, _, headers, _ in server.requests] == [f"msg_{id}"]


def test_it_is_repeated_until_somebody_answers(store: LocalStorage) -> None:
    once = partial(deliver, attempts=1)
    with Receiver(503, 503, 204) as server:
        id = ended_job(store, server.url)
        tries = []
        for minutes in (0, 0.5, 1.5, 2, 4, 4.5, 9):
            found = deliver_once(store, id, SECRET, allow_private=True, deliver=once, clock=later(minutes=minutes))
            tries.append(found and found.delivered)
    assert tries == [False, None, False, None, True, None, None]
    sent = {(headers["webhook-id"], body) for _, _, headers, body in server.requests}
    assert {id for id, _ in sent} == {f"msg_{id}"}, "receivers know the event by its id"
    hook = jobs.get(store, id).webhook
    assert hook is not None
    assert (hook.state, hook.attempts, hook.next) == ("delivered", 3, None)


def test_repeats_end(store: LocalStorage) -> None:
    once = partial(deliver, attempts=1)
    with Receiver(503) as server:
        id = ended_job(store, server.url)
        hours = 0.0
        while state(store, id) != "failed":
            deliver_once(store, id, SECRET, allow_private=True, deliver=once, clock=later(hours=hours))
            hours += 0.25  # as the sweep of AWS looks
            assert hours < 80
    assert 5 < len(server.requests) < 15
    with Receiver(410) as server:
        id = ended_job(store, server.url)
        deliver_once(store, id, SECRET, allow_private=True)
    assert state(store, id) == "failed"


def test_the_sweep_keeps_it_in_mind(store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in AWS, where nobody else comes back to it; but without a queue of uploads."""
    monkeypatch.setattr(upload_queue, "waiting", lambda _: 0)
    settings = settings.model_copy(update={"webhook_allow_private": True})

    def sweep_after(id: str, minutes: float, next: datetime | None) -> int:
        def put_off(job: jobs.Job) -> jobs.Job:
            assert job.webhook
            return job.model_copy(update={"webhook": job.webhook.model_copy(update={"next": next})})

        if next:
            jobs.change(store, id, put_off)
        found = sweep(store, settings, lambda _: ("", ""), clock=later(minutes=minutes))
        webhook.wait()
        return found["reported"]

    with Receiver() as server:
        id = ended_job(store, server.url)
        assert sweep_after(id, 10, later(hours=1)()) == 0
        assert sweep_after(id, 30, None) == 0
        assert sweep_after(id, 70, later(seconds=-1)()) == 1
        assert sweep_after(id, 90, None) == 0
    assert len(server.requests) == 1
    assert state(store, id) == "delivered"
    assert "open" in (kept := json.loads(store.get("sweep/last.json")[0]))
    assert kept["open"] == {}, "and then it is forgotten"


def test_the_link_of_a_result(store: LocalStorage, tmp_path: Path) -> None:
    job = jobs.get(store, ended_job(store, None))
    output = jobs.StoredFile(key=f"results/{job.id}/1/a.png", name="a.png", content_type="image/png")
    job = job.model_copy(update={"state": jobs.State.SUCCEEDED, "output": output})
    links = {
        "": "http://127.0.0.1:8000/",
        "https://example.org/upscaler": "https://example.org/upscaler/",
    }
    for public, base in links.items():
        sent = webhook.event(store, configured(tmp_path, public_url=public), job)
        assert str(sent["result_url"]).startswith(f"{base}storage/")
        assert sent["type"] == "job.succeeded"
    assert webhook.event(store, configured(tmp_path, host="0.0.0.0"), job)["result_url"] is None
    s3 = S3Storage("bucket", endpoint_url="http://127.0.0.1:9")
    assert "X-Amz-Signature" in str(webhook.event(s3, configured(tmp_path, bucket="bucket"), job)["result_url"])


def once_each(number: int, store: LocalStorage, ids: list[str]) -> int:
    return sum(deliver_once(store, id, SECRET, allow_private=True) is not None for id in ids)


def test_four_processes_send_once(store: LocalStorage, four: Together) -> None:
    with Receiver() as server:
        ids = [ended_job(store, server.url) for _ in range(5)]
        sent = four(once_each, store, ids)
    assert sum(sent) == 5
    assert sorted(headers["X-Upscale-Job"] for _, _, headers, _ in server.requests) == sorted(ids)
    assert {state(store, id) for id in ids} == {"delivered"}


def test_a_store_that_fails_afterwards(store: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    id = ended_job(store, "http://1.1.1.1/")

    def sent(*_: object, **__: object) -> DeliveryOutcome:
        def down(*_: object) -> str:
            raise Unavailable("down")

        monkeypatch.setattr(store, "swap", down)
        return DeliveryOutcome(True, 200, 1)

    outcome = deliver_once(store, id, SECRET, deliver=sent)
    assert outcome is not None
    assert outcome.delivered


def test_nothing_waits_for_a_target_that_hangs(store: LocalStorage, patience: threading.Event) -> None:
    reached = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        reached.set()
        patience.wait(PATIENCE)
        handler.send_response(204)
        handler.end_headers()

    with Receiver(hang) as server:
        id = ended_job(store, server.url)
        thread = webhook.in_background(store, id, lambda: SECRET, allow_private=True)
        assert reached.wait(PATIENCE)
        assert thread.is_alive()
        assert thread.daemon
        assert state(store, id) == "sending"
        assert jobs.get(store, id).state is jobs.State.CANCELLED
        patience.set()
        thread.join(PATIENCE)
    assert state(store, id) == "delivered"
