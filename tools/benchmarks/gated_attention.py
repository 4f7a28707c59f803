"""The benchmarks of the gated attention bundle: what its selection costs, its crops, its memory, its data pipeline."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle_paths import ROOT
from monai.bundle import ConfigParser
from monai.transforms import Compose, Resize, SpatialCrop
from torch import nn
from torch.nn import functional as F

from benchmarks.gated_attention_images import CLASSES, NUM_INSTANCES, network_arguments, photograph, save_jpeg
from benchmarks.gated_attention_memory import memory_benchmarks
from benchmarks.measure import Bar, Benchmark, Options, seconds
from gated_attention.attention import attention_map
from gated_attention.crops import cut_instances
from gated_attention.losses import GatedAttentionLoss
from gated_attention.network import GatedAttentionNet
from label_efficient.data.image_data import ImageData, Split

BUNDLE = ROOT / "bundles" / "gated_attention"
HEIGHT, WIDTH = 384, 512  # of the stored images
LAMBDA = 0.5  # both branches are trained
STEP_HANDLERS = ("LossTerms", "MovingAverage")  # what a run does at every step, beside the step


def photographs(count: int, device: str = "cpu") -> list[torch.Tensor]:
    """Images 3 x 384 x 512."""
    generator = torch.Generator().manual_seed(0)
    return [photograph(generator, HEIGHT, WIDTH).to(device) for _ in range(count)]


def milliseconds(work: Callable[[], Any], device: str, times: int = 1) -> Callable[[], float]:
    """Measure some work, the mean of so many times."""

    def repeated() -> None:
        for _ in range(times):
            work()

    return lambda: 1000 * seconds(repeated, device) / times


def selection(network: GatedAttentionNet, images: list[torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """What is between the two branches, with its gradient: attention module, map, boxes, crops (returned)."""
    attended = network.attention(features)
    boxes, _ = network.boxes(images, attention_map(attended))
    crops = network.crops(images, boxes)
    if attended.requires_grad:
        attended.backward(torch.ones_like(attended))
    return crops


def training_step(
    network: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, images: Any, labels: torch.Tensor
) -> None:
    """Forward, loss, backward and update."""
    optimizer.zero_grad(set_to_none=True)
    loss(network(images), labels).backward()
    optimizer.step()


def selection_benchmarks(options: Options) -> Iterator[Benchmark]:
    """Attention, selection and crops as a share of a training step."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 16
        images = photographs(batch_size, options.device)
        labels = torch.arange(batch_size, device=options.device) % len(CLASSES)
        network = GatedAttentionNet(num_classes=len(CLASSES), **network_arguments(size)).train()
        network.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = GatedAttentionLoss()
        loss.lambda_ = LAMBDA
        # So slow that the boxes stay what they are.
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-8, momentum=0.9)
        features = network.global_branch.forward_nodes(network.thumbnails(images))[-1].detach().requires_grad_()

        def between(
            network: GatedAttentionNet = network,
            images: list[torch.Tensor] = images,
            features: torch.Tensor = features,
        ) -> None:
            selection(network, images, features)

        def step(
            network: GatedAttentionNet = network,
            loss: GatedAttentionLoss = loss,
            optimizer: torch.optim.Optimizer = optimizer,
            images: list[torch.Tensor] = images,
            labels: torch.Tensor = labels,
        ) -> None:
            training_step(network, loss, optimizer, images, labels)

        yield Benchmark(
            "selection",
            "ms/step",
            "attention, boxes and crops",
            {
                "attention, boxes and crops": milliseconds(between, options.device, options.steps or 5),
                "training step": milliseconds(step, options.device),
            },
            {"training step": Bar(0.10)},
            image_size=size,
            batch_size=batch_size,
        )


def random_boxes(count: int, size: int) -> torch.Tensor:
    """Square boxes inside of the images, from s to 2 s a side where that fits, with whole edges: count x K x 4.

    For these every way to resize bilinearly gives the same pixels.
    """
    generator = np.random.default_rng(0)
    side = generator.integers(min(size, HEIGHT), min(2 * size, HEIGHT) + 1, (count, NUM_INSTANCES))
    left, top = generator.integers(WIDTH - side + 1), generator.integers(HEIGHT - side + 1)
    return torch.from_numpy(np.stack([left, top, left + side, top + side], axis=2)).float()


def monai_crops(images: Sequence[torch.Tensor], boxes: torch.Tensor, size: int) -> torch.Tensor:
    """The crops by MONAI's transforms, box by box: float32 B x K x 3 x s x s."""
    crops = []
    for image, own in zip(images, boxes.int().tolist(), strict=True):
        for left, top, right, bottom in own:
            cut = Compose(
                [SpatialCrop(roi_start=(top, left), roi_end=(bottom, right)), Resize((size, size), mode="bilinear")]
            )
            crops.append(cut(image))
    return torch.stack(crops).view(*boxes.shape[:2], 3, size, size)


def plain_crops(images: Sequence[torch.Tensor], boxes: torch.Tensor, size: int) -> torch.Tensor:
    """The same by as little as torch needs: a slice and `interpolate`."""
    crops = []
    for image, own in zip(images, boxes.int().tolist(), strict=True):
        for left, top, right, bottom in own:
            part = image[None, :, top:bottom, left:right].float()
            crops.append(F.interpolate(part, [size, size], mode="bilinear"))
    return torch.cat(crops).view(*boxes.shape[:2], 3, size, size)


def batch_crops(images: Sequence[torch.Tensor], boxes: torch.Tensor, size: int) -> torch.Tensor:
    """The same as the bundle does it: in one call."""
    return cut_instances(list(images), boxes, size)[0]


CUTTERS = {"one call": batch_crops, "MONAI's transforms per box": monai_crops, "slice and interpolate": plain_crops}


def crop_benchmarks(options: Options) -> Iterator[Benchmark]:
    """All crops of a batch in one call against loops over the boxes."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 16
        images, boxes = photographs(batch_size, options.device), random_boxes(batch_size, size).to(options.device)

        def measured(
            cut: Callable[..., torch.Tensor],
            images: list[torch.Tensor] = images,
            boxes: torch.Tensor = boxes,
            size: int = size,
        ) -> Callable[[], float]:
            return milliseconds(lambda: cut(images, boxes, size), options.device, options.steps or 5)

        yield Benchmark(
            "crops",
            "ms/batch",
            "one call",
            {name: measured(cut) for name, cut in CUTTERS.items()},
            {name: Bar(0.2) for name in CUTTERS if name != "one call"},
            image_size=size,
            batch_size=batch_size,
            repeats=9,
        )


def parsed_config(data: ImageData, image_size: int, batch_size: int, device: str, **changes: Any) -> ConfigParser:
    """The bundle's training configuration for these data, read by 2 workers, with what acts at every step."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    handlers = [h for h in parser["train"]["handlers"] if h["_target_"].rpartition(".")[2] in STEP_HANDLERS]
    own = {"dataset": "files.csv", "data": data, "batch_size": batch_size, "device": device, "max_epochs": 1}
    own |= {
        "bundle_root": str(BUNDLE),
        "cache": False,
        "num_workers": 2,
        "output_dir": "unused",
        **network_arguments(image_size),
    }
    parser.update(own | changes)
    parser["train"]["handlers"] = handlers
    parser.get_parsed_content("loss").lambda_ = LAMBDA
    return parser


def data_of_files(paths: list[Path]) -> ImageData:
    """Data set of files that are read when they are needed."""
    labels = np.arange(len(paths), dtype=np.int64) % len(CLASSES)
    split = Split(list(paths), labels, [path.name for path in paths])
    return ImageData("files", "multi-class", CLASSES, dict.fromkeys(("train", "val", "test"), split), "random")


def piped_epoch(parser: ConfigParser, device: str) -> Callable[[], float]:
    """Seconds of an epoch of the bundle's trainer, from files."""
    trainer = parser.get_parsed_content("train::trainer")
    trainer.logger.setLevel(logging.WARNING)
    return lambda: seconds(trainer.run, device)


def bare_epoch(parser: ConfigParser, device: str) -> Callable[[], float]:
    """Seconds of the same steps on the same batches, decoded and on the device before."""
    network = parser.get_parsed_content("network").train()
    loss, optimizer = parser.get_parsed_content("loss"), parser.get_parsed_content("optimizer")
    dataset = parser.get_parsed_content("train::dataset")
    batches = [dataset[positions] for positions in parser.get_parsed_content("train::dataloader").sampler]
    ready = [([image.to(device) for image in batch["image"]], batch["label"].to(device)) for batch in batches]

    def epoch() -> None:
        for images, labels in ready:
            training_step(network, loss, optimizer, images, labels)

    return lambda: seconds(epoch, device)


def pipeline_benchmarks(options: Options) -> Iterator[Benchmark]:
    """Training from files with 2 workers against the step on images in memory."""
    for size in options.image_sizes:
        batch_size = options.batch_size or 16
        count = batch_size * (options.steps or (40 if options.device.startswith("cuda") else 4))
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number:04d}.jpg" for number in range(count)]
            for path, image in zip(paths, photographs(count), strict=True):
                save_jpeg(image, path)
            data = data_of_files(paths)
            epochs = {
                name: epoch(parsed_config(data, size, batch_size, options.device), options.device)
                for name, epoch in (("files, 2 workers", piped_epoch), ("images in memory", bare_epoch))
            }

            def speed(epoch: Callable[[], float], count: int = count) -> Callable[[], float]:
                return lambda: count / epoch()

            yield Benchmark(
                "pipeline",
                "images/s",
                "files, 2 workers",
                {name: speed(epoch) for name, epoch in epochs.items()},
                {"images in memory": Bar(0.90, at_least=True)},
                image_size=size,
                batch_size=batch_size,
                repeats=5 if size <= 128 else 3,
            )


BENCHMARKS = {
    "selection": selection_benchmarks,
    "crops": crop_benchmarks,
    "memory": memory_benchmarks,
    "pipeline": pipeline_benchmarks,
}
