"""Figures of a predicted lung mask against the reference, their summary over images, and the areas of the lungs.

Masks are boolean ``H x W`` arrays at the reference's size. A figure that an image leaves undefined is NaN and is
counted in the summary; it never becomes a 0 or an infinity that would enter a mean unseen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_ssim_and_cs
from monai.metrics.utils import get_mask_edges
from scipy import ndimage

FIGURES = (
    "dice", "jaccard", "ssim", "precision", "recall", "average_hausdorff", "hd95", "area_px", "reference_area_px",
    "area_difference", "average_hausdorff_mm", "hd95_mm", "area_mm2", "reference_area_mm2",
)  # fmt: skip

SSIM_WINDOW = 11
# Of 813 reference masks (JSRT, Shenzhen), the smallest lung holds 9.3 % of the mask's area, the largest fragment
# that is no lung 0.07 %, and a single lung has at most 10 % of its area beyond the middle of the image.
SMALLEST_LUNG = 0.02
_LARGEST_OVERHANG = 0.15


def mask_scores(
    predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, float] | None = None
) -> dict[str, float]:
    """Every figure of one image.

    With P and R the sets of predicted and reference pixels, and B(.) the pixels of a mask that touch its outside
    (or the border of the image) along a row or a column:

    * ``dice`` 2 |P & R| / (|P| + |R|); ``jaccard`` |P & R| / (|P or R|); ``precision`` |P & R| / |P|, NaN for an
      empty prediction; ``recall`` |P & R| / |R|.
    * ``ssim``: mean structural similarity of the masks as images of 0 and 1 (data range 1, Gaussian window of 11
      pixels, sigma 1.5, K1 0.01, K2 0.03: Wang et al., IEEE TIP 2004), over all windows that lie inside the image.
    * ``average_hausdorff``: mean of the two directed average distances, that from each pixel of B(P) to the
      nearest of B(R), and that from B(R) to B(P) (Aydin et al., Eur Radiol Exp 2021, equation 1, on the
      boundaries). MONAI's symmetric average surface distance pools both sets, and the longer boundary weighs more.
    * ``hd95``: the larger of the two 95th percentiles of those distances (linear interpolation), as in MONAI.
    * ``area_px``, ``reference_area_px``: |P|, |R|; ``area_difference``: |P| / |R| - 1, positive for too large.
    * ``empty_prediction``: 1 where nothing is predicted, else 0. The distances are NaN then.

    Distances are in pixels, from centre to centre. With `spacing` they and the areas are in millimetres too.

    Args:
        predicted: ``H x W`` bool.
        reference: ``H x W`` bool, at least one pixel set; height and width of 11 pixels at least.
        spacing: millimetres per pixel along a column (from row to row) and along a row, or None if unknown.
    """
    # Counts, not MONAI's functions of each figure: those count in float32, at 2048 pixels in 0.4 s against 1 ms.
    common, area, reference_area = (int(np.count_nonzero(m)) for m in (predicted & reference, predicted, reference))
    average, hd95 = _distances(predicted, reference)
    scores = {
        "dice": 2 * common / (area + reference_area),
        "jaccard": common / (area + reference_area - common),
        "ssim": _ssim(predicted, reference),
        "average_hausdorff": average,
        "hd95": hd95,
        "precision": common / area if area else math.nan,
        "recall": common / reference_area,
        "area_px": float(area),
        "reference_area_px": float(reference_area),
        "area_difference": area / reference_area - 1,
        "empty_prediction": float(area == 0),
    }
    if spacing is not None:
        scores["average_hausdorff_mm"], scores["hd95_mm"] = _distances(predicted, reference, spacing)
        scores["area_mm2"], scores["reference_area_mm2"] = (a * math.prod(spacing) for a in (area, reference_area))
    return scores


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean, sample standard deviation and median of every figure over images.

    Undefined figures stay out of their own mean, and how many there were is part of the summary.

    Args:
        rows: What `mask_scores` returned, an image each, at least one.

    Returns:
        For each figure ``<name>``, ``<name>_sd`` (NaN for one image) and ``<name>_median``, all NaN where no image
        has the figure; ``n``, ``num_empty_predictions`` and ``num_undefined_distances``. The figures in millimetres
        only where there is a spacing, with the number of these images ``num_with_spacing``.
    """
    summary: dict[str, float] = {}
    for name in FIGURES:
        values = np.array([row[name] for row in rows if name in row])
        if len(values):
            known = values[~np.isnan(values)]
            summary[name] = float(known.mean()) if len(known) else math.nan
            summary[f"{name}_sd"] = float(known.std(ddof=1)) if len(known) > 1 else math.nan
            summary[f"{name}_median"] = float(np.median(known)) if len(known) else math.nan
    summary["n"] = len(rows)
    summary["num_empty_predictions"] = int(sum(row["empty_prediction"] for row in rows))
    summary["num_undefined_distances"] = sum(math.isnan(row["hd95"]) for row in rows)
    if num_with_spacing := sum("hd95_mm" in row for row in rows):
        summary["num_with_spacing"] = num_with_spacing
    return summary


def lung_areas(mask: np.ndarray, spacing: tuple[float, float] | None = None) -> dict[str, float | str]:
    """Area of the lungs, and how it divides between the patient's right and left lung.

    The patient's right is at the left of the picture, as radiographs are displayed; a mirrored file exchanges the
    two. What ``split`` says about the way they were told apart:

    * ``components``: the two largest connected components (8 neighbours) are the lungs, as they stand side by
      side: neither one's centroid lies in the columns of the other. Every further component belongs to the lung
      with the nearer centroid column. Fragments below 2 % of the mask's area decide nothing.
    * ``midline``: there is one such component, or two on top of each other, with more than 15 % of the mask's area
      on either side of the middle of the image: lungs that touch. Divided at the middle of the mask's bounding box
      (without the fragments).
    * ``one lung``: the same with less on the other side; all of the area is the lung of the side with more of it.
    * ``none``: the mask is empty, areas and fractions are 0.

    Args:
        mask: ``H x W`` bool.
        spacing: As of `mask_scores`.

    Returns:
        ``lung_area_px``, ``lung_area_mm2`` (with `spacing` only), ``right_fraction`` and ``left_fraction`` of the
        area, which sum to 1, and ``split``.
    """
    area = int(np.count_nonzero(mask))
    result: dict[str, float | str] = {"lung_area_px": float(area)}
    if spacing is not None:
        result["lung_area_mm2"] = area * math.prod(spacing)
    right, split = _right_fraction(mask, area) if area else (0.0, "none")
    return result | {"right_fraction": right, "left_fraction": 1 - right if area else 0.0, "split": split}


def _right_fraction(mask: np.ndarray, area: int) -> tuple[float, str]:
    """Share of the area that is the patient's right lung (image left), and the rule that told."""
    components, count = ndimage.label(mask, structure=np.ones((3, 3)))
    rows_of, columns_of = np.nonzero(mask)
    index = components[rows_of, columns_of] - 1
    areas = np.bincount(index, minlength=count)
    centroids = np.bincount(index, weights=columns_of, minlength=count) / areas
    columns = [box[1] for box in ndimage.find_objects(components)]

    large = [k for k in np.argsort(-areas, kind="stable") if areas[k] >= SMALLEST_LUNG * area]
    if len(large) > 1:
        one, other = large[:2]
        nested = any(columns[a].start <= centroids[b] <= columns[a].stop - 1 for a, b in ((one, other), (other, one)))
        if not nested:
            return float(areas[centroids < (centroids[one] + centroids[other]) / 2].sum() / area), "components"

    at_left = float(np.count_nonzero(columns_of < (mask.shape[1] - 1) / 2) / area)
    if min(at_left, 1 - at_left) <= _LARGEST_OVERHANG:
        return float(at_left > 0.5), "one lung"
    # A mask of nothing but fragments (noise) has no larger part to take the box of.
    parts = large or range(count)
    middle = (min(columns[k].start for k in parts) + max(columns[k].stop - 1 for k in parts)) / 2
    before, at = (np.count_nonzero(side) for side in (columns_of < middle, columns_of == middle))
    return float((before + at / 2) / area), "midline"


def _distances(
    predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Average Hausdorff distance and HD95 of the boundaries, NaN for an empty prediction."""
    if not predicted.any():
        return math.nan, math.nan
    # MONAI's edges (cut to the box around both masks), SciPy's distances: MONAI's search tree takes 2.2 s where
    # a 2048 x 2048 prediction is noise, as before training; the distance transform 0.5 s, whatever the masks.
    edges = get_mask_edges(predicted, reference)
    directed = [
        ndimage.distance_transform_edt(~target, sampling=spacing)[source] for source, target in (edges, edges[::-1])
    ]
    return float(np.mean([d.mean() for d in directed])), float(max(np.percentile(d, 95) for d in directed))


def _ssim(predicted: np.ndarray, reference: np.ndarray) -> float:
    """MONAI's SSIM, computed where a window meets a mask: it is exactly 1 where both are empty."""
    margin = SSIM_WINDOW - 1
    ((rows, columns),) = ndimage.find_objects((predicted | reference).astype(np.uint8))
    near = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in (rows, columns))
    one, other = (torch.from_numpy(mask[near].astype(np.float32))[None, None] for mask in (predicted, reference))
    window: dict[str, Any] = {"kernel_size": (SSIM_WINDOW,) * 2, "kernel_sigma": (1.5, 1.5)}
    similarity, _ = compute_ssim_and_cs(one, other, spatial_dims=2, data_range=1.0, **window)
    num_windows = math.prod(side - margin for side in reference.shape)
    return 1 - float((1 - similarity.double()).sum()) / num_windows
