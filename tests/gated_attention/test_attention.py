"""The six attention modules, each against its paper's formula written out, and what holds for the gate."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from gated_attention.attention import ATTENTIONS, attention_map, build_attention

CHANNELS = 32


def made(name):
    """The module with weights that are all different from what it starts with."""
    torch.manual_seed(1)
    module = build_attention(name, CHANNELS).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    return module


def pointwise(maps, weights, name):
    """1 x 1 convolution of maps C x h x w."""
    matrix = weights[f"{name}.weight"][:, :, 0, 0]
    return np.einsum("oc,chw->ohw", matrix, maps) + weights[f"{name}.bias"][:, None, None]


def dilated(maps, kernel, dilation):
    """3 x 3 convolution of maps C x h x w, zeros around them."""
    height, width = maps.shape[1:]
    padded = np.pad(maps, ((0, 0), (dilation, dilation), (dilation, dilation)))
    out = np.zeros((len(kernel), height, width))
    for row, column in np.ndindex(3, 3):
        top, left = row * dilation, column * dilation
        out += np.einsum("oc,chw->ohw", kernel[:, :, row, column], padded[:, top : top + height, left : left + width])
    return out


def normalised(x, scale, shift, training):
    """Batch norm of maps B x C x h x w; its running statistics are still 0 and 1."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True) if training else 0
    variance = x.var(axis=(0, 2, 3), keepdims=True) if training else 1
    return (x - mean) / np.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]


def gated(x, w, training):
    summed = np.zeros((len(x), *x.shape[2:]))
    for block, dilation in enumerate((1, 2)):
        out = np.stack([dilated(maps, w[f"blocks.{block}.0.weight"], dilation) for maps in x])
        assert out.shape[1] == CHANNELS // 8
        out = normalised(out, w[f"blocks.{block}.1.weight"], w[f"blocks.{block}.1.bias"], training)
        summed += np.maximum(out, 0).sum(axis=1)
    attended = np.empty_like(x)
    for image in range(len(x)):
        s = np.exp(summed[image]) / np.exp(summed[image]).sum()  # equation 1
        for channel in range(CHANNELS):
            gate = max(np.tanh((x[image, channel] * s).sum()), 0)
            attended[image, channel] = x[image, channel] * gate  # the summands of equation 2
    return attended


def non_local(x, w, training):
    out = np.empty_like(x)
    for image, maps in enumerate(x):
        theta, phi, g = (pointwise(maps, w, name) for name in ("theta", "phi", "g"))
        assert len(theta) == CHANNELS // 2
        y = np.empty_like(g)
        for row, column in np.ndindex(*maps.shape[1:]):
            f = np.exp(np.einsum("c,chw->hw", theta[:, row, column], phi))  # equation 3, embedded Gaussian
            y[:, row, column] = (g * f).sum(axis=(1, 2)) / f.sum()
        out[image] = pointwise(y, w, "out")
    return x + normalised(out, w["norm.weight"], w["norm.bias"], training)


def trilinear(x, w, training):
    out = np.empty_like(x)
    for image, maps in enumerate(x):
        flat = maps.reshape(CHANNELS, -1)
        out[image] = (softmax(softmax(flat, axis=1) @ flat.T, axis=1) @ flat).reshape(maps.shape)
    return out


def dual(x, w, training):
    convolved = {name: np.empty_like(x) for name in ("position_out", "channel_out")}
    for image, a in enumerate(x):
        b, c, d = (pointwise(a, w, name) for name in ("query", "key", "value"))
        assert len(b) == CHANNELS // 8
        position, channel = np.empty_like(a), np.empty_like(a)
        for row, column in np.ndindex(*a.shape[1:]):
            s = np.exp(np.einsum("c,chw->hw", b[:, row, column], c))  # equation 1
            taken = (s / s.sum() * d).sum(axis=(1, 2))
            position[:, row, column] = w["alpha"] * taken + a[:, row, column]  # equation 2
        for j in range(CHANNELS):
            similarity = softmax([(a[i] * a[j]).sum() for i in range(CHANNELS)])  # equation 3
            channel[j] = w["beta"] * sum(similarity[i] * a[i] for i in range(CHANNELS)) + a[j]  # equation 4
        for name, maps in (("position_out", position), ("channel_out", channel)):
            convolved[name][image] = np.einsum("oc,chw->ohw", w[f"{name}.0.weight"][:, :, 0, 0], maps)
    branches = (normalised(v, w[f"{k}.1.weight"], w[f"{k}.1.bias"], training) for k, v in convolved.items())
    return sum(np.maximum(branch, 0) for branch in branches)


def squeeze_excitation(x, w, training):
    out = np.empty_like(x)
    assert w["fc.0.weight"].shape == (CHANNELS // 16, CHANNELS)
    for image, maps in enumerate(x):
        hidden = np.maximum(w["fc.0.weight"] @ maps.mean(axis=(1, 2)) + w["fc.0.bias"], 0)
        out[image] = maps * expit(w["fc.2.weight"] @ hidden + w["fc.2.bias"])[:, None, None]
    return out


def global_context(x, w, training):
    out = np.empty_like(x)
    for image, maps in enumerate(x):
        key = pointwise(maps, w, "key")[0]
        context = (maps * np.exp(key) / np.exp(key).sum()).sum(axis=(1, 2))
        hidden = pointwise(context[:, None, None], w, "down")
        assert hidden.shape == (CHANNELS // 16, 1, 1)
        normed = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * w["norm.weight"] + w["norm.bias"]
        out[image] = maps + pointwise(np.maximum(normed, 0), w, "up")
    return out


REFERENCES = {
    "gated": gated,
    "spatial": non_local,
    "channel": trilinear,
    "dual": dual,
    "se": squeeze_excitation,
    "gc": global_context,
    "none": lambda maps, w, training: maps,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, CHANNELS, 5, 4), (2, CHANNELS, 1, 1)])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_equals_its_formula(name, shape, training):
    module = made(name).train(training)
    x = torch.rand(shape, dtype=torch.float64)
    out = module(x)
    weights = {k: v.detach().numpy() for k, v in module.named_parameters()}
    expected = REFERENCES[name](x.numpy(), weights, training)
    # The gate is computed in single precision.
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-5 if name == "gated" else 1e-10, atol=1e-12)
    assert torch.equal(torch.jit.script(module)(x), out) or training


@pytest.mark.parametrize("name", ATTENTIONS)
def test_gradient_reaches_every_parameter_and_is_finite_for_maps_of_zeros(name):
    module = made(name).float()
    x = torch.rand(2, CHANNELS, 4, 4)
    x[0] = 0
    x.requires_grad_()
    (module(x) * torch.randn(2, CHANNELS, 4, 4)).sum().backward()
    assert torch.isfinite(x.grad).all()
    # A shift of all keys alike leaves a softmax as it is.
    skipped = {"gc": {"key.bias"}, "spatial": {"phi.bias"}, "dual": {"key.bias"}}.get(name, set())
    for key, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        assert key in skipped or parameter.grad.any(), key


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e6, 1e30])
@pytest.mark.parametrize("amp", [False, True])
def test_semantic_map_is_a_distribution_and_gates_are_below_1(scale, amp):
    torch.manual_seed(2)
    module = build_attention("gated", 64).eval()
    x = torch.rand(3, 64, 7, 5) * scale
    x[1] = 0
    x[2, ::2] *= -1
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        semantic, gate = module.semantic_map(x), module.gate(x)
    assert semantic.shape == (3, 7, 5)
    assert (semantic >= 0).all()
    torch.testing.assert_close(semantic.sum(dim=(1, 2)), torch.ones(3))
    assert gate.shape == (3, 64)
    assert (gate >= 0).all()
    assert (gate < 1).all()
    assert not gate[1].any()
    # A channel that is negative where the map is looks elsewhere: its gate is shut.
    assert not gate[2, ::2].any()
    assert (gate[2, 1::2] > 0).all()


def test_semantic_map_does_not_start_at_a_single_position():
    torch.manual_seed(3)
    module = build_attention("gated", 512).train()
    semantic = module.semantic_map(torch.randn(4, 512, 7, 7).relu())
    assert semantic.amax() < 0.2
    assert semantic.std() > 1e-4


def test_non_local_and_dual_blocks_start_as_the_identity():
    x = torch.rand(2, CHANNELS, 4, 3)
    assert torch.equal(build_attention("spatial", CHANNELS)(x), x)
    module = build_attention("dual", CHANNELS)
    assert torch.equal(module.position(x), x)
    assert torch.equal(module.channel(x), x)


def test_attention_map_is_the_mean_over_channels_not_below_0():
    attended = torch.tensor([[[[1.0, -4.0]], [[3.0, 2.0]]]])
    assert attention_map(attended).tolist() == [[[2.0, 0.0]]]
    assert attention_map(attended.half()).dtype == torch.float32


def test_unknown_name_says_what_there_is():
    with pytest.raises(ValueError, match=r"attention is 'cbam', expected one of gated, spatial, channel, dual, se, gc"):
        build_attention("cbam", 8)
