"""First weights: torchvision's published ImageNet weights, or those of an earlier run."""

import logging
from pathlib import Path

import torch

from label_efficient.networks.imagenet_weights import ADDRESS, load_imagenet

from .network import LSANet

logger = logging.getLogger(__name__)


def init_network(
    network: LSANet,
    *,
    backbone: str,
    pretrained: bool = False,
    ckpt_path: str | None = None,
    address: str = ADDRESS,
) -> LSANet:
    """Give a new network its first weights; with neither source it keeps its random ones.

    Args:
        network: As just built.
        backbone: Name of its backbone.
        pretrained: Whether to load ImageNet weights into the backbone (all but the classifier).
        ckpt_path: Or the weights of an earlier run or release to continue from. A classifier for other
            classes is left out, and the log says so.
        address: Where the ImageNet files are.

    Raises:
        ConnectionError: If the ImageNet file is neither in torch's cache nor to be had.
        ValueError: If the weights do not fit.
    """
    if pretrained:
        load_imagenet(network.backbone, backbone, address)
    if ckpt_path is not None:
        _load_earlier(network, Path(ckpt_path))
    return network


def _load_earlier(network: LSANet, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path: {path} does not exist")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"ckpt_path: {path} is not readable as weights ({str(error)[:300]})") from error
    whole = network.state_dict()
    prefix = "" if any(k.startswith("backbone.") for k in weights) else "backbone."
    named = {prefix + k: v for k, v in weights.items()}
    other_classes = [k for k, v in named.items() if k in whole and whole[k].shape != v.shape and _is_classifier(k)]
    kept = {k: v for k, v in named.items() if k not in other_classes}
    unfit = [k for k, v in kept.items() if k not in whole or whole[k].shape != v.shape]
    lacking = [k for k in whole if k.startswith("backbone.") and k not in named]
    if unfit or lacking:
        raise ValueError(
            f"ckpt_path: {path} does not fit this network: it has {unfit[:3]} and lacks {lacking[:3]}; "
            "backbone and attention (and for the weights of all nodes method, output_nodes and lsa) must be "
            "those of its training"
        )
    if other_classes:
        logger.warning("%s was trained for other classes: its classifiers %s start anew", path, other_classes)
    network.load_state_dict(whole | kept)


def _is_classifier(key: str) -> bool:
    return key.startswith(("backbone.fc.", "backbone.class_layers.out.", "heads."))
