"""What is unlike lungs in a mask: made-up films, and the reference masks of two hospitals."""

import numpy as np
import pytest
from PIL import Image

from multimix.plausibility import oddities, shape_of, warn_of_odd

SIZE = 100


def film() -> tuple[np.ndarray, np.ndarray]:
    """A bright body between air at both sides, with two dark lungs: mask and picture."""
    mask, picture = np.zeros((SIZE, SIZE), bool), np.full((SIZE, SIZE), 200, np.uint8)
    mask[20:75, 24:44] = mask[20:75, 56:76] = True
    picture[:, :15] = picture[:, 85:] = 20
    picture[mask] = np.arange(mask.sum()) % 40 + 60
    return mask, picture


def odd(mask: np.ndarray, picture: np.ndarray) -> str:
    return oddities(shape_of(mask, picture))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (np.s_[0:0], ""),
        (np.s_[80:90, 24:40], "3 separate parts instead of 2"),
        (np.s_[40:42, 44:56], "1 separate parts instead of 2"),
        (np.s_[15:95, 20:46], ""),
        (np.s_[0:20, 24:44], "it touches 5% of the image's border"),
        (np.s_[20:75, 2:24], "21% of it has no chest wall beside it: air outside of the body?"),
        (np.s_[5:98, 56:80], "67% of it is the left lung"),
    ],
)
def test_what_is_added_to_two_lungs_is_told(change, found):
    mask, picture = film()
    mask[change] = True
    text = odd(mask, picture)
    assert text == "" if not found else found in text


def test_missing_lungs_are_told():
    mask, picture = film()
    assert odd(np.zeros_like(mask), picture) == "no lung was found"
    mask[:, 50:] = False
    assert "1 separate parts" in odd(mask, picture) and "0% of it is the left lung" in odd(mask, picture)
    mask[40:] = False
    assert "4% of the image is lung, expected 13% to 44%" in odd(mask, picture)


def test_black_padding_changes_nothing():
    mask, picture = film()
    mask[0:20, 24:44] = mask[20:75, 2:24] = True
    padding = ((30, 10), (5, 0))
    assert shape_of(np.pad(mask, padding), np.pad(picture, padding)) == shape_of(mask, picture)


def test_a_warning_names_the_first_files_and_counts_the_others(caplog):
    warn_of_odd("masks", [], 3)
    assert not caplog.text
    warn_of_odd("masks", [(f"{i}.png", "odd") for i in range(7)], 9)
    assert "7 of 9 masks are unlike lungs: 0.png (odd); " in caplog.text and "and 2 more" in caplog.text
    assert "5.png" not in caplog.text


def test_reference_masks_are_plausible_and_the_measures_are_those_of_the_card(real_data):
    folders = {"shenzhen_256": (255,), "jsrt_224": (150, 200)}
    texts = []
    for folder, values in folders.items():
        for path in sorted((real_data / "chest_xray" / folder / "masks").iterdir())[::8]:
            (image,) = (path.parents[1] / "images").glob(f"{path.stem.removesuffix('_mask')}.*")
            mask, picture = (np.asarray(Image.open(file).convert("L").resize((128, 128), 0)) for file in (path, image))
            texts.append(odd(np.isin(mask, values), picture))
    assert len(texts) > 100 and sum(map(bool, texts)) <= 0.04 * len(texts)
