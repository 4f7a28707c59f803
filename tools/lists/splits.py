"""Entries of a datalist; stratified splits that never divide a group; label budgets. No files here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.subsets import class_membership, labelled_subset

SECTIONS = ("training", "validation", "test")
DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)
ATTEMPTS = 20
Label = int | list[int] | None


class ListError(ValueError):
    """A mistake in the data or the options; its text is for the user."""


@dataclass
class Entry:
    """One image: path relative to the root, label (None: unlabelled), and what is known about it."""

    image: str
    label: Label
    split: str | None = None
    group: str | None = None
    origin: str = ""
    digest: str | None = None


@dataclass
class Source:
    """What was read: entries, and the problems and remarks found on the way, by kind."""

    name: str
    root: Path
    classes: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    multi_label: bool = False
    task: str | None = None
    group_name: str = "group"
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    problems: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    remark: str | None = None  # for the list itself

    def fail_if_problems(self) -> None:
        """Raise one error that reports every problem, at most ten of a kind."""
        found = {kind: items for kind, items in self.problems.items() if items}
        if not found:
            return
        number = sum(len(items) for items in found.values())
        lines = [f"{number} problem{'s' * (number > 1)} in the data, nothing was written"]
        for kind, items in found.items():
            lines += [f"  {kind} ({len(items)}):"] + [f"    {item}" for item in items[:10]]
            lines += [f"    ... and {len(items) - 10} more"] if len(items) > 10 else []
        raise ListError("\n".join(lines))


def class_counts(entries: list[Entry], source: Source) -> np.ndarray:
    """Count the images of every class."""
    counts = np.zeros(len(source.classes), dtype=int)
    for entry in entries:
        counts += np.array(entry.label) if source.multi_label else np.arange(len(counts)) == entry.label
    return counts


def check_copies(source: Source, allow_copies: bool) -> None:
    """Find files of the same content: in two splits or with two labels an error, otherwise a remark."""
    by_digest: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in source.entries:
        if entry.digest:
            by_digest[entry.digest].append(entry)
    copies = [entries for entries in by_digest.values() if len({e.image for e in entries}) > 1]
    found: dict[str, list[str]] = {"same content in two splits": [], "same content with different labels": []}
    given = any(e.split for e in source.entries)
    for entries in copies:
        text = ", ".join(e.image for e in entries)
        if given and len({e.split or "training" for e in entries}) > 1:
            found["same content in two splits"].append(text)
        if len({str(e.label) for e in entries if e.label is not None}) > 1:
            found["same content with different labels"].append(text)
    for kind, items in found.items():
        if items and allow_copies:
            source.notes.append(f"warning: {kind}: {len(items)} times (--allow_copies)")
        elif items:
            source.problems[kind] += [f"{item} (--allow_copies keeps them)" for item in items]
    extra = sum(len(entries) - 1 for entries in copies)
    if extra:
        source.notes.append(f"warning: {extra} images are exact copies of others")


def assign_splits(source: Source, fractions: Sequence[float] | None, seed: int) -> str:
    """Give every labelled entry a split, unless it has one; return the words that describe how."""
    labelled = [e for e in source.entries if e.label is not None]
    grouped = f" grouped by {source.group_name}" if any(e.group for e in source.entries) else ""
    given = {e.split for e in labelled if e.split}
    train, val, test = fractions or DEFAULT_FRACTIONS
    if not given:
        deal(source, labelled, (train, val, test), seed)
        how = f"{train:g}-{val:g}-{test:g}{grouped}"
    elif "validation" not in given:
        share = val / (train + val)
        deal(source, [e for e in labelled if e.split == "training"], (1 - share, share), seed)
        how = f"as given, validation {share:.3g} cut out of training{grouped}"
    elif fractions:
        raise ListError("the data come with splits, so --fractions has no effect; add --resplit to replace them")
    else:
        how = "as given"
    if not any(e.split == "test" for e in labelled):
        source.notes.append("there is no test part")
    held = [e for e in labelled if e.split != "training"]
    groups, digests = {e.group for e in held} - {None}, {e.digest for e in held}
    leaking = [e for e in source.entries if e.label is None and (e.group in groups or e.digest in digests)]
    if leaking:
        source.notes.append(
            f"{len(leaking)} unlabelled images were left out: of groups in validation or test, or copies"
        )
        gone = {id(e) for e in leaking}
        source.entries = [e for e in source.entries if id(e) not in gone]
    return how


def membership(source: Source, entries: list[Entry]) -> np.ndarray:
    """Say which entry belongs to which class, bool (N, C)."""
    member = class_membership([e.label for e in entries])  # type: ignore[arg-type]
    return np.pad(member, ((0, 0), (0, len(source.classes) - member.shape[1])))


def deal(source: Source, entries: list[Entry], fractions: Sequence[float], seed: int) -> None:
    """Set the split of entries by shares; the result depends on their paths, not on their order."""
    entries = sorted(entries, key=lambda e: e.image)
    units = join_units([e.group for e in entries], [e.digest for e in entries])
    try:
        parts = split_units(membership(source, entries), units, fractions, seed, source.classes)
    except ValueError as error:
        raise ListError(str(error)) from None
    for entry, part in zip(entries, parts, strict=True):
        entry.split = SECTIONS[part]


def apply_budget(source: Source, fraction: float | None, per_class: int | None, seed: int) -> None:
    """Take the labels off the training images that are not within the budget."""
    labelled = [e for e in source.entries if e.label is not None and e.split == "training"]
    training = sorted(labelled, key=lambda e: e.image)
    labels: Any = [e.label for e in training]
    try:
        kept = labelled_subset(labels, fraction, per_class, seed, source.classes)
    except ValueError as error:
        raise ListError(str(error)) from None
    for i in set(range(len(training))) - set(kept):
        training[i].label = None


def join_units(*keys: Sequence[Hashable | None]) -> np.ndarray:
    """Number the units that must stay together: images that share any key, directly or through others.

    Args:
        keys: one sequence per kind of key (patient, content of the file), each of length N; None is no key.

    Returns:
        The unit of every image, (N,), from 0 in order of first appearance.
    """
    parent = list(range(len(keys[0])))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for kind in keys:
        first: dict[Hashable, int] = {}
        for i, key in enumerate(kind):
            if key is not None:
                a, b = find(i), find(first.setdefault(key, i))
                parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(find(i), len(numbers)) for i in range(len(parent))], dtype=int)


def split_units(
    member: np.ndarray, units: np.ndarray, fractions: Sequence[float], seed: int, names: Sequence[str]
) -> np.ndarray:
    """Deal units (images, or patients with all their images) into parts with equal shares of every class.

    Greedy, after iterative stratification (Sechidis et al. 2011): the class with the fewest undealt units
    comes first; its units, large ones first and otherwise in random order, go where they bring the counts
    nearest to the shares. The last units of a class go to parts that have none of it yet. Should
    a class still be missing somewhere, the deal is repeated with another random order, a few times.

    Args:
        member: which image belongs to which class, bool (N, C).
        units: the unit of every image, (N,); images of a unit stay together.
        fractions: the share of every part; a part with share 0 stays empty.
        seed: decides the random orders.
        names: class names, for errors.

    Returns:
        The part of every image, (N,).

    Raises:
        ValueError: where a class does not reach every part, with the name of the class.
    """
    parts = [p for p, fraction in enumerate(fractions) if fraction > 0]
    shares = np.array([fractions[p] for p in parts]) / sum(fractions)
    unique, inverse = np.unique(units, return_inverse=True)
    # One more class for images without any finding: they are spread evenly too, but not required anywhere.
    full = np.column_stack([member, ~member.any(axis=1)])
    counts = np.zeros((len(unique), full.shape[1]), dtype=int)
    np.add.at(counts, inverse, full)
    available = (counts[:, :-1] > 0).sum(axis=0)
    short = [f"'{names[c]}' has {available[c]}" for c in np.flatnonzero(available < len(parts)).tolist()]
    if short:
        raise ValueError(
            f"too few independent images or groups to have every class in all {len(parts)} parts: " + ", ".join(short)
        )
    rng = np.random.RandomState(seed)  # its stream is frozen for good
    for _ in range(ATTEMPTS):
        dealt = _deal(counts, shares, rng)
        reached = np.stack([counts[dealt == p, :-1].sum(axis=0) > 0 for p in range(len(parts))])
        if reached.all():
            return np.array(parts)[dealt][inverse]
    missing = ", ".join(f"'{names[c]}'" for c in np.flatnonzero(~reached.all(axis=0)).tolist())
    raise ValueError(f"found no split of the groups with class {missing} in all {len(parts)} parts")


def _deal(counts: np.ndarray, shares: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Deal units with class counts (U, C) into len(shares) parts; return the part of every unit, (U,)."""
    wanted = shares[:, None] * counts.sum(axis=0)  # (P, C)
    totals = np.maximum(counts.sum(axis=0), 1)
    present = np.zeros(wanted.shape, dtype=bool)
    dealt = np.full(len(counts), -1)
    while (dealt < 0).any():
        left = ((counts > 0) & (dealt < 0)[:, None]).sum(axis=0)
        c = int(np.where(left > 0, left, len(counts) + 1).argmin())
        members = rng.permutation(np.flatnonzero((dealt < 0) & (counts[:, c] > 0)))
        members = members[np.argsort(-counts[members, c], kind="stable")]
        for i, unit in enumerate(members):
            lacking = np.flatnonzero(~present[:, c])
            candidates = lacking if 0 < len(members) - i <= len(lacking) else np.arange(len(shares))
            # How much the unit adds to the squared deviation from the wanted counts, every class relative to
            # its size, every part relative to its share: a large group is worse for a small part.
            cost = ((counts[unit] - 2 * wanted[candidates]) * counts[unit] / totals**2).sum(axis=1)
            part = candidates[(cost / shares[candidates]).argmin()]
            dealt[unit] = part
            wanted[part] -= counts[unit]
            present[part] |= counts[unit] > 0
    return dealt
