"""The queue that uploads wait in (SQS): sending a job there to be done again, and trying a message again soon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from handler.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

#: Seconds until a message is tried again for the first time; twice as long each time after that.
AGAIN_SECONDS = 60


@cache
def sqs_client() -> SQSClient:
    """The boto3 client, made once per process."""
    import boto3  # local mode never needs it, and a cold start should not wait for it

    return boto3.client("sqs")


def send(settings: Settings, job_id: str) -> None:
    """Have a queued job worked on by the function for uploads.

    Doing that twice is harmless: the second worker finds nothing to claim.

    Raises:
        botocore.exceptions.ClientError: SQS refused, or did not answer.
    """
    sqs_client().send_message(QueueUrl=settings.upload_queue_url, MessageBody=json.dumps({"job": job_id}))


def waiting(settings: Settings) -> int:
    """How many uploads wait, about.

    Raises:
        botocore.exceptions.ClientError: SQS refused, or did not answer.
    """
    answer = sqs_client().get_queue_attributes(
        QueueUrl=settings.upload_queue_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    return int(answer["Attributes"]["ApproximateNumberOfMessages"])


def again_soon(settings: Settings, record: Mapping[str, Any]) -> None:
    """Let a message be delivered again before its time, which is that of the longest work.

    Args:
        settings: of the service.
        record: the message, as Lambda gives it.

    Raises:
        botocore.exceptions.ClientError: SQS refused, or did not answer.
    """
    received = int(record["attributes"]["ApproximateReceiveCount"])
    sqs_client().change_message_visibility(
        QueueUrl=settings.upload_queue_url,
        ReceiptHandle=record["receiptHandle"],
        VisibilityTimeout=AGAIN_SECONDS * 2 ** min(received - 1, 6),
    )
