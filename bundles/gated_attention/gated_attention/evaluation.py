"""Final figures of a run of gated attention: fusion and global branch side by side, and what the attention covers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from label_efficient.data.stored_images import StoredImages
from label_efficient.engine.history import read_history
from label_efficient.evaluation.classifier import SHOWN, ClassifierEvaluation, Outcome
from label_efficient.evaluation.metrics import confusion, per_class

from .coverage import CoverageResult, measure_coverage
from .instance_figures import InstancePictures
from .instances import attention_mask
from .network import GatedAttentionNet
from .reference_boxes import ReferenceBoxes, read_reference_boxes
from .run_report import write_run_report
from .settings import OF_THE_FUSION, OF_THE_NETWORK
from .shipped import look_at


class Evaluation(ClassifierEvaluation):
    """Evaluates the weights of a run on validation and test and writes what a run leaves.

    Beside the figures of the prediction, `metrics.json` has those of the global branch (`validation_global`,
    `test_global`, ...) and, with reference boxes, the `coverage` of the test images.

    Args:
        reference_boxes: Folder of Pascal-VOC files or a CSV with boxes in the test images, or None; see
            `reference_boxes.read_reference_boxes`.
        kwargs: As of `ClassifierEvaluation`; the network a `network.GatedAttentionNet`.
    """

    network: GatedAttentionNet

    def __init__(self, *, reference_boxes: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.looked: dict[str, dict[str, torch.Tensor]] = {}
        self.coverage: CoverageResult | None = None
        self.boxes: ReferenceBoxes | None = None
        self.pictures = StoredImages(self.data.splits["test"])
        self.places = {file: place for place, file in enumerate(self.data.splits["test"].files)}
        self.sizes: dict[str, tuple[int, int]] = {}
        if reference_boxes is not None:
            others = [file for name, part in self.data.splits.items() if name != "test" for file in part.files]
            files = self.data.splits["test"].files
            self.boxes = read_reference_boxes(reference_boxes, files, self._size, other_files=others)

    def _size(self, file: str) -> tuple[int, int]:
        """Height and width; an image that is not kept in memory is read for it, once."""
        if file not in self.sizes:
            height, width = self.pictures.image(self.places[file]).shape[:2]
            self.sizes[file] = height, width
        return self.sizes[file]

    def expected_info(self) -> dict[str, Any]:
        """The settings of the network: others than those of the training would give figures of another network."""
        fusion = self.settings["method"] == "fusion"
        names = [name for name in OF_THE_NETWORK if fusion or name not in OF_THE_FUSION]
        values = {name: self.settings[name] for name in names}
        return {name: list(value) if name in ("mean", "std") else value for name, value in values.items()}

    def look(self, split: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the prediction; what else the network says is kept in `looked`."""
        part = self.data.splits[split]
        batches = BatchSampler(range(len(part)), self.settings["batch_size"], drop_last=False)
        loader = DataLoader(StoredImages(part), batch_size=None, sampler=batches)
        self.looked[split] = look_at(self.network, loader, device=self.device, amp=self.amp)
        return self.looked[split]["logits"], None

    def last_weights(self, trained: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Weights of the network, or of their moving average if there is one, out of the checkpoint."""
        if "average" not in trained:
            return trained["model"]
        prefix = "module."
        return {k[len(prefix) :]: v for k, v in trained["average"].items() if k.startswith(prefix)}

    def more_metrics(self) -> dict[str, Any]:
        """The global branch's figures, before calibration, and the coverage."""
        metrics: dict[str, Any] = {}
        for split, name in (("val", "validation"), ("test", "test")):
            outcome = self._of_global_branch(split)
            metrics[f"{name}_global"] = self.summary(outcome)
            if split == "test":
                found = (outcome.targets, outcome.probabilities, self.data.task)
                metrics["test_global_per_class"] = per_class(*found, self.data.classes)
                metrics["test_global_confusion"] = confusion(*found, len(self.data.classes)).tolist()
        if self.boxes is not None:
            self.coverage = self._coverage(self.boxes)
            metrics["coverage"] = self.coverage.metrics() | {"remarks": self.boxes.remarks}
        return metrics

    def _of_global_branch(self, split: str) -> Outcome:
        empty = torch.empty(0).numpy()
        outcome = Outcome(self.looked[split]["global_logits"], self.data.splits[split].labels, empty, empty)
        return self.at_temperature(outcome, 1.0)

    def _coverage(self, boxes: ReferenceBoxes) -> CoverageResult:
        maps, size = self.looked["test"]["attention_map"], self.settings["image_size"]
        masks = attention_mask(maps, self.settings["threshold"], size).numpy()
        files = self.data.splits["test"].files
        sizes = {file: self._size(file) for file in files if boxes[file]}
        by_file = dict(zip(files, masks, strict=True))
        return measure_coverage(masks=by_file, boxes=boxes, sizes=sizes, seed=self.settings["seed"])

    def more_tables(self, metrics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
        """The global branch beside the prediction, and the coverage."""
        tables = []
        if self.settings["method"] == "fusion":
            columns = {"fusion": metrics["test"], "global branch": metrics["test_global"]}
            rows = [{"test": n, **{c: v[n] for c, v in columns.items()}} for n in SHOWN if n in metrics["test"]]
            tables.append(("fusion and global branch", rows))
        if self.coverage is not None:
            title = "reference boxes covered by the attention mask"
            tables.append(("; ".join([title, *metrics["coverage"]["remarks"]]), self.coverage.rows()))
        return tables

    def report(self, metrics: Mapping[str, Any], raw: Outcome, calibrated: Outcome) -> None:
        """Draw the figures and write the report of the test images, before and after calibration."""
        history_path = self.output_dir / "history.csv"
        write_run_report(
            self.output_dir,
            data=self.data,
            settings=self.settings,
            metrics=metrics,
            raw=raw,
            calibrated=calibrated,
            looked=self.looked["test"],
            instance_pictures=InstancePictures(self.network),
            coverage=self.coverage,
            history=read_history(history_path) if history_path.is_file() else [],
            picture=self.pictures.image,
        )
