"""Lists of chest X-rays: both forms, every check, and all problems in one message."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from label_efficient.data.mask_lists import MaskList, read_datalist
from label_efficient.files import sha256

LISTS = Path(__file__).resolve().parents[2] / "data_lists"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures i0.png to i19.png of different content, masks m0.png to m19.png."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.random.RandomState(i).randint(0, 255, (4, 5), np.uint8)).save(folder / f"i{i}.png")
        Image.fromarray(np.eye(4, 5, k=i % 4, dtype=np.uint8) * np.uint8(10 + i)).save(folder / f"m{i}.png")
    return folder


def content(**changes: Any) -> dict[str, Any]:
    """A list without problems, with some of its keys exchanged."""
    return {
        "name": "x",
        "seed": 0,
        "split": "by hand",
        "labels": {"0": "NORMAL", "1": "PNEUMONIA"},
        "training": [
            {"image": "i0.png", "label": 1, "source": "kermany", "group": "p0"},
            {"image": "i1.png", "label": "NORMAL", "patient": 7},
            {"image": "i2.png", "mask": ["m2.png", "m3.png"], "mask_values": [12, 13], "spacing": [0.2, 0.3]},
        ],
        "validation": [{"image": "i4.png", "label": 0, "mask": "m4.png"}],
        "test": [{"image": "i5.png", "label": 1}],
        "cross_domain": [{"image": "i6.png", "mask": "m6.png"}],
        "unlabelled": [
            {"image": "i7.png", "task": "classification", "group": "p0"},
            {"image": "i8.png", "task": "segmentation"},
            {"image": "i9.png"},
        ],
        **changes,
    }


def read(root: Path, data: Any) -> MaskList:
    path = root.parent / "list.json"
    path.write_text(json.dumps(data))
    digests = {file: sha256(file) for file in root.glob("*.png")}
    digests |= {root / f"../{root.name}/{file.name}": digest for file, digest in digests.items()}
    return read_datalist(path, root, digests=digests)


def problems(root: Path, data: Any) -> list[str]:
    with pytest.raises(ValueError) as caught:
        read(root, data)
    return str(caught.value).splitlines()


def only(root: Path, data: Any) -> str:
    head, *found = problems(root, data)
    assert head == f"{root.parent / 'list.json'}: 1 problem:" and len(found) == 1
    return found[0].strip()


def with_training(*items: Any) -> dict[str, Any]:
    data = content()
    data["training"] += items
    return data


def test_what_is_read(root: Path) -> None:
    entries = read(root, content())
    assert entries.classes == ["NORMAL", "PNEUMONIA"]
    lengths = [("train", 3), ("val", 1), ("test", 1), ("cross_domain", 1), ("unlabelled", 3)]
    assert [(name, len(found)) for name, found in entries.sections.items()] == lengths
    first, second, third = entries.sections["train"]
    assert (first.image, first.file, first.label, first.source) == (root / "i0.png", "i0.png", 1, "kermany")
    assert (first.masks, first.mask_values, first.group, first.at) == ((), None, "p0", "training[0]")
    assert (second.label, second.group, second.source) == (0, "7", "")
    assert (third.label, third.masks) == (None, (root / "m2.png", root / "m3.png"))
    assert (third.mask_values, third.spacing) == ((12, 13), (0.2, 0.3))
    both = ("classification", "segmentation")
    assert [e.tasks for e in entries.sections["train"]] == [both[:1], both[:1], both[1:]]
    assert entries.sections["val"][0].tasks == both
    assert [e.tasks for e in entries.sections["unlabelled"]] == [both[:1], both[1:], both]
    assert [e.task for e in entries.sections["unlabelled"]] == ["classification", "segmentation", None]


def test_values_of_the_whole_list_yield_to_an_entry(root: Path) -> None:
    entries = read(root, content(mask_values=[1, 2]))
    assert entries.sections["train"][2].mask_values == (12, 13)
    assert entries.sections["val"][0].mask_values == entries.sections["cross_domain"][0].mask_values == (1, 2)


def test_root_is_the_folder_of_the_list(root: Path) -> None:
    (root / "list.json").write_text(json.dumps(content()))
    assert read_datalist(root / "list.json").sections["test"][0].image == root / "i5.png"
    absolute = content(test=[{"image": str(root / "i5.png"), "label": 1}])
    assert read(root, absolute).sections["test"][0].image == root / "i5.png"
    with pytest.raises(ValueError, match="no such folder"):
        read_datalist(root / "list.json", root / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such list"):
        read_datalist(root / "other.json")
    with pytest.raises(ValueError, match="expected a MONAI datalist"):
        read_datalist(root / "i0.png")


@pytest.mark.parametrize(
    ("labels", "one", "two", "expected"),
    [
        (["no", "yes"], 1, "no", ["no", "yes"]),
        (None, "sick", "healthy", ["healthy", "sick"]),
        (None, 1, 0, ["class 0", "class 1"]),
    ],
)
def test_names_of_the_classes(root: Path, labels: Any, one: Any, two: Any, expected: list[str]) -> None:
    data = content(training=[{"image": "i0.png", "label": one}, {"image": "i1.png", "label": two}])
    data |= {"validation": [{"image": "i2.png", "label": one}], "test": [], "labels": labels}
    entries = read(root, data)
    assert entries.classes == expected
    assert [entry.label for entry in entries.sections["train"]] == [1, 0]


def test_masks_alone_and_classes_alone(root: Path) -> None:
    masks = {"training": [{"image": "i0.png", "mask": "m0.png"}], "validation": [{"image": "i1.png", "mask": "m1.png"}]}
    assert read(root, masks).classes == []
    found = only(root, {**masks, "validation": [{"image": "i1.png", "label": "a"}]})
    assert found == "training has entries with a mask, validation has none"
    found = only(root, {**masks, "training": [{"image": "i0.png", "mask": "m0.png", "label": "a"}]})
    assert found == "training has entries with a label, validation has none"
    assert only(root, {**masks, "training": []}) == "no entries in training"


def test_all_problems_at_once(root: Path) -> None:
    data = content(unlabeled_=[], labels={"0": "NORMAL", "1": "PNEUMONIA"})
    data["training"] += [{"image": "gone.png", "label": 3}, {"image": "i10.png", "mask": ["gone.png"], "lable": 1}]
    found = problems(root, data)[1:]
    assert [line.strip() for line in found] == [
        "unknown section 'unlabeled_': did you mean 'unlabeled'?",
        "unknown key 'lable' in training[4]: did you mean 'label'? (a key of your own starts with _)",
        "training[3] (gone.png) has label=3, expected 0 to 1 or one of NORMAL, PNEUMONIA",
        f"training[3]: {root / 'gone.png'} does not exist",
        f"training[4]: {root / 'gone.png'} does not exist",
    ]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("i10.png", "training[3] is 'i10.png', expected an object with image"),
        ({"image": 3, "label": 1}, "training[3] has image=3, expected the path of a file"),
        ({"image": "i10.png"}, "has neither label nor mask; without them it belongs to unlabelled"),
        ({"image": "i10.png", "label": None}, "has neither label nor mask"),
        ({"image": "i10.png", "label": True}, "has label=True, expected 0 to 1"),
        ({"image": "i10.png", "label": 1.0}, "has label=1.0"),
        ({"image": "i10.png", "label": -1}, "has label=-1"),
        ({"image": "i10.png", "label": "normal"}, "has label='normal', expected 0 to 1 or one of NORMAL, PNEUMONIA"),
        ({"image": "i10.png", "mask": 5, "label": 0}, "has mask=5, expected a path or a list of paths"),
        ({"image": "i10.png", "mask": [5], "label": 0}, "has mask=[5], expected"),
        ({"image": "i10.png", "mask": "m1.png", "mask_values": 150}, "mask_values is 150, expected a list of whole"),
        ({"image": "i10.png", "mask": "m1.png", "mask_values": []}, "mask_values is [], expected a list of whole"),
        ({"image": "i10.png", "label": 0, "mask_values": [1]}, "has mask_values and no mask"),
        ({"image": "i10.png", "label": 0, "spacing": [0.1, 0]}, "has spacing=[0.1, 0], expected [row mm, column mm]"),
        ({"image": "i10.png", "label": 0, "spacing": 0.1}, "has spacing=0.1"),
        ({"image": "i10.png", "label": 0, "source": 1}, "has source=1, expected a name"),
        ({"image": "i10.png", "label": 0, "group": [1]}, "has group=[1], expected a name"),
        ({"image": "i10.png", "label": 0, "task": "classification"}, "has task='classification', expected it in unlab"),
        ({"image": "i10.png", "label": 0, "maks": "m1.png"}, "unknown key 'maks' in training[3]: did you mean 'mask'?"),
        ({"image": "i10.png", "label": 0, "age": 3}, "unknown key 'age' in training[3]: "),
        ({"image": "", "label": 0}, "training[3] has image='', expected the path of a file"),
        ({"image": ".", "label": 0}, "is a folder"),
    ],
)
def test_wrong_entries(root: Path, item: Any, message: str) -> None:
    assert message in only(root, with_training(item))


def test_own_keys_and_comments_are_kept_out(root: Path) -> None:
    read(root, {**with_training({"image": "i10.png", "label": 0, "_age": 3}), "_note": [1], "licence": "CC BY"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainig": []}, "unknown section 'trainig': did you mean 'training'?"),
        ({"extra": []}, "unknown section 'extra': expected one of training, train, validation"),
        ({"mask_value": [1]}, "unknown section 'mask_value': did you mean 'mask_values'?"),
        ({"mask_values": 1}, "mask_values is 1, expected a list of whole numbers"),
        ({"test": {"image": "i1.png"}}, "test is a dict, expected a list of entries"),
        ({"labels": {"0": "a", "1": "a"}}, "labels has a name twice: a, a"),
        ({"labels": {"1": "a", "2": "b"}}, "labels is {'1': 'a', '2': 'b'}, expected a list of names"),
        ({"labels": None}, "has label='NORMAL', expected indices as of the other 3"),
        ({"unlabelled": [{"image": "i9.png", "task": "both"}]}, "task='both', expected classification or segmentation"),
        ({"unlabelled": [{"image": "i9.png", "label": 0}]}, "is a labelled file among the unlabelled: it has label"),
        ({"unlabelled": [{"image": "i9.png", "mask": "m9.png"}]}, "labelled file among the unlabelled: it has mask"),
    ],
)
def test_wrong_lists(root: Path, changes: dict[str, Any], message: str) -> None:
    assert any(message in line for line in problems(root, content(**changes)))


def test_not_a_list_at_all(root: Path) -> None:
    with pytest.raises(ValueError, match="expected an object with training, validation and test"):
        read(root, [{"image": "i0.png"}])
    (root / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        read_datalist(root / "x.json")


SHARED = [
    ("training", {"label": 0}, "test", {"label": 0}, "i12.png stands in train and test (training[3], test[1])"),
    ("training", {"label": 0}, "validation", {"mask": "m1.png"}, "stands in train and val"),
    ("test", {"label": 0}, "cross_domain", {"label": 0}, "stands in test and cross_domain"),
    ("validation", {"label": 0}, "test", {"label": 0}, "stands in val and test"),
    ("test", {"label": 0}, "unlabelled", {}, "stands in test and unlabelled"),
    ("validation", {"label": 0}, "unlabelled", {"task": "segmentation"}, "stands in val and unlabelled"),
    ("cross_domain", {"mask": "m1.png"}, "unlabelled", {"task": "classification"}, "stands in cross_domain and unlab"),
    ("training", {"label": 0}, "unlabelled", {"task": "classification"}, "stands in train and unlabelled"),
    ("training", {"mask": "m1.png"}, "unlabelled", {}, "stands in train and unlabelled"),
    ("training", {"label": 0}, "unlabelled", {"task": "segmentation"}, None),
    ("training", {"mask": "m1.png"}, "unlabelled", {"task": "classification"}, None),
    ("training", {"label": 0}, "training", {"mask": "m1.png"}, None),
    ("training", {"label": 0}, "training", {"label": 0}, "stands in train twice (training[3], training[4])"),
    ("training", {"mask": "m1.png"}, "training", {"mask": "m1.png", "label": 0}, "stands in train twice"),
    ("unlabelled", {"task": "segmentation"}, "unlabelled", {}, "stands in unlabelled twice"),
    ("unlabelled", {"task": "segmentation"}, "unlabelled", {"task": "classification"}, None),
]


@pytest.mark.parametrize(("one", "first", "two", "second", "message"), SHARED)
def test_one_file_in_two_places(root: Path, one: str, first: Any, two: str, second: Any, message: str | None) -> None:
    data = content()
    data[one].append({"image": "i12.png", **first})
    data[two].append({"image": f"../{root.name}/i12.png", **second})  # another way to write the same path
    if message is None:
        read(root, data)
    else:
        data[two][-1]["image"] = "i12.png"
        assert message in only(root, data)
        data[two][-1]["image"] = f"../{root.name}/i12.png"
        assert message.split("stands")[1] in only(root, data)


@pytest.mark.parametrize(("one", "first", "two", "second", "message"), SHARED)
def test_a_copy_in_two_places(root: Path, one: str, first: Any, two: str, second: Any, message: str | None) -> None:
    shutil.copy(root / "i12.png", root / "copy.png")
    data = content()
    data[one].append({"image": "i12.png", **first})
    data[two].append({"image": "copy.png", **second})
    if message is None or "twice" in message:
        read(root, data)  # a copy within a section is harmless
    else:
        found = only(root, data)
        assert found.startswith("copy.png (") and ") is byte by byte i12.png (" in found


def test_contradictions(root: Path) -> None:
    for name in ("i12.png", "m12.png"):
        shutil.copy(root / name, root / f"copy_{name}")
    items = {"image": "i12.png", "label": 0}, {"image": "copy_i12.png", "label": 1}
    found = "i12.png (training[3]) and copy_i12.png (training[4]) are one image with two labels"
    assert only(root, with_training(*items)) == found
    data = content()
    data["test"] += items
    assert "two labels" in only(root, data)
    found = problems(root, with_training(items[0], {**items[1], "image": "i12.png"}))[1:]
    assert len(found) == 2 and "twice" in found[0] and "two labels" in found[1]
    one = {"image": "i12.png", "mask": "m12.png"}
    read(root, with_training(one, {"image": "copy_i12.png", "mask": "copy_m12.png"}))
    assert "two masks" in only(root, with_training(one, {"image": "copy_i12.png", "mask": "m1.png"}))
    values = {"image": "copy_i12.png", "mask": "m12.png", "mask_values": [1]}
    assert "two masks" in only(root, with_training(one, values))


def test_groups(root: Path) -> None:
    data = with_training(*({"image": f"i{i}.png", "label": 0, "group": "p1"} for i in (10, 11)))
    data["test"] += [{"image": f"i{i}.png", "label": 0, "patient": "p1"} for i in (12, 13)]
    assert only(root, data) == "group 'p1' crosses train (training[3]) and test (test[1])"
    data["test"] = [{"image": "i12.png", "label": 0, "group": "u"}]
    data["unlabelled"].append({"image": "i13.png", "group": "u"})
    assert only(root, data) == "group 'u' crosses test (test[0]) and unlabelled (unlabelled[3])"


def test_known_digests_are_trusted(root: Path) -> None:
    digests = {root / "i0.png": "same", root / "i5.png": "same"}
    copy = "i5.png (test) is byte by byte i0.png (train) (test[0], training[0])"
    with pytest.raises(ValueError, match=re.escape(copy)):
        read_datalist(Path("x.json"), root, content=content(), digests=digests)


# CSV


def read_csv(root: Path, text: str) -> MaskList:
    (root / "list.csv").write_text(text, encoding="utf-8-sig")
    return read_datalist(root / "list.csv")


TABLE = """file,label,class,mask,mask_values,split,group,source,task
i0.png,1,PNEUMONIA,,,training,p0,a,
i1.png,0,NORMAL,,,Train,p1,a,
i2.png,,,m2.png;m3.png,12;13,training,,b,
i4.png,0,NORMAL,m4.png,,validation,,,
i6.png,,,m6.png,,cross_domain,,c,
i7.png,,,,,unlabelled,,a,classification
"""


def test_csv(root: Path) -> None:
    entries = read_csv(root, TABLE)
    assert entries.classes == ["NORMAL", "PNEUMONIA"]
    first, second, third = entries.sections["train"]
    assert (first.label, first.group, first.source, first.at) == (1, "p0", "a", "line 2")
    assert (second.label, third.masks) == (0, (root / "m2.png", root / "m3.png"))
    assert (third.mask_values, third.label, third.group) == ((12, 13), None, None)
    assert entries.sections["unlabelled"][0].task == "classification"
    assert entries.sections["cross_domain"][0].source == "c" and entries.sections["test"] == []


def test_csv_with_names_or_indices_only(root: Path) -> None:
    lines = "file,{},split\ni0.png,{},training\ni1.png,{},training\ni2.png,{},val\n"
    assert read_csv(root, lines.format("class", "b", "a", "a")).classes == ["a", "b"]
    assert read_csv(root, lines.format("label", "b", "a", "a")).classes == ["a", "b"]
    entries = read_csv(root, lines.format("label", "1", "0", "1"))
    assert entries.classes == ["class 0", "class 1"] and entries.sections["val"][0].label == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mask,", "masks,", "unknown column 'masks': did you mean 'mask'?"),
        ("split", "part", "its columns are .* expected file, label or class or mask, and split"),
        ("validation", "dev", "line 5 has split='dev', expected train, val, test, cross_domain or unlabelled"),
        ("1,PNEUMONIA", "0,PNEUMONIA", r"disagree: label 0 is NORMAL and PNEUMONIA \(first in the lines 2, 3\)"),
        ("12;13", "12;x", r"line 4 \(i2.png\): mask_values is \[12, 'x'\], expected a list of whole"),
        ("i7.png", "", "line 7 has file='', expected the path of an image"),
        ("i7.png", "gone.png", "line 7: .*gone.png does not exist"),
        ("a,classification", "a,both", r"line 7 \(i7.png\) has task='both', expected classification or"),
    ],
)
def test_wrong_csv(root: Path, old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(ValueError) as caught:
        read_csv(root, TABLE.replace(old, new, 1))
    assert re.search(message, str(caught.value)), caught.value


def test_all_problems_of_a_csv_at_once(root: Path) -> None:
    text = TABLE.replace("validation", "dev").replace("i7.png", "gone.png").replace("0,NORMAL", "3,NORMAL")
    with pytest.raises(ValueError) as caught:
        read_csv(root, text)
    for part in ("line 5 has split='dev'", "gone.png does not exist", "label has the values 1, 3, expected 0 to 1"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="the list has no lines"):
        read_csv(root, TABLE.splitlines()[0])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("kermany_224-shenzhen_256_allclass_allmask_seed0", [5091, 578, 737, 247, 0]),
        ("kermany_224-shenzhen_256_100class_10mask_seed0", [110, 578, 737, 247, 4979]),
    ],
)
def test_lists_of_this_repository(real_data: Path, name: str, sizes: list[int]) -> None:
    entries = read_datalist(LISTS / f"{name}.json", real_data / "chest_xray")
    assert entries.classes == ["NORMAL", "PNEUMONIA"]
    assert [len(found) for found in entries.sections.values()] == sizes
    test = [entry.label for entry in entries.sections["test"] if entry.label is not None]
    assert np.bincount(test).tolist() == [234, 390]  # the published test images
    assert {entry.mask_values for entry in entries.sections["cross_domain"]} == {(150, 200)}
