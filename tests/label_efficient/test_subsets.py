"""Label budgets: sizes, nesting, and the mistakes."""

from itertools import pairwise

import numpy as np
import pytest

from label_efficient.data.subsets import choose_labelled, class_membership, labelled_subset

SINGLE = np.repeat([0, 1, 2], [100, 40, 10])
UNEVEN = np.random.RandomState(0).choice(3, 200, p=[0.7, 0.25, 0.05])
MULTI = (np.random.RandomState(0).rand(400, 3) < [0.5, 0.2, 0.05]).astype(int)


def test_fraction_takes_its_part_of_every_class() -> None:
    assert labelled_subset(SINGLE) == labelled_subset(SINGLE, label_fraction=1) == list(range(150))
    kept = labelled_subset(SINGLE, label_fraction=0.1)
    assert np.bincount(SINGLE[kept]).tolist() == [10, 4, 1]
    assert kept == sorted(kept) and all(isinstance(i, int) for i in kept)


def test_number_per_class() -> None:
    kept = labelled_subset(SINGLE.reshape(-1, 1), labels_per_class=7)
    assert np.bincount(SINGLE[kept]).tolist() == [7, 7, 7]


@pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("budgets", [("label_fraction", np.linspace(0.1, 1, 19)), ("labels_per_class", range(1, 10))])
@pytest.mark.parametrize("seed", [0, 1])
def test_smaller_budget_is_contained_in_larger(labels: np.ndarray, budgets: tuple, seed: int) -> None:
    name, values = budgets
    subsets = [set(labelled_subset(labels, seed=seed, **{name: value})) for value in values]
    assert all(small <= large for small, large in pairwise(subsets))


@pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single", "multi"])
def test_seed_decides(labels: np.ndarray) -> None:
    first, again, other = (labelled_subset(labels, label_fraction=0.2, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert choose_labelled(UNEVEN, 30, 1) == choose_labelled(UNEVEN.tolist(), 30, 1) != choose_labelled(UNEVEN, 30, 2)


def test_one_class_does_not_depend_on_another() -> None:
    more = np.concatenate([SINGLE, np.full(50, 2)])
    small, large = labelled_subset(SINGLE, labels_per_class=5), labelled_subset(more, labels_per_class=5)
    assert [i for i in small if SINGLE[i] < 2] == [i for i in large if more[i] < 2]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7])
def test_several_labels_get_at_least_their_fraction(fraction: float) -> None:
    kept = labelled_subset(MULTI, label_fraction=fraction)
    least = np.floor(MULTI.sum(axis=0) * fraction + 0.5)
    assert (MULTI[kept].sum(axis=0) >= least).all()
    assert (MULTI[kept].sum(axis=0) <= least * 1.6 + 3).all()
    without = (MULTI.sum(axis=1) == 0).sum()
    assert (MULTI[kept].sum(axis=1) == 0).sum() == pytest.approx(without * fraction, abs=0.51)


def test_several_labels_get_at_least_their_number() -> None:
    kept = labelled_subset(MULTI, labels_per_class=8)
    assert (MULTI[kept].sum(axis=0) >= 8).all()
    assert (MULTI[kept].sum(axis=1) == 0).sum() == 8
    assert len(kept) <= 32


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"label_fraction": 0}, "above 0 and at most 1, got 0"),
        ({"label_fraction": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"label_fraction": float("nan")}, "above 0"),
        ({"label_fraction": 0.02}, r"leaves no label for class 'rare' \(10 images\)"),
        ({"labels_per_class": 11}, r"is 11, more than there are of class 'rare' \(10 images\)"),
        ({"labels_per_class": 0}, "whole number above 0, got 0"),
        ({"labels_per_class": 2.5}, "whole number above 0, got 2.5"),
        ({"label_fraction": 0.5, "labels_per_class": 5}, "not both"),
    ],
)
def test_impossible_budgets(budget: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_subset(SINGLE, **budget, class_names=["a", "b", "rare"])


def test_class_without_any_image_is_named() -> None:
    with pytest.raises(ValueError, match=r"'1' \(0 images\)"):
        labelled_subset([0, 0, 2, 2], labels_per_class=1)
    with pytest.raises(ValueError, match=r"'c' \(0 images\)"):
        labelled_subset([0, 0, 1, 1], label_fraction=0.5, class_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        *(([], "shape"), ([[[0]]], "shape"), ([0.5, 1], "whole numbers"), (["a", "b"], "whole numbers")),
        *(([0, -1], "negative"), ([[0, 2], [1, 0]], "0 or 1")),
    ],
)
def test_labels_of_another_form(labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_membership(labels)


# A number in all


@pytest.mark.parametrize("seed", range(3))
def test_larger_budgets_only_add(seed: int) -> None:
    chosen = [set(choose_labelled(UNEVEN, number, seed)) for number in range(3, 201)]
    assert [len(one) for one in chosen] == list(range(3, 201))
    assert all(small < large for small, large in pairwise(chosen))


@pytest.mark.parametrize("number", [3, 10, 50, 120, 200])
def test_shares_of_the_classes_are_kept(number: int) -> None:
    chosen = choose_labelled(UNEVEN, number, 0)
    assert chosen == sorted(chosen)
    found, all_of = np.bincount(UNEVEN[chosen], minlength=3), np.bincount(UNEVEN)
    assert (found >= 1).all()
    assert np.abs(found - number * all_of / 200).max() < 2


def test_classes_have_orders_of_their_own() -> None:
    first = choose_labelled([0] * 20 + [1] * 20, 10, 0)
    zeros, ones = ({i % 20 for i in first if i // 20 == label} for label in (0, 1))
    assert len(zeros) == len(ones) == 5 and zeros != ones
    # Nor does an order depend on the other classes.
    of_first = [i for i in choose_labelled(UNEVEN, 60, 3) if UNEVEN[i] == 0]
    alone = np.flatnonzero(UNEVEN == 0)
    assert [alone[i] for i in choose_labelled([0] * len(alone), len(of_first), 3)] == of_first
