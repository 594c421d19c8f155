"""The running service against its own description, with requests that schemathesis makes up from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.test_local_server import running
from tests.servers import binary

pytestmark = pytest.mark.slow


def test_the_service_is_what_it_describes(tmp_path: Path) -> None:
    """No 5xx, nothing undescribed in an answer, and what the description forbids is refused."""
    program = binary("st")
    # Not `positive_data_acceptance`: that scale excludes width, and that a file is a picture, no schema says.
    how = ["--phases=examples,coverage,fuzzing", "--exclude-checks=positive_data_acceptance", "--no-color"]
    # Events of a job that waits for its upload would come for an hour, and each stream be looked at for ten seconds.
    short = "from handler.web import listing; listing.EVENTS_SECONDS = 0.1"
    with running(tmp_path, first=short, RATE_LIMIT="none", WARM_MODEL="none") as server:
        done = subprocess.run(
            [program, "run", f"{server.client.base_url}/openapi.json", "--max-examples=5", "--seed=1", *how],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout
    assert "Tested: 18" in done.stdout
