"""The handlers' real ways of working under exactly the roles of the template, and under these less one action each.

IAM is moto's, in this process: it knows the resources of S3, and only the actions of SQS, Batch and Secrets Manager.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, cast

import boto3
import pytest
from aws_lambda_powertools.utilities import parameters
from aws_lambda_powertools.utilities.parameters import base
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.batch.models import batch_backends
from moto.core.authorization import enable_iam_authentication
from starlette.testclient import TestClient

from core import enlarge
from handler import array_child, batch, batch_event, batch_job, jobs, s3_event, sweep, upload_queue, webhook, worker
from handler.archive import document, order, steps, targets
from handler.archive.order import OrderState
from handler.jobs import Backend, Failure, Job, Lease, State, utc_now
from handler.settings import Settings
from handler.storage import S3Storage, StorageError
from handler.web.app import build
from tests.infra import graph
from tests.integration.receiver import Receiver
from tests.integration.work import AT_ONCE, TTL, Context, as_stored, event, picture

pytestmark = pytest.mark.slow

BUCKET = "upscaler-" + graph.STACK_ID.rpartition("/")[2]
#: What a flow cannot show: why.
NOT_SHOWN = {
    "logs:CreateLogStream": "Lambda does it",
    "logs:PutLogEvents": "Lambda does it",
    "sqs:ReceiveMessage": "Lambda does it",
    "sqs:DeleteMessage": "Lambda does it",
    "s3:AbortMultipartUpload": "only when an upload of parts breaks off",
}
#: The same, of one role: (role, action, part of the bucket).
NOT_SHOWN_OF = {
    **{
        ("JobRole", f"s3:{action}", f"/{prefix}/*"): "parts of archives: run on S3 without roles in test_archive.py"
        for prefix in ("archives", "upscaled", "scans")
        for action in ("GetObject", "PutObject", "DeleteObject")
    },
    **{
        (role, "s3:GetObject", "/models/*"): "a model under an s3:// prefix: run without roles in test_s3_models.py"
        for role in ("ApiRole", "UploadRole", "JobRole")
    },
    ("UploadRole", "sqs:GetQueueAttributes", "*"): "Lambda does it",
    (
        "ApiRole",
        "s3:GetObject",
        "/archives/*",
    ): "a signed link may do what its signer may; moto does not ask who that is",
    **{
        (role, "s3:GetObject", "/results/*"): "a signed link may do what its signer may; moto does not ask who that is"
        for role in ("ApiRole", "UploadRole", "BatchEventRole", "JobRole")
    },
}


@dataclass
class Account:
    """What the stack makes, as far as the flows need it."""

    settings: Settings
    policies: dict[str, dict[str, Any]]
    receiver: Receiver
    made: list[str] = field(default_factory=list)
    entered: int = 0
    storage: S3Storage = field(default_factory=lambda: S3Storage(BUCKET, attempts=1))

    def job(self, *, upload: bytes = b"", **news: Any) -> Job:
        """A queued job with its upload, made with all rights."""
        wanted = jobs.Request(filename="a.png", content_type="image/png", webhook=self.receiver.url)
        job = jobs.create(self.storage, wanted, ttl=TTL)
        self.storage.put(job.input.key, upload or picture(), "image/png")
        jobs.uploaded(self.storage, job.id)
        return jobs.change(self.storage, job.id, lambda now: now.model_copy(update=news))

    @contextmanager
    def under(self, role: str, without: tuple[str, str] | None = None) -> Iterator[None]:
        """As somebody who has this role; `without`: an action, and the part of the bucket that it is taken from."""
        policy = copy.deepcopy(self.policies[role])
        if without:
            action, where = without
            for statement in policy["Statement"]:
                if statement["Resource"].rpartition(BUCKET)[2] == where:
                    statement["Action"] = [name for name in statement["Action"] if name != action]
            policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
        for statement in policy["Statement"]:  # moto has the actions of Batch by the paths of its requests
            statement["Action"] = [name.lower() if name.startswith("batch:") else name for name in statement["Action"]]
        iam = boto3.client("iam")
        name = f"{role}-{len(self.made)}"
        self.made.append(name)
        trust = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}]}
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="function", PolicyDocument=json.dumps(policy))
        given = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        with pytest.MonkeyPatch.context() as patch, enable_iam_authentication():
            patch.setenv("AWS_ACCESS_KEY_ID", given["AccessKeyId"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", given["SecretAccessKey"])
            patch.setenv("AWS_SESSION_TOKEN", given["SessionToken"])
            for cached in (batch.batch_client, upload_queue.sqs_client):
                cached.cache_clear()
            boto3.DEFAULT_SESSION = None
            parameters.clear_caches()  # type: ignore[no-untyped-call]
            base.DEFAULT_PROVIDERS.clear()  # type: ignore[attr-defined]
            everybody, self.storage = self.storage, S3Storage(BUCKET, attempts=1)
            self.entered += 1
            try:
                yield
            finally:
                webhook.wait(300)
                self.storage = everybody
                for cached in (batch.batch_client, upload_queue.sqs_client):
                    cached.cache_clear()
                boto3.DEFAULT_SESSION = None


def policy_of(template: graph.Template, role: str) -> dict[str, Any]:
    """A role's own policy, resolved; what is not S3 is for everything, see above."""
    [policy] = template["Resources"][role]["Properties"]["Policies"]
    document = copy.deepcopy(policy["PolicyDocument"])
    given = [part["Fn::If"][1] if "Fn::If" in part else part for part in document["Statement"]]  # with every condition
    document["Statement"] = given
    for statement in document["Statement"]:
        statement["Action"] = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        text = statement["Resource"]
        if all(action.startswith("s3:") for action in statement["Action"]):
            statement["Resource"] = (
                text["Fn::Sub"][0].replace("${AWS::Partition}", "aws").replace("upscaler-${Id}", BUCKET)
            )
        else:
            statement["Resource"] = "*"
    return cast(dict[str, Any], document)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory, aws_environment: None) -> Iterator[Account]:
    template = graph.source()
    policies = {role: policy_of(template, role) for role in ("ApiRole", "UploadRole", "BatchEventRole", "JobRole")}
    with mock_aws(config={"batch": {"use_docker": False}}), Receiver() as receiver:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        queue = boto3.client("sqs").create_queue(QueueName="uploads")["QueueUrl"]
        secret = boto3.client("secretsmanager").create_secret(Name="key", SecretString="the key")["ARN"]
        role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        client = boto3.client("batch")
        machines = client.create_compute_environment(
            computeEnvironmentName="machines", type="UNMANAGED", state="ENABLED", serviceRole=role
        )["computeEnvironmentArn"]
        order = [{"order": 1, "computeEnvironment": machines}]
        client.create_job_queue(jobQueueName="queue", state="ENABLED", priority=1, computeEnvironmentOrder=order)  # type: ignore[arg-type]
        container = {"image": "upscaler", "vcpus": 1, "memory": 512, "command": ["true"]}
        client.register_job_definition(jobDefinitionName="jobs", type="container", containerProperties=container)  # type: ignore[arg-type]
        settings = Settings(
            bucket=BUCKET, batch_queue="queue", batch_job_definition="jobs", upload_queue_url=queue,
            webhook_secret_arn=secret, webhook_allow_private=True, warm_model="none", max_response_bytes=1,
            archive_sources="scans", archive_targets="upscaled",
        )  # fmt: skip
        yield Account(settings, policies, receiver)


@pytest.fixture(autouse=True)
def _entry_points(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits, and one store serves all entry points."""
    run_job = worker.run_job
    monkeypatch.setattr(worker, "run_job", lambda *a, **named: run_job(*a, **{**named, "retry_delays": AT_ONCE}))
    for module in (s3_event, batch_event):
        monkeypatch.setattr(module, "open_from_environment", lambda: (account.settings, account.storage))


def signed(account: Account, job: Job) -> None:
    """The webhook came, with a signature by the secret's key."""
    webhook.wait(300)
    [(headers, body)] = [
        (headers, body) for _, _, headers, body in account.receiver.requests if headers["X-Upscale-Job"] == job.id
    ]
    timestamp = int(headers["X-Upscale-Timestamp"])
    assert headers["X-Upscale-Signature"] == webhook.sign("the key", timestamp, body)


def api(account: Account, as_role: Callable[[], Any]) -> None:
    """Announce, defer, redirect, show, cancel on Batch, retry."""
    submitted = account.job(backend=Backend.BATCH)
    submitted = batch.submit(account.storage, account.settings, submitted)
    account.storage.put(f"results/{submitted.id}/1/part.png", b"half", "image/png")
    account.storage.put(f"work/{submitted.id}/key/000000.band", b"band", "")
    done = account.job()
    failed = account.job(state=State.FAILED)
    with as_role():
        client = TestClient(build(account.settings, account.storage), raise_server_exceptions=False)
        wanted = {"filename": "a.png", "content_type": "image/png"}
        assert client.post("/jobs", json=wanted).status_code == 201
        file = {"file": ("a.png", picture())}
        assert client.post("/upscale", files=file, headers={"Prefer": "respond-async"}).status_code == 202
        assert client.post("/upscale", files=file, follow_redirects=False).status_code == 303
        assert client.get(f"/jobs/{done.id}").status_code == 200
        assert client.delete(f"/jobs/{submitted.id}").status_code == 200
        assert client.post(f"/jobs/{failed.id}/retry").status_code == 201
        archive = client.post("/archives", json={"source": "scans", "target": "upscaled"})
        assert archive.status_code in (200, 201)
        assert client.delete(f"/archives/{archive.json()['id']}").status_code == 200
        signed(account, submitted)
    assert not list(account.storage.list(f"results/{submitted.id}/"))
    assert not list(account.storage.list(f"work/{submitted.id}/"))


def message(account: Account, body: str) -> dict[str, Any]:
    """An event as Lambda makes it of a message that it has received."""
    sqs, url = boto3.client("sqs"), account.settings.upload_queue_url
    sqs.send_message(QueueUrl=url, MessageBody=body)
    [received] = sqs.receive_message(QueueUrl=url)["Messages"]
    record = {"eventSource": "aws:sqs", "messageId": "1", "receiptHandle": received["ReceiptHandle"], "body": body}
    return {"Records": [{**record, "attributes": {"ApproximateReceiveCount": "1"}}]}


def upload(account: Account, as_role: Callable[[], Any]) -> None:
    """An upload that is done, one that goes to Batch, and a message that is to come again soon."""
    here, larger = account.job(), account.job()
    account.storage.put(f"results/{here.id}/0/part.png", b"half", "image/png")
    account.storage.put(f"work/{here.id}/key/000000.band", b"band", "")
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["bucket"]["name"] = BUCKET
    sent["Records"][0]["s3"]["object"]["key"] = here.input.key
    first = message(account, json.dumps(as_stored(account.storage, sent)))
    second, third = message(account, json.dumps({"job": larger.id})), message(account, "no JSON")
    context = cast(LambdaContext, Context())
    with as_role():
        assert s3_event.handler(first, context) == {"batchItemFailures": []}
        signed(account, here)
        small = account.settings.model_copy(update={"lambda_seconds": 0.0})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s3_event, "open_from_environment", lambda: (small, account.storage))
            assert s3_event.handler(second, context) == {"batchItemFailures": []}
        upload_queue.again_soon(account.settings, third["Records"][0])
    assert jobs.get(account.storage, here.id).state is State.SUCCEEDED
    assert len(list(account.storage.list(f"results/{here.id}/"))) == 1
    assert not list(account.storage.list(f"work/{here.id}/"))
    assert jobs.get(account.storage, larger.id).batch_job_id


def archive_order(account: Account) -> str:
    """The id of an archive that was asked for, made with all rights."""
    now = utc_now()
    asked = order.Order(
        id=jobs.new_id(), state=OrderState.PLANNING, source="scans/", target="upscaled/", names=targets.TEMPLATE,
        created=now, updated=now,
    )  # fmt: skip
    return order.create(account.storage, asked)[0].id


def watch(account: Account, as_role: Callable[[], Any]) -> None:
    """A dead container, and a sweep: an upload that nobody reported, a worker that died, jobs on Batch."""
    queue = boto3.client("sqs").create_queue(QueueName=jobs.new_id())["QueueUrl"]  # of others there may be messages
    account.settings = account.settings.model_copy(update={"upload_queue_url": queue})
    for found in list(account.storage.list("")):  # of flows before this one
        account.storage.delete(found.key)
    old = utc_now() - timedelta(hours=5)
    lease = Lease(owner="dead", until=old)
    died = account.job(state=State.RUNNING, lease=lease, backend=Backend.LAMBDA)
    never = account.job(backend=Backend.BATCH)
    waits = batch.submit(account.storage, account.settings, account.job(backend=Backend.BATCH))
    batch_backends[graph.ACCOUNT][graph.REGION]._jobs[str(waits.batch_job_id)].status = "RUNNABLE"  # moto ends them all
    announced = jobs.create(account.storage, jobs.Request(filename="b.png", content_type="image/png"), ttl=TTL)
    account.storage.put(announced.input.key, picture(), "image/png")
    stuck = account.job(state=State.RUNNING, backend=Backend.BATCH, batch_job_id="gone")
    account.storage.put(f"results/{stuck.id}/1/part.png", b"half", "image/png")
    account.storage.put(f"work/{stuck.id}/key/000000.band", b"band", "")
    sent = event("batch_failed.json")
    sent["detail"] |= {"jobId": "gone"}
    sent["detail"]["container"]["command"][-1] = stuck.id
    later = utc_now() + timedelta(hours=3)
    account.storage.put("scans/a.png", picture(), "image/png")
    asked = archive_order(account)
    with as_role():
        start = steps.submit(account.storage, account.settings)
        now = steps.advance(account.storage, account.settings, asked, start)
        assert now.estimate
        assert (now.state, now.estimate.unreadable) == (OrderState.RUNNING, 0)
        [part] = [found.key for found in account.storage.list("archives/") if found.key.endswith("/000001.jsonl")]
        rows = f"{document.rows_prefix(part)}1.jsonl"
        account.storage.put(rows, b"", "application/x-ndjson")
        order.change(account.storage, asked, lambda now: now.model_copy(update={"state": OrderState.CANCELLING}))
        now = steps.advance(account.storage, account.settings, asked, start)
        assert (now.state, now.failed) == (OrderState.CANCELLED, 1)
        assert jobs.get(account.storage, document.job_id(part, 0)).state is State.CANCELLED
        assert rows not in [found.key for found in account.storage.list("archives/")]

        batch_event.handler(sent, cast(LambdaContext, Context()))
        signed(account, stuck)
        assert sweep.sweep(account.storage, account.settings, batch_event.reason, clock=lambda: later)["errors"] == 0
        signed(account, waits)
        sweep.sweep(account.storage, account.settings, batch_event.reason, clock=lambda: later)
    assert not list(account.storage.list(f"results/{stuck.id}/"))
    assert not list(account.storage.list(f"work/{stuck.id}/"))
    assert jobs.get(account.storage, waits.id).error == Failure(code="no_machine", message=sweep._NO_MACHINE)
    assert jobs.get(account.storage, never.id).batch_job_id
    assert jobs.get(account.storage, announced.id).state is State.QUEUED
    sqs, url = boto3.client("sqs"), account.settings.upload_queue_url
    told = {
        json.loads(found["Body"])["job"]
        for found in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    }
    assert told == {died.id, announced.id}


def container(account: Account, as_role: Callable[[], Any]) -> None:
    """A job in its container, done over what a try before it left."""
    job = account.job(backend=Backend.BATCH)
    account.storage.put(f"results/{job.id}/0/part.png", b"half", "image/png")
    with as_role(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(enlarge, "KEPT_WORK", 0)  # its band is kept, and is read by another
        key = array_child.run_part(account.storage, account.settings, job.id, (0, 2), retry_delays=AT_ONCE).id
        assert array_child.run_part(account.storage, account.settings, key, (1, 2), retry_delays=AT_ONCE).id == key
        kept = [found.key for found in account.storage.list(f"work/{job.id}/")]
        assert len(kept) == 1
        shared = {"batch_array_id": "array"}
        jobs.change(account.storage, job.id, lambda now: now.model_copy(update=shared))
        assert batch_job.run(account.storage, account.settings, job.id, threading.Event()) == batch_job.ENDED
        signed(account, job)
    done = jobs.get(account.storage, job.id)
    assert not list(account.storage.list(f"work/{job.id}/"))
    assert done.state is State.SUCCEEDED
    assert done.output
    assert [found.key for found in account.storage.list(f"results/{job.id}/")] == [done.output.key]


FLOWS = {"ApiRole": api, "UploadRole": upload, "BatchEventRole": watch, "JobRole": container}


@pytest.mark.parametrize("role", FLOWS)
def test_the_role_is_enough(account: Account, role: str) -> None:
    FLOWS[role](account, partial(account.under, role))


def taken() -> Iterator[Any]:
    """Each action of each role, with the part of the bucket that it is for."""
    template = graph.source()
    for role in FLOWS:
        for statement in policy_of(template, role)["Statement"]:
            where = statement["Resource"].rpartition(BUCKET)[2]
            for action in statement["Action"]:
                if not (action in NOT_SHOWN or (role, action, where) in NOT_SHOWN_OF):
                    yield pytest.param(role, action, where, id=f"{role}-{action}{where}")


@pytest.mark.parametrize(("role", "action", "where"), list(taken()))
def test_less_is_not_enough(account: Account, role: str, action: str, where: str) -> None:
    before = account.entered
    with pytest.raises((AssertionError, ClientError, StorageError, RuntimeError, ValueError)):
        FLOWS[role](account, partial(account.under, role, (action, where)))
    assert account.entered == before + 1, "it failed before the role came into it"
