"""Label files that other programs hand over: the class that they name, or an error that names the file."""

import pytest

from label_efficient.data.label_files import class_index

CLASSES = ["dark", "bright", "Brightest"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "BRIGHT\n"),
        ("a.txt", "1"),
        ("a.json", '"bright"'),
        ("a.json", "1"),
        ("a.json", '{"label": "bright"}'),
        ("a.json", '{"prediction": [{"label": "dark", "score": 0.2}, {"label": "bright", "score": 0.8}]}'),
    ],
)
def test_label_file_names_a_class(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert class_index(str(tmp_path / name), CLASSES) == 1


@pytest.mark.parametrize("content", ["3", "-1", "blue", "[]", "{}", "not json"])
def test_label_file_without_a_class_is_an_error(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        class_index(str(tmp_path / "a.json"), CLASSES)
