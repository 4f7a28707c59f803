"""Read chest X-rays from the folders of their publishers: class folders, masks beside images, NIH's table."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from label_efficient.data.mask_files import MASK_SUFFIXES, MaskError, read_stored
from label_efficient.files import read_text
from lists.readers import group_in_name, images_below, read_folder, read_rows, relative_path
from lists.splits import Entry, ListError, Source

NIH_CLASSES = ("NORMAL", "PNEUMONIA")
NIH_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
IMAGE_FOLDERS = ("images", "image", "cxr_png", "img")
MASK_FOLDERS = ("masks", "mask", "manualmask")
LAYER_FOLDER = re.compile(r"(left|right)[ _-]?(mask|lung)s?", re.IGNORECASE)
# In the Guangzhou set "person123_bacteria_" and "person123_virus_" are two series of numbers, each of which runs on
# from training to test: the kind belongs to the patient's name. So do "IM" and "NORMAL2-IM".
GUANGZHOU_PATIENT = r"(?:^|/)(person\d+_(?:bacteria|virus)(?=_\d)|(?:NORMAL2-)?IM-\d+(?=-\d))[^/]*$"
STRATA = (
    (re.compile(r"(?:CHN|MCU)CXR_\d+_([01])"), {"0": "normal", "1": "tuberculosis"}),
    (re.compile(r"JPC([LN])N\d+"), {"N": "without nodule", "L": "with nodule"}),
)
SCR_VALUES = {0, 150, 200, 250}  # background, the two lungs, the heart
SCR_LUNGS = [150, 200]


@dataclass
class ChestSource(Source):
    """Images of one folder; `classes` are what splits are stratified by.

    Attributes:
        masks: Mask files of an image, relative to the root like the image.
        mask_values: Stored values that are lung; None: the masks are binary.
    """

    masks: dict[str, list[str]] = field(default_factory=dict)
    mask_values: list[int] | None = None


def open_source(folder: str, root: Path) -> tuple[ChestSource, Path]:
    """Start reading a folder, which is relative to the root or absolute, and must lie below it."""
    path = Path(os.path.abspath(root / folder))
    if not path.is_dir():
        raise ListError(f"no such folder: {path}")
    if path != root and not path.is_relative_to(root):
        raise ListError(f"{path} is not below --root {root}")
    return ChestSource(path.name, root), path


def read_classification(
    folder: str, root: Path, classes: Sequence[str] | None = None, pattern: str | None = None
) -> ChestSource:
    """Read images with a class: NIH ChestX-ray14 where its table is there, or else class folders.

    Args:
        folder: Holds `Data_Entry_2017*.csv`, or `<class>/`, or `<split>/<class>/`.
        root: What paths are relative to.
        classes: The classes in order; default: the folders', or NORMAL, PNEUMONIA.
        pattern: Finds the patient in a path; default: that of the Guangzhou set where most names match it.
    """
    source, path = open_source(folder, root)
    tables = sorted(path.glob("Data_Entry_2017*.csv"))
    if tables:
        _read_nih(source, path, tables[-1], list(classes or NIH_CLASSES))
    else:
        _read_class_folders(source, path, classes, pattern)
    if not source.entries and not any(source.problems.values()):
        raise ListError(f"{path}: found no image in class folders; expected <class>/ or <split>/<class>/")
    return source


def _read_class_folders(source: ChestSource, path: Path, classes: Sequence[str] | None, pattern: str | None) -> None:
    found = read_folder(
        argparse.Namespace(dir=str(path), name=None, root=str(source.root), classes=None, group_pattern=pattern)
    )
    names = {name.casefold(): i for i, name in enumerate(classes or found.classes)}
    places = [names.get(name.casefold()) for name in found.classes]
    unknown = [name for name, place in zip(found.classes, places, strict=True) if place is None]
    source.problems["class folder that is not in the classes"] += [f"{path}: '{name}'" for name in unknown]
    source.classes, source.notes = list(classes or found.classes), found.notes
    for entry in found.entries:
        if isinstance(entry.label, int):
            place = places[entry.label]
            if place is None:
                continue
            entry.label = place
        source.entries.append(entry)
    source.group_name = found.group_name
    patients = [group_in_name(entry.image, GUANGZHOU_PATIENT) for entry in source.entries]
    if pattern is None and sum(patient is not None for patient in patients) > len(patients) / 2:
        for entry, patient in zip(source.entries, patients, strict=True):
            entry.group = patient
        source.group_name = "patient"
        moved = [entry for entry in source.entries if entry.split == "validation"]
        for entry in moved:  # Kaggle's copy has 16 images in val, taken out of training: too few to choose by
            entry.split = "training"
        source.notes += [f"{source.name}: the {len(moved)} images of val are training again"] if moved else []


def _read_nih(source: ChestSource, path: Path, table: Path, classes: list[str]) -> None:
    found = read_rows(table)
    lacking = [column for column in NIH_COLUMNS if column not in found.columns]
    if lacking:
        raise ListError(f"{table}: no column {', '.join(lacking)}; there are {', '.join(found.columns)}")
    source.classes, source.group_name = classes, "patient"
    places = {name.casefold(): i for i, name in enumerate(classes)}
    if not {name.casefold() for name in NIH_CLASSES} <= set(places):
        raise ListError(f"{path} has the classes {', '.join(NIH_CLASSES)}, and the list {', '.join(classes)}")
    files: dict[str, str] = {}
    for image in images_below(path):
        name = relative_path(str(image), source.root) or ""
        if files.setdefault(image.name, name) != name:
            source.problems["two images of one name"].append(f"{files[image.name]}, {name}")
    test = path / "test_list.txt"
    of_test = set(read_text(test).split()) if test.is_file() else set()
    others = absent = 0
    for _, row in found.lines:
        findings = row["Finding Labels"].split("|")
        if "Pneumonia" in findings:
            label = places["pneumonia"]
        elif findings == ["No Finding"]:
            label = places["normal"]
        else:
            others += 1
            continue
        if row["Image Index"] not in files:
            absent += 1
            continue
        split = ("test" if row["Image Index"] in of_test else "training") if of_test else None
        source.entries.append(Entry(files[row["Image Index"]], label, split, f"NIH {row['Patient ID']}"))
    source.notes.append(
        f"{source.name}: {others} rows have other findings than pneumonia, {absent} more have no file here: left out"
    )
    if not source.entries:
        raise ListError(f"{path}: none of the {absent} images of {table.name} is there; expected them in images*/")


def read_segmentation(
    folder: str, root: Path, values: Sequence[int] | None = None, pattern: str | None = None
) -> ChestSource:
    """Read images with masks of the same stem, or `<stem>_mask`.

    Args:
        folder: Holds `images/` or `CXR_png/`, and `masks/`, `mask/` or `ManualMask/`; the masks lie in these, or
            in `leftMask/` and `rightMask/` (or `left lung/` and `right lung/`) below.
        root: What paths are relative to.
        values: Stored values that are lung; default: 150 and 200 where the masks are SCR's, else binary masks.
        pattern: Finds the patient in a path.
    """
    source, path = open_source(folder, root)
    images, masks = _one_of(path, IMAGE_FOLDERS, "images"), _one_of(path, MASK_FOLDERS, "masks")
    by_stem: dict[str, Path] = {}
    for image in images_below(images):
        if by_stem.setdefault(_stem(image, images), image) != image:
            source.problems["two images of one name"].append(f"{by_stem[_stem(image, images)]}, {image}")
    layers = [p for p in sorted(masks.iterdir()) if p.is_dir() and LAYER_FOLDER.fullmatch(p.name)] or [masks]
    files: dict[str, list[Path]] = {}
    spare = 0
    for layer in layers:
        for mask in sorted(p for p in layer.rglob("*") if p.name[0] != "." and p.is_file()):
            if not mask.name.lower().endswith((*MASK_SUFFIXES, ".jpg", ".jpeg")):
                continue
            stem = _stem(mask, layer)
            stem = stem if stem in by_stem else re.sub(r"[_-]mask$", "", stem, flags=re.IGNORECASE)
            if stem in by_stem:
                files.setdefault(stem, []).append(mask)
            else:
                spare += 1
    source.problems["two masks of one name"] += [
        ", ".join(map(str, found)) for found in files.values() if len({p.parent for p in found}) < len(found)
    ]
    source.problems["left or right mask is missing"] += [
        f"{by_stem[stem]} has only {found[0]}" for stem, found in files.items() if len(found) < len(layers)
    ]
    if not files:
        raise ListError(f"{path}: no mask in {masks} has the name of an image in {images}, or <name>_mask")
    for stem, image in by_stem.items():
        name = _below(image, root)
        source.entries.append(Entry(name, None, None, group_in_name(name, pattern)))
        source.masks[name] = [_below(mask, root) for mask in files.get(stem, [])]
    _stratify(source)
    source.mask_values = list(values) if values else _scr_values(files)
    bare = len(by_stem) - len(files)
    source.notes += [f"{source.name}: {bare} images have no mask"] if bare else []
    source.notes += [f"{source.name}: {spare} masks have no image and were left out"] if spare else []
    return source


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _one_of(path: Path, names: Sequence[str], what: str) -> Path:
    found = [p for p in sorted(path.iterdir()) if p.is_dir() and p.name.lower() in names]
    if len(found) != 1:
        there = ", ".join(p.name for p in sorted(path.iterdir())[:10]) or "nothing"
        raise ListError(f"{path}: expected one folder of {what} ({', '.join(names)}); it holds {there}")
    return found[0]


def _stem(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]


def _stratify(source: ChestSource) -> None:
    """Give the images with a mask the class that their name tells, where every name does; else all the same."""
    source.classes, words = ["mask"], ["mask"] * len(source.entries)
    for pattern, meaning in STRATA:
        matches = [pattern.fullmatch(Path(entry.image).stem) for entry in source.entries]
        if all(matches):
            words = [meaning[match[1]] for match in matches if match]
            there = {w for w, e in zip(words, source.entries, strict=True) if source.masks[e.image]}
            source.classes = [word for word in meaning.values() if word in there]
            counts = Counter(words)
            source.notes.append(f"{source.name}: {', '.join(f'{n} {word}' for word, n in sorted(counts.items()))}")
    for entry, word in zip(source.entries, words, strict=True):
        entry.label = source.classes.index(word) if source.masks[entry.image] else None


def _scr_values(files: dict[str, list[Path]]) -> list[int] | None:
    first = files[min(files)]
    if len(first) > 1:
        return None
    try:
        found = set(np.unique(read_stored(first[0])).tolist())
    except MaskError:  # reported when all masks are read
        return None
    return SCR_LUNGS if found <= SCR_VALUES and found & set(SCR_LUNGS) and len(found) > 2 else None


def read_unlabelled(folder: str, root: Path) -> ChestSource:
    """Read all images below a folder."""
    source, path = open_source(folder, root)
    source.entries = [Entry(_below(image, root), None) for image in images_below(path)]
    if not source.entries:
        raise ListError(f"{path}: no image in it")
    return source
