"""The description, and that it is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from handler import jobs
from handler.web import problems
from tests.integration.web.support import PNG
from tests.unit.pictures import corners, saved


def test_every_call_is_described(openapi: dict[str, Any]) -> None:
    calls = {f"{method.upper()} {path}" for path, found in openapi["paths"].items() for method in found}
    assert calls == {
        "POST /upscale",
        "POST /estimate",
        "GET /models",
        "GET /health",
        "GET /ready",
        "POST /jobs",
        "GET /jobs",
        "PUT /jobs/{id}",
        "GET /jobs/{id}",
        "DELETE /jobs/{id}",
        "GET /jobs/{id}/events",
        "GET /jobs/{id}/result",
        "GET /jobs/{id}/preview",
        "POST /preview",
        "POST /jobs/{id}/retry",
        "POST /archives",
        "GET /archives/{id}",
        "DELETE /archives/{id}",
    }


def test_every_code_is_described(openapi: dict[str, Any]) -> None:
    """All but those of paths that are in no description: no such path or method, and the local links."""
    described = set()
    for path in openapi["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                examples = answer.get("content", {}).get(problems.MEDIA_TYPE, {}).get("examples", {})
                for code, example in examples.items():
                    assert problems.CODES[code].status == int(status) == example["value"]["status"]
                    assert example["value"]["code"] == code
                    assert set(example["value"]) == set(openapi["components"]["schemas"]["Problem"]["properties"])
                    described.add(code)
    local = {"link_refused", "not_found", "no_such_range"}
    assert set(problems.CODES) - described == {"no_such_path", "method_not_allowed", *local}


def resolve(openapi: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_examples_are_accepted(client: httpx.Client, openapi: dict[str, Any]) -> None:
    """Each body made of the examples of its fields, and each example of a query parameter, works."""
    tried = 0
    for path, method in (("/jobs", "post"), ("/jobs/{id}", "put"), ("/estimate", "post")):
        schema = openapi["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
        fields = resolve(openapi, schema["oneOf"][0])["properties"]
        body = {name: field["examples"][0] for name, field in fields.items() if "examples" in field}
        assert body
        answer = client.request(method, path.format(id=jobs.new_id()), json=body)
        assert answer.is_success, answer.text
        tried += 1
    for parameter in openapi["paths"]["/upscale"]["post"]["parameters"]:
        for example in parameter["schema"].get("examples", []) + list(parameter.get("examples", [])):
            place = "params" if parameter["in"] == "query" else "headers"
            given: dict[str, Any] = {place: {parameter["name"]: str(example)}}
            answer = client.post("/upscale", files={"file": ("a.png", PNG)}, **given)
            assert answer.is_success, answer.text
            tried += 1
    assert tried >= 7


def test_the_curl_line_of_the_description(client: httpx.Client, openapi: dict[str, Any], tmp_path: Path) -> None:
    [line] = re.findall(r"^ +(curl .*\\\n.*)$", openapi["info"]["description"], re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(saved(corners(), "JPEG"))
    line = line.replace("http://127.0.0.1:8000", str(client.base_url))
    subprocess.run(["sh", "-c", f"{line} -sS --noproxy '*'"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "photo-x2.jpg") as made:
        assert made.size == (40, 24)
