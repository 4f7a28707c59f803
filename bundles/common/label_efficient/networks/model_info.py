"""The arguments of a network, out of the description of its weights (`model.json`; `model_info` in the configs)."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def network_arguments(network: type[nn.Module], info: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a network's constructor out of a description, which may say more than that.

    `info` has them by name, but `classes` instead of `num_classes`. `changes` override it: programs that load a bundle
    put them beside `info` into `network_def`.

    Raises:
        ValueError: If a change is no argument of the network, or the description lacks one.
    """
    names = list(inspect.signature(network).parameters)
    if unknown := [name for name in changes if name not in names]:
        raise ValueError(f"network_def: the network has no {', '.join(unknown)}, expected any of {', '.join(names)}")
    values = {"num_classes": len(info["classes"]), **info, **changes}
    for name in changes:
        if values[name] != info.get(name, values[name]):
            logger.warning("network_def: %s=%r, and the weights were trained with %r", name, values[name], info[name])
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"the description of the network lacks {', '.join(missing)}; it has {', '.join(info)}")
    return {name: values[name] for name in names}
