"""What of a folder is a photograph, and what is said of the rest."""

from __future__ import annotations

import os

import pytest

from neural_mesh.photographs.folders import search_folder
from neural_mesh.photographs.jobs import collect_jobs

PICTURES = (
    "p.jpg",
    "q.jfif",
    "r.JPE",
    "s.JPEG",
    "t.Tif",
    "below/u.webp",
    "v.MPO",
    "album.jpg/w.png",
)
OF_MACHINES = (
    ".thumbnails/1.jpg",
    "@eaDir/p.jpg/SYNOPHOTO_THUMB_M.jpg",
    "below/@eaDir/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/._p.jpg",
    "#recycle/old.jpg",
    "$RECYCLE.BIN/old.jpg",
    ".@__thumb/default.jpg",
)


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(paths, out):
    return [job.name for job in collect_jobs(paths, None, out)]


def test_every_usual_ending_in_any_case_is_a_picture_and_thumbnails_are_none(tmp_path, capsys):
    make(tmp_path, *PICTURES, *OF_MACHINES, "._p.jpg", ".hidden.jpg", "a.HEIC", "b.txt", "c")
    assert names_of([tmp_path], tmp_path / "out") == sorted(PICTURES)
    said = capsys.readouterr().err
    assert said == (
        f"note: not looked at in {tmp_path}: 3 other files (1 .heic, 1 .txt, 1 without ending); "
        "1 hidden picture (.hidden.jpg); 7 hidden, thumbnail or result folders (#recycle, ...); "
        "convert pictures of other kinds to JPEG or PNG first\n"
    )
    # What the user names is looked at.
    assert names_of([tmp_path / ".thumbnails"], tmp_path / "out") == ["1.jpg"]
    assert names_of([tmp_path / "a.HEIC"], tmp_path / "out") == ["a.HEIC"]


def test_a_folder_without_pictures_says_what_is_there(tmp_path):
    make(tmp_path, "s.HEIC", "t.heic")
    with pytest.raises(
        ValueError, match=r"no picture in .*, but 2 other files \(2 \.heic\); convert"
    ):
        collect_jobs([tmp_path], None, tmp_path / "out")


def test_pictures_of_results_are_no_photographs_but_those_beside_them_are(tmp_path):
    make(tmp_path, "a.jpg", "overlays/mine.jpg")
    make(tmp_path, "r1/poses.jsonl", "r1/overlays/a.jpg.jpg", "r1/films/a.jpg.gif")
    assert names_of([tmp_path], tmp_path / "r2") == ["a.jpg", "overlays/mine.jpg"]
    # Results beside the photographs.
    assert names_of([tmp_path], tmp_path) == ["a.jpg"]


def test_links_and_folders_that_may_not_be_read_are_told(tmp_path, monkeypatch, capsys):
    make(tmp_path, "in/a.jpg", "in/closed/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    scan = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = search_folder(tmp_path / "in", tmp_path / "out")
    assert list(found.pictures) == ["a.jpg"]
    assert found.left_out() == "1 linked folder (link); 1 unreadable folder (closed)"
