"""Where the service is: behind a stage, a custom domain, a function URL, or a reverse proxy; the pages work there."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from mangum import Mangum
from pydantic import SecretStr
from starlette.testclient import TestClient

from handler.settings import Settings
from handler.storage import LocalStorage
from handler.web.app import build
from handler.web.stage import root_path
from tests.infra import graph
from tests.integration.work import Context, event

REST, HTTP, URL = (event(f"{name}_upscale.json") for name in ("rest", "http", "function_url"))


def rest(asked: str, own: str, *, resource: str = "/{proxy+}", base: str = "") -> dict[str, Any]:
    """An event of a REST API: `asked` as it was asked for, `own` below the stage or the base path."""
    found = copy.deepcopy(REST)
    found |= {"path": base + own, "resource": resource, "httpMethod": "GET", "body": None, "isBase64Encoded": False}
    found["queryStringParameters"] = found["multiValueQueryStringParameters"] = None
    parameters = {"/{proxy+}": {"proxy": own.lstrip("/")}, "/static/{file}": {"file": own.rpartition("/")[2]}}
    found["pathParameters"] = parameters.get(resource)
    found["requestContext"] |= {"path": asked, "httpMethod": "GET", "resourcePath": resource}
    return found


def http(path: str, stage: str) -> dict[str, Any]:
    found = copy.deepcopy(HTTP)
    found["rawPath"] = path
    found["requestContext"]["stage"] = stage
    return found


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(REST, "/v1", id="the example"),
        pytest.param(rest("/v1/docs", "/docs", resource="/docs"), "/v1", id="stage"),
        pytest.param(rest("/v1/", "/", resource="/"), "/v1", id="the page"),
        pytest.param(rest("/v1/static/page.js", "/static/page.js", resource="/static/{file}"), "/v1", id="a script"),
        pytest.param(rest("/v1/jobs/a%20b", "/jobs/a b"), "/v1", id="an encoded path"),
        pytest.param(rest("/docs", "/docs", resource="/docs"), "", id="domain"),
        pytest.param(rest("/", "/", resource="/"), "", id="domain, the page"),
        pytest.param(rest("/img/docs", "/docs", resource="/docs", base="/img"), "/img", id="domain with a base path"),
        pytest.param(rest("/img/jobs/1", "/jobs/1", base="/img"), "/img", id="the same, a call"),
        pytest.param(http("/v1/docs", "v1"), "/v1", id="HTTP API with a stage"),
        pytest.param(http("/docs", "$default"), "", id="HTTP API"),
        pytest.param(URL, "", id="function URL"),
        pytest.param({}, "", id="nothing is known"),
    ],
)
def test_root_path(sent: dict[str, Any], expected: str) -> None:
    assert root_path(sent) == expected


def test_the_examples_have_the_stage_of_the_template() -> None:
    assert graph.source()["Resources"]["Api"]["Properties"]["StageName"] == REST["requestContext"]["stage"] == "v1"


@pytest.mark.parametrize(("prefix", "base"), [("/v1", ""), ("", ""), ("/img", "/img"), ("/api/img", "/api/img")])
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_ask_for_what_is_there(tmp_path: Path, prefix: str, base: str, page: str) -> None:
    app = build(Settings(data_dir=tmp_path, warm_model="none", bucket=""), LocalStorage(tmp_path))
    handler = Mangum(app, lifespan="off")

    def get(path: str) -> str:
        resource = "/static/{file}" if path.startswith("/static/") else path
        answer = handler(rest(prefix + path, path, resource=resource, base=base), cast(Any, Context()))
        assert answer["statusCode"] == 200, answer
        return str(answer["body"])

    found = re.findall(r'(?:src|href)="((?!data:)[^"#]+)"', get(page))
    assert len(found) > 2
    for address in found:
        assert not address.startswith(("/", "http")), "an address that would miss the stage"
        get("/" + address)
    servers = json.loads(get("/openapi.json")).get("servers")
    assert servers == ([{"url": prefix}] if prefix else None)


def test_the_path_that_the_server_was_told_of(tmp_path: Path) -> None:
    """`uvicorn --root-path`: what is open without a key is open below it, and nothing else."""
    settings = Settings(data_dir=tmp_path, warm_model="none", bucket="", api_key=SecretStr("opensesame"))
    client = TestClient(build(settings, LocalStorage(tmp_path)), root_path="/upscaler")
    for before in ("", "/upscaler"):
        assert client.get(f"{before}/").status_code == 200
        assert client.get(f"{before}/static/main.js").status_code == 200
        assert client.get(f"{before}/openapi.json").json()["servers"] == [{"url": "/upscaler"}]
        assert client.get(f"{before}/models").status_code == 401
    assert client.get("/upscaler/models", headers={"X-API-Key": "opensesame"}).status_code == 200


def test_behind_a_reverse_proxy(tmp_path: Path) -> None:
    """One that takes its path off, and one that does not."""
    settings = Settings(data_dir=tmp_path, warm_model="none", bucket="", rate_limit="none", root_path="/upscaler")
    client = TestClient(build(settings, LocalStorage(tmp_path)))
    for before in ("", "/upscaler"):
        assert client.get(f"{before}/docs").status_code == 200
        assert client.get(f"{before}/openapi.json").json()["servers"] == [{"url": "/upscaler"}]
        wanted = {"filename": "a.png", "content_type": "image/png"}
        job = client.post(f"{before}/jobs", json=wanted).json()
        assert job["upload"]["url"].startswith("http://testserver/upscaler/storage/upload?")
