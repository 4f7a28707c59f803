"""Make MONAI datalists (JSON) from folders, CSV files and MedMNIST-layout .npz files.

    python tools/make_data_lists.py folder DIR                   DIR/<class>/**, or DIR/<split>/<class>/**
    python tools/make_data_lists.py csv FILE                     columns file, label or class, split, patient
    python tools/make_data_lists.py npz FILE --images_dir DIR    exports the images as PNG files, too
    python tools/make_data_lists.py pack LIST --size 28 --output FILE.npz

Splits are stratified by class, decided by the seed, and keep the images of a group (patient) and identical
files together. Everything is checked first; all problems are reported at once, and then nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import posixpath
import re
import shlex
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "lsanet"))  # for lsanet._images

from splits import (
    DEFAULT_FRACTIONS,
    SECTIONS,
    Entry,
    Label,
    ListError,
    Source,
    apply_budget,
    assign_splits,
    check_copies,
    class_counts,
)

from lsanet._images import IMAGE_SUFFIXES, ImageError, list_images, read_image

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TRAIN = "python -m monai.bundle run training --config_file bundles/lsanet/configs/train.json"
UNLABELLED_WORDS = ("unlabelled", "unlabeled")
COLUMNS = {
    "file": ("file", "image", "path", "filename"),
    "label": ("label",),
    "class": ("class", "label_name"),
    "split": ("split",),
    "group": ("group", "patient", "patient_id", "subject"),
}
LIST_OPTIONS = (
    *("name", "classes", "fractions", "seed", "resplit", "label_fraction", "labels_per_class", "ordinal"),
    *("allow_copies", "label_columns", *(f"{role}_column" for role in COLUMNS)),
)


# ---------------------------------------------------------------------------------------------- reading


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
    named_as_splits = [p.name for p in top if p.name.lower() in SPLIT_WORDS]
    if named_as_splits and len(named_as_splits) < len(top):
        others = ", ".join(p.name for p in top if p.name not in named_as_splits)
        raise ListError(f"{', '.join(named_as_splits)} look like splits, but {others} beside them do not")
    places: list[tuple[str | None, str | None, Path]]
    if named_as_splits:
        places = [(SPLIT_WORDS[p.name.lower()], c.name, c) for p in top for c in subfolders(p)]
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


def find_columns(header: list[str], args: argparse.Namespace) -> dict[str, str | None]:
    """Find the column of every role: as named by the option, or else by its usual names."""
    by_lower = {name.lower().strip(): name for name in header}
    columns: dict[str, str | None] = {}
    for role, usual in COLUMNS.items():
        wanted = getattr(args, f"{role}_column")
        if wanted is None:
            columns[role] = next((by_lower[name] for name in usual if name in by_lower), None)
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
        raise ListError(f"no column for the label among {', '.join(header)}; name it with --label_column")
    return columns


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV, separated by comma, semicolon or tab; cells are stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListError(f"{path} is not UTF-8 text ({error.reason}); save it as CSV UTF-8") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    header = list(reader.fieldnames or ())
    if len(set(header)) < len(header):
        raise ListError(f"{path} has two columns of one name: {', '.join(header)}")
    try:
        rows = [{k: v.strip() for k, v in row.items() if isinstance(v, str)} for row in reader]
    except csv.Error as error:
        raise ListError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise ListError(f"{path} has no rows")
    return header, rows


def read_csv(args: argparse.Namespace) -> Source:
    """Read a CSV with one row per image."""
    path = Path(os.path.abspath(args.file))
    source = Source(args.name or path.parent.name, Path(os.path.abspath(args.root or path.parent)))
    header, rows = read_rows(path)
    columns = find_columns(header, args)
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
        split = SPLIT_WORDS.get(word)
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
        labels.append(None if wrong else [int(v or 0) for v in values])
    return labels


def whole_number(text: str) -> int | None:
    """Read 3 or 3.0; None for anything else."""
    return int(float(text)) if re.fullmatch(r"[+-]?\d+(\.0*)?", text) else None


def single_labels(cells: list[tuple[str, str]], classes: list[str] | None, source: Source) -> list[Label]:
    """Read one label per row from the label and class columns; a row with both empty is unlabelled.

    Where both are there, they must agree. Without a class column, whole numbers are class indices (named by
    ``classes`` or by themselves) and other text is the class itself.
    """
    numbers = [whole_number(label) for label, _ in cells]
    has_class = any(name for _, name in cells)
    if not has_class and any(n is None for n, (label, _) in zip(numbers, cells, strict=True) if label):
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
            source.problems["label that is not a whole number"].append(f"'{text}' (row {row})")
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
    arrays = load_arrays(path)
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
            source.entries.append(Entry(name, value, SPLIT_WORDS[part], None, f"{part}_images[{i}]", digest))
    class_names_of_arrays(source, arrays, args.classes)
    for entry in source.entries:
        values = entry.label if isinstance(entry.label, list) else [entry.label]
        if not all(isinstance(v, int) and 0 <= v < (2 if source.multi_label else len(source.classes)) for v in values):
            source.problems["label that is not in the classes"].append(f"{entry.label} ({entry.origin})")
    return source


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Load an .npz without ever unpickling anything."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise ListError(f"{path} is not a readable .npz file ({error})") from None


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


# --------------------------------------------------------------------------------------------- checking


def header_problem(path: Path, data: bytes) -> str | None:
    """Say why the header of an image file cannot be read, or None."""
    if not path.name.lower().endswith(IMAGE_SUFFIXES) and data[128:132] != b"DICM":
        return f"no ending of an image ({', '.join(IMAGE_SUFFIXES)})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name.lower().endswith((".nii", ".nii.gz")):
                import nibabel

                nibabel.load(path)
            elif path.suffix.lower() == ".dcm" or data[128:132] == b"DICM":
                import pydicom

                pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            else:
                Image.open(io.BytesIO(data)).close()
    except Exception as error:  # the three libraries raise all kinds
        return "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return None


def check(source: Source, allow_copies: bool) -> None:
    """Check everything that can be checked before splitting; raise one error with all problems."""
    problems = source.problems
    for image, times in Counter(e.image for e in source.entries).items():
        if times > 1:
            rows = ", ".join(e.origin for e in source.entries if e.image == image)
            problems["same path more than once"].append(f"{image} ({rows})")
    for entry in source.entries:
        if entry.digest is None:
            check_file(entry, source)
    check_classes(source)
    held = defaultdict(set)
    for entry in source.entries:
        if entry.group is not None and entry.split:
            held[entry.group].add(entry.split)
    problems["group in more than one split"] += [
        f"'{group}' is in {', '.join(s for s in SECTIONS if s in splits)}"
        for group, splits in held.items()
        if len(splits) > 1
    ]
    check_copies(source, allow_copies)
    source.fail_if_problems()


def check_file(entry: Entry, source: Source) -> None:
    """Read a file once: is it there, is its header an image's, and what is its checksum."""
    path = source.root / entry.image
    where = f"{entry.image} ({entry.origin})" if entry.origin else entry.image
    if not path.is_file():
        source.problems["missing file"].append(where)
        return
    data = path.read_bytes()
    entry.digest = hashlib.sha256(data).hexdigest()
    if problem := header_problem(path, data):
        source.problems["unreadable image"].append(f"{where}: {problem}")


def check_classes(source: Source) -> None:
    """Every class needs images, and where splits are given, images to train on."""
    labelled = [e for e in source.entries if e.label is not None]
    given = any(e.split for e in labelled)
    if len(source.classes) < 2 and not source.multi_label:
        source.problems["fewer than two classes"].append(", ".join(source.classes) or "none")
    counts = {section: class_counts([e for e in labelled if e.split == section], source) for section in SECTIONS}
    total = class_counts(labelled, source)
    for c, name in enumerate(source.classes):
        if total[c] == 0:
            source.problems["class without an image"].append(f"'{name}'")
        elif given and counts["training"][c] == 0:
            source.problems["class without an image in training"].append(f"'{name}'")
        elif given:
            empty = [s for s in SECTIONS if counts[s].sum() and not counts[s][c]]
            source.notes += [f"class '{name}' has no image in {s}" for s in empty]
    for entry in source.entries:
        where = f"{entry.image} ({entry.origin})" if entry.origin else entry.image
        if given and entry.label is not None and entry.split is None:
            source.problems["no split, while others have one"].append(where)
        if entry.label is None and entry.split in ("validation", "test"):
            source.problems["no label in validation or test"].append(where)


def build_list(source: Source, args: argparse.Namespace) -> dict[str, Any]:
    """Check, split and subset; return the datalist."""
    if args.resplit:
        for entry in source.entries:
            entry.split = None
    check(source, args.allow_copies)
    data: dict[str, Any] = {"name": source.name, "seed": args.seed}
    data["split"] = assign_splits(source, args.fractions, args.seed)
    apply_budget(source, args.label_fraction, args.labels_per_class, args.seed)
    if source.multi_label:
        task = "multi-label, binary-class"
    else:
        task = "binary-class" if len(source.classes) == 2 else "multi-class"
    data["task"] = "ordinal-regression" if args.ordinal else source.task or task
    data["labels"] = {str(i): name for i, name in enumerate(source.classes)}
    for budget in ("label_fraction", "labels_per_class"):
        if getattr(args, budget) is not None:
            data[budget] = getattr(args, budget)
    entries = sorted(source.entries, key=lambda e: e.image)
    for section in SECTIONS:
        data[section] = [as_item(e) for e in entries if e.label is not None and e.split == section]
    unlabelled = [as_item(e) for e in entries if e.label is None]
    if unlabelled:
        data["unlabelled"] = unlabelled
    return data


def as_item(entry: Entry) -> dict[str, Any]:
    """Write an entry as an item of the list; only what is known."""
    item = {"image": entry.image, "label": entry.label, "group": entry.group}
    return {key: value for key, value in item.items() if value is not None}


# ---------------------------------------------------------------------------------------------- writing


def format_list(data: dict[str, Any]) -> str:
    """Format a datalist as JSON with one image per line."""
    blocks = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            items = ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in value)
            text = f"[\n{items}\n  ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        blocks.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def default_name(data: dict[str, Any]) -> str:
    """Name a list after its dataset, split, budget and seed."""
    parts = [data["name"], "given" if data["split"].startswith("as given") else data["split"].split()[0]]
    parts += [f"fraction{data['label_fraction']:g}"] if "label_fraction" in data else []
    parts += [f"{data['labels_per_class']}perclass"] if "labels_per_class" in data else []
    return "_".join([*parts, f"seed{data['seed']}.json"]).replace(" ", "-")


def count_table(data: dict[str, Any]) -> str:
    """Count the images by class and split."""
    sections = [s for s in (*SECTIONS, "unlabelled") if s in data]
    multi_label = data["task"].startswith("multi-label")
    rows = [["class", *sections]]
    for c, name in enumerate(data["labels"].values()):
        hits = [sum(item["label"][c] if multi_label else item["label"] == c for item in data[s]) for s in SECTIONS]
        rows.append([name, *map(str, hits)] + ["-"] * (len(sections) - 3))
    rows.append(["images", *(str(len(data[s])) for s in sections)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(sections) + 1)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def export_images(source: Source) -> None:
    """Write the images of an .npz as PNG files; a file that is there already must hold the same pixels."""
    for name, pixels in source.pixels.items():
        path = source.root / name
        if path.exists():
            with Image.open(path) as image:
                if np.array_equal(np.asarray(image), pixels):
                    continue
            raise ListError(f"{path} is there already and is another image; choose another --images_dir")
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        write_whole(path, buffer.getvalue())


def make_list(args: argparse.Namespace) -> None:
    """Run the commands folder, csv and npz."""
    source: Source = args.read(args)
    if not source.entries and not source.problems:
        raise ListError("found no images")
    data = build_list(source, args)
    path = Path(args.output) if args.output else Path(args.output_dir) / default_name(data)
    export_images(source)
    write_whole(path, format_list(data).encode())
    print(*source.notes, "", count_table(data), "", f"wrote {path}", "next:", sep="\n")
    where = f"--datalist {shlex.quote(str(path))} --dataset_dir {shlex.quote(str(source.root))}"
    print(f"  {TRAIN} --dataset datalist {where}")


# ---------------------------------------------------------------------------------------------- packing


def load_list(path: Path) -> dict[str, Any]:
    """Load a datalist and check its form."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ListError(f"{path} is not a JSON file ({error})") from None
    if not isinstance(data, dict) or not data.get("training"):
        raise ListError(f"{path} is not a datalist: it has no section 'training'")
    width: int | None = None  # of the first label: 0 for a class index, else the number of classes
    for section in SECTIONS:
        for item in data.setdefault(section, []):
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                raise ListError(f"{path}, {section}: an item needs 'image', got {json.dumps(item)}")
            label = item.get("label")
            values, found = (label, len(label)) if isinstance(label, list) else ([label], 0)
            width = found if width is None else width
            if found != width or not all(isinstance(v, int) for v in values):
                raise ListError(f"{path}, {section}: {item['image']} has another form of label: {label}")
    return data


def square(image: np.ndarray, size: int, keep_aspect: bool) -> np.ndarray:
    """Resize an image to a square; the centre stays the centre.

    Args:
        image: uint8 (H, W, C) with one or three channels.
        size: side of the square.
        keep_aspect: pad with black instead of squeezing.

    Returns:
        uint8 (size, size) for one channel, (size, size, 3) for three.
    """
    if keep_aspect:
        missing = [max(image.shape[:2]) - side for side in image.shape[:2]]
        image = np.pad(image, [*((m // 2, m - m // 2) for m in missing), (0, 0)])
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def read_squares(images: list[str], source: Source, args: argparse.Namespace) -> np.ndarray:
    """Read and resize images into one array; note those that cannot be read as problems of the source."""
    squares = np.zeros((len(images), args.size, args.size) + (3,) * (args.channels == 3), dtype=np.uint8)
    for i, image in enumerate(images):
        try:
            pixels = read_image(source.root / image, args.channels)
        except (ImageError, OSError) as error:
            source.problems["unreadable image"].append(f"{image}: {error}")
        else:
            squares[i] = square(pixels, args.size, args.keep_aspect)
    return squares


def pack(args: argparse.Namespace) -> None:
    """Run the command pack."""
    path = Path(args.list)
    if path.suffix.lower() == ".csv":
        source = read_csv(argparse.Namespace(**{**vars(args), "file": args.list}))
        data, root, notes = build_list(source, args), source.root, source.notes
    else:
        ignored = [f"--{name}" for name in LIST_OPTIONS if getattr(args, name) not in (None, False, 0)]
        if ignored:
            raise ListError(f"{', '.join(ignored)} cannot change a list that is made; give them with its CSV")
        data, root, notes = load_list(path), Path(args.root or path.parent), []
    arrays: dict[str, np.ndarray] = {}
    problems = Source("", root)
    width = np.size(data["training"][0]["label"])
    for section, short in zip((*SECTIONS, "unlabelled"), ("train", "val", "test", "unlabelled"), strict=True):
        items = data.get(section, [])
        if section in SECTIONS:
            labels = np.array([item["label"] for item in items], dtype=np.int64)
            arrays[f"{short}_labels"] = labels.reshape(-1, width)
        if section in SECTIONS or items:
            arrays[f"{short}_images"] = read_squares([item["image"] for item in items], problems, args)
    problems.fail_if_problems()
    if "labels" in data:
        arrays["classes"] = np.array(list(data["labels"].values()), dtype=np.str_)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(Path(args.output), buffer.getvalue())
    print(*notes, *(f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items()), sep="\n")
    print(f"wrote {args.output}", "next:", f"  {TRAIN} --dataset {shlex.quote(args.output)}", sep="\n")


# ------------------------------------------------------------------------------------------ command line


class Parser(argparse.ArgumentParser):
    """A parser whose errors end with status 1, as all mistakes here."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave."""
        self.print_usage(sys.stderr)
        self.exit(1, f"error: {message}\n")


def three_fractions(text: str) -> tuple[float, ...]:
    """Read ``0.7,0.1,0.2``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not abs(sum(values) - 1) < 1e-6 or min(values) < 0 or min(values[:2]) == 0:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not three shares such as {','.join(map(str, DEFAULT_FRACTIONS))}, which sum to 1; "
            "only the last, the test part, may be 0"
        )
    return values


def names_list(text: str) -> list[str]:
    """Read distinct names separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"'{text}' holds an empty name or one name twice")
    return names


def plain_name(text: str) -> str:
    """Read a name that can be part of a file name."""
    if not text or set(text) & set("/\\"):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be part of a file name")
    return text


def integer_from(least: int, most: int = 2**32 - 1) -> Callable[[str], int]:
    """Make a reader of whole numbers within bounds."""

    def whole(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} to {most}")
        return int(text)

    return whole


def regular_expression(text: str) -> str:
    """Check a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a regular expression: {error}") from None
    return text


def make_parser() -> Parser:
    """Describe the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--name", type=plain_name, help="name of the dataset (default: the folder's, or the .npz file's)")
    add("--classes", type=names_list, help="all class names in the order of the labels: a,b,c")
    add(
        "--fractions",
        type=three_fractions,
        help="shares of training, validation, test (default: 0.7,0.1,0.2)",
    )
    add("--seed", type=integer_from(0), default=0)
    add("--resplit", action="store_true", help="ignore the splits that the data come with")
    add("--label_fraction", type=float, help="part of every training class that keeps its labels")
    add("--labels_per_class", type=int, help="number of training images per class that keep their labels")
    add("--ordinal", action="store_true", help="the classes are grades, in order")
    add(
        "--allow_copies",
        action="store_true",
        help="identical files in two splits are a warning, not an error",
    )
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument("--root", help="what paths are relative to (default: DIR, or the folder of the file)")
    columns = argparse.ArgumentParser(add_help=False)
    for role, usual in COLUMNS.items():
        columns.add_argument(f"--{role}_column", help=f"default: {', '.join(usual)}; 'none' for no column")
    columns.add_argument("--label_columns", type=names_list, help="several labels per image: columns of 0 and 1")
    target = argparse.ArgumentParser(add_help=False)
    target.add_argument("--output", help="the list (default: a name made of dataset, split and seed)")
    target.add_argument("--output_dir", default=".", help="folder of the list, if --output is not given")

    def command(name: str, parents: list[Any], text: str, **defaults: Any) -> Any:
        sub = commands.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(**{"group_pattern": None, "label_columns": None, "root": None, **defaults})
        return sub

    sub = command("folder", [rooted, shared, target], "class folders", run=make_list, read=read_folder)
    sub.add_argument("dir", metavar="DIR")
    sub.add_argument("--group_pattern", type=regular_expression, help="finds the patient in a path: 'person(\\d+)_'")
    sub = command("csv", [rooted, columns, shared, target], "a table", run=make_list, read=read_csv)
    sub.add_argument("file", metavar="FILE")
    sub = command("npz", [shared, target], "MedMNIST-layout arrays", run=make_list, read=read_npz)
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--images_dir", required=True, help="folder for the PNG files")
    sub = command("pack", [rooted, columns, shared], "a list or CSV to MedMNIST-layout arrays", run=pack)
    sub.add_argument("list", metavar="LIST", help="a datalist (.json), or a .csv with the options of csv")
    sub.add_argument("--size", type=integer_from(1, 4096), default=28)
    sub.add_argument("--channels", type=int, choices=(1, 3), default=3)
    sub.add_argument("--keep_aspect", action="store_true", help="pad with black instead of squeezing")
    sub.add_argument("--output", required=True, metavar="FILE.npz")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit status."""
    args = make_parser().parse_args(argv)
    try:
        if args.label_columns and (args.classes or args.ordinal):
            raise ListError("--label_columns names the classes, and has no grades: leave --classes and --ordinal out")
        args.run(args)
    except (ListError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
