"""Annotations and meshes -> where every vertex falls in the crop and whether it is seen.

Also the lists that training and inference read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

from neural_mesh.categories import CATEGORIES
from neural_mesh.data.crops import prepared_names
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.visibility import facing_weights
from neural_mesh.machine import console
from neural_mesh.machine.resources import require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.storage.files import atomic_path, lock, remove_parts
from neural_mesh.storage.layout import PreparedSet, RawPascal3D, write_list
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import load_npz
from neural_mesh.storage.records import (
    VertexAnnotation,
    is_of_others,
    load_annotation,
    save_annotation,
)

BYTES_PER_VERTEX = 40  # of an annotation: position, visibility, weight


@dataclass(frozen=True)
class VertexOptions:
    """Which prepared set is annotated, with which meshes, and how.

    raw: PASCAL3D+_release1.1, with CAD_single and CAD_multi. mesh_d: single or multi. clean: the
    clean test set, when `prepared` is the occluded one of a level. occluded_visibility: `clean`, as
    if there were no occluder (reference); `subtract`, what it covers is hidden. overwrite: delete
    what is there of the categories first. workers: a number of processes, or auto. cuboids: where
    they lie if not in `raw`.
    """

    raw: Path
    prepared: Path
    mesh_d: str
    categories: tuple[str, ...] = tuple(CATEGORIES)
    clean: Path | None = None
    level: str = ""
    occluded_visibility: str = "clean"
    overwrite: bool = False
    workers: str = "auto"
    cuboids: Path | None = None

    @property
    def links_to_clean(self) -> bool:
        """Whether the annotations are those of the clean set."""
        return self.clean is not None and self.occluded_visibility == "clean"


@dataclass(frozen=True)
class MeshedSubset:
    """One subset and the meshes that it is annotated with.

    subtract: whether vertices behind an occluder count as hidden.
    """

    prepared: PreparedSet
    mesh_d: str
    name: str
    meshes: tuple[Mesh, ...]
    subtract: bool = False


class AnnotatedCount(NamedTuple):
    """Images with vertices, and those of them that got them now."""

    images: int
    new: int


def annotate_vertices(options: VertexOptions) -> None:
    """Annotate a prepared set, and say how many images.

    An occluded one is linked to the clean one unless its occluders are to be subtracted.
    """
    remedy = "run prepare_images.py first"
    console.require_folder(options.prepared, "prepared set", remedy)
    # One category after another, each with a lock of its own.
    counts = []
    with WorkerPool(worker_count(options.workers)) as pool:
        for category in options.categories:
            subset = category + options.level
            if not PreparedSet(options.prepared).lists(subset).is_dir():
                # Training images alone, or test images alone; their preparation has said so.
                continue
            purpose = f"annotate-{options.mesh_d}-{subset}"
            with lock(options.prepared, purpose, f"the vertices of {subset}"):
                if options.links_to_clean:
                    counts.append(link_to_clean(options, category))
                else:
                    counts.append(annotate_category(options, category, pool))
    images = console.count(sum(count.images for count in counts), "image")
    if options.links_to_clean:
        verb = "linked to the clean set"
    else:
        verb = f"annotated, {sum(count.new for count in counts):,} of them now"
    print(f"{options.mesh_d} {options.level}".strip() + f": vertices of {images} {verb}")


def annotate_category(options: VertexOptions, category: str, pool: WorkerPool) -> AnnotatedCount:
    """Annotate one category with the cuboids of the raw set. The caller holds the lock."""
    subset = category + options.level
    prepared = PreparedSet(options.prepared)
    folder = prepared.vertex_annotation(options.mesh_d, subset, "x").parent
    # Since the lock is held, whatever is half-written comes from a run that was killed.
    remove_parts(folder)
    raw = RawPascal3D(options.raw, cuboid_root=options.cuboids)
    paths = raw.cuboids(options.mesh_d, category)
    meshes = tuple(read_off(path) for path in paths)
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    # With a clean set at hand, and no link to it, its occluders are subtracted.
    subtract = options.clean is not None
    return annotate_subset(MeshedSubset(prepared, options.mesh_d, subset, meshes, subtract), pool)


def annotate_subset(subset: MeshedSubset, pool: WorkerPool) -> AnnotatedCount:
    """Annotate the images of a subset, and write its lists."""
    names = prepared_names(subset.prepared, subset.name)
    # Is there room for them?
    most_vertices = max(len(mesh.vertices) for mesh in subset.meshes)
    require_disk(
        subset.prepared.root,
        len(names) * BYTES_PER_VERTEX * most_vertices,
        f"the vertex annotations of {subset.name}",
        "make space",
    )
    description = f"{subset.name} vertices {subset.mesh_d}"
    is_new = in_pool(pool, partial(annotate_image, subset), names, description)
    # Lists come last, so that they never name an image without vertices.
    write_vertex_lists(subset.prepared, subset.mesh_d, subset.name, set(names))
    return AnnotatedCount(len(names), sum(is_new))


def annotate_image(subset: MeshedSubset, name: str) -> bool:
    """Write the vertex annotation of one image; returns whether it is new."""
    target = subset.prepared.vertex_annotation(subset.mesh_d, subset.name, name)
    if target.is_file() and not _is_outdated(subset, name, target):
        return False
    annotation = load_annotation(subset.prepared.annotation(subset.name, name))
    # A single cuboid stands for all CAD models.
    index = 1 if subset.mesh_d == "single" else annotation.cad_index
    # An index of 0 would silently pick the last mesh.
    if not 1 <= index <= len(subset.meshes):
        raise ValueError(
            f"{annotation.name}: cad_index {index}, but there are {len(subset.meshes)} meshes"
        )
    mesh = subset.meshes[index - 1]
    # Where the vertices fall, and which of them are seen.
    points, seen = annotation.vertices_in_crop(mesh)
    if subset.subtract:
        seen &= annotation.uncovered_vertices(mesh)
    # All that is known of the image, with vertices in the place of key points.
    values = {field.name: getattr(annotation, field.name) for field in fields(annotation)}
    of_vertices = {
        "cropped_kp_list": points,
        "visible": seen,
        "cad_index": index,
        "kp_weights": facing_weights(mesh, annotation.pose.centre),
        "occluder_subtracted": 1 if subset.subtract else None,
    }
    save_annotation(target, VertexAnnotation(**values | of_vertices))
    return True


def _is_outdated(subset: MeshedSubset, name: str, target: Path) -> bool:
    """Whether a vertex annotation is of another kind than the one wanted."""
    if subset.subtract and not _is_subtracted(target):
        return True
    # What another program found belongs to crops of its own.
    crop = subset.prepared.annotation(subset.name, name)
    return is_of_others(target) and not is_of_others(crop)


def _is_subtracted(path: Path) -> bool:
    """Whether a vertex annotation says that what an occluder covers is hidden."""
    return "occluder_subtracted" in load_npz(path, [], only=("occluder_subtracted",))


def link_to_clean(options: VertexOptions, category: str) -> AnnotatedCount:
    """Link the vertex annotations of occluded images to those of the clean ones.

    They are the same, since visibility ignores occluders (reference). The caller holds the lock.
    """
    subset = category + options.level
    clean = PreparedSet(options.clean)
    occluded = PreparedSet(options.prepared)
    remove_parts(occluded.vertex_annotation(options.mesh_d, subset, "x").parent)
    linked = set()
    for name in prepared_names(occluded, subset):
        source = clean.vertex_annotation(options.mesh_d, category, name)
        # An image without vertices in the clean set is left out of the lists here, too.
        if source.is_file():
            _link(source, occluded.vertex_annotation(options.mesh_d, subset, name))
            linked.add(name)
    write_vertex_lists(occluded, options.mesh_d, subset, linked)
    return AnnotatedCount(len(linked), 0)


def _link(source: Path, target: Path) -> None:
    """Let two names be one file, or copy it where that cannot be."""
    if target.is_file() and os.path.samefile(source, target):
        return
    # A hard link takes no space, and stays valid when the clean set is deleted.
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another file system
            shutil.copyfile(source, temporary)


def write_vertex_lists(
    prepared: PreparedSet, mesh_d: str, subset: str, names: Collection[str]
) -> None:
    """Lists of the images that training and inference read.

    One for single, those of `lists/` for multi; of their images those in `names`.
    """
    lists = prepared.listed(subset)
    if mesh_d == "single":
        every_name = {name for group in lists.values() for name in group}
        # All images are of the one mesh.
        lists = {"mesh01.txt": sorted(every_name)}
    folder = prepared.vertex_lists(mesh_d, subset)
    # Empty lists are written as well, since training demands one for every mesh.
    for file_name, group in lists.items():
        write_list(folder / file_name, [name for name in group if name in names])
