"""infra/account.py on moto's account, and with answers made here where moto has none (quotas, redrive)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from tests.infra import graph
from tests.infra.reach import ROOT
from tests.infra.test_image import script

account = script("account")


@pytest.fixture(autouse=True)
def aws(aws_environment: None) -> Iterator[None]:
    with mock_aws():
        yield


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Answers of AWS by (service, method), given out one after another; other services are moto's."""
    given: dict[tuple[str, str], list[dict[str, Any]]] = {}
    real = boto3.Session.client

    def client(self: boto3.Session, service: str, **named: Any) -> Any:
        found = real(self, service, **named)  # type: ignore[call-overload]
        stubber = Stubber(found)
        for (name, method), of in given.items():
            if name == service:
                for answer in of:
                    stubber.add_response(method, answer)
                stubber.activate()
        return found

    monkeypatch.setattr(boto3.Session, "client", client)
    return given


def said(**parameters: str) -> dict[str, bool | None]:
    given = account.defaults(ROOT / "template.yaml") | parameters
    return {finding.text: finding.good for finding in account.preflight(given)}


def test_defaults_are_the_template_s() -> None:
    wanted = {name: str(of["Default"]) for name, of in graph.source()["Parameters"].items()}
    assert account.defaults(ROOT / "template.yaml") == wanted


def limit(functions: int) -> dict[str, Any]:
    return {"AccountLimit": {"ConcurrentExecutions": functions}}


def test_a_new_account_is_enough_for_the_defaults(answers: Any) -> None:
    answers["lambda", "get_account_settings"] = [limit(10)]
    assert set(said().values()) == {True}


def test_what_a_new_account_refuses(answers: Any) -> None:
    answers["lambda", "get_account_settings"] = [limit(10)]
    answers["service-quotas", "get_service_quota"] = [{"Quota": {"Value": 0.0}}]
    found = said(UploadConcurrency="50", ApiConcurrency="5", Memory="8846", SpotVcpus="16", AccessLogs="use-role")
    bad = [text for text, good in found.items() if good is False]
    for words in (
        "UploadConcurrency=50",
        "100 must be left",
        "role for logs: there is none",
        "0 processors, SpotVcpus=16",
    ):
        assert any(words in text for text in bad), (words, found)
    unknown = [text for text, good in found.items() if good is None]
    assert any("3008" in text for text in unknown)
    assert any("make batch-image" in text for text in unknown)
    assert any(text.startswith("g5.xlarge: us-east-1") for text in found)


def test_instance_types_that_the_region_has_not(answers: Any) -> None:
    answers["lambda", "get_account_settings"] = [limit(1000)]
    answers["service-quotas", "get_service_quota"] = [{"Quota": {"Value": 64.0}}]
    found = said(SpotVcpus="16", InstanceTypes="g4dn.xlarge,g99.xlarge")
    assert found["g99.xlarge: not in this region"] is False
    assert "say InstanceTypes=g4dn.xlarge" in found


def test_dead_letters_are_put_back(answers: Any) -> None:
    output = {"OutputKey": "DeadLettersArn", "OutputValue": "arn:aws:sqs:us-east-1:1:dead"}
    stack = {"StackName": "s", "CreationTime": 0, "StackStatus": "CREATE_COMPLETE", "Outputs": [output]}
    answers["cloudformation", "describe_stacks"] = [{"Stacks": [stack]}]
    answers["sqs", "start_message_move_task"] = [{"TaskHandle": "handle"}]
    assert account.redrive("s") == "handle"


def test_images_are_kept_for_a_while() -> None:
    """The stack that SAM makes beside ours for the repositories, and no other."""
    cloudformation = boto3.client("cloudformation")
    for name in ("upscaler-0a1b2c3d-CompanionStack", "upscaler-dev-0a1b2c3d-CompanionStack"):
        repository = {"Type": "AWS::ECR::Repository", "Properties": {"RepositoryName": name.lower()}}
        body = json.dumps({"Resources": {"Repository": repository}})
        cloudformation.create_stack(StackName=name, TemplateBody=body)
    assert account.image_lifecycle("upscaler") == ["upscaler-0a1b2c3d-companionstack"]
    policy = boto3.client("ecr").get_lifecycle_policy(repositoryName="upscaler-0a1b2c3d-companionstack")
    assert json.loads(policy["lifecyclePolicyText"]) == account.LIFECYCLE


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert account.main(["redrive", "no-such-stack"]) == 1
    assert "no-such-stack" in capsys.readouterr().err


def test_the_batch_image_is_built_for_the_machines(tmp_path: Path) -> None:
    """make batch-image with programs in place of docker and aws that say what they were asked: no registry is here."""
    log = tmp_path / "log"
    for name in ("docker", "aws"):
        program = tmp_path / name
        answer = 'case "$*" in *describe-stacks*) echo 1.dkr.ecr.us-east-1.amazonaws.com/jobs;; *) echo word;; esac'
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{log}\n{answer if name == "aws" else ""}\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["make", "batch-image"], cwd=ROOT, env=environment, check=True, capture_output=True)
    asked = log.read_text()
    assert (
        "docker build --platform linux/amd64 --target batch --tag 1.dkr.ecr.us-east-1.amazonaws.com/jobs:latest ."
        in asked
    )
    assert asked.splitlines()[-1] == "docker push 1.dkr.ecr.us-east-1.amazonaws.com/jobs:latest"
