"""Weak and strong views of chest X-rays and their lung masks: MONAI transforms on tensors, on any device.

The strong view follows RandAugment as FixMatch uses it (Sohn et al., FixMatch, 2020, table 12: two operations of a
pool, drawn with replacement, each at a random magnitude), without its colour operation and Cutout, which MultiMix
does not have.
"""

import numpy as np
import torch
from monai.transforms import Compose, Randomizable, RandomizableTransform, SomeOf
from torch.nn import functional as F

from label_efficient.options import one_of

from .operations import Sample, pool_transforms

AUGMENTATIONS = ("none", "weak", "strong")
# Of the side, on each side, before the crop: in the authors' code 12.5 %, but 4 of 256 pixels in the strong view.
PADDING = {"weak": 0.125, "strong": 4 / 256}
NUM_OPERATIONS = 2  # of the pool, in one strong view


class Augment:
    """Random views of a batch; each image has its own draws.

    "weak": mirrored left to right with probability 0.5, and cropped at a random place back to its size after reflect
    padding. "strong": the same with less padding, then two operations of `operations.POOL`, perhaps one twice, each
    applied with probability 0.5. Geometric operations, mirroring and crop move the masks with the images; intensity
    operations leave masks alone.

    The global random states of Python, numpy and torch are neither used nor changed.
    """

    def __init__(self, kind: str) -> None:
        self.kind = one_of("augment", kind, AUGMENTATIONS)
        self.crop = RandFlipCrop(prob=0.5, padding=PADDING.get(kind, 0))
        self.operations = SomeOf(pool_transforms(prob=0.5), num_transforms=NUM_OPERATIONS, replace=True)
        self.transform = Compose([self.crop, self.operations] if kind == "strong" else [self.crop])

    def __call__(self, batch: Sample) -> Sample:
        """View of a batch, on its device, of the shapes and dtypes given; "none" returns what it was given.

        The batch has `image` B x 1 x H x W, floating point in 0..1; perhaps `label`, the masks of 0 and 1, of the same
        shape and any dtype.
        """
        if self.kind == "none":
            return batch
        # One dtype for both: neither reflect padding nor sampling knows integers on GPUs.
        single = {key: values.float() for key, values in batch.items()}
        samples = [dict(zip(single, images, strict=True)) for images in zip(*single.values(), strict=True)]
        # One by one: of a whole list, the SomeOf within a Compose draws its operations once for all.
        views = [self.transform(sample) for sample in samples]
        viewed = {key: torch.stack([view[key] for view in views]) for key in batch}
        viewed["image"].clamp_(0, 1)
        return {key: values.to(batch[key].dtype) for key, values in viewed.items()}

    def seed(self, *numbers: int) -> None:
        """Make every later draw depend on these numbers alone, such as seed, epoch, step and rank; none negative."""
        # Their count goes first because numpy pads with zeros: (1,) and (1, 0) would be the same seed.
        entropy = np.random.SeedSequence((len(numbers), *numbers))
        state = np.random.RandomState(entropy.generate_state(4))
        # One stream for all: Compose's own method starts a generator for each transform, which takes a millisecond.
        for transform in (self.crop, self.operations, *self.operations.transforms):
            Randomizable.set_random_state(transform, state=state)


class RandFlipCrop(RandomizableTransform):
    """Mirror left to right at random, and crop at a random place back to H x W after reflect padding.

    MONAI's RandFlipd, BorderPadd and RandSpatialCropd do the same, some fifty times slower. `prob` is of the mirroring;
    `padding`, below 1, is the part of the height added above and below, and of the width left and right.
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
