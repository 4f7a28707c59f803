"""Names of files that a run writes, made from names that it was given: the one place where they are made safe."""

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

_LONGEST_PART, _LONGEST = 200, 1000  # bytes; most file systems take 255 a part, and something is added to it
_REFUSED = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')  # control characters, and what Windows has no file with


def output_name(name: str) -> str:
    """A relative path of which nothing lies outside of the folder that it is put into, from any path.

    Neither absolute nor with `..`; no character that an encoding or a file system refuses; no part and no path too
    long: what is cut gets a checksum of the whole instead.
    """
    parts = [p for p in PurePosixPath(name.replace("\\", "/")).parts if p.strip("/") not in ("", ".", "..")]
    safe = [_short(_REFUSED.sub(lambda m: f"%{ord(m[0]):02X}", _printable(part)), part) for part in parts]
    path = "/".join(safe) or "unnamed"
    return path if len(path.encode()) <= _LONGEST else _short(safe[-1], name, force=True)


def is_inside(name: str) -> bool:
    """Whether a name with `/` between folders is one of a file inside the folder that it is put into."""
    return not (_REFUSED.search(name) or {"", ".", ".."} & set(name.split("/")))


def picture_names(files: Iterable[str]) -> dict[str, str]:
    """Names of the pictures drawn of image files: the file's, made safe, with `.png` behind it; no two alike."""
    return told_apart({file: f"{output_name(file)}.png" for file in files})


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Output names by file; of those that a file system may take for one, all but the first get a checksum."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for file, name in names.items():
        path, number = PurePosixPath(name), 0
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            name = path.with_name(f"{_checksum(f'{number}{file}')}-{path.name}").as_posix()
            number += 1
        found[file] = name
        taken.add(key)
    return found


def _short(part: str, whole: str, force: bool = False) -> str:
    if len(part.encode()) <= _LONGEST_PART and not force:
        return part
    suffix = "".join(PurePosixPath(part).suffixes[-2:])[-12:]
    kept = part.encode()[: _LONGEST_PART - 70].decode("utf-8", "ignore")
    return f"{kept}-{_checksum(whole)}{suffix}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _printable(text: str) -> str:
    """The text with every character that a file's name cannot be written with here (%XX: a byte of a bad name)."""
    found = "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)
    return (
        found.encode(sys.getfilesystemencoding(), "backslashreplace")
        .decode(sys.getfilesystemencoding())
        .replace("\\", "%")
    )
