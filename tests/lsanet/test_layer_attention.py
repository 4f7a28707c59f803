"""Feature embedding and layer selective attention: every variant of the paper's Table 2 written out."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch.nn import functional as F

from label_efficient.networks.backbones import build_backbone
from lsanet.layer_attention import LSA_VARIANTS, LayerSelectiveAttention

NODES, EMBED, BATCH = 4, 16, 3
CHANNELS, STRIDES = (3, 4, 5, 6), (8, 4, 2, 1)
SIGMOID_VARIANTS = [v for v in LSA_VARIANTS if v != "gated"]


def made(variant="fc_r8", scale=1.0, **kwargs):
    torch.manual_seed(2)
    lsa = LayerSelectiveAttention(CHANNELS, STRIDES, variant=variant, embed_channels=EMBED, **kwargs).double()
    with torch.no_grad():
        for parameter in lsa.gate.parameters():
            parameter.normal_(0, scale)
    return lsa


def maps(batch=BATCH, side=2, scale=1.0):
    torch.manual_seed(3)
    return [
        torch.randn(batch, c, side * s, side * s, dtype=torch.float64) * scale
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


def fully_connected(u, w):
    """Equation 6: sigmoid(W2 relu(W1 u)) on the whole descriptor, then the mean of every node's part."""
    out = np.empty((len(u), NODES))
    for image in range(len(u)):
        z = expit(w["fc2.weight"] @ np.maximum(w["fc1.weight"] @ u[image].reshape(-1), 0))
        for node in range(NODES):
            out[image, node] = z[node * EMBED : (node + 1) * EMBED].mean()
    return out


def convolution(u, w):
    kernel, out = w["conv.weight"][0, 0], np.empty((len(u), NODES))
    reach = len(kernel) // 2
    for image in range(len(u)):
        padded = np.pad(u[image].reshape(-1), reach)
        z = [expit(padded[i : i + len(kernel)] @ kernel) for i in range(NODES * EMBED)]
        for node in range(NODES):
            out[image, node] = np.mean(z[node * EMBED : (node + 1) * EMBED])
    return out


def gated(u, w):
    out = np.empty((len(u), NODES))
    for image, node in np.ndindex(len(u), NODES):
        v = np.tanh(w["tanh_branch.weight"] @ u[image, node] + w["tanh_branch.bias"])
        s = expit(w["sigmoid_branch.weight"] @ u[image, node] + w["sigmoid_branch.bias"])
        out[image, node] = w["score.weight"][0] @ (v * s)
    return out


def self_attention(u, w):
    out = np.empty((len(u), NODES))
    for image, tokens in enumerate(u):
        projected = tokens @ w["attention.in_proj_weight"].T + w["attention.in_proj_bias"]
        q, k, v = np.split(projected, 3, axis=1)
        attended = softmax(q @ k.T / math.sqrt(EMBED), axis=1) @ v
        attended = attended @ w["attention.out_proj.weight"].T + w["attention.out_proj.bias"]
        out[image] = expit(attended).mean(axis=1)
    return out


REFERENCES = dict.fromkeys(("fc_r4", "fc_r8", "fc_r16"), fully_connected)
REFERENCES |= dict.fromkeys(("conv_k3", "conv_k5", "conv_k7"), convolution)
REFERENCES |= {"gated": gated, "self_attention": self_attention}


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("variant", LSA_VARIANTS)
def test_beta_equals_the_formula(variant, temperature):
    lsa = made(variant, temperature=temperature)
    with torch.no_grad():
        beta, gate = lsa(maps())
        u = lsa.embed(maps()).mean(dim=(3, 4)).numpy()
    w = {k: p.detach().numpy() for k, p in lsa.gate.named_parameters()}
    expected = REFERENCES[variant](u, w)
    np.testing.assert_allclose(gate.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(beta.numpy(), softmax(expected / temperature, axis=1), rtol=1e-10)
    assert beta.std(dim=0).max() > 1e-4  # it depends on the image


def test_reduction_and_kernel_are_those_of_the_name():
    # W1 is LC/r x LC: with L = 4 and C = 16 the concatenated descriptor has 64 channels.
    assert [made(f"fc_r{r}").gate.fc1.weight.shape for r in (4, 8, 16)] == [(16, 64), (8, 64), (4, 64)]
    assert [made(f"conv_k{k}").gate.conv.weight.shape for k in (3, 5, 7)] == [(1, 1, 3), (1, 1, 5), (1, 1, 7)]


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("variant", LSA_VARIANTS)
def test_rows_sum_to_one_and_sigmoid_variants_keep_their_bounds(variant, scale):
    lsa = made(variant, scale)
    with torch.no_grad():
        beta, gate = lsa(maps(batch=32, scale=scale))
    torch.testing.assert_close(beta.sum(dim=1), torch.ones(32, dtype=torch.float64))
    if variant in SIGMOID_VARIANTS:
        low, high = 1 / (1 + (NODES - 1) * math.e), math.e / (math.e + NODES - 1)
        assert low - 1e-12 <= beta.min() and beta.max() <= high + 1e-12
        assert gate.min() >= 0 and gate.max() <= 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_saturated_gate_reaches_the_bound(sign):
    lsa = made("fc_r8")
    with torch.no_grad():
        # The hidden layer becomes positive, then node C1's channels get +-inf and all others the opposite.
        lsa.gate.fc1.weight.copy_(lsa.embed(maps(batch=1)).mean(dim=(3, 4)).flatten(1).sign().expand(8, -1))
        lsa.gate.fc2.weight.fill_(-1e6 * sign)[:EMBED] = 1e6 * sign
        beta, gate = lsa(maps(batch=1))
    np.testing.assert_allclose(gate, [[1, 0, 0, 0] if sign > 0 else [0, 1, 1, 1]], atol=1e-12)
    exact = math.e / (math.e + 3) if sign > 0 else 1 / (1 + 3 * math.e)
    assert beta[0, 0] == pytest.approx(exact, rel=1e-12)


def test_embedding_is_a_strided_then_a_pointwise_convolution():
    lsa = made()
    kernels = [e[0].kernel_size for e in lsa.embeddings]
    assert kernels == [(9, 9), (5, 5), (3, 3), (1, 1)]
    assert [e[0].stride for e in lsa.embeddings] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    with torch.no_grad():
        embedded = lsa.embed(maps(side=3))
        assert embedded.shape == (BATCH, NODES, EMBED, 3, 3)
        for node, feature_map in enumerate(maps(side=3)):
            first, second = lsa.embeddings[node]
            # A position written out: the window of the input times the kernel, then the pointwise map.
            reach, stride = first.kernel_size[0] // 2, STRIDES[node]
            padded = F.pad(feature_map, (reach,) * 4)
            window = padded[:, :, stride : stride + 2 * reach + 1, 2 * stride : 2 * stride + 2 * reach + 1]
            hidden = torch.einsum("bchw,kchw->bk", window, first.weight) + first.bias
            expected = hidden @ second.weight[:, :, 0, 0].T + second.bias
            torch.testing.assert_close(embedded[:, node, :, 1, 2], expected)


@pytest.mark.parametrize(
    ("backbone", "size", "side"),
    [
        *(("resnet18", size, side) for size, side in ((28, 1), (29, 1), (33, 2), (100, 4), (224, 7))),
        *(("densenet121", size, side) for size, side in ((29, 1), (61, 2), (100, 3), (224, 7))),
        *(("vgg16", size, side) for size, side in ((33, 1), (100, 3))),
    ],
)
def test_maps_of_any_image_size_embed_to_the_deepest_maps_size(backbone, size, side):
    with torch.device("meta"):
        network = build_backbone(backbone, 2)
        lsa = LayerSelectiveAttention(network.node_channels, STRIDES, embed_channels=EMBED)
        feature_maps = network.forward_nodes(torch.empty(2, 3, size, size))
        assert lsa.embed(feature_maps).shape == (2, NODES, EMBED, side, side)
        assert lsa(feature_maps)[0].shape == (2, NODES)


def test_a_map_that_was_rounded_up_is_averaged_down():
    # 25 positions at stride 8 give 4, the deepest map of a network that rounds down has 3.
    lsa = made()
    feature_maps = [torch.randn(1, c, s, s, dtype=torch.float64) for c, s in zip(CHANNELS, (25, 12, 6, 3), strict=True)]
    with torch.no_grad():
        embedded = lsa.embed(feature_maps)
        whole = lsa.embeddings[0](feature_maps[0])[0]
    assert whole.shape == (EMBED, 4, 4)
    for row, column in np.ndindex(3, 3):
        expected = whole[:, row : row + 2, column : column + 2].mean(dim=(1, 2))
        torch.testing.assert_close(embedded[0, 0, :, row, column], expected)


@pytest.mark.parametrize("variant", ["fc", "fc_r2", "conv_k4", "none", ""])
def test_unknown_variant_lists_the_known_ones(variant):
    with pytest.raises(ValueError, match=rf"lsa is '{variant}'.*fc_r8.*self_attention"):
        made(variant)


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="lsa_temperature"):
        made(temperature=temperature)
