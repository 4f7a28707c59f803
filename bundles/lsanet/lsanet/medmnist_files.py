"""Files of MedMNIST layout: found, downloaded with their checksum verified, read and checked."""

import hashlib
import logging
import shutil
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ._common import SettingsError, write_whole

_FLAGS = (
    "pathmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
)
_SIZES = ("", "_64", "_128", "_224")
MEDMNIST_FLAGS = tuple(flag + size for size in _SIZES for flag in _FLAGS)

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
        for path in (Path(dataset), Path(dataset_dir or ".") / dataset):
            if path.is_file():
                return path
        raise SettingsError(f"dataset={dataset!r}: no such file")
    from medmnist.info import DEFAULT_ROOT

    folders = [Path(f) for f in (dataset_dir, DEFAULT_ROOT) if f]
    if dataset_dir and not folders[0].is_dir():
        raise SettingsError(f"dataset_dir={dataset_dir!r}: no such folder")
    for folder in folders:
        path = folder / f"{dataset}.npz"
        if path.is_file():
            _verify(dataset, path)
            return path
    path = folders[0] / f"{dataset}.npz"
    _download(dataset, path)
    return path


def medmnist_info(dataset: str, path: Path) -> dict[str, Any] | None:
    """MedMNIST's own entry (task, class names) for a flag, or for a file that is the official one."""
    # A file of the user's own may bear an official name: the checksum decides, not the name.
    if path.stem not in MEDMNIST_FLAGS or (dataset not in MEDMNIST_FLAGS and md5(path) != _published(path.stem)[1]):
        return None
    from medmnist import INFO

    return INFO[path.stem.split("_")[0]]


def _published(flag: str) -> tuple[str, str]:
    """Address and MD5 of a flag's file."""
    from medmnist import INFO

    name, _, size = flag.partition("_")
    suffix = f"_{size}" if size else ""
    return INFO[name][f"url{suffix}"], INFO[name][f"MD5{suffix}"]


def md5(path: Path) -> str:
    """Checksum of a file as MedMNIST publishes it."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _verify(flag: str, path: Path) -> None:
    expected = _published(flag)[1]
    if (found := md5(path)) != expected:
        raise ValueError(
            f"{path}: its MD5 is {found}, and MedMNIST's {flag} has {expected}: delete it to have it downloaded "
            f"again, or, if it is a file of your own, give its path as the dataset (--dataset {path})"
        )


def _download(flag: str, path: Path) -> None:
    # medmnist's own download() needs torchvision, which does not import beside every CPU build of torch, and hides
    # the error; the address and the checksum are medmnist's.
    url, expected = _published(flag)
    logger.info("downloading %s to %s", url, path)
    part = path.with_suffix(".download")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            write_whole(part, lambda file: shutil.copyfileobj(answer, file))
        if (found := md5(part)) != expected:
            raise ConnectionError(f"{url}: what arrived has MD5 {found}, expected {expected}; try again")
        part.replace(path)
    except OSError as error:
        raise ConnectionError(
            f"dataset={flag!r}: {path.name} is not in {path.parent} and could not be downloaded ({error}). On a "
            f"machine with a network, fetch {url} (MD5 {expected}) and put it there as {path}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def read_npz(path: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str] | None]:
    """Read a MedMNIST-layout file.

    Returns:
        By split ("train", "val", "test"): images, uint8 N x H x W or N x H x W x 3, and labels, int64 (N,) or 0/1
        N x K. And the class names, if the file has them under the key `classes`.

    Raises:
        ValueError: Naming the file and every key at fault.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not readable as .npz ({error})") from error
    problems = [
        f"{split}_{kind} is missing"
        for split in ("train", "val", "test")
        for kind in ("images", "labels")
        if f"{split}_{kind}" not in arrays
    ]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)} (MedMNIST layout: train_images, train_labels, val_..., test_...)")
    splits = {}
    for split in ("train", "val", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        problems += _problems(split, images, labels)
        splits[split] = (images, labels)
    if not problems and len({images.shape[1:] for images, _ in splits.values()}) > 1:
        problems.append(f"images differ in shape: { {s: i.shape[1:] for s, (i, _) in splits.items()} }")
    if not problems and len({labels.shape[1:] for _, labels in splits.values()}) > 1:
        problems.append(f"labels differ in shape: { {s: y.shape[1:] for s, (_, y) in splits.items()} }")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    result = {}
    for split, (images, labels) in splits.items():
        labels = labels.astype(np.int64)
        flat = labels.reshape(-1) if labels.ndim == 1 or labels.shape[1] == 1 else labels
        result[split] = (images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images, flat)
    _refuse_shared_images(path, result)
    classes = [str(c) for c in arrays["classes"]] if "classes" in arrays else None
    if classes is not None:
        labels = result["train"][1]
        highest = labels.shape[1] if labels.ndim == 2 else max(int(y.max()) for _, y in result.values()) + 1
        if highest > len(classes) or (labels.ndim == 2 and highest != len(classes)):
            raise ValueError(f"{path}: classes has {len(classes)} names, and the labels need {highest}")
    return result, classes


def _problems(split: str, images: np.ndarray, labels: np.ndarray) -> list[str]:
    problems = []
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        problems.append(f"{split}_images is {images.dtype} {images.shape}, expected uint8 N x H x W or N x H x W x 3")
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool) or labels.ndim not in (1, 2):
        problems.append(f"{split}_labels is {labels.dtype} {labels.shape}, expected whole numbers, N or N x K")
    elif len(labels) != len(images):
        problems.append(f"{split} has {len(images)} images and {len(labels)} labels")
    elif len(labels) == 0:
        problems.append(f"{split} is empty")
    elif labels.min() < 0:
        problems.append(f"{split}_labels has {labels.min()}, expected 0 or more")
    elif labels.ndim == 2 and labels.shape[1] > 1 and labels.max() > 1:
        problems.append(f"{split}_labels has several columns and the value {labels.max()}, expected 0 and 1")
    return problems


def _refuse_shared_images(path: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    seen: dict[bytes, tuple[str, int]] = {}
    shared = []
    for split, (images, _) in splits.items():
        for index, image in enumerate(images):
            key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            first = seen.setdefault(key, (split, index))
            if first[0] != split:
                shared.append((first, (split, index)))
    if shared:
        # The official files have some of these: they are what the published figures stand on.
        logger.warning(
            "%s: %d images stand in two splits pixel by pixel, for example %s %d and %s %d: figures on the later "
            "split are too good by them",
            path.name,
            len(shared),
            *shared[0][0],
            *shared[0][1],
        )
