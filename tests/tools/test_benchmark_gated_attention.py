"""Benchmarks of the gated attention bundle: the contenders do the same work, and what is measured is what is said."""

import csv
import importlib
from pathlib import Path

import benchmark
import pytest
import torch
from benchmarks import gated_attention as cases
from benchmarks import gated_attention_memory
from benchmarks.gated_attention_images import CLASSES, network_arguments, photograph, save_jpeg
from benchmarks.gated_attention_memory import NoBranch
from benchmarks.measure import Options
from benchmarks.memory import in_counting_process

from gated_attention.network import GatedAttentionNet
from label_efficient.data.picture_transforms import load_image

# Of 0..255: positions are rounded to single precision in the loops and to more digits in one call.
SAME_PIXELS = 0.01


@pytest.mark.parametrize("size", [40, 224])
def test_loops_give_the_same_crops(size: int) -> None:
    images, boxes = cases.photographs(2), cases.random_boxes(2, size)
    sides = boxes[..., 2:] - boxes[..., :2]
    assert sides.min() >= size and sides.max() <= min(2 * size, cases.HEIGHT) and len(sides.unique()) > 3
    assert boxes.min() >= 0 and (boxes[..., 2:] <= torch.tensor([cases.WIDTH, cases.HEIGHT])).all()
    found = {name: cut(images, boxes, size) for name, cut in cases.CUTTERS.items()}
    assert len(found) == 3
    ours = found["one call"]
    assert ours.shape == (2, 4, 3, size, size) and ours.std() > 10
    for name, crops in found.items():
        torch.testing.assert_close(torch.as_tensor(crops), ours, rtol=0, atol=SAME_PIXELS, msg=lambda m, n=name: n + m)


def test_selection_is_what_the_network_does_between_its_branches() -> None:
    torch.manual_seed(0)
    network = GatedAttentionNet(num_classes=len(CLASSES), **network_arguments(64))
    images = cases.photographs(3)
    seen: list[torch.Tensor] = []
    network.instance_branch.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    forward_nodes = network.instance_branch.forward_nodes
    network.instance_branch.forward_nodes = lambda crops: seen.append(crops) or forward_nodes(crops)
    network(images)
    # In training mode both see the statistics of the batch, so that the features are the same.
    features = network.global_branch.forward_nodes(network.thumbnails(images))[-1].detach().requires_grad_()
    crops = cases.selection(network, images, features)
    torch.testing.assert_close(crops.flatten(0, 1), seen[0].contiguous(), rtol=0, atol=1e-4)
    assert features.grad is not None and features.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in network.attention.parameters())


def test_both_epochs_make_the_same_steps(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{number}.jpg" for number in range(8)]
    for path in paths:
        save_jpeg(photograph(generator, 72, 96), path)
    data = cases.data_of_files(paths)
    found = []
    for epoch in (cases.piped_epoch, cases.bare_epoch):
        torch.manual_seed(0)
        # No workers: they are processes, and give the same batches.
        parser = cases.parsed_config(data, 64, 4, "cpu", augment="none", num_workers=0)
        start = [p.detach().clone() for p in parser.get_parsed_content("network").parameters()]
        assert epoch(parser, "cpu")() > 0
        weights = [p.detach() for p in parser.get_parsed_content("network").parameters()]
        # Every parameter moves: the fusion and its branch are trained, too.
        assert all(not torch.equal(a, b) for a, b in zip(start, weights, strict=True))
        found.append(weights)
    for piped, bare in zip(*found, strict=True):
        torch.testing.assert_close(piped, bare, rtol=1e-4, atol=1e-5)


def test_pipeline_reads_files_with_two_workers(tmp_path: Path) -> None:
    save_jpeg(photograph(torch.Generator().manual_seed(0), 48, 64), tmp_path / "a.jpg")
    parser = cases.parsed_config(cases.data_of_files([tmp_path / "a.jpg"] * 4), 64, 4, "cpu")
    loader = parser.get_parsed_content("train::dataloader")
    assert loader.num_workers == 2 and loader.persistent_workers
    assert isinstance(loader.dataset.data.images[0], Path)
    handlers = [type(handler).__name__ for handler in parser.get_parsed_content("train::handlers")]
    assert handlers == ["MovingAverage", "LossTerms"]


WORK = """
import numpy as np
from benchmarks.memory import growth

def work():
    first = np.ones(2**20)
    del first
    both = np.ones(2**20), np.ones(2**19)
    del both

def found():
    kept = np.ones(2**20)  # 8 MiB before
    # An earlier peak above the one to find, in smaller blocks below one that stays.
    *peak, last = [np.ones(2**18) for _ in range(32)]
    del peak
    return growth(work), growth(lambda: kept.sum() + last.sum())
"""


def test_growth_is_the_peak_above_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A module of its own, which imports little in the other process.
    (tmp_path / "work_with_memory.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    found = in_counting_process(importlib.import_module("work_with_memory").found)
    assert found == (pytest.approx(12, abs=1), pytest.approx(0, abs=1))


def test_networks_stand_ins_have_the_shape_of_their_features() -> None:
    network = GatedAttentionNet(num_classes=len(CLASSES), **network_arguments(64)).eval()
    for branch, side in ((network.global_branch, 64), (network.instance_branch, 32)):
        images = torch.rand(2, 3, side, side)
        expected = branch.forward_nodes(images)[-1]
        assert NoBranch(side // 32).forward_nodes(images)[-1].shape == expected.shape


def test_photographs_compress_like_photographs(tmp_path: Path) -> None:
    image = cases.photographs(1)[0]
    save_jpeg(image, tmp_path / "image.jpg")
    assert 0.1 < (tmp_path / "image.jpg").stat().st_size / image.numel() < 0.3
    assert load_image(tmp_path / "image.jpg").shape == image.shape == (3, 384, 512)
    assert image.float().std() > 30


def test_bars_are_those_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_attention_memory, "HEIGHT", 64)
    options = Options([64], batch_size=4, steps=1)
    found = {}
    for name in ("selection", "crops", "memory"):
        for case in cases.BENCHMARKS[name](options):
            found |= {(name, case.ours, against): str(bar) for against, bar in case.bars.items()}
    (case,) = cases.BENCHMARKS["pipeline"](options)
    assert {against: str(bar) for against, bar in case.bars.items()} == {"images in memory": ">= 0.90"}
    assert found == {
        ("selection", "attention, boxes and crops", "training step"): "<= 0.10",
        ("crops", "one call", "MONAI's transforms per box"): "<= 0.20",
        ("crops", "one call", "slice and interpolate"): "<= 0.20",
        ("memory", "file to crops, no networks", "image as uint8"): "<= 3.00",
        ("memory", "inference less networks alone", "image as uint8"): "<= 3.00",
    }


@pytest.mark.release
def test_run_on_tiny_sizes(tmp_path: Path) -> None:
    output = tmp_path / "benchmark.csv"
    arguments = ["--image_sizes", "64", "--batch_size", "4", "--repeats", "1", "--device", "cpu"]
    assert benchmark.main(["gated_attention", *arguments, "--steps", "1", "--output", str(output)]) == 0
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ["selection", "crops", "crops", "memory", "memory", "pipeline"]
    assert [row["benchmark"] for row in rows] == names
    assert all(float(row["ratio"]) > 0 and row["bar"] for row in rows)
    # An image that is decoded is there at least once.
    assert all(float(row["ratio"]) > 1 for row in rows if row["benchmark"] == "memory")
