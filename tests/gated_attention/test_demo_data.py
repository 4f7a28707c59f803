"""Synthetic cells: their inside decides the class and is gone in a small copy, which shows a misleading colour."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from gated_attention import demo_data
from gated_attention.demo_data import COLOUR_AGREES, DEMO_CLASSES, PATTERN_GONE, make_demo_images

THUMBNAIL = 224  # that of the default settings for real images
SIZE = 672


@pytest.fixture(scope="module")
def demo():
    """Pictures, labels, and the boxes of the dark cells of each."""
    images, labels = make_demo_images(150, seed=3)
    return images, labels, [dark_cells(image) for image in images]


@pytest.fixture(scope="module")
def thumbnails(demo):
    return np.stack([thumbnail(image) for image in demo[0]])


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """The global branch's copy of uint8 H x W x 3: float32 side x side x 3 in 0..255."""
    stored = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float()
    small = F.interpolate(stored, [side, side], mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def dark_cells(image: np.ndarray) -> np.ndarray:
    """Boxes n x 4 (left, top, right, bottom edge) of what is dark when green, dark in all three colours, is blurred."""
    found, _ = ndimage.label(ndimage.gaussian_filter(image[..., 1].astype(float), 1.5) < 125)
    slices = [s for s in ndimage.find_objects(found) if (s[0].stop - s[0].start) > 15]
    return np.array([[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in slices])


def inside(image: np.ndarray, box: np.ndarray, margin: float = 0.2) -> np.ndarray:
    """The middle of a box, as float: all of it lies in the cell."""
    x0, y0, x1, y1 = box
    across, down = round(margin * (x1 - x0)), round(margin * (y1 - y0))
    return image[y0 + down : y1 - down, x0 + across : x1 - across].astype(float)


def structure(part: np.ndarray) -> tuple[float, float]:
    """Energy of the differences and how much of it lies in one direction (0..1): Bigun's structure tensor."""
    grey = part.mean(2) / part.mean()
    gy, gx = ndimage.sobel(grey, 0)[1:-1, 1:-1], ndimage.sobel(grey, 1)[1:-1, 1:-1]
    xx, yy, xy = (gx * gx).mean(), (gy * gy).mean(), (gx * gy).mean()
    return xx + yy, float(np.hypot(xx - yy, 2 * xy) / (xx + yy))


def named_by_structure(energy: float, direction: float) -> str:
    return "smooth cells" if energy < 0.3 else "striped cells" if direction > 0.5 else "chequered cells"


def period(part: np.ndarray) -> float:
    """Pixels per period of the strongest wave, of the Fourier transform padded to steps of 1/128."""
    grey = part.mean(2) - part.mean()
    window = np.hanning(len(grey))[:, None] * np.hanning(grey.shape[1])
    spectrum = np.abs(np.fft.fft2(grey * window, (128, 128)))
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    return float(1 / frequencies.flat[np.where(frequencies > 0.08, spectrum, 0).argmax()])


def thumbnail_parts(small: np.ndarray, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    factor = THUMBNAIL / np.array([image.shape[1], image.shape[0]] * 2)
    return [inside(small, np.round(box * factor).astype(int), margin=0.25) for box in boxes]


def accuracy(classifier, features: np.ndarray, labels: np.ndarray) -> float:
    """On the second half, learned on the first; and the other way round."""
    half = len(labels) // 2
    model = make_pipeline(StandardScaler(), classifier)
    first = model.fit(features[:half], labels[:half]).score(features[half:], labels[half:])
    return (first + model.fit(features[half:], labels[half:]).score(features[:half], labels[:half])) / 2


def test_pictures_differ_in_size_and_classes_are_balanced_and_shuffled(demo):
    assert make_demo_images(0)[0] == []
    images, labels, _ = demo
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [50] * 3 and (np.diff(labels) == 0).any()
    assert sorted(np.bincount(make_demo_images(4)[1]).tolist()) == [1, 1, 2]
    assert all(image.dtype == np.uint8 and image.shape[2:] == (3,) for image in images)
    sides = np.array([image.shape[:2] for image in images])
    assert (sides >= 0.96 * SIZE - 0.5).all() and (sides <= 1.04 * SIZE + 0.5).all() and (np.ptp(sides, 0) > 40).all()
    assert np.mean(sides[:, 0] == sides[:, 1]) < 0.1


def test_same_seed_same_pictures_and_other_seed_others():
    first, again, other = (make_demo_images(5, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first[1], again[1])
    assert [image.tobytes() for image in first[0]] == [image.tobytes() for image in again[0]]
    assert len({image.tobytes() for image in (*first[0], *other[0])}) == 10


def test_dark_cells_are_whole_and_apart(demo):
    for image, boxes in zip(demo[0], demo[2], strict=True):
        assert 22 <= len(boxes) <= 30
        assert (boxes[:, :2] > 0).all() and (boxes[:, 2:] < (image.shape[1], image.shape[0])).all()
        # A cell's outline is within 0.12 of its radius, 34 to 40.
        lengths = boxes[:, 2:] - boxes[:, :2]
        assert lengths.min() >= 2 * 0.88 * 34 - 6 and lengths.max() <= 2 * 1.12 * 40 + 6


def test_the_inside_at_full_resolution_decides_the_class_alone(demo):
    for image, label, boxes in zip(*demo, strict=True):
        for box in boxes:
            assert named_by_structure(*structure(inside(image, box))) == DEMO_CLASSES[label]
        if label:
            assert period(inside(image, boxes[0])) == pytest.approx(SIZE / PATTERN_GONE, rel=0.1)


def test_the_pattern_is_gone_in_the_thumbnail(demo, thumbnails):
    """The same statistics inside the boxes, computed on the small copy, say nothing."""
    statistics = [
        np.mean([(*structure(part), part.std()) for part in thumbnail_parts(small, image, boxes)], axis=0)
        for image, boxes, small in zip(demo[0], demo[2], thumbnails, strict=True)
    ]
    assert accuracy(LogisticRegression(), np.array(statistics), demo[1]) < 0.5


@pytest.mark.parametrize("side", [PATTERN_GONE, PATTERN_GONE // 2])
def test_pictures_of_two_classes_differ_by_the_pattern_alone(side):
    """Drawn from one state of the random numbers; the small copy has much less of it than of the noise."""
    left, in_cells = [], []
    for seed in range(6):
        smooth, *others = [demo_data._draw(np.random.default_rng(seed), label, seed % 3) for label in range(3)]
        cells = np.zeros((*smooth.shape[:2], 3), np.uint8)
        for x0, y0, x1, y1 in dark_cells(smooth):
            cells[y0 - 4 : y1 + 4, x0 - 4 : x1 + 4] = 1
        for other in others:
            np.testing.assert_array_equal(other[cells == 0], smooth[cells == 0])
            change = other.astype(float) - smooth
            small_change = thumbnail(other, side) - thumbnail(smooth, side)
            left.append(np.sqrt((small_change**2).mean() / (change**2).mean()))
            in_cells.append(np.sqrt((small_change[thumbnail(cells, side) > 0.5] ** 2).mean()))
            # Clipped at 255 the pattern would have another mean.
            assert np.abs(change[cells[..., 0] == 1].mean(0)).max() < 0.2
    assert np.mean(left) < 0.02
    # What the copy's filter leaves of the noise: the square root of the sum of its squared weights.
    spot = np.zeros((SIZE, SIZE, 3), np.uint8)
    spot[SIZE // 2, SIZE // 2] = 255
    noise = demo_data._NOISE * np.sqrt((thumbnail(spot, side)[..., 0] ** 2).sum()) / 255 * SIZE / side
    assert np.mean(in_cells) < noise / 5


@pytest.mark.parametrize("label", [1, 2])
def test_patterns_have_no_mean_and_one_variance(label):
    patterns = demo_data._pattern(np.random.default_rng(0), 300, 61, label)
    low, high = demo_data._CONTRAST
    assert abs(patterns.mean()) < 0.002
    assert patterns.var() == pytest.approx((low**2 + low * high + high**2) / 3 / 2, rel=0.03)


def test_the_thumbnail_shows_the_colour_and_no_more(demo, thumbnails):
    """The dark cells' colour agrees with the class in 0.6 of the pictures, and misleads both ways in the others."""
    images, labels, boxes = demo
    colours = np.array(
        [
            np.mean([part.mean((0, 1)) for part in thumbnail_parts(small, image, of_image)], axis=0)
            for image, of_image, small in zip(images, boxes, thumbnails, strict=True)
        ]
    )
    drawn = np.argmin(np.linalg.norm(colours[:, None] - demo_data._DARK_COLOURS, axis=2), axis=1)
    table = np.array([np.bincount(drawn[labels == label], minlength=3) for label in range(3)])
    assert np.diag(table).sum() / len(labels) == pytest.approx(COLOUR_AGREES, abs=0.03)
    assert abs(table - table.T).max() <= 4
    # What is best from the colours, learned or not, is no better than the share that agrees; and so are 16 x 16 x 3
    # numbers of the whole copy with the histogram's moments (more would only be learned by heart).
    blocks = thumbnails.reshape(-1, 16, 14, 16, 14, 3).mean((2, 4)).reshape(len(thumbnails), -1)
    moments = np.concatenate([thumbnails.mean((1, 2)), thumbnails.std((1, 2)), thumbnails.min((1, 2))], axis=1)
    for classifier in (LogisticRegression(max_iter=1000), NearestCentroid()):
        assert 0.5 < accuracy(classifier, colours, labels) < 0.68
        assert accuracy(classifier, np.concatenate([blocks, moments], axis=1), labels) < 0.66


@pytest.mark.slow
def test_whole_thumbnails_have_the_same_statistics_where_colours_say_nothing(monkeypatch):
    monkeypatch.setattr(demo_data, "COLOUR_AGREES", 1 / 3)
    images, labels = make_demo_images(120, seed=6)
    small = np.stack([thumbnail(image) for image in images])
    moments = np.concatenate([small.mean((1, 2)), small.std((1, 2)), small.min((1, 2)), small.max((1, 2))], axis=1)
    assert accuracy(LogisticRegression(), moments, labels) < 0.45
