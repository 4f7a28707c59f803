"""Half precision: where it is used, and the inferer that runs a network in it."""

from collections.abc import Mapping
from typing import Any

import torch
from ignite.utils import apply_to_tensor
from monai.inferers import SimpleInferer

_HALF = (torch.float16, torch.bfloat16)


def half_precision(amp: bool | str, device: str | torch.device) -> bool:
    """Whether a network runs in half precision on a device: float16 on a GPU, bfloat16 on a CPU.

    With `amp` "auto" on a GPU, and on a CPU that computes in bfloat16: others convert every number back and forth, and
    are slower than in single precision.

    Raises:
        ValueError: If `amp` is another word.
    """
    if isinstance(amp, bool):
        return amp
    if amp != "auto":
        raise ValueError(f"amp is {amp!r}, expected true, false or auto")
    if torch.device(device).type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.device(device).type == "cuda"


def scales_gradients(amp: bool | str, device: str | torch.device) -> bool:
    """Whether a trainer on a device scales its gradients: float16 has too few small numbers for them, bfloat16 not.

    For MONAI's `SupervisedTrainer`, whose `amp` is made for GPUs alone.
    """
    return torch.device(device).type == "cuda" and half_precision(amp, device)


class AutocastInferer(SimpleInferer):
    """Runs a network in half precision if asked for, on a GPU or a CPU; its output is float32 again.

    The output is a tensor, or a dictionary or a tuple of tensors. Losses, metrics and files are so computed in single
    precision. MONAI's engines know autocast for GPUs only. `amp` is as of `half_precision`.
    """

    def __init__(self, *, amp: bool | str = False) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Images, as a tensor, a list or a dictionary of tensors, to the network's output."""
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
        device = first.device.type
        with torch.autocast(device, enabled=half_precision(self.amp, device)):
            output = network(inputs, *args, **kwargs)
        return apply_to_tensor(output, lambda value: value.float() if value.dtype in _HALF else value)
