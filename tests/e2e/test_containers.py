"""The images themselves: small, clean, read-only and without rights; run by `sam local`, and by Batch.

They need a Docker engine and a base image for the builds, whose name is in BASE_IMAGE; .ci/run makes both where it can.
Elsewhere these tests are skipped, with the reason. Batch is moto's, which runs jobs as containers on this machine.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import yaml

from handler import batch_job, jobs
from handler.jobs import Backend, State
from handler.storage import S3Storage
from tests.e2e.containers import CONFINED, TORCH_INDEX, container, docker, pixels, ran, same
from tests.e2e.emulator import EVENTS, ROOT, function
from tests.integration.work import PATIENCE, as_stored, event, picture, queued, result, wait_for
from tests.servers import ACCESS_KEY, SECRET_KEY, answers, binary, free_ports, listens, make_bucket, run_server

pytestmark = pytest.mark.slow

SAM = ROOT / ".venv-infra" / "bin" / "sam"
INVOKE = "/2015-03-31/functions/function/invocations"
LIMIT = 1_000_000_000
#: Printed by a container: what should not be in the image.
LOOK = """
import json, pathlib, shutil
task = pathlib.Path("/var/task")
ours = [path for name in ("core", "handler") for path in (task / name).rglob("*.py")]
print(json.dumps({
    "compilers": [name for name in ("cc", "gcc", "g++", "clang", "make", "ninja") if shutil.which(name)],
    "caches": [name for name in ("/root/.cache", "/tmp/pip", "/tmp/huggingface") if pathlib.Path(name).exists()],
    "tests": [str(path) for path in task.rglob("*") if path.is_dir() and path.name in ("test", "tests")],
    "unused": [name for name in ("transformers", "pytest", "moto", "triton", "nvidia") if (task / name).exists()],
    "not compiled": [str(path) for path in ours if not list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))],
}))
"""


@pytest.fixture(scope="module")
def image(base: str) -> str:
    """What `make image` builds."""
    ran(["make", "image", f"TORCH_INDEX={TORCH_INDEX}"], BASE_IMAGE=base)
    return "upscaler"


@pytest.fixture(scope="module")
def batch_image(base: str) -> str:
    """The other target; the CPU build of torch does here."""
    arguments = [f"--build-arg={name}={base}" for name in ("BASE_IMAGE", "BATCH_BASE_IMAGE")]
    docker("build", "--target=batch", "--tag=upscaler-batch", f"--build-arg=TORCH_INDEX={TORCH_INDEX}", *arguments, ".")
    return "upscaler-batch"


def call(url: str, data: bytes) -> Any:
    """Invoke a function whose emulator may still be starting."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=PATIENCE) as answer:
                return json.load(answer)
        except (ConnectionError, urllib.error.URLError):
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.1)


def check_example(answer: dict[str, Any]) -> None:
    """The answer to tests/events/rest_upscale.json: a picture, twice as large."""
    assert answer["statusCode"] == 200, answer
    assert answer["headers"]["x-upscale-model"] == "compact-x2"
    assert answer["headers"]["x-upscale-degraded"] == "false"
    assert pixels(base64.b64decode(answer["body"])).shape == (24, 32, 3)


# -- the image for Lambda ---------------------------------------------------------------------------------------------


def test_the_image_adds_no_more_than_a_gigabyte_to_its_base(base: str, image: str) -> None:
    size, bare = (int(docker("image", "inspect", "--format={{.Size}}", name)) for name in (image, base))
    assert 0 < size - bare <= LIMIT


@pytest.mark.parametrize("name", ["image", "batch_image"])
def test_nothing_is_in_the_images_that_never_runs(name: str, request: pytest.FixtureRequest) -> None:
    built = request.getfixturevalue(name)
    # As root, so that no folder is hidden.
    found = json.loads(docker("run", "--rm", "--network=none", "--user=0", "--entrypoint=python3", built, "-c", LOOK))
    assert found == {"compilers": [], "caches": [], "tests": [], "unused": [], "not compiled": []}


def test_it_runs_read_only_and_without_rights(image: str) -> None:
    arguments = [*CONFINED, "--memory=3008m", "--publish=127.0.0.1::8080", "--env=BUCKET=upscaler-example"]
    with container(*arguments, image) as id:
        address = docker("port", id, "8080/tcp").splitlines()[0]
        sent = (EVENTS / "rest_upscale.json").read_bytes()
        for _ in range(2):
            check_example(call(f"http://{address}{INVOKE}", sent))
        assert docker("exec", id, "id", "-u") == "10001"
        for path in ("/var/task/x", "/opt/x", "/x"):
            refused = subprocess.run(["docker", "exec", id, "touch", path], capture_output=True, text=True)
            assert "Read-only file system" in refused.stderr


def test_baked_weights_are_proved_against_transformers(base: str, image: str, tmp_path: Path) -> None:
    """The build loads them with transformers, and the image runs them without it and without a network."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Swin2SRConfig(
        embed_dim=12, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffledirect", image_size=16
    )
    for name in ("core", "handler", "infra"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    torch.seed()  # new weights: what is in the engine's cache is not checked again, and says nothing
    transformers.Swin2SRForImageSuperResolution(config).save_pretrained(tmp_path / "models" / "tiny")
    arguments = [f"--build-arg=BASE_IMAGE={base}", f"--build-arg=TORCH_INDEX={TORCH_INDEX}"]
    arguments += ["--build-arg=MODELS=models/tiny", "--target=lambda", "--tag=upscaler-tiny", str(tmp_path)]
    assert "tiny: as transformers" in docker("build", *arguments)
    code = (
        "import io, core; from PIL import Image; picture = io.BytesIO();"
        "Image.new('RGB', (20, 12)).save(picture, 'PNG');"
        "made = core.upscale(picture, core.Options(model='/opt/models/tiny')); print(made.width, made.degraded)"
    )
    run = ["run", "--rm", "--network=none", *CONFINED, "--entrypoint=python3"]
    assert docker(*run, "upscaler-tiny", "-c", code) == "40 False"


# -- SAM ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam(base: str) -> str:
    """Run `make invoke`: what it printed. The functions are built after that."""
    if not SAM.exists():
        pytest.skip(f"{SAM.relative_to(ROOT)} is not installed (make infra)")
    return ran(
        ["make", "--no-print-directory", "invoke", f"TORCH_INDEX={TORCH_INDEX}"], BASE_IMAGE=base, SAM_CLI_TELEMETRY="0"
    )


def test_make_invoke(sam: str) -> None:
    check_example(json.loads(sam.splitlines()[-1]))


def test_sam_local_start_api_with_curl(sam: str, tmp_path: Path) -> None:
    [port] = free_ports(1)
    before = docker("ps", "--quiet", "--all")
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(SAM), "local", "start-api", "--port", str(port)],
            cwd=ROOT, env={**os.environ, "SAM_CLI_TELEMETRY": "0"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # Tests that a shell runs in the background ignore it, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        wait_for(lambda: listens(port), "start-api")
        (tmp_path / "photo.jpg").write_bytes(data := picture(90, 60, format="JPEG"))
        url = f"http://127.0.0.1:{port}/upscale"
        for query in ("", "?scale=2"):
            line = ["curl", "-sS", "--fail", "--noproxy", "*", "-F", f"file=@{tmp_path / 'photo.jpg'}", url + query]
            ran([*line, "--output", str(tmp_path / "photo-x2.jpg")])
            assert same((tmp_path / "photo-x2.jpg").read_bytes(), data)
        [started] = set(docker("ps", "--quiet").split()) - set(before.split())
        assert docker("inspect", "--format={{.HostConfig.Memory}}", started) == str(3008 * 1024 * 1024)
    finally:
        server.send_signal(signal.SIGINT)  # anything else leaves its container behind
        try:
            server.wait(PATIENCE)
        finally:
            server.kill()
    assert docker("ps", "--quiet", "--all") == before, (tmp_path / "log").read_text()


@contextmanager
def gateway(port: int) -> Iterator[str]:
    """Where containers find a server of this machine that listens on 127.0.0.1: an address of their own network."""
    [subnet] = json.loads(docker("network", "inspect", "bridge", "--format={{json .IPAM.Config}}"))
    host = subnet.get("Gateway") or str(ip_network(subnet["Subnet"])[1])

    def copy(source: socket.socket, target: socket.socket) -> None:
        with source, suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server((host, 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes up accept
            thread.join()


def test_sam_local_invoke_with_an_upload(sam: str, seaweedfs: str, tmp_path: Path) -> None:
    storage = S3Storage(make_bucket(seaweedfs), endpoint_url=seaweedfs)
    job = queued(storage, data := picture(50, 40))
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["bucket"]["name"] = storage.bucket
    sent["Records"][0]["s3"]["object"]["key"] = job.input.key
    (tmp_path / "event.json").write_text(json.dumps(as_stored(storage, sent)))
    with gateway(int(seaweedfs.rpartition(":")[2])) as address:
        # The template has no variable for the address of S3: on AWS nobody needs one.
        template = yaml.safe_load((ROOT / ".aws-sam" / "build" / "template.yaml").read_text())
        variables = template["Globals"]["Function"]["Environment"]["Variables"]
        variables |= {"BUCKET": storage.bucket, "S3_ENDPOINT_URL": address}
        (tmp_path / "template.yaml").write_text(yaml.safe_dump(template))
        command = [str(SAM), "local", "invoke", "UploadFunction", "--event", str(tmp_path / "event.json")]
        said = ran([*command, "--template", str(tmp_path / "template.yaml")], SAM_CLI_TELEMETRY="0")
    assert json.loads(said.splitlines()[-1]) == {"batchItemFailures": []}
    done = jobs.get(storage, job.id)
    assert (done.state, done.degraded, done.attempt) == (State.SUCCEEDED, False, 1), done.error
    assert same(result(storage, done), data)


# -- Batch -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch(base: str, seaweedfs: str, batch_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Variables of a function that sends everything to a Batch which runs our image, beside the S3 server."""
    storage = S3Storage(make_bucket(seaweedfs), endpoint_url=seaweedfs)
    [port] = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [binary("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    variables = {"BUCKET": storage.bucket, "S3_ENDPOINT_URL": seaweedfs, "LEASE_SECONDS": "5", "TILE_SIZE": "48"}
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
    definition = {
        "image": batch_image,
        "vcpus": 1,
        "memory": 4096,
        "command": ["python", "-m", "handler.batch_job", "--help"],
        "environment": [{"name": name, "value": value} for name, value in {**variables, **credentials}.items()],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_DOCKER_NETWORK_MODE", "host")  # the S3 server listens on 127.0.0.1
        for _ in run_server(command, tmp_path_factory.mktemp("moto") / "log", answers(endpoint)):
            client: Any = boto3.client("batch", endpoint_url=endpoint)
            iam = boto3.client("iam", endpoint_url=endpoint)
            role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
            environment = client.create_compute_environment(
                computeEnvironmentName="machines", type="UNMANAGED", state="ENABLED", serviceRole=role
            )["computeEnvironmentArn"]
            order = [{"order": 1, "computeEnvironment": environment}]
            client.create_job_queue(jobQueueName="queue", state="ENABLED", priority=1, computeEnvironmentOrder=order)
            client.register_job_definition(
                jobDefinitionName="upscale", type="container", containerProperties=definition
            )
            sending = {"BATCH_QUEUE": "queue", "BATCH_JOB_DEFINITION": "upscale", "LAMBDA_SECONDS": "0"}
            yield {**variables, **sending, "INLINE_SECONDS": "0", "AWS_ENDPOINT_URL_BATCH": endpoint}, storage, client


def submitted(storage: S3Storage, variables: dict[str, str], data: bytes, folder: Path) -> jobs.Job:
    """An upload that the function for uploads has sent to Batch."""
    job = queued(storage, data)
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["bucket"]["name"] = storage.bucket
    sent["Records"][0]["s3"]["object"]["key"] = job.input.key
    folder.mkdir()
    with function("handler.s3_event.handler", folder, variables) as uploads:
        assert uploads(as_stored(storage, sent)) == {"batchItemFailures": []}
    job = jobs.get(storage, job.id)
    assert job.backend is Backend.BATCH
    assert job.batch_job_id
    return job


def test_batch_runs_the_image(batch: Any, tmp_path: Path) -> None:
    variables, storage, client = batch
    job = submitted(storage, variables, data := picture(100, 70), tmp_path / "uploads")

    def ended() -> bool:
        status = client.describe_jobs(jobs=[job.batch_job_id])["jobs"][0]["status"]
        return status in ("SUCCEEDED", "FAILED")

    wait_for(ended, "Batch")
    done = jobs.get(storage, job.id)
    assert (done.state, done.backend, done.degraded) == (State.SUCCEEDED, Backend.BATCH, False), done.error
    assert done.batch_job_id == job.batch_job_id
    assert same(result(storage, done), data)
    assert client.describe_jobs(jobs=[job.batch_job_id])["jobs"][0]["status"] == "SUCCEEDED"


def test_a_killed_container_is_reported_as_a_failed_job(batch: Any, tmp_path: Path) -> None:
    variables, storage, client = batch
    job = submitted(storage, variables, picture(2000, 1500), tmp_path / "uploads")
    wait_for(lambda: jobs.get(storage, job.id).progress.done, "the first tiles")
    name = f"upscale-{job.id}-{job.batch_job_id}"
    with subprocess.Popen(["docker", "wait", name], stdout=subprocess.PIPE, text=True) as waiting:
        docker("kill", name)
        exit_code = int(waiting.communicate(timeout=PATIENCE)[0])
    assert exit_code == 128 + signal.SIGKILL

    def told() -> dict[str, Any]:
        found: dict[str, Any] = client.describe_jobs(jobs=[job.batch_job_id])["jobs"][0]
        return found

    wait_for(lambda: told()["status"] == "FAILED", "Batch")
    assert jobs.get(storage, job.id).state is State.RUNNING  # nobody has told it
    # The detail of Batch's event is what describe_jobs says; moto's leaves the exit code out.
    sent = {**event("batch_failed.json"), "detail": json.loads(json.dumps(told(), default=str))}
    sent["detail"]["container"]["exitCode"] = exit_code
    (tmp_path / "event").mkdir()
    with function("handler.batch_event.handler", tmp_path / "event", variables) as tell:
        assert tell(sent) == {"id": job.id, "state": "failed"}
    failed = jobs.get(storage, job.id)
    assert (failed.state, failed.lease) == (State.FAILED, None)
    assert failed.error
    assert failed.error.code == "batch_failed"
    assert "137" in failed.error.message


def test_the_batch_image_runs_read_only_and_without_rights(batch: Any, batch_image: str) -> None:
    """As the job definition of the template asks."""
    variables, storage, _ = batch
    job = queued(storage, data := picture(30, 20))
    news = {"backend": Backend.BATCH, "batch_job_id": "by-hand"}
    jobs.change(storage, job.id, lambda now: now.model_copy(update=news))
    settings = {name: variables[name] for name in ("BUCKET", "S3_ENDPOINT_URL")}
    settings |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
    given = [f"--env={name}={value}" for name, value in (settings | {"AWS_BATCH_JOB_ID": "by-hand"}).items()]
    command = ["python", "-m", "handler.batch_job", "--job", job.id]
    with container(*CONFINED, "--network=host", "--memory=4g", *given, batch_image, *command) as id:
        assert docker("wait", id) == str(batch_job.ENDED)
    assert same(result(storage, jobs.get(storage, job.id)), data)
