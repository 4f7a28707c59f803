"""Figures of a training of MultiMix: what is drawn is what the history has, wrong input is refused."""

import csv
import math
from pathlib import Path

import pytest
from PIL import Image

from label_efficient.engine.history import read_history
from multimix import training_figures


def _history(num_epochs: int) -> list[dict[str, object]]:
    return [
        {
            "epoch": epoch,
            "train_pseudo_label_share": epoch / 100,
            "train_pseudo_label_accuracy": 0.8 if epoch % 2 else math.nan,
            "train_pseudo_label_loss": 0.5 / epoch,
            "train_kl_loss": 0.001 * epoch,
        }
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that would have been written."""
    figures: list = []
    monkeypatch.setattr(training_figures, "save_figure", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("num_epochs", [1, 5, 100])
def test_draws_history_and_pseudo_labels(tmp_path: Path, num_epochs: int):
    history = _history(num_epochs)
    drawn = training_figures.draw_training(tmp_path, history=history, metrics={"chosen_epoch": num_epochs})
    assert [path.name for path in drawn] == ["history.png", "pseudo_labels.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) >= 200 and max(image.size) <= 2500


def test_pseudo_labels_draw_the_values_there_are(tmp_path: Path, drawn: list):
    history = _history(4)
    training_figures.save_pseudo_labels(Path("a.png"), history=history)
    curves = {line.get_label(): line.get_xydata().tolist() for axes in drawn[0].axes for line in axes.lines}
    assert curves["images above the threshold"] == [[1, 0.01], [2, 0.02], [3, 0.03], [4, 0.04]]
    assert curves["of these, labelled right"] == [[1, 0.8], [3, 0.8]]  # NaN rows are left out, not drawn as 0
    assert len(curves) == 4 and drawn[0].axes[1].get_yscale() == "log"

    table = tmp_path / "history.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows({k: "" if math.isnan(v) else v for k, v in row.items()} for row in history)
    training_figures.save_pseudo_labels(Path("a.png"), history=read_history(table))
    again = {line.get_label(): line.get_xydata().tolist() for axes in drawn[1].axes for line in axes.lines}
    assert again == curves


@pytest.mark.parametrize("kept, panels", [("share", 1), ("kl", 1), ("loss", 1), ("pseudo", 2)])
def test_pseudo_labels_leave_out_what_is_absent(drawn: list, kept: str, panels: int):
    history = [{k: v for k, v in row.items() if k == "epoch" or kept in k} for row in _history(3)]
    training_figures.save_pseudo_labels(Path("a.png"), history=history)
    assert len(drawn[0].axes) == panels
    assert all(axes.lines for axes in drawn[0].axes)
