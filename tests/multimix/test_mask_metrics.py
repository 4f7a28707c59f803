"""Figures of masks, against MONAI's metrics and cases with a known answer."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import (
    SSIMMetric,
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    get_confusion_matrix,
)
from PIL import Image

from multimix.mask_metrics import FIGURES, lung_areas, mask_scores, summarise


def _box(top: int, bottom: int, left: int, right: int, shape: tuple[int, int] = (40, 40)) -> np.ndarray:
    """Rows top to bottom - 1, columns left to right - 1."""
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def _random_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [(11, 11), (13, 24), (30, 17)]
    noise = [(rng.random(size) < 0.3, rng.random(size) < 0.6) for size in sizes]
    blobs = [(_box(0, 9, 3, 14, (20, 26)), _box(4, 20, 1, 26, (20, 26))), (_box(39, 40, 39, 40), _box(0, 1, 0, 1))]
    return noise + blobs


def _monai_distances(p: torch.Tensor, r: torch.Tensor, **spacing: Any) -> tuple[Any, Any]:
    settings = {"include_background": True, **spacing}
    directed = [compute_average_surface_distance(a, b, **settings).item() for a, b in ((p, r), (r, p))]
    hd95 = compute_hausdorff_distance(p, r, percentile=95, **settings).item()
    return pytest.approx(np.mean(directed), abs=1e-4), pytest.approx(hd95, abs=1e-4)


def test_scores_are_those_of_monai(real_data: Path):
    files = sorted((real_data / "chest_xray" / "shenzhen_256" / "masks").glob("*.png"))[::140]
    masks = [np.asarray(Image.open(file)) > 127 for file in files]
    for predicted, reference in [*_random_pairs(), *itertools.pairwise(masks)]:
        p, r = (torch.from_numpy(mask)[None, None].float() for mask in (predicted, reference))
        scores, counts = mask_scores(predicted, reference, (0.7, 0.2)), get_confusion_matrix(p, r)
        assert scores["dice"] == pytest.approx(compute_dice(p, r).item(), abs=1e-6)
        assert scores["jaccard"] == pytest.approx(compute_iou(p, r).item(), abs=1e-6)
        for name in ("precision", "recall"):
            assert scores[name] == pytest.approx(compute_confusion_matrix_metric(name, counts).item(), abs=1e-6)
        assert scores["ssim"] == pytest.approx(SSIMMetric(spatial_dims=2)(p, r).item(), abs=1e-5)
        assert (scores["average_hausdorff"], scores["hd95"]) == _monai_distances(p, r)
        assert (scores["average_hausdorff_mm"], scores["hd95_mm"]) == _monai_distances(p, r, spacing=(0.7, 0.2))
        areas = [predicted.sum(), reference.sum()]
        assert [scores["area_px"], scores["reference_area_px"]] == areas
        assert [scores["area_mm2"], scores["reference_area_mm2"]] == pytest.approx([0.14 * a for a in areas])
        assert scores["area_difference"] == pytest.approx(areas[0] / areas[1] - 1) and scores["empty_prediction"] == 0


def test_a_square_shifted_along_a_row():
    reference, predicted = _box(10, 20, 10, 20), _box(10, 20, 13, 23)
    scores = mask_scores(predicted, reference, (0.5, 2.0))
    assert scores["dice"] == pytest.approx(0.7) and scores["jaccard"] == pytest.approx(70 / 130)
    assert scores["precision"] == scores["recall"] == pytest.approx(0.7) and scores["area_difference"] == 0
    assert scores["hd95"] == pytest.approx(3)  # the far column of each square
    assert scores["hd95_mm"] == pytest.approx(6)  # three columns of 2 mm
    assert (scores["area_mm2"], scores["reference_area_mm2"]) == (100, 100)


def test_distances_of_lines_follow_the_axis_of_the_spacing():
    first, second = _box(10, 11, 0, 40), _box(14, 15, 0, 40)
    along_rows = mask_scores(first, second, (0.25, 3.0))
    assert along_rows["average_hausdorff"] == along_rows["hd95"] == 4
    assert along_rows["average_hausdorff_mm"] == along_rows["hd95_mm"] == 1
    along_columns = mask_scores(first.T.copy(), second.T.copy(), (0.25, 3.0))
    assert along_columns["average_hausdorff_mm"] == along_columns["hd95_mm"] == 12


def test_average_hausdorff_weighs_both_directions_alike():
    reference = _box(10, 11, 0, 40)
    predicted = reference | _box(20, 21, 20, 21)  # one stray pixel among 41, ten rows off
    assert mask_scores(predicted, reference)["average_hausdorff"] == pytest.approx((10 / 41 + 0) / 2)
    assert mask_scores(predicted, reference)["average_hausdorff"] != pytest.approx(10 / 81)  # pooled, as in ASSD


def test_a_perfect_prediction():
    scores = mask_scores(_box(0, 12, 5, 30), _box(0, 12, 5, 30))
    assert [scores[k] for k in ("dice", "jaccard", "precision", "recall")] == [1] * 4
    assert scores["ssim"] == pytest.approx(1) and scores["hd95"] == scores["average_hausdorff"] == 0
    assert not set(scores) & {"hd95_mm", "average_hausdorff_mm", "area_mm2", "reference_area_mm2"}


def test_an_empty_prediction_is_flagged():
    scores = mask_scores(np.zeros((40, 40), bool), _box(5, 9, 5, 9), (1, 1))
    assert [scores[k] for k in ("dice", "jaccard", "recall", "area_px", "empty_prediction")] == [0, 0, 0, 0, 1]
    undefined = {name for name, value in scores.items() if math.isnan(value)}
    assert undefined == {"precision", "average_hausdorff", "hd95", "average_hausdorff_mm", "hd95_mm"}
    assert 0 < scores["ssim"] < 1


def test_summary():
    reference = _box(10, 20, 10, 20)
    empty = np.zeros((40, 40), bool)
    rows = [mask_scores(m, reference) for m in (reference, _box(10, 20, 12, 22), _box(10, 20, 10, 15), empty)]
    rows = [row | {"file": "a.png"} for row in rows]
    summary = summarise(rows)
    dice = [1, 0.8, 2 / 3, 0]
    assert summary["dice"] == pytest.approx(sum(dice) / 4)
    spread = math.sqrt(sum((value - sum(dice) / 4) ** 2 for value in dice) / 3)
    assert summary["dice_sd"] == pytest.approx(spread)
    assert summary["dice_median"] == pytest.approx((0.8 + 2 / 3) / 2)
    hd95 = [row["hd95"] for row in rows[:3]]
    assert summary["hd95"] == pytest.approx(sum(hd95) / 3) and summary["hd95_median"] == sorted(hd95)[1]
    assert summary["precision"] == pytest.approx((1 + 0.8 + 1) / 3)
    assert (summary["n"], summary["num_empty_predictions"], summary["num_undefined_distances"]) == (4, 1, 1)
    assert "hd95_mm" not in summary and "num_with_spacing" not in summary and "file" not in summary


def test_summary_of_images_of_which_some_have_a_spacing():
    reference = _box(10, 11, 0, 40)
    rows = [mask_scores(_box(12, 13, 0, 40), reference), mask_scores(_box(14, 15, 0, 40), reference, (0.5, 1))]
    summary = summarise(rows)
    assert (summary["hd95"], summary["hd95_mm"], summary["num_with_spacing"], summary["n"]) == (3, 2, 1, 2)
    assert math.isnan(summary["hd95_mm_sd"])
    assert {*FIGURES} <= {*summary}


@pytest.mark.filterwarnings("error")
def test_summary_of_nothing_but_empty_predictions():
    summary = summarise([mask_scores(np.zeros((40, 40), bool), _box(5, 9, 5, 9))] * 2)
    assert summary["dice"] == 0 and summary["dice_sd"] == 0
    assert all(math.isnan(summary[key]) for key in ("hd95", "hd95_sd", "hd95_median", "precision"))
    assert summary["num_undefined_distances"] == summary["num_empty_predictions"] == 2


RIGHT, LEFT = _box(5, 35, 4, 16), _box(5, 25, 24, 36)  # 360 pixels at the image's left, 240 at its right


@pytest.mark.parametrize(
    "mask, right, split",
    [
        (RIGHT | LEFT, 0.6, "components"),
        (RIGHT | LEFT | _box(30, 34, 24, 34), 360 / 640, "components"),  # a lung in two pieces
        (RIGHT | LEFT | _box(15, 16, 16, 24), (360 + 4) / 608, "midline"),  # joined by a bridge
        (RIGHT | LEFT | _box(15, 16, 16, 24) | _box(0, 1, 39, 40), 364 / 609, "midline"),  # and a fragment beside
        (RIGHT, 1, "one lung"),
        (LEFT, 0, "one lung"),
        (RIGHT | _box(0, 2, 38, 40), 1, "one lung"),  # 4 of 364 pixels at the other side
        (_box(5, 15, 4, 16) | _box(20, 35, 4, 16), 1, "one lung"),  # one lung in two pieces, the other missing
        (_box(5, 35, 8, 21), 1, "one lung"),  # overhangs the middle by one column of 13
        (_box(5, 35, 2, 37), 0.5, "midline"),  # an odd number of columns: the middle one is halved
        (_box(5, 20, 4, 20) | _box(20, 35, 20, 36), 0.5, "midline"),  # joined at a corner
        (np.zeros((40, 40), bool), 0, "none"),
    ],
)
def test_lung_areas(mask: np.ndarray, right: float, split: str):
    areas = lung_areas(mask, (0.5, 0.2))
    assert areas["right_fraction"] == pytest.approx(right) and areas["split"] == split
    assert areas["left_fraction"] == pytest.approx(1 - right if mask.any() else 0)
    assert areas["lung_area_px"] == mask.sum() and areas["lung_area_mm2"] == pytest.approx(0.1 * mask.sum())
    assert "lung_area_mm2" not in lung_areas(mask)
    mirrored = lung_areas(mask[:, ::-1])
    assert mirrored["left_fraction"] == pytest.approx(areas["right_fraction"]) and mirrored["split"] == split


def test_lung_areas_of_noise():
    areas = lung_areas(np.indices((40, 40)).sum(axis=0) % 5 == 0)
    dots = lung_areas((np.indices((60, 60)) % 4 == 0).all(axis=0))  # no part as large as 2 %
    assert areas["split"] == dots["split"] == "midline"
    assert areas["right_fraction"] == pytest.approx(0.5, abs=0.02)
    assert dots["right_fraction"] == pytest.approx(0.5, abs=0.04)


def test_lung_areas_of_real_masks_find_the_side(real_data: Path):
    files = sorted((real_data / "chest_xray" / "jsrt_224" / "masks").glob("*.png"))[::10]
    for file in files:
        lungs = np.asarray(Image.open(file))
        areas = lung_areas(np.isin(lungs, (150, 200)))
        assert areas["split"] == "components"
        assert areas["right_fraction"] == pytest.approx((lungs == 150).sum() / areas["lung_area_px"], abs=1e-3)
