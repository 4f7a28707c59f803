"""Boxes that people have drawn around what matters in an image: Pascal-VOC XML files, or a CSV.

They judge where the network looks (`coverage`), and nothing is trained on them.

    * XML: a folder, searched with its subfolders, with one file per image, of the image's name
      (`BloodImage_00007.xml` for `BloodImage_00007.jpg`). VOC counts pixels from 1 and a box includes its last ones:
      pixels 1 to 640 become the edges 0 and 640.
    * CSV: columns file, xmin, ymin, xmax, ymax, or file, x, y, width, height, and optionally name (or class). The
      numbers are edges counted from 0: a box over a whole image of 640 pixels has xmin 0 and xmax 640. Columns of
      other names are ignored; so are width and height beside xmin to ymax, where they usually mean the image.

An image and its entry belong together if one path ends with the other (`JPEGImages/a.jpg` and `a`, not `left/a.jpg`
and `right/a`).

A box may pass the image's border by one pixel, which counting from 0 instead of 1 does, and is cut there; one that
passes it further is of another image, or of this one at another size. A box whose corners are one point is a click
without a drag (two of the 4888 boxes of BCCD) and is left out, as is the second of two equal boxes. How many there were
of each is in `ReferenceBoxes.remarks`.
"""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from label_efficient.data.images import IMAGE_SUFFIXES
from label_efficient.data.tables import CLASS_COLUMNS, FILE_COLUMNS, listed, read_table

TOLERANCE = 1.0  # pixels that a box may pass the image's border by
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_CORNER_AND_SIZE = ("x", "y", "width", "height")


@dataclass(frozen=True)
class ReferenceBox:
    """A box in pixels of the original image: its edges, x to the right and y down, and the name of what is in it."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float


class ReferenceBoxes(dict[str, list[ReferenceBox]]):
    """The boxes of every image by its file, an empty list where it has none; `remarks` says what was left out."""

    def __init__(self, boxes: Mapping[str, list[ReferenceBox]], remarks: Sequence[str]) -> None:
        super().__init__(boxes)
        self.remarks = list(remarks)


def read_reference_boxes(
    path: str | Path,
    files: Sequence[str],
    sizes: Mapping[str, tuple[int, int]] | Callable[[str], tuple[int, int]],
    *,
    other_files: Collection[str] = (),
) -> ReferenceBoxes:
    """Read and check the reference boxes of images.

    Args:
        path: A folder of Pascal-VOC XML files, or a CSV.
        files: The images, by their names in the tables.
        sizes: Height and width of each of `files` in pixels, as it is shown (after any EXIF rotation); a function is
            called only for images that have an entry.
        other_files: The other images of the data set, such as those of the other splits: what is said of them is
            skipped, and not mistaken for an image of `files` with the same name in another folder.

    Returns:
        The boxes of every one of `files`.

    Raises:
        FileNotFoundError: If there is no such folder or CSV.
        ValueError: With all problems in one message: XML that is malformed, has a DOCTYPE or is of another image (by
            its `filename` or `size`), boxes without area or outside of the image, numbers that are none, a CSV with
            images that the data set does not have, entries of which it is unclear which image they mean; or that
            none of `files` has a box, which would give no figure without a word.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder of Pascal-VOC XML files, and no such CSV of reference boxes")
    collected = _Collected(files, sizes.__getitem__ if isinstance(sizes, Mapping) else sizes)
    if path.is_dir():
        _read_folder(path, _Names(files, other_files, ending=False), collected)
    elif path.suffix.lower() == ".csv":
        _read_csv(path, _Names(files, other_files, ending=True), collected)
    else:
        raise ValueError(f"{path}: expected a folder of Pascal-VOC XML files, or a .csv")
    if collected.problems:
        raise ValueError(listed(path, collected.problems))
    if not any(collected.boxes.values()):
        example = files[0] if files else "no image"
        raise ValueError(
            f"{path}: no box for any of the {len(files)} images ({example}, ...): expected XML files named like the "
            "images, or a CSV whose column file has their names"
        )
    return ReferenceBoxes(collected.boxes, collected.remarks())


class _Names:
    """Finds the image that an entry means: one path must end with the other."""

    def __init__(self, files: Collection[str], other_files: Collection[str], ending: bool) -> None:
        self.files = frozenset(files)
        self.ending = ending
        self.by_last: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for file in dict.fromkeys([*files, *other_files]):
            parts = self._parts(file)
            self.by_last.setdefault(parts[-1], []).append((parts, file))

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = PurePosixPath(name.replace("\\", "/")).parts or ("",)
        return parts if self.ending else (*parts[:-1], _without_ending(parts[-1]))

    def find(self, entry: str) -> list[str]:
        """The images that it may mean: one if all is well."""
        parts = self._parts(entry)
        near = self.by_last.get(parts[-1], [])
        exact = [file for found, file in near if found == parts]
        return exact or [file for found, file in near if _ends_alike(found, parts)]


def _without_ending(name: str) -> str:
    # Not everything after a dot is an ending: DICOM files are often named by numbers with dots.
    endings = [ending for ending in IMAGE_SUFFIXES if name.lower().endswith(ending)]
    return name[: -max(map(len, endings))] if endings else name


def _ends_alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]


class _Collected:
    """Boxes, problems and counts, as they come."""

    def __init__(self, files: Sequence[str], size_of: Callable[[str], tuple[int, int]]) -> None:
        self.boxes: dict[str, list[ReferenceBox]] = {file: [] for file in files}
        self.size_of = size_of
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, at: str, file: str, name: str, corners: Sequence[float], *, first: int) -> None:
        """Add the box between two corners (xmin, ymin, xmax, ymax).

        VOC counts from `first` 1 and includes the last pixel, edges are counted from `first` 0.
        """
        xmin, ymin, xmax, ymax = corners
        shown = f"{at} reaches from ({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g})"
        if xmin == xmax and ymin == ymax:
            self.counts["points"] += 1
            return
        if xmax <= xmin or ymax <= ymin:
            self.problems.append(f"{shown}: expected xmin < xmax and ymin < ymax")
            return
        height, width = self.size_of(file)
        edges = (xmin - first, ymin - first, xmax, ymax)
        beyond = max(-edges[0], -edges[1], edges[2] - width, edges[3] - height)
        box = ReferenceBox(name, max(edges[0], 0), max(edges[1], 0), min(edges[2], width), min(edges[3], height))
        if beyond > TOLERANCE or box.x1 <= box.x0 or box.y1 <= box.y0:
            self.problems.append(
                f"{shown}, outside of the image of {width} x {height} pixels (width x height): is it of another image, "
                "or of another size of this one?"
            )
        elif box in self.boxes[file]:
            self.counts["repeated"] += 1
        else:
            self.counts["cut"] += beyond > 0
            self.boxes[file].append(box)

    def remarks(self) -> list[str]:
        """What was left out or changed, and how often."""
        empty = sum(not boxes for boxes in self.boxes.values())
        said = [
            (empty, f"of {len(self.boxes)} images have no reference box and do not count"),
            (self.counts["others"], "entries are for other images and were skipped"),
            (self.counts["points"], "boxes without extent (both corners the same) were left out"),
            (self.counts["repeated"], "boxes were there twice and count once"),
            (self.counts["cut"], f"boxes passed the image's border by {TOLERANCE:g} pixel or less and were cut there"),
        ]
        return [f"reference boxes: {number} {text}" for number, text in said if number]


class _VocBuilder(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Called before anything of the DTD is read. Entities are declared there: they can read files of this machine
        # or fill its memory, and VOC files have none.
        raise ValueError("it has a DOCTYPE, which Pascal-VOC files do not have: export it again")


def _read_folder(path: Path, names: _Names, collected: _Collected) -> None:
    used: dict[str, str] = {}
    found = [p for p in path.rglob("*") if p.suffix.lower() == ".xml" and p.name[0] != "." and p.is_file()]
    if not found:
        raise ValueError(f"{path}: no XML file in this folder or below it")
    for xml in sorted(found):
        entry = xml.relative_to(path).as_posix()
        matches = names.find(entry[: -len(".xml")])
        if len(matches) > 1:
            collected.problems.append(f"{entry}: it may be of {' or of '.join(matches)}: give it the image's folder")
        elif not matches or matches[0] not in names.files:
            collected.counts["others"] += 1
        elif other := used.get(matches[0]):
            collected.problems.append(f"{entry}: {matches[0]} has {other} already")
        else:
            used[matches[0]] = entry
            _read_xml(xml, entry, matches[0], collected)


def _read_xml(path: Path, entry: str, file: str, collected: _Collected) -> None:
    try:
        root = ET.fromstring(path.read_bytes(), parser=ET.XMLParser(target=_VocBuilder()))
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        collected.problems.append(f"{entry}: not readable as XML ({error})")
        return
    if root.tag != "annotation":
        collected.problems.append(f"{entry}: it is <{root.tag}>, expected Pascal VOC's <annotation>")
        return
    named = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    stem = path.name[: -len(".xml")]
    if named and _without_ending(named) != _without_ending(stem):
        collected.problems.append(f"{entry}: its <filename> is {named}, expected {PurePosixPath(file).name}")
        return
    height, width = collected.size_of(file)
    stored = [(root.findtext(f"size/{side}") or "nothing").strip() for side in ("width", "height")]
    if [_number(text) for text in stored] != [width, height]:
        collected.problems.append(
            f"{entry}: its <size> is {' x '.join(stored)}, and {file} has {width} x {height} pixels (width x height): "
            "is it of another image, or of another size of this one?"
        )
        return
    for number, thing in enumerate(root.findall("object"), start=1):
        name = (thing.findtext("name") or "").strip()
        texts = {corner: thing.findtext(f"bndbox/{corner}") for corner in _CORNERS}
        at = f"{entry}: box {number}{f' ({name})' if name else ''}"
        if (corners := _numbers(at, texts, collected.problems)) is not None:
            collected.add(at, file, name, corners, first=1)


def _read_csv(path: Path, names: _Names, collected: _Collected) -> None:
    table = read_table(path)
    file_column, name_column = table.column(*FILE_COLUMNS), table.column("name", *CLASS_COLUMNS)
    numeric = next((kind for kind in (_CORNERS, _CORNER_AND_SIZE) if all(map(table.column, kind))), None)
    if file_column is None or numeric is None:
        raise ValueError(
            f"{path}: its columns are {', '.join(table.columns)}; expected file, xmin, ymin, xmax, ymax, or file, x, "
            "y, width, height, and optionally name"
        )
    unknown: dict[str, list[int]] = {}
    for number, line in table.lines:
        entry = line[file_column]
        at = f"line {number} ({entry})"
        matches = names.find(entry)
        if len(matches) > 1:
            collected.problems.append(f"{at}: it may be {' or '.join(matches)}: give the folder too")
        elif not matches:
            unknown.setdefault(entry, []).append(number)
        elif matches[0] not in names.files:
            collected.counts["others"] += 1
        elif (values := _numbers(at, {c: line[table.column(c) or c] for c in numeric}, collected.problems)) is not None:
            if numeric is _CORNER_AND_SIZE:
                values = [values[0], values[1], values[0] + values[2], values[1] + values[3]]
            name = line[name_column] if name_column else ""
            collected.add(f"{at}: box", matches[0], name, values, first=0)
    collected.problems += [
        f"line {numbers[0]}{f' and {len(numbers) - 1} more' if len(numbers) > 1 else ''}: {entry!r} is no image of the "
        "data set"
        for entry, numbers in unknown.items()
    ]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _numbers(at: str, texts: Mapping[str, str | None], problems: list[str]) -> list[float] | None:
    values = {key: _number(text) for key, text in texts.items()}
    wrong = [f"{key}={(texts[key] or '').strip()!r}" for key, value in values.items() if not math.isfinite(value)]
    if wrong:
        problems.append(f"{at} has {', '.join(wrong)}, expected numbers")
        return None
    return list(values.values())
