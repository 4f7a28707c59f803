"""The history of a run: one row an epoch, as `history.csv` and in TensorBoard."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size
from label_efficient.files import read_csv, write_csv
from label_efficient.run_folder import RunFolder


@dataclass(kw_only=True, eq=False)
class History:
    """Adds a row for every epoch: the metrics as `train_...` and `val_...`, and the learning rate at its start.

    Weights that a training starts from have a row 0, of validation alone.

    Args as of `records.RunRecord`. Rank 0 writes.
    """

    run_folder: RunFolder
    optimizer: torch.optim.Optimizer
    validator: Engine
    val_interval: int
    rows: list[dict[str, Any]] = field(default_factory=list, init=False)
    learning_rate: float = field(default=0.0, init=False)
    _summary_writer: Any = field(default=None, init=False)
    _to_show: list[dict[str, Any]] = field(default_factory=list, init=False)

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after these rows."""
        self.rows = list(state["rows"])
        self._to_show.clear()

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the handlers whose metrics it records."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start_epoch(self, engine: Engine) -> None:
        self.learning_rate = self.optimizer.param_groups[0]["lr"]

    def __call__(self, engine: Engine) -> None:
        """Record the epoch that has just ended."""
        row = {"epoch": engine.state.epoch, **_scalars("train", engine.state.metrics)}
        # Not in the history, which two runs of one seed have the same to the last digit.
        speed = row.pop("train_images_per_second", None)
        if engine.state.epoch:
            row["learning_rate"] = self.learning_rate
        if engine.state.epoch % self.val_interval == 0:
            row |= _scalars("val", self.validator.state.metrics)
        self.rows.append(row)
        if rank_and_size()[0] == 0:
            write_csv(self.run_folder.file("history.csv"), self.rows)
            self._to_show.append(row if speed is None else row | {"train_images_per_second": speed})
            self._show()

    def _show(self) -> None:
        if self.run_folder.earlier is not None:
            return  # a writer cannot move to another folder
        if self._summary_writer is None:
            self._summary_writer = self._open_writer(self._to_show[0]["epoch"])
        for row in self._to_show:
            for name, value in row.items():
                if name != "epoch" and np.isfinite(value):
                    self._summary_writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self._to_show.clear()
        self._summary_writer.flush()

    def _open_writer(self, epoch: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        suffix = f".{self.run_folder.id}"
        folder = self.run_folder.file(f"tensorboard/{suffix}").parent
        writer = SummaryWriter(str(folder), purge_step=epoch if epoch > 1 else None, filename_suffix=suffix)
        writer.flush()
        self.run_folder.account.add(f"tensorboard/{path.name}" for path in folder.glob(f"*{suffix}"))
        return writer

    def _close(self, engine: Engine) -> None:
        if self._summary_writer is not None:
            self._summary_writer.close()
            self._summary_writer = None


def _scalars(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}_{name}": float(value) for name, value in metrics.items()}


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a `history.csv`, without its empty cells."""
    return [{k: float(v) for k, v in row.items() if v != ""} for row in read_csv(path)]
