"""Label budgets: which training images keep their labels when only so many may."""

from collections.abc import Sequence

import numpy as np


def choose_labelled(labels: Sequence[int], number: int, seed: int) -> list[int]:
    """Choose images, stratified by class, decided by the seed and nested: a larger number adds images only.

    Each class has its own random order. The j-th image of a class of n is due at time (j - 0.5) / n, the first of every
    class before all others; a larger number takes the same images and more.

    Args:
        labels: Class of every image, from 0.
        number: How many to choose, from the number of classes to that of images.
        seed: Decides the orders.

    Returns:
        Positions in `labels`, sorted.
    """
    turns = []
    for label in sorted(set(labels)):
        order = np.random.RandomState([seed, label]).permutation(np.flatnonzero(np.asarray(labels) == label))
        turns += [((j + 0.5) / len(order) if j else 0, len(order), label, int(i)) for j, i in enumerate(order)]
    return sorted(turn[-1] for turn in sorted(turns, key=lambda turn: turn[:3])[:number])
