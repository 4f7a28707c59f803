"""Final figures of a run of LSANet."""

from collections.abc import Mapping
from typing import Any

import torch

from label_efficient.evaluation.classifier import ClassifierEvaluation
from label_efficient.evaluation.outputs import Outcome

from .batches import ImageSet
from .run_report import write_run_report
from .shipped import predict, shipped_weights
from .transforms import PrepareBatch, Preprocess


class Evaluation(ClassifierEvaluation):
    """`ClassifierEvaluation` of a network as of `shipped.build_shipped`; `preprocess` as in training."""

    def __init__(self, *, preprocess: Preprocess, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prepare_batch = PrepareBatch(preprocess)
        self.preprocess = preprocess

    def expected_info(self) -> dict[str, Any]:
        """The bundle, size and normalisation of the images."""
        expected = {name: self.settings[name] for name in ("image_size", "keep_aspect")}
        return {"bundle": "lsanet"} | expected | {name: list(self.settings[name]) for name in ("mean", "std")}

    def look(self, split: str) -> dict[str, torch.Tensor]:
        """Logits of a split, and the nodes' disagreement if they are kept."""
        loader = self.loader(ImageSet(self.data.splits[split], self.preprocess))
        return predict(self.network, loader, prepare_batch=self.prepare_batch, device=self.device, amp=self.amp)

    def last_weights(self, trained: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Weights of the shipped network, out of the checkpoint."""
        return shipped_weights(trained["model"], self.settings["keep_nodes"])

    def report(self, metrics: Mapping[str, Any], raw: Mapping[str, Outcome], outcomes: Mapping[str, Outcome]) -> None:
        """Draw the figures and write the report of the test images, before and after calibration."""
        write_run_report(
            self.run_folder,
            **self.reported(metrics),
            probabilities=outcomes["test"].probabilities,
            raw_probabilities=raw["test"].probabilities,
            uncertainty=outcomes["test"].uncertainty,
            decision=self.decision,
            picture=ImageSet(self.data.splits["test"], self.preprocess).image,
        )
