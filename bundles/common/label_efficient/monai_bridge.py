"""Everything that leans on MONAI's inside, and why it has to."""

import sys
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser

# Written into a parsed config by MONAI's experiment tracking and by MONAI Label: nobody's typing error.
CONSUMER_KEYS = frozenset(
    {
        "_meta_",
        "tracking_uri",
        "experiment_name",
        "run_name",
        "save_execute_config",
        "is_not_rank0",
        "multi_gpu",
        "displayable_configs",
        "use_click",
        "class_names",
    }
)


def read_words(parser: ConfigParser, defaults: Mapping[str, Any]) -> None:
    """Turn words from the command line into the values that they stand for, in the config being parsed.

    It hands over `--resume true` as the text "true", which would count as true even as "false", and `--dataset 2024`, a
    folder, as a number.
    """
    words = {"true": True, "false": False, "null": None, "none": None}
    for name, default in defaults.items():
        given = parser.config.get(name)  # type: ignore[union-attr]
        word = given
        computed = isinstance(default, str) and default[:1] == "$"
        if isinstance(given, str) and (isinstance(default, bool) or default is None or computed):
            word = words.get(given.lower(), given)
        elif isinstance(default, str) and default[:1] not in ("$", "@", "%") and type(given) in (int, float):
            word = str(given)
        if word is not given and (computed or type(word) is type(default)):
            parser.config[name] = word  # type: ignore[index]
            parser.ref_resolver.items[name].update_config(word)
            parser.ref_resolver.resolved_content[name] = word


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


def calling_parser() -> ConfigParser | None:
    """The parser whose config is being resolved further up the stack; MONAI hands it to no object it builds."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None
