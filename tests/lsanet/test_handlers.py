"""Handlers: means and spreads of an epoch equal those over all its images, whatever the batches."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from scipy.special import expit, softmax

import label_efficient.engine.loss_terms
import lsanet.handlers
from label_efficient.engine.handlers import OutputAsList
from label_efficient.engine.loss_terms import LossTerms
from lsanet.handlers import LSAWeights, probabilities_and_targets
from lsanet.losses import LSANetLoss

NODES = ("C1", "C3", "C4")
CLASSES, FEATURES = 3, 5
METHODS = ["lsanet", "dsn"]


class Toy(torch.nn.Module):
    """Linear stand-in for `LSANet`: the same dictionary, out of vectors."""

    def __init__(self, with_beta):
        super().__init__()
        torch.manual_seed(0)
        self.nodes = torch.nn.Linear(FEATURES, len(NODES) * CLASSES)
        self.gates = torch.nn.Linear(FEATURES, len(NODES)) if with_beta else None

    def forward(self, x):
        """Vectors B x 5 to the dictionary of `LSANet`."""
        logits = self.nodes(x).view(-1, len(NODES), CLASSES)
        output = {"logits": logits[:, -1], "aux_logits": logits[:, :-1]}
        if self.gates is not None:
            gate = torch.sigmoid(self.gates(x))
            output |= {"gate": gate, "beta": torch.softmax(gate, dim=1)}
        return output


def data(sizes=(4, 4, 2)):
    """Batches of different sizes, the last one with other statistics."""
    rng = np.random.default_rng(1)
    batches = []
    for index, size in enumerate(sizes):
        x = rng.normal(index, 1 + index, (size, FEATURES)).astype(np.float32)
        y = rng.integers(0, CLASSES, size)
        batches.append({"image": torch.from_numpy(x), "label": torch.from_numpy(y)})
    return batches


def expected(network, batches, method):
    """The terms over all images at once, in numpy."""
    x = np.concatenate([b["image"].numpy() for b in batches]).astype(np.float64)
    y = np.concatenate([b["label"].numpy() for b in batches])
    w, b = (p.detach().double().numpy() for p in network.nodes.parameters())
    f = softmax((x @ w.T + b).reshape(len(x), len(NODES), CLASSES), axis=2)
    own = -np.log(f[np.arange(len(x)), :, y])
    synergy = np.zeros(len(x))
    for p in range(len(NODES)):
        for q in range(len(NODES)):
            synergy += (f[:, p] * np.log(f[:, p] / f[:, q])).sum(axis=1)
    values = {f"ce_{name}": own[:, i].mean() for i, name in enumerate(NODES)}
    if method == "dsn":
        values |= {"branch_loss": own.sum(axis=1).mean(), "synergy_loss": 0.0}
    else:
        w, b = (p.detach().double().numpy() for p in network.gates.parameters())
        gate = expit(x @ w.T + b)
        beta = softmax(gate, axis=1)
        values |= {"branch_loss": (beta * own).sum(axis=1).mean(), "synergy_loss": synergy.mean()}
        for i, name in enumerate(NODES):
            values |= {f"beta_{name}": beta[:, i].mean(), f"beta_{name}_std": beta[:, i].std()}
            values[f"gate_{name}"] = gate[:, i].mean()
    return values | {"loss": values["branch_loss"] + values["synergy_loss"]}


def compare(metrics, values):
    names = {k for k in metrics if k != "images_per_second"}
    assert names == set(values)
    for name, value in values.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert isinstance(metrics[name], float)


def attached(engine, loss, training):
    LossTerms(loss, training=training).attach(engine)
    LSAWeights(NODES).attach(engine)
    return engine


@pytest.mark.parametrize("method", METHODS)
def test_trainer_with_an_uneven_last_batch(method):
    network, loss = Toy(method == "lsanet"), LSANetLoss(method=method, node_names=NODES)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=data(),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),  # so that all batches see the same weights
        loss_function=loss,
        decollate=False,
    )
    attached(trainer, loss, training=True).run()
    compare(trainer.state.metrics, expected(network, data(), method))
    assert trainer.state.metrics["images_per_second"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_evaluator_with_an_uneven_last_batch(method):
    network, loss = Toy(method == "lsanet"), LSANetLoss(method=method, node_names=NODES)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=data(), network=network, decollate=False
    )
    attached(evaluator, loss, training=False).run()
    compare(evaluator.state.metrics, expected(network, data(), method))


def engine_of(network, loss, training):
    def step(engine, batch):
        pred = network(batch["image"])
        output = {"pred": pred, "label": batch["label"]}
        return output | {"loss": loss(pred, batch["label"])} if training else output

    return attached(Engine(step), loss, training)


@pytest.mark.parametrize("training", [True, False])
def test_every_epoch_starts_anew(training):
    network, loss = Toy(True), LSANetLoss(node_names=NODES)
    engine = engine_of(network, loss, training)
    engine.run(data((4, 4, 2)))
    engine.run(data((3,)))
    compare(engine.state.metrics, expected(network, data((3,)), "lsanet"))
    assert ("images_per_second" in engine.state.metrics) == training


def test_an_evaluator_inside_training_does_not_disturb_the_trainers_terms():
    # One loss for both, as in the config; the evaluator runs between two of the trainer's batches.
    network, loss = Toy(True), LSANetLoss(node_names=NODES)
    trainer, evaluator = engine_of(network, loss, True), engine_of(network, loss, False)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: evaluator.run(data((5, 1))))
    trainer.run(data())
    compare(trainer.state.metrics, expected(network, data(), "lsanet"))
    compare(evaluator.state.metrics, expected(network, data((5, 1)), "lsanet"))


def test_output_as_a_list_comes_after_the_terms_and_before_appended_handlers():
    network, loss, seen = Toy(True), LSANetLoss(node_names=NODES), []
    engine = engine_of(network, loss, True)
    OutputAsList().attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.output))
    engine.run(data())
    assert [len(output) for output in seen] == [1, 1, 1]
    assert seen[0][0]["loss"].ndim == 0
    compare(engine.state.metrics, expected(network, data(), "lsanet"))


def test_a_constant_beta_has_no_spread():
    network, loss = Toy(True), LSANetLoss(node_names=NODES)
    torch.nn.init.zeros_(network.gates.weight)
    engine = engine_of(network, loss, False)
    engine.run(data())
    assert all(engine.state.metrics[f"beta_{name}_std"] == pytest.approx(0, abs=1e-7) for name in NODES)


def test_an_evaluator_needs_no_gradients():
    network, loss = Toy(True), LSANetLoss(node_names=NODES)
    handler = LossTerms(loss, training=False)
    engine = Engine(lambda engine, batch: {"pred": network(batch["image"]), "label": batch["label"]})
    handler.attach(engine)
    engine.run(data())
    assert handler.sums and not any(value.requires_grad for value in handler.sums.values())


def test_several_ranks_are_joined_by_images_not_by_ranks(monkeypatch):
    # This process is rank 0 with 10 images; the "other rank" contributes 3 others through all_reduce.
    network, loss = Toy(True), LSANetLoss(node_names=NODES)
    other = {}

    def step(engine, batch):
        return {"pred": network(batch["image"]), "label": batch["label"]}

    def run(batches):
        engine = attached(Engine(step), loss, training=False)
        engine.run(batches)
        return engine.state.metrics

    for module in (lsanet.handlers, label_efficient.engine.loss_terms):
        monkeypatch.setattr(module, "rank_and_size", lambda: (0, 2))
    here, there = data(), [{k: v + 1 if k == "image" else v for k, v in data((3,))[0].items()}]
    monkeypatch.setattr(lsanet.handlers.dist, "all_reduce", lambda t: other.update({len(t): t.clone()}))
    run(there)
    monkeypatch.setattr(lsanet.handlers.dist, "all_reduce", lambda t: t.add_(other[len(t)]))
    compare(run(here), expected(network, here + there, "lsanet"))


def test_with_kept_nodes_the_epoch_is_chosen_by_the_ensemble_that_is_shipped():
    logits, aux = torch.tensor([[2.0, 0.0]]), torch.tensor([[[0.0, 3.0]]])
    output = {"pred": {"logits": logits, "aux_logits": aux, "beta": torch.tensor([[0.8, 0.2]])}, "label": None}
    expected = 0.8 * torch.softmax(aux[:, 0], dim=1) + 0.2 * torch.softmax(logits, dim=1)
    torch.testing.assert_close(probabilities_and_targets(output, keep_nodes=True)[0], expected)
    assert torch.equal(probabilities_and_targets(output)[0], torch.softmax(logits, dim=1))
