"""Data sets: what is read from the demo, from MedMNIST files and from lists, and the batches made of it."""

import csv
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from label_efficient.data.class_lists import MULTI_LABEL
from label_efficient.data.epoch_batches import EpochBatches
from label_efficient.data.image_data import ImageData, Split
from label_efficient.data.picture_transforms import load_image
from label_efficient.settings import SettingsError
from lsanet.batches import ImageSet
from lsanet.data import load_data
from lsanet.transforms import Preprocess

SPLITS = ("train", "val", "test")
COUNTS = {"train": 12, "val": 8, "test": 8}
FEW = {"demo_size": 16, "demo_counts": COUNTS}


def write_npz(path: Path, labels="three", shape=(7, 6), seed=0, **more) -> Path:
    rng = np.random.default_rng(seed)
    arrays = {}
    for split in SPLITS:
        arrays[f"{split}_images"] = rng.integers(0, 256, (12, *shape), dtype=np.uint8)
        if labels == "multi":
            arrays[f"{split}_labels"] = (np.arange(12)[:, None] >> np.arange(3)) & 1
        else:
            arrays[f"{split}_labels"] = np.arange(12) % {"two": 2, "three": 3}[labels]
    np.savez(path, **(arrays | more))
    return path


def write_images(folder: Path, sizes=((9, 9),), mode="RGB", suffix=".png") -> list[tuple[str, str, str]]:
    """Write 12 images of two classes, four of each split; return (file, class, split)."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(12):
        split = SPLITS[index // 4]
        name = f"{split}_{index}{suffix}"
        height, width = sizes[index % len(sizes)]
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
        entries.append((name, ("cat", "dog")[index % 2], split))
    return entries


def write_csv(path: Path, columns: str, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return path


def write_list(path: Path, entries, label=lambda name: name, **more) -> Path:
    sections = {"train": "training", "val": "validation", "test": "test"}
    content = {s: [{"image": f, "label": label(c)} for f, c, part in entries if part == k] for k, s in sections.items()}
    path.write_text(json.dumps(content | more))
    return path


def same(first: ImageData, second: ImageData) -> bool:
    return first.classes == second.classes and first.fingerprint() == second.fingerprint()


# The demo


def test_demo_is_the_same_every_time_and_balanced():
    first, second = load_data("demo", **FEW), load_data("demo", **FEW)
    assert same(first, second)
    assert [row["train"] for row in first.counts()] == [3, 3, 3, 3, 12]
    assert [row["test"] for row in first.counts()] == [2, 2, 2, 2, 8]
    assert first.task == "multi-class" and len(first.classes) == 4 and "synthetic" in first.source
    assert first.splits["train"].images.shape == (12, 16, 16)


@pytest.mark.parametrize("seed", [1, 1000, 2000])
def test_demo_seed_changes_training_pictures_only_and_never_repeats_those_of_another_split(seed):
    counts = {"demo_size": 16, "demo_counts": dict.fromkeys(SPLITS, 8)}
    first, other = load_data("demo", **counts), load_data("demo", seed=seed, **counts)
    assert not np.array_equal(first.splits["train"].images, other.splits["train"].images)
    for split in ("val", "test"):
        assert np.array_equal(first.splits[split].images, other.splits[split].images)
        assert np.array_equal(first.splits[split].labels, other.splits[split].labels)
    stored = [image.tobytes() for part in other.splits.values() for image in part.images]
    assert len(set(stored)) == len(stored) == 24


# Files of MedMNIST layout


@pytest.mark.parametrize(
    ("labels", "task", "count"),
    [("three", "multi-class", 3), ("two", "binary-class", 2), ("multi", MULTI_LABEL, 3)],
)
@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 3)], ids=["grey", "colour"])
def test_npz_images_labels_and_task(tmp_path, labels, task, count, shape):
    path = write_npz(tmp_path / "a.npz", labels, shape)
    data = load_data(str(path))
    assert (data.task, len(data.classes), data.name) == (task, count, "a")
    assert data.multi_label == (labels == "multi")
    with np.load(path) as stored:
        for split in SPLITS:
            part = data.splits[split]
            assert part.labels.dtype == np.int64
            assert np.array_equal(part.images, stored[f"{split}_images"])
            assert np.array_equal(part.labels, stored[f"{split}_labels"])
            assert len(set(part.files)) == len(part) == 12


def test_npz_labels_in_one_column_and_one_channel_are_the_same_data(tmp_path):
    flat = write_npz(tmp_path / "a.npz")
    with np.load(flat) as stored:
        deeper = {k: v[..., None] for k, v in stored.items()}
    np.savez(tmp_path / "b.npz", **deeper)
    assert same(load_data(str(flat)), load_data(str(tmp_path / "b.npz")))


@pytest.mark.parametrize("names", [np.array(["ape", "bee", "cow"]), np.array([b"ape", b"bee", b"cow"])])
def test_npz_names_of_classes(tmp_path, names):
    assert load_data(str(write_npz(tmp_path / "a.npz", classes=names))).classes == ["ape", "bee", "cow"]
    assert load_data(str(write_npz(tmp_path / "b.npz"))).classes == ["class 0", "class 1", "class 2"]


def test_npz_is_found_in_dataset_dir(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz")
    monkeypatch.chdir("/")
    assert len(load_data("a.npz", dataset_dir=str(tmp_path)).splits["train"]) == 12


def test_one_label_of_several_each_is_noted(tmp_path):
    hot = {f"{split}_labels": np.eye(3, dtype=int)[np.arange(12) % 3] for split in SPLITS}
    data = load_data(str(write_npz(tmp_path / "a.npz", **hot)))
    assert data.multi_label and "index of the class" in data.notes[0]
    assert load_data(str(write_npz(tmp_path / "b.npz", "multi"))).notes == []


def test_copies_in_two_splits_are_refused_with_all_of_them(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["test_images"][3] = arrays["train_images"][5]
    arrays["val_images"][0] = arrays["train_images"][7]
    np.savez(path, **arrays)
    copies = r"2 problems:\n  a/val/00000 \(val\) has the pixels of a/train/00007 \(train\), under two labels"
    with pytest.raises(ValueError, match=copies):
        load_data(str(path))
    data = load_data(str(path), copies="warn")
    assert len(data.copies) == 2 and "2 of them in two sections" in data.notes[0]
    assert load_data(str(path), copies="ignore").copies == []
    arrays["val_images"][0] = arrays["val_images"][3]  # twice in one split says nothing wrong about the figures
    arrays["test_images"][3] = 0
    np.savez(path, **arrays)
    assert load_data(str(path)).copies == []


def test_official_file_is_known_by_its_checksum_whatever_its_name(real_data, tmp_path):
    path = real_data / "medmnist" / "retinamnist.npz"
    shutil.copy(path, tmp_path / "mine.npz")
    for dataset in (str(path), str(tmp_path / "mine.npz")):
        data = load_data(dataset)
        assert data.task == "ordinal-regression" and data.classes == ["0", "1", "2", "3", "4"]
        assert [len(data.splits[s]) for s in SPLITS] == [1080, 120, 400]
    with np.load(path) as stored:
        np.savez(tmp_path / "retinamnist.npz", **stored)
    assert load_data(str(tmp_path / "retinamnist.npz")).task == "multi-class"


def test_official_file_with_copies_is_read_with_a_warning(real_data, tmp_path):
    path = real_data / "medmnist" / "pneumoniamnist.npz"
    data = load_data("pneumoniamnist", dataset_dir=str(path.parent))
    found = "pairs of images that have the same pixels: 8, 8 of them in two sections"
    assert data.classes == ["normal", "pneumonia"] and data.task == "binary-class"
    assert found in data.notes[0] and len(data.notes) == 1
    with np.load(path) as stored:
        np.savez(tmp_path / "mine.npz", **stored)
    with pytest.raises(ValueError, match="8 problems"):
        load_data(str(tmp_path / "mine.npz"))


# Lists of files


def test_the_same_images_by_every_kind_of_list(tmp_path):
    entries = write_images(tmp_path / "in")
    index = {"cat": 0, "dog": 1}
    lists = [
        write_csv(tmp_path / "in" / "names.csv", "file,class,split", entries),
        write_csv(tmp_path / "in" / "label.csv", "path,label,split", entries),
        write_csv(
            tmp_path / "in" / "both.csv", "image,label,class,split", [(f, index[c], c, s) for f, c, s in entries]
        ),
        write_list(tmp_path / "in" / "names.json", entries),
        write_list(tmp_path / "in" / "index.json", entries, index.get, labels={"0": "cat", "1": "dog"}),
        write_list(tmp_path / "in" / "list.json", entries, index.get, labels=["cat", "dog"]),
    ]
    found = [load_data("datalist", datalist=str(path)) for path in lists]
    assert found[0].classes == ["cat", "dog"] and found[0].task == "binary-class"
    for data, path in zip(found, lists, strict=True):
        assert same(data, found[0]), path
        assert data.splits["val"].files == [f for f, _, s in entries if s == "val"]
        assert np.array_equal(data.splits["val"].images[2], np.asarray(Image.open(tmp_path / "in" / entries[6][0])))
    assert same(load_data(str(lists[0])), found[0])


def test_indices_without_names(tmp_path):
    rows = [(f, int(c == "dog"), s) for f, c, s in write_images(tmp_path)]
    data = load_data(str(write_csv(tmp_path / "a.csv", "file,label,split", rows)))
    assert data.classes == ["class 0", "class 1"] and data.splits["train"].labels.tolist() == [0, 1, 0, 1]


def test_several_labels_an_image_and_unlabelled(tmp_path):
    entries = write_images(tmp_path)
    path = write_list(tmp_path / "a.json", entries, lambda c: [1, 0] if c == "cat" else [1, 1], labels=["x", "y"])
    with pytest.raises(ValueError, match="label 'x' is present in every image of val"):
        load_data(str(path))
    labels = iter([[0, 0], [1, 0], [0, 1], [1, 1]] * 3)
    more = {"labels": ["x", "y"], "unlabelled": [{"image": "u.png"}] * 5}
    data = load_data(str(write_list(tmp_path / "b.json", entries, lambda c: next(labels), **more)))
    assert data.task == MULTI_LABEL and data.unlabelled == 5
    assert data.splits["test"].labels.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_task_of_the_list_counts(tmp_path):
    path = write_list(tmp_path / "a.json", write_images(tmp_path), task="ordinal-regression")
    assert load_data(str(path)).task == "ordinal-regression"


def test_paths_start_at_the_list_or_at_dataset_dir_or_are_absolute(tmp_path, monkeypatch):
    entries = write_images(tmp_path / "in")
    beside = load_data(str(write_csv(tmp_path / "in" / "images.csv", "file,class,split", entries)))
    assert same(load_data(str(tmp_path / "in")), beside)
    elsewhere = write_csv(tmp_path / "lists" / "a.csv", "file,class,split", entries)
    assert same(load_data(str(elsewhere), dataset_dir=str(tmp_path / "in")), beside)
    monkeypatch.chdir(tmp_path)
    assert same(load_data("datalist", datalist="lists/a.csv", dataset_dir="in"), beside)
    rows = [(tmp_path / "in" / f, c, s) for f, c, s in entries]
    assert same(load_data(str(write_csv(tmp_path / "b.csv", "file,class,split", rows))), beside)


# Images as stored, and batches


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("sizes", [((9, 12),), ((9, 12), (9, 12), (20, 7), (5, 5))], ids=["uniform", "mixed"])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_batch_of_files_is_each_file_preprocessed(tmp_path, sizes, mode, cache, keep_aspect):
    entries = write_images(tmp_path, sizes, mode)
    data = load_data(str(write_csv(tmp_path / "images.csv", "file,class,split", entries)), cache=cache, num_workers=2)
    preprocess = Preprocess(image_size=8, keep_aspect=keep_aspect, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    for split in SPLITS:
        batch = ImageSet(data.splits[split], preprocess)[[3, 0, 2]]
        files = [tmp_path / f for f, _, s in entries if s == split]
        expected = torch.stack([preprocess(load_image(files[i])) for i in (3, 0, 2)])
        found = preprocess(batch["image"])
        assert found.shape == (3, 3, 8, 8) and found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert batch["label"].tolist() == [1, 0, 0] and batch["label"].dtype == torch.int64


@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 3)], ids=["grey", "colour"])
def test_batch_of_npz_is_each_picture_preprocessed(tmp_path, shape):
    data = load_data(str(write_npz(tmp_path / "a.npz", shape=shape)))
    preprocess = Preprocess(image_size=8)
    images = ImageSet(data.splits["test"], preprocess)
    batch = images[[3, 0]]
    assert batch["image"].dtype == torch.uint8
    for index, found in zip((3, 0), preprocess(batch["image"]), strict=True):
        Image.fromarray(data.splits["test"].images[index]).save(tmp_path / "one.png")
        torch.testing.assert_close(found, preprocess(load_image(tmp_path / "one.png")), rtol=0, atol=1e-6)
        assert np.array_equal(images.image(index), data.splits["test"].images[index])


@pytest.mark.slow
def test_cached_files_take_the_memory_of_their_bytes(tmp_path):
    if not Path("/proc/self/statm").is_file():
        pytest.skip("the resident memory of a process is read from /proc")
    rng = np.random.default_rng(0)
    for kind, shapes in {"uniform": [(400, 400)], "mixed": [(400, 400), (400, 400), (300, 500)]}.items():
        (tmp_path / kind).mkdir()
        for index in range(90):
            pixels = rng.integers(0, 256, (*shapes[index % len(shapes)], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{index:02d}.bmp")
    code = (
        "import resource, sys, pathlib; from label_efficient.data.image_files import read_images\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "folders = [sorted(pathlib.Path(f).iterdir()) for f in sys.argv[1:]]\n"
        "read_images(folders[0][:3]); kept = []\n"
        "for paths in folders:\n"
        "    before = resident(); kept.append(read_images(paths)[0])\n"
        "    print(resident() - before, sum(i.nbytes for i in kept[-1]))"
    )
    package = Path(sys.modules["lsanet"].__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path / "uniform"), str(tmp_path / "mixed")]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=True)
    uniform, mixed = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert uniform[1] == 90 * 400 * 400 * 3 and mixed[1] == 60 * 400 * 400 * 3 + 30 * 300 * 500 * 3
    assert uniform[0] <= 1.2 * uniform[1] and mixed[0] <= 1.2 * mixed[1]


def test_npz_takes_the_memory_of_its_arrays_and_so_does_its_fingerprint(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (100, 128, 128, 3), dtype=np.uint8) for s in SPLITS}
    path = write_npz(tmp_path / "a.npz", **arrays, **{f"{s}_labels": np.arange(100) % 3 for s in SPLITS})
    stored = sum(a.nbytes for a in arrays.values())
    del arrays
    load_data("demo", **FEW)
    tracemalloc.start()
    try:
        data = load_data(str(path))
        data.fingerprint()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored <= peak <= 1.2 * stored


# The order of the images


def epoch_of(length, batch_size, epoch=0, *, training=True, seed=0, rank=0, num_ranks=1):
    batches = EpochBatches(length, batch_size, training=training, seed=seed)
    batches.rank, batches.num_ranks = rank, num_ranks
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    return found


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(32, [8] * 4), (33, [8, 8, 8, 9]), (35, [8, 8, 8, 11]), (36, [8] * 4 + [4]), (5, [5]), (9, [9]), (1, [1])],
)
def test_every_image_once_an_epoch_and_no_tiny_batch_in_training(length, sizes):
    found = epoch_of(length, 8)
    assert [len(batch) for batch in found] == sizes
    assert sorted(i for batch in found for i in batch) == list(range(length))


def test_order_depends_on_seed_and_epoch_alone():
    first = epoch_of(50, 8, epoch=3, seed=1)
    np.random.seed(5)
    torch.manual_seed(5)
    batches = EpochBatches(50, 8, training=True, seed=1)
    list(batches)
    batches.set_epoch(3)
    assert list(batches) == list(batches) == first
    assert epoch_of(50, 8, epoch=2, seed=1) != first != epoch_of(50, 8, epoch=3, seed=2)


def test_validation_keeps_the_order_and_its_last_image():
    assert epoch_of(9, 4, training=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


@pytest.mark.parametrize("length", [30, 31, 33, 35, 50])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_ranks_take_equal_steps_and_share_no_image(length, num_ranks):
    shares = [epoch_of(length, 4, epoch=1, seed=3, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1
    seen = Counter(i for share in shares for batch in share for i in batch)
    assert max(seen.values()) == 1 and length - num_ranks < len(seen) <= length
    evaluated = [epoch_of(length, 4, training=False, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    assert sorted(i for share in evaluated for batch in share for i in batch) == list(range(length))


# What is derived from the labels


def of_labels(labels, classes="abc", val=None) -> ImageData:
    labels = np.asarray(labels)
    images = np.arange(len(labels) * 4, dtype=np.uint8).reshape(len(labels), 2, 2)
    part = Split(images, labels, [str(i) for i in range(len(labels))])
    task = MULTI_LABEL if labels.ndim == 2 else "multi-class"
    return ImageData("x", task, list(classes), {"train": part, "val": part}, "made here")


def test_class_weights():
    data = of_labels([0, 0, 0, 0, 1, 1, 2, 2])
    assert data.class_weights("none") is None
    # Their mean over the images is 1: 4, 2 and 2 of them have the weights 1, 2 and 0.5.
    assert data.class_weights((1, 2, 0.5)) == pytest.approx([w * 8 / 9 for w in (1, 2, 0.5)])
    balanced = data.class_weights("balanced")
    assert balanced == pytest.approx([8 / (3 * 4), 8 / (3 * 2), 8 / (3 * 2)])
    assert np.mean(np.asarray(balanced)[data.splits["train"].labels]) == pytest.approx(1)
    several = of_labels([[1, 0], [1, 1], [1, 0], [0, 0]], "ab")
    assert several.class_weights("balanced") == pytest.approx([0.5, 1.5])
    assert several.class_weights([3, 5]) == [0.75, 1.25]


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, 0], [1, 2, -1], [1, 2, "x"], [1, 2, float("nan")], "often", 3])
def test_class_weights_of_another_form(weights):
    with pytest.raises(SettingsError, match=r"class_weights=.*3 numbers above 0, for a, b, c"):
        of_labels([0, 1, 2]).class_weights(weights)


def test_fingerprint_changes_with_a_pixel_a_label_and_a_shape():
    fingerprints = {of_labels([0, 1, 2, 0]).fingerprint(), of_labels([0, 1, 2, 1]).fingerprint()}
    data = of_labels([0, 1, 2, 0])
    data.splits["val"].images[3, 1, 1] ^= 1
    fingerprints.add(data.fingerprint())
    assert len(fingerprints) == 3
    assert of_labels([0, 1, 2, 0]).fingerprint() in fingerprints

    def mixed(*shapes):
        images = np.empty(len(shapes), dtype=object)
        for index, shape in enumerate(shapes):
            images[index] = np.arange(12, dtype=np.uint8).reshape(shape)
        part = Split(images, np.arange(2), ["a", "b"])
        return ImageData("x", "multi-class", ["a", "b"], {"train": part}, "made here").fingerprint()

    assert mixed((2, 2, 3), (4, 1, 3)) != mixed((4, 1, 3), (2, 2, 3))


def test_counts_of_several_labels():
    counts = of_labels([[1, 0], [1, 1], [1, 0], [0, 0]], "ab").counts()
    assert [tuple(row.values()) for row in counts] == [("a", 3, 3), ("b", 1, 1), ("images", 4, 4)]


def test_label_budgets_are_stratified_seeded_and_leave_validation_and_test_alone(tmp_path):
    path = str(write_npz(tmp_path / "a.npz"))
    whole, part = load_data(path), load_data(path, labels_per_class=2, seed=1)
    assert [row["train"] for row in part.counts()] == [2, 2, 2, 6] and part.unlabelled == 6
    assert part.splits["val"].images is not None and len(part.splits["test"]) == 12
    kept = [int(f.rsplit("/", 1)[1]) for f in part.splits["train"].files]
    assert np.array_equal(part.splits["train"].images, whole.splits["train"].images[kept])
    assert np.array_equal(part.splits["train"].labels, whole.splits["train"].labels[kept])
    half = load_data(path, label_fraction=0.5, seed=1)
    assert half.splits["train"].files == part.splits["train"].files  # 2 of 4 a class, by the same order
    assert load_data(path, labels_per_class=2, seed=2).splits["train"].files != part.splits["train"].files
    assert load_data(path, label_fraction=1.0).unlabelled == 0


def test_label_budget_of_a_list_of_files_of_several_sizes(tmp_path):
    entries = write_images(tmp_path, [(9, 12), (20, 7)])
    path = str(write_csv(tmp_path / "images.csv", "file,class,split", entries))
    for cache in (True, False):
        data = load_data(path, labels_per_class=1, cache=cache)
        images = ImageSet(data.splits["train"], Preprocess(image_size=8))
        assert len(images) == 2 and sorted(images[[0, 1]]["label"].tolist()) == [0, 1]
        assert [load_image(tmp_path / f).shape[1:] for f in data.splits["train"].files] == [
            images.image(i).shape[:2] for i in (0, 1)
        ]
