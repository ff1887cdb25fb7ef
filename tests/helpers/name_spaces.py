"""Programs that see other mounts than this one: a small /dev/shm, a folder that is read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SMALL_SHARED_MEMORY = "mount -t tmpfs -o size=256k tmpfs /dev/shm"


def read_only(folder: Path) -> str:
    """The command that makes a folder read-only, for `apart`."""
    return f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}"'


def apart(mounts: str) -> list[str]:
    """What starts a program after these mounts, seen by it alone; skips where that is not allowed.

    mounts: shell commands.
    """
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, which is not here")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs mounts of its own, which are not allowed here: {tried.stderr.strip()}")
    return command
