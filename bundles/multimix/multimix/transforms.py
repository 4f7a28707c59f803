"""From files to the network's input and back: the same pixels in training, evaluation and inference."""

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional as F


class Preprocess:
    """Grey picture of any size to the network's square of `image_size` pixels, kept as uint8.

    Rounded to uint8 once, after the resizing, so that what is kept in memory is small and training, evaluation and
    inference see the same values. The network's input is these values divided by 255. With `keep_aspect` a picture that
    is not square is padded with black to a square, centred; otherwise it is squeezed.
    """

    def __init__(self, *, image_size: int, keep_aspect: bool = True) -> None:
        self.image_size = image_size
        self.keep_aspect = keep_aspect

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Picture uint8 H x W to uint8 S x S."""
        return self._resize(image).round().clamp(0, 255).to(torch.uint8).numpy()

    def to_network(self, picture: torch.Tensor) -> MetaTensor:
        """Picture uint8 1 x H x W to the network's input 1 x S x S, with the metadata of the picture."""
        meta = picture.meta if isinstance(picture, MetaTensor) else {}
        return MetaTensor(to_input(torch.from_numpy(self(np.asarray(picture)[0]))[None]), meta=meta)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Mask bool H x W to uint8 S x S of 0 and 1: 1 where at least half of the pixel is in the mask."""
        return (self._resize(mask.astype(np.float32)) >= 0.5).to(torch.uint8).numpy()

    def _resize(self, picture: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(np.ascontiguousarray(picture)).float()[None, None]
        height, width = picture.shape
        if self.keep_aspect and height != width:
            left, right, top, bottom = self.padding(height, width)
            values = F.pad(values, (left, right, top, bottom))
        size = (self.image_size, self.image_size)
        if values.shape[2:] != size:
            values = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
        return values[0, 0]

    @staticmethod
    def padding(height: int, width: int) -> tuple[int, int, int, int]:
        """Black columns left and right, rows above and below, that make a picture square."""
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        return left, side - width - left, top, side - height - top

    def restore(self, values: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Values S x S of the network's output, such as probabilities, at the pixels of the original picture H x W."""
        if not self.keep_aspect:
            return _interpolate(values, height, width)
        side = max(height, width)
        left, right, top, bottom = self.padding(height, width)
        return _interpolate(values, side, side)[top : side - bottom, left : side - right]


def _interpolate(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    # Smaller pictures than the network's input are averaged, larger ones interpolated.
    smaller = height < values.shape[0] or width < values.shape[1]
    batch = F.interpolate(values[None, None], (height, width), mode="bilinear", antialias=smaller, align_corners=False)
    return batch[0, 0]


def to_input(stored: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """Stored pictures uint8 ... x H x W to the network's input, float32 0..1 on the device."""
    return stored.to(device=device, non_blocking=True).float().div(255)
