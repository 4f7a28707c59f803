"""Names of files that a run writes, made from names that it was given: the one place where they are made safe."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_LONGEST_PART, _LONGEST = 200, 1000  # bytes; most file systems take 255 a part, and something is added to it
_REFUSED = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')  # control characters, and what Windows has no file with


def printable(text: str) -> str:
    """The text with every character that no encoding can write (a surrogate of a bad file name) as `%XX`."""
    return (
        "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)
        .encode("utf-8", "backslashreplace")
        .decode("utf-8")
    )


def output_name(name: str) -> str:
    """A relative path of which nothing lies outside of the folder that it is put into, from any path.

    Neither absolute nor with `..`; no character that an encoding or a file system refuses; no part and no path too
    long: what is cut gets a checksum of the whole instead.
    """
    parts = [p for p in PurePosixPath(name.replace("\\", "/")).parts if p not in ("/", "//", ".", "..")]
    safe = [_short(_REFUSED.sub(lambda m: f"%{ord(m[0]):02X}", printable(part)), part) for part in parts]
    path = "/".join(safe) or "unnamed"
    return path if len(path.encode()) <= _LONGEST else _short(safe[-1], name, force=True)


def output_names(names: Iterable[str], ending: str = "") -> dict[str, str]:
    """Output names of many, by name, with an ending; two names never share one (in any case of letters)."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        if name in found:
            continue
        safe = output_name(name)
        if f"{safe}{ending}".casefold() in taken:
            safe = f"{safe}-{_checksum(name)}"
        found[name] = f"{safe}{ending}"
        taken.add(found[name].casefold())
    return found


def _short(part: str, whole: str, force: bool = False) -> str:
    if len(part.encode()) <= _LONGEST_PART and not force:
        return part
    suffix = "".join(PurePosixPath(part).suffixes[-2:])[-12:]
    kept = part.encode()[: _LONGEST_PART - 30].decode("utf-8", "ignore")
    return f"{kept}-{_checksum(whole)}{suffix}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
