"""Memory that the gated attention bundle's inference takes beside its networks, against the image as stored."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bundle_paths import ROOT
from monai.bundle import ConfigParser
from torch import nn

from benchmarks.gated_attention_images import CLASSES, NUM_INSTANCES, network_arguments, photograph, save_jpeg
from benchmarks.measure import Bar, Benchmark, Options
from benchmarks.memory import growth, in_counting_process
from gated_attention.shipped import ShippedGatedAttention
from label_efficient.data.picture_transforms import load_image
from label_efficient.networks.weights import save_model

BUNDLE = ROOT / "bundles" / "gated_attention"
HEIGHT, WIDTH = 1536, 2048  # of the image


class NoBranch(nn.Module):
    """Stands in for a branch and takes no memory: the same features for any image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.rand(1, 512, side, side), persistent=False)

    def forward_nodes(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images B x 3 x H x W to B x 512 x h x w."""
        return [self.get_buffer("features").expand(len(images), -1, -1, -1)]


def memory_without_networks(folder: str, image_size: int, device: str) -> float:
    """Most MiB from the file to the crops: everything but the two branches; in a process of its own."""
    network = ShippedGatedAttention(num_classes=len(CLASSES), **network_arguments(image_size)).eval()
    network.global_branch = NoBranch(max(image_size // 32, 1))  # type: ignore[assignment]
    network.instance_branch = NoBranch(1)  # type: ignore[assignment]
    network.to(device)

    def look(name: str) -> None:
        network.look([load_image(Path(folder) / name / "image.jpg").to(device)], True)

    with torch.inference_mode():
        look("small")  # what is imported or allocated once belongs to no image
        return growth(lambda: look("large"), device)


def command(folder: str, name: str, network: nn.Module, image_size: int, device: str) -> Any:
    """The evaluator of the bundle's inference on a folder, writing tables and report, with this network."""
    weights, output = Path(folder) / "model.pt", Path(folder) / f"{name}_output"
    info = {"bundle": "gated_attention", "task": "multi-class", "classes": CLASSES, **network_arguments(image_size)}
    save_model(weights, network.state_dict(), info)
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    changes = {"dataset_dir": str(Path(folder) / name), "output_dir": str(output), "ckpt_path": str(weights)}
    parser.update({**changes, "device": device, "bundle_root": str(BUNDLE), "network_def": network})
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.logger.setLevel(logging.WARNING)
    return evaluator


def memory_above_networks(folder: str, image_size: int, device: str) -> float:
    """MiB by which the peak of the inference is above that of its networks; in a process of its own.

    The networks alone run on tensors as large as the thumbnail and the crops.
    """
    network = ShippedGatedAttention(num_classes=len(CLASSES), **network_arguments(image_size)).eval()
    command(folder, "small", network, image_size, device).run()
    inference = command(folder, "large", network, image_size, device)

    def ready(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 3, image_size, image_size, device=device)

    thumbnail, crops = ready(1).contiguous(memory_format=torch.channels_last), ready(1, NUM_INSTANCES)
    tiny = torch.zeros(3, image_size, image_size, dtype=torch.uint8, device=device)
    with (
        torch.inference_mode(),
        mock.patch.object(network, "thumbnails", lambda images: thumbnail),
        mock.patch.object(network, "crops", lambda images, boxes: crops),
    ):
        networks = growth(lambda: network.look([tiny], True), device)
    return growth(inference.run, device) - networks


def memory_benchmarks(options: Options) -> Iterator[Benchmark]:
    """Memory that inference on a large image takes beside the networks, against the image as uint8."""
    stored = 3 * HEIGHT * WIDTH / 2**20
    for size in options.image_sizes:
        with tempfile.TemporaryDirectory() as folder:
            generator = torch.Generator().manual_seed(0)
            for name, shape in (("small", (96, 128)), ("large", (HEIGHT, WIDTH))):
                (Path(folder) / name).mkdir()
                save_jpeg(photograph(generator, *shape), Path(folder) / name / "image.jpg")

            def measured(function: Callable[..., float], folder: str = folder, size: int = size) -> Callable[[], float]:
                return lambda: in_counting_process(function, folder, size, options.device)

            cases = {
                "file to crops, no networks": memory_without_networks,
                "inference less networks alone": memory_above_networks,
            }
            for ours, function in cases.items():
                yield Benchmark(
                    "memory",
                    "MiB",
                    ours,
                    {ours: measured(function), "image as uint8": lambda: stored},
                    {"image as uint8": Bar(3.0)},
                    image_size=size,
                    repeats=2,
                    warm_up=False,
                )
