"""What a user of a bundle gets wrong: an error that names it and says what is expected, before anything is written."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle_cases import (
    CASES,
    Content,
    asked,
    command,
    flags,
    part,
    predict,
    refused,
    rows_of,
    says,
    small,
    snapshot,
    train_alone,
    weights_of,
    workflow,
    write_list,
)
from PIL import Image

from label_efficient.files import sha256

NAN = float("nan")
SECTIONS = {"training": 4, "validation": 4, "test": 4}


# Which data

ANY = [
    ({"dataset": "nowhere/list.json"}, ["nowhere/list.json", "no such list"]),
    ({"dataset": "nowhere/list.csv"}, ["nowhere/list.csv", "no such list"]),
    ({"dataset": "datalist"}, ["needs datalist", ".json", ".csv"]),
    ({"dataset": "datalist", "datalist": "nowhere/list.json"}, ["nowhere/list.json", "no such list"]),
    ({"dataset": "datalist", "datalist": "list.txt"}, ["list.txt", "(.json) or a .csv"]),
    ({"dataset": "demo", "datalist": "a.json"}, ["datalist='a.json'", "only read with dataset='datalist'"]),
    ({"dataset": "list.json", "dataset_dir": "nowhere"}, ["dataset_dir='nowhere'", "no such folder"]),
]
DATASETS = {
    "lsanet": [
        ({"dataset": "bloodmnst"}, ["'bloodmnst'", "did you mean 'bloodmnist'?"]),
        ({"dataset": "PneumoniaMNIST"}, ["did you mean 'pneumoniamnist'?"]),
        ({"dataset": "pathmnist_46"}, ["did you mean 'pathmnist_64'?"]),
        ({"dataset": "Demo"}, ["did you mean 'demo'?"]),
        ({"dataset": "organmnist3d"}, ["2-D MedMNIST flag", "organamnist"]),
        ({"dataset": "my_pictures"}, ["neither a file or folder", "images.csv", "_128"]),
        ({"dataset": "nowhere/cells.npz"}, ["nowhere/cells.npz", "no such file"]),
        ({"dataset": "cells.npz", "dataset_dir": "."}, ["cells.npz", "no such file", "looked for"]),
        ({"dataset": "bloodmnist", "dataset_dir": "nowhere"}, ["dataset_dir='nowhere'", "no such folder"]),
        ({"dataset": "."}, ["without images.csv", "tools/make_data_lists.py", "--dataset datalist"]),
        ({"labels_per_class": 81}, ["labels_per_class is 81", "round, coarse", "(80 images)"]),
        ({"label_fraction": 0.001}, ["label_fraction 0.001 leaves no label", "(80 images)"]),
    ],
    "multimix": [
        ({"dataset": "dmeo"}, ["dataset='dmeo'", "'demo', 'datalist'", ".json or .csv", "make_data_lists"]),
        ({"dataset": "chest_images"}, ["dataset='chest_images'", "expected"]),
        ({"dataset": "list.json", "class_labels": 5}, ["class_labels=5: expected 2 to 4"]),
        ({"dataset": "list.json", "class_labels": 1}, ["class_labels=1: expected 2 to 4"]),
        ({"dataset": "list.json", "mask_labels": 5}, ["mask_labels=5: expected 1 to 4"]),
        ({"dataset": "list.json", "dataset_dir": "empty"}, ["30 problems", "0.png does not exist"]),
    ],
    "gated_attention": [
        ({"dataset": "dmeo"}, ["dataset='dmeo'", "did you mean 'demo'?"]),
        ({"dataset": "."}, ["without images.csv", "make_data_lists"]),
        ({"dataset": "list.json", "labels_per_class": 9}, ["labels_per_class is 9", "cat"]),
    ],
}


@pytest.mark.parametrize(
    ("case", "changes", "parts"),
    [(name, *row) for name in CASES for row in [*ANY, *DATASETS[name]]],
    indirect=["case"],
)
def test_dataset(case, tmp_path, monkeypatch, changes, parts):
    write_list(tmp_path, content_of(case, tmp_path))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    says(refused(asked, case, "data", **changes), *parts)
    assert not (tmp_path / "runs").exists()


def content_of(case: Any, folder: Path) -> Content:
    """Images of two classes, all of another size, and the content of a list of them; multimix's with masks."""
    sections = SECTIONS | ({"cross_domain": 2, "unlabelled": 2} if case.name == "multimix" else {})
    rng = np.random.default_rng(2)
    content: Content = {"labels": ["cat", "dog"], **{name: [] for name in sections}}
    for i, name in enumerate(name for name, count in sections.items() for _ in range(count)):
        height = 36 if case.name == "multimix" else 36 + i
        Image.fromarray(rng.integers(0, 256, (height, 40), dtype=np.uint8)).save(folder / f"{i}.png")
        content[name].append({"image": f"{i}.png"})
        if name != "unlabelled":
            content[name][-1]["label"] = ("cat", "dog")[i % 2]
        if case.name == "multimix" and name != "unlabelled":
            Image.fromarray((LUNGS > 0).astype(np.uint8) * 255).save(folder / f"mask{i}.png")
            content[name][-1]["mask"] = f"mask{i}.png"
    return content


LUNGS = np.zeros((36, 40))
LUNGS[8:30, 4:16], LUNGS[8:30, 22:36] = 150, 200


def load(case: Any, path: Path, **settings: Any) -> Any:
    """The data of a list, as training would read them."""
    if case.name == "multimix":
        settings = {"image_size": 32, "num_workers": 1, **settings}
    return asked(case, "data", dataset=str(path), **settings)


def misread(case: Any, path: Path, **settings: Any) -> BaseException:
    error = refused(load, case, path, **settings)
    assert isinstance(error, ValueError) and path.name in str(error)
    return error


# Lists: a change of the content, and the words of the message


def each(content: Content, change: Callable[[Content], Any]) -> None:
    for name in ("training", "validation", "test", "cross_domain"):
        for item in content.get(name, []):
            change(item)


LISTS_OF_ALL = [
    (lambda c: c["test"][0].update(image="lost.png"), ["test[0]", "lost.png does not exist"]),
    (lambda c: c["test"].append(dict(c["training"][0])), ["0.png stands in train and test"]),
    (
        lambda c: [c[k][0].update(group="plate 7") for k in ("training", "test")],
        ["group 'plate 7' crosses train (training[0]) and test (test[0])"],
    ),
    (lambda c: c["test"][1].update(label="horse"), ["label='horse'", "cat, dog"]),
    (lambda c: c["training"][0].update(label=2), ["label=2", "0 to 1"]),
    (lambda c: [i.update(label="cat") for i in c["validation"]], ["class 'dog' has no image in val"]),
    (lambda c: [c.update(labels=["cat"]), each(c, lambda i: i.update(label=0))], ["only the class 'cat'", "needs two"]),
]
CLASS_LISTS = [
    (lambda c: c.update(tests=c.pop("test")), ["unknown section 'tests'", "no entries for test"]),
    (lambda c: c.update(validation={}), ["validation is a dict", "list of entries"]),
    (lambda c: c.update(validation=[]), ["no entries for val", "make_data_lists"]),
    (lambda c: [c.pop(k) for k in list(c)], ["no entries in training, validation or test"]),
    (lambda c: c["test"].append("a.png"), ["test[4] is 'a.png'", "object with image and label"]),
    (lambda c: c["test"][1].pop("label"), ["test[1] is", "object with image and label"]),
    (lambda c: c["test"][1].update(image=["0.png", "1.png"]), ["test[1] has image=['0.png', '1.png']"]),
    (lambda c: c["test"][1].update(label="horse"), ["test[1] (9.png) has label='horse'"]),
    (lambda c: c["test"][1].update(label=2), ["test[1] (9.png) has label=2"]),
    (lambda c: c["test"][1].update(label=True), ["label=True"]),
    (lambda c: c.update(labels=["cat", "cat"]), ["labels has a name twice: cat, cat"]),
    (lambda c: c.update(labels={"1": "cat", "2": "dog"}), ["labels is {'1': 'cat'", "list of names"]),
    (lambda c: c.update(task="classify"), ["task is 'classify'", "'binary-class'"]),
    (lambda c: c.update(task="multi-label, binary-class"), ["task is 'multi-label", "one per image"]),
    (lambda c: c.update(unlabelled=3), ["unlabelled is a int"]),
    (lambda c: [i.update(patient="P1") for k in ("training", "test") for i in c[k]], ["group 'P1' crosses"]),
]
UNNAMED = [
    (lambda c: -1, ["label=-1"]),
    (lambda c: [0, 2], ["label=[0, 2]", "2 values 0 or 1"]),
    (lambda c: [[0], [1]], ["label=[[0], [1]]"]),
    (lambda c: [0] if c == "cat" else [0, 1], ["label=[0, 1]", "1 values"]),
    (lambda c: 0.5, ["training[0] (0.png) has label=0.5, expected an index or a name"]),
    (lambda c: None, ["training[0] (0.png) has label=None"]),
]
LISTS = {
    "lsanet": [
        *CLASS_LISTS,
        *[(lambda c, f=f: [c.pop("labels"), each(c, lambda i: i.update(label=f(i["label"])))], p) for f, p in UNNAMED],
    ],
    "gated_attention": [
        (lambda c: each(c, lambda i: i.update(label=[0, 1])), ["lists of labels", "one class per image", "lsanet"]),
        (lambda c: c.update(validation=[]), ["no entries for val", "make_data_lists"]),
    ],
    "multimix": [
        (lambda c: c["test"][0].update(mask="lost.png"), ["test[0]", "lost.png does not exist"]),
        (
            lambda c: c["unlabelled"].append(c["training"].pop()),
            ["3.png", "labelled file among the unlabelled", "label and mask"],
        ),
        (lambda c: c.update(validation=[]), ["entries with a label, validation has none", "with a mask"]),
        (lambda c: c.update(labels=["cat", "dog", "edema"]), ["class 'edema' has no image in train", "in val"]),
    ],
}


@pytest.mark.parametrize(
    ("case", "change", "parts"),
    [(name, *row) for name in CASES for row in [*LISTS_OF_ALL, *LISTS[name]]],
    indirect=["case"],
)
def test_lists(case, tmp_path, change, parts):
    content = content_of(case, tmp_path)
    change(content)
    says(misread(case, write_list(tmp_path, content)), *parts)


def test_same_content_under_two_names_in_two_splits(case, tmp_path):
    path = write_list(tmp_path, content_of(case, tmp_path))
    picture = Image.open(tmp_path / "0.png")
    picture.save(tmp_path / "8.png", compress_level=0)
    says(misread(case, path), "8.png (test) has the pixels of 0.png (train)", "copies=warn")
    found = part(workflow(case, dataset=str(path), copies="warn", **case.tiny), "data")
    assert [copy.files for copy in found.copies if copy.similarity == 1] == [("0.png", "8.png")]
    assert "8.png (test) has the pixels of 0.png" in found.notes[0]
    picture.point(lambda value: value * 0.9).save(tmp_path / "8.png")
    found = part(workflow(case, dataset=str(path), **case.tiny), "data")  # nobody can be sure: never refused
    assert "nearly the same picture" in found.notes[0] and "8.png (test) is nearly (" in found.notes[0]


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("cache", [True, False])
def test_all_unreadable_images_come_at_once_before_training(case, tmp_path, cache):
    content = content_of(case, tmp_path)
    damage(tmp_path / "0.png")
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "7.png").write_text("no picture")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.float32), np.eye(4)), tmp_path / "volume.nii.gz")
    content["training"][1]["image"] = "volume.nii.gz"
    pages = [Image.fromarray(np.full((36, 40), i, np.uint8)) for i in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    content["test"][1]["image"] = "pages.tif"
    kept = {} if case.name == "multimix" else {"cache": cache, "num_workers": 2}
    error = misread(case, write_list(tmp_path, content), **kept)
    assert len(error.problems) == 5  # type: ignore[attr-defined]
    says(
        error,
        "5 problems",
        "/0.png",
        "5.png: the file is empty",
        "7.png: cannot be read",
        "pages.tif: 2 pages or frames",
    )
    says(error, "volume.nii.gz: a volume of shape (4, 4, 3)")


def test_pictures_larger_than_allowed(case, tmp_path):
    path = write_list(tmp_path, content_of(case, tmp_path))
    assert load(case, path, max_pixels=36 * 40 if case.name == "multimix" else 60 * 40)
    error = misread(case, path, max_pixels=36 * 40 - 1)
    says(error, "0.png: 36 x 40 pixels; expected 1 to 1439 pixels", "max_pixels")


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [0, 1], [-1, 1], [NAN, 1], [float("inf"), 1], ["a", "b"]])
def test_class_weights(case, tmp_path, weights):
    if case.name == "multimix" and weights == ["a", "b"]:
        pytest.skip("refused among the settings")
    data = load(case, write_list(tmp_path, content_of(case, tmp_path)))
    says(refused(data.class_weights, weights), "class_weights=", "2 numbers above 0", "cat, dog")


# CSV files, read by the bundles that classify


@pytest.fixture
def lines(case, tmp_path) -> list[list[str]]:
    """Twelve pictures, and the lines of a list of them: file, class, split."""
    content = content_of(case, tmp_path)
    splits = zip(("train", "val", "test"), SECTIONS, strict=True)
    return [[item["image"], item["label"], split] for split, section in splits for item in content[section]]


def csv_error(case: Any, folder: Path, rows: list[list[Any]], columns: str = "file,class,split", **kwargs: Any) -> Any:
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return misread(case, folder / "list.csv", **kwargs)


def cell(line: int, column: int, value: str) -> Callable[[list[list[str]]], Any]:
    return lambda rows: rows[line].__setitem__(column, value)


one_reader = pytest.mark.parametrize("case", ["lsanet"], indirect=True)


@one_reader
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (cell(2, 0, "lost.png"), ["line 4", "lost.png does not exist"]),
        (cell(2, 0, ""), ["line 4 has file=''"]),
        (cell(2, 0, "."), ["line 4", "is a folder"]),
        (cell(1, 0, "0.png"), ["0.png stands in train twice (line 2, line 3)"]),
        (cell(9, 0, "0.png"), ["0.png stands in train and test (line 2, line 11)"]),
        (cell(9, 0, "../{folder}/0.png"), ["stands in train and test (line 2, line 11)"]),
        (cell(2, 1, ""), ["line 4 (2.png) has label=''", "cat, dog"]),
        (cell(2, 1, "7"), ["1 problem:", "line 4 (2.png) has label=7, expected names as of the other 11"]),
        (cell(2, 2, "training set"), ["line 4 has split='training set'", "train, val or test"]),
        (cell(2, 1, "horse"), ["class 'horse' has no image in val", "tools/make_data_lists.py"]),
        (lambda rows: rows.__delitem__(slice(4, 8)), ["no entries for val", "tools/make_data_lists.py"]),
        (lambda rows: [row.__setitem__(1, "cat") for row in rows], ["only the class 'cat'"]),
        (lambda rows: rows.clear(), ["the list has no lines"]),
    ],
)
def test_csv(case, tmp_path, lines, change, parts):
    change(lines)
    says(csv_error(case, tmp_path, [[c.replace("{folder}", tmp_path.name) for c in row] for row in lines]), *parts)


@one_reader
def test_columns_of_a_csv(case, tmp_path, lines):
    error = csv_error(case, tmp_path, [row[:2] for row in lines], "file,class")
    says(error, "its columns are file, class", "split (train, val, test)", "tools/make_data_lists.py")
    says(csv_error(case, tmp_path, lines, "name,class,split"), "its columns are name, class, split")
    says(csv_error(case, tmp_path, [r[::2] for r in lines], "file,split"), "its columns are file, split")
    numbered = [[*row, int(row[1] == "dog")] for row in lines]
    wrong = [*numbered[:-1], [*numbered[-1][:3], 0]]
    disagree = "the columns label and class disagree: label 0 is cat and dog; dog is label 0 and 1"
    says(csv_error(case, tmp_path, wrong, "file,class,split,label"), disagree)
    gap = [[*row[:3], row[3] * 2] for row in numbered]
    says(csv_error(case, tmp_path, gap, "file,class,split,label"), "label has the values 0, 2, expected 0 to 1")
    for column in ("group", "patient"):
        rows = [[*row, "P7" if row[0] in ("1.png", "5.png") else ""] for row in lines]
        error = csv_error(case, tmp_path, rows, f"file,class,split,{column}")
        says(error, "group 'P7' crosses train (line 3) and val (line 7)")


@one_reader
def test_all_problems_of_a_list_come_at_once(case, tmp_path, lines):
    lines[1][0], lines[2][2], lines[3][1], lines[9][0] = "lost.png", "trian", "", "0.png"
    error = csv_error(case, tmp_path, lines)
    says(error, "4 problems", "lost.png does not exist", "split='trian'", "label=''", "train and test")
    many = str(csv_error(case, tmp_path, [[f"lost{i}.png", *row[1:]] for i, row in enumerate(lines * 4)]))
    assert len(many.splitlines()) == 22 and many.splitlines()[-1].strip().startswith("and ")


@one_reader
@pytest.mark.parametrize(
    ("name", "content", "part_of"),
    [
        (
            "list.csv",
            "file,class,split\n0.png,größer,train".encode("latin-1"),
            "line 2, column 9: the byte 0xf6",
        ),
        ("list.json", b"file,class", "not readable as JSON"),
        ("list.json", b"", "not readable as JSON"),
        ("list.json", b"[1]", "got a list"),
    ],
)
def test_files_that_are_no_lists(case, tmp_path, name, content, part_of):
    (tmp_path / name).write_bytes(content)
    says(misread(case, tmp_path / name), part_of)


# What a run left


def evaluate(case: Any, dataset: Path, weights: Path | None, output_dir: Path, **settings: Any) -> None:
    """The evaluation without the opening before it, which starts a log."""
    values = small(case, dataset, output_dir, **settings) | ({"ckpt_path": str(weights)} if weights else {})
    asked(case, "evaluation", "train", "evaluate", **values).run()


EVALUATED = [
    ("lsanet", {"image_size": 32}, ["image_size was 28 and is 32"]),
    ("multimix", {"method": "umtls"}, ["trained otherwise", "method was 'multimix' and is 'umtls'"]),
    ("multimix", {"method": "unet"}, ["method was 'multimix' and is 'unet'"]),
    ("multimix", {"image_size": 64}, ["image_size was 32 and is 64"]),
    ("multimix", {"keep_aspect": False}, ["keep_aspect was True and is False"]),
    (
        "gated_attention",
        {"threshold": 0.3, "num_instances": 3},
        ["threshold was 0.5 and is 0.3", "num_instances was 2 and is 3"],
    ),
    (
        "gated_attention",
        {"mean": [0.4, 0.5, 0.5], "max_box": 0.5},
        ["mean was [0.5, 0.5, 0.5] and is [0.4", "max_box was None and"],
    ),
    ("gated_attention", {"method": "global"}, ["method was 'fusion' and is 'global'"]),
    (
        "gated_attention",
        {"attention": "se", "pooling": "attention"},
        ["attention was 'gated' and is 'se'", "pooling was 'concat'"],
    ),
]


@pytest.mark.parametrize(("case", "change", "parts"), EVALUATED, indirect=["case"])
def test_evaluating_what_was_trained_otherwise(case, dataset, trained, tmp_path, change, parts):
    says(refused(evaluate, case, dataset, trained / "model.pt", tmp_path / "out", **change), *parts)
    assert not (tmp_path / "out").exists()


def test_evaluating_nothing_and_other_data(case, dataset, trained, tmp_path):
    says(refused(evaluate, case, dataset, Path("nowhere.pt"), tmp_path / "out"), "nowhere", "train first")
    says(refused(evaluate, case, dataset, None, tmp_path / "out"), "model", "train first")
    if dataset.suffix == ".npz":
        other = case.data(tmp_path / "data", classes=4)
    else:
        other = case.data(tmp_path / "data")
        content = json.loads(other.read_text())
        other.write_text(json.dumps(content | {"labels": content["labels"][::-1]}))
    error = refused(evaluate, case, other, trained / "model.pt", tmp_path / "out")
    says(error, f"classes was {case.classes} and is")
    assert not (tmp_path / "out").exists()


def test_weights_exchanged_under_their_description(case, dataset, trained, tmp_path):
    weights = weights_of(trained)
    (tmp_path / "model.json").write_bytes((trained / "model.json").read_bytes())
    path, out = tmp_path / "model.pt", tmp_path / "out"
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    less = dict(list(weights.items())[:-2])
    nan = {k: v * NAN if v.is_floating_point() else v for k, v in weights.items()}
    info = json.loads((trained / "model.json").read_text())
    content = bytearray((trained / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    for message, changed in (("does not hold the weights of this network", less), ("not finite", nan), ("", content)):
        if message:
            torch.save(changed, path)
            (tmp_path / "model.json").write_text(json.dumps(info | {"sha256": sha256(path)}))
        else:
            message = "is not the file that"
            path.write_bytes(changed)
        says(refused(evaluate, case, dataset, path, out), message, "model.pt")
        says(refused(predict, case, case.root, tmp_path / "a.png", out, ckpt_path=str(path)), message, "model.pt")
        if changed is not less:
            # What servers and exports ask for; and training that goes on from there.
            says(refused(asked, case, "network_def", "inference", ckpt_path=str(path)), message, "model.pt")
            says(refused(train_alone, case, dataset, out, ckpt_path=str(path)), message, "model.pt")
    assert not out.exists()


def test_weights_of_another_bundle_or_without_their_description(case, dataset, tmp_path):
    other = CASES["multimix" if case.name == "lsanet" else "lsanet"].root / "models"
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    weights, out = str(other / "model.pt"), tmp_path / "out"
    error = refused(train_alone, case, dataset, out, ckpt_path=weights)
    says(error, "ckpt_path")
    says(refused(predict, case, case.root, tmp_path, out, ckpt_path=weights), "model.json", "bundle")
    says(refused(evaluate, case, dataset, Path(weights), out), "bundle")
    (tmp_path / "model.pt").write_bytes(b"")
    error = refused(predict, case, case.root, tmp_path, out, ckpt_path=str(tmp_path / "model.pt"))
    says(error, "model.json: no such file")
    assert not out.exists()


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("case", ["gated_attention", "lsanet"], indirect=True)
def test_a_folder_with_figures_of_somebody(case, dataset, trained, tmp_path, kind):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "history.png").write_text("mine")
    if kind == "train":
        error = refused(train_alone, case, dataset, tmp_path)
    else:
        error = refused(evaluate, case, dataset, trained / "model.pt", tmp_path)
    says(error, str(tmp_path), "empty or a new folder")
    assert snapshot(tmp_path) == {"figures/history.png": b"mine"}


def test_a_diverged_run_fails_and_leaves_no_weights(case, dataset, tmp_path):
    longer = {"steps_per_epoch": 6} if case.name == "multimix" else {}
    if case.name == "gated_attention":
        longer = {"lambda_start": 0.5}
    error = refused(train_alone, case, dataset, tmp_path / "out", learning_rate=1e30, **longer)
    says(error, "training diverged", "epoch 1", "learning_rate")
    assert not (tmp_path / "out" / "model.pt").exists()


def test_inference_without_a_folder_or_with_bad_files_alone(case, trained, tmp_path):
    model = str(trained / "model.pt")
    error = refused(lambda: workflow(case, "inference", ckpt_path=model, output_dir=str(tmp_path / "out")).run())
    says(error, "no images: give --dataset_dir FOLDER")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    error = refused(predict, case, case.root, tmp_path / "in", tmp_path / "out", ckpt_path=model)
    says(error, "none of the 1 files")
    assert rows_of(tmp_path / "out" / "predictions.csv")[0]["error"]  # the table comes before the error


def test_a_bad_file_costs_its_own_row_and_names_may_be_any_bytes(case, trained, tmp_path):
    (tmp_path / "in" / "more").mkdir(parents=True)
    good = os.fsdecode(b"\xff\xe4.png")
    for name, size in ((good, (40, 36)), ("large.png", (41, 36)), ("cut.png", (40, 36))):
        Image.new("RGB", size).save(tmp_path / "in" / name)
    damage(tmp_path / "in" / "cut.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere")
    (tmp_path / "in" / "more" / "ring").symlink_to("../more")
    (tmp_path / "in" / "folder.png").mkdir()
    model = str(trained / "model.pt")
    rows = predict(case, case.root, tmp_path / "in", tmp_path / "out", ckpt_path=model, max_pixels=1440)
    errors = {row["file"]: row["error"] for row in rows}
    assert list(errors) == ["cut.png", "gone.png", "large.png", "pipe.png", r"\udcff\udce4.png"]
    assert errors.pop(r"\udcff\udce4.png") == ""
    for name, why in {"cut": "truncated", "gone": "No such", "large": "max_pixels", "pipe": "pipe"}.items():
        assert why in errors[f"{name}.png"]


# The command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        ({"learning_rat": 0.1}, "ERROR: unknown setting 'learning_rat': did you mean 'learning_rate'?"),
        ({"dataset": "nowhere.json"}, "ERROR: nowhere.json: no such list"),
        ({"dataset": "list.json"}, "lost.png does not exist"),
    ],
    ids=["setting", "list", "image"],
)
def test_the_sentence_that_helps_stands_last(case, tmp_path, arguments, last):
    content = content_of(case, tmp_path)
    content["test"][0]["image"] = "lost.png"
    write_list(tmp_path, content)
    config = case.root / "configs" / "train.json"
    done = command("--config_file", config, *flags({"output_dir": "out", **arguments}), cwd=tmp_path)
    assert done.returncode != 0
    assert last in done.stderr.strip().splitlines()[-1], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
