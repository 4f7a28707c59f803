"""Check what was read, split it, and write it as a datalist; all problems are reported at once."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from label_efficient.data.image_hashes import hash_image
from label_efficient.data.images import MOST_PIXELS, ImageError, read_image
from label_efficient.files import name_of, no_file, path_of, printable, write_whole
from lists.near_duplicates import group_near_duplicates
from lists.splits import SECTIONS, Entry, ListError, Source, apply_budget, assign_splits, check_copies, class_counts


def train_command(bundle: str) -> str:
    """Write the command that trains a bundle."""
    return f"python -m monai.bundle run training --config_file bundles/{bundle}/configs/train.json"


def file_name(name: str) -> str:
    """Shorten the name of a data set to what a file's name has room for."""
    return name.encode(errors="backslashreplace")[:150].decode(errors="ignore").replace(" ", "-")


def check(
    source: Source,
    allow_copies: bool,
    near_duplicates: float | None = None,
    turned_views: bool = False,
    max_pixels: int = MOST_PIXELS,
) -> None:
    """Check everything that can be checked before splitting; raise one error with all problems.

    Args:
        source: What was read.
        allow_copies: Copies in two splits or classes are a remark, not an error.
        near_duplicates: The correlation from which two images are of one group; None: not looked for.
        turned_views: Near-duplicates may be mirrored or turned.
        max_pixels: An image of more is a problem.
    """
    problems = source.problems
    for image, times in Counter(e.image for e in source.entries).items():
        if times > 1:
            rows = ", ".join(e.origin for e in source.entries if e.image == image)
            problems["same path more than once"].append(f"{image} ({rows})")
    readable = check_files(source, max_pixels)
    check_classes(source)
    if near_duplicates is not None:
        group_near_duplicates(source, readable, near_duplicates, turned_views, allow_copies)
    held = defaultdict(set)
    for entry in source.entries:
        if entry.group is not None and entry.split:
            held[entry.group].add(entry.split)
    problems["group in more than one split"] += [
        f"'{group}' is in {', '.join(s for s in SECTIONS if s in splits)}"
        for group, splits in held.items()
        if len(splits) > 1
    ]
    check_copies(source, allow_copies)
    source.fail_if_problems()


def check_files(source: Source, max_pixels: int) -> list[Entry]:
    """Read every file: is it there, an image, what is its pixels' checksum; return those where all is well."""

    def check_one(entry: Entry) -> tuple[str, str]:
        path = source.root / path_of(entry.image)
        where = f"{entry.image} ({entry.origin})" if entry.origin else entry.image
        if problem := no_file(path):
            return "missing file", where if problem == "does not exist" else f"{where} {problem}"
        try:
            entry.digest = hash_image(read_image(path, max_pixels=max_pixels))[:8].hex()
        except (ImageError, OSError) as error:
            return "unreadable image", f"{where}: {str(error).removeprefix(f'{printable(path)}: ')}"
        return "", ""

    entries = [entry for entry in source.entries if entry.digest is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(check_one, entries))
    for kind, problem in found:
        if kind:
            source.problems[kind].append(problem)
    return [entry for entry, (kind, _) in zip(entries, found, strict=True) if not kind]


def check_classes(source: Source) -> None:
    """Every class needs images, and where splits are given, images to train on."""
    labelled = [e for e in source.entries if e.label is not None]
    given = any(e.split for e in labelled)
    if len(source.classes) < 2 and not source.multi_label:
        source.problems["fewer than two classes"].append(", ".join(source.classes) or "none")
    counts = {section: class_counts([e for e in labelled if e.split == section], source) for section in SECTIONS}
    total = class_counts(labelled, source)
    for c, name in enumerate(source.classes):
        if total[c] == 0:
            source.problems["class without an image"].append(f"'{name}'")
        elif given and counts["training"][c] == 0:
            source.problems["class without an image in training"].append(f"'{name}'")
        elif given:
            empty = [s for s in SECTIONS if counts[s].sum() and not counts[s][c]]
            source.notes += [f"class '{name}' has no image in {s}" for s in empty]
    for entry in source.entries:
        where = f"{entry.image} ({entry.origin})" if entry.origin else entry.image
        if given and entry.label is not None and entry.split is None:
            source.problems["no split, while others have one"].append(where)
        if entry.label is None and entry.split in ("validation", "test"):
            source.problems["no label in validation or test"].append(where)


def build_list(source: Source, args: argparse.Namespace) -> dict[str, Any]:
    """Check, split and subset; return the datalist."""
    if args.resplit:
        for entry in source.entries:
            entry.split = None
    check(source, args.allow_copies, args.near_duplicates, args.turned_views, args.max_pixels)
    data: dict[str, Any] = {"name": source.name, "seed": args.seed}
    data["split"] = assign_splits(source, args.fractions, args.seed)
    if source.remark:
        data["note"] = source.remark
    apply_budget(source, args.label_fraction, args.labels_per_class, args.seed)
    if source.multi_label:
        task = "multi-label, binary-class"
    else:
        task = "binary-class" if len(source.classes) == 2 else "multi-class"
    data["task"] = "ordinal-regression" if args.ordinal else source.task or task
    data["labels"] = {str(i): name for i, name in enumerate(source.classes)}
    for budget in ("label_fraction", "labels_per_class"):
        if getattr(args, budget) is not None:
            data[budget] = getattr(args, budget)
    entries = sorted(source.entries, key=lambda e: e.image)
    for section in SECTIONS:
        data[section] = [as_item(e) for e in entries if e.label is not None and e.split == section]
    unlabelled = [as_item(e) for e in entries if e.label is None]
    if unlabelled:
        data["unlabelled"] = unlabelled
    return data


def as_item(entry: Entry) -> dict[str, Any]:
    """Write an entry as an item of the list; only what is known."""
    item = {"image": name_of(entry.image), "label": entry.label, "group": entry.group}
    return {key: value for key, value in item.items() if value is not None}


def format_list(data: dict[str, Any]) -> bytes:
    """Format a datalist as JSON with one image per line; names that are not UTF-8 as `files.write_json` does."""
    blocks = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            items = ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in value)
            text = f"[\n{items}\n  ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        blocks.append(f"  {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(blocks) + "\n}\n").encode(errors="backslashreplace")


def write_list(path: Path, data: dict[str, Any], overwrite: bool) -> None:
    """Write a datalist; one of other content is replaced only if that is asked for, and if this tool has made it.

    Raises:
        ListError: If it is not replaced.
    """
    content = format_list(data)
    if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == content):
        try:
            made = json.loads(path.read_bytes())
            ours = format_list(made) == path.read_bytes() and "seed" in made
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise ListError(f"{path} is there already, and not as this tool writes lists: give another --output")
        if not overwrite:
            raise ListError(
                f"{path} is there already, with other images, splits or options (seed {made['seed']}): --overwrite "
                "replaces it, another --output keeps both; nothing was written"
            )
    write_whole(path, lambda file: file.write(content))


def aligned(rows: list[list[str]], words: int) -> str:
    """Lay out a table of cells; the first columns, as many as `words`, are flush left, the numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
