"""Photographs of anybody: files of all kinds, arrays of all types, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.photographs import gradient
from neural_mesh.storage.pictures import photograph_of, read_photograph

MODES = {"grey": "L", "palette": "P", "cmyk": "CMYK", "rgb": "RGB", "black and white": "1"}
UNUSABLE = {
    "torn.jpg": "broken",
    "text.jpg": "not a picture",
    "empty.png": "not a picture",
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


def test_arrays_of_all_types_are_photographs():
    image = gradient()
    opaque = np.dstack([image, np.full((60, 90), 255, np.uint8)])
    for array in (image, image.astype(np.float32) / 255, image.astype(np.uint16) * 257, opaque):
        np.testing.assert_allclose(photograph_of(array).pixels.astype(int), image, atol=1)
    assert photograph_of(image[..., :1]).pixels.shape == (60, 90, 3)
    for wrong in (image[0], image[..., :2], np.zeros((8, 90, 3))):
        with pytest.raises(ValueError, match="array|pixels"):
            photograph_of(wrong)
