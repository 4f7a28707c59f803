"""Final figures of a run: both tasks on validation, test and other hospitals; predictions, masks and the report."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from label_efficient.data.mask_files import read_mask
from label_efficient.engine.autocast import AutocastInferer
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.history import read_history
from label_efficient.engine.log import table
from label_efficient.engine.output_dir import check_output_dir
from label_efficient.evaluation.calibration import fit_temperature, read_temperature, write_calibration
from label_efficient.evaluation.metrics import BINARY, confusion, per_class, summary
from label_efficient.evaluation.predictions import normalised_entropy, prediction_rows
from label_efficient.files import read_json, versions, write_csv, write_json
from label_efficient.networks.weights import check_model_info, load_weights
from label_efficient.settings import Settings

from .data import ChestData, Part
from .losses import UNKNOWN
from .mask_metrics import mask_scores, summarise
from .mask_output import read_grid
from .outcomes import Outcome, all_probabilities, class_probabilities, mask_uncertainty, write_masks
from .run_report import write_run_report
from .shipped import ShippedMultiMix, split_output
from .streams import PartSet
from .transforms import Preprocess, to_input

logger = logging.getLogger(__name__)

SHOWN_CLASS = ("acc", "auc", "macro_f1", "sensitivity", "specificity", "ece", "n")
SHOWN_MASK = ("dice", "jaccard", "ssim", "average_hausdorff", "hd95", "precision", "recall", "n")
METRICS_KEYS = {"val": "validation", "test": "test", "cross_domain": "cross_domain"}  # in metrics.json


class Evaluation:
    """Evaluates the weights of a run and writes what a run leaves.

    Writes `metrics.json`, `predictions.csv` (test and other hospitals), `figures/`, `report.html`, and with
    `write_masks` the predicted masks, to `output_dir`.

    Args:
        data: The data set.
        data_sha256: Its fingerprint.
        network: A `ShippedMultiMix`; gets the weights at `ckpt_path`.
        ckpt_path: Its weights, with a `.json` of the same name beside them.
        ckpt_dir: Where `calibration.json` goes.
        preprocess: As in training; brings masks back to the size of the pictures.
        output_dir: Folder of the run.
        settings: Of the run.
        device: Where to compute.
        amp: Whether to use half precision.
        calibrate: Whether to fit a temperature on validation and use it for all class probabilities. If not, that of
            the weights is used, if they have one.
        write_masks: Whether to write the predicted masks of test and other hospitals to `masks/`.
    """

    def __init__(
        self,
        *,
        data: ChestData,
        data_sha256: str,
        network: ShippedMultiMix,
        ckpt_path: str,
        ckpt_dir: str,
        preprocess: Preprocess,
        output_dir: str,
        settings: Settings,
        device: str | torch.device = "cpu",
        amp: bool | str = False,
        calibrate: bool = False,
        write_masks: bool = False,
    ) -> None:
        self.data = data
        self.data_sha256 = data_sha256
        self.network = network
        self.ckpt_path = Path(ckpt_path)
        self.calibration_path = Path(ckpt_dir) / "calibration.json"
        self.preprocess = preprocess
        self.output_dir = Path(output_dir)
        self.settings = settings
        self.device = torch.device(device)
        self.amp = amp
        self.calibrate = calibrate
        self.write_masks = write_masks
        self.task = BINARY if len(data.classes) == 2 else "multi-class"

    def run(self) -> dict[str, Any] | None:
        """Evaluate and write; returns the content of `metrics.json` (None on the other ranks of a distributed run)."""
        if rank_and_size()[0] != 0:
            return None
        check_output_dir(self.output_dir)
        expected = {"bundle": "multimix", "classes": self.data.classes}
        expected |= {name: self.settings[name] for name in ("method", "image_size", "keep_aspect")}
        check_model_info(self.ckpt_path, expected)
        load_weights(self.network, self.ckpt_path)
        self.network.to(self.device).eval()
        parts = {name: self.data.splits[name] for name in METRICS_KEYS if len(self.data.splits[name])}
        outcomes = {name: self._outcome(part) for name, part in parts.items()}
        temperature = self._temperature(outcomes["val"], parts["val"])
        metrics = self._metrics(parts, outcomes, temperature)
        write_json(self.output_dir / "metrics.json", metrics)
        rows = [
            row for name in parts if name != "val" for row in self._rows(name, parts[name], outcomes[name], temperature)
        ]
        if rows:
            write_csv(self.output_dir / "predictions.csv", rows)
        if self.write_masks:
            write_masks(
                self.output_dir / "masks",
                {name: parts[name] for name in parts if name != "val"},
                outcomes,
                self.preprocess,
                self.settings["num_workers"],
            )
        history_path = self.output_dir / "history.csv"
        write_run_report(
            self.output_dir,
            data=self.data,
            settings=self.settings,
            metrics=metrics,
            parts=parts,
            outcomes=outcomes,
            probabilities=all_probabilities(outcomes, temperature),
            raw_probabilities=all_probabilities(outcomes, 1.0),
            network=self.network,
            device=self.device,
            history=read_history(history_path) if history_path.is_file() else [],
        )
        self._show(metrics)
        return metrics

    def _outcome(self, part: Part) -> Outcome:
        logits: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        outcome, inferer = Outcome(None, None), AutocastInferer(amp=self.amp)
        for positions, image in self._batches(part):
            with torch.no_grad():
                pred = inferer(image, self.network)
            if not torch.isfinite(pred).all():
                raise ValueError(f"{self.ckpt_path}: the network's outputs are not finite; training diverged")
            mask_logits, class_logits = split_output(pred.cpu(), self.settings["method"])
            if class_logits is not None:
                logits.append(class_logits.clone())
            if mask_logits is not None:
                masks.append(torch.sigmoid(mask_logits[:, 0]))
                for index, position in enumerate(positions):
                    if part.mask_rows[position] >= 0:
                        outcome.mask_rows[position] = self._mask_figures(part, position, masks[-1][index])
        outcome.logits = torch.cat(logits) if logits else None
        outcome.masks = torch.cat(masks) if masks else None
        return outcome

    def _batches(self, part: Part) -> Iterator[tuple[list[int], torch.Tensor]]:
        dataset = PartSet(part)
        for positions in BatchSampler(range(len(part)), 4 * self.settings["batch_size"], drop_last=False):
            yield positions, to_input(dataset[positions]["image"], self.device)

    def _mask_figures(self, part: Part, position: int, probabilities: torch.Tensor) -> dict[str, float]:
        """Figures of one image at the size of its reference mask, as stored on disk."""
        entry = part.entries[position]
        if entry.masks:
            reference = read_mask(entry.masks, entry.mask_values)
            probabilities = self.preprocess.restore(probabilities, *reference.shape)
        else:
            reference = part.masks[part.mask_rows[position]] == 1
        spacing = entry.spacing or (read_grid(entry.image).spacing if entry.image.is_file() else None)
        return mask_scores((probabilities > 0.5).numpy(), reference, spacing)

    def _temperature(self, outcome: Outcome, part: Part) -> float:
        if outcome.logits is None:
            return 1.0
        if not self.calibrate:
            # Weights that were calibrated before are evaluated as inference uses them.
            return read_temperature(self.ckpt_path)
        logits, targets = outcome.logits[part.labelled], part.labels[part.labelled]
        temperature = fit_temperature(logits, targets)
        before, after = (self._class_summary(logits, targets, t) for t in (1.0, temperature))
        write_calibration(
            self.calibration_path,
            temperature,
            fitted_on="validation",
            n=len(targets),
            nll_before=before["nll"],
            nll_after=after["nll"],
            ece_before=before["ece"],
            ece_after=after["ece"],
        )
        return temperature

    def _class_summary(self, logits: torch.Tensor, targets: np.ndarray, temperature: float) -> dict[str, float]:
        return summary(targets, class_probabilities(logits, temperature), self.task, self.data.classes)

    def _metrics(
        self, parts: Mapping[str, Part], outcomes: Mapping[str, Outcome], temperature: float
    ) -> dict[str, Any]:
        info = read_json(self.ckpt_path.with_suffix(".json"), "the description of the weights")
        metrics: dict[str, Any] = {
            "dataset": self.data.name,
            "method": self.settings["method"],
            "chosen_epoch": info.get("best_epoch"),
            "temperature": temperature,
        }
        for name, part in parts.items():
            everything = np.arange(len(part))
            section = self._section(part, outcomes[name], everything, temperature)
            sources = sorted({entry.source for entry in part.entries} - {""})
            if len(sources) > 1:
                section["by_source"] = {
                    source: self._section(
                        part, outcomes[name], np.flatnonzero([e.source == source for e in part.entries]), temperature
                    )
                    for source in sources
                }
            metrics[METRICS_KEYS[name]] = section
        return metrics | {
            "seed": self.settings["seed"],
            "settings": self.settings,
            "versions": versions(),
            "data": {
                "source": self.data.source,
                "sha256": self.data_sha256,
                "classes": self.data.classes,
                "counts": self.data.counts(),
                "streams": {name: len(positions) for name, (_, positions) in self.data.streams.items()},
            },
            "weights_sha256": info.get("sha256"),
        }

    def _section(self, part: Part, outcome: Outcome, members: np.ndarray, temperature: float) -> dict[str, Any]:
        section: dict[str, Any] = {}
        labelled = np.intersect1d(part.labelled, members)
        if outcome.logits is not None and len(labelled):
            logits, targets = outcome.logits[labelled], part.labels[labelled]
            probabilities = class_probabilities(logits, temperature)
            section["classification"] = self._class_summary(logits, targets, temperature) | {
                "per_class": per_class(targets, probabilities, self.task, self.data.classes),
                "confusion": confusion(targets, probabilities, self.task, len(self.data.classes)).tolist(),
            }
        rows = [outcome.mask_rows[i] for i in members.tolist() if i in outcome.mask_rows]
        if rows:
            section["segmentation"] = summarise(rows)
        return section

    def _rows(self, name: str, part: Part, outcome: Outcome, temperature: float) -> list[dict[str, Any]]:
        """Rows of `predictions.csv`: what is known of each image, what was predicted, the figures of its mask."""
        files = [entry.file for entry in part.entries]
        if outcome.logits is not None:
            probabilities = class_probabilities(outcome.logits, temperature)
            uncertainty = normalised_entropy(torch.from_numpy(probabilities)).numpy()
            rows = prediction_rows(
                files=files, classes=self.data.classes, probabilities=probabilities, uncertainty=uncertainty
            )
        else:
            assert outcome.masks is not None
            uncertainty = mask_uncertainty(outcome.masks)
            rows = [
                {"file": f, "uncertainty": f"{u:.6f}", "error": ""} for f, u in zip(files, uncertainty, strict=True)
            ]
        complete = []
        for index, (row, entry) in enumerate(zip(rows, part.entries, strict=True)):
            label = part.labels[index]
            known = {
                "file": row.pop("file"),
                "section": name,
                "source": entry.source,
                "label": "" if label == UNKNOWN else self.data.classes[label],
            }
            figures = {key: f"{value:.6g}" for key, value in outcome.mask_rows.get(index, {}).items()}
            complete.append({**known, **row, **figures})
        return complete

    def _show(self, metrics: Mapping[str, Any]) -> None:
        columns = {key: metrics[key] for key in METRICS_KEYS.values() if key in metrics}
        write = lambda v: f"{v:.4f}" if isinstance(v, float) else str(v)  # noqa: E731
        for task, names in (("classification", SHOWN_CLASS), ("segmentation", SHOWN_MASK)):
            found = {n: c[task] for n, c in columns.items() if task in c}
            rows = [
                {"figure": name, **{column: values.get(name, "") for column, values in found.items()}}
                for name in names
                if any(name in values for values in found.values())
            ]
            if rows:
                chosen = metrics["chosen_epoch"]
                logger.info("%s, epoch %s, chosen on validation:\n%s", task, chosen, table(rows, write))
        for name, column in columns.items():
            empty = column.get("segmentation", {}).get("num_empty_predictions", 0)
            if empty:
                logger.warning("%s: no lung was found in %d images", name, empty)
        logger.info("report, figures, predictions and weights: %s", self.output_dir)
        logger.info(
            "next, on a folder of your images: python -m monai.bundle run --config_file %s --ckpt_path %s "
            "--dataset_dir FOLDER",
            os.path.relpath(Path(self.settings.bundle_root, "configs", "inference.json")),
            self.ckpt_path,
        )
