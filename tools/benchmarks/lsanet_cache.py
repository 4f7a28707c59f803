"""Memory of a data set that the lsanet bundle keeps, against its images as stored."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.lsanet_loads import NUM_CLASSES
from benchmarks.measure import Bar, Benchmark, Options, in_fresh_process, process_memory
from lsanet.data import load_data


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
