"""Torchvision's published ImageNet weights for the backbones."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch

from label_efficient.networks.backbones import Backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADDRESS = "https://download.pytorch.org/models/"
# Version 1 weights; the digits in a name are the beginning of the file's sha256, which is verified.
_NAMES = (
    "resnet18-f37072fd.pth resnet34-b627a593.pth resnet50-0676ba61.pth resnet101-63fe2227.pth "
    "wide_resnet50_2-95faca4d.pth wide_resnet101_2-32ee1156.pth "
    "resnext50_32x4d-7cdf4587.pth resnext101_32x8d-8ba56ff5.pth "
    "densenet121-a639ec97.pth densenet169-b2777c0a.pth densenet201-c1103571.pth "
    "vgg16-397923af.pth vgg19-dcbb9e9d.pth"
)
FILES = {name.partition("-")[0]: name for name in _NAMES.split()}


def load_imagenet(backbone: Backbone, address: str = ADDRESS) -> None:
    """Load ImageNet weights into a backbone, all but its classifier; the files are at `address`.

    Raises:
        ConnectionError: If the file is neither in torch's cache nor to be had.
        ValueError: If the weights do not fit.
    """
    name = backbone.name
    url = address + FILES[name]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        weights = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"pretrained=true: {url} could not be downloaded ({error}). On a machine with a network, fetch "
            f"it and put it into {folder} as {FILES[name]}; or train with pretrained=false"
        ) from error
    except Exception as error:
        if "hash" in str(error):
            raise
        path = folder / FILES[name]
        # torch's own sentence advises to load what may run code.
        raise ValueError(f"pretrained=true: {path} is damaged: delete it and try again") from error
    outcome = backbone.load_state_dict(imagenet_names(weights, name), strict=False)
    # Attention modules and the classifier are not in ImageNet's weights; anything else missing is a mistake.
    new = ("fc.", "class_layers.")
    missing = [k for k in outcome.missing_keys if ".attention." not in k and not k.startswith(new)]
    if missing or outcome.unexpected_keys:
        raise ValueError(f"{url} does not fit: missing {missing[:5]}, unexpected {outcome.unexpected_keys[:5]}")


def imagenet_names(weights: Mapping[str, torch.Tensor], backbone: str) -> dict[str, torch.Tensor]:
    """Torchvision's weights under the names of our backbones, without its classifier of 1000 classes."""
    kept = {k: v for k, v in weights.items() if not k.startswith(("fc.", "classifier."))}
    if not backbone.startswith("densenet"):
        return kept
    # denselayer1.norm.1.weight in the published files, denselayer1.layers.norm1.weight in MONAI's network.
    pattern = re.compile(r"(denselayer\d+)\.(norm|conv)\.?([12])\.")
    return {pattern.sub(r"\1.layers.\2\3.", k): v for k, v in kept.items()}
