"""From files to the network's input and back: the same pixels in training, evaluation and inference."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.nn import functional as F

from label_efficient.data.images import read_image


class Preprocess:
    """Grey picture of any size to the network's square of `image_size` pixels, kept as uint8.

    Rounded to uint8 once, after the resizing, so that what is kept in memory is small and training, evaluation and
    inference see the same values. The network's input is these values divided by 255.

    Args:
        image_size: Pixels a side.
        keep_aspect: Whether a picture that is not square is padded with black to a square, centred. If not, it is
            squeezed.
    """

    def __init__(self, *, image_size: int, keep_aspect: bool = True) -> None:
        self.image_size = image_size
        self.keep_aspect = keep_aspect

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Picture uint8 H x W to uint8 S x S."""
        return self._resize(image).round().clamp(0, 255).to(torch.uint8).numpy()

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


class LoadPictured(MapTransform):
    """Dictionary transform: path of a picture to a grey uint8 MetaTensor 1 x H x W; see `_images.read_image`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths under the keys by pictures."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            picture = torch.from_numpy(read_image(loaded[key], channels=1)).permute(2, 0, 1)
            meta = {"filename_or_obj": str(loaded[key]), "original_size": tuple(picture.shape[1:])}
            loaded[key] = MetaTensor(picture, affine=torch.eye(4), meta=meta)
        return loaded


class Preprocessd(MapTransform):
    """Dictionary version of `Preprocess`, of one picture 1 x H x W to the network's input 1 x S x S, 0..1."""

    def __init__(self, keys: KeysCollection, preprocess: Preprocess) -> None:
        super().__init__(keys)
        self.preprocess = preprocess

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Preprocess the pictures under the keys."""
        processed = dict(data)
        for key in self.key_iterator(processed):
            picture = processed[key]
            stored = torch.from_numpy(self.preprocess(np.asarray(picture)[0]))[None]
            meta = picture.meta if isinstance(picture, MetaTensor) else {}
            processed[key] = MetaTensor(to_input(stored), meta=meta)
        return processed
