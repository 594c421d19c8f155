"""What the tests of containers share."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def base() -> str:
    """The name of the base image; skips the test where nothing can be built on it."""
    if shutil.which("docker") is None:
        pytest.skip("no container engine: docker is not installed")
    asked = subprocess.run(["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip(f"no container engine: {asked.stderr.strip() or asked.stdout.strip()}")
    name = os.environ.get("BASE_IMAGE", "")
    if not name:
        pytest.skip("no base image: BASE_IMAGE names none (infra/local-base/build.sh makes one)")
    return name
