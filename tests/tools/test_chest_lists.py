"""Making lists of chest X-rays: every publisher's layout, splits, budgets, checks, and the real folders."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import make_data_lists
import numpy as np
import pytest
from PIL import Image

from label_efficient.data.mask_lists import read_datalist

ROOT = Path(__file__).resolve().parents[2]

SECTIONS = ("training", "validation", "test")
_seeds = iter(range(10**6))


def picture(path: Path, size: tuple[int, int] = (5, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(next(_seeds)).randint(0, 256, size, np.uint8)).save(path)


def mask(path: Path, values: tuple[int, ...] = (255,), size: tuple[int, int] = (5, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    for column, value in enumerate(values):
        pixels[1:3, column] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder with the sets guangzhou, shenzhen, montgomery, jsrt and nih, as published."""
    top = tmp_path / "data"
    for i in range(40):
        split, n = ("test", i - 30) if i >= 30 else ("train", i)
        # Two images of every patient; person0_bacteria of training and person0_virus of the test are two children.
        kind = ("bacteria", "virus")[(i + (i >= 30)) % 2]
        for j in range(2):
            picture(top / f"guangzhou/{split}/PNEUMONIA/person{n}_{kind}_{2 * i + j}.jpeg")
    for i in range(20):
        split = "test" if i >= 15 else "train"
        picture(top / f"guangzhou/{split}/NORMAL/IM-{i:04d}-0001.jpeg")
        picture(top / f"guangzhou/{split}/NORMAL/NORMAL2-IM-{i:04d}-0001-0001.jpeg")
        picture(top / f"guangzhou/{split}/NORMAL/NORMAL2-IM-{i:04d}-0001-0002.jpeg")
    for i in range(30):
        picture(top / f"shenzhen/CXR_png/CHNCXR_{i:04d}_{int(i >= 20)}.png")
        mask(top / f"shenzhen/mask/CHNCXR_{i:04d}_{int(i >= 20)}_mask.png")
    for i in range(6):
        picture(top / f"montgomery/CXR_png/MCUCXR_{i:04d}_{i % 2}.png")
        for column, side in enumerate(("left", "right")):
            mask(top / f"montgomery/ManualMask/{side}Mask/MCUCXR_{i:04d}_{i % 2}.png", (0,) * column + (255,))
        picture(top / f"jsrt/images/JPC{'LN'[i % 2]}N{i:03d}.png")
        mask(top / f"jsrt/masks/JPC{'LN'[i % 2]}N{i:03d}.png", (150, 200, 250))
    findings = ["No Finding", "Pneumonia", "Pneumonia|Edema", "Edema", "Pneumothorax"]
    rows = []
    for i in range(40):
        name = f"{i:08d}_000.png"
        rows.append({"Image Index": name, "Finding Labels": findings[i % 5], "Patient ID": i // 2})
        if i < 35:
            picture(top / f"nih/images_{1 + i % 3:03d}/images/{name}")
    with (top / "nih/Data_Entry_2017_v2020.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return top


def make(data: Path, *args: Any) -> dict[str, Any]:
    output = data.parent / "out" / "list.json"
    argv = ["chest", "--root", data, *args, "--output", output]
    assert make_data_lists.main([*map(str, argv), "--overwrite"]) == 0
    read_datalist(output, data)
    return json.loads(output.read_text())


def fail(data: Path, capsys: pytest.CaptureFixture, *args: Any) -> str:
    output = data.parent / "out" / "failed.json"
    try:
        status: Any = make_data_lists.main([*map(str, ["chest", "--root", data, "--output", output, *args])])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 1 and "Traceback" not in captured.err and "error: " in captured.err
    assert not output.exists()
    return captured.err


def counts(made: dict[str, Any], section: str) -> Counter:
    return Counter((item["source"], item.get("label", "mask" if "mask" in item else None)) for item in made[section])


BOTH = ("--classification", "guangzhou", "--segmentation", "shenzhen")


def test_guangzhou_and_shenzhen(data: Path, capsys: pytest.CaptureFixture) -> None:
    made = make(data, *BOTH, "--cross_segmentation", "jsrt", "--cross_classification", "nih")
    assert made["name"] == "guangzhou-shenzhen" and made["labels"] == {"0": "NORMAL", "1": "PNEUMONIA"}
    way = "guangzhou: as given, validation 0.1 cut out of training grouped by patient; shenzhen: 0.7-0.1-0.2"
    assert made["split"] == way
    assert (made["class_labels"], made["mask_labels"], made["seed"]) == ("all", "all", 0)
    assert counts(made, "test") == {("guangzhou", 0): 15, ("guangzhou", 1): 20, ("shenzhen", "mask"): 6}
    val = counts(made, "validation")
    assert val[("shenzhen", "mask")] == 3 and 3 <= val[("guangzhou", 0)] <= 6 and val[("guangzhou", 1)] == 6
    assert sum(counts(made, s)[("guangzhou", 1)] for s in SECTIONS) == 80
    assert counts(made, "cross_domain") == {("jsrt", "mask"): 6, ("nih", 0): 7, ("nih", 1): 14}
    assert "unlabelled" not in made
    for section in (*SECTIONS, "cross_domain"):
        assert [item["image"] for item in made[section]] == sorted(item["image"] for item in made[section])
    out = capsys.readouterr().out
    assert "nih: 16 rows have other findings than pneumonia, 3 more have no file here: left out" in out
    assert re.search(r"\nguangzhou +NORMAL +\d+ +\d+ +15 +-\n", out), out
    assert re.search(r"\njsrt +mask +- +- +- +6\n", out)
    assert "bundles/multimix/configs/train.json --dataset datalist --datalist" in out


def test_patients_of_guangzhou(data: Path) -> None:
    made = make(data, "--classification", "guangzhou")
    groups = {item["image"]: item["group"] for section in SECTIONS for item in made[section]}
    assert groups["guangzhou/train/PNEUMONIA/person2_bacteria_4.jpeg"] == "person2_bacteria"
    assert groups["guangzhou/train/NORMAL/IM-0003-0001.jpeg"] == "IM-0003"
    assert groups["guangzhou/train/NORMAL/NORMAL2-IM-0003-0001-0002.jpeg"] == "NORMAL2-IM-0003"
    by_section = [{item["group"] for item in made[section]} for section in SECTIONS]
    assert not (by_section[0] & by_section[1] or by_section[0] & by_section[2])
    # "person0" to "person9" stand in training and in the test, with the kinds exchanged: other children.
    assert {"person2_virus"} <= by_section[2] and "person2_bacteria" in by_section[0] | by_section[1]


def test_images_of_val_go_back_to_training(data: Path, capsys: pytest.CaptureFixture) -> None:
    picture(data / "guangzhou/val/NORMAL/NORMAL2-IM-1427-0001.jpeg")
    picture(data / "guangzhou/val/PNEUMONIA/person1946_bacteria_4874.jpeg")
    made = make(data, "--classification", "guangzhou")
    assert len(made["validation"]) > 2
    assert "the 2 images of val are training again" in capsys.readouterr().out


def test_own_class_folders(data: Path, capsys: pytest.CaptureFixture) -> None:
    for i in range(60):
        picture(data / f"own/{'pneumonia' if i % 3 else 'Normal'}/p{i // 2}_{i}.png")
    made = make(data, "--classification", "own", "--class_group_pattern", r"/(p\d+)_")
    assert made["labels"] == {"0": "Normal", "1": "pneumonia"}
    assert made["split"] == "own: 0.7-0.1-0.2 grouped by file name"
    groups = [{item["group"] for item in made[section]} for section in SECTIONS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    made = make(data, "--classification", "own", "--classes", "PNEUMONIA,NORMAL", "--val_fraction", "0.2")
    assert made["labels"] == {"0": "PNEUMONIA", "1": "NORMAL"} and made["split"] == "own: 0.6-0.2-0.2"
    assert counts(made, "validation") == {("own", 0): 8, ("own", 1): 4}
    made = make(data, "--classification", "own", "--cross_classification", "guangzhou")
    assert counts(made, "cross_domain") == {("guangzhou", 0): 60, ("guangzhou", 1): 80}  # its training images, too
    made = make(data, "--classification", "guangzhou", "--cross_classification", "own")
    assert counts(made, "cross_domain") == {("own", 0): 20, ("own", 1): 40}
    cross = ("--classification", "guangzhou", "--cross_classification", "own")
    err = fail(data, capsys, *cross, "--classes", "PNEUMONIA,x")
    assert "class folder that is not in the classes (2)" in err and "own: 'Normal'" in err


def test_published_validation_is_kept(data: Path) -> None:
    for i in range(30):
        picture(data / f"own/{('train', 'val', 'test')[i % 3]}/{'ab'[i // 15]}/{i}.png")
    made = make(data, "--classification", "own")
    assert made["split"] == "own: as given" and [len(made[s]) for s in SECTIONS] == [10, 10, 10]


def test_nih(data: Path) -> None:
    made = make(data, "--classification", "nih", "--val_fraction", "0.2")
    assert sum((counts(made, s) for s in SECTIONS), Counter()) == {("nih", 0): 7, ("nih", 1): 14}
    by_patient = [{item["group"] for item in made[section]} for section in SECTIONS]
    assert not (by_patient[0] & by_patient[1] or by_patient[0] & by_patient[2] or by_patient[1] & by_patient[2])
    label = {item["image"].rsplit("/", 1)[1]: item["label"] for section in SECTIONS for item in made[section]}
    assert (label["00000000_000.png"], label["00000001_000.png"], label["00000002_000.png"]) == (0, 1, 1)
    assert not {"00000003_000.png", "00000004_000.png"} & set(label)


def test_nih_with_its_test_list(data: Path) -> None:
    of_test = [f"{i:08d}_000.png" for i in range(20, 40)]
    (data / "nih/test_list.txt").write_text("\n".join(of_test))
    made = make(data, "--classification", "nih", "--val_fraction", "0.3")
    found = {item["image"].rsplit("/", 1)[1] for item in made["test"]}
    assert found == {n for i, n in enumerate(of_test[:15]) if i % 5 < 3}
    assert made["split"].startswith("nih: as given, validation 0.3 cut out of training grouped by patient")


def test_nih_without_images_or_columns(data: Path, capsys: pytest.CaptureFixture) -> None:
    table = data / "nih/Data_Entry_2017_v2020.csv"
    (data / "empty").mkdir()
    shutil.copy(table, data / "empty" / table.name)
    err = fail(data, capsys, "--classification", "empty")
    assert "none of the 24 images of Data_Entry_2017_v2020.csv is there" in err
    assert "has the classes NORMAL, PNEUMONIA" in fail(data, capsys, "--classification", "nih", "--classes", "a,b")
    table.write_text(table.read_text().replace("Patient ID", "Patient"))
    assert "no column Patient ID; there are Image Index" in fail(data, capsys, "--classification", "nih")


def test_masks_of_every_publisher(data: Path) -> None:
    made = make(data, "--segmentation", "shenzhen", "--cross_segmentation", "montgomery")
    item = made["cross_domain"][0]
    assert item["image"] == "montgomery/CXR_png/MCUCXR_0000_0.png" and "mask_values" not in item
    assert item["mask"] == [f"montgomery/ManualMask/{side}Mask/MCUCXR_0000_0.png" for side in ("left", "right")]
    assert made["test"][0]["mask"] == made["test"][0]["image"].replace("CXR_png", "mask").replace(".png", "_mask.png")
    assert "labels" not in made and "class_labels" not in made
    # 20 normal and 10 with tuberculosis: every part has both, 2 to 1
    for section, sizes in zip(SECTIONS, ([14, 7], [2, 1], [4, 2]), strict=True):
        sick = sum("_1.png" in item["image"] for item in made[section])
        assert [len(made[section]) - sick, sick] == sizes
    made = make(data, "--segmentation", "shenzhen", "--cross_segmentation", "jsrt")
    assert all(item["mask_values"] == [150, 200] for item in made["cross_domain"])
    assert not any("mask_values" in item for section in SECTIONS for item in made[section])
    cross = ("--segmentation", "shenzhen", "--cross_segmentation", "jsrt")
    made = make(data, *cross, "--cross_mask_values", "150,200,250")
    assert made["cross_domain"][0]["mask_values"] == [150, 200, 250]


def test_own_masks(data: Path, capsys: pytest.CaptureFixture) -> None:
    for i in range(20):
        picture(data / f"own/images/{'ab'[i % 2]}/{i // 2}.png")
        if i < 16:
            mask(data / f"own/masks/{'ab'[i % 2]}/{i // 2}.png", (2, 3, 9))
    mask(data / "own/masks/c/1.png")
    args = ("--segmentation", "own", "--mask_values", "2,3", "--mask_group_pattern", r"/(\d+).png")
    made = make(data, *args)
    assert sum(len(made[section]) for section in SECTIONS) == 16
    assert {item["task"] for item in made["unlabelled"]} == {"segmentation"} and len(made["unlabelled"]) == 4
    out = capsys.readouterr().out
    assert "own: 4 images have no mask" in out and "own: 1 masks have no image and were left out" in out
    groups = [{item["group"] for item in made[section]} for section in SECTIONS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    err = fail(data, capsys, "--segmentation", "own")
    assert "unusable mask (16)" in err and "give mask_values" in err and "nothing was written" in err


def test_all_unusable_masks_and_images_at_once(data: Path, capsys: pytest.CaptureFixture) -> None:
    mask(data / "shenzhen/mask/CHNCXR_0000_0_mask.png", size=(6, 5))
    mask(data / "shenzhen/mask/CHNCXR_0001_0_mask.png", (0,))
    mask(data / "jsrt/masks/JPCLN002.png", (7, 8))
    (data / "guangzhou/train/NORMAL/IM-0000-0001.jpeg").write_text("no picture")
    (data / "montgomery/ManualMask/leftMask/MCUCXR_0000_0.png").unlink()
    err = fail(data, capsys, *BOTH, "--cross_segmentation", "jsrt")
    assert "4 problems in the data, nothing was written" in err
    assert "unreadable image (1)" in err and "unusable mask (3)" in err
    assert "the mask is 6 x 5 pixels and the image is 5 x 6" in err and "no lungs in the mask" in err
    err = fail(data, capsys, "--segmentation", "montgomery")
    assert "left or right mask is missing (1)" in err and "MCUCXR_0000_0.png has only " in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give --classification DIR or --segmentation DIR, or both"),
        (("--classification", "guangzhou", "--cross_segmentation", "jsrt"), "_segmentation needs --segmentation"),
        (("--classification", "gone", "--segmentation", "away"), "no such folder: .*gone\n.*no such folder: .*away"),
        (("--classification", "../.."), "is not below --root"),
        (("--segmentation", "guangzhou"), "expected one folder of images .*; it holds test, train"),
        (("--classification", "jsrt/images"), "found no image in class folders"),
        (("--classification", "guangzhou", "--class_labels", "1"), "--class_labels 1: expected 2 .one of every clas"),
        (("--segmentation", "shenzhen", "--mask_labels", "999"), "--mask_labels 999: expected 2 .* to 21, or all"),
        (("--segmentation", "shenzhen", "--mask_labels", "some"), "'some' is not a whole number"),
        (("--segmentation", "shenzhen", "--mask_labels", "0"), "'0' is not a whole number from 1"),
        (("--segmentation", "shenzhen", "--val_fraction", "0.9"), "'0.9' is not a share above 0 and up to 0.5"),
        (("--segmentation", "shenzhen", "--mask_values", "a"), "'a' is not a whole number"),
        (("--segmentation", "shenzhen", "--unlabelled", "jsrt/gone"), "no such folder"),
    ],
)
def test_refused(data: Path, capsys: pytest.CaptureFixture, args: tuple[str, ...], message: str) -> None:
    assert re.search(message, fail(data, capsys, *args), re.DOTALL)


# budgets


def test_what_is_beyond_the_budget_is_unlabelled(data: Path) -> None:
    whole = make(data, *BOTH)
    made = make(data, *BOTH, "--class_labels", "20", "--mask_labels", "5")
    assert made["validation"] == whole["validation"] and made["test"] == whole["test"]
    found = counts(made, "training")
    assert found[("guangzhou", 0)] + found[("guangzhou", 1)] == 20 and found[("shenzhen", "mask")] == 5
    assert abs(found[("guangzhou", 0)] - 20 * 40 / 94) <= 1  # the share of NORMAL in training
    everything = {item["image"] for item in whole["training"]}
    assert {item["image"] for item in made["training"] + made["unlabelled"]} == everything
    tasks = Counter((item["source"], item["task"]) for item in made["unlabelled"])
    assert tasks == {("guangzhou", "classification"): counts_of(whole) - 20, ("shenzhen", "segmentation"): 16}
    assert not any({"label", "mask"} & set(item) for item in made["unlabelled"])
    small = make(data, *BOTH, "--class_labels", "8", "--mask_labels", "2")
    kept = [{item["image"] for item in part["training"]} for part in (small, made)]
    assert kept[0] < kept[1] and len(kept[0]) == 10
    assert {"_0.", "_1."} == {re.search(r"_[01]\.", image)[0] for image in kept[0] if "shenzhen" in image}


def counts_of(made: dict[str, Any]) -> int:
    return sum(item["source"] == "guangzhou" for item in made["training"])


def test_same_again_and_by_seed(data: Path) -> None:
    args = (*BOTH, "--class_labels", "20", "--mask_labels", "5")
    assert make(data, *args) == make(data, *args, "--seed", "0")
    other = make(data, *args, "--seed", "1")
    assert {item["image"] for item in other["training"]} != {item["image"] for item in make(data, *args)["training"]}


def test_default_name(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    for args, name in (
        ((*BOTH, "--class_labels", "20", "--mask_labels", "5"), "guangzhou-shenzhen_20class_5mask_seed0.json"),
        ((*BOTH, "--seed", "4"), "guangzhou-shenzhen_allclass_allmask_seed4.json"),
        (("--segmentation", "shenzhen", "--mask_labels", "5"), "shenzhen_5mask_seed0.json"),
    ):
        assert make_data_lists.main(["chest", *args, "--output_dir", "lists"]) == 0
        read_datalist(data / "lists" / name, data)


def test_own_unlabelled(data: Path) -> None:
    for i in range(5):
        picture(data / f"more/deep/{i}.png")
    made = make(data, *BOTH, "--unlabelled", "more")
    assert made["unlabelled"] == [{"image": f"more/deep/{i}.png", "source": "more"} for i in range(5)]
    made = make(data, "--segmentation", "shenzhen", "--unlabelled", "more", "--unlabelled", "montgomery/CXR_png")
    assert {item["task"] for item in made["unlabelled"]} == {"segmentation"} and len(made["unlabelled"]) == 11


# copies


def test_copies_stay_together_and_never_leak_into_unlabelled(data: Path, capsys: pytest.CaptureFixture) -> None:
    folder = data / "guangzhou/train/PNEUMONIA"
    for i in range(10):  # as another patient
        one = folder / f"person{i}_{('bacteria', 'virus')[i % 2]}_{2 * i}.jpeg"
        shutil.copy(one, folder / f"person{500 + i}_virus_1.jpeg")
    made = make(data, "--classification", "guangzhou")
    where = {item["image"]: section for section in SECTIONS for item in made[section]}
    for i in range(10):
        one, two = f"person{i}_{('bacteria', 'virus')[i % 2]}_{2 * i}.jpeg", f"person{500 + i}_virus_1.jpeg"
        assert where[f"guangzhou/train/PNEUMONIA/{one}"] == where[f"guangzhou/train/PNEUMONIA/{two}"]
    made = make(data, "--classification", "guangzhou", "--class_labels", "40")
    dropped = int(re.search(r"guangzhou: (\d+) unlabelled images are copies", capsys.readouterr().out)[1])
    assert dropped > 0 and len(made["unlabelled"]) == len([s for s in where.values() if s == "training"]) - 40 - dropped


def test_copies_across_places_are_refused(data: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copy(data / "guangzhou/test/NORMAL/IM-0015-0001.jpeg", data / "guangzhou/train/NORMAL/IM-0500-0001.jpeg")
    err = fail(data, capsys, "--classification", "guangzhou")
    assert "IM-0015-0001.jpeg (test) is byte by byte guangzhou/train/NORMAL/IM-0500-0001.jpeg (train) (test[0], " in err
    shutil.copy(data / "shenzhen/CXR_png/CHNCXR_0000_0.png", data / "jsrt/images/JPCLN000.png")
    assert "is byte by byte" in fail(data, capsys, "--segmentation", "shenzhen", "--cross_segmentation", "jsrt")
    (data / "guangzhou/train/NORMAL/IM-0500-0001.jpeg").unlink()
    shutil.copytree(data / "guangzhou/test", data / "more")
    err = fail(data, capsys, "--classification", "guangzhou", "--unlabelled", "more")
    assert "35 problems" in err and "(unlabelled" in err
    train = data / "guangzhou/train"
    shutil.copy(train / "NORMAL/IM-0001-0001.jpeg", train / "PNEUMONIA/person9_virus_1.jpeg")
    assert "one image with two labels" in fail(data, capsys, "--classification", "guangzhou")


def test_lists_of_this_repository_are_made_again(real_data: Path, tmp_path: Path) -> None:
    sets = ("--classification", "kermany_224", "--segmentation", "shenzhen_256", "--cross_segmentation", "jsrt_224")
    args = ["chest", "--root", str(real_data / "chest_xray"), *sets, "--output_dir", str(tmp_path)]
    assert make_data_lists.main([*args, "--class_labels", "100", "--mask_labels", "10", "--overwrite"]) == 0
    (made,) = tmp_path.iterdir()
    assert made.read_text() == (ROOT / "data_lists" / made.name).read_text()
    content, whole = (
        json.loads((ROOT / "data_lists" / f"kermany_224-shenzhen_256_{budget}_seed0.json").read_text())
        for budget in ("100class_10mask", "allclass_allmask")
    )
    assert all(content[section] == whole[section] for section in ("validation", "test", "cross_domain"))
    images = [{item["image"] for item in part["training"]} for part in (content, whole)]
    assert images[0] < images[1] and len(images[0]) == 110
    # The numbers of patients run on from training to test: no group is in two parts.
    groups = [{item.get("group") for item in whole[section]} - {None} for section in SECTIONS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    sizes = Counter(item["source"] for section in (*SECTIONS, "cross_domain") for item in whole[section])
    assert sizes == {"kermany_224": 5216 + 624, "shenzhen_256": 566, "jsrt_224": 247}
