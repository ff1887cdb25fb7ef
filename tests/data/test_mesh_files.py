"""OFF files as programs write them: with colours, comments and more, or refused by name."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from neural_mesh.geometry.meshes import published_cuboid
from neural_mesh.stages.make_cuboids import CuboidOptions, make_cuboids
from neural_mesh.storage.layout import RawPascal3D
from neural_mesh.storage.mesh_files import read_off, read_off_vertices, write_off

SQUARE = "0 0 0\n.3 0 0\n.3 .3 0\n0 .3 0\n"
COLOURED = "OFF\n4 2 0\n" + SQUARE + "3 0 1 2{0}\n3 0 2 3{1}\n"
PLAIN = COLOURED.format("", "")
MESHES = {
    "colours": COLOURED.format(" 255 0 0", " 0 255 0"),
    "colours that look like faces": COLOURED.format(" 3 0 1 2", " 3 0 1 2"),
    "colours on some faces": COLOURED.format("", " 0.1 0.2 0.3 1"),
    "a map of colours": COLOURED.format(" 7", " 8"),
    "comments": "# made\nOFF # here\n# and\n4 2 5 # counts\n" + SQUARE + "3 0 1 2 #a\n\n3 0 2 3",
    "no edges": "OFF\n4 2\n" + SQUARE + "3 0 1 2\n3 0 2 3\n",
    "counts a line": "OFF\n4\n2\n0\n" + SQUARE + "3 0 1 2\n3 0 2 3\n",
    "all on one line": "OFF 4 2 0 " + SQUARE.replace("\n", " ") + "3 0 1 2 3 0 2 3",
    "a long polygon": "OFF\n4 1 0\n" + SQUARE + "4 0 1\n2 3\n",
    "COFF": "COFF\n4 1 0\n" + SQUARE.replace("\n", " 9 9 9 255\n") + "4 0 1 2 3 0 0 0\n",
    "NOFF": "NOFF\n4 1 0\n" + SQUARE.replace("\n", " 0 0 1\n") + "4 0 1 2 3\n",
    "STCNOFF": "STCNOFF\n4 1 0\n" + SQUARE.replace("\n", " 0 0 1 9 9 9 9 0 1\n") + "4 0 1 2 3\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", MESHES.values(), ids=MESHES)
def test_off_files_with_colours_comments_and_more_are_read(tmp_path, text, encoding):
    path = tmp_path / "x.off"
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    mesh = read_off(path)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.vertices.tolist() == [[0, 0, 0], [0.3, 0, 0], [0.3, 0.3, 0], [0, 0.3, 0]]


NO_MESHES = {
    "a binary OFF file is not read": "OFF BINARY\n4 2 0\n",
    "of other than three dimensions (4OFF)": "4OFF\n1 0 0\n0 0 0 1\n",
    "of other than three dimensions (nOFF)": "nOFF\n4\n1 0 0\n0 0 0 1\n",
    "face 1 is cut off": COLOURED.format(" 9 9", "").replace("3 0 2 3", "3 0 2"),
    "face 1 is cut off or has fewer": PLAIN.replace("3 0 2 3", "2 0 2 9"),
    "3 numbers follow the last face": "OFF 4 1 0 " + SQUARE.replace("\n", " ") + "3 0 1 2 9 9 9",
    "could not convert string to float": PLAIN.replace("3 0 2 3", "3 0 b 3"),
}


@pytest.mark.parametrize("complaint", NO_MESHES)
def test_off_files_that_are_not_read_are_refused_by_name(tmp_path, complaint):
    (tmp_path / "x.off").write_text(NO_MESHES[complaint])
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        read_off(tmp_path / "x.off")
    assert "x.off" in str(caught.value)


def test_cuboids_need_the_vertices_of_a_cad_model_alone(tmp_path):
    raw = RawPascal3D(tmp_path)
    model = raw.cad_folder("car") / "01.off"
    write_off(model, published_cuboid("car"))
    make_cuboids(CuboidOptions(tmp_path, "single", ("car",)))
    expected = read_off(raw.cuboid_folder("single", "car") / "01.off").vertices
    shutil.rmtree(tmp_path / "CAD_single")
    lines = model.read_text().splitlines()
    odd = [f"2 0 1 {line}" if line.startswith("3 ") else line for line in lines]
    model.unlink()
    model = model.with_name("1.OFF")
    model.write_text("\n".join(odd))
    with pytest.raises(ValueError, match="face 0"):
        read_off(model)
    assert len(read_off_vertices(model)) == len(published_cuboid("car").vertices)
    make_cuboids(CuboidOptions(tmp_path, "single", ("car",)))
    again = read_off(raw.cuboid_folder("single", "car") / "01.off").vertices
    np.testing.assert_array_equal(again, expected)
