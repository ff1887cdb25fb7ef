"""The examples run, and have a known answer."""

from __future__ import annotations

import re
import subprocess
import sys

from PIL import Image

from helpers.project import PYTHONPATH, ROOT


def test_a_planted_pose_is_recovered(tmp_path):
    picture = tmp_path / "pose.png"
    program = ROOT / "examples" / "recover_a_pose.py"
    done = subprocess.run(
        [sys.executable, program, "--hidden", "0.5", "--picture", picture],
        env={"PYTHONPATH": PYTHONPATH, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error_deg = float(re.search(r"error: +([0-9.]+) degrees", done.stdout)[1])
    assert error_deg < 1.0
    assert Image.open(picture).size == (84 * 8, 32 * 8)
