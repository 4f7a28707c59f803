"""Whole runs of the lsanet bundle: what they leave, resuming, evaluating again, predicting."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "lsanet" / "configs"
LEFT = """model.pt model.json checkpoint.pt history.csv metrics.json predictions.csv config.json tensorboard figures
report.html train.log""".split()


def _npz(path: Path, classes: int = 3, per_class: int = 12, seed: int = 0, multi_label: bool = False) -> Path:
    """A file of MedMNIST layout whose classes are levels of grey, hard enough not to be perfect."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.repeat(np.arange(classes), per_class)
        rng.shuffle(labels)
        noise = rng.normal(0, 25, (len(labels), 28, 28, 3))
        if multi_label:
            labels = rng.integers(0, 2, (len(labels), classes))
            level = 60 + 60 * labels[:, :1]
        else:
            level = 60 + 40 * labels[:, None]
        images = noise + level[:, :, None, None]
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels if multi_label else labels[:, None]
    np.savez(path, **arrays)
    return path


def _train(output_dir: Path, dataset: Path, **settings) -> dict:
    values = {"dataset": str(dataset), "output_dir": str(output_dir), "image_size": 28, "max_epochs": 2}
    values |= {"batch_size": 8, **settings}
    workflow = create_workflow(config_file=str(CONFIGS / "train.json"), workflow_type="train", **values)
    workflow.run()
    workflow.finalize()
    return json.loads((output_dir / "metrics.json").read_text())


def _cause(workflow) -> str:
    """Message of what MONAI wraps when an expression of a config fails."""
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    _train(folder / "out", _npz(folder / "cells.npz"), calibrate=True)
    return folder


def test_a_run_leaves_everything_and_no_temporary_files(run_folder):
    out = run_folder / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted([*LEFT, "calibration.json"])
    assert {p.name for p in (out / "figures").iterdir()} == {
        "history.png", "beta.png", "confusion_matrix.png", "roc.png", "reliability.png"
    }  # fmt: skip
    assert "data:image/png" in (out / "report.html").read_text()
    history = _rows(out / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert sum(float(history[0][f"train_beta_C{i}"]) for i in (1, 2, 3, 4)) == pytest.approx(1)
    parts = float(history[0]["train_branch_loss"]) + float(history[0]["train_synergy_loss"])
    assert float(history[0]["train_loss"]) == pytest.approx(parts, rel=1e-5)


def test_figures_are_those_of_medmnists_evaluator_on_the_predictions(run_folder):
    from medmnist.evaluator import getACC, getAUC

    rows = _rows(run_folder / "out" / "predictions.csv")
    metrics = json.loads((run_folder / "out" / "metrics.json").read_text())
    names = [name for name in rows[0] if name.startswith("p_")]
    scores = np.array([[float(row[n]) for n in names] for row in rows])
    labels = np.array([names.index("p_" + row["label"]) for row in rows])
    assert metrics["test"]["acc"] == pytest.approx(getACC(labels, scores, "multi-class"))
    assert metrics["test"]["auc"] == pytest.approx(getAUC(labels, scores, "multi-class"), abs=1e-4)
    assert [row["pred"] for row in rows] == [names[i][2:] for i in scores.argmax(1)]
    assert all(0 <= float(row["uncertainty"]) <= 1 and row["error"] == "" for row in rows)


def test_weights_are_a_plain_state_dict_of_the_backbone(run_folder):
    weights = torch.load(run_folder / "out" / "model.pt", weights_only=True)
    assert "conv1.weight" in weights and "fc.weight" in weights
    assert not [k for k in weights if k.startswith(("heads", "lsa", "backbone"))]


def test_evaluating_again_gives_the_same_figures(run_folder):
    before = json.loads((run_folder / "out" / "metrics.json").read_text())
    workflow = create_workflow(
        config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")],
        workflow_type="train",
        dataset=str(run_folder / "cells.npz"),
        output_dir=str(run_folder / "again"),
        ckpt_path=str(run_folder / "out" / "model.pt"),
        image_size=28,
    )
    workflow.run()
    after = json.loads((run_folder / "again" / "metrics.json").read_text())
    assert after["test"] == before["test"] and after["temperature"] == before["temperature"] != 1


def test_prediction_of_files_equals_the_evaluation_and_a_bad_file_costs_its_row(run_folder):
    images = run_folder / "images"
    images.mkdir()
    with np.load(run_folder / "cells.npz") as arrays:
        for index in range(4):
            Image.fromarray(arrays["test_images"][index]).save(images / f"{index}.png")
    (images / "5.png").write_bytes(b"not a picture")
    (images / "6.nii.gz").write_bytes(b"")
    workflow = create_workflow(
        config_file=str(CONFIGS / "inference.json"),
        workflow_type="infer",
        dataset_dir=str(images),
        ckpt_path=str(run_folder / "out" / "model.pt"),
        output_dir=str(run_folder / "predicted"),
        saliency=True,
        num_workers=0,
    )
    workflow.run()
    found = _rows(run_folder / "predicted" / "predictions.csv")
    expected = _rows(run_folder / "out" / "predictions.csv")[:4]
    assert [row["file"] for row in found] == ["0.png", "1.png", "2.png", "3.png", "5.png", "6.nii.gz"]
    for ours, theirs in zip(found[:4], expected, strict=True):
        assert ours["pred"] == theirs["pred"]
        assert float(ours["p_class 0"]) == pytest.approx(float(theirs["p_class 0"]), abs=2e-6)
    assert all("5.png" in found[4][k] for k in ("file", "error")) and found[4]["pred"] == found[4]["p_class 0"] == ""
    overlays = run_folder / "predicted" / "saliency"
    assert sorted(p.name for p in overlays.iterdir()) == [f"{i}.png.png" for i in range(4)]
    assert (run_folder / "predicted" / "figures" / "least_certain.png").is_file()


def test_all_files_bad_is_an_error_after_the_table(run_folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    workflow = create_workflow(
        config_file=str(CONFIGS / "inference.json"), workflow_type="infer", dataset_dir=str(tmp_path / "in"),
        ckpt_path=str(run_folder / "out" / "model.pt"), output_dir=str(tmp_path / "out"), num_workers=0,
    )  # fmt: skip
    assert "none of the 1 files" in _cause(workflow)
    assert _rows(tmp_path / "out" / "predictions.csv")[0]["error"]


def test_inference_without_a_folder_says_what_is_missing(run_folder, tmp_path):
    workflow = create_workflow(
        config_file=str(CONFIGS / "inference.json"), workflow_type="infer",
        ckpt_path=str(run_folder / "out" / "model.pt"), output_dir=str(tmp_path),
    )  # fmt: skip
    assert "no images: give --dataset_dir FOLDER" in _cause(workflow)


def test_weights_without_their_description_are_refused(run_folder, tmp_path):
    (tmp_path / "model.pt").write_bytes((run_folder / "out" / "model.pt").read_bytes())
    workflow = create_workflow(
        config_file=str(CONFIGS / "inference.json"), workflow_type="infer", ckpt_path=str(tmp_path / "model.pt")
    )
    assert "model.json: no such file" in _cause(workflow)


def test_evaluation_with_other_classes_is_refused(run_folder, tmp_path):
    workflow = create_workflow(
        config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")], workflow_type="train",
        dataset=str(_npz(tmp_path / "four.npz", classes=4)), output_dir=str(tmp_path / "out"), image_size=28,
        ckpt_path=str(run_folder / "out" / "model.pt"),
    )  # fmt: skip
    assert "classes was" in _cause(workflow)


@pytest.mark.parametrize("multi_label", [False, True])
def test_all_nodes_can_be_kept(tmp_path, multi_label):
    metrics = _train(tmp_path / "out", _npz(tmp_path / "c.npz", multi_label=multi_label), keep_nodes=True, max_epochs=1)
    assert 0 <= metrics["test"]["auc"] <= 1
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert any(k.startswith("lsa.") for k in weights) and any(k.startswith("heads.") for k in weights)
    uncertainty = [float(row["uncertainty"]) for row in _rows(tmp_path / "out" / "predictions.csv")]
    assert len(set(uncertainty)) > 1 and all(0 <= u <= 1 for u in uncertainty)


def test_binary_task_gives_an_operating_point_chosen_on_validation(tmp_path):
    metrics = _train(tmp_path / "out", _npz(tmp_path / "c.npz", classes=2), max_epochs=1, target_specificity=0.9)
    point = metrics["operating_point"]
    assert metrics["task"] == "binary-class"
    assert point["validation"]["specificity"] >= 0.9 and set(point["test"]) == {"sensitivity", "specificity"}


@pytest.mark.parametrize("method", ["baseline", "dsn", "dks", "dsn_ks", "dsn_lsa"])
def test_every_method_trains(tmp_path, method):
    metrics = _train(tmp_path / "out", _npz(tmp_path / "c.npz"), method=method, max_epochs=1)
    assert metrics["settings"]["method"] == method and metrics["chosen_epoch"] == 1


def test_label_budget_uncached_lists_and_early_stopping(tmp_path):
    folder = tmp_path / "list"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,class,split"]
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for index in range(count):
            name = f"{split}{index}.png"
            size = (30 + index, 40)
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
            lines.append(f"{name},{'ab'[index % 2]},{split}")
    (folder / "images.csv").write_text("\n".join(lines))
    metrics = _train(
        tmp_path / "out", folder, labels_per_class=4, cache=False, num_workers=0, max_epochs=40, learning_rate=1e-12,
        early_stop_patience=2,
    )  # fmt: skip
    assert metrics["data"]["unlabelled"] == 4
    history = _rows(tmp_path / "out" / "history.csv")
    assert len(history) < 40
    assert len(history) == metrics["chosen_epoch"] + 2


def test_resuming_with_another_setting_is_refused(run_folder):
    with pytest.raises(RuntimeError) as caught:
        _train(run_folder / "out", run_folder / "cells.npz", resume=True, learning_rate=0.01, calibrate=True)
    assert "learning_rate was 0.001 and is 0.01" in str(caught.value.__cause__)


def test_killed_at_any_moment_and_resumed_ends_bit_identical(tmp_path):
    data = _npz(tmp_path / "c.npz", per_class=40)
    settings = {"max_epochs": 6, "augment": "light", "lr_schedule": "cosine"}
    _train(tmp_path / "whole", data, **settings)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "train.json")]
    values = {**settings, "dataset": data, "output_dir": tmp_path / "cut", "image_size": 28, "batch_size": 8}
    command += [text for name, value in values.items() for text in (f"--{name}", str(value))]
    # Killed while the third epoch or its checkpoint is under way: nobody chose the moment.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = tmp_path / "cut" / "history.csv"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (history.is_file() and len(history.read_text().splitlines()) >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    torch.rand(7)
    _train(tmp_path / "cut", data, resume=True, **settings)
    for name in ("model.pt", "history.csv", "predictions.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    last = [torch.load(tmp_path / d / "checkpoint.pt", weights_only=True)["model"] for d in ("cut", "whole")]
    assert all(torch.equal(a, b) for a, b in zip(last[0].values(), last[1].values(), strict=True))


def test_a_second_run_of_the_same_seed_is_the_same_and_replaces_the_first(tmp_path):
    data = _npz(tmp_path / "c.npz")
    _train(tmp_path / "a", data)
    first = (tmp_path / "a" / "history.csv").read_bytes()
    _train(tmp_path / "a", data)
    assert (tmp_path / "a" / "history.csv").read_bytes() == first
    _train(tmp_path / "b", data, seed=1)
    assert (tmp_path / "b" / "history.csv").read_bytes() != first


@pytest.mark.slow
def test_two_processes_give_one_run(tmp_path):
    data = _npz(tmp_path / "c.npz", per_class=15)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617"]
    command += ["-m", "monai.bundle", "run", "--config_file"]
    command += [f"['{CONFIGS / 'train.json'}','{CONFIGS / 'multi_gpu_train.json'}']"]
    command += ["--dataset", str(data), "--output_dir", str(tmp_path / "out"), "--image_size", "28"]
    command += ["--max_epochs", "2", "--batch_size", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    assert len(_rows(tmp_path / "out" / "predictions.csv")) == 45
    assert len(_rows(tmp_path / "out" / "history.csv")) == 2


def test_real_retina_images_train_and_evaluate(tmp_path, real_data):
    metrics = _train(
        tmp_path / "out", real_data / "medmnist" / "retinamnist.npz", max_epochs=1, batch_size=64, labels_per_class=40
    )
    assert metrics["task"] == "ordinal-regression" and -1 <= metrics["test"]["quadratic_kappa"] <= 1
    assert metrics["test"]["n"] == 400


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg16"])
def test_class_activation_is_the_classifiers_weighted_feature_map(name):
    from label_efficient.networks.backbones import build_backbone
    from lsanet.inference import class_activation

    torch.manual_seed(0)
    network = build_backbone(name, 3).eval()
    image, targets = torch.randn(3, 3, 192, 192), torch.tensor([2, 0, 2])
    heat = class_activation(network, image, targets)
    # With global pooling and a linear classifier Grad-CAM at C4 is, up to a factor, relu(w_class . features).
    features = network.forward_nodes(image)[-1].detach()
    weight = (network.class_layers.out if name == "densenet121" else network.fc).weight.detach()[targets]
    expected = torch.relu(torch.einsum("bchw,bc->bhw", features, weight))[:, None]
    expected = torch.nn.functional.interpolate(expected, (192, 192), mode="bilinear", align_corners=False)[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12)
    assert heat.shape == (3, 192, 192) and heat.min() >= 0 and heat.max() <= 1
    torch.testing.assert_close(heat, expected, atol=1e-4, rtol=0)


def test_class_activation_of_small_images_is_taken_where_there_are_positions():
    from label_efficient.networks.backbones import build_backbone
    from lsanet.inference import class_activation

    network = build_backbone("resnet18", 3)
    heat = class_activation(network, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    # The 8 x 8 map of C2 varies within a quarter of the image, which the 2 x 2 map of C4 cannot.
    assert heat[:, :16, :16].std() > 0 and heat.amax() <= 1


def test_resuming_with_other_data_or_a_longer_falling_rate_is_refused(tmp_path):
    settings = {"max_epochs": 1, "lr_schedule": "cosine"}
    _train(tmp_path / "out", _npz(tmp_path / "c.npz"), **settings)
    _npz(tmp_path / "c.npz", seed=1)
    for change, message in (({}, "the data have changed"), ({"max_epochs": 2}, "max_epochs was 1 and is 2")):
        with pytest.raises(RuntimeError) as caught:
            _train(tmp_path / "out", tmp_path / "c.npz", resume=True, **{**settings, **change})
        assert message in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "baseline", "keep_nodes": True}, "keep_nodes=True needs an output node beside C4"),
        ({"target_specificity": 1.0}, "target_specificity=1.0: expected a number between 0 and 1"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(tmp_path, settings, message):
    with pytest.raises(RuntimeError) as caught:
        _train(tmp_path / "out", _npz(tmp_path / "c.npz"), **settings)
    assert message in str(caught.value.__cause__)
    assert not (tmp_path / "out").exists()
