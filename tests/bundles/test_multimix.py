"""What the multimix bundle alone does: masks, streams of labelled and unlabelled images, methods of one task or two."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_cases import (
    FILMS,
    metrics_of,
    part,
    predict,
    refused,
    rows_of,
    says,
    serve,
    small,
    train,
    train_alone,
    weights_of,
    workflow,
    write_list,
)
from monai.data import MetaTensor
from PIL import Image

from multimix.demo_data import make_demo_images
from multimix.network import METHODS, MultiMixNet
from multimix.shipped import ShippedMultiMix, split_output

pytestmark = pytest.mark.parametrize("case", ["multimix"], indirect=True)
LUNGS = np.zeros((36, 40))
LUNGS[8:30, 4:16], LUNGS[8:30, 22:36] = 150, 200


def test_figures_of_every_section_are_those_of_its_rows(case, trained):
    rows, metrics = rows_of(trained / "predictions.csv"), metrics_of(trained)
    assert [row["section"] for row in rows] == ["test"] * 5 + ["cross_domain"] * 3
    for section in ("test", "cross_domain"):
        own = [row for row in rows if row["section"] == section]
        right = [row["label"] == max(FILMS, key=lambda name: float(row[f"p_{name}"])) for row in own]
        assert metrics[section]["classification"]["acc"] == pytest.approx(np.mean(right))
        right = [row["label"] == row["pred"] for row in own]
        assert metrics["operating_point"][section]["acc"] == pytest.approx(np.mean(right))
        dice = np.mean([float(row["dice"]) for row in own])
        assert metrics[section]["segmentation"]["dice"] == pytest.approx(dice, abs=1e-5)


def test_written_masks_have_the_size_of_their_images_and_the_dice_of_their_rows(case, trained, dataset):
    rows = rows_of(trained / "predictions.csv")
    assert sorted(p.name for p in (trained / "masks").rglob("*.png")) == sorted(row["file"] for row in rows)
    for row in rows:
        predicted = np.asarray(Image.open(trained / "masks" / row["file"])) > 0
        reference = np.asarray(Image.open(dataset.parent / f"mask{row['file']}")) > 0
        assert {"components", "area_fraction", "border_fraction", "air_fraction", "implausible"} <= row.keys()
        dice = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_its_parts_are_all_that_is_shipped(case, dataset, tmp_path, method):
    train_alone(case, dataset, tmp_path, method=method, max_epochs=1, steps_per_epoch=1)
    parts, keys = METHODS[method], weights_of(tmp_path).keys()
    assert any(key.startswith("branch.") for key in keys) == parts.classifies
    assert any(key.startswith("decoder.") for key in keys) == parts.segments
    assert not [key for key in keys if key.startswith(("module.", "_"))]
    row = rows_of(tmp_path / "history.csv")[0]
    expected = {"class": parts.classifies, "mask": parts.segments, "pseudo_label": parts.pseudo_labels,
                "kl": parts.mask_consistency}  # fmt: skip
    assert {name: f"train_{name}_loss" in row for name in expected} == expected


@pytest.mark.parametrize(("method", "task"), [("unet", "segmentation"), ("enc", "classification")])
def test_lists_of_one_task(case, tmp_path, method, task):
    data = case.data(tmp_path / "films", label=method == "enc", mask=method == "unet", unlabelled=0)
    metrics = train(case, data, tmp_path / "out", method=method, max_epochs=1)
    found = {key for name in ("validation", "test", "cross_domain") for key in metrics[name]}
    assert found == {task, "by_source"}
    row = rows_of(tmp_path / "out" / "predictions.csv")[0]
    assert ("dice" in row, "p_clear" in row) == ((True, False) if method == "unet" else (False, True))
    assert 0 <= float(row["uncertainty"]) <= 1 and row["file"] and row["error"] == ""


def test_files_of_many_kinds_and_sizes_train_together(case, tmp_path):
    images, _, masks = make_demo_images(12, size=64, seed=1)
    grey = [image[: 50 + i, : 64 - i].astype(float) for i, image in enumerate(images)]
    # Files of 16 bits are shown from their darkest to their brightest value: let all films reach from 0 to 255.
    grey = [((g - g.min()) / (g.max() - g.min()) * 255).astype(np.uint8) for g in grey]
    lines = ["file,class,mask,split,group"]
    for i, image in enumerate(grey):
        name, pixels = [
            (f"{i}.png", image),
            (f"{i}.jpg", np.stack([image] * 3, axis=2)),
            (f"{i}.tif", image.astype(np.uint16) * 256),
            (f"{i}.bmp", image),
        ][i % 4]
        Image.fromarray(pixels).save(tmp_path / name)
        Image.fromarray(masks[i][: image.shape[0], : image.shape[1]]).save(tmp_path / f"mask{i}.png")
        split = ("train", "train", "val", "test")[i // 3]
        lines.append(f"{name},{FILMS[i % 2]},mask{i}.png,{split},p{i}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    settings = small(case, tmp_path / "mine.csv", tmp_path / "out", method="umtls", max_epochs=1)
    run = workflow(case, **settings)
    data, preprocess = part(run, "data"), part(run, "preprocess")
    # The same film in any kind of file is the same picture, to what JPEG loses.
    for name, split in data.splits.items():
        for row, entry in enumerate(split.entries):
            expected = preprocess(grey[int(Path(entry.file).stem)]).astype(int)
            assert np.abs(split.images[row].astype(int) - expected).mean() < 4, (name, entry.file)
    run.run()
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["9.jpg", "10.tif", "11.bmp"]


def test_a_stream_shorter_than_a_batch_begins_again(case, dataset, tmp_path):
    trainer = train_alone(case, dataset, tmp_path, mask_labels=1, class_labels=2, batch_size=4, max_epochs=1)
    lengths = trainer.state.dataloader.sampler.lengths
    assert (lengths["mask_labelled"], lengths["class_labelled"]) == (1, 2)
    assert np.isfinite(trainer.state.metrics["loss"])


def test_labels_beyond_the_budget_are_never_trained_on(case, dataset, tmp_path):
    data = part(workflow(case, **small(case, dataset, tmp_path, mask_labels=2, class_labels=4)), "data")
    train_part, unlabelled = data.splits["train"], data.splits["unlabelled"]
    assert (len(train_part.labelled), len(train_part.masked)) == (4, 2)
    assert not len(unlabelled.labelled) and not len(unlabelled.masked)
    section, positions = data.streams["class_unlabelled"]
    labelled = {train_part.entries[i].file for i in train_part.labelled}
    assert section == "unlabelled" and len(positions) == 6 + 4
    assert not labelled & {unlabelled.entries[i].file for i in positions}


# What is shipped, and served


def test_what_is_shipped_computes_what_was_trained(case, trained):
    network, shipped = MultiMixNet(method="multimix", num_classes=2), ShippedMultiMix(method="multimix", num_classes=2)
    for one in (network, shipped):
        one.load_state_dict(weights_of(trained))
        one.eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected, (mask_logits, logits) = network(image), split_output(shipped(image), "multimix")
    torch.testing.assert_close(mask_logits, expected["mask_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "mode"), [("colour.png", "RGB"), ("grey.jpg", "L")])
def test_a_server_gets_the_mask_that_a_run_writes(case, bundle, tmp_path, name, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    data = serve(bundle, tmp_path / name)
    (row,) = predict(case, bundle, tmp_path / name, tmp_path / "out", contact_sheet=0)
    written, pred = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{Path(name).stem}.png")), data["pred"]
    assert isinstance(pred, MetaTensor) and pred.dtype == torch.uint8 and written.any() and not written.all()
    # MONAI Label hands the array to ITK transposed, whose first axis is then the last.
    assert np.array_equal(pred.array.transpose()[0] * 255, written)
    assert data["result"]["pred"] == row["pred"]
    for label, score in data["result"]["probabilities"].items():
        assert score == pytest.approx(float(row[f"p_{label}"]), abs=1e-6)
    assert data["result"]["uncertainty"] == pytest.approx(float(row["uncertainty"]), abs=1e-6)
    assert data["result"]["implausible"] == row["implausible"]
    json.dumps(data["result"])
    assert data.get("result_extension") == (None if name.endswith(".png") else ".png")
    assert isinstance(data["image"], MetaTensor)


def test_a_server_gets_the_mask_of_a_nifti_picture_on_its_voxels(case, bundle, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (30, 40, 1), dtype=np.uint8)
    affine = np.array([[0.0, -2, 0, 5], [0, 0, 1, 6], [3, 0, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    pred = serve(bundle, tmp_path / "a.nii.gz")["pred"]
    predict(case, bundle, tmp_path / "a.nii.gz", tmp_path / "out", contact_sheet=0)
    written = nibabel.load(tmp_path / "out" / "masks" / "a.nii.gz")
    assert np.array_equal(pred.array, np.asarray(written.dataobj)) and pred.shape == voxels.shape
    np.testing.assert_allclose(pred.affine, written.affine)


# What is wrong with masks, and with data for a method


@pytest.fixture
def content(case, dataset, tmp_path) -> dict:
    """The content of the tiny list, of images of 36 x 40 in a folder of their own."""
    found = json.loads(dataset.read_text())
    for section, items in found.items():
        for item in items if section != "labels" else []:
            pixels = np.asarray(Image.open(dataset.parent / item["image"]))[:36, :40]
            Image.fromarray(pixels).save(tmp_path / item["image"])
            if "mask" in item:
                write_mask(tmp_path / item["mask"], np.asarray(Image.open(dataset.parent / item["mask"]))[:36, :40])
    return found


def write_mask(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def data_of(case, folder, content, **settings):
    path = write_list(folder, content)
    return part(workflow(case, dataset=str(path), image_size=32, num_workers=1, **settings), "data")


def test_damaged_images_and_masks_are_told_together(case, tmp_path, content):
    for name in ("0.png", "mask2.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    write_mask(tmp_path / "mask5.png", LUNGS)
    error = refused(data_of, case, tmp_path, content)
    assert len(error.problems) == 3
    says(error, "3 problems", "/0.png", "mask2.png", "mask5.png", "training[2]")


def test_a_lung_that_vanishes_at_the_size_of_the_network_is_no_divergence(case, tmp_path, content):
    big = np.zeros((360, 400), np.uint8)
    Image.fromarray(big + 90).save(tmp_path / "4.png")
    big[100:102, 100:102] = 255
    write_mask(tmp_path / "mask4.png", big)
    says(refused(data_of, case, tmp_path, content), "mask4.png", "image_size")


def test_inverted_masks_are_refused_and_those_unlike_lungs_named(case, tmp_path, content, caplog):
    write_mask(tmp_path / "mask3.png", np.where(np.asarray(Image.open(tmp_path / "mask3.png")) > 0, 0, 255))
    says(refused(data_of, case, tmp_path, content), "mask3.png", "of its border", "is the mask inverted?")
    write_mask(tmp_path / "mask3.png", LUNGS == 150)
    data_of(case, tmp_path, content)
    assert "reference masks are unlike lungs" in caplog.text
    assert "mask3.png (1 separate parts instead of 2" in caplog.text


def test_resuming_with_other_masks_is_refused(case, tmp_path, content):
    path = write_list(tmp_path, content)
    train_alone(case, path, tmp_path / "out", max_epochs=1)
    write_mask(tmp_path / "mask0.png", LUNGS > 0)
    error = refused(train_alone, case, path, tmp_path / "out", resume=True)
    says(error, "the data have changed")


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("multimix", ["unlabelled images for segmentation", "unlabelled images for classification"]),
        ("umtls_ssl", ["unlabelled images for classification"]),
        ("encssl", ["unlabelled images for classification"]),
    ],
)
def test_methods_without_unlabelled_images(case, tmp_path, content, method, parts):
    content["unlabelled"] = []
    error = refused(data_of, case, tmp_path, content, method=method)
    says(error, f"method='{method}'", *parts, "methods that fit these data: unet, enc, umtl, umtls", "reuse_labelled")
    data = data_of(case, tmp_path, content, method=method, reuse_labelled=True)
    assert len(data.streams["class_unlabelled"][1]) == 8


def test_methods_without_labels(case, tmp_path, content):
    del content["labels"]
    for items in content.values():
        for item in items:
            item.pop("label", None)
    error = refused(data_of, case, tmp_path, content, method="umtl")
    says(error, "no training images with a label", "methods that fit", ": unet")
    assert data_of(case, tmp_path, content, method="unet").classes == []
