"""One section of a data set in memory: pictures and masks as uint8 at the network's size."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from label_efficient.data.image_copies import Compared
from label_efficient.data.image_hashes import HASH, hash_image
from label_efficient.data.images import ImageError, read_image
from label_efficient.data.list_checks import Entry
from label_efficient.data.mask_files import MaskError, read_mask

from .losses import UNKNOWN
from .mask_metrics import SSIM_WINDOW
from .plausibility import oddities, shape_of, warn_of_odd
from .transforms import Preprocess


@dataclass(frozen=True)
class Part:
    """One section of a data set."""

    images: np.ndarray  # uint8 N x S x S, as `transforms.Preprocess` makes them
    labels: np.ndarray  # int64 (N,), `losses.UNKNOWN` where an image has none
    masks: np.ndarray  # uint8 M x S x S of 0 and 1, of the images that have one
    mask_rows: np.ndarray  # int64 (N,), the image's position in `masks`, or -1
    entries: list[Entry]  # where each image comes from
    # int64 (N,): of unlabelled images, the class that the label budget took away, or `UNKNOWN`; only counted.
    hidden_labels: np.ndarray
    hashes: np.ndarray | None = None  # (N,) of `image_hashes.HASH`, where they are known

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> np.ndarray:
        """Positions of the images with a class."""
        return np.flatnonzero(self.labels != UNKNOWN)

    def compared(self) -> Compared:
        """The images, as `image_copies` compares them."""
        assert self.hashes is not None
        masks = [hash(self.masks[row].tobytes()) if row >= 0 else None for row in self.mask_rows]
        labels = [None if label == UNKNOWN else label for label in self.labels.tolist()]
        known = [{"label": label, "mask": mask} for label, mask in zip(labels, masks, strict=True)]
        tasks = [entry.tasks for entry in self.entries]
        return Compared([entry.file for entry in self.entries], self.hashes, known, self.images.__getitem__, tasks)

    @property
    def masked(self) -> np.ndarray:
        """Positions of the images with a mask."""
        return np.flatnonzero(self.mask_rows >= 0)


def read_part(
    entries: list[Entry], preprocess: Preprocess, num_workers: int, max_pixels: int, problems: list[str]
) -> Part:
    """Read the pictures and masks of entries in threads; what is wrong with any of them is added to `problems`.

    One warning names the masks that are unlike lungs.
    """
    size = preprocess.image_size
    images = np.zeros((len(entries), size, size), dtype=np.uint8)
    mask_rows = np.full(len(entries), -1, dtype=np.int64)
    hashes = [b""] * len(entries)
    masked = [i for i, entry in enumerate(entries) if entry.masks]
    mask_rows[masked] = np.arange(len(masked))
    masks = np.zeros((len(masked), size, size), dtype=np.uint8)
    odd: dict[int, tuple[str, str]] = {}

    def read(index: int) -> str | None:
        entry = entries[index]
        try:
            picture = read_image(entry.image, channels=1, max_pixels=max_pixels)[..., 0]
            images[index], hashes[index] = preprocess(picture), hash_image(picture)
            if entry.masks:
                if min(picture.shape) < SSIM_WINDOW:
                    return f"{entry.at}: {entry.image} is {picture.shape}, too small for a mask's SSIM ({SSIM_WINDOW})"
                mask = read_mask(entry.masks, entry.mask_values, (picture.shape[0], picture.shape[1]))
                masks[mask_rows[index]] = preprocess.mask(mask)
                if not masks[mask_rows[index]].any():
                    # Its Dice would be undefined, and look like a training that has diverged.
                    names = ", ".join(map(str, entry.masks))
                    return f"{entry.at}: {names}: no lungs are left of the mask at image_size={size}"
                if why := oddities(shape_of(masks[mask_rows[index]] == 1, images[index])):
                    odd[index] = entry.masks[0].name, why
        except (ImageError, MaskError) as error:
            return f"{entry.at}: {error}"
        return None

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        problems += [text for text in pool.map(read, range(len(entries))) if text is not None]
    warn_of_odd("reference masks", [odd[index] for index in sorted(odd)], len(masked))
    labels = np.array([UNKNOWN if e.label is None else e.label for e in entries], dtype=np.int64)
    unknown = np.full(len(entries), UNKNOWN)
    found = None if problems else np.frombuffer(b"".join(hashes), HASH)
    return Part(images, labels, masks, mask_rows, entries, unknown, found)
