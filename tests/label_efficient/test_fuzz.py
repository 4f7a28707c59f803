"""Mutated files: the readers give what they promise, or an error that they document; FUZZ_SECONDS says for how long."""

import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import GREY, RGB, write_dicom, write_nifti, write_tiff
from PIL import Image

from label_efficient.data import class_lists, mask_lists
from label_efficient.data.image_files import find_images
from label_efficient.data.images import ImageError, read_image
from label_efficient.data.mask_files import MaskError, read_stored
from label_efficient.data.tables import read_table
from label_efficient.files import read_arrays, read_json

SECONDS = float(os.environ.get("FUZZ_SECONDS", "10"))
MAX_PIXELS = 2**20
RISKY = (0, 1, 0x7F, 0x80, 0xFF)

Reader = Callable[[Path], Any]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut, bytes changed, a part doubled, taken out or put elsewhere; the first bytes, a header, more often."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not changed:
            break
        length = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        at, size = rng.randrange(length), rng.choice((1, 2, 4, 16, 200))
        match rng.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at : at + size] = bytes([rng.choice(RISKY)]) * size
            case 3:
                changed[at:at] = changed[at : at + size]
            case 4:
                del changed[at : at + size]
            case 5:
                changed[at : at + size] = rng.randbytes(size)
    return bytes(changed)


def seeds_of_images(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of every format: real ones where they are on this machine, made ones."""
    for suffix, values in ((".png", RGB), (".tif", GREY), (".bmp", RGB), (".jpg", RGB)):
        Image.fromarray(values).save(folder / f"made{suffix}")
    Image.fromarray(GREY).convert("P").save(folder / "palette.png")
    write_tiff(folder / "half.tif", GREY.astype(np.float16))
    write_dicom(folder / "made.dcm", GREY.astype(np.uint16))
    write_nifti(folder / "made.nii", GREY)
    write_nifti(folder / "made.nii.gz", GREY)
    samples = Path(os.environ.get("REAL_DATA_DIR", "")) / "samples"
    real = [p for p in samples.glob("*") if p.stat().st_size < 2**19] if samples.is_absolute() else []
    for path in sorted([*folder.iterdir(), *real]):
        yield path.name, path.read_bytes()


def run(cases: dict[str, tuple[bytes, list[Reader]]], folder: Path, errors: tuple[type[Exception], ...]) -> None:
    """Mutate until the time is over, the same mutations in the same order every time."""
    end, number = time.monotonic() + SECONDS / 2, 0
    while time.monotonic() < end:
        for name, (content, readers) in cases.items():
            rng = random.Random(zlib.crc32(f"{name} {number}".encode()))
            path = folder / name
            path.write_bytes(mutated(content, rng))
            for read in readers:
                start = time.monotonic()
                try:
                    read(path)
                except errors as error:
                    assert path.name in str(error), f"{name}, mutation {number}: {error}"
                except Exception as error:
                    pytest.fail(f"{name}, mutation {number}, left in {path}: {type(error).__name__}: {error}")
                assert time.monotonic() - start < 20, f"{name}, mutation {number}, left in {path}: without end"
        number += 1


def picture(path: Path) -> None:
    found = read_image(path, max_pixels=MAX_PIXELS)
    assert found.dtype == np.uint8 and found.shape[2:] == (3,) and found.size <= 3 * MAX_PIXELS


@pytest.mark.filterwarnings("ignore")
def test_images_and_masks(tmp_path):
    (tmp_path / "seeds").mkdir()
    seeds = dict(seeds_of_images(tmp_path / "seeds"))
    cases = {name: (content, [picture, read_stored]) for name, content in seeds.items()}
    run(cases, tmp_path, (ImageError, MaskError))


def test_lists_tables_and_arrays(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "0.png")
    table = "file,label,class,split,mask\n" + "".join(f"{n}.png,{n % 2},ä{n % 2},train,m.png\n" for n in range(8))
    entry = '{"image": "0.png", "label": 1, "group": "p", "mask": ["0.png"], "spacing": [1, 0.5]}'
    content = f'{{"labels": ["a", "b"], "training": [{entry}], "validation": [], "test": [{entry}], "unlabelled": []}}'
    np.savez(tmp_path / "seed.npz", train_images=np.zeros((3, 4, 4), np.uint8), train_labels=np.arange(3))
    lists: list[Reader] = [
        class_lists.read_datalist,
        mask_lists.read_datalist,
        lambda path: find_images(None, str(path)),
    ]
    cases = {
        "list.csv": (table.encode(), [read_table, *lists]),
        "wide.csv": (table.encode("utf-16"), [read_table, *lists]),
        "list.json": (content.encode(), [lambda path: read_json(path, "a list"), *lists]),
        "list.txt": (b"0.png\n1.png\n", lists[2:]),
        "arrays.npz": ((tmp_path / "seed.npz").read_bytes(), [read_arrays]),
    }
    run(cases, tmp_path, (ValueError, FileNotFoundError))
