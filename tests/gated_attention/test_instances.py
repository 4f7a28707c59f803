"""From attention to boxes: against a slow reference per image, what holds for every box, and real blood cells."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from gated_attention.instances import attention_mask, normalised_attention, select_instances

SIZES = [(300, 400), (400, 300), (50, 2000), (2000, 50), (1536, 2048), (224, 224), (30, 20), (1, 1), (1, 9), (7, 1)]


def maps(kind, count, side=7):
    rng = np.random.default_rng(len(kind) + count + side)
    values = {
        "noise": lambda: rng.random((count, side, side)),
        "peaks": lambda: rng.random((count, side, side)) ** 8,
        "blob": lambda: ndimage.gaussian_filter(rng.random((count, side, side)), (0, 1, 1)),
        "sparse": lambda: rng.random((count, side, side)) * (rng.random((count, side, side)) < 0.1),
    }[kind]()
    return torch.from_numpy(values * 10.0 ** rng.integers(-6, 7, (count, 1, 1))).float()


def square(centre, length, size):
    """Left, top, right, bottom of a square moved into the image, or around its middle where it is too large."""
    corner = []
    for middle, room in zip(centre, (size[1] - length, size[0] - length), strict=True):
        corner.append(room / 2 if room < 0 else min(max(middle - length / 2, 0), room))
    return np.array([*corner, corner[0] + length, corner[1] + length])


def best_window(values, length, cell, size, box, taken=()):
    """Square on the window with most attention and its sum; of those that are equal, or between, that nearest to `box`.

    Windows near the taken centres come only if there is no other.
    """
    side = len(values)
    across, down = (int(np.clip(np.round(length / c), 1, side)) for c in cell)
    sums = np.lib.stride_tricks.sliding_window_view(values, (down, across)).sum(axis=(2, 3))
    near = np.zeros(sums.shape, dtype=int)
    x, y = (np.arange(sums.shape[1]) + across / 2) * cell[0], (np.arange(sums.shape[0]) + down / 2) * cell[1]
    for left, top, right, bottom in taken:
        near_across = np.abs(x - (left + right) / 2) < length / 2
        near += near_across[None] & (np.abs(y - (top + bottom) / 2) < length / 2)[:, None]
    sums = np.where(near == near.min(), sums, -1)
    equal = {tuple(place) for place in np.argwhere(sums >= sums.max() - 1e-6 * values.sum())}
    # The middle of an even number of them lies between two.
    steps = [(down, right) for down in (0, 1) for right in (0, 1)]
    between = [((r, c), (r + down, c + right)) for r, c in equal for down, right in steps]
    middles = [np.mean([one, other], axis=0) for one, other in between if other in equal]
    squares = [square((c * cell[0] + x[0], r * cell[1] + y[0]), length, size) for r, c in middles]
    return min(squares, key=lambda s: np.abs(s - box).max()), sums.max()


def reference(attention, size, found, *, num_instances, threshold, min_box, max_box, window_box):
    """Boxes and scores of one image from its normalised attention, m x m; `found` decides between equal windows."""
    side, shorter = len(attention), min(size)
    cell = (size[1] / side, size[0] / side)
    labels, count = ndimage.label(attention > threshold, structure=np.ones((3, 3)))
    if not count:
        return np.tile(square((size[1] / 2, size[0] / 2), max(size), size), (num_instances, 1)), np.ones(num_instances)
    limit = max_box * shorter if max_box else np.inf
    members = sorted((labels == i for i in range(1, count + 1)), key=lambda m: -attention[m].sum())
    boxes, scores = [], []
    for member in members[:num_instances]:
        rows, columns = np.nonzero(member)
        left, right = columns.min() * cell[0], (columns.max() + 1) * cell[0]
        top, bottom = rows.min() * cell[1], (rows.max() + 1) * cell[1]
        length = max(right - left, bottom - top)
        if length > limit:
            boxes.append(best_window(attention * member, limit, cell, size, found[len(boxes)])[0])
        else:
            boxes.append(square(((left + right) / 2, (top + bottom) / 2), max(length, min_box * shorter), size))
        scores.append(attention[member].sum() / attention.sum())
    while len(boxes) < num_instances:
        share = attention / attention.sum()
        box, score = best_window(share, window_box * shorter, cell, size, found[len(boxes)], boxes)
        boxes.append(box)
        scores.append(score)
    return np.stack(boxes), np.array(scores)


SETTINGS = {
    "as in the paper": dict(num_instances=4, threshold=0.5, min_box=0.1, max_box=0.0, window_box=0.5),
    "limited": dict(num_instances=3, threshold=0.3, min_box=0.23, max_box=0.41, window_box=0.37),
    "low threshold": dict(num_instances=2, threshold=0.0, min_box=0.1, max_box=1.0, window_box=1.0),
    "many small": dict(num_instances=9, threshold=0.7, min_box=0.31, max_box=0.0, window_box=0.17),
    "one": dict(num_instances=1, threshold=0.8, min_box=0.05, max_box=0.6, window_box=0.3),
}


@pytest.mark.parametrize("kind", ["noise", "peaks", "blob", "sparse"])
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_slow_reference_and_what_holds_for_every_box(name, kind):
    settings = SETTINGS[name]
    attention = maps(kind, len(SIZES))
    boxes, scores = select_instances(attention, torch.tensor(SIZES), image_size=128, **settings)
    assert boxes.shape == (len(SIZES), settings["num_instances"], 4)
    assert boxes.dtype == scores.dtype == torch.float32
    normalised = normalised_attention(attention, 128).double().numpy()
    for image, size in enumerate(SIZES):
        expected, shares = reference(normalised[image], size, boxes[image].numpy(), **settings)
        np.testing.assert_allclose(boxes[image], expected, atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(scores[image], shares, atol=1e-5)
        check_boxes(boxes[image].numpy(), scores[image].numpy(), size, settings)


def check_boxes(boxes, scores, size, settings):
    """What holds for the boxes of any image."""
    assert np.isfinite(boxes).all()
    assert ((scores >= 0) & (scores <= 1 + 1e-5)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-4)
    least = min(settings["min_box"], settings["window_box"]) * min(size)
    assert (sides >= least * (1 - 1e-4)).all()
    whole = np.allclose(sides, max(size))
    if settings["max_box"] and not whole:
        assert (sides <= settings["max_box"] * min(size) * (1 + 1e-4)).all()
    for axis, extent in enumerate((size[1], size[0])):
        fits = sides[:, axis] <= extent
        low, high = boxes[:, axis], boxes[:, axis + 2]
        assert (low[fits] >= 0).all()
        assert (high[fits] <= extent * (1 + 1e-6)).all()
        # Where it is larger than the image, the image is in its middle.
        np.testing.assert_allclose(low[~fits] + high[~fits], extent, rtol=1e-4)


@pytest.mark.parametrize("name", ["as in the paper", "limited"])
def test_an_image_does_not_depend_on_its_batch_mates(name):
    attention, sizes = torch.cat([maps("noise", 5), maps("sparse", 5)]), torch.tensor(SIZES)
    attention[3] = 0
    together = select_instances(attention, sizes, image_size=224, **SETTINGS[name])
    for i in range(len(sizes)):
        alone = select_instances(attention[i : i + 1], sizes[i : i + 1], image_size=224, **SETTINGS[name])
        assert torch.equal(together[0][i], alone[0][0])
        assert torch.equal(together[1][i], alone[1][0])


@pytest.mark.parametrize("value", [0.0, 3.0, 1e-30, 1e30])
@pytest.mark.parametrize("side", [1, 7])
def test_without_contrast_the_whole_image_is_the_instance(value, side):
    attention = torch.full((len(SIZES), side, side), value)
    # Rounding, as a network adds it, is no contrast.
    attention = attention * (1 + 1e-7 * torch.rand(attention.shape, generator=torch.Generator().manual_seed(0)))
    boxes, scores = select_instances(attention, torch.tensor(SIZES), image_size=64, **SETTINGS["limited"])
    assert (scores == 1).all()
    for image, (height, width) in enumerate(SIZES):
        longest = max(height, width)
        left, top = (width - longest) / 2, (height - longest) / 2
        assert boxes[image].tolist() == [[left, top, left + longest, top + longest]] * 3


def test_a_single_peak_is_where_it_is_in_the_image():
    # Row 1 and column 5 of 7: above and right of the middle, in an image that is wider than high.
    attention = torch.zeros(1, 7, 7)
    attention[0, 1, 5] = 1
    boxes, scores = select_instances(attention, torch.tensor([[700, 1400]]), 1, 224, 0.5, 0.1, 0.0, 0.5)
    left, top, right, bottom = boxes[0, 0].tolist()
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((5.5 * 200, 1.5 * 100))
    # Above half its height the peak is one position of the map wide: 200 x 100 pixels.
    assert right - left == pytest.approx(200)
    enlarged = np.clip(1 - np.abs(np.arange(56) + 0.5 - 12) / 8, 0, None) * np.ones((56, 1))
    enlarged = enlarged * np.clip(1 - np.abs(np.arange(56) + 0.5 - 44) / 8, 0, None)[:, None]
    assert scores.item() == pytest.approx(enlarged[enlarged > 0.5].sum() / enlarged.sum())


def test_of_windows_that_are_equal_the_middle_is_taken():
    # A column of 14 is longer than the largest box: the box lies around it, and not at its side.
    attention = torch.zeros(1, 14, 14)
    attention[0, :, 7] = 1
    box = select_instances(attention, torch.tensor([[400, 400]]), 1, 448, 0.5, 0.1, 0.375, 0.375)[0][0, 0]
    assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx([7.5 * 400 / 14, 200])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=arrays(np.float32, (5, 6), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    count=st.integers(1, 12),
    name=st.sampled_from(list(SETTINGS)),
)
def test_any_map_gives_boxes_in_the_image_in_their_order(values, size, count, name):
    chosen = SETTINGS[name] | {"num_instances": count}
    attention = torch.from_numpy(np.resize(values, (6, 6)))[None]
    boxes, scores = (
        part[0].numpy() for part in select_instances(attention, torch.tensor([size]), image_size=96, **chosen)
    )
    assert boxes.shape == (count, 4)
    check_boxes(boxes, scores, size, chosen)
    components = ndimage.label(attention_mask(attention, chosen["threshold"], 96)[0], np.ones((3, 3)))[1]
    assert (np.diff(scores[: min(components, count)]) <= 1e-6).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(row=st.integers(0, 6), column=st.integers(0, 6), height=st.integers(1, 7), width=st.integers(1, 7))
def test_ties_are_symmetrical_under_mirroring(row, column, height, width):
    attention = torch.zeros(1, 7, 7)
    attention[0, row : row + height, column : column + width] = 1
    arguments = (torch.tensor([[210, 350]]), 1, 224, 0.5, 0.1, 0.3, 0.3)
    left, top, right, bottom = select_instances(attention, *arguments)[0][0, 0].tolist()
    for axis, expected in ((2, [350 - right, top, 350 - left, bottom]), (1, [left, 210 - bottom, right, 210 - top])):
        assert select_instances(attention.flip(axis), *arguments)[0][0, 0].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("side", "image_size", "expected"), [(7, 224, 56), (4, 128, 32), (7, 16, 7), (2, 66, 16)])
def test_normalised_attention_is_stretched_and_enlarged(side, image_size, expected):
    attention = maps("noise", 3, side)
    found = normalised_attention(attention, image_size)
    assert found.shape == (3, expected, expected)
    for image, values in enumerate(attention.double().numpy()):
        stretched = (values - values.min()) / (values.max() - values.min())
        enlarged = ndimage.zoom(stretched, expected / side, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(found[image], enlarged, atol=1e-5)
        for threshold in (0.0, 0.5, 0.9):
            mask = attention_mask(attention, threshold, image_size)
            assert mask.dtype == torch.bool
            np.testing.assert_array_equal(mask, found > threshold)


def test_selection_has_no_gradient_and_scripts():
    attention = maps("noise", 2).requires_grad_()
    arguments = (torch.tensor([[30, 40], [50, 20]]), 3, 64, 0.5, 0.1, 0.9, 0.5)
    boxes, scores = select_instances(attention, *arguments)
    assert not boxes.requires_grad
    assert not scores.requires_grad
    scripted = torch.jit.script(select_instances)(attention, *arguments)
    assert torch.equal(scripted[0], boxes)
    assert torch.equal(scripted[1], scores)


def test_boxes_lie_on_the_white_cells_of_real_blood_smears(real_data):
    # The nuclei of white cells are purple: less green than blue. That stands in for the attention of a network.
    folder = real_data / "microscopy" / "bccd"
    checked = 0
    for path in sorted((folder / "JPEGImages").glob("*.jpg"))[:12]:
        tree = ET.parse(folder / "Annotations" / f"{path.stem}.xml")
        cells = [o.find("bndbox") for o in tree.iter("object") if o.findtext("name") == "WBC"]
        if len(cells) != 1:
            continue
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
        purple = torch.from_numpy((pixels[:, :, 2] - pixels[:, :, 1] - 40).clip(0))
        attention = torch.nn.functional.adaptive_avg_pool2d(purple[None], 7)
        boxes, scores = select_instances(attention, torch.tensor([pixels.shape[:2]]), 4, 224, 0.5, 0.1, 1.0, 0.5)
        cell = [float(cells[0].findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")]
        x, y = ((boxes[0, 0, :2] + boxes[0, 0, 2:]) / 2).tolist()
        assert cell[0] < x < cell[2], path.name
        assert cell[1] < y < cell[3], path.name
        assert scores[0, 0] > 0.2
        checked += 1
    assert checked >= 5
