"""Images that another program hands over for training: the class in each label file, and a split that has them all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from label_efficient.data.subsets import held_out
from label_efficient.files import read_text

VAL_SHARE = 0.2  # where the other program holds out nothing


def split_by_class(
    lists: Mapping[str, Sequence[Mapping[str, Any]]], classes: Sequence[str], seed: int
) -> tuple[dict[str, list[Mapping[str, Any]]], list[str]]:
    """Lists "train" and "val" of `image` and `label`, divided again where one of them lacks a class; and notes on it.

    Another program does not know the classes: MONAI Label cuts its list where it likes. Each class is then divided in
    the proportion of the lists, with one image at least in training and, of two or more, in validation. Without
    `classes` the labels are masks, and all images alike.

    Raises:
        ValueError: If a class has no image, or too few have two: without validation no epoch could be chosen.
    """
    parts = {name: list(entries) for name, entries in lists.items()}
    entries = [entry for part in parts.values() for entry in part]
    labels = [class_index(entry["label"], classes) if classes else 0 for entry in entries]
    counts = {name: labels.count(index) for index, name in enumerate(classes or ["mask"])}
    found = f"{len(entries)} labelled images were handed over ({', '.join(f'{n} {c}' for n, c in counts.items())})"
    if absent := [name for name, count in counts.items() if not count]:
        raise ValueError(f"{found}: label at least one of {', '.join(absent)}, or the network would unlearn it")
    if sum(count > 1 for count in counts.values()) < min(len(counts), 2):
        raise ValueError(f"{found}: too few to hold some out for validation; label at least two of every class")
    trained = labels[: len(parts["train"])]
    if set(trained) == set(labels) == set(labels[len(trained) :]):
        return parts, []
    chosen = held_out(labels, len(parts["val"]) / len(entries) or VAL_SHARE, seed)
    parts = {name: [e for i, e in enumerate(entries) if (i in chosen) == (name == "val")] for name in ("train", "val")}
    notes = [
        "training or validation lacked a class as they were handed over: divided again by class, "
        f"{len(parts['train'])} for training and {len(parts['val'])} for validation"
    ]
    if single := [name for name, count in counts.items() if count == 1]:
        notes.append(
            f"validation has no image of {', '.join(single)}, whose only one is trained on: it says nothing of it"
        )
    return parts, notes


def class_index(label: Any, classes: Sequence[str]) -> int:
    """Index of a class; a ValueError that lists them if it is none.

    `label` is the index, or the path of a label file: text or JSON with the name of the class (in any case) or its
    index; or a JSON object with that as its `label`, or with MONAI Label's scores as its `prediction`.
    """
    content = _read(Path(label)) if isinstance(label, str) else label
    if isinstance(content, dict):
        scores = content.get("prediction")
        content = (max(scores, key=lambda entry: entry["score"]) if scores else content).get("label")
    names = [name.lower() for name in classes]
    text = str(content).strip().lower()
    if text in names:
        return names.index(text)
    if text.isdecimal() and (not classes or int(text) < len(classes)):
        return int(text)
    raise ValueError(f"label {label!r} says {content!r}: expected the name or index of one of {', '.join(classes)}")


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"label {str(path)!r}: expected the index of the class, or the path of a label file")
    try:
        text = read_text(path)
        return json.loads(text) if path.suffix == ".json" else text
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"label {str(path)!r}: expected text or JSON with the name of the class ({error})") from error
