"""Final figures of a run, whatever its tasks: the steps from its weights to what it leaves."""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.ending import if_broken_off, left
from label_efficient.engine.history import read_history
from label_efficient.evaluation.calibration import calibration_of, fit_temperature, write_calibration
from label_efficient.evaluation.decisions import Decision, positive_index, saved_decision
from label_efficient.evaluation.metrics import MULTI_LABEL, confusion, one_class_remark, per_class, summary
from label_efficient.evaluation.outputs import Outcome
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.evaluation.thresholds import at_threshold, threshold_at_specificity
from label_efficient.files import sha256, versions, write_csv, write_json
from label_efficient.networks.weights import check_model_info, load_weights
from label_efficient.run_folder import RunFolder
from label_efficient.settings import Settings, SettingsError

logger = logging.getLogger(__name__)


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


@dataclass(kw_only=True, eq=False)
class RunEvaluation(ABC, Generic[OutcomeT]):
    """Evaluates the weights of a run and writes what a run leaves.

    Writes `metrics.json`, `predictions.csv`, `figures/` and `report.html` to the folder of the run.

    Args:
        data: The data set: `classes`, `splits` by name, `name`, `source`, `counts()`.
        network: A shipped network; gets the weights at `ckpt_path`.
        ckpt_path: Its weights, with a `.json` of the same name beside them.
        task: One of MedMNIST's task names, for the figures of the classes.
        amp: As of `autocast.half_precision`.
        calibrate: Whether to fit a temperature on validation and use it for all probabilities. If not, that of the
            weights is used, if they have one.
        target_specificity: For binary tasks: specificity at which the sensitivity is given; the threshold is chosen
            on validation, saved with the calibration, and decides from then on.
        positive_class: As of `decisions.positive_index`.
        operating_threshold: As of `decisions.saved_decision`.
    """

    unsaid: ClassVar[Mapping[str, Any]] = {}  # what the descriptions of earlier versions' weights do not say

    data: Any
    data_sha256: str
    network: Any
    ckpt_path: Path
    run_folder: RunFolder
    settings: Settings
    task: str
    device: Any = "cpu"
    amp: bool | str = False
    calibrate: bool = False
    target_specificity: float = 0.95
    positive_class: Any = None
    operating_threshold: float | None = None

    def __post_init__(self) -> None:
        self.ckpt_path, self.output_dir = Path(self.ckpt_path), self.run_folder.output_dir
        self.device = torch.device(self.device)
        self.multi_label = self.task == MULTI_LABEL
        self.temperature = 1.0
        self.operating_point: dict[str, Any] | None = None
        self.info: dict[str, Any] = {}
        self.decision = Decision(self.data.classes)

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
        if left[0].resume:
            if_broken_off(f"the training is complete and safe in {self.output_dir}, its evaluation is not", resume=True)
        else:
            if_broken_off("the weights are as they were, and the evaluation is not complete")
        expected = {"classes": self.data.classes} | self.expected_info()
        self.info = check_model_info(self.ckpt_path, expected, self.unsaid)
        load_weights(self.network, self.ckpt_path)
        self.run_folder.open()
        self.network.to(self.device).eval()
        raw = {name: self.at_temperature(self.outcome(name), 1.0) for name in self.sections()}
        self._calibrate(raw["val"])
        outcomes = {name: self.at_temperature(outcome, self.temperature) for name, outcome in raw.items()}
        self._warn(outcomes)
        metrics = self._metrics(outcomes)
        self.run_folder.forget("predictions.csv", "copies.csv", "report.html", "figures", "masks")  # of an earlier one
        write_json(self.run_folder.file("metrics.json"), metrics)
        if self.data.copies:
            write_csv(self.run_folder.file("copies.csv"), [copy.row() for copy in self.data.copies])
        if rows := self.rows(outcomes):
            write_csv(self.run_folder.file("predictions.csv"), rows)
        self.show(metrics)
        if metrics["chosen_epoch"] == 0:
            logger.warning(
                "no epoch was better on validation than the weights that the training started from: %s has these, "
                "unchanged. More images, more epochs or another learning_rate may help",
                self.ckpt_path,
            )
        logger.info("drawing the figures and writing the report")
        self.report(metrics, raw, outcomes)
        logger.info("report, figures, predictions and weights: %s", self.output_dir)
        logger.info(
            "next, on a folder of your images: python -m monai.bundle run --config_file %s --ckpt_path %s "
            "--dataset_dir FOLDER",
            os.path.relpath(Path(self.settings.bundle_root, "configs", "inference.json")),
            self.ckpt_path,
        )
        self.run_folder.close()
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
        """Set temperature, operating point and decision: fitted to validation, or those of weights fitted before."""
        if val.logits is None:
            return
        known, folder = val.known, self.run_folder.weights
        logits, targets = val.logits[known], val.targets[known]
        # Weights that were calibrated before are evaluated as inference uses them.
        record = {} if self.calibrate else calibration_of(self.ckpt_path, self.info)
        self.temperature = record["temperature"] if record else fit_temperature(logits, targets, self.multi_label)
        calibrated = self.at_temperature(val, self.temperature)
        task = self.info.get("task")
        positive = positive_index(self.positive_class, self.data.classes, task, self.info.get("positive_class"))
        self.decision = Decision(self.data.classes, positive)
        self.operating_point = record.get("operating_point")
        if self.operating_point is None and positive is not None and len(np.unique(targets)) == 2:
            probabilities = calibrated.probabilities[known]
            found = threshold_at_specificity(targets, probabilities, self.target_specificity, positive)
            self.operating_point = {
                "positive_class": self.data.classes[positive], **{k: v for k, v in found.items() if not math.isnan(v)},
                "target_specificity": self.target_specificity, "fitted_on": "validation",
            }  # fmt: skip
        elif self.operating_point and "target_specificity" in self.settings.changed:
            chosen_for = self.operating_point["target_specificity"]
            if chosen_for != self.target_specificity:
                raise SettingsError(
                    f"target_specificity={self.target_specificity} has no effect: the threshold in calibration.json "
                    f"is for {chosen_for}; calibrate=true chooses another"
                )
        if self.calibrate:
            before, after = (self.summary(outcome, known) for outcome in (val, calibrated))
            record = {"weights_sha256": sha256(self.ckpt_path), "temperature": self.temperature}
            record |= {"fitted_on": "validation", "n": len(targets)}
            for name in ("nll", "ece"):
                record |= {f"{name}_before": before[name], f"{name}_after": after[name]}
            if self.operating_point is not None:
                record["operating_point"] = self.operating_point
            write_calibration(folder.file("calibration.json"), record)
            if self.ckpt_path.parent.resolve() == folder.output_dir.resolve():
                said = {"temperature": self.temperature, "operating_point": record.get("operating_point")}
                model_info = folder.file(self.ckpt_path.with_suffix(".json").name)
                write_json(model_info, {**self.info, "calibration": said})
        self.decision = saved_decision(
            {**self.info, "classes": self.data.classes}, record, self.positive_class, self.operating_threshold
        )

    def _warn(self, outcomes: Mapping[str, OutcomeT]) -> None:
        """Say which class is the positive one, and what the figures hide."""
        positive, classes = self.decision.positive, self.data.classes
        if positive is not None and self.positive_class is None:
            logger.log(
                logging.INFO if self.data.name == "demo" else logging.WARNING,
                "sensitivity, specificity, precision and threshold are of %r: give positive_class=%r if that is what "
                "must not be missed", classes[positive], classes[1 - positive],
            )  # fmt: skip
        rules = [Decision(self.data.classes, self.decision.positive)]
        if self.decision.threshold is not None:
            rules.append(self.decision)
        for name, outcome in outcomes.items():
            for rule in rules if outcome.logits is not None and len(outcome.known) and not self.multi_label else ():
                targets, probabilities = self._pairs(outcome, None)
                if remark := one_class_remark(targets, rule(probabilities), self.data.classes):
                    logger.warning("%s, %s: %s", name, rule, remark)

    def summary(self, outcome: Outcome, members: np.ndarray | None = None) -> dict[str, Any]:
        """The figures of an outcome, or of some of its images, see `metrics.summary`."""
        positive = self.decision.positive if self.decision.positive is not None else 1
        return summary(*self._pairs(outcome, members), self.task, self.data.classes, positive)

    def operating_figures(self, outcomes: Mapping[str, OutcomeT]) -> dict[str, Any]:
        """Of a binary task: the operating point, what it reaches in every section, and what decides `pred`."""
        if self.operating_point is None:
            return {}
        point, classes = self.operating_point, self.data.classes
        positive = classes.index(point.get("positive_class", classes[1]))
        found = {
            name: at_threshold(*self._pairs(outcome, None), point["threshold"], positive)
            for name, outcome in outcomes.items()
            if name != "val" and outcome.logits is not None and len(outcome.known)
        }
        return {"operating_point": {"validation": point, **found, "decides": str(self.decision)}}

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
        about, about_data = self.about()
        return {
            "dataset": self.data.name,
            **about,
            "chosen_epoch": self.info.get("best_epoch"),
            **self.figures(outcomes),
            **self.operating_figures(outcomes),
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
            "weights_sha256": self.info.get("sha256"),
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
