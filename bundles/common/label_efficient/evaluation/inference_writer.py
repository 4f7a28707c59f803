"""Inference on image files: what every bundle's handler collects and writes."""

import errno
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events

from label_efficient.engine.ending import if_broken_off
from label_efficient.engine.log import log_to_file
from label_efficient.engine.progress import Bar
from label_efficient.evaluation.decisions import Decision
from label_efficient.evaluation.predictions import prediction_rows
from label_efficient.files import printable, write_csv
from label_efficient.output_names import picture_names
from label_efficient.run_folder import RunFolder
from label_efficient.settings import Settings

logger = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # the next image would have none either
NOT_FINITE = "the network's output is not finite: its training diverged, or amp is too coarse for it"


@dataclass(kw_only=True, eq=False)
class InferenceWriter(ABC):
    """Handler of the evaluator that writes `predictions.csv`, a report, and an image's own files while it runs.

    An image's files (overlays, masks) are written in threads, once for a file that the list names twice. Of an image
    whose files cannot be written the row says so. An earlier run in the folder is replaced once there is a prediction.

    Args:
        classes: Names of the K classes; empty without any.
        decision: How `pred` follows from their probabilities.
        num_workers: Threads that write, at least one.
        contact_sheet: Number of least certain images in `figures/least_certain.png`; 0 for none.
    """

    run_folder: RunFolder
    classes: Sequence[str]
    decision: Decision
    settings: Settings
    multi_label: bool = False
    num_workers: int = 0
    contact_sheet: int = 24

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(max(self.num_workers, 1))
        self.pending: deque[tuple[int, Future[Any]]] = deque()
        self.names: dict[str, str] = {}
        self.files: list[str] = []
        self.paths: list[str] = []
        self.errors: list[str] = []
        self.first: dict[str, int] = {}  # place of a readable file; a list may name it twice
        self.probabilities: list[torch.Tensor] = []
        self.uncertainty: list[float] = []

    @staticmethod
    def name_files(files: Sequence[str]) -> dict[str, str]:
        """Names of the files that are written for image files."""
        return picture_names(files)

    @abstractmethod
    def interpret(self, output: Mapping[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The evaluator's output to probabilities B x K (None without classes) and uncertainty (B,), on the CPU."""

    def job(self, index: int, place: int, batch: Mapping[str, Any]) -> Callable[[], Any] | None:
        """What writes an image's own files, in a thread: the image at `place` of the batch, `index` of all."""
        return None

    def complete(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of `predictions.csv` with what the bundle adds; it writes its other tables here, and remarks on them."""
        return rows

    @abstractmethod
    def report(self, rows: list[dict[str, Any]], bad: list[tuple[str, str]]) -> None:
        """Write `report.html`, given the rows, and the files without a prediction and why."""

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator, after its postprocessing."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        log_to_file(self.run_folder.file("inference.log"))
        loader: Any = engine.state.dataloader
        self.names = self.name_files([item["file"] for item in loader.dataset.data])
        logger.info("%d files, %s", len(loader.dataset), self.settings["ckpt_path"])
        if self.classes and not self.multi_label:
            logger.info("%s", self.decision)
        self.bar = Bar("inference", len(loader.dataset))

    def __call__(self, engine: Engine) -> None:
        """Keep the predictions of a batch, and have its files written; one that is not finite is its image's error."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        probabilities, uncertainty = self.interpret(output)
        finite = torch.isfinite(uncertainty if probabilities is None else probabilities.sum(dim=1) + uncertainty)
        errors = [error or ("" if fine else NOT_FINITE) for error, fine in zip(batch["error"], finite, strict=True)]
        if probabilities is not None:
            self.probabilities.append(probabilities)
        self.uncertainty += uncertainty.tolist()
        self.files += batch["file"]
        self.paths += batch["path"]
        self.errors += errors
        for place, (file, error) in enumerate(zip(batch["file"], errors, strict=True)):
            if error or file in self.first:
                continue
            self.first[file] = index = len(self.files) - len(batch["file"]) + place
            if (job := self.job(index, place, batch)) is not None:
                self.pending.append((index, self.pool.submit(self._do, index, job)))
        self.bar.to(len(self.files))
        some = f"{len(self.files)} of {self.bar.total} images were predicted"
        if_broken_off(f"{some}, and none of it is kept: predictions.csv is written at the end")
        # Bounded: where writing is slower than the network, the network waits.
        while len(self.pending) > len(batch["file"]):
            self.collect()

    def collect(self) -> tuple[int, Any]:
        """Wait for the oldest job; which image it was of, and what it returned, None if it failed."""
        index, task = self.pending.popleft()
        result = task.result()
        if self.errors[index]:
            del self.first[self.files[index]]
        return index, result

    def _do(self, index: int, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in _NO_ROOM:
                raise
            self.errors[index] = f"its files cannot be written: {error}"
            return None

    def least_certain(self, count: int) -> list[int]:
        """Places of the least certain images, the least certain first."""
        return sorted(self.first.values(), key=lambda index: -self.uncertainty[index])[:count]

    def _finish(self, engine: Engine) -> None:
        self.bar.close()
        logger.info("writing the predictions and the report")
        while self.pending:
            self.collect()
        self.pool.shutdown()
        # The report reads images again: those of the last batch need not be there, too.
        engine.state.batch = engine.state.output = None
        rows = prediction_rows(
            files=self.files,
            classes=self.classes,
            probabilities=torch.cat(self.probabilities).numpy() if self.probabilities else None,
            uncertainty=self.uncertainty,
            multi_label=self.multi_label,
            errors=self.errors,
            decide=self.decision,
        )
        rows = self.complete(rows)
        write_csv(self.run_folder.file("predictions.csv"), rows)
        bad = [(printable(file), error) for file, error in zip(self.files, self.errors, strict=True) if error]
        if len(bad) < len(rows):
            self.run_folder.complete()
        for file, error in bad:
            logger.warning("no prediction for %s: %s", file, error)
        self.report(rows, bad)
        folder = self.run_folder.output_dir
        logger.info("%d predictions, %d files without: %s", len(rows) - len(bad), len(bad), folder)
        self.run_folder.close()
        if len(bad) == len(rows):
            raise ValueError(f"none of the {len(rows)} files has a prediction; the first: {bad[0][1]}")
