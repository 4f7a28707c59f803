"""Connected components against scipy.ndimage.label, on random masks and on shapes that are hard to follow."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from gated_attention import components
from gated_attention.components import label_components


def reference(mask):
    """Labels as in `label_components`: in each component the largest index of its pixels, from 1."""
    found, count = ndimage.label(mask, structure=np.ones((3, 3)))
    index = np.arange(1, mask.size + 1).reshape(mask.shape)
    largest = np.concatenate([[0], ndimage.maximum(index, found, np.arange(1, count + 1))]) if count else np.zeros(1)
    return largest[found]


def spiral(side, clockwise):
    """One path, a pixel wide, from a corner to the middle."""
    mask = np.zeros((side, side), dtype=bool)
    place, step = np.array([0, 0]), np.array([0, 1])
    mask[0, 0] = True
    lengths = [side - 1] + [n for n in range(side - 1, 1, -2) for _ in range(2)]
    for length in lengths:
        for _ in range(length):
            place = place + step
            mask[tuple(place)] = True
        step = np.array([step[1], -step[0]])
    return mask if clockwise else mask[::-1, ::-1].T


def snake(side):
    mask = np.zeros((side, side), dtype=bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def comb(side):
    mask = np.zeros((side, side), dtype=bool)
    mask[:, ::2] = mask[0] = True
    return mask


SHAPES = {
    "empty": np.zeros((9, 13), dtype=bool),
    "full": np.ones((56, 56), dtype=bool),
    "diagonal": np.eye(20, dtype=bool),
    "other diagonal": np.eye(20, dtype=bool)[::-1],
    "chessboard": np.indices((12, 11)).sum(axis=0) % 2 == 0,
    "spiral": spiral(57, True),
    "other spiral": spiral(57, False),
    "snake": snake(41),
    "snake on its side": snake(41).T,
    "comb": comb(31),
    "comb upside down": comb(31)[::-1],
    "corners": np.isin(np.arange(42).reshape(6, 7), (0, 6, 35, 41)),
    "one pixel": np.ones((1, 1), dtype=bool),
}


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, exporting, monkeypatch):
    monkeypatch.setattr(components, "is_exporting", lambda: exporting)
    mask = np.ascontiguousarray(SHAPES[name])
    labels = label_components(torch.from_numpy(mask)[None])
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels[0].numpy(), reference(mask))


@pytest.mark.parametrize("shape", [(56, 56), (23, 41), (1, 50), (50, 1)])
def test_random_masks_of_many_densities_in_one_batch(shape):
    rng = np.random.default_rng(sum(shape))
    densities = np.repeat([0.02, 0.1, 0.25, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8, 0.98], 4)
    masks = rng.random((len(densities), *shape)) < densities[:, None, None]
    # Beside a spiral that takes many rounds the others must stay as they are.
    masks[0] = spiral(64, True)[: shape[0], : shape[1]]
    labels = label_components(torch.from_numpy(masks)).numpy()
    for mask, found in zip(masks, labels, strict=True):
        np.testing.assert_array_equal(found, reference(mask))


def test_twelve_rounds_are_enough_for_a_path_of_1681_pixels(monkeypatch):
    rounds = []
    pool = torch.nn.functional.max_pool2d
    monkeypatch.setattr(torch.nn.functional, "max_pool2d", lambda *a, **k: rounds.append(1) or pool(*a, **k))
    mask = spiral(57, True)
    assert mask.sum() == 1681
    label_components(torch.from_numpy(mask)[None])
    assert len(rounds) <= 12


def test_scripted_gives_the_same():
    masks = torch.rand(4, 20, 30) < 0.4
    assert torch.equal(torch.jit.script(label_components)(masks), label_components(masks))
