"""Weak and strong views of chest X-rays and their lung masks: MONAI transforms on tensors, on any device.

The strong view follows RandAugment as FixMatch uses it (Sohn et al., FixMatch, 2020, table 12: two operations of a
pool, each at a random magnitude), without its colour operation and Cutout, which MultiMix does not have.
"""

from typing import overload

import numpy as np
import torch
from monai.transforms import Compose, Randomizable, RandomizableTransform, SomeOf
from monai.utils import convert_to_tensor
from torch.nn import functional as F

from .operations import Sample, pool_transforms

AUGMENTATIONS = ("none", "weak", "strong")
PADDING = 0.125  # of the side, on each side, before the weak view's crop
NUM_OPERATIONS = 2  # of the pool, in one strong view


class Augment:
    """Random views of a batch; each image has its own draws.

    "weak": mirrored left to right with probability 0.5, and cropped at a random place back to its size after reflect
    padding. "strong": the weak view, then two different operations of `operations.POOL`, each applied with
    probability 0.5. Geometric operations and the weak view move the masks with the images; intensity operations leave
    masks alone.

    Until `seed` is called the draws are MONAI's: fixed if `set_determinism` was called before, arbitrary if not. The
    global random states of Python, numpy and torch are neither used nor changed.

    Args:
        kind: One of `AUGMENTATIONS`.

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(self, kind: str) -> None:
        if kind not in AUGMENTATIONS:
            raise ValueError(f"augment is {kind!r}, expected one of {', '.join(AUGMENTATIONS)}")
        self.kind = kind
        weak = RandFlipCrop(prob=0.5, padding=PADDING)
        strong = SomeOf(pool_transforms(prob=0.5), num_transforms=NUM_OPERATIONS)
        views = {"none": Compose([]), "weak": Compose([weak]), "strong": Compose([weak, strong])}
        self.transform = views[kind]

    @overload
    def __call__(self, images: torch.Tensor, masks: None = None) -> torch.Tensor: ...

    @overload
    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """View of a batch, on its device; "none" returns what it was given.

        Args:
            images: B x 1 x H x W, floating point, 0..1.
            masks: B x 1 x H x W, 0 or 1, of any dtype.

        Returns:
            The images, within 0..1; with masks the pair (images, masks). Shapes and dtypes are those given.

        Raises:
            ValueError: If a shape or the dtype of the images is another.
        """
        if images.ndim != 4 or images.shape[1] != 1 or not images.is_floating_point():
            raise ValueError(f"images are {tuple(images.shape)} {images.dtype}, expected B x 1 x H x W floating point")
        if masks is not None and masks.shape != images.shape:
            raise ValueError(f"masks are {tuple(masks.shape)}, expected the images' {tuple(images.shape)}")
        if self.kind == "none" or len(images) == 0:
            return images if masks is None else (images, masks)
        # One dtype for both: neither reflect padding nor sampling knows integers on GPUs.
        samples: list[Sample] = [{"image": image} for image in _plain(images)]
        if masks is not None:
            for sample, mask in zip(samples, _plain(masks), strict=True):
                sample["label"] = mask
        # One by one: of a whole list, the SomeOf within a Compose draws its operations once for all.
        samples = [self.transform(sample) for sample in samples]
        viewed = torch.stack([sample["image"] for sample in samples]).clamp_(0, 1).to(images.dtype)
        if masks is None:
            return viewed
        return viewed, torch.stack([sample["label"] for sample in samples]).to(masks.dtype)

    def seed(self, *numbers: int) -> None:
        """Make every later draw depend on these numbers alone, for instance on seed, epoch, iteration and rank.

        Raises:
            ValueError: If there is no number, or a negative one.
        """
        if not numbers or min(numbers) < 0:
            raise ValueError(f"seed is {numbers}, expected at least one number, none negative")
        # Their count goes first because numpy pads with zeros: (1,) and (1, 0) would be the same seed.
        entropy = np.random.SeedSequence((len(numbers), *numbers))
        state = np.random.RandomState(entropy.generate_state(4))
        # One stream for all: Compose's own method starts a generator for each transform, which takes a millisecond.
        for transform in _randomizables(self.transform):
            Randomizable.set_random_state(transform, state=state)


def _plain(batch: torch.Tensor) -> torch.Tensor:
    return convert_to_tensor(batch, dtype=torch.float32, track_meta=False)


def _randomizables(transform: object) -> list[Randomizable]:
    """The transform and, of a composition, those within."""
    within = transform.transforms if isinstance(transform, Compose) else ()
    found = [transform] if isinstance(transform, Randomizable) else []
    return found + [inner for part in within for inner in _randomizables(part)]


class RandFlipCrop(RandomizableTransform):
    """Mirror left to right at random, and crop at a random place back to H x W after reflect padding.

    MONAI's RandFlipd, BorderPadd and RandSpatialCropd do the same, some fifty times slower.

    Args:
        prob: Of the mirroring; the crop is always drawn.
        padding: Part of the height added above and below, and of the width left and right; below 1.
    """

    def __init__(self, *, prob: float, padding: float) -> None:
        super().__init__(prob)
        self.padding = padding

    def __call__(self, sample: Sample) -> Sample:
        """The sample's image and mask, moved alike."""
        self.randomize(None)
        height, width = sample["image"].shape[-2:]
        above, left = int(height * self.padding), int(width * self.padding)
        top, first = self.R.randint(2 * above + 1), self.R.randint(2 * left + 1)
        cropped = {}
        for key, values in sample.items():
            values = F.pad(values, (left, left, above, above), mode="reflect")
            values = values[:, top : top + height, first : first + width]
            cropped[key] = values.flip(-1) if self._do_transform else values
        return cropped
