"""Attention modules of the residual blocks, each against its paper's formula written out."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from label_efficient.networks.block_attention import ATTENTIONS, build_attention

CHANNELS = 32
SHAPES = [(3, CHANNELS, 5, 4), (2, CHANNELS, 1, 1)]


def made(name, channels=CHANNELS):
    """The module with weights that are all different from what it starts with."""
    torch.manual_seed(1)
    module = build_attention(name, channels).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.7)
    return module


def weights_of(module):
    return {k: v.detach().numpy() for k, v in module.named_parameters()}


def batch_norm(x, weight, bias, axes, training):
    """Batch norm over `axes`; outside training the running statistics are still 0 and 1."""
    mean = x.mean(axis=axes, keepdims=True) if training else 0
    variance = x.var(axis=axes, keepdims=True) if training else 1
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def squeeze_excitation(x, w, training):
    first, second = w["fc.0.weight"][:, :, 0, 0], w["fc.2.weight"][:, :, 0, 0]
    assert first.shape == (CHANNELS // 16, CHANNELS)
    out = np.empty_like(x)
    for image in range(len(x)):
        hidden = np.maximum(first @ x[image].mean(axis=(1, 2)), 0)
        out[image] = x[image] * expit(second @ hidden)[:, None, None]
    return out


def cbam(x, w, training):
    first, second = w["fc.0.weight"][:, :, 0, 0], w["fc.2.weight"][:, :, 0, 0]
    kernel = w["spatial.0.weight"][0]
    assert kernel.shape == (2, 7, 7)
    refined, response = np.empty_like(x), np.empty((len(x), *x.shape[2:]))
    for image, maps in enumerate(x):
        mlp = [second @ np.maximum(first @ pooled, 0) for pooled in (maps.mean(axis=(1, 2)), maps.max(axis=(1, 2)))]
        refined[image] = maps * expit(mlp[0] + mlp[1])[:, None, None]
        both = np.stack([refined[image].mean(axis=0), refined[image].max(axis=0)])
        padded = np.pad(both, ((0, 0), (3, 3), (3, 3)))
        for row, column in np.ndindex(*response.shape[1:]):
            response[image, row, column] = (padded[:, row : row + 7, column : column + 7] * kernel).sum()
    response = batch_norm(response, w["spatial.1.weight"], w["spatial.1.bias"], (0, 1, 2), training)
    return refined * expit(response)[:, None]


def efficient_channel_attention(x, w, training):
    kernel = w["conv.weight"][0, 0]
    reach = len(kernel) // 2
    out = np.empty_like(x)
    for image in range(len(x)):
        pooled = x[image].mean(axis=(1, 2))
        for channel in range(CHANNELS):
            score = 0.0
            for offset in range(-reach, reach + 1):
                if 0 <= channel + offset < CHANNELS:
                    score += kernel[offset + reach] * pooled[channel + offset]
            out[image, channel] = x[image, channel] * expit(score)
    return out


def style_recalibration(x, w, training):
    mean, deviation = x.mean(axis=(2, 3)), np.sqrt(x.var(axis=(2, 3)) + 1e-5)
    style = mean * w["weight"][:, 0] + deviation * w["weight"][:, 1]
    gate = expit(batch_norm(style, w["norm.weight"], w["norm.bias"], 0, training))
    return x * gate[:, :, None, None]


def simam(x, w, training):
    out = np.empty_like(x)
    count = max(x.shape[2] * x.shape[3] - 1, 1)
    for image, channel in np.ndindex(*x.shape[:2]):
        t = x[image, channel]
        variance = ((t - t.mean()) ** 2).sum() / count
        energy = 4 * (variance + 1e-4) / ((t - t.mean()) ** 2 + 2 * variance + 2e-4)  # the minimal energy e*
        out[image, channel] = t * expit(1 / energy)
    return out


REFERENCES = {
    "none": lambda x, w, training: x,
    "se": squeeze_excitation,
    "cbam": cbam,
    "eca": efficient_channel_attention,
    "srm": style_recalibration,
    "simam": simam,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_equals_its_formula(name, shape, training):
    module = made(name).train(training)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = module(x)
    expected = REFERENCES[name](x.detach().numpy(), weights_of(module), training)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    if name != "none":
        assert not np.allclose(expected, x.detach().numpy())
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [x, *module.parameters()])


@pytest.mark.parametrize("name", ATTENTIONS)
def test_constant_maps_give_finite_gradients(name):
    # After a ReLU whole maps are zero: standard deviations and energies of 0 must not turn into NaN.
    module = made(name).train()
    x = torch.zeros(2, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("channels", "kernel"), [(64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_eca_kernel_grows_with_the_channels(channels, kernel):
    # |log2(C) / 2 + 1 / 2| cut to an integer and, where that is even, one more: as its authors' code does.
    t = int(abs((math.log2(channels) + 1) / 2))
    assert kernel == (t if t % 2 else t + 1)
    assert build_attention("eca", channels).conv.kernel_size == (kernel,)


def test_fewer_channels_than_the_reduction_leave_one_hidden_unit():
    assert build_attention("se", 8)(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)
