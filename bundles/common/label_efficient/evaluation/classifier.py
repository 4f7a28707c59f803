"""Final figures of a classifier's run: validation and test, calibration, predictions."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from label_efficient.data.image_data import ImageData
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.log import table
from label_efficient.engine.output_dir import check_output_dir
from label_efficient.evaluation.calibration import fit_temperature, read_temperature, write_calibration
from label_efficient.evaluation.metrics import (
    BINARY,
    confusion,
    per_class,
    summary,
)
from label_efficient.evaluation.predictions import normalised_entropy, prediction_rows, write_predictions
from label_efficient.evaluation.thresholds import sensitivity_specificity, threshold_at_specificity
from label_efficient.files import read_json, versions, write_json
from label_efficient.networks.weights import check_model_info, load_weights
from label_efficient.settings import Settings

logger = logging.getLogger(__name__)

SHOWN = ("acc", "auc", "macro_f1", "balanced_accuracy", "quadratic_kappa", "sensitivity", "specificity", "ece", "n")


@dataclass
class Outcome:
    """What the network says of a split.

    Attributes:
        logits: N x K.
        targets: (N,), or N x K of 0 and 1.
        probabilities: N x K, of the logits at a temperature.
        uncertainty: (N,) in 0..1.
        own_uncertainty: Whether the uncertainty is the network's own, rather than the entropy of the probabilities.
    """

    logits: torch.Tensor
    targets: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray
    own_uncertainty: bool = False


class ClassifierEvaluation(ABC):
    """Evaluates the weights of a run on validation and test and writes what a run leaves.

    Writes `metrics.json`, `predictions.csv` (test), `figures/` and `report.html` to `output_dir`.

    Args:
        data: The data set.
        data_sha256: Its fingerprint.
        network: A shipped network; gets the weights at `ckpt_path`.
        ckpt_path: Its weights, with a `.json` of the same name beside them.
        ckpt_dir: Where `calibration.json` goes.
        output_dir: Folder of the run.
        settings: Of the run.
        device: Where to compute.
        amp: Whether to use half precision.
        calibrate: Whether to fit a temperature on validation and use it for all probabilities. If not, that of the
            weights is used, if they have one.
        target_specificity: For binary tasks: specificity at which the sensitivity is given; the threshold is chosen
            on validation.
    """

    def __init__(
        self,
        *,
        data: ImageData,
        data_sha256: str,
        network: torch.nn.Module,
        ckpt_path: str,
        ckpt_dir: str,
        output_dir: str,
        settings: Settings,
        device: str | torch.device = "cpu",
        amp: bool = False,
        calibrate: bool = False,
        target_specificity: float = 0.95,
    ) -> None:
        self.data = data
        self.data_sha256 = data_sha256
        self.network = network
        self.ckpt_path = Path(ckpt_path)
        self.calibration_path = Path(ckpt_dir) / "calibration.json"
        self.output_dir = Path(output_dir)
        self.settings = settings
        self.device = torch.device(device)
        self.amp = amp
        self.calibrate = calibrate
        self.target_specificity = target_specificity

    @abstractmethod
    def expected_info(self) -> dict[str, Any]:
        """What the description of the weights must say, beside the classes."""

    @abstractmethod
    def look(self, split: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits N x K of a split, and the network's own uncertainty (N,) if it has one."""

    @abstractmethod
    def last_weights(self, trained: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Weights of the shipped network, out of the content of a checkpoint."""

    @abstractmethod
    def report(self, metrics: Mapping[str, Any], raw: Outcome, calibrated: Outcome) -> None:
        """Draw the figures and write the report of the test images, before and after calibration."""

    def more_metrics(self) -> dict[str, Any]:
        """Further content of `metrics.json`."""
        return {}

    def more_tables(self, metrics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
        """Further tables for the log, each with a title."""
        return []

    def run(self) -> dict[str, Any] | None:
        """Evaluate and write; returns the content of `metrics.json` (None on the other ranks of a distributed run)."""
        if rank_and_size()[0] != 0:
            return None
        check_output_dir(self.output_dir)
        check_model_info(self.ckpt_path, {"classes": self.data.classes} | self.expected_info())
        load_weights(self.network, self.ckpt_path)
        val, test = (self._outcome(split) for split in ("val", "test"))
        temperature, operating_point = self._calibrate(val)
        calibrated = test
        if temperature != 1:
            val, calibrated = (self.at_temperature(o, temperature) for o in (val, test))
        metrics = self._metrics(val, calibrated, operating_point, temperature) | self.more_metrics()
        last = self._last_epoch(temperature)
        if last is not None:
            metrics["last_epoch"] = last
        write_json(self.output_dir / "metrics.json", metrics)
        rows = prediction_rows(
            files=self.data.splits["test"].files,
            classes=self.data.classes,
            probabilities=calibrated.probabilities,
            uncertainty=calibrated.uncertainty,
            multi_label=self.data.multi_label,
            labels=calibrated.targets,
        )
        write_predictions(self.output_dir / "predictions.csv", rows)
        self.report(metrics, test, calibrated)
        self._show(metrics)
        return metrics

    def _outcome(self, split: str) -> Outcome:
        logits, uncertainty = self.look(split)
        if not torch.isfinite(logits).all():
            raise ValueError(f"{self.ckpt_path}: the network's outputs on {split} are not finite; training diverged")
        known = np.empty(0) if uncertainty is None else uncertainty.numpy()
        outcome = Outcome(logits, self.data.splits[split].labels, np.empty(0), known, uncertainty is not None)
        return self.at_temperature(outcome, 1.0)

    def at_temperature(self, outcome: Outcome, temperature: float) -> Outcome:
        """The outcome with the probabilities of its logits at a temperature."""
        logits = outcome.logits.double() / temperature
        probabilities = torch.sigmoid(logits) if self.data.multi_label else torch.softmax(logits, dim=1)
        uncertainty = outcome.uncertainty
        if not outcome.own_uncertainty:
            uncertainty = normalised_entropy(probabilities, self.data.multi_label).numpy()
        return replace(outcome, probabilities=probabilities.numpy(), uncertainty=uncertainty)

    def _calibrate(self, val: Outcome) -> tuple[float, dict[str, Any] | None]:
        if self.calibrate:
            temperature = fit_temperature(val.logits, val.targets, self.data.multi_label)
        else:
            # Weights that were calibrated before are evaluated as inference uses them.
            temperature = read_temperature(self.ckpt_path)
        calibrated = self.at_temperature(val, temperature)
        operating_point = None
        if self.data.task == BINARY:
            point = threshold_at_specificity(val.targets, calibrated.probabilities, self.target_specificity)
            operating_point = {**point, "target_specificity": self.target_specificity, "fitted_on": "validation"}
        if not self.calibrate:
            return temperature, operating_point
        before, after = (self.summary(o) for o in (val, calibrated))
        write_calibration(
            self.calibration_path,
            temperature,
            fitted_on="validation",
            n=len(val.targets),
            nll_before=before["nll"],
            nll_after=after["nll"],
            ece_before=before["ece"],
            ece_after=after["ece"],
            operating_point=operating_point,
        )
        return temperature, operating_point

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """The figures of an outcome, see `_metrics.summary`."""
        return summary(outcome.targets, outcome.probabilities, self.data.task, self.data.classes)

    def _metrics(
        self, val: Outcome, test: Outcome, operating_point: Mapping[str, Any] | None, temperature: float
    ) -> dict[str, Any]:
        info = read_json(self.ckpt_path.with_suffix(".json"), "the description of the weights")
        metrics: dict[str, Any] = {
            "dataset": self.data.name,
            "task": self.data.task,
            "chosen_epoch": info.get("best_epoch"),
            "validation": self.summary(val),
            "test": self.summary(test),
            "test_per_class": per_class(test.targets, test.probabilities, self.data.task, self.data.classes),
            "test_confusion": confusion(
                test.targets, test.probabilities, self.data.task, len(self.data.classes)
            ).tolist(),
            "temperature": temperature,
        }
        if operating_point is not None:
            found = sensitivity_specificity(test.targets, test.probabilities, operating_point["threshold"])
            metrics["operating_point"] = {"validation": operating_point, "test": found}
        return metrics | {
            "seed": self.settings["seed"],
            "settings": self.settings,
            "versions": versions(),
            "data": {
                "source": self.data.source,
                "sha256": self.data_sha256,
                "classes": self.data.classes,
                "counts": self.data.counts(),
                "unlabelled": self.data.unlabelled,
            },
            "weights_sha256": info.get("sha256"),
        }

    def _last_epoch(self, temperature: float) -> dict[str, Any] | None:
        """Test figures of the last epoch beside the chosen one's: the choice decides how much of a gain is left."""
        path = self.output_dir / "checkpoint.pt"
        if not path.is_file() or self.ckpt_path.parent != self.output_dir:
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(self.last_weights(state))
        last = self.at_temperature(self._outcome("test"), temperature)
        load_weights(self.network, self.ckpt_path)
        return {"epoch": state["trainer"]["epoch"], "test": self.summary(last)}

    def _show(self, metrics: Mapping[str, Any]) -> None:
        columns = {"validation": metrics["validation"], "test": metrics["test"]}
        if "last_epoch" in metrics:
            columns[f"test, last epoch ({metrics['last_epoch']['epoch']})"] = metrics["last_epoch"]["test"]
        rows = [
            {"figure": name, **{column: values[name] for column, values in columns.items()}}
            for name in SHOWN
            if name in metrics["test"]
        ]
        chosen = metrics["chosen_epoch"]
        logger.info("figures of epoch %s, chosen on validation AUC:\n%s", chosen, table(rows, as_text))
        if "operating_point" in metrics:
            point, found = metrics["operating_point"]["validation"], metrics["operating_point"]["test"]
            logger.info(
                "at the threshold %.4f, chosen on validation for a specificity of %.2f: test sensitivity %.4f, "
                "specificity %.4f",
                point["threshold"],
                point["target_specificity"],
                found["sensitivity"],
                found["specificity"],
            )
        for title, rows in self.more_tables(metrics):
            logger.info("%s:\n%s", title, table(rows, as_text))
        logger.info("report, figures, predictions and weights: %s", self.output_dir)
        logger.info(
            "next, on a folder of your images: python -m monai.bundle run --config_file %s --ckpt_path %s "
            "--dataset_dir FOLDER",
            os.path.relpath(Path(self.settings.bundle_root, "configs", "inference.json")),
            self.ckpt_path,
        )


def as_text(value: Any) -> str:
    """A figure as it stands in a table of the log."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
