"""Boxes in tables as people keep them: separators, labels, headings, names; and what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neural_mesh.photographs.box_files import read_boxes
from neural_mesh.photographs.jobs import collect_jobs

A = {"a.jpg": [(20.0, 20.5, 280.0, 150.0)]}
READ = {
    "commas": "a.jpg,20,20.5,280,150\n",
    "semicolons": "a.jpg;20;20.5;280;150\r\n",
    "decimal commas": "a.jpg;20,0;20,5;280;150\n",
    "tabs": "a.jpg\t20\t20,5\t280\t150\n",
    "bars": "a.jpg | 20 | 20.5 | 280 | 150\n",
    "quoted decimal commas": 'a.jpg,20,"20,5",280,150\n',
    "a label": "a.jpg,20,20.5,280,150,car\n",
    "a label before": "a.jpg,car,20,20.5,280,150\n",
    "a label and a score": "a.jpg,20,20.5,280,150,car,0.9\n",
    "an empty cell at the end": "a.jpg,20,20.5,280,150,\n",
    "a blank line first": "\n  \na.jpg,20,20.5,280,150\n",
    "a heading": "file,x0,y0,x1,y1\na.jpg,20,20.5,280,150\n",
    "a heading with semicolons": "Datei;links;oben;rechts;unten\na.jpg;20;20,5;280;150\n",
    "a heading in another order": "xmin,xmax,ymin,ymax,file\n20,280,20.5,150,a.jpg\n",
    "a heading with sizes of the picture": (
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,300,200,car,20,20.5,280,150\n"
    ),
    "the separator in a line": "sep=;\na.jpg;20;20.5;280;150\n",
    "a byte order mark": "\ufeffa.jpg,20,20.5,280,150\n",
}
REFUSED = {
    "three numbers": ("a.jpg,1,2,3\n", "row 1, a.jpg, has 1, 2, 3; expected four numbers"),
    "five numbers": ("a.jpg,1,20,20,280,150\n", "row 1, a.jpg, has 1, 20"),
    "decimal commas between commas": ("a.jpg,20,5,20,5,280,5,150,5\n", "row 1, a.jpg"),
    "thousands": ('a.jpg,20,20,"1,280",150\n', "row 1, a.jpg"),
    "points and commas": ("a.jpg;1.234,5;2;3000;4\n", "row 1, a.jpg, has 1.234,5, 2"),
    "units": ("a.jpg,20 px,20 px,280 px,150 px\n", "row 1, a.jpg, has 20 px"),
    "not finite": ("a.jpg,nan,20,280,150\n", "row 1, a.jpg"),
    "a second heading": ("file,a,b,c,d\na.jpg,1,2,3,4\nfile,a,b,c,d\n", "row 3, file"),
    "blanks between cells": ("a.jpg 20 20 280 150\nb.jpg 1 2 3 4\n", "row 1, a.jpg 20 20 280"),
    "a title": ("Boxes\nfile,x0,y0,x1,y1\na.jpg,1,2,3,4\n", "row 1, Boxes, has nothing"),
    "another separator below": ("a.jpg,1,2,3,4\nb.jpg;1;2;3;4\n", "row 2, b.jpg;1;2;3;4"),
    "no name": (",20,20,280,150\n", "row 1, without a name"),
    "sizes": ("file,x,y,w,h\na.jpg,20,20,260,130\n", "boxes are two corners"),
    "empty": ("", "no box in it"),
    "a heading alone": ("file,x0,y0,x1,y1\n", "no box in it"),
}


def written(folder: Path, text: str, name: str = "b.csv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize("kind", READ)
def test_tables_of_all_kinds_are_read(tmp_path, kind):
    assert read_boxes(written(tmp_path, READ[kind])).by_name == A


@pytest.mark.parametrize("kind", REFUSED)
def test_a_row_that_is_no_box_is_refused_by_its_number(tmp_path, kind):
    text, reason = REFUSED[kind]
    with pytest.raises(ValueError, match="b.csv: ") as caught:
        read_boxes(written(tmp_path, text))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_boxes_and_photographs_without_one(tmp_path):
    text = "a.jpg,1,2,3,4\n\nb.jpg, 5,6,7,8.5\na.jpg,2,2,9,9\nc.jpg,,,,\n"
    boxes = read_boxes(written(tmp_path, text))
    assert boxes.by_name == {"a.jpg": [(1, 2, 3, 4), (2, 2, 9, 9)], "b.jpg": [(5, 6, 7, 8.5)]}
    assert boxes.without == ["c.jpg"]
    assert boxes.total == 3
    text = '{"a": [1, 2, 3, 4], "b": [[1, 2, 3, 4], [5, 6, 7, 8]], "c": []}'
    boxes = read_boxes(written(tmp_path, text, "b.json"))
    assert boxes.by_name == {"a": [(1, 2, 3, 4)], "b": [(1, 2, 3, 4), (5, 6, 7, 8)]}
    assert boxes.without == ["c"]


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", '{"a.jpg": {"x": 1}}', "{", '{"a.jpg": [true, 2, 3, 4]}', '{"a.jpg": 5}', "{}"],
)
def test_json_that_holds_no_boxes_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"b\.json"):
        read_boxes(written(tmp_path, text, "b.json"))


@pytest.mark.parametrize(
    "name, is_known",
    [
        ("below/a.jpg", True),
        ("below\\a.jpg", True),
        ("./below/A.JPG", True),
        ("photos/below/a.jpg", True),
        ("a.jpg", True),  # no other is called so
        ("twice.jpg", False),
        ("caf\u00e9.jpg", True),  # a Mac writes the accent as a letter of its own
        ("na\\xefve.jpg", True),  # as the table of poses writes what is no UTF-8
        ("b.jpg", False),
    ],
)
def test_a_box_finds_its_photograph_however_its_name_is_written(tmp_path, capsys, name, is_known):
    photos = tmp_path / "photos"
    for folder in ("below", "one", "two"):
        (photos / folder).mkdir(parents=True)
    files = ("below/a.jpg", "one/twice.jpg", "two/twice.jpg", "cafe\u0301.jpg")
    for file in (*files, os.fsdecode(b"na\xefve.jpg")):
        (photos / file).touch()
    boxes = read_boxes(written(tmp_path, f"{name},1,2,30,40\n"))
    jobs = collect_jobs([photos], boxes, tmp_path / "out")
    assert sum(len(job.boxes) for job in jobs) == is_known
    said = capsys.readouterr()
    assert f"1 box in {boxes.path}, {int(is_known)} of them in {int(is_known)} phot" in said.out
    assert ("not among the photographs" in said.err) != is_known
