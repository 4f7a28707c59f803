"""Lists of images with classes, one or several an image: checked as a whole before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from label_efficient.data.list_checks import Entry, check_entries
from label_efficient.data.lists import SPLIT_WORDS, Item, ListForm, class_of, find_items, read_content
from label_efficient.files import path_of, printable

SPLITS = ("train", "val", "test")
MULTI_LABEL = "multi-label, binary-class"
_TASKS = ("multi-class", "binary-class", "ordinal-regression", MULTI_LABEL)
_FORM = ListForm(SPLIT_WORDS, needed=("image", "label"), annotations=("label", "class"))


@dataclass(frozen=True)
class ClassList:
    """A checked list: one of MedMNIST's task names, the classes, entries by split, and how many are unlabelled."""

    task: str
    classes: list[str]
    sections: dict[str, list[Entry]]
    unlabelled: int


def read_datalist(path: Path, root: Path | None = None) -> ClassList:
    """Read and check a list.

    A `.json` is a MONAI datalist with the sections training, validation and test, each of entries
    `{"image": path, "label": index or name or list of 0/1}`, and `labels` with the names of the classes. A `.csv` has
    the columns file, label and/or class, split. Relative paths start at `root`, by default the list's folder.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: With all problems of the list: missing files, the same file in two splits, unknown
            classes, empty splits.
    """
    content, problems = read_content(path, root, _FORM)
    items, classes = find_items(content, path, _FORM, problems)
    if not items and not problems:
        raise ValueError(
            f"{path}: no entries in training, validation or test; its keys are {', '.join(content) or 'none'}"
        )
    multi_label = any(isinstance(item.given["label"], list) for item in items)
    task = content.get("task")
    if task is None:
        task = MULTI_LABEL if multi_label else "binary-class" if len(classes) == 2 else "multi-class"
    elif task not in _TASKS:
        problems.append(f"task is {task!r}, expected one of {', '.join(map(repr, _TASKS))}")
    elif multi_label != (task == MULTI_LABEL):
        problems.append(f"task is {task!r}, and the labels are {'lists' if multi_label else 'one per image'}")
    unlabelled = content.get("unlabelled") or []
    if not isinstance(unlabelled, list):
        problems.append(f"unlabelled is a {type(unlabelled).__name__}, expected a list of entries")
    root = root or path.parent
    label_of = _labels_of if multi_label else class_of
    sections: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for item in items:
        file, label = item.given["image"], label_of(item, classes, problems)
        sections[item.section].append(Entry(root / path_of(file), printable(file), label, group=item.group, at=item.at))
    empty = [split for split, entries in sections.items() if items and not entries]
    problems += [f"no entries for {split} (tools/make_data_lists.py cuts splits)" for split in empty]
    check_entries(sections, path, problems)
    return ClassList(task, classes, sections, len(unlabelled))


def _labels_of(item: Item, classes: Sequence[str], problems: list[str]) -> list[int]:
    label = item.given["label"]
    if isinstance(label, list) and len(label) == len(classes) and all(value in (0, 1) for value in label):
        return [int(value) for value in label]
    if classes:
        problems.append(f"{item.where} has label={label!r}, expected {len(classes)} values 0 or 1")
    return [0] * len(classes)
