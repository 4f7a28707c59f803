"""Label budgets: stratified, nested, decided by the seed."""

import itertools

import numpy as np
import pytest

from multimix.budget import choose_labelled

LABELS = np.random.RandomState(0).choice(3, 200, p=[0.7, 0.25, 0.05])


@pytest.mark.parametrize("seed", range(3))
def test_larger_budgets_only_add(seed):
    chosen = [set(choose_labelled(LABELS, number, seed)) for number in range(3, 201)]
    assert [len(one) for one in chosen] == list(range(3, 201))
    assert all(small < large for small, large in itertools.pairwise(chosen))


@pytest.mark.parametrize("number", [3, 10, 50, 120, 200])
def test_shares_of_the_classes_are_kept(number):
    chosen = choose_labelled(LABELS, number, 0)
    assert chosen == sorted(chosen)
    found, all_of = np.bincount(LABELS[chosen], minlength=3), np.bincount(LABELS)
    assert (found >= 1).all()
    assert np.abs(found - number * all_of / 200).max() < 2


def test_seed_decides():
    assert choose_labelled(LABELS, 30, 1) == choose_labelled(LABELS.tolist(), 30, 1)
    assert choose_labelled(LABELS, 30, 1) != choose_labelled(LABELS, 30, 2)


def test_classes_have_orders_of_their_own():
    first = choose_labelled([0] * 20 + [1] * 20, 10, 0)
    zeros, ones = ({i % 20 for i in first if i // 20 == label} for label in (0, 1))
    assert len(zeros) == len(ones) == 5 and zeros != ones
