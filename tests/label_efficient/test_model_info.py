"""A network out of the description of its weights."""

from pathlib import Path

import pytest
import torch
from monai.bundle import create_workflow

from label_efficient.networks.model_info import network_arguments

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


class Network(torch.nn.Module):
    """Its arguments alone."""

    def __init__(self, *, num_classes: int, width: int = 3, method: str = "a") -> None:
        super().__init__()


INFO = {"bundle": "x", "classes": ["a", "b"], "width": 5, "method": "b", "seed": 0}


@pytest.mark.parametrize("changes", [{}, {"width": 7}, {"num_classes": 4, "method": "c"}])
def test_arguments_are_those_of_the_description_unless_changed(changes):
    expected = {"num_classes": 2, "width": 5, "method": "b"} | changes
    assert network_arguments(Network, INFO, changes) == expected


def test_a_change_that_is_no_argument_is_refused():
    with pytest.raises(ValueError, match="network_def: the network has no seed, widht, expected any of num_classes, w"):
        network_arguments(Network, INFO, {"seed": 1, "widht": 7})


def test_an_argument_that_the_description_lacks_is_named():
    # Another value than at training would give other figures, or weights that do not fit.
    with pytest.raises(ValueError, match="lacks width, method; it has classes"):
        network_arguments(Network, {"classes": ["a"]}, {})


@pytest.mark.parametrize(
    ("bundle", "kind", "change", "attribute"),
    [
        ("lsanet", "inference", {"num_classes": 5}, lambda network: network.fc.out_features == 5),
        ("lsanet", "train", {"num_classes": 5}, lambda network: network.heads[0].fc.out_features == 5),
        ("multimix", "inference", {"dropout": 0.5}, lambda network: network.encoder.blocks[0].dropout == 0.5),
        ("gated_attention", "inference", {"threshold": 0.25}, lambda network: network.threshold == 0.25),
    ],
)
def test_a_program_that_takes_the_network_of_a_bundle_can_change_it(bundle, kind, change, attribute):
    """As `monai.bundle.load` does with its `net_override`."""
    workflow = create_workflow(
        config_file=str(BUNDLES / bundle / "configs" / f"{kind}.json"),
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(BUNDLES / bundle),
        device="cpu",
        **{f"network_def#{name}": value for name, value in change.items()},
    )
    assert attribute(workflow.network_def)
