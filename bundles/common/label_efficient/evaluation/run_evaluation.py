"""Final figures of a run, whatever its tasks: the steps from its weights to what it leaves."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.history import read_history
from label_efficient.engine.log import table
from label_efficient.engine.output_dir import check_output_dir
from label_efficient.evaluation.calibration import fit_temperature, read_temperature, write_calibration
from label_efficient.evaluation.metrics import BINARY, MULTI_LABEL, confusion, per_class, summary
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.evaluation.thresholds import threshold_at_specificity
from label_efficient.files import read_json, versions, write_csv, write_json
from label_efficient.networks.weights import check_model_info, load_weights
from label_efficient.settings import Settings

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What the network says of a section of the data.

    Attributes:
        logits: N x K, or None of a network without classes.
        targets: (N,), or N x K of 0 and 1.
        probabilities: N x K, of the logits at a temperature; empty until then, and without logits.
        uncertainty: (N,) in 0..1.
        own_uncertainty: Whether the uncertainty is the network's own, rather than the entropy of the probabilities.
        found: What else the network says, by name, an image a row.
    """

    logits: torch.Tensor | None
    targets: np.ndarray
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    uncertainty: np.ndarray = field(default_factory=lambda: np.empty(0))
    own_uncertainty: bool = False
    found: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def known(self) -> np.ndarray:
        """Positions of the images with a class."""
        return np.arange(len(self.targets))


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


@dataclass(kw_only=True, eq=False)
class RunEvaluation(ABC, Generic[OutcomeT]):
    """Evaluates the weights of a run and writes what a run leaves.

    Writes `metrics.json`, `predictions.csv`, `figures/` and `report.html` to `output_dir`.

    Args:
        data: The data set: `classes`, `splits` by name, `name`, `source`, `counts()`.
        network: A shipped network; gets the weights at `ckpt_path`.
        ckpt_path: Its weights, with a `.json` of the same name beside them.
        ckpt_dir: Where `calibration.json` goes.
        task: One of MedMNIST's task names, for the figures of the classes.
        amp: As of `autocast.half_precision`.
        calibrate: Whether to fit a temperature on validation and use it for all probabilities. If not, that of the
            weights is used, if they have one.
        target_specificity: For binary tasks: specificity at which the sensitivity is given; the threshold is chosen
            on validation. None for no threshold.
    """

    data: Any
    data_sha256: str
    network: Any
    ckpt_path: Path
    ckpt_dir: str
    output_dir: Path
    settings: Settings
    task: str
    device: Any = "cpu"
    amp: bool | str = False
    calibrate: bool = False
    target_specificity: float | None = None

    def __post_init__(self) -> None:
        self.ckpt_path, self.output_dir = Path(self.ckpt_path), Path(self.output_dir)
        self.device = torch.device(self.device)
        self.multi_label = self.task == MULTI_LABEL
        self.temperature = 1.0
        self.operating_point: dict[str, Any] | None = None

    @abstractmethod
    def expected_info(self) -> dict[str, Any]:
        """What the description of the weights must say, beside the classes."""

    def sections(self) -> list[str]:
        """Sections of the data that are evaluated; the first is `val`."""
        return ["val", "test"]

    @abstractmethod
    def outcome(self, section: str) -> OutcomeT:
        """What the network says of a section; probabilities are filled in by `at_temperature`."""

    @abstractmethod
    def figures(self, outcomes: Mapping[str, OutcomeT]) -> dict[str, Any]:
        """The figures for `metrics.json`."""

    @abstractmethod
    def about(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `metrics.json` says of the run after the data set's name, and at the end of its `data`."""

    @abstractmethod
    def rows(self, outcomes: Mapping[str, OutcomeT]) -> list[dict[str, Any]]:
        """The rows of `predictions.csv`."""

    @abstractmethod
    def report(self, metrics: Mapping[str, Any], raw: Mapping[str, OutcomeT], outcomes: Mapping[str, OutcomeT]) -> None:
        """Draw the figures and write the report, of the outcomes before and after calibration."""

    @abstractmethod
    def show(self, metrics: Mapping[str, Any]) -> None:
        """Log the tables of the figures."""

    def run(self) -> dict[str, Any] | None:
        """Evaluate and write; returns the content of `metrics.json` (None on the other ranks of a distributed run)."""
        if rank_and_size()[0] != 0:
            return None
        check_output_dir(self.output_dir)
        check_model_info(self.ckpt_path, {"classes": self.data.classes} | self.expected_info())
        load_weights(self.network, self.ckpt_path)
        self.network.to(self.device).eval()
        raw = {name: self.at_temperature(self.outcome(name), 1.0) for name in self.sections()}
        self._calibrate(raw["val"])
        outcomes = {name: self.at_temperature(outcome, self.temperature) for name, outcome in raw.items()}
        metrics = self._metrics(outcomes)
        write_json(self.output_dir / "metrics.json", metrics)
        if rows := self.rows(outcomes):
            write_csv(self.output_dir / "predictions.csv", rows)
        self.report(metrics, raw, outcomes)
        self.show(metrics)
        if metrics["chosen_epoch"] == 0:
            logger.warning(
                "no epoch was better on validation than the weights that the training started from: %s has these, "
                "unchanged. More images, more epochs or another learning_rate may help",
                self.ckpt_path,
            )
        logger.info("report, figures, predictions and weights: %s", self.output_dir)
        logger.info(
            "next, on a folder of your images: python -m monai.bundle run --config_file %s --ckpt_path %s "
            "--dataset_dir FOLDER",
            os.path.relpath(Path(self.settings.bundle_root, "configs", "inference.json")),
            self.ckpt_path,
        )
        return metrics

    def at_temperature(self, outcome: OutcomeT, temperature: float) -> OutcomeT:
        """The outcome with the probabilities of its logits at a temperature."""
        if outcome.logits is None:
            return outcome
        logits = outcome.logits.double() / temperature
        probabilities = torch.sigmoid(logits) if self.multi_label else torch.softmax(logits, dim=1)
        uncertainty = outcome.uncertainty
        if not outcome.own_uncertainty:
            uncertainty = normalised_entropy(probabilities, self.multi_label).numpy()
        return replace(outcome, probabilities=probabilities.numpy(), uncertainty=uncertainty)

    def check_finite(self, outputs: torch.Tensor, section: str) -> None:
        """Refuse outputs of broken weights: a ValueError if one is NaN or infinite."""
        if not torch.isfinite(outputs).all():
            raise ValueError(f"{self.ckpt_path}: the network's outputs on {section} are not finite; training diverged")

    def _calibrate(self, val: OutcomeT) -> None:
        if val.logits is None:
            return
        known = val.known
        logits, targets = val.logits[known], val.targets[known]
        if self.calibrate:
            self.temperature = fit_temperature(logits, targets, self.multi_label)
        else:
            # Weights that were calibrated before are evaluated as inference uses them.
            self.temperature = read_temperature(self.ckpt_path)
        calibrated = self.at_temperature(val, self.temperature)
        if self.task == BINARY and self.target_specificity is not None:
            point = threshold_at_specificity(targets, calibrated.probabilities[known], self.target_specificity)
            self.operating_point = {
                **point, "target_specificity": self.target_specificity, "fitted_on": "validation",
            }  # fmt: skip
        if self.calibrate:
            before, after = (self.summary(outcome, known) for outcome in (val, calibrated))
            record: dict[str, Any] = {"temperature": self.temperature, "fitted_on": "validation", "n": len(targets)}
            for name in ("nll", "ece"):
                record |= {f"{name}_before": before[name], f"{name}_after": after[name]}
            if self.operating_point is not None:
                record["operating_point"] = self.operating_point
            write_calibration(Path(self.ckpt_dir, "calibration.json"), record)

    def summary(self, outcome: Outcome, members: np.ndarray | None = None) -> dict[str, float]:
        """The figures of an outcome, or of some of its images, see `metrics.summary`."""
        return summary(*self._pairs(outcome, members), self.task, self.data.classes)

    def by_class(self, outcome: Outcome, members: np.ndarray | None = None) -> dict[str, Any]:
        """`per_class` and `confusion` of an outcome, or of some of its images, see `metrics`."""
        pairs = self._pairs(outcome, members)
        rows = per_class(*pairs, self.task, self.data.classes)
        return {"per_class": rows, "confusion": confusion(*pairs, self.task).tolist()}

    @staticmethod
    def _pairs(outcome: Outcome, members: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        chosen = outcome.known if members is None else members
        return outcome.targets[chosen], outcome.probabilities[chosen]

    def _metrics(self, outcomes: Mapping[str, OutcomeT]) -> dict[str, Any]:
        info = read_json(self.ckpt_path.with_suffix(".json"), "the description of the weights")
        about, about_data = self.about()
        return {
            "dataset": self.data.name,
            **about,
            "chosen_epoch": info.get("best_epoch"),
            **self.figures(outcomes),
            "seed": self.settings["seed"],
            "settings": self.settings,
            "versions": versions(),
            "data": {
                "source": self.data.source,
                "sha256": self.data_sha256,
                "classes": self.data.classes,
                "counts": self.data.counts(),
                **about_data,
            },
            "weights_sha256": info.get("sha256"),
            **self.more_metrics(outcomes),
        }

    def more_metrics(self, outcomes: Mapping[str, OutcomeT]) -> dict[str, Any]:
        """Further content of `metrics.json`, at its end."""
        return {}

    def reported(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What every report begins with: `history` has the rows of the run's `history.csv`, if it is there."""
        path = self.output_dir / "history.csv"
        history = read_history(path) if path.is_file() else []
        return {"data": self.data, "settings": self.settings, "metrics": metrics, "history": history}


def show_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows as a table, if there are any; figures with four digits."""
    if rows:
        logger.info("%s:\n%s", title, table(rows, lambda v: f"{v:.4f}" if isinstance(v, float) else str(v)))


def side_by_side(
    names: Sequence[str], columns: Mapping[str, Mapping[str, Any]], head: str = "figure"
) -> list[dict[str, Any]]:
    """Rows of a table: a figure a row, under `head` its name, as far as a column has it."""
    return [
        {head: name, **{column: values.get(name, "") for column, values in columns.items()}}
        for name in names
        if any(name in values for values in columns.values())
    ]
