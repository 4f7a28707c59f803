"""Losses: equations 2 to 8 of the paper written out per image and pair, gradients, terms of each method."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from lsanet.losses import LSANetLoss, node_cross_entropy, synergy_loss
from lsanet.network import METHODS, LSANet

IMAGES, NODES, CLASSES = 5, 4, 3


def drawn(seed=0, nodes=NODES, scale=2.0):
    """What a network returns, in float64, and targets for it."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, scale, (IMAGES, nodes, CLASSES)), requires_grad=True)
    beta = torch.tensor(rng.dirichlet(np.ones(nodes), IMAGES), requires_grad=True)
    return logits, beta, torch.tensor(rng.integers(0, CLASSES, IMAGES))


def many_labels(seed=0):
    return torch.tensor(np.random.default_rng(seed).integers(0, 2, (IMAGES, CLASSES)))


def as_output(logits, beta=None):
    output = {"logits": logits[:, -1]}
    if logits.shape[1] > 1:
        output["aux_logits"] = logits[:, :-1]
    return output if beta is None else output | {"beta": beta}


def numbers(*tensors):
    return [t.detach().numpy() for t in tensors]


def cross_entropy(logits, target, weights=None):
    """-log f(y) of one image at one node; for 0/1 targets the mean over the labels."""
    if np.ndim(target):
        w = np.ones(len(logits)) if weights is None else weights
        terms = [-math.log(expit(z)) if t else -math.log(1 - expit(z)) for z, t in zip(logits, target, strict=True)]
        return float(np.mean(w * np.array(terms)))
    probability = softmax(logits)[target]
    return -math.log(probability) * (1 if weights is None else weights[target])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def reference(method, logits, beta, targets, *, alpha=1.0, mu=1.0, weights=None):
    """Total loss and its terms, by loops over images, nodes and ordered pairs."""
    multi_label = targets.ndim == 2
    branch = synergy = 0.0
    node_losses = np.zeros(logits.shape[1])
    for image in range(len(logits)):
        own = [cross_entropy(z, targets[image], weights) for z in logits[image]]
        node_losses += np.array(own) / len(logits)
        if method in ("lsanet", "dsn_lsa"):  # equation 7
            branch += sum(b * e for b, e in zip(beta[image], own, strict=True)) / len(logits)
        else:  # equation 2 plus equation 4
            branch += (own[-1] + sum(alpha * e for e in own[:-1])) / len(logits)
        for p in range(logits.shape[1]):
            for q in range(logits.shape[1]):
                if p == q or method not in ("lsanet", "dks", "dsn_ks"):
                    continue
                if multi_label:
                    pairs = zip(expit(logits[image, p]), expit(logits[image, q]), strict=True)
                    synergy += mu * sum(kl([a, 1 - a], [b, 1 - b]) for a, b in pairs) / len(logits)
                else:  # equation 8, with the sign of a KL divergence
                    synergy += mu * kl(softmax(logits[image, p]), softmax(logits[image, q])) / len(logits)
    return branch + synergy, branch, synergy, node_losses


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_total_and_terms_equal_the_equations(method, multi_label, weights):
    nodes = {"baseline": 1, "dks": 3}.get(method, NODES)
    logits, beta, targets = drawn(nodes=nodes)
    targets = many_labels() if multi_label else targets
    loss = LSANetLoss(
        method=method,
        multi_label=multi_label,
        alpha=0.7,
        synergy_weight=0.3,
        class_weights=weights,
        node_names=[f"C{node}" for node in range(logits.shape[1])],
    ).double()
    total = loss(as_output(logits, beta), targets)
    expected = reference(method, *numbers(logits, beta, targets), alpha=0.7, mu=0.3, weights=weights)
    assert total.item() == pytest.approx(expected[0], rel=1e-12)
    assert loss.terms["branch_loss"].item() == pytest.approx(expected[1], rel=1e-12)
    assert loss.terms["synergy_loss"].item() == pytest.approx(expected[2], rel=1e-12)
    found = [value.item() for name, value in loss.terms.items() if name.startswith("ce_")]
    np.testing.assert_allclose(found, expected[3], rtol=1e-12)
    assert not any(term.requires_grad for term in loss.terms.values())
    assert (expected[2] > 0) == (method in ("lsanet", "dks", "dsn_ks"))


@pytest.mark.parametrize("multi_label", [False, True])
def test_synergy_is_zero_when_all_nodes_agree_and_positive_otherwise(multi_label):
    one = torch.randn(IMAGES, 1, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    agreeing = one.expand(-1, NODES, -1)
    assert synergy_loss(agreeing, multi_label).item() == pytest.approx(0, abs=1e-12)
    assert synergy_loss(one, multi_label).item() == pytest.approx(0, abs=1e-12)
    for seed in range(5):
        assert synergy_loss(drawn(seed, scale=0.1)[0], multi_label).item() > 1e-4


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("multi_label", [False, True])
def test_minimising_the_synergy_makes_the_nodes_agree(multi_label, stop_gradient):
    logits = drawn()[0]
    optimizer = torch.optim.SGD([logits], lr=0.5)
    first = synergy_loss(logits, multi_label, stop_gradient).item()
    for _ in range(300):
        optimizer.zero_grad()
        synergy_loss(logits, multi_label, stop_gradient).backward()
        optimizer.step()
    assert synergy_loss(logits, multi_label).item() < first / 1000
    f = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=2)
    assert (f - f.mean(dim=1, keepdim=True)).abs().max() < 0.05


def gradient_of_synergy(logits, multi_label, stop_gradient):
    leaf = logits.detach().clone().requires_grad_()
    synergy_loss(leaf, multi_label, stop_gradient).backward()
    return leaf.grad.numpy()


@pytest.mark.parametrize("multi_label", [False, True])
def test_with_stop_gradient_the_teacher_is_a_constant(multi_label):
    logits = drawn()[0]
    z = logits.detach().numpy()
    gradient = gradient_of_synergy(logits, multi_label, stop_gradient=True)
    # d/dz_q of KL(f_p || f_q) with f_p fixed is f_q - f_p, for softmax and for sigmoid alike.
    f = expit(z) if multi_label else softmax(z, axis=2)
    by_hand = np.zeros_like(z)
    for image, p, q in np.ndindex(IMAGES, NODES, NODES):
        by_hand[image, q] += (f[image, q] - f[image, p]) / IMAGES
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_without_stop_gradient_it_is_the_full_gradient(multi_label):
    logits = drawn()[0]
    gradient = gradient_of_synergy(logits, multi_label, stop_gradient=False)
    # Against finite differences of the value, which is that of the equation.
    assert torch.autograd.gradcheck(lambda t: synergy_loss(t, multi_label, stop_gradient=False), logits)
    assert np.abs(gradient - gradient_of_synergy(logits, multi_label, stop_gradient=True)).max() > 1e-2


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_reaches_the_loss_and_leaves_its_value(stop_gradient):
    logits, beta, targets = drawn()
    loss = LSANetLoss(stop_gradient=stop_gradient)
    total = loss(as_output(logits, beta), targets)
    total.backward()
    f = softmax(logits.detach().numpy(), axis=2)
    onehot = np.eye(CLASSES)[targets.numpy()][:, None]
    branch = beta.detach().numpy()[:, :, None] * (f - onehot) / IMAGES
    synergy = gradient_of_synergy(logits, False, stop_gradient)
    np.testing.assert_allclose(logits.grad.numpy(), branch + synergy, rtol=1e-9, atol=1e-12)
    assert total.item() == pytest.approx(reference("lsanet", *numbers(logits, beta, targets))[0], rel=1e-12)


def test_gradient_of_beta_is_the_nodes_cross_entropy_and_nothing_of_the_synergy():
    logits, beta, targets = drawn()
    LSANetLoss(synergy_weight=5.0)(as_output(logits, beta), targets).backward()
    expected = node_cross_entropy(logits, targets).detach() / IMAGES
    torch.testing.assert_close(beta.grad, expected)


def test_layer_attention_learns_through_the_branch_loss_alone():
    torch.manual_seed(0)
    network = LSANet(backbone="resnet18", num_classes=3, image_size=32, embed_channels=8)
    image, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])

    def gradients(loss_of_output):
        network.zero_grad()
        loss_of_output(network(image)).backward()
        return {n: p.grad for n, p in network.named_parameters()}

    whole = gradients(lambda output: LSANetLoss()(output, targets))
    branch = gradients(lambda output: LSANetLoss(method="dsn_lsa")(output, targets))
    loss_without = LSANetLoss(synergy_weight=1.0)

    def synergy_only(output):
        fixed = output | {"beta": output["beta"].detach()}
        return loss_without(fixed, targets)

    without = gradients(synergy_only)
    names = [n for n in whole if n.startswith("lsa.")]
    assert len(names) == 4 * 4 + 2
    for name in names:
        torch.testing.assert_close(whole[name], branch[name])
        assert branch[name].abs().max() > 0
        assert without[name] is None
    # The synergy does reach the classifiers.
    assert not torch.allclose(whole["heads.0.fc.weight"], branch["heads.0.fc.weight"])


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[500.0, -500.0], [-500.0, 500.0]]], requires_grad=True)
    for multi_label in (False, True):
        value = synergy_loss(logits, multi_label)
        # Two ordered pairs; one KL of 1000 for two classes, two of 500 for two labels.
        assert value.item() == pytest.approx(2000, rel=1e-6)
        value.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lsa"}, r"'lsa'.*baseline, dsn, dks, dsn_ks, dsn_lsa, lsanet"),
        ({"alpha": -0.1}, r"alpha is -0\.1"),
        ({"synergy_weight": -1.0}, r"synergy_weight is -1\.0"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSANetLoss(**arguments)


def test_single_precision_is_close_to_the_loops():
    logits, beta, targets = drawn(scale=8.0)
    exact = reference("dks", *numbers(logits, beta, targets))[2]
    assert synergy_loss(logits.float()).item() == pytest.approx(exact, rel=1e-5)
