"""Lists of image files: MONAI datalists (.json) and CSVs, checked as a whole before anything is trained."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ._common import read_json

_SECTIONS = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "test": "test",
    "testing": "test",
}
_FILE_COLUMNS = ("file", "image", "path", "filename")
_CLASS_COLUMNS = ("class", "label_name")
_OTHER_KEYS = {"name", "description", "seed", "split", "task", "labels", "unlabelled", "licence", "source", "numTraining"}
_TASKS = ("multi-class", "binary-class", "ordinal-regression", "multi-label, binary-class")
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
    root = root or path.parent
    if not root.is_dir():
        raise ValueError(f"dataset_dir={str(root)!r}: no such folder")
    if path.suffix == ".json":
        rows, names, task, unlabelled = _json_rows(path)
    elif path.suffix == ".csv":
        rows, names, task, unlabelled = *_csv_rows(path), None, 0
    else:
        raise ValueError(f"{path}: expected a MONAI datalist (.json) or a .csv")
    problems: list[str] = []
    classes = names or _class_names(rows, problems)
    multi_label = any(isinstance(row["label"], list) for row in rows)
    labels = [_label(row, classes, multi_label, problems) for row in rows]
    for split in ("train", "val", "test"):
        if not any(row["split"] == split for row in rows):
            problems.append(f"no entries for {split} (tools/make_data_lists.py cuts splits)")
    full = [root / row["file"] for row in rows]
    problems += _leaks(rows, full, num_workers)
    if problems:
        shown = problems[:_MAX_SHOWN]
        rest = f"\n  and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        raise ValueError(f"{path}: {len(problems)} problem(s):\n  " + "\n  ".join(shown) + rest)
    if task is None:
        task = "multi-label, binary-class" if multi_label else "binary-class" if len(classes) == 2 else "multi-class"
    entries = Entries(task, classes, {}, {}, {}, unlabelled)
    for split in ("train", "val", "test"):
        chosen = [i for i, row in enumerate(rows) if row["split"] == split]
        entries.paths[split] = [full[i] for i in chosen]
        entries.files[split] = [rows[i]["file"] for i in chosen]
        entries.labels[split] = np.asarray([labels[i] for i in chosen], dtype=np.int64)
    return entries


def _json_rows(path: Path) -> tuple[list[dict[str, Any]], list[str] | None, str | None, int]:
    content = read_json(path, "a MONAI datalist")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with training, validation and test, got a {type(content).__name__}")
    rows = []
    for key, section in content.items():
        if key not in _SECTIONS:
            if isinstance(section, list) and key not in _OTHER_KEYS:
                raise ValueError(f"{path}: unknown section {key!r}, expected training, validation and test")
            continue
        for index, item in enumerate(section):
            if not isinstance(item, Mapping) or "image" not in item or "label" not in item:
                raise ValueError(f"{path}: {key}[{index}] is {item!r}, expected an object with image and label")
            if not isinstance(item["image"], str):
                raise ValueError(f"{path}: {key}[{index}] has image={item['image']!r}, expected a path")
            row = {"file": item["image"], "label": item["label"], "split": _SECTIONS[key], "at": f"{key}[{index}]"}
            rows.append({**row, "group": item.get("group")})
    if not rows:
        raise ValueError(f"{path}: no entries in training, validation or test; its keys are {', '.join(content)}")
    task = content.get("task")
    if task is not None and task not in _TASKS:
        raise ValueError(f"{path}: task is {task!r}, expected one of {', '.join(map(repr, _TASKS))}")
    return rows, _json_names(path, content.get("labels")), task, len(content.get("unlabelled", []))


def _json_names(path: Path, labels: Any) -> list[str] | None:
    if labels is None:
        return None
    if isinstance(labels, list):
        return [str(name) for name in labels]
    if isinstance(labels, dict) and sorted(labels) == sorted(map(str, range(len(labels)))):
        return [str(labels[str(i)]) for i in range(len(labels))]
    raise ValueError(f'{path}: labels is {labels!r}, expected a list of names or {{"0": name, "1": name, ...}}')


def _csv_rows(path: Path) -> tuple[list[dict[str, Any]], list[str] | None]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        table = list(reader)
    file_column = next((c for c in _FILE_COLUMNS if c in columns), None)
    class_column = next((c for c in _CLASS_COLUMNS if c in columns), None)
    if file_column is None or "split" not in columns or not (class_column or "label" in columns):
        raise ValueError(
            f"{path}: its columns are {', '.join(columns)}; expected file, label and/or class, and split (train, val, "
            "test). tools/make_data_lists.py makes a list from a table without split"
        )
    rows, pairs = [], Counter()
    for number, line in enumerate(table, start=2):
        split = _SECTIONS.get((line["split"] or "").strip().lower())
        if split is None:
            raise ValueError(f"{path}: line {number} has split={line['split']!r}, expected train, val or test")
        label: Any = line["label"] if "label" in columns else line[class_column or ""]
        label = (label or "").strip()
        if class_column and "label" in columns:
            pairs[label, (line[class_column] or "").strip()] += 1
        label = int(label) if label.isdigit() else label
        row = {"file": (line[file_column] or "").strip(), "label": label, "split": split, "at": f"line {number}"}
        rows.append({**row, "group": line.get("group") or line.get("patient") or None})
    if not rows:
        raise ValueError(f"{path}: the list has no lines")
    return rows, _paired_names(path, pairs) if pairs else None


def _paired_names(path: Path, pairs: Mapping[tuple[str, str], int]) -> list[str]:
    by_label: dict[str, set[str]] = {}
    for label, name in pairs:
        by_label.setdefault(label, set()).add(name)
    several = {label: sorted(names) for label, names in by_label.items() if len(names) > 1}
    names = [next(iter(n)) for n in by_label.values()]
    if several or len(set(names)) < len(names):
        raise ValueError(f"{path}: the columns label and class disagree: {several or sorted(pairs)}")
    if sorted(by_label) != sorted(map(str, range(len(by_label)))):
        raise ValueError(f"{path}: label has the values {sorted(by_label)}, expected 0 to {len(by_label) - 1}")
    return [next(iter(by_label[str(i)])) for i in range(len(by_label))]


def _class_names(rows: Sequence[Mapping[str, Any]], problems: list[str]) -> list[str]:
    values = [row["label"] for row in rows]
    if all(isinstance(v, list) for v in values):
        return [f"label {i}" for i in range(len(values[0]))]
    if all(isinstance(v, str) for v in values):
        return sorted({v for v in values if v})
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return [f"class {i}" for i in range(max(values) + 1)]
    kinds = Counter(type(v).__name__ for v in values)
    problems.append(f"labels are of several kinds: {dict(kinds)}; expected all indices, all names or all lists of 0/1")
    return []


def _label(row: Mapping[str, Any], classes: list[str], multi_label: bool, problems: list[str]) -> int | list[int]:
    label, at = row["label"], f"{row['at']} ({row['file']})"
    if multi_label:
        if isinstance(label, list) and len(label) == len(classes) and set(label) <= {0, 1}:
            return [int(v) for v in label]
        problems.append(f"{at} has label={label!r}, expected {len(classes)} values 0 or 1")
        return [0] * len(classes)
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        return label
    if classes:
        problems.append(f"{at} has label={label!r}, expected 0 to {len(classes) - 1} or one of {', '.join(classes)}")
    return 0


def _leaks(rows: Sequence[Mapping[str, Any]], paths: Sequence[Path], num_workers: int) -> list[str]:
    problems: list[str] = []
    first: dict[Path, Mapping[str, Any]] = {}
    group_split: dict[str, Mapping[str, Any]] = {}
    for row, path in zip(rows, paths, strict=True):
        other = first.setdefault(path.resolve(), row)
        if other is not row:
            where = f"{other['split']} and {row['split']}" if other["split"] != row["split"] else f"{row['split']} twice"
            problems.append(f"{row['file']} stands in {where} ({other['at']}, {row['at']})")
        if row["group"] is not None:
            other = group_split.setdefault(str(row["group"]), row)
            if other["split"] != row["split"]:
                problems.append(
                    f"group {row['group']!r} crosses {other['split']} ({other['at']}) and {row['split']} ({row['at']})"
                )
    missing = {i for i, path in enumerate(paths) if not path.is_file()}
    problems += [f"{rows[i]['at']}: {paths[i]} does not exist" for i in sorted(missing)]

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


def read_file_list(path: Path) -> list[str]:
    """Names of the image files in a list for inference: a `.json` (list of paths or objects with `image`), a `.csv`
    with a column file, or a text file with one path a line.

    Raises:
        ValueError: If the list is none of these or is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"datalist={str(path)!r}: no such file")
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = content.get("test") or content.get("testing") or []
        files = [item["image"] if isinstance(item, dict) else item for item in content]
    elif path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            column = next((c for c in _FILE_COLUMNS if c in (reader.fieldnames or [])), None)
            if column is None:
                raise ValueError(f"{path}: its columns are {reader.fieldnames}, expected one called file")
            files = [line[column] for line in reader]
    else:
        files = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not files or not all(isinstance(f, str) for f in files):
        raise ValueError(f"{path}: expected a list of image files (a section test, a column file, or a path a line)")
    return files
