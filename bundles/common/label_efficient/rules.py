"""Rules of what a setting may be, each a predicate and what is expected in words."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from label_efficient.settings import SettingsError


def check_values(settings: Mapping[str, Any], rules: Mapping[str, tuple[Callable[[Any], bool], str]]) -> None:
    """Check settings against rules and raise for all the broken ones at once.

    Args:
        settings: Values by name.
        rules: For a name, a predicate of its value and what is expected, in words.

    Raises:
        SettingsError: Naming every setting at fault, its value and what is expected.
    """
    problems = []
    for name, (holds, expected) in rules.items():
        try:
            fine = holds(settings[name])
        except TypeError:
            fine = False
        if not fine:
            problems.append(f"{name}={settings[name]!r}: expected {expected}")
    if problems:
        raise SettingsError("; ".join(problems))


def one_of(*options: Any) -> tuple[Callable[[Any], bool], str]:
    """Rule: the value is one of the options."""
    return lambda v: any(v == o and type(v) is type(o) for o in options), "one of " + ", ".join(map(str, options))


def number(low: float, high: float = math.inf, *, above: bool = False, optional: bool = False):
    """Rule: a number from `low` (not included with `above`) to `high`, or null where `optional`."""

    def holds(value: Any) -> bool:
        if value is None:
            return optional
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and (value > low if above else value >= low) and value <= high

    bounds = f"{'above' if above else 'at least'} {low:g}" + (f", at most {high:g}" if high < math.inf else "")
    return holds, f"a number {bounds}" + (" or null" if optional else "")


def whole(low: int, *, optional: bool = False) -> tuple[Callable[[Any], bool], str]:
    """Rule: a whole number of at least `low`, or null where `optional`."""

    def holds(value: Any) -> bool:
        return optional if value is None else isinstance(value, int) and not isinstance(value, bool) and value >= low

    return holds, f"a whole number of at least {low}" + (" or null" if optional else "")


FLAG = one_of(True, False)
AMP = one_of(True, False, "auto")


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_three_numbers(value: Any) -> bool:
    """Whether a value is a list of three finite numbers."""
    fits = number(float("-inf"))[0]
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(fits(v) for v in value)


def _device(value: Any) -> bool:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


TEXT = (_text, "text")
OPTIONAL_TEXT = (lambda v: v is None or _text(v), "text or null")
THREE_NUMBERS = (is_three_numbers, "three numbers")
DEVICE = (_device, "cpu, or a device that this machine and its torch have, such as cuda or cuda:1")
