"""The benchmarks of the multimix bundle: its training step, its saliency map, its inference on a folder."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from bundle_paths import ROOT
from monai.bundle import ConfigParser
from PIL import Image
from torch import nn

from benchmarks.measure import Bar, Benchmark, Options, seconds
from label_efficient.networks.weights import save_model
from multimix.demo_data import DEMO_CLASSES, make_demo_images
from multimix.losses import MultiMixLoss
from multimix.network import MultiMixNet
from multimix.shipped import ShippedMultiMix
from multimix.transforms import to_input

BUNDLE = ROOT / "bundles" / "multimix"
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


class PlainMultiMix(nn.Module):
    """The network of the paper in torch's own modules, with its parameters in the order of `MultiMixNet`'s.

    Args:
        num_classes: K.
        dropout: Of the encoder's blocks.
    """

    def __init__(self, *, num_classes: int = 2, dropout: float = 0.25) -> None:
        super().__init__()
        widths = (16, 32, 64, 128, 256)
        self.encoder = nn.ModuleList(_block(a, b, dropout) for a, b in zip((1, *widths), widths, strict=False))
        self.branch = nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, num_classes))
        pairs = ((256 + 128 + 2, 128), (128 + 64, 64), (64 + 32, 32), (32 + 16, 16))
        self.decoder = nn.ModuleList(_block(a, b, 0.0) for a, b in pairs)
        self.to_mask = nn.Conv2d(16, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.eighth = nn.AvgPool2d(8)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Image B x 1 x H x W to the features of the five blocks."""
        features = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            features.append(block(self.pool(features[-1])))
        return features

    def saliency_map(self, image: torch.Tensor) -> torch.Tensor:
        """As one would write it: in evaluation mode, by `backward`, the parameters' gradients thrown away."""
        self.eval()
        variable = image.clone().requires_grad_()
        self.branch(self.encode(variable)[-1]).max(dim=1).values.sum().backward()
        self.zero_grad()
        self.train()
        assert variable.grad is not None
        return variable.grad.abs()

    def forward(self, streams: Mapping[str, torch.Tensor]) -> Tensors:
        """What `MultiMixNet` gives for the five streams, by sending all of them through every part."""
        image = torch.cat([streams[name] for name in OUTPUTS])
        saliency = self.saliency_map(image)
        features = self.encode(image)
        decoded = features[-1]
        for index, (block, skip) in enumerate(zip(self.decoder, features[-2::-1], strict=True)):
            parts = [self.upsample(decoded), skip]
            if index == 0:
                parts.append(self.eighth(torch.cat([image, saliency], dim=1)))
            decoded = block(torch.cat(parts, dim=1))
        whole = {"logits": self.branch(features[-1]), "mask_logits": self.to_mask(decoded)}
        sizes = [len(streams[name]) for name in OUTPUTS]
        parts_of = {name: tensor.split(sizes) for name, tensor in whole.items()}
        return {output: parts_of[source][index] for index, (output, source) in enumerate(OUTPUTS.values())}


def _block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    modules: list[nn.Module] = []
    for ins in (in_channels, out_channels):
        modules += [
            nn.Conv2d(ins, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*modules, nn.Dropout(dropout))


def training_step(network: nn.Module, step: tuple[Tensors, Tensors], device: str) -> Callable[[], float]:
    """Milliseconds of forward, loss, backward and update."""
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    loss = MultiMixLoss()
    streams, targets = step

    def work() -> None:
        optimizer.zero_grad()
        loss(network(streams), targets).backward()
        optimizer.step()

    return milliseconds(work, device)


def milliseconds(work: Callable[[], None], device: str) -> Callable[[], float]:
    """Measure some work."""
    return lambda: 1000 * seconds(work, device)


def step_benchmarks(options: Options) -> Iterator[Benchmark]:
    """A training step on the five streams against the same losses with all streams through everything."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 10
        step = random_step(batch_size, size, options.device)
        networks = {
            "all streams through everything": PlainMultiMix(),
            "streams apart": MultiMixNet(decoder_dropout=0.0),
        }
        yield Benchmark(
            "step",
            "ms/step",
            "streams apart",
            {name: training_step(network, step, options.device) for name, network in networks.items()},
            {"all streams through everything": Bar(1 / 2.4)},
            image_size=size,
            batch_size=batch_size,
        )


def saliency_benchmarks(options: Options) -> Iterator[Benchmark]:
    """The saliency map against a training pass of encoder and branch with the parameters' gradients."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 10
        network = MultiMixNet(decoder_dropout=0.0).to(options.device).train()
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
                "training pass": milliseconds(training_pass, options.device),
                "saliency map": milliseconds(map_pass, options.device),
            },
            {"training pass": Bar(0.7)},
            image_size=size,
            batch_size=batch_size,
            repeats=9,
        )


def folder_inference(files: Path, weights: Path, size: int, batch_size: int, device: str) -> Callable[[], float]:
    """Images per second of the bundle's inference on a folder, from files to masks and tables."""

    def work() -> None:
        with tempfile.TemporaryDirectory() as output:
            parser = ConfigParser()
            parser.read_config(str(BUNDLE / "configs" / "inference.json"))
            changes = {"dataset_dir": str(files), "output_dir": output, "ckpt_path": str(weights), "device": device}
            parser.update({**changes, "bundle_root": str(BUNDLE), "batch_size": batch_size, "contact_sheet": 0})
            evaluator = parser.get_parsed_content("evaluator")
            evaluator.logger.setLevel(logging.WARNING)
            evaluator.run()

    count = len(list(files.iterdir()))
    return lambda: count / seconds(work, device)


def network_throughput(network: nn.Module, images: torch.Tensor, batch_size: int, device: str) -> Callable[[], float]:
    """Images per second of the network alone, on what is in the device's memory."""

    def work() -> None:
        with torch.inference_mode():
            for batch in images.split(batch_size):
                network(batch)

    return lambda: len(images) / seconds(work, device)


def inference_benchmarks(options: Options) -> Iterator[Benchmark]:
    """Inference on a folder of files against the shipped network on tensors in memory."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 16
        count = (options.steps or 4) * batch_size
        with tempfile.TemporaryDirectory() as folder:
            files, weights = Path(folder) / "images", Path(folder) / "model.pt"
            files.mkdir()
            pictures, _, _ = make_demo_images(count, size=size)
            for index, picture in enumerate(pictures):
                Image.fromarray(picture).save(files / f"{index}.png")
            network = ShippedMultiMix().eval()
            info = {"bundle": "multimix", "method": "multimix", "classes": DEMO_CLASSES}
            save_model(weights, network.state_dict(), {**info, "image_size": size, "keep_aspect": True})
            network.to(options.device)
            images = to_input(torch.from_numpy(pictures)[:, None], options.device)

            yield Benchmark(
                "folder_inference",
                "images/s",
                "folder",
                {
                    "folder": folder_inference(files, weights, size, batch_size, options.device),
                    "network on tensors": network_throughput(network, images, batch_size, options.device),
                },
                {"network on tensors": Bar(0.9, at_least=True)},
                image_size=size,
                batch_size=batch_size,
            )


BENCHMARKS = {"step": step_benchmarks, "saliency": saliency_benchmarks, "folder_inference": inference_benchmarks}
