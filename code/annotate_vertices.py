"""Annotations and meshes -> where every vertex falls in the crop and whether it is seen, and the lists that training reads."""

from __future__ import annotations

import argparse
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo import cli
from nemo.boxes import crop_geometry
from nemo.cameras import camera_centre, project
from nemo.files import atomic_path, write_text
from nemo.layout import MESH_DIMENSIONS, PreparedSet, RawPascal3D, read_list
from nemo.meshes import Mesh, read_off
from nemo.records import Annotation, VertexAnnotation, load_annotation, save_annotation
from nemo.visibility import facing_weights, visible_vertices


@dataclass(frozen=True)
class Job:
    """One subset and the meshes that it is annotated with."""

    prepared: PreparedSet
    mesh_d: str
    category: str
    meshes: tuple[Mesh, ...]
    overwrite: bool


def vertices_in_crop(annotation: Annotation, mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Positions of the vertices in the crop as (row, col) [V, 2], clamped into it, and which are seen [V].

    A vertex is seen when the object itself does not hide it and it falls into the annotated box. GEOMETRY=paper
    truncates the projection to whole pixels and maps it from box to box, as the reference.
    """
    pose = annotation.azimuth, annotation.elevation, annotation.theta, annotation.distance
    pixels_rc = project(mesh.vertices, *pose, annotation.principal, annotation.focal * annotation.viewport)[:, ::-1]
    seen = visible_vertices(mesh, camera_centre(annotation.azimuth, annotation.elevation, annotation.distance))
    geometry = crop_geometry(
        annotation.geometry, (annotation.height, annotation.width), annotation.crop_hw,
        annotation.bbox, annotation.principal, annotation.distance,
    )  # fmt: skip
    if annotation.geometry == "paper":
        pixels_rc = np.trunc(pixels_rc)
    low, high = annotation.box_ori[[0, 2]], annotation.box_ori[[1, 3]]
    seen &= ((pixels_rc >= low) & (pixels_rc < high)).all(1)
    crop_rc = geometry.map_points(pixels_rc)
    last = np.array(annotation.crop_hw) - 1
    if annotation.geometry == "exact":
        seen &= ((crop_rc >= 0) & (crop_rc < last + 1)).all(1)
    return np.clip(crop_rc, 0, last), seen


def annotate_image(job: Job, name: str) -> bool:
    """Write the vertex annotation of one image; returns whether it is new."""
    target = job.prepared.vertex_annotation(job.mesh_d, job.category, name)
    if target.is_file() and not job.overwrite:
        return False
    annotation = load_annotation(job.prepared.annotation(job.category, name))
    index = 1 if job.mesh_d == "single" else annotation.cad_index
    if not 1 <= index <= len(job.meshes):
        raise ValueError(f"{annotation.name}: cad_index {index}, but there are {len(job.meshes)} meshes")
    mesh = job.meshes[index - 1]
    points, seen = vertices_in_crop(annotation, mesh)
    centre = camera_centre(annotation.azimuth, annotation.elevation, annotation.distance)
    values = {field.name: getattr(annotation, field.name) for field in fields(annotation)}
    vertex_annotation = VertexAnnotation(**values, kp_weights=facing_weights(mesh, centre))
    save_annotation(target, replace(vertex_annotation, cropped_kp_list=points, visible=seen, cad_index=index))
    return True


def prepared_names(prepared: PreparedSet, subset: str) -> list[str]:
    """Names that have an image and an annotation, sorted."""
    images = {path.stem for path in (prepared.root / "images" / subset).glob("*.JPEG")}
    return sorted(path.stem for path in (prepared.root / "annotations" / subset).glob("*.npz") if path.stem in images)


def annotate_category(job: Job, pool: ProcessPoolExecutor) -> tuple[int, int]:
    """Annotate one category; returns (images, of them new)."""
    names = prepared_names(job.prepared, job.category)
    new = list(
        cli.progress(
            pool.map(partial(annotate_image, job), names, chunksize=16),
            f"{job.category} vertices {job.mesh_d}",
            total=len(names),
        )
    )
    write_vertex_lists(job.prepared, job.mesh_d, job.category, set(names))
    return len(names), sum(new)


def write_vertex_lists(prepared: PreparedSet, mesh_d: str, subset: str, names: set[str]) -> None:
    """Lists of the images that training and inference read: one for single, those of `lists/` for multi."""
    sources = sorted(prepared.lists(subset).glob("*.txt"))
    lists = {path.name: read_list(path) for path in sources if path.name != "SKIPPED.txt"}
    if mesh_d == "single":
        lists = {"mesh01.txt": sorted({name for group in lists.values() for name in group})}
    for file_name, group in lists.items():
        text = "".join(f"{name}.JPEG\n" for name in group if name in names)
        write_text(prepared.vertex_lists(mesh_d, subset) / file_name, text)


def link_occluded(clean: PreparedSet, occluded: PreparedSet, mesh_d: str, category: str, level: str) -> int:
    """Vertex annotations of occluded images are those of the clean ones (reference: visibility ignores occluders)."""
    subset = category + level
    names = prepared_names(occluded, subset)
    linked = set()
    for name in names:
        source, target = clean.vertex_annotation(mesh_d, category, name), occluded.vertex_annotation(mesh_d, subset, name)
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
    """Annotate a prepared set, or link an occluded set to the clean one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1, with CAD_single and CAD_multi")
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepared set")
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    parser.add_argument("--clean", type=Path, help="the clean test set, when --prepared is the occluded one")
    parser.add_argument("--level", default="", help="occlusion level; with --clean")
    parser.add_argument("--overwrite", type=cli.boolean, default=False)
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 = all cores")
    cli.add_categories(parser)
    args = parser.parse_args()
    prepared = PreparedSet(cli.require_folder(args.prepared, "prepared set", "run prepare_images.py first"))
    images = new = 0
    with ProcessPoolExecutor(cli.worker_count(args.workers)) as pool:
        for category in args.categories:
            if args.clean is not None:
                images += link_occluded(PreparedSet(args.clean), prepared, args.mesh_d, category, args.level)
                continue
            meshes = tuple(read_off(path) for path in RawPascal3D(args.raw).cuboids(args.mesh_d, category))
            done = annotate_category(Job(prepared, args.mesh_d, category, meshes, args.overwrite), pool)
            images, new = images + done[0], new + done[1]
    verb = "linked to the clean set" if args.clean is not None else f"annotated, {new:,} of them now"
    print(f"{args.mesh_d}{' ' + args.level if args.level else ''}: vertices of {cli.count(images, 'image')} {verb}")


if __name__ == "__main__":
    cli.run_main(main)
