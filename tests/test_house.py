"""The plan of the house: who may import whom, and what no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from helpers.project import ROOT

ROWS = (
    ("settings", "files", "resources", "devices"),
    (
        "layout",
        "records",
        "checkpoints",
        "cli",
        "downloads",
        "boxes",
        "cameras",
        "meshes",
        "kernels_numba",
        "kernels_triton",
    ),
    (
        "visibility",
        "rendering",
        "pascal3d",
        "kitti",
        "occlusion",
        "backbone",
        "bank",
        "distributed",
        "journal",
        "metrics",
        "confidence",
    ),
    ("dataset", "pose", "drawing", "plots", "tables", "sample_models", "sample"),
    ("inference", "report_page"),
    ("training", "photographs"),
)
DOORS = {
    "pytorch3d": {"nemo/rendering.py"},
    "matplotlib": {"nemo/plots.py"},
    "scipy": {"nemo/pascal3d.py", "make_sample_data.py"},
    "torchvision": {"nemo/backbone.py", "nemo/dataset.py"},
    "numba": {"nemo/kernels_numba.py"},
    "triton": {"nemo/kernels_triton.py"},
    "safetensors": {"nemo/checkpoints.py"},
    "tensorboard": {"nemo/journal.py"},
}
SAME_ROW = {
    ("checkpoints", "meshes"),
    ("sample", "sample_models"),
    ("plots", "drawing"),
}  # a record of meshes; one subject in two files
MODULES = sorted((ROOT / "code").rglob("*.py"))


def imports_of(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "nemo"
                else {node.module}
            )
    return found


def row_of(module: str) -> int:
    rows = [i for i, names in enumerate(ROWS) if module in names]
    assert rows, f"nemo/{module}.py has no place in the house"
    return rows[0]


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.parent.name == "nemo" and p.stem != "__init__"],
    ids=lambda p: p.stem,
)
def test_a_module_imports_only_from_rows_above(path):
    for name in imports_of(path):
        if name.startswith("nemo."):
            other = name.split(".")[1]
            assert row_of(other) < row_of(path.stem) or (path.stem, other) in SAME_ROW, (
                f"{path.stem} imports {other}"
            )


def test_nothing_imports_an_entry_point():
    entry_points = {p.stem for p in MODULES if p.parent.name == "code"}
    for path in MODULES:
        assert not {name.split(".")[0] for name in imports_of(path)} & entry_points, path


def test_heavy_dependencies_have_one_door():
    for path in MODULES:
        for name in {name.split(".")[0] for name in imports_of(path)} & DOORS.keys():
            assert str(path.relative_to(ROOT / "code")) in DOORS[name], f"{path} imports {name}"


def test_no_entry_point_hides_a_module_of_the_standard_library():
    assert not {p.stem for p in MODULES if p.parent.name == "code"} & sys.stdlib_module_names


def test_no_file_names_a_machine():
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    pattern = re.compile(rb"/(work|home|root|Users)/[a-zA-Z]|/tmp/[a-zA-Z]")
    for name in filter(None, files):
        if (
            name.endswith((".py", ".sh", ".md", ".txt", ".ini", ".toml", "run"))
            and name != "tests/test_house.py"
        ):
            path = ROOT / name
            assert not path.is_file() or not pattern.search(path.read_bytes()), (
                f"{name} names a path of a machine"
            )
