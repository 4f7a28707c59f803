"""First weights of a network: ImageNet's in both branches, or those of an earlier run."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from label_efficient.networks.imagenet_weights import ADDRESS, load_imagenet

from .network import GatedAttentionNet

logger = logging.getLogger(__name__)

_HEADS = ("global_head.", "fusion_head.")


def init_network(
    network: GatedAttentionNet,
    *,
    global_backbone: str,
    instance_backbone: str,
    pretrained: bool = False,
    ckpt_path: str | None = None,
    address: str = ADDRESS,
) -> GatedAttentionNet:
    """Give a new network its first weights; with neither source it keeps its random ones.

    Args:
        network: As just built.
        global_backbone: Name of its backbone for the small copy.
        instance_backbone: And for the instances.
        pretrained: Whether to load ImageNet weights into both.
        ckpt_path: Or the weights of an earlier run or release to continue from. Classifiers for other classes are left
            out, and so is what one of the two lacks of the other's fusion; the log says so.
        address: Where the ImageNet files are.

    Raises:
        ConnectionError: If an ImageNet file is neither in torch's cache nor to be had.
        ValueError: If the weights do not fit.
    """
    if pretrained:
        load_imagenet(network.global_branch, global_backbone, address)
        if network.instance_branch is not None:
            load_imagenet(network.instance_branch, instance_backbone, address)
    if ckpt_path is not None:
        _load_earlier(network, Path(ckpt_path))
    return network


def _load_earlier(network: GatedAttentionNet, path: Path) -> None:
    weights, whole = _read(path), network.state_dict()
    new: set[str] = set()
    # Heads of other classes, and of another number of instances, have another shape.
    for head in _HEADS:
        own = [k for k in whole if k.startswith(head)]
        if any(k not in weights or weights[k].shape != whole[k].shape for k in own):
            new.update(own)
    left_out = {k for k in weights if k.startswith(_HEADS) and (k in new or k not in whole)}
    # One of the two may be of the global branch alone. Where both have the branch it must be the same, name by name:
    # a ResNet-18 is a part of a ResNet-34.
    ours, theirs = ({k for k in names if k.startswith("instance_branch.")} for names in (whole, weights))
    if not theirs:
        new |= ours
    if not ours:
        left_out |= theirs
    kept = {k: v for k, v in weights.items() if k not in left_out}
    unfit = [k for k, v in kept.items() if k not in whole or whole[k].shape != v.shape]
    lacking = [k for k in whole if k not in kept and k not in new]
    if unfit or lacking:
        raise ValueError(
            f"ckpt_path: {path} does not fit this network: it has {unfit[:3]} and lacks {lacking[:3]}; attention and "
            "both backbones must be those of its training"
        )
    if new:
        logger.warning("%s is without, or for other classes or instances: %s start anew", path, _groups(new))
    if left_out - new:
        logger.warning("%s has a fusion, and method='global' none: %s left out", path, _groups(left_out - new))
    network.load_state_dict(whole | kept)


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """A plain state dict with names of this network."""
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path: {path} does not exist")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"ckpt_path: {path} is not readable as weights ({str(error)[:300]}): it is damaged or of another kind, "
            "expected the model.pt of a run of this bundle"
        ) from error
    names = list(weights) if isinstance(weights, Mapping) else []
    if not any(isinstance(name, str) and name.startswith("global_branch.") for name in names):
        found = f"its first names are {names[:3]}" if names else f"it holds a {type(weights).__name__}"
        raise ValueError(
            f"ckpt_path: {path} is of another bundle, or no plain weights ({found}): expected the model.pt of a run of "
            "this bundle"
        )
    return weights


def _groups(names: Collection[str]) -> str:
    return ", ".join(sorted({name.split(".")[0] for name in names}))
