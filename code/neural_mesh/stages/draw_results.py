"""Saved poses, their images and the checkpoint -> figures, films, and a contact sheet.

A figure shows the crop, the mesh in the predicted pose over it, which cells of the feature map are
background, object or occluded, and the loss along azimuth, elevation and theta around the
prediction; a film shows the same from the start pose to the final one. `OtherDrawing` lists four
other drawings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from neural_mesh.machine import console
from neural_mesh.pictures.canvas import save_figure
from neural_mesh.pictures.contact_sheet import Strip, contact_sheet
from neural_mesh.pictures.manifest import Manifest, digest_of, read_manifest, write_manifest
from neural_mesh.pictures.result_pictures import draw_film, draw_image
from neural_mesh.pictures.selection import Choice
from neural_mesh.pictures.solved import SolvedSet
from neural_mesh.stages.networks import TrainedNetworks
from neural_mesh.stages.other_drawings import (
    draw_comparison,
    draw_landscapes,
    draw_pose_file,
    draw_viewpoints,
)
from neural_mesh.stages.saved_results import SavedResults
from neural_mesh.storage.files import lock
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.timings import record_seconds

OVERVIEW = "overview.png"


@dataclass(frozen=True)
class OtherDrawing:
    """The drawing to make instead of the result pictures, by default none.

    landscape: draws the loss over a set, around the `truth` or the `prediction`. viewpoints: draws
    the distribution of the poses. poses: file whose poses are drawn. compare: folder of results to
    compare with. The last two need no checkpoint.
    """

    landscape: str | None = None
    viewpoints: bool = False
    poses: Path | None = None
    compare: Path | None = None


RESULT_PICTURES = OtherDrawing()


def draw_results(
    networks: TrainedNetworks,
    clean: Path,
    choice: Choice,
    gpus: str = "all",
    other: OtherDrawing = RESULT_PICTURES,
) -> None:
    """Draw the chosen images of every category and the contact sheet, or one of the other drawings.

    clean: prepared test set without occluders, whose annotations are the truth. gpus: see
    `machine.devices`; the first one computes the feature maps.
    """
    for folder, what in ((networks.prepared, "test set"), (clean, "clean test set")):
        console.require_folder(folder, what, "run PrepareData.sh first")
    results = SavedResults(networks, PreparedSet(clean), choice.overlay, gpus)
    # The poses of a file can be drawn without any saved results, so these come first.
    if other.poses is not None:
        draw_pose_file(results, choice, other.poses)
        return
    categories = results.require_categories()
    if other.landscape:
        draw_landscapes(results, choice, categories, other.landscape)
    elif other.viewpoints:
        draw_viewpoints(results, categories)
    elif other.compare is not None:
        draw_comparison(results, choice, categories, other.compare)
    else:
        with lock(results.folder, "draw", "pictures"):
            draw_pictures(results, choice, categories)


# ---- result pictures -----------------------------------------------------------------------------


@dataclass
class _Drawn:
    """The pictures of a run: strips of the contact sheet, files of films.

    not_finite: number of poses that cannot be drawn.
    """

    strips: list[Strip] = field(default_factory=list)
    films: list[str] = field(default_factory=list)
    not_finite: int = 0

    def draw(self, solved: SolvedSet, choice: Choice, folder: Path) -> None:
        """Draw the chosen images of a category."""
        chosen = solved.choose(choice.pictures, choice.select, choice.seed)
        # Films show typical searches, whatever figures were selected.
        filmed = solved.choose(choice.films, "median", choice.seed)
        # Figures come first, since films take long.
        for i in console.progress(chosen, f"{solved.subset} pictures"):
            self.strips.append(draw_image(solved, i, folder))
        if filmed:
            for i in console.progress(filmed, f"{solved.subset} films"):
                self.films.append(draw_film(solved, i, folder))
        self.not_finite += len(solved.poses) - len(solved.finite)

    @property
    def pictures(self) -> list[str]:
        """The file names of all pictures, the contact sheet included."""
        return sorted([OVERVIEW, *(strip.file_name for strip in self.strips), *self.films])


def draw_pictures(results: SavedResults, choice: Choice, categories: list[str]) -> None:
    """Draw figures, films and the contact sheet, unless an earlier run drew the same."""
    # Pictures of the same poses by the same choices are kept.
    started = monotonic()
    folder = results.folder
    choices = (choice.images, choice.select, choice.overlay, choice.seed, choice.films)
    origin = digest_of(choices, [results.poses_file(category) for category in categories])
    before = read_manifest(folder)
    if before.origin == origin and before.is_complete(folder):
        # The contact sheet is among the files, but does not count as a picture.
        pictures = console.count(len(before.pictures) - 1, "picture")
        print(f"{results.level}: {pictures} and {OVERVIEW} in {folder} kept")
        return

    # Figures and films of every category, and the contact sheet of all.
    device = results.device
    drawn = _Drawn()
    for category in categories:
        drawn.draw(results.load_with_network(category, device), choice, folder)
    if not drawn.strips:
        raise ValueError(
            f"no pose of {', '.join(categories)} is finite; run InferenceNeMo.sh again"
        )
    networks = results.networks
    title = f"{networks.level or 'unoccluded'}, {networks.mesh_d} cuboid: {choice.words}"
    save_figure(folder / OVERVIEW, contact_sheet(drawn.strips, title))

    # Remove what an earlier run drew of other images.
    for name in set(before.pictures) - set(drawn.pictures):
        (folder / name).unlink(missing_ok=True)
    # The manifest is written last, so that the next run repeats one that was killed.
    write_manifest(folder, Manifest(origin, drawn.pictures))
    timing = networks.experiment.timing("draw_results", results.level)
    record_seconds(timing, monotonic() - started, len(drawn.pictures) - 1, "pictures")
    _print_drawn(results, drawn, categories)


def _print_drawn(results: SavedResults, drawn: _Drawn, categories: list[str]) -> None:
    """Print the last line of a run that drew result pictures."""
    pictures = console.count(len(drawn.strips), "figure")
    if drawn.films:
        pictures += f", {console.count(len(drawn.films), 'film')}"
    notes = ""
    absent = [category for category in results.networks.categories if category not in categories]
    if absent:
        notes += f"; no poses of {', '.join(absent)}"
    if drawn.not_finite:
        notes += f"; {console.count(drawn.not_finite, 'pose')} not finite, not drawn"
    print(
        f"{results.level}: {pictures} of {console.count(len(categories), 'category')} "
        f"and {OVERVIEW} in {results.folder}{notes}"
    )
