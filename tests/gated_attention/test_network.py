"""The network: its outputs against its parts, the same from every kind of input, gradients, scripting and memory."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from gated_attention.attention import ATTENTIONS
from gated_attention.instances import select_instances
from gated_attention.losses import GatedAttentionLoss
from gated_attention.network import GatedAttentionNet

TINY = dict(num_classes=3, global_backbone="resnet18", instance_backbone="resnet18", image_size=64, instance_size=32)
SIZES = [(70, 90), (33, 200), (64, 64)]
MEAN, STD = [0.6, 0.5, 0.4], [0.2, 0.25, 0.3]


def pictures(sizes=SIZES, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8).to(dtype) for s in sizes]


def made(**settings):
    torch.manual_seed(7)
    return GatedAttentionNet(**(TINY | {"mean": MEAN, "std": STD} | settings)).eval()


@pytest.fixture(scope="module")
def network():
    return made(num_instances=3, threshold=0.4)


def assert_same(found, expected, **tolerance):
    assert list(found) == list(expected)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **tolerance)


@torch.no_grad()
def test_list_tensor_float_and_uint8_are_the_same(network):
    images = pictures([(70, 90)] * 2)
    expected = network(images)
    for others in (torch.stack(images), torch.stack(images).float(), pictures([(70, 90)] * 2, torch.float32)):
        assert_same(network(others), expected, rtol=0, atol=0)


@torch.no_grad()
def test_an_image_is_alone_what_it_is_in_a_batch(network):
    images = pictures()
    together = network(images)
    for i, image in enumerate(images):
        alone = network([image])
        assert_same(alone, {key: value[i : i + 1] for key, value in together.items()}, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_thumbnails_are_the_whole_image_squeezed_and_normalised(network):
    images = pictures([(300, 70), (40, 200), (64, 64), (1, 1)])
    found = network.thumbnails(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for thumbnail, image in zip(found, images, strict=True):
        small = F.interpolate(image[None].float(), [64, 64], mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(thumbnail, (small / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["concat", "attention"])
def test_fusion_is_its_parts_written_out(pooling):
    network = made(num_instances=3, threshold=0.4, pooling=pooling)
    images = pictures()
    output = network(images)
    features = network.global_branch.forward_nodes(network.thumbnails(images))[-1]
    attended = network.attention(features)
    torch.testing.assert_close(output["attention_map"], attended.mean(dim=1))
    pooled = attended.mean(dim=(2, 3))
    torch.testing.assert_close(output["global_logits"], network.global_head(pooled))
    crops = network.crops(images, output["instance_boxes"])
    for i in range(3):
        # One instance at a time: in a batch none sees another.
        looks = [network.instance_branch.forward_nodes(crops[i, k : k + 1])[-1].mean(dim=(2, 3))[0] for k in range(3)]
        if pooling == "attention":
            scores = output["instance_scores"][i]
            looks = [sum(score * look for score, look in zip(scores, looks, strict=True)) / scores.sum()]
        expected = network.fusion_head(torch.cat([pooled[i], *looks]))
        torch.testing.assert_close(output["logits"][i], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_the_instances_the_global_branch_is_the_same(network):
    images = pictures()
    expected = network(images)
    alone = network(images, fuse=False)
    assert_same(alone, {key: expected[key] for key in ("global_logits", "attention_map")}, rtol=0, atol=0)
    single = made(method="global")
    weights = {key: value for key, value in network.state_dict().items() if not key.startswith(("instance", "fusion"))}
    single.load_state_dict(weights)
    assert_same(single(images), alone, rtol=0, atol=0)


@pytest.mark.parametrize("max_box", [None, 0.6])
def test_every_setting_of_the_boxes_is_used(max_box):
    settings = dict(num_instances=5, threshold=0.3, min_box=0.2, window_box=0.35)
    network = made(max_box=max_box, **settings)
    attention = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0)) ** 3
    expected = select_instances(attention, torch.tensor(SIZES), image_size=64, max_box=max_box or 0.0, **settings)
    for found, wanted in zip(network.boxes(pictures(), attention), expected, strict=True):
        assert torch.equal(found, wanted)


@torch.no_grad()
def test_crops_are_the_normalised_pixels_and_0_outside(network):
    image = pictures([(40, 50)])[0]
    crops = network.crops([image], torch.tensor([[[10.0, 5.0, 42.0, 37.0], [30.0, 20.0, 62.0, 52.0]]]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    normalised = (image / 255 - mean) / std
    torch.testing.assert_close(crops[0, 0], normalised[:, 5:37, 10:42])
    torch.testing.assert_close(crops[0, 1, :, :20, :20], normalised[:, 20:, 30:])
    assert not crops[0, 1, :, 20:].any()
    assert not crops[0, 1, :, :, 20:].any()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_global_loss_trains_every_attention(attention):
    network = made(method="global", attention=attention).train()
    for parameter in network.attention.parameters():
        # Blocks that start as the identity are out of it: what is inside them has no gradient in the first step.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    output = network(torch.stack(pictures([(64, 64)] * 4)))
    F.cross_entropy(output["global_logits"], torch.tensor([0, 1, 2, 0])).backward()
    reached = [bool(p.grad.any()) for p in network.attention.parameters()]
    assert all(reached) or (attention in {"gc", "spatial", "dual"} and sum(reached) == len(reached) - 1)
    assert (attention in ("channel", "none")) == (not reached)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert network.global_branch.conv1.weight.grad.any()


@torch.no_grad()
def test_without_attended_classifier_networks_differ_in_where_they_look_alone(monkeypatch):
    monkeypatch.setattr(GatedAttentionNet, "boxes", lambda self, images, _: (boxes, torch.full((2, 2), 0.5)))
    images, boxes = pictures([(64, 64)] * 2), torch.tensor([[[0, 0, 20, 20], [9, 9, 40, 40]]] * 2).float()
    plain, weights = made(num_instances=2, attention="none"), {}
    for attended in (True, False):
        network = made(num_instances=2, attention="se", attended_classifier=attended)
        network.load_state_dict(plain.state_dict(), strict=False)
        weights[attended] = network(images)["logits"]
    assert torch.equal(weights[False], plain(images)["logits"])
    assert not torch.allclose(weights[True], weights[False])


@pytest.mark.parametrize(("lambda_", "pooling"), [(0.0, "concat"), (0.5, "attention")])
def test_the_fusion_loss_trains_both_branches(lambda_, pooling):
    network = made(num_instances=2, pooling=pooling).train()
    loss = GatedAttentionLoss()
    loss.lambda_ = lambda_
    loss(network(pictures()), torch.tensor([0, 1, 2])).backward()
    reached = {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    expected = {key for key, p in network.named_parameters() if lambda_ or not key.startswith("global_head")}
    assert reached == expected
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@torch.no_grad()
def test_scripted_network_gives_the_same(network):
    scripted = torch.jit.script(network)
    images = pictures()
    assert_same(scripted(images), network(images))
    batch = torch.stack(pictures([(50, 80)] * 2))
    assert_same(scripted(batch), network(batch))
    assert_same(scripted(batch, fuse=False), network(batch, fuse=False))


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["densenet121", "vgg16"])
def test_other_backbones_give_their_features(backbone):
    network = made(method="global", global_backbone=backbone, attention="se")
    output = network(pictures()[:1])
    assert output["global_logits"].shape == (1, 3)
    assert network.global_head.in_features == {"densenet121": 1024, "vgg16": 512}[backbone]


@torch.no_grad()
def test_real_picture_of_any_shape(network, real_data):
    path = sorted((real_data / "microscopy" / "aspergillus_512x384").glob("*/*.jpg"))[0]
    image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    # A whole picture, strips of it, a corner of a few pixels, one pixel: never a number that is none.
    images = [image, image[:, :9], image[:, :, 100:103], image[:, :5, :4], image[:, :1, :1]]
    output = network(images)
    assert all(torch.isfinite(value).all() for value in output.values())
    left, top, right, bottom = output["instance_boxes"][0].unbind(dim=1)
    assert (torch.minimum(left, top) >= 0).all()
    assert (right <= image.shape[2]).all()
    assert (bottom <= image.shape[1]).all()


def peak_bytes(function, path):
    """Most bytes that torch has allocated at one time in a call, from what its profiler has recorded."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    allocated = np.cumsum([e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])])
    return allocated.max()


@torch.no_grad()
def test_a_large_image_needs_at_most_three_times_its_bytes(tmp_path):
    network = made(num_instances=4, image_size=224, instance_size=336)
    image = torch.zeros(3, 1536, 2048, dtype=torch.uint8)
    boxes = torch.tensor([[[0.0, 0.0, 1536.0, 1536.0], [9.5, 3.0, 345.5, 339.0], [0, 0, 90, 90], [0, 0, 700, 700]]])

    def everything():
        return network.thumbnails([image]), network.boxes([image], torch.rand(1, 7, 7)), network.crops([image], boxes)

    peak = image.numel() + peak_bytes(everything, tmp_path / "trace.json")
    assert peak <= 3 * image.numel()
    # The measurement sees what is allocated: a copy of the image in float32 is four times its bytes.
    assert peak_bytes(lambda: image.float(), tmp_path / "trace.json") == 4 * image.numel()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fused"}, r"method is 'fused', expected one of fusion, global"),
        ({"attention": "no"}, r"attention is 'no', expected one of gated, "),
        ({"pooling": "mean"}, r"pooling is 'mean', expected one of concat, attention"),
        ({"global_backbone": "resnet17"}, r"backbone is 'resnet17'"),
        ({"global_backbone": "vgg16", "image_size": 31}, r"image_size=31 is too small for vgg16"),
        ({"instance_backbone": "densenet121", "instance_size": 28}, r"28 is too small for densenet121"),
        ({"image_size": 0}, r"0 is too small"),
        ({"num_instances": 0}, r"num_instances is 0, expected 1 or more"),
        ({"threshold": 1.0}, r"threshold is 1\.0, expected at least 0 and less than 1"),
        ({"min_box": 0.0}, r"min_box is 0\.0, expected a share"),
        ({"min_box": 1.2}, r"min_box is 1\.2, expected a share"),
        ({"window_box": 0.0}, r"window_box is 0\.0, expected a share"),
        ({"max_box": 0.0}, r"max_box is 0\.0, expected a share"),
        ({"min_box": 0.4, "window_box": 0.2}, r"window_box is 0\.2, less than min_box \(0\.4\)"),
        ({"max_box": 0.3, "window_box": 0.5}, r"max_box is 0\.3, less than .* window_box \(0\.5\)"),
        ({"mean": [0.5]}, r"mean=\[0\.5\].*expected three numbers each"),
        ({"std": [0.5, 0.0, 0.5]}, r"std above 0"),
    ],
)
def test_wrong_settings_say_what_arrived_and_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        GatedAttentionNet(**(TINY | settings))


def test_normalisation_is_no_weight_and_follows_the_network(network):
    assert not any(key.endswith(("mean", "std")) and "running" not in key for key in network.state_dict())
    assert torch.equal(network.mean.flatten(), torch.tensor(MEAN) * 255)
