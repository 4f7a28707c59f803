"""Synthetic microscopy pictures for the demo: deterministic, made in memory, and of no clinical meaning.

A picture shows pale tissue with many pale cells, which say nothing, and a nest of dark cells, which decide the
class: smooth, striped or chequered inside. The pattern has a period of three pixels, a 224th of the side, so that each
pixel of a copy of 224 pixels a side, or of half as many, averages whole periods and shows none of it. It changes
neither mean nor, between stripes and chequers, variance, and fades out before the cell's outline. What the small copy
does show is the colour of the dark cells. It goes with the class in `COLOUR_AGREES` of the pictures and misleads in the
others: who looks at the small copy alone cannot be right more often, but learns where to look.
"""

import numpy as np

DEMO_CLASSES = ("smooth cells", "striped cells", "chequered cells")
COLOUR_AGREES = 0.6  # share of the pictures whose dark cells have the colour of their class
PATTERN_GONE = 224  # pixels a side of the copy that has one period a pixel

# Lengths are in pixels; colours are red, green, blue in 0..255.
_SIZE = 672  # a side, on average
_STRETCH = (0.96, 1.04)  # of height and width, each its own: pictures differ in size and are not square
_CONTRAST = (0.4, 0.5)  # amplitude of the stripes, as a share of the cell's colour: no colour is clipped
_TILT = 0.2  # radians from upright or level: the small copy averages whole periods along its axes only
_FADE = 7.0  # inside the outline: a pattern that broke off there would leave a trace in the small copy
_DARK_RADIUS, _DARK_COUNT = (34.0, 40.0), (22, 31)
_PALE_RADIUS, _PALE_COUNT = (21.0, 45.0), (28, 42)
_TISSUE = (231.0, 216.0, 224.0)
_DARK_COLOURS = ((56.0, 72.0, 132.0), (96.0, 60.0, 112.0), (132.0, 64.0, 70.0))  # by class, where they agree
_PALE_COLOURS = ((196.0, 186.0, 216.0), (212.0, 182.0, 208.0), (224.0, 184.0, 194.0))  # in every class alike
_SHADING = (0.6, 1.2, 0.9)  # of the tissue: how much of it is in each colour
_BUMPS = 0.12  # of the radius, at most: no cell is a circle
_GAP = 2.0  # between dark cells at their largest, and between them and the border
_NOISE = 7.0  # standard deviation


def make_demo_images(count: int, *, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Make `count` pictures, as many of each class (up to one); the same seed gives the same pictures.

    Returns:
        Images, N of uint8 H x W x 3 (each side 645 to 699); labels, int64 (N,) as indices of DEMO_CLASSES.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(DEMO_CLASSES)
    rng.shuffle(labels)
    # As many of each class mislead, and equally often to either of the other colours.
    colours = labels.copy()
    for label in range(len(DEMO_CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        wrong = members[round(COLOUR_AGREES * len(members)) :]
        colours[wrong] = (label + 1 + np.arange(len(wrong)) % 2) % len(DEMO_CLASSES)
    return [_draw(rng, int(label), int(colour)) for label, colour in zip(labels, colours, strict=True)], labels


def _draw(rng: np.random.Generator, label: int, colour: int) -> np.ndarray:
    """Draw one picture, uint8 H x W x 3.

    Every random number is drawn whatever `label` is: pictures of two classes differ by the pattern alone.
    """
    height, width = (round(_SIZE * share) for share in rng.uniform(*_STRETCH, 2))
    tissue = np.asarray(_TISSUE + rng.normal(0, 4, 3), dtype=np.float32)
    shading = 5 * _smooth(rng, height, width, 5) + 4 * _smooth(rng, height, width, 25)
    picture = tissue + shading[..., None] * np.asarray(_SHADING, dtype=np.float32)
    _add_pale_cells(rng, picture)
    _add_dark_cells(rng, picture, label, colour)
    picture += _NOISE * rng.standard_normal((height, width, 1), dtype=np.float32)
    return picture.round().clip(0, 255).astype(np.uint8)


def _add_pale_cells(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Paint pale cells with a somewhat darker nucleus anywhere in the picture, cut at its border, in place."""
    count = int(rng.integers(*_PALE_COUNT))
    radii = rng.uniform(*_PALE_RADIUS, count)
    places = rng.uniform(0, 1, (count, 2)) * picture.shape[:2]
    colours = np.asarray(_PALE_COLOURS)[rng.integers(len(_PALE_COLOURS), size=count)] + rng.normal(0, 5, (count, 3))
    depth = _depth(rng, radii)
    opacity = 0.5 * depth.clip(0, 1) + 0.35 * (depth - 0.5 * radii[:, None, None].astype(np.float32)).clip(0, 1)
    for place, colour, cover in zip(places, colours.astype(np.float32), opacity, strict=True):
        _paint(picture, place, cover[..., None], colour - 35 * cover[..., None])


def _add_dark_cells(rng: np.random.Generator, picture: np.ndarray, label: int, colour: int) -> None:
    """Paint the cells that decide the class, whole and apart from each other, in place."""
    count = int(rng.integers(*_DARK_COUNT))
    depth = _depth(rng, rng.uniform(*_DARK_RADIUS, count))
    fade = (depth / _FADE).clip(0, 1)
    pattern = fade**2 * (3 - 2 * fade) * _pattern(rng, count, depth.shape[1], label)
    tints = np.asarray(_DARK_COLOURS[colour]) + rng.normal(0, 4, 3) + rng.normal(0, 4, (count, 3))
    # A dark outline, and inside a shading that fades outwards: the same in all classes.
    rim = 1 - 0.3 * np.exp(-((depth / 5) ** 2))
    shades = (rim + pattern)[..., None] * tints[:, None, None].astype(np.float32)
    opacity = 0.95 * depth.clip(0, 1)[..., None]
    for place, cover, shade in zip(_places(rng, picture.shape[:2], count), opacity, shades, strict=True):
        _paint(picture, place, cover, shade)


def _depth(rng: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """How far inside its cell each pixel is, negative outside: n roundish cells in squares n x s x s."""
    half = int(np.ceil(1.2 * radii.max()))
    axis = np.arange(-half, half + 1, dtype=np.float32)
    angle = np.arctan2(axis[:, None], axis[None, :])
    waves = np.stack([wave(order * angle) for order in (2, 3) for wave in (np.cos, np.sin)])
    bumps = _BUMPS / 4 * rng.uniform(-1, 1, (len(radii), 4))
    outline = 1 + np.tensordot(bumps.astype(np.float32), waves, 1)
    return radii[:, None, None].astype(np.float32) * outline - np.hypot(axis[:, None], axis[None, :])


def _pattern(rng: np.random.Generator, count: int, side: int, label: int) -> np.ndarray:
    """The inside of n cells, each tilted its own way: n x side x side of mean 0; stripes or chequers of one variance.

    Chequers are stripes in both directions: the product of two waves is the sum of two crossed ones.
    """
    angle = np.pi / 2 * rng.integers(2, size=(count, 1, 1)) + rng.uniform(-_TILT, _TILT, (count, 1, 1))
    phases = rng.uniform(0, 2 * np.pi, (2, count, 1, 1))
    contrast = rng.uniform(*_CONTRAST, (count, 1, 1)).astype(np.float32)
    axis = np.arange(side) - side // 2
    turns = 2 * np.pi * PATTERN_GONE / _SIZE
    along = turns * (np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None]) + phases[0]
    across = turns * (np.cos(angle) * axis[None, :, None] - np.sin(angle) * axis[None, None, :]) + phases[1]
    if DEMO_CLASSES[label] == "smooth cells":
        return np.zeros((count, side, side), dtype=np.float32)
    waves = np.cos(along.astype(np.float32))
    if DEMO_CLASSES[label] == "chequered cells":
        waves = (waves + np.cos(across.astype(np.float32))) * np.float32(np.sqrt(0.5))
    return contrast * waves


def _places(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Centres (n x 2: y, x) of dark cells that touch neither each other nor the picture's border.

    They are the nodes nearest to a random one of a lattice of triangles, turned and shifted at random.
    """
    room = (1 + _BUMPS) * _DARK_RADIUS[1] + _GAP / 2
    angle, shift = rng.uniform(0, np.pi / 3), rng.uniform(0, 2 * room, 2)
    reach = int(sum(shape) / room)
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2), axis=-1).reshape(-1, 2)
    sides = 2 * room * np.array([[np.cos(turn), np.sin(turn)] for turn in (angle, angle + np.pi / 3)])
    nodes = steps @ sides + shift
    nodes = nodes[((nodes >= room) & (nodes <= np.asarray(shape) - room)).all(axis=1)]
    distance = np.linalg.norm(nodes - rng.choice(nodes), axis=1)
    return nodes[np.argsort(distance)[:count]]


def _paint(picture: np.ndarray, place: np.ndarray, opacity: np.ndarray, colour: np.ndarray) -> None:
    """Blend a square (opacity s x s x 1, colour s x s x 3) centred at `place` into the picture, in place."""
    side = len(opacity)
    top, left = (round(float(centre)) - side // 2 for centre in place)
    rows = slice(max(-top, 0), min(picture.shape[0] - top, side))
    columns = slice(max(-left, 0), min(picture.shape[1] - left, side))
    part = picture[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    part += opacity[rows, columns] * (colour[rows, columns] - part)


def _smooth(rng: np.random.Generator, height: int, width: int, nodes: int) -> np.ndarray:
    """Smooth random shading, height x width, interpolated from a grid of `nodes` x `nodes` normal numbers."""
    grid = np.arange(nodes, dtype=np.float32)
    down, across = (
        (1 - np.abs(np.linspace(0, nodes - 1, length, dtype=np.float32)[:, None] - grid)).clip(0, None)
        for length in (height, width)
    )
    return down @ rng.standard_normal((nodes, nodes), dtype=np.float32) @ across.T
