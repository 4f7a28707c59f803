"""Synthetic microscopy pictures for the demo: deterministic, made in memory, and of no clinical meaning.

A picture shows pale tissue with many pale cells, which say nothing, and eight to eleven dark cells, which decide the
class: smooth, striped or chequered inside. The pattern has a period of a 64th of `size`, so that a copy of a quarter
of the size has none of it left, and it changes neither mean nor, between stripes and chequers, variance. What the
small copy does show is the colour of the dark cells. It goes with the class in `COLOUR_AGREES` of the pictures and
misleads in the others: who looks at the small copy alone cannot be right more often, but learns where to look.
"""

import numpy as np

DEMO_CLASSES = ("smooth cells", "striped cells", "chequered cells")
COLOUR_AGREES = 0.6  # share of the pictures whose dark cells have the colour of their class
MIN_SIZE = 192  # below, the pattern has less than three pixels a period

# Lengths are in pixels of a picture of this size, and scaled to others; colours are red, green, blue in 0..255.
_SIZE = 256
_STRETCH = (0.875, 1.125)  # of height and width, each its own: pictures differ in size and are not square
_PERIOD = 4.0
_CONTRAST = (0.45, 0.55)  # amplitude of the stripes, as a share of the cell's colour
_DARK_RADIUS, _DARK_COUNT = (19.0, 25.0), (8, 12)
_PALE_RADIUS, _PALE_COUNT = (8.0, 17.0), (28, 42)
_TISSUE = (231.0, 216.0, 224.0)
_DARK_COLOURS = ((86.0, 78.0, 158.0), (128.0, 68.0, 138.0), (160.0, 70.0, 106.0))  # by class, where they agree
_PALE_COLOURS = ((196.0, 186.0, 216.0), (212.0, 182.0, 208.0), (224.0, 184.0, 194.0))  # in every class alike
_SHADING = (0.6, 1.2, 0.9)  # of the tissue: how much of it is in each colour
_TRIES = 64  # places that are tried for a cell
_GAP = 2.0  # between dark cells, and between them and the border
_NOISE = 5.0  # standard deviation


def make_demo_images(
    count: int, *, size: int = _SIZE, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """Make `count` pictures, as many of each class (up to one).

    Args:
        count: N.
        size: Pixels a side on average: heights and widths are between 7/8 and 9/8 of it.
        seed: Of the random numbers; the same seed gives the same pictures.

    Returns:
        Images, N of uint8 H x W x 3; labels, int64 (N,) as indices of DEMO_CLASSES; and boxes of the dark cells, N of
        int64 n x 4: left, top, right, bottom edge in pixels (right - left is the width).

    Raises:
        ValueError: If `size` is too small for the pattern.
    """
    if size < MIN_SIZE:
        raise ValueError(
            f"size is {size}, expected {MIN_SIZE} or more: the pattern would be finer than the pixels show"
        )
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(DEMO_CLASSES)
    rng.shuffle(labels)
    # As many of each class mislead, and equally often to either of the other colours.
    colours = labels.copy()
    for label in range(len(DEMO_CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        wrong = members[round(COLOUR_AGREES * len(members)) :]
        colours[wrong] = (label + 1 + np.arange(len(wrong)) % 2) % len(DEMO_CLASSES)
    drawn = [_draw(rng, size, int(label), int(colour)) for label, colour in zip(labels, colours, strict=True)]
    return [image for image, _ in drawn], labels, [boxes for _, boxes in drawn]


def _draw(rng: np.random.Generator, size: int, label: int, colour: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture, uint8 H x W x 3, and the boxes of its dark cells, int64 n x 4.

    Every random number is drawn whatever `label` is: pictures of two classes differ by the pattern alone.
    """
    scale = size / _SIZE
    height, width = (round(size * share) for share in rng.uniform(*_STRETCH, 2))
    picture: np.ndarray = (_TISSUE + rng.normal(0, 4, 3)).astype(np.float32)
    for nodes, strength in ((5, 5.0), (25, 4.0)):
        picture = picture + strength * _smooth(rng, height, width, nodes)[..., None] * np.asarray(
            _SHADING, dtype=np.float32
        )
    _add_pale_cells(rng, picture, scale)
    boxes = _add_dark_cells(rng, picture, scale, label, colour)
    picture += _NOISE * rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.round(picture.clip(0, 255)).astype(np.uint8), boxes


def _add_pale_cells(rng: np.random.Generator, picture: np.ndarray, scale: float) -> None:
    """Paint pale cells with a somewhat darker nucleus anywhere in the picture, cut at its border, in place."""
    count = int(rng.integers(*_PALE_COUNT))
    radii = scale * rng.uniform(*_PALE_RADIUS, count)
    places = rng.uniform(0, 1, (count, 2)) * picture.shape[:2]
    colours = np.asarray(_PALE_COLOURS)[rng.integers(len(_PALE_COLOURS), size=count)] + rng.normal(0, 5, (count, 3))
    depth = _depth(rng, radii)
    opacity = 0.5 * depth.clip(0, 1) + 0.35 * (depth - 0.5 * radii[:, None, None].astype(np.float32)).clip(0, 1)
    for place, colour, cover in zip(places, colours.astype(np.float32), opacity, strict=True):
        _paint(picture, place, cover[..., None], colour - 35 * cover[..., None])


def _add_dark_cells(rng: np.random.Generator, picture: np.ndarray, scale: float, label: int, colour: int) -> np.ndarray:
    """Paint the cells that decide the class, whole and apart from each other, in place; their boxes, int64 n x 4."""
    count = int(rng.integers(*_DARK_COUNT))
    radii = scale * rng.uniform(*_DARK_RADIUS, count)
    depth = _depth(rng, radii)
    pattern = _pattern(rng, count, depth.shape[1], scale, label)
    tints = np.asarray(_DARK_COLOURS[colour]) + rng.normal(0, 4, 3) + rng.normal(0, 4, (count, 3))
    # A dark outline, and inside a shading that fades outwards: the same in all classes.
    rim = 1 - 0.3 * np.exp(-((depth / (2 * np.float32(scale))) ** 2))
    shades = (rim + pattern)[..., None] * tints[:, None, None].astype(np.float32)
    boxes = np.empty((count, 4), dtype=np.int64)
    for index, place in enumerate(_places(rng, picture.shape[:2], radii, scale)):
        cover = depth[index].clip(0, 1)
        top, left = _paint(picture, place, 0.95 * cover[..., None], shades[index])
        rows, columns = (np.flatnonzero((cover > 0.5).any(axis)) for axis in (1, 0))
        boxes[index] = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
    return boxes


def _depth(rng: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """How far inside its cell each pixel is, negative outside: n roundish cells in squares n x s x s."""
    half = int(np.ceil(1.2 * radii.max()))
    axis = np.arange(-half, half + 1, dtype=np.float32)
    angle = np.arctan2(axis[:, None], axis[None, :])
    waves = np.stack([wave(order * angle) for order in (2, 3) for wave in (np.cos, np.sin)])
    # At most 0.16 of the radius in all: no cell passes its square.
    bumps = rng.uniform(-1, 1, (len(radii), 4)) * (0.05, 0.05, 0.03, 0.03)
    outline = 1 + np.tensordot(bumps.astype(np.float32), waves, 1)
    return radii[:, None, None].astype(np.float32) * outline - np.hypot(axis[:, None], axis[None, :])


def _pattern(rng: np.random.Generator, count: int, side: int, scale: float, label: int) -> np.ndarray:
    """The inside of n cells, each turned its own way: n x side x side of mean 0; stripes or chequers of one variance.

    Chequers are stripes in both directions: the product of two waves is the sum of two crossed ones.
    """
    angle = rng.uniform(0, np.pi, (count, 1, 1))
    phases = rng.uniform(0, 2 * np.pi, (2, count, 1, 1))
    contrast = rng.uniform(*_CONTRAST, (count, 1, 1)).astype(np.float32)
    axis = np.arange(side) - side // 2
    turns = 2 * np.pi / (_PERIOD * scale)
    along = turns * (np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None]) + phases[0]
    across = turns * (np.cos(angle) * axis[None, :, None] - np.sin(angle) * axis[None, None, :]) + phases[1]
    if DEMO_CLASSES[label] == "smooth cells":
        return np.zeros((count, side, side), dtype=np.float32)
    waves = np.cos(along.astype(np.float32))
    if DEMO_CLASSES[label] == "chequered cells":
        waves = (waves + np.cos(across.astype(np.float32))) * np.float32(np.sqrt(0.5))
    return contrast * waves


def _places(rng: np.random.Generator, shape: tuple[int, ...], radii: np.ndarray, scale: float) -> np.ndarray:
    """Centres (n x 2: y, x) of cells that touch neither each other nor the border of a picture of this shape."""
    room = 1.16 * radii + _GAP * scale
    places = np.empty((0, 2))
    while len(places) < len(radii):
        n = len(places)
        tries = rng.uniform(room[n], np.subtract(shape, room[n]), (_TRIES, 2))
        distance = np.hypot(*(tries[:, None] - places).transpose(2, 0, 1))
        free = np.flatnonzero((distance > room[n] + room[:n]).all(axis=1))
        # Where no place is left the picture begins anew.
        places = np.vstack([places, tries[free[:1]]]) if len(free) else np.empty((0, 2))
    return places


def _paint(picture: np.ndarray, place: np.ndarray, opacity: np.ndarray, colour: np.ndarray) -> tuple[int, int]:
    """Blend a square (opacity s x s x 1, colour s x s x 3) centred at `place` into the picture; its top and left."""
    side = len(opacity)
    top, left = (round(float(centre)) - side // 2 for centre in place)
    rows = slice(max(-top, 0), min(picture.shape[0] - top, side))
    columns = slice(max(-left, 0), min(picture.shape[1] - left, side))
    part = picture[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    part += opacity[rows, columns] * (colour[rows, columns] - part)
    return top, left


def _smooth(rng: np.random.Generator, height: int, width: int, nodes: int) -> np.ndarray:
    """Smooth random shading, height x width, interpolated from a grid of `nodes` x `nodes` normal numbers."""
    grid = np.arange(nodes, dtype=np.float32)
    weights = [
        (1 - np.abs(np.linspace(0, nodes - 1, length, dtype=np.float32)[:, None] - grid)).clip(0, None)
        for length in (height, width)
    ]
    return weights[0] @ rng.standard_normal((nodes, nodes), dtype=np.float32) @ weights[1].T
