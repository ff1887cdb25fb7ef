"""The project's folder and the data beside it, and its scripts run as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
PYTHONPATH = f"{ROOT / 'code'}{os.pathsep}{ROOT / 'tests'}"  # of processes that tests start


def cannot_run(message: str, required: str) -> NoReturn:
    """Skip the test, or fail it if the variable `required` is set, as .ci/run does."""
    if os.environ.get(required):
        pytest.fail(message)
    pytest.skip(message)


def shared_path(relative: str) -> Path:
    """A path in ../shared; without it the test skips, or fails if REQUIRE_SHARED_DATA is set."""
    path = SHARED / relative
    if not path.exists():
        cannot_run(f"needs ../shared/{relative}, which is not here", "REQUIRE_SHARED_DATA")
    return path


def golden_path(name: str) -> Path:
    """A file of numbers that the reference gives: in tests/golden, or else in ../shared/golden."""
    here = ROOT / "tests" / "golden" / name
    return here if here.is_file() else shared_path(f"golden/{name}")


def run_script(
    script: str, *arguments: str, cwd: Path | None = None, **settings: object
) -> subprocess.CompletedProcess:
    """Run one of the scripts at the top of the project as a user would, settings given by name."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("GPUS", "CATEGORIES", "DATAROOT", "EXPROOT")
    }
    environment |= {"PYTHON": sys.executable} | {key: str(value) for key, value in settings.items()}
    return subprocess.run(
        [str(ROOT / script), *arguments],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def run_code(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """Run an entry point of code/."""
    command = [sys.executable, str(ROOT / "code" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


class Trap:
    """Touches a file when unpickled; tests look whether it did."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
