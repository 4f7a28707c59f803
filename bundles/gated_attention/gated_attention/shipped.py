"""The network as it is shipped and exported, and run on data: logits, attention and instances of every image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from label_efficient.engine.autocast import AutocastInferer
from label_efficient.evaluation.outputs import collect_outputs
from label_efficient.networks.model_info import network_arguments

from .network import EARLIER, GatedAttentionNet
from .transforms import PrepareBatch


class ShippedGatedAttention(GatedAttentionNet):
    """The weights of `GatedAttentionNet`, for inference: logits of the fusion, or of the global branch alone."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Images B x 3 x H x W in 0..255, uint8 or float, to logits B x N."""
        output = self.look(list(image.unbind(0)), True)
        return output["logits"] if "logits" in output else output["global_logits"]


def build_shipped(info: Mapping[str, Any], **changes: Any) -> ShippedGatedAttention:
    """The network that `model.pt` has the weights of, see `model_info.network_arguments`."""
    return ShippedGatedAttention(**network_arguments(ShippedGatedAttention, EARLIER | dict(info), changes))


def look_at(
    network: GatedAttentionNet, loader: DataLoader[Any], *, device: Any, amp: bool | str = False
) -> dict[str, torch.Tensor]:
    """What the network returns of all images of a loader, on the CPU; always with the `logits` of the prediction."""
    found = collect_outputs(
        # In the layout of training, so that the figures are the same to the last digit.
        network.to(device=device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        loader,
        device=device,
        inferer=AutocastInferer(amp=amp),
        prepare_batch=PrepareBatch(),
        keep=lambda pred: pred,
    )
    return {"logits": found["global_logits"], **found}
