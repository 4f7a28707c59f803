"""A setting as a field of a model: what it is, what it may be, and with what it has an effect."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

METHOD, DATA, TRAINING, RUN = "method", "data", "training", "run"


@dataclass(frozen=True)
class Above:
    """All numbers above a bound, as the values of another setting with which one has an effect."""

    bound: float

    def __contains__(self, value: Any) -> bool:
        return value is not None and value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound:g}"


@dataclass(frozen=True)
class OtherThan:
    """All values but one, likewise."""

    value: Any

    def __contains__(self, value: Any) -> bool:
        return value != self.value

    def __str__(self) -> str:
        return f"other than {self.value}"


Values = Collection[Any] | Above | OtherThan


def setting(
    text: str,
    group: str = METHOD,
    *,
    options: Iterable[str] = (),
    expected: str = "",
    default: str = "",
    only_with: tuple[str, Values] | Sequence[tuple[str, Values]] = (),
    **bounds: Any,
) -> Any:
    """Field of a setting: what it is, in one line, and the heading that it stands under.

    `options` are the texts that it may be, if it is one of several. `expected` says in words what it may be, where its
    type and bounds do not, and `default` its default, where the config has an expression. `only_with` is another
    setting and its values with which alone this one has an effect, or several; `bounds` are pydantic's, such as `ge`.
    """
    effect: Any = [only_with] if only_with and isinstance(only_with[0], str) else only_with
    extra: Any = {
        "group": group, "options": list(options), "expected": expected, "default": default, "only_with": effect,
    }  # fmt: skip
    return Field(description=text, json_schema_extra=extra, **bounds)


def facts(field: FieldInfo) -> dict[str, Any]:
    """What `setting` has noted of a field."""
    extra: Any = field.json_schema_extra
    return extra


def expectation(field: FieldInfo) -> str:
    """What the value of a setting may be, in words."""
    known = facts(field)
    if known["expected"]:
        return known["expected"]
    if known["options"]:
        return "one of " + ", ".join(known["options"])
    kinds: tuple[Any, ...] = getattr(field.annotation, "__args__", (field.annotation,))
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[kinds[0]]
    forms = {"ge": "of at least {:.10g}", "gt": "above {:.10g}", "le": "at most {:.10g}", "lt": "below {:.10g}"}
    bounds = [f.format(getattr(m, name)) for name, f in forms.items() for m in field.metadata if hasattr(m, name)]
    return " ".join([words, " and ".join(bounds)]).strip() + (" or null" if type(None) in kinds else "")


def in_words(values: Values, word: Callable[[Any], str] = str) -> str:
    """The values of another setting with which one has an effect."""
    return str(values) if isinstance(values, Above | OtherThan) else ", ".join(map(word, values))
