"""The benchmarks of the lsanet bundle: its own configured training against bare and customary loops."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Bar, Benchmark, Options, in_fresh_process, process_memory, seconds
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from monai.data import DataLoader as MonaiDataLoader
from monai.engines import SupervisedTrainer
from monai.networks.nets import resnet18
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    NormalizeIntensityd,
    ScaleIntensityRanged,
)
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "lsanet"
sys.path.insert(0, str(BUNDLE))

from lsanet.data import ImageData, Split, load_data  # noqa: E402
from lsanet.shipped import build_shipped  # noqa: E402
from lsanet.transforms import PrepareBatch, Preprocess  # noqa: E402

BACKBONE = "resnet18"
NUM_CLASSES = 8
CONFIG = BUNDLE / "configs" / "train.json"

# What an epoch of a run does at every step; the rest (validation, files) happens between the epochs.
STEP_HANDLERS = ("LossTerms", "LSAWeights")

FIRST_STEP_STATUS = 77
# The command as it is, in a process that ends the moment any optimizer has made its first step.
UNTIL_FIRST_STEP = f"""
import os, runpy
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *args: os._exit({FIRST_STEP_STATUS}))
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Load:
    """How much one measurement computes.

    Args:
        image_size: Pixels a side in the network.
        stored_size: Pixels a side in memory; smaller where the network's size is made on the device.
        batch_size: Images per step.
        steps: Steps.
        device: Where.
    """

    image_size: int
    stored_size: int
    batch_size: int
    steps: int
    device: str

    @property
    def num_images(self) -> int:
        """Images of one measurement."""
        return self.batch_size * self.steps


def load_for(image_size: int, options: Options, steps: tuple[int, int, int]) -> Load:
    """Choose a load of seconds; `steps` at up to 32 px, 64 px, and above; five times as many on a GPU."""
    index = 0 if image_size <= 32 else 1 if image_size <= 64 else 2
    batch_size, chosen = (64, 32, 8)[index], steps[index]
    if options.device.startswith("cuda"):
        batch_size, chosen = 64, 5 * chosen
    # The paper enlarges 28 x 28 pictures to 224 x 224.
    stored_size = image_size if image_size <= 64 else 28
    return Load(image_size, stored_size, options.batch_size or batch_size, options.steps or chosen, options.device)


def synthetic(load: Load) -> ImageData:
    """Random RGB pictures in memory as uint8, as a MedMNIST file gives them."""
    generator = np.random.default_rng(0)
    shape = (load.num_images, load.stored_size, load.stored_size, 3)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(load.num_images) % NUM_CLASSES
    split = Split(images, labels.astype(np.int64), [f"{i:05d}" for i in range(load.num_images)])
    classes = [f"class {i}" for i in range(NUM_CLASSES)]
    return ImageData("synthetic", "multi-class", classes, dict.fromkeys(("train", "val", "test"), split), "random")


def parsed_config(load: Load, method: str, data: ImageData) -> ConfigParser:
    """The bundle's training configuration for data in memory, with the handlers that act at every step."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    changes = {
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


class PictureSet(Dataset):
    """Images one by one through PIL, as MedMNIST's data sets with `ToTensor` and `Normalize(0.5, 0.5)`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        picture = Image.fromarray(self.images[index]).convert("RGB")
        pixels = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5), self.labels[index]


def plain_network(load: Load, channels_last: bool) -> nn.Module:
    """MONAI's ResNet-18 with the layers of the bundle's, to train."""
    network = resnet18(
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,  # MONAI's default of 1 computes four times as much
        num_classes=NUM_CLASSES,
        feed_forward=True,
        bias_downsample=False,
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(load.device).to(memory_format=layout).train()  # type: ignore[call-overload]


def picture_loader(load: Load, num_workers: int) -> DataLoader:
    """The loader of MedMNIST's published training script."""
    split = synthetic(load).splits["train"]
    return DataLoader(
        PictureSet(np.asarray(split.images), split.labels),
        batch_size=load.batch_size,
        shuffle=True,
        num_workers=num_workers,
        # The script starts them anew for every epoch, which would weigh too much in one as short as this.
        persistent_workers=num_workers > 0,
    )


def picture_epoch(load: Load, num_workers: int, channels_last: bool = False) -> Callable[[], float]:
    """Seconds of an epoch of the loop of MedMNIST's published training script."""
    loader = picture_loader(load, num_workers)
    network = plain_network(load, channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> None:
        losses = []
        for images, labels in loader:
            optimizer.zero_grad()
            outputs = network(images.to(load.device))
            loss = criterion(outputs, torch.squeeze(labels, 1).long().to(load.device))
            losses.append(loss.item())
            loss.backward()
            optimizer.step()

    return lambda: seconds(epoch, load.device)


def cache_dataset_loader(load: Load) -> MonaiDataLoader:
    """MONAI's customary loader: CacheDataset and dictionary transforms."""
    split = synthetic(load).splits["train"]
    half = np.full(3, 0.5, dtype=np.float32)
    transforms = Compose(
        [
            EnsureChannelFirstd("image", channel_dim=-1),
            ScaleIntensityRanged("image", a_min=0, a_max=255, b_min=0, b_max=1),
            NormalizeIntensityd("image", subtrahend=half, divisor=half, channel_wise=True),
            EnsureTyped(["image", "label"]),
        ]
    )
    items = [{"image": i, "label": int(n)} for i, n in zip(split.images, split.labels, strict=True)]
    dataset = CacheDataset(items, transforms, cache_rate=1.0, num_workers=None, progress=False)
    return MonaiDataLoader(dataset, batch_size=load.batch_size, shuffle=True, num_workers=0)


def cache_dataset_epoch(load: Load, channels_last: bool = False) -> Callable[[], float]:
    """Seconds of an epoch of MONAI's customary training, which decollates every batch."""
    network = plain_network(load, channels_last)
    trainer = SupervisedTrainer(
        device=torch.device(load.device),
        max_epochs=1,
        train_data_loader=cache_dataset_loader(load),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.001),
        loss_function=nn.CrossEntropyLoss(),
    )
    trainer.logger.setLevel(logging.WARNING)
    return lambda: seconds(trainer.run, load.device)


def images_per_second(load: Load, epoch: Callable[[], float]) -> Callable[[], float]:
    """Turn an epoch's seconds into its speed."""
    return lambda: load.num_images / epoch()


def milliseconds_per_step(load: Load, epoch: Callable[[], float]) -> Callable[[], float]:
    """Turn an epoch's seconds into those of a step."""
    return lambda: 1000 * epoch() / load.steps


def epoch_benchmarks(options: Options) -> Iterator[Benchmark]:
    """A training epoch with its data against the bare network."""
    for size in options.image_sizes:
        load = load_for(size, options, (10, 10, 5))
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
        shipped = build_shipped(backbone=BACKBONE, num_classes=NUM_CLASSES, image_size=size)
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


def time_of_command(arguments: Sequence[str], status: int, folder: str) -> float:
    """Seconds from the start of a Python process to its end.

    Raises:
        OSError: If it ends otherwise than expected.
    """
    found: list[subprocess.CompletedProcess] = []

    def command() -> None:
        found.append(
            subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        )

    elapsed = seconds(command)
    if found[0].returncode != status:
        raise OSError(f"a timed command ended with {found[0].returncode}:\n{found[0].stderr[-2000:]}")
    return elapsed


def startup_benchmarks(options: Options) -> Iterator[Benchmark]:
    """The demo's command until its first training step is done, against importing the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", "training", "--config_file", str(CONFIG), "--max_epochs", "1"]
        command += ["--device", options.device, "--output_dir", str(Path(folder) / "run")]
        yield Benchmark(
            "startup",
            "s",
            "demo to first step",
            {
                "demo to first step": lambda: time_of_command(
                    ["-c", UNTIL_FIRST_STEP, *command], FIRST_STEP_STATUS, folder
                ),
                "importing monai.bundle": lambda: time_of_command(
                    ["-c", "import torch, ignite, monai, monai.bundle"], 0, folder
                ),
            },
            {"importing monai.bundle": Bar(4.0, of_difference=True)},
            repeats=3,
        )


def cached_memory(path: str) -> float:
    """MiB that this process grows by when it loads and keeps a data set; in a process of its own."""
    tiny = str(Path(path).with_name("tiny.npz"))
    load_data(tiny)  # what is imported or allocated once belongs to no data set
    gc.collect()
    before = process_memory()[0]
    data = load_data(path)
    gc.collect()
    return (process_memory()[0] - before) / 2**20 if len(data.splits["train"]) else 0.0


def array_memory(path: str) -> float:
    """MiB of the arrays of a loaded data set."""
    data = load_data(path)
    arrays = [a for s in data.splits.values() for a in (s.images, s.labels) if isinstance(a, np.ndarray)]
    return sum(a.nbytes for a in arrays) / 2**20


def write_npz(path: Path, num_images: int, size: int) -> float:
    """Write a MedMNIST-layout file, compressed as those are; return the MiB of its images as uint8."""
    arrays: dict[str, np.ndarray] = {}
    stored = first = 0
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        count = max(int(num_images * share), NUM_CLASSES)
        # Each picture its own, yet quickly compressed: its number in the first pixel.
        images = np.full((count, size, size, 3), 128, dtype=np.uint8)
        number = np.arange(first, first + count)
        images[:, 0, 0] = np.stack([number // 256**i % 256 for i in range(3)], axis=1)
        first += count
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = (np.arange(count) % NUM_CLASSES).astype(np.uint8)[:, None]
        stored += arrays[f"{split}_images"].nbytes
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return stored / 2**20


def cache_benchmarks(options: Options) -> Iterator[Benchmark]:
    """Memory of a data set that is kept, against its images as stored: uint8, uncompressed."""
    for size in sorted({min(size, 64) for size in options.image_sizes}):
        # About 64 MiB, beside which what the interpreter itself allocates is little.
        num_images = options.steps * 64 if options.steps else 64 * 2**20 // (3 * size * size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npz"
            stored = write_npz(path, num_images, size)
            write_npz(path.with_name("tiny.npz"), 32, size)

            def as_stored(stored: float = stored) -> float:
                return stored

            def growth(path: Path = path) -> float:
                return in_fresh_process(cached_memory, str(path))

            def arrays(path: Path = path) -> float:
                return array_memory(str(path))

            for ours, measure in (("process with the set", growth), ("arrays of the set", arrays)):
                yield Benchmark(
                    "cache_memory",
                    "MiB",
                    ours,
                    {ours: measure, "images as stored": as_stored},
                    {"images as stored": Bar(1.2)},
                    image_size=size,
                    repeats=2,
                    warm_up=False,
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
