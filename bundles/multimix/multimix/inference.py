"""Inference on a folder or a list of image files: masks, predictions, overlays, the least certain images."""

import heapq
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from label_efficient.data.images import read_image
from label_efficient.evaluation.inference_writer import InferenceWriter
from label_efficient.report.pictures import save_overlay
from label_efficient.settings import SettingsError

from .inference_report import MASK_COLUMNS, preview_of, write_inference_report
from .mask_metrics import lung_areas
from .mask_output import mask_names, read_grid, save_outline, write_mask
from .network import METHODS
from .plausibility import oddities, shape_of
from .predictions import Prediction, interpret, original_mask
from .shipped import ShippedMultiMix
from .transforms import Preprocess

logger = logging.getLogger(__name__)


class PredictionWriter(InferenceWriter):
    """Writes `predictions.csv`, masks, `report.html` and, if asked for, overlays, while the network runs.

    Args:
        preprocess: As in the pipeline, to put masks and maps back onto the original image.
        saliency: Whether to lay every image's saliency map over it, in `saliency/`.
        overlays: Whether to draw the mask's outline on every image, in `overlays/`.
        kwargs: As of `InferenceWriter`.

    Raises:
        SettingsError: If the method lacks what an overlay shows.
    """

    name_files = staticmethod(mask_names)

    def __init__(
        self,
        *,
        network: ShippedMultiMix,
        preprocess: Preprocess,
        method: str,
        classes: Sequence[str],
        temperature: float,
        saliency: bool = False,
        overlays: bool = False,
        **kwargs: Any,
    ) -> None:
        self.segments, classifies = METHODS[method].segments, METHODS[method].classifies
        if saliency and not classifies:
            raise SettingsError(f"saliency=True: the map is of a class, and method {method!r} of the weights has none")
        if overlays and not self.segments:
            raise SettingsError(
                f"overlays=True: the outline is of a mask, and method {method!r} of the weights has none"
            )
        super().__init__(classes=classes if classifies else [], **kwargs)
        if not classifies and self.decision.threshold is not None:
            raise SettingsError(f"operating_threshold is of a class, and method {method!r} of the weights has none")
        self.network = network
        self.preprocess = preprocess
        self.method = method
        self.temperature = temperature
        self.saliency = saliency
        self.overlays = overlays
        self.prediction: Prediction
        self.heat: torch.Tensor | None = None
        self.images: torch.Tensor
        self.mask_columns: dict[int, dict[str, Any]] = {}
        self.previews: list[tuple[float, int, np.ndarray | None]] = []  # a heap, the most certain first
        self.odd: dict[int, np.ndarray] = {}  # small masks of the first implausible ones

    def interpret(self, output: Mapping[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Probabilities of the classes and uncertainty; masks and maps of the batch are kept for its jobs."""
        self.prediction = interpret(output["pred"], self.method, self.temperature)
        self.images = torch.as_tensor(output["image"])[:, 0].float().cpu()
        if self.saliency:
            with torch.no_grad():
                self.heat = self.network.encode(output["image"])[2][:, 0].float().cpu()
        return self.prediction.probabilities, self.prediction.uncertainty

    def job(self, index: int, place: int, batch: Mapping[str, Any]) -> Callable[[], Any]:
        """Writes the mask and the overlays."""
        lung, heat = (None if part is None else part[place] for part in (self.prediction.lung, self.heat))
        return partial(self._write, index, lung, heat, self.images[place], *batch["size"][place].tolist())

    def _write(
        self,
        index: int,
        lung: torch.Tensor | None,
        heat: torch.Tensor | None,
        image: torch.Tensor,
        height: int,
        width: int,
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Write the files of one image; its columns of the table, and its mask for the contact sheet."""
        file, path = self.files[index], self.paths[index]
        picture = read_image(path) if self.saliency or self.overlays else None
        drawn = self.names[file] if self.names[file].endswith(".png") else f"{self.names[file]}.png"
        if heat is not None and picture is not None:
            shown = self.preprocess.restore(heat, height, width).clamp_min(0).numpy()
            # A map of few bright points has a percentile of 0.
            highest = float(np.percentile(shown, 99.5)) or float(shown.max()) or 1.0
            save_overlay(self.run_folder.file(f"saliency/{drawn}"), image=picture, heat=np.clip(shown / highest, 0, 1))
        if lung is None:
            return {}, None
        mask = original_mask(lung, self.preprocess, height, width)
        grid = read_grid(path)
        write_mask(self.run_folder.file(f"masks/{self.names[file]}"), mask, grid)
        if self.overlays and picture is not None:
            save_outline(self.run_folder.file(f"overlays/{drawn}"), image=picture, mask=mask)
        shape = shape_of((lung > 0.5).numpy(), image.numpy())
        columns = {**shape, "implausible": oddities(shape), **lung_areas(mask, grid.spacing)}
        return {**columns, "mask": f"masks/{self.names[file]}"}, preview_of(mask)

    def collect(self) -> tuple[int, Any]:
        """Keep the columns of the oldest job's image, and small masks of the least certain images."""
        index, result = super().collect()
        if result is None:
            return index, None
        self.mask_columns[index], preview = result
        if self.mask_columns[index].get("implausible") and len(self.odd) < self.contact_sheet:
            self.odd[index] = preview
        if self.contact_sheet:
            heapq.heappush(self.previews, (self.uncertainty[index], -index, preview))
            if len(self.previews) > self.contact_sheet:
                heapq.heappop(self.previews)
        return index, result

    def complete(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with what the mask says, before the error."""
        if not self.segments:
            return rows
        complete = []
        for row in rows:
            error, found = row.pop("error"), self.mask_columns.get(self.first.get(row["file"], -1), {})
            columns = {name: found.get(name, "") for name in MASK_COLUMNS}
            shown = {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in columns.items()}
            complete.append({**row, **shown, "error": error})
        for file, why in dict((row["file"], row["implausible"]) for row in complete if row["implausible"]).items():
            logger.warning("%s: the mask is implausible: %s", file, why)
        return complete

    def report(self, rows: list[dict[str, Any]], bad: list[tuple[str, str]]) -> None:
        """The classes, the lungs, the least certain images with their outlines, bad files."""
        previews = {-index: preview for _, index, preview in self.previews}
        chosen = self.least_certain(self.contact_sheet)
        write_inference_report(
            self.run_folder,
            rows=rows,
            classes=self.classes,
            decision=self.decision,
            least_certain=[(rows[index], self.paths[index], previews[index]) for index in chosen],
            implausible=[(rows[index], self.paths[index], preview) for index, preview in self.odd.items()],
            bad=bad,
            settings=self.settings,
        )
