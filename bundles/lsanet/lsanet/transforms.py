"""From files to the network's input: the same pixels in training, evaluation and inference.

Deterministic: `picture_transforms.load_image` (file to uint8), `Preprocess` (uint8 to the normalised, resized
tensor). Random: `Augment`, in training only. The last two work on whole batches, on whatever device the batch is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from label_efficient.options import one_of

AUGMENTATIONS = ("none", "light", "dihedral")


class Preprocess:
    """Resize to a square of `image_size` pixels and normalise. Acts on one image C x H x W or a batch B x C x H x W.

    Args:
        keep_aspect: Whether an image that is not square is padded with black, centred, rather than squeezed.
        mean: Per channel, of the range 0..1; subtracted.
        std: Per channel; divided by.

    Raises:
        ValueError: If mean and std are not three numbers each, or an std is not positive.
    """

    def __init__(
        self,
        *,
        image_size: int,
        keep_aspect: bool = True,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={list(mean)}, std={list(std)}: expected three numbers each, std above 0")
        self.image_size = image_size
        self.keep_aspect = keep_aspect
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Image of 1 or 3 channels in 0..255, uint8 or float, to float32 with 3 channels."""
        image = self.resize(image).div(255).sub(self.mean.to(image.device)).div(self.std.to(image.device))
        return image if image.shape[-3] == 3 else image.expand(*image.shape[:-3], 3, -1, -1)

    def resize(self, image: torch.Tensor) -> torch.Tensor:
        """To float32 and `image_size`, values still in 0..255."""
        image = image.to(torch.float32)
        height, width = image.shape[-2:]
        if self.keep_aspect and height != width:
            side = max(height, width)
            left, top = (side - width) // 2, (side - height) // 2
            image = F.pad(image, (left, side - width - left, top, side - height - top))
        size = (self.image_size, self.image_size)
        if image.shape[-2:] == size:
            return image
        batch = F.interpolate(image[None] if image.ndim == 3 else image, size, mode="bilinear", antialias=True)
        return batch.view(*image.shape[:-2], *size)


class Augment:
    """Random changes of a preprocessed batch B x C x H x W; each image its own.

    "light": mirrored left to right, turned by up to 10 degrees, shifted and scaled by up to a tenth, brightness and
    contrast by up to a tenth. "dihedral": also any of the eight turns and mirrorings of a square, for images without
    an upright position (microscopy). "none": nothing.
    """

    def __init__(self, kind: str) -> None:
        self.kind = one_of("augment", kind, AUGMENTATIONS)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Batch to batch of the same shape, with torch's global random numbers of the CPU."""
        if self.kind == "none":
            return image
        count = image.shape[0]
        angle = _uniform(count, torch.pi / 18)
        mirror = torch.randint(2, (count,)) * 2.0 - 1.0
        if self.kind == "dihedral":
            angle = angle + torch.pi / 2 * torch.randint(4, (count,))
        scale = 1 + _uniform(count, 0.1)
        cos, sin, shift = torch.cos(angle) * scale, torch.sin(angle) * scale, _uniform((count, 2), 0.1)
        rows = [mirror * cos, -sin, shift[:, 0], mirror * sin, cos, shift[:, 1]]
        theta = torch.stack(rows, dim=1).view(count, 2, 3).to(image.device)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        contrast, brightness = 1 + _uniform((count, 1, 1, 1), 0.1), _uniform((count, 1, 1, 1), 0.1)
        return image * contrast.to(image.device) + brightness.to(image.device)


def _uniform(shape: int | tuple[int, ...], bound: float) -> torch.Tensor:
    return (torch.rand(shape) * 2 - 1) * bound


class PrepareBatch:
    """Ignite's `prepare_batch`: batch to the device as it is stored, then preprocessed, then in training augmented."""

    def __init__(self, preprocess: Preprocess, augment: Augment | None = None) -> None:
        self.preprocess = preprocess
        self.augment = augment

    def __call__(
        self, batch: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Batch with `image` (B x C x H x W, 0..255) and perhaps `label` to the network's input and targets."""
        image = self.preprocess(batch["image"].to(device=device, non_blocking=non_blocking))
        if self.augment is not None:
            image = self.augment(image)
        label = batch.get("label")
        # Twice as fast on CPUs, and what tensor cores want.
        image = image.contiguous(memory_format=torch.channels_last)
        return image, None if label is None else label.to(device=device, non_blocking=non_blocking)
