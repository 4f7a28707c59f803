"""The loss against its formula written out, and lambda at every boundary of the paper's schedule."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gated_attention.losses import GatedAttentionLoss, lambda_at

TARGETS = torch.tensor([0, 2, 1, 2, 2])


def outputs():
    torch.manual_seed(0)
    return {key: (torch.randn(5, 3) * 3).requires_grad_() for key in ("global_logits", "logits")}


def cross_entropy(logits, weights, smoothing):
    """Weighted cross-entropy with label smoothing, written out."""
    logits, targets = logits.detach().double().numpy(), TARGETS.numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    summed = 0.0
    for row, target in zip(log_p, targets, strict=True):
        wanted = np.full(3, smoothing / 3)
        wanted[target] += 1 - smoothing
        summed -= (wanted * weights * row).sum()
    return summed / len(targets)


@pytest.mark.parametrize("lambda_", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_equals_equation_3(weights, smoothing, lambda_):
    loss = GatedAttentionLoss(class_weights=weights, label_smoothing=smoothing)
    assert loss.lambda_ == 1
    loss.lambda_ = lambda_
    output = outputs()
    found = loss(output, TARGETS)
    array = np.ones(3) if weights is None else np.array(weights)
    first, second = (cross_entropy(output[key], array, smoothing) for key in ("global_logits", "logits"))
    assert found.item() == pytest.approx(lambda_ * first + (1 - lambda_) * second, rel=1e-5)
    assert loss.terms["global_loss"].item() == pytest.approx(first, rel=1e-5)
    assert loss.terms["fusion_loss"].item() == pytest.approx(second, rel=1e-5)
    assert not any(term.requires_grad for term in loss.terms.values())
    tensor = None if weights is None else torch.tensor(weights)
    each = F.cross_entropy(output["logits"], TARGETS, weight=tensor, label_smoothing=smoothing, reduction="none")
    assert torch.allclose(loss.terms["fusion_loss"], each.detach().mean())


@pytest.mark.parametrize(("lambda_", "reached"), [(1.0, {"global_logits"}), (0.0, {"logits"}), (0.3, None)])
def test_gradient_goes_where_lambda_says(lambda_, reached):
    loss, output = GatedAttentionLoss(), outputs()
    loss.lambda_ = lambda_
    loss(output, TARGETS).backward()
    assert {key for key, logits in output.items() if logits.grad.any()} == (reached or set(output))


def test_without_fusion_it_is_the_global_loss_alone():
    loss, output = GatedAttentionLoss(), outputs()
    loss(output, TARGETS)
    del output["logits"]
    assert torch.equal(loss(output, TARGETS), F.cross_entropy(output["global_logits"], TARGETS))
    # A term of the call before is not left behind.
    assert set(loss.terms) == {"global_loss"}
    loss.lambda_ = 0.9
    with pytest.raises(ValueError, match=r"lambda is 0\.9, and the network has no fusion"):
        loss(output, TARGETS)


def test_half_precision_is_computed_in_single():
    output = {key: logits.detach().bfloat16() for key, logits in outputs().items()}
    found = GatedAttentionLoss()(output, TARGETS)
    assert found.dtype == torch.float32
    assert found == F.cross_entropy(output["global_logits"].float(), TARGETS)


def test_class_weights_move_with_the_loss_and_are_no_weights_of_a_network():
    loss = GatedAttentionLoss(class_weights=[1.0, 2.0, 3.0])
    assert loss.to(torch.device("meta")).class_weights.is_meta
    assert not list(loss.parameters())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is .*, expected at least 0 and less than 1"):
        GatedAttentionLoss(label_smoothing=smoothing)


def test_lambda_of_the_paper_falls_after_every_20_epochs():
    found = [lambda_at(epoch, start=1.0, step=0.1, every=20, floor=0.0) for epoch in range(1, 221)]
    # Exactly: ten steps of 0.1 leave nothing over.
    assert found == np.repeat([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 20).tolist()


@pytest.mark.parametrize(
    ("epoch", "start", "step", "every", "floor", "expected"),
    [
        (221, 1.0, 0.1, 20, 0.0, 0.0),
        (8, 1.0, 0.1, 1, 0.25, 0.3),
        (9, 1.0, 0.1, 1, 0.25, 0.25),
        (4, 0.5, 1.0, 3, 0.1, 0.1),
        (99, 0.8, 0.0, 1, 0.2, 0.8),
        (1, 0.2, 0.1, 5, 0.4, 0.4),  # never below the floor, wherever it starts
        (4, 1.0, 1 / 3, 1, 0.0, 0.0),
    ],
)
def test_lambda_at(epoch, start, step, every, floor, expected):
    assert lambda_at(epoch, start=start, step=step, every=every, floor=floor) == expected
