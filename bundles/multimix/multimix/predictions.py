"""The shipped network's output as people and servers want it: mask, classes, how certain."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from label_efficient.evaluation.decisions import Decision
from label_efficient.evaluation.inference_writer import NOT_FINITE
from label_efficient.evaluation.predictions import normalised_entropy

from .mask_output import read_grid
from .plausibility import oddities, shape_of
from .shipped import split_output
from .transforms import Preprocess


@dataclass(frozen=True)
class Prediction:
    """What the network says of a batch, on the CPU."""

    lung: torch.Tensor | None  # probability of each pixel, float32 B x S x S
    probabilities: torch.Tensor | None  # of the classes, float64 B x K
    uncertainty: torch.Tensor  # float64 (B,), 0 to 1: entropy of the classes over log K, or `mask_uncertainty`


def interpret(pred: torch.Tensor, method: str, temperature: float) -> Prediction:
    """Output of `ShippedMultiMix` to probabilities; the classes' logits are divided by the temperature before.

    The uncertainty of an image is NaN where any of its output is not finite.
    """
    mask_logits, logits = split_output(pred.detach(), method)
    lung = None if mask_logits is None else torch.sigmoid(mask_logits[:, 0].float()).cpu()
    probabilities = None if logits is None else torch.softmax(logits.cpu().double() / temperature, dim=1)
    if probabilities is not None:
        uncertainty = normalised_entropy(probabilities)
    else:
        assert lung is not None
        uncertainty = mask_uncertainty(lung)
    uncertainty[~torch.isfinite(pred.flatten(1)).all(dim=1).cpu()] = torch.nan
    return Prediction(lung, probabilities, uncertainty)


def mask_uncertainty(lung: torch.Tensor) -> torch.Tensor:
    """Mean entropy of a mask's pixels over log 2, of probabilities B x S x S: float64 (B,), 0 certain to 1."""
    return normalised_entropy(lung.flatten(1).double(), multi_label=True)


def original_mask(lung: torch.Tensor, preprocess: Preprocess, height: int, width: int) -> np.ndarray:
    """Probabilities S x S of the network to the mask at the picture's own size, bool H x W."""
    return (preprocess.restore(lung, height, width) > 0.5).numpy()


class MaskAndClassesd(MapTransform):
    """Dictionary transform of servers: the network's output for one image to its mask, as its file has pixels.

    Under the keys: C x S x S to uint8 X x Y x 1 of 0 and 1, a MetaTensor with the affine of the image's file: the
    first axis runs along a row, which is what ITK and NIfTI writers expect. `result` gets what a server says beside
    the mask: `pred`, the name of the class, and the `decision` in words, `probabilities` by class, `uncertainty`, and
    in `implausible` what is unlike lungs in the mask. `result_extension`, by which MONAI Label names the mask's file,
    becomes ".png" for images that are JPEG or BMP files, unless it is given. Of a method without a mask the keys get
    the probabilities of the classes, (K,).

    Args:
        preprocess: As in the pipeline.
        ref_image: Key of the preprocessed image, whose metadata name its file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        method: str,
        decision: Decision,
        temperature: float,
        preprocess: Preprocess,
        ref_image: str = "image",
    ) -> None:
        super().__init__(keys)
        self.method = method
        self.decision = decision
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
            if not torch.isfinite(prediction.uncertainty).all():
                raise ValueError(NOT_FINITE)
            result: dict[str, Any] = {"uncertainty": float(prediction.uncertainty)}
            if prediction.probabilities is not None:
                scores, classes = prediction.probabilities[0], self.decision.classes
                result["pred"] = classes[int(self.decision(scores[None].numpy())[0])]
                result["decision"] = str(self.decision)
                result["probabilities"] = dict(zip(classes, scores.tolist(), strict=True))
                changed[key] = MetaTensor(scores.float())
            if prediction.lung is not None:
                mask = original_mask(prediction.lung[0], self.preprocess, *meta["original_size"])
                picture = np.asarray(changed[self.ref_image])[0]
                result["implausible"] = oddities(shape_of((prediction.lung[0] > 0.5).numpy(), picture))
                grid = read_grid(meta["filename_or_obj"])
                voxels = torch.from_numpy(grid.to_file(mask.astype(np.uint8)))
                changed[key] = MetaTensor(voxels, affine=torch.from_numpy(grid.affine))
                # A server names the mask's file like the image's, and JPEG and BMP hold no mask of this shape.
                if str(meta["filename_or_obj"]).lower().endswith((".jpg", ".jpeg", ".bmp")):
                    changed.setdefault("result_extension", ".png")
            changed["result"] = {**changed.get("result", {}), **result}
        return changed
