"""Tables and lists of any content: read as they were written, or refused with file, line and column."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from label_efficient.data.image_files import find_images
from label_efficient.data.lists import ListForm, find_items, read_content, whole_number
from label_efficient.data.tables import read_table
from label_efficient.files import name_of, path_of, printable, read_json, read_text, write_json

FORM = ListForm({"train": "train", "test": "test"}, needed=("image", "label"), annotations=("label", "class"))
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
cells = text.map(str.strip)
names = st.binary(min_size=1, max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


def error_of(path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@quick
@given(
    rows=st.lists(st.tuples(cells.filter(bool), cells), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t"),
    newline=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_a_table_is_read_as_it_was_written(tmp_path, rows, delimiter, newline, encoding):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows(
        [("file", "class"), *rows]
    )
    (tmp_path / "t.csv").write_bytes(file.getvalue().encode(encoding))
    found = read_table(tmp_path / "t.csv")
    assert [tuple(line.values()) for _, line in found.lines] == rows
    lines = file.getvalue().splitlines(keepends=True)
    assert found.lines[0][0] == 2 and found.lines[-1][0] <= len(lines)


@quick
@given(name=names)
def test_every_name_goes_through_a_list(tmp_path, name):
    assert name_of(path_of(name)) == name or "/" in name or name == "."
    write_json(tmp_path / "l.json", [name])
    assert read_json(tmp_path / "l.json", "a list") == [name]
    printable(name).encode()


@quick
@given(content=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text, lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["train", "test", "image", "label", "labels"]) | text,
                                                  inner, max_size=4)), max_leaves=12))  # fmt: skip
def test_any_json_is_a_list_or_a_value_error(tmp_path, content):
    path = tmp_path / "l.json"
    path.write_text(json.dumps(content))
    for read in (
        lambda: find_items(read_content(path, None, FORM)[0], path, FORM, []),
        lambda: find_images(None, str(path)),
    ):
        try:
            read()
        except ValueError as error:
            assert "l.json" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,class\na.png,x\nb\udc80.png,y", "line 3, column 2: the byte 0x80"),
        ("file,class\na.png,x\0", "line 2, column 8: a NUL"),
        ("file,class\n".encode("utf-16-le"), "line 1, column 2: a NUL"),
        ('file,class\na.png,"x\nb.png,y\n', "line 2: not readable as CSV (unexpected end of data)"),
        ("file,class\na,b.png,x\n", "line 2 has 3 cells, and there are 2 columns"),
        (f"file,class\na.png,{'x' * 5000}\n", "line 2: not readable as CSV (column 2 has more than 4096"),
        ("file,file\na.png,b.png\n", "line 1: two columns are called 'file'"),
        ("\n\n", "the file is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_place(tmp_path, content, message):
    raw = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    assert message in error_of(tmp_path / "t.csv", raw)


def test_quoted_newlines_do_not_shift_the_lines(tmp_path):
    (tmp_path / "t.csv").write_text('file,note\n"a.png","one\ntwo"\n\nb.png,\n')
    assert [number for number, _ in read_table(tmp_path / "t.csv").lines] == [2, 5]


@pytest.mark.parametrize(("content", "message"), [('{"a": 1, "a": 2}', "'a' stands twice"), ("[" * 9999, "recursion")])
def test_json_that_would_be_misread(tmp_path, content, message):
    (tmp_path / "l.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(tmp_path / "l.json", "a list")
    assert "l.json" in str(caught.value)


def test_whole_numbers():
    assert [whole_number(cell) for cell in ("3", "03", "3.0", "-1", "+2.")] == [3, 3, 3, -1, 2]
    assert [whole_number(cell) for cell in ("", "1e3", "0.5", "²", "9" * 19)] == ["", "1e3", "0.5", "²", "9" * 19]


@pytest.mark.parametrize("odd", ["-1", "x", "1e3", "", "7", "9" * 5000])
def test_one_odd_label_accuses_itself_alone(tmp_path, odd):
    from label_efficient.data.class_lists import read_datalist

    rows = [f"{n}.png,{n % 2 if n % 3 else f'{n % 2}.0'},{('train', 'val', 'test')[n // 4]}" for n in range(12)]
    for n in range(12):
        (tmp_path / f"{n}.png").write_bytes(bytes([n]))
    (tmp_path / "l.csv").write_text("file,label,split\n" + "\n".join(rows))
    assert read_datalist(tmp_path / "l.csv").classes == ["class 0", "class 1"]
    rows[5] = f"5.png,{odd},val"
    (tmp_path / "l.csv").write_text("file,label,split\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"1 problem|more than 4096") as caught:
        read_datalist(tmp_path / "l.csv")
    assert "line 7" in str(caught.value)


def test_text_says_its_place_and_pipes_are_refused(tmp_path):
    (tmp_path / "t.txt").write_bytes("ä\nbö".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="line 2, column 2"):
        read_text(tmp_path / "t.txt")
    with pytest.raises(OSError, match="pipe, socket or device"):
        read_text("/dev/null")
