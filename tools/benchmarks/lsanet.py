"""The benchmarks of the lsanet bundle: its own configured training against bare and customary loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from bundle_paths import ROOT
from monai.bundle import ConfigParser
from torch import nn
from torch.nn import functional as F

from benchmarks.lsanet_cache import cache_benchmarks
from benchmarks.lsanet_loads import NUM_CLASSES, Load, load_for, synthetic
from benchmarks.lsanet_loops import (
    cache_dataset_epoch,
    cache_dataset_loader,
    picture_epoch,
    picture_loader,
    plain_network,
)
from benchmarks.lsanet_startup import startup_benchmarks
from benchmarks.measure import Bar, Benchmark, Options, in_fresh_process, process_memory, seconds
from label_efficient.data.image_data import ImageData
from label_efficient.networks.backbones import build_backbone
from lsanet.transforms import PrepareBatch, Preprocess

BUNDLE = ROOT / "bundles" / "lsanet"
BACKBONE = "resnet18"
CONFIG = BUNDLE / "configs" / "train.json"

# What an epoch of a run does at every step; the rest (validation, files) happens between the epochs.
STEP_HANDLERS = ("LossTerms", "LSAWeights")


def parsed_config(load: Load, method: str, data: ImageData) -> ConfigParser:
    """The bundle's training configuration for data in memory, with the handlers that act at every step."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    changes = {
        "bundle_root": str(BUNDLE),
        "dataset": "synthetic.npz",
        "data": data,
        "method": method,
        "backbone": BACKBONE,
        "image_size": load.image_size,
        "batch_size": load.batch_size,
        "device": load.device,
        "max_epochs": 1,
        "output_dir": "unused",
    }
    handlers = [h for h in parser["train"]["handlers"] if h["_target_"].rpartition(".")[2] in STEP_HANDLERS]
    parser.update(changes)
    parser["train"]["handlers"] = handlers
    return parser


def configured_epoch(load: Load, method: str) -> Callable[[], float]:
    """Seconds of an epoch of the bundle's own trainer, loader and all."""
    trainer = parsed_config(load, method, synthetic(load)).get_parsed_content("train::trainer")
    trainer.logger.setLevel(logging.WARNING)
    return lambda: seconds(trainer.run, load.device)


def bare_epoch(load: Load) -> Callable[[], float]:
    """Seconds of the same network's steps, with the same optimizer, on what is in its memory already."""
    parser = parsed_config(load, "baseline", data := synthetic(load))
    network = parser.get_parsed_content("network").train()
    optimizer = parser.get_parsed_content("optimizer")
    split = data.splits["train"]
    prepare = PrepareBatch(Preprocess(image_size=load.image_size))
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, load.num_images, load.batch_size):
        part = slice(start, start + load.batch_size)
        images = torch.from_numpy(split.images[part]).permute(0, 3, 1, 2)
        inputs, _ = prepare({"image": images}, load.device)
        batches.append((inputs, torch.from_numpy(split.labels[part]).to(load.device)))

    def epoch() -> None:
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(images)["logits"], labels).backward()
            optimizer.step()

    return lambda: seconds(epoch, load.device)


def images_per_second(load: Load, epoch: Callable[[], float]) -> Callable[[], float]:
    """Turn an epoch's seconds into its speed."""
    return lambda: load.num_images / epoch()


def milliseconds_per_step(load: Load, epoch: Callable[[], float]) -> Callable[[], float]:
    """Turn an epoch's seconds into those of a step."""
    return lambda: 1000 * epoch() / load.steps


def epoch_benchmarks(options: Options) -> Iterator[Benchmark]:
    """A training epoch with its data against the bare network."""
    for size in options.image_sizes:
        load = load_for(size, options, (40, 20, 8))
        yield Benchmark(
            "epoch",
            "images/s",
            "bundle, baseline",
            {
                "bundle, baseline": images_per_second(load, configured_epoch(load, "baseline")),
                "bare network": images_per_second(load, bare_epoch(load)),
            },
            {"bare network": Bar(0.90 if options.device.startswith("cuda") else 0.95, at_least=True)},
            image_size=size,
            batch_size=load.batch_size,
            repeats=5 if size <= 64 else 3,
        )


def loop_benchmarks(options: Options) -> Iterator[Benchmark]:
    """A training epoch at 28 pixels against customary loops.

    Those leave the network in the default memory format; what is left of the difference without that is shown
    in rows without a bar.
    """
    for size in options.image_sizes:
        if size > 28:
            continue
        load = load_for(size, options, (10, 10, 5))
        epochs = {
            "bundle, baseline": configured_epoch(load, "baseline"),
            "PIL loop": picture_epoch(load, 0),
            "PIL loop, 2 workers": picture_epoch(load, 2),
            "CacheDataset": cache_dataset_epoch(load),
            "PIL loop, channels last": picture_epoch(load, 0, channels_last=True),
            "CacheDataset, channels last": cache_dataset_epoch(load, channels_last=True),
        }
        on_gpu = options.device.startswith("cuda")
        pil = Bar(3.0 if on_gpu else 1.5, at_least=True)
        yield Benchmark(
            "loops",
            "images/s",
            "bundle, baseline",
            {name: images_per_second(load, epoch) for name, epoch in epochs.items()},
            {"PIL loop": pil, "PIL loop, 2 workers": pil, "CacheDataset": Bar(1.5, at_least=True)},
            image_size=size,
            batch_size=load.batch_size,
        )


def loading_pass(load: Load, loader: Iterable[Any], prepare: Callable[[Any], Any]) -> Callable[[], float]:
    """Seconds of an epoch's batches until they are on the device as the network gets them."""

    def load_all() -> None:
        for batch in loader:
            prepare(batch)

    return lambda: seconds(load_all, load.device)


def loading_passes(load: Load) -> dict[str, Callable[[], float]]:
    """The bundle's loader and the customary ones, by name."""
    trainer = parsed_config(load, "baseline", synthetic(load)).get_parsed_content("train::trainer")

    def own(batch: Any) -> Any:
        return trainer.prepare_batch(batch, load.device)

    def pair(batch: Any) -> Any:
        return batch[0].to(load.device), batch[1].to(load.device)

    def items(batch: Any) -> Any:
        return batch["image"].to(load.device), batch["label"].to(load.device)

    return {
        "bundle": loading_pass(load, trainer.data_loader, own),
        "PIL": loading_pass(load, picture_loader(load, 0), pair),
        "PIL, 2 workers": loading_pass(load, picture_loader(load, 2), pair),
        "CacheDataset": loading_pass(load, cache_dataset_loader(load), items),
    }


def loading_benchmarks(options: Options) -> Iterator[Benchmark]:
    """The data alone, without a network and without bars: what `loops` has beside the network."""
    for size in options.image_sizes:
        if size > 28:
            continue
        load = load_for(size, options, (50, 20, 5))
        passes = {name: images_per_second(load, one) for name, one in loading_passes(load).items()}
        yield Benchmark("loading", "images/s", "bundle", passes, {}, image_size=size, batch_size=load.batch_size)


def step_benchmarks(options: Options) -> Iterator[Benchmark]:
    """A training step of lsanet against one of the baseline."""
    for size in options.image_sizes:
        load = load_for(size, options, (6, 5, 3))
        yield Benchmark(
            "step",
            "ms/step",
            "lsanet",
            {m: milliseconds_per_step(load, configured_epoch(load, m)) for m in ("lsanet", "baseline")},
            {"baseline": Bar(1.10)},
            image_size=size,
            batch_size=load.batch_size,
            repeats=7 if size <= 64 else 4,
        )


def training_memory(load: Load, method: str) -> float:
    """Most MiB that training takes on top of the imported libraries; in a process of its own."""
    # MONAI imports its engines when they are first asked for.
    parser = parsed_config(load, method, synthetic(load))
    parser.get_parsed_content("train::dataloader")
    on_gpu = load.device.startswith("cuda")
    before = 0 if on_gpu else process_memory()[0]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(load.device)
    trainer = parser.get_parsed_content("train::trainer")
    trainer.logger.setLevel(logging.WARNING)
    trainer.run()
    peak = torch.cuda.max_memory_allocated(load.device) if on_gpu else process_memory()[1]
    return (peak - before) / 2**20


def step_memory_benchmarks(options: Options) -> Iterator[Benchmark]:
    """Peak memory of a few training steps of lsanet against the baseline's."""
    for size in options.image_sizes:
        load = load_for(size, options, (3, 3, 2))

        def measure(method: str, load: Load = load) -> Callable[[], float]:
            return lambda: in_fresh_process(training_memory, load, method)

        yield Benchmark(
            "step_memory",
            "MiB",
            "lsanet",
            {m: measure(m) for m in ("lsanet", "baseline")},
            {"baseline": Bar(1.10)},
            image_size=size,
            batch_size=load.batch_size,
            repeats=2,
            warm_up=False,
        )


def forward_passes(network: nn.Module, images: torch.Tensor, steps: int, device: str) -> Callable[[], float]:
    """Milliseconds of a forward pass for evaluation."""
    network = network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def passes() -> None:
        with torch.no_grad():
            for _ in range(steps):
                network(images)

    return lambda: 1000 * seconds(passes, device) / steps


def inference_benchmarks(options: Options) -> Iterator[Benchmark]:
    """The network as it is shipped against MONAI's plain one."""
    for size in options.image_sizes:
        load = load_for(size, options, (8, 5, 3))
        shape = (load.batch_size, 3, size, size)
        images = torch.rand(shape).to(device=load.device, memory_format=torch.channels_last)
        shipped = build_backbone(BACKBONE, NUM_CLASSES)
        networks = {"shipped network": shipped, "monai resnet18": plain_network(load, channels_last=True)}
        yield Benchmark(
            "inference",
            "ms/batch",
            "shipped network",
            {name: forward_passes(n, images, load.steps, load.device) for name, n in networks.items()},
            {"monai resnet18": Bar(1.02)},
            image_size=size,
            batch_size=load.batch_size,
            repeats=15,
        )


BENCHMARKS = {
    "epoch": epoch_benchmarks,
    "loops": loop_benchmarks,
    "loading": loading_benchmarks,
    "step": step_benchmarks,
    "step_memory": step_memory_benchmarks,
    "inference": inference_benchmarks,
    "startup": startup_benchmarks,
    "cache_memory": cache_benchmarks,
}
