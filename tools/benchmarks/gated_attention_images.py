"""The network and the pictures that the benchmarks of the gated attention bundle have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

NUM_INSTANCES = 4
CLASSES = [f"class {number}" for number in range(5)]


def network_arguments(image_size: int) -> dict[str, Any]:
    """Arguments of the network that is measured, beside its classes: ResNet-18 twice, as a CPU can train it."""
    return {
        "method": "fusion",
        "attention": "gated",
        "global_backbone": "resnet18",
        "instance_backbone": "resnet18",
        "image_size": image_size,
        "num_instances": NUM_INSTANCES,
        "instance_size": image_size,
        "threshold": 0.5,
        "min_box": 0.1,
        "max_box": None,
        "window_box": 0.5,
        "pooling": "concat",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def photograph(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Random uint8 3 x H x W with structures of all sizes, which JPEG compresses about as well as a photograph."""
    pixels = torch.full((3, height, width), 128.0)
    for size in (1, 4, 16, 64):
        noise = torch.randn(1, 3, -(-height // size), -(-width // size), generator=generator)
        pixels += 12 * size**0.5 * F.interpolate(noise, [height, width], mode="bilinear")[0]
    return pixels.clamp(0, 255).to(torch.uint8)


def save_jpeg(image: torch.Tensor, path: Path) -> None:
    """Write uint8 3 x H x W."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
