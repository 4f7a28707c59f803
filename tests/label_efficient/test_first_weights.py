"""First weights: ImageNet files in torchvision's naming from a local server, and weights of earlier runs."""

import functools
import hashlib
import http.server
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gated_attention.network import GatedAttentionNet
from label_efficient.networks.backbones import BACKBONES, build_backbone
from label_efficient.networks.first_weights import init_network
from label_efficient.networks.imagenet_weights import ADDRESS, FILES, imagenet_names
from lsanet.network import LSANet

LSANET: dict[str, Any] = {"num_classes": 3, "image_size": 32, "embed_channels": 8}
GATED: dict[str, Any] = {
    "num_classes": 3, "global_backbone": "resnet18", "instance_backbone": "resnet18", "image_size": 64,
    "instance_size": 32, "num_instances": 2,
}  # fmt: skip
GLOBAL = {"method": "global"}


def lsanet(**changes: Any) -> LSANet:
    return LSANet(**LSANET | changes)


def gated(**changes: Any) -> GatedAttentionNet:
    return GatedAttentionNet(**GATED | changes)


def started(network: Any, **source: Any) -> dict[str, torch.Tensor]:
    """The weights before; `network` has its first ones then."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert init_network(network, parts=network.weight_parts, **source) is network
    return before


# ImageNet


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """An empty folder and the address it is served at, with torch's cache in another empty folder."""
    folder, home = tmp_path / "site", tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def published_key(key: str) -> str:
    # features.denseblock1.denselayer1.layers.norm1.weight -> ...denselayer1.norm.1.weight
    return re.sub(r"\.layers\.(norm|conv)([12])\.", r".\1.\2.", key)


def published(name: str) -> dict[str, torch.Tensor]:
    """A state dict as torchvision's file of `name` has it, with random values, and no counters of batches."""
    generator = torch.Generator().manual_seed(9)
    theirs = {}
    for key, value in build_backbone(name, 1000).state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        key = published_key(key).replace("class_layers.out.", "classifier.")
        if name.startswith("vgg"):
            key = re.sub(r"^fc\.", "classifier.6.", key)
        theirs[key] = torch.rand(value.shape, generator=generator) + 0.1
    if name.startswith("vgg"):
        theirs |= {f"classifier.{i}.{end}": torch.zeros(2) for i in (0, 3) for end in ("weight", "bias")}
    return theirs


def serve(folder: Path, monkeypatch, name: str, weights: dict[str, torch.Tensor], digits: str = "") -> str:
    """Put `weights` on the site under a name with the right digits (or those given)."""
    path = folder / "file"
    torch.save(weights, path)
    file_name = f"{name}-{digits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(folder / file_name)
    monkeypatch.setitem(FILES, name, file_name)
    return file_name


@pytest.mark.parametrize(
    ("make", "options", "names"),
    [
        (lsanet, {}, {"backbone.": "resnet18"}),
        (lsanet, {"attention": "cbam"}, {"backbone.": "resnet18"}),
        (lsanet, {"backbone": "densenet121"}, {"backbone.": "densenet121"}),
        (lsanet, {"backbone": "vgg16"}, {"backbone.": "vgg16"}),
        (gated, {}, {"global_branch.": "resnet18", "instance_branch.": "resnet18"}),
        (
            gated, {"global_backbone": "vgg16", "instance_backbone": "densenet121"},
            {"global_branch.": "vgg16", "instance_branch.": "densenet121"},
        ),
        # The global branch alone asks for its own file only.
        (gated, {"method": "global", "instance_backbone": "resnet50"}, {"global_branch.": "resnet18"}),
    ],
)  # fmt: skip
def test_imagenet_weights_arrive_in_the_backbones_and_nowhere_else(make, options, names, site, monkeypatch):
    folder, address = site
    theirs = {name: published(name) for name in set(names.values())}
    for name, weights in theirs.items():
        serve(folder, monkeypatch, name, weights)
    network = make(**options)
    before = started(network, pretrained=True, address=address)
    arrived: Counter[str] = Counter()
    for key, value in network.state_dict().items():
        part = next((p for p in names if key.startswith(p)), None)
        own = part is None or ".attention." in key or key.removeprefix(part).startswith(("fc.", "class_layers."))
        if own or key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key]), key
            continue
        assert torch.equal(value, theirs[names[part]][published_key(key.removeprefix(part))]), key
        assert not torch.equal(value, before[key]), key
        arrived[part] += 1
    for part, name in names.items():
        assert arrived[part] == sum(not k.startswith(("fc.", "classifier.")) for k in theirs[name])


def densenet121_keys() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's published DenseNet-121 without the classifier."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{end}": (channels,) for end in ("weight", "bias", "running_mean", "running_var")}

    shapes = {"features.conv0.weight": (64, 3, 7, 7), **norm("features.norm0", 64)}
    channels = 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            prefix = f"features.denseblock{block}.denselayer{layer}"
            shapes |= norm(f"{prefix}.norm.1", channels) | norm(f"{prefix}.norm.2", 128)
            shapes |= {f"{prefix}.conv.1.weight": (128, channels, 1, 1), f"{prefix}.conv.2.weight": (32, 128, 3, 3)}
            channels += 32
        if block < 4:
            shapes |= norm(f"features.transition{block}.norm", channels)
            shapes[f"features.transition{block}.conv.weight"] = (channels // 2, channels, 1, 1)
            channels //= 2
    return shapes | norm("features.norm5", channels)


@pytest.mark.parametrize("dotted", [True, False])
def test_densenet_names_old_and_new_become_monais(dotted):
    # The published files say norm.1, torchvision's present code norm1.
    theirs = {k: torch.empty(s, device="meta") for k, s in densenet121_keys().items()}
    if not dotted:
        theirs = {re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", k): v for k, v in theirs.items()}
    theirs |= {"classifier.weight": torch.empty(1000, 1024), "classifier.bias": torch.empty(1000)}
    ours = {k: tuple(v.shape) for k, v in imagenet_names(theirs, "densenet121").items()}
    with torch.device("meta"):
        network = build_backbone("densenet121", 2).state_dict()
    wanted = {
        k: tuple(v.shape)
        for k, v in network.items()
        if not k.startswith("class_layers.") and not k.endswith("num_batches_tracked")
    }
    assert ours == wanted


def test_every_backbone_has_a_file_with_the_beginning_of_its_sha256():
    assert set(FILES) == set(BACKBONES)
    for name, file_name in FILES.items():
        assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}\.pth", file_name)
    assert ADDRESS == "https://download.pytorch.org/models/"


def test_a_damaged_download_is_refused_and_not_kept(site, monkeypatch, tmp_path):
    folder, address = site
    serve(folder, monkeypatch, "resnet18", {"conv1.weight": torch.zeros(1)}, digits="0123abcd")
    network = lsanet()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="invalid hash"):
        started(network, pretrained=True, address=address)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not list((tmp_path / "home").rglob("*.pth"))


@pytest.mark.parametrize("wrong", ["missing", "unexpected"])
def test_a_file_of_another_network_is_refused(wrong, site, monkeypatch):
    folder, address = site
    weights = published("resnet18")
    if wrong == "missing":
        del weights["layer4.1.conv2.weight"]
    else:
        weights["layer4.2.conv1.weight"] = torch.zeros(1)
    serve(folder, monkeypatch, "resnet18", weights)
    with pytest.raises(ValueError, match=rf"resnet18-.*does not fit.*{wrong} \['layer4"):
        started(lsanet(), pretrained=True, address=address)


@pytest.mark.parametrize("reason", ["no server", "no such file", "no second file"])
def test_without_the_file_the_error_names_address_folder_and_file(reason, site, monkeypatch, tmp_path):
    folder, address = site
    missing = "resnet34" if reason == "no second file" else "resnet18"
    if reason == "no server":
        address = "http://127.0.0.1:9/"
    if reason == "no second file":
        serve(folder, monkeypatch, "resnet18", published("resnet18"))
    with pytest.raises(ConnectionError) as caught:
        started(gated(instance_backbone="resnet34"), pretrained=True, address=address)
    message = str(caught.value)
    assert address + FILES[missing] in message and f"as {FILES[missing]}" in message
    assert str(tmp_path / "home" / "hub" / "checkpoints") in message and "pretrained=false" in message


def test_a_file_put_into_the_folder_that_the_error_names_is_taken(site, monkeypatch, tmp_path):
    folder, _ = site
    theirs = published("resnet18")
    file_name = serve(folder, monkeypatch, "resnet18", theirs)
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (folder / file_name).rename(cache / file_name)
    network = lsanet()
    started(network, pretrained=True, address="http://127.0.0.1:9/")
    assert torch.equal(network.backbone.get_parameter("conv1.weight"), theirs["conv1.weight"])


def test_without_a_source_the_random_weights_stay():
    network = gated()
    before = started(network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# Weights of an earlier run


def saved(folder: Path, network: nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    """Weights of a network like this one, each with values of its own."""
    weights = {k: torch.rand(v.shape) + 2 if v.is_floating_point() else v + 7 for k, v in network.state_dict().items()}
    torch.save(weights, folder / "model.pt")
    return str(folder / "model.pt"), weights


HEADS = ("backbone.fc.", "heads.")
BOTH_HEADS = ("global_head.", "fusion_head.")
FUSION = ("fusion_head.", "instance_branch.")


@pytest.mark.parametrize(
    ("make", "earlier", "now", "anew", "said"),
    [
        (lsanet, {}, {}, (), ()),
        (lsanet, {"num_classes": 5}, {}, HEADS, ("other classes", "backbone.fc, heads.0.fc, heads.1.fc, heads.2.fc")),
        (lsanet, {"method": "dsn"}, {}, ("lsa.",), ("is without", "lsa start anew")),
        (lsanet, {}, {"method": "dsn"}, (), ("more than this method: lsa left out",)),
        (
            lsanet, {}, {"output_nodes": ["C3", "C4"], "method": "dsn"}, ("heads.",),
            ("heads.0.fc start anew", "heads.1.fc, heads.2.fc, lsa left out"),
        ),
        (gated, {}, {}, (), ()),
        (gated, {}, {"threshold": 0.3, "min_box": 0.2, "mean": [0.1, 0.2, 0.3]}, (), ()),
        (gated, {"num_classes": 5}, {}, BOTH_HEADS, ("other classes", "fusion_head, global_head")),
        (gated, {"num_instances": 3}, {}, ("fusion_head.",), ("instances: fusion_head start anew",)),
        (gated, {"pooling": "attention"}, {}, ("fusion_head.",), ("fusion_head start anew",)),
        (gated, GLOBAL, {}, FUSION, ("fusion_head, instance_branch start anew",)),
        (gated, {}, GLOBAL, (), ("more than this method: fusion_head, instance_branch left out",)),
        (
            gated, {"num_classes": 5}, GLOBAL, ("global_head.",),
            ("other classes", "global_head start anew", "fusion_head, instance_branch left out"),
        ),
    ],
)  # fmt: skip
def test_what_fits_is_taken_and_the_log_says_what_is_not(make, earlier, now, anew, said, tmp_path, caplog):
    path, weights = saved(tmp_path, make(**earlier))
    network = make(**now)
    with caplog.at_level(logging.WARNING):
        before = started(network, ckpt_path=path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if anew and key.startswith(anew) else weights[key]), key
    assert [part for part in said if part not in caplog.text] == []
    assert bool(caplog.records) == bool(said) and all(path in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121"])
@pytest.mark.parametrize("num_classes", [3, 5])
def test_released_weights_of_the_backbone_alone_leave_the_rest_as_it_is(num_classes, backbone, tmp_path, caplog):
    path, weights = saved(tmp_path, build_backbone(backbone, num_classes))
    network = lsanet(backbone=backbone)
    with caplog.at_level(logging.WARNING):
        before = started(network, ckpt_path=path)
    final = "backbone.fc" if backbone == "resnet18" else "backbone.class_layers.out"
    for key, value in network.state_dict().items():
        loaded = key.startswith("backbone.") and (num_classes == 3 or not key.startswith(final))
        assert torch.equal(value, weights[key.removeprefix("backbone.")] if loaded else before[key]), key
    expected = [] if num_classes == 3 else [f"{path} is without, or for other classes: {final} start anew"]
    assert [record.getMessage() for record in caplog.records] == expected


BRANCHES: list[Any] = [
    ({"global_backbone": "resnet34"}, {}),
    ({}, {"global_backbone": "resnet34"}),
    # By names and shapes the smaller one is a part of the larger: half a network is none.
    ({"instance_backbone": "resnet34"}, {}),
    ({}, {"instance_backbone": "resnet34"}),
    ({"instance_backbone": "resnet50"}, {}),
    ({"attention": "se"}, {}),
    ({}, {"attention": "channel"}),
    ({"attention": "channel"}, {}),
]
OTHERS = [{"backbone": "resnet34"}, {"backbone": "densenet121"}, {"backbone": "vgg16"}, {"attention": "se"}]


@pytest.mark.parametrize(
    ("make", "earlier", "alone", "now", "message"),  # alone: released weights of the backbone
    [
        *((lsanet, other, alone, {}, "backbone.*attention") for other in OTHERS for alone in (False, True)),
        (lsanet, {}, True, {"attention": "se"}, r"lacks \['backbone\.layer1\.0\.attention"),
        (lsanet, {"lsa": "conv_k3"}, False, {}, r"lacks \['lsa\..*output_nodes and lsa"),
        *((gated, earlier, False, now, "attention and both backbones") for earlier, now in BRANCHES),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_weights_of_another_network_are_refused(make, earlier, alone, now, message, tmp_path):
    network = make(**earlier)
    path, _ = saved(tmp_path, network.backbone if alone else network)
    network = make(**now)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"ckpt_path: .*model\.pt does not fit.*{message}"):
        started(network, ckpt_path=path)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("make", "content", "part"),
    [
        (gated, lambda: build_backbone("resnet18", 3).state_dict(), "'conv1.weight'"),  # of lsanet
        (gated, lambda: {"model": {}, "optimizer": {}}, "'model', 'optimizer'"),  # a run's checkpoint.pt
        (lsanet, lambda: {"model": {}, "optimizer": {}}, "'model', 'optimizer'"),
        (lsanet, lambda: [torch.zeros(1)], "it holds a list"),
        (lsanet, lambda: torch.zeros(3), "it holds a Tensor"),
        (lsanet, dict, "it holds a"),
    ],
)
def test_a_file_that_is_no_weights_of_this_bundle(make, content, part, tmp_path):
    torch.save(content(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"ckpt_path: .*other\.pt is of another bundle") as caught:
        started(make(), ckpt_path=str(tmp_path / "other.pt"))
    assert part in str(caught.value) and "expected the model.pt of a run of this bundle" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "whole module"])
def test_a_damaged_file(damage, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2) if damage == "whole module" else {"global_branch.a": torch.zeros(999)}, path)
    content = path.read_bytes()
    changed = {"truncated": content[: len(content) // 2], "text": b"hello", "empty": b"", "whole module": content}
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=r"(?s)ckpt_path: .*model\.pt is (damaged|empty).*expected the model\.pt"):
        started(gated(**GLOBAL), ckpt_path=str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*nothing\.pt does not exist"):
        started(lsanet(), ckpt_path=str(tmp_path / "nothing.pt"))
