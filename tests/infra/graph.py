"""template.yaml as CloudFormation gets it: read, transformed by SAM's own translator, and with conditions decided."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from tests.infra.reach import ROOT

Template = dict[str, Any]
REGION, ACCOUNT = "us-east-1", "123456789012"
STACK_ID = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/upscaler/6f9619ff-8b86-4011-b42d-00c04fc964ff"
PSEUDO = {
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::StackName": "upscaler",
    "AWS::StackId": STACK_ID,
    "AWS::URLSuffix": "amazonaws.com",
}
#: Parameters of stacks that differ in what they have.
STACKS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "spot": {"SpotVcpus": "16"},
    "on demand, own VPC": {"OnDemandVcpus": "8", "VpcId": "vpc-0a1b2c3d", "SubnetIds": "subnet-1,subnet-2"},
    "everything": {
        "SpotVcpus": "16",
        "OnDemandVcpus": "8",
        "SignWebhooks": "yes",
        "AccessLogs": "set-role",
        "AlarmEmail": "a@example.com",
        "MonthlyBudget": "100",
        "ApiConcurrency": "10",
        "ProvisionedConcurrency": "1",
        "Tracing": "Active",
        "CorsOrigins": "https://example.com",
        "FetchUrls": "public",
        "KeepUploads": "yes",
    },
}


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's tags, as the long form of their functions."""


def _tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.MappingNode):
        value: Any = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.ScalarNode)
        value = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    return {name: value}


_Loader.add_multi_constructor("!", _tag)


def source() -> Template:
    """template.yaml as it is written."""
    found: Template = yaml.load((ROOT / "template.yaml").read_text(), _Loader)
    return found


@cache
def _transformed() -> str:
    import boto3
    from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
    from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]

    template = source()
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":  # what sam deploy writes there
            resource["Properties"]["ImageUri"] = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/upscaler:1"
            for key in ("DockerContext", "Dockerfile", "DockerBuildTarget", "DockerBuildArgs"):
                del resource["Metadata"][key]
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name=REGION))
    return json.dumps(translator.translate(template, {}))


def transformed() -> Template:
    """Plain CloudFormation, as SAM's transform makes it."""
    found: Template = json.loads(_transformed())
    return found


def decided(parameters: Mapping[str, str]) -> Template:
    """The transformed template for these parameters: conditions are gone, and what they leave out with them."""
    template = transformed()
    given = {name: str(of.get("Default", "")) for name, of in template["Parameters"].items()} | dict(parameters)
    conditions = template.pop("Conditions")

    def true(what: Any) -> bool:
        [(function, value)] = what.items()
        match function:
            case "Condition":
                return true(conditions[value])
            case "Fn::Not":
                return not true(value[0])
            case "Fn::And":
                return all(map(true, value))
            case "Fn::Or":
                return any(map(true, value))
            case "Fn::Equals":
                one, other = ({**given, **PSEUDO}[part["Ref"]] if isinstance(part, dict) else part for part in value)
                return str(one) == str(other)
        raise AssertionError(function)

    def walk(part: Any) -> Any:
        if isinstance(part, dict):
            if set(part) == {"Fn::FindInMap"}:
                mapping, first, second = part["Fn::FindInMap"]
                return template["Mappings"][mapping][given[first["Ref"]]][second]
            if set(part) == {"Fn::If"}:
                name, yes, no = part["Fn::If"]
                return walk(yes if true(conditions[name]) else no)
            return {key: walked for key, value in part.items() if (walked := walk(value)) != {"Ref": "AWS::NoValue"}}
        if isinstance(part, list):
            return [walked for value in part if (walked := walk(value)) != {"Ref": "AWS::NoValue"}]
        return part

    for section in ("Resources", "Outputs"):
        template[section] = {
            name: walk({key: value for key, value in part.items() if key != "Condition"})
            for name, part in template[section].items()
            if "Condition" not in part or true(conditions[part["Condition"]])
        }
    return template


def references(part: Any) -> Iterator[tuple[str, str]]:
    """(logical name, attribute) of everything that a part of a template refers to; no attribute for Ref."""
    if isinstance(part, list):
        for value in part:
            yield from references(value)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "Ref":
                yield value, ""
            elif key == "Fn::GetAtt":
                name, attribute = value if isinstance(value, list) else value.split(".", 1)
                yield name, attribute
            elif key == "Fn::Sub":
                text, own = value if isinstance(value, list) else (value, {})
                yield from references(own)
                for name in re.findall(r"\$\{([^!][^}]*)\}", text):
                    if name not in own:
                        yield (name.split(".", 1)[0], name.split(".", 1)[1]) if "." in name else (name, "")
            else:
                yield from references(value)


def needs(template: Template) -> dict[str, set[str]]:
    """Which resources each resource must wait for."""
    resources = template["Resources"]
    found: dict[str, set[str]] = {}
    for name, resource in resources.items():
        wanted = {target for target, _ in references(resource.get("Properties", {}))}
        wanted |= {target for target, _ in references(resource.get("UpdatePolicy", {}))}
        after = resource.get("DependsOn", [])
        wanted |= set(after if isinstance(after, list) else [after])
        found[name] = wanted & set(resources)
    return found


def without(template: Template, known: set[str]) -> tuple[Template, set[str]]:
    """The template with only resources of the known types, and the types that were left out.

    What refers to one of those left out gets a text in its place.
    """
    template = copy.deepcopy(template)
    gone = {name: of["Type"] for name, of in template["Resources"].items() if of["Type"] not in known}

    def replace(part: Any) -> Any:
        if isinstance(part, list):
            return [replace(value) for value in part]
        if isinstance(part, dict):
            if part.get("Ref") in gone:
                return f"unknown-{part['Ref']}"
            if "Fn::GetAtt" in part and part["Fn::GetAtt"][0] in gone:
                return f"arn:aws:unknown:::{part['Fn::GetAtt'][0]}"
            return {key: replace(value) for key, value in part.items()}
        if isinstance(part, str):
            for name in gone:
                part = re.sub(rf"\$\{{{name}(\.\w+)?\}}", f"unknown-{name}", part)
        return part

    for section in ("Resources", "Outputs"):
        template[section] = {name: replace(part) for name, part in template[section].items() if name not in gone}
    for resource in template["Resources"].values():
        after = resource.pop("DependsOn", [])
        left = [name for name in (after if isinstance(after, list) else [after]) if name in template["Resources"]]
        if left:
            resource["DependsOn"] = left
        resource.pop("UpdatePolicy", None)
    return template, set(gone.values())
