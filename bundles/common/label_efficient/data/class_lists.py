"""Lists of image files: MONAI datalists (.json) and CSVs, checked as a whole before anything is trained."""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_files import FILE_COLUMNS, listed
from label_efficient.files import read_json

_SECTIONS = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "test": "test",
    "testing": "test",
}
_CLASS_COLUMNS = ("class", "label_name")
_OTHER_KEYS = {
    "name",
    "description",
    "seed",
    "split",
    "task",
    "labels",
    "unlabelled",
    "licence",
    "source",
    "numTraining",
}
MULTI_LABEL = "multi-label, binary-class"
_TASKS = ("multi-class", "binary-class", "ordinal-regression", MULTI_LABEL)
_MAX_SHOWN = 20


@dataclass
class Entries:
    """A checked list: paths, labels (int64 (N,) or N x K) and names of the files by split."""

    task: str
    classes: list[str]
    paths: dict[str, list[Path]]
    labels: dict[str, np.ndarray]
    files: dict[str, list[str]]
    unlabelled: int = 0
    notes: list[str] = field(default_factory=list)


def read_datalist(path: Path, root: Path | None = None, *, num_workers: int = 0) -> Entries:
    """Read and check a list.

    A `.json` is a MONAI datalist with the sections training, validation and test, each of entries
    `{"image": path, "label": index or name or list of 0/1}`, and `labels` with the names of the classes. A `.csv` has
    the columns file, label and/or class, split. Relative paths start at `root`, by default the list's folder.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: With all problems of the list: missing files, the same file or the same content in two splits,
            unknown classes, empty splits.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"{path}: expected a MONAI datalist (.json) or a .csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list")
    root = root or path.parent
    if not root.is_dir():
        raise ValueError(f"dataset_dir={str(root)!r}: no such folder")
    problems: list[str] = []
    if path.suffix.lower() == ".json":
        rows, names, task, unlabelled = _json_rows(path, problems)
    else:
        rows, names, task, unlabelled = *_csv_rows(path, problems), None, 0
    classes = names or _class_names(rows, problems)
    multi_label = any(isinstance(row["label"], list) for row in rows)
    if task is None:
        task = MULTI_LABEL if multi_label else "binary-class" if len(classes) == 2 else "multi-class"
    elif multi_label != (task == MULTI_LABEL):
        problems.append(f"task is {task!r}, and the labels are {'lists' if multi_label else 'one per image'}")
    labels = [_label(row, classes, multi_label, problems) for row in rows]
    for split in ("train", "val", "test"):
        if rows and not any(row["split"] == split for row in rows):
            problems.append(f"no entries for {split} (tools/make_data_lists.py cuts splits)")
    full = [root / row["file"] for row in rows]
    problems += _leaks(rows, full, num_workers)
    if problems:
        raise ValueError(listed(path, problems))
    entries = Entries(task, classes, {}, {}, {}, unlabelled)
    for split in ("train", "val", "test"):
        chosen = [i for i, row in enumerate(rows) if row["split"] == split]
        entries.paths[split] = [full[i] for i in chosen]
        entries.files[split] = [rows[i]["file"] for i in chosen]
        entries.labels[split] = np.asarray([labels[i] for i in chosen], dtype=np.int64)
    return entries


def _json_rows(path: Path, problems: list[str]) -> tuple[list[dict[str, Any]], list[str] | None, str | None, int]:
    content = read_json(path, "a MONAI datalist")
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected an object with training, validation and test, got a {type(content).__name__}"
        )
    rows = []
    for key, section in content.items():
        if key not in _SECTIONS:
            if isinstance(section, list) and key not in _OTHER_KEYS:
                problems.append(f"unknown section {key!r}, expected training, validation and test")
            continue
        if not isinstance(section, list):
            raise ValueError(f"{path}: {key} is a {type(section).__name__}, expected a list of entries")
        for index, item in enumerate(section):
            at = f"{key}[{index}]"
            if not isinstance(item, Mapping) or "image" not in item or "label" not in item:
                problems.append(f"{at} is {item!r}, expected an object with image and label")
            elif not isinstance(item["image"], str) or not item["image"]:
                problems.append(f"{at} has image={item['image']!r}, expected a path")
            else:
                row = {"file": item["image"], "label": item["label"], "split": _SECTIONS[key], "at": at}
                rows.append({**row, "group": item.get("group", item.get("patient"))})
    if not rows and not problems:
        raise ValueError(
            f"{path}: no entries in training, validation or test; its keys are {', '.join(content) or 'none'}"
        )
    task = content.get("task")
    if task is not None and task not in _TASKS:
        raise ValueError(f"{path}: task is {task!r}, expected one of {', '.join(map(repr, _TASKS))}")
    unlabelled = content.get("unlabelled") or []
    if not isinstance(unlabelled, list):
        raise ValueError(f"{path}: unlabelled is a {type(unlabelled).__name__}, expected a list of entries")
    return rows, _json_names(path, content.get("labels")), task, len(unlabelled)


def _json_names(path: Path, labels: Any) -> list[str] | None:
    if labels is None:
        return None
    names = None
    if isinstance(labels, list):
        names = [str(name) for name in labels]
    elif isinstance(labels, dict) and sorted(labels) == sorted(map(str, range(len(labels)))):
        names = [str(labels[str(i)]) for i in range(len(labels))]
    if names and len(set(names)) == len(names):
        return names
    if names:
        raise ValueError(f"{path}: labels has a name twice: {', '.join(names)}")
    raise ValueError(f'{path}: labels is {labels!r}, expected a list of names or {{"0": name, "1": name, ...}}')


def _csv_rows(path: Path, problems: list[str]) -> tuple[list[dict[str, Any]], list[str] | None]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or [])
            table = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not readable as CSV ({error}); save it as CSV in UTF-8") from error
    file_column = next((c for c in FILE_COLUMNS if c in columns), None)
    class_column = next((c for c in _CLASS_COLUMNS if c in columns), None)
    if file_column is None or "split" not in columns or not (class_column or "label" in columns):
        raise ValueError(
            f"{path}: its columns are {', '.join(columns)}; expected file, label and/or class, and split (train, val, "
            "test). tools/make_data_lists.py makes a list from a table without split"
        )
    rows: list[dict[str, Any]] = []
    pairs: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(table, start=2):
        split = _SECTIONS.get((line["split"] or "").strip().lower())
        file = (line[file_column] or "").strip()
        if split is None or not file:
            wrong = f"{file_column}=''" if not file else f"split={line['split']!r}, expected train, val or test"
            problems.append(f"line {number} has {wrong}")
            continue
        label: Any = line["label"] if "label" in columns else line[class_column or ""]
        label = (label or "").strip()
        if class_column and "label" in columns:
            pairs[label, (line[class_column] or "").strip()] += 1
        label = int(label) if label.isdecimal() else label
        row = {"file": file, "label": label, "split": split, "at": f"line {number}"}
        rows.append({**row, "group": line.get("group") or line.get("patient") or None})
    if not table:
        raise ValueError(f"{path}: the list has no lines")
    return rows, _paired_names(pairs, problems) if pairs else None


def _paired_names(pairs: Mapping[tuple[str, str], int], problems: list[str]) -> list[str]:
    """Names of the classes, by the columns label and class."""
    by_label: dict[str, set[str]] = {}
    by_name: dict[str, set[str]] = {}
    for label, name in pairs:
        by_label.setdefault(label, set()).add(name)
        by_name.setdefault(name, set()).add(label)
    disagreeing = [f"label {k} is {' and '.join(sorted(v))}" for k, v in sorted(by_label.items()) if len(v) > 1]
    disagreeing += [f"{k} is label {' and '.join(sorted(v))}" for k, v in sorted(by_name.items()) if len(v) > 1]
    if disagreeing:
        problems.append(f"the columns label and class disagree: {'; '.join(disagreeing)}")
    elif sorted(by_label) != sorted(map(str, range(len(by_label)))):
        problems.append(f"label has the values {', '.join(sorted(by_label))}, expected 0 to {len(by_label) - 1}")
    return [" or ".join(sorted(by_label[k])) for k in sorted(by_label, key=lambda k: (len(k), k))]


def _class_names(rows: Sequence[Mapping[str, Any]], problems: list[str]) -> list[str]:
    values = [row["label"] for row in rows]
    if not values:
        return []
    if all(isinstance(v, list) for v in values):
        return [f"label {i}" for i in range(len(values[0]))]
    if all(isinstance(v, str) for v in values):
        return sorted({v for v in values if v})
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        # A mistyped index leaves gaps, which are reported as classes without images; below 0 there is no class.
        return [f"class {i}" for i in range(min(max(values), len(values)) + 1)]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(type(row["label"]).__name__, []).append(row)
    found = ", ".join(
        f"{len(of_kind)} {kind} (first {of_kind[0]['label']!r} at {of_kind[0]['at']})"
        for kind, of_kind in kinds.items()
    )
    problems.append(f"labels are {found}; expected all indices, all names or all lists of 0/1")
    return []


def _label(row: Mapping[str, Any], classes: list[str], multi_label: bool, problems: list[str]) -> int | list[int]:
    label, at = row["label"], f"{row['at']} ({row['file']})"
    if multi_label:
        if isinstance(label, list) and len(label) == len(classes) and all(v in (0, 1) for v in label):
            return [int(v) for v in label]
        if classes:
            problems.append(f"{at} has label={label!r}, expected {len(classes)} values 0 or 1")
        return [0] * len(classes)
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int) and not isinstance(label, bool):
        if 0 <= label < len(classes):
            return label
        if not classes:
            problems.append(f"{at} has label={label!r}, expected 0 or more")
    if classes:
        names = ", ".join(classes[:_MAX_SHOWN]) + (", ..." if len(classes) > _MAX_SHOWN else "")
        problems.append(f"{at} has label={label!r}, expected 0 to {len(classes) - 1} or one of {names}")
    return 0


def _leaks(rows: Sequence[Mapping[str, Any]], paths: Sequence[Path], num_workers: int) -> list[str]:
    problems: list[str] = []
    first: dict[Path, Mapping[str, Any]] = {}
    group_split: dict[str, Mapping[str, Any]] = {}
    for row, path in zip(rows, paths, strict=True):
        other = first.setdefault(path.resolve(), row)
        if other is not row:
            where = (
                f"{other['split']} and {row['split']}" if other["split"] != row["split"] else f"{row['split']} twice"
            )
            problems.append(f"{row['file']} stands in {where} ({other['at']}, {row['at']})")
        if row["group"] is not None:
            other = group_split.setdefault(str(row["group"]), row)
            if other["split"] != row["split"]:
                problems.append(
                    f"group {row['group']!r} crosses {other['split']} ({other['at']}) and {row['split']} ({row['at']})"
                )
    missing = {i for i, path in enumerate(paths) if not path.is_file()}
    problems += [
        f"{rows[i]['at']}: {paths[i]} {'is a folder' if paths[i].is_dir() else 'does not exist'}"
        for i in sorted(missing)
    ]

    def digest(index: int) -> bytes:
        return b"" if index in missing else hashlib.blake2b(paths[index].read_bytes(), digest_size=16).digest()

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        digests = list(pool.map(digest, range(len(paths))))
    contents: dict[bytes, int] = {}
    for index, key in enumerate(digests):
        other_index = contents.setdefault(key, index)
        if key and rows[other_index]["split"] != rows[index]["split"] and paths[other_index] != paths[index]:
            problems.append(
                f"{rows[index]['file']} ({rows[index]['split']}) is byte by byte {rows[other_index]['file']} "
                f"({rows[other_index]['split']})"
            )
    return problems
