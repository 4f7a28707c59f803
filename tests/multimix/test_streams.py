"""The streams: every image once a pass, the same order for every rank and resumed run, and the right pixels."""

import numpy as np
import pytest
import torch

import multimix.streams
from multimix.data import load_data
from multimix.losses import UNKNOWN
from multimix.streams import STREAMS, UNKNOWN_MASK, PartSet, StreamBatches, StreamSet
from multimix.transforms import Preprocess

LENGTHS = {"mask_labelled": 5, "mask_unlabelled": 7, "class_labelled": 3, "class_unlabelled": 24}


@pytest.fixture(scope="module")
def demo():
    counts = {"train": 24, "val": 10, "test": 4, "cross_domain": 4}
    return load_data(
        "demo",
        method="multimix",
        preprocess=Preprocess(image_size=32),
        class_labels=6,
        mask_labels=5,
        demo_counts=counts,
    )


def drawn(sampler, epochs):
    steps = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        steps += list(sampler)
    return steps


def chain(steps, name):
    return [position for step in steps for position in step[name]]


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_each_stream_is_a_chain_of_whole_passes(batch_size):
    sampler = StreamBatches(LENGTHS, batch_size, steps=60 // batch_size)
    steps = drawn(sampler, [1, 2])
    for name, length in LENGTHS.items():
        positions = chain(steps, name)
        assert len(positions) == 120 and all(len(step[name]) == batch_size for step in steps)
        passes = [positions[i : i + length] for i in range(0, 120 - length + 1, length)]
        assert all(sorted(one) == list(range(length)) for one in passes)
        assert len({tuple(one) for one in passes}) > 1  # shuffled anew


def test_orders_depend_on_seed_and_stream():
    same = {"class_labelled": 20, "class_unlabelled": 20}
    first = drawn(StreamBatches(same, 5, seed=1), [1])
    assert drawn(StreamBatches(same, 5, seed=1), [1]) == first
    assert drawn(StreamBatches(same, 5, seed=2), [1]) != first
    assert chain(first, "class_labelled") != chain(first, "class_unlabelled")


def test_orders_do_not_depend_on_the_other_streams():
    alone = drawn(StreamBatches({"class_labelled": 3}, 4, steps=5), [1, 2])
    together = drawn(StreamBatches(LENGTHS, 4, steps=5), [1, 2])
    assert chain(alone, "class_labelled") == chain(together, "class_labelled")


def test_a_resumed_epoch_is_that_of_the_whole_run():
    whole = drawn(StreamBatches(LENGTHS, 4), [1, 2, 3])
    resumed = drawn(StreamBatches(LENGTHS, 4), [3])
    assert resumed == whole[-len(resumed) :] and len(resumed) == 6
    # A second iteration without a new epoch gives the same again.
    sampler = StreamBatches(LENGTHS, 4)
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_what_one_process_would_draw(num_ranks, monkeypatch):
    alone = drawn(StreamBatches(LENGTHS, 2 * num_ranks, steps=6), [1, 2])
    ranks = []
    for rank in range(num_ranks):
        monkeypatch.setattr(multimix.streams, "rank_and_size", lambda rank=rank: (rank, num_ranks))
        ranks.append(drawn(StreamBatches(LENGTHS, 2, steps=6), [1, 2]))
    for step, expected in enumerate(alone):
        for name in LENGTHS:
            shares = [rank[step][name] for rank in ranks]
            assert [position for share in shares for position in share] == expected[name]
    first_pass = chain(alone, "class_unlabelled")[:24]
    assert len(set(first_pass)) == 24


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        (LENGTHS, {}, 6),
        ({**LENGTHS, "mask_unlabelled": 99}, {}, 6),
        ({"mask_labelled": 5, "class_labelled": 13}, {}, 3),
        (LENGTHS, {"num_ranks": 3}, 2),
        (LENGTHS, {"steps": 11}, 11),
        (LENGTHS, {"steps": 11, "num_ranks": 3}, 11),
        ({"class_labelled": 1}, {}, 1),
    ],
)
def test_length_of_an_epoch(lengths, options, expected, monkeypatch):
    monkeypatch.setattr(multimix.streams, "rank_and_size", lambda: (0, options.get("num_ranks", 1)))
    sampler = StreamBatches(lengths, 4, steps=options.get("steps"))
    assert len(sampler) == expected == len(list(sampler))


@pytest.mark.parametrize(
    ("lengths", "named"), [({"mask_labelled": 0, "class_labelled": 4}, "mask_labelled"), ({}, "all")]
)
def test_empty_streams_are_refused(lengths, named):
    with pytest.raises(ValueError, match=f"streams without an image: {named}"):
        StreamBatches(lengths, 4)


def test_batches_are_the_stored_images_and_what_is_known_of_them(demo):
    streams = StreamSet(demo, demo)
    assert tuple(streams.lengths) and set(streams.lengths) == set(STREAMS)
    assert len(streams) == sum(streams.lengths.values())
    (step, *_) = StreamBatches(streams.lengths, 4)
    batch = streams[step]
    targets = {"mask", "label", "hidden_label"}
    assert set(batch) == {*STREAMS, *targets}
    for name in STREAMS:
        section, members = demo.streams[name]
        part = demo.splits[section]
        assert batch[name].shape == (4, 1, 32, 32) and batch[name].dtype == torch.uint8
        for index, position in enumerate(step[name]):
            row = members[position]
            assert np.array_equal(batch[name][index, 0], part.images[row])
            if name == "mask_labelled":
                assert np.array_equal(batch["mask"][index, 0], part.masks[part.mask_rows[row]])
            if name == "class_labelled":
                assert batch["label"][index] == part.labels[row] != UNKNOWN
            if name == "class_unlabelled":
                assert batch["hidden_label"][index] == part.hidden_labels[row]


def test_batches_have_the_streams_that_are_asked_for(demo):
    streams = StreamSet(demo, demo)
    assert set(streams[{"class_labelled": [0, 1]}]) == {"class_labelled", "label"}
    assert set(streams[{"mask_labelled": [0]}]) == {"mask_labelled", "mask"}


def test_part_gives_unknown_where_nothing_is_known(demo):
    part = demo.splits["train"]
    batch = PartSet(part)[list(range(len(part)))]
    for row in range(len(part)):
        assert np.array_equal(batch["image"][row, 0], part.images[row])
        assert batch["label"][row] == part.labels[row]
        mask_row = part.mask_rows[row]
        expected = part.masks[mask_row] if mask_row >= 0 else np.full((32, 32), UNKNOWN_MASK)
        assert np.array_equal(batch["mask"][row, 0], expected)
    assert (batch["label"] == UNKNOWN).any() and (batch["mask"] == UNKNOWN_MASK).any()
    assert len(PartSet(part)) == len(part)


def test_part_is_needed_where_a_list_stands_in(demo):
    part = demo.splits["val"]
    assert PartSet([{"image": "x"}], part).part is part
    with pytest.raises(TypeError, match="data is a list"):
        PartSet([{"image": "x"}])
