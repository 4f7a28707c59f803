"""One self-contained HTML page that opens offline in any browser: its sections and their blocks."""

from __future__ import annotations

import base64
import io
import math
import numbers
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from label_efficient.files import write_whole

MISSING = "\N{EN DASH}"

_NUMERIC = re.compile(r"[-+\u2212]?(inf|[\d,.]+(e[-+]?\d+)?) ?%?( ?[/\u00b1(] ?[\d.]+%?\)?)*")


class Section(NamedTuple):
    """A part of the page; blocks that are not markup from the functions below become escaped paragraphs."""

    title: str
    blocks: tuple[object, ...]


def section(title: str, *blocks: object) -> Section:
    """A part of the page, see `Section`."""
    return Section(title, blocks)


def write_report(
    path: Path, *, title: str, sections: Sequence[Section], notice: str | None = None, footer: str | None = None
) -> None:
    """Write the page whole or not at all; with more than three sections it has a table of contents."""
    page = _templates().get_template("page.html")
    text = page.render(title=title, sections=sections, notice=notice, footer=footer)
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Markup:
    """A table; columns that hold only numbers are right-aligned, None and NaN show as an en dash."""
    cells = [[_text(value).strip() for value in row] for row in rows]
    numeric = []
    for column in zip(header, *cells, strict=True):
        values = [value for value in column[1:] if value not in ("", MISSING)]
        numeric.append(bool(values) and all(_NUMERIC.fullmatch(value) for value in values))
    return _block("table", header, numeric, cells, caption)


def definition_list(pairs: Mapping[str, object]) -> Markup:
    """Names and their values, for instance the versions of packages."""
    return _block("definition_list", pairs)


def figure(path: Path, caption: str) -> Markup:
    """The PNG file, embedded, with its caption."""
    return _block("figure", _picture(path.read_bytes()), caption)


def gallery(items: Sequence[tuple[bytes, str]]) -> Markup:
    """PNG images with captions in a grid that follows the page's width; wide ones take more of it."""
    return _block("gallery", [(_picture(data), caption) for data, caption in items])


def thumbnail(image: np.ndarray, size: int = 256) -> bytes:
    """Picture uint8 H x W or H x W x 3 as a PNG of at most `size` pixels a side, for `gallery`."""
    picture = Image.fromarray(image)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("label_efficient.report"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, str) else _text(value),  # markup is a str, and stays markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _block(name: str, *content: object) -> Markup:
    """What the macro of this name in `blocks.html` makes of the content."""
    blocks: Any = _templates().get_template("blocks.html").module
    return getattr(blocks, name)(*content)


def _text(value: object) -> str:
    """The value as a reader wants it, not yet escaped."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return MISSING
    if type(value).__name__ in ("bool", "bool_"):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:.0f}" if 1e4 <= abs(number) < 1e7 else f"{number:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or MISSING
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or MISSING
    return str(value)


def _picture(data: bytes) -> dict[str, str]:
    """Address and style of an embedded PNG, whose size stands in its header."""
    width, height = struct.unpack(">II", data[16:24])
    style = "small" if max(width, height) <= 64 else "wide" if width > 2 * height else "large" if width > 256 else ""
    return {"style": style, "source": f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"}
