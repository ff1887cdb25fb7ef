"""Anybody's photographs: reading them, cropping around a box so that the object gets the size that the network was
trained on, finding the pose, and taking it back into the photograph's pixels.

Positions in a photograph are (x right, y down) in pixels, pixel (row, col) covers [col, col + 1) x [row, row + 1). A box
is (x0, y0, x1, y1). Photographs are upright: a camera's turn (EXIF) is undone before anything is measured.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from nemo import boxes, cameras, settings
from nemo.confidence import Calibration
from nemo.drawing import Pose, camera_of_pose, draw_mesh
from nemo.inference import Model
from nemo.meshes import Mesh
from nemo.pose import choose_camera, solve, start_poses
from nemo.rendering import MapCamera, make_scene, rasterise_poses, resolve_renderer
from nemo.settings import FEATURE_STRIDE, FOCAL_PX, NORMALISED_DISTANCE, PhotographConfig, SolveConfig

PICTURE_SUFFIXES = frozenset(".bmp .gif .jp2 .jpeg .jpg .pbm .pgm .png .ppm .tga .tif .tiff .webp".split())
SMALLEST_SIDE = 16  # pixels; a picture or a box with less shows nothing of an object
MOST_PIXELS = 179_000_000  # decoded, 3 bytes each; Pillow refuses more by itself
READING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Photograph:
    """An upright photograph. pixels: RGB uint8 [h, w, 3], reduced by `reduction` on both axes; size_hw: before that."""

    pixels: NDArray[np.uint8]
    size_hw: tuple[int, int]
    reduction: int = 1

    @property
    def whole(self) -> NDArray[np.float64]:
        """The whole picture as a box."""
        height, width = self.size_hw
        return np.array([0.0, 0.0, width, height])


def read_photograph(path: Path, boxes_xyxy: Sequence[ArrayLike] = (), wanted_side: int = 1344) -> Photograph:
    """Read a picture file of any kind that Pillow knows, upright and as RGB.

    boxes_xyxy: what will be looked at (nothing: the whole picture). wanted_side: pixels that the longer side of the
    smallest box is left with at least; what is larger is reduced by a power of two, for JPEG while it is decoded.
    Raises ValueError, in one sentence, when the file is broken, no picture, too large or too small.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes near the limit, which is checked here
            with Image.open(path) as image:
                return _upright_rgb(image, boxes_xyxy, wanted_side)
    except FileNotFoundError:
        raise FileNotFoundError(f"photograph not found: {path}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that can be read here (JPEG, PNG, TIFF, WebP and others can)") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: more than {MOST_PIXELS:,} pixels; make it smaller first") from None
    except READING_ERRORS as error:
        if isinstance(error, _Unfit):
            raise ValueError(f"{path}: {error}") from None
        raise ValueError(f"{path}: broken, or not a picture that can be read here ({str(error).splitlines()[0][:120]})") from None


class _Unfit(ValueError):
    """A picture that was understood but cannot be used."""


def _upright_rgb(image: Image.Image, boxes_xyxy: Sequence[ArrayLike], wanted_side: int) -> Photograph:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _Unfit(f"{width} x {height} are more than {MOST_PIXELS:,} pixels; make it smaller first")
    if min(width, height) < SMALLEST_SIDE:
        raise _Unfit(f"{width} x {height} pixels, a pose needs at least {SMALLEST_SIDE} on both sides")
    sides = [max(np.subtract(box[2:], box[:2])) for box in boxes_xyxy] or [max(width, height)]
    reduction = 1
    while reduction < 64 and min(sides) / (2 * reduction) >= wanted_side:
        reduction *= 2
    upright_hw = (width, height) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (height, width)
    drafted = image.draft(None, (width // reduction, height // reduction)) if image.format == "JPEG" else None
    done = round(width / image.size[0]) if drafted else 1
    pixels = _as_rgb(ImageOps.exif_transpose(image))
    if reduction > done:
        pixels = pixels.reduce(reduction // done)
    return Photograph(np.asarray(pixels), upright_hw, reduction)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 and 32 bits are brought to 8, what is transparent becomes black like a crop's surroundings."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_as_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def _as_bytes(values: NDArray) -> NDArray[np.uint8]:
    """Grey or colour values of any number type as bytes: floats up to 1 and integers up to 65535 fill the range."""
    if values.dtype == np.uint8:
        return values
    if not np.isfinite(values).all():
        raise _Unfit("a pixel is not a finite number")
    most = float(values.max(initial=0))
    floating = np.issubdtype(values.dtype, np.floating)
    full = 1.0 if floating and most <= 1 else 255.0 if most <= 255 and values.dtype != np.uint16 else max(65535.0, most)
    return np.clip(np.rint(values.astype(np.float64) * (255.0 / full)), 0, 255).astype(np.uint8)


def photograph_of(image: ArrayLike) -> Photograph:
    """A photograph from an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] (alpha): bytes, 16 bits or floats up to 1.

    Raises ValueError when it has another shape or is too small.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or image.dtype == object:
        raise ValueError(f"an image is an array [height, width], [.., 3] or [.., 4], found {image.dtype} {list(image.shape)}")
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(f"the image has {image.shape[1]} x {image.shape[0]} pixels, a pose needs at least {SMALLEST_SIDE} on both sides")
    pixels = np.asarray(_as_rgb(Image.fromarray(np.ascontiguousarray(_as_bytes(image)))))
    return Photograph(pixels, pixels.shape[:2])


def check_box(box_xyxy: ArrayLike, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """A box (x0, y0, x1, y1) that shows a part of a picture; ValueError when it is none."""
    box = np.asarray(box_xyxy, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"a box is four numbers x0 y0 x1 y1, found {np.asarray(box_xyxy).tolist()}")
    text = " ".join(f"{v:g}" for v in box)
    if (box[2:] <= box[:2]).any():
        raise ValueError(f"box {text} is empty: x0 y0 is its upper left, x1 y1 its lower right corner")
    inside = np.minimum(box[2:], size_hw[::-1]) - np.maximum(box[:2], 0)
    if (inside <= 0).any():
        raise ValueError(f"box {text} lies outside the picture of {size_hw[1]} x {size_hw[0]} pixels")
    if min(box[2:] - box[:2]) < 2:
        raise ValueError(f"box {text} is less than 2 pixels wide or high")
    return box


# ---- where a crop lies in a photograph ----


@dataclass(frozen=True)
class Framing:
    """A crop: its pixels per pixel of the photograph, and the photograph's (x, y) in its middle."""

    scale: float
    centre_xy: tuple[float, float]

    def to_photograph(self, crop_xy: ArrayLike, crop_hw: tuple[int, int]) -> NDArray[np.float64]:
        """Crop pixels (x, y) [..., 2] -> photograph pixels (x, y)."""
        middle = np.array(crop_hw[::-1]) / 2
        return (np.asarray(crop_xy, np.float64) - middle) / self.scale + self.centre_xy


def cut(photograph: Photograph, framing: Framing, crop_hw: tuple[int, int], image_scale: float) -> NDArray[np.uint8]:
    """The crop [H, W, 3] of a photograph as a network of this image scale sees it, black outside the picture."""
    scale, centre = framing.scale * photograph.reduction, np.array(framing.centre_xy) / photograph.reduction
    height, width = photograph.pixels.shape[:2]
    geometry = boxes.crop_geometry("exact", (height, width), crop_hw, (0, 0, width, height), centre, NORMALISED_DISTANCE * scale)
    crop = Image.fromarray(boxes.crop_image(photograph.pixels, geometry))
    return np.asarray(crop if image_scale == 1 else crop.reduce(round(1 / image_scale)))


@dataclass(frozen=True)
class Outlines:
    """How large a mesh looks at distance 5: width and height [N, 2] and middle [N, 2] of its outline in N usual views,
    in crop pixels, the middle against the principal point."""

    sizes: NDArray[np.float64]
    middles: NDArray[np.float64]


def outlines_of(mesh: Mesh, azimuths: int = 24, elevations_deg: Sequence[float] = (0.0, 10.0, 20.0)) -> Outlines:
    """Outlines of a mesh seen level or a little from above, from all sides, as photographs mostly show objects."""
    azimuth = np.arange(azimuths) * (2 * np.pi / azimuths)
    azimuth, elevation = (grid.ravel() for grid in np.meshgrid(azimuth, np.radians(elevations_deg), indexing="ij"))
    still = np.zeros_like(azimuth)
    points = cameras.project(mesh.vertices, azimuth, elevation, still, still + NORMALISED_DISTANCE, np.zeros((len(still), 2)), FOCAL_PX)
    low, high = points.min(1), points.max(1)
    return Outlines(high - low, (low + high) / 2)


ASPECT_TOLERANCE = 0.25  # log of width / height by which an outline may differ from the box
def frame_box(outlines: Outlines, box_xyxy: ArrayLike, fill: float) -> Framing:
    """The crop in which the object in a box has about the size it was trained on.

    The mean over the outlines, those of the box's proportions first. fill: side of a box by that of the mesh's outline.
    """
    box = np.asarray(box_xyxy, np.float64)
    side = box[2:] - box[:2]
    mismatch = np.log(outlines.sizes[:, 0] / outlines.sizes[:, 1]) - math.log(side[0] / side[1])
    weight = np.exp(-0.5 * np.minimum(np.abs(mismatch) / ASPECT_TOLERANCE, 8.0) ** 2)
    weight /= weight.sum()
    log_scale = weight @ (np.log(outlines.sizes).sum(1) - np.log(side).sum()) / 2
    scale = fill * math.exp(log_scale)
    centre = (box[:2] + box[2:]) / 2 - weight @ outlines.middles / scale
    return Framing(scale, (float(centre[0]), float(centre[1])))


# ---- poses in a photograph ----


@dataclass(frozen=True)
class PhotographPose:
    """The pose of one object in a photograph; its camera fits the photograph's pixels.

    azimuth, elevation, theta: radians, as in PASCAL3D+. distance: CAD units, with focal_px in pixels of the photograph.
    principal_xy: where the optical axis, and with it the object's origin, falls in the photograph. mesh: 1-based.
    score: 1 - loss, how well the mesh explains the features. evidence: numbers named by `EVIDENCE`, which tell right from
    wrong poses; confidence: the probability that they give that the rotation is off by less than pi / 6, None without a
    calibration.
    """

    azimuth: float
    elevation: float
    theta: float
    distance: float
    focal_px: float
    principal_xy: tuple[float, float]
    score: float
    mesh: int
    evidence: tuple[float, ...]
    confidence: float | None = None

    @property
    def pascal3d_distance(self) -> float:
        """The distance that makes the object look as large with PASCAL3D+'s focal length of 3000 pixels."""
        return self.distance * FOCAL_PX / self.focal_px

    @property
    def angles_deg(self) -> tuple[float, float, float]:
        """Azimuth in [0, 360), elevation and theta in [-180, 180), degrees."""
        azimuth, elevation, theta = np.degrees([self.azimuth, self.elevation, self.theta]).tolist()
        return azimuth % 360, (elevation + 180) % 360 - 180, (theta + 180) % 360 - 180

    @property
    def camera_matrix(self) -> NDArray[np.float64]:
        """P [3, 4]: P @ (x, y, z, 1) of a CAD point is (u w, v w, w), with (u, v) its pixel in the photograph."""
        cam_from_object = np.diag([1.0, -1.0, -1.0]) @ cameras.cam_from_object_rotation(self.azimuth, self.elevation, self.theta)
        centre = cameras.camera_centre(self.azimuth, self.elevation, self.distance)
        intrinsic = np.array([[self.focal_px, 0, self.principal_xy[0]], [0, self.focal_px, self.principal_xy[1]], [0, 0, 1]])
        return intrinsic @ cam_from_object @ np.column_stack([np.eye(3), -centre])



EVIDENCE = ("similarity", "margin", "agreement")
RIVAL = math.radians(60.0)  # a start whose rotation is further than this from the pose is another answer


@dataclass(frozen=True)
class _Found:
    """What the solver says about K crops, arrays [K]. principal_xy [K, 2] in crop pixels, view_losses [K, N] of every view
    of the start grid where it fits best."""

    azimuth: NDArray
    elevation: NDArray
    theta: NDArray
    distance: NDArray
    loss: NDArray
    principal_xy: NDArray
    mesh: NDArray
    view_losses: NDArray

    @property
    def rotation(self) -> NDArray[np.float64]:
        """[K, 3, 3]."""
        return cameras.cam_from_object_rotation(self.azimuth, self.elevation, self.theta)


class PoseFinder:
    """A trained category that finds its objects in photographs.

    model: see `inference.load_model`. config: how. calibration: what turns evidence into confidence, if there is one.
    solve_config: in place of the solver's defaults; its place in a crop is always searched too. renderer: see `rendering`.
    """

    def __init__(
        self,
        model: Model,
        config: PhotographConfig | None = None,
        calibration: Calibration | None = None,
        solve_config: SolveConfig | None = None,
        renderer: str = "auto",
    ):
        self.model, self.config, self.calibration = model, config or PhotographConfig(), calibration
        self.renderer = resolve_renderer(renderer, model.device)
        trained = model.checkpoint.config
        self.crop_hw = settings.category(trained.category).crop_hw
        self.cell = FEATURE_STRIDE / trained.image_scale  # crop pixels
        self.solve_config = replace(solve_config or SolveConfig(solver=self.config.solver), six_d=True)
        self.camera, self.start_distance = choose_camera(self.solve_config, trained.category, model.map_hw, trained.image_scale)
        self.outlines = outlines_of(model.mesh(1))
        self.views = _view_rotations(self.solve_config)

    def find(self, image: ArrayLike, box: ArrayLike | None = None) -> PhotographPose:
        """The pose of the object in an image (see `photograph_of`), in a box (x0, y0, x1, y1) or all of the picture."""
        photograph = photograph_of(image)
        return self.find_all([(photograph, None if box is None else check_box(box, photograph.size_hw))])[0]

    def find_all(self, items: Sequence[tuple[Photograph, NDArray | None]]) -> list[PhotographPose]:
        """Poses of several objects at a time: photographs and the boxes that they are in, None for the whole picture.

        Each object is searched in crops of several sizes; then again, in crops around what was found; the best answer of
        the last round counts.
        """
        framings = [self.first_framings(*item) for item in items]
        sizes = [len(group) for group in framings]
        photographs = [photograph for (photograph, _), size in zip(items, sizes, strict=True) for _ in range(size)]
        used = [framing for group in framings for framing in group]
        rounds = []
        for number in range(self.config.rounds):
            if rounds:
                used = [self._follow(rounds[-1], k, framing) for k, framing in enumerate(used)]
            rounds.append(self.solve(photographs, used, self.round_config(number)))
        borders = np.cumsum([0, *sizes])
        return [self._choose(rounds, range(a, b), used) for a, b in zip(borders[:-1], borders[1:], strict=True)]

    def first_framings(self, photograph: Photograph, box: NDArray | None) -> list[Framing]:
        """The crops that the search begins with."""
        config = self.config
        fill, zooms = (config.picture_fill, config.picture_zooms) if box is None else (config.box_fill, config.box_zooms)
        framing = frame_box(self.outlines, photograph.whole if box is None else box, fill)
        return [replace(framing, scale=framing.scale * zoom) for zoom in zooms]

    def round_config(self, number: int) -> SolveConfig:
        """The start grid of a round: other distances and places in the first, only other rotations in the others."""
        if number:
            return replace(self.solve_config, distance_factors=(1.0, 1.0, 1), shifts=(0.0, 0.0, 1))
        return self.solve_config

    def solve(self, photographs: Sequence[Photograph], framings: Sequence[Framing], config: SolveConfig) -> _Found:
        """Solve crops of photographs, each with the mesh of the category that explains it best."""
        trained = self.model.checkpoint.config
        crops = [cut(p, f, self.crop_hw, trained.image_scale) for p, f in zip(photographs, framings, strict=True)]
        features = self.model.features(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
        found = []
        for mesh in range(1, len(self.model.checkpoint.memory) + 1):
            poses = solve(self.model.mesh(mesh), features, *self.model.banks(mesh), config, self.camera, self.start_distance, self.renderer)
            view_losses = poses.start_losses.reshape(len(poses), -1, len(self.views)).min(1)
            principal_xy, number = poses.principal_xy * self.cell, np.full(len(poses), mesh)
            found.append(_Found(poses.azimuth, poses.elevation, poses.theta, poses.distance, poses.loss, principal_xy, number, view_losses))
        best = np.argmin([f.loss for f in found], 0)
        take = np.arange(len(best))
        return _Found(*(np.stack([getattr(f, field.name) for f in found])[best, take] for field in fields(_Found)))

    def _follow(self, found: _Found, k: int, framing: Framing) -> Framing:
        """The crop in which what was found in crop k has the size that the network was trained on, in the middle."""
        trained_size = FOCAL_PX / NORMALISED_DISTANCE / (self.camera.focal * self.cell / found.distance[k])
        centre = framing.to_photograph(found.principal_xy[k], self.crop_hw)
        return Framing(framing.scale * float(trained_size), (float(centre[0]), float(centre[1])))

    def _choose(self, rounds: Sequence[_Found], mine: range, framings: Sequence[Framing]) -> PhotographPose:
        """The best of the last round's answers about one object."""
        last = rounds[-1]
        best = min(mine, key=lambda k: last.loss[k])
        x, y = framings[best].to_photograph(last.principal_xy[best], self.crop_hw).tolist()
        evidence = self._evidence(rounds, mine, best)
        return PhotographPose(
            float(last.azimuth[best]), float(last.elevation[best]), float(last.theta[best]), float(last.distance[best]),
            self.camera.focal * self.cell / framings[best].scale, (x, y), 1 - float(last.loss[best]), int(last.mesh[best]), evidence,
            None if self.calibration is None else float(self.calibration.confidence(evidence)),
        )  # fmt: skip

    def _evidence(self, rounds: Sequence[_Found], mine: range, best: int) -> tuple[float, ...]:
        """`EVIDENCE` of an answer: what the object has before the clutter per cell of it, how much worse the best view
        from elsewhere explains the crop, and how near the answers of other crops and rounds are."""
        last = rounds[-1]
        rotation, score = last.rotation[best], max(1 - float(last.loss[best]), 0.0)
        far = cameras.geodesic_distance(self.views, rotation) > RIVAL
        losses = last.view_losses[best]
        margin = (losses[far].min() - losses[~far].min()) / max(1 - float(losses.min()), 1e-6)
        others = np.concatenate([np.stack([found.rotation[k] for k in mine if found is not last or k != best] or [rotation]) for found in rounds])
        agreement = 1 - np.minimum(cameras.geodesic_distance(others, rotation), np.pi / 2).mean() / (np.pi / 2)
        return score / self._coverage(last, best), float(margin), float(agreement)

    def _coverage(self, found: _Found, k: int) -> float:
        """Share of the crop's cells that see the mesh, at least one cell."""
        camera = replace(self.camera, principal_xy=tuple((found.principal_xy[k] / self.cell).tolist()))
        scene = make_scene(self.model.mesh(int(found.mesh[k])), camera)
        pose = Pose(float(found.azimuth[k]), float(found.elevation[k]), float(found.theta[k]), float(found.distance[k]))
        centre, rotation = camera_of_pose(pose)
        face, _, _ = rasterise_poses(scene, centre[None], rotation[None])
        return max(float((face >= 0).mean()), 1 / camera.pixels)

    def draw(self, image: ArrayLike, pose: PhotographPose, mesh: Mesh | None = None) -> NDArray[np.uint8]:
        """The mesh over an image (see `photograph_of`) in a pose found in it, RGB [h, w, 3]. mesh: in place of the cuboid."""
        return overlay(photograph_of(image), [(mesh or self.model.mesh(pose.mesh), pose)], max(np.shape(image)[:2]))


def _view_rotations(config: SolveConfig) -> NDArray[np.float64]:
    """Rotations [N, 3, 3] of the start grid's views."""
    views = start_poses(config, 1.0)
    azimuth, elevation, _ = cameras.spherical_from_centre(views[:, :3])
    return cameras.cam_from_object_rotation(azimuth, elevation, views[:, 3])


def overlay(photograph: Photograph, drawn: Sequence[tuple[Mesh, PhotographPose]], longest_side: int) -> NDArray[np.uint8]:
    """Meshes over a photograph in their poses, the furthest first, RGB [h, w, 3] with no side longer than longest_side."""
    height, width = photograph.pixels.shape[:2]
    shrink = min(1.0, longest_side / max(height, width))
    image = Image.fromarray(photograph.pixels)
    picture = np.asarray(image if shrink == 1 else image.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Image.Resampling.LANCZOS))
    scale = picture.shape[1] / photograph.size_hw[1]
    for mesh, pose in sorted(drawn, key=lambda each: -each[1].pascal3d_distance):
        x, y = pose.principal_xy
        camera = MapCamera(pose.focal_px * scale, (x * scale, y * scale), picture.shape[:2])
        picture = draw_mesh(picture, mesh, Pose(pose.azimuth, pose.elevation, pose.theta, pose.distance), camera)
    return picture
