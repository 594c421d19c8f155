"""The transformed template as a graph, and as a stack: what plain CloudFormation would make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from graphlib import TopologicalSorter

import boto3
import pytest
from moto import mock_aws

from tests.infra import graph
from tests.infra.graph import PSEUDO, STACKS

#: What moto's CloudFormation does not make. These are checked by cfn-lint against their schemas alone.
UNKNOWN_TO_MOTO = {
    "AWS::ApiGateway::Account",
    "AWS::ApiGateway::ApiKey",
    "AWS::ApiGateway::Stage",
    "AWS::ApiGateway::UsagePlan",
    "AWS::ApiGateway::UsagePlanKey",
    "AWS::Budgets::Budget",
    "AWS::CloudWatch::Alarm",
    "AWS::CodeDeploy::Application",
    "AWS::CodeDeploy::DeploymentGroup",
    "AWS::Lambda::Alias",
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::Secret",
    "AWS::SQS::QueuePolicy",
}
#: What it makes of simpler templates: it asks for an alias that it does not know, and does not read an API's body.
TOO_MUCH_FOR_MOTO = {"AWS::Lambda::Permission", "AWS::ApiGateway::Deployment"}
#: What moto asks for, and AWS does not.
FOR_MOTO: Mapping[str, Mapping[str, object]] = {
    "BatchRepository": {"RepositoryName": "upscaler"},
    "SpotMachines": {"ServiceRole": {"Fn::GetAtt": ["MachineRole", "Arn"]}},
    "OnDemandMachines": {"ServiceRole": {"Fn::GetAtt": ["MachineRole", "Arn"]}},
}
#: Names that somebody chose. One that must be the only one blocks an update that replaces its resource.
CHOSEN = {
    ("Bucket", "BucketName"),  # of the stack's id, never changed: see the template's first comment
    ("JobDefinition", "JobDefinitionName"),  # a new revision is made under the same name
    ("Api", "Name"),  # an API's name need not be the only one
    ("Apiv1Stage", "StageName"),  # of an API, so that it clashes with nothing
}


@pytest.fixture(params=STACKS)
def parameters(request: pytest.FixtureRequest) -> Mapping[str, str]:
    found: Mapping[str, str] = STACKS[request.param]
    return found


def test_every_reference_leads_somewhere(parameters: Mapping[str, str]) -> None:
    """To a parameter, or to a resource that is there under the same conditions."""
    template = graph.decided(parameters)
    there = set(template["Resources"])
    for section in ("Resources", "Outputs"):
        for name, part in template[section].items():
            for target, attribute in graph.references(part):
                assert target in there or (not attribute and (target in template["Parameters"] or target in PSEUDO)), (
                    f"{name} refers to {target} {attribute}"
                )
    text = json.dumps(template["Resources"])
    assert "Fn::If" not in text
    assert "AWS::NoValue" not in text


def test_there_is_no_circle(parameters: Mapping[str, str]) -> None:
    order = list(TopologicalSorter(graph.needs(graph.decided(parameters))).static_order())
    assert order.index("UploadsPolicy") < order.index("Bucket"), "S3 asks the queue whether it may write to it"
    assert order.index("ApiFunction") < order.index("Bucket")


def test_no_name_blocks_an_update() -> None:
    resources = graph.transformed()["Resources"]
    chosen = {
        (name, key)
        for name, resource in resources.items()
        for key in resource.get("Properties", {})
        if key in (resource["Type"].rpartition("::")[2] + "Name", "Name", "GroupName")
        and resource["Type"] != "AWS::Lambda::Alias"
    }
    assert chosen == CHOSEN


def test_the_stack_in_moto(aws_environment: None) -> None:
    """Everything that moto knows is really made, with its references; what it does not know is listed above."""
    template = graph.decided(STACKS["everything"])
    for name, properties in FOR_MOTO.items():
        template["Resources"][name]["Properties"] |= properties
    types = {resource["Type"] for resource in template["Resources"].values()}
    made, left_out = graph.without(template, types - UNKNOWN_TO_MOTO - TOO_MUCH_FOR_MOTO)
    assert left_out == UNKNOWN_TO_MOTO | TOO_MUCH_FOR_MOTO
    # moto splits no default.
    values = {**STACKS["everything"], "InstanceTypes": template["Parameters"]["InstanceTypes"]["Default"]}
    with mock_aws(config={"batch": {"use_docker": False}, "lambda": {"use_docker": False}}):
        cloudformation = boto3.client("cloudformation")
        cloudformation.create_stack(
            StackName="upscaler",
            TemplateBody=json.dumps(made),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
        [stack] = cloudformation.describe_stacks(StackName="upscaler")["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE", stack
        resources = cloudformation.describe_stack_resources(StackName="upscaler")["StackResources"]
        assert {found["LogicalResourceId"] for found in resources} == set(made["Resources"])
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        # Of what it knows moto leaves out some properties, among them the bucket's notifications: see
        # tests/integration/test_many.py for those.
        queue = boto3.client("sqs").get_queue_attributes(QueueUrl=outputs["UploadsUrl"], AttributeNames=["All"])
        assert json.loads(queue["Attributes"]["RedrivePolicy"])["deadLetterTargetArn"] == outputs["DeadLettersArn"]
        assert outputs["BatchRepositoryUri"].endswith("/upscaler")
