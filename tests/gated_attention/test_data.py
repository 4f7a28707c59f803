"""Data of gated attention: images at their stored size and random changes."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from gated_attention import transforms
from gated_attention.data import load_data
from gated_attention.transforms import AUGMENTATIONS, Augment, PrepareBatch
from label_efficient.data.image_data import ImageData, read_entries
from label_efficient.data.stored_images import StoredImages

SPLITS = ("train", "val", "test")
SIZES = ((9, 14), (20, 6), (1, 1), (30, 30))

# Lists and the demo


def write_images(folder: Path, sizes=SIZES) -> list[tuple[str, str, str]]:
    """Twelve colour images of two classes, four a split; (file, class, split)."""
    rng = np.random.default_rng(1)
    entries = []
    for index in range(12):
        name, split = f"{index}.png", SPLITS[index // 4]
        pixels = rng.integers(0, 256, (*sizes[index % len(sizes)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        entries.append((name, ("cat", "dog")[index % 2], split))
    return entries


def write_list(folder: Path, entries) -> str:
    with open(folder / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class", "split"), *entries])
    return str(folder)


def pixels_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / name))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("sizes", [SIZES, ((9, 14),)], ids=["sizes differ", "one size"])
def test_images_keep_their_size_and_pixels(tmp_path, sizes, cache):
    entries = write_images(tmp_path, sizes)
    data = load_data(write_list(tmp_path, entries), cache=cache, num_workers=2)
    assert (data.task, data.classes, data.name) == ("binary-class", ["cat", "dog"], tmp_path.name)
    for split in SPLITS:
        part, own = StoredImages(data.splits[split]), [e for e in entries if e[2] == split]
        assert len(part) == 4 and part.data.files == [e[0] for e in own]
        batch = part[[2, 0, 3]]
        assert batch["label"].dtype == torch.int64
        assert batch["label"].tolist() == [data.classes.index(own[i][1]) for i in (2, 0, 3)]
        for image, position in zip(batch["image"], (2, 0, 3), strict=True):
            expected = pixels_of(tmp_path, own[position][0])
            assert image.dtype == torch.uint8 and image.shape == (3, *expected.shape[:2])
            assert np.array_equal(image.permute(1, 2, 0), expected)
            assert np.array_equal(part.image(position), expected)


def test_a_batch_can_be_one_position(tmp_path):
    data = load_data(write_list(tmp_path, write_images(tmp_path)))
    batch = StoredImages(data.splits["val"])[1]
    assert len(batch["image"]) == 1 and batch["label"].tolist() == [1]


def test_a_batch_is_not_the_stored_images(tmp_path):
    part = load_data(write_list(tmp_path, write_images(tmp_path, ((8, 8),)))).splits["train"]
    before = part.images.copy()
    PrepareBatch(Augment("strong"))(StoredImages(part)[[0, 1]])
    assert np.array_equal(part.images, before)


@pytest.mark.parametrize("label", ["dog", "DOG", 1])
def test_entries_of_another_program(tmp_path, label):
    write_images(tmp_path)
    (tmp_path / "label.txt").write_text(str(label))
    entries = [{"image": str(tmp_path / "1.png"), "label": str(tmp_path / "label.txt")}]
    batch = StoredImages(entries, loaded=read_entries(entries, ["cat", "dog"]))[[0]]
    assert batch["label"].tolist() == [1]
    assert np.array_equal(batch["image"][0].permute(1, 2, 0), pixels_of(tmp_path, "1.png"))


def handed_over(folder: Path, **lists: Any) -> ImageData:
    """`load_data` in a config into which another program has put its images."""
    (folder / "model.json").write_text(json.dumps({"task": "multi-class", "classes": ["cat", "dog"]}))
    parser = ConfigParser()
    parser["train"] = {"dataset": {"data": lists.get("train")}}
    parser["validate"] = {"dataset": {"data": lists.get("val")}}
    released = str(folder / "model.json")
    parser["data"] = {"_target_": "gated_attention.data.load_data", "dataset": "nowhere.csv", "released": released}
    return parser.get_parsed_content("data")


def test_images_handed_over_have_the_released_classes(tmp_path):
    entries = write_images(tmp_path)
    items = [{"image": str(tmp_path / f), "label": ("cat", "dog").index(c)} for f, c, _ in entries]
    data = handed_over(tmp_path, train=items[:8], val=items[8:])
    assert data.classes == ["cat", "dog"] and [len(data.splits[s]) for s in SPLITS] == [8, 4, 4]
    assert data.splits["test"] is data.splits["val"] and "validation again" in data.notes[0]
    alone = handed_over(tmp_path, train=items)
    assert [len(alone.splits[s]) for s in SPLITS] == [10, 2, 2] and "divided again by class" in alone.notes[0]


def test_the_demo_is_the_same_every_time_and_balanced():
    first, again = (load_data("demo", demo_counts=dict.fromkeys(SPLITS, 6)) for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    assert [row["train"] for row in first.counts()] == [2, 2, 2, 6]
    assert first.task == "multi-class" and "no clinical meaning" in first.source


def test_real_images_of_two_sizes(real_data, tmp_path):
    folder = real_data / "microscopy"
    kinds = [("fungus", sorted((folder / "aspergillus_512x384" / "A_niger_AI1").glob("*.jpg"))[:6])]
    kinds.append(("blood", sorted((folder / "bccd" / "JPEGImages").glob("*.jpg"))[:6]))
    entries = [(str(p), kind, SPLITS[i // 2]) for kind, paths in kinds for i, p in enumerate(paths)]
    data = load_data(write_list(tmp_path, entries), num_workers=2)
    batch = StoredImages(data.splits["train"])[[0, 1, 2, 3]]
    sizes = {"fungus": (3, 384, 512), "blood": (3, 480, 640)}
    assert [tuple(image.shape) for image in batch["image"]] == [sizes[data.classes[k]] for k in batch["label"]]
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
    assert all(30 < float(image.float().mean()) < 225 for image in batch["image"])


# Random changes


def picture(height: int = 5, width: int = 7) -> torch.Tensor:
    """Every pixel another value: 3 x H x W."""
    return torch.arange(3 * height * width, dtype=torch.uint8).view(3, height, width)


def eight(image: torch.Tensor) -> list[np.ndarray]:
    """All turns and mirrorings, by numpy."""
    turned = [np.rot90(image.numpy(), k, (1, 2)) for k in range(4)]
    return turned + [t[:, :, ::-1] for t in turned]


def test_none_changes_nothing_and_takes_no_random_number():
    images = [picture(), picture(2, 3)]
    state = torch.get_rng_state()
    found = Augment("none")(images)
    assert all(a is b for a, b in zip(found, images, strict=True)) and torch.equal(torch.get_rng_state(), state)


def test_dihedral_is_all_eight_turns_equally_often_and_nothing_else():
    image = picture()
    expected = eight(image)
    torch.manual_seed(0)
    found = Augment("dihedral")([image] * 800)
    hits = Counter(next(k for k, e in enumerate(expected) if np.array_equal(e, f)) for f in found)
    assert sorted(hits) == list(range(8)) and min(hits.values()) > 70
    assert torch.equal(image, picture())


@pytest.mark.parametrize("kind", ["dihedral", "strong"])
def test_the_seed_decides_and_every_image_has_its_own_change(kind):
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append([f.tolist() for f in Augment(kind)([picture(16, 16)] * 12)])
    assert runs[0] == runs[1] != runs[2]
    assert len({str(image) for image in runs[0]}) > 4


@pytest.mark.parametrize(("height", "width"), [(40, 60), (200, 3), (1, 1), (1, 90)])
def test_cuts_keep_aspect_and_most_of_the_image(height, width, monkeypatch):
    monkeypatch.setattr(transforms, "_jitter", lambda image: image)
    monkeypatch.setattr(transforms, "_turn", lambda image: image)
    place = torch.arange(height * width).view(1, height, width).expand(3, -1, -1)
    torch.manual_seed(0)
    shares, corners = [], set()
    for cut in Augment("strong")([place] * 300):
        rows, columns = cut[0, :, 0] // width, cut[0, 0] % width
        assert torch.equal(cut[0], place[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        tall, wide = cut.shape[1] / height, cut.shape[2] / width
        assert abs(tall - wide) <= 0.5 / height + 0.5 / width + 1e-6
        shares.append(tall * wide)
        corners.add((int(rows[0]), int(columns[0])))
    slack = 0.5 / height + 0.5 / width
    assert min(shares) >= 0.6 - slack - 1e-6 and max(shares) <= 1
    if min(height, width) > 20:
        assert min(shares) < 0.65 and max(shares) > 0.95 and len(corners) > 50


def test_contrast_brightness_and_colour_by_hand():
    # A single pixel is cut and turned to itself: what is left is the formula, from the same random numbers.
    values = torch.tensor([10, 128, 245], dtype=torch.uint8)
    clipped = 0
    for seed in range(40):
        torch.manual_seed(seed)
        found = Augment("strong")([values.view(3, 1, 1)])[0]
        torch.manual_seed(seed)
        torch.rand(()), torch.randint(1, ()), torch.randint(1, ())
        contrast, colour, brightness = (torch.rand(n).double().numpy() * 2 - 1 for n in (1, 3, 1))
        factor = np.exp(0.3 * contrast + 0.08 * colour)
        exact = (values.numpy() - 127.5) * factor + 127.5 + 255 * 0.15 * brightness
        assert found.dtype == torch.uint8 and found.shape == (3, 1, 1)
        assert np.abs(found.flatten().numpy() - exact.clip(0, 255)).max() <= 0.501
        clipped += bool((exact < 0).any() or (exact > 255).any())
    assert clipped  # and does not wrap around


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=rf"augment is 'heavy', expected one of {', '.join(AUGMENTATIONS)}"):
        Augment("heavy")


def test_prepared_batches():
    images, label = [picture(), picture(2, 3)], torch.tensor([1, 0])
    found, targets = PrepareBatch()({"image": images, "label": label}, "cpu", non_blocking=True)
    assert all(torch.equal(a, b) for a, b in zip(found, images, strict=True)) and torch.equal(targets, label)
    assert PrepareBatch()({"image": images})[1] is None
    torch.manual_seed(1)
    changed, _ = PrepareBatch(Augment("dihedral"))({"image": images, "label": label})
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(changed, Augment("dihedral")(images), strict=True))
