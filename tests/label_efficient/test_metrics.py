"""The figures against MedMNIST's evaluator, scikit-learn and loops written out."""

import math
from operator import itemgetter

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from medmnist.evaluator import getACC, getAUC
from sklearn import metrics as reference

from label_efficient.evaluation.epoch_scores import EpochScore, score_handler
from label_efficient.evaluation.metrics import (
    TASKS,
    accuracy,
    auc,
    confusion,
    expected_calibration_error,
    one_class_remark,
    per_class,
    summary,
    undefined_classes,
)
from label_efficient.evaluation.thresholds import at_threshold, threshold_at_specificity

MULTI_CLASS, BINARY, ORDINAL, MULTI_LABEL = TASKS
WIDTHS = {MULTI_CLASS: 8, BINARY: 2, ORDINAL: 5, MULTI_LABEL: 14}


def predictions(task, seed=0, n=120, tied=False, width=None):
    """Targets as MedMNIST stores them, (N, 1) or (N, K), and probabilities; ties are multiples of 1/8."""
    rng, width = np.random.default_rng(seed), width or WIDTHS[task]
    if task == MULTI_LABEL:
        targets = rng.integers(0, 2, (n, width))
        probabilities = np.clip(0.3 * targets + rng.uniform(0, 0.7, (n, width)), 0, 1)
        if tied:
            probabilities = np.round(probabilities * 8) / 8
    else:
        targets = rng.permutation(np.arange(n) % width)[:, None]
        probabilities = rng.dirichlet(np.ones(width), n) * 0.6
        probabilities[np.arange(n), targets[:, 0]] += 0.4
        if tied:
            counts = np.floor(probabilities * 8)
            counts[:, 0] += 8 - counts.sum(axis=1)
            probabilities = counts / 8
    return targets.astype(np.uint8), probabilities


def names(task, width=None):
    return [f"class {k}" for k in range(width or WIDTHS[task])]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auc_and_accuracy_are_those_of_medmnist(task, tied, dtype):
    for seed in range(3):
        targets, probabilities = predictions(task, seed, tied=tied)
        probabilities = probabilities.astype(dtype)
        assert auc(targets, probabilities, task) == pytest.approx(getAUC(targets, probabilities, task), rel=1e-13)
        assert accuracy(targets, probabilities, task) == pytest.approx(getACC(targets, probabilities, task), rel=1e-13)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("task", [MULTI_CLASS, BINARY, ORDINAL])
def test_summary_of_one_label_an_image_is_that_of_scikit_learn(task, tied):
    targets, probabilities = predictions(task, seed=3, tied=tied)
    got = summary(targets, probabilities, task, names(task))
    truth = targets.ravel()
    decided = (probabilities[:, 1] > 0.5).astype(int) if task == BINARY else probabilities.argmax(axis=1)
    expected = {
        "auc": getAUC(targets, probabilities, task),
        "acc": reference.accuracy_score(truth, decided),
        "macro_f1": reference.f1_score(truth, decided, average="macro"),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, decided),
        "ece": ece_loop(probabilities[np.arange(len(truth)), decided], decided == truth, 15),
        "nll": reference.log_loss(truth, probabilities, labels=range(WIDTHS[task])),
        "n": 120,
    }
    if task == ORDINAL:
        expected["quadratic_kappa"] = reference.cohen_kappa_score(truth, decided, weights="quadratic")
    if task == BINARY:
        expected["sensitivity"] = reference.recall_score(truth, decided)
        expected["specificity"] = reference.recall_score(truth, decided, pos_label=0)
        expected["precision"] = reference.precision_score(truth, decided)
        assert got.pop("positive_class") == "class 1"
        other = summary(targets, probabilities, task, names(task), positive=0)
        assert other["positive_class"] == "class 0" and other["sensitivity"] == expected["specificity"]
        assert other["precision"] == reference.precision_score(truth, decided, pos_label=0)
        assert {n: other[n] for n in ("auc", "acc", "macro_f1")} == {n: got[n] for n in ("auc", "acc", "macro_f1")}
    assert got == pytest.approx(expected, rel=1e-12)
    assert {type(value) for value in got.values()} == {float, int}


@pytest.mark.parametrize("tied", [False, True])
def test_summary_of_several_labels_an_image_is_that_of_scikit_learn(tied):
    targets, probabilities = predictions(MULTI_LABEL, seed=3, tied=tied)
    decided = probabilities > 0.5
    columns = range(targets.shape[1])
    confidence = np.where(decided, probabilities, 1 - probabilities)
    assert summary(targets, probabilities, MULTI_LABEL, names(MULTI_LABEL)) == pytest.approx(
        {
            "auc": getAUC(targets, probabilities, MULTI_LABEL),
            "acc": (decided == targets).mean(),
            "macro_f1": reference.f1_score(targets, decided, average="macro"),
            "balanced_accuracy": np.mean(
                [reference.balanced_accuracy_score(targets[:, k], decided[:, k]) for k in columns]
            ),
            "ece": ece_loop(confidence.ravel(), (decided == targets).ravel(), 15),
            "nll": np.mean([reference.log_loss(targets[:, k], probabilities[:, k]) for k in columns]),
            "n": 120,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("task", TASKS)
def test_rows_by_class_are_those_of_scikit_learn(task):
    targets, probabilities = predictions(task, seed=4)
    rows = per_class(targets, probabilities, task, names(task))
    assert [row["class"] for row in rows] == names(task)
    for k, row in enumerate(rows):
        if task == MULTI_LABEL:
            truth, decided = targets[:, k] == 1, probabilities[:, k] > 0.5
        else:
            truth = targets.ravel() == k
            decided = probabilities.argmax(axis=1) == k
        assert row["support"] == truth.sum()
        assert row["precision"] == pytest.approx(reference.precision_score(truth, decided))
        assert row["recall"] == pytest.approx(reference.recall_score(truth, decided))
        assert row["specificity"] == pytest.approx(reference.recall_score(~truth, ~decided))
        assert row["f1"] == pytest.approx(reference.f1_score(truth, decided))
        assert row["auc"] == pytest.approx(reference.roc_auc_score(truth, probabilities[:, k]))


@pytest.mark.parametrize("task", TASKS)
def test_confusion_is_that_of_scikit_learn(task):
    targets, probabilities = predictions(task, seed=5)
    got = confusion(targets, probabilities, task)
    if task == MULTI_LABEL:
        expected = reference.multilabel_confusion_matrix(targets, probabilities > 0.5)
    else:
        expected = reference.confusion_matrix(targets.ravel(), probabilities.argmax(axis=1))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL])
def test_an_absent_class_leaves_means_undefined(task, caplog):
    targets, probabilities = predictions(task)
    kept = targets.ravel() != 2
    targets, probabilities = targets[kept], probabilities[kept]
    classes = names(task)
    got = summary(targets, probabilities, task, classes)
    assert math.isnan(auc(targets, probabilities, task))
    assert math.isnan(got["auc"]) and math.isnan(got["balanced_accuracy"])
    assert got["acc"] == pytest.approx(getACC(targets, probabilities, task))
    assert undefined_classes(targets, probabilities, task, classes) == ["class 2"]
    assert "class 2" in caplog.text
    rows = per_class(targets, probabilities, task, classes)
    assert [math.isnan(row["auc"]) for row in rows] == [k == 2 for k in range(len(classes))]
    assert rows[2]["support"] == 0 and math.isnan(rows[2]["recall"]) and math.isnan(rows[2]["f1"])
    assert math.isnan(got["macro_f1"])


@pytest.mark.filterwarnings("error")
def test_one_class_alone():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    got = summary([0, 0], probabilities, BINARY, ["benign", "malignant"])
    assert undefined_classes([0, 0], probabilities, BINARY, ["benign", "malignant"]) == [
        "benign",
        "malignant",
    ]
    assert math.isnan(got["auc"]) and math.isnan(got["macro_f1"]) and math.isnan(got["sensitivity"])
    assert (got["specificity"], got["acc"], got["n"]) == (1, 1, 2)
    assert math.isnan(summary([0], [[0.8, 0.2]], ORDINAL, ["low", "high"])["quadratic_kappa"])
    targets, labels = np.array([[1, 0], [1, 1]]), np.array([[0.9, 0.2], [0.7, 0.6]])
    assert math.isnan(auc(targets, labels, MULTI_LABEL))
    assert undefined_classes(targets, labels, MULTI_LABEL, ["a", "b"]) == ["a"]
    assert math.isnan(summary(targets, labels, MULTI_LABEL, ["a", "b"])["balanced_accuracy"])


def test_several_labels_may_be_one_column():
    targets, probabilities = predictions(MULTI_LABEL, width=1)
    assert auc(targets, probabilities, MULTI_LABEL) == pytest.approx(
        reference.roc_auc_score(targets[:, 0], probabilities[:, 0])
    )
    assert confusion(targets, probabilities, MULTI_LABEL).shape == (1, 2, 2)


@pytest.mark.filterwarnings("error")
def test_a_certain_and_wrong_prediction_has_a_finite_likelihood():
    got = summary([0, 1], [[0.0, 1.0], [0.0, 1.0]], BINARY, ["a", "b"])
    assert got["nll"] == pytest.approx(-math.log(np.finfo(float).eps) / 2)


@pytest.mark.parametrize(
    ("targets", "probabilities", "task", "message"),
    [
        ([], np.zeros((0, 3)), MULTI_CLASS, r"targets \(0,\) .* \(0, 3\)"),
        ([0, 1], [[0.5, math.nan]] * 2, BINARY, r"within \[0, 1\], got nan"),
        ([0, 1], [[2.0, -1.0]] * 2, BINARY, r"within \[0, 1\], got -1 to 2"),  # logits
        ([0, 1, 1], [[0.5, 0.5]] * 2, BINARY, r"targets \(3,\) and probabilities \(2, 2\)"),
        ([[0, 1]], [[0.5, 0.5]] * 2, MULTI_LABEL, r"targets \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("figure", [auc, accuracy])
def test_what_is_no_prediction_is_refused(figure, targets, probabilities, task, message):
    with pytest.raises(ValueError, match=message):
        figure(targets, probabilities, task)
    assert accuracy([0, 1], [[1 + 1e-7, -1e-7], [1e-4, 1]], MULTI_CLASS) == 1  # rounding errors are none


def ece_loop(confidence, correct, bins):
    """Every bin (lower, upper], the first with 0 too."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for k in range(bins):
        inside = [
            i
            for i, c in enumerate(confidence)
            if edges[k] < c <= edges[k + 1] or (k == 0 and c == 0) or (k == bins - 1 and c > 1)
        ]
        if inside:
            accuracy_ = sum(bool(correct[i]) for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy_ - mean)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("on_edges", [False, True])
def test_calibration_error_is_that_of_a_loop(bins, on_edges):
    rng = np.random.default_rng(bins)
    confidence = rng.choice(np.linspace(0, 1, 2 * bins + 1), 200) if on_edges else rng.uniform(0, 1, 200)
    correct = rng.uniform(0, 1, 200) < 0.5
    expected = ece_loop(confidence, correct, bins)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("wanted", [0.05, 0.5, 0.8, 0.9, 0.95, 0.999])
def test_threshold_decides_as_the_smallest_of_all_tried(wanted, tied, positive):
    for seed in range(4):
        targets, probabilities = predictions(BINARY, seed, n=40, tied=tied)
        truth, scores = targets.ravel() == positive, probabilities[:, positive]
        for threshold in [*sorted(set(scores)), np.nextafter(scores.max(), 2)]:
            said = scores >= threshold
            if np.mean(~said[~truth]) >= wanted:
                break
        got = threshold_at_specificity(targets, probabilities, wanted, positive)
        assert ((scores >= got["threshold"]) == said).all()
        assert got["sensitivity"] == np.mean(said[truth]) and got["specificity"] == np.mean(~said[~truth])
        assert got["acc"] == np.mean(said == truth)
        assert got == {"threshold": got["threshold"]} | at_threshold(targets, probabilities, got["threshold"], positive)
        if got["threshold"] < scores.max() and said.any() and not said.all():  # not at a score, which may be rounded
            assert ((scores.astype(np.float32) >= got["threshold"]) == said).all() and got["threshold"] not in scores


def test_threshold_where_every_score_is_the_same():
    got = threshold_at_specificity([0, 1], [[0.0, 1.0]] * 2, 0.9)
    assert got["threshold"] == np.nextafter(1, 2) and math.isnan(got["precision"])
    assert (got["sensitivity"], got["specificity"]) == (0, 1)


def test_threshold_is_applied_to_other_data():
    probabilities = [[0.8, 0.2], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9]]
    got = at_threshold([0, 0, 1, 1], probabilities, 0.4)
    assert got == {"sensitivity": 1, "specificity": 0.5, "precision": pytest.approx(2 / 3), "acc": 0.75}
    alone = at_threshold([1, 1], probabilities[:2], 0.6)
    assert alone["sensitivity"] == 0.5 and math.isnan(alone["specificity"])


def test_decisions_that_are_nearly_all_of_one_class_are_told():
    """On 114 benign and 42 malignant cases, of which 41 are missed."""
    targets, said = np.repeat([1, 0], [114, 42]), np.ones(156, int)
    said[-1] = 0
    text = one_class_remark(targets, said, ["malignant", "normal, benign"])
    for part in ("99.4% of 156 images are called 'normal, benign'", "41 of the 42", "Accuracy 0.737", "has 0.731"):
        assert part in text
    assert one_class_remark(targets, targets, ["malignant", "benign"]) == ""
    rare = np.r_[np.ones(97, int), 0, 0, 0]
    assert one_class_remark(rare, rare, ["a", "b"]) == "" and one_class_remark(rare, rare * 0 + 1, ["a", "b"])
    assert one_class_remark(np.ones(9, int), np.ones(9, int), ["a", "b"]) == ""  # nothing else is there


@pytest.mark.parametrize("present", [0, 1])
def test_a_threshold_needs_both_classes(present):
    with pytest.raises(ValueError, match=f"Both classes are needed .* all targets are {present}"):
        threshold_at_specificity([present] * 2, [[0.5, 0.5]] * 2, 0.9)


@pytest.mark.parametrize("score", ["auc", "acc"])
@pytest.mark.parametrize("task", TASKS)
def test_epoch_score_in_an_ignite_engine(task, score):
    def step(engine, rows):
        targets, probabilities = data
        shown = targets[rows] if task == MULTI_LABEL else targets[rows, 0]
        return {"pred": torch.tensor(probabilities[rows]), "label": torch.tensor(shown)}

    handler = score_handler(score, task=task, output_transform=itemgetter("pred", "label"))
    engine = Engine(step)
    handler.attach(engine, "score")
    reference_score = getAUC if score == "auc" else getACC
    for seed in (0, 1):  # the second run starts afresh
        data = predictions(task, seed)
        state = engine.run(np.array_split(np.arange(120), 7), max_epochs=2)
        assert state.metrics["score"] == pytest.approx(reference_score(*data, task), rel=1e-12)


def test_epoch_score_leaves_out_a_class_without_images_and_warns_once(caplog):
    score = EpochScore(score="auc", task=MULTI_CLASS)
    score(torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.1, 0.7], [0.1, 0.2, 0.7]]), torch.tensor([0, 1, 0]))
    assert float(score.aggregate()) == float(score.aggregate()) == pytest.approx((0.5 + 0) / 2)
    assert [record.getMessage()[-8:] for record in caplog.records] == ["class 2."]
    score.reset()
    score(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0]))
    assert math.isnan(score.aggregate())


def score_on_a_rank(rank, folder):
    """One of two ranks, with unequal shares; writes what it aggregates."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        targets, probabilities = predictions(MULTI_CLASS, seed=6)
        share = slice(0, 50) if rank == 0 else slice(50, None)

        def step(engine, batch):
            return {"pred": torch.tensor(probabilities[batch]), "label": torch.tensor(targets[batch, 0])}

        engine = Engine(step)
        score_handler("auc", task=MULTI_CLASS, output_transform=itemgetter("pred", "label")).attach(engine, "auc")
        state = engine.run(np.array_split(np.arange(120)[share], 3 + rank), max_epochs=1)
        (folder / f"{rank}.txt").write_text(repr(state.metrics["auc"]))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_epoch_score_gathers_two_ranks(tmp_path):
    torch.multiprocessing.spawn(score_on_a_rank, (tmp_path,), nprocs=2)
    expected = getAUC(*predictions(MULTI_CLASS, seed=6), MULTI_CLASS)
    for rank in range(2):
        assert float((tmp_path / f"{rank}.txt").read_text()) == pytest.approx(expected, rel=1e-12)
