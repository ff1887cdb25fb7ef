"""Anybody's photographs: reading them, cropping around a box so that the object gets the size that the network was
trained on, finding the pose, and taking it back into the photograph's pixels.

Positions in a photograph are (x right, y down) in pixels, pixel (row, col) covers [col, col + 1) x [row, row + 1). A box
is (x0, y0, x1, y1). Photographs are upright: a camera's turn (EXIF) is undone before anything is measured.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor

from neural_mesh import settings
from neural_mesh.compare.rendering import make_scene, rasterise_poses
from neural_mesh.geometry import boxes, cameras
from neural_mesh.geometry.cameras import MapCamera, Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.photographs.calibration import load_calibration
from neural_mesh.pictures.drawing import camera_of_pose, draw_mesh, film_steps, pose_of_iterate
from neural_mesh.settings import (
    FEATURE_STRIDE,
    FOCAL_PX,
    NORMALISED_DISTANCE,
    PhotographConfig,
    SolveConfig,
)
from neural_mesh.solve.inference import MeshSolver, Model, load_model
from neural_mesh.solve.pose import make_plan, resolve_renderer, solve, start_poses

PICTURE_SUFFIXES = frozenset(
    (
        ".bmp",
        ".gif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    )
)
PICTURE_FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)  # others can start programs (EPS)
SMALLEST_SIDE = 16  # pixels; a picture or a box with less shows nothing of an object
LARGEST_BOX = 4  # sides of the picture; an object that reaches farther out of it cannot be told
MOST_PIXELS = 179_000_000  # decoded, 3 bytes each; Pillow refuses more by itself
READING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    Image.DecompressionBombError,
)


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


def read_photograph(
    path: Path, boxes_xyxy: Sequence[ArrayLike] = (), wanted_side: int = 1344
) -> Photograph:
    """Read a picture file of `PICTURE_FORMATS`, whatever its name ends in, upright and as RGB.

    boxes_xyxy: what will be looked at (nothing: the whole picture). wanted_side: pixels that the longer side of the
    smallest box is left with at least; what is larger is reduced by a power of two, for JPEG while it is decoded.
    Raises ValueError, in one sentence, when the file is broken, no picture, too large or too small.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes near the limit, which is checked here
            with Image.open(path, formats=PICTURE_FORMATS) as image:
                return _upright_rgb(image, boxes_xyxy, wanted_side)
    except FileNotFoundError:
        raise FileNotFoundError(f"photograph not found: {path}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path}: not a picture of the kinds {', '.join(PICTURE_FORMATS)}"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path}: more than {MOST_PIXELS:,} pixels; make it smaller first"
        ) from None
    except READING_ERRORS as error:
        if isinstance(error, _Unfit):
            raise ValueError(f"{path}: {error}") from None
        raise ValueError(
            f"{path}: broken, or not a picture that can be read here ({str(error).splitlines()[0][:120]})"
        ) from None


class _Unfit(ValueError):
    """A picture that was understood but cannot be used."""


def _upright_rgb(
    image: Image.Image, boxes_xyxy: Sequence[ArrayLike], wanted_side: int
) -> Photograph:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _Unfit(
            f"{width} x {height} are more than {MOST_PIXELS:,} pixels; make it smaller first"
        )
    if min(width, height) < SMALLEST_SIDE:
        raise _Unfit(
            f"{width} x {height} pixels, a pose needs at least {SMALLEST_SIDE} on both sides"
        )
    sides = [max(np.subtract(box[2:], box[:2])) for box in boxes_xyxy] or [max(width, height)]
    reduction = 1
    while reduction < 64 and min(sides) / (2 * reduction) >= wanted_side:
        reduction *= 2
    upright_hw = (
        (width, height) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (height, width)
    )
    drafted = (
        image.draft(None, (width // reduction, height // reduction))
        if image.format == "JPEG"
        else None
    )
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
    full = (
        1.0
        if floating and most <= 1
        else 255.0
        if most <= 255 and values.dtype != np.uint16
        else max(65535.0, most)
    )
    return np.clip(np.rint(values.astype(np.float64) * (255.0 / full)), 0, 255).astype(np.uint8)


def photograph_of(image: ArrayLike) -> Photograph:
    """A photograph from an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] (alpha): bytes, 16 bits or floats up to 1.

    Raises ValueError when it has another shape or is too small.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if (
        image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (3, 4))
        or image.dtype == object
    ):
        raise ValueError(
            f"an image is an array [height, width], [.., 3] or [.., 4], found {image.dtype} {list(image.shape)}"
        )
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"the image has {image.shape[1]} x {image.shape[0]} pixels, a pose needs at least {SMALLEST_SIDE} on both sides"
        )
    pixels = np.asarray(_as_rgb(Image.fromarray(np.ascontiguousarray(_as_bytes(image)))))
    return Photograph(pixels, pixels.shape[:2])


def check_box(box_xyxy: ArrayLike, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """A box (x0, y0, x1, y1) that shows a part of a picture; ValueError when it is none."""
    box = np.asarray(box_xyxy, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(
            f"a box is four numbers x0 y0 x1 y1, found {np.asarray(box_xyxy).tolist()}"
        )
    text = " ".join(f"{v:g}" for v in box)
    if (box[2:] <= box[:2]).any():
        raise ValueError(
            f"box {text} is empty: x0 y0 is its upper left, x1 y1 its lower right corner"
        )
    inside = np.minimum(box[2:], size_hw[::-1]) - np.maximum(box[:2], 0)
    if (inside <= 0).any():
        raise ValueError(
            f"box {text} lies outside the picture of {size_hw[1]} x {size_hw[0]} pixels"
        )
    if min(box[2:] - box[:2]) < 2:
        raise ValueError(f"box {text} is less than 2 pixels wide or high")
    if max(box[2:] - box[:2]) > LARGEST_BOX * max(size_hw):
        raise ValueError(
            f"box {text} is more than {LARGEST_BOX} times as large as the picture of {size_hw[1]} x {size_hw[0]} pixels"
        )
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


def cut(
    photograph: Photograph, framing: Framing, crop_hw: tuple[int, int], image_scale: float
) -> NDArray[np.uint8]:
    """The crop [H, W, 3] of a photograph as a network of this image scale sees it, black outside the picture."""
    scale, centre = (
        framing.scale * photograph.reduction,
        np.array(framing.centre_xy) / photograph.reduction,
    )
    height, width = photograph.pixels.shape[:2]
    geometry = boxes.crop_geometry(
        "exact",
        (height, width),
        crop_hw,
        (0, 0, width, height),
        centre,
        NORMALISED_DISTANCE * scale,
    )
    crop = Image.fromarray(boxes.crop_image(photograph.pixels, geometry))
    return np.asarray(crop if image_scale == 1 else crop.reduce(round(1 / image_scale)))


ASPECT_TOLERANCE = 0.25  # log of width / height by which an outline may differ from the box


@dataclass(frozen=True)
class Outlines:
    """How large a mesh looks at distance 5: width and height [N, 2] and middle [N, 2] of its outline in N usual views,
    in crop pixels, the middle against the principal point."""

    sizes: NDArray[np.float64]
    middles: NDArray[np.float64]


def outlines_of(mesh: Mesh, azimuth: ArrayLike, elevation: ArrayLike, theta: ArrayLike) -> Outlines:
    """Outlines of a mesh from N views, radians [N]."""
    azimuth, elevation, theta = np.broadcast_arrays(
        *map(np.atleast_1d, (azimuth, elevation, theta))
    )
    still = np.full(azimuth.shape, NORMALISED_DISTANCE)
    views = Pose(azimuth, elevation, theta, still, np.zeros((len(still), 2)))
    points = cameras.project(mesh.vertices, views, FOCAL_PX)
    low, high = points.min(1), points.max(1)
    return Outlines(high - low, (low + high) / 2)


def usual_outlines(mesh: Mesh) -> Outlines:
    """From all sides, level or a little from above, as photographs mostly show objects."""
    azimuth, elevation = np.meshgrid(
        np.arange(24) * (np.pi / 12), np.radians([0.0, 10.0, 20.0]), indexing="ij"
    )
    return outlines_of(mesh, azimuth.ravel(), elevation.ravel(), 0.0)


def frame_box(outlines: Outlines, box_xyxy: ArrayLike, fill: float, drop: float = 0.0) -> Framing:
    """The crop in which the object in a box has about the size it was trained on.

    The mean over the outlines, those of the box's proportions first. fill: side of a box by that of the mesh's outline;
    drop: how far its middle lies below the outline's, in heights of the outline.
    """
    box = np.asarray(box_xyxy, np.float64)
    side = box[2:] - box[:2]
    mismatch = np.log(outlines.sizes[:, 0] / outlines.sizes[:, 1]) - math.log(side[0] / side[1])
    weight = np.exp(-0.5 * np.minimum(np.abs(mismatch) / ASPECT_TOLERANCE, 8.0) ** 2)
    weight /= weight.sum()
    scale = fill * math.exp(weight @ (np.log(outlines.sizes).sum(1) - np.log(side).sum()) / 2)
    middle = outlines.middles + outlines.sizes * [0.0, drop]
    centre = (box[:2] + box[2:]) / 2 - weight @ middle / scale
    return Framing(scale, (float(centre[0]), float(centre[1])))


def reference_framing(size_hw: tuple[int, int], width: float, shift: float) -> Framing:
    """The crop of the reference's unlabelled photographs: the picture `width` pixels wide, the crop's middle `shift`
    pixels below its own."""
    scale = width / size_hw[1]
    return Framing(scale, (size_hw[1] / 2, size_hw[0] / 2 + shift / scale))


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
        return tuple(cameras.in_degrees([self.azimuth, self.elevation, self.theta]).tolist())

    @property
    def camera_matrix(self) -> NDArray[np.float64]:
        """P [3, 4]: P @ (x, y, z, 1) of a CAD point is (u w, v w, w), with (u, v) its pixel in the photograph."""
        pose = Pose(self.azimuth, self.elevation, self.theta, self.distance)
        intrinsic = np.array(
            [
                [self.focal_px, 0, self.principal_xy[0]],
                [0, self.focal_px, self.principal_xy[1]],
                [0, 0, 1],
            ]
        )
        return intrinsic @ pose.cv_cam_from_object @ np.column_stack([np.eye(3), -pose.centre])


EVIDENCE = ("similarity", "margin", "agreement")
REFERENCE_THETAS, REFERENCE_FACTORS = (
    (0.0, 0.0, 1),
    (0.88, 1.14, 3),
)  # starts of its route: distances 4.4, 5 and 5.7 of 5
RIVAL = math.radians(
    60.0
)  # a start whose rotation is further than this from the pose is another answer
VOTES_WITHIN = math.radians(40.0)  # answers vote for those nearer than this, the more the nearer
AGREES_WITHIN = math.radians(30.0)  # of the answer with the most votes; nearer ones enter the mean
SCORE_WEIGHT = 8.0  # a vote weighs exp(this times its score)


@dataclass(frozen=True)
class _Found:
    """What the solver says about K crops, arrays [K]. principal_xy [K, 2] in crop pixels, view_losses [K, N] of every view
    of the start grid where it fits best, views [K, N, 3, 3] their rotations."""

    azimuth: NDArray
    elevation: NDArray
    theta: NDArray
    distance: NDArray
    loss: NDArray
    principal_xy: NDArray
    mesh: NDArray
    view_losses: NDArray
    views: NDArray

    @property
    def rotation(self) -> NDArray[np.float64]:
        """[K, 3, 3]."""
        return cameras.pascal_cam_from_object(self.azimuth, self.elevation, self.theta)

    def and_also(self, other: _Found) -> _Found:
        """These crops and then others."""
        return _Found(
            *(
                np.concatenate([getattr(self, f.name), getattr(other, f.name)])
                for f in fields(_Found)
            )
        )


class PoseFinder:
    """A trained category that finds its objects in photographs.

    model: see `inference.load_model`. config: how. calibration: what turns evidence into confidence, see `use_calibration`.
    solve_config: in place of the solver's defaults; its place in a crop is always searched too. renderer: see `pose.resolve_renderer`.
    """

    def __init__(
        self,
        model: Model,
        config: PhotographConfig | None = None,
        solve_config: SolveConfig | None = None,
        renderer: str = "auto",
    ):
        self.model, self.config, self.calibration = model, config or PhotographConfig(), None
        self.renderer = resolve_renderer(renderer, model.device)
        trained = model.checkpoint.config
        self.crop_hw = settings.category(trained.category).crop_hw
        self.cell = FEATURE_STRIDE / trained.image_scale  # crop pixels
        self.solve_config = replace(
            solve_config or SolveConfig(solver=self.config.solver), six_d=False
        )
        places, distances = self.config.picture_places, self.config.picture_distances
        self.place_config = replace(
            self.solve_config, six_d=True, distance_factors=distances, shifts=places
        )
        self.solvers: dict[SolveConfig, MeshSolver] = {}  # of each search
        self.camera = self._solver(self.solve_config).camera
        self.outlines = usual_outlines(model.mesh(1))

    def find(self, image: ArrayLike, box: ArrayLike | None = None) -> PhotographPose:
        """The pose of the object in an image (see `photograph_of`), in a box (x0, y0, x1, y1) or all of the picture."""
        photograph = photograph_of(image)
        return self.find_all(
            [(photograph, None if box is None else check_box(box, photograph.size_hw))]
        )[0]

    def find_all(self, items: Sequence[tuple[Photograph, NDArray | None]]) -> list[PhotographPose]:
        """Poses of several objects at a time: photographs and the boxes that they are in, None for the whole picture.

        Each object is searched in crops of several sizes, and then again in crops around what was found in each of them;
        without a box its place in the first crops is searched for that, too. All answers vote, since how well a mesh
        explains a crop hardly tells which of several crops is the right one.
        """
        poses: dict[int, PhotographPose] = {}
        for boxed in (True, False):
            mine = [i for i, (_, box) in enumerate(items) if (box is not None) == boxed]
            if mine:
                poses |= zip(mine, self._find_alike([items[i] for i in mine], boxed), strict=True)
        return [poses[i] for i in range(len(items))]

    def _find_alike(
        self, items: Sequence[tuple[Photograph, NDArray | None]], boxed: bool
    ) -> list[PhotographPose]:
        zooms = self.config.box_zooms if boxed else self.config.picture_zooms
        photographs, boxes_of = (
            [p for p, _ in items for _ in zooms],
            [box for _, box in items for _ in zooms],
        )
        used = [
            replace(f, scale=f.scale * zoom)
            for f in (self._first_framing(*item) for item in items)
            for zoom in zooms
        ]
        features = self._features(photographs, used)
        found = self._solve(features, self.solve_config)
        located = found if boxed else self._solve(features, self.place_config)
        used += [self._follow(located, k, framing, boxes_of[k]) for k, framing in enumerate(used)]
        found = found.and_also(self.solve(photographs, used[len(photographs) :], self.solve_config))
        return [
            self._agree(
                found,
                used,
                np.arange(i, len(used), len(photographs))[:, None] + np.arange(len(zooms)),
            )
            for i in range(0, len(photographs), len(zooms))
        ]

    def _first_framing(self, photograph: Photograph, box: NDArray | None) -> Framing:
        """The crop that the search begins with, before zooming."""
        if box is None:
            return frame_box(self.outlines, photograph.whole, self.config.picture_fill)
        return frame_box(self.outlines, box, self.config.box_fill, self.config.box_drop)

    def find_as_reference(self, photographs: Sequence[Photograph]) -> list[PhotographPose]:
        """Poses by the reference's route for photographs without boxes: one crop around the middle (`reference_framing`),
        starts at three distances without theta, and the object's place optimised."""
        config = replace(
            self.solve_config,
            six_d=True,
            thetas=REFERENCE_THETAS,
            distance_factors=REFERENCE_FACTORS,
            shifts=(0.0, 0.0, 1),
        )
        used = [self.reference_framing(photograph) for photograph in photographs]
        found = self.solve(photographs, used, config)
        return [self._agree(found, used, np.array([[k]])) for k in range(len(used))]

    def reference_framing(self, photograph: Photograph) -> Framing:
        """The crop of `find_as_reference`."""
        return reference_framing(
            photograph.size_hw, self.config.reference_width, self.config.reference_shift
        )

    def solve(
        self, photographs: Sequence[Photograph], framings: Sequence[Framing], config: SolveConfig
    ) -> _Found:
        """Solve crops of photographs, each with the mesh of the category that explains it best."""
        return self._solve(self._features(photographs, framings), config)

    def _solve(self, features: Tensor, config: SolveConfig) -> _Found:
        found, views, solver = [], _view_rotations(config), self._solver(config)
        for mesh in range(1, len(self.model.checkpoint.memory) + 1):
            poses = solver.solve(mesh, features)
            view_losses = poses.start_losses.reshape(len(features), -1, len(views)).min(1)
            every_view, number = (
                np.broadcast_to(views, (len(features), *views.shape)),
                np.full(len(features), mesh),
            )
            place = poses.distance, poses.loss, poses.principal_xy * self.cell
            found.append(
                _Found(
                    poses.azimuth,
                    poses.elevation,
                    poses.theta,
                    *place,
                    number,
                    view_losses,
                    every_view,
                )
            )
        best = np.argmin([f.loss for f in found], 0)
        take = np.arange(len(best))
        return _Found(
            *(
                np.stack([getattr(f, field.name) for f in found])[best, take]
                for field in fields(_Found)
            )
        )

    def _solver(self, config: SolveConfig) -> MeshSolver:
        if config not in self.solvers:
            self.solvers[config] = MeshSolver(self.model, config, self.renderer)
        return self.solvers[config]

    def _features(self, photographs: Sequence[Photograph], framings: Sequence[Framing]) -> Tensor:
        scale = self.model.checkpoint.config.image_scale
        crops = [cut(p, f, self.crop_hw, scale) for p, f in zip(photographs, framings, strict=True)]
        return self.model.features(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))

    def _follow(self, found: _Found, k: int, framing: Framing, box: NDArray | None) -> Framing:
        """The crop in which what was found in crop k has the size that the network was trained on, in the middle: by the
        box, now that the view is known, or by the distance and the place that were found."""
        if box is not None:
            mesh = self.model.mesh(int(found.mesh[k]))
            outline = outlines_of(mesh, found.azimuth[k], found.elevation[k], found.theta[k])
            return frame_box(outline, box, self.config.box_fill, self.config.box_drop)
        trained_size = (
            FOCAL_PX / NORMALISED_DISTANCE / (self.camera.focal * self.cell / found.distance[k])
        )
        centre = framing.to_photograph(found.principal_xy[k], self.crop_hw)
        return Framing(framing.scale * float(trained_size), (float(centre[0]), float(centre[1])))

    def _agree(self, found: _Found, framings: Sequence[Framing], mine: NDArray) -> PhotographPose:
        """What the answers [rounds, zooms] about one object agree on: the mean rotation of those near the one with most votes;
        place, size and score are those of the one among them that explains its crop best, of the last round if it has one."""
        rounds, mine = np.repeat(np.arange(len(mine)), mine.shape[1]), mine.ravel()
        rotation, weight = found.rotation[mine], np.exp(SCORE_WEIGHT * (1 - found.loss[mine]))
        apart = cameras.geodesic_distance(rotation[:, None], rotation[None])
        elected = int((np.maximum(1 - apart / VOTES_WITHIN, 0) @ weight).argmax())
        agreeing = apart[elected] <= AGREES_WITHIN
        mean = cameras.mean_rotation(rotation[agreeing], weight[agreeing])
        azimuth, elevation, theta = (float(angle) for angle in cameras.angles_of_rotation(mean))
        best = min(np.flatnonzero(agreeing), key=lambda i: (-rounds[i], found.loss[mine[i]]))
        off = np.minimum(cameras.geodesic_distance(rotation, mean), np.pi / 2) / (np.pi / 2)
        best, agreement = mine[best], 1 - float(weight @ off / weight.sum())
        x, y = framings[best].to_photograph(found.principal_xy[best], self.crop_hw).tolist()
        evidence = *self._evidence(found, best), agreement
        return PhotographPose(
            azimuth,
            elevation,
            theta,
            float(found.distance[best]),
            self.camera.focal * self.cell / framings[best].scale,
            (x, y),
            1 - float(found.loss[best]),
            int(found.mesh[best]),
            evidence,
            None if self.calibration is None else float(self.calibration.confidence(evidence)),
        )

    def _evidence(self, found: _Found, best: int) -> tuple[float, ...]:
        """`EVIDENCE` of an answer but the agreement of all: what the object has before the clutter per cell of it, and how
        much worse the best view from elsewhere explains the crop."""
        losses = found.view_losses[best]
        far = cameras.geodesic_distance(found.views[best], found.rotation[best]) > RIVAL
        margin = (losses[far].min() - losses[~far].min()) / max(1 - float(losses.min()), 1e-6)
        score = max(1 - float(found.loss[best]), 0.0)
        return score / self._coverage(found, best), float(margin)

    def _coverage(self, found: _Found, k: int) -> float:
        """Share of a crop's cells that see the mesh, at least one cell."""
        camera = replace(
            self.camera, principal_xy=tuple((found.principal_xy[k] / self.cell).tolist())
        )
        scene = make_scene(self.model.mesh(int(found.mesh[k])), camera)
        pose = Pose(
            float(found.azimuth[k]),
            float(found.elevation[k]),
            float(found.theta[k]),
            float(found.distance[k]),
        )
        centre, rotation = camera_of_pose(pose)
        face, _, _ = rasterise_poses(scene, centre[None], rotation[None])
        return max(float((face >= 0).mean()), 1 / camera.pixels)

    def draw(
        self, image: ArrayLike, pose: PhotographPose, mesh: Mesh | None = None
    ) -> NDArray[np.uint8]:
        """The mesh over an image (see `photograph_of`) in a pose found in it, RGB [h, w, 3]. mesh: in place of the cuboid."""
        return overlay(
            photograph_of(image),
            [(mesh or self.model.mesh(pose.mesh), pose)],
            max(np.shape(image)[:2]),
        )

    def film(
        self,
        photograph: Photograph,
        pose: PhotographPose,
        mesh: Mesh | None = None,
        side: int = 640,
    ) -> list[NDArray[np.uint8]]:
        """Pictures of the search that ends in a pose: the mesh over the photograph at some of its steps, start and end
        among them, no side longer than `side`. The search is run again in the crop around the pose."""
        framing = Framing(self.camera.focal * self.cell / pose.focal_px, pose.principal_xy)
        own, bank, solver = (
            self.model.mesh(pose.mesh),
            self.model.banks(pose.mesh),
            self._solver(self.solve_config),
        )
        features = self._features([photograph], [framing])
        found = solve(
            own,
            features,
            *bank,
            self.solve_config,
            solver.camera,
            solver.start_distance,
            self.renderer,
            trace=True,
        )
        path = found.path[0]
        poses = [replace(pose, **pose_of_iterate(path[i])._asdict()) for i in film_steps(path)]
        return [overlay(photograph, [(mesh or own, each)], side) for each in [*poses, pose]]

    def depends_on(self) -> dict:
        """What evidence, and with it a calibration, depends on, as JSON values."""
        config = {
            key: value
            for key, value in asdict(self.config).items()
            if key not in ("overlay_side", "wanted_side")
        }
        solve = asdict(self.solve_config) | {"plan": make_plan(self.solve_config).fingerprint}
        return json.loads(
            json.dumps(
                {
                    "checkpoint": self.model.checkpoint.fingerprint,
                    "photograph": config,
                    "solve": solve,
                }
            )
        )

    def use_calibration(self, path: Path) -> bool:
        """Give confidences from now on by a calibration file; False where there is none, or it is of other settings.

        Raises ValueError when the file is no calibration.
        """
        if not Path(path).is_file():
            return False
        found = load_calibration(path)
        fits = found.of == self.depends_on() and found.names == EVIDENCE
        self.calibration = found if fits else None
        return fits


def calibration_path(checkpoint: Path) -> Path:
    """Where the calibration of a checkpoint lies: beside it."""
    return Path(checkpoint).with_suffix(".confidence.json")


def open_finder(
    checkpoint: Path | str,
    device: torch.device | str = "cpu",
    config: PhotographConfig | None = None,
) -> PoseFinder:
    """A checkpoint, ready for photographs, with the calibration beside it if there is one. For errors see `load_model`."""
    path = Path(checkpoint)
    finder = PoseFinder(load_model(path, None, path.parent, device), config)
    finder.use_calibration(calibration_path(path))
    return finder


def _view_rotations(config: SolveConfig) -> NDArray[np.float64]:
    """Rotations [N, 3, 3] of the start grid's views."""
    views = start_poses(config, 1.0)
    azimuth, elevation, _ = cameras.spherical_from_centre(views[:, :3])
    return cameras.pascal_cam_from_object(azimuth, elevation, views[:, 3])


def overlay(
    photograph: Photograph, drawn: Sequence[tuple[Mesh, PhotographPose]], longest_side: int
) -> NDArray[np.uint8]:
    """Meshes over a photograph in their poses, the furthest first, RGB [h, w, 3] with no side longer than longest_side."""
    height, width = photograph.pixels.shape[:2]
    shrink = min(1.0, longest_side / max(height, width))
    picture = photograph.pixels
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    scale = picture.shape[1] / photograph.size_hw[1]
    for mesh, pose in sorted(drawn, key=lambda each: -each[1].pascal3d_distance):
        x, y = pose.principal_xy
        camera = MapCamera(pose.focal_px * scale, (x * scale, y * scale), picture.shape[:2])
        picture = draw_mesh(
            picture, mesh, Pose(pose.azimuth, pose.elevation, pose.theta, pose.distance), camera
        )
    return picture
