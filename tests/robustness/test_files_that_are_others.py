"""Pages, pointers, halves and archives in the place of a file are called by their true names."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.sample_files import SAMPLES
from neural_mesh.data.archives import unpack
from neural_mesh.data.splits import read_subset_pickle
from neural_mesh.network.pretrained import build_network
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import load_npz
from neural_mesh.storage.pictures import read_photograph, read_picture

NAME = "NeMo_Single_799/saved_model_car_799.pth"
ADVICE_OF_OTHERS = ("weights_only", "torch.load", "torch.jit", "miniz", "hasRecord", "safe_globals")


def zip_of(*names: str) -> bytes:
    """An archive of small files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, bytes(1000))
    return content.getvalue()


def tar_of(name: str, mode: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        member = tarfile.TarInfo(name)
        member.size = 1000
        archive.addfile(member, io.BytesIO(bytes(1000)))
    return content.getvalue()


def arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, x=np.ones(3))
    return content.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
ANNEX = b"/annex/objects/SHA256E-s1--ab.pth\n"
OTHERS = {
    "page": (b"<!DOCTYPE html><title>Quota exceeded</title>\n", "is a web page .*by hand"),
    "page with a mark": (b"\xef\xbb\xbf\r\n <HTML><head>", "is a web page"),
    "page of the cloud": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "is a web page"),
    "pointer": (LFS, "is a Git LFS pointer.*git lfs pull"),
    "annex": (ANNEX, "is a git-annex pointer.*git annex get"),
    "reply": (b'{"error":"Repository not found"}', "a text that begins with .*Repository not f"),
    "not found": (b"404: Not Found\n", "is a text that begins with '404: Not Found'"),
    "nothing": (b"", "is empty; download"),
    "archive": (zip_of("NeMo_Single_799/", NAME), f"zip archive of '{NAME}'; unpack it"),
    "several": (zip_of("a.txt", "b.pth", "c.pth"), r"zip archive of 'b\.pth' and 1 more; unpack"),
    "program": (zip_of("m/data.pkl", "m/constants.pkl"), "a program of TorchScript"),
    "arrays": (arrays(), "is a file of NumPy arrays"),
    "tar": (tar_of(NAME, "w"), f"is a tar archive of '{NAME}'; unpack it"),
    "tgz": (tar_of(NAME, "w:gz"), "is packed with gzip; unpack it"),
    "gzip": (gzip.compress(bytes(1000)), "is packed with gzip; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "is packed with 7z; unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0" + bytes(300), "is an ONNX model"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_they_are_named_in_the_place_of_checkpoints_and_of_pretrained_weights(
    tmp_path, kind, ending
):
    content, complaint = OTHERS[kind]
    path = tmp_path / f"downloaded.{ending}"
    path.write_bytes(content)
    read = (load_checkpoint, lambda path: build_network("resnet18fpn", str(path)))
    for reader in read:
        with pytest.raises(ValueError, match=complaint) as refusal:
            reader(path)
        assert str(path) in str(refusal.value)
        assert not [word for word in ADVICE_OF_OTHERS if word in str(refusal.value)]


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_half_a_file_is_cut_off(tmp_path, kind, share):
    path = SAMPLES[kind](tmp_path).path
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{path.name} is cut off, its end is missing; download"):
        load_checkpoint(path)


def test_half_a_file_of_old_torch_is_cut_off(tmp_path):
    path = tmp_path / "old.pth"
    content = {"state": {"w": torch.ones(5000)}, "memory": [torch.ones(5000)]}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"old\.pth.*is cut off"):
        load_checkpoint(path)


def test_a_broken_file_is_refused_in_our_words(tmp_path):
    path = SAMPLES["checkpoint"](tmp_path).path
    content = path.read_bytes()
    place = content.index(b"data.pkl") + 60
    path.write_bytes(content[:place] + bytes(200) + content[place + 200 :])
    with pytest.raises(ValueError, match=r"a\.pth: not a checkpoint") as refusal:
        load_checkpoint(path)
    assert not [word for word in ADVICE_OF_OTHERS if word in str(refusal.value)]


def test_a_folder_is_no_checkpoint(tmp_path):
    unpacked = tmp_path / "saved_model_car_799"
    unpacked.mkdir()
    with pytest.raises(ValueError, match="is a folder; name a checkpoint"):
        load_checkpoint(unpacked)
    (unpacked / "data.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="a program has unpacked the checkpoint; download it"):
        load_checkpoint(unpacked)


@pytest.mark.parametrize("kind", ["page", "pointer", "annex", "nothing"])
def test_they_are_named_in_the_place_of_arrays(tmp_path, kind):
    content, complaint = OTHERS[kind]
    path = tmp_path / "annotation.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_npz(path, [])


def test_half_an_annotation_is_cut_off(tmp_path):
    path = SAMPLES["annotation"](tmp_path).path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut off, its end is missing"):
        load_npz(path, [])


READERS = {
    "01.off": read_off,
    "a.JPEG": read_picture,
    "photo.jpg": read_photograph,
    "car_imagenet_val.pkl": read_subset_pickle,
    "Image_subsets.zip": lambda path: unpack(path, path.parent),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["page", "pointer"])
def test_they_are_named_in_the_place_of_data(tmp_path, name, kind):
    """As they are in a data set that was cloned without its large files."""
    content, complaint = OTHERS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {complaint}"):
        READERS[name](path)


def test_predicting_with_a_page_ends_in_one_sentence(tmp_path, code):
    page: Path = tmp_path / "html.pth"
    page.write_bytes(OTHERS["page"][0])
    done = code("predict", "--gpus", "", "--checkpoint", page, "photo.jpg", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {page} is a web page")
    assert done.stderr.count("\n") == 1, done.stderr
