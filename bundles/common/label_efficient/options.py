"""One check of the arguments that are one of several names."""

from collections.abc import Iterable


def one_of(name: str, value: str, options: Iterable[str]) -> str:
    """The value of an argument; a ValueError that lists the options if it is none of them."""
    if value not in options:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(options)}")
    return value
