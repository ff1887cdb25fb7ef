"""Fixtures: the golden numbers and the real data of ../shared, and a tiny sample set made by the real scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def shared_path(relative: str) -> Path:
    """A path in ../shared; the test skips where there is none, and fails in CI, where there must be one."""
    path = SHARED / relative
    if not path.exists():
        message = f"needs ../shared/{relative}, which is not here"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> the opened npz, from tests/golden or else from ../shared/golden."""

    def open_golden(name: str) -> np.lib.npyio.NpzFile:
        here = ROOT / "tests" / "golden" / name
        return np.load(here if here.is_file() else shared_path(f"golden/{name}"), allow_pickle=False)

    return open_golden


@pytest.fixture(scope="session")
def shared():
    """shared(relative) -> a path in ../shared."""
    return shared_path


def run_script(script: str, *arguments: str, cwd: Path | None = None, **settings: object) -> subprocess.CompletedProcess:
    """Run one of the scripts at the top of the project as a user would, with settings from the environment."""
    environment = {key: value for key, value in os.environ.items() if key not in ("GPUS", "CATEGORIES", "DATAROOT", "EXPROOT")}
    environment |= {"PYTHON": sys.executable} | {key: str(value) for key, value in settings.items()}
    return subprocess.run(
        [str(ROOT / script), *arguments], cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="session")
def script():
    """script(name, *arguments, **settings) -> the finished process."""
    return run_script


def run_code(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """Run an entry point of code/."""
    command = [sys.executable, str(ROOT / "code" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def code():
    """code(name, *arguments) -> the finished process of code/<name>.py."""
    return run_code


@pytest.fixture(scope="session")
def sample_raw(tmp_path_factory) -> Path:
    """A data root, with a space in its path, that holds a tiny SamplePASCAL3D+ and its occluded twin."""
    root = tmp_path_factory.mktemp("sample data")
    run_code("make_sample_data", "--out", root, "--categories", "car chair", "--train-images", 10, "--val-images", 6, "--seed", 3)
    return root


@pytest.fixture
def one_thread():
    """Tiny problems: PyTorch's threads would only wait for each other, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Trap:
    """Touches a file when unpickled; tests look whether it did."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
