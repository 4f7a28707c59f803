"""Find near-duplicates from the pixels, and put them in one group with the images of their patients.

Near-duplicates are pictures of one field: saved again, brighter or darker, refocused, or moved a little. They
make a test easier than it is when one of them is in training. The method, which needs no training:

* Every image becomes a grey thumbnail of 32 x 32 pixels, whatever its shape. The parabola that fits it best is taken
  away, and its structures between 1 and 4 pixels (two Gaussians, subtracted) are kept: noise and JPEG blocks are
  finer; vignetting and uneven light, which all images of one microscope share, are coarser.
* Two thumbnails are compared at every shift of up to 4 pixels (an eighth of the side) both ways, by Pearson's
  correlation of the 28 x 28 pixels that lie over each other; the highest counts. Brightness and contrast have no
  effect on it.
* Pairs from a threshold on are near-duplicates, and groups are the connected components of these pairs.

Not found: larger shifts, other magnifications and, without `turned`, mirrored or turned views. Images without any
structure resemble nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from label_efficient.data.image_copies import linked_groups, parabolas
from label_efficient.data.images import ImageError, read_image
from label_efficient.files import path_of
from lists.splits import Entry, Source

SIDE = 32
REACH = 4  # the largest shift, in pixels of the thumbnail
FINE, COARSE = 1.0, 4.0  # standard deviations of the two Gaussians
LEAST_CONTRAST = 0.5  # grey levels of 255: below it, a thumbnail holds rounding errors
BLOCK = 512  # images compared with each other at once: bounds the memory
THRESHOLD = 0.8
SWALLOWED = 10  # a group of so many images, and of most of a class, is no group of near-duplicates
_LIGHT = parabolas(SIDE)  # the Gaussians alone leave the border of a slope behind


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Reduce a grey image, uint8 (H, W, 1), to the structures that are compared, float32 (32, 32)."""
    small = Image.fromarray(pixels[..., 0]).convert("F").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small)
    values = values - (_LIGHT @ (_LIGHT.T @ values.ravel())).reshape(SIDE, SIDE)
    return gaussian_filter(values, FINE) - gaussian_filter(values, COARSE)


def read_thumbnails(source: Source, entries: list[Entry]) -> np.ndarray:
    """Read the thumbnails of entries, float32 (N, 32, 32); an unreadable image is a problem of the source."""

    def read(entry: Entry) -> np.ndarray | ImageError:
        try:
            return thumbnail(read_image(source.root / path_of(entry.image), 1))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read_all = list(pool.map(read, entries))
    source.problems["unreadable image"] += [str(error) for error in read_all if isinstance(error, ImageError)]
    return np.array([np.zeros((SIDE, SIDE)) if isinstance(t, ImageError) else t for t in read_all], np.float32)


def similar_pairs(
    thumbnails: np.ndarray, threshold: float, turned: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of thumbnails whose highest correlation over all shifts reaches a threshold.

    Args:
        thumbnails: float32 (N, 32, 32).
        threshold: 0..1.
        turned: compare with the seven mirrored and turned views, too.

    Returns:
        First and second image of every pair, (P,) each, first < second; and the correlations, (P,).
    """
    found: list[tuple[np.ndarray, ...]] = []
    starts = range(0, len(thumbnails), BLOCK)
    for first in starts:
        left = _windows(thumbnails[first : first + BLOCK])
        for second in starts[first // BLOCK :]:
            block = thumbnails[second : second + BLOCK]
            best = np.full((len(thumbnails[first : first + BLOCK]), len(block)), -1, np.float32)
            for view in _views(block, turned):
                right = _windows(view)
                for (top, left_edge), (other_top, other_left) in _overlaps():
                    pair = left[top, left_edge] @ right[other_top, other_left].T
                    np.maximum(best, pair, out=best)
            i, j = np.nonzero(best >= threshold)
            above = i + first < j + second
            found.append((i[above] + first, j[above] + second, best[i, j][above]))
    if not found:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32)
    i, j, values = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, values


def _views(thumbnails: np.ndarray, turned: bool) -> Iterator[np.ndarray]:
    """Yield thumbnails (N, 32, 32) as they are and, where wanted, in the other seven views of a square."""
    for flipped in (thumbnails, thumbnails[:, :, ::-1])[: 1 + turned]:
        for turns in range(4 if turned else 1):
            yield np.rot90(flipped, turns, axes=(1, 2))


def _overlaps() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield, for every shift, the corner of the window in the one and in the other thumbnail.

    The windows move apart evenly, so that a pair is judged alike in both orders and the windows are large.
    """
    ways = [(REACH // 2 - shift // 2, REACH // 2 - shift // 2 + shift) for shift in range(-REACH, REACH + 1)]
    for top, other_top in ways:
        for left, other_left in ways:
            yield (top, left), (other_top, other_left)


def _windows(thumbnails: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Cut the windows at every corner, (N, 28 * 28), with mean 0 and length 1; zeros where there is no contrast."""
    size = SIDE - REACH
    windows = {}
    for top in range(REACH + 1):
        for left in range(REACH + 1):
            rows = thumbnails[:, top : top + size, left : left + size].reshape(len(thumbnails), -1)
            rows = rows - rows.mean(axis=1, keepdims=True)
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            even = length < LEAST_CONTRAST * size
            windows[top, left] = np.where(even, 0, rows / np.where(even, 1, length)).astype(np.float32)
    return windows


def group_near_duplicates(
    source: Source, readable: list[Entry], threshold: float, turned: bool, allow_copies: bool
) -> None:
    """Put near-duplicates, and all images of their patients, in one group; report what must not be.

    Args:
        source: Gets the problems and remarks.
        readable: The entries whose files are there and are images.
        threshold: The correlation from which two images are near-duplicates.
        turned: They may be mirrored or turned.
        allow_copies: With two labels or in two given splits they are a remark, not a problem.
    """
    entries = sorted(readable, key=lambda e: e.image)
    thumbnails = read_thumbnails(source, entries)
    first, second, values = similar_pairs(thumbnails, threshold, turned)
    kept = _check_pairs(source, entries, (first, second, values), allow_copies)
    group_start: dict[str, int] = {}
    links = [(group_start.setdefault(e.group, i), i) for i, e in enumerate(entries) if e.group is not None]
    links += zip(first[kept].tolist(), second[kept].tolist(), strict=True)
    component = linked_groups(links, len(entries))
    sizes = np.bincount(component)
    members = [np.flatnonzero(component == c) for c in np.flatnonzero(sizes > 1)]
    for indices in members:
        group = [entries[i] for i in indices]
        name = min((e.group for e in group if e.group is not None), default=group[0].image)
        for entry in group:
            entry.group = name
        _check_swallowed(source, group, threshold)
    words = f"near-duplicates (correlation {threshold:g}{', turned views too' if turned else ''})"
    source.group_name = f"{source.group_name} and {words}" if group_start else words
    largest = max(members, key=len, default=None)
    largest_text = "" if largest is None else f": the largest has {len(largest)} ({entries[largest[0]].image}, ...)"
    source.notes.append(f"{words}: {len(kept)} pairs; {len(entries)} images are {len(sizes)} groups{largest_text}")
    even = int((thumbnails.std(axis=(1, 2)) < LEAST_CONTRAST).sum())
    source.notes += [f"warning: {even} images are too even to be compared"] if even else []


def _check_pairs(
    source: Source, entries: list[Entry], pairs: tuple[np.ndarray, np.ndarray, np.ndarray], allow_copies: bool
) -> np.ndarray:
    """Report near-duplicates with two labels or in two given splits; return the pairs that make groups, (P,)."""
    found: dict[str, list[str]] = {"near-duplicates with different labels": [], "near-duplicates in two splits": []}
    kept = []
    for p, (i, j, value) in enumerate(zip(*(part.tolist() for part in pairs), strict=True)):
        a, b = entries[i], entries[j]
        two_splits = bool(a.split and b.split and a.split != b.split)
        if not two_splits:
            kept.append(p)
        if a.digest == b.digest:  # reported as an exact copy
            continue
        text = f"{a.image}, {b.image}, correlation {value:.3f}"
        if a.label is not None and b.label is not None and a.label != b.label:
            found["near-duplicates with different labels"].append(text)
        if two_splits:
            found["near-duplicates in two splits"].append(f"{text}: {a.split}, {b.split}")
    advice = {
        "near-duplicates with different labels": "--allow_copies keeps them",
        "near-duplicates in two splits": "--resplit makes a new split, --allow_copies keeps them",
    }
    for kind, items in found.items():
        if items and allow_copies:
            source.notes.append(f"warning: {kind}: {len(items)} pairs (--allow_copies)")
        elif items:
            source.problems[f"{kind}; {advice[kind]}"] += items
    return np.array(kept, int)


def _check_swallowed(source: Source, group: list[Entry], threshold: float) -> None:
    """Report a group that holds most of a class: then images are similar, not near-duplicates."""
    if source.multi_label or len(group) < SWALLOWED:
        return
    for label, number in Counter(e.label for e in group if isinstance(e.label, int)).items():
        total = sum(e.label == label for e in source.entries)
        if number >= SWALLOWED and number > total / 2:
            source.problems[
                "one group of near-duplicates holds most of a class; use a higher --near_duplicates"
            ].append(f"'{source.classes[label]}': {number} of {total} images, at a correlation of {threshold:g}")
