"""Names of the files that are written for an image: inside of their folder, and each its own."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath


def inside_folder(file: str) -> PurePath:
    """The path without its root and without steps upwards, so that it names a place inside of any folder."""
    path = PurePath(file)
    return PurePath(*[part for part in path.parts if part not in (path.anchor, "..")])


def picture_names(files: Sequence[str]) -> dict[str, str]:
    """Names of the pictures drawn of image files: the file's with `.png` behind it.

    Absolute paths and `..` are cut off, so that no picture lands elsewhere. If two names are the same then, also to
    systems that take `A.png` and `a.png` for the same file, all begin with their place in the list.
    """
    inside = {file: inside_folder(file) for file in dict.fromkeys(files)}
    places = Counter(path.as_posix().casefold() for path in inside.values())
    number = "{}_" if max(places.values(), default=1) > 1 else ""
    return {
        file: path.with_name(f"{number.format(place)}{path.name}.png").as_posix()
        for place, (file, path) in enumerate(inside.items(), start=1)
    }
