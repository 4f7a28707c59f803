"""The same picture in several places: exact copies in any file format, and copies saved or resized anew.

Exact copies have the same pixels (`image_hashes`). Near ones have sketches of 16 x 16 pixels that, without what is
coarser than 2 of them (light and layout, which all images of one kind share), correlate by at least 0.99.

Measured on real images, pairs of different ones at 0.99: none of 17,074 blood cells, 5,840 and 813 chest films; at 28
pixels none of 5,856 chest films. What it finds in 2,100 microscope fields (345 pairs), 10,015 skin lesions at 28 pixels
(72) and 1,600 retinas at 28 (31) is one field or lesion taken twice. Found of copies of 100 images of 64 to 512 pixels:
at least 98 % of each kind: JPEG of quality 20, a quarter to twice the size, both at once, four fifths as bright. At 28
pixels JPEG of quality 90, three quarters and twice the size are found, quality 50 and half the size not. Mirrored,
turned, cut or moved images are no copies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from label_efficient.data.image_hashes import SIDE
from label_efficient.data.tables import listed

SIMILAR = 0.99
NUM_SHOWN = 12  # pairs that are kept as pictures
_COARSE = 2.0  # standard deviation, in pixels of the sketch
_LEAST_CONTRAST = 1.0  # grey levels of 255: below it, a sketch holds rounding errors
_NEIGHBOURS = 4  # copies of one image in one section that are listed
_DIRECTIONS = 12  # of the 256 of a sketch, in which neighbours are looked for


def parabolas(side: int) -> np.ndarray:
    """Orthonormal basis of all parabolas over a square, side * side x 6: uneven light, and the border of a slope."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return np.linalg.qr(np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=-1).reshape(-1, 6))[0]


_LIGHT = parabolas(SIDE)  # a Gaussian alone would leave it


class Compared(NamedTuple):
    """A section of a data set as it is compared with others: N images.

    Attributes:
        files: Their names.
        hashes: (N,) of `image_hashes.HASH`.
        known: What must not contradict what is known of a copy, such as {"label": 0}, of each.
        picture: Gives one, uint8 H x W or H x W x 3, by its position.
        tasks: What each serves; an image of training may stand among the unlabelled of another task.
    """

    files: Sequence[str]
    hashes: np.ndarray
    known: Sequence[Mapping[str, Any]]
    picture: Callable[[int], np.ndarray]
    tasks: Sequence[tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Copy:
    """Two images that are one: the section, file and label of each, how alike they are, what of them differs.

    `similarity` is 1 for the same pixels; `differing` is "label" or "mask" where these contradict each other.
    """

    sections: tuple[str, str]
    files: tuple[str, str]
    labels: tuple[Any, Any]
    similarity: float
    differing: str
    pictures: tuple[np.ndarray, ...] = ()

    def __str__(self) -> str:
        (first, second), (one, other) = self.sections, self.files
        alike = "has the pixels of" if self.similarity == 1 else f"is nearly ({self.similarity:.3f})"
        return f"{other} ({second}) {alike} {one} ({first})" + (f", under two {self.differing}s" * bool(self.differing))

    def row(self) -> dict[str, Any]:
        """Of the table of copies."""
        kind = "same pixels" if self.similarity == 1 else "nearly the same"
        row: dict[str, Any] = {"kind": kind, "similarity": f"{self.similarity:.4f}", "differing": self.differing}
        for name, values in (("file", self.files), ("section", self.sections), ("label", self.labels)):
            row |= {f"{name}_{place}": value for place, value in zip(("1", "2"), values, strict=True)}
        return row


def check_copies(
    sections: Mapping[str, Compared], source: str, setting: str, *, published: bool = False, num_workers: int = 0
) -> tuple[list[Copy], list[str]]:
    """Copies between sections or under two labels, and sentences on them for people.

    `setting` is that of the settings: exact copies are refused with "error", near ones never are: nobody can be sure of
    them. With "ignore" none are looked for. Copies in `published` sets, whose figures stand on them, are told only.

    Raises:
        ValueError: Naming the exact copies.
    """
    if setting == "ignore":
        return [], []
    copies = find_copies(sections, num_workers)
    exact, near = ([copy for copy in copies if (copy.similarity == 1) == same] for same in (True, False))
    if exact and setting == "error" and not published:
        advice = "\n(take one of each pair out; copies=warn trains all the same and lists all pairs in copies.csv)"
        raise ValueError(listed(source, list(map(str, exact))) + advice)
    notes = []
    for found, what in ((exact, "have the same pixels"), (near, "are nearly the same picture")):
        if found:
            across = sum(len(set(copy.sections)) > 1 for copy in found)
            shown = "; ".join(map(str, found[:3])) + ("; ..." if len(found) > 3 else "")
            notes.append(
                f"pairs of images that {what}: {len(found)}, {across} of them in two sections, whose figures they "
                f"make too good: {shown} (all in copies.csv)"
            )
    return copies, notes


def find_copies(sections: Mapping[str, Compared], num_workers: int = 0) -> list[Copy]:
    """Pairs of copies that stand in two sections or contradict each other, exact ones first, each file's nearest."""
    vectors = {name: _vectors(part.hashes["sketch"]) for name, part in sections.items() if len(part.files)}
    if not vectors:
        return []
    mean = sum(v.T @ v for v in vectors.values())
    directions = np.linalg.eigh(mean)[1][:, -_DIRECTIONS:].astype(np.float32)
    trees = {name: cKDTree(values @ directions) for name, values in vectors.items()}
    pairs = list(_exact_pairs(sections))
    for (one, of_one), (other, of_other) in combinations_with_replacement(vectors.items(), 2):
        labels = {str(known.get("label")) for known in sections[one].known} - {"None"}
        if one == other and len(labels) < 2:
            continue
        for i, j, alike in _near_pairs(of_one, of_other, trees[one], trees[other], num_workers):
            if (one != other or i < j) and sections[one].hashes["digest"][i] != sections[other].hashes["digest"][j]:
                pairs.append(((one, i), (other, j), alike))
    copies: list[Copy] = []
    for first, second, alike in sorted(pairs, key=lambda pair: -pair[2]):
        places = [(sections[name], index) for name, index in (first, second)]
        known = [part.known[index] for part, index in places]
        keys = ["label", "mask"] if alike == 1 else ["label"]  # a mask that was resized is another one
        differing = [k for k in keys if None not in (v := [about.get(k) for about in known]) and v[0] != v[1]]
        tasks = [set(part.tasks[index]) if part.tasks else {""} for part, index in places]
        apart = {first[0], second[0]} == {"train", "unlabelled"} and not tasks[0] & tasks[1]
        if (first[0] == second[0] and not differing) or apart:
            continue
        shown = [part.picture(index) for part, index in places] if len(copies) < NUM_SHOWN else []
        copies.append(
            Copy(
                (first[0], second[0]),
                (places[0][0].files[first[1]], places[1][0].files[second[1]]),
                (known[0].get("label"), known[1].get("label")),
                alike,
                (differing or [""])[0],
                tuple(shown),
            )
        )
    return copies


def copy_groups(hashes: np.ndarray) -> np.ndarray:
    """Number of the group of each of N images: exact and near copies of each other are in one."""
    vectors = _vectors(hashes["sketch"])
    tree = cKDTree(vectors)
    near = [(i, j) for i, j, _ in _near_pairs(vectors, vectors, tree, tree, 0)]
    same = np.unique(hashes["digest"], return_inverse=True)[1] + len(hashes)
    return linked_groups([*near, *enumerate(same.tolist())], 2 * len(hashes))[: len(hashes)]


def linked_groups(links: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Number of the group of each of `count` things, of which pairs are linked; (count,)."""
    first, second = np.array(links, int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _vectors(sketches: np.ndarray) -> np.ndarray:
    """Sketches N x 16 x 16 without light and layout, each of length 1, float32 N x 256; zeros without contrast."""
    values = sketches.reshape(-1, SIDE * SIDE).astype(np.float32)
    values -= (values @ _LIGHT) @ _LIGHT.T
    fine = values.reshape(sketches.shape) - gaussian_filter(values.reshape(sketches.shape), (0, _COARSE, _COARSE))
    fine = fine.reshape(values.shape)
    fine -= fine.mean(axis=1, keepdims=True)
    length = np.linalg.norm(fine, axis=1, keepdims=True)
    return np.where(length > _LEAST_CONTRAST * SIDE, fine / np.maximum(length, 1e-9), 0)


def _near_pairs(
    of_one: np.ndarray, of_other: np.ndarray, tree: cKDTree, other_tree: cKDTree, num_workers: int
) -> Iterator[tuple[int, int, float]]:
    """Pairs of vectors that correlate by `SIMILAR`: of each of the other, its nearest of the one."""
    queried = np.flatnonzero(of_other.any(axis=1))
    reach = float(np.sqrt(2 * (1 - SIMILAR)))  # the distance of such vectors; projected, it is never more
    number = _NEIGHBOURS + (of_one is of_other)
    distance, nearest = tree.query(
        other_tree.data[queried], k=number, distance_upper_bound=reach, workers=max(num_workers, 1)
    )
    for row, column in np.argwhere(np.isfinite(distance)):
        i, j = int(nearest[row, column]), int(queried[row])
        alike = float(of_one[i] @ of_other[j])
        if alike >= SIMILAR and (i != j or of_one is not of_other):
            yield i, j, min(alike, 0.9999)


def _exact_pairs(sections: Mapping[str, Compared]) -> Iterator[tuple[tuple[str, int], tuple[str, int], float]]:
    """Images with the same pixels: each and the first of every section and annotation before it."""
    places = [(name, index) for name, part in sections.items() for index in range(len(part.files))]
    digests = np.concatenate([part.hashes["digest"] for part in sections.values()])
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    before: dict[int, dict[tuple[str, str], tuple[str, int]]] = {}
    for position in np.flatnonzero(counts[inverse] > 1):
        name, index = places[position]
        seen = before.setdefault(int(inverse[position]), {})
        kind = name, str(sections[name].known[index])
        for (other_name, other_kind), other in seen.items():
            if (other_name, other_kind) != kind:
                yield other, (name, index), 1.0
        seen.setdefault(kind, (name, index))
