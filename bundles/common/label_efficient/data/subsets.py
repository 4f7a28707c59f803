"""Label budgets: which training images keep their labels when only some of them may.

A subset is stratified by class, decided by the seed, and nested: with the same seed a smaller budget is
contained in a larger one, so that a curve over budgets adds images and never exchanges them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def labelled_subset(
    labels: ArrayLike,
    label_fraction: float | None = None,
    labels_per_class: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> list[int]:
    """Choose the images that keep their labels, as sorted indices; all of them where there is no budget.

    Every class has its own random order of its images. A fraction ``f`` asks for the first ``round(f * n)`` of a class
    with ``n`` images (halves are rounded up), a number per class for the first ``labels_per_class``.

    With several labels per image the classes take turns, evenly over their sizes and the rarer first; a class
    takes the next image of its order only when the images chosen so far hold fewer of it than it needs by
    then. Images without any finding are one more class, of which ``labels_per_class`` takes as many as there
    are. Every label gets at least what it asked for; an image with two labels counts for both, so some get more.

    Args:
        labels: As of `class_membership`.
        label_fraction: Part of every class that stays labelled, in (0, 1].
        labels_per_class: Number of labelled images of every class.
        seed: Decides the random orders.
        class_names: Of all classes: for errors, and so that a class that ``labels`` lacks at the end is noticed too.

    Raises:
        ValueError: For labels of another form, for two budgets at once, and for a budget that a class
            cannot meet or that leaves it without a label.
    """
    member = class_membership(labels)
    if label_fraction is not None and labels_per_class is not None:
        raise ValueError("give label_fraction or labels_per_class, not both")
    if label_fraction is None and labels_per_class is None:
        return list(range(len(member)))
    names = list(class_names) if class_names is not None else [str(c) for c in range(member.shape[1])]
    member = np.pad(member, ((0, 0), (0, len(names) - member.shape[1])))
    sizes = member.sum(axis=0)
    quotas = _quotas(sizes, label_fraction, labels_per_class, names)
    if np.ndim(labels) == 2 and np.shape(labels)[1] > 1:
        no_finding = ~member.any(axis=1)
        member = np.column_stack([member, no_finding])
        total = no_finding.sum()
        part = _part(total, label_fraction) if label_fraction is not None else min(total, quotas.max())
        quotas = np.append(quotas, part)
    # A number per class is reached turn by turn, a fraction in steps as fine as the class is large.
    pace = member.sum(axis=0) if label_fraction is not None else np.ones(member.shape[1])
    return _take_turns(member, quotas, pace, seed)


def choose_labelled(labels: Sequence[int], number: int, seed: int) -> list[int]:
    """Choose a number of images in all, stratified by class, decided by the seed and nested; their sorted positions.

    Each class, from 0, has its own random order. The j-th image of a class of n is due at time (j - 0.5) / n, the first
    of every class before all others; a larger number, from that of classes to that of images, takes the same and more.
    """
    turns = [
        ((j + 0.5) / len(order) if j else 0.0, len(order), label, int(i))
        for label, order in enumerate(_orders(class_membership(labels), seed))
        for j, i in enumerate(order)
    ]
    return sorted(turn[-1] for turn in sorted(turns, key=lambda turn: turn[:3])[:number])


def held_out(labels: Sequence[int], share: float, seed: int) -> set[int]:
    """Positions of a share of every class, from 0, decided by the seed: at least one of two images, never all."""
    chosen: set[int] = set()
    for order in _orders(class_membership(labels), seed):
        chosen.update(map(int, order[: min(max(round(share * len(order)), 1), len(order) - 1)]))
    return chosen


def class_membership(labels: ArrayLike) -> np.ndarray:
    """Say which image belongs to which class, as booleans (N, C); one with several labels to several, or to none.

    Labels are class indices, (N,) or (N, 1), or several per image, 0 or 1, (N, K) with K > 1; others are a ValueError.
    """
    array = np.asarray(labels)
    if array.size == 0 or array.ndim not in (1, 2):
        raise ValueError(f"labels must be (N,) or (N, K) with N and K above 0, got shape {array.shape}")
    if array.dtype.kind not in "biuf" or not np.all(np.isfinite(array)) or np.any(array != np.floor(array)):
        raise ValueError("labels must be whole numbers")
    array = array.astype(np.int64)
    if array.ndim == 2 and array.shape[1] > 1:
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"several labels per image must be 0 or 1, got {np.unique(array).tolist()}")
        return array.astype(bool)
    array = array.reshape(-1)
    if array.min() < 0:
        raise ValueError(f"class indices must not be negative, got {array.min()}")
    return array[:, None] == np.arange(array.max() + 1)


def _part(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """The whole numbers nearest to a fraction of sizes, halves up; 1e-9 absorbs the error of the product."""
    return np.floor(sizes * fraction + 0.5 + 1e-9).astype(int)


def _quotas(sizes: np.ndarray, fraction: float | None, number: int | None, names: list[str]) -> np.ndarray:
    """Number of labelled images of every class."""
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"label_fraction must be above 0 and at most 1, got {fraction}")
        quotas = _part(sizes, fraction)
        wrong, problem = quotas == 0, f"label_fraction {fraction} leaves no label for class"
    else:
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < 1:
            raise ValueError(f"labels_per_class must be a whole number above 0, got {number!r}")
        quotas = np.full(len(sizes), number)
        wrong, problem = sizes < number, f"labels_per_class is {number}, more than there are of class"
    if wrong.any():
        found = ", ".join(f"'{names[c]}' ({sizes[c]} images)" for c in np.flatnonzero(wrong))
        raise ValueError(f"{problem} {found}")
    return quotas


def _orders(member: np.ndarray, seed: int) -> list[np.ndarray]:
    """The random order of the images of every class; it depends on the seed and the class alone."""
    # RandomState: its stream is frozen for good, unlike that of the newer generators.
    return [np.random.RandomState([seed, c]).permutation(np.flatnonzero(member[:, c])) for c in range(member.shape[1])]


def _take_turns(member: np.ndarray, quotas: np.ndarray, pace: np.ndarray, seed: int) -> list[int]:
    """Choose images until every class has its quota.

    The j-th image of class ``c`` is due at time ``(j - 0.5) / pace[c]``. A larger budget has the same turns
    in the same order and more after them, which is what makes the subsets nested.
    """
    orders = [iter(order) for order in _orders(member, seed)]
    sizes = member.sum(axis=0)
    turns = sorted(((j - 0.5) / pace[c], sizes[c], c, j) for c in range(len(quotas)) for j in range(1, quotas[c] + 1))
    chosen = np.zeros(len(member), dtype=bool)
    held = np.zeros(member.shape[1], dtype=int)
    for _, _, c, needed in turns:
        while held[c] < needed:
            image = next(orders[c])
            if not chosen[image]:
                chosen[image] = True
                held += member[image]
    return np.flatnonzero(chosen).tolist()
