"""The losses against formulas written out, and where their gradients go."""

import math

import numpy as np
import pytest
import torch

from multimix.losses import UNKNOWN, MultiMixLoss, bernoulli_kl, pseudo_label, pseudo_label_loss


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def softmax(row):
    exponents = [math.exp(value) for value in row]
    return [value / sum(exponents) for value in exponents]


def cross_entropies(logits, labels):
    return [-math.log(softmax(row)[label]) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]


def kl_of_pairs(labelled, unlabelled):
    """Mean over all pairs of images and over pixels, in loops."""
    values = []
    for one in labelled.detach().numpy():
        for other in unlabelled.detach().numpy():
            for p, q in zip(map(sigmoid, one.ravel()), map(sigmoid, other.ravel()), strict=True):
                values.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    return float(np.mean(values))


def dice_losses(logits, masks):
    """One minus the soft Dice with 1 added above and below, of each image."""
    values = []
    for image, mask in zip(logits.detach().numpy(), masks.numpy(), strict=True):
        both = alone = 0.0
        for value, truth in zip(image.ravel(), mask.ravel(), strict=True):
            both += sigmoid(value) * truth
            alone += sigmoid(value) + truth
        values.append(1 - (2 * both + 1) / (alone + 1))
    return values


def everything(seed=0):
    outputs = {
        "logits": randn(3, 2, seed=seed, scale=2),
        "weak_logits": randn(4, 2, seed=seed + 1, scale=2),
        "strong_logits": randn(4, 2, seed=seed + 2, scale=2),
        "mask_logits": randn(3, 1, 4, 5, seed=seed + 3, scale=2),
        "unlabelled_mask_logits": randn(2, 1, 4, 5, seed=seed + 4, scale=2),
    }
    targets = {
        "label": torch.tensor([1, 0, 1]),
        "hidden_label": torch.tensor([0, 1, UNKNOWN, 1]),
        "mask": (randn(3, 1, 4, 5, seed=seed + 5) > 0).to(torch.uint8),
    }
    return {name: value.requires_grad_() for name, value in outputs.items()}, targets


def expected_terms(outputs, targets, threshold=0.7, class_weights=None):
    labels = targets["label"]
    losses = cross_entropies(outputs["logits"], labels)
    weights = [class_weights[label] if class_weights else 1.0 for label in labels]
    pseudo = []
    for weak, strong in zip(outputs["weak_logits"].tolist(), outputs["strong_logits"].tolist(), strict=True):
        probabilities = softmax(weak)
        sure = max(probabilities) >= threshold
        pseudo.append(-math.log(softmax(strong)[int(np.argmax(probabilities))]) if sure else 0.0)
    return {
        "class_loss": sum(w * loss for w, loss in zip(weights, losses, strict=True)) / len(labels),
        "pseudo_label_loss": sum(pseudo) / len(pseudo),
        "mask_loss": float(np.mean(dice_losses(outputs["mask_logits"], targets["mask"]))),
        "kl_loss": kl_of_pairs(outputs["mask_logits"], outputs["unlabelled_mask_logits"]),
    }


@pytest.mark.parametrize("class_weights", [None, [0.5, 3.0]])
@pytest.mark.parametrize(
    "weights", [{}, {"lambda_": 0.5, "alpha": 2.0, "beta": 0.3, "confidence_threshold": 0.9}], ids=["paper", "own"]
)
def test_total_and_terms_equal_the_formulas(weights, class_weights):
    outputs, targets = everything()
    loss = MultiMixLoss(class_weights=class_weights, **weights)
    total = loss(outputs, targets)
    expected = expected_terms(outputs, targets, weights.get("confidence_threshold", 0.7), class_weights)
    for name, value in expected.items():
        assert float(loss.terms[name]) == pytest.approx(value, rel=1e-5)
        assert value != 0 and not loss.terms[name].requires_grad
    factors = (1.0, weights.get("lambda_", 0.25), weights.get("alpha", 5.0), weights.get("beta", 0.01))
    assert float(total.detach()) == pytest.approx(sum(f * v for f, v in zip(factors, expected.values(), strict=True)))


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        (["mask_logits"], {"mask_loss"}),
        (["logits"], {"class_loss"}),
        (["logits", "mask_logits"], {"class_loss", "mask_loss"}),
        (
            ["logits", "weak_logits", "strong_logits"],
            {
                "class_loss",
                "pseudo_label_loss",
                "pseudo_label_share",
                "pseudo_label_known",
                "pseudo_label_correct",
            },
        ),
    ],
)
def test_only_the_terms_of_what_there_is(given, terms):
    outputs, targets = everything()
    loss = MultiMixLoss()
    loss(outputs, targets)
    total = loss({name: outputs[name] for name in given}, targets)
    assert set(loss.terms) == terms
    factors = {"class_loss": 1.0, "pseudo_label_loss": 0.25, "mask_loss": 5.0}
    expected = sum(factors[name] * float(loss.terms[name]) for name in terms if name in factors)
    assert float(total.detach()) == pytest.approx(expected)


def gradients(loss, **changes):
    outputs, targets = everything()
    loss({**outputs, **changes}, targets).backward()
    return {name: value.grad for name, value in outputs.items()}


def test_no_gradient_reaches_the_weak_view():
    found = gradients(MultiMixLoss(confidence_threshold=0.0))
    assert found["weak_logits"] is None
    assert all(found[name].abs().max() > 0 for name in found if name != "weak_logits")


@pytest.mark.parametrize("detach", [True, False])
def test_sides_of_the_kl_with_a_gradient(detach):
    outputs, targets = everything()
    only_kl = MultiMixLoss(alpha=0.0, lambda_=0.0, beta=1.0, kl_detach_labelled=detach)
    only_kl(outputs, targets).backward()
    labelled, unlabelled = outputs["mask_logits"].grad, outputs["unlabelled_mask_logits"].grad
    assert unlabelled.abs().max() > 1e-4
    assert (float(labelled.abs().max()) > 1e-4) is not detach
    # d KL / d (logit of q) is q minus the mean of p, over the number of values.
    p, q = torch.sigmoid(outputs["mask_logits"]).mean(0), torch.sigmoid(outputs["unlabelled_mask_logits"])
    torch.testing.assert_close(unlabelled, ((q - p) / q.numel()).detach(), rtol=1e-4, atol=1e-8)


def test_kl_is_not_the_one_that_trains_nothing():
    # The published code takes a softmax over the one channel: 1 everywhere, whatever the network says.
    labelled, unlabelled = randn(2, 1, 4, 4, seed=1), randn(2, 1, 4, 4, seed=2).requires_grad_()
    published = torch.nn.functional.kl_div(unlabelled.softmax(1).log(), labelled.softmax(1), reduction="batchmean")
    assert float(published.detach()) == 0
    assert torch.autograd.grad(published, unlabelled)[0].abs().max() == 0
    ours = bernoulli_kl(labelled, unlabelled)
    assert float(ours.detach()) > 0.1
    assert torch.autograd.grad(ours, unlabelled)[0].abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (4, 1)])
def test_kl_is_the_mean_over_all_pairs(sizes):
    labelled, unlabelled = randn(sizes[0], 1, 3, 4, seed=3, scale=3), randn(sizes[1], 1, 3, 4, seed=4, scale=3)
    assert float(bernoulli_kl(labelled, unlabelled)) == pytest.approx(kl_of_pairs(labelled, unlabelled), rel=1e-9)


def test_kl_of_equal_maps_is_zero_and_never_negative():
    one = randn(1, 1, 5, 5, scale=4)
    assert float(bernoulli_kl(one, one)) == pytest.approx(0, abs=1e-12)
    for seed in range(5):
        assert float(bernoulli_kl(randn(2, 1, 3, 3, seed=seed), randn(2, 1, 3, 3, seed=seed + 9))) > 0


def test_kl_of_certain_maps_is_finite():
    certain = torch.tensor([-300.0, 300.0]).view(2, 1, 1, 1).requires_grad_()
    value = bernoulli_kl(certain, -certain)
    value.backward()
    assert math.isfinite(float(value.detach())) and torch.isfinite(certain.grad).all()


def test_pseudo_label_at_the_threshold_counts():
    # Two classes with logits 0 and log 3: probabilities 1/4 and 3/4.
    weak = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0], [0.0, 0.5]], dtype=torch.float64).requires_grad_()
    confidence = float(weak.detach().softmax(1)[0, 1])
    classes, sure = pseudo_label(weak, confidence)
    assert classes.tolist() == [1, 0, 1] and sure.tolist() == [True, True, False]
    assert not pseudo_label(weak, float(np.nextafter(confidence, 1)))[1].any()
    assert not classes.requires_grad


def test_pseudo_label_loss_is_the_mean_over_the_whole_batch():
    strong = randn(4, 3)
    classes, sure = torch.tensor([0, 2, 1, 1]), torch.tensor([True, False, False, True])
    each = cross_entropies(strong, classes)
    assert float(pseudo_label_loss(strong, classes, sure)) == pytest.approx((each[0] + each[3]) / 4)
    assert float(pseudo_label_loss(strong, classes, torch.zeros(4, dtype=torch.bool))) == 0


def test_counts_of_pseudo_labels():
    outputs, targets = everything()
    high, low = 4.0, 0.1
    outputs["weak_logits"] = torch.tensor([[high, 0.0], [0.0, high], [0.0, high], [0.0, low], [high, 0.0]])
    outputs["strong_logits"] = randn(5, 2)
    targets["hidden_label"] = torch.tensor([0, 1, UNKNOWN, 1, 1])
    loss = MultiMixLoss()
    loss(outputs, targets)
    assert float(loss.terms["pseudo_label_share"]) == pytest.approx(4 / 5)
    # Above the threshold and of a known class: the first two and the last, which is wrong.
    assert (float(loss.terms["pseudo_label_known"]), float(loss.terms["pseudo_label_correct"])) == (3, 2)


def test_dice_is_smooth_where_both_masks_are_empty():
    outputs = {"mask_logits": torch.full((1, 1, 4, 4), -30.0)}
    targets = {"mask": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}
    assert float(MultiMixLoss()(outputs, targets)) == pytest.approx(0, abs=1e-6)
    targets["mask"][0, 0, 0, :3] = 1
    assert float(MultiMixLoss()(outputs, targets)) == pytest.approx(5 * (1 - 1 / 4), rel=1e-5)


def test_half_precision_outputs_give_a_single_precision_loss():
    outputs, targets = everything()
    half = {name: value.detach().bfloat16() for name, value in outputs.items()}
    expected = MultiMixLoss()({name: value.float() for name, value in half.items()}, targets)
    found = MultiMixLoss()(half, targets)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(float(expected))
