"""What an operator asks of the account, besides `sam`: will a deploy work, put uploads back, keep few images.

    python infra/account.py preflight [NAME=VALUE ...]    as for `sam deploy`; exit code 1 where one will not do
    python infra/account.py redrive STACK                 dead letters back into the queue of uploads
    python infra/account.py image-lifecycle STACK         keep the last three images of each function

Run by make targets of the same names. Credentials and region come from the environment. preflight changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

#: EC2 quotas, in virtual processors: (parameter, code, name).
QUOTAS = (
    ("SpotVcpus", "L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("OnDemandVcpus", "L-DB2E81BA", "Running On-Demand G and VT instances"),
)
#: The most that a new account may give a function; what an account may really give is only known from trying.
NEW_ACCOUNT_MEMORY = 3008
#: Invocations that an account must keep unreserved.
UNRESERVED = 100
LIFECYCLE = {
    "rules": [
        {
            "rulePriority": 1,
            "description": "the last three",
            "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 3},
            "action": {"type": "expire"},
        }
    ]
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        good: whether a deploy works as far as this goes; None where that cannot be known.
        text: one line for people.
    """

    good: bool | None
    text: str


def defaults(template: Path) -> dict[str, str]:
    """The parameters' defaults; read as text, because CloudFormation's tags are no plain YAML."""
    section = template.read_text().split("\nParameters:\n")[1].split("\nMappings:\n")[0]
    found = {}
    for block in re.split(r"\n(?=  \w)", section):
        if (name := re.match(r"\s*(\w+):\n", block)) and (value := re.search(r"\n    Default: (.*)", block)):
            found[name[1]] = value[1].strip('"')
    return found


def preflight(given: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything that can be asked before a deploy.

    Args:
        given: every parameter's value, by its name in template.yaml.

    Yields:
        What was found.
    """
    session = boto3.Session()
    identity = session.client("sts").get_caller_identity()
    yield Finding(True, f"account {identity['Account']}, region {session.region_name}")
    yield from _functions(session, given)
    if given["AccessLogs"] == "use-role":
        role = session.client("apigateway").get_account().get("cloudwatchRoleArn")
        yield Finding(
            bool(role),
            f"API Gateway's role for logs: {role or 'there is none'}"
            + ("" if role else "; AccessLogs=set-role sets one"),
        )
    if int(given["SpotVcpus"]) or int(given["OnDemandVcpus"]):
        yield from _machines(session, given)
        yield from _image(session, given.get("STACK", "upscaler"))


def _functions(session: boto3.Session, given: Mapping[str, str]) -> Iterator[Finding]:
    limit = session.client("lambda").get_account_settings()["AccountLimit"]["ConcurrentExecutions"]
    uploads, reserved = int(given["UploadConcurrency"]), int(given["ApiConcurrency"] or 0)
    yield Finding(
        uploads < limit, f"{limit} functions at a time in all, UploadConcurrency={uploads} leaves {limit - uploads}"
    )
    if reserved:
        left = limit - reserved
        yield Finding(left >= UNRESERVED, f"ApiConcurrency={reserved} leaves {left}, and {UNRESERVED} must be left")
    if int(given["Memory"]) > NEW_ACCOUNT_MEMORY:
        text = f"Memory={given['Memory']}: a new account may have no more than {NEW_ACCOUNT_MEMORY}; no API tells"
        yield Finding(None, text)


def _machines(session: boto3.Session, given: Mapping[str, str]) -> Iterator[Finding]:
    quotas = session.client("service-quotas")
    for parameter, code, name in QUOTAS:
        wanted = int(given[parameter])
        if not wanted:
            continue
        try:
            value = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except (ClientError, BotoCoreError) as error:
            yield Finding(None, f"{name}: not known ({error})")
            continue
        yield Finding(
            value >= min(wanted, 4),
            f"{name}: {value:g} processors, {parameter}={wanted}"
            + ("" if value >= wanted else f"; ask for more (Service Quotas, {code})"),
        )
    ec2 = session.client("ec2")
    types = given["InstanceTypes"].split(",")
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": types}]
    )
    zones: dict[str, list[str]] = {name: [] for name in types}
    for page in pages:
        for offer in page["InstanceTypeOfferings"]:
            zones[offer["InstanceType"]].append(offer["Location"])
    for name, where in zones.items():
        yield Finding(bool(where), f"{name}: {', '.join(sorted(where)) or 'not in this region'}")
    if not all(zones.values()):
        left = ",".join(name for name, where in zones.items() if where)
        yield Finding(
            None, f"say InstanceTypes={left}" if left else "another region has GPU machines, this one has not"
        )


def _image(session: boto3.Session, stack: str) -> Iterator[Finding]:
    try:
        uri = outputs(session, stack).get("BatchRepositoryUri", "")
    except (ClientError, BotoCoreError):
        uri = ""
    if not uri:
        yield Finding(None, "no image for the GPU jobs yet: after the deploy, make batch-image")
        return
    try:
        session.client("ecr").describe_images(repositoryName=uri.partition("/")[2], imageIds=[{"imageTag": "latest"}])
        yield Finding(True, f"the GPU jobs' image is in {uri}")
    except ClientError:
        yield Finding(False, f"no image in {uri}: make batch-image")


def outputs(session: boto3.Session, stack: str) -> dict[str, str]:
    """The outputs of a stack by their names.

    Raises:
        botocore.exceptions.ClientError: no such stack.
    """
    [found] = session.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}


def redrive(stack: str) -> str:
    """Have SQS put all dead letters back into the queue that they came from; gives the handle of that work.

    Raises:
        botocore.exceptions.ClientError: no such stack, or there is nothing to put back.
    """
    session = boto3.Session()
    answer = session.client("sqs").start_message_move_task(SourceArn=outputs(session, stack)["DeadLettersArn"])
    return str(answer["TaskHandle"])


def image_lifecycle(stack: str) -> list[str]:
    """Have ECR keep the last three images of each function; gives the names of the repositories.

    SAM makes them, in a stack of its own beside ours.

    Raises:
        botocore.exceptions.ClientError: it cannot be done.
    """
    session = boto3.Session()
    found: list[dict[str, Any]] = []
    for page in session.client("cloudformation").get_paginator("list_stacks").paginate():
        found += page["StackSummaries"]
    beside = {
        of["StackName"] for of in found if re.fullmatch(rf"{re.escape(stack)}-\w+-CompanionStack", of["StackName"])
    }
    changed = []
    for name in sorted(beside):
        for resource in session.client("cloudformation").describe_stack_resources(StackName=name)["StackResources"]:
            if resource["ResourceType"] == "AWS::ECR::Repository":
                repository = resource["PhysicalResourceId"]
                text = json.dumps(LIFECYCLE)
                session.client("ecr").put_lifecycle_policy(repositoryName=repository, lifecyclePolicyText=text)
                changed.append(repository)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description="Ask the account, or change what sam does not.")
    parser.add_argument("action", choices=["preflight", "redrive", "image-lifecycle"])
    parser.add_argument("words", nargs="*", metavar="STACK or NAME=VALUE")
    asked = parser.parse_args(arguments)
    try:
        if asked.action == "preflight":
            given = defaults(Path(__file__).parents[1] / "template.yaml")
            given |= dict(word.split("=", 1) for word in asked.words)
            bad = 0
            for finding in preflight(given):
                mark = {True: "ok ", False: "NO ", None: "?  "}[finding.good]
                print(mark, finding.text)
                bad += finding.good is False
            return int(bad > 0)
        [stack] = asked.words
        if asked.action == "redrive":
            print(f"SQS puts the dead letters back: {redrive(stack)}")
        else:
            print(
                "the last three images are kept in:", *image_lifecycle(stack) or ["(no repository found)"], sep="\n  "
            )
    except (ClientError, BotoCoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
