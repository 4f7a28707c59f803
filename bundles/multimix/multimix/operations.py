"""The operations of the strong view as MONAI transforms, and what each does to the pixels.

What an operation does, and what its magnitude means, is PIL's (ImageOps, ImageEnhance, Image.transform), on values in
0..1. The ranges of the magnitudes are FixMatch's (Sohn et al., FixMatch, 2020, table 12).
"""

import math
from collections.abc import Callable

import torch
from monai.transforms import RandomizableTransform
from torch.nn import functional as F

Sample = dict[str, torch.Tensor]  # "image" 1 x H x W in 0..1; perhaps "label", the mask of the same shape
Matrix = tuple[float, float, float, float, float, float]

_LEVELS = 255  # grey levels above black: what equalise and posterise count in


class RandIntensity(RandomizableTransform):
    """Change the grey values of the image at random; the mask stays.

    Args:
        change: Function of the image and, where there are magnitudes, of one of them.
        magnitudes: Ends of the range that the magnitude is drawn from, or None if `change` has none.
        prob: Of any change.
    """

    def __init__(
        self, change: Callable[..., torch.Tensor], *, magnitudes: tuple[float, float] | None, prob: float
    ) -> None:
        super().__init__(prob)
        self.change = change
        self.magnitudes = magnitudes

    def __call__(self, sample: Sample) -> Sample:
        """The sample with its image changed."""
        self.randomize(None)
        if not self._do_transform:
            return sample
        drawn = [] if self.magnitudes is None else [self.R.uniform(*self.magnitudes)]
        return {**sample, "image": self.change(sample["image"], *drawn)}


class RandGeometric(RandomizableTransform):
    """Move image and mask alike at random.

    The image is interpolated bilinearly, the mask takes the nearest pixel. What comes from outside of the picture is
    0: black, as the border of an X-ray, and no lung.

    Args:
        mapping: Function of magnitude, height and width to the matrix of `warp`.
        magnitudes: Ends of the range that the magnitude is drawn from.
        prob: Of any change.
    """

    def __init__(
        self, mapping: Callable[[float, int, int], Matrix], *, magnitudes: tuple[float, float], prob: float
    ) -> None:
        super().__init__(prob)
        self.mapping = mapping
        self.magnitudes = magnitudes

    def __call__(self, sample: Sample) -> Sample:
        """The sample with image and mask moved."""
        self.randomize(None)
        if not self._do_transform:
            return sample
        height, width = sample["image"].shape[-2:]
        grid = sampling_grid(self.mapping(self.R.uniform(*self.magnitudes), height, width), sample["image"])
        modes = {"image": "bilinear", "label": "nearest"}
        return {
            key: F.grid_sample(values[None], grid, modes[key], padding_mode="zeros", align_corners=False)[0]
            for key, values in sample.items()
        }


def sampling_grid(matrix: Matrix, image: torch.Tensor) -> torch.Tensor:
    """Where each output pixel is taken from, as `grid_sample` wants it: 1 x H x W x 2.

    Args:
        matrix: (a, b, c, d, e, f): the output pixel (x, y) is taken from (ax + by + c, dx + ey + f), in pixels from
            the picture's centre, x to the right and y downwards.
        image: 1 x H x W; its size, dtype and device.
    """
    a, b, c, d, e, f = matrix
    height, width = image.shape[-2:]
    x = torch.arange(width, dtype=image.dtype, device=image.device) - (width - 1) / 2
    y = (torch.arange(height, dtype=image.dtype, device=image.device) - (height - 1) / 2)[:, None]
    # Not affine_grid: its matrix product would lose digits under AMP, and it is slower.
    return torch.stack([(a * x + b * y + c) * (2 / width), (d * x + e * y + f) * (2 / height)], dim=-1)[None]


def rotate(degrees: float, height: int, width: int) -> Matrix:
    """Matrix of `sampling_grid`: counter-clockwise about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos, -sin, 0.0, sin, cos, 0.0


def shear_x(slope: float, height: int, width: int) -> Matrix:
    """Rows move sideways by `slope` pixels for each pixel below the top edge, which stays, as in PIL and FixMatch."""
    return 1.0, slope, slope * height / 2, 0.0, 1.0, 0.0


def shear_y(slope: float, height: int, width: int) -> Matrix:
    """Columns move up or down by `slope` pixels for each pixel from the left edge, which stays."""
    return 1.0, 0.0, 0.0, slope, 1.0, slope * width / 2


def translate_x(part: float, height: int, width: int) -> Matrix:
    """Sideways by a part of the width."""
    return 1.0, 0.0, part * width, 0.0, 1.0, 0.0


def translate_y(part: float, height: int, width: int) -> Matrix:
    """Up or down by a part of the height."""
    return 1.0, 0.0, 0.0, 0.0, 1.0, part * height


# The intensity operations take an image 1 x H x W in 0..1 and return the same. None of them makes the host wait for a
# value from the device.


def identity(image: torch.Tensor) -> torch.Tensor:
    """No change."""
    return image


def autocontrast(image: torch.Tensor) -> torch.Tensor:
    """Darkest pixel to 0, brightest to 1; an image of less than half a grey level's range stays."""
    low, high = image.aminmax()
    return torch.where(high - low > 0.5 / _LEVELS, (image - low) / (high - low), image)


def brightness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend of black (0) and the image (1)."""
    return image * factor


def contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend of the image's mean (0) and the image (1)."""
    return torch.lerp(image.mean(), image, factor)


def equalise(image: torch.Tensor) -> torch.Tensor:
    """Even out the histogram of the 256 grey levels, by the formula of PIL's ImageOps.equalize."""
    levels = (image * _LEVELS).round().clamp(0, _LEVELS).long().flatten()
    counts = levels.new_zeros(_LEVELS + 1).scatter_add(0, levels, torch.ones_like(levels))
    step = (levels.numel() - counts.take(levels.max())) // _LEVELS
    table = (counts.cumsum(0) - counts + step // 2) // step.clamp(min=1)
    equalised = table.clamp(max=_LEVELS).to(image.dtype).div(_LEVELS).take(levels).view_as(image)
    return torch.where(step > 0, equalised, image)  # 0: a constant image, or next to it


def posterise(image: torch.Tensor, bits: float) -> torch.Tensor:
    """Keep the highest bits, the whole part of `bits`, of the 8 of a grey level."""
    levels = (image * _LEVELS).round()
    return (levels - levels % 2 ** (8 - int(bits))) / _LEVELS


def sharpness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend of the smoothed image (0) and the image (1): 3 x 3, centre weight 5, others 1; the border stays."""
    smooth = image.clone()
    smooth[:, 1:-1, 1:-1] = (9 * F.avg_pool2d(image, 3, stride=1) + 4 * image[:, 1:-1, 1:-1]) / 13
    return torch.lerp(smooth, image, factor)


def solarise(image: torch.Tensor, threshold: float) -> torch.Tensor:
    """Invert the values from the threshold on."""
    return torch.where(image < threshold, image, 1 - image)


# Name: function, range of the magnitude. All factors of a blend are below 1: they darken, flatten and blur.
_BLEND = (0.05, 0.95)
_INTENSITY: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, float] | None]] = {
    "autocontrast": (autocontrast, None),
    "brightness": (brightness, _BLEND),
    "contrast": (contrast, _BLEND),
    "equalise": (equalise, None),
    "identity": (identity, None),
    "posterise": (posterise, (4, 9)),  # 4 to 8 bits: the end is not drawn
    "sharpness": (sharpness, _BLEND),
    "solarise": (solarise, (0, 1)),
}
_GEOMETRIC: dict[str, tuple[Callable[[float, int, int], Matrix], tuple[float, float]]] = {
    "rotate": (rotate, (-30, 30)),  # degrees
    "shear_x": (shear_x, (-0.3, 0.3)),
    "shear_y": (shear_y, (-0.3, 0.3)),
    "translate_x": (translate_x, (-0.3, 0.3)),  # parts of the width
    "translate_y": (translate_y, (-0.3, 0.3)),  # parts of the height
}
POOL = tuple(sorted([*_INTENSITY, *_GEOMETRIC]))


def pool_transforms(prob: float) -> list[RandomizableTransform]:
    """New transforms of the operations in the order of `POOL`, each applied with this probability."""
    made: dict[str, RandomizableTransform] = {}
    for name, (change, ends) in _INTENSITY.items():
        made[name] = RandIntensity(change, magnitudes=ends, prob=prob)
    for name, (mapping, span) in _GEOMETRIC.items():
        made[name] = RandGeometric(mapping, magnitudes=span, prob=prob)
    return [made[name] for name in POOL]
