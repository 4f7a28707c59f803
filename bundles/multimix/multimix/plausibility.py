"""Whether a mask looks like the lungs of a chest X-ray: what is measured of it, and what reference masks keep to."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from label_efficient.data.mask_files import border_of

from .mask_metrics import SMALLEST_LUNG, lung_areas

logger = logging.getLogger(__name__)

SHAPE_COLUMNS = ("components", "area_fraction", "border_fraction", "air_fraction")
# 99 % of 813 reference masks (Shenzhen 566, JSRT 247) lie within; the model card has the percentiles.
AREA = (0.13, 0.44)
LEFT = (0.28, 0.58)
MOST_BORDER = 0.01
MOST_AIR = 0.02
_MAX_SHOWN = 5


def shape_of(mask: np.ndarray, picture: np.ndarray) -> dict[str, float]:
    """What tells lungs from something else, of a mask, bool H x W, and its grey picture H x W.

    Black rows and columns around the picture, such as padding, are not counted as picture, save where the mask is.

    Returns:
        ``components``: connected parts (8 neighbours) of at least 2 % of the mask; ``area_fraction`` of the picture;
        ``border_fraction``: of the picture's border, what the mask touches; ``air_fraction``: of the mask, what has no
        chest wall beside it: on its row, up to one side of the picture, nothing is brighter than the mask's median;
        ``left_fraction`` as of `lung_areas`.
    """
    if not mask.any():
        return dict.fromkeys((*SHAPE_COLUMNS, "left_fraction"), 0.0)
    box = ndimage.find_objects((mask | (picture > 0)).astype(np.uint8))[0]
    mask, picture = mask[box], picture[box]
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels[mask])
    wall = picture > np.median(picture[mask])
    air = ~np.logical_or.accumulate(wall, axis=1) | ~np.logical_or.accumulate(wall[:, ::-1], axis=1)[:, ::-1]
    return {
        "components": float((areas >= SMALLEST_LUNG * areas.sum()).sum()),
        "area_fraction": float(mask.mean()),
        "border_fraction": float(border_of(mask).mean()),
        "air_fraction": float(air[mask].mean()),
        "left_fraction": float(lung_areas(mask)["left_fraction"]),
    }


def oddities(shape: Mapping[str, float]) -> str:
    """What is unlike lungs in a shape as of `shape_of`, in words; empty if nothing is."""
    area, left, border, air = (shape[n] for n in ("area_fraction", "left_fraction", "border_fraction", "air_fraction"))
    if not area:
        return "no lung was found"
    found = {
        f"{shape['components']:.0f} separate parts instead of 2": shape["components"] != 2,
        f"{area:.0%} of the image is lung, expected {AREA[0]:.0%} to {AREA[1]:.0%}": not AREA[0] <= area <= AREA[1],
        f"{left:.0%} of it is the left lung, expected {LEFT[0]:.0%} to {LEFT[1]:.0%}": not LEFT[0] <= left <= LEFT[1],
        f"it touches {border:.0%} of the image's border": border > MOST_BORDER,
        f"{air:.0%} of it has no chest wall beside it: air outside of the body?": air > MOST_AIR,
    }
    return "; ".join(text for text, is_odd in found.items() if is_odd)


def warn_of_odd(what: str, odd: Sequence[tuple[str, str]], count: int) -> None:
    """One warning of the files among `count` masks that are unlike lungs, and why; none without any."""
    if odd:
        some = "; ".join(f"{file} ({why})" for file, why in odd[:_MAX_SHOWN])
        more = f"; and {len(odd) - _MAX_SHOWN} more" if len(odd) > _MAX_SHOWN else ""
        logger.warning("%d of %d %s are unlike lungs: %s%s", len(odd), count, what, some, more)
