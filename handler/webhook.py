"""Report to a URL that a job has reached its final state; never delay or fail the job for it.

A delivery is a few calls within half a minute. Where none is answered, another follows after a minute, and then always
after as long again as the job has ended, for `REPEATED`: the sweep makes them, or in local mode the janitor. The same
event may arrive twice (the answer was lost, or the sender died): its webhook-id is the same then.

A call is a POST of JSON with three headers of ours:

    X-Upscale-Job: <job id>
    X-Upscale-Timestamp: <seconds since 1970>
    X-Upscale-Signature: sha256=<hex of HMAC-SHA256(secret, timestamp + "." + body)>

and the three of Standard Webhooks, for which there are ready verifiers in many languages:

    webhook-id: msg_<job id>
    webhook-timestamp: <seconds since 1970>
    webhook-signature: v1,<base64 of HMAC-SHA256(key, id + "." + timestamp + "." + body)>

The receiver computes the signature over the bytes that it got (see `verify`), compares in constant time and refuses
timestamps that are minutes old. Any 2xx answer is a delivery.

The address is the client's choice: see `safe_http` for what is not called.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from urllib.parse import urljoin, urlsplit

from pydantic import JsonValue

from handler.jobs import Clock, Job, WebhookState, change, utc_now, webhook_due
from handler.safe_http import Refused, Resolver, post, resolve
from handler.settings import Settings
from handler.storage import NotFound, Storage, StorageError

log = logging.getLogger(__name__)
#: HTTP statuses after which trying again may help, besides 5xx.
PASSING = frozenset({408, 425, 429})
#: How often a delivery is tried.
ATTEMPTS = 4
#: Seconds that a process waits for its deliveries before it ends or is frozen: a little more than one can take.
WAIT_SECONDS = 45.0
#: How long deliveries are repeated that nobody answers, and how long after the first one the second follows.
REPEATED, FIRST_GAP = timedelta(days=3), timedelta(minutes=1)
#: Deliveries that a look for those that are due has under way at the same time.
AT_ONCE = 16
#: How the names of delivering threads begin.
_THREAD = "webhook-"


@dataclass(frozen=True)
class DeliveryOutcome:
    """How a delivery ended.

    Attributes:
        delivered: whether a 2xx answer came.
        status: of the last answer, None without one.
        attempts: how often it was tried; a redirect does not count.
        error: one line, empty when delivered.
        again: whether trying later may help.
    """

    delivered: bool
    status: int | None
    attempts: int
    error: str = ""
    again: bool = False


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of X-Upscale-Signature."""
    return "sha256=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def sign_standard(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The value of webhook-signature, as https://www.standardwebhooks.com has it.

    Args:
        secret: `whsec_` and base64 of the key, as their libraries want it; any other text is the key itself.
        id: webhook-id.
        timestamp: webhook-timestamp, seconds since 1970.
        body: as sent.
    """
    key = secret.encode()
    if secret.startswith("whsec_"):
        with suppress(ValueError):
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    signed = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


def verify(secret: str, timestamp: str, body: bytes, signature: str, *, now: float, tolerance: float = 300) -> bool:
    """What a receiver does: whether the signature is right and the timestamp is at most `tolerance` seconds off.

    Args:
        secret: shared with the service.
        timestamp: X-Upscale-Timestamp.
        body: as received.
        signature: X-Upscale-Signature.
        now: seconds since 1970.
        tolerance: seconds.
    """
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp)) > tolerance:
        return False
    return hmac.compare_digest(sign(secret, int(timestamp), body).encode(), signature.encode())


def deliver(
    url: str,
    payload: Mapping[str, JsonValue],
    secret: str,
    *,
    allow_private: bool = False,
    headers: Mapping[str, str] | None = None,
    attempts: int = ATTEMPTS,
    timeout: float = 5.0,
    backoff: float = 1.0,
    resolve: Resolver = resolve,
    sleep: Callable[[float], None] = time.sleep,
) -> DeliveryOutcome:
    """POST the payload; try again on 408, 425, 429, 5xx and network errors. Never raises for what the other side does.

    Args:
        url: http or https.
        payload: sent as JSON.
        secret: key of the signature; empty: no signature header.
        allow_private: do not check addresses (tests, home networks).
        headers: sent too.
        attempts: how often at most.
        timeout: seconds for one attempt with its redirects, to connect and until the answer is read.
        backoff: seconds before the second attempt, then four times as long each time.
        resolve: names to addresses.
        sleep: waits.
    """
    body = json.dumps(payload, separators=(",", ":")).encode()
    status: int | None = None
    error = ""
    for attempt in range(1, attempts + 1):
        if attempt > 1:
            sleep(backoff * 4 ** (attempt - 2))
        timestamp = int(time.time())
        sent = {"Content-Type": "application/json", "User-Agent": "serverless-upscaler", **(headers or {})}
        sent["X-Upscale-Timestamp"] = str(timestamp)
        sent["webhook-timestamp"] = str(timestamp)
        if secret:
            sent["X-Upscale-Signature"] = sign(secret, timestamp, body)
            if "webhook-id" in sent:
                sent["webhook-signature"] = sign_standard(secret, sent["webhook-id"], timestamp, body)
        try:
            status = post(url, body, sent, time.monotonic() + timeout, resolve, allow_private)
        except Refused as refused:
            return DeliveryOutcome(False, None, attempt, str(refused))
        except (OSError, http.client.HTTPException) as failure:
            status, error = None, f"no answer: {type(failure).__name__}"
            continue
        if 200 <= status < 300:
            return DeliveryOutcome(True, status, attempt)
        error = f"the answer was {status}"
        if status < 500 and status not in PASSING:
            return DeliveryOutcome(False, status, attempt, error)
    return DeliveryOutcome(False, status, attempts, error, again=True)


def event(storage: Storage, settings: Settings, job: Job) -> Mapping[str, JsonValue]:
    """What is sent of a job: the job, the kind of event, and a link to the result.

    The link needs an address of the service: PUBLIC_URL, or in local mode that of this machine.
    """
    link = None
    if job.output is not None:
        link = storage.download_link(job.output.key, job.output.name, settings.link_seconds)
        if not urlsplit(link).netloc:  # of this service itself
            base = settings.public_url or _own_address(settings)
            link = urljoin(base.rstrip("/") + "/", link.removeprefix("/")) if base else None
    return {**job.public(), "type": f"job.{job.state}", "result_url": link}


def _own_address(settings: Settings) -> str:
    """Of local mode for receivers on the same machine; empty where no address leads here for certain."""
    if settings.host in ("0.0.0.0", "::", "") or not settings.port:  # noqa: S104 - compared, not bound
        return ""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}{settings.root_path}"


def deliver_once(
    storage: Storage,
    id: str,
    secret: str,
    *,
    payload: Callable[[Job], Mapping[str, JsonValue]] = Job.public,
    allow_private: bool = False,
    clock: Clock = utc_now,
    deliver: Callable[..., DeliveryOutcome] = deliver,
) -> DeliveryOutcome | None:
    """Deliver a final job's webhook if it is due; safe to call from anywhere, any number of times.

    The beginning is marked on the job by compare-and-swap, then the call is made, then its outcome is written: two
    processes never send at the same time. One that dies in between leaves "sending", and is given up after some
    minutes: then the event is sent again.

    Args:
        storage: where the job is.
        id: of the job.
        secret: key of the signature.
        payload: what to send of the job.
        allow_private: as in `deliver`.
        clock: gives the time.
        deliver: makes the call; `functools.partial(deliver, attempts=1)` for a caller in a hurry.

    Returns:
        How it ended; None where there is nothing to do: no webhook, not final, begun already, not yet time, or no such
        job.

    Raises:
        InvalidId, storage.Unavailable.
    """

    def begin(job: Job) -> Job:
        if not webhook_due(job, clock()):
            raise _NothingToSend
        return _with_webhook(job, state=WebhookState.SENDING, at=clock(), next=None)

    try:
        job = change(storage, id, begin, clock=clock)
    except (_NothingToSend, NotFound):
        return None
    if job.webhook is None:  # for the type checker: begin() has seen it
        return None
    names = {"X-Upscale-Job": id, "webhook-id": f"msg_{id}"}
    outcome = deliver(job.webhook.url, payload(job), secret, allow_private=allow_private, headers=names)
    now = clock()
    ended = job.finished or now
    again = outcome.again and now < min(ended + REPEATED, job.expires)
    state = WebhookState.DELIVERED
    if not outcome.delivered:
        state = WebhookState.WAITING if again else WebhookState.FAILED
        log.warning("webhook of job %s not delivered%s: %s", id, " yet" if again else "", outcome.error)
    news = {
        "state": state,
        "attempts": job.webhook.attempts + outcome.attempts,
        "status": outcome.status,
        "error": outcome.error,
        "at": now,
        "next": now + max(FIRST_GAP, now - ended) if again else None,
    }
    try:
        change(storage, id, lambda job: _with_webhook(job, **news), clock=clock)
    except StorageError:  # the call was made; what is lost is only the note of it
        log.warning("outcome of the webhook of job %s not written", id, exc_info=True)
    return outcome


def signing_key(settings: Settings) -> str:
    """The key of the signature: in AWS the value of a secret, asked for anew after five minutes; empty for none.

    Raises:
        aws_lambda_powertools.utilities.parameters.GetParameterError: it cannot be read.
    """
    if not settings.webhook_secret_arn:
        return settings.webhook_secret.get_secret_value()
    from aws_lambda_powertools.utilities import parameters  # boto3 comes with it

    return str(parameters.get_secret(settings.webhook_secret_arn, max_age=300))


def in_background(
    storage: Storage,
    id: str,
    secret: Callable[[], str],
    *,
    payload: Callable[[Job], Mapping[str, JsonValue]] = Job.public,
    allow_private: bool = False,
    attempts: int = ATTEMPTS,
) -> threading.Thread:
    """`deliver_once` in a daemon thread, which is given back; what goes wrong in it is logged.

    The key is asked for in the thread: it may come over the network. Where it cannot be had, the webhook stays
    waiting, and the next sweep sends it.

    Whoever starts it in a process that ends, or that Lambda freezes, calls `wait`.
    """

    def run() -> None:
        try:
            deliver_once(
                storage,
                id,
                secret(),
                payload=payload,
                allow_private=allow_private,
                deliver=partial(deliver, attempts=attempts),
            )
        except Exception:
            log.exception("webhook of job %s", id)

    thread = threading.Thread(target=run, name=_THREAD + id, daemon=True)
    thread.start()
    return thread


def notify(storage: Storage, settings: Settings, job: Job, *, attempts: int = ATTEMPTS) -> threading.Thread | None:
    """Start the delivery of a final job's webhook in the background.

    Args:
        storage: where the job is.
        settings: with the key of the signature.
        job: in whatever state.
        attempts: as in `deliver`.

    Returns:
        The thread; None where there is nothing to deliver.
    """
    if not webhook_due(job, utc_now()):
        return None
    return in_background(
        storage,
        job.id,
        partial(signing_key, settings),
        payload=partial(event, storage, settings),
        allow_private=settings.webhook_allow_private,
        attempts=attempts,
    )


def under_way() -> int:
    """How many deliveries this process is at."""
    return sum(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def wait(seconds: float = WAIT_SECONDS) -> None:
    """Wait for the deliveries of this process: a thread does not outlive it, and stands still while Lambda freezes it.

    Args:
        seconds: for all of them together.
    """
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(_THREAD):
            thread.join(max(0.0, end - time.monotonic()))


class _NothingToSend(Exception):
    """Ends a change that would change nothing."""


def _with_webhook(job: Job, **news: object) -> Job:
    webhook = job.webhook.model_copy(update=news) if job.webhook else None
    return job.model_copy(update={"webhook": webhook})
