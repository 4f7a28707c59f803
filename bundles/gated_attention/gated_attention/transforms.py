"""Random changes of the original images in training, and how a batch reaches the network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from label_efficient.options import one_of

AUGMENTATIONS = ("none", "dihedral", "strong")
_LEAST_AREA = 0.6  # of the image, that a random cut keeps
_CONTRAST, _BRIGHTNESS, _COLOUR = 0.3, 0.15, 0.08


class Augment:
    """Random changes of whole images at their stored size, each image its own; the network makes its copies after.

    "dihedral": any of the eight turns and mirrorings of a square, since microscopy has no upright position; pixels are
    not interpolated. "strong": also a random cut of at least 0.6 of the area, and contrast (by a factor up to
    e^0.3), brightness (by up to 0.15 of the range) and the balance of the colours (by factors up to e^0.08).
    """

    def __init__(self, kind: str) -> None:
        self.kind = one_of("augment", kind, AUGMENTATIONS)

    def __call__(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Images 3 x H x W to as many, uint8; torch's global random numbers of the CPU decide."""
        if self.kind == "none":
            return list(images)
        if self.kind == "strong":
            images = [_jitter(_cut(image)) for image in images]
        return [_turn(image) for image in images]


def _turn(image: torch.Tensor) -> torch.Tensor:
    turns, mirror = int(torch.randint(4, ())), bool(torch.randint(2, ()))
    image = torch.rot90(image, turns, (1, 2))
    return image.flip(2) if mirror else image


def _cut(image: torch.Tensor) -> torch.Tensor:
    """A part with the image's aspect, anywhere in it."""
    scale = (_LEAST_AREA + (1 - _LEAST_AREA) * float(torch.rand(()))) ** 0.5
    height, width = (max(round(side * scale), 1) for side in image.shape[1:])
    top = int(torch.randint(image.shape[1] - height + 1, ()))
    left = int(torch.randint(image.shape[2] - width + 1, ()))
    return image[:, top : top + height, left : left + width]


def _jitter(image: torch.Tensor) -> torch.Tensor:
    """Contrast and colour around the middle of the range, brightness; rounded to uint8 again."""
    factor = torch.exp(_uniform(1, _CONTRAST) + _uniform(3, _COLOUR)).view(3, 1, 1)
    shift = _uniform(1, _BRIGHTNESS).view(1, 1, 1) * 255
    changed = (image.float() - 127.5) * factor.to(image.device) + (shift + 127.5).to(image.device)
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _uniform(count: int, bound: float) -> torch.Tensor:
    return (torch.rand(count) * 2 - 1) * bound


class PrepareBatch:
    """Ignite's `prepare_batch`: images to the device as they are stored, and changed there in training (`augment`)."""

    def __init__(self, augment: Augment | None = None) -> None:
        self.augment = augment

    def __call__(
        self, batch: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Batch with `image` (B images 3 x H_i x W_i, 0..255) and perhaps `label` to images and targets."""
        images = [image.to(device=device, non_blocking=non_blocking) for image in batch["image"]]
        if self.augment is not None:
            images = self.augment(images)
        label = batch.get("label")
        return images, None if label is None else label.to(device=device, non_blocking=non_blocking)
