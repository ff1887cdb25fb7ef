"""Annotations and meshes -> where every vertex falls in the crop and whether it is seen, and the lists that training reads."""

from __future__ import annotations

import argparse
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.visibility import facing_weights
from neural_mesh.machine import arguments, console
from neural_mesh.machine.resources import require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.settings import MESH_DIMENSIONS
from neural_mesh.storage.files import atomic_path, lock, remove_parts, write_text
from neural_mesh.storage.layout import PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import load_npz
from neural_mesh.storage.records import VertexAnnotation, load_annotation, save_annotation

BYTES_PER_VERTEX = 40  # of an annotation: position, visibility, weight


@dataclass(frozen=True)
class Job:
    """One subset and the meshes that it is annotated with."""

    prepared: PreparedSet
    mesh_d: str
    subset: str
    meshes: tuple[Mesh, ...]
    subtract: bool = False  # whether vertices behind an occluder count as hidden


def annotate_image(job: Job, name: str) -> bool:
    """Write the vertex annotation of one image; returns whether it is new."""
    target = job.prepared.vertex_annotation(job.mesh_d, job.subset, name)
    if target.is_file() and (
        not job.subtract
        or "occluder_subtracted" in load_npz(target, [], only=("occluder_subtracted",))
    ):
        return False
    annotation = load_annotation(job.prepared.annotation(job.subset, name))
    index = 1 if job.mesh_d == "single" else annotation.cad_index
    if not 1 <= index <= len(job.meshes):
        raise ValueError(
            f"{annotation.name}: cad_index {index}, but there are {len(job.meshes)} meshes"
        )
    mesh = job.meshes[index - 1]
    points, seen = annotation.vertices_in_crop(mesh)
    if job.subtract:
        seen &= annotation.uncovered_vertices(mesh)
    values = {field.name: getattr(annotation, field.name) for field in fields(annotation)}
    vertex_annotation = VertexAnnotation(
        **values,
        kp_weights=facing_weights(mesh, annotation.pose.centre),
        occluder_subtracted=1 if job.subtract else None,
    )
    save_annotation(
        target, replace(vertex_annotation, cropped_kp_list=points, visible=seen, cad_index=index)
    )
    return True


def prepared_names(prepared: PreparedSet, subset: str) -> list[str]:
    """Names that have an image and an annotation, sorted."""
    images = {path.stem for path in (prepared.root / "images" / subset).glob("*.JPEG")}
    return sorted(
        path.stem
        for path in (prepared.root / "annotations" / subset).glob("*.npz")
        if path.stem in images
    )


def annotate_category(job: Job, pool: ProcessPoolExecutor) -> tuple[int, int]:
    """Annotate one category; returns (images, of them new)."""
    names = prepared_names(job.prepared, job.subset)
    require_disk(
        job.prepared.root,
        len(names) * BYTES_PER_VERTEX * max(len(mesh.vertices) for mesh in job.meshes),
        f"the vertex annotations of {job.subset}",
        "make space",
    )
    new = in_pool(
        pool, partial(annotate_image, job), names, f"{job.subset} vertices {job.mesh_d}"
    )
    write_vertex_lists(job.prepared, job.mesh_d, job.subset, set(names))
    return len(names), sum(new)


def write_vertex_lists(prepared: PreparedSet, mesh_d: str, subset: str, names: set[str]) -> None:
    """Lists of the images that training and inference read: one for single, those of `lists/` for multi."""
    lists = prepared.listed(subset)
    if mesh_d == "single":
        lists = {"mesh01.txt": sorted({name for group in lists.values() for name in group})}
    for file_name, group in lists.items():
        text = "".join(f"{name}.JPEG\n" for name in group if name in names)
        write_text(prepared.vertex_lists(mesh_d, subset) / file_name, text)


def link_occluded(
    clean: PreparedSet, occluded: PreparedSet, mesh_d: str, category: str, level: str
) -> int:
    """Vertex annotations of occluded images are those of the clean ones (reference: visibility ignores occluders)."""
    subset = category + level
    names = prepared_names(occluded, subset)
    linked = set()
    for name in names:
        source, target = (
            clean.vertex_annotation(mesh_d, category, name),
            occluded.vertex_annotation(mesh_d, subset, name),
        )
        if not source.is_file():
            continue
        linked.add(name)
        if target.is_file() and os.path.samefile(source, target):
            continue
        with atomic_path(target) as temporary:
            try:
                os.link(source, temporary)
            except OSError:  # another file system
                shutil.copyfile(source, temporary)
    write_vertex_lists(occluded, mesh_d, subset, linked)
    return len(linked)


def main() -> None:
    """Annotate a prepared set; an occluded one is linked to the clean one unless its occluders are to be subtracted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--raw",
        type=Path,
        required=True,
        help="PASCAL3D+_release1.1, with CAD_single and CAD_multi",
    )
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepared set")
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    parser.add_argument(
        "--clean", type=Path, help="the clean test set, when --prepared is the occluded one"
    )
    parser.add_argument("--level", type=arguments.level, default="", help="occlusion level; with --clean")
    parser.add_argument(
        "--occluded-visibility",
        choices=("clean", "subtract"),
        default="clean",
        help="clean: as if there were no occluder (reference); subtract: what it covers is hidden",
    )
    parser.add_argument(
        "--overwrite",
        type=arguments.boolean,
        default=False,
        help="delete what is there of these categories first",
    )
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    arguments.add_categories(parser)
    args = parser.parse_args()
    prepared = PreparedSet(
        console.require_folder(args.prepared, "prepared set", "run prepare_images.py first")
    )
    linked, images, new = args.clean is not None and args.occluded_visibility == "clean", 0, 0
    with WorkerPool(worker_count(args.workers)) as pool:
        for category in args.categories:
            subset, folder = (
                category + args.level,
                prepared.vertex_annotation(args.mesh_d, category + args.level, "x").parent,
            )
            with lock(
                args.prepared, f"annotate-{args.mesh_d}-{subset}", f"the vertices of {subset}"
            ):
                remove_parts(folder)
                if linked:
                    images += link_occluded(
                        PreparedSet(args.clean), prepared, args.mesh_d, category, args.level
                    )
                    continue
                meshes = tuple(
                    read_off(path) for path in RawPascal3D(args.raw).cuboids(args.mesh_d, category)
                )
                if args.overwrite:
                    shutil.rmtree(folder, ignore_errors=True)
                done = annotate_category(
                    Job(prepared, args.mesh_d, subset, meshes, subtract=args.clean is not None),
                    pool,
                )
                images, new = images + done[0], new + done[1]
    verb = "linked to the clean set" if linked else f"annotated, {new:,} of them now"
    print(
        f"{args.mesh_d}{' ' + args.level if args.level else ''}: vertices of {console.count(images, 'image')} {verb}"
    )


if __name__ == "__main__":
    console.run_main(main)
