"""Final figures of a run: validation and test, calibration, predictions, figures and the report."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ._calibration import fit_temperature, read_temperature, write_calibration
from ._common import Settings, read_json, versions, write_json
from ._metrics import BINARY, confusion, per_class, sensitivity_specificity, summary, threshold_at_specificity
from ._predictions import normalised_entropy, prediction_rows, write_predictions
from ._records import rank_and_size, read_history, table
from ._weights import load_weights
from .batches import EpochBatches, ImageSet
from .data import ImageData
from .run_report import write_run_report
from .shipped import predict, shipped_weights
from .transforms import PrepareBatch

logger = logging.getLogger(__name__)

SHOWN = ("acc", "auc", "macro_f1", "balanced_accuracy", "quadratic_kappa", "sensitivity", "specificity", "ece", "n")


@dataclass
class Outcome:
    """What the network says of a split: logits N x K, probabilities N x K, targets, uncertainty (N,) in 0..1."""

    logits: torch.Tensor
    probabilities: np.ndarray
    targets: np.ndarray
    uncertainty: np.ndarray


class Evaluation:
    """Evaluates the weights of a run on validation and test and writes what a run leaves.

    Writes `metrics.json`, `predictions.csv` (test), `figures/` and `report.html` to `output_dir`.

    Args:
        data: The data set.
        data_sha256: Its fingerprint.
        network: A shipped network, see `shipped.build_shipped`; gets the weights at `ckpt_path`.
        ckpt_path: Its weights, with a `.json` of the same name beside them.
        preprocess: As in training.
        output_dir: Folder of the run.
        settings: Of the run.
        node_names: Names of the trained network's output nodes, for the figure of beta.
        device: Where to compute.
        amp: Whether to use half precision on a GPU.
        calibrate: Whether to fit a temperature on validation and use it for all probabilities. If not, that of the
            weights is used, if they have one.
        ckpt_dir: Where `calibration.json` goes.
        target_specificity: For binary tasks: specificity at which the sensitivity is given; the threshold is chosen
            on validation.
        max_beta_ratio: Largest ratio of two betas that the variant can reach, or None; for the figure.
    """

    def __init__(
        self,
        *,
        data: ImageData,
        data_sha256: str,
        network: torch.nn.Module,
        ckpt_path: str,
        ckpt_dir: str,
        preprocess: Any,
        output_dir: str,
        settings: Settings,
        node_names: tuple[str, ...],
        device: str | torch.device = "cpu",
        amp: bool = False,
        calibrate: bool = False,
        target_specificity: float = 0.95,
        max_beta_ratio: float | None = None,
    ) -> None:
        self.data = data
        self.data_sha256 = data_sha256
        self.network = network
        self.ckpt_path = Path(ckpt_path)
        self.calibration_path = Path(ckpt_dir) / "calibration.json"
        self.prepare_batch = PrepareBatch(preprocess)
        self.preprocess = preprocess
        self.output_dir = Path(output_dir)
        self.settings = settings
        self.node_names = node_names
        self.device = torch.device(device)
        self.amp = amp
        self.calibrate = calibrate
        self.target_specificity = target_specificity
        self.max_beta_ratio = max_beta_ratio

    def run(self) -> dict[str, Any] | None:
        """Evaluate and write; returns the content of `metrics.json` (None on the other ranks of a distributed run)."""
        if rank_and_size()[0] != 0:
            return None
        self._check_model_info()
        load_weights(self.network, self.ckpt_path)
        val, test = (self._outcome(split) for split in ("val", "test"))
        temperature, operating_point = self._calibrate(val)
        calibrated = test
        if temperature != 1:
            val, calibrated = (self._at_temperature(o, temperature) for o in (val, test))
        metrics = self._metrics(val, calibrated, operating_point, temperature)
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
        self._report(metrics, test, calibrated)
        self._show(metrics)
        return metrics

    def _check_model_info(self) -> None:
        info_path = self.ckpt_path.with_suffix(".json")
        if not info_path.is_file():
            raise FileNotFoundError(
                f"ckpt_path: {info_path} is missing: it says which classes and settings {self.ckpt_path.name} was "
                "trained with. Train first, or keep the two files together"
            )
        info = read_json(info_path, "the description of the weights")
        differing = [
            f"{name} was {info.get(name)!r} and is {now!r}"
            for name, now in {
                "classes": self.data.classes,
                "image_size": self.settings["image_size"],
                "mean": list(self.settings["mean"]),
                "std": list(self.settings["std"]),
                "keep_aspect": self.settings["keep_aspect"],
            }.items()
            if info.get(name) != now
        ]
        if differing:
            raise ValueError(f"{self.ckpt_path} was trained otherwise: {'; '.join(differing)}")

    def _outcome(self, split: str, network: torch.nn.Module | None = None) -> Outcome:
        part = self.data.splits[split]
        batches = EpochBatches(len(part), self.settings["batch_size"], shuffle=False)
        loader = DataLoader(ImageSet(part, self.preprocess), batch_size=None, sampler=batches)
        logits, disagreement = predict(
            network or self.network, loader, prepare_batch=self.prepare_batch, device=self.device, amp=self.amp
        )
        if not torch.isfinite(logits).all():
            raise ValueError(f"{self.ckpt_path}: the network's outputs on {split} are not finite; training diverged")
        outcome = Outcome(logits, np.empty(0), part.labels, np.empty(0))
        return self._at_temperature(outcome, 1.0, disagreement)

    def _at_temperature(
        self, outcome: Outcome, temperature: float, disagreement: torch.Tensor | None = None
    ) -> Outcome:
        logits = outcome.logits.double() / temperature
        probabilities = torch.sigmoid(logits) if self.data.multi_label else torch.softmax(logits, dim=1)
        keeps_nodes = disagreement is not None or self.settings["keep_nodes"]
        if disagreement is not None:
            uncertainty = disagreement.numpy()
        elif keeps_nodes:
            uncertainty = outcome.uncertainty
        else:
            uncertainty = normalised_entropy(probabilities, self.data.multi_label).numpy()
        return Outcome(outcome.logits, probabilities.numpy(), outcome.targets, uncertainty)

    def _calibrate(self, val: Outcome) -> tuple[float, dict[str, Any] | None]:
        if self.calibrate:
            temperature = fit_temperature(val.logits, val.targets, self.data.multi_label)
        else:
            # Weights that were calibrated before are evaluated as inference uses them.
            temperature = read_temperature(self.ckpt_path)
        calibrated = self._at_temperature(val, temperature)
        operating_point = None
        if self.data.task == BINARY:
            point = threshold_at_specificity(val.targets, calibrated.probabilities, self.target_specificity)
            operating_point = {**point, "target_specificity": self.target_specificity, "fitted_on": "validation"}
        if not self.calibrate:
            return temperature, operating_point
        before, after = (self._summary(o) for o in (val, calibrated))
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

    def _summary(self, outcome: Outcome) -> dict[str, float]:
        return summary(outcome.targets, outcome.probabilities, self.data.task, self.data.classes)

    def _metrics(
        self, val: Outcome, test: Outcome, operating_point: Mapping[str, Any] | None, temperature: float
    ) -> dict[str, Any]:
        info = read_json(self.ckpt_path.with_suffix(".json"), "the description of the weights")
        metrics: dict[str, Any] = {
            "dataset": self.data.name,
            "task": self.data.task,
            "chosen_epoch": info.get("best_epoch"),
            "validation": self._summary(val),
            "test": self._summary(test),
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
        self.network.load_state_dict(shipped_weights(state["model"], self.settings["keep_nodes"]))
        last = self._at_temperature(self._outcome("test"), temperature)
        load_weights(self.network, self.ckpt_path)
        return {"epoch": state["trainer"]["epoch"], "test": self._summary(last)}

    def _report(self, metrics: dict[str, Any], raw: Outcome, test: Outcome) -> None:
        history_path = self.output_dir / "history.csv"
        write_run_report(
            self.output_dir,
            data=self.data,
            settings=self.settings,
            metrics=metrics,
            probabilities=test.probabilities,
            raw_probabilities=raw.probabilities,
            uncertainty=test.uncertainty,
            history=read_history(history_path) if history_path.is_file() else [],
            node_names=self.node_names,
            max_beta_ratio=self.max_beta_ratio,
            picture=ImageSet(self.data.splits["test"], self.preprocess).image,
        )

    def _show(self, metrics: Mapping[str, Any]) -> None:
        columns = {"validation": metrics["validation"], "test": metrics["test"]}
        if "last_epoch" in metrics:
            columns[f"test, last epoch ({metrics['last_epoch']['epoch']})"] = metrics["last_epoch"]["test"]
        rows = [
            {"figure": name, **{column: values[name] for column, values in columns.items()}}
            for name in SHOWN
            if name in metrics["test"]
        ]
        write: Callable[[Any], str] = lambda v: f"{v:.4f}" if isinstance(v, float) else str(v)  # noqa: E731
        chosen = metrics["chosen_epoch"]
        logger.info("figures of epoch %s, chosen on validation AUC:\n%s", chosen, table(rows, write))
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
        logger.info("report, figures, predictions and weights: %s", self.output_dir)
        logger.info(
            "next, on a folder of your images: python -m monai.bundle run --config_file %s --ckpt_path %s "
            "--dataset_dir FOLDER",
            Path(os.path.relpath(Path(__file__).parents[1] / "configs" / "inference.json")),
            self.ckpt_path,
        )
