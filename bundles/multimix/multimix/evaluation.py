"""Final figures of a run: both tasks on validation, test and other hospitals; predictions, masks and the report."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from label_efficient.data.mask_files import read_mask
from label_efficient.engine.autocast import AutocastInferer
from label_efficient.engine.progress import Bar
from label_efficient.evaluation.figure_tables import show_operating_point, show_table, side_by_side
from label_efficient.evaluation.metrics import BINARY
from label_efficient.evaluation.predictions import prediction_rows
from label_efficient.evaluation.run_evaluation import RunEvaluation

from .data import ChestData, Part
from .losses import UNKNOWN
from .mask_metrics import mask_scores, summarise
from .mask_output import read_grid
from .outcomes import ChestOutcome, write_masks
from .plausibility import SHAPE_COLUMNS, oddities, shape_of, warn_of_odd
from .predictions import mask_uncertainty
from .run_report import write_run_report
from .shipped import ShippedMultiMix, split_output
from .streams import PartSet
from .transforms import Preprocess, to_input

logger = logging.getLogger(__name__)

SHOWN_CLASS = "acc auc macro_f1 positive_class sensitivity specificity precision ece n".split()
SHOWN_MASK = ("dice", "jaccard", "ssim", "average_hausdorff", "hd95", "precision", "recall", "n")
METRICS_KEYS = {"val": "validation", "test": "test", "cross_domain": "cross_domain"}  # in metrics.json


class Evaluation(RunEvaluation[ChestOutcome]):
    """Evaluates the weights of a run on validation, test and other hospitals, as far as there are any.

    Args:
        preprocess: As in training; brings masks back to the size of the pictures.
        write_masks: Whether to write the predicted masks of test and other hospitals to `masks/`.
        kwargs: As of `RunEvaluation`; the network a `ShippedMultiMix`.
    """

    data: ChestData
    network: ShippedMultiMix

    def __init__(self, *, data: ChestData, preprocess: Preprocess, write_masks: bool = False, **kwargs: Any) -> None:
        super().__init__(data=data, task=BINARY if len(data.classes) == 2 else "multi-class", **kwargs)
        self.preprocess = preprocess
        self.write_masks = write_masks

    def expected_info(self) -> dict[str, Any]:
        """The bundle, the method, size and shape of the images."""
        return {"bundle": "multimix"} | {n: self.settings[n] for n in ("method", "image_size", "keep_aspect")}

    def sections(self) -> list[str]:
        """Validation, test and other hospitals, without the empty ones."""
        return [name for name in METRICS_KEYS if len(self.data.splits[name])]

    def outcome(self, section: str) -> ChestOutcome:
        """What the network says of a section, and the figures of its masks."""
        part = self.data.splits[section]
        logits: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        dataset, inferer = PartSet(part), AutocastInferer(amp=self.amp)
        bar = Bar("evaluation", len(part))
        for positions in BatchSampler(range(len(part)), 4 * self.settings["batch_size"], drop_last=False):
            image = to_input(dataset[positions]["image"], self.device)
            with torch.no_grad():
                pred = inferer(image, self.network)
            self.check_finite(pred, section)
            mask_logits, class_logits = split_output(pred.cpu(), self.settings["method"])
            if class_logits is not None:
                logits.append(class_logits.clone())
            if mask_logits is not None:
                masks.append(torch.sigmoid(mask_logits[:, 0]))
            bar.to(positions[-1] + 1)
        bar.close()
        outcome = ChestOutcome(torch.cat(logits) if logits else None, part.labels)
        if masks:
            outcome.masks = torch.cat(masks)
            outcome.mask_rows = {i: self._mask_figures(part, i, outcome.masks[i]) for i in part.masked.tolist()}
            if not logits:
                outcome.uncertainty = mask_uncertainty(outcome.masks).numpy()
        return outcome

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

    def about(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The method, and the lengths of the streams of training."""
        streams = {name: len(positions) for name, (_, positions) in self.data.streams.items()}
        return {"method": self.settings["method"]}, {"streams": streams}

    def figures(self, outcomes: Mapping[str, ChestOutcome]) -> dict[str, Any]:
        """Both tasks of every section, and of each of its sources if there are several."""
        figures: dict[str, Any] = {"temperature": self.temperature}
        for name, outcome in outcomes.items():
            found = np.array([entry.source for entry in self.data.splits[name].entries])
            figures[METRICS_KEYS[name]] = section = self._section(outcome, np.arange(len(found)))
            sources = sorted(set(found.tolist()) - {""})
            if len(sources) > 1:
                section["by_source"] = {s: self._section(outcome, np.flatnonzero(found == s)) for s in sources}
        return figures

    def _section(self, outcome: ChestOutcome, members: np.ndarray) -> dict[str, Any]:
        section: dict[str, Any] = {}
        labelled = np.intersect1d(outcome.known, members)
        if outcome.logits is not None and len(labelled):
            section["classification"] = self.summary(outcome, labelled) | self.by_class(outcome, labelled)
        rows = [outcome.mask_rows[i] for i in members.tolist() if i in outcome.mask_rows]
        if rows:
            section["segmentation"] = summarise(rows)
        return section

    def rows(self, outcomes: Mapping[str, ChestOutcome]) -> list[dict[str, Any]]:
        """What is known of each image but those of validation, what was predicted, the figures of its mask."""
        rows = []
        for name in self._beside_validation(outcomes):
            part, outcome = self.data.splits[name], outcomes[name]
            predicted = prediction_rows(
                files=[entry.file for entry in part.entries],
                classes=self.data.classes,
                probabilities=None if outcome.logits is None else outcome.probabilities,
                uncertainty=outcome.uncertainty,
                decide=self.decision,
            )
            odd: list[tuple[str, str]] = []
            for index, (row, entry) in enumerate(zip(predicted, part.entries, strict=True)):
                label = part.labels[index]
                known = {
                    "file": row.pop("file"),
                    "section": name,
                    "source": entry.source,
                    "label": "" if label == UNKNOWN else self.data.classes[label],
                }
                figures = {key: f"{value:.6g}" for key, value in outcome.mask_rows.get(index, {}).items()}
                if outcome.masks is not None:
                    shape = shape_of((outcome.masks[index] > 0.5).numpy(), part.images[index])
                    figures |= {key: f"{shape[key]:.6g}" for key in SHAPE_COLUMNS} | {"implausible": oddities(shape)}
                    odd += [(entry.file, figures["implausible"])] if figures["implausible"] else []
                rows.append({**known, **row, **figures})
            warn_of_odd(f"predicted masks of {name}", odd, len(predicted))
        return rows

    def _beside_validation(self, outcomes: Mapping[str, ChestOutcome]) -> list[str]:
        return [name for name in outcomes if name != "val"]

    def report(
        self, metrics: Mapping[str, Any], raw: Mapping[str, ChestOutcome], outcomes: Mapping[str, ChestOutcome]
    ) -> None:
        """Write the masks if asked for, draw the figures and write the report."""
        parts = {name: self.data.splits[name] for name in outcomes}
        if self.write_masks:
            write_masks(
                self.run_folder.folder("masks"),
                {name: parts[name] for name in self._beside_validation(outcomes)},
                outcomes,
                self.preprocess,
                self.settings["num_workers"],
            )
        before, after = (
            {name: outcome.probabilities for name, outcome in found.items() if outcome.logits is not None}
            for found in (raw, outcomes)
        )
        write_run_report(
            self.run_folder,
            **self.reported(metrics),
            parts=parts,
            outcomes=outcomes,
            probabilities=after,
            raw_probabilities=before,
            decision=self.decision,
            network=self.network,
            device=self.device,
        )

    def show(self, metrics: Mapping[str, Any]) -> None:
        """A table a task, the sections side by side."""
        columns = {key: metrics[key] for key in METRICS_KEYS.values() if key in metrics}
        for task, names in (("classification", SHOWN_CLASS), ("segmentation", SHOWN_MASK)):
            found = {name: column[task] for name, column in columns.items() if task in column}
            title = f"{task}, epoch {metrics['chosen_epoch']}, chosen on validation"
            show_table(title, side_by_side(names, found))
        show_operating_point(metrics)
        for name, column in columns.items():
            empty = column.get("segmentation", {}).get("num_empty_predictions", 0)
            if empty:
                logger.warning("%s: no lung was found in %d images", name, empty)
