"""Inference on a folder or a list of image files: predictions, overlays, the least certain images."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.visualize import GradCAM

from label_efficient.data.images import read_image
from label_efficient.evaluation.inference_writer import InferenceWriter
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.networks.backbones import Backbone, DenseNetBackbone, ResNetBackbone
from label_efficient.report.inference_sections import (
    caption_of,
    classes_section,
    least_certain_section,
    write_inference_page,
)
from label_efficient.report.pictures import save_overlay

from .network import NodeEnsemble
from .shipped import NodeInferer
from .transforms import Preprocess


class PredictionWriter(InferenceWriter):
    """Writes `predictions.csv`, `report.html` and, if asked for, Grad-CAM overlays in `saliency/`.

    Args:
        inferer: The evaluator's; knows the nodes' disagreement if they are kept.
        preprocess: As in the pipeline, to put overlays back onto the original image.
        saliency: Whether to write an overlay of the predicted class for every image.
    """

    def __init__(
        self,
        *,
        network: Backbone | NodeEnsemble,
        inferer: NodeInferer,
        preprocess: Preprocess,
        saliency: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.inferer = inferer
        self.preprocess = preprocess
        self.saliency = saliency
        self.heat = torch.empty(0)

    def interpret(self, output: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities, and the nodes' disagreement or the entropy; and the heat maps of the batch."""
        probabilities = torch.as_tensor(output["pred"]).float().cpu()
        if self.saliency:
            self.heat = class_activation(self.network, output["image"], probabilities.argmax(dim=1)).cpu()
        if self.inferer.disagreement is not None:
            return probabilities, self.inferer.disagreement.float().cpu()
        return probabilities, normalised_entropy(probabilities, self.multi_label)

    def job(self, index: int, place: int, batch: Mapping[str, Any]) -> Callable[[], None] | None:
        """Writes the overlay."""
        return partial(self._write_overlay, index, self.heat[place].numpy()) if self.saliency else None

    def _write_overlay(self, index: int, heat: np.ndarray) -> None:
        original = read_image(self.paths[index])
        place = self.run_folder.file(f"saliency/{self.names[self.files[index]]}")
        save_overlay(place, image=original, heat=self._unpad(heat, original.shape))

    def _unpad(self, heat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if not self.preprocess.keep_aspect:
            return heat
        side = max(shape[:2])
        begin = [(side - s) // 2 / side * len(heat) for s in shape[:2]]
        end = [first + s / side * len(heat) for first, s in zip(begin, shape, strict=False)]
        rows, columns = (slice(round(a), max(round(b), round(a) + 1)) for a, b in zip(begin, end, strict=True))
        return heat[rows, columns]

    def report(self, rows: list[dict[str, Any]], bad: list[tuple[str, str]]) -> None:
        """The classes, the least certain images, bad files."""
        sections = [classes_section(rows, self.classes, self.decision)]
        if chosen := self.least_certain(self.contact_sheet):
            images, captions = [read_image(self.paths[i]) for i in chosen], [caption_of(rows[i]) for i in chosen]
            sections.append(least_certain_section(self.run_folder, images, captions))
        write_inference_page(self.run_folder, bundle="LSANet", sections=sections, bad=bad, settings=self.settings)


def class_activation(network: Backbone | NodeEnsemble, image: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017) of a class at the deepest node with at least 6 x 6 positions.

    That is C4 for images of 161 pixels and more; the map of C4 has only 2 x 2 positions for 64 pixels. From
    preprocessed images B x 3 x H x W and their classes (B,).

    Returns:
        B x H x W, the share of the image's own maximum, 0..1; 0 everywhere where nothing speaks for the class.
    """
    backbone, prefix = (network.backbone, "backbone.") if isinstance(network, NodeEnsemble) else (network, "")
    # MONAI's evaluator leaves a network in the mode that it had; batch norm must not learn from these images.
    network.eval()
    with torch.no_grad():
        maps = backbone.forward_nodes(image[:1])
    node = max((i for i, m in enumerate(maps) if min(m.shape[-2:]) >= 6), default=0)
    cam = GradCAM(network, prefix + _node_layer(backbone, node), postprocessing=lambda x: x, register_backward=True)
    heat = image.new_zeros(image.shape[0], *image.shape[2:])
    # MONAI's takes one class a call: a tensor of them would add up all classes for all images.
    for target in targets.unique().tolist():
        chosen = (targets == target).to(image.device)
        with torch.enable_grad():
            heat[chosen] = cam(image[chosen].requires_grad_(), class_idx=target)[:, 0].detach()
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp_min(1e-12), torch.zeros_like(heat))


def _node_layer(backbone: Backbone, node: int) -> str:
    """Name of the layer whose output is the feature map of a node (0 for C1)."""
    if isinstance(backbone, ResNetBackbone):
        return f"layer{node + 1}"
    if isinstance(backbone, DenseNetBackbone):
        return "class_layers.relu" if node == 3 else f"features.denseblock{node + 1}"
    return f"features.{backbone.pools[node + 1]}"
