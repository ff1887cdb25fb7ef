"""Fixtures: golden numbers, real data of ../shared, a tiny sample set made by the real scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.project import golden_path, run_code, run_script, shared_path


@pytest.fixture(scope="session")
def golden():
    """golden(name) -> the opened npz, from tests/golden or else from ../shared/golden."""

    def open_golden(name: str) -> np.lib.npyio.NpzFile:
        return np.load(golden_path(name), allow_pickle=False)

    return open_golden


@pytest.fixture(scope="session")
def shared():
    """shared(relative) -> a path in ../shared."""
    return shared_path


@pytest.fixture(scope="session")
def script():
    """script(name, *arguments, **settings) -> the finished process."""
    return run_script


@pytest.fixture(scope="session")
def code():
    """code(name, *arguments) -> the finished process of code/<name>.py."""
    return run_code


@pytest.fixture(scope="session")
def sample_raw(tmp_path_factory) -> Path:
    """A data root, with a space in its path: a tiny SamplePASCAL3D+ and its occluded twin."""
    root = tmp_path_factory.mktemp("sample data")
    run_code(
        "make_sample_data",
        "--out",
        root,
        "--categories",
        "car chair",
        "--train-images",
        10,
        "--val-images",
        6,
        "--seed",
        3,
    )
    return root


@pytest.fixture(scope="module")
def noise_pictures(tmp_path_factory) -> Path:
    """A prepared set of 12 noise pictures of two meshes, 4 batches an epoch."""
    # Not every test waits for what a training imports.
    from helpers.small_training import write_prepared

    root = tmp_path_factory.mktemp("noise")
    write_prepared(root)
    return root


@pytest.fixture
def one_thread():
    """For tiny problems, on which PyTorch's threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
