"""The training step on all streams within MONAI's trainer, and the loss terms it logs."""

import logging

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from label_efficient.engine.autocast import AutocastInferer
from label_efficient.engine.loss_terms import LossTerms
from multimix.data import load_data
from multimix.losses import MultiMixLoss
from multimix.network import MultiMixNet
from multimix.streams import StreamBatches, StreamSet
from multimix.trainer import MultiMixStep, PrepareStreams
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


def trainer_of(data, network, *, steps=2, amp=False, loss=None, learning_rate=1e-3, handlers=()):
    streams, loss = StreamSet(data, data), loss or MultiMixLoss()
    sampler = StreamBatches(streams.lengths, 3, steps=steps)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=DataLoader(streams, batch_size=None, sampler=sampler),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), learning_rate),
        loss_function=loss,
        iteration_update=MultiMixStep(PrepareStreams()),
        inferer=AutocastInferer(amp=amp),
        train_handlers=[LossTerms(loss), *handlers],
        decollate=False,
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
    network, loss, prepare = (
        network_of(method, dropout=0.0, decoder_dropout=0.0).train(),
        MultiMixLoss(),
        PrepareStreams(),
    )
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
    network = network_of(method, dropout=0.0, decoder_dropout=0.0)
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


@pytest.mark.parametrize(("counts", "accuracy"), [([(3, 3), (1, 0)], 3 / 4), ([(0, 0)], None)])
def test_pseudo_label_accuracy_is_over_all_steps_with_a_known_one(counts, accuracy):
    loss, engine = MultiMixLoss(), Engine(lambda engine, batch: step(*batch))

    def step(known, correct):
        loss.terms = {"pseudo_label_known": torch.tensor(known), "pseudo_label_correct": torch.tensor(correct)}
        return {"loss": torch.tensor(float(known)), "num_images": 4}

    LossTerms(loss).attach(engine)
    engine.run(counts)
    metrics = dict(engine.state.metrics)
    assert metrics.pop("images_per_second") > 0
    assert metrics.pop("loss") == pytest.approx(sum(known for known, _ in counts) / len(counts))
    assert metrics == ({} if accuracy is None else {"pseudo_label_accuracy": accuracy})


def test_a_diverged_epoch_is_an_error(demo):
    network = network_of(dropout=0.0, decoder_dropout=0.0)
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
        prepare = PrepareStreams(seed=seed, mask_augment="weak")
        prepare.rank = rank
        return prepare(batch, CPU, epoch, iteration)

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


def test_mixed_precision_on_a_cpu_trains_almost_the_same(demo):
    network = network_of(dropout=0.0, decoder_dropout=0.0)
    trainer = trainer_of(demo["multimix"], network, amp=True)
    trainer.run()
    weights, terms = by_hand(demo["multimix"], "multimix")
    assert trainer.state.metrics["loss"] == pytest.approx(sum(t["loss"] for t in terms) / 2, rel=0.03)
    assert trainer.state.metrics["loss"] != pytest.approx(sum(t["loss"] for t in terms) / 2, rel=1e-7)
    for parameter, expected in zip(network.parameters(), weights[-1], strict=True):
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.detach(), expected, rtol=0.05, atol=0.02)
