"""Benchmarks of multimix: the slow contender computes the same losses and gradients, and a run on tiny sizes."""

import csv

import benchmark
import pytest
import torch
from benchmarks.multimix import PlainMultiMix, random_step

from multimix.losses import MultiMixLoss
from multimix.network import MultiMixNet


def losses_and_gradients(network, weights, step, kl_detach_labelled):
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data = weight.clone()
    streams, targets = step
    # A threshold in the middle of the weak view's confidences, so that some pseudo-labels count and some do not.
    confidences = network.train()(streams)["weak_logits"].detach().softmax(1).amax(1).sort().values
    threshold = float(confidences[1:3].mean())
    loss = MultiMixLoss(confidence_threshold=threshold, beta=1.0, kl_detach_labelled=kl_detach_labelled)
    total = loss(network(streams), targets)
    total.backward()
    return {"loss": total.detach(), **loss.terms}, [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("kl_detach_labelled", [True, False])
def test_all_streams_through_everything_give_the_same(kl_detach_labelled):
    torch.manual_seed(0)
    fast, plain = MultiMixNet(dropout=0.0, decoder_dropout=0.0), PlainMultiMix(dropout=0.0)
    weights = [parameter.detach() for parameter in fast.parameters()]
    step = random_step(4, 32, "cpu")
    found, gradients = losses_and_gradients(fast, weights, step, kl_detach_labelled)
    expected, plain_gradients = losses_and_gradients(plain, weights, step, kl_detach_labelled)
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert 0 < float(found["pseudo_label_share"]) < 1 and float(found["kl_loss"]) > 1e-4
    for gradient, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
        assert other.abs().max() > 0


@pytest.mark.slow
def test_run_on_tiny_sizes(tmp_path):
    output = tmp_path / "benchmark.csv"
    arguments = ["--image_sizes", "32", "--batch_size", "2", "--repeats", "1", "--device", "cpu"]
    assert benchmark.main(["multimix", *arguments, "--steps", "1", "--output", str(output)]) == 0
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["benchmark"] for row in rows] == ["step", "saliency", "folder_inference"]
    assert all(float(row["ratio"]) > 0 and row["bar"] and row["batch_size"] == "2" for row in rows)
