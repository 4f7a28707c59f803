"""Everything that leans on MONAI's inside, and why it has to."""

import sys
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser

# Written into a parsed config by MONAI's experiment tracking and by MONAI Label: nobody's typing error.
CONSUMER_KEYS = frozenset(
    """_meta_ tracking_uri experiment_name run_name save_execute_config is_not_rank0 multi_gpu displayable_configs
    use_click class_names help h""".split()
)


def config_being_parsed() -> dict[str, Any] | None:
    """The config that is being resolved further up the stack, as given; None outside any.

    The settings and the record of a run need all of it, and MONAI hands it to no object that it builds.
    """
    parser = _calling_parser()
    return None if parser is None else parser.config  # type: ignore[return-value]


def resolved(name: str) -> Any:
    """A value of the config being parsed, its expression evaluated: whatever its default refers to."""
    parser = _calling_parser()
    return None if parser is None else parser.get_parsed_content(name)


def read_words(defaults: Mapping[str, Any]) -> None:
    """Turn words from the command line into the values that they stand for, in the config being parsed.

    It hands over `--resume true` as the text "true", which would count as true even as "false", and `--dataset 2024`, a
    folder, as a number.
    """
    given = config_being_parsed() or {}
    words = {"true": True, "false": False, "null": None, "none": None}
    for name, default in defaults.items():
        value = word = given.get(name)
        computed = isinstance(default, str) and default[:1] == "$"
        if isinstance(value, str) and (isinstance(default, bool) or default is None or computed):
            word = words.get(value.lower(), value)
        elif isinstance(default, str) and default[:1] not in ("$", "@", "%") and type(value) in (int, float):
            word = str(value)
        if word is not value and (computed or type(word) is type(default)):
            put_into_config({name: word})


def put_into_config(values: Mapping[str, Any]) -> None:
    """Put values into the config being parsed, as the command line would, before any of it is resolved.

    MONAI Label leaves no room for settings: what fits the released weights has to be put in here.
    """
    parser = _calling_parser()
    for name, value in values.items() if parser is not None else ():
        parser.config[name] = value  # type: ignore[index, union-attr]
        parser.ref_resolver.items[name].update_config(value)  # type: ignore[union-attr]
        parser.ref_resolver.resolved_content[name] = value  # type: ignore[union-attr]


def asks_for_help() -> bool:
    """Whether the command line has `--help`, `--help true` or `-h`.

    Fire would answer `--help` itself, but hands it to a function that takes any keyword, as MONAI's `run` does.
    """
    given = config_being_parsed() or {}
    return any(str(given.get(key, False)).lower() == "true" for key in ("help", "h"))


def handed_over() -> dict[str, list[dict[str, Any]]] | None:
    """Lists of `image` and `label`, "train" and "val", that a program has put into the config being parsed; else None.

    MONAI Label replaces those of the config's own datasets. One that it leaves out is empty.
    """
    lists = {name: _given(f"{key}::dataset::data") for name, key in (("train", "train"), ("val", "validate"))}
    given = {name: content if isinstance(content, list) else [] for name, content in lists.items()}
    return given if any(isinstance(content, list) for content in lists.values()) else None


def changes_of_consumers() -> dict[str, Any]:
    """What another program has changed in the config being parsed, as settings, so that the record says so.

    Federated learning and MONAI Label change the trainer and its data directly.
    """
    changes: dict[str, Any] = {}
    if isinstance(epochs := _given("train::trainer::max_epochs"), int):
        changes["max_epochs"] = epochs
    if isinstance(_given("train::dataset::data"), list):
        changes["dataset"] = "handed over by another program"
    return changes


def show_cause_last() -> None:
    """Let an error on the command line end with its cause.

    MONAI wraps what its objects raise into "Failed to instantiate component": the sentence that helps would stand in
    the middle of a long traceback.
    """
    if sys.excepthook is not sys.__excepthook__:
        return

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        sys.__excepthook__(kind, error, trace)
        cause: BaseException = error
        while type(cause) is RuntimeError and str(cause).startswith("Failed to ") and cause.__cause__ is not None:
            cause = cause.__cause__
        print(f"\nERROR: {type(cause).__name__}: {cause}", file=sys.stderr)

    sys.excepthook = hook


def _given(key: str) -> Any:
    parser = _calling_parser()
    return None if parser is None else parser.get(key)


def _calling_parser() -> ConfigParser | None:
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
