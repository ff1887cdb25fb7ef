"""One level of an occluded set: how its pictures are drawn from raw images, or from crops."""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neural_mesh.compare.kernels_numba import rasterise
from neural_mesh.data.occluded_pascal3d import (
    is_written,
    write_image,
    write_occluded,
    write_occluded_lists,
)
from neural_mesh.data.occlusion import Occluded, occlude
from neural_mesh.data.pascal3d import UnusableRecord, read_record
from neural_mesh.geometry.cameras import Pose, points_in_pascal_cam, project
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine import console
from neural_mesh.storage.files import holds, write_text
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D, write_list
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.records import Annotation, load_annotation, save_annotation

CUTOUTS_PER_IMAGE = 3


@dataclass(frozen=True)
class OccludedLevel(ABC):
    """A category at one level. meshes: its CAD models. occluders: cut-out pictures, empty for
    procedural ones.
    """

    category: str
    level: str
    seed: int
    meshes: tuple[Mesh, ...]
    occluders: tuple[Path, ...]

    @property
    def subset(self) -> str:
        """The category and the level."""
        return self.category + self.level

    @abstractmethod
    def draw(self, name: str) -> str:
        """Write one occluded picture; returns `new`, `kept` or why it could not be made."""

    @abstractmethod
    def write_lists(self) -> None:
        """Write the lists of the pictures that there are."""

    @property
    @abstractmethod
    def source_file(self) -> Path:
        """The file that says how the pictures are made."""

    @property
    @abstractmethod
    def has_pictures(self) -> bool:
        """Whether some are there."""

    def origin(self) -> dict:
        """How the pictures are made."""
        occluders = "procedural"
        if self.occluders:
            content = b"".join(path.read_bytes() for path in self.occluders)
            occluders = hashlib.sha256(content).hexdigest()
        return {"level": self.level, "seed": self.seed, "occluders": occluders}

    def check_source(self) -> None:
        """Write how the pictures are made; ValueError when those that are there were made
        otherwise.
        """
        path = self.source_file
        text = console.as_json(self.origin())
        if path.is_file() and not holds(path, text):
            raise ValueError(
                f"{path} says that {self.subset} was made with another seed or other occluders; "
                "delete it, or choose another --out"
            )
        # Pictures of unknown origin stay so.
        if path.is_file() or not self.has_pictures:
            write_text(path, text)

    def mesh(self, cad_index: int) -> Mesh | None:
        """The CAD model of a number, from 1; None where there is none."""
        return self.meshes[cad_index - 1] if 1 <= cad_index <= len(self.meshes) else None

    def occlude(self, name: str, image: NDArray, mask: NDArray) -> Occluded | None:
        """Occlude an image [H, W, 3] whose object is mask [H, W]; the same level and name give the
        same picture.

        None where the level cannot be reached; ValueError for an occluder that is no picture.
        """
        # The name decides what is random, whichever process draws the picture.
        picture = zlib.crc32(f"{self.subset}/{name}".encode())
        random = np.random.default_rng([self.seed, picture])
        cutouts = []
        if self.occluders:
            chosen = random.choice(len(self.occluders), CUTOUTS_PER_IMAGE)
            cutouts = [read_cutout(self.occluders[i]) for i in chosen]
        try:
            return occlude(image, mask > 0, self.level, random, cutouts)
        except ValueError:
            return None


@dataclass(frozen=True)
class OccludedOriginals(OccludedLevel):
    """Occluded twins of raw images. rules: for records, see `read_record`."""

    raw: RawPascal3D
    target: RawOccluded
    rules: str

    @property
    def source_file(self) -> Path:
        return self.target.source(self.category, self.level)

    @property
    def has_pictures(self) -> bool:
        return bool(self.target.names(self.category, self.level))

    def draw(self, name: str) -> str:
        if is_written(self.target, self.category, self.level, name):
            return "kept"
        source = self.raw.image(self.category, name)
        try:
            record = read_record(
                self.raw.annotation(self.category, name), self.category, self.rules
            )
            image = read_picture(source, "RGB")
        except UnusableRecord as error:
            return error.reason
        except (FileNotFoundError, ValueError):
            return "no readable image or annotation"
        mesh = self.mesh(record.cad_index)
        if mesh is None:
            return "no such CAD model"
        # Raw images come without masks, so the CAD model says what the object covers.
        mask = silhouette(mesh, record.pose, record.focal_px, record.image_hw)
        result = self.occlude(name, image, mask)
        if result is None:
            return "level not reached"
        # A relative name stays true when the data are moved.
        source_name = source.relative_to(self.raw.root.parent).as_posix()
        write_occluded(
            self.target,
            self.category,
            self.level,
            name,
            result,
            mask,
            record.bbox_xyxy,
            source_name,
        )
        return "new"

    def write_lists(self) -> None:
        write_occluded_lists(self.target, self.category, (self.level,))


@dataclass(frozen=True)
class OccludedCrops(OccludedLevel):
    """Occluded twins of the crops of a prepared set."""

    clean: PreparedSet
    target: PreparedSet

    @property
    def source_file(self) -> Path:
        return self.target.source(self.subset)

    @property
    def has_pictures(self) -> bool:
        return any((self.target.root / "images" / self.subset).glob("*.JPEG"))

    def origin(self) -> dict:
        return self.clean.made_from(self.category) | {"occluded": super().origin()}

    def draw(self, name: str) -> str:
        image_file = self.target.image(self.subset, name)
        annotation_file = self.target.annotation(self.subset, name)
        if image_file.is_file() and annotation_file.is_file():
            return "kept"
        annotation = load_annotation(self.clean.annotation(self.category, name))
        mesh = self.mesh(annotation.cad_index)
        if mesh is None:
            return "no such CAD model"
        try:
            image = read_picture(self.clean.image(self.category, name), "RGB")
        except (FileNotFoundError, ValueError):
            return "no readable image or annotation"
        result = self.occlude(name, image, crop_silhouette(mesh, annotation))
        if result is None:
            return "level not reached"
        # The annotation comes last, since the lists name the images that have one.
        write_image(image_file, result.image)
        save_annotation(annotation_file, add_occluder(annotation, result.occluder_mask))
        return "new"

    def write_lists(self) -> None:
        """The lists of the clean set without the images that have no occluded twin."""
        annotations = (self.target.root / "annotations" / self.subset).glob("*.npz")
        drawn = {path.stem for path in annotations}
        for file_name, names in self.clean.listed(self.category).items():
            path = self.target.lists(self.subset) / file_name
            write_list(path, [name for name in names if name in drawn])


# ---- masks and cut-outs --------------------------------------------------------------------------


def silhouette(
    mesh: Mesh,
    pose: Pose,
    focal_px: float,
    size_hw: tuple[int, int],
    scale: float = 1.0,
    offset_xy: ArrayLike = 0.0,
) -> NDArray[np.uint8]:
    """Object mask [H, W] (255 or 0): a mesh in a pose, in a picture enlarged by `scale` and then
    moved.
    """
    pixels = project(mesh.vertices, pose, focal_px)
    # PASCAL3D+'s camera looks along the negative z axis.
    depth = -points_in_pascal_cam(mesh.vertices, pose)[:, 2]
    face, _, _ = rasterise(pixels * scale + offset_xy, depth, mesh.faces, *size_hw)
    return np.where(face >= 0, 255, 0).astype(np.uint8)


def crop_silhouette(mesh: Mesh, annotation: Annotation) -> NDArray[np.uint8]:
    """Object mask of an annotated crop [H, W] (255 or 0)."""
    return silhouette(
        mesh,
        annotation.pose,
        annotation.focal_px,
        annotation.crop_hw,
        annotation.crop_scale,
        annotation.crop_offset[::-1],
    )


def add_occluder(annotation: Annotation, mask: NDArray[np.bool_]) -> Annotation:
    """The annotation with an occluder, which hides the key points under it. mask [H, W]: of the
    crop.
    """
    # The cell of the crop that each key point falls into.
    last_rc = np.array(annotation.crop_hw) - 1
    cells = np.floor(annotation.cropped_kp_list).astype(int).clip(0, last_rc)
    rows, cols = cells.T
    hidden = (annotation.visible == 1) & mask[rows, cols]
    # As in all annotations, the position of a hidden key point is 0.
    return replace(
        annotation,
        occ_mask=mask_in_original(mask, annotation),
        visible=np.where(hidden, 0, annotation.visible),
        cropped_kp_list=np.where(hidden[:, None], 0.0, annotation.cropped_kp_list),
    )


def mask_in_original(mask: NDArray[np.bool_], annotation: Annotation) -> NDArray[np.bool_]:
    """A mask of the crop [H, W] in the original image [height, width]; nothing is covered outside
    the crop.
    """
    # The crop's row of every row of the original, and the same for columns.
    inside = []
    at = []
    for axis, length in enumerate((annotation.height, annotation.width)):
        centres = np.arange(length) + 0.5
        crop_position = centres * annotation.crop_scale + annotation.crop_offset[axis]
        cells = np.floor(crop_position).astype(int)
        inside.append((cells >= 0) & (cells < mask.shape[axis]))
        at.append(cells.clip(0, mask.shape[axis] - 1))
    # Cells beyond the crop were clipped to its border, and are taken out again.
    return mask[np.ix_(*at)] & np.logical_and.outer(*inside)


def read_cutout(path: Path) -> NDArray[np.uint8]:
    """An occluder [h, w, 4]: RGBA as it is, anything else opaque; ValueError, naming it, when it is
    broken.
    """
    try:
        return read_picture(path, "RGBA")
    except ValueError as error:
        raise ValueError(
            f"an occluder cannot be used: {error}; take it out of its folder"
        ) from error


def check_cutout(path: str) -> None:
    """ValueError when a file is no occluder."""
    read_cutout(Path(path))
