"""Label files that other programs hand over: the class that they name, or an error that names the file."""

import pytest

from label_efficient.data.label_files import class_index, split_by_class

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


def lists_of(train: str, val: str) -> dict[str, list[dict[str, object]]]:
    """Lists of images of classes, a letter each: d, b or B."""
    return {
        name: [{"image": f"{name}{i}.png", "label": "dbB".index(c)} for i, c in enumerate(letters)]
        for name, letters in (("train", train), ("val", val))
    }


def letters_of(parts) -> dict[str, str]:
    return {name: "".join(sorted("dbB"[entry["label"]] for entry in entries)) for name, entries in parts.items()}


def test_a_split_that_has_every_class_stays():
    lists = lists_of("ddbB", "dbB")
    assert split_by_class(lists, CLASSES, seed=0) == (lists, [])


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ("ddddbbbb", "bbBBBB", {"train": "BBbbbdd", "val": "BBbbbdd"}),
        ("ddddddbbb", "BBBBB", {"train": "BBBbbdddd", "val": "BBbdd"}),
        ("dddddbbbbbBBBBB", "", {"train": "BBBBbbbbdddd", "val": "Bbd"}),
        ("ddbbB", "", {"train": "Bbd", "val": "bd"}),
    ],
)
def test_a_split_that_lacks_a_class_is_divided_again(train, val, expected):
    lists = lists_of(train, val)
    parts, notes = split_by_class(lists, CLASSES, seed=3)
    assert letters_of(parts) == expected and (parts, notes) == split_by_class(lists, CLASSES, seed=3)
    assert sorted(e["image"] for p in parts.values() for e in p) == sorted(
        e["image"] for p in lists.values() for e in p
    )
    assert "divided again by class" in notes[0] and (len(notes) == 2) == ("B" not in expected["val"])
    assert all("Brightest" in note for note in notes[1:])


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ("dddd", "bb", ["dark 4", "label at least one of Brightest"]),
        ("dbB", "dd", ["too few", "at least two of every class"]),
        ("", "", ["0 labelled images"]),
    ],
)
def test_too_few_labels_are_an_error_with_their_counts(train, val, words):
    with pytest.raises(ValueError) as caught:
        split_by_class(lists_of(train, val), CLASSES, seed=0)
    assert [word for word in words if word not in str(caught.value)] == []


def test_masks_are_all_alike():
    entries = [{"image": f"{i}.png", "label": f"{i}_mask.png"} for i in range(3)]
    parts, _ = split_by_class({"train": entries, "val": []}, [], seed=0)
    assert [len(part) for part in parts.values()] == [2, 1]
