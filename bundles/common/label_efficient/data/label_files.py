"""Images that another program hands over for training, each with the index of its class or a label file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from label_efficient.monai_bridge import calling_parser
from label_efficient.settings import Settings


def handed_over() -> dict[str, list[dict[str, Any]]] | None:
    """Lists of `image` and `label` that a program such as MONAI Label has put into the config being parsed.

    Returns:
        The list of "train" and that of "val", or None where the config has its own data.

    Raises:
        ValueError: If it has handed over the list of one of the two only, or an empty one.
    """
    parser = calling_parser()
    if parser is None:
        return None
    lists = {n: parser.get(f"{k}::dataset::data") for n, k in (("train", "train"), ("val", "validate"))}
    if not any(isinstance(content, list) for content in lists.values()):
        return None
    for name, content in lists.items():
        if not isinstance(content, list) or not content:
            raise ValueError(f"labelled images for training without any for {name}: give a val_split between 0 and 1")
    return lists


def read_changes_of_consumers(settings: Settings) -> None:
    """Put what another program has changed in the parsed config into the settings, so that the record says so.

    Federated learning and MONAI Label change the trainer and its data directly.
    """
    parser = calling_parser()
    if parser is None:
        return
    changes: dict[str, Any] = {}
    if isinstance(epochs := parser.get("train::trainer::max_epochs"), int):
        changes["max_epochs"] = epochs
    if isinstance(parser.get("train::dataset::data"), list):
        changes["dataset"] = "handed over by another program"
    settings.update(changes)
    settings.changed.update(changes)


def use_settings(values: Mapping[str, Any]) -> None:
    """Put values into the config being parsed, as the command line would, before any of it is resolved."""
    parser = calling_parser()
    if parser is None:
        return
    for name, value in values.items():
        parser.config[name] = value  # type: ignore[index]
        parser.ref_resolver.items[name].update_config(value)
        parser.ref_resolver.resolved_content[name] = value


def class_index(label: Any, classes: Sequence[str]) -> int:
    """Index of a class.

    Args:
        label: The index, or the path of a label file: text or JSON with the name of the class (in any case)
            or its index; or a JSON object with that as its `label`, or with the scores that MONAI Label
            answers as its `prediction`, of which the highest counts.
        classes: Names of the classes.

    Raises:
        ValueError: If it is no class.
    """
    content = _read(Path(label)) if isinstance(label, str) else label
    if isinstance(content, dict) and content.get("prediction"):
        content = max(content["prediction"], key=lambda entry: entry["score"])
    if isinstance(content, dict):
        content = content.get("label")
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
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else text
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"label {str(path)!r}: expected text or JSON with the name of the class ({error})") from error
