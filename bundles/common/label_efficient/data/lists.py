"""Lists of image files, MONAI datalists (.json) and tables (.csv): from the file to its entries and classes as given.

`class_lists` and `mask_lists`, the two kinds of list, make of these the entries that `list_checks` compares.
"""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from label_efficient.data.tables import CLASS_COLUMNS, FILE_COLUMNS, Table, listed, read_table
from label_efficient.files import read_json
from label_efficient.settings import SettingsError

SPLIT_WORDS = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
UNLABELLED_WORDS = ("unlabelled", "unlabeled")
_ABOUT = (
    *("name", "description", "seed", "split", "note", "task", "labels", "unlabelled", "licence", "source"),
    *("numTraining", "mask_values", "label_fraction", "labels_per_class", "class_labels", "mask_labels"),
)
_MAX_NAMES = 20
_LONGEST_NAME = 200  # characters, of a class


@dataclass(frozen=True)
class ListForm:
    """What a kind of list holds.

    Attributes:
        sections: The section that each word for one means.
        needed: Keys that every entry has.
        annotations: Columns of a table, of which it has at least one.
        cells: How the cells of other columns are read. With these the list is strict: a name that is nearly that of
            a section or column is an error, whatever its content.
    """

    sections: Mapping[str, str]
    needed: tuple[str, ...]
    annotations: tuple[str, ...]
    cells: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)


class Item(NamedTuple):
    """An entry as the list has it: its section, where it stands (for messages), and its keys."""

    section: str
    at: str
    given: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Place and file, for messages."""
        return f"{self.at} ({self.given['image']})"

    @property
    def group(self) -> str | None:
        """Its group, or its patient."""
        group = self.given.get("group")
        group = self.given.get("patient") if group is None else group
        return None if group is None else str(group)


def read_content(path: Path, root: Path | None, form: ListForm) -> tuple[Any, list[str]]:
    """Content of a list in the form of a MONAI datalist, and the problems of a table's lines.

    Raises:
        SettingsError: If `root`, where its paths are to start, is no folder.
        FileNotFoundError: If there is no such list.
        ValueError: If it is no list at all.
    """
    if root is not None and not root.is_dir():
        raise SettingsError(f"dataset_dir={str(root)!r}: no such folder")
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"{path}: expected a MONAI datalist (.json) or a .csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list")
    return (read_json(path, "a MONAI datalist"), []) if path.suffix.lower() == ".json" else _from_table(path, form)


def _from_table(path: Path, form: ListForm) -> tuple[dict[str, Any], list[str]]:
    table = read_table(path)
    file, split = table.column(*FILE_COLUMNS), table.column("split")
    known = (*form.annotations, "split", "group", "patient", *form.cells)
    problems = [
        f"unknown column {column!r}: did you mean {near[0]!r}?"
        for column in table.columns
        if form.cells
        and column.lower() not in (*known, *FILE_COLUMNS)
        and (near := difflib.get_close_matches(column, known, n=1, cutoff=0.75))
    ]
    sections = list(dict.fromkeys(form.sections.values()))
    if file is None or split is None or not table.column(*form.annotations, *CLASS_COLUMNS):
        problems.append(
            f"its columns are {', '.join(table.columns)}; expected file, {' or '.join(form.annotations)}, and split "
            f"({', '.join(sections)}). tools/make_data_lists.py makes a list from folders, or a table without split"
        )
    if not problems and not table.lines:
        problems.append("the list has no lines")
    if problems or file is None or split is None:
        raise ValueError(listed(path, problems))
    content: dict[str, Any] = {}
    if names := _paired_names(table, problems):
        content["labels"] = names
    others = {key: column for key in (*form.cells, "group", "patient") if (column := table.column(key))}
    label_column, class_column = table.column("label"), table.column(*CLASS_COLUMNS)
    for number, line in table.lines:
        section = form.sections.get(line[split].lower())
        if section is None:
            expected = f"{', '.join(sections[:-1])} or {sections[-1]}"
            problems.append(f"line {number} has split={line[split]!r}, expected {expected}")
        if not line[file]:
            problems.append(f"line {number} has {file}='', expected the path of an image")
        if section is None or not line[file]:
            continue
        item: dict[str, Any] = {"image": line[file], "_at": f"line {number}"}
        item |= {key: form.cells.get(key, str)(line[column]) for key, column in others.items() if line[column]}
        label, name = (line[column] if column else "" for column in (label_column, class_column))
        if label or "label" in form.needed:
            item["label"] = whole_number(label or name)
        elif name:
            item["label"] = name
        content.setdefault(section, []).append(item)
    return content, problems


def whole_number(text: str) -> int | str:
    """Whole number in a cell, 3 or 03 or 3.0, or the text itself."""
    return int(text.partition(".")[0]) if re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", text) else text


def _paired_names(table: Table, problems: list[str]) -> list[str]:
    """Names of the classes where each index stands beside its name; none where a table has only one of the two."""
    label_column, class_column = table.column("label"), table.column(*CLASS_COLUMNS)
    if label_column is None or class_column is None:
        return []
    first: dict[tuple[str, str], int] = {}  # pairs of index and name, and the first line of each
    for number, line in table.lines:
        label = whole_number(line[label_column])
        if isinstance(label, int) and label >= 0 and line[class_column]:
            first.setdefault((str(label), line[class_column]), number)
    by_label, by_name = defaultdict(set), defaultdict(set)
    for label, name in first:
        by_label[label].add(name)
        by_name[name].add(label)
    disagreeing = [f"label {k} is {' and '.join(sorted(v))}" for k, v in sorted(by_label.items()) if len(v) > 1]
    disagreeing += [f"{k} is label {' and '.join(sorted(v))}" for k, v in sorted(by_name.items()) if len(v) > 1]
    if disagreeing:
        lines = [str(n) for (k, name), n in first.items() if len(by_label[k]) > 1 or len(by_name[name]) > 1]
        found = f"{'; '.join(disagreeing)} (first in the lines {', '.join(lines)})"
        problems.append(f"the columns label and class disagree: {found}")
    elif sorted(by_label) != sorted(map(str, range(len(by_label)))):
        problems.append(f"label has the values {', '.join(sorted(by_label))}, expected 0 to {len(by_label) - 1}")
    return [" or ".join(sorted(by_label[label])) for label in sorted(by_label, key=int)]


def find_items(content: Any, path: Path, form: ListForm, problems: list[str]) -> tuple[list[Item], list[str]]:
    """Entries of all sections of a list's content, and the names of its classes; what is none is added to the problems.

    Content that is no object is a ValueError.
    """
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path}: expected an object with training, validation and test, got a {type(content).__name__}"
        )
    items = []
    expected = f"expected an object with {' and '.join(form.needed)}"
    for key, section in content.items():
        if key not in form.sections:
            if key not in _ABOUT and key[:1] != "_":
                near = difflib.get_close_matches(key, (*form.sections, "labels", *form.cells), n=1, cutoff=0.75)
                if isinstance(section, list) or (near and form.cells):
                    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(form.sections)}"
                    problems.append(f"unknown section {key!r}: {hint}")
            continue
        if not isinstance(section, list):
            problems.append(f"{key} is a {type(section).__name__}, expected a list of entries")
            continue
        for index, given in enumerate(section):
            at = f"{key}[{index}]"
            if not isinstance(given, Mapping) or any(name not in given for name in form.needed):
                problems.append(f"{at} is {given!r:.80}, {expected}")
            elif not isinstance(given["image"], str) or not given["image"] or "\0" in given["image"]:
                problems.append(f"{at} has image={given['image']!r}, expected the path of a file")
            else:
                items.append(Item(form.sections[key], given.get("_at", at), given))
    if content.get("labels") is not None:
        names = _given_names(content["labels"], problems)
    else:
        labelled = [i for i in items if "label" in form.needed or i.given.get("label") is not None]
        names, odd = _found_names(labelled, problems)
        items = [item for item in items if item.at not in odd]
    problems += [
        f"a class is called {name[:40]!r}... ({len(name)} characters), expected at most {_LONGEST_NAME}"
        for name in names
        if len(name) > _LONGEST_NAME
    ]
    return items, names


def _given_names(labels: Any, problems: list[str]) -> list[str]:
    """Names of the classes in a list's `labels`."""
    names: list[str] = []
    if isinstance(labels, list):
        names = [str(name) for name in labels]
    elif isinstance(labels, Mapping) and sorted(labels) == sorted(map(str, range(len(labels)))):
        names = [str(labels[str(i)]) for i in range(len(labels))]
    if names and len(set(names)) == len(names):
        return names
    problems.append(
        f"labels has a name twice: {', '.join(names)}"
        if names
        else f'labels is {labels!r}, expected a list of names or {{"0": name, "1": name, ...}}'
    )
    return []


def _found_names(items: Sequence[Item], problems: list[str]) -> tuple[list[str], set[str]]:
    """Names of the classes of a list that does not tell them, by the labels of its items.

    Also the places of items whose label is of another kind than most: these are at fault, not the others.
    """
    kinds: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        kinds[type(item.given["label"]).__name__].append(item)
    usual = max(kinds, key=lambda kind: len(kinds[kind]), default="")
    words = {"int": "indices", "str": "names", "list": "lists of 0 and 1"}
    odd = [item for kind, found in kinds.items() for item in found if kind != usual or kind not in words]
    problems += [
        f"{item.where} has label={item.given['label']!r:.80}, expected {words.get(usual, 'an index or a name')}"
        + (f" as of the other {len(kinds[usual])}" if usual in words else "")
        for item in odd
    ]
    places = {item.at for item in odd}
    labels = [item.given["label"] for item in kinds.get(usual, [])]
    if usual == "list":
        return [f"label {i}" for i in range(Counter(map(len, labels)).most_common(1)[0][0])], places
    if usual == "str":
        return sorted(set(labels) - {""}), places
    if usual != "int":
        return [], places
    present = sorted({label for label in labels if label >= 0})
    number = next((index for index, label in enumerate(present) if index != label), len(present))
    if number < len(present):
        first = next(item for item in kinds["int"] if item.given["label"] == present[number])
        problems.append(
            f"no image has the label {number}, and {first.where} has label={present[number]}: "
            f"expected 0, 1, 2, ... up to the number of classes less one, or their names in `labels`"
        )
    # Those beyond a gap, too: it is told once.
    return [f"class {i}" for i in range(min(present[-1], len(labels)) + 1 if present else 0)], places


def class_of(item: Item, classes: Sequence[str], problems: list[str]) -> int:
    """Index of an item's class, 0 where its label is none."""
    label = item.given["label"]
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if type(label) is int and 0 <= label < len(classes):
        return label
    if classes:
        names = ", ".join(classes[:_MAX_NAMES]) + (", ..." if len(classes) > _MAX_NAMES else "")
        problems.append(f"{item.where} has label={label!r}, expected 0 to {len(classes) - 1} or one of {names}")
    elif type(label) is int and label < 0:
        problems.append(f"{item.where} has label={label!r}, expected 0 or more")
    return 0
