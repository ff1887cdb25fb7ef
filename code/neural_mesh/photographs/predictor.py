"""From photographs to records: read ahead by threads, found batch by batch, drawn, written."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from tqdm import tqdm

from neural_mesh.digests import short_digest
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.console import progress_bar
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.photographs.framing import check_box
from neural_mesh.photographs.jobs import PhotographJob
from neural_mesh.photographs.overlay import overlay
from neural_mesh.photographs.poses import PhotographPose
from neural_mesh.photographs.results import PoseRecord, Results, record_of
from neural_mesh.pictures.film import save_film
from neural_mesh.storage.files import WriteError, one_line
from neural_mesh.storage.pictures import Photograph, read_photograph, write_jpeg

OVERLAY_QUALITY = 90  # of JPEG
MOST_READERS = 8  # threads
# File systems take 255 bytes, some encrypted ones 143; endings and what is half-written need some.
LONGEST_NAME = 110
NO_MEMORY = "not enough memory"


def short_path(name: str) -> str:
    """A path whose last part leaves room for endings: a long one is cut, and told by its digest."""
    folder, slash, file = name.rpartition("/")
    content = os.fsencode(file)
    if len(content) <= LONGEST_NAME:
        return name
    digest = short_digest(content)
    # The cut may fall into the middle of a character, which is dropped.
    start = content[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{folder}{slash}{start}~{digest}"


def read_ahead(
    jobs: Sequence[PhotographJob], wanted_side: int, ahead: int
) -> Iterator[tuple[PhotographJob, Photograph | str]]:
    """Photographs in order, decoded by threads; a message for one that cannot be used.

    ahead: how many may wait. wanted_side: see `read_photograph`.
    """

    def read(job: PhotographJob) -> Photograph | str:
        try:
            photograph = read_photograph(job.path, job.boxes, wanted_side)
            for box in job.boxes:
                check_box(box, photograph.size_hw)
        except (ValueError, OSError, MemoryError) as error:
            message = str(error) or NO_MEMORY
            # Complaints about a box do not say in which photograph it is.
            return message if str(job.path) in message else f"{job.path}: {message}"
        return photograph

    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        # Decoded photographs are large, so only so many are kept waiting.
        waiting: deque[tuple[PhotographJob, Future]] = deque()
        for job in jobs:
            waiting.append((job, pool.submit(read, job)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


@dataclass(frozen=True)
class DrawOptions:
    """Which pictures are made of a pose. mesh: drawn in place of the cuboid."""

    overlays: bool
    film: bool
    mesh: Mesh | None = None


class Predictor:
    """Looks at photographs batch by batch and writes what it finds.

    as_reference: by the reference's route for photographs without boxes.
    """

    def __init__(
        self, finder: PoseFinder, results: Results, drawing: DrawOptions, as_reference: bool
    ):
        self.finder = finder
        self.results = results
        self.drawing = drawing
        self.as_reference = as_reference
        self.failures: list[str] = []

    def run(self, jobs: Sequence[PhotographJob], batch_size: int) -> int:
        """Look at what is not done yet; returns how many photographs were done before."""
        todo = [job for job in jobs if not self.results.is_done(job)]
        done = len(jobs) - len(todo)
        # Outdated records go first, since new ones are appended to the file.
        self.results.forget(todo)
        photographs = read_ahead(todo, self.finder.config.wanted_side, batch_size)
        with progress_bar("photographs", len(jobs), initial=done) as bar:
            batch: list[tuple[PhotographJob, Photograph]] = []
            for job, photograph in photographs:
                if isinstance(photograph, str):
                    self._fail(photograph)
                    bar.update(1)
                    continue
                batch.append((job, photograph))
                if len(batch) == batch_size:
                    self._predict(batch)
                    bar.update(len(batch))
                    batch = []
            # The last batch may be smaller.
            if batch:
                self._predict(batch)
                bar.update(len(batch))
        return done

    def _fail(self, message: str) -> None:
        self.failures.append(message)
        tqdm.write(f"skipped: {one_line(message)}", file=sys.stderr)

    def _predict(self, batch: Sequence[tuple[PhotographJob, Photograph]]) -> None:
        """Look at photographs; where that fails, at each of them alone.

        Those that still fail are reported. A disk that refuses to write stops the run.
        """
        try:
            every_record = self._records(batch)
        except WriteError:
            # On a full disk, all that follows would fail as well.
            raise
        except (RuntimeError, ValueError, ArithmeticError, OSError, MemoryError) as error:
            if len(batch) == 1:
                job, _ = batch[0]
                failed = "no pose could be found"
                if isinstance(error, OSError):
                    failed = "its pose or its pictures could not be kept"
                reason = (str(error).splitlines() or [NO_MEMORY])[0]
                self._fail(f"{job.path}: {failed} ({reason})")
                return
            # One photograph must not cost the others of its batch their poses.
            for single in batch:
                self._predict([single])
            return
        for records in every_record:
            self.results.add(records)

    def _records(self, batch: Sequence[tuple[PhotographJob, Photograph]]) -> list[list[PoseRecord]]:
        """The objects of each photograph, drawn."""
        every_record = []
        for (job, photograph), poses in zip(batch, self._poses(batch), strict=True):
            pictures = self._draw(job, photograph, poses)
            records = []
            for number, pose in enumerate(poses):
                records.append(record_of(job, number, photograph, pose, pictures[number]))
            if self.as_reference:
                # What the reference's translation is measured from.
                middle_xy = self.finder.reference_framing(photograph).centre_xy
                records[0]["crop_middle_xy"] = list(middle_xy)
            every_record.append(records)
        return every_record

    def _poses(
        self, batch: Sequence[tuple[PhotographJob, Photograph]]
    ) -> list[list[PhotographPose]]:
        """The poses in each photograph."""
        if self.as_reference:
            poses = self.finder.find_as_reference([photograph for _, photograph in batch])
            return [[pose] for pose in poses]
        items = [(photograph, region) for job, photograph in batch for region in job.regions]
        poses = iter(self.finder.find_all(items))
        # Poses come in the order of the items: dealt out again, photograph by photograph.
        return [list(islice(poses, len(job.regions))) for job, _ in batch]

    def _draw(
        self, job: PhotographJob, photograph: Photograph, poses: Sequence[PhotographPose]
    ) -> list[list[str]]:
        """Write the pictures of a photograph; returns, for each object, the files that show it."""
        files: list[list[str]] = [[] for _ in poses]
        folder = self.results.folder
        # One overlay shows all objects of a photograph; a film shows the search for one.
        if self.drawing.overlays:
            name = f"overlays/{short_path(job.name)}.jpg"
            drawn = []
            for pose in poses:
                drawn.append((self.drawing.mesh or self.finder.model.mesh(pose.mesh), pose))
            picture = overlay(photograph, drawn, self.finder.config.overlay_side)
            write_jpeg(folder / name, picture, OVERLAY_QUALITY)
            files = [[name] for _ in poses]
        if self.drawing.film:
            for number, pose in enumerate(poses):
                suffix = f"_{number}" if len(poses) > 1 else ""
                name = f"films/{short_path(job.name)}{suffix}.gif"
                save_film(folder / name, self.finder.film(photograph, pose, self.drawing.mesh))
                files[number].append(name)
        return files
