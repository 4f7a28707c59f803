"""First weights: ImageNet files in torchvision's naming from a local server, and weights of earlier runs."""

import functools
import hashlib
import http.server
import logging
import re
import threading

import pytest
import torch

from label_efficient.networks.backbones import BACKBONES, build_backbone
from label_efficient.networks.imagenet_weights import ADDRESS, FILES, imagenet_names
from lsanet.network import LSANet
from lsanet.pretrained import init_network

OPTIONS = {"num_classes": 3, "image_size": 32, "embed_channels": 8}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def site(tmp_path, monkeypatch):
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


def published(name):
    """A state dict as torchvision's file of `name` has it, with random values, and no counters of batches."""
    torch.manual_seed(9)
    theirs = {}
    for key, value in build_backbone(name, 1000).state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        value = torch.rand_like(value) + 0.1
        if name.startswith("densenet"):
            # features.denseblock1.denselayer1.layers.norm1.weight -> ...denselayer1.norm.1.weight
            for kind in ("norm", "conv"):
                for number in "12":
                    key = key.replace(f".layers.{kind}{number}.", f".{kind}.{number}.")
            key = key.replace("class_layers.out.", "classifier.")
        if name.startswith("vgg"):
            key = re.sub(r"^fc\.", "classifier.6.", key)
        theirs[key] = value
    if name.startswith("vgg"):
        theirs |= {f"classifier.{i}.{end}": torch.zeros(2) for i in (0, 3) for end in ("weight", "bias")}
    return theirs


def serve(folder, monkeypatch, name, weights, digits=None):
    """Put `weights` on the site under a name with the right digits (or those given)."""
    path = folder / "file"
    torch.save(weights, path)
    digits = digits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    file_name = f"{name}-{digits}.pth"
    path.rename(folder / file_name)
    monkeypatch.setitem(FILES, name, file_name)
    return file_name


def copied(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def is_classifier(key):
    return key.startswith(("backbone.fc.", "backbone.class_layers."))


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [("resnet18", "none"), ("resnet18", "cbam"), ("densenet121", "none"), ("vgg16", "none")],
)
def test_imagenet_weights_arrive_in_the_backbone_and_nowhere_else(backbone, attention, site, monkeypatch):
    folder, address = site
    theirs = published(backbone)
    serve(folder, monkeypatch, backbone, theirs)
    network = LSANet(backbone=backbone, attention=attention, **OPTIONS)
    before = copied(network)
    assert init_network(network, backbone=backbone, pretrained=True, address=address) is network
    after = network.state_dict()
    arrived = 0
    for key, value in after.items():
        loaded = key.startswith("backbone.") and not is_classifier(key) and ".attention." not in key
        if not loaded or key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key]), key
            continue
        name = key.removeprefix("backbone.")
        if backbone.startswith("densenet"):
            name = re.sub(r"\.layers\.(norm|conv)([12])\.", r".\1.\2.", name)
        assert torch.equal(value, theirs[name]), key
        assert not torch.equal(value, before[key]), key
        arrived += 1
    assert arrived == sum(not k.startswith(("fc.", "classifier.")) for k in theirs)


def densenet121_keys():
    """Names and shapes of torchvision's published DenseNet-121 without the classifier."""

    def norm(name, channels):
        return {f"{name}.{end}": (channels,) for end in ("weight", "bias", "running_mean", "running_var")}

    shapes = {"features.conv0.weight": (64, 3, 7, 7), **norm("features.norm0", 64)}
    channels = 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            prefix = f"features.denseblock{block}.denselayer{layer}"
            shapes |= norm(f"{prefix}.norm.1", channels) | norm(f"{prefix}.norm.2", 128)
            shapes |= {
                f"{prefix}.conv.1.weight": (128, channels, 1, 1),
                f"{prefix}.conv.2.weight": (32, 128, 3, 3),
            }
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
    network = LSANet(**OPTIONS)
    before = copied(network)
    with pytest.raises(RuntimeError, match="invalid hash"):
        init_network(network, backbone="resnet18", pretrained=True, address=address)
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
        init_network(LSANet(**OPTIONS), backbone="resnet18", pretrained=True, address=address)


@pytest.mark.parametrize("reason", ["no server", "no such file"])
def test_without_the_file_the_error_names_address_folder_and_file(reason, site, monkeypatch, tmp_path):
    _, address = site
    if reason == "no server":
        address = "http://127.0.0.1:9/"
    with pytest.raises(ConnectionError) as caught:
        init_network(LSANet(**OPTIONS), backbone="resnet18", pretrained=True, address=address)
    message = str(caught.value)
    assert address + "resnet18-f37072fd.pth" in message
    assert str(tmp_path / "home" / "hub" / "checkpoints") in message
    assert "as resnet18-f37072fd.pth" in message
    assert "pretrained=false" in message


def test_a_file_put_into_the_folder_that_the_error_names_is_taken(site, monkeypatch, tmp_path):
    folder, _ = site
    theirs = published("resnet18")
    file_name = serve(folder, monkeypatch, "resnet18", theirs)
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (folder / file_name).rename(cache / file_name)
    network = LSANet(**OPTIONS)
    init_network(network, backbone="resnet18", pretrained=True, address="http://127.0.0.1:9/")
    assert torch.equal(network.backbone.conv1.weight, theirs["conv1.weight"])


def test_without_a_source_the_random_weights_stay():
    network = LSANet(**OPTIONS)
    before = copied(network)
    assert init_network(network, backbone="resnet18") is network
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def saved(tmp_path, network, *, whole=True):
    """The weights of an earlier run: of all the network, or as it is shipped, of the backbone alone."""
    torch.manual_seed(11)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    path = tmp_path / "model.pt"
    weights = network.state_dict() if whole else network.backbone.state_dict()
    torch.save(weights, path)
    return str(path), weights


@pytest.mark.parametrize("whole", [True, False])
def test_weights_for_the_same_classes_are_all_loaded(whole, tmp_path, caplog):
    path, weights = saved(tmp_path, LSANet(**OPTIONS), whole=whole)
    network = LSANet(**OPTIONS)
    before = copied(network)
    with caplog.at_level(logging.WARNING):
        init_network(network, backbone="resnet18", ckpt_path=path)
    assert not caplog.records
    for key, value in network.state_dict().items():
        if whole or key.startswith("backbone."):
            assert torch.equal(value, weights[key if whole else key.removeprefix("backbone.")]), key
        else:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121"])
@pytest.mark.parametrize("whole", [True, False])
def test_other_classes_warn_and_start_the_classifiers_anew(whole, backbone, tmp_path, caplog):
    options = OPTIONS | {"backbone": backbone}
    path, weights = saved(tmp_path, LSANet(**options | {"num_classes": 5}), whole=whole)
    network = LSANet(**options)
    before = copied(network)
    with caplog.at_level(logging.WARNING):
        init_network(network, backbone=backbone, ckpt_path=path)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert path in caplog.text and "other classes" in caplog.text
    final = "fc.weight" if backbone == "resnet18" else "class_layers.out.weight"
    assert f"backbone.{final}" in caplog.text
    anew = 0
    for key, value in network.state_dict().items():
        if is_classifier(key) or key.startswith("heads."):
            assert torch.equal(value, before[key]), key
            anew += 1
        elif whole or key.startswith("backbone."):
            assert torch.equal(value, weights[key if whole else key.removeprefix("backbone.")]), key
        else:
            assert torch.equal(value, before[key]), key
    assert anew == 8


@pytest.mark.parametrize(
    "other",
    [{"backbone": "resnet34"}, {"backbone": "densenet121"}, {"backbone": "vgg16"}, {"attention": "se"}],
    ids=lambda other: "".join(other.values()),
)
@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_another_network_are_refused(whole, other, tmp_path):
    path, _ = saved(tmp_path, LSANet(**OPTIONS | other), whole=whole)
    network = LSANet(**OPTIONS)
    before = copied(network)
    with pytest.raises(ValueError, match=r"ckpt_path: .*model\.pt does not fit.*backbone.*attention"):
        init_network(network, backbone="resnet18", ckpt_path=path)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_weights_without_the_attention_of_the_network_are_refused(tmp_path):
    path, _ = saved(tmp_path, LSANet(**OPTIONS), whole=False)
    with pytest.raises(ValueError, match=r"lacks \['backbone\.layer1\.0\.attention"):
        init_network(LSANet(attention="se", **OPTIONS), backbone="resnet18", ckpt_path=path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*nothing\.pt does not exist"):
        init_network(LSANet(**OPTIONS), backbone="resnet18", ckpt_path=str(tmp_path / "nothing.pt"))
