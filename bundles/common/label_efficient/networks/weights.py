"""Weights of a network: a plain state dict, and beside it what they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from label_efficient.data.seen_images import write_seen_images
from label_efficient.files import read_json, sha256, versions, write_json, write_whole


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a plain state dict, all of it; FileNotFoundError: no such file, ValueError: not this network's weights."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path: {path} does not exist; train first, or give the weights of a run")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except Exception as error:
        raise ValueError(
            f"ckpt_path: {path} does not hold the weights of this network ({str(error)[:500]}). The settings "
            "of the network and the classes must be those of its training"
        ) from error


def read_model_info(ckpt_path: str, *, bundle: str, needed: Sequence[str]) -> dict[str, Any]:
    """What weights are: the `.json` of the same name beside them (network, classes, preprocessing).

    Raises:
        FileNotFoundError: If it is missing: without it the classes would be a guess.
        ValueError: If they are the weights of another bundle, or a name that is needed is missing.
    """
    path = Path(ckpt_path).with_suffix(".json")
    info = read_json(path, f"the description of {Path(ckpt_path).name}: a run writes both, keep them together")
    if info.get("bundle", bundle) != bundle:
        raise ValueError(f"{path}: these are weights of the bundle {info['bundle']!r}, expected {bundle!r}")
    if missing := [name for name in ("bundle", *needed) if name not in info]:
        raise ValueError(f"{path}: {', '.join(missing)} missing; expected the file that a run of this bundle writes")
    return info


def check_model_info(ckpt_path: Path, expected: Mapping[str, Any]) -> None:
    """Refuse (ValueError) weights whose description has other classes, settings or preprocessing than expected.

    Without a description it is a FileNotFoundError.
    """
    info = read_json(
        ckpt_path.with_suffix(".json"),
        f"the classes and settings that {ckpt_path.name} was trained with: train first, or keep the two files together",
    )
    differing = [
        f"{name} was {info.get(name)!r} and is {value!r}" for name, value in expected.items() if info.get(name) != value
    ]
    if differing:
        raise ValueError(f"{ckpt_path} was trained otherwise: {'; '.join(differing)}")


def save_model(
    path: Path, weights: Mapping[str, torch.Tensor], info: Mapping[str, Any], images: np.ndarray | None = None
) -> None:
    """Write weights as a plain state dict, and beside it what they are (`.json`) and saw (see `seen_images`)."""
    if images is not None:
        info = {**info, "images_sha256": write_seen_images(path, images)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_whole(path, lambda file: torch.save(contiguous, file))
    write_json(path.with_suffix(".json"), {**info, "sha256": sha256(path), "versions": versions()})
