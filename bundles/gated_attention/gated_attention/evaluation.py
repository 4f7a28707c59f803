"""Final figures of a run of gated attention: fusion and global branch side by side, and what the attention covers."""

from collections.abc import Mapping
from typing import Any

import torch

from label_efficient.data.stored_images import StoredImages
from label_efficient.evaluation.classifier import SHOWN, ClassifierEvaluation
from label_efficient.evaluation.figure_tables import show_table, side_by_side
from label_efficient.evaluation.outputs import Outcome

from .coverage import CoverageResult, measure_coverage
from .instance_figures import InstancePictures
from .instances import attention_mask
from .network import EARLIER, GatedAttentionNet
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
    unsaid = EARLIER

    def __init__(self, *, reference_boxes: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
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
        values |= {name: list(values[name]) for name in ("mean", "std")}
        return {"bundle": "gated_attention", **values}

    def look(self, split: str) -> dict[str, torch.Tensor]:
        """Logits of the prediction, and what else the network says."""
        loader = self.loader(StoredImages(self.data.splits[split]))
        return look_at(self.network, loader, device=self.device, amp=self.amp)

    def last_weights(self, trained: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Weights of the network, or of their moving average if there is one, out of the checkpoint."""
        if "average" not in trained:
            return trained["model"]
        prefix = "module."
        return {k[len(prefix) :]: v for k, v in trained["average"].items() if k.startswith(prefix)}

    def more_metrics(self, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        """The global branch's figures, before calibration, and the coverage."""
        metrics: dict[str, Any] = {}
        for split, name in (("val", "validation_global"), ("test", "test_global")):
            outcome = Outcome(outcomes[split].found["global_logits"], outcomes[split].targets)
            outcome = self.at_temperature(outcome, 1.0)
            metrics[name] = self.summary(outcome)
            if split == "test":
                metrics |= {f"{name}_{figure}": value for figure, value in self.by_class(outcome).items()}
        if self.boxes is not None:
            self.coverage = self._coverage(self.boxes, outcomes["test"].found["attention_map"])
            metrics["coverage"] = self.coverage.metrics() | {"remarks": self.boxes.remarks}
        return metrics | super().more_metrics(outcomes)

    def _coverage(self, boxes: ReferenceBoxes, maps: torch.Tensor) -> CoverageResult:
        masks = attention_mask(maps, self.settings["threshold"], self.settings["image_size"]).numpy()
        files = self.data.splits["test"].files
        sizes = {file: self._size(file) for file in files if boxes[file]}
        by_file = dict(zip(files, masks, strict=True))
        return measure_coverage(masks=by_file, boxes=boxes, sizes=sizes, seed=self.settings["seed"])

    def show(self, metrics: Mapping[str, Any]) -> None:
        """Beside the classifier's tables the global branch beside the prediction, and the coverage."""
        super().show(metrics)
        if self.settings["method"] == "fusion":
            columns = {"fusion": metrics["test"], "global branch": metrics["test_global"]}
            show_table("fusion and global branch", side_by_side(SHOWN, columns, head="test"))
        if self.coverage is not None:
            title = "reference boxes covered by the attention mask"
            show_table("; ".join([title, *metrics["coverage"]["remarks"]]), self.coverage.rows())

    def report(self, metrics: Mapping[str, Any], raw: Mapping[str, Outcome], outcomes: Mapping[str, Outcome]) -> None:
        """Draw the figures and write the report of the test images, before and after calibration."""
        write_run_report(
            self.run_folder,
            **self.reported(metrics),
            raw=raw["test"],
            calibrated=outcomes["test"],
            looked=outcomes["test"].found,
            decision=self.decision,
            instance_pictures=InstancePictures(self.network),
            coverage=self.coverage,
            picture=self.pictures.image,
        )
