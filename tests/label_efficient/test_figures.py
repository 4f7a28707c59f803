"""Figures: each is one valid PNG, wrong input is refused, nothing else is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from label_efficient.report import figures, history_figures, pictures

BLOOD = [
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocytes (myelocytes, metamyelocytes and promyelocytes)",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
]
LOSSES = {"train_loss": "training", "train_branch_loss": "training, branches", "val_loss": "validation"}
METRICS = {"val_auc": "AUC", "val_acc": "accuracy"}


def _check(path: Path, smallest: int = 200) -> Image.Image:
    """The only file of its folder, a PNG that decodes and is not blank."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = image.convert("RGB")
    assert smallest <= min(pixels.size) and max(pixels.size) <= 2500
    assert np.asarray(pixels).std() > 5
    return pixels


def _predictions(num_classes: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.arange(count) % num_classes
    probabilities = rng.random((count, num_classes)) + 0.8 * (targets[:, None] == np.arange(num_classes))
    return targets, probabilities / probabilities.sum(axis=1, keepdims=True)


def _history(num_epochs: int, val_interval: int = 1) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for epoch in range(1, num_epochs + 1):
        row: dict[str, object] = {"epoch": epoch, "train_loss": 2 / epoch, "learning_rate": 1e-3 / epoch}
        row["train_branch_loss"] = 1.5 / epoch
        known = epoch % val_interval == 0
        rows.append(row | ({"val_loss": 1.0, "val_auc": 0.9} if known else {}))
    return rows


def _save_history(path: Path, history: list, best_epoch: int | None) -> None:
    history_figures.save_history(path, history=history, losses=LOSSES, metrics=METRICS, best_epoch=best_epoch)


@pytest.mark.parametrize("num_classes", [2, 8, 14])
def test_confusion_matrix(tmp_path: Path, num_classes: int):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30000, (num_classes, num_classes))
    counts[1] = 0  # a class without images
    figures.save_confusion_matrix(tmp_path / "a.png", counts=counts, classes=(2 * BLOOD)[:num_classes])
    _check(tmp_path / "a.png")


@pytest.mark.parametrize("num_classes", [2, 3, 8])
def test_roc(tmp_path: Path, num_classes: int):
    targets, probabilities = _predictions(num_classes)
    path = tmp_path / "a.png"
    figures.save_roc(path, targets=targets, probabilities=probabilities, classes=BLOOD[:num_classes])
    _check(path)


def _legend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **arguments) -> list[str]:
    """Texts of the legend of a ROC figure."""
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.save_roc(tmp_path / "a.png", **arguments)
    return [text.get_text().replace("\n", " ") for text in drawn[0].axes[0].get_legend().get_texts()]


def test_roc_says_which_classes_are_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, probabilities = _predictions(3)
    one_hot = np.stack([np.arange(60) % 2, np.zeros(60), np.ones(60)], axis=1)
    classes = ["half", "never", "always"]
    texts = _legend(monkeypatch, tmp_path, targets=one_hot, probabilities=probabilities, classes=classes)
    assert texts[2:] == ["never: no images, no curve", "always: all images, no curve"]
    assert texts[1].startswith("half: 0.")


def test_roc_of_two_classes_is_the_second_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    targets = np.array([0, 0, 1, 1])
    positive = np.array([0.1, 0.6, 0.4, 0.9])  # three of four pairs in order
    probabilities = np.stack([1 - positive, positive], axis=1)
    classes = ["normal", "_pneumonia"]  # matplotlib drops labels with a leading underscore
    texts = _legend(monkeypatch, tmp_path, targets=targets, probabilities=probabilities, classes=classes)
    assert [text.strip() for text in texts] == ["chance", "_pneumonia: 0.750"]


@pytest.mark.parametrize("calibrated", [False, True])
def test_reliability(tmp_path: Path, calibrated: bool):
    confidence = np.linspace(0, 1, 50)
    correct = np.arange(50) % 3 > 0
    after = confidence**2 if calibrated else None
    figures.save_reliability(tmp_path / "a.png", confidence=confidence, correct=correct, confidence_calibrated=after)
    _check(tmp_path / "a.png")


def test_reliability_reports_the_calibration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    correct = np.array([True, True, False, False, True, True])
    figures.save_reliability(tmp_path / "a.png", confidence=confidence, correct=correct)
    expected = (4 * abs(0.5 - 0.9) + 2 * abs(1.0 - 0.6)) / 6
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert texts[1] == f"as trained: ECE {expected:.3f}"


@pytest.mark.parametrize("num_epochs, val_interval", [(1, 1), (3, 1), (20, 10)])
def test_history(tmp_path: Path, num_epochs: int, val_interval: int):
    _save_history(tmp_path / "new" / "a.png", _history(num_epochs, val_interval), num_epochs)  # makes the folder
    _check(tmp_path / "new" / "a.png")


@pytest.mark.parametrize("best_epoch", [None, 1])
def test_history_without_validation(tmp_path: Path, best_epoch: int | None):
    _save_history(tmp_path / "a.png", [{"epoch": epoch, "train_loss": 1.0} for epoch in range(3)], best_epoch)
    _check(tmp_path / "a.png")


def test_history_marks_the_first_metric_that_has_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    drawn = []
    monkeypatch.setattr(history_figures, "save_figure", lambda figure, path: drawn.append(figure))
    history = [{"epoch": 1, "train_loss": 1.0, "val_acc": 0.25}, {"epoch": 2, "train_loss": 0.01, "val_acc": 0.75}]
    _save_history(tmp_path / "a.png", history, 2)
    losses, validation = drawn[0].axes
    assert losses.get_yscale() == "log"
    texts = [text.get_text() for text in validation.get_legend().get_texts()]
    assert texts == ["accuracy", "chosen epoch 2: accuracy 0.750"]


def test_contact_sheet(tmp_path: Path):
    sizes = [(28, 28), (64, 96), (300, 40), (7, 5), (1000, 1500), (28, 28), (64, 64)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    captions = ["", "short", "a $x$ and $y$\nsecond line", "word " * 20, "x" * 90, "_a", "<script>"]
    pictures.save_contact_sheet(tmp_path / "a.png", images=images, captions=captions)
    _check(tmp_path / "a.png")


def test_contact_sheet_enlarges_without_blur(tmp_path: Path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2, ::2] = (255, 0, 0)
    image[1::2, 1::2] = (0, 0, 255)
    pictures.save_contact_sheet(tmp_path / "a.png", images=[image], captions=[""])
    colours = {colour for _, colour in _check(tmp_path / "a.png").getcolors(100000)}
    assert colours == {(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)}


def test_overlay(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    heat = np.zeros((4, 6))
    assert np.array_equal(pictures.overlay(image, heat), image)
    heat[:, 5] = 1.0
    blended = pictures.overlay(image, heat)
    assert blended.shape == image.shape and blended.dtype == np.uint8
    assert np.array_equal(blended[:, :20], image[:, :20])  # far from the heat
    assert not np.array_equal(blended[:, 55:], image[:, 55:])
    pictures.save_overlay(tmp_path / "a.png", image=image, heat=heat)
    assert np.array_equal(np.asarray(_check(tmp_path / "a.png", smallest=40)), blended)


def test_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _save_history(path, _history(2), 1)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_no_pyplot_and_quick_import():
    code = (
        "import sys, numpy as np\n"
        "from label_efficient.report import drawing as _drawing, figures, history_figures, pictures as _pictures\n"
        "assert 'matplotlib' not in sys.modules and 'sklearn' not in sys.modules\n"
        "_pictures.overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)))\n"
        "_drawing.new_figure(1, 1).savefig(sys.stdout.buffer)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    folder = Path(figures.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
