"""Synthetic chest films for the demo: deterministic, made in memory, and of no clinical meaning.

A film shows two lungs in a bright body: spine, heart, diaphragm, ribs, collar bones, lung markings. The class
"opacity" adds one soft bright patch inside one lung. Everything else (haze of the lungs, hilar shadows, markers and
devices outside the lungs, exposure) is drawn alike for both classes and varies more than the patch adds, so that no
brightness of the whole film gives the class away. A second "hospital" exposes and positions its films otherwise.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

DEMO_CLASSES = ("clear", "opacity")

# Lengths are in half-widths of the film: x runs from -1 (left edge) to 1, y from -1 (top edge) to 1.
_EDGE = 28.0  # steepness of the sides of organs, per unit of length
_NUM_RIBS = 9.0
_COARSE_CELLS = 9  # a side, of the grid that smooth random shading is interpolated from


class _Hospital(NamedTuple):
    """How a hospital exposes and positions its films: ranges of uniform draws."""

    gamma: tuple[float, float] = (0.85, 1.25)  # of the contrast curve; above 1 darkens the lungs
    gain: tuple[float, float] = (0.72, 1.0)
    offset: tuple[float, float] = (0.0, 0.1)  # brightness of what should be black
    air: tuple[float, float] = (0.35, 0.68)  # share of the tissue that the lungs take away: from hazy to well inflated
    noise: tuple[float, float] = (0.01, 0.035)  # standard deviation
    rotation: tuple[float, float] = (0.0, 0.14)  # radians, to either side
    zoom: tuple[float, float] = (0.8, 1.1)
    collimated: tuple[float, float] = (0.0, 0.0)  # width of the unexposed border


_HOME = _Hospital()
_AWAY = _Hospital(
    gamma=(0.5, 0.75), gain=(0.6, 0.85), offset=(0.08, 0.2), air=(0.22, 0.5), noise=(0.035, 0.06),
    rotation=(0.12, 0.3), zoom=(0.84, 0.98), collimated=(0.05, 0.16),
)  # fmt: skip


def make_demo_images(
    count: int, *, size: int = 64, seed: int = 0, shift: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make `count` (N) chest films, as many of one class as of the other (one more "clear" where N is odd).

    The same seed gives the same films; `shift` draws them from the other hospital.

    Returns:
        Images, uint8 N x size x size, labels, int64 (N,) as indices of DEMO_CLASSES, and masks of both lungs,
        uint8 N x size x size with 0 and 1. The mask covers an opacity too.
    """
    # The hospitals share no patients, whatever the seed.
    rng = np.random.default_rng((seed, shift))
    labels = np.arange(count, dtype=np.int64) % len(DEMO_CLASSES)
    rng.shuffle(labels)
    films = np.empty((count, 2, size, size), dtype=np.uint8)
    for index, label in enumerate(labels):
        films[index] = _draw(rng, size, opacity=bool(label), hospital=_AWAY if shift else _HOME)
    return films[:, 0].copy(), labels, films[:, 1].copy()


def _draw(rng: np.random.Generator, size: int, *, opacity: bool, hospital: _Hospital) -> tuple[np.ndarray, np.ndarray]:
    """One film and its mask, both uint8 size x size.

    Every random number is drawn whatever `opacity` is: the films with and without it differ by the patch alone.
    """
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = _patient_axes(rng, axis, hospital)
    right = _lung(rng, -x, y, heart=0.0)
    left = _lung(rng, x, y, heart=rng.uniform(0.1, 0.24))
    # Distance to the nearer side of the nearer lung, positive inside.
    depth = np.maximum(right, left)
    shading = _smooth(rng, axis)

    attenuation = _body(rng, x, y)
    # The lungs are not inflated alike.
    air = rng.uniform(*hospital.air) * (expit(_EDGE * right) + rng.uniform(0.75, 1.25) * expit(_EDGE * left))
    attenuation -= attenuation * air * (1 + rng.uniform(0.0, 0.2) * shading)
    attenuation += expit(_EDGE * depth) * _lung_markings(rng, x, y, shading)
    attenuation += _bones(rng, x, y)
    patch = _patch(rng, x, y, (right, left)[rng.integers(2)], shading)
    if opacity:
        attenuation += patch
    attenuation += _foreign_bodies(rng, x, y, depth)

    exposed = attenuation.clip(0, None) ** rng.uniform(*hospital.gamma)
    film = rng.uniform(*hospital.offset) + rng.uniform(*hospital.gain) * exposed
    film += rng.uniform(*hospital.noise) * rng.standard_normal(film.shape, dtype=np.float32)
    border = 1 - rng.uniform(*hospital.collimated, 2)
    film[np.abs(axis) > border[0]] = 0.02
    film[:, np.abs(axis) > border[1]] = 0.02
    return np.round(film.clip(0, 1) * 255).astype(np.uint8), (depth > 0).astype(np.uint8)


def _patient_axes(rng: np.random.Generator, axis: np.ndarray, hospital: _Hospital) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of each pixel along and across the patient, who is turned, shifted and scaled on the film."""
    angle = rng.choice((-1, 1)) * rng.uniform(*hospital.rotation)
    zoom = rng.uniform(*hospital.zoom, 2) * (1, rng.uniform(0.92, 1.08))
    shift = rng.uniform(-0.08, 0.08, 2)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    columns, rows = axis[None, :] - np.float32(shift[0]), axis[:, None] - np.float32(shift[1])
    x = (columns * cos + rows * sin) / np.float32(zoom[0])
    y = (rows * cos - columns * sin) / np.float32(zoom[1])
    return x, y


def _lung(rng: np.random.Generator, u: np.ndarray, y: np.ndarray, *, heart: float) -> np.ndarray:
    """Signed depth inside one lung, positive inside, by the distance `u` from the midline towards its side.

    `heart` is how far the heart pushes the medial border outwards at its widest; 0 for the patient's right, whose dome
    of the diaphragm stands higher.
    """
    top, floor = rng.uniform(-0.84, -0.7), rng.uniform(0.26, 0.5) + (0.06 if heart else 0.0)
    inner, width = rng.uniform(0.11, 0.16), rng.uniform(0.46, 0.6)
    # The lateral border is a quarter of a superellipse from the apex to the widest level, then nearly straight.
    level = rng.uniform(0.05, 0.3)
    rise = ((level - y) / (level - top)).clip(0, 1)
    power = rng.uniform(1.7, 2.4)
    lateral = inner + width * (1 - rise**power).clip(0, 1) ** (1 / power) - 0.1 * (y - level).clip(0, None)
    medial = inner + (0.03 + heart) * np.exp(-(((y - rng.uniform(0.1, 0.25)) / 0.28) ** 2))
    # However large the heart, lung stays visible beside it.
    medial = np.minimum(medial, (lateral - 0.14).clip(inner, None))
    # The diaphragm is a dome, lowest at the lateral angle.
    along = (u - inner) / width
    diaphragm = floor + rng.uniform(0.15, 0.4) * (along - rng.uniform(0.3, 0.5)).clip(-0.3, None) ** 2
    depth = np.minimum(np.minimum(lateral - u, u - medial), diaphragm - y)
    # Blunt the angles at the diaphragm and the apex: a tip narrower than a pixel would fall into pieces.
    angles = np.minimum(lateral - u, u - medial) + diaphragm - y - 0.06
    apex = np.minimum(1.5 * (y - top), lateral - medial - 0.12)
    return np.minimum(np.minimum(depth, angles), apex)


def _body(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Soft tissue: neck, shoulders and trunk, the heart, the abdomen with a gas bubble, the windpipe."""
    across = np.abs(x)
    shoulders = rng.uniform(-0.92, -0.72)
    trunk = rng.uniform(0.3, 0.4) + rng.uniform(0.48, 0.62) * expit(11 * (y - shoulders))
    body = expit(18 * (trunk - across))
    # Less tissue lies in the beam towards the flanks.
    tissue = 0.62 - rng.uniform(0.05, 0.2) * across**2
    heart = _bump(x - rng.uniform(0.08, 0.16), y - rng.uniform(0.1, 0.25), 0.26, 0.32)
    tissue += rng.uniform(0.05, 0.15) * heart
    tissue += rng.uniform(0.08, 0.22) * expit(10 * (y - 0.45))
    # Gas in the stomach and the bowel is as dark as a lung.
    for place in (rng.uniform(0.25, 0.5), rng.uniform(-0.6, 0.6)):
        bubble = _bump(x - place, y - rng.uniform(0.68, 0.95), rng.uniform(0.08, 0.22), rng.uniform(0.06, 0.12))
        tissue -= rng.uniform(0.0, 0.5) * bubble
    tissue -= rng.uniform(0.08, 0.2) * _bump(x, y + 0.85, 0.045, 0.3)
    return body * tissue


def _bones(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The spine with its vertebrae, ribs that run down and outwards, and the collar bones."""
    across = np.abs(x)
    spine = np.exp(-((across / 0.085) ** 4))
    vertebrae = 1 + 0.25 * np.cos(rng.uniform(30, 36) * y + rng.uniform(0, 6))
    bones = rng.uniform(0.05, 0.12) * spine * vertebrae
    course = y - rng.uniform(0.3, 0.55) * across + rng.uniform(0.1, 0.5) * (across - 0.45) ** 2
    ribs = np.cos(np.pi * _NUM_RIBS * course + rng.uniform(0, 2 * np.pi)).clip(0, None) ** 2
    cage = expit(20 * (across - 0.1)) * expit(20 * (0.78 - across)) * expit(12 * (0.55 - y)) * expit(16 * (y + 0.85))
    bones += rng.uniform(0.04, 0.12) * cage * ribs
    collar = y + rng.uniform(0.5, 0.68) + rng.uniform(0.15, 0.4) * (across - 0.1)
    return bones + rng.uniform(0.03, 0.1) * np.exp(-((collar / 0.04) ** 2)) * expit(25 * (across - 0.1))


def _lung_markings(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, shading: np.ndarray) -> np.ndarray:
    """Hilar shadows on both sides and a veil of vessels: soft and bright like an opacity, in every film."""
    markings = rng.uniform(0.0, 0.1) * shading
    for side in (-1, 1):
        place = side * rng.uniform(0.18, 0.26), rng.uniform(-0.2, 0.05)
        markings = markings + rng.uniform(0.0, 0.08) * _bump(x - place[0], y - place[1], 0.1, rng.uniform(0.1, 0.2))
    return markings


def _patch(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, shading: np.ndarray
) -> np.ndarray:
    """An opacity: one soft patch within the lung of this signed depth, zero outside of it."""
    deep = np.argwhere(depth > 0.6 * depth.max())
    centre = tuple(deep[rng.integers(len(deep))])
    bump = _bump(x - x[centre], y - y[centre], *rng.uniform(0.14, 0.26, 2))
    return rng.uniform(0.3, 0.6) * bump * (12 * depth).clip(0, 1) * (1 + 0.3 * shading).clip(0, None)


def _foreign_bodies(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Side markers, electrodes and a device case, outside the lungs and as frequent in either class."""
    bodies = np.zeros_like(x)
    for _ in range(rng.integers(0, 4)):
        place = rng.choice((-1, 1)) * rng.uniform(0.72, 0.95), rng.uniform(-0.9, 0.9)
        radii = rng.uniform(0.03, 0.12, 2)
        distance = ((x - place[0]) / radii[0]) ** 2 + ((y - place[1]) / radii[1]) ** 2
        bodies += rng.uniform(0.15, 0.6) * expit(4 * (1 - distance))
    return bodies * (-12 * depth).clip(0, 1)


def _bump(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.exp(-((x / np.float32(width)) ** 2 + (y / np.float32(height)) ** 2))


def _smooth(rng: np.random.Generator, axis: np.ndarray) -> np.ndarray:
    """Smooth random shading of unit variance or less, interpolated from a coarse grid of normal numbers."""
    nodes = np.linspace(-1, 1, _COARSE_CELLS, dtype=np.float32)
    weights = (1 - np.abs(axis[:, None] - nodes) / (nodes[1] - nodes[0])).clip(0, None)
    return weights @ rng.standard_normal((_COARSE_CELLS, _COARSE_CELLS), dtype=np.float32) @ weights.T
