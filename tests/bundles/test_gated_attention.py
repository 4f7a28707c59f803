"""What the gated attention bundle alone does: lambda, two outputs, attentions, images of any size, reference boxes."""

import json
import logging
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from bundle_cases import (
    CLASSES,
    LEFT,
    ROOT,
    command,
    evaluate,
    grey_levels,
    metrics_of,
    numbers_of,
    part,
    picture,
    refused,
    rows_of,
    same,
    says,
    small,
    train,
    train_alone,
    weights_of,
    workflow,
    write_list,
)
from PIL import Image

from gated_attention.attention import ATTENTIONS
from gated_attention.network import GatedAttentionNet
from gated_attention.shipped import ShippedGatedAttention

pytestmark = pytest.mark.parametrize("case", ["gated_attention"], indirect=True)
NETWORK = """method attention global_backbone instance_backbone num_instances instance_size threshold min_box max_box
window_box pooling image_size mean std""".split()
TRAINED = {
    "epoch", "learning_rate", "train_loss", "train_global_loss", "val_loss", "val_global_loss", "val_auc", "val_acc",
    "val_global_auc", "val_global_acc",
}  # fmt: skip
FUSED = {"train_lambda", "train_fusion_loss", "val_fusion_loss"}


def network_of(folder: Path, kind: Any = ShippedGatedAttention) -> Any:
    """The network of a run, built from what stands beside its weights."""
    info = json.loads((folder / "model.json").read_text())
    network = kind(num_classes=len(info["classes"]), **{name: info[name] for name in NETWORK})
    network.load_state_dict(weights_of(folder))
    return network.eval()


def blocks(*shape: int, seed: int = 0) -> torch.Tensor:
    """Blocks, not single pixels: the small copy must show something."""
    values = torch.randint(256, (shape[0], 3, 5, 6), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(values, shape[1:])


# The two outputs and lambda


def test_history_has_lambda_and_the_losses_of_both_outputs(case, trained):
    rows, metrics = numbers_of(trained), metrics_of(trained)
    assert [row["train_lambda"] for row in rows] == [1, 0.6]
    assert set(rows[0]) == TRAINED | FUSED - {"train_fusion_loss"} and set(rows[1]) == TRAINED | FUSED
    weighed = 0.6 * rows[1]["val_global_loss"] + 0.4 * rows[1]["val_fusion_loss"]
    assert rows[1]["val_loss"] == pytest.approx(weighed, rel=1e-5)
    best = rows[metrics["chosen_epoch"] - 1]
    # What was validated in the epoch is what the weights say afterwards; calibration leaves order and decision alone.
    for name in ("auc", "acc"):
        assert metrics["validation"][name] == pytest.approx(best[f"val_{name}"], abs=1e-6)
        assert metrics["validation_global"][name] == pytest.approx(best[f"val_global_{name}"], abs=1e-6)
    assert metrics["validation_global"]["nll"] == pytest.approx(best["val_global_loss"], rel=1e-4)
    report = (trained / "report.html").read_text()
    assert "Fusion and global branch" in report and "Where the network looks" in report
    assert "fusion and global branch" in (trained / "train.log").read_text()


def test_predictions_are_those_of_the_weights_on_the_files(case, trained, dataset):
    rows, metrics = rows_of(trained / "predictions.csv"), metrics_of(trained)
    network, entries = network_of(trained), json.loads(dataset.read_text())["test"]
    assert [row["file"] for row in rows] == [entry["image"] for entry in entries]
    right_globally = []
    for row, entry in zip(rows, entries, strict=True):
        with torch.no_grad():
            found = network.look([picture(dataset.parent / entry["image"])], True)
        p = torch.softmax(found["logits"][0] / metrics["temperature"], dim=0).numpy()
        np.testing.assert_allclose([float(row[f"p_{name}"]) for name in CLASSES], p, atol=1e-5)
        assert row["label"] == CLASSES[entry["label"]]
        right_globally.append(int(found["global_logits"].argmax()) == entry["label"])
    assert metrics["test_global"]["acc"] == pytest.approx(np.mean(right_globally))


def test_lambda_goes_on_as_the_schedule_says_where_a_longer_run_continues_a_shorter_one(case, dataset, tmp_path):
    settings = {"lambda_start": 0.9, "lambda_step": 0.4, "lambda_every": 2, "lambda_floor": 0.2}
    train_alone(case, dataset, tmp_path, max_epochs=3, **settings)
    assert [row["train_lambda"] for row in numbers_of(tmp_path)] == [0.9, 0.9, 0.5]
    train_alone(case, dataset, tmp_path, max_epochs=5, resume=True, **settings)
    rows = numbers_of(tmp_path)
    assert [row["train_lambda"] for row in rows] == [0.9, 0.9, 0.5, 0.5, 0.2]
    for row in rows:
        assert row["train_loss"] == pytest.approx(case.loss(row), rel=1e-5)


@pytest.mark.slow
def test_while_lambda_is_1_the_fusion_stays_as_it_was(case, dataset, tmp_path, caplog):
    run = workflow(case, **small(case, dataset, tmp_path / "one", max_epochs=1))
    trainer, network = part(run, "train::trainer"), part(run, "network_def")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        trainer.run()
    assert "lambda stays 1 in all 1 epochs" in caplog.text and "Give max_epochs above 1" in caplog.text
    unchanged = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    fusion = {name for name in before if name.startswith(("instance_branch.", "fusion_head."))}
    assert fusion and unchanged >= fusion
    assert not unchanged & {"global_head.weight", "global_branch.conv1.weight", "attention.blocks.0.0.weight"}
    caplog.clear()
    train_alone(case, dataset, tmp_path / "more", max_epochs=2)
    assert "lambda stays 1" not in caplog.text
    # Not looking at the instances while lambda is 1 changes no other weight: always looking gives the same ones.
    run = workflow(case, **small(case, dataset, tmp_path / "always", max_epochs=1))
    calls = []
    looking = part(run, "network_def")
    forward = looking.forward
    looking.forward = lambda images, fuse=True: calls.append(fuse) or forward(images, fuse=True)
    part(run, "train::trainer").run()
    assert False in calls
    for name, value in network.state_dict().items():
        if name not in fusion:
            assert torch.equal(value, looking.state_dict()[name]), name


def test_the_global_branch_alone(case, dataset, tmp_path):
    metrics = train(case, dataset, tmp_path / "out", method="global")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(LEFT)
    rows = numbers_of(tmp_path / "out")
    assert [set(row) for row in rows] == [TRAINED] * 2
    assert all(
        row["train_loss"] == row["train_global_loss"] and row["val_auc"] == row["val_global_auc"] for row in rows
    )
    assert metrics["test"] == metrics["test_global"] and metrics["validation"] == metrics["validation_global"]
    groups = {name.split(".")[0] for name in weights_of(tmp_path / "out")}
    assert groups == {"global_branch", "attention", "global_head"}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Fusion and global branch" not in report and "Where the network looks" in report
    assert not (tmp_path / "out" / "figures" / "lambda.png").exists()
    again = evaluate(case, dataset, tmp_path / "out" / "model.pt", tmp_path / "again", method="global")
    assert again["test"] == metrics["test"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_trains_with_fusion(case, dataset, tmp_path, attention):
    settings = {"attention": attention, "max_epochs": 1, "lambda_start": 0.5}
    run = workflow(case, **small(case, dataset, tmp_path, **settings))
    trainer, network = part(run, "train::trainer"), part(run, "network_def")
    before = {name: value.clone() for name, value in network.named_parameters()}
    trainer.run()
    assert [name for name, value in network.named_parameters() if torch.equal(value, before[name])] == []
    row = numbers_of(tmp_path)[0]
    assert np.isfinite(row["train_global_loss"]) and np.isfinite(row["train_fusion_loss"])
    assert json.loads((tmp_path / "model.json").read_text())["attention"] == attention
    assert bool([name for name in weights_of(tmp_path) if name.startswith("attention.")]) == (
        attention not in ("channel", "none")
    )


def test_class_weights_are_those_of_the_setting_in_both_losses(case, dataset, tmp_path):
    weights = torch.tensor([1.0, 2.0, 4.0])
    run = workflow(case, **small(case, dataset, tmp_path, class_weights=weights.tolist()))
    loss, labels = part(run, "loss_def"), torch.from_numpy(part(run, "data").splits["train"].labels)
    weights = weights / weights[labels].mean()
    logits = {"global_logits": torch.randn(5, 3), "logits": torch.randn(5, 3)}
    targets, loss.lambda_ = torch.tensor([0, 1, 2, 2, 1]), 0.3
    terms = [torch.log_softmax(logits[name], dim=1)[range(5), targets] for name in ("global_logits", "logits")]
    means = [-(term * weights[targets]).mean() for term in terms]
    torch.testing.assert_close(loss(logits, targets), 0.3 * means[0] + 0.7 * means[1])


def test_the_least_side_of_a_box_has_an_effect_on_small_components(case, dataset, tmp_path):
    settings = {"threshold": 0.95, "lambda_start": 0.5, "max_epochs": 1}
    for share in (0.1, 0.5):
        folder = tmp_path / str(share)
        limit = {"min_box": share, "window_box": 0.5}
        train_alone(case, dataset, folder, **settings, **limit)
    assert not same(weights_of(tmp_path / "0.1"), weights_of(tmp_path / "0.5"))


# Images and labels


def test_images_of_several_sizes_are_one_batch(case, dataset, trained, tmp_path):
    batch = next(iter(part(workflow(case, **small(case, dataset, tmp_path)), "train::dataloader")))
    assert len({image.shape for image in batch["image"]}) == len(batch["label"]) == 4
    images = [picture(dataset.parent / f"test/{n}.png") for n in (21, 22, 23)]
    images += [images[0][:, :5, :9], images[0].repeat(1, 1, 7)]  # smaller than a crop, and a strip
    network = network_of(trained)
    with torch.no_grad():
        together = network.look(images, True)
        for place, image in enumerate(images):
            for name, value in network.look([image], True).items():
                torch.testing.assert_close(together[name][place], value[0], rtol=1e-4, atol=1e-4)
        # A batch in one tensor is the same as its images in a list.
        torch.testing.assert_close(network(images[0][None]), together["logits"][:1], rtol=1e-4, atol=1e-4)


def test_files_of_many_kinds_and_sizes_train_together(case, tmp_path):
    rng = np.random.default_rng(0)
    lines = ["file,class,split"]
    for i in range(27):
        grey = rng.integers(0, 256, (30 + i, 60 - i)).astype(np.uint8)
        grey.flat[:2] = 0, 255  # files of 16 bits are shown from their darkest to their brightest value
        name, pixels = [
            (f"{i}.png", grey),
            (f"{i}.jpg", np.stack([grey] * 3, axis=2)),
            (f"{i}.tif", grey.astype(np.uint16) * 256),
            (f"{i}.bmp", np.stack([grey, 255 - grey, grey], axis=2)),
        ][i % 4]
        Image.fromarray(pixels).save(tmp_path / name)
        lines.append(f"{name},{CLASSES[i % 3]},{('train', 'train', 'val')[i // 9] if i < 24 else 'test'}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    metrics = train(case, tmp_path, tmp_path / "out", max_epochs=1, lambda_start=0.5)
    assert metrics["test"]["n"] == 3 and metrics["data"]["classes"] == sorted(CLASSES)
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["24.png", "25.jpg", "26.tif"]


@pytest.mark.parametrize("same_size", [False, True], ids=["sizes", "one_size"])
@pytest.mark.slow
def test_images_read_again_train_as_those_kept_in_memory(case, tmp_path, same_size):
    cells = grey_levels(tmp_path / "cells", same_size=same_size)
    for cache in (True, False):
        train_alone(case, cells, tmp_path / str(cache), cache=cache, lambda_start=0.5, max_epochs=1)
    history = [(tmp_path / name / "history.csv").read_bytes() for name in ("True", "False")]
    assert history[0] == history[1] and same(*(weights_of(tmp_path / name) for name in ("True", "False")))


def test_labels_beyond_the_budget_are_left_out(case, dataset, tmp_path):
    few, more, whole = (
        part(workflow(case, **small(case, dataset, tmp_path, labels_per_class=n)), "data") for n in (2, 3, None)
    )
    files = [set(data.splits["train"].files) for data in (few, more, whole)]
    assert files[0] < files[1] < files[2] and [len(of_split) for of_split in files] == [6, 9, 12]
    assert np.bincount(few.splits["train"].labels).tolist() == [2, 2, 2] and few.unlabelled == 6
    assert few.splits["val"].files == whole.splits["val"].files
    metrics = train(
        case, dataset, tmp_path / "out", label_fraction=0.5, max_epochs=1, lambda_start=0.5, logging_file=None
    )
    assert metrics["data"]["unlabelled"] == 6
    assert "6 training images are left without a label" in (tmp_path / "out" / "train.log").read_text()


# What is shipped


def test_what_is_shipped_computes_what_was_trained(case, trained):
    image = blocks(2, 72, 96)
    with torch.no_grad():
        expected = network_of(trained, GatedAttentionNet)(image)["logits"]
        torch.testing.assert_close(network_of(trained)(image), expected, rtol=0, atol=1e-5)


def test_what_is_recorded_for_an_export_computes_the_same(case, trained):
    network = network_of(trained)
    recorded = torch.export.export(network, (blocks(2, 150, 200),), strict=False).module()
    # In one of one colour nothing stands out, and the whole image is the instance.
    for image in (blocks(2, 150, 200, seed=1), torch.full((2, 3, 150, 200), 90.0)):
        with torch.no_grad():
            torch.testing.assert_close(recorded(image), network(image), rtol=0, atol=1e-4)


def test_pretrained_without_a_network_names_the_file(case, dataset, tmp_path, monkeypatch):
    def offline(*arguments: Any, **settings: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    run = workflow(case, **small(case, dataset, tmp_path / "out", pretrained="true"))
    error = refused(part, run, "initialised")
    says(error, "pretrained=true", "resnet18-f37072fd.pth", str(tmp_path), "pretrained=false")


# Reference boxes


@pytest.mark.slow
def test_reference_boxes_and_calibration_may_come_later_in_a_resumed_run(case, dataset, tmp_path):
    train_alone(case, dataset, tmp_path / "out", max_epochs=1, lambda_start=0.5)
    (tmp_path / "boxes.csv").write_text("file,xmin,ymin,xmax,ymax\ntest/21.png,0,0,9,9\n")
    boxes = str(tmp_path / "boxes.csv")
    settings = {"lambda_start": 0.5, "resume": True, "calibrate": True, "reference_boxes": boxes}
    metrics = train(case, dataset, tmp_path / "out", **settings)
    assert metrics["coverage"]["boxes"] == 1 and len(numbers_of(tmp_path / "out")) == 2


Boxes = dict[str, list[tuple[int, int, int, int]]]


def boxes_as_csv(path: Path, boxes: Boxes) -> None:
    lines = [f"{file},{','.join(map(str, box))},cell" for file, of_file in boxes.items() for box in of_file]
    path.write_text("\n".join(["file,xmin,ymin,xmax,ymax,name", *lines]))


def voc(file: str, size: tuple[int, int], boxes: list[tuple[int, ...]]) -> str:
    """An annotation of Pascal VOC; its corners are written as they are given."""
    objects = ""
    for box in boxes:
        corners = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        objects += f"<object><name>head</name><bndbox>{corners}</bndbox></object>"
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{file}</filename>{sides}{objects}</annotation>"


def boxes_as_xml(folder: Path, boxes: Boxes, cells: Path) -> None:
    """Pascal VOC counts pixels from 1, and a box includes its last."""
    for file, of_file in boxes.items():
        path = folder / Path(file).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        size = Image.open(cells.parent / file).size
        path.write_text(voc(Path(file).name, size, [(x0 + 1, y0 + 1, x1, y1) for x0, y0, x1, y1 in of_file]))


def test_reference_boxes_give_the_share_that_the_attention_covers(case, dataset, trained, tmp_path):
    network, boxes, shares, expected = network_of(trained), {}, [], []
    for entry in json.loads(dataset.read_text())["test"][:5]:
        image = picture(dataset.parent / entry["image"])
        with torch.no_grad():
            heat = network.look([image], True)["attention_map"][0]
        stretched = (heat - heat.min()) / (heat.max() - heat.min())
        mask = torch.nn.functional.interpolate(stretched[None, None], (16, 16), mode="bilinear")[0, 0] > 0.5
        height, width = image.shape[1:]
        # A fine grid within the image: where its points fall in the mask is the covered share of any box.
        places = (np.arange(2000) + 0.5) / 2000
        covers = mask.numpy()[np.ix_((places * 16).astype(int), (places * 16).astype(int))]
        of_image = [(0, 0, width, height), (0, 0, width // 2, height // 2), (width // 3, height // 2, width, height)]
        for x0, y0, x1, y1 in of_image:
            rows, columns = ((places >= low) & (places < high) for low, high in ((y0 / height, y1 / height),
                                                                                 (x0 / width, x1 / width)))  # fmt: skip
            expected.append(covers[np.ix_(rows, columns)].mean())
        boxes[entry["image"]] = of_image
        shares.append(mask.float().mean().item())
    assert all(abs(share - 0.5) > 0.002 for share in expected), "no box may be at the border of being covered"
    boxes_as_csv(tmp_path / "boxes.csv", boxes)
    boxes_as_xml(tmp_path / "xml", boxes, dataset)
    found = {}
    for kind in ("boxes.csv", "xml"):
        out = tmp_path / f"out_{kind}"
        settings = {"reference_boxes": str(tmp_path / kind)}
        found[kind] = evaluate(case, dataset, trained / "model.pt", out, **settings)["coverage"]
        assert (out / "figures" / "coverage.png").is_file() and "Coverage" in (out / "report.html").read_text()
    assert found["boxes.csv"] == found["xml"]
    coverage = found["xml"]
    assert (coverage["images"], coverage["boxes"]) == (5, 15)
    assert coverage["covered"] == sum(share >= 0.5 for share in expected)
    assert coverage["covered_share"] == pytest.approx(coverage["covered"] / 15)
    assert coverage["mask_share"] == pytest.approx(np.mean(shares))
    assert 0 <= coverage["random_share"] <= 1 and coverage["covered_from"] == 0.5
    assert any("3 of 8 images" in remark for remark in coverage["remarks"])


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"boxes/6.xml": voc("6.png", (48, 64), [(2, 2, 20, 20)])}, []),
        (
            {"boxes/6.xml": voc("6.png", (48, 64), [(2, 2, 60, 20)])},
            ["6.xml: box 1 (head)", "outside of the image of 48 x 64"],
        ),
        (
            {"boxes/0.xml": voc("0.png", (48, 64), [(2, 2, 20, 20)])},
            ["no box for any of the 2 images", "named like the images"],
        ),
        ({"boxes": "file,xmin,ymin,xmax,ymax\nlost.png,1,1,9,9\n"}, ["line 2", "'lost.png' is no image of the data"]),
        ({}, ["boxes", "no such folder"]),
    ],
)
def test_reference_boxes_are_checked_before_training(case, tmp_path, files, parts):
    place = tmp_path / "boxes"
    for name, content in files.items():
        place = tmp_path / "boxes.csv" if name == "boxes" else place
        path = place if name == "boxes" else tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    content = {"labels": ["flavus", "niger"]}
    rng = np.random.default_rng(2)
    for number, section in enumerate(["training"] * 4 + ["validation"] * 2 + ["test"] * 2):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((10 + number, 12, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        content.setdefault(section, []).append({"image": f"{number}.png", "label": number % 2})
    settings = small(case, write_list(tmp_path, content), tmp_path / "out", reference_boxes=str(place))
    run = workflow(case, **settings)
    if parts:
        says(refused(part, run, "opening"), *parts)
        assert not (tmp_path / "out").exists()
    else:
        assert part(run, "evaluation").boxes["6.png"][0].x1 == 20


# First weights, and the demo


def test_first_weights_of_other_backbones_stop_before_training(case, dataset, trained, tmp_path):
    settings = {"instance_backbone": "resnet34", "ckpt_path": str(trained / "model.pt")}
    error = refused(train_alone, case, dataset, tmp_path / "out", **settings)
    says(error, "ckpt_path", "model.pt does not fit", "both backbones")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_bundle_or_an_incomplete_description_are_not_served(case, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"bundle": "gated_attention", "classes": ["a"]}))
    (tmp_path / "model.pt").write_bytes(b"")
    run = workflow(case, "inference", ckpt_path=str(tmp_path / "model.pt"))
    says(refused(part, run, "network_def"), "model.json", "method", "window_box", "missing")


@pytest.mark.release
def test_in_the_demo_the_fusion_beats_the_global_branch(case, tmp_path):
    config = f"bundles/{case.name}/configs/train.json"
    done = command("training", "--config_file", config, "--output_dir", tmp_path / "out", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lambda stays 1" not in (tmp_path / "out" / "train.log").read_text()
    metrics = metrics_of(tmp_path / "out")
    fusion, alone = metrics["test"], metrics["test_global"]
    # The small copy shows colours only, which are right in 0.6 of the pictures.
    assert alone["acc"] < 0.75 and fusion["acc"] > alone["acc"] + 0.1
    assert fusion["auc"] > alone["auc"] + 0.1
    weights = [row["train_lambda"] for row in numbers_of(tmp_path / "out")]
    assert weights == pytest.approx([1 - 0.1 * epoch for epoch in range(10)])
