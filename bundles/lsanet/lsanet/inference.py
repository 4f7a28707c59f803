"""Inference on a folder or a list of image files: predictions, overlays, the least certain images."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.visualize import GradCAM
from torch import nn

from label_efficient.data.images import read_image
from label_efficient.engine.log import log_to_file
from label_efficient.evaluation.predictions import normalised_entropy, prediction_rows, write_predictions
from label_efficient.networks.backbones import DenseNetBackbone, ResNetBackbone, VGGBackbone
from label_efficient.report.inference_sections import (
    caption_of,
    classes_section,
    least_certain_section,
    write_inference_page,
)
from label_efficient.report.pictures import save_overlay
from label_efficient.settings import Settings

from .network import NodeEnsemble
from .shipped import NodeInferer
from .transforms import Preprocess

logger = logging.getLogger(__name__)


class PredictionWriter:
    """Collects predictions and writes `predictions.csv`, `report.html` and, if asked for, overlays.

    Args:
        output_dir: Where to write.
        network: The shipped network.
        inferer: The evaluator's; knows the nodes' disagreement if they are kept.
        preprocess: As in the pipeline, to put overlays back onto the original image.
        classes: Names of the K outputs.
        multi_label: Whether an image can have several labels.
        settings: Of the run.
        saliency: Whether to write a Grad-CAM overlay of the predicted class for every image, to `saliency/`.
        contact_sheet: Number of least certain images in `figures/least_certain.png`; 0 for none.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        network: nn.Module,
        inferer: NodeInferer,
        preprocess: Preprocess,
        classes: Sequence[str],
        multi_label: bool,
        settings: Settings,
        saliency: bool = False,
        contact_sheet: int = 24,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.inferer = inferer
        self.preprocess = preprocess
        self.classes = list(classes)
        self.multi_label = multi_label
        self.settings = settings
        self.saliency = saliency
        self.contact_sheet = contact_sheet
        self.files: list[str] = []
        self.paths: list[str] = []
        self.errors: list[str] = []
        self.probabilities: list[torch.Tensor] = []
        self.uncertainty: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator, after its postprocessing."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        log_to_file(self.output_dir / "inference.log")
        loader: Any = engine.state.dataloader
        logger.info("%d files, %s", len(loader.dataset), self.settings["ckpt_path"])

    def __call__(self, engine: Engine) -> None:
        """Keep the predictions of the batch that has just been computed."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        probabilities = torch.as_tensor(output["pred"]).float().cpu()
        if self.inferer.disagreement is not None:
            self.uncertainty.append(self.inferer.disagreement.float().cpu())
        else:
            self.uncertainty.append(normalised_entropy(probabilities, self.multi_label))
        self.probabilities.append(probabilities)
        self.files += batch["file"]
        self.paths += batch["path"]
        self.errors += batch["error"]
        if self.saliency:
            self._write_overlays(output["image"], probabilities, batch)

    def _write_overlays(self, image: torch.Tensor, probabilities: torch.Tensor, batch: Mapping[str, Any]) -> None:
        heat = class_activation(self.network, image, probabilities.argmax(dim=1))
        for index, (path, file) in enumerate(zip(batch["path"], batch["file"], strict=True)):
            if batch["error"][index]:
                continue
            original = read_image(path)
            place = self.output_dir / "saliency" / f"{file}.png"
            save_overlay(place, image=original, heat=self._unpad(heat[index].cpu().numpy(), original.shape))

    def _unpad(self, heat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if not self.preprocess.keep_aspect:
            return heat
        side = max(shape[:2])
        top, left = ((side - s) // 2 / side * heat.shape[0] for s in shape[:2])
        bottom, right = top + shape[0] / side * heat.shape[0], left + shape[1] / side * heat.shape[1]
        rows = slice(round(top), max(round(bottom), round(top) + 1))
        return heat[rows, round(left) : max(round(right), round(left) + 1)]

    def _finish(self, engine: Engine) -> None:
        probabilities = torch.cat(self.probabilities).numpy()
        uncertainty = torch.cat(self.uncertainty).numpy()
        rows = prediction_rows(
            files=self.files,
            classes=self.classes,
            probabilities=probabilities,
            uncertainty=uncertainty,
            multi_label=self.multi_label,
            errors=self.errors,
        )
        write_predictions(self.output_dir / "predictions.csv", rows)
        bad = [(file, error) for file, error in zip(self.files, self.errors, strict=True) if error]
        self._report(rows, uncertainty, bad)
        for file, error in bad:
            logger.warning("no prediction for %s: %s", file, error)
        logger.info("%d predictions, %d files without: %s", len(rows) - len(bad), len(bad), self.output_dir)
        if len(bad) == len(rows):
            raise ValueError(f"none of the {len(rows)} files could be read; the first: {bad[0][1]}")

    def _report(self, rows: list[dict[str, Any]], uncertainty: np.ndarray, bad: list[tuple[str, str]]) -> None:
        sections = [classes_section(rows, self.classes)]
        good = [i for i, error in enumerate(self.errors) if not error]
        if self.contact_sheet and good:
            chosen = sorted(good, key=lambda i: -uncertainty[i])[: self.contact_sheet]
            images, captions = [read_image(self.paths[i]) for i in chosen], [caption_of(rows[i]) for i in chosen]
            sections.append(least_certain_section(self.output_dir, images, captions))
        write_inference_page(self.output_dir, bundle="LSANet", sections=sections, bad=bad, settings=self.settings)


def class_activation(network: nn.Module, image: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017) of a class at the deepest node with at least 6 x 6 positions.

    That is C4 for images of 161 pixels and more; the map of C4 has only 2 x 2 positions for 64 pixels.

    Args:
        network: A shipped network.
        image: Preprocessed, B x 3 x H x W.
        targets: Class of each image, (B,).

    Returns:
        B x H x W, the share of the image's own maximum, 0..1; 0 everywhere where nothing speaks for the class.
    """
    backbone = network.backbone if isinstance(network, NodeEnsemble) else network
    prefix = "backbone." if isinstance(network, NodeEnsemble) else ""
    # MONAI's evaluator leaves a network in the mode that it had; batch norm must not learn from these images.
    network.eval()
    with torch.no_grad():
        maps = backbone.forward_nodes(image[:1])  # type: ignore[operator]
    node = max((i for i, m in enumerate(maps) if min(m.shape[-2:]) >= 6), default=0)
    cam = GradCAM(
        nn_module=network,
        target_layers=prefix + _node_layer(backbone, node),
        postprocessing=lambda x: x,
        register_backward=True,
    )
    heat = image.new_zeros(image.shape[0], *image.shape[2:])
    # MONAI's takes one class a call: a tensor of them would add up all classes for all images.
    for target in targets.unique().tolist():
        chosen = (targets == target).to(image.device)
        with torch.enable_grad():
            heat[chosen] = cam(image[chosen].requires_grad_(), class_idx=target)[:, 0].detach()
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp_min(1e-12), torch.zeros_like(heat))


def _node_layer(backbone: nn.Module, node: int) -> str:
    """Name of the layer whose output is the feature map of a node (0 for C1)."""
    if isinstance(backbone, ResNetBackbone):
        return f"layer{node + 1}"
    if isinstance(backbone, DenseNetBackbone):
        return "class_layers.relu" if node == 3 else f"features.denseblock{node + 1}"
    if isinstance(backbone, VGGBackbone):
        return f"features.{backbone.pools[node + 1]}"
    raise TypeError(f"expected one of the bundle's backbones, got a {type(backbone).__name__}")
