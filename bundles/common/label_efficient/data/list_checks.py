"""What must hold between the entries of a list: nothing missing, no leak between its sections, no contradiction."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from label_efficient.data.tables import listed
from label_efficient.files import no_file, sha256

TASKS = ("classification", "segmentation")


@dataclass(frozen=True)
class Entry:
    """One image of a list.

    Attributes:
        file: Its name in tables, as the list has it.
        label: Index of the class, or 0/1 of every class, or None.
        masks: Files that together are the mask; none without a mask.
        mask_values: Stored values that are lung; None: the mask is binary.
        source: Name of the data set.
        group: Patient or other group.
        task: For an unlabelled image the one stream that gets it; None: both.
        spacing: Height and width of a pixel in mm.
        at: Where in the list it stands, for messages.
    """

    image: Path
    file: str
    label: int | list[int] | None = None
    masks: tuple[Path, ...] = ()
    mask_values: tuple[int, ...] | None = None
    source: str = ""
    group: str | None = None
    task: str | None = None
    spacing: tuple[float, float] | None = None
    at: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the image serves: by its label and mask, or, unlabelled, by its task."""
        if self.label is None and not self.masks:
            return (self.task,) if self.task else TASKS
        return TASKS[: self.label is not None] + TASKS[1 : 1 + bool(self.masks)]


def check_entries(
    sections: Mapping[str, Sequence[Entry]],
    path: Path,
    problems: list[str],
    digests: Mapping[Path, str] | None = None,
) -> None:
    """Refuse a list whose entries, by section, do not fit together, or that has problems already.

    `digests` has the SHA-256 of images by their path, where known: copies under other names are problems, too. (A run
    compares pixels instead, once they are read: `image_copies`.)

    Raises:
        ValueError: With all problems.
    """
    everything = [entry for entries in sections.values() for entry in entries]
    problems += [
        f"{entry.at}: {file} {problem}"
        for entry in everything
        for file in (entry.image, *entry.masks)
        if (problem := no_file(file))
    ]
    problems += _crossing_groups(sections)
    problems += _shared_images(sections, digests or {})
    if problems:
        raise ValueError(listed(path, problems))


def _crossing_groups(sections: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Groups (patients) that stand in two sections; unlabelled images may share theirs with training."""
    problems = []
    first: dict[str, tuple[str, Entry]] = {}
    told = set()
    for name, entries in sections.items():
        for entry in entries:
            if entry.group is None or (entry.group, name) in told:
                continue
            other_name, other = first.setdefault(entry.group, (name, entry))
            if {name, other_name} not in ({name}, {"train", "unlabelled"}):
                told.add((entry.group, name))
                problems.append(f"group {entry.group!r} crosses {other_name} ({other.at}) and {name} ({entry.at})")
    return problems


def _shared_images(sections: Mapping[str, Sequence[Entry]], content: Mapping[Path, str]) -> list[str]:
    """Images that, by path or by content, leak between sections or contradict each other.

    An image of training may be among the unlabelled of the task for which training does not have it, and may stand in a
    section twice, once with its label and once with its mask. Copies under other names may have the same label.
    """
    problems = []
    seen: dict[tuple[str, str, str], Entry] = {}
    kinds: defaultdict[str, dict[tuple[str, tuple[str, ...]], Entry]] = defaultdict(dict)
    folders: dict[str, str] = {}  # resolved once: a list of many files has few
    for name, entries in sections.items():
        for entry in entries:
            folder, file = os.path.split(entry.image)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            path = os.path.join(folders[folder], file)
            path = os.path.realpath(path) if os.path.islink(path) else path
            again = [
                other for task in entry.tasks if (other := seen.setdefault((path, name, task), entry)) is not entry
            ]
            if again:
                problems.append(f"{entry.file} stands in {name} twice ({again[0].at}, {entry.at})")
            known = kinds[content.get(entry.image, path)]
            for (other_name, _), other in known.items():
                if name == other_name:
                    if what := _contradiction(entry, other):
                        where = f"{other.file} ({other.at}) and {entry.file} ({entry.at})"
                        problems.append(f"{where} are one image with two {what}")
                elif {name, other_name} == {"train", "unlabelled"} and not set(entry.tasks) & set(other.tasks):
                    continue
                elif path == os.path.realpath(other.image):
                    problems.append(f"{entry.file} stands in {other_name} and {name} ({other.at}, {entry.at})")
                else:
                    copy = f"{entry.file} ({name}) is byte by byte {other.file} ({other_name})"
                    problems.append(f"{copy} ({entry.at}, {other.at})")
            known.setdefault((name, entry.tasks), entry)
    return problems


def _contradiction(entry: Entry, other: Entry) -> str | None:
    if None not in (entry.label, other.label) and entry.label != other.label:
        return "labels"
    if entry.masks and other.masks and not any(no_file(path) for path in (*entry.masks, *other.masks)):
        mask, other_mask = ([*map(sha256, e.masks), e.mask_values] for e in (entry, other))
        return "masks" if mask != other_mask else None
    return None
