"""Where everything lies. Every path of the project is made here."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from neural_mesh.digests import short_digest
from neural_mesh.settings import ALL_AZIMUTHS, Azimuths
from neural_mesh.storage.files import can_be_written, plain_name, read_json, read_text, write_text
from neural_mesh.storage.pictures import PHOTOGRAPH_SUFFIXES

IMAGE_ENDINGS = {"imagenet": "JPEG", "pascal": "jpg"}  # by part of PASCAL3D+
PICTURE_SUFFIXES = {*PHOTOGRAPH_SUFFIXES, ".jpe", ".jfif"}
CATEGORY_OF_PART = re.compile(r"(.+)_(?:imagenet|pascal)(?:_(?:train|val)\.(?:txt|pkl))?")


# ---- what others offer ----


@dataclass(frozen=True)
class RawPascal3D:
    """PASCAL3D+_release1.1.

    parts: `imagenet` (all that the paper uses), `pascal` (the images from PASCAL VOC 2012).
    cuboid_root: where cuboids lie that have no place in `root`, since it cannot be written.
    """

    root: Path
    parts: tuple[str, ...] = ("imagenet",)
    cuboid_root: Path | None = None

    def folder(self, name: str) -> Path:
        """One of Annotations, CAD, Image_sets, Image_subsets, Images and PASCAL.

        It may lie in a folder of its own name, or all of them in one of the root's: file managers
        unpack like that.
        """
        return _unpacked(self.root, name)

    def image(self, category: str, name: str) -> Path:
        """The picture of an image, whatever ending it has; with the usual one if there is none."""
        folders = [self._of_part("Images", category, part) for part in self.parts]
        endings = [IMAGE_ENDINGS[part] for part in self.parts]
        images = zip(folders, endings, strict=True)
        return first_file([folder / f"{name}.{ending}" for folder, ending in images])

    def annotation(self, category: str, name: str) -> Path:
        folders = [self._of_part("Annotations", category, part) for part in self.parts]
        return first_file([folder / f"{name}.mat" for folder in folders])

    def _of_part(self, name: str, category: str, part: str) -> Path:
        return _unpacked(self.folder(name), f"{category}_{part}")

    def categories(self) -> set[str]:
        """What there are images, annotations, lists or CAD models of."""
        parts = [*_names_in(self.folder("Images")), *_names_in(self.folder("Annotations"))]
        parts += _names_in(self.folder("Image_sets")) + _names_in(self.folder("Image_subsets"))
        found = {CATEGORY_OF_PART.fullmatch(name) for name in parts}
        models = [name for name in _names_in(self.folder("CAD")) if "." not in name]
        return {match.group(1) for match in found if match} | set(models)

    def voc_image_set(self, category: str, split: str) -> Path:
        """split: train, val."""
        main = self.folder("PASCAL") / "VOCdevkit/VOC2012/ImageSets/Main"
        return main / f"{category}_{split}.txt"

    def subset_pickle(self, category: str, split: str) -> Path:
        return self.folder("Image_subsets") / f"{category}_imagenet_{split}.pkl"

    def image_set(self, category: str, split: str) -> Path:
        """split: train, val or subtype."""
        return self.folder("Image_sets") / f"{category}_imagenet_{split}.txt"

    def cad_folder(self, category: str) -> Path:
        return _unpacked(self.folder("CAD"), category)

    def cads(self, category: str) -> list[Path]:
        """The CAD models 01.off, 02.off, ...; FileNotFoundError when there is none."""
        return numbered_meshes(self.cad_folder(category))

    def cuboid_folder(self, mesh_d: str, category: str, overwrite: bool = False) -> Path:
        """Where the cuboids of a category are, or will be made.

        overwrite: those that are there are made again.
        """
        own = self.root / f"CAD_{mesh_d}" / category
        if self.cuboid_root is None:
            return own
        other = self.cuboid_root / f"CAD_{mesh_d}" / category
        # Cuboids that others made in a share serve, too.
        is_of_use = can_be_written(own) or (own.is_dir() and not overwrite)
        return own if is_of_use and not other.is_dir() else other

    def cuboid_source(self, mesh_d: str, category: str, overwrite: bool = False) -> Path:
        """What the cuboids were made from, and how.

        Beside their folder, since the reference counts the files in it.
        """
        return self.cuboid_folder(mesh_d, category, overwrite).with_name(f"{category}.json")

    def cuboids(self, mesh_d: str, category: str) -> list[Path]:
        """The cuboid meshes of a category; FileNotFoundError when there is none."""
        return numbered_meshes(self.cuboid_folder(mesh_d, category))


def numbered_meshes(folder: Path) -> list[Path]:
    """NN.off in a folder, 01 upwards without a gap; other files are ignored.

    Raises FileNotFoundError when there is none, ValueError when a number is missing.
    """
    folder = Path(folder)
    files = [folder / name for name in _names_in(folder) if name.lower().endswith(".off")]
    meshes = [path for path in files if path.stem.isdecimal() and len(path.stem) <= 3]
    meshes.sort(key=lambda path: (int(path.stem), path.name))
    if not meshes:
        raise FileNotFoundError(
            f"no meshes: {folder} holds no 01.off, 02.off, ...; run PrepareData.sh"
        )
    for number, path in enumerate(meshes, start=1):
        if 1 <= int(path.stem) < number:
            raise ValueError(f"meshes in {folder} have a number twice: {path.name} is one of them")
        if int(path.stem) != number:
            raise ValueError(
                f"meshes in {folder} are numbered with a gap: {number:02d}.off is missing"
            )
    return meshes


@dataclass(frozen=True)
class RawOccluded:
    """OccludedPASCAL3D: original-size images with occluders, one folder per category and level."""

    root: Path

    def folder(self, category: str, level: str) -> Path:
        """The pictures of a category at a level; each level is an archive of its own."""
        return self._of_level("images", category, level)

    def _of_level(self, kind: str, category: str, level: str) -> Path:
        # As `RawPascal3D.folder`.
        in_archive = self.root / f"OccludedPASCAL3D_{level}" / kind / f"{category}{level}"
        usual = _unpacked(_unpacked(self.root, kind), f"{category}{level}")
        return in_archive if in_archive.is_dir() and not usual.is_dir() else usual

    def image(self, category: str, level: str, name: str) -> Path:
        """The picture of an image, whatever ending it has; with the usual one if there is none."""
        return first_file([self.folder(category, level) / f"{name}.JPEG"])

    def annotation(self, category: str, level: str, name: str) -> Path:
        return self._of_level("annotations", category, level) / f"{name}.npz"

    def source(self, category: str, level: str) -> Path:
        """How make_occluded.py made the pictures; absent from the published sets."""
        return self.root / "lists" / f"{category}{level}.json"

    def names(self, category: str, level: str) -> list[str]:
        """Of the pictures that there are, whatever their endings."""
        files = [Path(name) for name in _names_in(self.folder(category, level))]
        pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
        return sorted({file.stem for file in pictures if not file.name.startswith(".")})


# ---- looking for it ----


def _unpacked(root: Path, name: str) -> Path:
    """The folder `name` of a root; where it was unpacked one level too deep, that one."""
    usual = root / name
    if (usual / name).is_dir():
        return usual / name
    beside = root / root.name / name
    if root.name and beside.is_dir() and not usual.is_dir():
        return beside / name if (beside / name).is_dir() else beside
    return usual


def _names_in(folder: Path) -> list[str]:
    """The names in a folder; none where there is no such folder."""
    return os.listdir(folder) if folder.is_dir() else []


def first_file(paths: list[Path]) -> Path:
    """The first of the paths that is a file; then one with another ending; else the first path."""
    for path in paths:
        if path.is_file():
            return path
    for path in paths:
        if path.parent.is_dir():
            others = _by_stem(path.parent, path.suffix == ".mat", path.parent.stat().st_mtime_ns)
            if path.stem in others:
                return path.parent / others[path.stem]
    return paths[0]


@lru_cache(maxsize=16)
def _by_stem(folder: Path, annotations: bool, changed_ns: int) -> dict[str, str]:
    """The pictures of a folder, or its annotations, by their names without endings.

    changed_ns: when the folder was changed, so that what is remembered is not too old.
    """
    suffixes = {".mat"} if annotations else PICTURE_SUFFIXES
    files = [Path(name) for name in _names_in(folder)]
    files = [file for file in files if file.suffix.lower() in suffixes]
    # Of several a JPEG, the last one, is taken.
    files.sort(key=lambda file: (file.suffix.lower() in (".jpg", ".jpeg"), file.name))
    return {file.stem: file.name for file in files}


# ---- what the scripts prepare of it ----


@dataclass(frozen=True)
class PreparedSet:
    """A training or test set as the scripts prepare it.

    `subset` of its methods is the category, plus the occlusion level if any. azimuths: pattern such
    as TFFTTFFT of the azimuths that are meant (see settings.Azimuths); empty: all.
    """

    root: Path
    azimuths: str = ""

    def image(self, subset: str, name: str) -> Path:
        return self.root / "images" / subset / f"{name}.JPEG"

    def annotation(self, subset: str, name: str) -> Path:
        return self.root / "annotations" / subset / f"{name}.npz"

    def vertex_annotation(self, mesh_d: str, subset: str, name: str) -> Path:
        return self.root / f"annotations3D_{mesh_d}" / subset / f"{name}.npz"

    def lists(self, subset: str) -> Path:
        return self.root / "lists" / subset

    def source(self, subset: str) -> Path:
        """What the subset was prepared from, and how."""
        return self.lists(subset) / "SOURCE.json"

    def made_from(self, subset: str) -> dict:
        """What SOURCE.json says; empty when there is none, ValueError when it cannot be read."""
        path = self.source(subset)
        return read_json(path) if path.is_file() else {}

    def fingerprint(self, subset: str) -> str:
        """A short digest of what the subset was prepared from, how, and which azimuths are meant.

        Empty when it is unknown.
        """
        path = self.source(subset)
        if not path.is_file():
            return ""
        return short_digest(path.read_bytes() + self.azimuths.encode())

    def decoded(self, subset: str) -> Path:
        """Crops decoded by a training, if it keeps them on disk."""
        return self.root / "decoded" / subset

    def skipped(self, subset: str) -> Path:
        """Which images were left out, and why."""
        return self.lists(subset) / "SKIPPED.txt"

    def listed(self, subset: str) -> dict[str, list[str]]:
        """Image names per list file of `lists/`, by file name."""
        paths = sorted(self.lists(subset).glob("*.txt"))
        skipped = self.skipped(subset)
        return {path.name: read_list(path) for path in paths if path != skipped}

    def subsets(self) -> set[str]:
        """What there are lists of."""
        return set(_names_in(self.root / "lists"))

    def vertex_lists(self, mesh_d: str, subset: str) -> Path:
        """Folder of the lists of images by mesh."""
        suffix = f"_azum_{self.azimuths}" if self.azimuths else ""
        return self.root / f"lists3D_{mesh_d}{suffix}" / subset

    def image_names(self, mesh_d: str, subset: str) -> set[str]:
        """Names of all images that are meant."""
        if not self.azimuths:
            return {name for names in self.listed(subset).values() for name in names}
        paths = self.vertex_lists(mesh_d, subset).glob("*.txt")
        return {name for path in paths for name in read_list(path)}

    def remove(self, subset: str) -> None:
        """Delete everything of a subset, vertex annotations of all meshes included."""
        for folder in sorted(self.root.glob(f"*/{subset}")):
            shutil.rmtree(folder)

    def mesh_list(self, mesh_d: str, subset: str, mesh: int) -> Path:
        """Names of the images of mesh 1, 2, ... (single: all)."""
        return self.vertex_lists(mesh_d, subset) / f"mesh{mesh:02d}.txt"


# ---- what is learned and found ----


@dataclass(frozen=True)
class Experiment:
    """Results below EXPROOT, for one kind of mesh and, if any, one choice of azimuths."""

    root: Path
    mesh_d: str
    azimuths: Azimuths = ALL_AZIMUTHS

    def _folder(self, kind: str) -> Path:
        return self.root / f"{kind}_{self.mesh_d}{self.azimuths.result_suffix}"

    @property
    def network_folder(self) -> Path:
        return self.root / f"NeMo_{self.mesh_d}{self.azimuths.network_suffix}"

    def features(self, category: str, level: str = "") -> Path:
        """Feature maps, with the reference's names."""
        name = f"saved_feature_{category}_{self.mesh_d}.npz"
        folder = self._folder("Features")
        if level:
            return folder / f"{category}_occ" / f"{level}_{name}"
        return folder / category / name

    def poses(self, category: str, level: str = "") -> Path:
        return self._folder("Poses") / f"{category}{level}.npz"

    def accuracy_folder(self, level: str = "") -> Path:
        return self._folder("Accuracy") / (level or "clean")

    def report_folder(self, level: str = "") -> Path:
        return self._folder("Report") / (level or "clean")

    @property
    def report_page(self) -> Path:
        """The page of all levels, one for each choice of azimuths."""
        return self._folder("Report") / "index.html"

    def timing(self, stage: str, subset: str) -> Path:
        """How long a stage took for a category, a level, or a category at a level."""
        # A network serves all values of AZIMUTH_TEST.
        suffix = self.azimuths.network_suffix if stage == "train" else self.azimuths.result_suffix
        return self.root / f"Timings_{self.mesh_d}{suffix}" / f"{stage}_{subset}.json"


# ---- names ----


def checkpoint_path(folder: Path, file_name: str, category: str) -> Path:
    """LOAD_FILE_NAME with its %s replaced by the category."""
    return Path(folder) / file_name.replace("%s", category)


def without_ending(name: str) -> str:
    """A file's name without the ending of a picture, if it has one; in any case."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in PICTURE_SUFFIXES else name


def read_list(path: Path) -> list[str]:
    """Image names of a list file, one per line, without endings of pictures and blank lines.

    Raises ValueError, naming the file, when a line is not a plain name: names become parts of
    paths.
    """
    names = [without_ending(line.strip()) for line in read_text(path).splitlines()]
    return [plain_name(name, path) for name in names if name]


def write_list(path: Path, names: Iterable[str]) -> None:
    """Write image names as `read_list` reads them; an equal file is left untouched."""
    write_text(path, "".join(f"{name}.JPEG\n" for name in names))
