"""How much of the reference boxes the attention mask covers, beside what a mask of that area covers by chance.

The published figure ("Microscopic fine-grained instance classification through deep attention", 2020: 72 % of a
pathologist's boxes on 100 images are covered) says neither what counts as covered nor how large the masks are, and a
mask of the whole image covers everything. Here a box is covered if at least half of its area lies in the mask, and two
more figures stand beside the share of covered boxes:

    * the share of the image that the mask covers,
    * the share of boxes that the same mask covers at random places: moved by whole cells, down and across, and
      wrapped around at the borders, which keeps its area and shape and covers every place of the image equally often.
      Scattered pixels of the same area would be no baseline: they cover about the same share of every box, so that
      none counts as covered below half of the image, and all do above.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from label_efficient.report.drawing import COLOURS, FAINT, INK, add_grid, new_figure, save_figure, wrap_text

from .reference_boxes import ReferenceBox

COVERED_FROM = 0.5  # share of a box's area within the mask
_LEAST = COVERED_FROM - 1e-6  # half of a box is half of it, in spite of floating point
_MAX_BARS = 20


@dataclass(frozen=True)
class Coverage:
    """Figures of the boxes of one name, or of all."""

    name: str
    images: int  # that have one of the boxes at least
    boxes: int
    covered: int  # boxes of which at least half lies in the attention mask
    covered_share: float
    random_share: float  # of the boxes, that the same mask covers at random places
    mask_share: float  # of the image, that the mask covers: mean over `images`


@dataclass(frozen=True)
class CoverageResult:
    """Coverage of a set of images; `by_name` has most boxes first, and is empty where all have one name or none."""

    overall: Coverage
    by_name: tuple[Coverage, ...]
    num_shifts: int
    seed: int

    def metrics(self) -> dict[str, Any]:
        """For `metrics.json`."""
        (_, overall), *by_name = [(row.pop("name"), row) for row in self.rows()]
        settings = {"covered_from": COVERED_FROM, "num_shifts": self.num_shifts, "seed": self.seed}
        return {**overall, **settings, "by_name": dict(by_name)}

    def rows(self) -> list[dict[str, Any]]:
        """Rows of a table, with the keys `name` to `mask_share`: all boxes, then each name."""
        return [asdict(row) for row in (self.overall, *self.by_name)]


def measure_coverage(
    *,
    masks: Mapping[str, np.ndarray],
    boxes: Mapping[str, Sequence[ReferenceBox]],
    sizes: Mapping[str, tuple[int, int]],
    num_shifts: int = 20,
    seed: int = 0,
) -> CoverageResult:
    """Coverage of the boxes of many images. Images without a box do not count, in the masks' share neither.

    By file: masks bool m x m, stretched over the whole image; boxes within it, as `read_reference_boxes` gives them;
    height and width in pixels of each image with boxes. The `num_shifts` random places of a mask depend on the seed and
    the name of the file alone, so that other images in the set change nothing.
    """
    rows: dict[str, list[tuple[str, float, float, float]]] = {}  # of a name: file, covered, at random, mask share
    for file in sorted(file for file, found in boxes.items() if found):
        mask, edges = masks[file], _cell_edges(boxes[file], masks[file].shape, sizes[file])
        covered = _shares(mask, edges) >= _LEAST
        # Unlike hash(), the checksum of the name is the same in every process.
        at_random = _at_random(mask, edges, num_shifts, [seed, zlib.crc32(file.encode())])
        for box, *figures in zip(boxes[file], covered.tolist(), at_random.tolist(), strict=True):
            rows.setdefault(box.name or "unnamed", []).append((file, *figures, float(mask.mean())))
    overall = _summary("all boxes", [row for of_name in rows.values() for row in of_name])
    by_name = [_summary(name, of_name) for name, of_name in rows.items()] if len(rows) > 1 else []
    return CoverageResult(overall, tuple(sorted(by_name, key=lambda c: (-c.boxes, c.name))), num_shifts, seed)


def _summary(name: str, rows: Sequence[tuple[str, float, float, float]]) -> Coverage:
    files, covered, at_random, mask_shares = zip(*rows, strict=True)
    of_image = dict(zip(files, mask_shares, strict=True))
    return Coverage(
        name=name,
        images=len(of_image),
        boxes=len(rows),
        covered=int(sum(covered)),
        covered_share=float(np.mean(covered)),
        random_share=float(np.mean(at_random)),
        mask_share=float(np.mean(list(of_image.values()))),
    )


def _at_random(mask: np.ndarray, edges: np.ndarray, num_shifts: int, seed: list[int]) -> np.ndarray:
    """Share of random places of the mask at which it covers each box, (N,)."""
    rows, columns = np.random.default_rng(seed).integers(mask.shape, size=(num_shifts, 2)).T
    # A wrapped mask that moves under the boxes is the same as boxes that move over the mask laid out four times.
    moved = edges + np.stack([columns, rows, columns, rows], axis=1)[:, None]
    shares = _shares(np.tile(mask, (2, 2)), moved.reshape(-1, 4))
    return (shares >= _LEAST).reshape(num_shifts, -1).mean(axis=0)


def _cell_edges(boxes: Sequence[ReferenceBox], shape: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """Edges x0, y0, x1, y1 of the boxes in cells of the mask, float64 N x 4."""
    edges = np.array([(box.x0, box.y0, box.x1, box.y1) for box in boxes], dtype=np.float64).reshape(-1, 4)
    return edges / (size[::-1] * 2) * (shape[::-1] * 2)


def _shares(mask: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of each box's area that lies within the mask, float64 (N,), exact also where a box cuts through cells."""
    # Number of cells of the mask above and left of each corner of a cell, (m + 1) x (m + 1). The integral of a mask
    # that is constant within its cells is bilinear within them: interpolating it at a fractional place rounds nothing.
    sums = np.pad(mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1), ((1, 0), (1, 0)))
    x0, y0, x1, y1 = edges.T
    corners = [[y1, x1], [y0, x1], [y1, x0], [y0, x0]]
    at = [ndimage.map_coordinates(sums, corner, order=1, mode="nearest") for corner in corners]
    inside = at[0] - at[1] - at[2] + at[3]
    return np.clip(inside / ((x1 - x0) * (y1 - y0)), 0, 1)


def save_coverage(path: Path, *, result: CoverageResult) -> None:
    """Bars for all boxes and each name: covered by attention, by the same masks at random places, area of the masks.

    Of more than 20 rows, those with most boxes are drawn.
    """
    rows = [result.overall, *result.by_name][:_MAX_BARS]
    figure = new_figure(7.2, 1.5 + 0.72 * len(rows))
    axes = figure.subplots()
    kinds = [
        ("boxes covered by the attention mask", "covered_share", COLOURS[0]),
        ("boxes covered by the same mask at random places", "random_share", COLOURS[4]),
        ("share of the image that the mask covers", "mask_share", FAINT),
    ]
    for shift, (label, share, colour) in zip((-0.26, 0, 0.26), kinds, strict=True):
        values = [getattr(row, share) for row in rows]
        bars = axes.barh(np.arange(len(rows)) + shift, values, height=0.24, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=8, color=INK)
    names = [f"{wrap_text(row.name, 22)}\n(n = {row.boxes})" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    left_out = len(result.by_name) + 1 - len(rows)
    label = f"share (covered: {COVERED_FROM:.0%} of a box or more)"
    label += f"\n{left_out} more names, of fewer boxes, are not drawn" if left_out else ""
    axes.set(xlim=(0, 1.1), ylim=(len(rows) - 0.5, -0.5), xticks=np.linspace(0, 1, 6), xlabel=label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)
    add_grid(axes)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", frameon=False, fontsize=9)
    save_figure(figure, path)
