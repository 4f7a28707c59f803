"""Inference on a folder or a list of image files: predictions, instances, overlays, the least certain images."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image

from label_efficient.data.picture_transforms import load_image
from label_efficient.engine.autocast import AutocastInferer
from label_efficient.evaluation.inference_writer import InferenceWriter
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.files import write_csv

from .inference_report import write_inference_report
from .instance_figures import InstancePictures, save_picture
from .network import GatedAttentionNet

logger = logging.getLogger(__name__)

INSTANCE_COLUMNS = ("file", "rank", "x0", "y0", "x1", "y1", "attention")
_LOOKS, _LOOK_PIXELS = 6, 512  # pictures in the report, and the longer side of each


class InstanceInferer(AutocastInferer):
    """Runs a shipped network, in half precision if asked for; of a list of images it keeps where the network looked.

    Attributes:
        found: Of the last batch, if that was a list: what `network.GatedAttentionNet.look` returns; else None.
    """

    def __init__(self, *, amp: bool | str = False) -> None:
        super().__init__(amp=amp)
        self.found: dict[str, torch.Tensor] | None = None

    def __call__(
        self, inputs: torch.Tensor | list[torch.Tensor], network: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Images in 0..255 to logits B x N.

        They are B x 3 x H x W, as servers have them, which goes through any network from images to logits (with `args`
        and `kwargs`); or a list of 3 x H_i x W_i.
        """
        self.found = None
        if isinstance(inputs, torch.Tensor):
            return super().__call__(inputs, network, *args, **kwargs)
        self.found = super().__call__(inputs, network.look, True)
        return self.found["logits"] if "logits" in self.found else self.found["global_logits"]


class PredictionWriter(InferenceWriter):
    """Writes `predictions.csv`, `instances.csv`, `report.html` and, if asked for, overlays in `attention/`.

    The inferer is the evaluator's, which knows where the network looked. `kwargs` are as of `InferenceWriter`.
    """

    def __init__(
        self, *, network: GatedAttentionNet, inferer: InstanceInferer, overlays: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.inferer = inferer
        self.overlays = overlays
        self.pictures = InstancePictures(network)
        self.found: dict[str, list[torch.Tensor]] = {}
        self.joined: dict[str, torch.Tensor] = {}

    def interpret(self, output: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and their entropy; where the network looked is kept."""
        probabilities = torch.as_tensor(output["pred"]).double().cpu()
        assert self.inferer.found is not None
        for name in ("attention_map", "instance_boxes", "instance_scores"):
            if name in self.inferer.found:
                self.found.setdefault(name, []).append(self.inferer.found[name].float().cpu())
        return probabilities, normalised_entropy(probabilities)

    def job(self, index: int, place: int, batch: Mapping[str, Any]) -> Callable[[], None] | None:
        """Draws the overlay."""
        if not self.overlays:
            return None
        own = {name: values[-1][place] for name, values in self.found.items()}
        return partial(self._draw, self.files[index], batch["image"][place], own)

    def _draw(self, file: str, image: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
        save_picture(self.run_folder.file(f"attention/{self.names[file]}"), self.pictures.draw(image, found))

    def complete(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows as they are; `instances.csv` is written."""
        self.joined = {name: torch.cat(values) for name, values in self.found.items()}
        good = [index for index, error in enumerate(self.errors) if not error]
        instances = [row for index in good for row in instance_rows(self.files[index], index, self.joined)]
        # Also without rows: the table of an earlier run must not stay beside the predictions of this one.
        write_csv(self.run_folder.file("instances.csv"), instances, INSTANCE_COLUMNS)
        if "instance_boxes" not in self.joined:
            logger.info("the weights are of the global branch alone (method='global'): instances.csv has no rows")
        return rows

    def report(self, rows: list[dict[str, Any]], bad: list[tuple[str, str]]) -> None:
        """The classes, the least certain images, where the network looked in them, bad files."""
        write_inference_report(
            self.run_folder,
            rows=rows,
            classes=self.classes,
            decision=self.decision,
            least_certain=[(rows[index], self.paths[index]) for index in self.least_certain(self.contact_sheet)],
            looks=[(rows[index], self._look(index)) for index in self.least_certain(_LOOKS)],
            bad=bad,
            settings=self.settings,
        )

    def _look(self, index: int) -> Image.Image:
        """Picture of what the network looked at in one image, small, for the report."""
        own = {name: values[index] for name, values in self.joined.items()}
        return self.pictures.draw(load_image(self.paths[index]), own, _LOOK_PIXELS)


def instance_rows(file: str, index: int, found: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Rows of `instances.csv` for one image: the boxes in pixels of the image as `images.read_image` shows it.

    The rank is the network's order: the components of the mask by their attention, then the windows that stand in for
    missing ones. The attention is that of the component, or window, as a share of the image's. `found` has
    `instance_boxes` (N x K x 4) and `instance_scores` (N x K), or neither; the image is at `index`.
    """
    if "instance_boxes" not in found:
        return []
    boxes, scores = found["instance_boxes"][index].tolist(), found["instance_scores"][index].tolist()
    return [
        {
            "file": file,
            "rank": rank,
            **{name: f"{edge:.2f}" for name, edge in zip(("x0", "y0", "x1", "y1"), box, strict=True)},
            "attention": f"{score:.6f}",
        }
        for rank, (box, score) in enumerate(zip(boxes, scores, strict=True), start=1)
    ]
