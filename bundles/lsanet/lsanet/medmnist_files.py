"""Files of MedMNIST layout: found, downloaded with their checksum verified, read and checked."""

import contextlib
import hashlib
import http.client
import io
import logging
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from label_efficient.data.class_lists import SPLITS
from label_efficient.data.images import MOST_PIXELS
from label_efficient.files import checksum, read_arrays, write_whole
from label_efficient.settings import SettingsError

_FLAGS = (
    *("pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist"),
    *("bloodmnist", "tissuemnist", "organamnist", "organcmnist", "organsmnist"),
)
MEDMNIST_FLAGS = tuple(flag + size for size in ("", "_64", "_128", "_224") for flag in _FLAGS)

logger = logging.getLogger(__name__)


def find_npz(dataset: str, dataset_dir: str | None) -> Path:
    """Path of a MedMNIST-layout file, given by its path or by a MedMNIST flag.

    A flag's file is looked for in `dataset_dir`, then in medmnist's own folder, then downloaded to the first of them.

    Raises:
        SettingsError: If a path does not exist.
        ValueError: If a flag's file has another checksum than the published one.
        ConnectionError: If a flag's file is nowhere and cannot be downloaded.
    """
    if dataset not in MEDMNIST_FLAGS:
        places = [Path(dataset), *([Path(dataset_dir) / dataset] if dataset_dir else [])]
        for path in places:
            if path.is_file():
                return path
        raise SettingsError(f"dataset={dataset!r}: no such file (looked for {' and '.join(map(str, places))})")
    from medmnist.info import DEFAULT_ROOT

    if dataset_dir and not Path(dataset_dir).is_dir():
        raise SettingsError(f"dataset_dir={dataset_dir!r}: no such folder")
    folders = [Path(f) for f in (dataset_dir, DEFAULT_ROOT) if f]
    if not folders:
        raise SettingsError(f"dataset={dataset!r}: the home folder takes no files; give dataset_dir, a folder for them")
    for folder in folders:
        path = folder / f"{dataset}.npz"
        if path.is_file():
            _verify(dataset, path)
            return path
    path = folders[0] / f"{dataset}.npz"
    _download(dataset, path)
    return path


def official_flag(dataset: str, path: Path) -> str | None:
    """Flag whose published file this is, or None: the checksum decides, since anybody's file may bear the name."""
    if dataset in MEDMNIST_FLAGS:
        return dataset  # `find_npz` has compared the checksum
    found = checksum(path, "md5")
    return next((flag for flag in MEDMNIST_FLAGS if _published(flag)[1] == found), None)


def medmnist_info(flag: str) -> dict[str, Any]:
    """MedMNIST's own entry for a flag: task, class names, addresses and checksums."""
    # Without torchvision, medmnist prints advice that does not apply here.
    with contextlib.redirect_stdout(io.StringIO()):
        from medmnist.info import INFO

    return INFO[flag.split("_")[0]]


def _published(flag: str) -> tuple[str, str]:
    """Address and MD5 of a flag's file."""
    size = flag.partition("_")[2]
    suffix = f"_{size}" if size else ""
    info = medmnist_info(flag)
    return info[f"url{suffix}"], info[f"MD5{suffix}"]


def _verify(flag: str, path: Path) -> None:
    expected = _published(flag)[1]
    if (found := checksum(path, "md5")) != expected:
        raise ValueError(
            f"{path}: its MD5 is {found}, and MedMNIST's {flag} has {expected}: delete it to have it downloaded "
            f"again, or, if it is a file of your own, give its path as the dataset (--dataset {path})"
        )


def _download(flag: str, path: Path) -> None:
    # medmnist's own download() needs torchvision, which does not import beside every CPU build of torch, and hides
    # the error; the address and the checksum are medmnist's.
    url, expected = _published(flag)
    logger.info("downloading %s to %s", url, path)

    def save(file: BinaryIO) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for block in iter(lambda: answer.read(1 << 20), b""):
            digest.update(block)
            file.write(block)
        if (found := digest.hexdigest()) != expected:
            raise ConnectionError(f"what arrived has MD5 {found}, expected {expected}")

    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            write_whole(path, save)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"dataset={flag!r}: {path.name} is not in {path.parent} and could not be downloaded ({error}). Try again, "
            f"or, on a machine with a network, fetch {url} (MD5 {expected}) and put it there as {path}"
        ) from error


def read_npz(
    path: Path, *, max_pixels: int = MOST_PIXELS
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str] | None]:
    """Read a MedMNIST-layout file; images of more than `max_pixels` are refused.

    Returns:
        By split ("train", "val", "test"): images, uint8 N x H x W or N x H x W x 3, and labels, int64 (N,) or 0/1
        N x K. And the class names, if the file has them under the key `classes`.

    Raises:
        ValueError: Naming the file and every key at fault.
    """
    arrays = read_arrays(path)
    keys = [(f"{split}_images", f"{split}_labels") for split in SPLITS]
    problems = [f"{key} is missing" for pair in keys for key in pair if key not in arrays]
    if problems:
        raise ValueError(
            f"{path}: {'; '.join(problems)} (MedMNIST layout: train_images, train_labels, val_..., test_...)"
        )
    splits = {split: (arrays[images], arrays[labels]) for split, (images, labels) in zip(SPLITS, keys, strict=True)}
    for split, (images, labels) in splits.items():
        problems += _problems(split, images, labels, max_pixels)
    for index, kind in enumerate(("images", "labels")):
        shapes = {split: pair[index].shape[1:] for split, pair in splits.items()}
        if not problems and len(set(shapes.values())) > 1:
            problems.append(f"{kind} differ in shape: {shapes}")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    result = {}
    for split, (images, labels) in splits.items():
        labels = labels.astype(np.int64)
        flat = labels.reshape(-1) if labels.shape[1:] in ((), (1,)) else labels
        result[split] = (images[..., 0] if images.shape[3:] == (1,) else images, flat)
    classes = None
    if "classes" in arrays:
        classes = [c.decode() if isinstance(c, bytes) else str(c) for c in arrays["classes"].reshape(-1).tolist()]
        if len(set(classes)) < len(classes):
            raise ValueError(f"{path}: classes has a name twice: {', '.join(classes)}")
        labels = result["train"][1]
        highest = labels.shape[1] if labels.ndim == 2 else max(int(y.max()) for _, y in result.values()) + 1
        if highest > len(classes) or (labels.ndim == 2 and highest != len(classes)):
            raise ValueError(f"{path}: classes has {len(classes)} names, and the labels need {highest}")
    return result, classes


def _problems(split: str, images: np.ndarray, labels: np.ndarray, max_pixels: int) -> list[str]:
    problems = []
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        problems.append(f"{split}_images is {images.dtype} {images.shape}, expected uint8 N x H x W or N x H x W x 3")
    elif 0 in images.shape[1:]:
        problems.append(f"{split}_images has the shape {images.shape}: images without pixels")
    elif images.shape[1] * images.shape[2] > max_pixels:
        problems.append(f"{split}_images has the shape {images.shape}: larger than max_pixels={max_pixels} allows")
    if (
        not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool)
        or labels.shape[1:] == (0,)
        or not (1 <= labels.ndim <= 2)
    ):
        problems.append(f"{split}_labels is {labels.dtype} {labels.shape}, expected whole numbers, N or N x K")
    elif images.ndim and len(labels) != len(images):
        problems.append(f"{split} has {len(images)} images and {len(labels)} labels")
    elif len(labels) == 0:
        problems.append(f"{split} is empty")
    elif labels.min() < 0:
        problems.append(f"{split}_labels has {labels.min()}, expected 0 or more")
    elif labels.ndim == 2 and labels.shape[1] > 1 and labels.max() > 1:
        problems.append(f"{split}_labels has several columns and the value {labels.max()}, expected 0 and 1")
    return problems
