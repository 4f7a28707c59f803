"""First weights of a network: ImageNet's in its backbones, or those of an earlier run or release."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from label_efficient.networks.backbones import Backbone
from label_efficient.networks.imagenet_weights import ADDRESS, load_imagenet
from label_efficient.tensor_files import read_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightParts:
    """What the weights of a kind of network consist of, each part by the beginning of its names.

    Attributes:
        core: What all of them have; without it they are of another bundle.
        classifiers: Layers that start anew where theirs are of another shape.
        optional: What only some methods have: it starts anew where theirs lack it, or is left out.
        same: The settings that must be those of their training.
        shaped_by: What gives the classifiers their shape.
        core_alone: Whether released weights are those of the core, without its name.
    """

    core: str
    classifiers: tuple[str, ...]
    optional: tuple[str, ...]
    same: str
    shaped_by: str = "classes"
    core_alone: bool = False


def init_network(
    network: nn.Module,
    *,
    parts: WeightParts,
    pretrained: bool = False,
    ckpt_path: str | None = None,
    address: str = ADDRESS,
) -> nn.Module:
    """Give a new network its first weights; with neither source it keeps its random ones.

    `pretrained` loads ImageNet's, from `address`, into its backbones (all but their classifiers); `ckpt_path` has those
    of an earlier run or release to continue from. Of these, classifiers for other classes are left out, and so is what
    one of the two lacks of the other's method; the log says so.

    Raises:
        ConnectionError: If an ImageNet file is neither in torch's cache nor to be had.
        FileNotFoundError: If there are no earlier weights.
        ValueError: If the weights do not fit.
    """
    if pretrained:
        for module in network.children():
            if isinstance(module, Backbone):
                load_imagenet(module, address)
    if ckpt_path is not None:
        _load_earlier(network, parts, Path(ckpt_path))
    return network


def _load_earlier(network: nn.Module, parts: WeightParts, path: Path) -> None:
    whole = network.state_dict()
    weights = _read(path, parts, whole)
    fitting = {k for k, v in weights.items() if k in whole and whole[k].shape == v.shape}
    # A layer starts anew as a whole: its bias can have the right shape where its weight has not.
    unlike = {k.rpartition(".")[0] for k in whole if k.startswith(parts.classifiers) and k not in fitting}
    new = {k for k in whole if k.rpartition(".")[0] in unlike}
    surplus = {k for k in weights if k.startswith(parts.classifiers) and k not in whole}
    anew, left_out = set(unlike), {k.rpartition(".")[0] for k in surplus}
    # Where both have an optional part it must be the same, name by name: a ResNet-18 is a part of a ResNet-34.
    for part in parts.optional:
        ours, theirs = ({k for k in names if k.startswith(part)} for names in (whole, weights))
        if ours and not theirs:
            new |= ours
            anew.add(part.rstrip("."))
        if theirs and not ours:
            surplus |= theirs
            left_out.add(part.rstrip("."))
    kept = {k: v for k, v in weights.items() if k not in new and k not in surplus}
    unfit = [k for k in kept if k not in fitting]
    lacking = [k for k in whole if k not in kept and k not in new]
    if unfit or lacking:
        raise ValueError(
            f"ckpt_path: {path} does not fit this network: it has {unfit[:3]} and lacks {lacking[:3]}; {parts.same} "
            "must be those of its training"
        )
    if anew:
        names = ", ".join(sorted(anew))
        logger.warning("%s is without, or for other %s: %s start anew", path, parts.shaped_by, names)
    if left_out:
        logger.warning("%s has more than this method: %s left out", path, ", ".join(sorted(left_out)))
    network.load_state_dict(whole | kept)


def _read(path: Path, parts: WeightParts, whole: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """A plain state dict with names of the network whose state dict is `whole`."""
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path: {path} does not exist")
    try:
        weights = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"ckpt_path: {error}: expected the model.pt of a run of this bundle") from None
    names = list(weights) if isinstance(weights, Mapping) else []
    if all(isinstance(weights[name], torch.Tensor) for name in names):
        if any(str(name).startswith(parts.core) for name in names):
            return weights
        if names and parts.core_alone:
            # What released weights never have stays as it is.
            beside = {k: v for k, v in whole.items() if not k.startswith(parts.core)}
            return beside | {parts.core + name: weights[name] for name in names}
    found = f"its first names are {names[:3]}" if names else f"it holds a {type(weights).__name__}"
    raise ValueError(
        f"ckpt_path: {path} is of another bundle, or no plain weights ({found}): expected the model.pt of a run of "
        "this bundle"
    )
