"""What is built and installed, as somebody would who never saw the repository: issue "a plain pip install"."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import core

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    tracked = (
        run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
        if (ROOT / ".git").exists()
        else []
    )
    if not tracked:
        pytest.skip("no git checkout: which files belong to the project is not known")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    # Without --sdist and --wheel, the wheel is built from the sdist: what the sdist lacks, the wheel would lack, too.
    run(sys.executable, "-m", "build", "--outdir", folder, source, cwd=folder)
    return folder


def test_sdist_and_wheel_hold_what_runs(built: Path) -> None:
    wheel = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        source = [name.partition("/")[2] for name in archive.getnames()]
    needed = {"core/py.typed", "handler/py.typed"}
    for package in ("core", "handler"):
        files = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        needed |= {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert needed <= set(wheel)
    assert needed <= set(source)
    outside = {name.partition("/")[0] for name in wheel} - {"core", "handler"}
    assert all(name.endswith(".dist-info") for name in outside), outside


def test_the_installed_command_upscales_from_another_folder(built: Path, tmp_path: Path) -> None:
    """An empty environment, and the plain dependencies of the wheel in it."""
    place = tmp_path / "environment"
    venv.create(place)
    wheel = next(built.glob("*.whl"))
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--no-compile", wheel, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(elsewhere / "photo.png")
    command = place / "bin" / "upscale"
    assert run(command, "--version", cwd=elsewhere).strip() == f"upscale {core.__version__}"
    said = run(command, "photo.png", cwd=elsewhere)
    assert "not the model asked for" not in said
    with Image.open(elsewhere / "photo-x2.png") as result:
        assert result.size == (80, 60)


def test_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("version") is None
    from handler.api import app

    assert app.version == core.__version__
    assert app.openapi()["info"]["version"] == core.__version__
