"""Boxes that people have drawn around what matters in an image: Pascal-VOC XML files, or a CSV.

They judge where the network looks (`coverage`); nothing is trained on them.

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
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from label_efficient.data.images import IMAGE_SUFFIXES
from label_efficient.data.tables import CLASS_COLUMNS, FILE_COLUMNS, listed, read_table

TOLERANCE = 1.0  # pixels that a box may pass the image's border by
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_CORNER_AND_SIZE = ("x", "y", "width", "height")
_ANOTHER = "is it of another image, or of another size of this one?"


@dataclass(frozen=True)
class ReferenceBox:
    """A box in pixels of the original image: its edges, x to the right and y down, and the name of what is in it."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float


class ReferenceBoxes(dict[str, list[ReferenceBox]]):
    """The boxes of every image by its file, an empty list where it has none, and what was wrong with the others."""

    def __init__(self, files: Sequence[str], size_of: Callable[[str], tuple[int, int]]) -> None:
        super().__init__((file, []) for file in files)
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
        x0, y0 = xmin - first, ymin - first
        beyond = max(-x0, -y0, xmax - width, ymax - height)
        box = ReferenceBox(name, max(x0, 0), max(y0, 0), min(xmax, width), min(ymax, height))
        if beyond > TOLERANCE or box.x1 <= box.x0 or box.y1 <= box.y0:
            outside = f"outside of the image of {width} x {height} pixels (width x height)"
            self.problems.append(f"{shown}, {outside}: {_ANOTHER}")
        elif box in self[file]:
            self.counts["repeated"] += 1
        else:
            self.counts["cut"] += beyond > 0
            self[file].append(box)

    @property
    def remarks(self) -> list[str]:
        """What was left out or changed, and how often."""
        empty = sum(not boxes for boxes in self.values())
        said = [
            (empty, f"of {len(self)} images have no reference box and do not count"),
            (self.counts["others"], "entries are for other images and were skipped"),
            (self.counts["points"], "boxes without extent (both corners the same) were left out"),
            (self.counts["repeated"], "boxes were there twice and count once"),
            (self.counts["cut"], f"boxes passed the image's border by {TOLERANCE:g} pixel or less and were cut there"),
        ]
        return [f"reference boxes: {number} {text}" for number, text in said if number]


def read_reference_boxes(
    path: str | Path,
    files: Sequence[str],
    size_of: Callable[[str], tuple[int, int]],
    *,
    other_files: Collection[str] = (),
) -> ReferenceBoxes:
    """Read and check the reference boxes of images.

    Args:
        path: A folder of Pascal-VOC XML files, or a CSV.
        files: The images, by their names in the tables.
        size_of: Height and width of one of `files` in pixels, as it is shown (after any EXIF rotation); called only
            for images that have an entry.
        other_files: The other images of the data set, such as those of the other splits: what is said of them is
            skipped, and not mistaken for an image of `files` with the same name in another folder.

    Raises:
        FileNotFoundError: If there is no such folder or CSV.
        ValueError: With all problems of the files in one message; or that none of `files` has a box, which would give
            no figure without a word.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder of Pascal-VOC XML files, and no such CSV of reference boxes")
    boxes = ReferenceBoxes(files, size_of)
    if path.is_dir():
        _read_folder(path, _Names([*files, *other_files], _without_ending), boxes)
    elif path.suffix.lower() == ".csv":
        _read_csv(path, _Names([*files, *other_files], str), boxes)
    else:
        raise ValueError(f"{path}: expected a folder of Pascal-VOC XML files, or a .csv")
    if boxes.problems:
        raise ValueError(listed(path, boxes.problems))
    if not any(boxes.values()):
        example = files[0] if files else "no image"
        raise ValueError(
            f"{path}: no box for any of the {len(files)} images ({example}, ...): expected XML files named like the "
            "images, or a CSV whose column file has their names"
        )
    return boxes


class _Names:
    """Finds the image that an entry means: one path must end with the other."""

    def __init__(self, files: Sequence[str], of_last: Callable[[str], str]) -> None:
        self.of_last = of_last  # of a path's last part, what is compared
        self.by_last: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
        for file in files:
            parts = self._parts(file)
            self.by_last[parts[-1]][file] = parts

    def _parts(self, name: str) -> tuple[str, ...]:
        *folders, last = PurePosixPath(name.replace("\\", "/")).parts or ("",)
        return *folders, self.of_last(last)

    def find(self, entry: str) -> list[str]:
        """The images that it may mean: one if all is well."""
        parts = self._parts(entry)
        near = self.by_last.get(parts[-1], {})
        exact = [file for file, found in near.items() if found == parts]
        return exact or [f for f, found in near.items() if all(map(str.__eq__, found[::-1], parts[::-1]))]


def _without_ending(name: str) -> str:
    # Not everything after a dot is an ending: DICOM files are often named by numbers with dots.
    endings = [ending for ending in IMAGE_SUFFIXES if name.lower().endswith(ending)]
    return name[: -max(map(len, endings))] if endings else name


class _VocBuilder(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Called before anything of the DTD is read. Entities are declared there: they can read files of this machine
        # or fill its memory, and VOC files have none.
        raise ValueError("it has a DOCTYPE, which Pascal-VOC files do not have: export it again")


def _read_folder(path: Path, names: _Names, boxes: ReferenceBoxes) -> None:
    used: dict[str, str] = {}
    found = [p for p in path.rglob("*") if p.suffix.lower() == ".xml" and p.name[0] != "." and p.is_file()]
    if not found:
        raise ValueError(f"{path}: no XML file in this folder or below it")
    for xml in sorted(found):
        entry = xml.relative_to(path).as_posix()
        matches = names.find(entry[: -len(".xml")])
        if len(matches) > 1:
            boxes.problems.append(f"{entry}: it may be of {' or of '.join(matches)}: give it the image's folder")
        elif not matches or matches[0] not in boxes:
            boxes.counts["others"] += 1
        elif other := used.get(matches[0]):
            boxes.problems.append(f"{entry}: {matches[0]} has {other} already")
        else:
            used[matches[0]] = entry
            try:
                _read_xml(xml, entry, matches[0], boxes)
            except ValueError as error:
                boxes.problems.append(f"{entry}: {error}")


def _read_xml(path: Path, entry: str, file: str, boxes: ReferenceBoxes) -> None:
    try:
        root = ET.fromstring(path.read_bytes(), parser=ET.XMLParser(target=_VocBuilder()))
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(f"not readable as XML ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"it is <{root.tag}>, expected Pascal VOC's <annotation>")
    named = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    if named and _without_ending(named) != _without_ending(path.name[: -len(".xml")]):
        raise ValueError(f"its <filename> is {named}, expected {PurePosixPath(file).name}")
    height, width = boxes.size_of(file)
    stored = [(root.findtext(f"size/{side}") or "nothing").strip() for side in ("width", "height")]
    if [_number(text) for text in stored] != [width, height]:
        of_file = f"{file} has {width} x {height} pixels (width x height)"
        raise ValueError(f"its <size> is {' x '.join(stored)}, and {of_file}: {_ANOTHER}")
    for number, thing in enumerate(root.findall("object"), start=1):
        name = (thing.findtext("name") or "").strip()
        texts = {corner: thing.findtext(f"bndbox/{corner}") for corner in _CORNERS}
        at = f"{entry}: box {number}{f' ({name})' if name else ''}"
        if corners := _numbers(at, texts, boxes.problems):
            boxes.add(at, file, name, corners, first=1)


def _read_csv(path: Path, names: _Names, boxes: ReferenceBoxes) -> None:
    table = read_table(path)
    file_column, name_column = table.column(*FILE_COLUMNS), table.column("name", *CLASS_COLUMNS)
    numeric = next((kind for kind in (_CORNERS, _CORNER_AND_SIZE) if all(map(table.column, kind))), None)
    if file_column is None or numeric is None:
        raise ValueError(
            f"{path}: its columns are {', '.join(table.columns)}; expected file, xmin, ymin, xmax, ymax, or file, x, "
            "y, width, height, and optionally name"
        )
    unknown: dict[str, list[int]] = defaultdict(list)
    for number, line in table.lines:
        entry = line[file_column]
        at = f"line {number} ({entry})"
        matches = names.find(entry)
        if len(matches) > 1:
            boxes.problems.append(f"{at}: it may be {' or '.join(matches)}: give the folder too")
        elif not matches:
            unknown[entry].append(number)
        elif matches[0] not in boxes:
            boxes.counts["others"] += 1
        elif values := _numbers(at, {c: line[table.column(c) or c] for c in numeric}, boxes.problems):
            if numeric is _CORNER_AND_SIZE:
                values[2:] = values[0] + values[2], values[1] + values[3]
            boxes.add(f"{at}: box", matches[0], line[name_column] if name_column else "", values, first=0)
    for entry, numbers in unknown.items():
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        boxes.problems.append(f"line {numbers[0]}{more}: {entry!r} is no image of the data set")


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _numbers(at: str, texts: Mapping[str, str | None], problems: list[str]) -> list[float]:
    values = {key: _number(text) for key, text in texts.items()}
    wrong = [f"{key}={(texts[key] or '').strip()!r}" for key, value in values.items() if not math.isfinite(value)]
    if wrong:
        problems.append(f"{at} has {', '.join(wrong)}, expected numbers")
    return [] if wrong else list(values.values())
