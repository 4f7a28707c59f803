"""What a user gets wrong with data, lists and settings: an error that names it and says what is expected."""

import csv
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import create_workflow
from PIL import Image

from label_efficient.data.image_files import UnreadableError
from label_efficient.settings import SettingsError
from lsanet.data import load_data

CONFIG = Path(__file__).resolve().parents[2] / "bundles" / "lsanet" / "configs" / "train.json"
SPLITS = ("train", "val", "test")
SIX = np.arange(6)


def says(error: BaseException, *parts: str) -> None:
    """Check that a message has all of these words, in any case."""
    text = str(error).lower()
    assert [part for part in parts if part.lower() not in text] == [], text


# Files of MedMNIST layout


def npz(path: Path, **changes) -> Path:
    """Six images of two classes a split; a change of None leaves an array out."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in SPLITS:
        arrays |= {
            f"{split}_images": rng.integers(0, 256, (6, 8, 8), dtype=np.uint8),
            f"{split}_labels": SIX % 2,
        }
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"val_labels": None, "test_images": None},
            ["val_labels is missing", "test_images is missing", "layout"],
        ),
        ({"train_images": np.zeros((6, 8, 8))}, ["train_images is float64 (6, 8, 8)", "expected uint8"]),
        ({"val_images": np.zeros((6, 8, 8, 4), np.uint8)}, ["val_images is uint8 (6, 8, 8, 4)"]),
        ({"val_images": np.zeros((6, 0, 8), np.uint8)}, ["val_images has the shape (6, 0, 8)"]),
        ({"train_images": np.uint8(3)}, ["train_images is uint8 ()"]),
        ({"train_labels": SIX % 2 - 1}, ["train_labels has -1", "0 or more"]),
        ({"train_labels": SIX[:5] % 2}, ["train has 6 images and 5 labels"]),
        ({"train_labels": SIX / 2}, ["train_labels is float64", "whole numbers"]),
        ({"train_labels": np.zeros((6, 0), int)}, ["train_labels is int64 (6, 0)"]),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": SIX[:0]}, ["test is empty"]),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, ["images differ in shape", "(9, 9)"]),
        ({"test_labels": SIX.reshape(3, 2)}, ["test has 6 images and 3 labels"]),
        ({"test_labels": np.ones((6, 2), int)}, ["labels differ in shape"]),
        ({f"{s}_labels": np.full((6, 3), 2) for s in SPLITS}, ["several columns", "value 2"]),
        ({"classes": np.array(["only"])}, ["classes has 1 names", "labels need 2"]),
        ({"classes": np.array(["a", "a"])}, ["classes has a name twice: a, a"]),
        ({f"{s}_labels": SIX * 0 for s in SPLITS}, ["only the class 'class 0'", "needs two"]),
        (
            {"train_labels": SIX % 2 * 2, "val_labels": SIX % 2},
            ["'class 2' has no image in val", "'class 1'", "tools/"],
        ),
        ({"val_labels": SIX * 0}, ["class 'class 1' has no image in val"]),
        ({"test_labels": SIX + 10**9}, ["labels go up to 1000000005"]),
        ({"train_images": np.array([{}] * 6)}, ["not readable as .npz"]),
    ],
)
def test_arrays(tmp_path, changes, parts):
    path = npz(tmp_path / "cells.npz", **changes)
    with pytest.raises(ValueError) as caught:
        load_data(str(path))
    says(caught.value, "cells.npz", *parts)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "npy", "empty"])
def test_file_that_is_no_npz(tmp_path, damage):
    path = npz(tmp_path / "cells.npz")
    content = bytearray(path.read_bytes())
    content[300] ^= 255  # among the pixels
    if damage == "npy":
        np.save(tmp_path / "a.npy", np.zeros(3))
    changed = {
        "truncated": lambda: content[: len(content) // 2], "flipped": lambda: content, "text": lambda: b"hello",
        "npy": (tmp_path / "a.npy").read_bytes, "empty": lambda: b"",
    }  # fmt: skip
    path.write_bytes(changed[damage]())
    with pytest.raises(ValueError, match=r"cells\.npz: not readable as \.npz"):
        load_data(str(path))


# Names of data sets, and settings that go together


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"dataset": "bloodmnst"}, ["'bloodmnst'", "did you mean 'bloodmnist'?"]),
        ({"dataset": "PneumoniaMNIST"}, ["did you mean 'pneumoniamnist'?"]),
        ({"dataset": "pathmnist_46"}, ["did you mean 'pathmnist_64'?"]),
        ({"dataset": "Demo"}, ["did you mean 'demo'?"]),
        ({"dataset": "organmnist3d"}, ["2-D MedMNIST flag", "organamnist"]),
        ({"dataset": "my_pictures"}, ["neither a file or folder", "images.csv", "_128"]),
        ({"dataset": "nowhere/cells.npz"}, ["nowhere/cells.npz", "no such file"]),
        ({"dataset": "cells.npz", "dataset_dir": "."}, ["cells.npz", "no such file", "looked for"]),
        ({"dataset": "nowhere/list.csv"}, ["nowhere/list.csv", "no such list"]),
        ({"dataset": "datalist"}, ["needs datalist", ".json", ".csv"]),
        ({"dataset": "datalist", "datalist": "nowhere/list.json"}, ["nowhere/list.json", "no such list"]),
        (
            {"dataset": "datalist", "datalist": "list.txt"},
            ["list.txt", "expected a MONAI datalist (.json) or a .csv"],
        ),
        (
            {"dataset": "demo", "datalist": "list.json"},
            ["datalist='list.json'", "only read with dataset='datalist'"],
        ),
        ({"dataset": "bloodmnist", "dataset_dir": "nowhere"}, ["dataset_dir='nowhere'", "no such folder"]),
        (
            {"dataset": "demo", "label_fraction": 0.5, "labels_per_class": 3},
            ["label_fraction or labels_per_class"],
        ),
        (
            {"dataset": "demo", "labels_per_class": 81},
            ["labels_per_class is 81", "round, coarse", "(80 images)"],
        ),
        (
            {"dataset": "demo", "label_fraction": 0.001},
            ["label_fraction 0.001 leaves no label", "(80 images)"],
        ),
    ],
)
def test_dataset(tmp_path, monkeypatch, kwargs, parts):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_data(**kwargs)
    says(caught.value, *parts)


def test_folder_without_a_list(tmp_path):
    with pytest.raises(SettingsError) as caught:
        load_data(str(tmp_path))
    says(caught.value, str(tmp_path), "without images.csv", "tools/make_data_lists.py", "--dataset datalist")


# Lists


@pytest.fixture
def images(tmp_path) -> list[list[str]]:
    """Twelve pictures, and the lines of a list of them: file, class, split."""
    rows = []
    rng = np.random.default_rng(0)
    for index in range(12):
        name = f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name)
        rows.append([name, ("cat", "dog")[index % 2], SPLITS[index // 4]])
    return rows


def csv_error(folder: Path, rows, columns="file,class,split", **kwargs) -> str:
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    with pytest.raises(ValueError) as caught:
        load_data(str(folder / "list.csv"), **kwargs)
    assert "list.csv" in str(caught.value)
    return str(caught.value)


def set_cell(line: int, column: int, value: str):
    def change(rows):
        rows[line][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (set_cell(2, 0, "lost.png"), ["line 4", "lost.png does not exist"]),
        (set_cell(2, 0, ""), ["line 4 has file=''"]),
        (set_cell(2, 0, "."), ["line 4", "is a folder"]),
        (set_cell(1, 0, "0.png"), ["0.png stands in train twice (line 2, line 3)"]),
        (set_cell(9, 0, "0.png"), ["0.png stands in train and test (line 2, line 11)"]),
        (set_cell(9, 0, "../{folder}/0.png"), ["stands in train and test (line 2, line 11)"]),
        (set_cell(2, 1, ""), ["line 4 (2.png) has label=''", "cat, dog"]),
        (
            set_cell(2, 1, "7"),
            ["11 str (first 'cat' at line 2), 1 int (first 7 at line 4)", "all indices, all names"],
        ),
        (set_cell(2, 2, "training set"), ["line 4 has split='training set'", "train, val or test"]),
        (set_cell(2, 1, "horse"), ["class 'horse' has no image in val", "tools/make_data_lists.py"]),
        (lambda rows: rows.__delitem__(slice(4, 8)), ["no entries for val", "tools/make_data_lists.py"]),
        (lambda rows: [row.__setitem__(1, "cat") for row in rows], ["only the class 'cat'"]),
        (lambda rows: [row.__setitem__(1, "cat") for row in rows[4:8]], ["class 'dog' has no image in val"]),
        (lambda rows: rows.clear(), ["the list has no lines"]),
    ],
)
def test_csv(tmp_path, images, change, parts):
    change(images)
    images = [[cell.replace("{folder}", tmp_path.name) for cell in row] for row in images]
    says(ValueError(csv_error(tmp_path, images)), *parts)


def test_csv_columns(tmp_path, images):
    message = csv_error(tmp_path, [row[:2] for row in images], "file,class")
    says(
        ValueError(message),
        "its columns are file, class",
        "split (train, val, test)",
        "tools/make_data_lists.py",
    )
    assert "its columns are name, class, split" in csv_error(tmp_path, images, "name,class,split")
    assert "its columns are file, split" in csv_error(tmp_path, [r[::2] for r in images], "file,split")


def test_label_and_class_disagree(tmp_path, images):
    columns = "file,class,split,label"
    rows = [[*row, int(row[1] == "dog")] for row in images]
    wrong = [*rows[:-1], [*rows[-1][:3], 0]]
    assert "the columns label and class disagree: label 0 is cat and dog; dog is label 0 and 1" in csv_error(
        tmp_path, wrong, columns
    )
    gap = [[*row[:3], row[3] * 2] for row in rows]
    assert "label has the values 0, 2, expected 0 to 1" in csv_error(tmp_path, gap, columns)


def test_same_content_under_two_names_in_two_splits(tmp_path, images):
    (tmp_path / "10.png").write_bytes((tmp_path / "3.png").read_bytes())
    assert "10.png (test) is byte by byte 3.png (train)" in csv_error(tmp_path, images)


@pytest.mark.parametrize("column", ["group", "patient"])
def test_group_crosses_splits(tmp_path, images, column):
    rows = [[*row, "P7" if row[0] in ("1.png", "5.png") else ""] for row in images]
    message = csv_error(tmp_path, rows, f"file,class,split,{column}")
    assert "group 'P7' crosses train (line 3) and val (line 7)" in message


def test_list_in_another_encoding(tmp_path, images):
    images[0][1] = "Lymphozyten größer"
    text = "\n".join([",".join(row) for row in [["file", "class", "split"], *images]])
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.csv: not readable as CSV .* UTF-8"):
        load_data(str(tmp_path / "list.csv"))


def test_all_problems_of_a_list_come_at_once(tmp_path, images):
    images[1][0], images[2][2], images[3][1], images[9][0] = "lost.png", "trian", "", "0.png"
    message = csv_error(tmp_path, images)
    says(
        ValueError(message),
        "4 problems",
        "lost.png does not exist",
        "split='trian'",
        "label=''",
        "train and test",
    )
    many = [[f"lost{i}.png", *row[1:]] for i, row in enumerate(images * 4)]
    message = csv_error(tmp_path, many)
    assert len(message.splitlines()) == 22 and message.splitlines()[-1].strip().startswith("and ")


def json_content(images, label=lambda name: name) -> dict:
    sections = {"training": "train", "validation": "val", "test": "test"}
    return {s: [{"image": f, "label": label(c)} for f, c, k in images if k == part] for s, part in sections.items()}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.update(tests=c.pop("test")), ["unknown section 'tests'", "no entries for test"]),
        (lambda c: c.update(validation={}), ["validation is a dict", "list of entries"]),
        (lambda c: c.update(validation=[]), ["no entries for val"]),
        (lambda c: [c.pop(k) for k in list(c)], ["no entries in training, validation or test"]),
        (lambda c: c["test"].append("a.png"), ["test[4] is 'a.png'", "object with image and label"]),
        (lambda c: c["test"][1].pop("label"), ["test[1] is", "object with image and label"]),
        (lambda c: c["test"][1].update(image=["0.png", "1.png"]), ["test[1] has image=['0.png', '1.png']"]),
        (lambda c: c["test"][1].update(label="horse"), ["test[1] (9.png) has label='horse'", "cat, dog"]),
        (lambda c: c["test"][1].update(label=2), ["test[1] (9.png) has label=2", "0 to 1"]),
        (lambda c: c["test"][1].update(label=True), ["label=True"]),
        (lambda c: c.update(labels=["cat", "cat"]), ["labels has a name twice: cat, cat"]),
        (lambda c: c.update(labels={"1": "cat", "2": "dog"}), ["labels is {'1': 'cat'", "list of names"]),
        (lambda c: c.update(task="classify"), ["task is 'classify'", "'binary-class'"]),
        (lambda c: c.update(task="multi-label, binary-class"), ["task is 'multi-label", "one per image"]),
        (lambda c: c.update(unlabelled=3), ["unlabelled is a int"]),
        (
            lambda c: [i.update(patient="P1") for k in ("training", "test") for i in c[k]],
            ["group 'P1' crosses"],
        ),
    ],
)
def test_json(tmp_path, images, change, parts):
    content = json_content(images) | {"labels": ["cat", "dog"]}
    change(content)
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        load_data("datalist", datalist=str(tmp_path / "list.json"))
    says(caught.value, "list.json", *parts)


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        (lambda c: -1, ["label=-1"]),
        (lambda c: [0, 2], ["label=[0, 2]", "2 values 0 or 1"]),
        (lambda c: [[0], [1]], ["label=[[0], [1]]"]),
        (lambda c: [0] if c == "cat" else [0, 1], ["label=[0, 1]", "1 values"]),
        (lambda c: 0.5, ["float (first 0.5 at training[0])"]),
        (lambda c: None, ["NoneType (first None"]),
    ],
)
def test_json_labels_without_names(tmp_path, images, label, parts):
    (tmp_path / "list.json").write_text(json.dumps(json_content(images, label)))
    with pytest.raises(ValueError) as caught:
        load_data(str(tmp_path / "list.json"))
    says(caught.value, "list.json", *parts)


@pytest.mark.parametrize(
    ("text", "part"),
    [("file,class", "not readable as JSON"), ("", "not readable as JSON"), ("[1]", "got a list")],
)
def test_list_that_is_no_datalist(tmp_path, text, part):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=rf"list\.json: .*{part}"):
        load_data(str(tmp_path / "list.json"))


# Image files


@pytest.mark.parametrize("cache", [True, False])
def test_all_unreadable_images_of_a_list_come_at_once_before_training(tmp_path, images, cache):
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[: len(content) // 2])
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.float32), np.eye(4)), tmp_path / "volume.nii.gz")
    images[1][0] = "volume.nii.gz"
    pages = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    images[5][0] = "pages.tif"
    (tmp_path / "11.png").write_text("no picture")
    message = csv_error(tmp_path, images, cache=cache, num_workers=2)
    says(
        ValueError(message), "4 problems", "0.png: cannot be read", "volume.nii.gz: a volume of shape (4, 4, 3)",
        "pages.tif: 2 pages or frames", "11.png: cannot be read", "export",
    )  # fmt: skip
    (tmp_path / "list.csv").unlink()


def test_unreadable_images_are_an_error_of_its_own_kind(tmp_path, images):
    (tmp_path / "3.png").write_bytes(b"")
    with open(tmp_path / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "class", "split"], *images])
    with pytest.raises(UnreadableError, match="1 problem:") as caught:
        load_data(str(tmp_path))
    assert len(caught.value.problems) == 1 and "3.png: the file is empty" in caught.value.problems[0]


# Settings


def settings_of(**changes):
    workflow = create_workflow(config_file=str(CONFIG), workflow_type="train", **changes)
    workflow.initialize()
    return workflow.parser.get_parsed_content("settings")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"learning_rat": 0.1}, ["unknown setting 'learning_rat'", "did you mean 'learning_rate'?"]),
        ({"epochs": 3, "batchsize": 8}, ["'max_epochs'", "'batch_size'"]),
        ({"max_epochs": 0, "amp": 2}, ["max_epochs=0: expected a whole number of at least 1", "amp=2"]),
        ({"max_epochs": 2.5}, ["max_epochs=2.5"]),
        ({"max_epochs": "ten"}, ["max_epochs='ten'"]),
        ({"batch_size": 1}, ["batch_size=1", "at least 2"]),
        ({"learning_rate": 0}, ["learning_rate=0", "above 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate=nan"]),
        ({"label_fraction": 1.5}, ["label_fraction=1.5", "at most 1"]),
        ({"labels_per_class": 0}, ["labels_per_class=0"]),
        ({"label_fraction": 0.1, "labels_per_class": 3}, ["label_fraction and labels_per_class", "give one"]),
        ({"class_weights": "sometimes"}, ["class_weights='sometimes'", "none, balanced or a list"]),
        ({"augment": "heavy"}, ["augment='heavy'", "dihedral"]),
        ({"method": "lsa"}, ["method='lsa'", "lsanet"]),
        ({"backbone": "resnet19"}, ["backbone='resnet19'", "resnet18"]),
        (
            {"backbone": "densenet121", "image_size": 28},
            ["image_size=28 is too small for densenet121", ">=29"],
        ),
        ({"backbone": "vgg16", "image_size": 28}, ["image_size=28 is too small for vgg16", ">=32"]),
        ({"image_size": [64, 64]}, ["image_size=[64, 64]"]),
        ({"mean": [0.5]}, ["mean=[0.5]", "three numbers"]),
        ({"mean": ["a", 0.5, 0.5]}, ["mean=['a', 0.5, 0.5]"]),
        ({"std": [0.5, 0.5, 0]}, ["std=[0.5, 0.5, 0]", "above 0"]),
        ({"device": "gpu"}, ["device='gpu'", "cpu"]),
        ({"device": "cuda:99"}, ["device='cuda:99'", "cpu"]),
        (
            {"method": "baseline", "lsa": "gated"},
            ["lsa='gated' has no effect with method='baseline'", "lsanet"],
        ),
        ({"method": "lsanet", "alpha": 0.5}, ["alpha=0.5 has no effect", "dsn"]),
        ({"method": "dsn", "synergy_weight": 2}, ["synergy_weight=2 has no effect"]),
        ({"pretrained": True, "ckpt_path": "a.pt"}, ["pretrained and ckpt_path", "give one"]),
        ({"dataset_dir": "somewhere"}, ["dataset_dir has no effect with dataset='demo'"]),
        ({"val_interval": 5, "max_epochs": 4}, ["val_interval=5 is more than max_epochs=4"]),
        ({"resume": "maybe"}, ["resume='maybe': expected true or false"]),
        ({"output_dir": 2024}, ["output_dir=2024", "text"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"num_workers": "many"}, ["num_workers='many'"]),
    ],
)
def test_settings(changes, parts):
    with pytest.raises(RuntimeError, match=r"Failed to instantiate component 'label_efficient\.settings") as caught:
        settings_of(**changes)
    assert isinstance(caught.value.__cause__, SettingsError)
    says(caught.value.__cause__, *parts)


def test_words_of_the_command_line_are_read():
    changes = {"resume": "false", "keep_aspect": "False", "calibrate": "true", "labels_per_class": "null"}
    settings = settings_of(**changes, ckpt_path="None", dataset_dir="null", _note="a key of one's own")
    for name, value in {
        "resume": False,
        "keep_aspect": False,
        "calibrate": True,
        "labels_per_class": None,
    }.items():
        assert settings[name] is value
    assert settings["ckpt_path"] is None and settings["dataset_dir"] is None
    assert settings.changed == {"keep_aspect": False, "calibrate": True}


def test_names_that_the_command_line_reads_as_numbers_are_text():
    settings = settings_of(dataset=2024)
    assert settings["dataset"] == "2024" and Path(settings["output_dir"]).name == "2024-lsanet"


def test_a_mistake_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        settings_of(output_dir=str(tmp_path / "out"), max_epochs=-1)
    assert re.search(r"max_epochs=-1: expected", str(caught.value.__cause__))
    assert list(tmp_path.iterdir()) == []
