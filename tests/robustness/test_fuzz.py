"""Broken files: valid ones changed at random, and made-up ones.

Every reader answers with a value or with a documented error.
"""

from __future__ import annotations

import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.little_memory import in_child
from helpers.sample_files import FORGIVEN, IN_PLACE, SAMPLES
from neural_mesh.data.pascal3d import read_record
from neural_mesh.data.splits import read_subset_pickle
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import read_list
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.results import load_poses

FAST, SLOW = 120, 4000  # files per kind
SECONDS = 20  # for one file


# ---- valid files, changed ----


def fuzz(folder: Path, kind: str, files: int, seed: int) -> tuple[int, int]:
    """Read so many changed files; returns how many were refused and how many were still good.

    Raises on anything else.
    """
    path, read, change = SAMPLES[kind](folder)
    read(path)
    content = path.read_bytes()
    victim = path if kind in IN_PLACE else folder / f"victim{path.suffix}"
    named = path.parent if kind == "settings of predictions" else victim
    random = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    refused = 0
    for _ in range(files):
        victim.write_bytes(change(content, random))
        signal.alarm(SECONDS)
        try:
            read(victim)
        except ValueError as error:
            refused += 1
            assert str(named) in str(error), f"the error does not name the file: {error}"
            assert kind not in FORGIVEN, error
        signal.alarm(0)
    return refused, files - refused


@pytest.mark.parametrize("kind", SAMPLES)
def test_changed_files_are_read_or_refused_by_name(tmp_path, kind):
    refused, good = in_child(lambda: fuzz(tmp_path, kind, FAST, seed=1))
    assert refused + good == FAST
    assert (refused > FAST // 10) != (kind in FORGIVEN), (refused, good)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLES)
def test_many_changed_files_are_read_or_refused_by_name(tmp_path, kind):
    refused, good = in_child(lambda: fuzz(tmp_path, kind, SLOW, seed=2))
    print(f"{kind}: {refused} refused, {good} still good")


# ---- made-up files ----

JSON = (
    "boxes json",
    "confidence",
    "SOURCE.json",
    "times",
    "manifest of pictures",
    "origin of a download",
    "settings of predictions",
)
ODD_JSON = ["[" * 100_000, '{"a":' * 100_000, "[1]", "1" * 10_000, '"a"', "\ufeff{", "{}"]


@pytest.mark.parametrize("content", ODD_JSON)
def test_json_that_is_odd_is_refused_by_name_or_forgiven(tmp_path, content):
    for kind in JSON:
        path, read, _ = SAMPLES[kind](tmp_path)
        path.write_text(content)
        try:
            read(path)
        except ValueError as error:
            assert str(path.parent) in str(error)
            assert kind not in FORGIVEN, error


BRIEF = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ODD_WORDS = st.sampled_from(["OFF", "#", "3", "\n", "1e999", "٣"])
NUMBERS = st.one_of(st.integers(), st.floats(), ODD_WORDS).map(str)


@BRIEF
@given(st.lists(NUMBERS, max_size=40))
def test_made_up_meshes_are_meshes_or_refused(tmp_path, words):
    path = tmp_path / "x.off"
    path.write_text("OFF\n" + " ".join(words))
    try:
        mesh = read_off(path)
    except ValueError as error:
        assert "x.off" in str(error)
    else:
        assert np.isfinite(mesh.vertices).all()
        assert ((mesh.faces >= 0) & (mesh.faces < len(mesh.vertices))).all()


@BRIEF
@given(st.text())
def test_made_up_lists_name_files_of_one_folder(tmp_path, text):
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        names = read_list(path)
    except ValueError as error:
        assert "x.txt" in str(error)
    else:
        assert all((tmp_path / f"{name}.JPEG").parent == tmp_path for name in names)


@BRIEF
@given(st.binary(max_size=300), st.sampled_from(["mat", "npz", "pth", "pkl", "JPEG"]))
def test_noise_is_refused_by_name(tmp_path, noise, ending):
    start, read = {
        "mat": (b"MATLAB 5.0".ljust(124) + b"\x00\x01IM", lambda path: read_record(path, "car")),
        "npz": (b"PK\x03\x04", load_poses),
        "pth": (b"\x80\x02", load_checkpoint),
        "pkl": (b"\x80\x02]", read_subset_pickle),
        "JPEG": (b"\xff\xd8\xff", read_picture),
    }[ending]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(start + noise)
    with pytest.raises(ValueError, match=rf"x\.{ending}"):
        read(path)
