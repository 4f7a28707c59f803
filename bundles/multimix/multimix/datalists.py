"""Lists of chest X-rays with labels, masks, both or neither: checked as a whole before anything is trained.

A `.json` is a MONAI datalist:

    {"name": "chest", "seed": 0, "split": "how it was made", "labels": {"0": "NORMAL", "1": "PNEUMONIA"},
     "training": [entries], "validation": [entries], "test": [entries],
     "cross_domain": [entries of another hospital], "unlabelled": [entries]}

An entry is an object with these keys, all but `image` optional; a key of a user's own starts with an underscore:

    image        path; relative ones start at the data's folder
    label        index or name of the class
    mask         path, or list of paths that are joined (left and right lung)
    mask_values  stored values of the mask that are lung, e.g. [150, 200]; without it the list's own `mask_values`
                 hold, and without these the mask is binary (see `mask_files.read_mask`)
    source       name of the data set, to report figures by it
    group        or patient: never in two sections, save that unlabelled images may share it with training
    spacing      [row mm, column mm] of the image's pixels
    task         in unlabelled only: "classification" or "segmentation", whose stream gets the image; without it both

Entries of training, validation, test and cross_domain have a label or a mask or both, those of unlabelled neither.
`cross_domain` and `unlabelled` may be absent.

A `.csv` has one line per image, with the columns file, label and/or class, mask, split (training, validation, test,
cross_domain, unlabelled), and where wanted mask_values, source, group, task. Several masks or values in a cell are
separated by semicolons.
"""

import csv
import difflib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from label_efficient.data.image_files import FILE_COLUMNS, listed
from label_efficient.files import read_json

from .datalist_entries import (
    SECTIONS,
    TASKS,
    Entries,
    Entry,
    crossing_groups,
    empty_sections,
    missing_files,
    shared_images,
)

_SECTION_NAMES = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "cross_domain": "cross_domain",
    **dict.fromkeys(("unlabelled", "unlabeled"), "unlabelled"),
}
_ENTRY_KEYS = ("image", "label", "mask", "mask_values", "source", "group", "patient", "spacing", "task")
_COLUMNS = ("label", "class", "mask", "mask_values", "split", "source", "group", "patient", "task")
_LIST_KEYS = ("labels", "mask_values")
_OTHER_KEYS = (
    "name",
    "description",
    "seed",
    "split",
    "licence",
    "source",
    "class_labels",
    "mask_labels",
    "numTraining",
)


def read_datalist(path: Path, root: Path | None = None, *, num_workers: int = 0) -> Entries:
    """Read and check a list.

    Args:
        path: A `.json` or `.csv`, see the module.
        root: Where relative paths start, by default the list's folder.
        num_workers: Threads that read the files to find copies.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: With all problems of the list: missing files, unknown keys, classes and sections, entries without
            label and mask (or, unlabelled, with one), the same file, content or group in two sections, contradicting
            labels or masks, and sections that are needed and empty.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"{path}: expected a MONAI datalist (.json) or a .csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list")
    content, problems = (read_json(path, "a MONAI datalist"), []) if path.suffix.lower() == ".json" else _read_csv(path)
    return check_datalist(content, path, root or path.parent, problems, num_workers=num_workers)


def check_datalist(
    content: Any,
    path: Path,
    root: Path,
    problems: Sequence[str] = (),
    *,
    num_workers: int = 0,
    digests: Mapping[Path, str] | None = None,
) -> Entries:
    """Check the content of a list as `read_datalist` does.

    Args:
        content: The object in the `.json`.
        path: Its file, for messages.
        root: Where relative paths start.
        problems: What was found while reading it, reported with the rest.
        num_workers: Threads that read the files to find copies.
        digests: SHA-256 of images, by their path, where known already.
    """
    if not root.is_dir():
        raise ValueError(f"dataset_dir={str(root)!r}: no such folder")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected an object with training, validation and test, got {content!r:.80}")
    problems = list(problems)
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for key, value in content.items():
        section = _SECTION_NAMES.get(key)
        if section is None:
            if key in (*_LIST_KEYS, *_OTHER_KEYS) or key[:1] == "_":
                continue
            near = difflib.get_close_matches(key, (*_SECTION_NAMES, *_LIST_KEYS), n=1, cutoff=0.75)
            if near or isinstance(value, list):
                hint = f"did you mean {near[0]!r}?" if near else "expected training, validation, test, cross_domain"
                problems.append(f"unknown section {key!r}: {hint}{'' if near else ' or unlabelled'}")
        elif not isinstance(value, list):
            problems.append(f"{key} is a {type(value).__name__}, expected a list of entries")
        else:
            for index, item in enumerate(value):
                at = item.get("_at", f"{key}[{index}]") if isinstance(item, dict) else f"{key}[{index}]"
                if not isinstance(item, Mapping) or not isinstance(item.get("image"), str) or not item["image"]:
                    problems.append(f"{at} is {item!r:.80}, expected an object with image, the path of a file")
                else:
                    rows.append((section, at, item))
    problems += _unknown_keys(rows)
    labels = [item["label"] for _, _, item in rows if item.get("label") is not None]
    classes = _classes(content.get("labels"), labels, problems)
    values = _mask_values(content.get("mask_values"), "mask_values", problems)
    sections: dict[str, list[Entry]] = {name: [] for name in SECTIONS}
    for section, at, item in rows:
        sections[section].append(_entry(section, at, item, root, classes, values, problems))
    problems += missing_files(sections)
    problems += empty_sections(sections)
    problems += crossing_groups(sections)
    problems += shared_images(sections, num_workers, digests or {})
    if problems:
        raise ValueError(listed(path, problems))
    return Entries(classes, sections)


def _read_csv(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Content of a CSV in the form of the JSON, and the problems of its lines."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or [])
            table = [{k: v.strip() for k, v in line.items() if k and isinstance(v, str)} for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as CSV ({error}); save it as CSV in UTF-8") from error
    file_column = next((c for c in FILE_COLUMNS if c in columns), None)
    problems = [
        f"unknown column {column!r}: did you mean {near[0]!r}?"
        for column in columns
        if column not in (*_COLUMNS, *FILE_COLUMNS)
        and (near := difflib.get_close_matches(column, _COLUMNS, n=1, cutoff=0.75))
    ]
    if file_column is None or "split" not in columns or not {"label", "class", "mask"} & set(columns):
        problems.append(
            f"its columns are {', '.join(columns)}; expected file, split, and label, class or mask "
            "(tools/make_data_lists.py chest makes a list from folders)"
        )
    if not problems and not table:
        problems.append("the list has no lines")
    if problems:
        raise ValueError(listed(path, problems))
    content: dict[str, Any] = {}
    names: dict[int, str] = {}
    for number, line in enumerate(table, start=2):
        item: dict[str, Any] = {"image": line.get(file_column or "", ""), "_at": f"line {number}"}
        item |= {key: line[key] for key in _ENTRY_KEYS if line.get(key)}
        if "mask" in item:
            item["mask"] = [part.strip() for part in item["mask"].split(";")]
        if "mask_values" in item:
            item["mask_values"] = [_whole(part) for part in item["mask_values"].split(";")]
        label, name = _whole(line.get("label", "")), line.get("class", "")
        if label != "" or name:
            item["label"] = label if label != "" else name
        if isinstance(label, int) and name and names.setdefault(label, name) != name:
            problems.append(f"line {number}: label {label} is {name!r} here and {names[label]!r} above")
        section = _SECTION_NAMES.get(line.get("split", "").lower())
        if section is None:
            problems.append(
                f"line {number} has split={line.get('split')!r}, expected one of {', '.join(_SECTION_NAMES)}"
            )
        else:
            content.setdefault(section, []).append(item)
    if names:
        content["labels"] = {str(label): name for label, name in names.items()}
    return content, problems


def _whole(text: str) -> int | str:
    return int(text) if text.strip().isdecimal() else text


def _unknown_keys(rows: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    places = defaultdict(list)
    for _, at, item in rows:
        for key in item:
            if key not in _ENTRY_KEYS and key[:1] != "_":
                places[key].append(at)
    problems = []
    for key, found in places.items():
        near = difflib.get_close_matches(key, _ENTRY_KEYS, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(_ENTRY_KEYS)}"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        problems.append(f"unknown key {key!r} in {found[0]}{more}: {hint} (a key of your own starts with _)")
    return problems


def _classes(labels: Any, found: Sequence[Any], problems: list[str]) -> list[str]:
    """Names of the classes: from `labels`, or else from the labels found."""
    if labels is not None:
        names: list[str] = []
        if isinstance(labels, list):
            names = [str(name) for name in labels]
        elif isinstance(labels, Mapping) and sorted(labels) == sorted(map(str, range(len(labels)))):
            names = [str(labels[str(i)]) for i in range(len(labels))]
        if len(set(names)) < max(len(names), 1):
            problems.append(f'labels is {labels!r}, expected distinct names: ["a", "b"] or {{"0": "a", "1": "b"}}')
        return names
    if all(isinstance(label, str) for label in found):
        return sorted({label for label in found if label})
    if all(type(label) is int for label in found):
        # A mistyped index leaves gaps, which show as classes without images.
        return [f"class {i}" for i in range(min(max(found), len(found)) + 1)]
    problems.append("some labels are names and some are not: expected all names or all indices")
    return []


def _mask_values(given: Any, at: str, problems: list[str]) -> tuple[int, ...] | None:
    if given is None:
        return None
    if isinstance(given, list) and given and all(type(value) is int for value in given):
        return tuple(given)
    problems.append(f"{at} is {given!r}, expected a list of whole numbers, the stored values that are lung")
    return None


def _entry(
    section: str,
    at: str,
    item: Mapping[str, Any],
    root: Path,
    classes: Sequence[str],
    values: tuple[int, ...] | None,
    problems: list[str],
) -> Entry:
    given = {key: value for key, value in item.items() if value is not None}
    where = f"{at} ({item['image']})"

    def wrong(key: str, expected: str) -> None:
        problems.append(f"{where} has {key}={given[key]!r}, expected {expected}")

    label = given.get("label")
    if isinstance(label, str) and label in classes:
        label = classes.index(label)
    elif label is not None and not (type(label) is int and 0 <= label < len(classes)):
        wrong("label", f"0 to {len(classes) - 1} or one of {', '.join(classes)}" if classes else "a class")
        label = 0
    masks = given.get("mask", [])
    masks = [masks] if isinstance(masks, str) else masks
    if not isinstance(masks, list) or not all(isinstance(mask, str) and mask for mask in masks):
        wrong("mask", "a path or a list of paths")
        masks = []
    annotated = [key for key in ("label", "mask") if key in given]
    if section == "unlabelled" and annotated:
        problems.append(f"{where} is a labelled file among the unlabelled: it has {' and '.join(annotated)}")
    elif section != "unlabelled" and not annotated:
        problems.append(f"{where} has neither label nor mask; without them it belongs to unlabelled")
    task = given.get("task")
    if task is not None and (task not in TASKS or section != "unlabelled"):
        wrong("task", " or ".join(TASKS) if section == "unlabelled" else "it in unlabelled only")
        task = None
    if "mask_values" in given and not masks:
        problems.append(f"{where} has mask_values and no mask")
    spacing = given.get("spacing")
    if spacing is not None and not (
        isinstance(spacing, list)
        and len(spacing) == 2
        and all(type(v) in (int, float) and 0 < v < math.inf for v in spacing)
    ):
        wrong("spacing", "[row mm, column mm], above 0")
        spacing = None
    source, group = given.get("source", ""), given.get("group", given.get("patient"))
    if not isinstance(source, str):
        wrong("source", "a name")
    if not isinstance(group, (str, int, type(None))):
        problems.append(f"{where} has group={group!r}, expected a name")
    return Entry(
        image=root / item["image"],
        file=item["image"],
        label=label,
        masks=tuple(root / mask for mask in masks),
        mask_values=_mask_values(given.get("mask_values"), f"{where}: mask_values", problems) or values,
        source=str(source),
        group=None if group is None else str(group),
        task=task,
        spacing=(float(spacing[0]), float(spacing[1])) if spacing else None,
        at=at,
    )
