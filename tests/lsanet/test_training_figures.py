"""Figures of a training of LSANet: one valid PNG each, what is drawn is what the history has."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from lsanet import training_figures
from lsanet.layer_attention import LayerSelectiveAttention, largest_ratio

NODES = ["C1", "C2", "C3", "C4"]


def _history(num_epochs: int, val_interval: int = 1) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for epoch in range(1, num_epochs + 1):
        known = epoch % val_interval == 0
        row: dict[str, object] = {"epoch": epoch, "train_loss": 2 / epoch, "val_auc": 0.9 if known else math.nan}
        for position, node in enumerate(NODES):
            row |= {f"train_beta_{node}": 0.2 + 0.03 * position, f"train_beta_{node}_std": 0.02}
            row |= {
                f"val_beta_{node}": 0.25 if known else math.nan,
                f"val_beta_{node}_std": 0.01 if known else math.nan,
            }
            row[f"train_gate_{node}"] = 0.2 * position
        rows.append(row)
    return rows


def _metrics(chosen_epoch: int, lsa: str = "fc_r8") -> dict[str, object]:
    return {"chosen_epoch": chosen_epoch, "settings": {"lsa": lsa, "lsa_temperature": 1.0}}


@pytest.mark.parametrize("num_epochs, val_interval", [(1, 1), (3, 1), (20, 10)])
def test_draws_history_and_beta(tmp_path: Path, num_epochs: int, val_interval: int):
    history = _history(num_epochs, val_interval)
    drawn = training_figures.draw_training(tmp_path / "new", history=history, metrics=_metrics(num_epochs))
    assert [path.name for path in drawn] == ["history.png", "beta.png"]
    assert set(drawn) == set((tmp_path / "new").iterdir())
    for path in drawn:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) >= 200 and max(image.size) <= 2500


def test_draws_no_beta_of_a_method_without_it(tmp_path: Path):
    history = [{"epoch": epoch, "train_loss": 1.0, "val_auc": 0.5} for epoch in (1, 2)]
    assert list(training_figures.draw_training(tmp_path, history=history, metrics=_metrics(2))) == [
        tmp_path / "history.png"
    ]


@pytest.mark.parametrize("lsa", ["fc_r8", "gated"])
def test_beta_shows_nodes_and_reachable_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lsa: str):
    drawn = []
    monkeypatch.setattr(training_figures, "save_figure", lambda figure, path: drawn.append(figure))
    training_figures.draw_training(tmp_path, history=_history(3), metrics=_metrics(3, lsa))
    low, high = 1 / (1 + 3 * math.e), math.e / (math.e + 3)
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts[:4] == NODES and (f"reachable: {low:.3f} to {high:.3f}" in texts) == (lsa != "gated")
    assert len(drawn[0].axes) == 3
    assert drawn[0].axes[0].get_ylim() == drawn[0].axes[1].get_ylim()


def test_largest_ratio_is_that_of_open_and_closed_gates():
    for temperature in (1.0, 0.25):
        attention = LayerSelectiveAttention([4, 4], [1, 1], temperature=temperature)
        attention.embed = lambda gates: gates[:, :, None, None, None]
        attention.gate = torch.nn.Flatten()
        beta, _ = attention(torch.tensor([[1.0, 0.0]]))
        assert largest_ratio("fc_r8", temperature) == pytest.approx(float(beta[0, 0] / beta[0, 1]), rel=1e-5)
    assert largest_ratio("gated", 1.0) is None
