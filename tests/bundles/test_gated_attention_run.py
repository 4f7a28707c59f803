"""Whole runs of the gated attention bundle: what they leave, resuming, evaluating again, attentions, processes."""

import csv
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from PIL import Image
from sklearn.metrics import roc_auc_score

from gated_attention.attention import ATTENTIONS
from gated_attention.handlers import FusionInferer
from gated_attention.settings import _ONLY_WITH_FUSION
from gated_attention.shipped import ShippedGatedAttention
from label_efficient.settings import SettingsError

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "gated_attention"
TRAIN, EVALUATE, MULTI_GPU = (str(BUNDLE / "configs" / f"{n}.json") for n in ("train", "evaluate", "multi_gpu_train"))
LEFT = """model.pt model.json checkpoint.pt history.csv metrics.json predictions.csv config.json tensorboard figures
report.html train.log""".split()
CLASSES = ["dark", "middle", "light"]
SECTIONS = {"training": 12, "validation": 9, "test": 8}
# At 64 pixels the attention has 2 x 2 positions: at 32 it would have one, and no instance but the whole image.
TINY = {
    "image_size": 64, "instance_size": 32, "instance_backbone": "resnet18", "num_instances": 2, "window_box": 0.5,
    "lambda_step": 0.4, "lambda_every": 1, "max_epochs": 2, "batch_size": 4, "learning_rate": 0.01, "num_workers": 1,
    "device": "cpu",
}  # fmt: skip
NETWORK = """method attention global_backbone instance_backbone num_instances instance_size threshold min_box max_box
window_box pooling image_size mean std""".split()
TRAINED = {
    "epoch", "learning_rate", "train_loss", "train_global_loss", "val_loss", "val_global_loss", "val_auc", "val_acc",
    "val_global_auc", "val_global_acc",
}  # fmt: skip
FUSED = {"train_lambda", "train_fusion_loss", "val_fusion_loss"}


def make_list(folder: Path, *, same_size: bool = False) -> Path:
    """A list of colour pictures of three classes (levels of grey under noise), no two of one size unless asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    content: dict[str, Any] = {"labels": CLASSES}
    number = 0
    for section, count in SECTIONS.items():
        content[section] = []
        for place in range(count):
            height, width = (48, 48) if same_size else (40 + number % 9, 56 - number % 7)
            blocks = rng.normal(90 + 35 * (place % 3), 45, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            name = f"{section}/{number}.png"
            (folder / section).mkdir(exist_ok=True)
            Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(folder / name)
            content[section].append({"image": name, "label": place % 3})
            number += 1
    (folder / "cells.json").write_text(json.dumps(content))
    return folder / "cells.json"


def settings_of(settings: dict[str, Any]) -> dict[str, Any]:
    left_out = _ONLY_WITH_FUSION if settings.get("method") == "global" else []
    return {name: value for name, value in TINY.items() if name not in left_out} | settings


def workflow_of(dataset: Path | str, output_dir: Path | str, config: Any = TRAIN, **settings: Any) -> Any:
    values = {"dataset": str(dataset), "output_dir": str(output_dir), **settings_of(settings)}
    return create_workflow(config_file=config, workflow_type="train", **values)


def train(dataset: Path | str, output_dir: Path, **settings: Any) -> dict[str, Any]:
    """A whole run; returns its figures."""
    workflow = workflow_of(dataset, output_dir, **settings)
    workflow.run()
    workflow.finalize()
    return metrics_of(output_dir)


def evaluate(dataset: Path | str, weights: Path, output_dir: Path, **settings: Any) -> dict[str, Any]:
    """Evaluation of the weights of a run; returns its figures."""
    workflow_of(dataset, output_dir, [TRAIN, EVALUATE], ckpt_path=str(weights / "model.pt"), **settings).run()
    return metrics_of(output_dir)


def train_alone(dataset: Path | str, output_dir: Path, stop_at: int | None = None, **settings: Any) -> Any:
    """Training without the evaluation after it, broken off at a step if wanted; returns the trainer."""
    trainer = workflow_of(dataset, output_dir, **settings).parser.get_parsed_content("train::trainer")
    if stop_at is not None:

        def stop(engine: Any) -> None:
            raise KeyboardInterrupt

        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), stop)
    trainer.run()
    return trainer


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(folder: Path) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items() if v} for row in rows_of(folder / "history.csv")]


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def weights_of(folder: Path, name: str = "model.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def picture(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def shipped(folder: Path) -> ShippedGatedAttention:
    """The network of a run, built from what stands beside its weights."""
    info = json.loads((folder / "model.json").read_text())
    network = ShippedGatedAttention(num_classes=len(info["classes"]), **{name: info[name] for name in NETWORK})
    network.load_state_dict(weights_of(folder))
    return network.eval()


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _small_remains(tmp_path: Path) -> Iterator[None]:
    """Pytest keeps the folders of three sessions, and two ResNets with their momentum are 300 MB a run."""
    yield
    gc.collect()  # a config refers to itself, and so do its networks
    for path in tmp_path.rglob("*.pt"):
        path.unlink()


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    return make_list(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def run_folder(cells, tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run") / "out"
    train(cells, folder, calibrate=True)
    yield folder
    for path in folder.glob("*.pt"):
        path.unlink()


def test_a_run_leaves_everything_and_no_temporary_files(run_folder):
    assert sorted(p.name for p in run_folder.iterdir()) == sorted([*LEFT, "calibration.json"])
    assert {p.name for p in (run_folder / "figures").iterdir()} == {
        "history.png", "lambda.png", "confusion_matrix.png", "roc.png", "reliability.png", "attention.png"
    }  # fmt: skip
    assert any("tfevents" in p.name for p in (run_folder / "tensorboard").iterdir())
    report, log = ((run_folder / name).read_text() for name in ("report.html", "train.log"))
    assert "data:image/png" in report and "Fusion and global branch" in report and "Where the network looks" in report
    assert "Synthetic" not in report and "SYNTHETIC" not in log and "fusion and global branch" in log
    info = json.loads((run_folder / "model.json").read_text())
    assert info["bundle"] == "gated_attention" and info["classes"] == CLASSES
    assert {name: info[name] for name in TINY if name in NETWORK} == {n: TINY[n] for n in TINY if n in NETWORK}
    recorded = json.loads((run_folder / "config.json").read_text())["settings"]
    assert recorded == metrics_of(run_folder)["settings"] and recorded["lambda_step"] == 0.4


def test_history_has_lambda_and_the_losses_of_both_outputs(run_folder):
    rows = numbers_of(run_folder)
    assert [row["epoch"] for row in rows] == [1, 2] and [row["train_lambda"] for row in rows] == [1, 0.6]
    assert set(rows[0]) == TRAINED | FUSED - {"train_fusion_loss"}
    assert set(rows[1]) == TRAINED | FUSED
    assert rows[0]["train_loss"] == pytest.approx(rows[0]["train_global_loss"], rel=1e-6)
    for part in ("train", "val"):
        weighed = 0.6 * rows[1][f"{part}_global_loss"] + 0.4 * rows[1][f"{part}_fusion_loss"]
        assert rows[1][f"{part}_loss"] == pytest.approx(weighed, rel=1e-5)
    metrics = metrics_of(run_folder)
    best = rows[metrics["chosen_epoch"] - 1]
    assert best["val_auc"] == max(row["val_auc"] for row in rows)
    # What was validated in the epoch is what the weights say afterwards; calibration leaves order and decision alone.
    for name in ("auc", "acc"):
        assert metrics["validation"][name] == pytest.approx(best[f"val_{name}"], abs=1e-6)
        assert metrics["validation_global"][name] == pytest.approx(best[f"val_global_{name}"], abs=1e-6)
    assert metrics["validation_global"]["nll"] == pytest.approx(best["val_global_loss"], rel=1e-4)


def test_predictions_are_those_of_the_weights_on_the_files(run_folder, cells):
    rows = rows_of(run_folder / "predictions.csv")
    metrics = metrics_of(run_folder)
    temperature = json.loads((run_folder / "calibration.json").read_text())["temperature"]
    assert metrics["temperature"] == temperature != 1
    assert list(rows[0]) == ["file", "label", "pred", *[f"p_{name}" for name in CLASSES], "uncertainty", "error"]
    network, entries = shipped(run_folder), json.loads(cells.read_text())["test"]
    assert [row["file"] for row in rows] == [entry["image"] for entry in entries]
    right_globally, probabilities = [], []
    for row, entry in zip(rows, entries, strict=True):
        with torch.no_grad():
            found = network.look([picture(cells.parent / entry["image"])], True)
        p = torch.softmax(found["logits"][0] / temperature, dim=0).numpy()
        np.testing.assert_allclose([float(row[f"p_{name}"]) for name in CLASSES], p, atol=1e-5)
        assert row["pred"] == CLASSES[int(p.argmax())] and row["label"] == CLASSES[entry["label"]]
        assert float(row["uncertainty"]) == pytest.approx(-(p * np.log(p)).sum() / np.log(3), abs=1e-5)
        right_globally.append(int(found["global_logits"].argmax()) == entry["label"])
        probabilities.append(p)
    right = [row["pred"] == row["label"] for row in rows]
    assert metrics["test"]["acc"] == pytest.approx(np.mean(right))
    assert metrics["test_global"]["acc"] == pytest.approx(np.mean(right_globally))
    labels = [entry["label"] for entry in entries]
    auc = roc_auc_score(labels, np.stack(probabilities), multi_class="ovr", average="macro")
    assert metrics["test"]["auc"] == pytest.approx(auc, abs=1e-6)


def test_evaluating_again_gives_the_same_figures(run_folder, cells, tmp_path):
    before = metrics_of(run_folder)
    after = evaluate(cells, run_folder, tmp_path)
    names = [n for n in before if n.startswith(("validation", "test"))]
    assert {"validation", "test", "validation_global", "test_global", "test_global_confusion"} <= set(names)
    for name in (*names, "temperature", "chosen_epoch", "weights_sha256", "data"):
        assert after[name] == before[name], name
    assert (tmp_path / "predictions.csv").read_bytes() == (run_folder / "predictions.csv").read_bytes()
    assert (tmp_path / "evaluate.log").is_file() and not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"average_decay": 0.5, "augment": "strong"},
        {"lr_schedule": "one_cycle", "cache": False},
        {"method": "global", "lr_step": 1},
    ],
    ids=["average", "one_cycle-read_again", "global"],
)
def test_broken_off_and_resumed_ends_bit_identical(cells, tmp_path, settings):
    settings = {"max_epochs": 3, **settings}
    train_alone(cells, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train_alone(cells, tmp_path / "cut", stop_at=5, **settings)  # in the middle of the second epoch
    assert len(rows_of(tmp_path / "cut" / "history.csv")) == 1
    torch.rand(7)
    np.random.rand(7)
    train_alone(cells, tmp_path / "cut", resume=True, **settings)
    for name in ("history.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert same(weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole"))
    cut, whole = (weights_of(tmp_path / name, "checkpoint.pt") for name in ("cut", "whole"))
    assert same(cut["model"], whole["model"]) and all(cut[name] == whole[name] for name in ("best", "history"))
    if "average_decay" in settings:
        assert same(cut["average"], whole["average"]) and not same(whole["model"], weights_of(tmp_path / "whole"))


def test_lambda_goes_on_as_the_schedule_says_where_a_longer_run_continues_a_shorter_one(cells, tmp_path):
    settings = {"lambda_start": 0.9, "lambda_step": 0.4, "lambda_every": 2, "lambda_floor": 0.2}
    train_alone(cells, tmp_path, max_epochs=3, **settings)
    assert [row["train_lambda"] for row in numbers_of(tmp_path)] == [0.9, 0.9, 0.5]
    train_alone(cells, tmp_path, max_epochs=5, resume=True, **settings)
    rows = numbers_of(tmp_path)
    assert [row["train_lambda"] for row in rows] == [0.9, 0.9, 0.5, 0.5, 0.2]
    for row in rows:
        weighed = row["train_lambda"] * row["train_global_loss"] + (1 - row["train_lambda"]) * row["train_fusion_loss"]
        assert row["train_loss"] == pytest.approx(weighed, rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"lambda_every": 2}, {"lambda_step": 0.3}, {"lambda_start": 0.8}, {"lambda_floor": 0.1}, {"attention": "se"}],
    ids=lambda change: "-".join(change),
)
def test_resuming_with_another_schedule_or_network_is_refused(cells, run_folder, change):
    before = {p: p.read_bytes() for p in run_folder.iterdir() if p.is_file() and p.suffix != ".pt"}
    ((name, value),) = change.items()
    with pytest.raises(SettingsError, match=f"{name} was .* and is {value!r}"):
        train_alone(cells, run_folder, resume=True, calibrate=True, **change)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_reference_boxes_and_calibration_may_come_later_in_a_resumed_run(cells, tmp_path):
    train_alone(cells, tmp_path / "out", max_epochs=1, lambda_start=0.5)
    (tmp_path / "boxes.csv").write_text("file,xmin,ymin,xmax,ymax\ntest/21.png,0,0,9,9\n")
    boxes = str(tmp_path / "boxes.csv")
    settings = {"lambda_start": 0.5, "resume": True, "calibrate": True, "reference_boxes": boxes}
    metrics = train(cells, tmp_path / "out", **settings)
    assert metrics["coverage"]["boxes"] == 1 and len(numbers_of(tmp_path / "out")) == 2


def test_while_lambda_is_1_the_fusion_stays_as_it_was(cells, tmp_path, caplog):
    # The bundle's logging.conf would take pytest's handler off the root logger.
    parser = workflow_of(cells, tmp_path, max_epochs=1, logging_file=False).parser
    trainer, network = (parser.get_parsed_content(name) for name in ("train::trainer", "network_def"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        trainer.run()
    assert "lambda stays 1 in all 1 epochs" in caplog.text and "Give max_epochs above 1" in caplog.text
    unchanged = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    fusion = {name for name in before if name.startswith(("instance_branch.", "fusion_head."))}
    assert fusion and unchanged >= fusion
    assert not unchanged & {"global_head.weight", "global_branch.conv1.weight", "attention.blocks.0.0.weight"}
    caplog.clear()
    train_alone(cells, tmp_path / "more", max_epochs=2, logging_file=False)
    assert "lambda stays 1" not in caplog.text


def test_not_looking_at_the_instances_while_lambda_is_1_changes_no_other_weight(cells, tmp_path, monkeypatch):
    train_alone(cells, tmp_path / "without", max_epochs=1)
    calls = []

    def look_always(self: Any, inputs: Any, network: Any) -> Any:
        calls.append(self.loss is not None)
        return network(inputs, fuse=True)

    monkeypatch.setattr(FusionInferer, "__call__", look_always)
    train_alone(cells, tmp_path / "with", max_epochs=1)
    assert calls.count(True) == 3
    one, other = (weights_of(tmp_path / name, "checkpoint.pt")["model"] for name in ("without", "with"))
    for name in one:
        if not name.startswith(("instance_branch.", "fusion_head.")):
            assert torch.equal(one[name], other[name]), name


def test_the_global_branch_alone(cells, tmp_path):
    metrics = train(cells, tmp_path / "out", method="global")
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
    again = evaluate(cells, tmp_path / "out", tmp_path / "again", method="global")
    assert again["test"] == metrics["test"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_trains_with_fusion(cells, tmp_path, attention):
    parser = workflow_of(cells, tmp_path, attention=attention, max_epochs=1, lambda_start=0.5).parser
    trainer, network = (parser.get_parsed_content(name) for name in ("train::trainer", "network_def"))
    before = {name: value.clone() for name, value in network.named_parameters()}
    trainer.run()
    still = [name for name, value in network.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    row = numbers_of(tmp_path)[0]
    assert np.isfinite(row["train_global_loss"]) and np.isfinite(row["train_fusion_loss"])
    assert json.loads((tmp_path / "model.json").read_text())["attention"] == attention
    assert bool([name for name in weights_of(tmp_path) if name.startswith("attention.")]) == (attention != "channel")


def test_images_of_several_sizes_are_one_batch(cells, run_folder, tmp_path):
    loader = workflow_of(cells, tmp_path).parser.get_parsed_content("train::dataloader")
    batch = next(iter(loader))
    assert len({image.shape for image in batch["image"]}) == len(batch["label"]) == 4
    images = [picture(cells.parent / f"test/{n}.png") for n in (21, 22, 23)]
    images += [images[0][:, :5, :9], images[0].repeat(1, 1, 7)]  # smaller than a crop, and a strip
    network = shipped(run_folder)
    with torch.no_grad():
        together = network.look(images, True)
        for place, image in enumerate(images):
            for name, value in network.look([image], True).items():
                torch.testing.assert_close(together[name][place], value[0], rtol=1e-4, atol=1e-4)
        # A batch in one tensor is the same as its images in a list.
        torch.testing.assert_close(network(images[0][None]), together["logits"][:1], rtol=1e-4, atol=1e-4)


def test_files_of_many_kinds_and_sizes_train_together(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["file,class,split"]
    for i in range(27):
        grey = rng.integers(0, 256, (30 + i, 60 - i)).astype(np.uint8)
        grey.flat[:2] = 0, 255  # files of 16 bits are shown from their darkest to their brightest value
        name, image = [
            (f"{i}.png", Image.fromarray(grey)),
            (f"{i}.jpg", Image.fromarray(np.stack([grey] * 3, axis=2))),
            (f"{i}.tif", Image.fromarray(grey.astype(np.uint16) * 256)),
            (f"{i}.bmp", Image.fromarray(np.stack([grey, 255 - grey, grey], axis=2))),
        ][i % 4]
        image.save(tmp_path / name)
        lines.append(f"{name},{CLASSES[i % 3]},{('train', 'train', 'val')[i // 9] if i < 24 else 'test'}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    metrics = train(tmp_path, tmp_path / "out", max_epochs=1, lambda_start=0.5)
    assert metrics["test"]["n"] == 3 and metrics["data"]["classes"] == sorted(CLASSES)
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["24.png", "25.jpg", "26.tif"]


@pytest.mark.parametrize("same_size", [False, True], ids=["sizes", "one_size"])
def test_images_read_again_train_as_those_kept_in_memory(tmp_path, same_size):
    cells = make_list(tmp_path / "cells", same_size=same_size)
    train_alone(cells, tmp_path / "kept")
    train_alone(cells, tmp_path / "read", cache=False)
    history = [(tmp_path / name / "history.csv").read_bytes() for name in ("kept", "read")]
    assert history[0] == history[1]
    assert same(weights_of(tmp_path / "kept"), weights_of(tmp_path / "read"))


def boxes_as_csv(path: Path, boxes: dict[str, list[tuple[int, int, int, int]]]) -> None:
    lines = [f"{file},{','.join(map(str, box))},cell" for file, of_file in boxes.items() for box in of_file]
    path.write_text("\n".join(["file,xmin,ymin,xmax,ymax,name", *lines]))


def boxes_as_xml(folder: Path, boxes: dict[str, list[tuple[int, int, int, int]]], cells: Path) -> None:
    """Pascal VOC counts pixels from 1, and a box includes its last."""
    for file, of_file in boxes.items():
        _, height, width = picture(cells.parent / file).shape
        objects = "".join(
            f"<object><name>cell</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1 in of_file
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        path = folder / Path(file).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation><filename>{Path(file).name}</filename>{size}{objects}</annotation>")


def test_reference_boxes_give_the_share_that_the_attention_covers(cells, run_folder, tmp_path):
    network, boxes, shares, expected = shipped(run_folder), {}, [], []
    for entry in json.loads(cells.read_text())["test"][:5]:
        image = picture(cells.parent / entry["image"])
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
    boxes_as_xml(tmp_path / "xml", boxes, cells)
    found = {}
    for kind in ("boxes.csv", "xml"):
        out = tmp_path / f"out_{kind}"
        found[kind] = evaluate(cells, run_folder, out, reference_boxes=str(tmp_path / kind))["coverage"]
        assert (out / "figures" / "coverage.png").is_file() and "Coverage" in (out / "report.html").read_text()
    assert found["boxes.csv"] == found["xml"]
    coverage = found["xml"]
    assert (coverage["images"], coverage["boxes"]) == (5, 15)
    assert coverage["covered"] == sum(share >= 0.5 for share in expected)
    assert coverage["covered_share"] == pytest.approx(coverage["covered"] / 15)
    assert coverage["mask_share"] == pytest.approx(np.mean(shares))
    assert 0 <= coverage["random_share"] <= 1 and coverage["covered_from"] == 0.5
    assert any("3 of 8 images" in remark for remark in coverage["remarks"])


def test_labels_beyond_the_budget_are_left_out(cells, tmp_path):
    few, more, whole = (
        workflow_of(cells, tmp_path, labels_per_class=n).parser.get_parsed_content("data") for n in (2, 3, None)
    )
    files = [set(data.splits["train"].files) for data in (few, more, whole)]
    assert files[0] < files[1] < files[2] and [len(part) for part in files] == [6, 9, 12]
    assert np.bincount(few.splits["train"].labels).tolist() == [2, 2, 2] and few.unlabelled == 6
    assert few.splits["val"].files == whole.splits["val"].files
    metrics = train(cells, tmp_path / "out", label_fraction=0.5, max_epochs=1, lambda_start=0.5)
    assert metrics["data"]["unlabelled"] == 6
    assert "6 training images are left without a label" in (tmp_path / "out" / "train.log").read_text()


def test_class_weights_are_those_of_the_setting_in_both_losses(cells, tmp_path):
    content = json.loads(cells.read_text())
    content["training"] = [e for e in content["training"] if e["label"] != 2] + [
        e for e in content["training"] if e["label"] == 2
    ][:2]
    (tmp_path / "list.json").write_text(json.dumps(content))
    settings = {"dataset_dir": str(cells.parent)}
    parser = workflow_of(tmp_path / "list.json", tmp_path, class_weights="balanced", **settings).parser
    loss = parser.get_parsed_content("loss_def")
    expected = torch.tensor([10 / 12, 10 / 12, 10 / 6])
    torch.testing.assert_close(loss.class_weights, expected)
    logits = {"global_logits": torch.randn(5, 3), "logits": torch.randn(5, 3)}
    targets, loss.lambda_ = torch.tensor([0, 1, 2, 2, 1]), 0.3
    terms = [torch.log_softmax(logits[name], dim=1)[range(5), targets] for name in ("global_logits", "logits")]
    weights = expected[targets]
    means = [-(term * weights).sum() / weights.sum() for term in terms]
    torch.testing.assert_close(loss(logits, targets), 0.3 * means[0] + 0.7 * means[1])


def outcome_of(cells: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    """Losses and weights of a training, in memory alone: a checkpoint takes longer than an epoch."""
    workflow = workflow_of(cells, folder, **{"lambda_start": 0.7, "max_epochs": 1, **settings})
    kept = ("LambdaDecay", "MovingAverage", "LossTerms", "LrScheduleHandler")
    handlers = workflow.parser["train::handlers"]
    workflow.parser["train::handlers"] = [h for h in handlers if h["_target_"].endswith(kept)]
    workflow.initialize()
    trainer, network, average = (
        workflow.parser.get_parsed_content(name) for name in ("train::trainer", "network_def", "average")
    )
    metrics: list[dict[str, float]] = []

    def keep(engine: Any) -> None:
        metrics.append({k: v for k, v in engine.state.metrics.items() if k != "images_per_second"})

    trainer.add_event_handler(Events.EPOCH_COMPLETED, keep)
    trainer.run()
    assert len(metrics) == trainer.state.max_epochs and not folder.joinpath("checkpoint.pt").exists()
    return {"metrics": metrics, "weights": (average or network).state_dict()}


@pytest.fixture(scope="module")
def references(cells, tmp_path_factory) -> dict[int, dict[str, Any]]:
    """Weights and losses of one epoch and of two, to compare runs with other settings with."""
    return {n: outcome_of(cells, tmp_path_factory.mktemp("reference"), max_epochs=n) for n in (1, 2)}


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "se"}, {"num_instances": 1}, {"instance_size": 64}, {"threshold": 0.05},
        {"max_box": 0.5}, {"window_box": 0.2}, {"pooling": "attention"}, {"lambda_start": 0.9}, {"image_size": 96},
        {"mean": [0.4, 0.5, 0.5]}, {"std": [0.5, 0.5, 0.3]}, {"augment": "none"}, {"augment": "strong"},
        {"batch_size": 6}, {"learning_rate": 0.02}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"average_decay": 0.5},
        {"label_smoothing": 0.1}, {"class_weights": [1, 3, 1]}, {"seed": 1}, {"amp": True}, {"labels_per_class": 3},
        {"label_fraction": 0.75},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_every_setting_has_an_effect(cells, references, tmp_path, change):
    assert not same(outcome_of(cells, tmp_path, **change)["weights"], references[1]["weights"])


@pytest.mark.parametrize(
    "change",
    [
        {"lambda_step": 0.2}, {"lambda_every": 2}, {"lambda_floor": 0.5}, {"lr_schedule": "one_cycle"}, {"lr_step": 1},
        {"lr_step": 1, "lr_factor": 0.5},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_every_schedule_has_an_effect_from_the_second_epoch(cells, references, tmp_path, change):
    outcome = outcome_of(cells, tmp_path, max_epochs=2, **change)
    assert not same(outcome["weights"], references[2]["weights"])
    if "lr_schedule" not in change:
        assert outcome["metrics"][0] == references[2]["metrics"][0] == references[1]["metrics"][0]


def test_the_least_side_of_a_box_has_an_effect_on_small_components(cells, tmp_path):
    small, large = (outcome_of(cells, tmp_path, threshold=0.95, min_box=share) for share in (0.1, 0.5))
    assert not same(small["weights"], large["weights"])


def test_a_second_run_of_the_same_seed_is_the_same(cells, references, tmp_path):
    outcome = outcome_of(cells, tmp_path)
    assert outcome["metrics"] == references[1]["metrics"] and same(outcome["weights"], references[1]["weights"])


def test_first_weights_are_those_of_the_path(cells, run_folder, tmp_path):
    parser = workflow_of(cells, tmp_path, ckpt_path=str(run_folder / "model.pt")).parser
    assert same(parser.get_parsed_content("initialised").state_dict(), weights_of(run_folder))


def test_early_stopping_and_validation_now_and_then(cells, tmp_path):
    settings = {"max_epochs": 40, "learning_rate": 1e-12, "early_stop_patience": 2, "val_interval": 2}
    train_alone(cells, tmp_path, method="global", **settings)
    history = rows_of(tmp_path / "history.csv")
    info = json.loads((tmp_path / "model.json").read_text())
    assert [bool(row["val_auc"]) for row in history] == [int(row["epoch"]) % 2 == 0 for row in history]
    assert len(history) == info["best_epoch"] + 4 < 40


def test_released_weights_are_not_touched_and_nothing_is_written_elsewhere(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in cells.parent.rglob("*"))
    released = sorted((p, p.stat().st_mtime_ns) for p in BUNDLE.glob("models/*"))
    train_alone(cells, tmp_path / "out", method="global", max_epochs=1)
    assert sorted((p, p.stat().st_mtime_ns) for p in cells.parent.rglob("*")) == before
    assert sorted((p, p.stat().st_mtime_ns) for p in BUNDLE.glob("models/*")) == released
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_demo_from_the_root_of_the_repository_and_its_fusion_beats_the_global_branch(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", "bundles/gated_attention/configs/train.json", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(LEFT)
    log = (tmp_path / "out" / "train.log").read_text()
    for text in (done.stdout, log):
        assert "SYNTHETIC DEMO DATA" in text and "inference.json --ckpt_path" in text
    assert "Synthetic demo data" in (tmp_path / "out" / "report.html").read_text()
    assert "lambda stays 1" not in log
    metrics = metrics_of(tmp_path / "out")
    fusion, alone = metrics["test"], metrics["test_global"]
    # The small copy shows colours only, which are right in 0.6 of the pictures.
    assert alone["acc"] < 0.75 and fusion["acc"] > alone["acc"] + 0.1
    assert fusion["auc"] > alone["auc"] + 0.1
    weights = [row["train_lambda"] for row in numbers_of(tmp_path / "out")]
    assert weights == pytest.approx([1 - 0.1 * epoch for epoch in range(10)])


@pytest.mark.slow
def test_a_copy_of_the_folder_alone_runs_from_another_directory(cells, tmp_path):
    copy = tmp_path / "elsewhere" / "gated_attention"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (tmp_path / "cwd").mkdir()
    settings = settings_of({"dataset": str(cells), "method": "global", "max_epochs": 1})
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(copy / "configs" / "train.json")]
    command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    env = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path / "cwd", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (copy / "runs" / "cells-global").iterdir()) == sorted(LEFT)
    assert list((tmp_path / "cwd").iterdir()) == []


WORKER = """
import sys
import torch
import torch.distributed as dist
from monai.bundle import create_workflow

sys.path.insert(0, {bundle!r})
workflow = create_workflow(config_file={config!r}, workflow_type="train", **{settings!r})
part_of = workflow.parser.get_parsed_content
part_of("opening").show()
part_of("train::trainer").run()
# Of the batch statistics only those that are validated and shipped are exchanged.
trained, evaluated = part_of("network_def"), part_of("evaluated")
for name, tensors in (("trained", trained.parameters()), ("evaluated", evaluated.state_dict().values())):
    mine = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    all_of_them = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    assert len(all_of_them) == 2 and torch.equal(*all_of_them), name
gathered = [None, None]
dist.all_gather_object(gathered, (part_of("loss").lambda_, next(iter(part_of("train::dataloader").sampler))))
(first, drawn), (second, others) = gathered
assert first == second == {last}, gathered
assert not set(drawn) & set(others), gathered
print("EQUAL WEIGHTS", dist.get_rank(), flush=True)
part_of("evaluation").run()
workflow.finalize()
"""


@pytest.mark.slow
@pytest.mark.parametrize("average_decay", [0.0, 0.5])
def test_two_processes_give_one_run(cells, tmp_path, average_decay):
    # Of 9 validation images one process has two batches of 4, the other one: they must not wait for each other.
    settings = {"dataset": str(cells), "output_dir": str(tmp_path / "out"), **TINY}
    del settings["device"]
    settings |= {"average_decay": average_decay, "lambda_every": 2, "max_epochs": 4}
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(bundle=str(BUNDLE), config=[TRAIN, MULTI_GPU], settings=settings, last=0.6))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = environment() | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, str(script)], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("EQUAL WEIGHTS") == 2 and "2 processes" in done.stdout
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(rows) == len({row["file"] for row in rows}) == SECTIONS["test"]
    history, metrics = numbers_of(tmp_path / "out"), metrics_of(tmp_path / "out")
    assert [row["train_lambda"] for row in history] == [1, 1, 0.6, 0.6]
    assert [("train_fusion_loss" in row) for row in history] == [False, False, True, True]
    # The two validated the weights that one of them ships, each on its share of the images.
    best = history[metrics["chosen_epoch"] - 1]
    assert metrics["validation"]["nll"] == pytest.approx(best["val_fusion_loss"], rel=1e-4)
    assert metrics["validation"]["auc"] == pytest.approx(best["val_auc"], abs=1e-6)
