"""Weak and strong views: each operation against PIL and scipy, masks that move along, draws that the seed decides."""

import copy
import random
from collections import Counter

import numpy as np
import pytest
import torch
from monai.transforms import SomeOf
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from multimix.augment import AUGMENTATIONS, NUM_OPERATIONS, Augment, RandFlipCrop
from multimix.operations import GEOMETRIC, INTENSITY, POOL, move, pool_transforms, sampling_grid

HEIGHT, WIDTH = 48, 64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def grey(height=HEIGHT, width=WIDTH, seed=0, low=30, high=220) -> np.ndarray:
    """Smooth uint8 picture with noise, not symmetric, between two grey levels, H x W."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.standard_normal((height, width)), 4)
    noisy = smooth + 0.1 * smooth.std() * generator.standard_normal((height, width))
    return np.rint(low + (high - low) * (noisy - noisy.min()) / np.ptp(noisy)).astype(np.uint8)


def unit(picture: np.ndarray) -> torch.Tensor:
    """Uint8 H x W to float 1 x H x W in 0..1."""
    return torch.from_numpy(picture.astype(np.float32) / 255)[None]


def levels(image: torch.Tensor) -> np.ndarray:
    """Float 1 x H x W in 0..1 to H x W in grey levels, not rounded."""
    return image[0].numpy().astype(np.float64) * 255


def batch(count=6, height=HEIGHT, width=WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([unit(grey(height, width, seed)) for seed in range(count)])
    return images, (images > 0.5).to(torch.uint8)


def views_of(kind, images, masks=None, seed=(0,)):
    """Views of images, or of images and masks, of a new `Augment`."""
    augment = Augment(kind)
    augment.seed(*seed)
    view = augment({"image": images} if masks is None else {"image": images, "label": masks})
    return view["image"] if masks is None else (view["image"], view["label"])


def changed(name: str, picture: np.ndarray, *magnitude: float) -> np.ndarray:
    """A picture after an intensity operation, in grey levels."""
    return levels(INTENSITY[name][0](unit(picture), *magnitude))


def only(name: str, prob: float = 1.0):
    """The transform of one operation of the pool."""
    return dict(zip(POOL, pool_transforms(prob), strict=True))[name]


# Intensity operations against PIL


@pytest.mark.parametrize(("low", "high"), [(30, 220), (100, 140), (0, 255), (77, 77), (77, 78)])
def test_autocontrast(low, high):
    picture = np.clip(grey(low=30, high=220), low, high) if low != high else np.full((HEIGHT, WIDTH), low, np.uint8)
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(picture))).astype(float)
    found = changed("autocontrast", picture)
    # PIL cuts the fraction off.
    assert (found - expected > -1e-3).all() and (found - expected < 1.001).all()


@pytest.mark.parametrize(("low", "high"), [(30, 220), (0, 255), (90, 99), (77, 77)])
def test_equalise(low, high):
    for seed in range(4):
        picture = np.full((HEIGHT, WIDTH), low, np.uint8) if low == high else grey(seed=seed, low=low, high=high)
        expected = np.asarray(ImageOps.equalize(Image.fromarray(picture)))
        np.testing.assert_allclose(changed("equalise", picture), expected, atol=1e-3)


def test_equalise_of_few_pixels_beside_a_background():
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row, marked in ((0, 30), (1, 64), (2, 64), (3, 64), (4, 64)):  # below and above the 255 pixels of one step
        picture[row, :marked] = 40 + row
        expected = np.asarray(ImageOps.equalize(Image.fromarray(255 - picture)))
        np.testing.assert_allclose(changed("equalise", 255 - picture), expected, atol=1e-3)


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_posterise(bits):
    expected = np.asarray(ImageOps.posterize(Image.fromarray(grey()), bits))
    for drawn in (bits, bits + 0.99):
        np.testing.assert_allclose(changed("posterise", grey(), drawn), expected, atol=1e-3)


@pytest.mark.parametrize("threshold", [0, 60, 128, 200, 256])
def test_solarise(threshold):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(grey()), threshold))
    np.testing.assert_allclose(changed("solarise", grey(), threshold / 255), expected, atol=1e-3)


@pytest.mark.parametrize("factor", [0.05, 0.3, 0.95])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_blends(name, enhance, factor):
    expected = np.asarray(enhance(Image.fromarray(grey())).enhance(factor)).astype(float)
    found = changed(name, grey(), factor)
    # PIL rounds both the picture it blends with and the result.
    assert np.abs(found - expected).max() < 1.5
    assert np.abs(levels(unit(grey())) - expected).max() > 1.5 or factor == 0.95


def test_sharpness_written_out():
    image = torch.rand(1, 7, 9, generator=torch.Generator().manual_seed(0))
    smooth = image[0].clone()
    for row in range(1, 6):
        for column in range(1, 8):
            around = image[0, row - 1 : row + 2, column - 1 : column + 2].sum() + 4 * image[0, row, column]
            smooth[row, column] = around / 13
    torch.testing.assert_close(INTENSITY["sharpness"][0](image, 0.25)[0], 0.75 * smooth + 0.25 * image[0])


# Geometric operations against PIL (nearest, for masks) and scipy (bilinear, for images)


def pil_coefficients(name: str, magnitude: float) -> tuple[float, ...]:
    """What PIL's Image.transform takes: output to input pixels, from the top left corner."""
    return {
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, magnitude * WIDTH, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, magnitude * HEIGHT),
    }[name]


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("part", [-1.0, -0.37, 0.0, 0.41, 1.0])
def test_mask_moves_as_in_pil(name, part):
    magnitude = part * (30 if name == "rotate" else 0.29)  # 0.3 of the side would lie on pixel borders
    picture = Image.fromarray(grey())
    if name == "rotate":
        expected = picture.rotate(magnitude)
    else:
        expected = picture.transform(picture.size, Image.Transform.AFFINE, pil_coefficients(name, magnitude))
    found = move(GEOMETRIC[name][0], {"image": unit(grey()), "label": unit(grey())}, magnitude)["label"]
    wrong = np.abs(levels(found) - np.asarray(expected)) > 1e-3
    assert wrong.mean() < 0.005  # PIL calculates in 16 bits: pixels between two may go to the other one


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("part", [-1.0, 0.41])
def test_image_is_interpolated_as_in_scipy(name, part):
    magnitude = part * (30 if name == "rotate" else 0.3)
    if name == "rotate":
        cos, sin = np.cos(np.radians(magnitude)), np.sin(np.radians(magnitude))
        middle = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
        matrix = np.array([[cos, sin], [-sin, cos]])  # rows and columns, where PIL has x and y
        offset = middle - matrix @ middle
    else:
        a, b, c, d, e, f = pil_coefficients(name, magnitude)
        matrix = np.array([[e, d], [b, a]])
        offset = np.array([f, c]) + matrix @ [0.5, 0.5] - [0.5, 0.5]  # PIL counts from a pixel's corner
    expected = ndimage.affine_transform(grey().astype(float), matrix, offset, order=1, mode="grid-constant", cval=0)
    found = move(GEOMETRIC[name][0], {"image": unit(grey())}, magnitude)["image"]
    np.testing.assert_allclose(levels(found), expected, atol=0.02)


def test_outside_is_black_and_no_lung():
    ones = torch.ones(1, HEIGHT, WIDTH)
    found = move(GEOMETRIC["translate_x"][0], {"image": ones, "label": ones}, 0.25)
    for values in found.values():
        expected = torch.arange(WIDTH).lt(WIDTH * 3 // 4).float().expand(1, HEIGHT, -1)
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


def test_grid_of_the_unit_matrix_keeps_every_pixel():
    image = unit(grey())
    grid = sampling_grid((1, 0, 0, 0, 1, 0), image)
    found = torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0]
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


# The weak view


def all_weak_views(picture: np.ndarray) -> list[np.ndarray]:
    height, width = picture.shape
    above, left = height // 8, width // 8
    padded = np.pad(picture, ((above, above), (left, left)), mode="reflect")
    views = []
    for top in range(2 * above + 1):
        for first in range(2 * left + 1):
            view = padded[top : top + height, first : first + width]
            views += [view, view[:, ::-1]]
    return views


def test_weak_views_are_all_those_there_are():
    picture = grey(16, 24)
    known = {view.tobytes(): 0 for view in all_weak_views(picture)}
    assert len(known) == 2 * 5 * 7
    for view in views_of("weak", unit(picture).expand(1400, 1, -1, -1)):
        known[np.rint(levels(view)).astype(np.uint8).tobytes()] += 1  # KeyError: not a view that may be
    counts = np.array(list(known.values()))
    assert counts.min() > 3 and counts.max() < 45  # 20 expected of each
    assert 630 < counts[0::2].sum() < 770  # not mirrored


def test_small_sides_have_no_room_to_move():
    images = torch.rand(20, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    for view, image in zip(views_of("weak", images), images, strict=True):
        assert torch.equal(view, image) or torch.equal(view, image.flip(-1))


# Masks


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_masks_move_with_their_images(kind):
    """Images that are their own masks: where both are moved alike, they stay so up to the interpolated edge."""
    blobs = torch.stack([unit(grey(seed=seed)) > 0.5 for seed in range(60)])
    augment = Augment(kind)
    for name, transform in zip(POOL, augment.operations.transforms, strict=True):
        if name in INTENSITY:  # would change the images alone
            transform.change = lambda sample, *_: sample
    augment.seed(1)
    images, masks = augment({"image": blobs.float(), "label": blobs.float()}).values()
    assert ((masks == 0) | (masks == 1)).all()
    assert sum(not torch.equal(mask, blob.float()) for mask, blob in zip(masks, blobs, strict=True)) > 50
    differing = ((images > 0.5) != (masks > 0.5)).flatten(1).float().mean(1)
    # Each of two interpolations may move an edge by half a pixel; a mask that was not moved is far off.
    assert differing.max() < (0.06 if kind == "strong" else 1e-9)


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_operations_leave_masks_alone(name):
    image, mask = unit(grey()), (unit(grey()) > 0.5).float()
    transform = only(name)
    transform.set_random_state(seed=0)
    found = transform({"image": image, "label": mask})
    assert found["label"] is mask
    assert torch.equal(found["image"], image) == (name == "identity")


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_masks_change_nothing_about_the_images(kind):
    images, masks = batch()
    assert torch.equal(views_of(kind, images, masks)[0], views_of(kind, images))


# The composition


def test_strong_is_mirror_and_crop_then_two_of_the_pool_drawn_with_replacement():
    weak, some = Augment("strong").transform.transforms
    assert (weak.padding * 256, Augment("weak").crop.padding * 256) == (4, 32)  # as the authors have it
    assert isinstance(weak, RandFlipCrop) and isinstance(some, SomeOf)
    assert [some.min_num_transforms, some.max_num_transforms, len(some.transforms)] == [NUM_OPERATIONS, 2, len(POOL)]
    assert some.replace and [weak.prob, *(operation.prob for operation in some.transforms)] == [0.5] * 14


def test_pairs_of_operations_are_drawn_equally_often():
    augment = Augment("strong")
    drawn: list[int] = []
    for number, transform in enumerate(augment.operations.transforms):
        transform.prob, transform.magnitudes = 1, None
        transform.change = lambda sample, number=number: drawn.append(number) or sample
    augment.seed(0)
    augment({"image": torch.zeros(2000, 1, 2, 2)})
    pairs = [tuple(drawn[i : i + 2]) for i in range(0, len(drawn), 2)]
    assert len(pairs) == 2000 and 100 < sum(first == second for first, second in pairs) < 210  # 154 expected
    counts = Counter(drawn)
    assert (
        len(counts) == 13 and len(set(pairs)) == 13 * 13 and min(counts.values()) > 230 and max(counts.values()) < 390
    )  # 308 expected


@pytest.mark.parametrize("name", [name for name in POOL if name != "identity"])
def test_operations_are_applied_half_of_the_time_each_at_its_own_magnitude(name):
    image = unit(grey(16, 24))
    transform = only(name, prob=0.5)
    transform.set_random_state(seed=0)
    found = [transform({"image": image})["image"] for _ in range(600)]
    changed = [view for view in found if view is not image]
    assert 240 < len(changed) < 360
    different = len({view.numpy().tobytes() for view in changed})
    expected = {"autocontrast": 1, "equalise": 1, "posterise": 5}  # no magnitude, no magnitude, 4 to 8 bits
    assert different == expected[name] if name in expected else different > 100


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        *((name, 0.05, 0.95) for name in ("brightness", "contrast", "sharpness")),
        ("posterise", 4, 9),
        ("rotate", -30, 30),
        ("solarise", 0, 1),
        *((name, -0.3, 0.3) for name in ("shear_x", "shear_y", "translate_x", "translate_y")),
    ],
)
def test_ranges_of_the_magnitudes(name, low, high):
    drawn: list[float] = []
    transform = only(name)
    transform.set_random_state(seed=0)
    transform.change = lambda sample, magnitude: drawn.append(magnitude) or sample
    for _ in range(500):
        transform({"image": torch.zeros(1, 4, 4)})
    margin = (high - low) / 50
    assert low <= min(drawn) < low + margin and high - margin < max(drawn) <= high
    assert abs(np.mean(drawn) - (low + high) / 2) < 2.5 * margin


def test_each_image_has_its_own_views():
    for kind, least in {"weak": 30, "strong": 20}.items():  # a strong view may be little but mirrored
        views = views_of(kind, unit(grey()).expand(30, 1, -1, -1))
        assert len({view.numpy().tobytes() for view in views}) >= least


# Seeds


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_seed_decides_whatever_the_global_state_and_other_augments(kind):
    sample = dict(zip(("image", "label"), batch(12), strict=True))
    found = []
    for other in range(2):
        random.seed(other), np.random.seed(other), torch.manual_seed(other)
        augment, disturbing = Augment(kind), Augment(kind)
        for _ in range(other):
            augment(sample)
        augment.seed(0, 3, 17, 1)
        disturbing.seed(other)
        found.append(list(augment(sample).values()))
        disturbing(sample)
        found[-1] += augment(sample).values()
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][2])  # the next batch has other draws


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_other_numbers_other_views(kind):
    seeds = [(0,), (1,), (0, 0), (1, 0), (0, 1), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (2**40, 5)]
    found = {views_of(kind, batch(12)[0], seed=numbers).numpy().tobytes() for numbers in seeds}
    assert len(found) == len(seeds)


def test_global_random_states_are_untouched():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state()

    before = copy.deepcopy(states())
    for kind in AUGMENTATIONS:
        Augment(kind)({"image": batch()[0]})
        views_of(kind, *batch())
    after = states()
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])


# What comes in and what goes out


def test_none_returns_what_it_was_given():
    images, masks = batch()
    same_images, same_masks = views_of("none", images, masks)
    assert same_images is images and same_masks is masks


@pytest.mark.parametrize("kind", ["weak", "strong"])
@pytest.mark.parametrize(
    ("image_dtype", "mask_dtype"),
    [(torch.float32, torch.uint8), (torch.float16, torch.bool), (torch.float64, torch.int64)],
)
def test_shapes_dtypes_and_ranges(kind, image_dtype, mask_dtype):
    images, masks = batch(20, 40, 32)
    images, masks = images.to(image_dtype), masks.to(mask_dtype)
    given = images.clone(), masks.clone()
    found, found_masks = views_of(kind, images, masks)
    assert found.shape == images.shape and found.dtype == image_dtype
    assert found_masks.shape == masks.shape and found_masks.dtype == mask_dtype
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    assert set(found_masks.unique().tolist()) == {0, 1}
    assert torch.equal(images, given[0]) and torch.equal(masks, given[1])


def test_values_stay_finite_and_in_range():
    found = views_of("strong", batch(60)[0] * 3 - 1)
    assert found.isfinite().all() and found.min() == 0 and found.max() == 1
    for value in (0.0, 0.4, 1.0):
        assert views_of("strong", torch.full((60, 1, 16, 16), value)).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_device(kind, device):
    images, masks = batch(40)
    expected = views_of(kind, images, masks)
    with torch.device("meta"):  # a tensor made without naming the image's device would be there
        found = views_of(kind, images.to(device), masks.to(device))
    for there, here in zip(found, expected, strict=True):
        assert there.device.type == device
        assert ((there.cpu().float() - here.float()).abs() > 1e-3).float().mean() < 1e-3


@pytest.mark.parametrize("name", POOL)
def test_operations_never_wait_for_a_value(name):
    """A meta tensor has a shape and no values: an operation that looked at one, or named a device, would fail."""
    transform = only(name)
    transform.set_random_state(seed=0)
    found = transform({"image": torch.zeros(1, 16, 24, device="meta"), "label": torch.zeros(1, 16, 24, device="meta")})
    assert all(values.device.type == "meta" and values.shape == (1, 16, 24) for values in found.values())


def test_half_precision_regions_change_nothing():
    expected = views_of("strong", *batch(40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = views_of("strong", *batch(40))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", ["Weak", None])
def test_unknown_kind(kind):
    with pytest.raises(ValueError, match=f"augment is {kind!r}, expected one of none, weak, strong"):
        Augment(kind)


def test_real_images_stay_in_range(real_data):
    folder = real_data / "chest_xray" / "kermany_224" / "test" / "NORMAL"
    paths = sorted(folder.iterdir())[:8]
    images = torch.stack([unit(np.asarray(Image.open(path).convert("L"))) for path in paths])
    found = views_of("strong", images)
    assert found.min() >= 0 and found.max() <= 1
    assert not any(map(torch.equal, found, images))
