"""AWS Batch: starting a job's container there, and ending it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from handler import jobs
from handler.jobs import Backend, Job, State
from handler.settings import Settings
from handler.storage import Storage

if TYPE_CHECKING:
    from mypy_boto3_batch.client import BatchClient


@cache
def batch_client() -> BatchClient:
    """The boto3 client, made once per process."""
    import boto3  # local mode never needs it, and a cold start should not wait for it

    return boto3.client("batch")


def submit_batch(job: Job, settings: Settings) -> str:
    """Start a job on Batch.

    Submitting a job twice is harmless: the second container finds nothing to claim.

    Returns:
        The id there, for `Job.batch_job_id`.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer.
    """
    answer = batch_client().submit_job(
        jobName=f"upscale-{job.id}",
        jobQueue=settings.batch_queue,
        jobDefinition=settings.batch_job_definition,
        containerOverrides={"command": ["python", "-m", "handler.batch_job", "--job", job.id]},
    )
    return answer["jobId"]


def submit(storage: Storage, settings: Settings, job: Job) -> Job:
    """Start a job that is queued for Batch there, and write down its id of AWS Batch.

    Returns:
        The job as written.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer; the job stays queued, so call again.
    """
    batch_job_id = submit_batch(job, settings)

    def record(now: Job) -> Job:
        if now.state is not State.QUEUED or now.backend is not Backend.BATCH or now.batch_job_id:
            return now  # the container was faster, or somebody else submitted it too
        return now.model_copy(update={"batch_job_id": batch_job_id})

    return jobs.change(storage, job.id, record)


def terminate_batch(job: Job) -> None:
    """End a cancelled job's container, queued or running; one that has ended already is no error.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer.
    """
    if job.batch_job_id:
        batch_client().terminate_job(jobId=job.batch_job_id, reason="cancelled by the client")
