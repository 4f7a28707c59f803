"""What must hold between the entries of a list: nothing missing, no leak between its sections, no contradiction."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from label_efficient.files import sha256

TASKS = ("classification", "segmentation")


@dataclass(frozen=True)
class Entry:
    """One image of a list.

    Attributes:
        image: The file.
        file: Its name in tables, as the list has it.
        label: Index of the class, or 0/1 of every class, or None.
        masks: Files that together are the mask; none without a mask.
        mask_values: Stored values that are lung; None: the mask is binary.
        source: Name of the data set, or "".
        group: Patient or other group, or None.
        task: For an unlabelled image the one stream that gets it; None: both.
        spacing: Height and width of a pixel in mm, or None.
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


def missing_files(sections: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Say which images and masks do not exist."""
    problems = []
    for entry in _all(sections):
        for path in (entry.image, *entry.masks):
            if not path.is_file():
                problems.append(f"{entry.at}: {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return problems


def crossing_groups(sections: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Say which groups (patients) stand in two sections; unlabelled images may share theirs with training."""
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


def shared_images(
    sections: Mapping[str, Sequence[Entry]],
    num_workers: int = 0,
    digests: Mapping[Path, str] | None = None,
    contradictions: bool = True,
) -> list[str]:
    """Say which images, by path or by content, leak between sections or contradict each other.

    An image of training may be among the unlabelled of the task for which training does not have it, and may stand in a
    section twice, once with its label and once with its mask. Copies under other names may have the same label.

    Args:
        sections: Entries by section.
        num_workers: Threads that read the files.
        digests: SHA-256 of images where known already.
        contradictions: Whether one content with two labels or two masks in one section is a problem.
    """
    known_digests = digests or {}
    paths = [path for path in {entry.image for entry in _all(sections)} if path.is_file()]
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        content = dict(zip(paths, pool.map(lambda p: known_digests.get(p) or sha256(p), paths), strict=True))
    problems = []
    seen: dict[tuple[Path, str, str], Entry] = {}
    kinds: defaultdict[str, dict[tuple[str, tuple[str, ...]], Entry]] = defaultdict(dict)
    for name, entries in sections.items():
        for entry in entries:
            path = entry.image.resolve()
            again = [
                other for task in entry.tasks if (other := seen.setdefault((path, name, task), entry)) is not entry
            ]
            if again:
                problems.append(f"{entry.file} stands in {name} twice ({again[0].at}, {entry.at})")
            known = kinds[content.get(entry.image, str(path))]
            for (other_name, _), other in known.items():
                if name != other_name:
                    problem = _leak(name, entry, other_name, other)
                else:
                    problem = _contradiction(entry, other) if contradictions else None
                if problem:
                    problems.append(problem)
            known.setdefault((name, entry.tasks), entry)
    return problems


def _leak(name: str, entry: Entry, other_name: str, other: Entry) -> str | None:
    if {name, other_name} == {"train", "unlabelled"} and not set(entry.tasks) & set(other.tasks):
        return None
    if entry.image.resolve() == other.image.resolve():
        return f"{entry.file} stands in {other_name} and {name} ({other.at}, {entry.at})"
    return f"{entry.file} ({name}) is byte by byte {other.file} ({other_name}) ({entry.at}, {other.at})"


def _contradiction(entry: Entry, other: Entry) -> str | None:
    where = f"{other.file} ({other.at}) and {entry.file} ({entry.at})"
    if None not in (entry.label, other.label) and entry.label != other.label:
        return f"{where} are one image with two labels"
    if entry.masks and other.masks and (entry.masks, entry.mask_values) != (other.masks, other.mask_values):
        files = (*entry.masks, *other.masks)
        if all(path.is_file() for path in files) and (
            [sha256(path) for path in entry.masks] != [sha256(path) for path in other.masks]
            or entry.mask_values != other.mask_values
        ):
            return f"{where} are one image with two masks"
    return None


def _all(sections: Mapping[str, Sequence[Entry]]) -> Iterator[Entry]:
    for entries in sections.values():
        yield from entries
