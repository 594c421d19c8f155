"""Lambda: AWS Batch reports that a container ended, and a job that it left unfinished is failed with the reason.

The same function is called by a schedule, and then looks for jobs that nobody works on: see `sweep`.

EventBridge delivers "Batch Job State Change". What matters is the state FAILED: Batch gives it when no attempt is left,
or when the job was terminated or ran into its time-out; while another attempt is due the state is RUNNABLE. A job that
has ended, or that belongs to another Batch job by now, stays as it is. After a container of an archive, however it
ended, the archive's next ones are begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from handler import batch, jobs, logs, sweep, webhook
from handler.archive import steps
from handler.jobs import Backend, State
from handler.settings import Settings
from handler.storage import NotFound, Storage, open_from_environment

#: Seconds before the end of an invocation at which a sweep leaves the rest to the next one.
RESERVE = 60.0

logger = Logger(service="upscaler")
tracer = Tracer(service="upscaler")
metrics = Metrics(namespace=logs.NAMESPACE, service=logs.SERVICE)


class NotDone(Exception):
    """A sweep could not look after every job; it is called again."""


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics(capture_cold_start_metric=True)
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Fail the job that a dead container has left unfinished; called by the schedule, sweep.

    Returns:
        The job's id and state; nothing where there is no such job. Of a sweep, what it did.

    Raises:
        storage.Unavailable: the store does not answer; Lambda delivers the event again.
    """
    detail = event.get("detail") or {}
    if event.get("detail-type") == "Scheduled Event":
        return _sweep(context)
    metrics.add_metric(name="Lost", unit=MetricUnit.Count, value=0)
    id = job_id(detail)
    status = detail.get("status") if event.get("detail-type") == "Batch Job State Change" else ""
    if status not in ("FAILED", "SUCCEEDED") or id is None:
        return {}
    settings, storage = open_from_environment()
    if status == "SUCCEEDED":
        return _next_parts(storage, settings, id, context)
    code, message = reason(detail)
    if str(detail.get("statusReason") or "").lower().startswith("dependent job"):
        return {}  # the part that failed says why
    batch_job_id = detail.get("jobId")
    try:
        before = job = jobs.get(storage, id)
        if job.backend is Backend.BATCH and job.batch_job_id is None:
            batch_job_id = None  # whoever submitted it died before writing down the id
        elif job.batch_array_id and str(batch_job_id).partition(":")[0] == job.batch_array_id:
            batch_job_id = job.batch_job_id  # one of the containers that make its parts
        job = jobs.fail_unclaimed(storage, id, code, message, batch_job_id=batch_job_id)
    except NotFound:
        logger.warning("the job is gone", extra={"job_id": id})
        return {}
    # A container that was ended on purpose, or that has ended its job with a reason of the picture's, is no loss.
    defect = (detail.get("container") or {}).get("exitCode") == batch.FAILED
    ended = job.state is State.FAILED and not before.state.final and detail.get("statusReason") != batch.CANCELLED
    metrics.add_metric(name="Lost", unit=MetricUnit.Count, value=int(defect or ended))
    if job.batch_array_id and job.state is State.FAILED and not before.state.final:
        batch.terminate_batch(job, reason=f"{code}: a part failed")
    logger.info("%s: %s", job.state, message, extra={"job_id": id, "batch_job_id": detail.get("jobId")})
    webhook.notify(storage, settings, job)
    webhook.wait(min(webhook.WAIT_SECONDS, context.get_remaining_time_in_millis() / 1000 - 1))
    _next_parts(storage, settings, id, context)
    return {"id": id, "state": job.state.value}


def _next_parts(storage: Storage, settings: Settings, id: str, context: LambdaContext) -> dict[str, Any]:
    """A container has ended: where it made a part of an archive that was asked for over HTTP, the next ones begin."""
    if not all(settings.archive_prefixes):
        return {}
    try:
        job = jobs.get(storage, id)
        if not (archive := steps.archive_of(job)):
            return {}
        steps.advance(storage, settings, archive, steps.submit(storage, settings), stop=partial(_is_late, context))
    except NotFound:  # the job is gone, or the archive is that of a command
        return {}
    return {"id": id, "state": job.state.value}


def _is_late(context: LambdaContext) -> bool:
    return context.get_remaining_time_in_millis() < RESERVE * 1000


def _sweep(context: LambdaContext) -> dict[str, Any]:
    settings, storage = open_from_environment()
    stop = partial(_is_late, context)
    counts = sweep.sweep(storage, settings, reason, stop=stop)
    if settings.has_batch and all(settings.archive_prefixes):
        archives = steps.advance_all(storage, settings, steps.submit(storage, settings), stop=stop)
        counts["archives"] = archives["seen"]
        counts["errors"] += archives["errors"]
    metrics.add_metric(name="Lost", unit=MetricUnit.Count, value=counts["failed"])
    metrics.add_metric(name="Started", unit=MetricUnit.Count, value=counts["started"])
    if settings.has_batch:
        metrics.add_metric(name="BatchWaiting", unit=MetricUnit.Count, value=counts["batch_waiting"])
        metrics.add_metric(name="BatchRunning", unit=MetricUnit.Count, value=counts["batch_running"])
    logger.info("swept", extra={"counts": dict(counts)})
    webhook.wait(min(webhook.WAIT_SECONDS, context.get_remaining_time_in_millis() / 1000 - 1))
    if counts["errors"]:
        raise NotDone(f"{counts['errors']} jobs or archives could not be looked after: the log says why")
    return dict(counts)


def job_id(detail: Mapping[str, Any]) -> str | None:
    """The id of our job in the detail of a Batch event, None where it is not one of our containers."""
    command = (detail.get("container") or {}).get("command") or []
    try:
        return jobs.check_id(command[command.index("--job") + 1])
    except (ValueError, IndexError, AttributeError, jobs.InvalidId):
        return None


def reason(detail: Mapping[str, Any]) -> tuple[str, str]:
    """Code and message of a failed Batch job, from the detail of its event."""
    status = str(detail.get("statusReason") or "")
    container = detail.get("container") or {}
    last = str(container.get("reason") or "")
    code = container.get("exitCode")
    if "exceeded timeout" in status.lower():  # "Job attempt duration exceeded timeout", exit code 137 like the next
        return "batch_timeout", "the job took longer than AWS Batch was allowed to: try a smaller scale"
    if "OutOfMemory" in last:
        return "out_of_memory", "the job does not fit into memory: try a smaller picture or scale"
    if code == batch.NO_GPU:
        return "no_gpu", "no machine had a GPU for the job, or its driver is too old: ask whoever runs the service"
    details = "; ".join(text for text in (status, last, f"exit code {code}" if code is not None else "") if text)
    return "batch_failed", f"AWS Batch gave up: {details or 'no reason given'}"[:500]
