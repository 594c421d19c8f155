"""AWS Batch: starting a job's container there, and ending it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from handler import jobs
from handler.jobs import Backend, Job, State
from handler.settings import Settings
from handler.storage import Storage

if TYPE_CHECKING:
    from mypy_boto3_batch.client import BatchClient


#: What a container says by its exit code: see `batch_job`.
ENDED, FAILED, USAGE, REPEAT, NO_GPU = 0, 1, 2, 75, 76
#: Why the container of a cancelled job was ended, as Batch reports it.
CANCELLED = "cancelled by the client"


@cache
def batch_client() -> BatchClient:
    """The boto3 client, made once per process."""
    import boto3  # local mode never needs it, and a cold start should not wait for it

    return boto3.client("batch")


def submit_batch(job: Job, settings: Settings, *, parts: int = 1, after: str = "") -> str:
    """Start a job on Batch.

    Submitting a job twice is harmless: the second container finds nothing to claim, and parts that are made.

    Args:
        job: to start.
        settings: the queue and the definition.
        parts: more than 1: an array of so many containers, each of which makes a part and does not end the job.
        after: the id there of an array that must have succeeded before; empty for none.

    Returns:
        The id there, for `Job.batch_job_id`, or `Job.batch_array_id` of an array.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer.
    """
    command = ["python", "-m", "handler.batch_job", "--job", job.id]
    more: dict[str, Any] = {"dependsOn": [{"jobId": after}]} if after else {}
    if parts > 1:
        command += ["--parts", str(parts)]
        more["arrayProperties"] = {"size": parts}
    answer = batch_client().submit_job(
        jobName=f"upscale-{job.id}{'-parts' if parts > 1 else ''}",
        jobQueue=settings.batch_queue,
        jobDefinition=settings.batch_job_definition,
        containerOverrides={"command": command},
        **more,
    )
    return answer["jobId"]


def submit(storage: Storage, settings: Settings, job: Job) -> Job:
    """Start a job that is queued for Batch there, and write down its id of AWS Batch.

    A picture that is estimated to be worth several machines (`Estimate.machines`) becomes an array of them, and a job
    after it that puts the parts together.

    Returns:
        The job as written.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer; the job stays queued, so call again.
    """
    parts = job.estimate.machines if job.estimate and not job.pictures else 1
    if parts > 1 and not job.batch_array_id:
        # Written down by itself: whoever is cut off before the second submission leaves work that is not lost.
        job = _record(storage, job.id, {"batch_array_id": submit_batch(job, settings, parts=parts)})
    array = job.batch_array_id
    last = submit_batch(job, settings, after=array) if array else submit_batch(job, settings)
    return _record(storage, job.id, {"batch_job_id": last})


def _record(storage: Storage, id: str, news: dict[str, str]) -> Job:
    """Write down what was submitted for a job."""

    def record(now: Job) -> Job:
        waits = now.state is State.QUEUED or jobs.shared(now)
        if not waits or now.backend is not Backend.BATCH or any(getattr(now, name) for name in news):
            return now  # the container was faster, or somebody else submitted it too
        return now.model_copy(update=news)

    return jobs.change(storage, id, record)


def describe_batch(ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """What Batch knows of its jobs, by their ids there; those that it has forgotten are left out.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer.
    """
    wanted = list(ids)
    found: dict[str, Mapping[str, Any]] = {}
    for first in range(0, len(wanted), 100):  # the most that one call takes
        answer = batch_client().describe_jobs(jobs=wanted[first : first + 100])
        found |= {detail["jobId"]: detail for detail in answer["jobs"]}
    return found


def count_batch(settings: Settings, status: str) -> int:
    """How many jobs of our queue are in a state there, such as RUNNABLE; at most 1,000 are counted.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer.
    """
    pages = batch_client().get_paginator("list_jobs")
    limit = {"MaxItems": 1000}
    found = pages.paginate(jobQueue=settings.batch_queue, jobStatus=status, PaginationConfig=limit)  # type: ignore[arg-type]
    return sum(len(page["jobSummaryList"]) for page in found)


def terminate_batch(job: Job, reason: str = CANCELLED) -> None:
    """End a job's containers, queued or running; one that has ended already is no error.

    Args:
        job: whose containers they are.
        reason: shown by Batch, and sent with its event.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer.
    """
    for id in (job.batch_array_id, job.batch_job_id):
        if id:
            batch_client().terminate_job(jobId=id, reason=reason)
