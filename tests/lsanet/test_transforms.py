"""From pixels to the network's input: values written out by hand, padding, resizing, and what is random."""

import numpy as np
import pytest
import torch
from PIL import Image

from label_efficient.data.picture_transforms import (
    LoadPictured,
    Preprocessd,
    Probabilitiesd,
    load_image,
    to_uint8_picture,
)
from lsanet.transforms import AUGMENTATIONS, Augment, PrepareBatch, Preprocess


def picture(count=1, channels=3, height=16, width=16, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def upright(count: int, size: int = 32) -> torch.Tensor:
    """Pictures with four quarters of their own value, clockwise from the top left."""
    image = torch.empty(1, 3, size, size)
    half = size // 2
    image[..., :half, :half], image[..., :half, half:] = 0.8, 0.3
    image[..., half:, half:], image[..., half:, :half] = -0.3, -0.8
    return image.expand(count, -1, -1, -1).contiguous()


# Preprocessing


def test_values_by_hand():
    preprocess = Preprocess(image_size=2, mean=[0.5, 0.4, 0.2], std=[0.5, 0.2, 0.1])
    image = torch.tensor([[[0, 255], [51, 102]]] * 3, dtype=torch.uint8)
    expected = [[[-1, 1], [-0.6, -0.2]], [[-2, 3], [-1, 0]], [[-2, 8], [0, 2]]]
    found = preprocess(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(preprocess(image.float()), found, atol=0, rtol=0)


@pytest.mark.parametrize("size", [16, 5, 40])
def test_grey_is_colour_with_equal_channels(size):
    preprocess = Preprocess(image_size=size, mean=[0.5, 0.4, 0.2], std=[0.5, 0.2, 0.1])
    grey = picture(4, channels=1)
    found = preprocess(grey)
    assert found.shape == (4, 3, size, size)
    torch.testing.assert_close(found, preprocess(grey.expand(-1, 3, -1, -1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(2, 6, (2, 4), (0, 6)), (6, 2, (0, 6), (2, 4)), (3, 6, (1, 4), (0, 6)), (6, 6, (0, 6), (0, 6))],
)
def test_padding_is_black_and_centred(height, width, rows, columns):
    image = torch.full((1, height, width), 200, dtype=torch.uint8)
    expected = torch.zeros(1, 6, 6)
    expected[:, rows[0] : rows[1], columns[0] : columns[1]] = 200
    assert torch.equal(Preprocess(image_size=6).resize(image), expected)
    squeezed = Preprocess(image_size=6, keep_aspect=False).resize(image)
    torch.testing.assert_close(squeezed, torch.full((1, 6, 6), 200.0))


@pytest.mark.parametrize(("height", "width", "size"), [(48, 48, 28), (64, 64, 16), (100, 100, 33), (20, 20, 28)])
def test_resizing_is_that_of_pillow(height, width, size):
    image = picture(1, 3, height, width)[0]
    reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
    found = Preprocess(image_size=size).resize(image).permute(1, 2, 0).numpy()
    assert np.abs(found - np.asarray(reference, dtype=np.float32)).max() <= 1


@pytest.mark.parametrize("keep_aspect", [True, False])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (1, 20, 13), (3, 7, 30)])
def test_single_image_is_the_same_as_in_a_batch(keep_aspect, channels, height, width):
    preprocess = Preprocess(image_size=16, keep_aspect=keep_aspect)
    batch = picture(5, channels, height, width)
    singles = torch.stack([preprocess(image) for image in batch])
    assert singles.shape == (5, 3, 16, 16)
    stored = batch.float()
    torch.testing.assert_close(preprocess(stored), singles, atol=1e-6, rtol=0)
    assert torch.equal(stored, batch.float())  # what is cached is left alone


@pytest.mark.parametrize(
    "kwargs", [{"mean": [0.5]}, {"std": [0.5, 0.5]}, {"std": [0.5, 0.5, 0]}, {"std": [0.5, 0.5, -1]}]
)
def test_mean_and_std_of_another_form(kwargs):
    with pytest.raises(ValueError, match=r"mean=.* std=.*: expected three numbers each, std above 0"):
        Preprocess(image_size=8, **kwargs)


def test_dictionary_transforms_read_and_preprocess_the_same_pixels(tmp_path):
    pixels = picture(1, 3, 9, 14)[0]
    path = tmp_path / "a.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(load_image(path), pixels)
    preprocess = Preprocess(image_size=8)
    loaded = LoadPictured(keys="image")({"image": str(path), "label": 1})
    assert loaded["label"] == 1 and loaded["image"].meta["filename_or_obj"] == str(path)
    found = Preprocessd(keys="image", preprocess=preprocess)(loaded)["image"]
    assert torch.equal(torch.as_tensor(found), preprocess(pixels))


# Random changes


def augmented(kind: str, image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Augment(kind)(image)


def test_none_changes_nothing_and_takes_no_random_number():
    image = upright(3)
    torch.manual_seed(0)
    first = torch.rand(1)
    assert torch.equal(augmented("none", image), image)
    assert torch.rand(1) == first


@pytest.mark.parametrize("kind", ["light", "dihedral"])
def test_each_image_is_changed_its_own_way_and_by_the_seed_alone(kind):
    image = upright(8)
    before = image.clone()
    found = augmented(kind, image)
    assert found.shape == image.shape and found.dtype == torch.float32 and torch.isfinite(found).all()
    assert torch.equal(image, before)
    for index in range(1, 8):
        assert (found[index] - found[0]).abs().max() > 0.01
    np.random.seed(1)
    assert torch.equal(augmented(kind, image), found)
    assert not torch.equal(augmented(kind, image, seed=1), found)
    assert augmented(kind, upright(2)[..., :20]).shape == (2, 3, 32, 20)


def orientations(kind: str, count: int) -> set[tuple[int, ...]]:
    """Order of the quarters' values, darkest first, read clockwise from the top left."""
    found = augmented(kind, upright(count)).mean(1)
    quarters = torch.stack(
        [found[:, 10, 10], found[:, 10, 21], found[:, 21, 21], found[:, 21, 10]], dim=1
    )  # well inside, where a turn by 10 degrees and a shift by a twentieth of the side do not reach the borders
    return {tuple(row.tolist()) for row in quarters.argsort(dim=1).argsort(dim=1)}


def test_dihedral_reaches_all_eight_positions_of_a_square_and_no_other():
    once = (3, 2, 1, 0)
    turned = {tuple(np.roll(order, turn).tolist()) for order in (once, once[::-1]) for turn in range(4)}
    assert len(turned) == 8 and orientations("dihedral", 400) == turned


def test_light_keeps_the_top_at_the_top_and_mirrors():
    assert orientations("light", 400) == {(3, 2, 1, 0), (2, 3, 0, 1)}


def test_each_image_is_turned_by_its_own_angle_of_at_most_ten_degrees():
    bar = torch.zeros(100, 3, 65, 65)
    bar[:, :, 30:35, 18:47] = 1
    found = augmented("light", bar)[:, 0].double()
    weight = (found - found.flatten(1).median(dim=1).values[:, None, None]).clamp(min=0)
    weight /= weight.sum(dim=(1, 2), keepdim=True)
    y, x = torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="ij")
    x = x - (weight * x).sum(dim=(1, 2), keepdim=True)
    y = y - (weight * y).sum(dim=(1, 2), keepdim=True)
    moments = [(weight * product).sum(dim=(1, 2)) for product in (2 * x * y, x * x - y * y)]
    angles = torch.rad2deg(torch.atan2(*moments) / 2)
    assert angles.abs().max() <= 10.5 and angles.min() < -5 and angles.max() > 5


def test_light_changes_are_small():
    flat = torch.full((200, 3, 8, 8), 0.5)
    found = augmented("light", flat)[:, :, 4, 4]
    assert (found - 0.5).abs().max() <= 0.15 + 1e-6 and found.std() > 0.02
    assert torch.equal(found[:, 0], found[:, 1])


def test_unknown_kind():
    with pytest.raises(ValueError, match=rf"augment is 'heavy', expected one of {', '.join(AUGMENTATIONS)}"):
        Augment("heavy")


def test_prepare_batch_is_preprocessing_then_augmentation():
    preprocess = Preprocess(image_size=8)
    batch = {"image": picture(4), "label": torch.tensor([0, 1, 2, 3])}
    image, label = PrepareBatch(preprocess)(batch, device="cpu")
    assert torch.equal(image, preprocess(batch["image"])) and torch.equal(label, batch["label"])
    torch.manual_seed(0)
    image, _ = PrepareBatch(preprocess, Augment("light"))(batch, device="cpu")
    assert torch.equal(image, augmented("light", preprocess(batch["image"])))
    assert PrepareBatch(preprocess)({"image": batch["image"]})[1] is None


# After the network


def test_probabilities():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    odds = torch.tensor([[np.e, np.e**2, np.e**-1], [1, 1, 1]], dtype=torch.float32)
    found = Probabilitiesd(keys="pred")({"pred": logits, "label": 1})
    torch.testing.assert_close(found["pred"], odds / odds.sum(1, keepdim=True))
    assert found["label"] == 1
    found = Probabilitiesd(keys="pred", multi_label=True)({"pred": logits})["pred"]
    torch.testing.assert_close(found, odds / (1 + odds))
    halved = odds**0.5
    found = Probabilitiesd(keys="pred", temperature=2.0)({"pred": logits[0]})["pred"]
    torch.testing.assert_close(found, halved[0] / halved[0].sum())


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_stored_image_as_a_picture(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = to_uint8_picture(image)
    assert found.shape == (4, 5, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found[..., 2], image.reshape(4, 5, -1)[..., -1])
