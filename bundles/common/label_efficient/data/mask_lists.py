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

import difflib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from label_efficient.data.list_checks import TASKS, Entry, check_entries
from label_efficient.data.lists import (
    SPLIT_WORDS,
    UNLABELLED_WORDS,
    Item,
    ListForm,
    class_of,
    find_items,
    read_content,
    whole_number,
)
from label_efficient.files import path_of, printable

SECTIONS = ("train", "val", "test", "cross_domain", "unlabelled")
_ENTRY_KEYS = ("image", "label", "mask", "mask_values", "source", "group", "patient", "spacing", "task")


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(";")]


_FORM = ListForm(
    {**SPLIT_WORDS, "cross_domain": "cross_domain", **dict.fromkeys(UNLABELLED_WORDS, "unlabelled")},
    needed=("image",),
    annotations=("label", "class", "mask"),
    cells={
        "mask": _parts,
        "mask_values": lambda cell: [whole_number(part) for part in _parts(cell)],
        "source": str,
        "task": str,
    },
)


@dataclass(frozen=True)
class MaskList:
    """A checked list: names of the classes (none without labels), and the entries by section (`SECTIONS`)."""

    classes: list[str]
    sections: dict[str, list[Entry]]


def read_datalist(
    path: Path,
    root: Path | None = None,
    *,
    content: Any = None,
    digests: Mapping[Path, str] | None = None,
) -> MaskList:
    """Read and check a list in one of the forms above; relative paths start at `root`, by default the list's folder.

    `content` is the object in a `.json`, where it is checked before it is written; others as of `check_entries`.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: With all problems of the list: missing files, unknown keys, classes and sections, entries without
            label and mask (or, unlabelled, with one), the same file, content or group in two sections, contradicting
            labels or masks, and sections that are needed and empty.
    """
    content, problems = read_content(path, root, _FORM) if content is None else (content, [])
    items, classes = find_items(content, path, _FORM, problems)
    problems += _unknown_keys(items)
    root = root or path.parent
    values = _mask_values(content.get("mask_values"), "mask_values", problems)
    sections: dict[str, list[Entry]] = {name: [] for name in SECTIONS}
    for item in items:
        sections[item.section].append(_entry(item, root, classes, values, problems))
    problems += _empty_sections(sections)
    check_entries(sections, path, problems, digests)
    return MaskList(classes, sections)


def _unknown_keys(items: Sequence[Item]) -> list[str]:
    places = defaultdict(list)
    for item in items:
        for key in item.given:
            if key not in _ENTRY_KEYS and key[:1] != "_":
                places[key].append(item.at)
    problems = []
    for key, found in places.items():
        near = difflib.get_close_matches(key, _ENTRY_KEYS, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(_ENTRY_KEYS)}"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        problems.append(f"unknown key {key!r} in {found[0]}{more}: {hint} (a key of your own starts with _)")
    return problems


def _empty_sections(sections: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Say what training cannot do without: entries, and for each of its tasks some to validate on."""
    if not sections["train"]:
        return ["no entries in training"]
    trained, validated = ({task for entry in sections[name] for task in entry.tasks} for name in ("train", "val"))
    return [
        f"training has entries with a {word}, validation has none"
        for task, word in zip(TASKS, ("label", "mask"), strict=True)
        if task in trained - validated
    ]


def _mask_values(given: Any, at: str, problems: list[str]) -> tuple[int, ...] | None:
    if given is None:
        return None
    if isinstance(given, list) and given and all(type(value) is int for value in given):
        return tuple(given)
    problems.append(f"{at} is {given!r}, expected a list of whole numbers, the stored values that are lung")
    return None


def _entry(
    item: Item, root: Path, classes: Sequence[str], values: tuple[int, ...] | None, problems: list[str]
) -> Entry:
    given = {key: value for key, value in item.given.items() if value is not None}
    group = given.get("group", given.get("patient"))
    masks = [given["mask"]] if isinstance(given.get("mask"), str) else given.get("mask", [])
    unlabelled = item.section == "unlabelled"

    def check(key: str, value: Any, fits: bool, expected: str) -> Any:
        if fits or value is None:
            return value
        problems.append(f"{item.where} has {key}={given.get(key, value)!r}, expected {expected}")
        return None

    is_masks = isinstance(masks, list) and all(isinstance(mask, str) and mask and "\0" not in mask for mask in masks)
    masks = check("mask", masks, is_masks, "a path or a list of paths") or []
    words = " or ".join(TASKS) if unlabelled else "it in unlabelled only"
    task = check("task", given.get("task"), unlabelled and given.get("task") in TASKS, words)
    spacing = given.get("spacing")
    spacing = check("spacing", spacing, _is_spacing(spacing), "[row mm, column mm], above 0")
    source = check("source", given.get("source"), isinstance(given.get("source"), str), "a name")
    check("group", group, isinstance(group, str | int), "a name")
    annotated = [key for key in ("label", "mask") if key in given]
    if unlabelled and annotated:
        problems.append(f"{item.where} is a labelled file among the unlabelled: it has {' and '.join(annotated)}")
    elif not unlabelled and not annotated:
        problems.append(f"{item.where} has neither label nor mask; without them it belongs to unlabelled")
    if "mask_values" in given and not masks:
        problems.append(f"{item.where} has mask_values and no mask")
    return Entry(
        image=root / path_of(given["image"]),
        file=printable(given["image"]),
        label=class_of(item, classes, problems) if "label" in given else None,
        masks=tuple(root / path_of(mask) for mask in masks),
        mask_values=_mask_values(given.get("mask_values"), f"{item.where}: mask_values", problems) or values,
        source=source or "",
        group=item.group,
        task=task,
        spacing=(float(spacing[0]), float(spacing[1])) if spacing else None,
        at=item.at,
    )


def _is_spacing(given: Any) -> bool:
    numbers = isinstance(given, list) and all(type(value) in (int, float) for value in given)
    return numbers and len(given) == 2 and all(0 < value < math.inf for value in given)
