"""Splits of any labels and patients: what holds for all of them."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lists.splits import SECTIONS, Entry, ListError, Source, assign_splits, split_units

FRACTIONS = (0.7, 0.1, 0.2)
quick = settings(max_examples=60, deadline=None)
images = st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(0, 12)), min_size=9, max_size=60)


def source_of(rows: list[tuple[int, int | None]]) -> Source:
    entries = [Entry(f"{n:03d}.png", label, None, patient and f"p{patient}") for n, (label, patient) in enumerate(rows)]
    return Source("any", None, ["a", "b", "c"], entries)  # type: ignore[arg-type]


def split(source: Source, seed: int) -> dict[str, str | None]:
    try:
        assign_splits(source, FRACTIONS, seed)
    except ListError:  # too few independent images of a class
        assume(False)
    return {entry.image: entry.split for entry in source.entries}


@quick
@given(rows=images, seed=st.integers(0, 99), order=st.randoms(use_true_random=False))
def test_no_patient_is_shared_and_the_order_of_the_rows_does_not_matter(rows, seed, order):
    found = split(source := source_of(rows), seed)
    assert set(found.values()) == set(SECTIONS)
    splits_of: dict[str, set[str | None]] = {}
    for entry in source.entries:
        splits_of.setdefault(entry.group or entry.image, set()).add(entry.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    for section in SECTIONS:
        assert {entry.label for entry in source.entries if entry.split == section} == {0, 1, 2}
    again = source_of(rows)
    order.shuffle(again.entries)
    assert split(again, seed) == found


@quick
@given(sizes=st.lists(st.integers(10, 80), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_shares_of_every_class_are_met_within_an_image(sizes, seed):
    member = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=0)
    parts = split_units(member, np.arange(len(member)), FRACTIONS, seed, list("abcd"))
    for number, size in enumerate(sizes):
        counts = np.bincount(parts[member[:, number]], minlength=3)
        assert (np.abs(counts - size * np.array(FRACTIONS)) < 1 + 1e-9).all() and counts.min() > 0
