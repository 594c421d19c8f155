"""Lambda: S3 reports uploads, and each becomes a job that is worked on here, or sent to Batch.

Four ways of delivery are understood: S3 directly, through EventBridge, through SNS, and any of these through SQS (there
with partial batch responses, `ReportBatchItemFailures`). The queue also brings jobs that are to be done again, as
`{"job": "<id>"}`: see `upload_queue`.

Events come at least once, in any order, and a failed invocation repeats all of its records. So each record stands
alone: what ended, well or badly, is written into its job, and a repetition finds that there is nothing to do. Only
what a repetition can help is reported as a failure: a store or Batch that does not answer, or time that ran out.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import unquote_plus

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.logging.utils import copy_config_to_registered_loggers
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from handler import batch, jobs, logs, upload_queue, webhook, worker
from handler.jobs import Backend, Failure, Job, State
from handler.settings import Settings
from handler.storage import InvalidKey, NotFound, Storage, check_key, open_from_environment

#: The only prefix that makes jobs; results lie elsewhere, so that nothing calls itself.
PREFIX = "uploads/"
#: Seconds before the end of an invocation at which work is handed back: one tile, and two writes of the document.
RESERVE = 20.0

logger = Logger(service="upscaler")
tracer = Tracer(service="upscaler")
metrics = Metrics(namespace=logs.NAMESPACE, service=logs.SERVICE)
if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # elsewhere logging belongs to whoever imports this
    logging.getLogger("handler")  # its children are registered, it is not
    copy_config_to_registered_loggers(logger, include={"handler"})


class TryAgain(Exception):
    """Some uploads are not done, and the same event again may help."""


@dataclass(frozen=True)
class Upload:
    """One uploaded object.

    Attributes:
        bucket: its name.
        key: decoded.
        version: its ETag.
        size: bytes, None where the event does not say.
        sequencer: names this upload among all of its key; the same in every delivery of its event.
        message: id of the SQS message that reported it, None without SQS.
    """

    bucket: str
    key: str
    version: str
    size: int | None = None
    sequencer: str = ""
    message: str | None = None


@dataclass(frozen=True)
class Again:
    """A job that is to be done again.

    Attributes:
        id: of the job.
        message: id of the SQS message that asked for it.
    """

    id: str
    message: str | None


@dataclass(frozen=True)
class Unreadable:
    """A message that says nothing: it is given back, so that it ends where somebody looks.

    Attributes:
        message: id of the SQS message.
    """

    message: str | None


def uploads(event: Mapping[str, Any], message: str | None = None) -> Iterator[Upload | Again | Unreadable]:
    """What an event asks for; test events, other prefixes, and events of something else are passed over.

    Args:
        event: as Lambda gives it.
        message: id of the SQS message that it came in.

    Yields:
        Each upload or job, in the order of the event.
    """
    if message is not None and isinstance(event.get("job"), str):
        yield Again(event["job"], message)
        return
    if event.get("Type") == "Notification":  # SNS, through SQS
        yield from uploads(json.loads(event["Message"]), message)
        return
    if event.get("source") == "aws.s3" and event.get("detail-type") == "Object Created":
        records = [event["detail"]]
    else:
        records = event.get("Records") or []
        if message is not None and not records and event.get("Event") != "s3:TestEvent":
            raise ValueError("neither an upload nor a job")
    for record in records:
        inside = message
        try:
            if record.get("eventSource") == "aws:sqs":
                inside = record["messageId"]
                yield from uploads(json.loads(record["body"]), inside)
                continue
            if record.get("EventSource") == "aws:sns":
                yield from uploads(json.loads(record["Sns"]["Message"]))
                continue
            found = _upload(record, message)
        except (AttributeError, KeyError, TypeError, ValueError):
            logger.exception("a record that says nothing", extra={"record": record})
            if inside is not None:
                yield Unreadable(inside)
            continue
        if found:
            yield found


def _upload(record: Mapping[str, Any], message: str | None) -> Upload | None:
    """The upload of one record, None where it reports something else.

    Raises:
        KeyError, TypeError, ValueError and others: it is no record of S3.
    """
    if "s3" in record:
        if not record["eventName"].startswith("ObjectCreated:"):
            return None
        bucket, item = record["s3"]["bucket"]["name"], record["s3"]["object"]
        # As in a form: a blank is "+". Powertools hands out this key as it came.
        key = unquote_plus(item["key"], errors="strict")
    else:
        bucket, item = record["bucket"]["name"], record["object"]
        key = item["key"]  # EventBridge does not encode
    if not key.startswith(PREFIX) or key.endswith("/"):
        return None
    version = item.get("eTag") or item.get("etag") or ""
    return Upload(bucket, key, version, item.get("size"), item.get("sequencer") or "", message)


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics(capture_cold_start_metric=True)
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Do, or send to Batch, every upload that the event reports.

    Raises:
        TryAgain: not all could be ended, so Lambda delivers the event again; not with SQS, where the messages to
            repeat are named in the answer.
    """
    settings, storage = open_from_environment()
    failed: list[str | None] = []
    received = list(uploads(event))
    metrics.add_metric(name="Received", unit=MetricUnit.Count, value=len(received))

    for item in received:
        if isinstance(item, Upload) and settings.bucket and item.bucket != settings.bucket:
            logger.warning("an upload to another bucket", extra={"bucket": item.bucket})
            continue
        try:
            job = _process(storage, settings, item, context)
        except Exception:
            logger.exception("not done: %s", item)
            metrics.add_metric(name="TryAgain", unit=MetricUnit.Count, value=1)
            failed.append(item.message)
            continue
        if job:
            metrics.add_metric(name=job.state.title(), unit=MetricUnit.Count, value=1)
            metrics.add_metric(name="Fallback", unit=MetricUnit.Count, value=int(job.degraded))

    webhook.wait(min(webhook.WAIT_SECONDS, context.get_remaining_time_in_millis() / 1000 - 1))
    if None in failed:
        raise TryAgain(f"{len(failed)} of {len(received)} uploads are not done")
    for record in event.get("Records") or []:
        if settings.upload_queue_url and isinstance(record, dict) and record.get("messageId") in failed:
            try:
                upload_queue.again_soon(settings, record)
            except Exception:  # it comes again all the same, later
                logger.exception("a message is not tried again soon")
    return {"batchItemFailures": [{"itemIdentifier": message} for message in sorted({id or "" for id in failed})]}


def _process(
    storage: Storage, settings: Settings, item: Upload | Again | Unreadable, context: LambdaContext
) -> Job | None:
    """Bring one job as far as it goes here; None where there was nothing to do.

    Raises:
        TryAgain, storage.StorageError, botocore.exceptions.ClientError: the job is queued, or its lease runs out.
    """
    match item:
        case Unreadable():
            raise TryAgain("a message that says nothing")
        case Again(id):
            try:
                return process_job(storage, settings, jobs.check_id(id), context)
            except NotFound:
                logger.warning("the job is gone", extra={"job_id": id})
                return None
        case Upload():
            return process_upload(storage, settings, item, context)


def process_upload(storage: Storage, settings: Settings, upload: Upload, context: LambdaContext) -> Job | None:
    """Find or make an upload's job, and bring it as far as it goes here; None where there was nothing to do.

    Raises:
        TryAgain, storage.StorageError, botocore.exceptions.ClientError: the job is queued, or its lease runs out.
    """
    error = None
    try:
        check_key(upload.key)
    except InvalidKey as invalid:  # S3 takes such a key, no store of ours does
        error = Failure(code="bad_key", message=f"{invalid}: give the file another name and send it again")
    job = jobs.find_or_create_for_upload(
        storage,
        upload.bucket,
        upload.key,
        upload.version,
        sequencer=upload.sequencer,
        ttl=timedelta(days=settings.job_ttl_days),
        size=upload.size,
        error=error,
    )
    if error:
        logger.error("refused: %s: %s", upload.key, error.message, extra={"job_id": job.id})
        return job
    return process_job(storage, settings, job.id, context)


@tracer.capture_method(capture_response=False)
def process_job(storage: Storage, settings: Settings, id: str, context: LambdaContext) -> Job | None:
    """Bring one job as far as it goes here; None where there was nothing to do.

    Raises:
        TryAgain, storage.StorageError, botocore.exceptions.ClientError: the job is queued, or its lease runs out.
    """
    logger.append_keys(job_id=id)

    def left() -> float:
        return context.get_remaining_time_in_millis() / 1000 - RESERVE

    while True:
        if left() <= 0:
            raise TryAgain("no time left in this invocation")
        job = worker.run_job(
            storage,
            settings,
            id,
            backend=Backend.LAMBDA,
            worker=f"lambda-{context.aws_request_id}",
            stop=lambda: left() <= 0,
            seconds=left(),
        )
        if job is not None:
            break
        job = jobs.get(storage, id)
        if job.state is State.QUEUED and job.backend is Backend.BATCH:
            # Meant for Batch from the start, or whoever moved it there died before he could submit it.
            return job if job.batch_job_id else batch.submit(storage, settings, job)
        if job.backend is not Backend.LAMBDA or not worker.wait_until_claimable(storage, id, stop=lambda: left() <= 0):
            return None
    if job.state is State.QUEUED and job.backend is not Backend.BATCH:
        raise TryAgain("handed back")
    return job
