"""The folder that a run, an evaluation or an inference writes to: owned by a marker, guarded by a lock.

What no run of ours wrote is never replaced or deleted. An earlier run is replaced only if that is asked for, and only
once the new one has something to put in its place: until then the new one writes to a folder of its own inside.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from label_efficient.files import write_json
from label_efficient.settings import SettingsError

Kind = Literal["training", "evaluation", "inference"]

BOOKS = ".run"  # holds the marker, the names of what was written, the lock, and a run that is not yet complete
# What a run writes at the top of its folder. A file of such a name in a folder without a marker is somebody else's.
OUR_NAMES = frozenset(
    "model.pt model.json calibration.json checkpoint.pt checkpoint_before.pt history.csv metrics.json predictions.csv "
    "instances.csv config.json report.html train.log evaluate.log inference.log tensorboard figures masks overlays "
    "saliency attention".split()
)


class RunFolder:
    """Gives out the places that a run writes to, and keeps account of them.

    Args:
        output_dir: The folder; made if it is missing.
        kind: What writes. An evaluation of the weights in a training's folder adds to it; everything else has a folder
            to itself.
        overwrite: Whether an earlier run of the same kind there is replaced.
        resume: Whether it is continued instead.

    Raises:
        SettingsError: On opening, if the folder is a file, cannot be written to, is in use, or holds what must not be
            replaced.
    """

    def __init__(self, output_dir: str | Path, kind: Kind, *, overwrite: bool = False, resume: bool = False) -> None:
        self.output_dir = Path(output_dir)
        self.kind = kind
        self.overwrite = overwrite
        self.resume = resume
        self.is_open = False
        self.staged = False
        self.books = self.output_dir / BOOKS
        self._lock = FileLock(self.books / "lock", timeout=0)
        self._owned: set[str] = set()

    @property
    def path(self) -> Path:
        """Where the run writes at the moment: `output_dir`, or a folder inside it while an earlier run stands there."""
        return self.books / "new" if self.staged else self.output_dir

    def open(self) -> None:
        """Take possession of the folder; a second time changes nothing."""
        if self.is_open:
            return
        if kind_of_run(self.output_dir) is None:
            self._check()  # before anything is written to it
        new_books = not self.books.exists()
        try:
            self.books.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise SettingsError(
                f"output_dir={str(self.output_dir)!r} is in use by {self._holder()}: wait, or give another folder"
            ) from error
        except OSError as error:
            raise SettingsError(
                f"output_dir={str(self.output_dir)!r} cannot be written to ({error.strerror}): give another folder"
            ) from error
        try:
            self._take(self._check())
        except BaseException:
            self._lock.release()
            if new_books:
                shutil.rmtree(self.books, ignore_errors=True)
            raise
        self.is_open = True

    def file(self, name: str) -> Path:
        """Place of a file of the run, by its name in the folder; whatever stands there is ours, or it is refused.

        Args:
            name: With `/` between folders, such as `masks/a.png`; safe already (`label_efficient.output_names`).

        Raises:
            SettingsError: If a file of that name stands there that no run of ours wrote.
        """
        self.open()
        place = self.path / name
        if name not in self._owned:
            if os.path.lexists(place):
                raise SettingsError(f"{place} was not written by a run of ours and is not replaced: move it away")
            self._own([name])
        return place

    def own_all(self, folder: str) -> None:
        """Keep account of the files that another library has written to a folder of the run."""
        found = [p.relative_to(self.path).as_posix() for p in (self.path / folder).rglob("*") if not p.is_dir()]
        self._own(name for name in found if name not in self._owned)

    def complete(self) -> None:
        """The run has what may stand in the place of an earlier one: that one goes, and this one moves there."""
        if not self.staged:
            return
        new, names = self.path, sorted(self._owned)
        self._delete(self._names())
        for name in names:
            if (new / name).exists():
                target = self.output_dir / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(new / name, target)
        shutil.rmtree(new, ignore_errors=True)
        self.staged = False
        self._mark(names)

    def forget(self, folder: str) -> None:
        """Delete what a run of ours wrote to a folder, such as the figures of an earlier evaluation."""
        chosen = {name for name in self._owned if name.startswith(f"{folder}/")}
        self._delete(chosen)
        self._owned -= chosen

    def close(self) -> None:
        """Let go of the folder; a run that is not complete leaves the earlier one as it was."""
        if not self.is_open:
            return
        if self.staged:
            shutil.rmtree(self.path, ignore_errors=True)
            self.staged = False
        self._owned.clear()
        self.is_open = False
        self._lock.release()

    def _check(self) -> Kind | None:
        """Kind of the earlier run there, after making sure that this one may write beside it or in its place."""
        shown = f"output_dir={str(self.output_dir)!r}"
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise SettingsError(f"{shown} is a file: give a folder")
        earlier = kind_of_run(self.output_dir)
        if earlier is None:
            found = sorted(OUR_NAMES & set(os.listdir(self.output_dir))) if self.output_dir.is_dir() else []
            if found:
                raise SettingsError(
                    f"{shown} holds {', '.join(found)}, which no run of ours wrote and a run would replace: give an "
                    "empty or a new folder"
                )
        elif earlier != self.kind and not (self.kind == "evaluation" and earlier == "training"):
            raise SettingsError(f"{shown} belongs to an earlier {earlier}: give another folder for this {self.kind}")
        elif earlier == "training" == self.kind and not (self.resume or self.overwrite):
            raise SettingsError(
                f"{shown} holds an earlier run: resume=true continues it, overwrite=true replaces it once the new one "
                "has a model, another output_dir keeps both"
            )
        elif earlier == "inference" and not self.overwrite:
            raise SettingsError(
                f"{shown} holds the predictions of an earlier run: overwrite=true replaces them, another output_dir "
                "keeps both"
            )
        return earlier

    def _take(self, earlier: Kind | None) -> None:
        shutil.rmtree(self.books / "new", ignore_errors=True)  # of a run that was killed before it had anything
        self._owned = set(self._names())
        for name in self._owned:
            folder = (self.output_dir / name).parent
            for remains in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
                remains.unlink(missing_ok=True)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        write_json(self.books / "holder.json", holder)
        if earlier is None:
            self._mark([])
        elif self.overwrite and not self.resume and earlier == self.kind:
            self.staged, self._owned = True, set()
            self.path.mkdir()

    def _mark(self, names: list[str]) -> None:
        write_json(self.books / "owner.json", {"kind": self.kind, "started": _now()})
        self._owned = set()
        (self.books / "files.jsonl").write_text("", encoding="utf-8")
        self._own(names)

    def _own(self, names: Iterable[str]) -> None:
        names = list(names)
        self._owned.update(names)
        if not self.staged and names:
            # Written before the file is: a name too many deletes nothing, a name too few would leave a stranger.
            with open(self.books / "files.jsonl", "a", encoding="ascii") as account:
                account.writelines(json.dumps(name) + "\n" for name in names)

    def _names(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            lines = (self.books / "files.jsonl").read_text(encoding="ascii").splitlines()
            return {json.loads(line) for line in lines if line.endswith('"')}
        return set()

    def _delete(self, names: set[str]) -> None:
        for name in names:
            (self.output_dir / name).unlink(missing_ok=True)
        folders = {folder for name in names for folder in Path(name).parents if folder != Path(".")}
        for folder in sorted(folders, key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):  # somebody else's files are in it, and stay
                (self.output_dir / folder).rmdir()

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError):
            holder = json.loads((self.books / "holder.json").read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        return "another run"


def kind_of_run(folder: Path) -> Kind | None:
    """What the marker of a folder says that it belongs to; None without a marker."""
    try:
        return json.loads((folder / BOOKS / "owner.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_folder(folder: str) -> str:
    """The folder, or with the first number behind its name that no run has taken: `cells`, `cells-2`, `cells-3`."""
    number, candidate = 1, Path(folder)
    while candidate.exists() and any(candidate.iterdir()):
        number += 1
        candidate = Path(f"{folder}-{number}")
    return str(candidate)


def latest_folder(folder: str, kind: Kind) -> str:
    """Of a folder and its numbered followers the last one with a run of a kind; the folder itself without any."""
    number, candidate, latest = 1, Path(folder), folder
    while candidate.exists():
        if kind_of_run(candidate) == kind:
            latest = str(candidate)
        number += 1
        candidate = Path(f"{folder}-{number}")
    return latest


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
