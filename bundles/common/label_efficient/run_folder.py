"""The folder that a run, an evaluation or an inference writes to: owned by a marker, guarded by a lock.

What no run of ours wrote is never replaced or deleted. An earlier run is replaced only if that is asked for, and only
once the new one has something to put in its place: until then the new one writes to a folder of its own inside.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from filelock import FileLock, Timeout

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.ending import at_end
from label_efficient.files import write_json
from label_efficient.output_names import is_inside
from label_efficient.run_account import BOOKS, Account, Folder, lock_of
from label_efficient.settings import SettingsError

Kind = Literal["training", "weights", "evaluation", "inference"]

WEIGHTS = ("model.pt", "model.json", "model.images.npy", "calibration.json")
CHECKPOINTS = ("checkpoint.pt", "checkpoint_before.pt")
# What a run writes at the top of its folder. What has such a name and is in no account is somebody else's.
OUR_NAMES = frozenset(
    """model.pt model.json model.images.npy calibration.json checkpoint.pt checkpoint_before.pt history.csv metrics.json
    predictions.csv copies.csv instances.csv config.json report.html train.log evaluate.log inference.log tensorboard
    figures masks overlays saliency attention""".split()
)
_WORTH = ("model.pt", *CHECKPOINTS, "metrics.json", "predictions.csv")  # a run without any of them is none to keep
_PATIENCE = 6.0  # seconds in which the workers of a run that was killed notice it, and let go of its lock


class RunFolder:
    """Gives out the places that a run writes to, and keeps account of them. Of several processes rank 0 writes.

    Args:
        output_dir: The folder; made if it is missing.
        kind: What writes. An evaluation of a training's weights adds to its folder; else each has one to itself.
        overwrite: Whether an earlier run of the same kind there is replaced.
        resume: Whether it is continued instead.
        ckpt_dir: Folder of the weights, if it is another one.
        evaluated: The weights that an evaluation is of.
        images: Folder whose images are all read: what is written to it would be read the next time.

    Raises:
        SettingsError: On opening, if the folder is a file, cannot be written to, is in use, or holds what must not be
            replaced.
    """

    def __init__(
        self,
        output_dir: str | Path,
        kind: Kind,
        *,
        overwrite: bool = False,
        resume: bool = False,
        ckpt_dir: str | Path | None = None,
        evaluated: str | Path | None = None,
        images: str | Path | None = None,
    ) -> None:
        self.output_dir, self.kind, self.id = Path(output_dir), kind, uuid.uuid4().hex[:12]
        self.overwrite, self.resume, self.evaluated, self.images = overwrite, resume, evaluated, images
        self.weights = self
        if ckpt_dir is not None and Path(ckpt_dir).resolve() != self.output_dir.resolve():
            of_weights: Kind = "weights" if kind == "training" else kind
            self.weights = RunFolder(ckpt_dir, of_weights, overwrite=overwrite, resume=resume, evaluated=evaluated)
        self.books = self.output_dir / BOOKS
        self.account = Account(self.output_dir)
        self.earlier: Account | None = None  # as long as it stands in the place of this run
        self.is_open = False
        self._lock: FileLock | None = None  # while it is held
        self._made = self.books  # the folder that goes again if nothing is written
        self._writing = threading.Lock()

    @property
    def path(self) -> Path:
        """Where the run writes at the moment: `output_dir`, or a folder inside it while an earlier run stands there."""
        return self.account.folder

    @property
    def resumes(self) -> bool:
        """Whether there is a run to continue, and it is to be continued."""
        return self.resume and self.earlier is None and any((self.path / name).is_file() for name in CHECKPOINTS)

    def open(self) -> None:
        """Take possession of the folder, on all ranks; a second time changes nothing."""
        if self.is_open:
            return
        rank, ranks = rank_and_size()
        refusal: list[str | None] = [None]
        if rank == 0:
            try:
                for step in (RunFolder._refuse_strangers, RunFolder._take):
                    for folder in dict.fromkeys((self.weights, self)):
                        step(folder)
            except SettingsError as error:
                refusal = [str(error)]
                self.close()
        if ranks > 1:
            dist.broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise SettingsError(refusal[0])
        self.is_open = self.weights.is_open = True

    def file(self, name: str) -> Path:
        """Place of a file of the run, by its name in the folder.

        Args:
            name: With `/` between folders, such as `masks/a.png`; safe already (`label_efficient.output_names`).

        Raises:
            SettingsError: If what stands there was not written by a run of ours.
        """
        if not is_inside(name):
            raise ValueError(f"{name!r} is no name of a file in {self.output_dir}")
        self.open()
        with self._writing:
            if name not in self.account.names:
                self._refuse_stranger(name)
                self.account.add([name])
        for account in filter(None, (self.account, self.earlier)):
            if not account.leads_inside(name):
                folder = (account.folder / name).parent
                raise SettingsError(f"{folder} is a link to another folder: a run replaces nothing there")
        return self.path / name

    def folder(self, name: str) -> Folder:
        """A folder of the run: `folder / file` is the place of a file as of `file`."""
        return _Subfolder(self, name)

    def restart(self) -> None:
        """Begin anew in a program that has trained before: its earlier run stands until the new one has a model."""
        if rank_and_size()[0] == 0 and self.earlier is None and self._is_worth_keeping():
            logs = [name for name in self.account.names if name.endswith(".log")]  # they go on
            self._stage()
            self.account.add(logs)

    def complete(self) -> None:
        """The run has what may stand in the place of an earlier one: that one goes, and this one moves there."""
        if self.weights is not self:
            self.weights.complete()
        if self.earlier is not None:
            for name in self.account.names:
                self._refuse_stranger(name)
            os.replace(self.path, self.books / "done")
            Account(self.books / "done").replace(self.earlier)
            self.account, self.earlier = self.earlier, None

    def forget(self, *names: str) -> None:
        """Delete files that runs of ours wrote here, or all of theirs in a folder: those of an earlier evaluation."""
        self.open()
        self.account.delete({name for name in self.account.names if {name, name.split("/")[0]} & set(names)})

    def close(self) -> None:
        """Let go of the folder; a run that has nothing to show leaves the earlier one as it was."""
        if self.weights is not self:
            self.weights.close()
        if self.earlier is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.account, self.earlier = self.earlier, None
        self.is_open = False
        if self._lock is not None:
            if not self.account.names:  # refused before it had written anything
                shutil.rmtree(self.books, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self._made.rmdir()
            self._lock.release()
            self._lock = None

    @property
    def _shown(self) -> str:
        return f"{'ckpt_dir' if self.kind == 'weights' else 'output_dir'}={str(self.output_dir)!r}"

    def _take(self) -> None:
        try:
            if not self.output_dir.is_dir():
                self._made = self.output_dir
            self.books.mkdir(parents=True, exist_ok=True)
            lock = lock_of(self.output_dir)
            lock.acquire(timeout=_PATIENCE)
            if not self.books.is_dir():  # who held it had nothing to keep
                lock.release()
                self.books.mkdir(parents=True)
                lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            who = "another run"
            with contextlib.suppress(OSError, ValueError, KeyError):
                holder = json.loads((self.books / "holder.json").read_text(encoding="utf-8"))
                who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
            raise SettingsError(f"{self._shown} is in use by {who}: wait for it, or give another folder") from error
        except OSError as error:
            text = f"{self._shown} cannot be written to ({error.strerror}): give another folder"
            raise SettingsError(text) from error
        self._lock = lock
        at_end(self.close)
        self.account = Account(self.output_dir)
        Account(self.books / "done").replace(self.account)
        self._begin()
        write_json(self.books / "holder.json", {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()})

    def _begin(self) -> None:
        """Continue, add to, or stand beside the earlier run there, or take a folder without any."""
        shutil.rmtree(self.books / "new", ignore_errors=True)  # of a run that ended before it had anything to show
        marker = self.account.marker
        earlier = marker.get("kind") if self._is_worth_keeping() else None
        if earlier is None:
            self.account.delete(set(self.account.names))
            self._mark()
        elif marker.get("id") == self.id:
            return
        elif self.kind == "evaluation" and earlier in ("training", "weights"):
            own = {self.output_dir.resolve(), Path(marker.get("weights", "")).resolve()}
            if self.evaluated is not None and Path(self.evaluated).parent.resolve() not in own:
                raise SettingsError(
                    f"{self._shown} holds a training, and ckpt_path={str(self.evaluated)!r} are the weights of "
                    "another: give another output_dir"
                )
        elif earlier != self.kind:
            raise SettingsError(
                f"{self._shown} belongs to an earlier {earlier}: give another folder for this {self.kind}"
            )
        elif self.resumes or (self.resume and self.kind == "weights"):
            self._mark()
        elif self.resume and "metrics.json" in self.account.names:
            raise SettingsError(
                f"{self._shown} holds a finished run without its {CHECKPOINTS[0]}, and resume=true cannot continue it: "
                "overwrite=true replaces it, another output_dir keeps both"
            )
        elif self.overwrite or self.resume:
            self._stage()
        else:
            goes_on = "resume=true continues it, " if self.kind == "training" else ""
            raise SettingsError(
                f"{self._shown} holds an earlier {self.kind}: {goes_on}overwrite=true replaces it once the new one has "
                f"{'predictions' if self.kind == 'inference' else 'a model'}, another folder keeps both"
            )
        self.account.delete_remains()

    def _refuse_strangers(self) -> None:
        if os.path.lexists(self.output_dir) and not self.output_dir.is_dir():
            raise SettingsError(f"{self._shown} is a file: give a folder")
        if self.images and self.output_dir.resolve() == Path(self.images).resolve():
            raise SettingsError(
                f"{self._shown} is dataset_dir, all of whose images are predicted: those that are written now would be "
                "too, the next time; give a folder in it or beside it"
            )
        names, books = Account(self.output_dir), self.books
        known = names.names | {name.split("/")[0] for name in names.names}
        ours = WEIGHTS if self.kind == "weights" else OUR_NAMES
        found = sorted(name for name in ours if name not in known and os.path.lexists(self.output_dir / name))
        if os.path.lexists(books) and not names.marker:
            of_ours = books.is_dir() and ((books / "lock").is_file() or not os.listdir(books))
            found += [] if of_ours else [BOOKS]
        if found or books.is_symlink():
            raise SettingsError(
                f"{self._shown} holds {', '.join(found or [BOOKS])}, which no run of ours wrote and a run would "
                "replace: give an empty or a new folder"
            )

    def _refuse_stranger(self, name: str) -> None:
        known = self.earlier or self.account
        if name not in known.names and os.path.lexists(known.folder / name):
            raise SettingsError(f"{known.folder / name} was not written by a run of ours: move it away")

    def _is_worth_keeping(self) -> bool:
        return any(name in self.account.names and (self.path / name).is_file() for name in _WORTH)

    def _stage(self) -> None:
        self.earlier, self.account = self.account, Account(self.books / "new")
        self._mark()

    def _mark(self) -> None:
        weights = os.path.abspath(self.weights.output_dir)
        self.account.mark({"kind": self.kind, "id": self.id, "started": _now(), "weights": weights})


@dataclass(frozen=True)
class _Subfolder:
    run_folder: RunFolder
    name: str

    def __truediv__(self, name: str, /) -> Path:
        return self.run_folder.file(f"{self.name}/{name}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
