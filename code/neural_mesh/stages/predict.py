"""A checkpoint and anybody's photographs -> poses, a confidence for each, and overlays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from neural_mesh.machine.console import count, require_folder
from neural_mesh.machine.devices import first_device, gpus_of
from neural_mesh.photographs.box_files import Box, read_boxes
from neural_mesh.photographs.calibration import Calibration, calibration_path, save_calibration
from neural_mesh.photographs.calibration_images import CalibrationOptions, calibrate_finder
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.photographs.jobs import (
    PhotographJob,
    check_unlabelled,
    collect_jobs,
    with_box,
)
from neural_mesh.photographs.predictor import DrawOptions, Predictor
from neural_mesh.photographs.results import (
    FAILURES,
    REFERENCE,
    PoseRecord,
    Results,
    save_reference,
    sentence,
)
from neural_mesh.settings import PhotographConfig, SolveConfig
from neural_mesh.solve.model import load_model
from neural_mesh.storage.files import lock
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.mesh_files import read_off


@dataclass(frozen=True)
class FinderOptions:
    """Which network finds poses, and how.

    checkpoint: what TrainNeMo.sh saved, or the authors' file. category: that it must be of.
    meshes: folder of its cuboids, None for the checkpoint's own. gpus: as the user sets them.
    calibration: file that makes confidences, None for the one beside the checkpoint.
    """

    checkpoint: Path
    category: str | None = None
    meshes: Path | None = None
    gpus: str = "all"
    renderer: str = SolveConfig.renderer
    calibration: Path | None = None
    config: PhotographConfig = field(default_factory=PhotographConfig)

    @property
    def calibration_file(self) -> Path:
        """The calibration that the user names, or the one beside the checkpoint."""
        return self.calibration or calibration_path(self.checkpoint)

    def open(self) -> PoseFinder:
        """The finder, without its calibration. Raises as `load_model`."""
        meshes = self.meshes or self.checkpoint.parent
        device = first_device(gpus_of(self.gpus))
        model = load_model(self.checkpoint, self.category, meshes, device)
        return PoseFinder(model, self.config, renderer=self.renderer)


@dataclass(frozen=True)
class PredictOptions:
    """Where objects are, what is drawn, and how the run goes on.

    box: of a single photograph; boxes: file of the boxes of several. unlabelled: the reference's
    route for pictures without boxes. draw_mesh: an OFF file to draw in place of the cuboid.
    overwrite: begin again where there are results. batch_size: photographs at a time.
    """

    box: Box | None = None
    boxes: Path | None = None
    unlabelled: bool = False
    overlays: bool = True
    film: bool = False
    draw_mesh: Path | None = None
    overwrite: bool = False
    batch_size: int = 8


def predict(
    network: FinderOptions, photographs: Sequence[Path], out: Path, options: PredictOptions
) -> Path:
    """Find the poses in photographs (files, or folders of them), and say what came out.

    Returns the folder of the results, `out`. Photographs that are done already are kept.
    Raises ValueError or FileNotFoundError, in one sentence, for what cannot be looked at.
    """
    # The search for photographs recognises the run's own results by their real path.
    out = out.resolve()
    # A checkpoint that cannot be used is refused before any folder is made.
    finder = network.open()
    # The reference's route finds poses in another way than those that confidences are fitted to.
    if not options.unlabelled:
        _use_calibration(finder, network.calibration_file)
    with lock(out, "predict", "poses"):
        jobs = _jobs(photographs, out, options)
        results = Results(out, _settings(network, finder, options), options.overwrite)
        # What is not done yet is looked at, batch by batch.
        mesh = read_off(options.draw_mesh) if options.draw_mesh else None
        drawing = DrawOptions(options.overlays, options.film, mesh)
        predictor = Predictor(finder, results, drawing, options.unlabelled)
        earlier = predictor.run(jobs, options.batch_size)
        # The folder may hold poses of other photographs, too; this run tells of its own.
        names = {job.name for job in jobs}
        every_record = results.finish(finder.calibration, predictor.failures)
        records = [record for record in every_record if record["photo"] in names]
        if not records:
            more = f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else ""
            raise ValueError(f"no photograph could be used{more}: {predictor.failures[0]}")
        if options.unlabelled:
            save_reference(out / REFERENCE, records)
        _report(records, earlier, predictor)
        if finder.calibration is None and not options.unlabelled:
            print(
                "confidence is not given: this checkpoint has no calibration for these settings; "
                "predict.py --checkpoint ... --calibrate <prepared set> makes one"
            )
    return out


def _use_calibration(finder: PoseFinder, file: Path) -> None:
    if not finder.use_calibration(file) and file.is_file():
        print(f"note: {file} was made with other settings and is not used", file=sys.stderr)


def _jobs(photographs: Sequence[Path], out: Path, options: PredictOptions) -> list[PhotographJob]:
    """The photographs and boxes that the user names; ValueError where they do not fit together."""
    boxes = read_boxes(options.boxes) if options.boxes else None
    jobs = collect_jobs(photographs, boxes, out)
    if options.box is not None:
        jobs = with_box(jobs, options.box)
    if options.unlabelled:
        check_unlabelled(jobs)
    return jobs


def _settings(network: FinderOptions, finder: PoseFinder, options: PredictOptions) -> dict:
    """Everything that results depend on beside the photographs, as JSON values."""
    # Pictures count as well, so that a folder never holds those of two kinds of run.
    return finder.depends_on() | {
        "photograph": asdict(finder.config),
        "renderer": network.renderer,
        "unlabelled": options.unlabelled,
        "overlays": options.overlays,
        "film": options.film,
        "draw_mesh": str(options.draw_mesh or ""),
    }


def _report(records: Sequence[PoseRecord], earlier: int, predictor: Predictor) -> None:
    """Say how many poses there are, and a single one in words. earlier: photographs done before."""
    finder = predictor.finder
    if len(records) == 1:
        print(sentence(records[0]))
    photographs = count(len({record["photo"] for record in records}), "photograph")
    see = f", see {FAILURES}" if predictor.failures else ""
    print(
        f"{count(len(records), 'pose')} of {photographs} ({earlier:,} of them from earlier runs, "
        f"{len(predictor.failures)} could not be used{see}) "
        f"by {finder.renderer.name} on {finder.model.device}, in {predictor.results.folder}"
    )


def calibrate(network: FinderOptions, prepared: Path, options: CalibrationOptions) -> Path:
    """Fit a map from evidence to confidence on images of a prepared set.

    Returns the file that it is written to. Raises as `calibrate_finder`.
    """
    finder = network.open()
    prepared = require_folder(prepared, "prepared set", "run PrepareData.sh first")
    calibration = calibrate_finder(finder, PreparedSet(prepared), options)
    file = network.calibration_file
    save_calibration(file, calibration)
    print(f"{describe_calibration(calibration)}; in {file}")
    return file


def describe_calibration(calibration: Calibration) -> str:
    """What a calibration was made of, and how good it is, in words."""
    origin = calibration.data["images"]
    if calibration.data["patches"]:
        origin += ", disturbed and with patches of others over them,"
    return (
        f"confidence calibrated on {count(calibration.images, 'image')} {origin} "
        f"({100 * calibration.right:.1f}% right within pi/6): "
        f"cross-validated Brier score {calibration.brier:.3f}, "
        f"calibration error {calibration.calibration_error:.3f}"
    )
