"""Read microscopy images from the folders of their publishers: BACH (ICIAR 2018) and CNN_Aspergillus."""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from pathlib import Path

from label_efficient.data.tables import read_cells
from lists.readers import COLUMNS, images_below, read_rows, relative_path, subfolders
from lists.splits import Entry, ListError, Source

PAPER_FRACTIONS = (0.65, 0.1, 0.25)  # a quarter is the test, as in the paper; validation is cut out of the rest
BACH_PREFIXES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
BACH_TRUTH = "microscopy_ground_truth.csv"
BACH_PER_CLASS = 100
BACH_PLACES = ("", "Photos", "ICIAR2018_BACH_Challenge/Photos")
BACH_NOTE = (
    "BACH tells the patient of some of its images only, and not with the images: unless a table of patients was "
    "given, images of one patient may be in two splits"
)
# In the publisher's order: the number before the name of a folder.
STRAINS = {
    "A_flavus_AI2": "A_flavus",
    "A_clavatus_AI1": "A_clavatus",
    "A_flavus_AI1": "A_flavus",
    "A_fumigatus_A293": "A_fumigatus",
    "A_nidulans_TN02A7": "A_nidulans",
    "A_niger_AI1": "A_niger",
    "A_terreus_AI1": "A_terreus",
}
ASPERGILLUS_NOTE = (
    "colonies of CNN_Aspergillus, not the patients' images of the paper on gated attention; its sets are put together "
    "and split anew, for near-duplicates may lie in two of them"
)
DEPTH = 3  # CNN_Aspergillus/dataset/ValidationSet/<strain>


def open_source(args: argparse.Namespace, name: str, note: str) -> tuple[Source, Path]:
    """Start reading a folder."""
    folder = Path(os.path.abspath(args.dir))
    if not folder.is_dir():
        raise ListError(f"no such folder: {args.dir}")
    root = Path(os.path.abspath(args.root or folder))
    if folder != root and not folder.is_relative_to(root):
        raise ListError(f"{folder} is not below --root {args.root}")
    return Source(args.name or name, root, remark=note), folder


def read_bach(args: argparse.Namespace) -> Source:
    """Read BACH's `Photos`: a folder per class, and `microscopy_ground_truth.csv`, with which they must agree.

    `args.dir` is `Photos`, `ICIAR2018_BACH_Challenge`, or the folder that holds it; `args.patients` a table with the
    columns file and patient, or None.
    """
    source, folder = open_source(args, "bach", BACH_NOTE)
    source.classes = list(BACH_PREFIXES)
    known = {_plain(name): name for name in BACH_PREFIXES}
    places = [folder / place for place in BACH_PLACES]
    photos = next((p for p in places if p.is_dir() and any(_plain(c.name) in known for c in subfolders(p))), None)
    if photos is None:
        raise ListError(
            f"{folder}: found no folder {', '.join(BACH_PREFIXES)}; expected them in DIR, DIR/Photos or "
            "DIR/ICIAR2018_BACH_Challenge/Photos"
        )
    _read_class_folders(source, photos, {_plain(name): (name, name) for name in BACH_PREFIXES})
    by_stem: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in source.entries:
        assert isinstance(entry.label, int)
        stem = Path(entry.image).stem.lower()
        by_stem[stem].append(entry)
        match = re.fullmatch(r"(b|is|iv|n)\d+", stem)
        if match and match[1] != BACH_PREFIXES[source.classes[entry.label]]:
            of = next(name for name, prefix in BACH_PREFIXES.items() if prefix == match[1])
            source.problems["name of another class"].append(f"{entry.image}: '{match[1]}' is {of}")
    source.problems["two images of one name"] += [
        ", ".join(e.image for e in entries) for entries in by_stem.values() if len(entries) > 1
    ]
    truth = next((p for p in (photos / BACH_TRUTH, photos.parent / BACH_TRUTH) if p.is_file()), None)
    if truth is None:
        source.notes.append(f"warning: no {BACH_TRUTH}: the classes are the folders', without a check")
    else:
        _compare_truth(source, truth, by_stem)
    for name, number in _count(source).items():
        if number != BACH_PER_CLASS:
            source.notes.append(
                f"warning: class '{name}' has {number} images; BACH has {BACH_PER_CLASS} of every class"
            )
    if args.patients:
        _read_patients(source, Path(args.patients), by_stem)
    else:
        source.notes.append(f"warning: {BACH_NOTE} (--patients)")
    return source


def _compare_truth(source: Source, truth: Path, by_stem: dict[str, list[Entry]]) -> None:
    """Compare the classes of the folders with the publisher's table, which has no header."""
    try:
        rows = read_cells(truth)
    except ValueError as error:
        raise ListError(str(error)) from None
    known = {_plain(name): name for name in BACH_PREFIXES}
    named = set()
    for number, row in rows:
        where = f"{truth.name}, row {number}"
        if len(row) < 2 or _plain(row[1]) not in known:
            classes = ", ".join(BACH_PREFIXES)
            source.problems[f"row that is not <file>,<class> with a class of {classes}"].append(f"{row} ({where})")
            continue
        stem = Path(row[0].replace("\\", "/")).stem.lower()
        if stem in named:
            source.problems["file named in two rows"].append(f"{row[0]} ({where})")
        named.add(stem)
        if stem not in by_stem:
            source.problems["missing file"].append(f"{row[0]} ({where})")
        for entry in by_stem.get(stem, []):
            assert isinstance(entry.label, int)
            of_folder, of_table = source.classes[entry.label], known[_plain(row[1])]
            if of_folder != of_table:
                source.problems["folder and table disagree"].append(
                    f"{entry.image}: the folder says {of_folder}, the table {of_table} ({where})"
                )
    source.problems[f"image that is not in {truth.name}"] += [
        entry.image for stem, entries in by_stem.items() if stem not in named for entry in entries
    ]


def _read_patients(source: Source, path: Path, by_stem: dict[str, list[Entry]]) -> None:
    """Read the patients of the images that a table names; every other image stands alone."""
    if not path.is_file():
        raise ListError(f"--patients {path}: no such file")
    table = read_rows(path)
    file, group = table.column(*COLUMNS["file"]), table.column(*COLUMNS["group"])
    if file is None or group is None:
        raise ListError(
            f"--patients {path}: expected a column {' or '.join(COLUMNS['file'])} and a column "
            f"{' or '.join(COLUMNS['group'])}; there are {', '.join(table.columns)}"
        )
    for number, row in table.lines:
        stem = Path(row[file].replace("\\", "/")).stem.lower()
        if stem not in by_stem:
            source.problems[f"row of {path.name} without an image"].append(f"'{row[file]}' (row {number})")
        for entry in by_stem.get(stem, []):
            patient = row[group] or None
            if entry.group is not None and entry.group != patient:
                source.problems["image of two patients"].append(f"{entry.image}: {entry.group}, {patient}")
            entry.group = patient
    alone = sum(entry.group is None for entry in source.entries)
    source.group_name = "patient"
    source.notes += [f"{alone} images have no patient; each counts as its own"] if alone else []
    source.remark = f"patients are of {path.name}; {alone} images without one count as patients of their own"


def read_aspergillus(args: argparse.Namespace) -> Source:
    """Read CNN_Aspergillus: folders `<number>-A. <species> <strain>` in one or several sets, or `A_<species>_<strain>`.

    `args.dir` holds the folders, directly or up to three levels below; `args.classes` is "species" or "strains".
    """
    source, folder = open_source(args, "aspergillus", ASPERGILLUS_NOTE)
    merged = args.classes == "species"
    wanted = {_plain(strain): (strain, species if merged else strain) for strain, species in STRAINS.items()}
    source.classes = list(dict.fromkeys(name for _, name in wanted.values()))
    sets = _folders_with(folder, set(wanted), DEPTH)
    if not sets:
        raise ListError(
            f"{folder}: found no folder of a strain, such as '0-A. flavus AI2' or A_flavus_AI2, down to {DEPTH} levels"
        )
    for place in sets:
        _read_class_folders(source, place, wanted, complete=False)
    there = {_plain(p.name) for place in sets for p in subfolders(place)}
    source.problems["missing class folder"] += [strain for plain, (strain, _) in wanted.items() if plain not in there]
    rest = len(images_below(folder)) - sum(len(images_below(place)) for place in sets)
    source.notes += [f"warning: {rest} images beside the folders of the strains were left out"] if rest else []
    if len(sets) > 1:
        source.notes.append(f"put together: {', '.join(str(p.relative_to(folder)) for p in sets)}")
    return source


def _folders_with(folder: Path, names: set[str], depth: int) -> list[Path]:
    """Find the folders that hold folders of some names, down to a depth, sorted; nothing below those is searched."""
    below = [p for p in subfolders(folder) if p.name != "__MACOSX"]
    if any(_plain(p.name) in names for p in below):
        return [folder]
    return [found for p in below if depth > 1 for found in _folders_with(p, names, depth - 1)]


def _read_class_folders(source: Source, place: Path, wanted: dict[str, tuple[str, str]], complete: bool = True) -> None:
    """Read the class folders in one place; `wanted` has the folder and the class by the plain form of a name."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    inside = 0
    for sub in subfolders(place):
        images = images_below(sub)
        inside += len(images)
        if _plain(sub.name) not in wanted:
            if images:
                source.problems[f"unknown class folder; known are {', '.join(f for f, _ in wanted.values())}"].append(
                    f"{sub} ({len(images)} images)"
                )
            continue
        found[_plain(sub.name)].append(sub)
        if not images:
            source.problems["class folder without an image"].append(str(sub))
        label = source.classes.index(wanted[_plain(sub.name)][1])
        for path in images:
            image = relative_path(str(path), source.root) or ""
            source.entries.append(Entry(image, label))
            if path.parent != sub:
                source.problems["image in a folder inside a class folder"].append(image)
    source.problems["two folders of one class"] += [
        ", ".join(map(str, folders)) for folders in found.values() if len(folders) > 1
    ]
    if complete:
        source.problems["missing class folder"] += [
            str(place / f) for plain, (f, _) in wanted.items() if plain not in found
        ]
    loose = [p for p in images_below(place) if p.parent == place] if len(images_below(place)) > inside else []
    source.problems["image beside the class folders"] += map(str, loose)


def _plain(name: str) -> str:
    """Reduce `0-A. flavus AI2`, `A_flavus_AI2` or `In situ` to letters and digits, without a number in front."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^\d+[-_. ]+", "", name.lower()))


def _count(source: Source) -> dict[str, int]:
    return {name: sum(e.label == c for e in source.entries) for c, name in enumerate(source.classes)}
