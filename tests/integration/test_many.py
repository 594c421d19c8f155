"""A thousand uploads by the queue, with SQS as moto has it: duplicates, a store that fails, a message without sense."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from moto import mock_aws

import core
from handler import jobs, s3_event, upload_queue, worker
from handler.jobs import State
from handler.settings import Settings
from handler.storage import LocalStorage, Unavailable
from tests.infra import graph
from tests.integration.work import AT_ONCE, Context, picture

BUCKET = "upscaler-many"
MANY = 1000
#: How often the queue is emptied: more than a message is delivered.
ROUNDS = 8


@dataclass
class Queue:
    """The queues of the template, and what Lambda does with them."""

    url: str
    dead: str

    def round(self) -> int:
        """Have every visible message handled once; gives how many there were."""
        sqs, handled = boto3.client("sqs"), 0
        while messages := sqs.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, AttributeNames=["ApproximateReceiveCount"]
        ).get("Messages"):
            for message in messages:
                handled += 1
                record = {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                    "eventSource": "aws:sqs",
                }
                answer = s3_event.handler({"Records": [record]}, cast(LambdaContext, Context()))
                if not answer["batchItemFailures"]:
                    sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return handled

    def count(self, url: str) -> int:
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = boto3.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(value) for value in attributes.values())


@pytest.fixture
def queue(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """Queues with the template's own properties; what is to come again soon comes at once here."""
    properties = graph.source()["Resources"]["Uploads"]["Properties"]
    with mock_aws():
        sqs = boto3.client("sqs")
        dead = sqs.create_queue(QueueName="dead")["QueueUrl"]
        policy = {**properties["RedrivePolicy"], "deadLetterTargetArn": arn(dead)}
        attributes: Any = {
            "RedrivePolicy": json.dumps(policy),
            "VisibilityTimeout": str(properties["VisibilityTimeout"]),
        }
        url = sqs.create_queue(QueueName="uploads", Attributes=attributes)["QueueUrl"]
        monkeypatch.setattr(upload_queue, "AGAIN_SECONDS", 0)
        upload_queue.sqs_client.cache_clear()
        yield Queue(url, dead)
        upload_queue.sqs_client.cache_clear()


def arn(url: str) -> str:
    answer = boto3.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return answer["Attributes"]["QueueArn"]


@pytest.mark.slow
def test_a_thousand_uploads_each_once(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network does nothing: a picture is copied. A hundred events come again, the store fails now and then."""
    data, dice, runs = picture(), random.Random(0), Counter[str]()
    storage = LocalStorage(tmp_path)

    class Flaky:
        """The store, which fails now and then."""

        def __getattr__(self, name: str) -> Any:
            real = getattr(storage, name)

            def call(*arguments: Any, **named: Any) -> Any:
                if dice.random() < 1 / 200:
                    raise Unavailable("the store failed: 503")
                return real(*arguments, **named)

            return call if callable(real) else real

    def copy(source: Path, *_: Any, output: Path, **__: Any) -> core.Result:
        output.write_bytes(source.read_bytes())
        return core.Result(
            data=None, format="png", media_type="image/png", width=24, height=16, model="none", degraded=False,
            reason="", device="cpu", dtype="float32", tiles=1, seconds=0.0, load_seconds=0.0,
        )  # fmt: skip

    def count(*arguments: Any, **named: Any) -> Any:
        done = succeed(*arguments, **named)
        runs[done.id] += 1
        return done

    succeed, run_job = jobs.succeed, worker.run_job
    monkeypatch.setattr(jobs, "succeed", count)
    monkeypatch.setattr(core, "upscale", copy)
    monkeypatch.setattr(worker, "run_job", lambda *a, **named: run_job(*a, **{**named, "retry_delays": AT_ONCE[:1]}))
    settings = Settings(bucket=BUCKET, upload_queue_url=queue.url, warm_model="none", lease_seconds=1)
    monkeypatch.setattr(s3_event, "open_from_environment", lambda: (settings, Flaky()))

    bodies = []
    for number in range(MANY):
        key = f"uploads/{number}.png"
        storage.put(key, data, "image/png")
        item = {"key": key, "size": len(data), "eTag": storage.head(key).etag.strip('"'), "sequencer": f"{number:018X}"}
        record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": BUCKET}, "object": item}}
        bodies.append(json.dumps({"Records": [record]}))
    bodies += [*dice.sample(bodies, 100), "no JSON", json.dumps({"Event": "s3:TestEvent", "Bucket": BUCKET})]
    dice.shuffle(bodies)
    sqs, handled = boto3.client("sqs"), 0
    for first in range(0, len(bodies), 10):  # in waves: moto looks at every message for each call
        entries: Any = [{"Id": str(i), "MessageBody": body} for i, body in enumerate(bodies[first : first + 10])]
        sqs.send_message_batch(QueueUrl=queue.url, Entries=entries)
        if first % 50 == 0:
            handled += queue.round()
    handled += sum(queue.round() for _ in range(ROUNDS))
    assert handled >= MANY + 102
    assert queue.count(queue.url) == 0
    found = list(jobs.every(storage))
    given_up = queue.count(queue.dead)
    assert len({job.input.key for job in found}) == len(found) == MANY
    states = Counter(job.state for job in found)
    assert states[State.SUCCEEDED] + states[State.FAILED] == MANY, states
    assert all(job.error and job.error.code in ("storage_unavailable", "worker_lost") for job in found if job.error)
    assert states[State.FAILED] < MANY / 20
    assert given_up == 1, "the message that says nothing, and no other"
    assert max(runs.values()) == 1
    kept = {found.key for found in storage.list("results/")}
    assert {job.output.key for job in found if job.output} <= kept
