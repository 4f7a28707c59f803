"""Make MONAI datalists (JSON) from folders, CSV files and MedMNIST-layout .npz files.

    python tools/make_data_lists.py folder DIR                   DIR/<class>/**, or DIR/<split>/<class>/**
    python tools/make_data_lists.py csv FILE                     columns file, label or class, split, patient
    python tools/make_data_lists.py npz FILE --images_dir DIR    exports the images as PNG files, too
    python tools/make_data_lists.py pack LIST --size 28 --output FILE.npz
    python tools/make_data_lists.py chest --classification DIR --segmentation DIR      one list for multimix
    python tools/make_data_lists.py bach DIR                     BACH (ICIAR 2018), for gated_attention
    python tools/make_data_lists.py aspergillus DIR              CNN_Aspergillus, for gated_attention

Splits are stratified by class, decided by the seed, and keep the images of a group (patient, near-duplicates) and
identical files together. Everything is checked first; all problems are reported at once, and then nothing is written.
A list that is there already is replaced only with --overwrite, and only if it was made by this tool.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lists.building import aligned, build_list, file_name, train_command, write_list
from lists.chest import make_chest_list
from lists.microscopy import PAPER_FRACTIONS, read_aspergillus, read_bach
from lists.near_duplicates import THRESHOLD
from lists.options import (
    Parser,
    correlation,
    integer_from,
    names_list,
    number_or_all,
    pixel_limit,
    plain_name,
    regular_expression,
    share,
    three_fractions,
    whole_numbers,
)
from lists.packing import pack
from lists.readers import COLUMNS, read_csv, read_folder, read_npz
from lists.splits import DEFAULT_FRACTIONS, SECTIONS, ListError, Source
from PIL import Image

from label_efficient.files import write_whole


def default_name(data: dict[str, Any]) -> str:
    """Name a list after its dataset, split, budget and seed."""
    parts = [file_name(data["name"]), "given" if data["split"].startswith("as given") else data["split"].split()[0]]
    parts += [f"fraction{data['label_fraction']:g}"] if "label_fraction" in data else []
    parts += [f"{data['labels_per_class']}perclass"] if "labels_per_class" in data else []
    return "_".join([*parts, f"seed{data['seed']}.json"])


def count_table(data: dict[str, Any]) -> str:
    """Count the images by class and split."""
    sections = [s for s in (*SECTIONS, "unlabelled") if s in data]
    multi_label = data["task"].startswith("multi-label")
    rows = [["class", *sections]]
    for c, name in enumerate(data["labels"].values()):
        hits = [sum(item["label"][c] if multi_label else item["label"] == c for item in data[s]) for s in SECTIONS]
        rows.append([name, *map(str, hits)] + ["-"] * (len(sections) - 3))
    rows.append(["images", *(str(len(data[s])) for s in sections)])
    return aligned(rows, words=1)


def export_images(source: Source) -> None:
    """Write the images of an .npz as PNG files; a file that is there already must hold the same pixels."""
    for name, pixels in source.pixels.items():
        path = source.root / name
        if path.exists():
            with Image.open(path) as image:
                if np.array_equal(np.asarray(image), pixels):
                    continue
            raise ListError(f"{path} is there already and is another image; choose another --images_dir")
        write_whole(path, partial(Image.fromarray(pixels).save, format="PNG"))


def make_list(args: argparse.Namespace) -> None:
    """Run the commands folder, csv, npz, bach and aspergillus."""
    source: Source = args.read(args)
    if not source.entries and not source.problems:
        raise ListError("found no images")
    data = build_list(source, args)
    path = Path(args.output) if args.output else Path(args.output_dir) / default_name(data)
    export_images(source)
    write_list(path, data, args.overwrite)
    print(*source.notes, "", count_table(data), "", f"wrote {path}", "next:", sep="\n")
    where = f"--datalist {shlex.quote(str(path))} --dataset_dir {shlex.quote(str(source.root))}"
    print(f"  {train_command(args.bundle)} --dataset datalist {where}")


# ------------------------------------------------------------------------------------------ command line


def make_parser() -> Parser:
    """Describe the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    general, near = general_options(DEFAULT_FRACTIONS), near_duplicate_options("none")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--classes", type=names_list, help="all class names in the order of the labels: a,b,c")
    shared.add_argument("--resplit", action="store_true", help="ignore the splits that the data come with")
    shared.add_argument("--ordinal", action="store_true", help="the classes are grades, in order")
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument("--root", help="what paths are relative to (default: DIR, or the folder of the file)")
    columns = argparse.ArgumentParser(add_help=False)
    for role, usual in COLUMNS.items():
        columns.add_argument(f"--{role}_column", help=f"default: {', '.join(usual)}; 'none' for no column")
    columns.add_argument("--label_columns", type=names_list, help="several labels per image: columns of 0 and 1")
    target = argparse.ArgumentParser(add_help=False)
    target.add_argument("--output", help="the list (default: a name made of dataset, split and seed)")
    target.add_argument("--output_dir", default=".", help="folder of the list, if --output is not given")
    target.add_argument("--overwrite", action="store_true", help="replace a list that was made with other options")
    nothing = dict.fromkeys(("group_pattern", "label_columns", "root", "classes", "near_duplicates"))

    def command(name: str, parents: list[Any], text: str, **defaults: Any) -> Any:
        sub = commands.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
        flags = dict.fromkeys(("resplit", "ordinal", "turned_views"), False)
        sub.set_defaults(**{**nothing, **flags, "bundle": "lsanet", **defaults})
        return sub

    for_classes = [general, shared]
    sub = command("folder", [rooted, *for_classes, near, target], "class folders", run=make_list, read=read_folder)
    sub.add_argument("dir", metavar="DIR")
    sub.add_argument("--group_pattern", type=regular_expression, help="finds the patient in a path: 'person(\\d+)_'")
    sub = command("csv", [rooted, columns, *for_classes, near, target], "a table", run=make_list, read=read_csv)
    sub.add_argument("file", metavar="FILE")
    sub = command("npz", [*for_classes, target], "MedMNIST-layout arrays", run=make_list, read=read_npz)
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--images_dir", required=True, help="folder for the PNG files")
    sub = command("pack", [rooted, columns, *for_classes], "a list or CSV to MedMNIST-layout arrays", run=pack)
    sub.add_argument("list", metavar="LIST", help="a datalist (.json), or a .csv with the options of csv")
    sub.add_argument("--size", type=integer_from(1, 4096), default=28)
    sub.add_argument("--channels", type=int, choices=(1, 3), default=3)
    sub.add_argument("--keep_aspect", action="store_true", help="pad with black instead of squeezing")
    sub.add_argument("--output", required=True, metavar="FILE.npz")
    sub.add_argument("--overwrite", action="store_true", help="replace a file that was packed before")
    add_chest(command("chest", [target], "chest X-rays with classes and masks, for multimix", run=make_chest_list))

    def microscopy(name: str, text: str, read: Callable[[argparse.Namespace], Source]) -> Any:
        # Parents of their own: a default that is set here would otherwise be that of all commands.
        parents = [rooted, general_options(PAPER_FRACTIONS), near_duplicate_options(str(THRESHOLD)), target]
        defaults = {"fractions": PAPER_FRACTIONS, "near_duplicates": THRESHOLD, "bundle": "gated_attention"}
        sub = command(name, parents, text, run=make_list, read=read, **defaults)
        sub.add_argument("dir", metavar="DIR")
        return sub

    sub = microscopy("bach", "BACH (ICIAR 2018), as published: Photos/<class>/, with its table", read_bach)
    sub.add_argument(
        "--patients", metavar="FILE", help="a table with the columns file and patient, of all or some images"
    )
    sub = microscopy("aspergillus", "CNN_Aspergillus, as published: <set>/<number>-<strain>/", read_aspergillus)
    sub.add_argument(
        "--classes",
        choices=("strains", "species"),
        default="strains",
        help="species: A. flavus AI1 and AI2 are one class",
    )
    return parser


def general_options(fractions: Sequence[float]) -> argparse.ArgumentParser:
    """Describe the options of all commands that make one list of classes."""
    parent = argparse.ArgumentParser(add_help=False)
    add = parent.add_argument
    add("--name", type=plain_name, help="name of the dataset (default: the folder's, or the .npz file's)")
    usual = ",".join(map(str, fractions))
    add("--fractions", type=three_fractions, help=f"shares of training, validation, test (default: {usual})")
    add("--seed", type=integer_from(0), default=0)
    pixel_limit(parent)
    add("--label_fraction", type=float, help="part of every training class that keeps its labels")
    add("--labels_per_class", type=int, help="number of training images per class that keep their labels")
    add(
        "--allow_copies",
        action="store_true",
        help="copies in two splits or classes are a warning, not an error; train with copies=warn",
    )
    return parent


def near_duplicate_options(usual: str) -> argparse.ArgumentParser:
    """Describe the options of commands that can look for near-duplicates."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--near_duplicates",
        type=correlation,
        metavar="CORRELATION",
        help=f"images of one field are one group: those whose thumbnails correlate so much, as 0.8 (default: {usual})",
    )
    parent.add_argument("--turned_views", action="store_true", help="near-duplicates may be mirrored or turned")
    return parent


def add_chest(sub: argparse.ArgumentParser) -> None:
    """Describe the options of the command chest."""
    add = sub.add_argument
    sub.set_defaults(root=".")
    add("--root", help="what folders are relative to, and the paths in the list (default: the current folder)")
    add("--classification", metavar="DIR", help="<class>/, <split>/<class>/, or NIH ChestX-ray14 with its table")
    add("--segmentation", metavar="DIR", help="images/ and masks/, as of JSRT, Shenzhen, Montgomery (ManualMask/)")
    add("--cross_classification", metavar="DIR", help="another hospital's images with classes: a test only")
    add("--cross_segmentation", metavar="DIR", help="another hospital's images with masks: a test only")
    add("--unlabelled", metavar="DIR", action="append", help="more images for training, without labels; repeatable")
    add(
        "--class_labels", type=number_or_all, default="all", help="training images that keep their class (default: all)"
    )
    add("--mask_labels", type=number_or_all, default="all", help="training images that keep their mask (default: all)")
    add("--classes", type=names_list, help="all class names in the order of the labels: a,b")
    add("--val_fraction", type=share, default=0.1, help="share of validation (default: 0.1); not where it is published")
    add("--mask_values", type=whole_numbers, help="stored values that are lung: 150,200 (default: found)")
    add("--cross_mask_values", type=whole_numbers, help="the same, of --cross_segmentation")
    add("--class_group_pattern", type=regular_expression, help="finds the patient in a path: 'p(\\d+)_'")
    add("--mask_group_pattern", type=regular_expression, help="the same, of --segmentation")
    add("--seed", type=integer_from(0), default=0)
    pixel_limit(sub)


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names may be in any encoding
    args = make_parser().parse_args(argv)
    try:
        if args.label_columns and (args.classes or args.ordinal):
            raise ListError("--label_columns names the classes, and has no grades: leave --classes and --ordinal out")
        if args.turned_views and args.near_duplicates is None:
            raise ListError("--turned_views is about near-duplicates: give --near_duplicates, such as 0.8, too")
        args.run(args)
    except (ListError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
