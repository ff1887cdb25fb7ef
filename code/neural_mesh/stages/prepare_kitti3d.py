"""KITTI's 3D object data -> test sets of cars in the layout of PrepareData.sh.

One set per degree of occlusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.categories import category_settings, did_you_mean
from neural_mesh.data.crops import (
    crops_size,
    is_prepared,
    placement_fields,
    remove_half_written,
    write_crop,
)
from neural_mesh.data.kitti import (
    OCCLUSION_NAMES,
    KittiObject,
    project_point,
    read_labels,
    read_projection,
    viewpoint,
)
from neural_mesh.geometry.boxes import crop_image, place_crop
from neural_mesh.geometry.cameras import Pose
from neural_mesh.machine import console
from neural_mesh.machine.resources import require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.settings import NORMALISED_DISTANCE
from neural_mesh.storage.files import holds, lock, remove_parts, write_text
from neural_mesh.storage.layout import PreparedSet, first_file, write_list
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.records import Annotation

FOLDS = 4  # lists of a quarter of the objects each (reference)
JPEG_QUALITY = 95
NOT_PASCAL3D = -1.0  # focal length and viewport: not PASCAL3D+'s camera (reference)


@dataclass(frozen=True)
class KittiOptions:
    """Which objects are wanted, and how they are cropped.

    kitti: KITTI's folder training, with label_2, image_2 and calib. out: folder of the prepared
    sets. kind: class of KITTI. category: of the networks that it is tested with; it has the crop's
    size. minimum_side: of the box in pixels, both must be longer. maximum_truncation: share outside
    the image, it must be smaller. reference_distance: metres at which a crop keeps the image's
    scale. geometry: paper or exact. workers: a number of processes, or auto.
    """

    kitti: Path
    out: Path
    kind: str = "Car"
    category: str = "car"
    minimum_side: float = 100.0
    maximum_truncation: float = 0.2
    reference_distance: float = 6.4
    geometry: str = "paper"
    workers: str = "auto"

    def folder(self, kind_of_file: str) -> Path:
        """label_2 or, as the reference has it, label."""
        plain = self.kitti / kind_of_file
        return plain if plain.is_dir() else self.kitti / f"{kind_of_file}_2"

    def picture(self, frame: str) -> Path:
        """The picture of a frame, a PNG or of another kind."""
        return first_file([self.folder("image") / f"{frame}.png"])

    @property
    def crop_hw(self) -> tuple[int, int]:
        return category_settings(self.category).crop_hw

    @property
    def sets(self) -> list[PreparedSet]:
        """The prepared sets, by degree of occlusion."""
        return [PreparedSet(self.out / name) for name in OCCLUSION_NAMES]

    def labels(self, frame: str) -> list[tuple[int, KittiObject]]:
        """The objects of the wanted class in a frame, each with its number among all objects."""
        objects = read_labels(self.folder("label") / f"{frame}.txt")
        return [(i, label) for i, label in enumerate(objects) if label.kind == self.kind]

    def refusal(self, label: KittiObject) -> str:
        """Why an object of the wanted class is left out; empty when it is not."""
        x0, y0, x1, y1 = label.bbox_xyxy
        # Where several reasons hold, the first one is counted.
        if not 0 <= label.occlusion < len(OCCLUSION_NAMES):
            return "occlusion unknown"
        if label.truncation >= self.maximum_truncation:
            return "truncated"
        return "" if min(x1 - x0, y1 - y0) > self.minimum_side else "too small"


class CropOutcome(NamedTuple):
    """What became of one object of the wanted class; refusal: empty, or why it was left out.

    detail: what was found instead, where that says more.
    """

    occlusion: int
    name: str
    refusal: str
    detail: str = ""


def prepare_kitti3d(options: KittiOptions) -> None:
    """Prepare the three test sets, and say how many objects.

    Raises ValueError when no object can be used.
    """
    if options.reference_distance <= 0:
        raise ValueError(
            f"--reference-distance is {options.reference_distance}, it must be above 0"
        )
    console.require_folder(
        options.kitti, "KITTI", "set --kitti to the folder training of its 3D object data"
    )
    for kind_of_file in ("label", "image"):
        folder = options.folder(kind_of_file)
        console.require_folder(folder, f"KITTI's {kind_of_file}s", "unpack them there")
    # Crop all frames, then list what there is of each degree of occlusion.
    frames = sorted(path.stem for path in options.folder("label").glob("*.txt"))
    with lock(options.out, f"prepare-kitti-{options.category}", "KITTI's test sets"):
        outcomes = crop_frames(options, frames)
        names_of_sets = []
        for occlusion in range(len(OCCLUSION_NAMES)):
            names_of_sets.append(
                [o.name for o in outcomes if o.occlusion == occlusion and not o.refusal]
            )
        # This ends before any list is written, so that no set looks finished.
        if not any(names_of_sets):
            raise ValueError(
                f"no {options.kind} of {options.folder('label')} could be used"
                f"{_what_there_is(options, outcomes, frames)}"
            )
        for occlusion, names in enumerate(names_of_sets):
            write_lists(options, occlusion, names)
            write_skipped(options, occlusion, outcomes)
    # What there is, and why the rest was left out.
    counts = []
    for occlusion_name, names in zip(OCCLUSION_NAMES, names_of_sets, strict=True):
        counts.append(f"{len(names):,} {occlusion_name}")
    skipped = console.reason_counts((o.refusal for o in outcomes if o.refusal), "skipped")
    of_frames = console.count(len(frames), "frame")
    print(f"KITTI3D: {', '.join(counts)} of {of_frames} in {options.out}{skipped}")


def _what_there_is(
    options: KittiOptions, outcomes: Sequence[CropOutcome], frames: Sequence[str]
) -> str:
    """What the labels hold instead of a usable object, as the end of a sentence."""
    if outcomes:
        first = outcomes[0]
        reasons = console.reason_counts((o.refusal for o in outcomes), "skipped")
        return reasons + (f", {first.detail}" if first.detail else "")
    # If no label is of the class, its name may be misspelt.
    kinds: set[str] = set()
    for frame in frames:
        labels = read_labels(options.folder("label") / f"{frame}.txt")
        kinds |= {label.kind for label in labels}
    hint = did_you_mean(options.kind, kinds)
    return f"; they are of {', '.join(sorted(kinds)) or 'no class'}{hint}"


def crop_frames(options: KittiOptions, frames: Sequence[str]) -> list[CropOutcome]:
    """Crop the wanted objects of all frames. The caller holds the lock."""
    workers = worker_count(options.workers)
    check_source(options)
    for prepared in options.sets:
        remove_half_written(prepared, options.category)
        remove_parts(prepared.vertex_lists("single", options.category))
    # Is there room for what is still to be made?
    crops = 0
    for frame in frames:
        crops += sum(not options.refusal(label) for _, label in options.labels(frame))
    for prepared in options.sets:
        annotations = prepared.annotation(options.category, "x").parent
        crops -= len(list(annotations.glob("*.npz")))
    require_disk(
        options.out,
        crops_size(max(0, crops), options.crop_hw, JPEG_QUALITY),
        "the crops of KITTI",
        "make space, or choose another --out",
    )
    with WorkerPool(workers) as pool:
        of_frames = in_pool(pool, partial(crop_frame, options), frames, "KITTI3D")
    return [outcome for of_frame in of_frames for outcome in of_frame]


def check_source(options: KittiOptions) -> None:
    """Write what the sets are made from; ValueError when crops there were made otherwise."""
    source = {
        "split": "KITTI3D",
        "kind": options.kind,
        "minimum_side": options.minimum_side,
        "maximum_truncation": options.maximum_truncation,
        "reference_distance": options.reference_distance,
        "geometry": options.geometry,
    }
    text = console.as_json(source)
    for prepared in options.sets:
        # A run that broke off has left crops without lists; they count too.
        crops = prepared.image(options.category, "x").parent.glob("*.JPEG")
        if any(crops) and not holds(prepared.source(options.category), text):
            raise ValueError(
                f"{prepared.root} was prepared with other options; "
                "choose another --out, or delete it"
            )
    # All sets are checked before any is changed.
    for prepared in options.sets:
        write_text(prepared.source(options.category), text)


def crop_frame(options: KittiOptions, frame: str) -> list[CropOutcome]:
    """Crop the wanted objects of a frame; returns what became of all of the class."""
    outcomes = []
    image = projection = None
    unreadable = ""
    for i, label in options.labels(frame):
        outcome = CropOutcome(label.occlusion, f"{frame}_{i}", options.refusal(label))
        outcomes.append(outcome)
        if outcome.refusal:
            continue
        prepared = options.sets[label.occlusion]
        if is_prepared(prepared, options.category, outcome.name):
            continue
        # The picture is read for the first object that needs it.
        if image is None:
            projection = read_projection(options.kitti / "calib" / f"{frame}.txt")
            try:
                image = read_picture(options.picture(frame), "RGB")
            except (ValueError, OSError) as error:
                unreadable = " ".join(str(error).split())
        if image is None or projection is None:
            outcomes[-1] = outcome._replace(refusal="unreadable picture", detail=unreadable)
            continue
        try:
            crop, annotation = crop_object(options, outcome.name, label, image, projection)
            write_crop(prepared, options.category, annotation, crop, JPEG_QUALITY)
        except (ValueError, ArithmeticError) as error:
            # Broken labels or calibrations are rare, so the message says where to look.
            raise ValueError(f"object {i} of frame {frame} cannot be cropped: {error}") from error
    return outcomes


def crop_object(
    options: KittiOptions,
    name: str,
    label: KittiObject,
    image: NDArray[np.uint8],
    projection: NDArray[np.float64],
) -> tuple[NDArray[np.uint8], Annotation]:
    """The crop around the projected centre of an object, and its annotation.

    projection: [3, 4] of the camera.
    """
    principal_xy = project_point(label.centre, projection)
    # The distance at which PASCAL3D+'s crops have this scale.
    distance = label.distance * NORMALISED_DISTANCE / options.reference_distance
    placement = place_crop(
        options.geometry, image.shape[:2], options.crop_hw, label.bbox_xyxy, principal_xy, distance
    )
    # KITTI's cameras do not tilt to the side, so theta is 0.
    azimuth, elevation = viewpoint(label)
    # KITTI has neither key points nor CAD models.
    annotation = Annotation(
        name=name,
        cropped_kp_list=np.zeros((0, 2)),
        visible=np.zeros(0, np.int64),
        pose=Pose(azimuth, elevation, 0.0, label.distance, principal_xy),
        focal=NOT_PASCAL3D,
        viewport=NOT_PASCAL3D,
        height=image.shape[0],
        width=image.shape[1],
        cad_index=1,
        bbox=label.bbox_xyxy,
        **placement_fields(placement),
    )
    return crop_image(image, placement), annotation


def write_skipped(options: KittiOptions, occlusion: int, outcomes: Sequence[CropOutcome]) -> None:
    """Write which pictures of one test set could not be read, and why."""
    broken = [o for o in outcomes if o.occlusion == occlusion and o.detail]
    lines = [f"{outcome.name}: {outcome.refusal} ({outcome.detail})\n" for outcome in broken]
    path = options.sets[occlusion].skipped(options.category)
    # A list of an earlier run is emptied once its pictures can be read.
    if lines or path.is_file():
        write_text(path, "".join(sorted(lines)))


def write_lists(options: KittiOptions, occlusion: int, names: Sequence[str]) -> None:
    """Lists of one test set: all images, four folds, and those that inference reads."""
    prepared = options.sets[occlusion]
    stem = f"{options.category}_{OCCLUSION_NAMES[occlusion]}"
    # The names of the reference's lists.
    lists = {"mesh01": names, stem: names}
    for fold in range(FOLDS):
        lists[f"{stem}_folder{fold}"] = names[fold::FOLDS]
    for list_name, group in lists.items():
        write_list(prepared.lists(options.category) / f"{list_name}.txt", group)
    write_list(prepared.mesh_list("single", options.category, 1), names)
