"""How long stages took, noted beside their results and no part of them."""

from __future__ import annotations

import json
from pathlib import Path

from neural_mesh.storage.files import read_json, write_text

TYPES = {"seconds": float, "items": int, "unit": str, "resumed": bool}


def record_seconds(
    path: Path, seconds: float, items: int, unit: str, resumed: bool = False, settings: str = ""
) -> None:
    """Note how long a stage took, and that `items` of `unit` were worked on.

    Called only when there was work, so that a finished stage keeps its time. resumed: the run went
    on with an earlier one, whose noted time and items are added. settings: a digest of what the
    results depend on; the time of a run with others is not added.
    """
    path = Path(path)
    earlier = load_seconds(path) if resumed and path.is_file() else {}
    if earlier and earlier["settings"] == settings:
        seconds += earlier["seconds"]
        items += earlier["items"]
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
        stored = read_json(path)
        noted = {key: as_type(stored[key]) for key, as_type in TYPES.items()}
        return noted | {"settings": str(stored.get("settings", ""))}
    except (ValueError, KeyError, TypeError, OverflowError):
        return {}
