"""The running service against its own description, with requests that schemathesis makes up from it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration import schemathesis_hooks
from tests.integration.test_local_server import running
from tests.servers import binary

pytestmark = pytest.mark.slow

#: Why what the description allows may be refused all the same: no schema says that one parameter excludes another, that
#: the query and the body do not differ, how large the picture is that came, which models are here, or what a name on
#: the network leads to.
UNDESCRIBABLE = re.compile(
    "give either scale or width/height, not both"
    "|[a-z_]+ is given twice: give it once, in the query or in the body"
    "|a pyramid is a TIFF, not [a-z]+: choose tiff"
    "|there is no model '.*': give one of .*"
    "|this makes pictures larger: .*"
    "|the (input has|result would have) .* over the limit of .*"
    "|webhook: .*"
)


def test_the_service_is_what_it_describes(tmp_path: Path) -> None:
    """No 5xx, nothing undescribed in an answer, what the description forbids is refused, and what it allows is not."""
    program = binary("st")
    how = ["--phases=examples,coverage,fuzzing", "--continue-on-failure", "--no-color"]
    # Events of a job that waits for its upload would come for an hour, and each stream be looked at for ten seconds.
    short = "from handler.web import listing; listing.EVENTS_SECONDS = 0.1"
    root = str(Path(__file__).parents[2])
    with running(tmp_path, first=short, RATE_LIMIT="none", WARM_MODEL="none") as server:
        done = subprocess.run(
            [program, "run", f"{server.client.base_url}/openapi.json", "--max-examples=5", "--seed=1", *how],
            env=os.environ | {"SCHEMATHESIS_HOOKS": schemathesis_hooks.__name__, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    found = re.findall(r"^- (ST\d+ .*)", done.stdout, re.MULTILINE)
    assert set(found) <= {"ST202 Schema-valid request rejected"}, done.stdout
    refused = re.findall(r'"detail":"(.*?)","code"', done.stdout)
    assert len(refused) == len(found), done.stdout
    assert all(UNDESCRIBABLE.fullmatch(detail) for detail in refused), done.stdout
    assert "Runtime Error" not in done.stdout
    assert "Tested: 18" in done.stdout
