"""What a folder holds of runs of ours: whose it is, and an account of every file that they wrote to it."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from label_efficient.files import short_name, write_json, write_whole
from label_efficient.output_names import is_inside

BOOKS = ".run"  # folder of the marker, the account, the lock, and a run that has nothing to show yet
_REMAINS = re.compile(r"\.(.+)\.\d+\.tmp")  # as `files.write_whole` calls them


class Folder(Protocol):
    """Where figures are drawn: a path, or a folder of a run, which keeps account of them."""

    def __truediv__(self, name: str, /) -> Path:
        """Place of a file."""
        ...


class Account:
    """The marker of a folder, and the names of the files in it that runs of ours wrote, with `/` between folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker: dict[str, Any] = {}
        self.names: set[str] = set()
        with contextlib.suppress(OSError, ValueError):
            lines = (folder / BOOKS / "files.jsonl").read_text(encoding="ascii").splitlines()
            self.marker = dict(json.loads((folder / BOOKS / "owner.json").read_text(encoding="utf-8")))
            names = [json.loads(line) for line in lines if line.endswith('"')]  # not one that was cut off
            self.names = {name for name in names if is_inside(name)}

    def mark(self, marker: dict[str, Any]) -> None:
        """The folder belongs to a run from now on."""
        self.marker = marker
        self._write()
        write_json(self.folder / BOOKS / "owner.json", marker)

    def add(self, names: Iterable[str]) -> None:
        """Before they are written: a name too many deletes nothing, a name too few would leave a stranger."""
        new = [name for name in names if name not in self.names]
        self.names.update(new)
        with open(self.folder / BOOKS / "files.jsonl", "a", encoding="ascii") as file:
            file.writelines(json.dumps(name) + "\n" for name in new)

    def delete(self, names: set[str]) -> None:
        """Delete files, and the folders that are empty then."""
        for name in names:
            if self.leads_inside(name) and not ((place := self.folder / name).is_dir() and not place.is_symlink()):
                place.unlink(missing_ok=True)
        folders = {folder for name in names for folder in Path(name).parents if folder != Path(".")}
        for folder in sorted(folders, key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):  # somebody else's files are in it, and stay
                (self.folder / folder).rmdir()
        self.names -= names
        if names:
            self._write()

    def delete_remains(self) -> None:
        """Delete what a run that was killed while it wrote has left of the files here."""
        inside = [Path(name) for name in self.names if self.leads_inside(name)]
        ours = {(path.parent, short_name(path.name)) for path in inside}
        for folder in {path.parent for path in inside}:
            for found in (self.folder / folder).glob(".*.tmp"):
                name = _REMAINS.fullmatch(found.name)
                if name and (folder, name[1]) in ours:
                    found.unlink()
        self._write()  # without the line of a name that was cut off

    def leads_inside(self, name: str) -> bool:
        """Whether a file is reached without a link to another folder."""
        return (self.folder / name).parent.resolve() == self.folder.resolve() / Path(name).parent

    def replace(self, earlier: "Account") -> None:
        """Move what is here into the place of what an earlier run left; after a kill at any moment of it again."""
        if self.marker:
            old, earlier.names = earlier.names - self.names, earlier.names | self.names
            earlier.delete(old)
            for name in sorted(self.names):
                if os.path.lexists(self.folder / name) and earlier.leads_inside(name):
                    (earlier.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(self.folder / name, earlier.folder / name)
            earlier.mark(self.marker)
            (self.folder / BOOKS / "owner.json").unlink()  # from here on there is nothing to do again
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        text = "".join(json.dumps(name) + "\n" for name in sorted(self.names))
        write_whole(self.folder / BOOKS / "files.jsonl", lambda file: file.write(text.encode()))


def is_of_a_run(parent: str, name: str) -> bool:
    """Whether a folder is marked as that of a run."""
    return os.path.isfile(os.path.join(parent, name, BOOKS, "owner.json"))


def in_use(folder: Path) -> bool:
    """Whether a run holds a folder."""
    if not (folder / BOOKS / "lock").is_file():
        return False
    lock = lock_of(folder)
    with contextlib.suppress(Timeout, OSError):
        if not lock.is_locked:  # by this process
            lock.acquire(timeout=0)
            lock.release()
            return False
    return True


def lock_of(folder: Path) -> FileLock:
    """The lock of a folder."""
    # One a process: a program may open the folder of a run that it has broken off.
    return FileLock((folder / BOOKS).resolve() / "lock", thread_local=False, is_singleton=True)
