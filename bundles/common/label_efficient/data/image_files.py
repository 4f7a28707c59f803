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
from label_efficient.data.images import MOST_PIXELS, ImageError, is_image_name, read_image, refusal
from label_efficient.data.tables import FILE_COLUMNS, listed, read_table
from label_efficient.files import name_of, path_of, printable, read_json, read_text
from label_efficient.run_account import is_of_a_run
from label_efficient.settings import SettingsError

_SMALL = 128 * 128 * 3  # bytes of an image
_MANY = 2000  # files from which on processes are worth their start

logger = logging.getLogger(__name__)


class UnreadableError(ValueError):
    """Image files that cannot be used: all of a list, in one message."""

    def __init__(self, source: str | Path, problems: Sequence[str]) -> None:
        super().__init__(listed(source, problems))
        self.problems = list(problems)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the images below a folder, through links too, in the same order on every machine.

    Returns:
        Paths that start with `folder`, sorted by their POSIX path in it: names with `IMAGE_SUFFIXES` (any
        case), and DICOM files without an ending except DICOMDIR; none whose name starts with ".", nor in the folder of
        a run; each file once.

    Raises:
        ImageError: the folder is missing, not a folder, unreadable in part, or holds no image.
    """
    return _find_files(folder)[0]


def _find_files(folder: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """The images below a folder, see `list_images`, and the other files: also links to an image that is listed."""
    top, errors, seen = Path(folder), list[OSError](), set[str]()
    found, links, places = dict[str, Path](), list[Path](), [top]
    for place in places:  # grows: what is behind links comes last, for a ring of them has no end
        for root, folders, names in os.walk(place, onerror=errors.append):
            real = os.path.realpath(root)
            folders[:] = sorted(f for f in folders if f[0] != "." and real not in seen and not is_of_a_run(root, f))
            if real in seen:
                continue
            seen.add(real)
            linked = [path for f in folders if (path := Path(root, f)).is_symlink()]
            # Above the folder there is the whole disk.
            places += [path for path in linked if not Path(real).is_relative_to(os.path.realpath(path))]
            for path in (Path(root, name) for name in sorted(names) if name[0] != "."):
                if path.is_symlink():
                    links.append(path)
                else:
                    found[os.path.join(real, path.name)] = path
    again = [path for path in links if found.setdefault(os.path.realpath(path), path) is not path]
    images = [path for path in found.values() if is_image_name(path)]
    if errors or not images:
        problem = f"cannot be listed ({errors[0]})" if errors else "no image in it"
        raise refusal(top, problem, "check the path")
    others = sorted({*found.values(), *again} - set(images))
    return sorted(images, key=lambda path: path.relative_to(top).as_posix()), others


def read_images(
    paths: Sequence[Path],
    num_workers: int = 0,
    *,
    cache: bool = True,
    hashed: bool = True,
    max_pixels: int = MOST_PIXELS,
) -> tuple[np.ndarray | Sequence[Path], np.ndarray | None]:
    """Read files as uint8 into one array N x H x W x 3, or N objects (H x W x 3 each) if their sizes differ.

    Without `cache` the files are only checked, those that an earlier start has read not even that, and their paths
    returned. Where `hashed`, their `image_hashes.HASH` are returned too, (N,). `max_pixels` is as of
    `images.read_image`.

    Raises:
        UnreadableError: Naming every file that cannot be used as an image, and why.
    """
    known = KnownHashes(paths if hashed else [], channels=3)
    hashes = [known[index] for index in range(len(paths))]
    images = np.empty(len(paths), dtype=object)
    block = np.empty(0, dtype=np.uint8)
    small = False
    with contextlib.suppress(ImageError, IndexError, MemoryError):
        first = read_image(paths[0], max_pixels=max_pixels)
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
    read = partial(_read, keep=cache, max_pixels=max_pixels)
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
    found = np.frombuffer(b"".join(hashes), HASH) if hashed else None
    return paths if not cache else block if uniform else images, found


def _read(path: str, wants_hash: bool, keep: bool, max_pixels: int) -> tuple[np.ndarray | None, bytes, str]:
    """Image, if it is kept, its hash, if it is wanted, and what is wrong with the file."""
    try:
        image = read_image(path, max_pixels=max_pixels)
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
        files = _read_file_list(Path(datalist))
        return [{"image": str(root / path_of(file)), "file": printable(file)} for file in files]
    if dataset_dir is None:
        return []
    root = Path(dataset_dir)
    if root.is_file():
        return [{"image": str(root), "file": printable(name_of(root.name))}]
    found, others = _find_files(root)
    if others:
        some = printable(", ".join(path.relative_to(root).as_posix() for path in others[:5]))
        text = "%d files are no images by their ending, or links to images that are listed, and are left out: %s"
        logger.warning(text, len(others), some)
    names = (printable(name_of(path.relative_to(root).as_posix())) for path in found)
    return [{"image": str(path), "file": name} for path, name in zip(found, names, strict=True)]


def _read_file_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"datalist={str(path)!r}: no such file")
    found: list[tuple[str, Any]]
    if path.suffix.lower() == ".json":
        content = read_json(path, "a list of image files")
        if isinstance(content, dict):
            content = content.get("test") or content.get("testing")
        items = content if isinstance(content, list) else []
        entries = [item.get("image", item) if isinstance(item, dict) else item for item in items]
        found = [(f"entry {n}", entry) for n, entry in enumerate(entries)]
    elif path.suffix.lower() == ".csv":
        table = read_table(path)
        column = table.column(*FILE_COLUMNS)
        if column is None:
            raise ValueError(f"{path}: its columns are {', '.join(table.columns)}, expected one called file")
        found = [(f"line {n}", line[column]) for n, line in table.lines]
    else:  # names that are not UTF-8, too, as `ls` writes them
        lines = enumerate(read_text(path, "surrogateescape").split("\n"), start=1)
        found = [(f"line {n}", line.strip()) for n, line in lines if line.strip()]
    wrong = [f"{at} is {file!r:.80}" for at, file in found if not isinstance(file, str) or not file]
    if wrong or not found:
        expected = "expected a list of image files (a section test, a column file, or a path a line)"
        raise ValueError(listed(path, [f"{problem}: {expected}" for problem in wrong] or [f"no files: {expected}"]))
    return [file for _, file in found]
