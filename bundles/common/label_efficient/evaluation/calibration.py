"""Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017) and its file."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import brentq
from torch.nn import functional

from label_efficient.files import write_json

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 1 / 20, 20.0  # temperatures searched

_NUMBERS = ("temperature", "nll_before", "nll_after", "ece_before", "ece_after")
_OPERATING_NUMBERS = ("threshold", "target_specificity", "sensitivity", "specificity")
_POSITIVE, _FRACTIONS = ("temperature",), ("ece_before", "ece_after", "sensitivity", "specificity")


def fit_temperature(logits: Any, targets: Any, multi_label: bool = False) -> float:
    """Temperature that minimises the negative log-likelihood of validation data.

    The likelihood is convex in 1 / T, so the zero of its slope is bracketed and found, in float64 and without
    randomness. The result is never worse than T = 1.

    Args:
        logits: ``(N, K)``, N >= 2, of images that were not trained on.
        targets: class indices ``(N,)`` or ``(N, 1)``, or 0/1 ``(N, K)`` with ``multi_label``.
        multi_label: whether the K columns are sigmoids of their own rather than one softmax.

    Returns:
        The temperature, in [1/20, 20]. 1 where the likelihood does not depend on it. At an end of the range
        a warning is logged: the true minimum lies beyond, as for perfectly separated classes.
    """
    logits, targets = _check(logits, targets, multi_label)

    def slope(log_scale: float) -> float:
        return _slope(logits, targets, math.exp(log_scale), multi_label)

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
    if _nll(logits / temperature, targets, multi_label) > _nll(logits, targets, multi_label):
        return 1.0  # only by rounding, where T = 1 is the minimum
    if temperature in (LOWEST, HIGHEST):
        logger.warning(
            "The temperature is at the bound %g of [%g, %g]: these %d samples do not determine it.",
            temperature, LOWEST, HIGHEST, len(logits),
        )  # fmt: skip
    return temperature


def write_calibration(
    path: str | os.PathLike[str],
    temperature: float,
    *,
    fitted_on: str,
    n: int,
    nll_before: float,
    nll_after: float,
    ece_before: float,
    ece_after: float,
    operating_point: dict[str, Any] | None = None,
) -> None:
    """Write a calibration as JSON, whole or not at all.

    Args:
        path: the file; its folder is made where absent.
        temperature: as ``fit_temperature`` returns it.
        fitted_on: name of the data, such as ``"validation"``.
        n: number of samples it was fitted on.
        nll_before: negative log-likelihood of these samples at T = 1.
        nll_after: the same at the temperature.
        ece_before: expected calibration error at T = 1.
        ece_after: the same at the temperature.
        operating_point: for binary tasks: ``threshold`` (of the probability after scaling),
            ``target_specificity``, ``sensitivity``, ``specificity`` and ``fitted_on``.
    """
    path = Path(path)
    record: dict[str, Any] = {
        "temperature": temperature,
        "fitted_on": fitted_on,
        "n": n,
        "nll_before": nll_before,
        "nll_after": nll_after,
        "ece_before": ece_before,
        "ece_after": ece_after,
    }
    if operating_point is not None:
        record["operating_point"] = operating_point
    _check_record(record, path)
    write_json(path, record)


def read_calibration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``write_calibration`` wrote.

    Raises:
        ValueError: naming the file and the key, where a key is missing or its value is not what it must be.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    _check_record(record, path)
    return record


def read_temperature(ckpt_path: str | os.PathLike[str]) -> float:
    """Temperature of the ``calibration.json`` beside weights; 1 if they were not calibrated."""
    path = Path(ckpt_path).with_name("calibration.json")
    return float(read_calibration(path)["temperature"]) if path.is_file() else 1.0


def _check_record(record: Any, path: Path) -> None:
    """Raise a ValueError that names the file and the key where a calibration is not one."""
    _check_keys(record, path, "", _NUMBERS)
    if isinstance(record["n"], bool) or not isinstance(record["n"], int) or record["n"] < 2:
        raise ValueError(f"{path}: n must be an integer of at least 2, got {record['n']!r}.")
    if "operating_point" in record:
        point = record["operating_point"]
        _check_keys(point, path, "operating_point.", _OPERATING_NUMBERS)
        if not 0 < point["target_specificity"] < 1:
            raise ValueError(
                f"{path}: operating_point.target_specificity must be between 0 and 1, both excluded, "
                f"got {point['target_specificity']!r}."
            )


def _check_keys(record: Any, path: Path, prefix: str, numbers: tuple[str, ...]) -> None:
    """Check that a JSON object has its numbers, each in its range, and ``fitted_on``."""
    if not isinstance(record, dict):
        raise ValueError(f"{path}: {prefix.rstrip('.') or 'the file'} must be a JSON object, got {record!r}.")
    required = (*numbers, "fitted_on") if prefix else (*numbers, "fitted_on", "n")
    for key in required:
        if key not in record:
            raise ValueError(f"{path}: {prefix}{key} is missing.")
    for key in numbers:
        value = record[key]
        if not _is_number(value):
            raise ValueError(f"{path}: {prefix}{key} must be a finite number, got {value!r}.")
        if key in _POSITIVE and value <= 0:
            raise ValueError(f"{path}: {prefix}{key} must be a positive finite number, got {value!r}.")
        if key in _FRACTIONS and not 0 <= value <= 1:
            raise ValueError(f"{path}: {prefix}{key} must be within [0, 1], got {value!r}.")
    if not isinstance(record["fitted_on"], str) or not record["fitted_on"]:
        raise ValueError(f"{path}: {prefix}fitted_on must be a name, got {record['fitted_on']!r}.")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


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


def _check(logits: Any, targets: Any, multi_label: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits as float64 ``(N, K)`` and targets as int64 on the CPU, or a ValueError."""
    logits = torch.as_tensor(logits).detach().cpu().double()
    targets = torch.as_tensor(targets).detach().cpu()
    least = 1 if multi_label else 2
    if logits.ndim != 2 or len(logits) < 2 or logits.shape[1] < least:
        raise ValueError(f"logits must be (N >= 2, K >= {least}), got {tuple(logits.shape)}.")
    if not torch.isfinite(logits).all():
        raise ValueError(f"logits must be finite, got {int((~torch.isfinite(logits)).sum())} that are not.")
    arrived = tuple(targets.shape)
    if not multi_label and targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    expected = tuple(logits.shape) if multi_label else (len(logits),)
    if tuple(targets.shape) != expected:
        raise ValueError(f"targets must be {expected} for logits {tuple(logits.shape)}, got {arrived}.")
    highest = 1 if multi_label else logits.shape[1] - 1
    values = targets.double()
    wrong = values[~((values == values.round()) & (values >= 0) & (values <= highest))]
    if len(wrong):
        raise ValueError(f"targets must be whole numbers from 0 to {highest}, got {wrong[0].item():g}.")
    return logits, values.long()
