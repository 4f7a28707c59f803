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
from gated_attention.demo_data import COLOUR_AGREES, DEMO_CLASSES, MIN_SIZE, PATTERN_GONE, make_demo_images

THUMBNAIL = 224  # that of the default settings for real images


@pytest.fixture(scope="module")
def demo():
    return make_demo_images(150, seed=3)


@pytest.fixture(scope="module")
def thumbnails(demo):
    return np.stack([thumbnail(image) for image in demo[0]])


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """The global branch's copy of uint8 H x W x 3: float32 side x side x 3 in 0..255."""
    stored = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float()
    small = F.interpolate(stored, [side, side], mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


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


def thumbnail_part(small: np.ndarray, image: np.ndarray, box: np.ndarray) -> np.ndarray:
    factor = THUMBNAIL / np.array([image.shape[1], image.shape[0]] * 2)
    return inside(small, np.round(box * factor).astype(int), margin=0.25)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_shapes_and_types(count):
    images, labels, boxes = make_demo_images(count)
    assert len(images) == len(boxes) == count
    assert labels.shape == (count,)
    assert labels.dtype == np.int64
    for image, of_image in zip(images, boxes, strict=True):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert of_image.dtype == np.int64
        assert of_image.shape[1] == 4


def test_classes_are_balanced_and_shuffled():
    labels = make_demo_images(20)[1]
    assert sorted(np.bincount(labels).tolist()) == [6, 7, 7]
    assert len(DEMO_CLASSES) == 3
    assert (np.diff(labels) == 0).any()


def test_sizes_differ_and_are_not_square(demo):
    heights, widths = np.array([image.shape[:2] for image in demo[0]]).T
    for sides in (heights, widths):
        assert sides.min() >= 0.96 * MIN_SIZE - 0.5
        assert sides.max() <= 1.04 * MIN_SIZE + 0.5
        assert sides.max() - sides.min() > 40
    assert np.mean(heights == widths) < 0.1


def test_same_seed_same_pictures_and_other_seed_others():
    first, again, other = (make_demo_images(5, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first[1], again[1])
    for position in (0, 2):
        for one, two in zip(first[position], again[position], strict=True):
            np.testing.assert_array_equal(one, two)
    assert len({image.tobytes() for image in (*first[0], *other[0])}) == 10


def test_boxes_lie_in_the_picture_and_apart(demo):
    fewest, most = demo_data._DARK_COUNT[0], demo_data._DARK_COUNT[1] - 1
    for image, boxes in zip(demo[0], demo[2], strict=True):
        assert fewest <= len(boxes) <= most
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (image.shape[1], image.shape[0])).all()
        check_lengths(boxes, scale=1)
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).mean(1) / 2
        pairs = np.triu_indices(len(boxes), 1)
        gaps = np.hypot(*(middle[:, None] - middle).transpose(2, 0, 1)) - half[:, None] - half
        # Corners of boxes may cross where cells are close; round cells of these sizes do not.
        assert gaps[pairs].min() > -4


def check_lengths(boxes: np.ndarray, scale: float) -> None:
    """A cell's outline is within 0.12 of its radius, and a box's edges within a pixel of the outline."""
    smallest, largest = demo_data._DARK_RADIUS
    lengths = boxes[:, 2:] - boxes[:, :2]
    assert lengths.min() >= 2 * 0.88 * smallest * scale - 2
    assert lengths.max() <= 2 * 1.12 * largest * scale + 2


def test_boxes_fit_the_dark_cells(demo):
    """Brute force: the dark cells are what is left when the picture is blurred and thresholded."""
    for image, boxes in zip(demo[0][:40], demo[2][:40], strict=True):
        # Green: the channel that all three colours are dark in.
        found, _ = ndimage.label(ndimage.gaussian_filter(image[..., 1].astype(float), 1.5) < 125)
        slices = [s for s in ndimage.find_objects(found) if (s[0].stop - s[0].start) > 15]
        assert len(slices) == len(boxes)
        edges = np.array([[s[1].start, s[0].start, s[1].stop, s[0].stop] for s in slices])
        for box in boxes:
            assert np.abs(edges - box).max(1).min() <= 3


def test_the_inside_at_full_resolution_decides_the_class_alone(demo):
    for image, label, boxes in zip(*demo, strict=True):
        for box in boxes:
            assert named_by_structure(*structure(inside(image, box))) == DEMO_CLASSES[label]


def test_the_pattern_is_gone_in_the_thumbnail(demo, thumbnails):
    """The same statistics inside the boxes, computed on the small copy, say nothing."""
    images, labels, boxes = demo
    statistics = [
        np.mean([(*structure(part), part.std()) for part in parts], axis=0)
        for parts in (
            [thumbnail_part(small, image, box) for box in of_image]
            for image, of_image, small in zip(images, boxes, thumbnails, strict=True)
        )
    ]
    assert accuracy(LogisticRegression(), np.array(statistics), labels) < 0.5


@pytest.mark.parametrize("side", [PATTERN_GONE, PATTERN_GONE // 2])
@pytest.mark.parametrize("size", [MIN_SIZE, 896])
def test_pictures_of_two_classes_differ_by_the_pattern_alone(size, side):
    """Drawn from one state of the random numbers; the small copy has much less of it than of the noise."""
    left, in_cells = [], []
    for seed in range(6):
        (smooth, boxes), *others = [
            demo_data._draw(np.random.default_rng(seed), size, label, seed % 3) for label in range(len(DEMO_CLASSES))
        ]
        cells = np.zeros((*smooth.shape[:2], 3), np.uint8)
        for x0, y0, x1, y1 in boxes:
            # A box ends where the cell's soft edge is half transparent.
            cells[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 1
        for other, same_boxes in others:
            np.testing.assert_array_equal(same_boxes, boxes)
            np.testing.assert_array_equal(other[cells == 0], smooth[cells == 0])
            change = other.astype(float) - smooth
            small_change = thumbnail(other, side) - thumbnail(smooth, side)
            left.append(np.sqrt((small_change**2).mean() / (change**2).mean()))
            in_cells.append(np.sqrt((small_change[thumbnail(cells, side) > 0.5] ** 2).mean()))
            # Clipped at 255 the pattern would have another mean.
            assert np.abs(change[cells[..., 0] == 1].mean(0)).max() < 0.2
    assert np.mean(left) < 0.02
    # What the copy's filter leaves of the noise: the square root of the sum of its squared weights.
    spot = np.zeros((size, size, 3), np.uint8)
    spot[size // 2, size // 2] = 255
    noise = demo_data._NOISE * np.sqrt((thumbnail(spot, side)[..., 0] ** 2).sum()) / 255 * size / side
    assert np.mean(in_cells) < noise / 5


@pytest.mark.parametrize("label", [1, 2])
def test_patterns_have_no_mean_and_one_variance(label):
    rng = np.random.default_rng(0)
    patterns = demo_data._pattern(rng, 300, 61, 1.0, label)
    low, high = demo_data._CONTRAST
    assert abs(patterns.mean()) < 0.002
    assert patterns.var() == pytest.approx((low**2 + low * high + high**2) / 3 / 2, rel=0.03)
    assert not demo_data._pattern(rng, 2, 61, 1.0, 0).any()


def test_the_thumbnail_shows_the_colour_and_no_more(demo, thumbnails):
    """The dark cells' colour agrees with the class in 0.6 of the pictures, and misleads both ways in the others."""
    images, labels, boxes = demo
    colours = np.array(
        [
            np.mean([thumbnail_part(small, image, box).mean((0, 1)) for box in of_image], axis=0)
            for image, of_image, small in zip(images, boxes, thumbnails, strict=True)
        ]
    )
    drawn = np.argmin(np.linalg.norm(colours[:, None] - demo_data._DARK_COLOURS, axis=2), axis=1)
    table = np.array([np.bincount(drawn[labels == label], minlength=3) for label in range(3)])
    assert np.diag(table).sum() / len(labels) == pytest.approx(COLOUR_AGREES, abs=0.03)
    assert abs(table - table.T).max() <= 4
    # What is best from the colours, learned or not, is no better than the share that agrees.
    for classifier in (LogisticRegression(max_iter=1000), NearestCentroid()):
        assert 0.5 < accuracy(classifier, colours, labels) < 0.68


@pytest.mark.parametrize("classifier", [LogisticRegression(max_iter=300), NearestCentroid()], ids=["linear", "nearest"])
def test_whole_thumbnails_give_little_away(demo, thumbnails, classifier):
    # 16 x 16 x 3 numbers and the histogram's moments: more numbers would only be learned by heart.
    blocks = thumbnails.reshape(-1, 16, 14, 16, 14, 3).mean((2, 4)).reshape(len(thumbnails), -1)
    moments = np.concatenate([thumbnails.mean((1, 2)), thumbnails.std((1, 2)), thumbnails.min((1, 2))], axis=1)
    assert accuracy(classifier, np.concatenate([blocks, moments], axis=1), demo[1]) < 0.66


def test_whole_thumbnails_have_the_same_statistics_where_colours_say_nothing(monkeypatch):
    monkeypatch.setattr(demo_data, "COLOUR_AGREES", 1 / 3)
    images, labels, _ = make_demo_images(120, seed=6)
    small = np.stack([thumbnail(image) for image in images])
    moments = np.concatenate([small.mean((1, 2)), small.std((1, 2)), small.min((1, 2)), small.max((1, 2))], axis=1)
    assert accuracy(LogisticRegression(), moments, labels) < 0.45


@pytest.mark.parametrize("size", [MIN_SIZE, 1008])
def test_pictures_cells_and_period_scale_with_the_size(size):
    images, labels, boxes = make_demo_images(6, size=size, seed=1)
    for image, label, of_image in zip(images, labels, boxes, strict=True):
        assert 0.96 * size - 0.5 <= min(image.shape[:2])
        assert max(image.shape[:2]) <= 1.04 * size + 0.5
        check_lengths(of_image, scale=size / MIN_SIZE)
        for box in of_image:
            part = inside(image, box)
            assert named_by_structure(*structure(part)) == DEMO_CLASSES[label]
            if label:
                assert period(part) == pytest.approx(size / PATTERN_GONE, rel=0.1)


def period(part: np.ndarray) -> float:
    """Pixels per period of the strongest wave, of the Fourier transform padded to steps of 1/128."""
    grey = part.mean(2) - part.mean()
    window = np.hanning(len(grey))[:, None] * np.hanning(grey.shape[1])
    spectrum = np.abs(np.fft.fft2(grey * window, (128, 128)))
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    return float(1 / frequencies.flat[np.where(frequencies > 0.08, spectrum, 0).argmax()])


def test_too_small_a_size_is_refused():
    with pytest.raises(ValueError, match="size is 671, expected 672 or more"):
        make_demo_images(1, size=671)


def accuracy(classifier, features: np.ndarray, labels: np.ndarray) -> float:
    """On the second half, learned on the first; and the other way round."""
    half = len(labels) // 2
    model = make_pipeline(StandardScaler(), classifier)
    first = model.fit(features[:half], labels[:half]).score(features[half:], labels[half:])
    return (first + model.fit(features[half:], labels[half:]).score(features[:half], labels[:half])) / 2
