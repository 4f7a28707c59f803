"""Readers of the command line's values, and a parser whose errors end with status 1."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from label_efficient.data.images import MOST_PIXELS
from lists.splits import DEFAULT_FRACTIONS


class Parser(argparse.ArgumentParser):
    """A parser whose errors end with status 1, as all mistakes here."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave."""
        self.print_usage(sys.stderr)
        self.exit(1, f"error: {message}\n")


def three_fractions(text: str) -> tuple[float, ...]:
    """Read ``0.7,0.1,0.2``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not abs(sum(values) - 1) < 1e-6 or min(values) < 0 or min(values[:2]) == 0:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not three shares such as {','.join(map(str, DEFAULT_FRACTIONS))}, which sum to 1; "
            "only the last, the test part, may be 0"
        )
    return values


def names_list(text: str) -> list[str]:
    """Read distinct names separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"'{text}' holds an empty name or one name twice")
    return names


def plain_name(text: str) -> str:
    """Read a name that can be part of a file name."""
    if not text or set(text) & set("/\\"):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be part of a file name")
    return text


def integer_from(least: int, most: int = 2**32 - 1) -> Callable[[str], int]:
    """Make a reader of whole numbers within bounds."""

    def whole(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} to {most}")
        return int(text)

    return whole


def pixel_limit(parser: argparse.ArgumentParser) -> None:
    """Describe the option for the largest image; the default is that of the bundles' settings."""
    reader, text = integer_from(1, MOST_PIXELS), "an image of more pixels is a problem (default: %(default)s)"
    parser.add_argument("--max_pixels", type=reader, default=100_000_000, help=text)


def number_or_all(text: str) -> int | str:
    """Read a number of labels, or `all`."""
    return text if text == "all" else integer_from(1)(text)


def whole_numbers(text: str) -> list[int]:
    """Read `150,200`."""
    return [integer_from(-(2**31))(part) for part in text.split(",")]


def share(text: str) -> float:
    """Read the share of the validation part."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share above 0 and up to 0.5")
    return value


def correlation(text: str) -> float | None:
    """Read a correlation that two different images hardly ever have, or `none`."""
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a correlation from 0.5 to below 1, such as 0.8, or 'none'")
    return value


def regular_expression(text: str) -> str:
    """Check a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a regular expression: {error}") from None
    return text
