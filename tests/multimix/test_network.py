"""The network: the parts that each method has, and the same figures as the U-Net in torch's own modules."""

import pytest
import torch
from torch import nn

from multimix.network import METHODS, WIDTHS, MultiMixNet, check_image_size
from multimix.shipped import ShippedMultiMix, build_shipped, init_network, split_output

SIZE = 32

# 3 x 3 kernels of the blocks (in, out), as the paper has them.
ENCODER = [(1, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
DECODER = [(384, 128), (128, 128), (192, 64), (64, 64), (96, 32), (32, 32), (48, 16), (16, 16)]
KIND = {
    "unet": (False, True, False),
    "enc": (True, False, False),
    "encssl": (True, False, False),
    "umtl": (True, True, False),
    "umtls": (True, True, True),
    "umtls_ssl": (True, True, True),
    "multimix": (True, True, True),
}


def images(count=3, size=SIZE, seed=0):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def streams(count=2, names=("mask_labelled", "mask_unlabelled", "class_labelled", "class_weak", "class_strong")):
    return {name: images(count + index % 2, seed=index) for index, name in enumerate(names)}


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_parts_and_no_other(method, num_classes):
    network = MultiMixNet(method=method, num_classes=num_classes)
    classifies, segments, bridge = KIND[method]
    assert (network.branch is not None, network.decoder is not None) == (classifies, segments)
    shapes = [(outs, ins, 3, 3) for ins, outs in ENCODER]
    if classifies:
        shapes += [(num_classes, 256), (num_classes,)]
    if segments:
        decoder = list(DECODER)
        decoder[0] = (384 + 2 * bridge, 128)
        shapes += [(outs, ins, 3, 3) for ins, outs in decoder] + [(1, 16, 1, 1), (1,)]
    assert [tuple(p.shape) for p in network.parameters()] == shapes
    assert list(network.buffers()) == []


def test_methods_of_the_paper():
    assert list(METHODS) == list(KIND)
    with_pseudo_labels = [name for name, method in METHODS.items() if method.pseudo_labels]
    assert with_pseudo_labels == ["encssl", "umtls_ssl", "multimix"]
    assert [name for name, method in METHODS.items() if method.mask_consistency] == ["multimix"]


@pytest.mark.parametrize("height", [32, 64])
def test_features_halve_and_widen(height):
    features = MultiMixNet(method="enc").encoder(torch.rand(2, 1, height, 96))
    assert [tuple(f.shape) for f in features] == [(2, w, height // 2**i, 96 // 2**i) for i, w in enumerate(WIDTHS)]


def plain_block(ins, outs, weights):
    block = nn.Sequential(
        nn.Conv2d(ins, outs, 3, padding=1, bias=False),
        nn.InstanceNorm2d(outs),
        nn.LeakyReLU(0.2),
        nn.Conv2d(outs, outs, 3, padding=1, bias=False),
        nn.InstanceNorm2d(outs),
        nn.LeakyReLU(0.2),
    )
    for index in (0, 3):
        block[index].weight.data = next(weights)
    return block.double()


@pytest.mark.parametrize("method", ["unet", "umtl", "multimix"])
def test_predictions_equal_those_of_plain_modules(method):
    torch.manual_seed(1)
    network = MultiMixNet(method=method, num_classes=3).double().eval()
    weights = iter([p.data for p in network.parameters()])
    image = images(2, 64).double()
    encoder = [plain_block(ENCODER[i][0], ENCODER[i][1], weights) for i in range(0, 10, 2)]
    features = [image]
    for index, block in enumerate(encoder):
        features.append(block(nn.MaxPool2d(2)(features[-1]) if index else image))
    with torch.no_grad():
        output = network(image)
    if method != "unet":
        pooled = nn.AdaptiveAvgPool2d(1)(nn.MaxPool2d(2)(features[5])).flatten(1)
        logits = pooled @ next(weights).T + next(weights)
        torch.testing.assert_close(output.pop("logits"), logits, rtol=1e-6, atol=1e-9)
    decoded = features[5]
    for step, skip in enumerate((features[4], features[3], features[2], features[1])):
        parts = [nn.Upsample(scale_factor=2, mode="bilinear")(decoded), skip]
        if step == 0 and method == "multimix":
            extra = torch.cat([image, network.saliency_map(image)], dim=1)
            parts.append(extra.unfold(2, 8, 8).unfold(3, 8, 8).mean(dim=(4, 5)))
        block = plain_block(sum(p.shape[1] for p in parts), skip.shape[1], weights)
        decoded = block(torch.cat(parts, dim=1))
    to_mask = nn.Conv2d(16, 1, 1).double()
    to_mask.weight.data, to_mask.bias.data = next(weights), next(weights)
    torch.testing.assert_close(output.pop("mask_logits"), to_mask(decoded), rtol=1e-6, atol=1e-9)
    assert not output and next(weights, None) is None


def test_dropout_is_of_both_halves_and_of_training_only():
    torch.manual_seed(0)
    network = MultiMixNet(dropout=0.25, decoder_dropout=0.5)
    image = images(4)
    first, second = network.encoder(image), network.encoder(image)
    assert not torch.equal(first[0], second[0])
    shares = [float((f == 0).float().mean()) for f in first]
    assert all(share == pytest.approx(0.25, abs=0.02) for share in shares)
    kept = network.encoder(image, drop=False)
    network.eval()
    assert all(torch.equal(a, b) for a, b in zip(kept, network.encoder(image), strict=True))
    # What is kept of the first block is scaled up.
    survivors = first[0] != 0
    torch.testing.assert_close(first[0][survivors], kept[0][survivors] / 0.75)
    dropped: list[float] = []
    for block in network.decoder.blocks:
        block.register_forward_hook(lambda _, __, features: dropped.append(float((features == 0).float().mean())))
    saliency = network.saliency_map(image)
    network.decoder(kept, image, saliency)
    network.train()
    network.decoder(kept, image, saliency)
    assert max(dropped[:4]) < 0.01 and all(share == pytest.approx(0.5, abs=0.02) for share in dropped[4:])
    assert not any(
        block.dropout for block in build_shipped({"method": "umtls", "classes": "ab", "image_size": 32}).decoder.blocks
    )


@pytest.mark.parametrize("method", METHODS)
def test_streams_give_what_each_alone_gives(method):
    torch.manual_seed(2)
    network = MultiMixNet(method=method, dropout=0.0, decoder_dropout=0.0)
    classifies, segments, _ = KIND[method]
    names = (
        *(("mask_labelled",) if segments else ()),
        *(("mask_unlabelled",) if METHODS[method].mask_consistency else ()),
        *(("class_labelled",) if classifies else ()),
        *(("class_weak", "class_strong") if METHODS[method].pseudo_labels else ()),
    )
    batch = streams(names=names)
    output = network(batch)
    alone = {name: network(image) for name, image in batch.items()}
    expected = {
        "mask_labelled": ("mask_logits", "mask_logits"),
        "mask_unlabelled": ("unlabelled_mask_logits", "mask_logits"),
        "class_labelled": ("logits", "logits"),
        "class_weak": ("weak_logits", "logits"),
        "class_strong": ("strong_logits", "logits"),
    }
    assert set(output) == {expected[name][0] for name in names}
    for name in names:
        found, source = expected[name]
        torch.testing.assert_close(output[found], alone[name][source], rtol=1e-4, atol=1e-5)
        assert output[found].requires_grad == (name != "class_weak")


@pytest.mark.parametrize("method", METHODS)
def test_one_batch_gives_what_the_method_predicts(method):
    output = MultiMixNet(method=method, num_classes=4)(images(2))
    classifies, segments, _ = KIND[method]
    expected = {**({"logits": (2, 4)} if classifies else {}), **({"mask_logits": (2, 1, 32, 32)} if segments else {})}
    assert {name: tuple(value.shape) for name, value in output.items()} == expected


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match=r"method is 'MultiMix', expected one of unet, .*multimix"):
        MultiMixNet(method="MultiMix")


@pytest.mark.parametrize("size", [0, 16, 33, 100])
def test_image_sizes_that_do_not_fit(size):
    with pytest.raises(ValueError, match=f"image_size={size}: expected a multiple of 32"):
        check_image_size(size)
    check_image_size(32)
    check_image_size(96)


@pytest.mark.parametrize("method", METHODS)
def test_shipped_output_is_the_trained_networks(method, tmp_path):
    torch.manual_seed(3)
    trained = MultiMixNet(method=method, num_classes=3)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    shipped = init_network(ShippedMultiMix(method=method, num_classes=3), str(tmp_path / "model.pt")).eval()
    with torch.no_grad():
        expected, pred = trained.eval()(images()), shipped(images())
    mask_logits, logits = split_output(pred, method)
    classifies, segments, _ = KIND[method]
    assert (mask_logits is not None, logits is not None) == (segments, classifies)
    if segments:
        torch.testing.assert_close(mask_logits, expected["mask_logits"], rtol=1e-4, atol=1e-4)
        assert pred.shape == (3, 2 + 3 * classifies, SIZE, SIZE)
        torch.testing.assert_close(pred[:, :2].softmax(dim=1)[:, 1:], torch.sigmoid(mask_logits))
    if classifies:
        torch.testing.assert_close(logits, expected["logits"], rtol=1e-4, atol=1e-5)
    if segments and classifies:
        assert torch.equal(pred[:, 2:], logits[:, :, None, None].expand(3, 3, SIZE, SIZE))


def test_no_first_weights_leave_the_network_alone():
    network = MultiMixNet(method="enc")
    before = [p.clone() for p in network.parameters()]
    assert init_network(network, None) is network
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_weights_for_other_classes_give_all_but_the_classifier(tmp_path, caplog):
    earlier = MultiMixNet(method="umtls", num_classes=2)
    torch.save(earlier.state_dict(), tmp_path / "model.pt")
    network = init_network(MultiMixNet(method="umtls", num_classes=3), str(tmp_path / "model.pt"))
    assert "other classes: branch.linear start anew" in caplog.text
    for name, weight in network.state_dict().items():
        assert name.startswith("branch.") or torch.equal(weight, earlier.state_dict()[name])
    with pytest.raises(ValueError, match=r"does not fit this network.*bridge"):
        init_network(MultiMixNet(method="umtl"), str(tmp_path / "model.pt"))
