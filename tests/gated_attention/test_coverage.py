"""Coverage of reference boxes: areas against a mask painted in fine pixels, and the random masks against all places."""

import itertools
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gated_attention import coverage as module
from gated_attention.coverage import measure_coverage, save_coverage
from gated_attention.reference_boxes import ReferenceBox, read_reference_boxes

SIDE = 56  # cells of the mask: a quarter of 224


def coverage(mask: np.ndarray, boxes: list[ReferenceBox], size: tuple[int, int]) -> np.ndarray:
    return module._shares(mask, module._cell_edges(boxes, mask.shape, size))


def _random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int], name: str = "") -> list[ReferenceBox]:
    """Boxes with edges at whole pixels, some at the border of the image."""
    boxes = []
    for _ in range(count):
        (y0, y1), (x0, x1) = (np.sort(rng.choice(side + 1, 2, replace=False)).tolist() for side in size)
        boxes.append(ReferenceBox(name, x0, y0, x1, y1))
    return boxes


def _blob(rng: np.random.Generator, cells: int = SIDE) -> np.ndarray:
    at = np.arange(cells) / cells
    (y, x), radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.4)
    return (at[:, None] - y) ** 2 + (at - x) ** 2 < radius**2


def _painted(mask: np.ndarray, box: ReferenceBox, size: tuple[int, int], factor: int) -> float:
    """Share of the box in the mask, counted in pixels so fine that every edge of a cell is between two of them."""
    height, width = (side * factor for side in size)
    rows = (np.arange(height) * mask.shape[0]) // height
    columns = (np.arange(width) * mask.shape[1]) // width
    fine = mask[np.ix_(rows, columns)]
    y, x = (slice(int(a * factor), int(b * factor)) for a, b in ((box.y0, box.y1), (box.x0, box.x1)))
    return float(fine[y, x].mean())


@pytest.mark.parametrize(("cells", "size"), [(4, (6, 10)), (7, (5, 9)), (8, (40, 24)), (16, (12, 7))])
def test_coverage_equals_that_of_a_finely_painted_mask(cells: int, size: tuple[int, int]):
    rng = np.random.default_rng(cells)
    mask = rng.random((cells, cells)) < 0.4
    boxes = _random_boxes(rng, 40, size)
    expected = [_painted(mask, box, size, cells) for box in boxes]
    np.testing.assert_allclose(coverage(mask, boxes, size), expected, atol=1e-12)
    assert len(set(np.round(expected, 6))) > 12


def test_coverage_of_fractional_edges_and_of_parts_of_a_cell():
    mask = np.array([[True, False], [False, False]])  # the upper left quarter
    boxes = [
        ReferenceBox("", 0, 0, 10, 10),
        ReferenceBox("", 1.5, 1.5, 2.5, 3),
        ReferenceBox("", 4, 0, 6, 5),
        ReferenceBox("", 4.75, 4.5, 5.75, 6.5),
        ReferenceBox("", 5, 5, 10, 10),
        ReferenceBox("", 0, 7, 2, 10),
    ]
    np.testing.assert_allclose(coverage(mask, boxes, (10, 10)), [0.25, 1, 0.5, 0.25 * 0.25, 0, 0], atol=1e-15)


def _set(count: int = 6, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    files = [f"{k}.png" for k in range(count)]
    sizes = {file: (int(rng.integers(30, 90)), int(rng.integers(30, 90))) for file in files}
    boxes = {
        file: _random_boxes(rng, 5, sizes[file], "RBC") + _random_boxes(rng, k % 3, sizes[file], "WBC")
        for k, file in enumerate(files)
    }
    return {"masks": {file: _blob(rng, 12) for file in files}, "boxes": boxes, "sizes": sizes}


def test_measured_figures_are_those_of_painted_masks():
    given = _set()
    result = measure_coverage(**given)
    by_name: dict[str, list] = {"RBC": [], "WBC": []}
    for file, boxes in given["boxes"].items():
        for box in boxes:
            by_name[box.name].append((file, _painted(given["masks"][file], box, given["sizes"][file], 12) >= 0.5))
    for row, found in zip(
        [result.overall, *result.by_name], [by_name["RBC"] + by_name["WBC"], *by_name.values()], strict=True
    ):
        files = {file for file, _ in found}
        covered = sum(share for _, share in found)
        assert (row.images, row.boxes, row.covered) == (len(files), len(found), covered)
        assert row.covered_share == pytest.approx(covered / len(found))
        assert row.mask_share == pytest.approx(np.mean([given["masks"][file].mean() for file in files]))
    assert 0 < result.overall.covered_share < 1
    assert [row.name for row in result.by_name] == ["RBC", "WBC"]


def test_half_of_a_box_counts_as_covered_and_less_does_not():
    mask = np.zeros((7, 7), bool)
    mask[:, :1] = True
    # The cell ends at 640 / 7 pixels: as a float, a box around that place is half covered but for rounding.
    edge = 640 / 7
    for more, covered in ((0.0, 1), (1e-3, 0)):
        boxes = {"a": [ReferenceBox("", edge - width, 0, edge + width + more, 480) for width in (1, 3.3, 17.7, 80.1)]}
        result = measure_coverage(masks={"a": mask}, boxes=boxes, sizes={"a": (480, 640)})
        assert result.overall.covered_share == covered


def test_random_places_approach_the_mean_over_all_places():
    given = _set(2)
    cells, expected = 12, []
    for file, boxes in given["boxes"].items():
        for shift in itertools.product(range(cells), repeat=2):
            moved = np.roll(given["masks"][file], shift, axis=(0, 1))
            expected.append(coverage(moved, boxes, given["sizes"][file]) >= 0.5 - 1e-9)
    mean = sum(found.sum() for found in expected) / sum(found.size for found in expected)
    result = measure_coverage(**given, num_shifts=2000)
    assert 0.05 < mean < 0.95
    assert result.overall.random_share == pytest.approx(mean, abs=0.02)


def test_random_places_are_those_of_the_rolled_mask():
    given, num_shifts = _set(3), 7
    expected = []
    for file, boxes in given["boxes"].items():
        rng = np.random.default_rng([5, zlib.crc32(file.encode())])
        for shift in rng.integers(12, size=(num_shifts, 2)):
            moved = np.roll(given["masks"][file], tuple(-shift), axis=(0, 1))
            expected += (coverage(moved, boxes, given["sizes"][file]) >= 0.5).tolist()
    result = measure_coverage(**given, num_shifts=num_shifts, seed=5)
    assert 0 < np.mean(expected) < 1
    assert result.overall.random_share == pytest.approx(np.mean(expected))


def test_figures_depend_on_the_seed_alone():
    given = _set()
    first = measure_coverage(**given)
    backwards = {key: dict(reversed(values.items())) for key, values in given.items()}
    assert measure_coverage(**backwards) == first == measure_coverage(**given)
    assert measure_coverage(**given, seed=1).overall.random_share != first.overall.random_share
    # An image has the same random places whatever else is in the set.
    alone = {key: {file: values[file] for file in ("1.png",)} for key, values in given.items()}
    more = {key: {file: values[file] for file in ("0.png", "1.png")} for key, values in given.items()}
    other = {key: {file: values[file] for file in ("0.png",)} for key, values in given.items()}
    total = sum(row.random_share * row.boxes for row in (measure_coverage(**g).overall for g in (alone, other)))
    both = measure_coverage(**more).overall
    assert both.random_share * both.boxes == pytest.approx(total)


def test_images_without_boxes_do_not_count():
    given = _set()
    expected = measure_coverage(**given)
    given["boxes"]["empty.png"], given["masks"]["empty.png"] = [], np.ones((12, 12), bool)
    assert measure_coverage(**given) == expected


def test_metrics_and_rows():
    result = measure_coverage(**_set())
    metrics = result.metrics()
    assert list(metrics["by_name"]) == ["RBC", "WBC"]
    assert metrics["boxes"] == sum(row["boxes"] for row in metrics["by_name"].values())
    assert (metrics["covered_from"], metrics["num_shifts"], metrics["seed"]) == (0.5, 20, 0)
    rows = result.rows()
    assert [row["name"] for row in rows] == ["all boxes", "RBC", "WBC"]
    for row, same in zip(rows, [metrics, *metrics["by_name"].values()], strict=True):
        assert all(same[key] == value for key, value in row.items() if key != "name")
        assert all(type(value) in (str, int, float) for value in row.values())  # for JSON
    unnamed = _set()
    unnamed["boxes"] = {f: [replace(box, name="") for box in boxes] for f, boxes in unnamed["boxes"].items()}
    assert measure_coverage(**unnamed).by_name == ()
    unnamed["boxes"]["0.png"][0] = replace(unnamed["boxes"]["0.png"][0], name="WBC")
    assert [row.name for row in measure_coverage(**unnamed).by_name] == ["unnamed", "WBC"]


def test_bccd_with_masks_of_the_boxes(real_data: Path):
    root = real_data / "microscopy" / "bccd"
    files = [f"{name}.jpg" for name in (root / "ImageSets" / "Main" / "test.txt").read_text().split()]
    sizes = {}
    for file in files:
        with Image.open(root / "JPEGImages" / file) as image:
            sizes[file] = image.size[::-1]
    boxes = read_reference_boxes(root / "Annotations", files, sizes.__getitem__)
    white = {file: np.zeros((SIDE, SIDE), bool) for file in files}
    for file, (height, width) in sizes.items():
        for box in (box for box in boxes[file] if box.name == "WBC"):
            y = slice(int(box.y0 * SIDE / height), int(np.ceil(box.y1 * SIDE / height)))
            white[file][y, int(box.x0 * SIDE / width) : int(np.ceil(box.x1 * SIDE / width))] = True
    result = {row["name"]: row for row in measure_coverage(masks=white, boxes=boxes, sizes=sizes).rows()}
    assert result["WBC"]["covered_share"] == 1
    assert result["RBC"]["covered_share"] < 0.2
    # A mask at random covers the boxes about as often as it covers the image.
    assert abs(result["WBC"]["random_share"] - result["WBC"]["mask_share"]) < 0.06
    assert result["WBC"]["mask_share"] < 0.2


@pytest.mark.parametrize("count", [1, 30])
def test_figure(tmp_path: Path, count: int):
    given = _set()
    names = [f"a_long name of a cell $x$ {k}" for k in range(count)]
    boxes = [ReferenceBox(name, 0, 0, 9, 9) for name in names]
    given["boxes"] = dict.fromkeys(given["sizes"], boxes)
    save_coverage(tmp_path / "coverage.png", result=measure_coverage(**given))
    with Image.open(tmp_path / "coverage.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) >= 200 and max(pixels.shape) <= 2500 and pixels.std() > 5


def test_figure_shows_the_figures(monkeypatch: pytest.MonkeyPatch):
    figures: list = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    result = measure_coverage(**_set())
    save_coverage(Path("a.png"), result=result)
    axes = figures[0].axes[0]
    drawn = [[bar.get_width() for bar in bars] for bars in axes.containers]
    rows = result.rows()
    assert drawn == [[row[key] for row in rows] for key in ("covered_share", "random_share", "mask_share")]
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == ["all boxes", "RBC", "WBC"]
    assert [text.get_text() for text in axes.texts] == [f"{value:.1%}" for values in drawn for value in values]
    assert "not drawn" not in axes.get_xlabel()
    assert axes.yaxis_inverted()  # all boxes come first
    save_coverage(Path("a.png"), result=replace(result, by_name=result.by_name * 10))
    assert "1 more names, of fewer boxes, are not drawn" in figures[1].axes[0].get_xlabel()
    assert len(figures[1].axes[0].containers[0]) == 20
