"""Whether a graph is recorded for ONNX, which no loop can end in by what it finds, and no size can depend on data."""

import torch


def is_exporting() -> bool:
    """Whether torch.export records what is computed; false in TorchScript, which keeps loops."""
    if torch.jit.is_scripting():  # noqa: SIM108 -- TorchScript leaves out a branch of this form alone
        recorded = False
    else:
        recorded = torch.compiler.is_exporting()
    return recorded
