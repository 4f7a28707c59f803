"""Pack the images of a datalist or a CSV into one MedMNIST-layout .npz file."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from label_efficient.data.images import ImageError, read_image
from label_efficient.files import path_of, read_arrays, read_json, write_whole
from lists.building import build_list, train_command
from lists.readers import COLUMNS, read_csv
from lists.splits import SECTIONS, ListError, Source

LIST_OPTIONS = (
    *("name", "classes", "fractions", "seed", "resplit", "label_fraction", "labels_per_class", "ordinal"),
    *("allow_copies", "label_columns", *(f"{role}_column" for role in COLUMNS)),
)


def load_list(path: Path) -> dict[str, Any]:
    """Load a datalist and check its form."""
    try:
        data = read_json(path, "a datalist")
    except ValueError as error:
        raise ListError(str(error)) from None
    if not isinstance(data, dict) or not data.get("training"):
        raise ListError(f"{path} is not a datalist: it has no section 'training'")
    width: int | None = None  # of the first label: 0 for a class index, else the number of classes
    for section in SECTIONS:
        for item in data.setdefault(section, []):
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                raise ListError(f"{path}, {section}: an item needs 'image', got {json.dumps(item)}")
            label = item.get("label")
            values, found = (label, len(label)) if isinstance(label, list) else ([label], 0)
            width = found if width is None else width
            if found != width or not all(isinstance(v, int) for v in values):
                raise ListError(f"{path}, {section}: {item['image']} has another form of label: {label}")
    return data


def square(image: np.ndarray, size: int, keep_aspect: bool) -> np.ndarray:
    """Resize an image to a square; the centre stays the centre.

    Args:
        image: uint8 (H, W, C) with one or three channels.
        size: side of the square.
        keep_aspect: pad with black instead of squeezing.

    Returns:
        uint8 (size, size) for one channel, (size, size, 3) for three.
    """
    if keep_aspect:
        missing = [max(image.shape[:2]) - side for side in image.shape[:2]]
        image = np.pad(image, [*((m // 2, m - m // 2) for m in missing), (0, 0)])
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def read_squares(images: list[str], source: Source, args: argparse.Namespace) -> np.ndarray:
    """Read and resize images into one array; note those that cannot be read as problems of the source."""
    squares = np.zeros((len(images), args.size, args.size) + (3,) * (args.channels == 3), dtype=np.uint8)
    for i, image in enumerate(images):
        try:
            pixels = read_image(source.root / path_of(image), args.channels, args.max_pixels)
        except (ImageError, OSError) as error:
            source.problems["unreadable image"].append(f"{image}: {error}")
        else:
            squares[i] = square(pixels, args.size, args.keep_aspect)
    return squares


def is_packed(path: Path) -> bool:
    """Whether a file was written by `pack`."""
    try:
        return {"train_images", "train_labels", "test_images"} <= set(read_arrays(path))
    except ValueError:
        return False


def pack(args: argparse.Namespace) -> None:
    """Run the command pack."""
    path = Path(args.list)
    if path.suffix.lower() == ".csv":
        source = read_csv(argparse.Namespace(**{**vars(args), "file": args.list}))
        data, root, notes = build_list(source, args), source.root, source.notes
    else:
        ignored = [f"--{name}" for name in LIST_OPTIONS if getattr(args, name) not in (None, False, 0)]
        if ignored:
            raise ListError(f"{', '.join(ignored)} cannot change a list that is made; give them with its CSV")
        data, root, notes = load_list(path), Path(args.root or path.parent), []
    arrays: dict[str, np.ndarray] = {}
    problems = Source("", root)
    width = np.size(data["training"][0]["label"])
    for section, short in zip((*SECTIONS, "unlabelled"), ("train", "val", "test", "unlabelled"), strict=True):
        items = data.get(section, [])
        if section in SECTIONS:
            labels = np.array([item["label"] for item in items], dtype=np.int64)
            arrays[f"{short}_labels"] = labels.reshape(-1, width)
        if section in SECTIONS or items:
            arrays[f"{short}_images"] = read_squares([item["image"] for item in items], problems, args)
    problems.fail_if_problems()
    if "labels" in data:
        arrays["classes"] = np.array(list(data["labels"].values()), dtype=np.str_)
    content, output = io.BytesIO(), Path(args.output)
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    same = output.is_file() and output.read_bytes() == content.getvalue()
    if os.path.lexists(output) and not (same or (args.overwrite and is_packed(output))):
        raise ListError(f"{output} is there already: --overwrite replaces what was packed before")
    write_whole(output, lambda file: file.write(content.getvalue()))
    print(*notes, *(f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items()), sep="\n")
    print(f"wrote {args.output}", "next:", sep="\n")
    print(f"  {train_command('lsanet')} --dataset {shlex.quote(args.output)}")
