"""The Lambda that S3 upload events call: events as AWS sends them, and events that a server has made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

from handler import jobs, s3_event, worker
from handler.jobs import Backend, Job, State
from handler.s3_event import TryAgain, Upload
from handler.settings import Settings
from handler.storage import LocalStorage, S3Storage, Storage
from tests.integration.work import (
    AT_ONCE,
    TTL,
    Context,
    Failing,
    as_stored,
    configured,
    event,
    picture,
    queued,
    result,
    results,
)

BUCKET = "upscaler-example"
Call = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return configured(tmp_path, bucket=BUCKET, lease_seconds=3)


@pytest.fixture
def call(store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """The handler, as Lambda calls it."""
    run_job = worker.run_job
    monkeypatch.setattr(worker, "run_job", lambda *a, **named: run_job(*a, **{**named, "retry_delays": AT_ONCE}))

    def handle(
        sent: dict[str, Any],
        *,
        context: Context | None = None,
        storage: Any = store,
        settings: Settings = settings,
        as_is: bool = False,
    ) -> dict[str, Any]:
        monkeypatch.setattr(s3_event, "open_from_environment", lambda: (settings, storage))
        answer: dict[str, Any] = s3_event.handler(
            sent if as_is else as_stored(store, sent), cast(LambdaContext, context or Context())
        )
        return answer

    yield handle
    s3_event.metrics.clear_metrics()


def created(store: Storage, upload: Any) -> Job:
    """The job that the handler makes for an upload."""
    return jobs.find_or_create_for_upload(
        store, upload.bucket, upload.key, upload.version, sequencer=upload.sequencer, ttl=TTL
    )


def found(storage: Storage) -> list[Job]:
    return list(jobs.every(storage))


def metrics(output: str) -> dict[str, float]:
    """What a call of the handler counted, from its standard output."""
    lines = [json.loads(line) for line in output.splitlines() if '"_aws"' in line]
    return {
        name: sum(values) if isinstance(values, list) else values
        for line in lines
        for name, values in line.items()
        if isinstance(values, (int, float, list))
    }


def test_keys_are_decoded(call: Call, store: LocalStorage) -> None:
    sent = event("s3_put_odd_keys.json")
    keys = ["uploads/a+b %.jpg", "uploads/été/фото 1.png"]
    for key in keys:
        store.put(key, picture(), "image/png")
    assert call(sent) == {"batchItemFailures": []}
    done = found(store)
    assert sorted(job.input.key for job in done) == keys
    assert [job.state for job in done] == [State.SUCCEEDED] * 2
    assert {job.output.name for job in done if job.output} == {"a+b %-x2.png", "фото 1-x2.png"}


def test_powertools_hands_out_the_key_as_it_came() -> None:
    """Why the key is decoded by us; when this fails, the comment there can go."""
    from aws_lambda_powertools.utilities.data_classes import S3Event

    [first, _] = S3Event(event("s3_put_odd_keys.json")).records
    assert first.s3.get_object.key == "uploads/a%2Bb+%25.jpg"


def test_the_ways_of_delivery_name_the_same_object() -> None:
    message = "2e1424d4-f796-459a-8184-9c92662be6da"
    [direct, _] = s3_event.uploads(sent := event("s3_put_odd_keys.json"))
    [bus] = s3_event.uploads(event("eventbridge_s3_object_created.json"))
    [_, queue] = s3_event.uploads(event("sqs_s3_put.json"))
    wanted = Upload(BUCKET, "uploads/a+b %.jpg", "1" * 32, 70, "0A1B2C3D4E5F678901")
    assert replace(wanted, version=bus.version, sequencer=bus.sequencer) == bus  # type: ignore[union-attr]
    assert direct == wanted
    assert queue == replace(wanted, message=message)
    # Through SNS, and through SNS and then SQS.
    topic = {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": json.dumps(sent)}}]}
    assert next(s3_event.uploads(topic)) == wanted
    body = json.dumps({"Type": "Notification", "Message": json.dumps(sent)})
    both = {"Records": [{"eventSource": "aws:sqs", "messageId": message, "body": body}]}
    assert next(s3_event.uploads(both)) == replace(wanted, message=message)


@pytest.mark.parametrize(
    "sent",
    [
        event("s3_test_event.json"),
        event("batch_failed.json"),
        {},
        {"Records": []},
        {"Records": [{}, None, {"s3": {}}]},
    ],
)
def test_what_is_no_upload_is_passed_over(call: Call, store: LocalStorage, sent: dict[str, Any]) -> None:
    assert call(sent) == {"batchItemFailures": []}
    assert not found(store)


@pytest.mark.parametrize("body", ["no JSON", "[]", "{}", '{"job": "../x"}', '{"Records": [{"s3": {}}]}'])
def test_a_message_that_says_nothing_goes_to_the_dead_letters(call: Call, store: LocalStorage, body: str) -> None:
    """After its last delivery, where an alarm tells of it; to pass it over would lose an upload without a word."""
    sent = {"Records": [{"eventSource": "aws:sqs", "body": body, "messageId": "1"}]}
    assert call(sent) == {"batchItemFailures": [{"itemIdentifier": "1"}]}
    assert not found(store)


@pytest.mark.parametrize("key", ["uploads//x.png", "uploads/../x.png", "uploads/./x.png"])
def test_keys_that_no_store_takes_are_failed_where_people_look(
    call: Call, store: LocalStorage, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["object"]["key"] = key
    for _ in range(2):
        assert call(sent) == {"batchItemFailures": []}
    [job] = found(store)
    assert (job.state, job.input.key) == (State.FAILED, key)
    assert job.error
    assert job.error.code == "bad_key"
    assert metrics(capsys.readouterr().out)["Failed"]


def test_a_file_dropped_once_more_is_a_new_job(call: Call, store: LocalStorage) -> None:
    """With the same bytes, so the same ETag; and the same event once more is not."""
    sent = event("s3_put_odd_keys.json")
    sent["Records"].pop(0)
    store.put("uploads/été/фото 1.png", b"no picture", "image/png")
    for sequencer in ("0A", "0B", "0A"):
        sent["Records"][0]["s3"]["object"]["sequencer"] = sequencer
        call(sent)
    assert [job.state for job in found(store)] == [State.FAILED] * 2


def test_a_job_reads_only_the_file_that_it_was_made_for(call: Call, store: LocalStorage) -> None:
    store.put("uploads/photo.png", picture(seed=1), "image/png")
    sent = event("s3_put.json")
    item = sent["Records"][0]["s3"]["object"]
    item |= {"key": "uploads/photo.png", "eTag": store.head("uploads/photo.png").etag.strip('"')}
    store.put("uploads/photo.png", picture(seed=2), "image/png")
    call(sent, as_is=True)
    [job] = found(store)
    assert job.error
    assert (job.state, job.error.code) == (State.FAILED, "upload_replaced")


@pytest.mark.parametrize("key", ["results/x.png", "jobs/x.json", "uploads/", "x/uploads/y"])
def test_keys_that_make_no_job(call: Call, store: LocalStorage, key: str) -> None:
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["object"]["key"] = key
    assert call(sent) == {"batchItemFailures": []}
    assert not found(store)


def test_another_bucket_is_passed_over(call: Call, store: LocalStorage) -> None:
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["bucket"]["name"] = "other"
    call(sent)
    assert not found(store)


def test_each_record_stands_alone(call: Call, store: LocalStorage, capsys: pytest.CaptureFixture[str]) -> None:
    for key, data in {"good": picture(seed=1), "also good": picture(seed=2)}.items():
        store.put(f"uploads/{key}.png", data, "image/png")
    store.put("uploads/text.jpg", b"this is text", "image/jpeg")
    call(event("s3_put_several.json"))
    states = {job.input.key: (job.state, job.error.code if job.error else None) for job in found(store)}
    assert states == {
        "uploads/good.png": (State.SUCCEEDED, None),
        "uploads/text.jpg": (State.FAILED, "unreadable_image"),
        "uploads/also good.png": (State.SUCCEEDED, None),
    }
    counted = metrics(capsys.readouterr().out)
    assert {name: counted[name] for name in ("Received", "Succeeded", "Failed")} == {
        "Received": 3,
        "Succeeded": 2,
        "Failed": 1,
    }


def test_the_same_event_again_does_nothing(call: Call, store: LocalStorage) -> None:
    store.put("uploads/a+b %.jpg", picture(), "image/png")
    store.put("uploads/été/фото 1.png", b"no picture", "image/png")
    call(event("s3_put_odd_keys.json"))
    first = found(store)
    call(event("s3_put_odd_keys.json"))
    assert found(store) == first
    assert [job.attempt for job in first] == [1, 1]


def test_a_new_version_of_a_key_is_a_new_job(call: Call, store: LocalStorage) -> None:
    sent = event("s3_put_odd_keys.json")
    sent["Records"].pop(0)
    store.put("uploads/été/фото 1.png", picture(), "image/png")
    call(sent)
    store.put("uploads/été/фото 1.png", picture(seed=1), "image/png")
    call(sent)
    assert len(found(store)) == 2


def test_an_upload_finds_the_job_that_waits_for_it(call: Call, store: LocalStorage) -> None:
    job = queued(store, picture(), scale=3)
    store.delete(jobs.job_key(job.id))
    data = job.model_copy(update={"state": State.AWAITING_UPLOAD})
    store.create(jobs.job_key(job.id), jobs.dumps(data))
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["object"]["key"] = job.input.key
    call(sent)
    [done] = found(store)
    assert (done.id, done.state) == (job.id, State.SUCCEEDED)
    assert done.output
    assert done.output.width == 72


def test_only_what_a_repetition_helps_is_reported(call: Call, store: LocalStorage) -> None:
    for key in ("good", "also good"):
        store.put(f"uploads/{key}.png", picture(), "image/png")
    store.put("uploads/text.jpg", b"this is text", "image/jpeg")
    good, *_ = s3_event.uploads(as_stored(store, event("s3_put_several.json")))
    id = created(store, good).id
    failing = Failing(store, {("swap", jobs.job_key(id)): float("inf")})
    with pytest.raises(TryAgain, match="1 of 3"):
        call(event("s3_put_several.json"), storage=failing)
    before = {job.input.key: job for job in found(store)}
    assert [before[f"uploads/{name}"].state for name in ("good.png", "text.jpg", "also good.png")] == [
        State.QUEUED,
        State.FAILED,
        State.SUCCEEDED,
    ]
    call(event("s3_put_several.json"))  # the store is well again
    after = {job.input.key: job for job in found(store)}
    assert after.pop("uploads/good.png").state is State.SUCCEEDED
    assert after.items() <= before.items()


def test_sqs_is_told_which_messages_to_repeat(call: Call, store: LocalStorage) -> None:
    store.put("uploads/good.png", picture(), "image/png")
    store.put("uploads/a+b %.jpg", picture(), "image/png")
    failing = Failing(store, {("create", ""): 1})
    answer = call(event("sqs_s3_put.json"), storage=failing)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "059f36b4-87a3-44ab-83d2-661975830a7d"}]}
    assert [job.input.key for job in found(store)] == ["uploads/a+b %.jpg"]


def test_before_the_time_runs_out_the_job_is_handed_back(call: Call, store: LocalStorage) -> None:
    store.put("uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png", picture(), "image/png")
    with pytest.raises(TryAgain):
        call(event("s3_put.json"), context=Context(ends_after=4))
    [job] = found(store)
    assert (job.state, job.attempt, job.lease) == (State.QUEUED, 1, None)
    with pytest.raises(TryAgain):
        call(event("s3_put.json"), context=Context(seconds=s3_event.RESERVE))
    assert found(store) == [job]  # not even begun
    call(event("s3_put.json"))
    assert [job.state for job in found(store)] == [State.SUCCEEDED]


def test_what_is_too_big_for_lambda_goes_to_batch(
    call: Call, store: LocalStorage, tmp_path: Path, batch: dict[str, str]
) -> None:
    settings = configured(tmp_path, bucket=BUCKET, lambda_seconds=0, **batch)
    store.put("uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png", picture(), "image/png")
    for _ in range(2):
        assert call(event("s3_put.json"), settings=settings) == {"batchItemFailures": []}
    [job] = found(store)
    assert (job.state, job.backend) == (State.QUEUED, Backend.BATCH)
    client = boto3.client("batch")
    submitted = client.list_jobs(jobQueue=batch["batch_queue"], filters=[{"name": "JOB_NAME", "values": ["*"]}])
    [sent] = submitted["jobSummaryList"]
    assert (sent["jobId"], sent["jobName"]) == (job.batch_job_id, f"upscale-{job.id}")
    assert client.describe_jobs(jobs=[sent["jobId"]])["jobs"][0]["container"]["command"][-1] == job.id


def test_time_that_runs_out_sends_the_job_to_batch(
    call: Call, store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def submit(job: Job, _: Settings) -> str:
        sent.append(job.id)
        return "batch-1"

    monkeypatch.setattr("handler.batch.submit_batch", submit)
    settings = configured(tmp_path, bucket=BUCKET, batch_queue="q", batch_job_definition="d")
    store.put("uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png", picture(), "image/png")
    call(event("s3_put.json"), settings=settings, context=Context(ends_after=4))
    [job] = found(store)
    assert (job.state, job.backend, job.batch_job_id) == (State.QUEUED, Backend.BATCH, "batch-1")
    assert sent == [job.id]


def test_a_submission_that_failed_is_made_by_the_next_delivery(
    call: Call, store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(tmp_path, bucket=BUCKET, lambda_seconds=0, batch_queue="q", batch_job_definition="d")
    store.put("uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png", picture(), "image/png")

    def refused(*_: object) -> str:
        raise RuntimeError("Batch does not answer")

    monkeypatch.setattr("handler.batch.submit_batch", refused)
    with pytest.raises(TryAgain):
        call(event("s3_put.json"), settings=settings)
    monkeypatch.setattr("handler.batch.submit_batch", lambda *_: "batch-1")
    call(event("s3_put.json"), settings=settings)
    [job] = found(store)
    assert (job.state, job.backend, job.batch_job_id) == (State.QUEUED, Backend.BATCH, "batch-1")


def test_an_event_that_comes_again_after_a_death_waits_for_the_lease(
    call: Call, store: LocalStorage, tmp_path: Path
) -> None:
    store.put("uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png", picture(), "image/png")
    [upload] = s3_event.uploads(as_stored(store, event("s3_put.json")))
    job = created(store, upload)
    assert jobs.claim(store, job.id, "dies", 1.0, backend=Backend.LAMBDA)
    call(event("s3_put.json"))
    [done] = found(store)
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)


def test_events_that_a_server_makes(call: Call, moto: str, tmp_path: Path) -> None:
    """Keys as a server encodes them, by way of SQS; and results do not call the handler again."""
    bucket = f"events-{os.urandom(4).hex()}"
    s3, sqs = boto3.client("s3", endpoint_url=moto), boto3.client("sqs", endpoint_url=moto)
    s3.create_bucket(Bucket=bucket)
    url = sqs.create_queue(QueueName=bucket)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    s3.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration={
            "QueueConfigurations": [
                {
                    "QueueArn": arn,
                    "Events": ["s3:ObjectCreated:*"],
                    "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "uploads/"}]}},
                }
            ]
        },
    )
    storage = S3Storage(bucket, endpoint_url=moto)
    keys = ["uploads/a+b %.jpg", "uploads/été/фото 1.png", "uploads/plain.png"]
    for key in keys:
        storage.put(key, picture(), "image/png")

    def drained() -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while got := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
            messages += [json.loads(message["Body"]) for message in got]
            for message in got:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return messages

    settings = configured(tmp_path, bucket=bucket, s3_endpoint_url=moto)
    for message in drained():
        call(message, storage=storage, settings=settings)
    done = found(storage)
    assert sorted(job.input.key for job in done) == sorted(keys)
    assert [(job.state, job.error) for job in done] == [(State.SUCCEEDED, None)] * 3
    assert all(results(storage, job) == [job.output.key] for job in done if job.output)
    assert result(storage, done[0])
    assert not drained()


def test_the_handler_works_in_lambda_without_x_ray(tmp_path: Path) -> None:
    """As Lambda imports it: its variables are set, and no X-Ray daemon listens."""
    store = LocalStorage(tmp_path / "data")
    store.put("uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png", b"no picture", "image/png")
    code = (
        "import json, sys; from handler import s3_event; from tests.integration.work import Context, as_stored, event;"
        "sent = as_stored(s3_event.open_from_environment()[1], event('s3_put.json'));"
        "print('answer', s3_event.handler(sent, Context()))"
    )
    environment = {
        **os.environ,
        "AWS_LAMBDA_FUNCTION_NAME": "uploads",
        "LAMBDA_TASK_ROOT": "/var/task",
        "_X_AMZN_TRACE_ID": "Root=1-683c4280-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1",
        "DATA_DIR": str(tmp_path / "data"),
        "BUCKET": "",
    }
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "answer {'batchItemFailures': []}" in ran.stdout
    [job] = found(store)
    assert job.error is not None
    assert job.error.code == "unreadable_image"
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    claimed = [line for line in lines if "claimed" in str(line.get("message"))]
    assert [line["job_id"] for line in claimed] == [job.id]  # the worker's lines carry the keys of the handler's
    assert metrics(ran.stdout)["Failed"] == 1
    assert any(line.get("ColdStart") for line in lines)
