"""Label files that another program hands over for training: each has the class of an image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from label_efficient.files import read_text


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
