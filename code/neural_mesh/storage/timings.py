"""How long stages took, noted beside their results."""

from __future__ import annotations

import json
from pathlib import Path

from neural_mesh.storage.files import read_json, write_text


def record_seconds(
    path: Path, seconds: float, items: int, unit: str, resumed: bool = False, settings: str = ""
) -> None:
    """Note how long a stage took, beside the results and no part of them. `items` of `unit` were worked on.

    Called only when there was work, so that a finished stage keeps its time. resumed: the run went on with an earlier
    one, whose noted time and items are added. settings: a digest of what the results depend on; the time of a run with
    others is not added.
    """
    path = Path(path)
    if (
        resumed
        and path.is_file()
        and (earlier := load_seconds(path))
        and earlier["settings"] == settings
    ):
        seconds, items = seconds + earlier["seconds"], items + earlier["items"]
    content = {
        "seconds": round(seconds, 2),
        "items": items,
        "unit": unit,
        "resumed": resumed,
        "settings": settings,
    }
    write_text(path, json.dumps(content, sort_keys=True) + "\n")


def load_seconds(path: Path) -> dict:
    """What `record_seconds` noted; empty when the file is broken."""
    try:
        found = read_json(path)
        kinds = {"seconds": float, "items": int, "unit": str, "resumed": bool}
        return {key: kind(found[key]) for key, kind in kinds.items()} | {
            "settings": str(found.get("settings", ""))
        }
    except (ValueError, KeyError, TypeError, OverflowError):
        return {}
