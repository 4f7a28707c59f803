"""The benchmarks of the multimix bundle: its step against all streams through the whole network, and its bridge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from measure import Bar, Benchmark, Options, seconds

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "multimix"
sys.path.insert(0, str(BUNDLE))

from multimix.losses import MultiMixLoss  # noqa: E402
from multimix.network import MultiMixNet  # noqa: E402

Tensors = dict[str, torch.Tensor]

OUTPUTS = {
    "class_labelled": ("logits", "logits"),
    "class_weak": ("weak_logits", "logits"),
    "class_strong": ("strong_logits", "logits"),
    "mask_labelled": ("mask_logits", "mask_logits"),
    "mask_unlabelled": ("unlabelled_mask_logits", "mask_logits"),
}


def random_step(batch_size: int, image_size: int, device: str) -> tuple[Tensors, Tensors]:
    """Streams and targets of one step, of random pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, 1, image_size, image_size)
    streams = {name: torch.rand(shape, generator=generator).to(device) for name in OUTPUTS}
    targets = {
        "label": torch.randint(0, 2, (batch_size,), generator=generator),
        "hidden_label": torch.randint(-1, 2, (batch_size,), generator=generator),
        "mask": torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8),
    }
    return streams, {name: value.to(device) for name, value in targets.items()}


def saliency_by_backward(network: MultiMixNet, image: torch.Tensor) -> torch.Tensor:
    """The map as one would write it: in evaluation mode, by `backward`, the parameters' gradients thrown away."""
    assert network.branch is not None
    network.eval()
    variable = image.clone().requires_grad_()
    logits = network.branch(network.encoder(variable)[-1])
    logits.max(dim=1).values.sum().backward()
    network.zero_grad()
    network.train()
    assert variable.grad is not None
    return variable.grad.abs()


def naive_outputs(network: MultiMixNet, streams: Mapping[str, torch.Tensor]) -> Tensors:
    """What `MultiMixNet` gives for the streams, by sending all of them through the bridge, the branch and the decoder.

    Args:
        network: Of the method "multimix".
        streams: Batches B x 1 x H x W by name, all five.
    """
    assert network.branch is not None and network.decoder is not None
    image = torch.cat([streams[name] for name in OUTPUTS])
    saliency = saliency_by_backward(network, image)
    features = network.encoder(image)
    whole = {"logits": network.branch(features[-1]), "mask_logits": network.decoder(features, image, saliency)}
    sizes = [len(streams[name]) for name in OUTPUTS]
    parts = {name: tensor.split(sizes) for name, tensor in whole.items()}
    return {output: parts[source][index] for index, (output, source) in enumerate(OUTPUTS.values())}


def training_step(
    network: MultiMixNet, forward: Callable[[Tensors], Tensors], step: tuple[Tensors, Tensors], device: str
) -> Callable[[], float]:
    """Milliseconds of forward, loss, backward and update."""
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    loss = MultiMixLoss()
    streams, targets = step

    def work() -> None:
        optimizer.zero_grad()
        loss(forward(streams), targets).backward()
        optimizer.step()

    return lambda: 1000 * seconds(work, device)


def step_benchmarks(options: Options) -> Iterator[Benchmark]:
    """A training step on the five streams against the same losses with all streams through everything."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 10
        step = random_step(batch_size, size, options.device)
        naive, fast = MultiMixNet(), MultiMixNet()
        yield Benchmark(
            "step",
            "ms/step",
            "streams apart",
            {
                "all streams through everything": training_step(
                    naive, lambda streams, net=naive: naive_outputs(net, streams), step, options.device
                ),
                "streams apart": training_step(fast, fast, step, options.device),
            },
            {"all streams through everything": Bar(1 / 2.4)},
            image_size=size,
            batch_size=batch_size,
        )


def saliency_benchmarks(options: Options) -> Iterator[Benchmark]:
    """The saliency map against a training pass of encoder and branch with the parameters' gradients."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 10
        network = MultiMixNet().to(options.device).train()
        image = random_step(batch_size, size, options.device)[0]["mask_labelled"]

        def training_pass(network: MultiMixNet = network, image: torch.Tensor = image) -> None:
            network.zero_grad()
            assert network.branch is not None
            network.branch(network.encoder(image)[-1]).sum().backward()

        def map_pass(network: MultiMixNet = network, image: torch.Tensor = image) -> None:
            network.saliency_map(image)

        yield Benchmark(
            "saliency",
            "ms/batch",
            "saliency map",
            {
                "training pass": lambda work=training_pass: 1000 * seconds(work, options.device),
                "saliency map": lambda work=map_pass: 1000 * seconds(work, options.device),
            },
            {"training pass": Bar(0.7)},
            image_size=size,
            batch_size=batch_size,
            repeats=9,
        )


BENCHMARKS = {"step": step_benchmarks, "saliency": saliency_benchmarks}
