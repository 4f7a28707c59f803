"""Everything that leans on MONAI's inside, and why it has to."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver

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


def reached_by(*names: str) -> set[str]:
    """IDs of all that these keys of the config being parsed refer to, and what that refers to."""
    parser, reached, todo = _calling_parser(), set(), list(names)
    while todo and parser is not None:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += ReferenceResolver.find_refs_in_config(parser[name], id=name)
    return reached


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


def on_command_line() -> bool:
    """Whether this process is `python -m monai.bundle`, rather than a program that uses bundles."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def wrap_run(wrap: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
    """Wrap `run` of the workflow that is being initialised: what a config runs is a list, and has no place for that.

    Once: a workflow is initialised again after a property of it was set.
    """
    workflow = _calling(ConfigWorkflow)
    if workflow is not None and "run" not in vars(workflow):
        workflow.run = wrap(workflow.run)


def causes(error: BaseException) -> list[BaseException]:
    """The error and what MONAI has wrapped into it, into "Failed to instantiate component"; the cause is the last."""
    found = [error]
    while type(found[-1]) is RuntimeError and str(found[-1]).startswith("Failed to ") and found[-1].__cause__:
        found.append(found[-1].__cause__)
    return found


def _given(key: str) -> Any:
    parser = _calling_parser()
    return None if parser is None else parser.get(key)


def _calling_parser() -> ConfigParser | None:
    return _calling(ConfigParser)


def _calling(kind: type[Any]) -> Any:
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
