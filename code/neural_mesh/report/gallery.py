"""The pictures of the page: the best, median and worst images, with the mesh over them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine import console
from neural_mesh.pictures.captions import short_angles
from neural_mesh.pictures.mesh_overlay import draw_mesh, fit_camera
from neural_mesh.pictures.resizing import as_jpeg
from neural_mesh.pictures.selection import OverlayMeshes, camera_of, finite_poses
from neural_mesh.report.cards import Card, gallery_places
from neural_mesh.report.scores import CategoryScore, EvaluationSets
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import load_annotation

# Width of a picture, and of the gap between input and overlay, in pixels.
CARD_WIDTH = 336
GAP = 4
# Crops are read at half their size, since a card shows large ones at a quarter.
CROP_SCALE = 0.5


class Gallery:
    """Makes the cards, and reads each mesh once. missing: a reason for each failed picture."""

    def __init__(self, sets: EvaluationSets, overlays: OverlayMeshes) -> None:
        self.sets = sets
        self.overlays = overlays
        self.meshes: dict[Path, Mesh] = {}
        self.missing: list[str] = []

    def cards(self, level: str, scores: Iterable[CategoryScore], size: int) -> list[Card]:
        """Make about `size` cards of every category at a level."""
        cards = []
        for score in scores:
            # A pose that is not finite cannot be drawn.
            finite = finite_poses(score.poses)
            places = gallery_places(score.errors[finite], size)
            for k, place, rank in console.progress(places, f"{score.category}{level} gallery"):
                i = int(finite[k])
                try:
                    jpeg = self.picture(score, level, i)
                # One broken picture must not prevent the page.
                except (OSError, ValueError) as reason:
                    self.missing.append(f"{score.category}{level} {score.names[i]}: {reason}")
                    continue
                card = Card(
                    category=score.category,
                    level=level,
                    name=score.names[i],
                    error=float(np.rad2deg(score.errors[i])),
                    place=place,
                    rank=rank,
                    of=len(finite),
                    predicted=short_angles(score.poses.pose.angles[i]),
                    annotated=short_angles(score.truth[i]),
                    jpeg=jpeg,
                )
                cards.append(card)
        return cards

    def picture(self, score: CategoryScore, level: str, i: int) -> bytes:
        """Draw the input above the mesh in the predicted pose, as a small JPEG."""
        path = self.sets.tested(level).image(score.category + level, score.names[i])
        crop = read_crop(path, CROP_SCALE)
        camera = fit_camera(camera_of(score.poses, i), crop)
        overlay = draw_mesh(crop, self.mesh(score, i), score.poses.pose[i], camera)
        # Join both with a white line in between.
        gap = np.full((GAP, crop.shape[1], 3), 255, np.uint8)
        return as_jpeg(np.concatenate([crop, gap, overlay]), CARD_WIDTH)

    def mesh(self, score: CategoryScore, i: int) -> Mesh:
        """Return the CAD model of the annotated or predicted subtype, or else the cuboid."""
        # A predicted subtype is drawn even if it differs from the annotated one.
        annotation = None
        if not score.poses.predicts_subtype:
            path = self.sets.clean.annotation(score.category, score.names[i])
            annotation = load_annotation(path)
        path = self.overlays.cad_model(score.poses, i, annotation)
        if not path.is_file():
            path = self.overlays.cuboid(score.poses, i)
        if path not in self.meshes:
            self.meshes[path] = read_off(path)
        return self.meshes[path]
