"""The training step on all streams within MONAI's trainer, and the loss terms it logs."""

import logging
import warnings

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from multimix.data import load_data
from multimix.handlers import LossTerms
from multimix.losses import MultiMixLoss
from multimix.network import MultiMixNet
from multimix.streams import StreamBatches, StreamSet
from multimix.trainer import MultiMixStep, PrepareStreams, moving_average
from multimix.transforms import Preprocess

CPU = torch.device("cpu")
COUNTS = {"train": 24, "val": 8, "test": 4, "cross_domain": 4}


@pytest.fixture(scope="module")
def demo():
    def load(method):
        return load_data(
            "demo",
            method=method,
            preprocess=Preprocess(image_size=32),
            class_labels=8,
            mask_labels=6,
            demo_counts=COUNTS,
        )

    return {method: load(method) for method in ("unet", "enc", "multimix")}


def trainer_of(data, network, *, steps=2, average=None, amp=False, loss=None, learning_rate=1e-3, handlers=()):
    streams = StreamSet(data, data)
    sampler = StreamBatches(streams.lengths, 3, steps=steps)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=DataLoader(streams, batch_size=None, sampler=sampler),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), learning_rate),
        loss_function=loss or MultiMixLoss(),
        iteration_update=MultiMixStep(PrepareStreams(), average),
        train_handlers=[LossTerms(), *handlers],
        decollate=False,
        amp=amp,
    )
    trainer.logger.setLevel(logging.WARNING)
    return trainer


def network_of(method="multimix", seed=0, **options):
    torch.manual_seed(seed)
    return MultiMixNet(method=method, **options)


def batch_of(data, step=0):
    streams = StreamSet(data, data)
    return streams[list(StreamBatches(streams.lengths, 3, steps=2))[step]]


def by_hand(data, method, steps=2, learning_rate=1e-3):
    """The steps written out: weights and terms after each, and the weights at the end."""
    network, loss, prepare = network_of(method, dropout=0.0).train(), MultiMixLoss(), PrepareStreams()
    optimizer = torch.optim.SGD(network.parameters(), learning_rate)
    weights, terms = [], []
    for step in range(steps):
        streams, targets = prepare(batch_of(data, step), CPU, 1, step + 1)
        optimizer.zero_grad()
        total = loss(network(streams), targets)
        total.backward()
        optimizer.step()
        terms.append({"loss": float(total.detach()), **{name: float(value) for name, value in loss.terms.items()}})
        weights.append([p.detach().clone() for p in network.parameters()])
    return weights, terms


@pytest.mark.parametrize("method", ["unet", "enc", "multimix"])
def test_trainer_makes_the_steps_and_reports_their_terms(method, demo):
    network = network_of(method, dropout=0.0)
    before = [p.detach().clone() for p in network.parameters()]
    loss = MultiMixLoss()
    trainer = trainer_of(demo[method], network, loss=loss)
    trainer.run()
    weights, terms = by_hand(demo[method], method)
    for parameter, first, expected in zip(network.parameters(), before, weights[-1], strict=True):
        assert not torch.equal(parameter, first)
        torch.testing.assert_close(parameter.detach(), expected)
    found = dict(trainer.state.metrics)
    assert found.pop("images_per_second") > 0
    known, correct = (sum(t.get(f"pseudo_label_{kind}", 0) for t in terms) for kind in ("known", "correct"))
    assert found.pop("pseudo_label_accuracy", None) == (pytest.approx(correct / known) if known else None)
    names = set(terms[0]) - {"pseudo_label_known", "pseudo_label_correct"}
    assert set(found) == names
    for name in names:
        assert found[name] == pytest.approx(sum(t[name] for t in terms) / 2, rel=1e-4)


def test_pseudo_label_accuracy_is_over_all_steps():
    handler, engine = LossTerms(), type("Engine", (), {})()
    engine.state = type("State", (), {"metrics": {}, "epoch": 1})()
    handler._reset(engine)
    for known, correct in ((3, 3), (1, 0)):
        terms = {"pseudo_label_known": torch.tensor(known), "pseudo_label_correct": torch.tensor(correct)}
        engine.state.output = {"loss": torch.tensor(float(known)), "terms": terms, "num_images": 4}
        handler(engine)
    handler._report(engine)
    assert engine.state.metrics["pseudo_label_accuracy"] == pytest.approx(3 / 4)
    assert engine.state.metrics["loss"] == pytest.approx(2)


def test_no_accuracy_without_known_pseudo_labels():
    handler, engine = LossTerms(), type("Engine", (), {})()
    engine.state = type("State", (), {"metrics": {}, "epoch": 1})()
    handler._reset(engine)
    terms = {"pseudo_label_known": torch.tensor(0.0), "pseudo_label_correct": torch.tensor(0.0)}
    engine.state.output = {"loss": torch.tensor(1.0), "terms": terms, "num_images": 4}
    handler(engine)
    handler._report(engine)
    assert set(engine.state.metrics) == {"loss", "images_per_second"}


def test_a_diverged_epoch_is_an_error(demo):
    network = network_of(dropout=0.0)
    network.branch.linear.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"training diverged: the loss is nan in epoch 1.*learning_rate"):
        trainer_of(demo["multimix"], network, steps=1).run()


def test_views_of_the_unlabelled_images(demo):
    prepare, batch = PrepareStreams(), batch_of(demo["multimix"])
    stored = {name: batch[name].float() / 255 for name in batch if name.startswith(("mask_", "class_"))}
    streams, targets = prepare(batch, CPU, 1, 1)
    assert set(streams) == {"mask_labelled", "mask_unlabelled", "class_labelled", "class_weak", "class_strong"}
    assert set(targets) == {"mask", "label", "hidden_label"}
    assert torch.equal(streams["mask_labelled"], stored["mask_labelled"])
    assert torch.equal(streams["mask_unlabelled"], stored["mask_unlabelled"])
    for name in streams:
        assert streams[name].shape == (3, 1, 32, 32) and streams[name].dtype == torch.float32
    assert not torch.equal(streams["class_weak"], stored["class_unlabelled"])
    assert not torch.equal(streams["class_weak"], streams["class_strong"])
    # Without the random changes both views are the stored image.
    for name in ("class_labelled", "class_weak", "class_strong"):
        prepare.augments[name].transform = lambda sample: sample
    streams, _ = prepare(batch, CPU, 1, 1)
    assert torch.equal(streams["class_weak"], stored["class_unlabelled"])
    assert torch.equal(streams["class_strong"], stored["class_unlabelled"])
    assert torch.equal(streams["class_labelled"], stored["class_labelled"])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"rank": 1}, {"epoch": 2}, {"iteration": 2}])
def test_views_depend_on_seed_rank_epoch_and_step(changed, demo):
    batch = batch_of(demo["multimix"])

    def views(seed=0, rank=0, epoch=1, iteration=1):
        torch.manual_seed(torch.seed())  # whatever the global state
        return PrepareStreams(seed=seed, rank=rank, mask_augment="weak")(batch, CPU, epoch, iteration)

    (first, targets), (again, same), (other, _) = views(), views(), views(**changed)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(targets["mask"], same["mask"])
    assert all(not torch.equal(first[name], other[name]) for name in first)


def test_masks_move_with_their_images(demo):
    batch = dict(batch_of(demo["multimix"]))
    batch["mask_labelled"] = batch["mask"] * 255
    streams, targets = PrepareStreams(mask_augment="weak")(batch, CPU, 1, 1)
    assert torch.equal(streams["mask_labelled"], targets["mask"].float())
    assert not torch.equal(targets["mask"], batch["mask"]) and targets["mask"].dtype == torch.uint8


def test_moving_average_equals_its_formula(demo):
    network = network_of(dropout=0.0)
    start = [p.detach().clone() for p in network.parameters()]
    average = moving_average(network, 0.75)
    trainer_of(demo["multimix"], network, average=average).run()
    weights, _ = by_hand(demo["multimix"], "multimix")
    # torch starts the average at the first update, from those weights.
    expected = [0.75 * a + 0.25 * b for a, b in zip(*weights, strict=True)]
    for found, value, first in zip(average.module.parameters(), expected, start, strict=True):
        torch.testing.assert_close(found.detach(), value)
        assert not torch.equal(found, first)
    assert moving_average(network, 0.0) is None


@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_on_a_cpu_trains_almost_the_same(demo):
    network = network_of(dropout=0.0)
    trainer = trainer_of(demo["multimix"], network, amp=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.run()
    weights, terms = by_hand(demo["multimix"], "multimix")
    assert trainer.state.metrics["loss"] == pytest.approx(sum(t["loss"] for t in terms) / 2, rel=0.03)
    assert trainer.state.metrics["loss"] != pytest.approx(sum(t["loss"] for t in terms) / 2, rel=1e-7)
    for parameter, expected in zip(network.parameters(), weights[-1], strict=True):
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.detach(), expected, rtol=0.05, atol=0.02)
