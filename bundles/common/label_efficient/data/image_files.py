"""Many image files: read in threads, into memory once, with all unreadable ones in one message."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.images import ImageError, list_images, read_image
from label_efficient.data.tables import FILE_COLUMNS, listed, read_table
from label_efficient.files import read_json
from label_efficient.settings import SettingsError

logger = logging.getLogger(__name__)


class UnreadableError(ValueError):
    """Image files that cannot be used: all of a list, in one message."""

    def __init__(self, source: str | Path, problems: Sequence[str]) -> None:
        super().__init__(listed(source, problems))
        self.problems = list(problems)


def read_images(paths: Sequence[Path], num_workers: int = 0, *, cache: bool = True) -> np.ndarray | Sequence[Path]:
    """Read files as uint8 into one array N x H x W x 3, or N objects (H x W x 3 each) if their sizes differ.

    Without `cache` the files are only checked, and their paths returned.

    Raises:
        UnreadableError: Naming every file that cannot be used as an image, and why.
    """
    images = np.empty(len(paths), dtype=object)
    block = np.empty(0, dtype=np.uint8)
    if cache:
        # Memory for all at the size of the first; what stays unused of it, the system never provides.
        with contextlib.suppress(ImageError, MemoryError):
            block = np.empty((len(paths), *read_image(paths[0]).shape), dtype=np.uint8)
    uniform = True

    def problem(index: int) -> str:
        nonlocal uniform
        try:
            image = read_image(paths[index])
        except ImageError as error:
            return str(error)
        uniform = uniform and image.shape == block.shape[1:]
        if uniform:
            block[index] = image
            image = block[index]
        if cache:
            images[index] = image
        return ""

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        problems = [text for text in pool.map(problem, range(len(paths))) if text]
    if problems:
        raise UnreadableError("image files", problems)
    return paths if not cache else block if uniform else images


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
