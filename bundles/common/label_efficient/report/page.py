"""Building blocks of one self-contained HTML page that opens offline in any browser."""

from __future__ import annotations

import base64
import html
import io
import math
import numbers
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from label_efficient.files import write_whole

MISSING = "\N{EN DASH}"

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SECTION = "<section><h2>"
_TITLE = "</h2>\n"
_NUMERIC = re.compile(r"[-+\u2212]?(inf|[\d,.]+(e[-+]?\d+)?) ?%?( ?[/\u00b1(] ?[\d.]+%?\)?)*")
_CSS = """
:root{--ink:#1c2330;--soft:#5b6575;--line:#d9dee6;--paper:#fff;--box:#f5f7fa;--accent:#0b63a5;
--warn-ink:#5f3d00;--warn:#fff3d6;--warn-line:#e0a100}
@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;--ink:#e4e8ee;--soft:#9ba6b6;
--line:#353d49;--paper:#14181e;--box:#1d232c;--accent:#7db8ea;--warn-ink:#ffe2a3;--warn:#3a2d0c;
--warn-line:#b98500}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 3rem;max-width:66rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1,h2,p,dd,figcaption,footer{overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 1rem}
h2{font-size:1.25rem;line-height:1.3;margin:2.5rem 0 .75rem;padding-bottom:.3rem;
border-bottom:1px solid var(--line)}
p{max-width:46rem;margin:.75rem 0;white-space:pre-line}
a{color:var(--accent)}
.notice{margin:0 0 1.25rem;padding:.7rem 1rem;max-width:none;background:var(--warn);color:var(--warn-ink);
border-left:5px solid var(--warn-line);border-radius:4px;font-weight:600}
nav{margin:0 0 1.5rem;padding:.6rem 1rem;background:var(--box);border-radius:6px}
nav ol{margin:0;padding-left:1.4rem;columns:15rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;color:var(--soft);padding:0 0 .4rem}
th,td{padding:.35rem .8rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{border-bottom:2px solid var(--line);white-space:nowrap}
td{max-width:32rem;overflow-wrap:break-word}td:first-child{min-width:7rem}
tbody tr:nth-child(even){background:var(--box)}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.3rem 1.25rem;margin:1rem 0}
dt{color:var(--soft)}
dd{margin:0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:1rem 0;padding:.7rem 1rem;background:var(--box);
border-radius:6px;font:.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
figure{margin:1.25rem 0}
figcaption{margin-top:.35rem;color:var(--soft);font-size:.88rem;line-height:1.4}
img{display:block;max-width:100%;height:auto}
figure .scroll{margin:0}
.scroll img{background:#fff;border:1px solid var(--line);border-radius:6px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:1rem;margin:1rem 0}
.gallery figure{margin:0}.gallery img{width:100%}.small{image-rendering:pixelated}
.scroll .wide{min-width:42rem}
footer{margin-top:3rem;padding-top:.75rem;border-top:1px solid var(--line);color:var(--soft);font-size:.85rem;
white-space:pre-line}
@media (max-width:34rem){body{padding:1.25rem .9rem 2rem}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.5rem}.gallery{grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr))}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}figure,tr,pre{break-inside:avoid}
h2{break-after:avoid}.scroll{overflow:visible}.scroll .wide{min-width:0}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


class Html(str):
    """Finished markup; `section` escapes every other string."""


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


def _escape(value: object) -> str:
    return html.escape(_text(value), quote=True)


def _image(data: bytes, alt: str, what: str) -> str:
    """An `img` element holding the PNG or JPEG bytes; `what` names them in the error."""
    if data.startswith(_PNG):
        kind = "png"
    elif data.startswith(_JPEG):
        kind = "jpeg"
    else:
        raise ValueError(f"{what} is neither a PNG nor a JPEG image")
    width, height = struct.unpack(">II", data[16:24]) if kind == "png" and len(data) > 24 else (100, 100)
    style = ' class="small"' if max(width, height) <= 64 else ' class="wide"' if width > 2 * height else ""
    content = base64.b64encode(data).decode("ascii")
    return f'<img{style} src="data:image/{kind};base64,{content}" alt="{_escape(alt)}">'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Html:
    """A table; columns that hold only numbers are right-aligned, None and NaN show as an en dash."""
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header has {len(header)}: {list(row)}")
    cells = [[_text(value).strip() for value in row] for row in rows]
    styles = []
    for column in range(len(header)):
        values = [row[column] for row in cells if row[column] not in ("", MISSING)]
        numeric = bool(values) and all(_NUMERIC.fullmatch(value) for value in values)
        styles.append(' class="num"' if numeric else "")
    lines = ['<div class="scroll"><table>']
    if caption:
        lines.append(f"<caption>{_escape(caption)}</caption>")
    heads = "".join(f"<th{s}>{_escape(name)}</th>" for s, name in zip(styles, header, strict=True))
    lines.append(f"<thead><tr>{heads}</tr></thead>\n<tbody>")
    for row in cells:
        columns = "".join(f"<td{s}>{_escape(value)}</td>" for s, value in zip(styles, row, strict=True))
        lines.append(f"<tr>{columns}</tr>")
    lines.append("</tbody></table></div>")
    return Html("\n".join(lines))


def definition_list(pairs: Mapping[str, object]) -> Html:
    """Names and their values, for instance the settings of a run."""
    lines = [f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in pairs.items()]
    return Html("\n".join(["<dl>", *lines, "</dl>"]))


def code(text: str) -> Html:
    """Preformatted text, for instance a command to type."""
    return Html(f"<pre><code>{_escape(text)}</code></pre>")


def figure(path: Path | str, caption: str) -> Html:
    """The PNG or JPEG file, embedded, with its caption."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no figure {path}")
    image = f'<div class="scroll">{_image(path.read_bytes(), caption, str(path))}</div>'
    return Html(f"<figure>{image}<figcaption>{_escape(caption)}</figcaption></figure>")


def gallery(items: Sequence[tuple[bytes, str]]) -> Html:
    """Small encoded images (PNG or JPEG bytes) with captions in a grid that follows the page's width."""
    lines = ['<div class="gallery">']
    for number, (data, caption) in enumerate(items):
        image = _image(data, caption, f"gallery image {number} ({caption!r})")
        lines.append(f"<figure>{image}<figcaption>{_escape(caption)}</figcaption></figure>")
    return Html("\n".join([*lines, "</div>"]))


def section(title: str, *blocks: str) -> Html:
    """A part of the page; blocks that did not come from this module are escaped into paragraphs."""
    body = [block if isinstance(block, Html) else f"<p>{_escape(block)}</p>" for block in blocks]
    return Html("\n".join([f"{_SECTION}{_escape(title)}{_TITLE}", *body, "</section>"]))


def write_report(
    path: Path, *, title: str, sections: Sequence[str], notice: str | None = None, footer: str | None = None
) -> None:
    """Write the page whole or not at all; with more than three sections it has a table of contents."""
    path, links, parts = Path(path), [], []
    for number, part in enumerate(sections, start=1):
        if not (isinstance(part, Html) and part.startswith(_SECTION)):
            raise ValueError(f"sections must come from section(...), number {number} is {part[:60]!r}")
        links.append(f'<li><a href="#part{number}">{part[len(_SECTION) : part.index(_TITLE)]}</a></li>')
        parts.append(part.replace("<section>", f'<section id="part{number}">', 1))
    head = f"<title>{_escape(title)}</title>\n<style>{_CSS}</style>"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{head}\n</head>\n<body>',
        f'<p class="notice" role="note">{_escape(notice)}</p>' if notice else "",
        f"<h1>{_escape(title)}</h1>",
        '<nav aria-label="Contents"><ol>\n' + "\n".join(links) + "\n</ol></nav>" if len(links) > 3 else "",
        *parts,
        f"<footer>{_escape(footer)}</footer>" if footer else "",
        "</body>\n</html>\n",
    ]
    text = "\n".join(filter(None, page))
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def settings_section(settings: Mapping[str, object], changed: Mapping[str, object], versions: Mapping[str, str]) -> str:
    """Section with every setting, those that differ from the defaults marked, and the versions of the packages."""
    rows = [
        [name, "null" if value is None else str(value), "changed" if name in changed else ""]
        for name, value in settings.items()
    ]
    return section("Settings and versions", table(["setting", "value", ""], rows), definition_list(versions))


def thumbnail(image: np.ndarray, size: int = 256) -> bytes:
    """Picture uint8 H x W or H x W x 3 as a PNG of at most `size` pixels a side, for `gallery`."""
    picture = Image.fromarray(image)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
