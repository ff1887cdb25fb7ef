"""A checkpoint and anybody's photographs -> poses, a confidence for each, and pictures of the mesh over the photograph.

python code/predict.py --checkpoint saved_model_car_last.pth photo.jpg --box 40 60 580 330
python code/predict.py --checkpoint saved_model_car_last.pth folder --boxes boxes.csv --film
python code/predict.py --checkpoint saved_model_car_last.pth --calibrate data/PASCAL3D_train_NeMo
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from neural_mesh.compare.rendering import RENDERERS
from neural_mesh.data.dataset import change_colour, paste_patches, read_crop
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.pose_error import THRESHOLDS, pose_errors
from neural_mesh.machine import arguments, console
from neural_mesh.machine.devices import first_device, gpus_of
from neural_mesh.photographs import calibration as confidence
from neural_mesh.photographs.calibration import Calibration
from neural_mesh.photographs.finder import (
    EVIDENCE,
    PICTURE_SUFFIXES,
    Photograph,
    PhotographPose,
    PoseFinder,
    calibration_path,
    check_box,
    overlay,
    read_photograph,
)
from neural_mesh.pictures.drawing import save_film
from neural_mesh.settings import FOREGROUND_RATIO, PhotographConfig, SolveConfig
from neural_mesh.solve.model import Model, load_model
from neural_mesh.storage.checkpoints import Checkpoint
from neural_mesh.storage.files import csv_text, disk_errors, lock, read_json, read_text, write_text
from neural_mesh.storage.layout import PreparedSet, read_list
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import save_npz
from neural_mesh.storage.pictures import write_jpeg
from neural_mesh.storage.records import load_annotation
from neural_mesh.training.trainer import hold_out

POSES, TABLE, SETTINGS, FAILURES, REFERENCE = (
    "poses.jsonl",
    "poses.csv",
    "settings.json",
    "failures.txt",
    "final_pred.npz",
)
OVERLAY_QUALITY = 90  # of JPEG
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


@dataclass(frozen=True)
class Job:
    """A photograph to look at: its name in the results, its file, and the boxes in it (none: the whole picture)."""

    name: str
    path: Path
    boxes: tuple[tuple[float, ...], ...]

    @property
    def source(self) -> dict:
        """What a result depends on beside the settings; a photograph that changed is looked at again."""
        status = self.path.stat()
        return {
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
            "boxes": [list(box) for box in self.boxes],
        }


# ---- what to look at ----


def collect_jobs(
    paths: Sequence[Path], boxes: dict[str, list[tuple[float, ...]]], out: Path
) -> list[Job]:
    """Photographs in the order of their names: files as they are given, folders with all pictures in and below them.

    Raises FileNotFoundError for a path that is not there, ValueError when a name comes twice or there is no picture.
    """
    files: dict[str, Path] = {}
    for given in paths:
        if given.is_dir():
            inside = [
                p
                for p in sorted(given.rglob("*"))
                if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()
            ]
            found = {
                p.relative_to(given).as_posix(): p
                for p in inside
                if not p.name.startswith(".") and out not in p.resolve().parents
            }
        elif given.exists():
            found = {given.name: given}
        else:
            raise FileNotFoundError(f"photograph not found: {given}")
        twice = sorted(name for name in found if name in files and files[name] != found[name])
        if twice:
            raise ValueError(
                f"two photographs are called {twice[0]}: {files[twice[0]]} and {found[twice[0]]}; use one run for each folder"
            )
        files |= found
    if not files:
        raise ValueError(
            f"no picture in {', '.join(map(str, paths))} (files ending in {' '.join(sorted(PICTURE_SUFFIXES))})"
        )
    unknown = sorted(set(boxes) - set(files))
    if unknown:
        print(
            f"note: {console.count(len(unknown), 'file')} with boxes not among the photographs, {unknown[0]} first",
            file=sys.stderr,
        )
    return [Job(name, files[name], tuple(boxes.get(name, ()))) for name in sorted(files)]


def read_boxes(path: Path) -> dict[str, list[tuple[float, ...]]]:
    """Boxes by file name: csv rows `file,x0,y0,x1,y1` (a heading is skipped), or json {file: box or list of boxes}.

    A file may have several. Raises ValueError, naming the row, for anything that is not a box.
    """
    if not path.is_file():
        raise FileNotFoundError(f"boxes not found: {path}")
    rows: list[tuple[str, object]] = []
    if path.suffix.lower() == ".json":
        for name, value in read_json(path).items():
            several = isinstance(value, list) and value and isinstance(value[0], list)
            rows += [(name, box) for box in (value if several else [value])]
    else:
        text = io.StringIO(read_text(path).removeprefix("\ufeff"))
        try:
            lines = [row for row in csv.reader(text) if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise ValueError(f"{path}: not a table ({error})") from None
        if lines and not _is_number(lines[0][-1]):
            lines = lines[1:]
        rows = [(row[0].strip(), row[1:]) for row in lines]
    boxes: dict[str, list[tuple[float, ...]]] = {}
    for name, values in rows:
        if (
            not isinstance(values, list)
            or len(values) != 4
            or not all(_is_number(value) for value in values)
        ):
            raise ValueError(f"{path}: {name} has {values}, expected four numbers x0, y0, x1, y1")
        boxes.setdefault(name, []).append(tuple(float(value) for value in values))
    return boxes


def _is_number(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


# ---- results on disk ----


class Results:
    """The folder of a run's results: a line of JSON per object, appended as soon as it is known, and what follows from them.

    A killed run leaves whole lines and perhaps a torn last one, which is dropped. Raises ValueError when the folder holds
    results of other settings.
    """

    def __init__(self, folder: Path, settings: dict, overwrite: bool):
        self.folder, self.path = folder, folder / POSES
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in (POSES, SETTINGS):
                (folder / name).unlink(missing_ok=True)
        wanted = json.loads(json.dumps(settings))
        if (folder / SETTINGS).is_file() and (differing := self._differing(wanted)):
            raise ValueError(
                f"{folder} holds results of other settings ({', '.join(differing)}); use another --out, or --overwrite true to begin again"
            )
        write_text(folder / SETTINGS, console.as_json(wanted))
        self.records: dict[str, list[dict]] = {}
        for record in self._stored():
            self.records.setdefault(record["photo"], []).append(record)

    def _differing(self, wanted: dict) -> list[str]:
        try:
            found = read_json(self.folder / SETTINGS)
        except ValueError as error:
            return [str(error)]
        return sorted(
            key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
        )

    def _stored(self) -> Iterator[dict]:
        for line in (
            self.path.read_text(errors="replace").splitlines() if self.path.is_file() else ()
        ):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a kill; its photograph is looked at again
            if is_record(record):
                yield record

    def is_done(self, job: Job) -> bool:
        """Whether an earlier run has found everything in this photograph as it is now, pictures included."""
        stored = self.records.get(job.name, ())
        known = len(stored) == max(1, len(job.boxes)) and all(
            record["source"] == job.source for record in stored
        )
        return known and all(
            (self.folder / file).is_file() for record in stored for file in record["pictures"]
        )

    def forget(self, jobs: Sequence[Job]) -> None:
        """Drop what is stored about photographs that will be looked at, and lines that are torn."""
        for job in jobs:
            self.records.pop(job.name, None)
        self._write_lines()

    def add(self, records: Sequence[dict]) -> None:
        """Append the objects of one photograph."""
        self.records[records[0]["photo"]] = list(records)
        with disk_errors(self.path), open(self.path, "a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))

    def _write_lines(self) -> None:
        write_text(
            self.path,
            "".join(
                json.dumps(record) + "\n"
                for name in sorted(self.records)
                for record in self.records[name]
            ),
        )

    def finish(self, calibration: Calibration | None, failures: Sequence[str]) -> list[dict]:
        """Write everything in order, with the confidences of this calibration; returns all records, of other photographs too."""
        for records in self.records.values():
            for record in records:
                record["confidence"] = (
                    None
                    if calibration is None
                    else float(calibration.confidence(list(record["evidence"].values())))
                )
        self._write_lines()
        everything = [record for name in sorted(self.records) for record in self.records[name]]
        lines: list[Sequence[object]] = [COLUMNS]
        for record in everything:
            flat = record | dict(
                zip(("principal_x", "principal_y"), record["principal_xy"], strict=True)
            )
            lines.append([_rounded(flat[column]) for column in COLUMNS])
        write_text(self.folder / TABLE, csv_text(lines))
        if failures:
            write_text(self.folder / FAILURES, "".join(f"{line}\n" for line in failures))
        else:
            (self.folder / FAILURES).unlink(missing_ok=True)
        return everything


def is_record(line: object) -> bool:
    """Whether a stored line is what `record_of` makes."""
    try:
        numbers = [line[key] for key in NUMBERS] + [
            *line["principal_xy"],
            *np.ravel(line["camera_matrix"]),
            *line["evidence"].values(),
        ]
        texts = [line["photo"], *line["pictures"]]
        whole = (
            len(line["principal_xy"]) == 2
            and line["evidence"].keys() == set(EVIDENCE)
            and {"source", "box"} <= line.keys()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return (
        whole
        and all(isinstance(n, int | float) and np.isfinite(n) for n in numbers)
        and all(isinstance(text, str) for text in texts)
    )


def _rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else "" if value is None else value


def record_of(
    job: Job, number: int, photograph: Photograph, pose: PhotographPose, pictures: Sequence[str]
) -> dict:
    """One object of a photograph as JSON values. Angles in radians and, named so, in degrees."""
    azimuth, elevation, theta = pose.angles_deg
    return {
        "photo": job.name,
        "object": number,
        "width": photograph.size_hw[1],
        "height": photograph.size_hw[0],
        "box": list(job.boxes[number]) if job.boxes else None,
        "azimuth": pose.azimuth,
        "elevation": pose.elevation,
        "theta": pose.theta,
        "azimuth_deg": azimuth,
        "elevation_deg": elevation,
        "theta_deg": theta,
        "distance": pose.distance,
        "focal_px": pose.focal_px,
        "principal_xy": list(pose.principal_xy),
        "pascal3d_distance": pose.pascal3d_distance,
        "camera_matrix": pose.camera_matrix.tolist(),
        "mesh": pose.mesh,
        "score": pose.score,
        "evidence": dict(zip(EVIDENCE, pose.evidence, strict=True)),
        "confidence": pose.confidence,
        "pictures": list(pictures),
        "source": job.source,
    }


def reference_row(record: dict) -> np.ndarray:
    """distance, theta, elevation, azimuth, t0, t1: what the reference saves of a photograph.

    t0 and t1 move the object in its camera, x to the left and y up, in CAD units; here from the object's place against
    the middle of the crop.
    """
    (x, y), (middle_x, middle_y) = record["principal_xy"], record["crop_middle_xy"]
    unit = record["distance"] / record["focal_px"]
    pose = [record[key] for key in ("distance", "theta", "elevation", "azimuth")]
    return np.array([*pose, (middle_x - x) * unit, (middle_y - y) * unit])


# ---- the run ----


def read_ahead(
    jobs: Sequence[Job], config: PhotographConfig, threads: int, ahead: int
) -> Iterator[tuple[Job, Photograph | str]]:
    """Photographs in order, decoded by threads, at most `ahead` of them waiting; a message for one that cannot be used."""

    def read(job: Job) -> Photograph | str:
        try:
            photograph = read_photograph(job.path, job.boxes, config.wanted_side)
            for box in job.boxes:
                check_box(box, photograph.size_hw)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            message = str(error)
            return message if str(job.path) in message else f"{job.path}: {message}"
        return photograph

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Job, Future]] = deque()
        for job in jobs:
            waiting.append((job, pool.submit(read, job)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


class Predictor:
    """Looks at photographs batch by batch and writes what it finds."""

    def __init__(self, args: argparse.Namespace, finder: PoseFinder, results: Results):
        self.args, self.finder, self.results = args, finder, results
        self.drawn: Mesh | None = read_off(args.draw_mesh) if args.draw_mesh else None
        self.failures: list[str] = []

    def run(self, jobs: Sequence[Job]) -> int:
        """Look at what is not done yet; returns how many photographs were done before."""
        todo = [job for job in jobs if not self.results.is_done(job)]
        done = len(jobs) - len(todo)
        self.results.forget(todo)
        threads = min(8, os.cpu_count() or 1)
        with console.progress_bar("photographs", len(jobs), initial=done) as bar:
            batch: list[tuple[Job, Photograph]] = []
            for job, photograph in read_ahead(
                todo, self.finder.config, threads, self.args.batch_size
            ):
                if isinstance(photograph, str):
                    self._fail(photograph)
                    bar.update(1)
                    continue
                batch.append((job, photograph))
                if len(batch) == self.args.batch_size:
                    self._predict(batch)
                    bar.update(len(batch))
                    batch = []
            if batch:
                self._predict(batch)
                bar.update(len(batch))
        return done

    def _fail(self, message: str) -> None:
        self.failures.append(message)
        tqdm.write(f"skipped: {message}", file=sys.stderr)

    def _predict(self, batch: Sequence[tuple[Job, Photograph]]) -> None:
        """Look at photographs; where that fails, at each of them alone, and report those that still fail."""
        try:
            found = self._records(batch)
        except (
            RuntimeError,
            ValueError,
            ArithmeticError,
            MemoryError,
        ) as error:  # a disk that refuses to write stops the run
            if len(batch) == 1:
                reason = (str(error).splitlines() or ["not enough memory"])[0]
                self._fail(f"{batch[0][0].path}: no pose could be found ({reason})")
                return
            for one in batch:
                self._predict([one])
            return
        for records in found:
            self.results.add(records)

    def _records(self, batch: Sequence[tuple[Job, Photograph]]) -> list[list[dict]]:
        """The objects of each photograph, drawn."""
        if self.args.unlabelled:
            poses = [
                [pose]
                for pose in self.finder.find_as_reference([photograph for _, photograph in batch])
            ]
        else:
            items = [(photograph, box) for job, photograph in batch for box in _boxes_of(job)]
            found = iter(self.finder.find_all(items))
            poses = [[next(found) for _ in _boxes_of(job)] for job, _ in batch]
        everything = []
        for (job, photograph), mine in zip(batch, poses, strict=True):
            pictures = self._draw(job, photograph, mine)
            records = [
                record_of(job, k, photograph, pose, pictures[k]) for k, pose in enumerate(mine)
            ]
            if self.args.unlabelled:
                records[0]["crop_middle_xy"] = list(
                    self.finder.reference_framing(photograph).centre_xy
                )
            everything.append(records)
        return everything

    def _draw(
        self, job: Job, photograph: Photograph, poses: Sequence[PhotographPose]
    ) -> list[list[str]]:
        """Write the pictures of a photograph; returns, for each object, the files that show it."""
        files: list[list[str]] = [[] for _ in poses]
        if self.args.overlays:
            name = f"overlays/{job.name}.jpg"
            drawn = [(self.drawn or self.finder.model.mesh(pose.mesh), pose) for pose in poses]
            write_jpeg(
                self.results.folder / name,
                overlay(photograph, drawn, self.finder.config.overlay_side),
                OVERLAY_QUALITY,
            )
            files = [[name] for _ in poses]
        if self.args.film:
            for k, pose in enumerate(poses):
                name = f"films/{job.name}{f'_{k}' if len(poses) > 1 else ''}.gif"
                save_film(
                    self.results.folder / name, self.finder.film(photograph, pose, self.drawn)
                )
                files[k] = files[k] + [name]
        return files


def _boxes_of(job: Job) -> list[np.ndarray | None]:
    return [np.array(box) for box in job.boxes] or [None]


def settings_of(args: argparse.Namespace, finder: PoseFinder) -> dict:
    """Everything that results depend on beside the photographs, as JSON values."""
    return finder.depends_on() | {
        "photograph": asdict(finder.config),
        "renderer": args.renderer,
        "unlabelled": args.unlabelled,
        "overlays": args.overlays,
        "film": args.film,
        "draw_mesh": str(args.draw_mesh or ""),
    }


def predict(args: argparse.Namespace, finder: PoseFinder) -> None:
    """Look at all photographs, write the results, and say what came out."""
    boxes = read_boxes(args.boxes) if args.boxes else {}
    jobs = collect_jobs(args.photos, boxes, args.out)
    if args.box is not None:
        if len(jobs) != 1:
            raise ValueError(
                f"--box is for one photograph, there are {len(jobs)}; name a file of boxes with --boxes"
            )
        jobs = [replace(jobs[0], boxes=(tuple(args.box),))]
    if args.unlabelled and any(job.boxes for job in jobs):
        raise ValueError(
            "--unlabelled is the reference's route, which has no boxes; leave out --box and --boxes, or --unlabelled"
        )
    stems = [Path(job.name).stem for job in jobs]
    if args.unlabelled and len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ValueError(
            f"--unlabelled names photographs without folder and ending; two are called {twice}, give them one run each"
        )
    results = Results(args.out, settings_of(args, finder), args.overwrite)
    predictor = Predictor(args, finder, results)
    before = predictor.run(jobs)
    names = {job.name for job in jobs}
    records = [
        record
        for record in results.finish(finder.calibration, predictor.failures)
        if record["photo"] in names
    ]
    if not records:
        more = f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else ""
        raise ValueError(f"no photograph could be used{more}: {predictor.failures[0]}")
    if args.unlabelled:
        save_npz(
            args.out / REFERENCE,
            {Path(record["photo"]).stem: reference_row(record) for record in records},
        )
    if len(records) == 1:
        print(sentence(records[0]))
    used = console.count(len({record["photo"] for record in records}), "photograph")
    print(
        f"{console.count(len(records), 'pose')} of {used} ({before:,} of them from earlier runs, "
        f"{len(predictor.failures)} could not be used{f', see {FAILURES}' if predictor.failures else ''}) "
        f"by {finder.renderer} on {finder.model.device}, in {args.out}"
    )
    if finder.calibration is None and not args.unlabelled:
        print(
            "confidence is not given: this checkpoint has no calibration for these settings; "
            "predict.py --checkpoint ... --calibrate <prepared set> makes one"
        )


def sentence(record: dict) -> str:
    """A pose in words."""
    sure = "" if record["confidence"] is None else f", confidence {record['confidence']:.2f}"
    angles = ", ".join(
        f"{name} {record[f'{name}_deg']:.1f}" for name in ("azimuth", "elevation", "theta")
    )
    return f"{record['photo']}: {angles} degrees, distance {record['pascal3d_distance']:.2f}, score {record['score']:.3f}{sure}"


# ---- calibration of the confidence ----

CALIBRATION_NOISE = 30.0  # grey levels of 255, at most
HELD_OUT, OTHERS, TRAINED, UNKNOWN = (
    "held out from training",
    "of a set not trained on",
    "trained on",
    "perhaps trained on",
)


def calibration_file(args: argparse.Namespace) -> Path:
    """The calibration that the user names, or the one beside the checkpoint."""
    return args.confidence or calibration_path(args.checkpoint)


def calibration_items(
    prepared: PreparedSet, model: Model, names: Sequence[str], disturb: bool, seed: int
) -> Iterator[tuple[tuple[Photograph, np.ndarray | None], np.ndarray]]:
    """Prepared crops as photographs, with the boxes to look in, and their true angles [3]: every other one in a box that is
    a little off, the others as whole pictures with more or less around the object. disturb: with other colours, noise, and
    patches of other crops over as much of the object as at the occlusion levels 0, 1 and 2 in turn: a network knows the
    pictures that it was trained on too well for its confidence in them to mean anything for others."""
    category = model.checkpoint.config.category
    paths = [prepared.image(category, name) for name in names]
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        random = np.random.default_rng([seed, i])
        annotation = load_annotation(prepared.annotation(category, name))
        row0, row1, col0, col1 = annotation.box_obj[:4]
        box, pixels = np.array([col0, row0, col1, row1]), read_crop(path, 1)
        sides = np.tile(box[2:] - box[:2], 2)
        if disturb:
            covered = random.uniform(
                *((0.0, 0.0), FOREGROUND_RATIO[1], FOREGROUND_RATIO[2])[i // 2 % 3]
            )
            pixels = disturbed(
                pixels, read_crop(paths[int(random.integers(len(paths)))], 1), box, covered, random
            )
        truth = np.array([annotation.azimuth, annotation.elevation, annotation.theta])
        if i % 2:
            yield (
                (
                    Photograph(pixels, pixels.shape[:2]),
                    box + random.uniform(-0.06, 0.06, 4) * sides,
                ),
                truth,
            )
        else:
            window = box + random.uniform(0.02, 0.4, 4) * sides * [-1, -1, 1, 1]
            left, top, right, bottom = np.clip(window, 0, np.tile(pixels.shape[1::-1], 2)).astype(
                int
            )
            pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
            yield (Photograph(pixels, pixels.shape[:2]), None), truth


def disturbed(
    pixels: np.ndarray,
    other: np.ndarray,
    box: np.ndarray,
    covered: float,
    random: np.random.Generator,
) -> np.ndarray:
    """A crop [H, W, 3] with other colours, noise, and patches of another crop over a share `covered` of its object's box."""
    noisy = pixels + random.standard_normal(pixels.shape) * random.uniform(0, CALIBRATION_NOISE)
    image, donor = (
        torch.from_numpy(crop.copy()).permute(2, 0, 1)
        for crop in (np.clip(noisy, 0, 255).astype(np.uint8), other)
    )
    x0, y0, x1, y1 = box.astype(int)
    inside = np.stack([random.uniform(y0, y1, 64), random.uniform(x0, x1, 64)], 1)
    hidden = torch.zeros(pixels.shape[:2], dtype=torch.bool)
    while float(hidden[y0:y1, x0:x1].float().mean()) < covered:
        image, more = paste_patches(image, donor, inside, random)
        hidden |= more
    return change_colour(image, random).permute(1, 2, 0).numpy()


def calibration_names(names: list[str], checkpoint: Checkpoint, data: str) -> tuple[list[str], str]:
    """Which images of a prepared set (fingerprint `data`) to use, and what they are to the network: where it was trained on this
    set, those that VALIDATE_EVERY held out, or else all."""
    if not data or not checkpoint.data:
        return names, UNKNOWN
    if data != checkpoint.data:
        return names, OTHERS
    if not checkpoint.config.validate_every:
        return names, TRAINED
    return hold_out([names], checkpoint.config.validation_share, checkpoint.config.seed)[1][
        0
    ], HELD_OUT


def calibrate(args: argparse.Namespace, finder: PoseFinder) -> None:
    """Fit a map from evidence to confidence on images of a prepared set, and write it beside the checkpoint."""
    prepared = PreparedSet(
        console.require_folder(args.calibrate, "prepared set", "run PrepareData.sh first")
    )
    checkpoint = finder.model.checkpoint
    category, mesh_d = checkpoint.config.category, checkpoint.config.mesh_d
    lists = sorted(prepared.vertex_lists(mesh_d, category).glob("mesh*.txt"))
    names = sorted({name for path in lists for name in read_list(path)})
    if not names:
        raise ValueError(
            f"{prepared.root} has no prepared image of {category} for {mesh_d} cuboids; run PrepareData.sh first"
        )
    data = prepared.fingerprint(category)
    names, used = calibration_names(names, checkpoint, data)
    order = np.random.default_rng(args.seed).permutation(len(names))[: args.calibration_images]
    patches = args.calibration_patches == "true" or (
        args.calibration_patches == "auto" and used in (TRAINED, UNKNOWN)
    )
    items = calibration_items(prepared, finder.model, [names[i] for i in order], patches, args.seed)
    evidence, errors = [], []
    with console.progress_bar("calibration", len(order)) as bar:
        for first in range(0, len(order), args.batch_size):
            batch = [next(items) for _ in range(min(args.batch_size, len(order) - first))]
            poses = finder.find_all([item for item, _ in batch])
            evidence += [pose.evidence for pose in poses]
            errors.append(
                pose_errors(
                    [[p.azimuth, p.elevation, p.theta] for p in poses],
                    np.stack([truth for _, truth in batch]),
                )
            )
            bar.update(len(batch))
    right = np.concatenate(errors) < THRESHOLDS["pi/6"]
    source = {"fingerprint": data, "images": used, "patches": patches, "seed": args.seed}
    made = confidence.calibrate(evidence, right, EVIDENCE, finder.depends_on(), source, args.seed)
    confidence.save_calibration(calibration_file(args), made)
    how = ", disturbed and with patches of others over them," if patches else ""
    print(
        f"confidence calibrated on {console.count(made.images, 'image')} {used}{how} ({100 * made.right:.1f}% right within pi/6): "
        f"cross-validated Brier score {made.brier:.3f}, calibration error {made.calibration_error:.3f}; "
        f"in {calibration_file(args)}"
    )


def main() -> None:
    """Predict, or calibrate."""
    default, solver = PhotographConfig(), SolveConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "photos", nargs="*", type=Path, help="pictures, or folders of them (with all below)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="what TrainNeMo.sh saved, or the authors' file",
    )
    parser.add_argument("--category", help="stop if the checkpoint is of another one")
    parser.add_argument(
        "--meshes",
        type=Path,
        help="folder of its cuboids, for a checkpoint of the reference, which has none in it",
    )
    parser.add_argument(
        "--box",
        type=float,
        nargs=4,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="where the object is, in pixels of the upright picture",
    )
    parser.add_argument(
        "--boxes",
        type=Path,
        help="csv (file,x0,y0,x1,y1) or json ({file: box or boxes}); others: the whole picture",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        help="folder of the results (default: predictions)",
    )
    parser.add_argument(
        "--overlays",
        type=arguments.boolean,
        default=True,
        help="pictures of the mesh over the photograph (default: true)",
    )
    parser.add_argument("--film", action="store_true", help="also an animated GIF of each search")
    parser.add_argument(
        "--draw-mesh",
        type=Path,
        help="an .off file to draw in place of the cuboid, such as a CAD model",
    )
    parser.add_argument(
        "--solver",
        choices=("paper", "best"),
        help=f"how poses are searched (default: {default.solver}; --unlabelled: paper)",
    )
    parser.add_argument(
        "--renderer",
        choices=("auto", *RENDERERS),
        default=solver.renderer,
        help="what compares mesh and map (default: auto)",
    )
    parser.add_argument(
        "--gpus", default="all", help="all or indices, the first is used; empty: CPU (default: all)"
    )
    parser.add_argument(
        "--batch-size", type=arguments.positive, default=8, help="photographs at a time (default: 8)"
    )
    parser.add_argument(
        "--overwrite",
        type=arguments.boolean,
        default=False,
        help="begin again where --out holds results (default: false)",
    )
    parser.add_argument(
        "--confidence", type=Path, help="calibration file (default: <checkpoint>.confidence.json)"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="PREPARED",
        help="make the calibration from a prepared set, and stop",
    )
    parser.add_argument(
        "--calibration-images",
        type=arguments.positive,
        default=400,
        help="images for it, drawn by the seed (default: 400)",
    )
    parser.add_argument(
        "--calibration-patches",
        choices=("auto", "true", "false"),
        default="auto",
        help="disturb its images and cover parts; auto: unless surely not trained on (default: auto)",
    )
    parser.add_argument(
        "--seed", type=int, default=solver.seed, help="of everything random (default: 0)"
    )
    parser.add_argument(
        "--unlabelled",
        action="store_true",
        help=f"the reference's route for pictures without boxes; also writes {REFERENCE} with its keys",
    )
    parser.add_argument(
        "--tar-horizontal-size",
        type=float,
        default=default.reference_width,
        help="of --unlabelled: width that pictures are resized to, pixels (default: %(default)g)",
    )
    parser.add_argument(
        "--vertical-shift",
        type=float,
        default=default.reference_shift,
        help="of --unlabelled: crop so far below their middle, pixels (default: %(default)g)",
    )
    args = parser.parse_args()
    if not args.calibrate and not args.photos:
        raise ValueError("name photographs, or a folder of them")
    if args.box is not None and args.boxes:
        raise ValueError("--box and --boxes exclude each other")
    args.out = args.out.resolve()
    config = replace(
        default,
        solver=args.solver or ("paper" if args.unlabelled else default.solver),
        reference_width=args.tar_horizontal_size,
        reference_shift=args.vertical_shift,
    )
    model = load_model(
        args.checkpoint,
        args.category,
        args.meshes or args.checkpoint.parent,
        first_device(gpus_of(args.gpus)),
    )
    finder = PoseFinder(model, config, renderer=args.renderer)
    if args.calibrate:
        calibrate(args, finder)
        return
    if (
        not args.unlabelled
        and not finder.use_calibration(calibration_file(args))
        and calibration_file(args).is_file()
    ):
        print(
            f"note: {calibration_file(args)} was made with other settings and is not used",
            file=sys.stderr,
        )
    with lock(args.out, "predict", "poses"):
        predict(args, finder)


if __name__ == "__main__":
    console.run_main(main)
