"""Dictionary transforms of a classifier: image files to pixels, logits to probabilities."""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from label_efficient.data.images import MOST_PIXELS, read_image


class LoadPictured(MapTransform):
    """Path of an image file to a uint8 MetaTensor, channels (3 or 1) x H x W; see `images.read_image`.

    Its metadata have the file as `filename_or_obj` and height and width as `original_size`.
    """

    def __init__(self, keys: KeysCollection, channels: int = 3, max_pixels: int = MOST_PIXELS) -> None:
        super().__init__(keys)
        self.channels = channels
        self.max_pixels = max_pixels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths under the keys by images."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            image = load_image(loaded[key], self.channels, self.max_pixels)
            meta = {"filename_or_obj": str(loaded[key]), "original_size": tuple(image.shape[1:])}
            loaded[key] = MetaTensor(image, affine=torch.eye(4), meta=meta)
        return loaded


class Preprocessd(MapTransform):
    """A bundle's preprocessing of one picture, under `keys`."""

    def __init__(self, keys: KeysCollection, preprocess: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(keys)
        self.preprocess = preprocess

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Preprocess the pictures under the keys."""
        return {**data, **{key: self.preprocess(data[key]) for key in self.key_iterator(dict(data))}}


class Probabilitiesd(MapTransform):
    """Logits (... x K), divided by the calibration's temperature (above 0), to probabilities.

    With `multi_label` it is the sigmoid of each output instead of the softmax of all.
    """

    def __init__(self, keys: KeysCollection, *, multi_label: bool = False, temperature: float = 1.0) -> None:
        super().__init__(keys)
        self.multi_label = multi_label
        self.temperature = temperature

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the logits under the keys by probabilities."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            logits = changed[key] / self.temperature
            changed[key] = torch.sigmoid(logits) if self.multi_label else torch.softmax(logits, dim=-1)
        return changed


def load_image(path: str | Path, channels: int = 3, max_pixels: int = MOST_PIXELS) -> torch.Tensor:
    """Read one image file as uint8, 3 (or 1) x H x W, 0..255; see `images.read_image`."""
    return torch.from_numpy(read_image(path, channels, max_pixels)).permute(2, 0, 1)


def to_uint8_picture(image: np.ndarray) -> np.ndarray:
    """Stored image, H x W or H x W x 1 or 3, as H x W x 3 uint8 for drawing."""
    image = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
