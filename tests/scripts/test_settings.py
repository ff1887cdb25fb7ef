"""A setting has one default: in its dataclass, in its script, in docs/settings.md."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest

from helpers.project import ROOT
from neural_mesh.categories import CATEGORIES
from neural_mesh.settings import RECIPES, CuboidConfig, SolveConfig, TrainConfig

SCRIPTS = ("PrepareData.sh", "TrainNeMo.sh", "InferenceNeMo.sh", "DemoNeMo.sh")
# Settings of the scripts that have another name, or another form, in their dataclass.
OTHER_NAMES = {"MESH_DIMENSIONS": "mesh_d"}


def settings_of(script: str) -> dict[str, str]:
    """Names and defaults in a script's settings block."""
    text = (ROOT / script).read_text()
    block = text[text.index("# ---- settings") : text.index("# ---- end of settings")]
    return dict(re.findall(r'^(\w+)="\$\{\1:?-(.*)\}"', block, re.MULTILINE))


def documented(script: str) -> dict[str, str]:
    """Names and defaults in the script's table of docs/settings.md."""
    text = (ROOT / "docs" / "settings.md").read_text()
    section = text[text.index(f"\n## {script}\n") :].split("\n## ", 2)[1]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("| `"): row[1].strip("`") for row in rows}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_document_has_every_setting_with_its_default(script):
    settings = settings_of(script)
    assert len(settings) >= 8
    table = documented(script)
    assert list(table) == list(settings)
    for name, default in settings.items():
        if name == "CATEGORIES":
            assert default.split() == list(CATEGORIES)
            continue
        plain = re.sub(r"\$\{AZIMUTH_SELECTION:\+.*?\}", "", default).replace("$ROOT/", "")
        assert table[name] == (plain or "empty"), name


@pytest.mark.parametrize(
    "script, config",
    [
        ("PrepareData.sh", CuboidConfig()),
        ("TrainNeMo.sh", TrainConfig()),
        ("InferenceNeMo.sh", SolveConfig()),
    ],
    ids=SCRIPTS[:3],
)
def test_a_script_shows_the_defaults_of_the_dataclass(script, config):
    settings = settings_of(script)
    values = asdict(config)
    compared = 0
    for name, default in settings.items():
        field = OTHER_NAMES.get(name, name.lower())
        if field not in values or default == "auto":
            continue
        if default == "recipe":
            assert field in RECIPES["robust"], name
            continue
        compared += 1
        value = values[field]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            text = " ".join(value) if isinstance(value, tuple) else str(value)
            assert default == (text.lower() if isinstance(value, bool) else text), name
        else:
            assert float(default) == value, name
    assert compared >= (1 if script == "PrepareData.sh" else 6)
