"""Many image files: read in threads, into memory once, with all unreadable ones in one message."""

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_hashes import HASH, KnownHashes, hash_image
from label_efficient.data.images import ImageError, list_images, read_image
from label_efficient.data.tables import FILE_COLUMNS, listed, read_table
from label_efficient.files import read_json
from label_efficient.settings import SettingsError

_SMALL = 128 * 128 * 3  # bytes of an image
_MANY = 2000  # files from which on processes are worth their start

logger = logging.getLogger(__name__)


class UnreadableError(ValueError):
    """Image files that cannot be used: all of a list, in one message."""

    def __init__(self, source: str | Path, problems: Sequence[str]) -> None:
        super().__init__(listed(source, problems))
        self.problems = list(problems)


def read_images(
    paths: Sequence[Path], num_workers: int = 0, *, cache: bool = True, hashed: bool = True
) -> tuple[np.ndarray | Sequence[Path], np.ndarray | None]:
    """Read files as uint8 into one array N x H x W x 3, or N objects (H x W x 3 each) if their sizes differ.

    Without `cache` the files are only checked, those that an earlier start has read not even that, and their paths
    returned. Where `hashed`, their `image_hashes.HASH` are returned too, (N,).

    Raises:
        UnreadableError: Naming every file that cannot be used as an image, and why.
    """
    known = KnownHashes(paths if hashed else [], channels=3)
    hashes = [known[index] for index in range(len(paths))]
    images = np.empty(len(paths), dtype=object)
    block = np.empty(0, dtype=np.uint8)
    small = False
    with contextlib.suppress(ImageError, IndexError, MemoryError):
        first = read_image(paths[0])
        small = first.size <= _SMALL
        if cache:
            # Memory for all at the size of the first; what stays unused of it, the system never provides.
            block = np.empty((len(paths), *first.shape), dtype=np.uint8)
    uniform = True

    def place(index: int, image: np.ndarray | None, found: bytes, problem: str) -> str:
        nonlocal uniform
        hashes[index] = found
        if image is not None:
            uniform = uniform and image.shape == block.shape[1:]
            if uniform:
                block[index] = image
                image = block[index]
            images[index] = image
        return problem

    wanted = [index for index in range(len(paths)) if cache or not hashes[index]]
    tasks: list[list[Any]] = [
        [os.fspath(paths[index]) for index in wanted],
        [hashed and not hashes[index] for index in wanted],
    ]
    read = partial(_read, keep=cache)
    if small and num_workers > 1 and len(wanted) >= _MANY and "fork" in multiprocessing.get_all_start_methods():
        # Of small files the interpreter does most of the work, which threads would take turns in.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(num_workers, context) as processes:
            results = zip(wanted, processes.map(read, *tasks, chunksize=128), strict=True)
            problems = [place(i, image, found or hashes[i], text) for i, (image, found, text) in results]
    else:

        def work(index: int, path: str, wants_hash: bool) -> str:
            image, found, text = read(path, wants_hash)
            return place(index, image, found or hashes[index], text)

        with ThreadPoolExecutor(max(num_workers, 1)) as threads:
            problems = list(threads.map(work, wanted, *tasks))
    if problems := [text for text in problems if text]:
        raise UnreadableError("image files", problems)
    known.keep(hashes)
    return paths if not cache else block if uniform else images, np.frombuffer(
        b"".join(hashes), HASH
    ) if hashed else None


def _read(path: str, wants_hash: bool, keep: bool) -> tuple[np.ndarray | None, bytes, str]:
    """Image, if it is kept, its hash, if it is wanted, and what is wrong with the file."""
    try:
        image = read_image(path)
    except ImageError as error:
        return None, b"", str(error)
    return image if keep else None, hash_image(image) if wants_hash else b"", ""


def check_images(data: Sequence[Mapping[str, str]]) -> None:
    """Refuse to run on nothing (`SettingsError`): MONAI's evaluator would end without a word."""
    if not data:
        raise SettingsError("no images: give --dataset_dir FOLDER, or --datalist LIST")


def find_images(dataset_dir: str | None, datalist: str | None = None) -> list[dict[str, str]]:
    """Files to predict, as dictionaries with `image` (path) and `file` (name in the tables).

    All images below the folder; or those of a list, whose relative paths start at the folder, by default the list's. A
    list is JSON, of paths or of objects with `image`, or with such a section test; or a `.csv` with a column file; or
    text with one path a line; a FileNotFoundError if there is none, a ValueError if it is none of these or is empty.
    Without either there is no file: consumers that hand over single images need no folder.
    """
    if datalist is not None:
        root = Path(dataset_dir) if dataset_dir else Path(datalist).parent
        return [{"image": str(root / file), "file": file} for file in _read_file_list(Path(datalist))]
    if dataset_dir is None:
        return []
    root = Path(dataset_dir)
    if root.is_file():
        return [{"image": str(root), "file": root.name}]
    found = list_images(root)
    others = [p for p in root.rglob("*") if p.is_file() and p not in set(found) and not p.name.startswith(".")]
    if others:
        some = ", ".join(sorted(p.relative_to(root).as_posix() for p in others)[:5])
        logger.warning("%d files are not images by their ending and are left out: %s", len(others), some)
    return [{"image": str(path), "file": path.relative_to(root).as_posix()} for path in found]


def _read_file_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"datalist={str(path)!r}: no such file")
    files: list[Any]
    if path.suffix == ".json":
        content = read_json(path, "a list of image files")
        if isinstance(content, dict):
            content = content.get("test") or content.get("testing") or []
        files = [item.get("image") if isinstance(item, dict) else item for item in content]
    elif path.suffix == ".csv":
        table = read_table(path)
        column = table.column(*FILE_COLUMNS)
        if column is None:
            raise ValueError(f"{path}: its columns are {table.columns}, expected one called file")
        files = [line[column] for _, line in table.lines]
    else:
        files = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not files or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{path}: expected a list of image files (a section test, a column file, or a path a line)")
    return files
