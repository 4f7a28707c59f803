"""Figures of masks: one valid PNG each, what is drawn is what was given, wrong input is refused."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba_array
from PIL import Image

from multimix import mask_figures

LONG = "jsrt/a_folder_with_a_very_long_name_and_no_space_in_it/JPCLN001.png\nDice $0.95$"


def _check(path: Path, smallest: int = 200) -> None:
    """The only file of its folder, a PNG that decodes and is not blank."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert smallest <= min(pixels.shape[:2]) and max(pixels.shape) <= 2500
    assert pixels.std() > 5


def _lungs(count: int, shape: tuple[int, int] = (60, 50)) -> dict[str, list]:
    rng = np.random.default_rng(0)
    reference = np.zeros(shape, bool)
    reference[10:40, 5:20] = reference[10:40, 28:44] = True
    return {
        "images": [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)],
        "predicted": [np.roll(reference, 3, axis=1) for _ in range(count)],
        "references": [reference] * count,
        "captions": [LONG] * count,
    }


def _maps(count: int) -> dict[str, list]:
    lungs = _lungs(count)
    maps = [np.random.default_rng(1).random((60, 50)).astype(np.float32) for _ in range(count)]
    return {"images": lungs["images"], "saliency_maps": maps, "captions": lungs["captions"]}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that would have been written."""
    figures: list = []
    monkeypatch.setattr(mask_figures, "save_figure", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("count", [1, 2, 12])
def test_dice_boxes(tmp_path: Path, count: int):
    rng = np.random.default_rng(0)
    scores = {f"{LONG} {k}": rng.random(5 + k).tolist() for k in range(count)}
    mask_figures.save_dice_boxes(tmp_path / "a.png", scores=scores)
    _check(tmp_path / "a.png")


def test_dice_boxes_show_medians_counts_and_every_image(drawn: list):
    scores = {"shenzhen (in domain)": [0.9, 0.95, 0.8], "jsrt": [0.5, 0.6, 0.7, 0.0]}
    mask_figures.save_dice_boxes(Path("a.png"), scores=scores)
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.900", "0.550"]
    labels = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    assert labels == ["shenzhen (in domain) (n = 3)", "jsrt (n = 4)"]
    dots = [points.get_offsets()[:, 1].tolist() for points in axes.collections]
    assert dots == list(scores.values())
    assert axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 4, 7])
def test_boundaries(tmp_path: Path, count: int):
    lungs = _lungs(count)
    lungs["predicted"][-1] = np.zeros((60, 50), bool)  # nothing predicted: the reference alone
    mask_figures.save_boundaries(tmp_path / "a.png", **lungs)
    _check(tmp_path / "a.png")


def test_boundaries_lie_between_the_pixels_of_mask_and_background(drawn: list):
    lungs = _lungs(2)
    square, full = np.zeros((60, 50), bool), np.ones((60, 50), bool)
    square[10:20, 30:45] = True
    lungs["predicted"], lungs["references"] = [square, full], [full, square]
    mask_figures.save_boundaries(Path("a.png"), **lungs)
    boxes = {"square": [29.5, 9.5, 44.5, 19.5], "full": [-0.5, -0.5, 49.5, 59.5]}
    found = [
        {
            tuple(contours.get_edgecolor()[0]): [*contours.get_paths()[0].get_extents().extents]
            for contours in axes.collections
        }
        for axes in drawn[0].axes
    ]
    legend = drawn[0].legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    colours = [mask_figures.PREDICTED, mask_figures.REFERENCE]
    assert names == ["predicted", "reference"] and [line.get_color() for line in legend.get_lines()] == colours
    rgba = [tuple(to_rgba_array(colour)[0]) for colour in colours]
    for panel, expected in zip(found, (("square", "full"), ("full", "square")), strict=True):
        assert [panel[colour] for colour in rgba] == [boxes[name] for name in expected]


def test_an_empty_mask_has_no_outline(drawn: list):
    mask_figures.save_boundaries(Path("a.png"), **_lungs(1) | {"predicted": [np.zeros((60, 50), bool)]})
    (outline,) = drawn[0].axes[0].collections
    assert np.array_equal(outline.get_edgecolor(), to_rgba_array(mask_figures.REFERENCE))


def test_pictures_of_different_sizes_do_not_overlap(drawn: list):
    lungs = _lungs(5)
    lungs["images"][1] = np.zeros((20, 90), np.uint8)
    lungs["predicted"][1] = lungs["references"][1] = np.ones((20, 90), bool)
    mask_figures.save_boundaries(Path("a.png"), **lungs)
    mask_figures.save_boundaries(Path("a.png"), **_lungs(1))
    for count in (1, 5):
        mask_figures.save_saliency(Path("a.png"), **_maps(count))
    for figure in drawn:
        figure.draw_without_rendering()
        boxes = [axes.get_position() for axes in figure.axes]
        boxes += [t.get_window_extent().transformed(figure.transFigure.inverted()) for t in figure.texts]
        boxes += [k.get_window_extent().transformed(figure.transFigure.inverted()) for k in figure.legends]
        for number, box in enumerate(boxes):
            assert box.x0 > -0.01 and box.x1 < 1.01 and box.y0 > -0.01 and box.y1 < 1.01
            assert not any(box.shrunk(0.99, 0.99).overlaps(other) for other in boxes[:number])


@pytest.mark.parametrize("count", [1, 4])
def test_saliency(tmp_path: Path, count: int):
    mask_figures.save_saliency(tmp_path / "a.png", **_maps(count))
    _check(tmp_path / "a.png")


def test_saliency_is_scaled_by_its_own_percentile(drawn: list):
    maps = _maps(3)
    maps["saliency_maps"][0] *= 1e-6
    maps["saliency_maps"][1][:] = 0
    maps["saliency_maps"][2][:] = 0
    maps["saliency_maps"][2][5, 5] = 0.25  # too few bright points for the percentile
    mask_figures.save_saliency(Path("a.png"), **maps)
    shown = [axes.images[0].get_array() for axes in drawn[0].axes[:6]]
    for picture, image in zip(shown[::2], maps["images"], strict=True):
        assert np.array_equal(picture, image)
    first = maps["saliency_maps"][0]
    assert np.allclose(shown[1], np.minimum(first / np.percentile(first, 99.5), 1))
    assert (shown[1] == 1).sum() == 15  # the brightest half percent of 3000
    assert not shown[3].any()
    assert shown[5].sum() == shown[5][5, 5] == 1
