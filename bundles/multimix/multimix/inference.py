"""Inference on a folder or a list of image files: masks, predictions, overlays, the least certain images."""

import heapq
import logging
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from label_efficient.data.images import read_image
from label_efficient.engine.log import log_to_file
from label_efficient.evaluation.predictions import normalised_entropy, prediction_rows, write_predictions
from label_efficient.networks.weights import read_model_info
from label_efficient.report.pictures import save_overlay
from label_efficient.settings import Settings, SettingsError

from .inference_report import MASK_COLUMNS, preview_of, write_inference_report
from .mask_metrics import lung_areas
from .mask_output import mask_names, read_grid, save_outline, write_mask
from .network import METHODS
from .shipped import ShippedMultiMix, split_output
from .transforms import Preprocess

logger = logging.getLogger(__name__)


def read_info(ckpt_path: str) -> dict[str, Any]:
    """What weights are, from the `.json` beside them: `method`, `classes`, `image_size`, `keep_aspect`.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If they are the weights of another bundle, or of a method that this one does not know.
    """
    path = Path(ckpt_path).with_suffix(".json")
    bundle = read_model_info(ckpt_path, ["bundle"])["bundle"]
    if bundle != "multimix":
        raise ValueError(f"{path}: these are weights of the bundle {bundle!r}, expected 'multimix'")
    info = read_model_info(ckpt_path, ["method", "classes", "image_size", "keep_aspect"])
    if info["method"] not in METHODS:
        raise ValueError(f"{path}: method is {info['method']!r}, expected one of {', '.join(METHODS)}")
    return info


@dataclass(frozen=True)
class Prediction:
    """What the network says of a batch.

    Attributes:
        lung: Probability of each pixel, float32 B x S x S on the CPU, or None.
        probabilities: Of the classes, float64 B x K on the CPU, or None.
        uncertainty: float64 (B,), 0 to 1: entropy of the classes over log K; without classes that of the pixels over
            log 2, their mean.
    """

    lung: torch.Tensor | None
    probabilities: torch.Tensor | None
    uncertainty: torch.Tensor


def interpret(pred: torch.Tensor, method: str, temperature: float) -> Prediction:
    """Output of `ShippedMultiMix` to probabilities; the classes' logits are divided by the temperature before.

    Raises:
        ValueError: If it is not finite: the weights are broken, or half precision does not suffice.
    """
    mask_logits, logits = split_output(pred.detach(), method)
    lung = None if mask_logits is None else torch.sigmoid(mask_logits[:, 0].float()).cpu()
    probabilities = None if logits is None else torch.softmax(logits.cpu().double() / temperature, dim=1)
    if not all(torch.isfinite(part).all() for part in (lung, probabilities) if part is not None):
        raise ValueError("the network's outputs are not finite: its training diverged, or amp is too coarse for it")
    if probabilities is not None:
        return Prediction(lung, probabilities, normalised_entropy(probabilities))
    assert lung is not None
    return Prediction(lung, None, normalised_entropy(lung.flatten(1).double(), multi_label=True))


def original_mask(lung: torch.Tensor, preprocess: Preprocess, height: int, width: int) -> np.ndarray:
    """Probabilities S x S of the network to the mask at the picture's own size, bool H x W."""
    return (preprocess.restore(lung, height, width) > 0.5).numpy()


class MaskAndClassesd(MapTransform):
    """Dictionary transform of servers: the network's output for one image to its mask, as its file has pixels.

    Under the keys: C x S x S to uint8 X x Y x 1 of 0 and 1, a MetaTensor with the affine of the image's file: the
    first axis runs along a row, which is what ITK and NIfTI writers expect. `result` gets what a server says beside
    the mask: `pred`, the name of the class, `probabilities` by class and `uncertainty`. `result_extension`, by which
    MONAI Label names the mask's file, becomes ".png" for images that are JPEG or BMP files, unless it is given. Of a
    method without a mask the keys get the probabilities of the classes, (K,).

    Args:
        keys: Usually "pred".
        method: One of `network.METHODS`.
        classes: Names of the K classes.
        temperature: Of the calibration; 1 leaves the logits as they are.
        preprocess: As in the pipeline.
        ref_image: Key of the preprocessed image, whose metadata name its file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        method: str,
        classes: Sequence[str],
        temperature: float,
        preprocess: Preprocess,
        ref_image: str = "image",
    ) -> None:
        super().__init__(keys)
        self.method = method
        self.classes = list(classes)
        self.temperature = temperature
        self.preprocess = preprocess
        self.ref_image = ref_image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the outputs under the keys."""
        changed = dict(data)
        meta = changed[self.ref_image].meta
        for key in self.key_iterator(changed):
            prediction = interpret(torch.as_tensor(changed[key])[None].as_subclass(torch.Tensor), self.method,
                                   self.temperature)  # fmt: skip
            result: dict[str, Any] = {"uncertainty": float(prediction.uncertainty)}
            if prediction.probabilities is not None:
                scores = prediction.probabilities[0]
                result["pred"] = self.classes[int(scores.argmax())]
                result["probabilities"] = dict(zip(self.classes, scores.tolist(), strict=True))
                changed[key] = MetaTensor(scores.float())
            if prediction.lung is not None:
                mask = original_mask(prediction.lung[0], self.preprocess, *meta["original_size"])
                grid = read_grid(meta["filename_or_obj"])
                voxels = torch.from_numpy(grid.to_file(mask.astype(np.uint8)))
                changed[key] = MetaTensor(voxels, affine=torch.from_numpy(grid.affine))
                # A server names the mask's file like the image's, and JPEG and BMP hold no mask of this shape.
                if str(meta["filename_or_obj"]).lower().endswith((".jpg", ".jpeg", ".bmp")):
                    changed.setdefault("result_extension", ".png")
            changed["result"] = {**changed.get("result", {}), **result}
        return changed


class PredictionWriter:
    """Writes `predictions.csv`, masks, `report.html` and, if asked for, overlays, while the network runs.

    Masks are brought to the original size and written in threads.

    Args:
        output_dir: Where to write.
        network: The shipped network.
        preprocess: As in the pipeline, to put masks and maps back onto the original image.
        method: One of `network.METHODS`.
        classes: Names of the K classes.
        temperature: Of the calibration.
        settings: Of the run.
        num_workers: Threads that write, at least one.
        saliency: Whether to lay every image's saliency map over it, in `saliency/`.
        overlays: Whether to draw the mask's outline on every image, in `overlays/`.
        contact_sheet: Number of least certain images in `figures/least_certain.png`; 0 for none.

    Raises:
        SettingsError: If the method lacks what an overlay shows.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        network: ShippedMultiMix,
        preprocess: Preprocess,
        method: str,
        classes: Sequence[str],
        temperature: float,
        settings: Settings,
        num_workers: int = 0,
        saliency: bool = False,
        overlays: bool = False,
        contact_sheet: int = 24,
    ) -> None:
        self.segments, self.classifies = METHODS[method].segments, METHODS[method].classifies
        if saliency and not self.classifies:
            raise SettingsError(f"saliency=True: the map is of a class, and method {method!r} of the weights has none")
        if overlays and not self.segments:
            raise SettingsError(
                f"overlays=True: the outline is of a mask, and method {method!r} of the weights has none"
            )
        self.output_dir = Path(output_dir)
        self.network = network
        self.preprocess = preprocess
        self.method = method
        self.classes = list(classes) if self.classifies else []
        self.temperature = temperature
        self.settings = settings
        self.saliency = saliency
        self.overlays = overlays
        self.contact_sheet = contact_sheet
        self.pool = ThreadPoolExecutor(max(num_workers, 1))
        self.pending: deque[tuple[int, float, Future[tuple[dict[str, Any], np.ndarray | None]]]] = deque()
        self.names: dict[str, str] = {}
        self.files: list[str] = []
        self.paths: list[str] = []
        self.errors: list[str] = []
        self.probabilities: list[torch.Tensor] = []
        self.uncertainty: list[torch.Tensor] = []
        self.first: dict[str, int] = {}  # a list may name a file twice: its mask is written once
        self.written: dict[int, dict[str, Any]] = {}
        self.least_certain: list[tuple[float, int, np.ndarray | None]] = []

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        log_to_file(self.output_dir / "inference.log")
        loader: Any = engine.state.dataloader
        self.names = mask_names([item["file"] for item in loader.dataset.data])
        logger.info("%d files, %s", len(loader.dataset), self.settings["ckpt_path"])

    def __call__(self, engine: Engine) -> None:
        """Keep the predictions of the batch that has just been computed, and have its files written."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        prediction = interpret(output["pred"], self.method, self.temperature)
        heat = None
        if self.saliency:
            with torch.no_grad():
                heat = self.network.encode(output["image"])[2][:, 0].float().cpu()
        first = len(self.files)
        self.uncertainty.append(prediction.uncertainty)
        if prediction.probabilities is not None:
            self.probabilities.append(prediction.probabilities)
        self.files += batch["file"]
        self.paths += batch["path"]
        self.errors += batch["error"]
        for place, (height, width) in enumerate(batch["size"].tolist()):
            index = first + place
            if self.errors[index] or self.files[index] in self.first:
                continue
            self.first[self.files[index]] = index
            lung = None if prediction.lung is None else prediction.lung[place]
            task = self.pool.submit(self._write, index, lung, None if heat is None else heat[place], height, width)
            self.pending.append((index, float(prediction.uncertainty[place]), task))
        # Bounded: where the disk is slower than the network, the network waits.
        while len(self.pending) > 2 * len(batch["file"]):
            self._collect()

    def _write(
        self, index: int, lung: torch.Tensor | None, heat: torch.Tensor | None, height: int, width: int
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Write the files of one image, in a thread; its columns of the table, and its mask for the contact sheet."""
        file, path = self.files[index], self.paths[index]
        picture = read_image(path) if self.saliency or self.overlays else None
        drawn = self.names[file] if self.names[file].endswith(".png") else f"{self.names[file]}.png"
        if heat is not None and picture is not None:
            shown = self.preprocess.restore(heat, height, width).clamp_min(0).numpy()
            # A map of few bright points has a percentile of 0.
            highest = float(np.percentile(shown, 99.5)) or float(shown.max()) or 1.0
            save_overlay(self.output_dir / "saliency" / drawn, image=picture, heat=np.clip(shown / highest, 0, 1))
        if lung is None:
            return {}, None
        mask = original_mask(lung, self.preprocess, height, width)
        grid = read_grid(path)
        write_mask(self.output_dir / "masks" / self.names[file], mask, grid)
        if self.overlays and picture is not None:
            save_outline(self.output_dir / "overlays" / drawn, image=picture, mask=mask)
        return {**lung_areas(mask, grid.spacing), "mask": f"masks/{self.names[file]}"}, preview_of(mask)

    def _collect(self) -> None:
        """Take the result of the oldest task; of the least certain images keep a small mask."""
        index, uncertainty, task = self.pending.popleft()
        self.written[index], preview = task.result()
        if self.contact_sheet:
            heapq.heappush(self.least_certain, (uncertainty, -index, preview))
            if len(self.least_certain) > self.contact_sheet:
                heapq.heappop(self.least_certain)

    def _finish(self, engine: Engine) -> None:
        while self.pending:
            self._collect()
        self.pool.shutdown()
        rows = self._rows()
        write_predictions(self.output_dir / "predictions.csv", rows)
        bad = [(file, error) for file, error in zip(self.files, self.errors, strict=True) if error]
        empty = [row["file"] for row in rows if row.get("lung_area_px") == "0"]
        chosen = [(rows[-i], self.paths[-i], preview) for _, i, preview in sorted(self.least_certain, reverse=True)]
        write_inference_report(
            self.output_dir, rows=rows, classes=self.classes, least_certain=chosen, empty=empty, bad=bad,
            settings=self.settings,
        )  # fmt: skip
        for file, error in bad:
            logger.warning("no prediction for %s: %s", file, error)
        if empty:
            some = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            logger.warning("no lung was found in %d images: %s", len(empty), some)
        logger.info("%d predictions, %d files without: %s", len(rows) - len(bad), len(bad), self.output_dir)
        if len(bad) == len(rows):
            raise ValueError(f"none of the {len(rows)} files could be read; the first: {bad[0][1]}")

    def _rows(self) -> list[dict[str, Any]]:
        uncertainty = torch.cat(self.uncertainty).numpy()
        if self.classifies:
            rows = prediction_rows(
                files=self.files, classes=self.classes, probabilities=torch.cat(self.probabilities).numpy(),
                uncertainty=uncertainty, errors=self.errors,
            )  # fmt: skip
        else:
            rows = [
                {"file": file, "uncertainty": "" if error else f"{value:.6f}", "error": error}
                for file, value, error in zip(self.files, uncertainty, self.errors, strict=True)
            ]
        if not self.segments:
            return rows
        complete = []
        for row in rows:
            error, found = row.pop("error"), self.written.get(self.first.get(row["file"], -1), {})
            columns = {name: found.get(name, "") for name in MASK_COLUMNS}
            shown = {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in columns.items()}
            complete.append({**row, **shown, "error": error})
        return complete
