"""The folder of a run's results: a line of JSON per object, and a table of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.machine.console import as_json
from neural_mesh.photographs.calibration import Calibration
from neural_mesh.photographs.evidence import EVIDENCE
from neural_mesh.photographs.folders import POSES
from neural_mesh.photographs.jobs import PhotographJob
from neural_mesh.photographs.poses import PhotographPose
from neural_mesh.storage.files import (
    csv_text,
    disk_errors,
    one_line,
    read_json,
    readable,
    write_text,
)
from neural_mesh.storage.npz_files import save_npz
from neural_mesh.storage.pictures import Photograph

TABLE = "poses.csv"
SETTINGS = "settings.json"
FAILURES = "failures.txt"
REFERENCE = "final_pred.npz"  # of the reference's route, with its keys
COLUMNS = (
    "photo",
    "object",
    "azimuth_deg",
    "elevation_deg",
    "theta_deg",
    "distance",
    "focal_px",
    "principal_x",
    "principal_y",
    "pascal3d_distance",
    "mesh",
    "score",
    "confidence",
)
# Of a record, beside those in lists.
NUMBERS = (
    "object",
    "width",
    "height",
    "azimuth",
    "elevation",
    "theta",
    "azimuth_deg",
    "elevation_deg",
    "theta_deg",
    "distance",
    "focal_px",
    "pascal3d_distance",
    "mesh",
    "score",
)
TABLE_DIGITS = 5

PoseRecord = dict[str, Any]  # one object of a photograph, see `record_of`


# ---- one record ----


def record_of(
    job: PhotographJob,
    number: int,
    photograph: Photograph,
    pose: PhotographPose,
    pictures: Sequence[str],
) -> PoseRecord:
    """Object `number` of a photograph as JSON values. pictures: files that show it.

    Angles are in radians and, named so, in degrees.
    """
    azimuth_deg, elevation_deg, theta_deg = pose.angles_deg
    height, width = photograph.size_hw
    return {
        "photo": job.name,
        "object": number,
        "width": width,
        "height": height,
        "box": list(job.boxes[number]) if job.boxes else None,
        "azimuth": pose.pose.azimuth,
        "elevation": pose.pose.elevation,
        "theta": pose.pose.theta,
        "azimuth_deg": azimuth_deg,
        "elevation_deg": elevation_deg,
        "theta_deg": theta_deg,
        "distance": pose.pose.distance,
        "focal_px": pose.focal_px,
        "principal_xy": list(pose.pose.principal_xy),
        "pascal3d_distance": pose.pascal3d_distance,
        "camera_matrix": pose.camera_matrix.tolist(),
        "mesh": pose.mesh,
        "score": pose.score,
        "evidence": dict(zip(EVIDENCE, pose.evidence, strict=True)),
        "confidence": pose.confidence,
        "pictures": list(pictures),
        "source": job.source,
    }


def is_record(line: Any) -> bool:
    """Whether a stored line is what `record_of` makes."""
    try:
        numbers = [line[key] for key in NUMBERS]
        numbers += [*line["principal_xy"], *np.ravel(line["camera_matrix"])]
        numbers += line["evidence"].values()
        texts = [line["photo"], *line["pictures"]]
        is_whole = (
            len(line["principal_xy"]) == 2
            and line["evidence"].keys() == set(EVIDENCE)
            and {"source", "box"} <= line.keys()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    # JSON has NaN and infinities here, which no pose has.
    are_numbers = all(isinstance(n, int | float) and np.isfinite(n) for n in numbers)
    return is_whole and are_numbers and all(isinstance(text, str) for text in texts)


def sentence(record: PoseRecord) -> str:
    """A pose in words."""
    angles = ", ".join(
        f"{name} {record[f'{name}_deg']:.1f}" for name in ("azimuth", "elevation", "theta")
    )
    text = (
        f"{one_line(record['photo'])}: {angles} degrees, "
        f"distance {record['pascal3d_distance']:.2f}, score {record['score']:.3f}"
    )
    if record["confidence"] is not None:
        text += f", confidence {record['confidence']:.2f}"
    return text


def reference_row(record: PoseRecord) -> NDArray[np.float64]:
    """distance, theta, elevation, azimuth, t0, t1: what the reference saves of a photograph.

    t0 and t1 move the object in its camera, x to the left and y up, in CAD units; here from the
    object's place against the middle of the crop.
    """
    x, y = record["principal_xy"]
    middle_x, middle_y = record["crop_middle_xy"]
    # CAD units per pixel, at the distance of the object.
    unit = record["distance"] / record["focal_px"]
    pose = [record[key] for key in ("distance", "theta", "elevation", "azimuth")]
    return np.array([*pose, (middle_x - x) * unit, (middle_y - y) * unit])


def save_reference(path: Path, records: Iterable[PoseRecord]) -> None:
    """Write the poses of the reference's route as it does, by the names of the photographs."""
    rows = {readable(Path(record["photo"]).stem): reference_row(record) for record in records}
    save_npz(path, rows)


# ---- all records ----


class Results:
    """Results on disk: appended as soon as they are known, put in order at the end.

    A killed run leaves whole lines and perhaps a torn last one, which is dropped. Raises ValueError
    when the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: dict, overwrite: bool):
        self.folder = folder
        self.path = folder / POSES
        folder.mkdir(parents=True, exist_ok=True)
        # Pictures of an earlier run stay until they are drawn again.
        if overwrite:
            for name in (POSES, SETTINGS):
                (folder / name).unlink(missing_ok=True)
        # As they will be read again, with lists in place of tuples.
        settings = json.loads(json.dumps(settings))
        if differing := self._differing(settings):
            raise ValueError(
                f"{folder} holds results of other settings ({', '.join(differing)}); "
                "use another --out, or --overwrite true to begin again"
            )
        write_text(folder / SETTINGS, as_json(settings))
        self.records: dict[str, list[PoseRecord]] = {}
        for record in self._stored():
            self.records.setdefault(record["photo"], []).append(record)

    def _differing(self, settings: dict) -> list[str]:
        """Names of the settings that an earlier run had otherwise."""
        if not (self.folder / SETTINGS).is_file():
            return []
        try:
            earlier = read_json(self.folder / SETTINGS)
        except ValueError as error:
            # Settings that cannot be read are not known to be the same.
            return [str(error)]
        names = sorted(settings.keys() | earlier.keys())
        return [name for name in names if settings.get(name) != earlier.get(name)]

    def _stored(self) -> Iterator[PoseRecord]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                # Torn by a kill; its photograph is looked at again.
                continue
            if is_record(record):
                yield record

    def is_done(self, job: PhotographJob) -> bool:
        """Whether an earlier run has looked at this photograph as it is now.

        All of its objects and their pictures are there.
        """
        # A kill may have come between the objects of a photograph.
        stored = self.records.get(job.name, ())
        if len(stored) != len(job.regions):
            return False
        try:
            source = job.source
        except OSError:  # gone, or nothing but a link
            return False
        if any(record["source"] != source for record in stored):
            return False
        pictures = [file for record in stored for file in record["pictures"]]
        return all((self.folder / file).is_file() for file in pictures)

    def forget(self, jobs: Sequence[PhotographJob]) -> None:
        """Drop what is stored about photographs that will be looked at, and lines that are torn."""
        for job in jobs:
            self.records.pop(job.name, None)
        self._write_lines()

    def add(self, records: Sequence[PoseRecord]) -> None:
        """Append the objects of one photograph."""
        self.records[records[0]["photo"]] = list(records)
        with disk_errors(self.path), open(self.path, "a") as file:
            file.write(_lines(records))

    def finish(self, calibration: Calibration | None, failures: Sequence[str]) -> list[PoseRecord]:
        """Write everything in order, with the confidences of this calibration.

        Returns all records, those of other runs' photographs, too.
        """
        records = self._in_order()
        # Evidence is stored, so a new calibration also serves poses that were found before it.
        for record in records:
            record["confidence"] = None
            if calibration is not None:
                evidence = list(record["evidence"].values())
                record["confidence"] = float(calibration.confidence(evidence))
        self._write_lines()
        rows = [COLUMNS, *(_table_row(record) for record in records)]
        write_text(self.folder / TABLE, csv_text(rows))
        if failures:
            write_text(self.folder / FAILURES, "".join(f"{one_line(line)}\n" for line in failures))
        else:
            # An earlier run's list would speak of photographs that have been done since.
            (self.folder / FAILURES).unlink(missing_ok=True)
        return records

    def _in_order(self) -> list[PoseRecord]:
        return [record for name in sorted(self.records) for record in self.records[name]]

    def _write_lines(self) -> None:
        write_text(self.path, _lines(self._in_order()))


def _lines(records: Iterable[PoseRecord]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _table_row(record: PoseRecord) -> list[object]:
    x, y = record["principal_xy"]
    flat = record | {"principal_x": x, "principal_y": y}
    return [_cell(flat[column]) for column in COLUMNS]


def _cell(value: object) -> object:
    if isinstance(value, float):
        return round(value, TABLE_DIGITS)
    return "" if value is None else value
