"""Files written whole or not at all and read if they are files, names, JSON, CSV, arrays, checksums, versions."""

import codecs
import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# What a spreadsheet takes for the beginning of a formula; an empty cell begins with none of them.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|-inf", re.IGNORECASE)
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


def path_of(name: str) -> Path:
    """Path of a file that a list names: its UTF-8 bytes, whatever the system's encoding of names."""
    try:
        return Path(os.fsdecode(name.encode("utf-8", "surrogateescape")))
    except UnicodeEncodeError:  # no file is called so, as whoever opens it will say
        return Path(name)


def name_of(path: str | os.PathLike[str]) -> str:
    """Name for a list, from which `path_of` makes the path; bytes that are not UTF-8 are lone surrogates in it."""
    try:
        return os.fsencode(path).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # out of a list, not from a folder
        return str(path)


def printable(text: object) -> str:
    r"""Text that every UTF-8 file and page can hold: of a name's bytes that are not UTF-8, 0xff becomes `\udcff`."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def no_file(path: str | os.PathLike[str]) -> str:
    """What is wrong with a path that should be that of a regular file; nothing: an empty text."""
    if os.path.isfile(path):
        return ""
    found = "is a pipe, socket or device" if os.path.exists(path) else "does not exist"
    return "is a folder" if os.path.isdir(path) else found


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; an OSError for anything else: a pipe or a device might never end."""
    path = Path(path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
    return path.open("rb")


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """Text in UTF-8, or with a byte-order mark in UTF-16 or UTF-32; `errors` as of `bytes.decode`.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: For other bytes, with line and column; NUL is no text either.
    """
    with open_file(path) as file:
        content = file.read()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, errors)
        before, found = text.partition("\0")[:2]
    except UnicodeDecodeError as error:
        before, found = content[: error.start].decode(encoding, "replace"), f"the byte 0x{content[error.start]:02x}"
    if found:
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = "a NUL" if found == "\0" else f"{found}, which is not {encoding.upper()}"
        raise ValueError(f"{printable(path)}, line {line}, column {column}: {what}; save it as text in UTF-8")
    return text


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


def short_name(name: str) -> str:
    """What stands for a name of any length in that of the file that `write_whole` renames."""
    return hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:16]


def write_whole(path: str | Path, write: Callable[[BinaryIO], Any], *, earlier: Path | None = None) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed.

    The file that was there is replaced, or kept under the name `earlier`.

    Raises:
        OSError: Naming the file and, of a full disk, what to do; what was there is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{short_name(path.name)}.{os.getpid()}.tmp")
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
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{printable(path)}: no such file, expected {what}")
    try:
        return json.loads(read_text(path), object_pairs_hook=_distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)}: not readable as JSON ({error}), expected {what}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return content


def sha256(path: str | Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    return checksum(path, "sha256")


def checksum(path: str | Path, algorithm: str) -> str:
    """Checksum of a file by one of hashlib's algorithms, as hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open_file(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz, without ever unpickling anything; ValueError: it is none, or larger than memory."""
    try:
        with open_file(path) as file:
            if zipfile.is_zipfile(file):  # what it says of its size is all that is ever read of it
                size, memory = sum(part.file_size for part in zipfile.ZipFile(file).infolist()), _memory()
                if size > memory:
                    raise MemoryError(f"{size / 1e9:.1f} GB of arrays, and this machine has {memory / 1e9:.1f} GB")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
    except Exception as error:  # zipfile and numpy raise all kinds
        raise ValueError(f"{printable(path)}: not readable as .npz ({error})") from error


def _memory() -> float:
    """Bytes of the machine's memory; without end where the system does not tell."""
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else math.inf


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's figures."""
    found = {"python": platform.python_version()}
    for name in ("torch", "monai", "pytorch-ignite", "numpy", "medmnist", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
