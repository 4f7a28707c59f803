"""Weights of a network: a plain state dict, and beside it what they are."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from label_efficient.data.seen_images import write_seen_images
from label_efficient.files import read_json, sha256, versions, write_json, write_whole
from label_efficient.setting_fields import setting
from label_efficient.setting_models import SettingsModel, problems_of
from label_efficient.tensor_files import read_tensors

logger = logging.getLogger(__name__)

Name = Annotated[str, Field(min_length=1)]


class Description(SettingsModel):
    """What a description of weights (`model.json`) says that is no setting of their training."""

    bundle: str = setting("whose network", min_length=1)
    classes: list[Name] = setting("in the order of the outputs", expected="a list of the names of the classes")
    task: str = setting("what a label is", min_length=1)
    best_epoch: int = setting("which they are of; 0: before the first", ge=0)
    data_sha256: str = setting("of the data of their training", min_length=1)
    sha256: str = setting("of the file", pattern="^[0-9a-f]{64}$", expected="64 hexadecimal digits")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a plain state dict that is whole: its checksum is that of the `.json` beside it, its numbers are finite.

    Where nothing beside it says its checksum, the log says so, once.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no plain state dict, has been changed or damaged, or has a NaN or infinite number.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder: give the file in it, such as model.pt" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"ckpt_path: {path} {what}; train first, or give the weights of a run")
    beside = path.with_suffix(".json")
    recorded = read_info(beside, "what the weights are").get("sha256") if beside.is_file() else None
    if recorded is None:
        _warn_once(f"{path}: no {beside.name} beside it says its sha256, so that other weights would not be noticed")
    elif recorded != sha256(path):
        raise ValueError(
            f"ckpt_path: {path} is not the file that {beside} describes (its sha256 is another): it was damaged or "
            "exchanged; copy both again from where they were made, or train again"
        )
    try:
        weights = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"ckpt_path: {error}: expected the model.pt of a run of this bundle") from None
    names = list(weights) if isinstance(weights, Mapping) else []
    if not names or not all(isinstance(name, str) and isinstance(weights[name], torch.Tensor) for name in names):
        found = f"its first names are {names[:3]}" if names else f"it holds a {type(weights).__name__}"
        raise ValueError(
            f"ckpt_path: {path} is of another bundle, or no plain weights ({found}): expected the model.pt of a run of "
            "this bundle, not its checkpoint.pt, nor weights within another dictionary"
        )
    if broken := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise ValueError(
            f"ckpt_path: {path}: {len(broken)} of its tensors, the first {broken[0]}, are not finite (NaN or "
            "infinite): their training diverged, or the file is broken; take others"
        )
    return dict(weights)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load weights as of `read_weights`, all of them; a ValueError if they are not this network's."""
    weights = read_weights(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"ckpt_path: {path} does not hold the weights of this network ({str(error)[:500]}). The settings "
            "of the network and the classes must be those of its training"
        ) from error


def read_info(path: Path, what: str) -> dict[str, Any]:
    """A description of weights; a ValueError that names the fields that are not what they must be."""
    info = read_json(path, what)
    if not isinstance(info, dict):
        raise ValueError(f"{path}: expected an object with {what}")
    problems = problems_of(Description, info, {}, given_alone=True)
    if not problems and len(set(classes := info.get("classes", []))) < len(classes):
        problems.append(f"classes={classes!r}: a name stands there twice")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return info


def read_model_info(
    ckpt_path: str, *, bundle: str, needed: Sequence[str], settings: type[SettingsModel] = Description
) -> dict[str, Any]:
    """What weights are: the `.json` of the same name beside them (network, classes, preprocessing).

    The weights are read, too, if they are there: servers and exports load them past `load_weights`. What the
    description has of the `settings` of a training must be what these may be.

    Raises:
        FileNotFoundError: If it is missing: without it the classes would be a guess.
        ValueError: If they are the weights of another bundle, a name that is needed is missing, a value is not what it
            must be, or `read_weights` refuses them.
    """
    weights = Path(ckpt_path)
    path = weights.with_suffix(".json")
    if not weights.is_dir():
        what = f"the description of {weights.name}: a run writes both, model.pt and model.json, keep them together"
        info = read_info(path, what)
        if info.get("bundle", bundle) != bundle:
            raise ValueError(f"{path}: these are weights of the bundle {info['bundle']!r}, expected {bundle!r}")
        if missing := [name for name in ("bundle", *needed) if name not in info]:
            raise ValueError(
                f"{path}: {', '.join(missing)} missing; expected the file that a run of this bundle writes"
            )
        if problems := problems_of(settings, info, {}, given_alone=True):
            raise ValueError(f"{path}: {'; '.join(problems)}")
    if weights.exists():
        read_weights(weights)
    return info


def check_model_info(ckpt_path: Path, expected: Mapping[str, Any], unsaid: Mapping[str, Any]) -> dict[str, Any]:
    """The description of weights; a ValueError if it has other classes, settings or preprocessing than expected.

    What those of earlier versions do not say was as in `unsaid`. Without a description it is a FileNotFoundError.
    """
    info = dict(unsaid) | read_info(
        ckpt_path.with_suffix(".json"),
        f"the classes and settings that {ckpt_path.name} was trained with: train first, or keep the two files together",
    )
    differing = [
        f"{name} was {info.get(name)!r} and is {value!r}" for name, value in expected.items() if info.get(name) != value
    ]
    if differing:
        raise ValueError(f"{ckpt_path} was trained otherwise: {'; '.join(differing)}")
    return info


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def save_model(
    path: Path, weights: Mapping[str, torch.Tensor], info: Mapping[str, Any], images: np.ndarray | None = None
) -> None:
    """Write weights as a plain state dict, and beside it what they are (`.json`) and saw (see `seen_images`)."""
    if images is not None:
        info = {**info, "images_sha256": write_seen_images(path, images)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_whole(path, lambda file: torch.save(contiguous, file))
    write_json(path.with_suffix(".json"), {**info, "sha256": sha256(path), "versions": versions()})
