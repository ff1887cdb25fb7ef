"""Photographs of anybody: files of all kinds, arrays of all types, and what is refused."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.photographs import gradient
from neural_mesh.storage.pictures import Photograph, photograph_of, read_photograph

MODES = {"grey": "L", "palette": "P", "cmyk": "CMYK", "rgb": "RGB", "black and white": "1"}
UNUSABLE = {
    "torn.jpg": "broken",
    "text.jpg": "not a picture",
    "empty.png": "is empty",
    "script.jpg": "not a picture of the kinds BMP, GIF, JPEG",
    "tiny.png": "5 x 300 pixels, a pose needs at least 16",
    "huge.png": "make it smaller",
}


def save_kind(path: Path, kind: str) -> np.ndarray:
    """Write the gradient in some mode; returns what should be read."""
    expected = gradient()
    image = Image.fromarray(gradient())
    grey = np.asarray(image.convert("L"))
    if kind == "turned":
        # the camera was held on its side: the stored picture has to be turned clockwise
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(gradient()).copy()).save(path, exif=exif)
    elif kind == "16 bit":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
        expected = np.repeat(grey[..., None], 3, 2)
    elif kind == "32 bit float":
        Image.fromarray((grey / 255).astype(np.float32)).save(path)
        expected = np.repeat(grey[..., None], 3, 2)
    elif kind == "transparent":
        alpha = np.full(expected.shape[:2], 255, np.uint8)
        alpha[:, :30] = 0
        expected[:, :30] = 0
        Image.fromarray(np.dstack([gradient(), alpha])).save(path)
    else:
        image = image.convert(MODES[kind])
        image.save(path)
        expected = np.asarray(image.convert("RGB"))
    return expected


@pytest.mark.parametrize(
    "kind, suffix, tolerance",
    [
        ("rgb", "png", 0),
        ("turned", "jpg", 6),
        ("grey", "png", 0),
        ("16 bit", "png", 1),
        ("32 bit float", "tiff", 1),
        ("transparent", "png", 0),
        ("palette", "png", 0),
        ("cmyk", "jpg", 6),
        ("black and white", "png", 0),
    ],
)
def test_every_kind_of_picture_becomes_upright_rgb(tmp_path, kind, suffix, tolerance):
    expected = save_kind(tmp_path / f"a.{suffix}", kind)
    photograph = read_photograph(tmp_path / f"a.{suffix}")
    assert photograph.pixels.dtype == np.uint8
    assert photograph.pixels.shape == expected.shape
    assert photograph.size_hw == (60, 90)
    assert photograph.reduction == 1
    assert np.abs(photograph.pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_pictures_are_reduced_but_not_what_is_in_a_box(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    large = np.asarray(Image.fromarray(gradient()).resize((1205, 803)))
    Image.fromarray(large).save(path, quality=95)
    reduced = read_photograph(path, wanted_side=300)
    assert reduced.reduction == 4
    assert reduced.size_hw == (803, 1205)
    assert reduced.pixels.shape == (201, 302, 3)
    block = large[400:404, 600:604].mean((0, 1))
    assert np.abs(reduced.pixels[100, 150].astype(int) - block).max() < 4
    boxed = read_photograph(path, [(0, 0, 500, 400)], wanted_side=300)
    assert boxed.reduction == 1


def test_unusable_files_are_told_apart_in_one_sentence(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[:700])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "script.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 60\n%%EndComments\nshowpage\n"
    )
    Image.new("RGB", (5, 300)).save(tmp_path / "tiny.png")
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png")
    for name, reason in UNUSABLE.items():
        with pytest.raises(ValueError, match=reason) as caught:
            read_photograph(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="photograph not found"):
        read_photograph(tmp_path / "absent.jpg")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the address of a socket is short
        server.bind("socket.jpg")
        for name in ("pipe.jpg", "socket.jpg"):
            with pytest.raises(ValueError, match=f"{name}: is a pipe, socket or device"):
                read_photograph(tmp_path / name)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jpg: is a folder"):
        read_photograph(tmp_path / "folder.jpg")

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "closed.jpg").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(ValueError, match=r"closed\.jpg: cannot be read \(permission denied\)"):
        read_photograph(tmp_path / "closed.jpg")


@pytest.mark.parametrize(
    "head, kind",
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1", "HEIC"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x18ftypcrx ", "raw file of a camera"),
        (b"\xff\x0a", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_a_picture_of_another_kind_is_called_by_its_name(tmp_path, head, kind):
    # Phones send HEIC under the name of a JPEG.
    (tmp_path / "a.jpg").write_bytes(head + bytes(100))
    with pytest.raises(ValueError, match=f"is an? {kind}.*, which is not read here; convert it to"):
        read_photograph(tmp_path / "a.jpg")


def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_photograph(tmp_path):
    image = Image.fromarray(gradient())
    image.save(tmp_path / "a.tif", tiffinfo={254: 1})
    with pytest.raises(ValueError, match="begins with a thumbnail"):
        read_photograph(tmp_path / "a.tif")


# ---- upright ----

# How a camera stores what becomes upright by the orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
KEEPING_ORIENTATION = {
    "jpg": {"quality": 95},
    "png": {},
    "webp": {"lossless": True},
    "tif": {"compression": "tiff_lzw"},
    "tiff": {},
    "mpo": {"quality": 95, "save_all": True},
}


def is_gradient(photograph: Photograph) -> bool:
    same_size = photograph.pixels.shape == (60, 90, 3) and photograph.size_hw == (60, 90)
    return same_size and np.abs(photograph.pixels.astype(int) - gradient()).max() <= 12


def stored(orientation: int) -> Image.Image:
    turn = STORED[orientation]
    image = Image.fromarray(gradient())
    return image if turn is None else image.transpose(turn)


@pytest.mark.parametrize("suffix", KEEPING_ORIENTATION)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_of_every_format_becomes_upright(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    options = dict(KEEPING_ORIENTATION[suffix])
    if suffix.startswith("tif"):
        options["tiffinfo"] = {0x0112: orientation}
    else:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if suffix == "mpo":
        options["append_images"] = [stored(orientation)]
    stored(orientation).save(path, **options)
    assert is_gradient(read_photograph(path))
    reduced = read_photograph(path, wanted_side=30)
    assert reduced.size_hw == (60, 90)
    assert reduced.pixels.shape == (30, 45, 3)
    with Image.open(path) as image:
        assert is_gradient(photograph_of(image))


def test_an_orientation_that_only_an_editor_wrote_counts_and_a_broken_one_does_not(tmp_path):
    path = tmp_path / "a.jpg"
    stored(6).save(path, quality=95)
    content = path.read_bytes()
    packet = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    segment = b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet
    path.write_bytes(content[:2] + segment + content[2:])
    assert is_gradient(read_photograph(path))
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\xff\xff"):
        Image.fromarray(gradient()).save(path, quality=95, exif=exif)
        assert is_gradient(read_photograph(path))


# ---- from Python ----


def test_arrays_of_all_types_are_photographs():
    image = gradient()
    opaque = np.dstack([image, np.full((60, 90), 255, np.uint8)])
    for array in (image, image.astype(np.float32) / 255, image.astype(np.uint16) * 257, opaque):
        np.testing.assert_allclose(photograph_of(array).pixels.astype(int), image, atol=1)
    assert photograph_of(image[..., :1]).pixels.shape == (60, 90, 3)
    assert photograph_of(image[..., 0] / 255.0).pixels.shape == (60, 90, 3)
    for wrong in (
        image[0],
        image[..., :2],
        np.zeros((8, 90, 3)),
        None,
        b"bytes",
        image.astype(complex),
    ):
        with pytest.raises(ValueError, match="array|pixels"):
            photograph_of(wrong)


@pytest.mark.parametrize("kind", ["turned", "cmyk", "palette", "black and white", "16 bit"])
def test_a_path_or_a_picture_of_pillow_says_what_an_array_cannot(tmp_path, kind):
    path = tmp_path / ("a.jpg" if kind in ("turned", "cmyk") else "a.png")
    expected = save_kind(path, kind)
    for image in (path, str(path), Image.open(path)):
        pixels = photograph_of(image).pixels
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1"])
def test_an_array_that_may_be_of_two_kinds_is_not_guessed(mode):
    array = np.asarray(Image.fromarray(gradient()).convert(mode))
    with pytest.raises(
        ValueError, match=r"may be .*give the path of the file, or the picture as P"
    ):
        photograph_of(array)


def test_an_alpha_that_makes_sense_is_one():
    cut_out = np.dstack([gradient(), np.zeros((60, 90), np.uint8)])
    cut_out[20:40, 30:60, 3] = 255
    cut_out[20:40, 29, 3] = 128
    pixels = photograph_of(cut_out).pixels
    assert (pixels[20:40, 30:60] == gradient()[20:40, 30:60]).all()
    assert not pixels[:20].any()


def test_a_picture_of_pillow_is_left_as_it_was(tmp_path):
    large = Image.fromarray(gradient()).resize((1200, 800))
    large.save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert photograph_of(image).pixels.shape == (800, 1200, 3)
        assert image.size == (1200, 800)
    reduced = photograph_of(tmp_path / "a.jpg", wanted_side=300)
    assert reduced.reduction == 4
    assert reduced.size_hw == (800, 1200)
