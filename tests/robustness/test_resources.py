"""Too little memory or disk, and processes that die: one sentence each, with what to do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.decoded_crops import DecodedCrops
from neural_mesh.data.loading import batches
from neural_mesh.machine import resources
from neural_mesh.machine.resources import require_disk, require_memory
from neural_mesh.machine.workers import WorkerPool, in_pool
from neural_mesh.settings import TrainConfig
from neural_mesh.solve.batches import read_batches
from neural_mesh.solve.halving import in_halves
from neural_mesh.storage.layout import PreparedSet

# ---- memory and disk ----


def test_too_little_room_is_told_with_both_amounts(tmp_path, monkeypatch):
    disk = r"the crops needs about 1,000,000\.0 GB of disk in .*, which has .* free; make space"
    with pytest.raises(ValueError, match=disk):
        require_disk(tmp_path / "not yet there", 10**15, "the crops", "make space")
    memory = r"the cache needs about 1,000,000\.0 GB of memory, .* are free; buy some"
    with pytest.raises(ValueError, match=memory):
        require_memory(10**15, "the cache", "buy some")
    require_memory(10**6, "the cache", "buy some")
    monkeypatch.setattr(resources, "free_memory", lambda: None)
    require_memory(10**15, "the cache", "where it cannot be known, it is tried")


@pytest.mark.parametrize("droppable", [group.cached for group in resources.CGROUPS])
def test_cached_files_of_a_container_are_free_memory(tmp_path, droppable):
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("900\n")
    group = resources.MemoryGroup(str(tmp_path / "max"), str(tmp_path / "current"), droppable)
    assert resources._group_memory(group) == 100
    (tmp_path / "memory.stat").write_text(f"anon 200\n{droppable} 600\nactive_file 50\n")
    assert resources._group_memory(group) == 700
    (tmp_path / "max").write_text("max\n")
    assert resources._group_memory(group) is None


def test_out_of_gpu_memory_at_inference_halves_the_batch(capsys):
    fitting = []

    def work(part: slice) -> list[int]:
        if part.stop - part.start > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        fitting.append(part)
        return list(range(8))[part]

    assert sum(in_halves(work, 8, "feature maps"), []) == list(range(8))
    assert len(fitting) == 4
    assert "out of GPU memory, going on with 2 images at a time" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not even the feature maps of one image fit"):
        in_halves(lambda part: work(slice(0, 8)), 8, "feature maps")


# ---- processes that die ----


def crash(name: str) -> str:
    if name == "b":
        os.kill(os.getpid(), 9)
    return name


def die(path: Path, scale: float) -> None:
    """In the place of a decoder."""
    os.kill(os.getpid(), 9)


def test_a_dead_worker_is_reported_with_what_it_was_at():
    sentence = "a process died .* working on b of car; finished work is kept"
    with WorkerPool(1) as pool, pytest.raises(ValueError, match=sentence):
        in_pool(pool, crash, ["a", "b", "c"], "car")


class OnePicture(TrainingImages):
    """Two pictures without annotations, of which the loader below decodes the second."""

    def __init__(self, path: Path):
        paths = [path, path.with_name("second.JPEG")]
        crops = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        self.crops = DecodedCrops(paths, 1.0, crops, torch.zeros(2, dtype=torch.bool))

    def __getitem__(self, index: int):
        return self.crops[index]


@pytest.mark.parametrize("deadly", [True, False])
def test_a_failing_decoder_in_training_names_the_file(tmp_path, monkeypatch, deadly):
    Image.new("RGB", (8, 8)).save(tmp_path / "first.JPEG")
    (tmp_path / "second.JPEG").write_bytes(b"no picture")
    if deadly:
        monkeypatch.setattr("neural_mesh.data.decoded_crops.read_crop", die)
    loader = torch.utils.data.DataLoader(
        OnePicture(tmp_path / "first.JPEG"), 1, sampler=[1], num_workers=1, collate_fn=list
    )
    with pytest.raises(ValueError, match=r"second\.JPEG") as caught:
        list(batches(loader))
    assert "\n" not in str(caught.value)
    assert ("a decoding process died" in str(caught.value)) == deadly


def test_a_dead_decoder_at_inference_names_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("neural_mesh.data.dataset.read_crop", die)
    model = SimpleNamespace(map_hw=(32, 84), checkpoint=SimpleNamespace(config=TrainConfig()))
    sentence = (
        r"a decoding process died .* among the 2 images from .*images/car/a\.JPEG on; "
        "finished work is kept"
    )
    with pytest.raises(ValueError, match=sentence):
        list(read_batches(PreparedSet(tmp_path), "car", [(1, ["a", "b"])], model, 1))
