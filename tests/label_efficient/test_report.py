"""The report: well-formed, escaped, self-contained."""

import io
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from label_efficient.report import page as _report

EVIL = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Page(HTMLParser):
    """Collects text, links, images and ids, and checks that tags are balanced."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _image(size: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _cells(markup: str) -> list[tuple[bool, str]]:
    """Whether each body cell is right-aligned, and its text."""
    return [(bool(style), text) for style, text in re.findall(r"<td( class=\"num\")?>(.*?)</td>", markup)]


def test_report_is_self_contained(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(_image(80))
    sections = [
        _report.section(f"Part {number} {EVIL}", *blocks)
        for number, blocks in enumerate(
            [
                [_report.table(["name", EVIL], [[EVIL, 1.0]], caption=EVIL)],
                [_report.definition_list({EVIL: EVIL})],
                [_report.figure(tmp_path / "a.png", EVIL), _report.figure(tmp_path / "a.png", "two")],
                [_report.gallery([(_image(), EVIL), (_image(70), "b")]), EVIL],
            ]
        )
    ]
    path = tmp_path / "out" / "report.html"
    _report.write_report(path, title=EVIL, sections=sections, notice=EVIL, footer=EVIL)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]

    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.seen and "link" not in page.seen
    assert page.text.count(EVIL) == 20  # also in the links of the contents
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    images = [reference for reference in page.references if reference.startswith("data:image/")]
    links = [reference for reference in page.references if reference.startswith("#")]
    assert len(images) == page.seen.count("img") == 4
    assert len(links) == 4 and {link[1:] for link in links} == set(page.ids)
    assert len(images) + len(links) == len(page.references)
    assert str(tmp_path) not in text


def test_short_report_has_no_contents(tmp_path: Path):
    sections = [_report.section("Same title", "text")] * 3
    _report.write_report(tmp_path / "report.html", title="Run", sections=sections)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "nav" not in page.seen and "footer" not in page.seen and 'class="notice"' not in page.text
    assert len(set(page.ids)) == 3


def test_table_aligns_and_formats():
    rows = [["a", 1234, 0.123456, "97.34 / 99.85", None], ["b", 7, math.nan, "91.1", "x"]]
    cells = _cells(_report.table(["name", "n", "value", "ready", "note"], rows))
    assert cells == [
        (False, "a"),
        (True, "1234"),
        (True, "0.1235"),
        (True, "97.34 / 99.85"),
        (False, "\N{EN DASH}"),
        (False, "b"),
        (True, "7"),
        (True, "\N{EN DASH}"),
        (True, "91.1"),
        (False, "x"),
    ]


@pytest.mark.parametrize(
    "value, text",
    [
        (True, "yes"),
        (np.bool_(False), "no"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (12345.678, "12346"),
        (1e-5, "1e-05"),
        ([224, 224], "224, 224"),
        ({"a": 0.25}, "a: 0.25"),
        ([], "\N{EN DASH}"),
        (Path("runs/demo"), "runs/demo"),
    ],
)
def test_values(value: object, text: str):
    assert f"<dd>{text}</dd>" in _report.definition_list({"name": value})


@pytest.mark.parametrize(
    "text, numeric",
    [
        ("97.3 \N{PLUS-MINUS SIGN} 0.4", True),
        ("-0.5", True),
        ("12%", True),
        ("3e-4", True),
        ("1,234 (5.6%)", True),
        ("2024-01-01", False),
        ("C1", False),
        ("28x28", False),
    ],
)
def test_numbers_given_as_text(text: str, numeric: bool):
    assert _cells(_report.table(["a"], [[text]])) == [(numeric, text)]


def test_small_images_are_enlarged_without_blur():
    assert 'class="small"' in _report.gallery([(_image(28), "a")])
    assert 'class="small"' not in _report.gallery([(_image(224), "a")])


def test_failed_write_leaves_the_old_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _report.write_report(path, title="a", sections=[])
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]
