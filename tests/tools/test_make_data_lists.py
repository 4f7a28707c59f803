"""Making datalists: every kind of source, the splits, the budgets, the checks, and packing."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import make_data_lists
import numpy as np
import pytest
from lists.packing import square
from lists.splits import join_units, split_units
from PIL import Image

from label_efficient.data.class_lists import read_datalist

TOOLS = Path(__file__).resolve().parents[2] / "tools"

SECTIONS = ("training", "validation", "test")


def write_image(path: Path, seed: int, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_csv(path: Path, rows: list[dict[str, Any]], images: bool = True, **options: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), **options)
        writer.writeheader()
        writer.writerows(rows)
    for seed, row in enumerate(rows):
        if images:
            write_image(path.parent / row["file"], seed)
    return path


def rows_of(number: int = 30, **columns: Any) -> list[dict[str, Any]]:
    rows = [{"file": f"i{i:03d}.png", "class": "ab"[i % 2]} for i in range(number)]
    return [{**row, **{k: f(i) for k, f in columns.items()}} for i, row in enumerate(rows)]


def make(tmp_path: Path, *args: Any) -> dict[str, Any]:
    output = tmp_path / "out" / "list.json"
    assert make_data_lists.main([*map(str, args), "--output", str(output), "--overwrite"]) == 0
    return json.loads(output.read_text())


def fail(capsys: pytest.CaptureFixture, *args: Any) -> str:
    try:
        status: Any = make_data_lists.main([*map(str, args)])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 1 and "Traceback" not in captured.err and "error: " in captured.err
    return captured.err


def sizes(data: dict[str, Any]) -> list[int]:
    return [len(data[s]) for s in SECTIONS]


def test_names_in_any_encoding_cut_images_and_pipes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / ("ä" * 120)  # 240 bytes: no room for the rest of a list's name
    for i in range(24):
        write_image(folder / "ab"[i % 2] / f"{i}.png", i)
    odd = os.fsdecode(b"\xff.png")
    (folder / "a" / "0.png").rename(folder / "a" / odd)
    assert make_data_lists.main(["folder", str(folder), "--output_dir", str(tmp_path)]) == 0
    [path] = tmp_path.glob("*.json")
    entries = [entry for section in read_datalist(path, folder).sections.values() for entry in section]
    assert folder / "a" / odd in {entry.image for entry in entries}
    assert "6 x 5 pixels; expected 1 to 29" in fail(capsys, "folder", folder, "--max_pixels", 29)
    (folder / "a" / "2.png").write_bytes((folder / "a" / "4.png").read_bytes()[:80])
    os.mkfifo(folder / "b" / "p.png")
    error = fail(capsys, "folder", folder, "--output_dir", tmp_path / "out")
    assert "a/2.png: cannot be read (OSError: image file is truncated" in error
    assert "b/p.png is a pipe, socket or device" in error and not (tmp_path / "out").exists()


def test_columns_for_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "t.csv").write_text("file,finding\na.png,x\n")
    error = fail(capsys, "csv", tmp_path / "t.csv")
    assert all(option in error for option in ("--label_column ", "--class_column ", "--label_columns"))


def test_one_mistyped_label_does_not_make_names_of_all(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"file": f"{i}.png", "label": "x" if i == 7 else f"{i % 2}.0"} for i in range(20)]
    error = fail(capsys, "csv", write_csv(tmp_path / "t.csv", rows))
    assert "1 problem in" in error and "'x' (row 9)" in error


# folders


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for i in range(40):
        write_image(tmp_path / "set" / ("class 2" if i % 2 else "class 10") / "deep" / f"p{i // 4}_{i}.png", i)
    return tmp_path / "set"


def test_class_folders(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "class 2" / "notes.txt").write_text("no image")
    (class_folders / "class 2" / "._p1_1.png").write_text("a leftover of macOS")
    data = make(tmp_path, "folder", class_folders)
    assert data["labels"] == {"0": "class 2", "1": "class 10"}
    assert (data["name"], data["seed"], data["split"]) == ("set", 0, "0.7-0.1-0.2")
    assert data["task"] == "binary-class" and sizes(data) == [28, 4, 8]
    for section in SECTIONS:
        images = [item["image"] for item in data[section]]
        assert images == sorted(images)
        assert all(item["image"].startswith("class 2/deep/") == (item["label"] == 0) for item in data[section])
        assert np.bincount([item["label"] for item in data[section]]).tolist() == [len(images) // 2] * 2


def test_order_of_classes_can_be_given(class_folders: Path, tmp_path: Path) -> None:
    data = make(tmp_path, "folder", class_folders, "--classes", "class 10,class 2", "--ordinal")
    assert data["labels"] == {"0": "class 10", "1": "class 2"} and data["task"] == "ordinal-regression"


def test_root_above_the_folder(class_folders: Path, tmp_path: Path) -> None:
    data = make(tmp_path, "folder", class_folders, "--root", tmp_path)
    assert data["training"][0]["image"].startswith("set/class 10/deep/")


def test_group_from_file_name(class_folders: Path, tmp_path: Path) -> None:
    data = make(tmp_path, "folder", class_folders, "--group_pattern", r"/(p\d+)_")
    groups = [{item["group"] for item in data[s]} for s in SECTIONS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_split_folders_and_validation_cut_out_of_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for i in range(40):
        write_image(tmp_path / "set" / ("test" if i < 8 else "train") / "ab"[i % 2] / f"{i}.png", i)
    data = make(tmp_path, "folder", tmp_path / "set")
    assert data["split"] == "as given, validation 0.125 cut out of training" and sizes(data) == [28, 4, 8]
    (tmp_path / "set" / "others").mkdir()
    assert "test, train look like splits, but others" in fail(capsys, "folder", tmp_path / "set")


def test_unlabelled_folder(class_folders: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_image(class_folders / "unlabelled" / f"u{i}.png", 100 + i)
    data = make(tmp_path, "folder", class_folders)
    assert data["unlabelled"] == [{"image": f"unlabelled/u{i}.png"} for i in range(3)]


def test_empty_class_folder_and_damaged_image(class_folders: Path, capsys: pytest.CaptureFixture) -> None:
    (class_folders / "nothing").mkdir()
    (class_folders / "class 2" / "bad.png").write_bytes(b"not a picture")
    error = fail(capsys, "folder", class_folders)
    assert "class without an image (1):\n    'nothing'" in error
    assert "unreadable image (1):\n    class 2/bad.png: cannot be read (UnidentifiedImageError" in error


def test_folder_mistakes(class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "no such folder" in fail(capsys, "folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "found no images" in fail(capsys, "folder", tmp_path / "empty")
    assert "not below --root" in fail(capsys, "folder", class_folders, "--root", tmp_path / "empty")
    assert "not in --classes" in fail(capsys, "folder", class_folders, "--classes", "class 2,b")


# tables


def test_given_splits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["training", "valid", "testing"]
    path = write_csv(tmp_path / "t.csv", rows_of(split=lambda i: words[i // 2 % 3]))
    data = make(tmp_path, "csv", path, "--name", "mine")
    assert (data["name"], data["split"], sizes(data)) == ("mine", "as given", [10, 10, 10])
    assert "--resplit" in fail(capsys, "csv", path, "--fractions", "0.5,0.25,0.25")
    assert make(tmp_path, "csv", path, "--resplit")["split"] == "0.7-0.1-0.2"


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"label": lambda i: i % 2}, ["a", "b"]),
        ({"label": lambda i: f"{i % 2}.0", "class": lambda i: ""}, ["0", "1"]),
        ({"label": lambda i: "yx"[i % 2], "class": lambda i: ""}, ["x", "y"]),
        ({"label_name": lambda i: "uv"[i % 2], "class": lambda i: "uv"[i % 2]}, ["u", "v"]),
    ],
)
def test_label_columns_of_several_kinds(tmp_path: Path, columns: dict, names: list[str]) -> None:
    data = make(tmp_path, "csv", write_csv(tmp_path / "t.csv", rows_of(**columns)))
    assert list(data["labels"].values()) == names


def test_semicolons_backslashes_and_absolute_paths(tmp_path: Path) -> None:
    rows = rows_of()
    for row in rows:
        row["file"] = "sub/" + row["file"]
    path = write_csv(tmp_path / "t.csv", rows, delimiter=";")
    first, second = (f"sub/i00{i}.png" for i in range(2))
    text = path.read_text().replace(first, first.replace("/", "\\")).replace(second, str(tmp_path / second))
    path.write_text(text, encoding="utf-8-sig")
    data = make(tmp_path, "csv", path)
    assert {first, second} <= {item["image"] for s in SECTIONS for item in data[s]}


@pytest.mark.parametrize("column", ["patient", "subject", "case"])
def test_no_group_is_in_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture, column: str) -> None:
    rng = np.random.RandomState(0)
    path = write_csv(tmp_path / "t.csv", rows_of(200, **{column: lambda i: f"p{rng.randint(40)}"}))
    options = ["--group_column", "case"] if column == "case" else []
    data = make(tmp_path, "csv", path, *options)
    assert f"grouped by column '{column}'" in capsys.readouterr().out
    assert data["split"] == f"0.7-0.1-0.2 grouped by {column}"
    splits = defaultdict(set)
    for section in SECTIONS:
        for item in data[section]:
            splits[item["group"]].add(section)
    assert len(splits) > 30 and all(len(s) == 1 for s in splits.values())
    assert np.abs(np.array(sizes(data)) / 200 - [0.7, 0.1, 0.2]).max() < 0.04
    ignored = make(tmp_path, "csv", path, "--group_column", "none")
    assert ignored["split"] == "0.7-0.1-0.2" and "group" not in ignored["training"][0]


def test_several_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(60, x=lambda i: i % 2, y=lambda i: int(i % 5 == 0)))
    data = make(tmp_path, "csv", path, "--label_columns", "x,y", "--labels_per_class", "5")
    assert data["task"] == "multi-label, binary-class" and data["labels"] == {"0": "x", "1": "y"}
    assert all(np.array([item["label"] for item in data[s]]).sum(axis=0).min() > 0 for s in SECTIONS)
    assert set(map(tuple, (item["label"] for item in data["test"]))) <= {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_rows_without_label_are_the_unlabelled_pool(tmp_path: Path) -> None:
    rows = rows_of(60, patient=lambda i: f"p{i // 3}")
    for row in rows[::3]:
        row["class"] = ""
    data = make(tmp_path, "csv", write_csv(tmp_path / "t.csv", rows))
    held = {item["group"] for s in ("validation", "test") for item in data[s]}
    assert 0 < len(data["unlabelled"]) < 20 and not held & {item["group"] for item in data["unlabelled"]}


def test_seed_decides_and_order_of_rows_does_not(tmp_path: Path) -> None:
    rows = rows_of()
    data = make(tmp_path, "csv", write_csv(tmp_path / "t.csv", rows))
    again = make(tmp_path, "csv", write_csv(tmp_path / "t.csv", rows[::-1], images=False))
    other = make(tmp_path, "csv", tmp_path / "t.csv", "--seed", 1)
    assert data == again and data["training"] != other["training"]


def test_a_list_is_replaced_only_if_asked_and_only_if_this_tool_has_made_it(tmp_path: Path, capsys: Any) -> None:
    path, output = write_csv(tmp_path / "t.csv", rows_of()), tmp_path / "list.json"
    command = ["csv", path, "--output", output]
    for _ in range(2):  # the same again is no loss
        assert make_data_lists.main([*map(str, command)]) == 0
    before = output.read_bytes()
    assert "with other images, splits or options (seed 0): --overwrite" in fail(capsys, *command, "--seed", 1)
    assert output.read_bytes() == before
    assert make_data_lists.main([*map(str, command), "--seed", "1", "--overwrite"]) == 0
    for content in (b'{"training": []}', b"mine", output.read_bytes() + b" "):
        output.write_bytes(content)
        assert "not as this tool writes lists" in fail(capsys, *command, "--overwrite")
        assert output.read_bytes() == content


def test_nested_budgets(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(60))
    full = {item["image"] for item in make(tmp_path, "csv", path)["training"]}
    previous: set[str] = set()
    for number in (2, 5, 9):
        data = make(tmp_path, "csv", path, "--labels_per_class", number)
        kept = {item["image"] for item in data["training"]}
        assert Counter(item["label"] for item in data["training"]) == {0: number, 1: number}
        assert previous < kept and kept | {item["image"] for item in data["unlabelled"]} == full
        assert all(set(item) == {"image"} for item in data["unlabelled"])
        assert data["labels_per_class"] == number
        previous = kept


def test_output_name_and_form(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(60))
    command = ["csv", str(path), "--name", "a b", "--output_dir", str(tmp_path / "lists")]
    assert make_data_lists.main([*command, "--fractions", "0.6,0.2,0.2", "--label_fraction", "0.5"]) == 0
    (written,) = (tmp_path / "lists").iterdir()
    assert written.name == "a-b_0.6-0.2-0.2_fraction0.5_seed0.json"
    lines = written.read_text().splitlines()
    assert sum(line.startswith('    {"image": "i0') for line in lines) == 60
    out = capsys.readouterr().out
    assert "images 18 12 12 18" in " ".join(out.split())
    assert f"--dataset datalist --datalist {written} --dataset_dir {tmp_path}" in out


# mistakes in tables


def test_all_problems_at_once_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = rows_of(20, label=lambda i: i % 2, split=lambda i: ["train", "test"][i // 10], patient=lambda i: f"p{i}")
    path = write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "i000.png").unlink()
    (tmp_path / "i001.png").write_bytes(b"")
    (tmp_path / "i012.png").write_bytes((tmp_path / "i002.png").read_bytes())
    (tmp_path / "i005.png").write_bytes((tmp_path / "i003.png").read_bytes())
    rows[4]["file"] = rows[6]["file"]
    rows[7]["label"] = 0
    rows[8]["label"], rows[8]["class"] = 9, ""
    rows[9]["split"] = "trian"
    rows[10]["patient"] = "p3"
    rows[11]["file"] = "../elsewhere.png"
    rows[13]["label"], rows[13]["class"] = "", ""
    rows[14]["label"] = "x"
    write_csv(path, rows, images=False)
    error = fail(capsys, "csv", path, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for text in (
        "missing file (1):\n    i000.png (row 2)",
        "unreadable image (1):\n    i001.png (row 3): the file is empty",
        "same path more than once (1):\n    i006.png (row 6, row 8)",
        "label and class disagree (1):\n    label 0 is 'a', class is 'b' (row 9)",
        "split is none of train, val, test (1):\n    'trian' (row 11)",
        "group in more than one split (1):\n    'p3' is in training, test",
        "path outside the root (1):\n    ../elsewhere.png (row 13)",
        "no label in validation or test (1):\n    i013.png (row 15)",
        "label that is not a whole number (--class_column reads names) (1):\n    'x' (row 16)",
        "same content in two splits (1):\n    i002.png, i012.png",
        "label that is not in the classes (1):\n    9 (row 10)",
    ):
        assert text in error


def test_label_outside_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(20, label=lambda i: 7 if i == 3 else i % 2))
    error = fail(capsys, "csv", path, "--class_column", "none", "--classes", "u,v,w")
    assert "label that is not in the classes (1):\n    7 (row 5)" in error
    assert "class without an image (1):\n    'w'" in error
    error = fail(capsys, "csv", path, "--label_column", "none", "--classes", "a,c")
    assert "class that is not in the classes (10)" in error


def test_copies(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(30))
    for i in (2, 4):
        (tmp_path / f"i00{i}.png").write_bytes((tmp_path / "i000.png").read_bytes())
    data = make(tmp_path, "csv", path)
    assert "warning: 2 images are exact copies of others" in capsys.readouterr().out
    where = [s for s in SECTIONS for item in data[s] if item["image"] in ("i000.png", "i002.png", "i004.png")]
    assert len(where) == 3 and len(set(where)) == 1
    (tmp_path / "i001.png").write_bytes((tmp_path / "i000.png").read_bytes())
    assert "same content with different labels (1)" in fail(capsys, "csv", path)
    make(tmp_path, "csv", path, "--allow_copies")


def test_too_few_groups_names_the_class(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = rows_of(30, patient=lambda i: f"p{i // 2}")
    for i, row in enumerate(rows):
        row["class"] = "rare" if i < 4 else "common"
    error = fail(capsys, "csv", write_csv(tmp_path / "t.csv", rows))
    assert "every class in all 3 parts: 'rare' has 2" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fractions", "0.7,0.2"], "not three shares"),
        (["--fractions", "0.7,0.2,0.2"], "which sum to 1"),
        (["--fractions", "0.8,0,0.2"], "only the last"),
        (["--seed", "-1"], "not a whole number from 0"),
        (["--label_fraction", "2"], "at most 1, got 2.0"),
        (["--labels_per_class", "99"], "more than there are of class 'a' (11 images)"),
        (["--label_fraction", "0.5", "--labels_per_class", "2"], "not both"),
        (["--group_column", "nobody"], "no such column; there are file, class"),
        (["--class_column", "none"], "no column for the label"),
        (["--file_column", "none"], "no column for the file"),
        (["--label_columns", "class"], "not 0 or 1 (30)"),
        (["--label_columns", "x,x"], "one name twice"),
        (["--label_columns", "class", "--ordinal"], "leave --classes and --ordinal out"),
        (["--name", "a/b"], "cannot be part of a file name"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_option_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(30))
    assert message in fail(capsys, "csv", path, "--output_dir", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_unreadable_tables(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "t.csv"
    assert "No such file" in fail(capsys, "csv", path)
    path.write_bytes("file,class\nä.png,a\n".encode("latin-1"))
    assert "not UTF-8" in fail(capsys, "csv", path)
    path.write_text("file,class\n")
    assert "no rows" in fail(capsys, "csv", path)
    path.write_text("file,class,class\na.png,a,b\n")
    assert "two columns are called 'class'" in fail(capsys, "csv", path)


# splits


@pytest.mark.parametrize("seed", range(5))
def test_every_class_in_every_part_although_small(seed: int) -> None:
    labels = np.repeat([0, 1, 2], [300, 30, 3])
    member = labels[:, None] == np.arange(3)
    parts = split_units(member, np.arange(333), (0.7, 0.1, 0.2), seed, "abc")
    counts = np.array([np.bincount(labels[parts == p], minlength=3) for p in range(3)])
    assert counts[:, 0].tolist() == [210, 30, 60] and counts[:, 1].tolist() == [21, 3, 6]
    assert counts[:, 2].tolist() == [1, 1, 1]


def test_without_test_part() -> None:
    parts = split_units(np.ones((10, 1), dtype=bool), np.arange(10), (0.8, 0.2, 0), 0, "a")
    assert np.bincount(parts).tolist() == [8, 2]


def test_units_joined_through_each_other() -> None:
    assert join_units(["p", "q", None, None, "q"], [1, 2, 2, 3, 1]).tolist() == [0, 0, 0, 1, 0]


# arrays


@pytest.fixture(params=[1, 3])
def npz(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.RandomState(0)
    arrays: dict[str, Any] = {}
    for part, number in (("train", 12), ("val", 4), ("test", 6)):
        shape = (number, 9, 9) + ((3,) if request.param == 3 else ())
        arrays[f"{part}_images"] = rng.randint(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(number) % 2).astype(np.uint8)[:, None]
    np.savez(tmp_path / "cells.npz", **arrays, classes=np.array(["left", "right"]))
    return tmp_path / "cells.npz"


def test_arrays_to_files_and_back(npz: Path, tmp_path: Path) -> None:
    data = make(tmp_path, "npz", npz, "--images_dir", tmp_path / "png")
    assert (data["name"], sizes(data), data["labels"]) == ("cells", [12, 4, 6], {"0": "left", "1": "right"})
    make(tmp_path, "npz", npz, "--images_dir", tmp_path / "png")  # again, over the same files
    before = np.load(npz)
    channels = 3 if before["train_images"].ndim == 4 else 1
    packed = tmp_path / "packed.npz"
    command = ["pack", tmp_path / "out" / "list.json", "--root", tmp_path / "png", "--size", 9]
    assert make_data_lists.main([*map(str, command), "--channels", str(channels), "--output", str(packed)]) == 0
    after = np.load(packed, allow_pickle=False)
    for name in before.files:
        np.testing.assert_array_equal(after[name], before[name])
    first = packed.read_bytes()
    assert make_data_lists.main([*map(str, command), "--channels", str(channels), "--output", str(packed)]) == 0
    assert packed.read_bytes() == first


def test_other_images_are_never_overwritten(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_image(tmp_path / "png" / "train" / "train_00000.png", 0)
    assert "is another image" in fail(capsys, "npz", npz, "--images_dir", tmp_path / "png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((12, 9, 9), dtype=np.float32)}, "must be uint8"),
        ({"train_images": np.zeros((12, 9, 9, 9), dtype=np.uint8)}, "must be uint8, N x H x W"),
        ({"train_labels": np.zeros((11, 1), dtype=np.uint8)}, "11 for 12 images"),
        ({"train_labels": np.zeros((12, 1))}, "whole numbers"),
        ({"train_labels": np.full((12, 1), 5)}, "label that is not in the classes (12)"),
        ({"val_images": None}, None),
        ({"train_images": None}, "has no train_images"),
        ({"val_images": np.zeros((4, 9, 9), dtype=np.uint8)}, "same content with different labels"),
        ({"classes": np.array([{}], dtype=object)}, "not readable as .npz"),
    ],
)
def test_array_mistakes(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, message: str) -> None:
    arrays: dict[str, Any] = {**np.load(npz), **change}
    np.savez(npz, **{name: array for name, array in arrays.items() if array is not None})
    if message is None:
        assert "cut out of training" in make(tmp_path, "npz", npz, "--images_dir", tmp_path / "png")["split"]
    else:
        assert message in fail(capsys, "npz", npz, "--images_dir", tmp_path / "png")
        assert not (tmp_path / "png").exists()


def test_pack_resizes_about_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[5:15, 15:25] = 255
    squeezed = square(pixels, 10, keep_aspect=False)
    padded = square(pixels, 10, keep_aspect=True)
    for image in (squeezed, padded):
        assert image.shape == (10, 10, 3) and image.dtype == np.uint8
        np.testing.assert_array_equal(image, image[::-1])
        np.testing.assert_array_equal(image, image[:, ::-1])
    assert padded[:2].max() == 0 and padded[8:].max() == 0 and squeezed[3, 5].min() > 200


def test_pack_a_table_of_several_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(60, x=lambda i: i % 2, y=lambda i: int(i % 5 == 0)))
    command = ["pack", str(path), "--label_columns", "x,y", "--labels_per_class", "5", "--output"]
    assert make_data_lists.main([*command, str(tmp_path / "t.npz")]) == 0
    arrays = np.load(tmp_path / "t.npz", allow_pickle=False)
    assert arrays["classes"].tolist() == ["x", "y"] and arrays["train_labels"].shape[1] == 2
    assert arrays["train_images"].shape[1:] == (28, 28, 3)
    number = sum(len(arrays[f"{part}_images"]) for part in ("train", "val", "test", "unlabelled"))
    assert number == 60 and arrays["test_labels"].dtype == np.int64


def test_pack_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(30))
    make(tmp_path, "csv", path)
    made, target = tmp_path / "out" / "list.json", tmp_path / "t.npz"
    error = fail(capsys, "pack", made, "--output", target)  # its images are in another folder
    assert "unreadable image (30)" in error and "... and 20 more" in error and not target.exists()
    assert "--seed cannot change" in fail(capsys, "pack", made, "--seed", 1, "--output", target)
    assert "--size" in fail(capsys, "pack", made, "--size", 0, "--output", target)
    made.write_text("{")
    assert "not readable as JSON" in fail(capsys, "pack", made, "--output", target)
    made.write_text("{}")
    assert "no section 'training'" in fail(capsys, "pack", made, "--output", target)
    made.write_text('{"training": [{"image": "a.png", "label": 0}], "test": [{"image": "b.png", "label": [1]}]}')
    assert "b.png has another form of label: [1]" in fail(capsys, "pack", made, "--output", target)


@pytest.mark.slow
def test_runs_as_a_script(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", rows_of(30))
    command = [sys.executable, str(TOOLS / "make_data_lists.py"), "csv", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{tmp_path.name}_0.7-0.1-0.2_seed0.json").is_file()
    bad = subprocess.run([*command, "--seed", "x"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr


# real images


def test_blood_cells(real_data: Path, tmp_path: Path) -> None:
    data = make(tmp_path, "csv", real_data / "microscopy/pbc_blood_64/images.csv", "--name", "pbc_blood_64")
    assert sizes(data) == [11946, 1711, 3417] and data["split"] == "as given"
    published = TOOLS.parent / "data_lists" / "pbc_blood_64_given_seed0.json"
    assert (tmp_path / "out" / "list.json").read_bytes() == published.read_bytes()


def test_official_file_with_copies(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["npz", real_data / "medmnist/pneumoniamnist.npz", "--images_dir", tmp_path / "png"]
    assert "same content in two splits (8)" in fail(capsys, *command)
    data = make(tmp_path, *command, "--allow_copies")
    assert sizes(data) == [4708, 524, 624] and data["labels"] == {"0": "normal", "1": "pneumonia"}
