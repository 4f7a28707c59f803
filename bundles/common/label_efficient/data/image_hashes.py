"""What an image is known by: a checksum of its pixels, and a sketch of it that copies in other files share.

The checksum is of the decoded 8-bit pixels, so that PNG, TIFF, BMP and DICOM of one image have the same; grey stored as
colour counts as grey. The sketch is the image in grey at 16 x 16 pixels, whatever its shape (a perceptual hash).
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

SIDE = 16
HASH = np.dtype([("digest", "<u8"), ("sketch", "u1", (SIDE, SIDE))])
_VERSION = b"1"  # of what is kept on disk: another one wherever readers or hashes change
_LEAST_FILES = 1000  # fewer are read again in no time
_MOST_KEPT = 2_000_000  # images, 600 MB

ResultT = TypeVar("ResultT")

logger = logging.getLogger(__name__)


def hash_image(image: np.ndarray) -> bytes:
    """`HASH` of an image, uint8 H x W or H x W x 1 or 3, as bytes."""
    planes = image[..., None] if image.ndim == 2 else image
    grey = np.ascontiguousarray(planes[..., 0])
    picture, content = Image.fromarray(grey), grey
    if any((planes[..., channel] != grey).any() for channel in range(1, planes.shape[2])):
        content = np.ascontiguousarray(image)
        picture = Image.fromarray(content).convert("L")
    digest = hashlib.blake2b(content.data, digest_size=8, salt=np.array(grey.shape, "<u4").tobytes()).digest()
    return digest + picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR).tobytes()


def hash_images(images: Iterable[np.ndarray]) -> np.ndarray:
    """`HASH` of images, (N,)."""
    return np.frombuffer(b"".join(map(hash_image, images)), HASH)


class KnownHashes:
    """Hashes of files that an earlier start has read, kept in the user's cache folder.

    A file is known by its path, size and times; of these only a checksum is kept, for names may be those of patients.
    A cache that cannot be used is done without, with a warning.

    Args:
        paths: Of the files. Of fewer than a thousand nothing is kept.
        channels: How many `images.read_image` gives.
    """

    def __init__(self, paths: Sequence[Path], channels: int) -> None:
        self.keys = [_key(path, channels) for path in paths] if len(paths) >= _LEAST_FILES else []
        found = _with_cache(self._look_up) if self.keys else []
        self.found = dict(found or ())
        if found is None:
            self.keys = []

    def __getitem__(self, index: int) -> bytes:
        """Hash of the file at a position, or nothing."""
        return self.found.get(self.keys[index], b"") if self.found else b""

    def keep(self, hashes: Sequence[bytes]) -> None:
        """Keep those that were not known, of all files."""
        rows = [(key, found) for key, found in zip(self.keys, hashes, strict=False) if key and key not in self.found]
        if rows:
            _with_cache(lambda database: _insert(database, rows))

    def _look_up(self, database: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
        parts = [self.keys[start : start + 500] for start in range(0, len(self.keys), 500)]
        query = "SELECT key, hash FROM hashes WHERE length(hash) = ? AND key IN (%s)"
        found = (database.execute(query % ",".join("?" * len(part)), [HASH.itemsize, *part]) for part in parts)
        return [row for rows in found for row in rows]


def _key(path: Path, channels: int) -> bytes:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return b""
    times = f"{channels} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} "
    return hashlib.blake2b(_VERSION + times.encode() + os.fsencode(os.path.abspath(path)), digest_size=16).digest()


def _insert(database: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
    database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", rows)
    database.execute("DELETE FROM hashes WHERE rowid <= (SELECT max(rowid) FROM hashes) - ?", [_MOST_KEPT])


def _with_cache(act: Callable[[sqlite3.Connection], ResultT]) -> ResultT | None:
    """What is done with the cache gives, or None where there is no cache that can be used."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "label_efficient")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(folder / "image_hashes.sqlite3", timeout=20)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS hashes (key BLOB PRIMARY KEY, hash BLOB)")
            return act(database)
    except (OSError, RuntimeError, sqlite3.Error) as error:  # RuntimeError: there is no home
        text = "the cache of image hashes cannot be used (%s): the next start reads all files again"
        logger.warning(text, error)
        return None
