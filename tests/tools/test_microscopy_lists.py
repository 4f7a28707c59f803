"""Lists of microscopy images: near-duplicates kept together, and the folders of BACH and CNN_Aspergillus."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import make_data_lists
import numpy as np
import pytest
from lists.near_duplicates import similar_pairs, thumbnail
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from label_efficient.data.class_lists import read_datalist

TOOLS = Path(__file__).resolve().parents[2] / "tools"

SECTIONS = ("training", "validation", "test")
CLASSES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
STRAINS = (
    *("0-A. flavus AI2", "1-A. clavatus AI1", "2-A. flavus AI1", "3-A. fumigatus A293", "4-A. nidulans TN02A7"),
    *("5-A. niger AI1", "6-A. terreus AI1"),
)


def field(seed: int, size: tuple[int, int] = (72, 96)) -> Image.Image:
    """A picture with structures of several sizes, as microscopy has them."""
    rng = np.random.RandomState(seed)
    levels = 128 + 60 * sum(gaussian_filter(rng.randn(*size), s) * s for s in (1.5, 4, 7))
    stained = np.stack([levels, 0.7 * levels, 0.9 * levels + 20], axis=-1)
    return Image.fromarray(np.clip(stained, 0, 255).astype(np.uint8))


def write(path: Path, image: Image.Image | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (field(image) if isinstance(image, int) else image).save(path)


def run(tmp_path: Path, *args: Any) -> dict[str, Any]:
    output = tmp_path / "out.json"
    assert make_data_lists.main([*map(str, args), "--output", str(output), "--overwrite"]) == 0
    return json.loads(output.read_text())


def fail(capsys: pytest.CaptureFixture, *args: Any) -> str:
    try:
        status: Any = make_data_lists.main([*map(str, args)])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 1 and "Traceback" not in captured.err
    return captured.err


def groups(data: dict[str, Any]) -> dict[str, str | None]:
    return {item["image"]: item.get("group") for section in SECTIONS for item in data[section]}


def check_no_group_crosses(data: dict[str, Any]) -> None:
    held: dict[str, str] = {}
    for section in SECTIONS:
        for item in data[section]:
            if "group" in item:
                assert held.setdefault(item["group"], section) == section


# near-duplicates


def reference_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The highest of numpy's correlations over all shifts by up to 4 pixels, written out."""
    best = -1.0
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            y, x = 2 - dy // 2, 2 - dx // 2
            left, right = a[y : y + 28, x : x + 28], b[y + dy : y + dy + 28, x + dx : x + dx + 28]
            best = max(best, float(np.corrcoef(left.ravel(), right.ravel())[0, 1]))
    return best


def thumbnails(*images: Image.Image) -> np.ndarray:
    return np.array([thumbnail(np.asarray(image.convert("L"))[..., None]) for image in images], np.float32)


@pytest.mark.parametrize("block", [4, 512])
def test_similarity_is_the_highest_correlation_over_shifts(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lists.near_duplicates.BLOCK", block)
    whole = field(0, (120, 150))
    crops = [whole.crop((x, y, x + 120, y + 90)) for x, y in ((0, 0), (14, 0), (0, 11), (30, 30))]
    maps = thumbnails(*crops, *(field(seed) for seed in range(1, 7)))
    i, j, values = similar_pairs(maps, -1.0)
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(a, b) for a in range(10) for b in range(a + 1, 10)]
    expected = [reference_similarity(maps[a], maps[b]) for a, b in zip(i, j, strict=True)]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    i, j, values = similar_pairs(maps, 0.5)
    pairs = set(zip(i.tolist(), j.tolist(), strict=True))
    both = [(a, b) for a in range(10) for b in range(a + 1, 10)]
    assert pairs == {(a, b) for a, b in both if reference_similarity(maps[a], maps[b]) > 0.5}
    assert {(0, 1), (0, 2)} <= pairs and not any(b > 3 for _, b in pairs)


def test_order_of_the_images_has_no_effect() -> None:
    maps = thumbnails(*(field(seed) for seed in range(5)))
    i, j, values = similar_pairs(maps, -1.0)
    forward = dict(zip(zip(i.tolist(), j.tolist(), strict=True), values, strict=True))
    i, j, values = similar_pairs(maps[::-1], -1.0)
    for a, b, value in zip(4 - i, 4 - j, values, strict=True):
        assert value == pytest.approx(forward[min(a, b), max(a, b)], abs=1e-5)


def test_turned_views_are_found_where_asked_for() -> None:
    image = field(3)
    for way in Image.Transpose:
        maps = thumbnails(image, image.transpose(way))
        assert similar_pairs(maps, 0.8)[0].size == 0
        assert similar_pairs(maps, 0.99, turned=True)[0].size == 1


def test_even_images_and_uneven_light_resemble_nothing() -> None:
    y, x = np.mgrid[0:1:72j, 0:1:96j]
    lamp = 150 * np.exp(-((x - 0.3) ** 2 + (y - 0.4) ** 2) / 0.2)
    for light, contrast, threshold in ((lamp, 1 / 3, 0.8), (150 * y + 80 * x, 1 / 6, 0.5)):
        fields = [np.asarray(field(seed).convert("L")) * contrast + light for seed in range(4)]
        assert np.corrcoef(fields[0].ravel(), fields[1].ravel())[0, 1] > 0.9
        lit = [Image.fromarray(pixels.astype(np.uint8)) for pixels in fields]
        assert similar_pairs(thumbnails(*lit), threshold)[0].size == 0
    even = [Image.new("L", (96, 72), level) for level in (0, 0, 200)]
    dirty = np.full((72, 96), 100, np.uint8)
    dirty[30:42, 30:42] += 1  # the same speck of dust, one grey level deep, on all empty fields
    even += [Image.fromarray(dirty), Image.fromarray(dirty + 50)]
    assert similar_pairs(thumbnails(*even), 0.5)[0].size == 0


def copies(image: Image.Image) -> list[Image.Image]:
    """The same field once more: recompressed, brighter, smaller, moved, out of focus."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=25)
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    moved = [np.roll(pixels, (height * y // 100, width * x // 100), axis=(0, 1)) for y, x in ((8, 8), (-10, 4))]
    return [
        *(Image.open(stream).convert("RGB"), ImageEnhance.Brightness(image).enhance(0.7), image.resize((60, 45))),
        *(Image.fromarray(copy) for copy in (*moved, gaussian_filter(pixels, (2, 2, 0)))),
    ]


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """Two classes of 12 fields each; the first three of a class are there several times."""
    for c, name in enumerate("ab"):
        for i in range(12):
            image = field(100 * c + i)
            write(tmp_path / "set" / name / f"{i:02d}.png", image)
            for k, copy in enumerate(copies(image) if i < 3 else []):
                write(tmp_path / "set" / name / f"{i:02d}_copy{k}.png", copy)
    return tmp_path / "set"


@pytest.mark.parametrize("command", ["folder", "csv"])
def test_near_duplicates_stay_together(
    doubled: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture
) -> None:
    source = doubled
    if command == "csv":
        rows = [f"{p.relative_to(doubled).as_posix()},{p.parent.name}" for p in sorted(doubled.rglob("*.png"))]
        source = doubled / "images.csv"
        source.write_text("\n".join(["file,class", *rows]))
    args = [command, source, "--near_duplicates", 0.8, "--fractions", "0.5,0.25,0.25"]
    data = run(tmp_path, *args)
    found = groups(data)
    assert len(found) == 60
    for image, group in found.items():
        stem = image[:4]
        assert group == (f"{stem}.png" if stem[2:] in ("00", "01", "02") else None), image
    check_no_group_crosses(data)
    assert data["split"] == "0.5-0.25-0.25 grouped by near-duplicates (correlation 0.8)"
    assert "60 images are 24 groups: the largest has 7 (a/00.png, ...)" in capsys.readouterr().out
    assert run(tmp_path, *args) == data
    assert not any(groups(run(tmp_path, command, source)).values())


def test_patients_and_near_duplicates_are_joined(tmp_path: Path) -> None:
    rows = []
    for i in range(24):
        write(tmp_path / f"{i:02d}.png", field(i))
        rows.append([f"{i:02d}.png", "ab"[i % 2], f"p{i // 2}" if i < 8 else ""])
    write(tmp_path / "24.png", ImageEnhance.Contrast(field(0)).enhance(0.8))  # joins p0 and p3
    rows.append(["24.png", "a", "p3"])
    with (tmp_path / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class", "patient"], *rows])
    data = run(tmp_path, "csv", tmp_path / "images.csv", "--near_duplicates", 0.8, "--fractions", "0.4,0.3,0.3")
    found = groups(data)
    joined = ("00.png", "01.png", "06.png", "07.png", "24.png")
    assert [found[name] for name in joined] == ["p0"] * 5 and Counter(found.values())["p0"] == 5
    assert found["02.png"] == found["03.png"] == "p1" and found["08.png"] is None
    check_no_group_crosses(data)
    assert data["split"].endswith("grouped by patient and near-duplicates (correlation 0.8)")


def test_near_duplicates_in_two_classes_or_given_splits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for i in range(30):
        split = ("train", "val", "test")[i % 3]
        write(tmp_path / "set" / split / "ab"[i % 2] / f"{i:02d}.png", i)
    write(tmp_path / "set" / "test" / "a" / "x.png", ImageEnhance.Brightness(field(0)).enhance(0.8))
    write(tmp_path / "set" / "train" / "b" / "y.png", ImageEnhance.Brightness(field(6)).enhance(0.8))
    args = ["folder", tmp_path / "set", "--near_duplicates", 0.8]
    error = fail(capsys, *args)
    assert "near-duplicates in two splits; --resplit makes a new split" in error
    assert "test/a/x.png, train/a/00.png, correlation " in error and error.count("correlation") == 2
    assert "near-duplicates with different labels; --allow_copies keeps them (1):" in error
    assert "train/a/06.png, train/b/y.png" in error
    data = run(tmp_path, *args, "--allow_copies")
    assert "near-duplicates in two splits: 1 pairs" in capsys.readouterr().out
    check_no_group_crosses(data)
    assert groups(data)["train/b/y.png"] == groups(data)["train/a/06.png"] == "train/a/06.png"
    assert groups(data)["test/a/x.png"] is None


def test_images_that_are_all_similar_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    template = np.asarray(field(0)).astype(float)
    for i in range(30):
        noisy = np.clip(template + 5 * np.random.RandomState(i).randn(72, 96, 3), 0, 255).astype(np.uint8)
        write(tmp_path / "set" / "a" / f"{i}.png", Image.fromarray(noisy) if i < 18 else 500 + i)
        write(tmp_path / "set" / "b" / f"{i}.png", 1000 + i)
    error = fail(capsys, "folder", tmp_path / "set", "--near_duplicates", 0.8)
    assert "holds most of a class; use a higher --near_duplicates (1):" in error
    assert "'a': 18 of 30 images" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--near_duplicates", "1"], "not a correlation from 0.5 to below 1"),
        (["--near_duplicates", "high"], "not a correlation"),
        (["--turned_views"], "give --near_duplicates"),
        (["--near_duplicates", "none", "--turned_views"], "give --near_duplicates"),
    ],
)
def test_options(doubled: Path, options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in fail(capsys, "folder", doubled, *options)


# BACH


@pytest.fixture
def bach(tmp_path: Path) -> Path:
    photos = tmp_path / "ICIAR2018_BACH_Challenge" / "Photos"
    rows = []
    for c, (name, prefix) in enumerate(CLASSES.items()):
        for i in range(1, 9):
            write(photos / name / f"{prefix}{i:03d}.tif", 100 * c + i)
            rows.append(f"{prefix}{i:03d}.tif,{name}")
    (photos / "microscopy_ground_truth.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "ICIAR2018_BACH_Challenge" / "WSI").mkdir()
    return photos


def test_bach_as_published(bach: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lists = [run(tmp_path, "bach", folder) for folder in (bach, bach.parent, tmp_path)]
    printed = capsys.readouterr().out
    assert "bundles/gated_attention/configs/train.json" in printed and "has 8 images; BACH has 100" in printed
    for data, start in zip(lists, ("", "Photos/", "ICIAR2018_BACH_Challenge/Photos/"), strict=True):
        assert (data["name"], data["task"], data["split"]) == ("bach", "multi-class", "0.65-0.1-0.25")
        assert list(data["labels"].values()) == list(CLASSES)
        assert [len(data[s]) for s in SECTIONS] == [20, 4, 8]
        for section in SECTIONS:
            for item in data[section]:
                name = data["labels"][str(item["label"])]
                assert item["image"].startswith(f"{start}{name}/{CLASSES[name]}0")
        assert set(Counter(item["label"] for item in data["test"]).values()) == {2}
        assert "images of one patient may be in two splits" in data["note"]
    entries = read_datalist(tmp_path / "out.json", tmp_path)
    assert entries.classes == list(CLASSES) and [len(part) for part in entries.sections.values()] == [20, 4, 8]


def test_bach_patients(bach: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\nb001.tif,7\nb002,7\nNormal/n003.tif,7\nn004.tif,\n")
    data = run(tmp_path, "bach", bach, "--patients", table)
    found = {Path(image).name: group for image, group in groups(data).items()}
    assert {name for name, group in found.items() if group} == {"b001.tif", "b002.tif", "n003.tif"}
    check_no_group_crosses(data)
    assert data["note"] == "patients are of patients.csv; 29 images without one count as patients of their own"
    assert "grouped by patient and near-duplicates" in data["split"]
    table.write_text("file,patient\nb001.tif,7\nb001.tif,8\nb100.tif,9\n")
    error = fail(capsys, "bach", bach, "--patients", table)
    assert "image of two patients (1)" in error and "'b100.tif' (row 4)" in error
    table.write_text("file,who\nb001.tif,7\n")
    assert "expected a column file or image" in fail(capsys, "bach", bach, "--patients", table)
    assert "no such file" in fail(capsys, "bach", bach, "--patients", tmp_path / "none.csv")


def test_bach_mistakes_come_together(bach: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = bach / "microscopy_ground_truth.csv"
    text = truth.read_text().replace("b002.tif,Benign", "b002.tif,Normal").replace("is003.tif,InSitu\n", "")
    truth.write_text(text + "n999.tif,Normal\nn001.tif,Healthy\nb001.tif,Benign\n")
    (bach / "Normal" / "n001.tif").rename(bach / "Invasive" / "n001.tif")
    write(bach / "b101.tif", 900)
    write(bach / "Malign" / "m001.tif", 901)
    write(bach / "Benign" / "more" / "b102.tif", 902)
    write(bach / "Benign" / "b003.png", 903)
    image = Image.open(bach / "Normal" / "n005.tif")
    write(bach / "InSitu" / "is004.tif", ImageEnhance.Brightness(image).enhance(0.8))
    (bach / "Normal" / "n008.tif").write_bytes((bach / "Normal" / "n008.tif").read_bytes()[:5000])
    error = fail(capsys, "bach", tmp_path, "--output", tmp_path / "out.json")
    start = "ICIAR2018_BACH_Challenge/Photos"
    for line in (
        f"{start}/Benign/b002.tif: the folder says Benign, the table Normal (microscopy_ground_truth.csv, row 2)",
        f"image that is not in microscopy_ground_truth.csv (2):\n    {start}/Benign/more/b102.tif",
        f"    {start}/InSitu/is003.tif",
        f"{start}/Invasive/n001.tif: the folder says Invasive, the table Normal",
        "missing file (1):\n    n999.tif (microscopy_ground_truth.csv, row 32)",
        "['n001.tif', 'Healthy'] (microscopy_ground_truth.csv, row 33)",
        "file named in two rows (1):\n    b001.tif",
        f"name of another class (1):\n    {start}/Invasive/n001.tif: 'n' is Normal",
        f"image beside the class folders (1):\n    {bach / 'b101.tif'}",
        f"unknown class folder; known are Benign, InSitu, Invasive, Normal (1):\n    {bach / 'Malign'} (1 images)",
        f"image in a folder inside a class folder (1):\n    {start}/Benign/more/b102.tif",
        f"two images of one name (1):\n    {start}/Benign/b003.png, {start}/Benign/b003.tif",
        f"{start}/InSitu/is004.tif, {start}/Normal/n005.tif, correlation ",
        "n008.tif",
    ):
        assert line in error, line
    assert "unreadable image (1)" in error and not (tmp_path / "out.json").exists()


def test_bach_missing_and_empty_folders(bach: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for path in bach.glob("InSitu/*"):
        path.unlink()
    for path in bach.glob("Normal/*"):
        path.unlink()
    (bach / "Normal").rmdir()
    (bach / "microscopy_ground_truth.csv").unlink()
    error = fail(capsys, "bach", bach)
    assert f"missing class folder (1):\n    {bach / 'Normal'}" in error
    assert f"class folder without an image (1):\n    {bach / 'InSitu'}" in error
    (tmp_path / "other").mkdir()
    assert "found no folder Benign, InSitu, Invasive, Normal" in fail(capsys, "bach", tmp_path / "other")
    assert "no such folder" in fail(capsys, "bach", tmp_path / "none")
    assert "not below --root" in fail(capsys, "bach", bach, "--root", tmp_path / "other")


# CNN_Aspergillus


@pytest.fixture
def aspergillus(tmp_path: Path) -> Path:
    for c, strain in enumerate(STRAINS):
        for i in range(1, 7):
            for k, part in enumerate(("ValidationSet", "train")):
                write(tmp_path / "CNN" / "dataset" / part / strain / f"({i}).jpg", 100 * c + 10 * i + k)
    again = ImageEnhance.Brightness(field(10)).enhance(0.8)  # of ValidationSet's first image
    write(tmp_path / "CNN" / "dataset" / "train" / STRAINS[0] / "(7).jpg", again)
    return tmp_path / "CNN"


def test_aspergillus_as_published(aspergillus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = run(tmp_path, "aspergillus", aspergillus)
    assert "put together: dataset/ValidationSet, dataset/train" in capsys.readouterr().out
    assert list(data["labels"].values()) == [
        *("A_flavus_AI2", "A_clavatus_AI1", "A_flavus_AI1", "A_fumigatus_A293", "A_nidulans_TN02A7"),
        *("A_niger_AI1", "A_terreus_AI1"),
    ]
    for section in SECTIONS:
        assert all(f"/{item['label']}-A. " in item["image"] for item in data[section])
    assert sum(len(data[s]) for s in SECTIONS) == 85
    first, again = f"dataset/ValidationSet/{STRAINS[0]}/(1).jpg", f"dataset/train/{STRAINS[0]}/(7).jpg"
    assert {image for image, group in groups(data).items() if group} == {first, again}
    check_no_group_crosses(data)
    assert "not the patients' images of the paper" in data["note"]


def test_aspergillus_species(aspergillus: Path, tmp_path: Path) -> None:
    data = run(tmp_path, "aspergillus", aspergillus / "dataset", "--classes", "species")
    names = list(data["labels"].values())
    assert names == ["A_flavus", "A_clavatus", "A_fumigatus", "A_nidulans", "A_niger", "A_terreus"]
    for section in SECTIONS:
        for item in data[section]:
            assert names[item["label"]].removeprefix("A_") in item["image"]
    counts = Counter(item["label"] for section in SECTIONS for item in data[section])
    assert counts == {0: 25, 1: 12, 2: 12, 3: 12, 4: 12, 5: 12}


def test_aspergillus_mistakes(aspergillus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = aspergillus / "dataset" / "train"
    for path in (one / STRAINS[6]).iterdir():
        path.unlink()
    write(one / "7-A. oryzae" / "(1).jpg", 900)
    write(one / "(1).jpg", 901)
    error = fail(capsys, "aspergillus", one)
    assert f"class folder without an image (1):\n    {one / STRAINS[6]}" in error
    assert f"{one / '7-A. oryzae'} (1 images)" in error and f"class folders (1):\n    {one / '(1).jpg'}" in error
    (one / STRAINS[6]).rmdir()
    assert "missing class folder (1):\n    A_terreus_AI1" in fail(capsys, "aspergillus", one)
    assert "found no folder of a strain" in fail(capsys, "aspergillus", one / STRAINS[0])
    assert "invalid choice: 'genus'" in fail(capsys, "aspergillus", one, "--classes", "genus")


# real images


def test_real_near_duplicates_and_copies(real_data: Path) -> None:
    """The groups of the Aspergillus colonies, made by another method, and copies of real images are found."""
    folder = real_data / "microscopy" / "aspergillus_512x384"
    with (folder / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = Counter(row["group"] for row in rows)
    chosen = {*[g for g, n in sizes.items() if n > 1][::24], *[g for g, n in sizes.items() if n == 1][::90]}
    wanted = [row for row in rows if row["group"] in chosen]
    images = [Image.open(folder / row["file"]).convert("RGB") for row in wanted]
    maps = thumbnails(*images)
    i, j, _ = similar_pairs(maps, 0.8)
    same = {(a, b) for a in range(len(wanted)) for b in range(a) if wanted[a]["group"] == wanted[b]["group"]}
    assert len(wanted) > 35 and len(same) > 12
    assert {(b, a) for a, b in zip(i.tolist(), j.tolist(), strict=True)} == same
    for image in images[::12]:
        i, _, _ = similar_pairs(thumbnails(image, *copies(image)), 0.8)
        assert (i == 0).sum() == 6
