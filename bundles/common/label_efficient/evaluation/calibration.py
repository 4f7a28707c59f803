"""Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017) and its file."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field, PositiveFloat, ValidationError
from scipy.optimize import brentq
from torch.nn import functional

from label_efficient.files import write_json

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 1 / 20, 20.0  # temperatures searched

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


class OperatingPoint(BaseModel, strict=True, allow_inf_nan=False):
    """Threshold of a binary task, of the positive class's probability after scaling (older files: of the second's).

    The figures are what it reaches on the data of `fitted_on`.
    """

    positive_class: Name | None = None
    threshold: float
    target_specificity: Annotated[float, Field(gt=0, lt=1)]
    sensitivity: Fraction
    specificity: Fraction
    precision: Fraction | None = None
    acc: Fraction | None = None
    fitted_on: Name


class Calibration(BaseModel, strict=True, allow_inf_nan=False):
    """Content of `calibration.json`: likelihood and calibration error are of the `n` samples of `fitted_on`.

    `weights_sha256` is the checksum of the weights that it was fitted to; older files do not say it.
    """

    weights_sha256: Name | None = None
    temperature: PositiveFloat
    fitted_on: Name
    n: Annotated[int, Field(ge=2)]
    nll_before: float
    nll_after: float
    ece_before: Fraction
    ece_after: Fraction
    operating_point: OperatingPoint | None = None


def fit_temperature(logits: torch.Tensor, targets: np.ndarray, multi_label: bool = False) -> float:
    """Temperature that minimises the negative log-likelihood of validation data.

    The likelihood is convex in 1 / T, so the zero of its slope is bracketed and found, in float64 and without
    randomness. The result is never worse than T = 1.

    Args:
        logits: N x K, of images that were not trained on.
        targets: Class indices (N,), or 0/1 N x K.
        multi_label: Whether the K columns are sigmoids of their own rather than one softmax.

    Returns:
        The temperature, in [1/20, 20]. 1 where the likelihood does not depend on it. At an end of the range
        a warning is logged: the true minimum lies beyond, as for perfectly separated classes.
    """
    logits, classes = logits.double(), torch.as_tensor(targets).long()

    def slope(log_scale: float) -> float:
        return _slope(logits, classes, math.exp(log_scale), multi_label)

    lower, upper = -math.log(HIGHEST), -math.log(LOWEST)  # of log(1 / T)
    slope_lower, slope_upper = slope(lower), slope(upper)
    if slope_lower == slope_upper == 0:
        return 1.0
    if slope_lower >= 0:
        temperature = HIGHEST
    elif slope_upper <= 0:
        temperature = LOWEST
    else:
        temperature = math.exp(-brentq(slope, lower, upper, xtol=1e-15))
    if _nll(logits / temperature, classes, multi_label) > _nll(logits, classes, multi_label):
        return 1.0  # only by rounding, where T = 1 is the minimum
    if temperature in (LOWEST, HIGHEST):
        logger.warning(
            "The temperature is at the bound %g of [%g, %g]: these %d samples do not determine it.",
            temperature, LOWEST, HIGHEST, len(logits),
        )  # fmt: skip
    return temperature


def write_calibration(path: Path, record: Mapping[str, Any]) -> None:
    """Write the fields of `Calibration` as JSON, whole or not at all; refused as by `read_calibration`."""
    write_json(path, _checked(record, path))


def read_calibration(path: Path) -> dict[str, Any]:
    """Read what `write_calibration` wrote.

    Raises:
        ValueError: Naming the file and the key, where a key is missing or its value is not what it must be.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    return _checked(record, path)


def calibration_of(ckpt_path: str | Path, model_info: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the `calibration.json` beside weights that are described by `model_info`.

    Without one it is the temperature 1 alone; the log says so where the weights have been calibrated.

    Raises:
        ValueError: As of `read_calibration`; or if it was fitted to other weights.
    """
    path = Path(ckpt_path).with_name("calibration.json")
    if not path.is_file():
        if model_info.get("calibration"):
            logger.warning("%s was calibrated, and its calibration.json is not beside it: the probabilities are as "
                           "trained, and no threshold is used; keep the files together", ckpt_path)  # fmt: skip
        return {"temperature": 1.0}
    record = read_calibration(path)
    fitted_to, own = record.get("weights_sha256"), model_info.get("sha256")
    if fitted_to and own and fitted_to != own:
        raise ValueError(
            f"{path} was fitted to other weights than {ckpt_path} (it names another sha256): copy the one that belongs "
            "to them, or remove it and evaluate them with calibrate=true"
        )
    if not fitted_to:
        logger.warning("%s does not say which weights it was fitted to: other ones would not be noticed", path)
    return record


def _checked(record: Any, path: Path) -> dict[str, Any]:
    try:
        return Calibration.model_validate(record).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, p['loc'])) or 'the file'}: {p['msg']}" for p in error.errors())
        raise ValueError(f"{path}: {'; '.join(problems)}") from error


def _nll(logits: torch.Tensor, targets: torch.Tensor, multi_label: bool) -> float:
    """Mean negative log-likelihood over samples, or over samples and labels."""
    if multi_label:
        return float(functional.binary_cross_entropy_with_logits(logits, targets.double()))
    return float(functional.cross_entropy(logits, targets))


def _slope(logits: torch.Tensor, targets: torch.Tensor, scale: float, multi_label: bool) -> float:
    """Derivative of the negative log-likelihood of ``scale * logits`` by the scale; never decreasing in it.

    The mean over samples of the expected logit less the true one, each taken from the sample's true logit so
    that it vanishes exactly where all logits of a sample are equal.
    """
    if multi_label:
        return float(((torch.sigmoid(scale * logits) - targets) * logits).mean())
    differences = logits - logits.gather(1, targets[:, None])
    return float((torch.softmax(scale * differences, dim=1) * differences).sum(dim=1).mean())
