"""Names of output files: inside their folder, writable everywhere, never two alike."""

import os

import pytest
from hypothesis import given, strategies

from label_efficient.files import printable
from label_efficient.output_names import is_inside, output_name, picture_names

ANY_NAME = strategies.text(strategies.characters(), max_size=400)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.png", "a/b.png"),
        ("/x/scan.png", "x/scan.png"),
        ("../../victim.png", "victim.png"),
        ("a\\..\\b.png", "a/b.png"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("caf\u00e9.png", "caf\u00e9.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf%E9.png"),
        ("a\x00b\n.png", "a%00b%0A.png"),
    ],
)
def test_output_name(name, expected):
    assert output_name(name) == expected


@given(ANY_NAME)
def test_any_name_stays_inside_and_can_be_written(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "names"
    place = folder / (output_name(name) + ".png")
    assert place.resolve().is_relative_to(folder.resolve()) and place != folder
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()


@given(strategies.lists(ANY_NAME, max_size=8))
def test_two_names_never_share_an_output(names):
    found = picture_names(names)
    assert set(found) == set(names) and len({v.casefold() for v in found.values()}) == len(set(names))
    assert all(is_inside(name) for name in found.values())


@given(ANY_NAME)
def test_printable_text_can_be_encoded(name):
    assert printable(printable(name)) == printable(name).encode("utf-8").decode()
