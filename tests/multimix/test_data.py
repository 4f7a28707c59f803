"""Data sets: label budgets, streams of each method, the demo, and lists of pictures of any size."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from label_efficient.settings import SettingsError
from multimix.data import load_data
from multimix.losses import UNKNOWN
from multimix.network import METHODS
from multimix.transforms import Preprocess

COUNTS = {"train": 40, "val": 10, "test": 8, "cross_domain": 6}
STREAMS_OF = {
    "unet": ["mask_labelled"],
    "enc": ["class_labelled"],
    "encssl": ["class_labelled", "class_unlabelled"],
    "umtl": ["mask_labelled", "class_labelled"],
    "umtls": ["mask_labelled", "class_labelled"],
    "umtls_ssl": ["mask_labelled", "class_labelled", "class_unlabelled"],
    "multimix": ["mask_labelled", "class_labelled", "mask_unlabelled", "class_unlabelled"],
}


def demo(method="multimix", *, class_labels=12, mask_labels=9, counts=COUNTS, **options):
    return load_data(
        "demo",
        method=method,
        preprocess=Preprocess(image_size=32),
        class_labels=class_labels,
        mask_labels=mask_labels,
        demo_counts=counts,
        **options,
    )


def keys(images):
    return [image.tobytes() for image in images]


def hidden_classes(data):
    """Class that the budget took away, by the picture."""
    part = data.splits["unlabelled"]
    return dict(zip(keys(part.images), part.hidden_labels.tolist(), strict=True))


# Budgets and streams


@pytest.mark.parametrize("method", METHODS)
def test_streams_of_each_method(method):
    data = demo(method)
    assert list(data.streams) == STREAMS_OF[method]
    lengths = {name: len(positions) for name, (_, positions) in data.streams.items()}
    expected = {"mask_labelled": 9, "class_labelled": 12, "mask_unlabelled": 31, "class_unlabelled": 28}
    assert lengths == {name: expected[name] for name in lengths}
    for name, (section, positions) in data.streams.items():
        assert section == ("unlabelled" if name.endswith("unlabelled") else "train")
        assert len(set(positions.tolist())) == len(positions)


def test_budgets_move_images_without_their_labels():
    whole, data = demo("umtl", class_labels=None, mask_labels=None), demo()
    all_images = whole.splits["train"]
    labels = dict(zip(keys(all_images.images), all_images.labels.tolist(), strict=True))
    train, unlabelled = data.splits["train"], data.splits["unlabelled"]
    assert len(labels) == len(all_images) == 40
    assert (len(train.labelled), len(train.masked)) == (12, 9)
    labelled = set(keys(train.images[train.labelled]))
    masked = set(keys(train.images[train.masked]))
    assert set(keys(train.images)) == labelled | masked
    tasks = {key: entry.tasks for key, entry in zip(keys(unlabelled.images), unlabelled.entries, strict=True)}
    for key in labels:
        assert ("classification" in tasks.get(key, ())) == (key not in labelled)
        assert ("segmentation" in tasks.get(key, ())) == (key not in masked)
    # Stratified; what was taken away is kept for counting, and nowhere else.
    assert np.bincount(train.labels[train.labelled]).tolist() == [6, 6]
    assert (unlabelled.labels == UNKNOWN).all() and (unlabelled.mask_rows == -1).all()
    assert all(entry.label is None and not entry.masks for entry in unlabelled.entries)
    for key, hidden in hidden_classes(data).items():
        assert hidden == (UNKNOWN if key in labelled else labels[key])
    assert (train.hidden_labels == UNKNOWN).all()
    # Masks are still those of their images.
    masks = dict(zip(keys(all_images.images), all_images.masks[all_images.mask_rows], strict=True))
    for row in train.masked:
        assert np.array_equal(train.masks[train.mask_rows[row]], masks[train.images[row].tobytes()])
    for name in ("val", "test", "cross_domain"):
        assert np.array_equal(data.splits[name].labels, whole.splits[name].labels)


def test_budgets_are_nested_and_decided_by_the_seed():
    def labelled(number, seed=0):
        part = demo("enc", class_labels=number, mask_labels=None, seed=seed).splits["train"]
        return set(keys(part.images[part.labelled]))

    few, more = labelled(6), labelled(20)
    assert len(few) == 6 and len(more) == 20 and few < more
    assert labelled(6) == few != labelled(6, seed=1)


def test_a_budget_of_no_mask_cannot_be():
    with pytest.raises(SettingsError, match="mask_labels=0: expected 1 to 40"):
        demo(mask_labels=0)


def test_labelled_images_may_serve_as_unlabelled_too():
    data = demo(class_labels=None, mask_labels=None, reuse_labelled=True)
    assert {name: len(positions) for name, (_, positions) in data.streams.items()} == dict.fromkeys(data.streams, 40)
    assert set(hidden_classes(data).values()) == {UNKNOWN}
    data = demo(reuse_labelled=True)
    lengths = {name: len(positions) for name, (_, positions) in data.streams.items()}
    assert lengths == {"mask_labelled": 9, "class_labelled": 12, "mask_unlabelled": 40, "class_unlabelled": 40}


@pytest.mark.parametrize(
    ("method", "missing", "options"),
    [
        ("multimix", "unlabelled images for classification", {"class_labels": None}),
        ("multimix", "unlabelled images for segmentation", {"mask_labels": None}),
        ("encssl", "unlabelled images for classification", {"class_labels": None}),
    ],
)
def test_missing_streams_are_an_error_that_names_the_methods_that_fit(method, missing, options):
    with pytest.raises(SettingsError, match=rf"method='{method}' cannot be trained") as caught:
        demo(method, **options)
    message = str(caught.value)
    assert f"there are no {missing}" in message and "reuse_labelled=true" in message
    fitting = message.split("Methods that fit these data: ")[1].split(";")[0].split(", ")
    for name in METHODS:
        if name in fitting:
            demo(name, **options)
        else:
            with pytest.raises(SettingsError):
                demo(name, **options)


# The demo


@pytest.mark.parametrize("seed", [1, 1000, 2000, 3000])
def test_only_training_depends_on_the_seed_and_no_section_has_a_picture_of_another(seed):
    first, second = (demo("umtl", class_labels=None, mask_labels=None, seed=s).splits for s in (0, seed))
    seen = [key for name in COUNTS for part in (first, second) for key in keys(part[name].images)]
    assert len(set(seen)) == sum(COUNTS.values()) + COUNTS["train"]
    for name in ("val", "test", "cross_domain"):
        assert np.array_equal(first[name].images, second[name].images)


def test_fingerprint_is_of_pixels_labels_and_streams():
    prints = {
        "same": demo().fingerprint(),
        "seed": demo(seed=1).fingerprint(),
        "budget": demo(class_labels=14).fingerprint(),
        "method": demo("umtls_ssl").fingerprint(),
        "reuse": demo(reuse_labelled=True).fingerprint(),
    }
    for change in ("images", "masks", "labels"):
        data = demo()
        array = getattr(data.splits["train"], change)
        array[-1] = array[-1] + 1 if change == "labels" else 1 - array[-1]
        prints[change] = data.fingerprint()
    assert demo().fingerprint() == prints["same"]
    assert len(set(prints.values())) == len(prints)


def test_counts_and_remarks():
    data = demo()
    rows = {row[""]: row for row in data.counts()}
    assert rows["clear"]["train"] == rows["opacity"]["train"] == 6
    assert rows["with a mask"]["train"] == 9 and rows["with a mask"]["val"] == 10
    assert rows["images"]["test"] == 8 and rows["images"]["unlabelled"] == len(data.splits["unlabelled"])
    assert "mask_unlabelled 31" in data.remarks()[0]


@pytest.mark.parametrize(
    ("setting", "expected"), [("none", None), ("balanced", [0.75, 1.5]), ([1, 4], [0.5, 2.0])], ids=str
)
def test_class_weights(setting, expected, tmp_path):
    data = listed(tmp_path, labels=[0, 0, 1, 0, 0, 1], method="enc")
    assert data.class_weights(setting) == (None if expected is None else pytest.approx(expected))


# Lists


def write_pictures(folder: Path, shapes=((30, 40), (40, 30), (24, 24))) -> None:
    """Pictures i0.png to i11.png of dark blocks with a bright square, and masks m0.png to m11.png of the square."""
    folder.mkdir(exist_ok=True)
    for index in range(12):
        height, width = shapes[index % len(shapes)]
        blocks = np.random.default_rng(index).integers(20, 90, (6, 6), dtype=np.uint8)
        picture = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[4 : height // 2, 6 : width // 2] = 255
        picture[mask > 0] = 200
        Image.fromarray(picture).save(folder / f"i{index}.png")
        Image.fromarray(mask).save(folder / f"m{index}.png")


def listed(tmp_path, labels=(0, 1, 0, 1, 0, 1), val_labels=(0, 1), method="umtl", change=None, **options):
    folder = tmp_path / "data"
    write_pictures(folder)
    content = {
        "labels": ["NORMAL", "PNEUMONIA"],
        "training": [{"image": f"i{i}.png", "mask": f"m{i}.png", "label": label} for i, label in enumerate(labels)],
        "validation": [
            {"image": f"i{6 + i}.png", "mask": f"m{6 + i}.png", "label": v} for i, v in enumerate(val_labels)
        ],
        "test": [{"image": "i9.png", "mask": "m9.png"}],
        "unlabelled": [{"image": "i10.png", "task": "segmentation"}],
    }
    if change:
        change(folder, content)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    options = {"preprocess": Preprocess(image_size=64), "dataset_dir": str(folder), **options}
    return load_data("datalist", datalist=str(path), method=method, **options)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_pictures_of_any_shape_keep_their_aspect_with_their_masks(num_workers, tmp_path):
    data = listed(tmp_path, num_workers=num_workers)
    assert (data.name, data.classes) == ("list", ["NORMAL", "PNEUMONIA"])
    part = data.splits["train"]
    assert part.images.shape == part.masks.shape == (6, 64, 64) and part.images.dtype == np.uint8
    assert part.labels.tolist() == [0, 1, 0, 1, 0, 1] and part.mask_rows.tolist() == list(range(6))
    assert set(np.unique(part.masks)) == {0, 1}
    for row, entry in enumerate(part.entries):
        assert entry.file == f"i{row}.png"
        image, mask = part.images[row], part.masks[row]
        # The bright square and its mask are at the same place.
        assert ((image > 110) != (mask == 1)).mean() < 0.02
        height, width = ((30, 40), (40, 30), (24, 24))[row % 3]
        side = max(height, width)
        rows = (np.array([4, height // 2]) + (side - height) // 2) * 64 / side
        columns = (np.array([6, width // 2]) + (side - width) // 2) * 64 / side
        inside = np.argwhere(mask)
        assert np.abs(inside.min(0) - [rows[0], columns[0]]).max() <= 1
        assert np.abs(inside.max(0) + 1 - [rows[1], columns[1]]).max() <= 1
        margin = 64 * ((side - height) // 2) // side
        assert (image[: max(margin - 1, 0)] == 0).all() and image[32].max() > 0
    assert data.splits["test"].labels.tolist() == [UNKNOWN]


def test_pictures_may_be_squeezed_instead(tmp_path):
    part = listed(tmp_path, preprocess=Preprocess(image_size=64, keep_aspect=False)).splits["train"]
    assert part.images.min() > 10
    inside = np.argwhere(part.masks[0])
    expected = np.array([[4 / 30, 6 / 40], [15 / 30, 20 / 40]]) * 64
    assert np.abs(inside.min(0) - expected[0]).max() <= 1 and np.abs(inside.max(0) + 1 - expected[1]).max() <= 1


def test_an_absent_class_is_no_matter_where_nothing_classifies(tmp_path):
    assert listed(tmp_path, val_labels=[0, 0], method="unet").streams


def test_unlabelled_images_serve_their_task(tmp_path):
    with pytest.raises(SettingsError, match="there are no unlabelled images for classification"):
        listed(tmp_path, method="multimix")
    streams = listed(tmp_path, method="multimix", class_labels=4).streams
    lengths = [("mask_labelled", 6), ("class_labelled", 4), ("mask_unlabelled", 1), ("class_unlabelled", 2)]
    assert [(name, len(positions)) for name, (_, positions) in streams.items()] == lengths
