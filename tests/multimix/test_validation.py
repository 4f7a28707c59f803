"""Figures of an epoch on validation, and the schedules of the learning rate, against formulas and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from multimix.losses import UNKNOWN
from multimix.streams import UNKNOWN_MASK
from multimix.validation import SCORES, PrepareBatch, ValidationScore, predictions_and_targets


def outputs(count=24, num_classes=2, seed=0, both=True):
    """Predictions and truth; a third of the images without a class, a third without a mask."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, count)
    logits = rng.normal(size=(count, num_classes)) + 1.2 * np.eye(num_classes)[label]
    mask = (rng.random((count, 1, 6, 8)) < rng.random((count, 1, 1, 1))).astype(np.uint8)
    mask_logits = rng.normal(size=mask.shape) + 2 * mask - 1
    if both:
        label[::3] = UNKNOWN
        mask[1::3] = UNKNOWN_MASK
    pred = {"logits": torch.tensor(logits).float(), "mask_logits": torch.tensor(mask_logits).float()}
    return pred, torch.tensor(label), torch.tensor(mask)


def score_of(name, pred, label, mask, batches=1):
    metric = ValidationScore(score=name)
    for rows in np.array_split(np.arange(len(label)), batches):
        part = {key: value[rows] for key, value in pred.items()}
        metric(*predictions_and_targets({"pred": part, "label": {"label": label[rows], "mask": mask[rows]}}))
    value = metric.aggregate()
    assert value.dtype == torch.float64 and value.ndim == 0
    return float(value)


def expected_scores(pred, label, mask):
    known = (label != UNKNOWN).numpy()
    probabilities = torch.softmax(pred["logits"].double(), 1).numpy()[known]
    truth, guess = label.numpy()[known], probabilities.argmax(1)
    dice = []
    for logits, reference in zip(pred["mask_logits"].numpy(), mask.numpy(), strict=True):
        if (reference == UNKNOWN_MASK).all():
            continue
        a, b = {tuple(i) for i in np.argwhere(logits > 0)}, {tuple(i) for i in np.argwhere(reference == 1)}
        dice.append(2 * len(a & b) / (len(a) + len(b)))
    scores = {
        "acc": accuracy_score(truth, guess),
        "auc": roc_auc_score(truth, probabilities[:, 1])
        if probabilities.shape[1] == 2
        else roc_auc_score(truth, probabilities, multi_class="ovr"),
        "dice": np.mean(dice),
    }
    return {**scores, "score": (balanced_accuracy_score(truth, guess) + scores["dice"]) / 2}


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("score", SCORES)
def test_scores_equal_those_of_others(score, num_classes):
    pred, label, mask = outputs(num_classes=num_classes, count=48)
    expected = expected_scores(pred, label, mask)
    assert len({round(float(v), 6) for v in expected.values()}) == 4
    for batches in (1, 5, 48):
        assert score_of(score, pred, label, mask, batches) == pytest.approx(expected[score], abs=1e-6)


@pytest.mark.parametrize("part", ["logits", "mask_logits"])
def test_methods_with_one_task(part):
    pred, label, mask = outputs()
    expected = expected_scores(pred, label, mask)
    alone = {part: pred[part]}
    found = {score: score_of(score, alone, label, mask, 3) for score in SCORES}
    if part == "logits":
        assert found["acc"] == pytest.approx(expected["acc"]) and found["auc"] == pytest.approx(expected["auc"])
        assert math.isnan(found["dice"])
        assert found["score"] == pytest.approx(2 * expected["score"] - expected["dice"])
    else:
        assert found["dice"] == found["score"] == pytest.approx(expected["dice"])
        assert math.isnan(found["acc"]) and math.isnan(found["auc"])


def test_nothing_known_has_no_score():
    pred, label, mask = outputs(6)
    for score in SCORES:
        assert math.isnan(score_of(score, pred, torch.full_like(label, UNKNOWN), torch.full_like(mask, UNKNOWN_MASK)))


def test_an_empty_mask_counts_in_the_dice():
    mask_logits = torch.full((2, 1, 2, 2), -1.0)
    mask_logits[0] = 1.0
    masks = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).view(2, 1, 2, 2)
    assert score_of("dice", {"mask_logits": mask_logits}, torch.tensor([UNKNOWN] * 2), masks) == pytest.approx(1 / 3)


def test_two_empty_masks_agree():
    pred, empty = {"mask_logits": torch.full((2, 1, 2, 2), -1.0)}, torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    assert score_of("dice", pred, torch.tensor([UNKNOWN] * 2), empty) == 1


def test_score_refuses():
    with pytest.raises(ValueError, match=r"score is 'f1', expected one of score, acc, auc, dice"):
        ValidationScore(score="f1")


def test_prepare_batch_gives_the_networks_input():
    batch = {
        "image": torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3),
        "label": torch.tensor([1]),
        "mask": torch.ones(1, 1, 1, 3, dtype=torch.uint8),
    }
    image, targets = PrepareBatch()(batch, torch.device("cpu"))
    torch.testing.assert_close(image, torch.tensor([0.0, 0.2, 1.0]).view(1, 1, 1, 3))
    assert set(targets) == {"label", "mask"} and torch.equal(targets["mask"], batch["mask"])
