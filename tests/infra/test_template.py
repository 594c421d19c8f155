"""template.yaml against the code: permissions and variables are exactly those that the code needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from handler import batch_event, worker
from handler.jobs import State
from handler.settings import Settings
from handler.storage import S3Storage
from handler.web import problems
from handler.web.jobs import UPLOAD_GRACE
from tests.infra import graph, reach
from tests.infra.reach import ROOT

#: Each entry point: its module, and the logical names of what runs it and of its role.
ENTRIES = {
    "api": ("ApiFunction", "ApiRole"),
    "s3_event": ("UploadFunction", "UploadRole"),
    "batch_event": ("BatchEventFunction", "BatchEventRole"),
    "batch_job": ("JobDefinition", "JobRole"),
}
#: Where each call of the store goes, by the function that calls. A new call fails `test_every_call_is_known`.
PREFIXES: dict[str, str | dict[str, str]] = {
    "archive.part.flush": "archives",
    "archive.part.read": "archives",
    "archive.part.close": "archives",
    "archive.part._found": "upscaled",
    "archive.part._upscale": {"download_version": "scans", "create_file": "upscaled"},
    "archive.part._work": {"get": "archives", "put": "results"},
    "archive.order.create": "orders",
    "archive.order.get": "orders",
    "archive.order.change": "orders",
    "archive.order.open_orders": "orders",
    "archive.listing.list_prefix": "scans",
    "archive.part.give_up": "archives",
    "archive.planning.read": "archives",
    "archive.planning.write": "archives",
    "archive.planning._write_round": "archives",
    "archive.planning._discard": "archives",
    "archive.report.gather": "archives",
    "archive.report.write_manifest": "archives",
    "archive.submission._closed": "archives",
    "archive.submission._job": "archives",
    "array_child._source": "uploads",
    "array_child.progress": "work",
    "bands.look": "work",
    "bands.read": "work",
    "bands.write": "work",
    "jobs.changes.tidy": "results",
    "jobs.changes._delete_bands": "work",
    "jobs.changes.change": "jobs",
    "jobs.changes.get": "jobs",
    "jobs.changes.succeed": "results",
    "jobs.intake._create": "jobs",
    "sweep._arrived": "uploads",
    "sweep._read": "sweep",
    "sweep._start": "uploads",
    "sweep._write": "sweep",
    "sweep.sweep": "jobs",
    "web.archives._view": "archives",
    "web.jobs._take": "uploads",
    "web.jobs.retry_job": "uploads",
    "worker.check_version": "uploads",
    "remote_file.probe": "uploads",
    "remote_file.readinto": "uploads",
    "s3_models._download_weights": "models",
    "s3_models._find_file": "models",
    "s3_models._download": "models",
    "web.preview._of_result": "results",
    "web.upscale._defer": "uploads",
    "web.upscale._keep": "results",
    "web.views.result_url": "results",
    "web.views.view": "uploads",
    "webhook.event": "results",
    "worker._work": {"download": "uploads", "upload": "results"},
}
#: Local mode alone comes to these, and to the last ones the command line of archives, with its caller's rights.
LOCAL_CALLS = {"jobs.changes.every", "local", "archive."}
#: Routes mention these, and come to them in local mode alone: in AWS nobody lists or deletes jobs by the API.
LOCAL_PLACES = {"jobs.changes.delete", "jobs.changes.every"}
#: What a method of the boto3 client needs of IAM. A signed link may do what its signer may.
S3_ACTIONS = {
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject"},
    "download_file": {"s3:GetObject"},
    "generate_presigned_url": {"s3:GetObject"},
    "put_object": {"s3:PutObject"},
    "generate_presigned_post": {"s3:PutObject"},
    "upload_file": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject"},
    "get_paginator": {"s3:ListBucket"},
}
#: Methods of the store that call the client through another one.
THROUGH = {
    "get": "_read",
    "read_range": "_read",
    "put": "_put",
    "create": "_put",
    "swap": "_put",
    "create_file": "_put",
}
#: What the functions that call Batch, SQS and Secrets Manager need.
OTHER_ACTIONS = {
    "batch.submit_batch": "batch:SubmitJob",
    "batch.terminate_batch": "batch:TerminateJob",
    "batch.describe_batch": "batch:DescribeJobs",
    "batch.count_batch": "batch:ListJobs",
    "upload_queue.send": "sqs:SendMessage",
    "upload_queue.waiting": "sqs:GetQueueAttributes",
    "upload_queue.again_soon": "sqs:ChangeMessageVisibility",
    "webhook.signing_key": "secretsmanager:GetSecretValue",
}
#: What the platform does in the function's name, the code does not.
LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
PLATFORM = {
    "ApiRole": LOGS,
    "UploadRole": LOGS | {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"},
    "BatchEventRole": LOGS,
    "JobRole": set(),  # Batch writes the logs with the machine's role
}
#: What the code mentions and never comes to: nothing is moved on from Batch, and only what failed there is started.
NEVER = {
    "batch_job": {("batch:SubmitJob", "")},
    "s3_event": {("s3:GetObject", "work"), ("s3:PutObject", "work")},  # what Lambda has the time for keeps no bands
}
#: What a function is called for by one entry point alone: a sample of an archive's headers is read by `remote_file`.
ALSO = {"batch_event": {("s3:GetObject", "scans")}}
#: Settings that make no sense on AWS, besides those of local mode.
NOT_ON_AWS = {"s3_endpoint_url", "webhook_allow_private"}
#: Settings that a stack leaves at their defaults: nobody would change them.
CONSTANT = {
    "archive_at_once",
    "batch_seconds",  # the job definition says the same: a test compares them
    "inline_seconds",
    "lambda_seconds",
    "lease_seconds",
    "link_seconds",
    "max_response_bytes",
    "models",  # the images download nothing
    "models_dir",
    "output_quality",
    "public_url",  # each request says it
    "queue_seconds",
    "tile_overlap",
    "tile_size",
    "warm_model",
}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return graph.source()


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(template: dict[str, Any], role: str) -> Iterator[dict[str, Any]]:
    """Of a role's own policies, those of a condition included."""
    for policy in template["Resources"][role]["Properties"]["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            yield statement["Fn::If"][1] if "Fn::If" in statement else statement


def allowed(template: dict[str, Any], role: str) -> set[tuple[str, str]]:
    """(action, part of the bucket) for S3, (action, "") for the rest."""
    found = set()
    for statement in statements(template, role):
        text = json.dumps(statement["Resource"])
        prefix = re.search(r"upscaler-\$\{Id\}(?:/(\w+)/\*)?\"", text)
        found |= {(action, (prefix.group(1) or "bucket") if prefix else "") for action in as_list(statement["Action"])}
    return found


def needed(module: str) -> set[tuple[str, str]]:
    """What the code that an entry point reaches needs; every one, S3's 404 for what is missing (ListBucket)."""
    found = {("s3:ListBucket", "bucket")}
    clients = {place.removeprefix("storage.s3."): method for kind, place, method in reach.clients() if kind == "s3"}
    for node in reach.reached(module):
        for place, method in reach.calls(node):
            if place in LOCAL_PLACES:
                continue
            prefix = PREFIXES[place]
            if isinstance(prefix, dict):
                prefix = prefix[method]
            for action in S3_ACTIONS[clients[THROUGH.get(method, method)]]:
                found.add((action, "bucket" if action == "s3:ListBucket" else prefix))
        if other := OTHER_ACTIONS.get(".".join(node)):
            found.add((other, ""))
    return found - NEVER.get(module, set()) | ALSO.get(module, set())


def test_every_call_is_known() -> None:
    """The tables above name each call of a client and of the store that there is."""
    found = set(reach.clients())
    assert {method for kind, _, method in found if kind == "s3"} == set(S3_ACTIONS)
    assert {(place, method) for kind, place, method in found if kind != "s3"} == {
        ("batch.submit_batch", "submit_job"),
        ("batch.terminate_batch", "terminate_job"),
        ("batch.describe_batch", "describe_jobs"),
        ("batch.count_batch", "get_paginator"),
        ("upload_queue.send", "send_message"),
        ("upload_queue.waiting", "get_queue_attributes"),
        ("upload_queue.again_soon", "change_message_visibility"),
    }
    places = {place for module in ENTRIES for node in reach.reached(module) for place, _ in reach.calls(node)}
    assert places - LOCAL_PLACES == set(PREFIXES)
    modules = {name for name in reach.modules() if not name.startswith("storage")} - {"__main__"}
    everywhere = {
        place
        for module in modules
        for top in ("", *(name for name, node in reach.names(module).items() if node[0] == module and node[1]))
        for place, _ in reach.calls((module, top))
    }
    assert {place for place in everywhere - places if not place.startswith(tuple(LOCAL_CALLS))} == set()
    assert reach.METHODS - {"sweep"} <= {name for name in vars(S3Storage) if not name.startswith("_")}


@pytest.mark.parametrize("module", ENTRIES)
def test_permissions_are_those_of_the_code(template: dict[str, Any], module: str) -> None:
    role = ENTRIES[module][1]
    given = allowed(template, role)
    platform = {(action, "") for action in PLATFORM[role]}
    assert given - platform == needed(module)
    assert platform <= given


def test_no_function_shares_its_role(template: dict[str, Any]) -> None:
    roles = []
    for module, (name, role) in ENTRIES.items():
        properties = template["Resources"][name]["Properties"]
        found = properties["ContainerProperties"]["JobRoleArn"] if module == "batch_job" else properties["Role"]
        assert found == {"Fn::GetAtt": [role, "Arn"]}
        managed = template["Resources"][role]["Properties"].get("ManagedPolicyArns")
        if module == "batch_job":
            assert managed is None
        else:  # nothing unless tracing is asked for
            xray = {"Fn::Sub": "arn:${AWS::Partition}:iam::aws:policy/AWSXRayDaemonWriteAccess"}
            assert managed == {"Fn::If": ["HasTracing", [xray], {"Ref": "AWS::NoValue"}]}
        roles.append(role)
    assert len(set(roles)) == len(roles)


def test_no_policy_is_for_everything(template: dict[str, Any]) -> None:
    for name, resource in template["Resources"].items():
        if resource["Type"] != "AWS::IAM::Role" or "Policies" not in resource["Properties"]:
            continue
        for statement in statements(template, name):
            assert "NotResource" not in statement
            assert "NotAction" not in statement
            assert all("*" not in action for action in as_list(statement["Action"])), name
            for where in as_list(statement["Resource"]):
                if where == "*":  # these know no resources
                    assert as_list(statement["Action"]) == ["batch:DescribeJobs", "batch:ListJobs"], name
                    continue
                # Objects below a prefix of our bucket, jobs of Batch, whose ids nobody knows beforehand, and revisions
                # of our definition of them.
                text = json.dumps(where)
                prefixes = "work|jobs|uploads|results|models|sweep|scans|upscaled|archives|orders"
                known = rf"upscaler-\$\{{Id\}}/({prefixes})/\*\"|:job/\*\"|-upscale:\*\""
                if "*" in text:
                    assert re.search(known, text), name


def variables(template: dict[str, Any], module: str) -> dict[str, Any]:
    properties = template["Resources"][ENTRIES[module][0]]["Properties"]
    if module == "batch_job":
        return {pair["Name"]: pair["Value"] for pair in properties["ContainerProperties"]["Environment"]}
    own = properties.get("Environment", {}).get("Variables", {})
    return {**template["Globals"]["Function"]["Environment"]["Variables"], **own}


@pytest.mark.parametrize("module", ENTRIES)
def test_variables_are_those_of_the_settings(template: dict[str, Any], module: str) -> None:
    """Each field that the entry point can read and that is no matter of local mode, and nothing else."""
    fields = Settings.model_fields
    local = {name for name, field in fields.items() if (field.description or "").startswith("local mode")}
    read = reach.settings_read(module) - local - NOT_ON_AWS - CONSTANT
    if "batch_queue" in read:  # Settings refuses one without the other
        read.add("batch_job_definition")
    read.add("log_level")  # Powertools reads LOG_LEVEL itself
    assert set(variables(template, module)) == {name.upper() for name in read}


def test_every_setting_of_aws_is_set_somewhere(template: dict[str, Any]) -> None:
    fields = Settings.model_fields
    local = {name for name, field in fields.items() if (field.description or "").startswith("local mode")}
    everywhere = {name for module in ENTRIES for name in variables(template, module)}
    assert everywhere == {name.upper() for name in set(fields) - local - NOT_ON_AWS - CONSTANT}


def test_defaults_are_those_of_the_settings(template: dict[str, Any]) -> None:
    """A parameter that only passes a setting on has its default; memory is an account's limit, so it differs."""
    parameters = template["Parameters"]
    seen = set()
    for module in ENTRIES:
        for name, value in variables(template, module).items():
            if isinstance(value, dict) and value.get("Ref") in parameters and value["Ref"] != "Memory":
                default = Settings.model_fields[name.lower()].default
                default = default.get_secret_value() if hasattr(default, "get_secret_value") else default
                assert parameters[value["Ref"]]["Default"] == ("" if default is None else default), name
                seen.add(name)
    assert {"MAX_UPLOAD_BYTES", "MAX_PIXELS", "JOB_TTL_DAYS", "BATCH_MEMORY_MB"} <= seen


def test_settings_take_what_the_template_gives(template: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With every default, without Batch and with it."""
    for queue in ("", "arn:aws:batch:us-east-1:123456789012:job-queue/q"):
        for module in ENTRIES:
            for name, value in variables(template, module).items():
                if isinstance(value, str):
                    monkeypatch.setenv(name, value)
                    continue
                default = template["Parameters"].get(value.get("Ref"), {}).get("Default", "")
                batch = name in ("BATCH_QUEUE", "BATCH_JOB_DEFINITION")
                text = queue if batch else "upscaler-example" if name == "BUCKET" else str(default)
                monkeypatch.setenv(name, text)
            assert Settings().has_batch == bool(queue)


def test_the_time_of_a_job_is_that_of_the_settings(template: dict[str, Any]) -> None:
    timeout = template["Resources"]["JobDefinition"]["Properties"]["Timeout"]["AttemptDurationSeconds"]
    assert timeout == Settings.model_fields["batch_seconds"].default


def test_uploads_start_the_function_and_nothing_else_does(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    [told] = resources["Bucket"]["Properties"]["NotificationConfiguration"]["QueueConfigurations"]
    assert told["Filter"] == {"S3Key": {"Rules": [{"Name": "prefix", "Value": "uploads/"}]}}
    assert told["Queue"] == {"Fn::GetAtt": ["Uploads", "Arn"]}
    [(_, event)] = resources["UploadFunction"]["Properties"]["Events"].items()
    assert (event["Type"], event["Properties"]["Queue"]) == ("SQS", told["Queue"])
    assert event["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    names = {json.dumps(variables(template, module)["BUCKET"]) for module in ENTRIES}
    assert {json.loads(text)["Fn::Sub"][0] for text in names} == {"upscaler-${Id}"}


def test_retries_are_those_that_the_job_knows(template: dict[str, Any]) -> None:
    from handler import batch_job

    strategy = template["Resources"]["JobDefinition"]["Properties"]["RetryStrategy"]
    rules = {
        json.dumps({k: v for k, v in rule.items() if k != "Action"}): rule["Action"]
        for rule in strategy["EvaluateOnExit"]
    }
    assert rules == {
        json.dumps({"OnExitCode": str(batch_job.REPEAT)}): "RETRY",
        json.dumps({"OnExitCode": str(batch_job.NO_GPU)}): "RETRY",
        json.dumps({"OnStatusReason": "Host EC2*"}): "RETRY",
        json.dumps({"OnStatusReason": "Task failed to start*"}): "RETRY",
        json.dumps({"OnReason": "*"}): "EXIT",
    }


def test_uploads_wait_as_long_as_they_have_to(template: dict[str, Any]) -> None:
    """As AWS asks, and as the worker counts; and no upload is deleted before its job can have ended."""
    resources = template["Resources"]
    queue, dead = (resources[name]["Properties"] for name in ("Uploads", "DeadLetters"))
    assert queue["VisibilityTimeout"] >= 6 * resources["UploadFunction"]["Properties"]["Timeout"]
    assert queue["RedrivePolicy"]["maxReceiveCount"] >= worker.TRIES
    assert dead["MessageRetentionPeriod"] == 14 * 86400 > queue["MessageRetentionPeriod"]
    days = queue["MessageRetentionPeriod"] // 86400
    ttl = template["Parameters"]["JobTtlDays"]["AllowedValues"]
    kept = {int(ttl): of["Uploads"] for ttl, of in template["Mappings"]["Keep"].items()}
    assert kept == {day: day + days + 1 for day in ttl}
    assert timedelta(days=days) == UPLOAD_GRACE
    sweep_ = resources["BatchEventFunction"]["Properties"]
    assert sweep_["Timeout"] > 2 * batch_event.RESERVE


def test_a_first_deploy_asks_nothing(template: dict[str, Any]) -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())["default"]["deploy"]["parameters"]
    assert config["confirm_changeset"] is False
    assert "parameter_overrides" not in config
    for name, parameter in template["Parameters"].items():
        assert "NoEcho" not in parameter, f"sam deploy --guided asks for {name} forever"
    assert template["Parameters"]["Memory"]["Default"] == 3008  # the most of a new account
    assert template["Parameters"]["UploadConcurrency"]["Default"] <= 5  # of ten in all
    for name in ("ApiConcurrency", "ProvisionedConcurrency", "SpotVcpus", "OnDemandVcpus", "MonthlyBudget"):
        assert template["Parameters"][name]["Default"] in ("", 0), name


def test_the_gateway_s_problems_are_the_application_s(template: dict[str, Any]) -> None:
    found = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    assert found["INVALID_API_KEY"]["StatusCode"] == 401
    for name, response in found.items():
        assert response["ResponseParameters"]["Headers"]["Access-Control-Allow-Origin"] == "'*'"
        if not name.startswith("DEFAULT"):
            body = json.loads(response["ResponseTemplates"]["application/json"])
            assert set(body) == set(problems.ProblemDetails.model_fields)
            assert body["status"] == response["StatusCode"]
            assert body["code"] in problems.CODES or body["code"] == "out_of_time"
            assert problems.CODES.get(body["code"], problems.CODES["busy"]).status in (response["StatusCode"], 503)


def test_exceptions_say_why() -> None:
    """Whatever a checker is told to pass over, the same line says the reason."""
    lines = (ROOT / "template.yaml").read_text().splitlines()
    skips = [line for line in lines if "CKV" in line]
    assert len(skips) > 10
    for line in skips:
        if "id: CKV" in line:
            assert re.search(r'comment: ".{20,}"', line), line
    for line in (line for line in lines if "ignore_checks" in line):
        assert re.search(r"# .{20,}", line), line


def test_every_parameter_is_used_and_described(template: dict[str, Any]) -> None:
    text = (ROOT / "template.yaml").read_text()
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(template["Parameters"])
    for name, parameter in template["Parameters"].items():
        assert "Default" in parameter, name
        assert re.search(rf"!Ref {name}\b|\$\{{{name}\}}", text), name
        assert "Description" in parameter or "AllowedValues" in parameter, name


def test_samconfig_names_parameters_that_there_are(template: dict[str, Any]) -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())
    for environment in ("dev", "prod"):
        for pair in config[environment]["deploy"]["parameters"]["parameter_overrides"].split():
            assert pair.partition("=")[0] in template["Parameters"]


def test_the_guide_names_what_there_is(template: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    words = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)(?:=[^`]*)?`", text)) | set(
        re.findall(r"(?<=[ \"'])([A-Z][a-z]+[A-Za-z]*)=", text)
    )
    assert len(words) > 15
    assert words <= set(template["Parameters"]) | set(template["Outputs"])
    assert set(re.findall(r"output (\w+)", text)) - {"text", "photo", "json"} <= set(template["Outputs"])


def test_metrics_of_two_stacks_do_not_mix(template: dict[str, Any]) -> None:
    """Each function counts under its own name, and the dashboard shows what the code counts."""
    code = (
        "from handler import logs, s3_event, batch_event; print(logs.NAMESPACE, logs.SERVICE, s3_event.metrics.service)"
    )
    environment = {**os.environ, "AWS_LAMBDA_FUNCTION_NAME": "stack-a-UploadFunction-1"}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert printed == ["Upscaler", "stack-a-UploadFunction-1", "stack-a-UploadFunction-1"]
    body = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    widgets = json.loads(body)["widgets"]
    shown = [w["properties"]["metrics"] for w in widgets if w["properties"]["metrics"][0][0] == "Upscaler"]
    ours = [metric for metrics in shown for metric in metrics]
    assert {metric[3] for metric in ours} == {"${UploadFunction}", "${ApiFunction}", "${BatchEventFunction}", "."}
    source = "".join((ROOT / "handler" / f"{name}.py").read_text() for name in ("s3_event", "batch_event"))
    counted = set(re.findall(r'add_metric\(name="(\w+)"', source)) | {state.title() for state in State}
    assert {metric[1] for metric in ours} <= counted


def test_cfn_lint() -> None:
    """Resources, properties, references and circles, after SAM's transformation; warnings count."""
    program = Path(sys.executable).parent / "cfn-lint"
    if not program.exists():
        pytest.skip("cfn-lint is not installed (pip install -e '.[dev]')")
    command = [str(program), "--regions", "us-east-1", "eu-central-1", "--", "template.yaml"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
