"""Read what a datalist is made from: class folders, CSV files and MedMNIST-layout .npz files."""

from __future__ import annotations

import argparse
import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from label_efficient.data.class_lists import SPLITS
from label_efficient.data.image_files import list_images
from label_efficient.data.images import ImageError
from label_efficient.data.lists import SPLIT_WORDS, UNLABELLED_WORDS, whole_number
from label_efficient.data.tables import CLASS_COLUMNS, FILE_COLUMNS, Table, read_table
from label_efficient.files import read_arrays
from lists.splits import SECTIONS, Entry, Label, ListError, Source

SECTION_OF = {word: SECTIONS[SPLITS.index(split)] for word, split in SPLIT_WORDS.items()}
COLUMNS = {
    "file": FILE_COLUMNS,
    "label": ("label",),
    "class": CLASS_COLUMNS,
    "split": ("split",),
    "group": ("group", "patient", "patient_id", "subject"),
}


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names so that class 10 comes after class 9."""
    return sorted(
        set(names),
        key=lambda name: [(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", name)],
    )


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    """List the images in a folder and the folders in it, sorted; none is no error here."""
    try:
        return list_images(folder)
    except ImageError:
        return []


def relative_path(path: str, root: Path) -> str | None:
    """Write a path as a relative POSIX path below the root; None where it lies outside."""
    path = path.strip().replace("\\", "/")
    if os.path.isabs(path):
        path = Path(os.path.relpath(path, root)).as_posix()
    path = posixpath.normpath(path)
    return None if path.startswith(("../", "/")) or path in ("..", ".") or path[1:2] == ":" else path


def read_folder(args: argparse.Namespace) -> Source:
    """Read class folders, or split folders with class folders in them."""
    folder = Path(os.path.abspath(args.dir))
    if not folder.is_dir():
        raise ListError(f"no such folder: {args.dir}")
    source = Source(args.name or folder.name, Path(os.path.abspath(args.root or folder)))
    top = [p for p in subfolders(folder) if p.name.lower() not in UNLABELLED_WORDS]
    named_as_splits = [p.name for p in top if p.name.lower() in SECTION_OF]
    if named_as_splits and len(named_as_splits) < len(top):
        others = ", ".join(p.name for p in top if p.name not in named_as_splits)
        raise ListError(f"{', '.join(named_as_splits)} look like splits, but {others} beside them do not")
    places: list[tuple[str | None, str | None, Path]]
    if named_as_splits:
        places = [(SECTION_OF[p.name.lower()], c.name, c) for p in top for c in subfolders(p)]
    else:
        places = [(None, p.name, p) for p in top]
    source.classes = args.classes or natural_order(name for _, name, _ in places if name)
    places += [(None, None, p) for p in subfolders(folder) if p.name.lower() in UNLABELLED_WORDS]
    for split, name, place in places:
        if name is not None and name not in source.classes:
            source.problems["folder of a class that is not in --classes"].append(str(place))
            continue
        label = None if name is None else source.classes.index(name)
        for path in images_below(place):
            image = relative_path(str(path), source.root)
            if image is None:
                raise ListError(f"the images are not below --root {args.root}")
            source.entries.append(Entry(image, label, split, group_in_name(image, args.group_pattern)))
    loose = len(images_below(folder)) - sum(len(images_below(place)) for _, _, place in places)
    if loose:
        source.notes.append(f"warning: {loose} images lie in no class folder and were left out")
    if args.group_pattern:
        source.group_name = "file name"
        alone = sum(e.group is None for e in source.entries)
        source.notes += [f"{alone} file names do not match --group_pattern"] if alone else []
    return source


def group_in_name(image: str, pattern: str | None) -> str | None:
    """Find the group in a path: the first bracket of the pattern, or else the whole match."""
    match = re.search(pattern, image) if pattern else None
    return match.group((match.lastindex and 1) or 0) if match else None


def find_columns(table: Table, args: argparse.Namespace) -> dict[str, str | None]:
    """Find the column of every role: as named by the option, or else by its usual names."""
    header = table.columns
    columns: dict[str, str | None] = {}
    for role, usual in COLUMNS.items():
        wanted = getattr(args, f"{role}_column")
        if wanted is None:
            columns[role] = table.column(*usual)
        elif wanted.lower() == "none":
            columns[role] = None
        elif wanted not in header:
            raise ListError(f"--{role}_column {wanted}: no such column; there are {', '.join(header)}")
        else:
            columns[role] = wanted
    for wanted in args.label_columns or ():
        if wanted not in header:
            raise ListError(f"--label_columns {wanted}: no such column; there are {', '.join(header)}")
    if columns["file"] is None:
        raise ListError(f"no column for the file among {', '.join(header)}; name it with --file_column")
    if not (args.label_columns or columns["label"] or columns["class"]):
        raise ListError(
            f"no column for the label among {', '.join(header)}; name it with --label_column (whole "
            "numbers) or --class_column (names), or those of several labels with --label_columns"
        )
    return columns


def read_rows(path: Path) -> Table:
    """Read a CSV with rows."""
    try:
        table = read_table(path)
    except ValueError as error:
        raise ListError(str(error)) from None
    if not table.lines:
        raise ListError(f"{path} has no rows")
    return table


def read_csv(args: argparse.Namespace) -> Source:
    """Read a CSV with one row per image."""
    path = Path(os.path.abspath(args.file))
    source = Source(args.name or path.parent.name, Path(os.path.abspath(args.root or path.parent)))
    table = read_rows(path)
    rows = [cells for _, cells in table.lines]
    columns = find_columns(table, args)
    used = [f"{role} = '{name}'" for role, name in columns.items() if name]
    source.notes.append(f"columns: {', '.join(used)}")
    if columns["group"]:
        source.group_name = columns["group"]
        source.notes.append(f"grouped by column '{columns['group']}' (--group_column none ignores it)")

    label_names = args.label_columns or [columns["label"], columns["class"]]

    def cell(row: dict[str, str], role: str) -> str:
        name = columns[role]
        return row.get(name, "") if name else ""

    if args.label_columns:
        labels = several_labels(rows, args.label_columns, source)
    else:
        cells = [(cell(row, "label"), cell(row, "class")) for row in rows]
        labels = single_labels(cells, args.classes, source)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=2):
        where = f"row {number}"
        image = relative_path(cell(row, "file"), source.root) if cell(row, "file") else None
        if image is None:
            problem = "path outside the root" if cell(row, "file") else "no file name"
            source.problems[problem].append(f"{cell(row, 'file')} ({where})".strip())
            continue
        word = cell(row, "split").lower()
        split = SECTION_OF.get(word)
        if word and split is None and not (label is None and word in UNLABELLED_WORDS):
            source.problems["split is none of train, val, test"].append(f"'{word}' ({where})")
        if label is None and any(row.get(name or "") for name in label_names):
            split = None  # a wrong label, reported above, not an unlabelled image
        source.entries.append(Entry(image, label, split, cell(row, "group") or None, where))
    if columns["group"]:
        alone = sum(e.group is None for e in source.entries)
        source.notes += [f"{alone} rows have no {source.group_name}; each counts as its own"] if alone else []
    return source


def several_labels(rows: list[dict[str, str]], names: list[str], source: Source) -> list[Label]:
    """Read one 0/1 column per class; a row with all of them empty is unlabelled."""
    source.classes, source.multi_label = names, True
    labels: list[Label] = []
    for number, row in enumerate(rows, start=2):
        cells = [row.get(name, "") for name in names]
        values = [whole_number(text) for text in cells]
        wrong = [f"{name} = '{text}'" for name, text, v in zip(names, cells, values, strict=True) if v not in (0, 1)]
        if wrong and any(cells):
            source.problems["label that is not 0 or 1"].append(f"{', '.join(wrong)} (row {number})")
        labels.append(None if wrong else [int(v) for v in values])
    return labels


def single_labels(cells: list[tuple[str, str]], classes: list[str] | None, source: Source) -> list[Label]:
    """Read one label per row from the label and class columns; a row with both empty is unlabelled.

    Where both are there, they must agree. Without a class column, whole numbers are class indices (named by
    ``classes`` or by themselves) and other text is the class itself.
    """
    read = [whole_number(label) for label, _ in cells]
    numbers = [number if isinstance(number, int) else None for number in read]
    has_class = any(name for _, name in cells)
    given = sum(bool(label) for label, _ in cells)
    # Most of the cells decide: one mistyped number does not make names of all.
    if not has_class and 2 * sum(n is not None for n in numbers) < given:
        cells, numbers, has_class = [("", label) for label, _ in cells], [None] * len(cells), True
    pairs = Counter((n, name) for n, (_, name) in zip(numbers, cells, strict=True) if n is not None)
    usual: dict[int, str] = {}  # the most frequent class of every number
    for (number, name), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        if name or not has_class:
            usual.setdefault(number, name or str(number))
    if classes is None and usual:
        names = [usual.get(n, str(n)) for n in range(min(max(usual), len(cells)) + 1)]
        source.classes = names
    else:
        source.classes = classes or natural_order(name for _, name in cells if name)
    for name, times in Counter(source.classes).items():
        if times > 1:
            source.problems["one class with several labels"].append(f"'{name}'")
    labels: list[Label] = []
    for row, ((text, name), n) in enumerate(zip(cells, numbers, strict=True), start=2):
        labels.append(None)
        if text and n is None:
            kind = "label that is not a whole number (--class_column reads names)"
            source.problems[kind].append(f"'{text}' (row {row})")
        elif n is not None and not 0 <= n < len(source.classes):
            source.problems["label that is not in the classes"].append(f"{n} (row {row})")
        elif name and name not in source.classes:
            source.problems["class that is not in the classes"].append(f"'{name}' (row {row})")
        elif n is not None and name and name != source.classes[n]:
            text = f"label {n} is '{source.classes[n]}', class is '{name}' (row {row})"
            source.problems["label and class disagree"].append(text)
        elif n is not None or name:
            labels[-1] = n if n is not None else source.classes.index(name)
    return labels


def read_npz(args: argparse.Namespace) -> Source:
    """Read a MedMNIST-layout file; the images become entries ``<split>/<split>_<number>.png``."""
    path = Path(args.file)
    source = Source(args.name or path.stem, Path(os.path.abspath(args.images_dir)))
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise ListError(str(error)) from None
    parts = [part for part in ("train", "val", "test") if f"{part}_images" in arrays]
    if "train" not in parts:
        raise ListError(f"{path} has no train_images; it holds {', '.join(arrays)}")
    for part in parts:
        images, labels = arrays[f"{part}_images"], arrays.get(f"{part}_labels")
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
            raise ListError(
                f"{part}_images must be uint8, N x H x W or N x H x W x 3, got {images.dtype} {images.shape}"
            )
        if labels is not None and labels.dtype.kind not in "biu":
            raise ListError(f"{part}_labels must be whole numbers, got {labels.dtype}")
        if labels is None or len(labels) != len(images):
            raise ListError(f"{part}_labels: {0 if labels is None else len(labels)} for {len(images)} images")
        labels = labels.reshape(len(labels), -1) if len(labels) else labels.reshape(0, 1)
        source.multi_label |= labels.shape[1] > 1
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{part}/{part}_{i:05d}.png"
            source.pixels[name] = image[..., 0] if image.shape[2:] == (1,) else image
            value: Label = [int(v) for v in label] if len(label) > 1 else int(label[0])
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            source.entries.append(Entry(name, value, SECTION_OF[part], None, f"{part}_images[{i}]", digest))
    class_names_of_arrays(source, arrays, args.classes)
    for entry in source.entries:
        values = entry.label if isinstance(entry.label, list) else [entry.label]
        if not all(isinstance(v, int) and 0 <= v < (2 if source.multi_label else len(source.classes)) for v in values):
            source.problems["label that is not in the classes"].append(f"{entry.label} ({entry.origin})")
    return source


def class_names_of_arrays(source: Source, arrays: dict[str, np.ndarray], classes: list[str] | None) -> None:
    """Name the classes: by option, by the file's ``classes``, by MedMNIST's table, or by number."""
    labels = [entry.label for entry in source.entries]
    number = max((len(v) if isinstance(v, list) else (v or 0) + 1 for v in labels), default=0)
    if classes is None and "classes" in arrays:
        classes = [str(name) for name in arrays["classes"]]
    if classes is None and re.fullmatch(r"[a-z]+mnist(_\d+)?", source.name):
        from medmnist import INFO  # imports torch, hence not above

        info = INFO.get(source.name.split("_")[0])
        if info and len(info["label"]) == number:
            classes = [info["label"][str(i)] for i in range(number)]
            source.task = info["task"]
            source.notes.append(f"class names and task are those of MedMNIST's {source.name}")
    source.classes = classes or [str(i) for i in range(number)]
