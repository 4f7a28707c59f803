"""Image files as a data set for inference."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from label_efficient.data.images import ImageError


class PictureSet(Dataset):
    """Preprocessed images of the files of `find_images`; an unreadable one becomes a black image with its `error`.

    Gives `image`, `size` (height and width of the picture, where the transform keeps it as `original_size`), `file`,
    `path` and `error`. The stand-in for a bad file is `channels` x `image_size` x `image_size`.
    """

    def __init__(
        self, data: Sequence[Mapping[str, str]], transform: Callable[..., Any], image_size: int, channels: int = 3
    ) -> None:
        self.data = data
        self.transform = transform
        self.shape = (channels, image_size, image_size)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        try:
            image = torch.as_tensor(self.transform({"image": item["image"]})["image"])
            # Plain: the collation of metadata of mixed files is slow, and nothing else of them is read.
            size = getattr(image, "meta", {}).get("original_size", image.shape[1:])
            image, error = image.as_subclass(torch.Tensor), ""
        except Exception as problem:
            # One bad file costs its own row only; MONAI wraps what a transform raises.
            cause = problem
            while cause.__cause__ is not None and not isinstance(cause, ImageError):
                cause = cause.__cause__  # type: ignore[assignment]
            image, size, error = torch.zeros(self.shape), self.shape[1:], str(cause) or repr(cause)
        return {"image": image, "size": torch.tensor(size), "file": item["file"], "error": error, "path": item["image"]}
