"""How scripts are started: by sh, through a link, from a copy, from a clone, with a stale .venv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT

SCRIPTS = ("PrepareData.sh", "TrainNeMo.sh", "InferenceNeMo.sh", "DemoNeMo.sh")


def run(*command: object, **environment: object) -> subprocess.CompletedProcess:
    """A command as a user types it, from the root of the file system."""
    return subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"}
        | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("name", [*SCRIPTS, "tests/run.sh"])
def test_a_script_runs_by_sh_and_through_links(tmp_path, name):
    expected = run(ROOT / name, "--help").stdout
    assert expected
    link = tmp_path / "a link"
    link.symlink_to(ROOT / name)
    (tmp_path / "second").symlink_to(link)
    for command in (["sh", ROOT / name], [link], [tmp_path / "second"], ["sh", link]):
        done = run(*command, "--help")
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_defaults_lie_in_the_project_wherever_the_link_is(tmp_path):
    (tmp_path / "train").symlink_to(ROOT / "TrainNeMo.sh")
    done = run(tmp_path / "train", PYTHON=sys.executable, GPUS="", CATEGORIES="car", EXPROOT="/x")
    assert done.returncode == 1
    assert f"{ROOT}/data" in done.stderr


def test_a_copy_alone_says_what_it_lacks(tmp_path):
    """As a scheduler makes one of the script that it is given."""
    shutil.copy(ROOT / "TrainNeMo.sh", tmp_path / "slurm_script")
    done = run(tmp_path / "slurm_script")
    assert done.returncode == 1
    assert "is not beside the project's code" in done.stderr


def test_a_tilde_in_a_value_is_the_home(tmp_path):
    settings = {"PYTHON": sys.executable, "HOME": tmp_path, "CATEGORIES": "car", "GPUS": ""}
    done = run(ROOT / "TrainNeMo.sh", DATAROOT="~/data", EXPROOT="~/exp", **settings)
    assert f"{tmp_path}/data/" in done.stderr
    assert "~" not in done.stderr


# ---- clones ----


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_clone_made_for_windows_has_unix_lines(tmp_path):
    if not shutil.which("git"):
        pytest.skip("needs git, which is not here")
    source = tmp_path / "source"
    source.mkdir()
    for name in (*SCRIPTS, "code/common.sh", "tests/run.sh", ".ci/run", "requirements.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copy(ROOT / ".gitattributes", source)
    git(source, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "all")
    git(tmp_path, "clone", "--quiet", "-c", "core.autocrlf=true", str(source), "clone")
    files = [path for path in (tmp_path / "clone").rglob("*") if path.is_file()]
    files = [path for path in files if ".git" not in path.parts]
    assert len(files) == 9
    assert not [path for path in files if b"\r" in path.read_bytes()]
    assert run(tmp_path / "clone/PrepareData.sh", "--help").returncode == 0


# ---- environments ----

# A python3 that makes environments of itself, whose pip notes what it is asked for.
STUB = """#!/bin/sh
echo "$0 $*" >> "{log}"
case "$*" in
    "-m venv"*) mkdir -p "$4/bin"; rm -f "$4/bin/python"; cp "{stub}" "$4/bin/python" ;;
    "-m pip"*) ;;
    *) exec "{python}" "$@" ;;
esac
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project's scripts, and a python3 before all others in `bin`."""
    root = tmp_path / "project"
    for name in (*SCRIPTS, "code/common.sh", "tests/run.sh", "requirements.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    stub = tmp_path / "bin/python3"
    stub.parent.mkdir()
    text = STUB.format(log=tmp_path / "log.txt", stub=stub, python=sys.executable)
    stub.write_text(text)
    stub.chmod(0o755)
    return root


def make_environment(project: Path) -> tuple[str, str]:
    """What make_environment printed, and what Pythons were asked to do."""
    path = f"{project.parent}/bin{os.pathsep}{os.environ['PATH']}"
    program = 'set -euo pipefail; ROOT="$1"; source "$1/code/common.sh"; make_environment'
    log = project.parent / "log.txt"
    log.write_text("")
    done = run("bash", "-c", program, "bash", project, PATH=path)
    assert done.returncode == 0, done.stderr
    return done.stderr, log.read_text()


def test_an_environment_of_a_python_that_is_gone_is_made_again(project):
    printed, asked = make_environment(project)
    assert "installing the packages" in printed
    assert "-m venv --clear" in asked
    assert make_environment(project)[0] == "", "it is there"
    # A system that has got another Python.
    python = project / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.99")
    printed, asked = make_environment(project)
    assert "No such file" not in printed
    assert "-m venv --clear" in asked
    assert make_environment(project)[0] == ""


def test_an_environment_without_its_packages_is_filled_again(project):
    """As when the Python under it has become another: it runs, and finds none of them."""
    make_environment(project)
    python = project / ".venv/bin/python"
    whole = python.read_text()
    bare = 'case "$*" in *find_spec*) exit 1 ;; esac\n'
    python.write_text(whole.replace("case", bare + "case", 1))
    _, asked = make_environment(project)
    assert "-m pip install" in asked


def test_a_moved_project_is_installed_again(project):
    make_environment(project)
    moved = project.rename(project.with_name("moved"))
    _, asked = make_environment(moved)
    assert f"-e {moved}" in asked


def test_other_scripts_say_who_makes_a_stale_environment_again(project):
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/python3.99")
    bare = project.parent / "bin/python3"
    bare.write_text('#!/bin/sh\ncase "$*" in *find_spec*) exit 1 ;; esac\n')
    path = f"{bare.parent}{os.pathsep}{os.environ['PATH']}"
    done = run(project / "PrepareData.sh", PATH=path)
    assert done.returncode == 1
    remedy = f"or ./DemoNeMo.sh, which makes {project}/.venv again: the Python that it was made"
    assert remedy in done.stderr
