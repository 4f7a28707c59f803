"""The operations of the strong view as MONAI transforms, and what each does to the pixels.

What an operation does, and what its magnitude means, is PIL's (ImageOps, ImageEnhance, Image.transform), on values in
0..1. The ranges of the magnitudes are FixMatch's (Sohn et al., FixMatch, 2020, table 12).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from monai.transforms import RandomizableTransform
from torch.nn import functional as F

Sample = dict[str, torch.Tensor]  # "image" 1 x H x W in 0..1; perhaps "label", the mask of the same shape
Range = tuple[float, float]  # ends of what a magnitude is drawn from
Matrix = tuple[float, float, float, float, float, float]

_LEVELS = 255  # grey levels above black: what equalise and posterise count in


class RandOperation(RandomizableTransform):
    """Change a sample at random: `change` gets it and, where there is a range of magnitudes, one of them."""

    def __init__(self, change: Callable[..., Sample], magnitudes: Range | None, *, prob: float) -> None:
        super().__init__(prob)
        self.change = change
        self.magnitudes = magnitudes

    def __call__(self, sample: Sample) -> Sample:
        """Sample to sample; the same one if nothing is changed."""
        self.randomize(None)
        if not self._do_transform:
            return sample
        return self.change(sample, *([] if self.magnitudes is None else [self.R.uniform(*self.magnitudes)]))


def regrade(operation: Callable[..., torch.Tensor], sample: Sample, *magnitude: float) -> Sample:
    """Change the grey values of the image; the mask stays."""
    return {**sample, "image": operation(sample["image"], *magnitude)}


def move(mapping: Callable[[float, int, int], Matrix], sample: Sample, magnitude: float) -> Sample:
    """Move image and mask alike, by the `sampling_grid` matrix of a magnitude, the height and the width.

    The image is interpolated bilinearly, the mask takes the nearest pixel. What comes from outside of the picture is
    0: black, as the border of an X-ray, and no lung.
    """
    height, width = sample["image"].shape[-2:]
    grid = sampling_grid(mapping(magnitude, height, width), sample["image"])
    modes = {"image": "bilinear", "label": "nearest"}
    return {
        key: F.grid_sample(values[None], grid, modes[key], padding_mode="zeros", align_corners=False)[0]
        for key, values in sample.items()
    }


def sampling_grid(matrix: Matrix, image: torch.Tensor) -> torch.Tensor:
    """Where each output pixel is taken from, as `grid_sample` wants it: 1 x H x W x 2 for an image 1 x H x W.

    By the matrix (a, b, c, d, e, f) output pixel (x, y) is taken from (ax + by + c, dx + ey + f), in pixels from the
    picture's centre, x to the right and y downwards.
    """
    a, b, c, d, e, f = matrix
    height, width = image.shape[-2:]
    x = torch.arange(width, dtype=image.dtype, device=image.device) - (width - 1) / 2
    y = (torch.arange(height, dtype=image.dtype, device=image.device) - (height - 1) / 2)[:, None]
    # Not affine_grid: its matrix product would lose digits under AMP, and it is slower.
    return torch.stack([(a * x + b * y + c) * (2 / width), (d * x + e * y + f) * (2 / height)], dim=-1)[None]


def _rotate(degrees: float, height: int, width: int) -> Matrix:
    """Counter-clockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos, -sin, 0.0, sin, cos, 0.0


# The intensity operations take an image 1 x H x W in 0..1 and return the same. None of them makes the host wait for a
# value from the device.


def _autocontrast(image: torch.Tensor) -> torch.Tensor:
    """Darkest pixel to 0, brightest to 1; an image of less than half a grey level's range stays."""
    low, high = image.aminmax()
    return torch.where(high - low > 0.5 / _LEVELS, (image - low) / (high - low), image)


def _equalise(image: torch.Tensor) -> torch.Tensor:
    """Even out the histogram of the 256 grey levels, by the formula of PIL's ImageOps.equalize."""
    levels = (image * _LEVELS).round().clamp(0, _LEVELS).long().flatten()
    counts = levels.new_zeros(_LEVELS + 1).scatter_add(0, levels, torch.ones_like(levels))
    step = (levels.numel() - counts.take(levels.max())) // _LEVELS
    table = (counts.cumsum(0) - counts + step // 2) // step.clamp(min=1)
    equalised = table.clamp(max=_LEVELS).to(image.dtype).div(_LEVELS).take(levels).view_as(image)
    return torch.where(step > 0, equalised, image)  # 0: a constant image, or next to it


def _posterise(image: torch.Tensor, bits: float) -> torch.Tensor:
    """Keep the highest bits, the whole part of `bits`, of the 8 of a grey level."""
    levels = (image * _LEVELS).round()
    return (levels - levels % 2 ** (8 - int(bits))) / _LEVELS


def _sharpness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend of the smoothed image (0) and the image (1): 3 x 3, centre weight 5, others 1; the border stays."""
    smooth = image.clone()
    smooth[:, 1:-1, 1:-1] = (9 * F.avg_pool2d(image, 3, stride=1) + 4 * image[:, 1:-1, 1:-1]) / 13
    return torch.lerp(smooth, image, factor)


# Name: function, range of the magnitude. All factors of a blend are below 1: they darken, flatten and blur.
_BLEND = (0.05, 0.95)
INTENSITY: dict[str, tuple[Callable[..., torch.Tensor], Range | None]] = {
    "autocontrast": (_autocontrast, None),
    "brightness": (lambda image, factor: image * factor, _BLEND),  # of black and the image
    "contrast": (lambda image, factor: torch.lerp(image.mean(), image, factor), _BLEND),  # of its mean and the image
    "equalise": (_equalise, None),
    "identity": (lambda image: image, None),
    "posterise": (_posterise, (4, 9)),  # 4 to 8 bits: the end is not drawn
    "sharpness": (_sharpness, _BLEND),
    "solarise": (lambda image, threshold: torch.where(image < threshold, image, 1 - image), (0, 1)),
}
GEOMETRIC: dict[str, tuple[Callable[[float, int, int], Matrix], Range]] = {
    "rotate": (_rotate, (-30, 30)),  # degrees
    # Pixels sideways (up or down) for each pixel from the top (left) edge, which stays, as in PIL and FixMatch.
    "shear_x": (lambda slope, height, width: (1, slope, slope * height / 2, 0, 1, 0), (-0.3, 0.3)),
    "shear_y": (lambda slope, height, width: (1, 0, 0, slope, 1, slope * width / 2), (-0.3, 0.3)),
    "translate_x": (lambda part, height, width: (1, 0, part * width, 0, 1, 0), (-0.3, 0.3)),  # parts of the width
    "translate_y": (lambda part, height, width: (1, 0, 0, 0, 1, part * height), (-0.3, 0.3)),  # parts of the height
}
POOL = tuple(sorted([*INTENSITY, *GEOMETRIC]))


def pool_transforms(prob: float) -> list[RandOperation]:
    """New transforms of the operations in the order of `POOL`, each applied with this probability."""
    changes = {name: (partial(regrade, operation), ends) for name, (operation, ends) in INTENSITY.items()}
    changes |= {name: (partial(move, mapping), ends) for name, (mapping, ends) in GEOMETRIC.items()}
    return [RandOperation(*changes[name], prob=prob) for name in POOL]
