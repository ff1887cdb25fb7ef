"""The pose of an object in anybody's photograph.

A photograph is cropped around a box, or as a whole, so that the object gets about the size that the
network was trained on. The pose found in the crops is taken back into the photograph's pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.photographs import framing
from neural_mesh.photographs.calibration import Calibration, calibration_path, load_calibration
from neural_mesh.photographs.crop_solver import CropSolver
from neural_mesh.photographs.evidence import EVIDENCE, elect, margin, mesh_coverage, similarity
from neural_mesh.photographs.framing import Framing, frame_box
from neural_mesh.photographs.overlay import overlay
from neural_mesh.photographs.poses import Candidates, PhotographPose
from neural_mesh.pictures.film import film_steps, pose_of_iterate
from neural_mesh.settings import FOCAL_PX, NORMALISED_DISTANCE, PhotographConfig, SolveConfig
from neural_mesh.solve.choose_renderer import choose_renderer
from neural_mesh.solve.model import Model, load_model
from neural_mesh.solve.plan import make_plan
from neural_mesh.storage.pictures import Photograph, PictureLike, photograph_of

# Starts of the reference's route: no theta, and distances 4.4, 5 and 5.7 of 5.
REFERENCE_THETAS = (0.0, 0.0, 1)
REFERENCE_FACTORS = (0.88, 1.14, 3)
REFERENCE_SHIFTS = (0.0, 0.0, 1)
# Settings that poses do not depend on.
UNUSED_BY_POSES = ("overlay_side", "wanted_side")


class PoseFinder:
    """A trained category that finds its objects in photographs.

    model: see `load_model`. config: how. calibration: what turns evidence into
    confidence, see `use_calibration`. solve_config: in place of the solver's defaults; its place in
    a crop is always searched too. renderer: see `choose_renderer`.
    """

    def __init__(
        self,
        model: Model,
        config: PhotographConfig | None = None,
        solve_config: SolveConfig | None = None,
        renderer: str = "auto",
    ):
        self.model = model
        self.config = config or PhotographConfig()
        self.calibration: Calibration | None = None
        # One search for where the object is in the middle, one for where it may be elsewhere.
        solve_config = solve_config or SolveConfig(solver=self.config.solver)
        self.solve_config = replace(solve_config, six_d=False)
        self.place_config = replace(
            self.solve_config,
            six_d=True,
            distance_factors=self.config.picture_distances,
            shifts=self.config.picture_places,
        )
        # What both searches share: how large a crop is, its camera, and how large meshes look.
        self.renderer = choose_renderer(renderer, model.device)
        self.crops = CropSolver(model, self.renderer)
        self.camera = self.crops.solver(self.solve_config).setup.camera
        self.focal_px = self.camera.focal * self.crops.cell  # in crop pixels
        self.outlines = framing.usual_outlines(model.mesh(1))

    # ---- finding ----

    def find(self, image: PictureLike, box: ArrayLike | None = None) -> PhotographPose:
        """The pose of the object in an image: a path, a picture of Pillow, or an array.

        Of arrays see `photograph_of`, which does not guess what their numbers mean. box: where it
        is, (x0, y0, x1, y1) in pixels of the upright picture; without one it is searched in all of
        the picture.
        """
        # A large file is decoded only as finely as the box needs.
        boxes = [] if box is None else [framing.check_numbers(box)]
        photograph = photograph_of(image, boxes, self.config.wanted_side)
        if box is not None:
            box = framing.check_box(box, photograph.size_hw)
        return self.find_all([(photograph, box)])[0]

    def find_all(self, items: Sequence[tuple[Photograph, NDArray | None]]) -> list[PhotographPose]:
        """Poses of several objects at a time: photographs and the boxes that they are in.

        A box of None stands for the whole picture. Each object is searched in crops of several
        sizes, and then again in crops around what was found in each of them; without a box its
        place in the first crops is searched for that, too. All answers vote, since how well a mesh
        explains a crop hardly tells which of several crops is the right one.
        """
        # With and without a box, objects are searched in different crops, so each kind is a batch
        # of its own.
        poses: dict[int, PhotographPose] = {}
        for boxed in (True, False):
            indices = [i for i, (_, box) in enumerate(items) if (box is not None) == boxed]
            if indices:
                alike = self._find_alike([items[i] for i in indices], boxed)
                poses |= zip(indices, alike, strict=True)
        return [poses[i] for i in range(len(items))]

    def _find_alike(
        self, items: Sequence[tuple[Photograph, NDArray | None]], boxed: bool
    ) -> list[PhotographPose]:
        """`find_all` where all items have a box, or none has."""
        zooms = self.config.box_zooms if boxed else self.config.picture_zooms
        photographs = []
        boxes = []
        framings = []
        # The first round: every object in crops of several sizes.
        for photograph, box in items:
            unzoomed = self._first_framing(photograph, box)
            for zoom in zooms:
                photographs.append(photograph)
                boxes.append(box)
                framings.append(unzoomed.zoomed(zoom))
        features = self.crops.features(photographs, framings)
        first = self.crops.solve(features, self.solve_config)
        # The second round: crops around what each of the first shows.
        located = first if boxed else self.crops.solve(features, self.place_config)
        followed = []
        for k, (framed, box) in enumerate(zip(framings, boxes, strict=True)):
            followed.append(self._follow(located.pose[k], int(located.mesh[k]), framed, box))
        features = self.crops.features(photographs, followed)
        second = self.crops.solve(features, self.solve_config)
        # The vote, object by object: the crops of an object stand side by side.
        rounds = np.repeat([0, 1], len(zooms))
        poses = []
        for start in range(0, len(photographs), len(zooms)):
            crops = slice(start, start + len(zooms))
            candidates = Candidates.joined([first[crops], second[crops]])
            poses.append(self._agree(candidates, framings[crops] + followed[crops], rounds))
        return poses

    def _first_framing(self, photograph: Photograph, box: NDArray | None) -> Framing:
        """The crop that the search begins with, before zooming."""
        if box is None:
            return frame_box(self.outlines, photograph.whole, self.config.picture_fill)
        return frame_box(self.outlines, box, self.config.box_fill, self.config.box_drop)

    def _follow(self, pose: Pose, mesh: int, framed: Framing, box: NDArray | None) -> Framing:
        """The crop in which the object has the size that it was trained on, in the middle.

        By its box, now that the view is known from a first crop, or by the distance and the place
        that were found there.
        """
        if box is not None:
            views = (pose.azimuth, pose.elevation, pose.theta)
            outline = framing.outlines_of(self.model.mesh(mesh), *views)
            return frame_box(outline, box, self.config.box_fill, self.config.box_drop)
        # Crop pixels per CAD unit, at the distance that networks are trained on and at this one.
        trained_size = FOCAL_PX / NORMALISED_DISTANCE
        size = self.focal_px / pose.distance
        x, y = framed.to_photograph(pose.principal_xy, self.crops.crop_hw).tolist()
        return Framing(framed.scale * (trained_size / size), (x, y))

    def find_as_reference(self, photographs: Sequence[Photograph]) -> list[PhotographPose]:
        """Poses by the reference's route for photographs without boxes.

        One crop around the middle (`reference_framing`), starts at three distances without theta,
        and the object's place optimised.
        """
        config = replace(
            self.solve_config,
            six_d=True,
            thetas=REFERENCE_THETAS,
            distance_factors=REFERENCE_FACTORS,
            shifts=REFERENCE_SHIFTS,
        )
        framings = [self.reference_framing(photograph) for photograph in photographs]
        candidates = self.crops.solve(self.crops.features(photographs, framings), config)
        # There is one answer for each photograph, and so no vote.
        poses = []
        for k, framed in enumerate(framings):
            poses.append(self._agree(candidates[k : k + 1], [framed], np.zeros(1, int)))
        return poses

    def reference_framing(self, photograph: Photograph) -> Framing:
        """The crop of `find_as_reference`."""
        width = self.config.reference_width
        return framing.reference_framing(photograph.size_hw, width, self.config.reference_shift)

    # ---- the vote ----

    def _agree(
        self, candidates: Candidates, framings: Sequence[Framing], rounds: NDArray
    ) -> PhotographPose:
        """What the candidates [K] of one object agree on: the mean rotation of an election.

        Place, size and score are those of the agreeing one that explains its crop best, of the
        last round [K] if it has one.
        """
        election = elect(candidates)
        best = min(
            np.flatnonzero(election.agreeing), key=lambda k: (-rounds[k], candidates.loss[k])
        )
        # The rotation is the mean of those that agree, all else is the best one's.
        answer = candidates.pose[best]
        azimuth, elevation, theta = map(float, cameras.angles_of_rotation(election.rotation))
        x, y = framings[best].to_photograph(answer.principal_xy, self.crops.crop_hw).tolist()
        evidence = (*self._evidence(candidates, best), election.agreement)
        confidence = None
        if self.calibration is not None:
            confidence = float(self.calibration.confidence(evidence))
        return PhotographPose(
            Pose(azimuth, elevation, theta, answer.distance, (x, y)),
            self.focal_px / framings[best].scale,
            1 - float(candidates.loss[best]),
            int(candidates.mesh[best]),
            evidence,
            confidence,
        )

    def _evidence(self, candidates: Candidates, k: int) -> tuple[float, float]:
        """Similarity and margin of candidate k, see `EVIDENCE`."""
        pose = candidates.pose[k]
        in_cells = replace(pose, principal_xy=pose.principal_xy / self.crops.cell)
        mesh = self.model.mesh(int(candidates.mesh[k]))
        coverage = mesh_coverage(mesh, self.camera, in_cells)
        rotation = candidates.pose.pascal_cam_from_object[k]
        return (
            similarity(float(candidates.loss[k]), coverage),
            margin(rotation, candidates.views, candidates.view_losses[k]),
        )

    def use_calibration(self, path: Path) -> bool:
        """Give confidences from now on by a calibration file.

        Returns False where there is none, or it is of other settings. Raises ValueError when the
        file is no calibration.
        """
        if not Path(path).is_file():
            return False
        calibration = load_calibration(path)
        # Made with other settings, it would turn the same evidence into wrong probabilities.
        fits = calibration.of == self.depends_on() and calibration.names == EVIDENCE
        self.calibration = calibration if fits else None
        return fits

    def depends_on(self) -> dict:
        """What evidence, and with it a calibration, depends on, as JSON values."""
        photograph = asdict(self.config)
        for name in UNUSED_BY_POSES:
            del photograph[name]
        values = {
            "checkpoint": self.model.checkpoint.fingerprint,
            "photograph": photograph,
            "solve": asdict(self.solve_config) | {"plan": make_plan(self.solve_config).fingerprint},
        }
        # A calibration that was read from its file has lists in place of tuples.
        return json.loads(json.dumps(values))

    # ---- pictures ----

    def draw(
        self, image: PictureLike, pose: PhotographPose, mesh: Mesh | None = None
    ) -> NDArray[np.uint8]:
        """The mesh over an image (see `find`) in a pose found in it, upright RGB [h, w, 3].

        mesh: in place of the cuboid.
        """
        photograph = photograph_of(image)
        drawn = [(mesh or self.model.mesh(pose.mesh), pose)]
        return overlay(photograph, drawn, max(photograph.size_hw))

    def film(
        self,
        photograph: Photograph,
        pose: PhotographPose,
        mesh: Mesh | None = None,
        side: int = 640,
    ) -> list[NDArray[np.uint8]]:
        """Pictures of the search that ends in a pose: the mesh over the photograph at its steps.

        Start and end are among them, no side is longer than `side`. The search is run again in the
        crop around the pose. mesh: in place of the cuboid.
        """
        place_xy = pose.pose.principal_xy
        framed = Framing(self.focal_px / pose.focal_px, place_xy)
        features = self.crops.features([photograph], [framed])
        path = self.crops.path(features, pose.mesh, self.solve_config)
        poses = []
        for step in film_steps(path):
            # The search turns the camera; the object stays where it was found.
            iterate = replace(pose_of_iterate(path[step]), principal_xy=place_xy)
            poses.append(replace(pose, pose=iterate))
        drawn = mesh or self.model.mesh(pose.mesh)
        return [overlay(photograph, [(drawn, each)], side) for each in [*poses, pose]]


def open_finder(
    checkpoint: Path | str,
    device: torch.device | str = "cpu",
    config: PhotographConfig | None = None,
    category: str | None = None,
) -> PoseFinder:
    """A checkpoint, ready for photographs, with the calibration beside it if there is one.

    category: what it was trained on, for a file that does not say so. For errors see `load_model`.
    """
    path = Path(checkpoint)
    finder = PoseFinder(load_model(path, category, path.parent, device), config)
    finder.use_calibration(calibration_path(path))
    return finder
