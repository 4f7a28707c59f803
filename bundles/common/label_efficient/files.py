"""Files written whole or not at all, JSON, CSV, arrays, checksums, versions."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# What a spreadsheet takes for the beginning of a formula; an empty cell begins with none of them.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|-inf", re.IGNORECASE)

_THEN = "then type the command again (a training goes on with resume=true)"
DISK_FULL = {
    errno.ENOSPC: f"no space left on its disk: free some, {_THEN}",
    errno.EDQUOT: f"the quota of its disk is used up: free some, {_THEN}",
    errno.EFBIG: f"larger than a file may be here (see `ulimit -f`): raise the limit, {_THEN}",
}


class _Disk(io.FileIO):
    """A file that remembers the error of a write: torch.save turns it into one that says nothing of the disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def write_whole(path: str | Path, write: Callable[[BinaryIO], Any], *, earlier: Path | None = None) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed.

    The file that was there is replaced, or kept under the name `earlier`.

    Raises:
        OSError: Naming the file and, of a full disk, what to do; what was there is as it was.
    """
    path = Path(path)
    name = hashlib.sha256(path.name.encode(errors="backslashreplace")).hexdigest()[:16]  # of any length
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    disk = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = _Disk(temporary, "wb")
        with io.BufferedWriter(disk) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if earlier is not None and path.is_file():
            os.replace(path, earlier)
        os.replace(temporary, path)
    except Exception as error:
        cause = (disk and disk.error) or error
        if isinstance(cause, OSError) and (cause is not error or cause.errno in DISK_FULL):
            raise OSError(cause.errno, DISK_FULL.get(cause.errno or 0, cause.strerror), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all. NaN becomes null: it is not JSON. Other objects become their text.

    A name that is not UTF-8 is escaped, as in `write_csv`.
    """
    text = json.dumps(_json_safe(content), indent=2, ensure_ascii=False)
    write_whole(path, lambda file: file.write((text + "\n").encode(errors="backslashreplace")))


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return _json_safe(value.item()) if hasattr(value, "item") else str(value)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV, whole or not at all; a missing or None value is an empty cell.

    A cell that a spreadsheet would compute as a formula gets an apostrophe before it, as OWASP advises ("CSV
    injection"): names of files and classes are anybody's. `read_csv` takes it away again.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *[[row.get(name) for name in columns] for row in rows]]
    text = "".join(",".join(map(_cell, line)) + "\n" for line in lines)
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV of ours, its cells as they were before it was written."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{plain_cell(k): plain_cell(v) for k, v in row.items()} for row in csv.DictReader(file)]


def plain_cell(text: str) -> str:
    """A cell without the apostrophe that keeps a spreadsheet from computing it."""
    return text[1:] if text[:1] == "'" and text.lstrip("'")[:1] in _FORMULA else text


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    if text.lstrip("'")[:1] in _FORMULA and not _NUMBER.fullmatch(text):
        text = "'" + text
    # Also where it is not the separator here: in some countries a spreadsheet begins another cell at a semicolon.
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',;"\t\r\n') else text


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; FileNotFoundError: no such file, ValueError: none in it. Both say that `what` was expected."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}), expected {what}") from error


def sha256(path: str | Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    return checksum(path, "sha256")


def checksum(path: str | Path, algorithm: str) -> str:
    """Checksum of a file by one of hashlib's algorithms, as hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz, without ever unpickling anything; ValueError: it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not readable as .npz ({error})") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's figures."""
    found = {"python": platform.python_version()}
    for name in ("torch", "monai", "pytorch-ignite", "numpy", "medmnist", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
