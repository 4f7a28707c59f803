"""Which images weights were trained on, so that nobody takes figures on them for those of unseen images.

Beside the weights `model.pt` stand, in `model.images.npy`, the checksums of the pixels (`image_hashes`) of all training
images, those without labels and those of the first weights too: 8 bytes an image, from which no image can be made.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.files import read_json, sha256, write_whole
from label_efficient.settings import SettingsError

_TRAINED_ON = ("train", "unlabelled")


def images_trained_on(data: Any, first_weights: str | None = None) -> np.ndarray | None:
    """Checksums of the images that training on a data set sees; None where they are not known.

    `first_weights` are those that it starts from, which have seen images of their own.
    """
    parts = [part.hashes for name, part in data.splits.items() if name in _TRAINED_ON]
    if any(hashes is None for hashes in parts):
        return None
    before = seen_images(first_weights) if first_weights else None
    seen = [hashes["digest"] for hashes in parts if hashes is not None]
    return np.unique(np.concatenate([*seen, *([] if before is None else [before])]))


def write_seen_images(weights: Path, images: np.ndarray) -> str:
    """Write them beside weights; returns the checksum of the file, which belongs into their description."""
    buffer = io.BytesIO()
    np.save(buffer, images)
    path = weights.with_suffix(".images.npy")
    write_whole(path, lambda file: file.write(buffer.getvalue()))
    return sha256(path)


def seen_images(weights: str | Path) -> np.ndarray | None:
    """The images that weights were trained on; None of weights that do not say it, or whose file is another's."""
    path, about = Path(weights).with_suffix(".images.npy"), Path(weights).with_suffix(".json")
    if not path.is_file() or not about.is_file():
        return None
    if read_json(about, "the description of the weights").get("images_sha256") != sha256(path):
        return None
    return np.load(path, allow_pickle=False)


def check_unseen(data: Any, weights: str | Path | None, setting: str) -> list[str]:
    """Sentences on images of validation and tests that weights were trained on, by the setting `copies`.

    Images that also stand in the training section of these data are not meant: they are copies, and told as such.

    Raises:
        SettingsError: If there are any and the setting is "error": their figures would be those of training.
    """
    seen = seen_images(weights) if weights and setting != "ignore" else None
    own = images_trained_on(data)
    if seen is None or own is None:
        return []
    found = {}
    for name, part in data.splits.items():
        if name not in _TRAINED_ON and len(part):
            digests = part.hashes["digest"]
            found[name] = int((np.isin(digests, seen) & ~np.isin(digests, own)).sum())
    numbers = ", ".join(f"{n} of {len(data.splits[name])} images of {name}" for name, n in found.items() if n)
    if not numbers:
        return []
    text = f"{weights} were trained on {numbers}: figures on them are not those of unseen images"
    if setting == "error" and not getattr(data, "published", False):
        raise SettingsError(f"{text}. Were training and test exchanged? copies=warn goes on all the same")
    return [text]
