"""Backbones: published sizes and names, output nodes, smallest images, one training step of each."""

import ast
from pathlib import Path

import pytest
import torch

import label_efficient
from label_efficient.networks.backbones import BACKBONES, build_backbone, check_image_size
from label_efficient.networks.block_attention import ATTENTIONS, build_attention
from lsanet.losses import LSANetLoss
from lsanet.network import LSANet

# Parameters of the ImageNet models (1000 classes), as torchvision's documentation lists them.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
}
# The published VGG has three fully connected layers (25088-4096-4096-1000), ours one after pooling.
VGG_FULLY_CONNECTED = 123_642_856
VGG_POOLED_LINEAR = 512 * 1000 + 1000

CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "densenet121": (256, 512, 1024, 1024),
    "densenet169": (256, 512, 1280, 1664),
    "densenet201": (256, 512, 1792, 1920),
    "vgg16": (128, 256, 512, 512),
    "vgg19": (128, 256, 512, 512),
}
SMALLEST = {"densenet121": 29, "densenet169": 29, "densenet201": 29, "vgg16": 32, "vgg19": 32}
# One of every construction: basic blocks, bottlenecks with groups, dense blocks, plain convolutions.
KINDS = [
    ("resnet18", "none"),
    ("resnext50_32x4d", "none"),
    ("densenet121", "none"),
    ("vgg16", "none"),
    *(("resnet18", attention) for attention in ATTENTIONS if attention != "none"),
]


def meta_backbone(name, num_classes=5, **kwargs):
    """A backbone without memory: enough for counts and shapes."""
    with torch.device("meta"):
        return build_backbone(name, num_classes, **kwargs)


def used(network):
    """The network in eval mode, with statistics and affine maps that make every batch norm do something."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_count_is_the_published_one(name):
    expected = PUBLISHED[name]
    if name.startswith("vgg"):
        expected += VGG_POOLED_LINEAR - VGG_FULLY_CONNECTED
    assert sum(p.numel() for p in meta_backbone(name, 1000).parameters()) == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_node_maps_have_the_stated_channels_and_halve_in_size(name):
    network = meta_backbone(name)
    channels = CHANNELS.get(name, (256, 512, 1024, 2048))
    assert network.node_channels == channels
    for size, sides in ((224, (56, 28, 14, 7)), (64, (16, 8, 4, 2))):
        maps = network.forward_nodes(torch.empty(2, 3, size, size, device="meta"))
        assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert network.classify(maps[-1]).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "size", "sides"),
    [
        ("resnet18", 28, (7, 4, 2, 1)),
        ("resnet50", 100, (25, 13, 7, 4)),
        ("densenet121", 100, (25, 12, 6, 3)),
        ("densenet121", 29, (8, 4, 2, 1)),
        ("vgg16", 100, (25, 12, 6, 3)),
    ],
)
def test_odd_sizes_round_up_in_resnets_and_down_elsewhere(name, size, sides):
    maps = meta_backbone(name).forward_nodes(torch.empty(2, 3, size, size, device="meta"))
    assert tuple(m.shape[-1] for m in maps) == sides


@pytest.mark.parametrize(("name", "attention"), KINDS)
def test_forward_nodes_classify_tail_and_script_agree(name, attention):
    torch.manual_seed(0)
    network = used(build_backbone(name, 5, attention=attention))
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        logits = network(image)
        maps = network.forward_nodes(image)
        assert logits.std() > 0
        torch.testing.assert_close(network.classify(maps[-1]), logits)
        for node in range(3):
            torch.testing.assert_close(network.tail(node)(maps[node]), maps[-1])
        torch.testing.assert_close(torch.jit.script(network)(image), logits)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg16"])
def test_later_stages_leave_the_earlier_maps_alone(name):
    # An in-place activation on a node's map would change what its auxiliary classifier sees.
    torch.manual_seed(0)
    network = used(build_backbone(name, 2))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        maps = network.forward_nodes(image)
        kept = [m.clone() for m in maps]
        for node, feature_map in enumerate(maps):
            network.tail(node)(feature_map)
            network.classify(maps[-1])
    for before, after in zip(kept, maps, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", BACKBONES)
def test_smallest_image_runs_and_one_pixel_less_is_refused(name):
    smallest = SMALLEST.get(name, 1)
    check_image_size(name, smallest)
    network = meta_backbone(name)
    maps = network.forward_nodes(torch.empty(2, 3, smallest, smallest, device="meta"))
    assert maps[-1].shape[2:] == (1, 1)
    assert network.classify(maps[-1]).shape == (2, 5)
    if smallest == 1:
        return
    with pytest.raises(ValueError, match=rf"image_size={smallest - 1}.*{name}.*image_size>={smallest}"):
        check_image_size(name, smallest - 1)
    with pytest.raises(ValueError, match=f"image_size>={smallest}"):
        LSANet(backbone=name, image_size=smallest - 1)
    with pytest.raises(RuntimeError):  # and the refusal is not too strict
        network.forward_nodes(torch.empty(2, 3, smallest - 1, smallest - 1, device="meta"))


@pytest.mark.parametrize("name", [b for b in BACKBONES if b.startswith(("densenet", "vgg"))])
def test_attention_without_residual_blocks_is_refused(name):
    with pytest.raises(ValueError, match=rf"attention='se'.*residual.*{name}.*resnet18"):
        build_backbone(name, 2, attention="se")


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18.*vgg19"):
        build_backbone("resnet19", 2)
    with pytest.raises(ValueError, match=r"'sse'.*none, se, cbam"):
        build_backbone("resnet18", 2, attention="sse")


@pytest.mark.parametrize("attention", [a for a in ATTENTIONS if a != "none"])
@pytest.mark.parametrize(("name", "blocks"), [("resnet34", 16), ("resnet50", 16)])
def test_attention_sits_in_every_residual_block(name, blocks, attention):
    plain, with_attention = meta_backbone(name), meta_backbone(name, attention=attention)
    found = [m for m in with_attention.modules() if type(m) is type(build_attention(attention, 64))]
    assert len(found) == blocks
    calls = []
    for module in found:
        module.register_forward_hook(lambda *_: calls.append(1))
    with_attention.forward_nodes(torch.empty(2, 3, 32, 32, device="meta"))
    assert len(calls) == blocks
    # Everything else keeps its name, so that ImageNet's weights fit.
    assert {k for k in with_attention.state_dict() if ".attention." not in k} == set(plain.state_dict())


class Nothing(torch.nn.Module):
    """An attention module that lets nothing pass."""

    def forward(self, x):
        """Zeros of the shape of `x`."""
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_attention_acts_on_the_branch_before_the_addition(name):
    block = build_backbone(name, 2, attention="se").layer1[1]
    block.attention = Nothing()
    x = torch.randn(2, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x), torch.relu(x))


def norm_keys(name):
    return [f"{name}.{end}" for end in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions"),
    [("resnet18", (2, 2, 2, 2), 2), ("resnet34", (3, 4, 6, 3), 2), ("resnext101_32x8d", (3, 4, 23, 3), 3)],
)
def test_resnet_weights_have_torchvisions_names(name, blocks, convolutions):
    expected = ["conv1.weight", *norm_keys("bn1")]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for i in range(1, convolutions + 1):
                expected += [f"{prefix}.conv{i}.weight", *norm_keys(f"{prefix}.bn{i}")]
            # The first block of a stage changes the shape, but for the first stage of basic blocks.
            if block == 0 and (stage > 1 or convolutions == 3):
                expected += [f"{prefix}.downsample.0.weight", *norm_keys(f"{prefix}.downsample.1")]
    expected += ["fc.weight", "fc.bias"]
    assert set(meta_backbone(name).state_dict()) == set(expected)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        ("vgg16", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        ("vgg19", (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)),
    ],
)
def test_vgg_convolutions_have_torchvisions_names(name, convolutions):
    expected = {f"features.{i}.{end}" for i in convolutions for end in ("weight", "bias")}
    assert set(meta_backbone(name).state_dict()) == expected | {"fc.weight", "fc.bias"}


def train_one_step(backbone, attention, sizes):
    torch.manual_seed(0)
    network = LSANet(backbone=backbone, num_classes=3, image_size=min(sizes), attention=attention)
    loss_function = LSANetLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    targets = torch.tensor([0, 2, 1, 0])
    for size in sizes:
        before = [head.fc.bias.detach().clone() for head in network.heads]
        optimizer.zero_grad()
        output = network(torch.randn(4, 3, size, size))
        loss = loss_function(output, targets)
        loss.backward()
        assert torch.isfinite(loss)
        torch.testing.assert_close(output["beta"].sum(1), torch.ones(4))
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        # Batch norm over four values, where the maps are 1 x 1, makes the first gradients huge.
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        for head, bias in zip(network.heads, before, strict=True):
            assert not torch.equal(head.fc.bias, bias)
        assert all(torch.isfinite(p).all() for p in network.parameters())


# Tables 1 and 5 (backbones) and 6 (attention modules) of the paper; the biggest take long.
PAPER = [(name, "none") for name in BACKBONES if PUBLISHED[name] < 88e6 or name.startswith("vgg")]
PAPER += [("resnet34", a) for a in ATTENTIONS if a != "none"]
BIG = [pytest.param(name, "none", marks=pytest.mark.slow) for name in ("resnext101_32x8d", "wide_resnet101_2")]


@pytest.mark.parametrize(("backbone", "attention"), PAPER + BIG)
def test_every_network_of_the_paper_trains_a_step(backbone, attention):
    # 28 pixels leave 1 x 1 maps in a ResNet; DenseNet and VGG start a little above.
    train_one_step(backbone, attention, [max(28, SMALLEST.get(backbone, 1)), 64])


def test_torchvision_is_not_imported():
    bundles = Path(label_efficient.__file__).parents[2]
    for path in bundles.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.partition(".")[0] == "torchvision"], path


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "bn2"), ("resnet50", "bn2")])
def test_simam_stands_before_the_norm_of_the_second_convolution(name, norm):
    block = build_backbone(name, 2, attention="simam").eval().layer1[0]
    seen = {}
    block.conv2.register_forward_hook(lambda module, inputs, output: seen.update(out=output))
    getattr(block, norm).register_forward_pre_hook(lambda module, inputs: seen.update(normed=inputs[0]))
    block(torch.randn(1, 64, 6, 6))
    torch.testing.assert_close(seen["normed"], build_attention("simam", 64)(seen["out"]))
