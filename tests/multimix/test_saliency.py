"""The saliency map of the bridge: finite differences, no trace in the network, and the closed form of it."""

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from multimix.network import METHODS, MultiMixNet
from multimix.saliency import saliency_map
from multimix.shipped import ShippedMultiMix
from multimix.transforms import Preprocess, to_input

SIZE = 32
BRIDGED = [name for name, method in METHODS.items() if method.bridge]


def images(count=3, size=SIZE, seed=0):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def network_of(method="multimix", seed=0, **options):
    torch.manual_seed(seed)
    return MultiMixNet(method=method, **options)


def scores(network, image):
    return network.branch(network.encoder(image, drop=False)[-1])


def by_backward(network, image):
    """Gradient of each winning score, image by image, by `backward`; the parameters' gradients come along."""
    maps = []
    for index in range(len(image)):
        variable = image[index : index + 1].clone().requires_grad_()
        scores(network, variable).max().backward()
        maps.append(variable.grad.abs())
    network.zero_grad()
    return torch.cat(maps)


def test_equals_finite_differences_of_the_winning_score():
    network = network_of(num_classes=3).double().train()
    image = images(2).double()
    found = network.saliency_map(image)
    assert found.shape == image.shape and found.dtype == torch.float64
    with torch.no_grad():
        winners = scores(network, image).argmax(dim=1)
        rng = np.random.default_rng(0)
        for index in range(2):
            for row, column in rng.integers(0, SIZE, (12, 2)):
                moved = image[index : index + 1].repeat(2, 1, 1, 1)
                step = 1e-6
                moved[0, 0, row, column] += step
                moved[1, 0, row, column] -= step
                up, down = scores(network, moved)[:, winners[index]]
                expected = abs(float(up - down)) / (2 * step)
                assert float(found[index, 0, row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert found.std() > 1e-4


def test_the_winner_is_chosen_for_each_image():
    # Scores that are linear in the image: the gradient of class k is the constant k + 1.
    weights = torch.tensor([1.0, -2.0, 3.0])
    offsets = torch.tensor([[5.0, 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, 0.0]])
    found = saliency_map(lambda x: x.sum(dim=(1, 2, 3))[:, None] * weights + offsets, torch.full((3, 1, 1, 2), 0.1))
    assert found[:, 0, 0].tolist() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]


@pytest.mark.parametrize("count", [1, 3])
def test_equals_backward_on_the_image_whatever_else_is_in_the_batch(count):
    network = network_of().double()
    image = images(3).double()
    expected = by_backward(network, image)[:count]
    found = network.saliency_map(image[:count])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found >= 0).all() and not found.requires_grad


def test_leaves_no_trace():
    network = network_of()
    network.encoder.blocks[1].eval()
    network.decoder.eval()
    modes = [module.training for module in network.modules()]
    assert True in modes and False in modes
    given = {}
    for index, (name, parameter) in enumerate(network.named_parameters()):
        if index % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
            given[name] = parameter.grad
    state, image = torch.get_rng_state(), images()
    network.saliency_map(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(image, images()) and image.grad is None and not image.requires_grad
    for name, parameter in network.named_parameters():
        assert parameter.grad is given.get(name)
        assert parameter.grad is None or (parameter.grad == 0.5).all()
        assert parameter.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [True, False])
def test_works_inside_contexts(context, training):
    network = network_of().train(training)
    expected = network.saliency_map(images())
    network.requires_grad_(not training)  # needs no gradients of parameters
    with context():
        image = images()
        found = network.saliency_map(image)
        assert network.train(False)(image)["mask_logits"].shape == image.shape
    assert torch.equal(found, expected) and not found.requires_grad


def test_is_in_single_precision_under_autocast():
    network = network_of().eval()
    expected = network.saliency_map(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.saliency_map(images())
        half = network.saliency_map(images().bfloat16())
        assert network(images())["logits"].dtype == torch.bfloat16
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert half.dtype == torch.float32 and torch.isfinite(half).all() and half.max() > 0


def test_no_gradient_reaches_the_classifier_through_the_bridge():
    network = network_of()
    image = images()
    network(image)["mask_logits"].square().mean().backward()
    assert all(p.grad is None for p in network.branch.parameters())
    found = [p.grad.clone() for p in network.encoder.parameters()]
    network.zero_grad()
    # The encoder's gradient is that of a map given as a constant.
    network.train(False)
    network(image)["mask_logits"].square().mean().backward()
    expected = [p.grad.clone() for p in network.encoder.parameters()]
    network.zero_grad()
    constant = network.saliency_map(image).clone()
    network.decoder(network.encoder(image), image, constant).square().mean().backward()
    for parameter, gradient in zip(network.encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert any(g.abs().max() > 0 for g in found)


# The closed form


def assert_same_maps(found, expected):
    highest = expected.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert (highest > 0).all()
    assert float(((found - expected).abs() / highest).max()) <= 1e-5


def real_films(folder):
    """Kermany films (224 x 224), squared to 64: three as they are, three as portrait and landscape in black."""
    paths = sorted((folder / "chest_xray" / "kermany_224" / "test").glob("*/*.jpeg"))[:: 624 // 6][:6]
    pictures = [np.asarray(Image.open(path).convert("L")).copy() for path in paths]
    pictures[3] = pictures[3][:, 60:160]
    pictures[4] = pictures[4][40:150]
    pictures[5][:100, :120] = 0
    preprocess = Preprocess(image_size=64)
    return to_input(torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))[:, None])


def check_closed_form(method, image, seed=0):
    trained = network_of(method, seed, num_classes=3).eval()
    shipped = ShippedMultiMix(method=method, num_classes=3).eval()
    shipped.load_state_dict(trained.state_dict())
    with torch.no_grad():
        features, logits, saliency = shipped.encode(image)
        expected = trained.encoder(image)
    assert_same_maps(saliency, trained.saliency_map(image))
    for one, other in zip(features, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, scores(trained, image), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(shipped(image)[:, 1:2], trained(image)["mask_logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", BRIDGED)
@pytest.mark.parametrize("seed", range(3))
def test_closed_form_where_maxima_are_tied(method, seed):
    image = images(5, 64, seed)
    image[0, :, :, :20] = 0
    image[1, :, 32:] = 1
    image[2] = (image[2] > 0.5).float()
    image[3] = torch.arange(64)[:, None].div(64)  # every row of one value
    check_closed_form(method, image, seed)


def test_closed_form_on_real_films(real_data):
    image = real_films(real_data)
    assert (image[3, :, :, :10] == 0).all() and (image[4, :, :10] == 0).all()
    check_closed_form("multimix", image)


def test_closed_form_in_double_precision_is_exact():
    trained = network_of(num_classes=3).double().eval()
    shipped = ShippedMultiMix(num_classes=3).double()
    shipped.load_state_dict(trained.state_dict())
    image = images(2).double()
    with torch.no_grad():
        found = shipped.encode(image)[2]
    torch.testing.assert_close(found, trained.saliency_map(image), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("export", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_gives_the_same(method, export):
    torch.manual_seed(0)
    shipped = ShippedMultiMix(method=method, num_classes=3).eval().requires_grad_(False)
    image = images(2, 64)
    exported = torch.jit.script(shipped) if export == "script" else torch.jit.trace(shipped, images(2, 64, seed=1))
    with torch.no_grad():
        expected = shipped(image)
        for context in (contextlib.nullcontext(), torch.inference_mode()):
            with context:
                torch.testing.assert_close(exported(image), expected, rtol=1e-4, atol=1e-5)
        if export == "script":
            other = images(3)
            torch.testing.assert_close(exported(other), shipped(other), rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3
