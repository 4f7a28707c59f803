"""What the lsanet bundle alone does: files of MedMNIST layout, ensembles of nodes, tasks of every kind, its methods."""

import json

import numpy as np
import pytest
import torch
from bundle_cases import metrics_of, part, refused, rows_of, says, small, train, train_alone, weights_of, workflow
from PIL import Image

SIX = np.arange(6)
SPLITS = ("train", "val", "test")
pytestmark = pytest.mark.parametrize("case", ["lsanet"], indirect=True)


def npz(path, **changes):
    """Six images of two classes a split; a change of None leaves an array out."""
    arrays, rng = {}, np.random.default_rng(0)
    for split in SPLITS:
        images = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_labels": SIX % 2}
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"val_labels": None, "test_images": None}, ["val_labels is missing", "test_images is missing", "layout"]),
        ({"train_images": np.zeros((6, 8, 8))}, ["train_images is float64 (6, 8, 8)", "expected uint8"]),
        ({"val_images": np.zeros((6, 8, 8, 4), np.uint8)}, ["val_images is uint8 (6, 8, 8, 4)"]),
        ({"val_images": np.zeros((6, 0, 8), np.uint8)}, ["val_images has the shape (6, 0, 8)"]),
        ({"train_images": np.uint8(3)}, ["train_images is uint8 ()"]),
        ({"train_labels": SIX % 2 - 1}, ["train_labels has -1", "0 or more"]),
        ({"train_labels": SIX[:5] % 2}, ["train has 6 images and 5 labels"]),
        ({"train_labels": SIX / 2}, ["train_labels is float64", "whole numbers"]),
        ({"train_labels": np.zeros((6, 0), int)}, ["train_labels is int64 (6, 0)"]),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": SIX[:0]}, ["test is empty"]),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, ["images differ in shape", "(9, 9)"]),
        ({"test_labels": SIX.reshape(3, 2)}, ["test has 6 images and 3 labels"]),
        ({"test_labels": np.ones((6, 2), int)}, ["labels differ in shape"]),
        ({f"{s}_labels": np.full((6, 3), 2) for s in SPLITS}, ["several columns", "value 2"]),
        ({"classes": np.array(["only"])}, ["classes has 1 names", "labels need 2"]),
        ({"classes": np.array(["a", "a"])}, ["classes has a name twice: a, a"]),
        ({f"{s}_labels": SIX * 0 for s in SPLITS}, ["only the class 'class 0'", "needs two"]),
        (
            {"train_labels": SIX % 2 * 2, "val_labels": SIX % 2},
            ["'class 2' has no image in val", "'class 1'", "tools/"],
        ),
        ({"val_labels": SIX * 0}, ["class 'class 1' has no image in val"]),
        ({"test_labels": SIX + 10**9}, ["labels go up to 1000000005"]),
        ({"train_images": np.array([{}] * 6)}, ["not readable as .npz"]),
    ],
)
def test_arrays(case, tmp_path, changes, parts):
    path = npz(tmp_path / "cells.npz", **changes)
    error = refused(lambda: part(workflow(case, dataset=str(path)), "data"))
    assert isinstance(error, ValueError)
    says(error, "cells.npz", *parts)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "npy", "empty"])
def test_file_that_is_no_npz(case, tmp_path, damage):
    path = npz(tmp_path / "cells.npz")
    content = bytearray(path.read_bytes())
    content[300] ^= 255  # among the pixels
    np.save(tmp_path / "a.npy", np.zeros(3))
    changed = {"truncated": content[: len(content) // 2], "flipped": content, "text": b"hello", "empty": b""}
    path.write_bytes(changed.get(damage, (tmp_path / "a.npy").read_bytes()))
    says(refused(lambda: part(workflow(case, dataset=str(path)), "data")), "cells.npz: not readable as .npz")


def test_the_weights_of_the_layers_are_shares_and_the_backbone_alone_is_shipped(case, trained):
    for row in rows_of(trained / "history.csv"):
        assert sum(float(row[f"train_beta_C{i}"]) for i in (1, 2, 3, 4)) == pytest.approx(1)
    weights = weights_of(trained)
    assert "conv1.weight" in weights and "fc.weight" in weights
    assert not [k for k in weights if k.startswith(("heads", "lsa", "backbone"))]


def test_figures_are_those_of_medmnists_evaluator_on_the_predictions(case, trained):
    from medmnist.evaluator import getACC, getAUC

    rows, test = rows_of(trained / "predictions.csv"), metrics_of(trained)["test"]
    scores = np.array([[float(row[f"p_{name}"]) for name in case.classes] for row in rows])
    labels = np.array([case.classes.index(row["label"]) for row in rows])
    assert test["acc"] == pytest.approx(getACC(labels, scores, "multi-class"))
    assert test["auc"] == pytest.approx(getAUC(labels, scores, "multi-class"), abs=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_all_nodes_can_be_kept(case, tmp_path, multi_label):
    data = case.data(tmp_path, multi_label=multi_label)
    metrics = train(case, data, tmp_path / "out", keep_nodes=True, max_epochs=1)
    assert 0 <= metrics["test"]["auc"] <= 1
    weights = weights_of(tmp_path / "out")
    assert any(k.startswith("lsa.") for k in weights) and any(k.startswith("heads.") for k in weights)
    uncertainty = [float(row["uncertainty"]) for row in rows_of(tmp_path / "out" / "predictions.csv")]
    assert len(set(uncertainty)) > 1 and all(0 <= u <= 1 for u in uncertainty)


def test_binary_task_gives_an_operating_point_chosen_on_validation(case, tmp_path):
    data = case.data(tmp_path, classes=2, per_class=12)
    metrics = train(case, data, tmp_path / "out", max_epochs=1, target_specificity=0.9)
    point = metrics["operating_point"]
    assert metrics["task"] == "binary-class"
    assert point["validation"]["specificity"] >= 0.9 and set(point["test"]) == set(
        "sensitivity specificity precision acc".split()
    )


@pytest.mark.parametrize("method", ["baseline", "dsn", "dks", "dsn_ks", "dsn_lsa"])
def test_every_method_trains(case, dataset, tmp_path, method):
    metrics = train(case, dataset, tmp_path, method=method, max_epochs=1)
    assert metrics["settings"]["method"] == method and metrics["chosen_epoch"] == 1


def test_label_budget_of_images_that_are_not_kept_in_memory(case, tmp_path):
    rng = np.random.default_rng(0)
    lines = ["file,class,split"]
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for index in range(count):
            pixels = rng.integers(0, 255, (30 + index, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}{index}.png")
            lines.append(f"{split}{index}.png,{'ab'[index % 2]},{split}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    settings = {"labels_per_class": 4, "cache": False, "max_epochs": 1}
    metrics = train(case, tmp_path, tmp_path / "out", **settings)
    assert metrics["data"]["unlabelled"] == 4
    train_alone(case, tmp_path, tmp_path / "kept", **settings | {"cache": True})
    assert (tmp_path / "kept" / "history.csv").read_bytes() == (tmp_path / "out" / "history.csv").read_bytes()


def test_real_retina_images_train_and_evaluate(case, tmp_path, real_data):
    data = real_data / "medmnist" / "retinamnist.npz"
    metrics = train(case, data, tmp_path, max_epochs=1, batch_size=64, labels_per_class=40)
    assert metrics["task"] == "ordinal-regression" and -1 <= metrics["test"]["quadratic_kappa"] <= 1
    assert metrics["test"]["n"] == 400


def test_a_cosine_falls_over_the_epochs(case, dataset, tmp_path):
    train_alone(case, dataset, tmp_path, lr_schedule="cosine")
    assert [float(row["learning_rate"]) for row in rows_of(tmp_path / "history.csv")] == pytest.approx([1e-3, 5e-4])
    assert json.loads((tmp_path / "model.json").read_text())["classes"] == case.classes


def test_weights_go_on_from_a_checkpoint_of_another_size_of_image(case, dataset, trained, tmp_path):
    run = workflow(case, **small(case, dataset, tmp_path, image_size=32, ckpt_path=str(trained / "model.pt")))
    released = weights_of(trained)
    loaded = part(run, "initialised").state_dict()
    name = next(name for name in loaded if name.endswith("layer4.1.conv2.weight"))
    assert torch.equal(loaded[name], released["layer4.1.conv2.weight"])
