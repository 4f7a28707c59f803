"""First weights: torchvision's published ImageNet weights, or those of an earlier run."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from .backbones import Backbone
from .network import LSANet

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADDRESS = "https://download.pytorch.org/models/"
# Version 1 weights; the digits in a name are the beginning of the file's sha256, which is verified.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2": "wide_resnet101_2-32ee1156.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "densenet169": "densenet169-b2777c0a.pth",
    "densenet201": "densenet201-c1103571.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
}


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
        _load_imagenet(network.backbone, backbone, address)
    if ckpt_path is not None:
        _load_earlier(network, Path(ckpt_path))
    return network


def _load_imagenet(network: Backbone, name: str, address: str) -> None:
    url = address + FILES[name]
    try:
        weights = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConnectionError(
            f"pretrained=true: {url} could not be downloaded ({error}). On a machine with a network, fetch "
            f"it and put it into {folder} as {FILES[name]}; or train with pretrained=false"
        ) from error
    _load_matching(network, imagenet_names(weights, name), url)


def imagenet_names(weights: Mapping[str, torch.Tensor], backbone: str) -> dict[str, torch.Tensor]:
    """Torchvision's weights under the names of our backbones, without its classifier of 1000 classes."""
    kept = {k: v for k, v in weights.items() if not k.startswith(("fc.", "classifier."))}
    if not backbone.startswith("densenet"):
        return kept
    # denselayer1.norm.1.weight in the published files, denselayer1.layers.norm1.weight in MONAI's network.
    pattern = re.compile(r"(denselayer\d+)\.(norm|conv)\.?([12])\.")
    return {pattern.sub(r"\1.layers.\2\3.", k): v for k, v in kept.items()}


def _load_matching(network: nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    outcome = network.load_state_dict(dict(weights), strict=False)
    # Attention modules and the classifier are not in ImageNet's weights; anything else missing is a mistake.
    new = ("fc.", "class_layers.")
    missing = [k for k in outcome.missing_keys if ".attention." not in k and not k.startswith(new)]
    if missing or outcome.unexpected_keys:
        raise ValueError(f"{source} does not fit: missing {missing[:5]}, unexpected {outcome.unexpected_keys[:5]}")


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
