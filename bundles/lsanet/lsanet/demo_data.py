"""Synthetic demo images: deterministic, made in memory, and of no clinical meaning.

A picture shows one large blob on noise. The class is the pair of the blob's coarse shape (round or elongated)
and of its fine texture (stripes of one of two spatial frequencies): neither alone gives the class, so that shallow
and deep nodes both have something to add.
"""

import numpy as np

DEMO_CLASSES = ("round, coarse texture", "round, fine texture", "elongated, coarse texture", "elongated, fine texture")


def make_demo_images(count: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make `count` pictures, as many of each class (up to one); the same seed gives the same pictures.

    Returns:
        Images, uint8 N x size x size, and labels, int64 (N,) in 0..3.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(DEMO_CLASSES)
    rng.shuffle(labels)
    images = np.empty((count, size, size), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index] = _draw(rng, size, elongated=bool(label >= 2), fine=bool(label % 2))
    return images, labels.astype(np.int64)


def _draw(rng: np.random.Generator, size: int, *, elongated: bool, fine: bool) -> np.ndarray:
    centre = rng.uniform(-0.2, 0.2, 2)
    angle, stripe_angle, phase = rng.uniform(0, np.pi, 3)
    area = rng.uniform(0.2, 0.3)
    ratio = rng.uniform(2.3, 3.0) if elongated else rng.uniform(1.0, 1.2)
    axis = np.linspace(-1, 1, size)
    x, y = np.meshgrid(axis - centre[0], axis - centre[1])
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    radius = np.sqrt((along**2 / ratio + across**2 * ratio) / area)
    blob = 1 / (1 + np.exp((radius - 1) * 12))
    # The two bands of frequencies are cycles across the picture; contrast varies so that it gives nothing away.
    cycles = rng.uniform(9, 12) if fine else rng.uniform(5, 7)
    stripes = np.sin(np.pi * cycles * (x * np.cos(stripe_angle) + y * np.sin(stripe_angle)) + 2 * phase)
    picture = 0.25 + blob * (0.25 + rng.uniform(0.1, 0.2) * stripes)
    picture += rng.normal(0, 0.1, picture.shape) + rng.uniform(-0.08, 0.08)
    return np.round(picture.clip(0, 1) * 255).astype(np.uint8)
