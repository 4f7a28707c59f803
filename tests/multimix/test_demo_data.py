"""Synthetic chest films: two lungs in every mask, and no brightness of the whole film that gives the class away."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from multimix.demo_data import _AWAY, _HOME, DEMO_CLASSES, _draw, make_demo_images

STATISTICS = {
    "mean": lambda films: films.mean(1),
    "std": lambda films: films.std(1),
    "max": lambda films: films.max(1),
    "min": lambda films: films.min(1),
    "median": lambda films: np.median(films, axis=1),
    "lower quarter": lambda films: np.percentile(films, 25, axis=1),
    "upper tenth": lambda films: np.percentile(films, 90, axis=1),
}


@pytest.fixture(scope="module", params=[False, True], ids=["home", "away"])
def demo(request):
    return make_demo_images(400, seed=3, shift=request.param)


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_shapes_and_types(count, size):
    images, labels, masks = make_demo_images(count, size=size)
    assert images.shape == masks.shape == (count, size, size)
    assert labels.shape == (count,)
    assert (images.dtype, labels.dtype, masks.dtype) == (np.uint8, np.int64, np.uint8)


def test_classes_are_balanced_and_shuffled():
    assert DEMO_CLASSES == ("clear", "opacity")
    labels = make_demo_images(41, size=32)[1]
    assert np.bincount(labels).tolist() == [21, 20]
    assert (np.diff(labels) == 0).any()


@pytest.mark.parametrize("shift", [False, True])
def test_same_seed_same_films(shift):
    first, second = (make_demo_images(6, seed=4, shift=shift) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_seeds_and_hospitals_share_no_film_and_no_mask():
    sets = [make_demo_images(8, seed=seed, shift=shift) for seed in (0, 1) for shift in (False, True)]
    for position in (0, 2):
        assert len({array.tobytes() for films in sets for array in films[position]}) == 4 * 8


def test_every_mask_has_two_lungs_of_plausible_size(demo):
    masks = demo[2]
    assert set(np.unique(masks)) == {0, 1}
    for mask in masks:
        lungs, number = ndimage.label(mask, np.ones((3, 3)))
        assert number == 2
        areas = np.bincount(lungs.ravel())[1:]
        assert areas.min() > 0.3 * areas.max()
        middle = [column for _, column in ndimage.center_of_mass(mask, lungs, [1, 2])]
        assert abs(middle[0] - middle[1]) > 0.2 * mask.shape[1]
    shares = masks.mean((1, 2))
    assert shares.min() > 0.1
    assert shares.max() < 0.5


def test_lungs_are_darker_than_what_surrounds_them(demo):
    images, labels, masks = demo
    for image, mask in zip(images[labels == 0], masks[labels == 0], strict=True):
        ring = ndimage.binary_dilation(mask, iterations=5) & ~ndimage.binary_dilation(mask, iterations=2)
        assert image[mask > 0].mean() < image[ring].mean() - 5


@pytest.mark.parametrize("statistic", STATISTICS)
def test_no_statistic_of_the_film_gives_the_class_away(demo, statistic):
    images, labels, _ = demo
    values = STATISTICS[statistic](images.reshape(len(images), -1).astype(float))
    assert 0.35 < roc_auc_score(labels, values) < 0.65


@pytest.mark.parametrize("hospital", [_HOME, _AWAY], ids=["home", "away"])
def test_an_opacity_brightens_one_lung_and_nothing_else(hospital):
    for seed in range(40):
        clear, mask = _draw(np.random.default_rng(seed), 64, opacity=False, hospital=hospital)
        opaque, same_mask = _draw(np.random.default_rng(seed), 64, opacity=True, hospital=hospital)
        np.testing.assert_array_equal(mask, same_mask)
        gain = opaque.astype(int) - clear
        lungs, _ = ndimage.label(mask, np.ones((3, 3)))
        assert (gain >= 0).all()
        assert len(np.unique(lungs[gain > 0])) == 1
        assert not gain[mask == 0].any()
        assert gain.max() >= 12


def test_the_label_is_the_opacity():
    rng = np.random.default_rng((5, False))
    labels = np.arange(6) % 2
    rng.shuffle(labels)
    images, made_labels, masks = make_demo_images(6, seed=5)
    np.testing.assert_array_equal(made_labels, labels)
    for image, mask, label in zip(images, masks, labels, strict=True):
        expected = _draw(rng, 64, opacity=label == 1, hospital=_HOME)
        np.testing.assert_array_equal((image, mask), expected)


def test_the_other_hospital_is_noisier_and_hazier():
    noise, contrast = [], []
    for shift in (False, True):
        images, _, masks = make_demo_images(100, seed=6, shift=shift)
        films = images.astype(float)
        lungs = ndimage.binary_erosion(masks, np.ones((1, 3, 3)))
        noise.append(np.median(np.abs(np.diff(films, axis=2))[:, :, 1:][lungs[:, :, 2:]]))
        films /= films.mean((1, 2), keepdims=True)
        contrast.append(films[masks == 0].mean() - films[masks == 1].mean())
    assert noise[1] > 1.5 * noise[0]
    assert contrast[1] < 0.8 * contrast[0]
