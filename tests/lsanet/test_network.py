"""The networks that are trained and those that are shipped: outputs, weights, agreement of the two."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch.utils.data import DataLoader

from label_efficient.data.class_lists import MULTI_LABEL
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.networks.backbones import NODES
from label_efficient.networks.block_attention import ATTENTIONS
from label_efficient.networks.weights import load_weights
from lsanet.network import METHODS, METHODS_WITH_LSA, LSANet, NodeEnsemble, build_network
from lsanet.shipped import NodeInferer, build_shipped, node_disagreement, predict, shipped_weights

SUBSETS = [[*chosen, "C4"] for count in range(4) for chosen in itertools.combinations(("C1", "C2", "C3"), count)]
SIZE = 32


def allowed(method, nodes):
    if method == "baseline":
        return nodes == ["C4"]
    return nodes == ["C2", "C3", "C4"] if method == "dks" else len(nodes) > 1


def used(network):
    """The network in eval mode, as after some training: batch norms and attention that do something."""
    for name, parameter in network.named_parameters():
        if ".attention." in name:
            torch.nn.init.normal_(parameter, 0.2, 0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def described(**changes):
    """The description of a network of three classes, as a run writes it."""
    options = {"method": "lsanet", "backbone": "resnet18", "attention": "none", "output_nodes": list(NODES)}
    options |= {"lsa": "fc_r8", "lsa_temperature": 1.0, "embed_channels": 64, "image_size": SIZE, "keep_nodes": False}
    return {"task": "multi-class", "classes": ["a", "b", "c"], "seed": 0, **options, **changes}


def images(count=3, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def ensembles():
    """Ensembles by method and kind of label, built once."""
    made = {}

    def get(method, multi_label):
        if (method, multi_label) not in made:
            torch.manual_seed(4)
            nodes = ("C2", "C3", "C4") if method == "dks" else NODES
            network = NodeEnsemble(
                method=method, num_classes=3, image_size=SIZE, output_nodes=nodes, multi_label=multi_label
            )
            made[method, multi_label] = used(network)
        return made[method, multi_label]

    return get


@pytest.mark.parametrize("nodes", SUBSETS, ids="".join)
@pytest.mark.parametrize("method", METHODS)
def test_outputs_of_every_method_and_subset_of_nodes(method, nodes):
    if not allowed(method, nodes):
        with pytest.raises(ValueError, match=rf"method='{method}'.*(C4|output_nodes)"):
            LSANet(method=method, output_nodes=nodes)
        return
    with torch.device("meta"):
        network = LSANet(method=method, output_nodes=nodes, num_classes=5, image_size=SIZE)
        output = network(torch.empty(2, 3, SIZE, SIZE))
    expected = {"logits": (2, 5)}
    if len(nodes) > 1:
        expected["aux_logits"] = (2, len(nodes) - 1, 5)
    if method in METHODS_WITH_LSA:
        expected |= {"beta": (2, len(nodes)), "gate": (2, len(nodes))}
    assert {k: tuple(v.shape) for k, v in output.items()} == expected
    assert network.node_names == tuple(nodes)


def test_nodes_are_sorted_whatever_their_order():
    with torch.device("meta"):
        network = LSANet(output_nodes=["C4", "C1", "C3"], image_size=SIZE)
    assert network.node_names == ("C1", "C3", "C4")
    assert [head.fc.in_features for head in network.heads] == [64, 256]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "LSANet"}, r"method is 'LSANet'.*lsanet"),
        ({"method": "baseline"}, r"method='baseline'.*\['C4'\]"),
        ({"method": "dks"}, r"method='dks'.*C2 and C3"),
        ({"output_nodes": ["C1", "C5", "C4"]}, r"\['C5'\].*C1, C2, C3, C4"),
        ({"output_nodes": ["C1", "C2"]}, r"expected C4"),
        ({"output_nodes": ["C1", "C1", "C4"]}, r"each once"),
        ({"output_nodes": []}, r"expected C4"),
        ({"output_nodes": ["C4"]}, r"add C1, C2 or C3"),
        ({"backbone": "resnet19"}, r"resnet19.*resnet18"),
        ({"attention": "sam"}, r"sam.*simam"),
        ({"backbone": "densenet121", "attention": "se"}, r"residual blocks"),
        ({"backbone": "densenet121", "image_size": 28}, r"image_size=28.*29"),
        ({"lsa": "fc_r7"}, r"fc_r7.*fc_r8"),
        ({"lsa_temperature": 0.0}, r"lsa_temperature"),
    ],
)
def test_invalid_settings_are_refused_with_a_helpful_message(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        LSANet(**arguments)


@pytest.mark.parametrize("nodes", [["C4"], ["C1", "C4"], list(NODES)], ids="".join)
def test_classifiers_are_pooling_and_a_linear_layer_on_the_node_maps(nodes):
    torch.manual_seed(0)
    method = "dsn" if len(nodes) > 1 else "baseline"
    network = used(LSANet(method=method, num_classes=3, image_size=SIZE, output_nodes=nodes))
    maps = {}
    for index, name in enumerate(NODES, start=1):
        stage = getattr(network.backbone, f"layer{index}")
        stage.register_forward_hook(lambda module, args, out, name=name: maps.update({name: out.numpy()}))
    with torch.no_grad():
        output = network(images())
    linears = [*(head.fc for head in network.heads), network.backbone.fc]
    for index, (name, linear) in enumerate(zip(nodes, linears, strict=True)):
        w, b = linear.weight.detach().numpy(), linear.bias.detach().numpy()
        expected = maps[name].mean(axis=(2, 3)) @ w.T + b
        got = output["logits"] if name == "C4" else output["aux_logits"][:, index]
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_beta_is_computed_from_the_maps_of_the_chosen_nodes():
    torch.manual_seed(0)
    network = used(LSANet(num_classes=3, image_size=SIZE, output_nodes=["C2", "C4"]))
    with torch.no_grad():
        _, c2, _, c4 = network.backbone.forward_nodes(images())
        beta, gate = network.lsa([c2, c4])
        output = network(images())
    assert [e[0].stride for e in network.lsa.embeddings] == [(4, 4), (1, 1)]
    assert torch.equal(output["beta"], beta) and torch.equal(output["gate"], gate)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_dks_branches_repeat_the_remaining_stages_with_weights_of_their_own():
    torch.manual_seed(0)
    network = LSANet(method="dks", num_classes=5, image_size=SIZE, output_nodes=["C2", "C3", "C4"])
    stages = [network.backbone.layer3, network.backbone.layer4]
    assert [count(tail) for tail in network.tails] == [sum(map(count, stages)), count(stages[1])]
    assert len({p.data_ptr() for p in network.parameters()}) == len(list(network.parameters()))
    assert not torch.equal(network.tails[1][0][0].conv1.weight, network.backbone.layer4[0].conv1.weight)


def test_dks_branches_start_from_the_maps_of_their_nodes():
    torch.manual_seed(0)
    network = LSANet(method="dks", num_classes=5, image_size=SIZE, output_nodes=["C2", "C3", "C4"]).eval()
    # With the main branch's stages and classifier copied in, both must give the main branch's logits.
    backbone = network.backbone
    network.tails[0].load_state_dict(torch.nn.Sequential(backbone.layer3, backbone.layer4).state_dict())
    network.tails[1].load_state_dict(torch.nn.Sequential(backbone.layer4).state_dict())
    for head in network.heads:
        head.fc.load_state_dict(backbone.fc.state_dict())
    with torch.no_grad():
        output = network(images())
    for branch in range(2):
        torch.testing.assert_close(output["aux_logits"][:, branch], output["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [
        ("resnet18", "none"),
        ("densenet121", "none"),
        ("vgg16", "none"),
        *(("resnet18", a) for a in ATTENTIONS if a != "none"),
    ],
)
def test_shipped_network_equals_the_trained_ones_c4(backbone, attention, tmp_path):
    torch.manual_seed(5)
    info = described(backbone=backbone, attention=attention)
    trained = used(build_network(info))
    torch.save(shipped_weights(trained.state_dict(), keep_nodes=False), tmp_path / "model.pt")
    shipped = build_shipped(info)
    load_weights(shipped, tmp_path / "model.pt")
    shipped.eval()
    with torch.no_grad():
        expected, logits = trained(images())["logits"], shipped(images())
    assert (logits - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))
    assert expected.std() > 1e-3
    # As small and as fast as the plain backbone: nothing of the auxiliary classifiers is left.
    assert count(shipped) == count(trained.backbone)


def test_an_ensemble_takes_all_the_weights_of_the_trained_network():
    torch.manual_seed(7)
    info = described(lsa="conv_k3", keep_nodes=True, task=MULTI_LABEL)
    trained = used(build_network(info))
    shipped = build_shipped(info)
    assert isinstance(shipped, NodeEnsemble) and shipped.multi_label
    shipped.load_state_dict(shipped_weights(trained.state_dict(), keep_nodes=True))
    with torch.no_grad():
        output = trained(images())
        probabilities, weights = shipped.eval().node_probabilities(images())
    torch.testing.assert_close(weights, output["beta"])
    torch.testing.assert_close(probabilities[:, -1], output["logits"].sigmoid())
    torch.testing.assert_close(probabilities[:, :-1], output["aux_logits"].sigmoid())


def test_shipped_network_checks_its_image_size():
    with pytest.raises(ValueError, match="image_size=28"):
        build_shipped(described(backbone="vgg16", image_size=28))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    shipped = build_shipped(described())
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*model\.pt"):
        load_weights(shipped, path)
    other = {**shipped.state_dict(), "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    torch.save(other, path)
    with pytest.raises(ValueError, match=r"(?s)does not hold the weights.*fc\.weight.*classes"):
        load_weights(shipped, path)
    torch.save({k: v for k, v in shipped.state_dict().items() if k != "conv1.weight"}, path)
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        load_weights(shipped, path)
    path.write_text("not weights")
    with pytest.raises(ValueError, match="ckpt_path"):
        load_weights(shipped, path)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("method", ["lsanet", "dsn", "dks"])
def test_ensemble_is_the_weighted_mean_of_the_nodes(method, multi_label, ensembles):
    network = ensembles(method, multi_label)
    with torch.no_grad():
        logits = network(images())
        output = LSANet.forward(network, images())
    nodes = np.concatenate([output["aux_logits"].numpy(), output["logits"].numpy()[:, None]], axis=1)
    squash = expit if multi_label else (lambda z: softmax(z, axis=-1))
    expected = np.zeros_like(logits.numpy())
    for image in range(len(nodes)):
        for node in range(nodes.shape[1]):
            weight = output["beta"][image, node].item() if method == "lsanet" else 1 / nodes.shape[1]
            expected[image] += weight * squash(nodes[image, node])
    np.testing.assert_allclose(squash(logits.numpy()), expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        weights = network.node_probabilities(images())[1]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("multi_label", [False, True])
def test_certain_probabilities_give_finite_logits(multi_label, ensembles):
    network = ensembles("lsanet", multi_label)
    probabilities = torch.tensor([[1.0, 0.0, 0.0]])
    logits = network.logits_of(probabilities)
    assert torch.isfinite(logits).all()
    back = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=1)
    torch.testing.assert_close(back, probabilities, atol=1e-6, rtol=0)


def test_an_ensemble_of_one_node_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match=r"keep_nodes.*\['C4'\]"):
        NodeEnsemble(method="baseline", output_nodes=["C4"])


def entropy(p, multi_label):
    """In 0..1: over log K, or for independent labels the mean of their entropies in bits."""
    if multi_label:
        return np.mean([-sum(q * math.log2(q) for q in (x, 1 - x) if q > 0) for x in p])
    return -sum(x * math.log(x) for x in p if x > 0) / math.log(len(p))


def drawn(multi_label, images=6, nodes=4, classes=3):
    rng = np.random.default_rng(8)
    probabilities = rng.dirichlet(np.full(classes, 0.4), (images, nodes))
    if multi_label:
        probabilities = rng.beta(0.4, 0.4, (images, nodes, classes))
    return torch.tensor(probabilities), torch.tensor(rng.dirichlet(np.ones(nodes), images))


@pytest.mark.parametrize("multi_label", [False, True])
def test_disagreement_equals_the_loop_and_stays_within_0_and_1(multi_label):
    probabilities, weights = drawn(multi_label)
    got = node_disagreement(probabilities, weights, multi_label).numpy()
    for image, (p, w) in enumerate(zip(probabilities.numpy(), weights.numpy(), strict=True)):
        mean = sum(w[node] * p[node] for node in range(len(w)))
        own = sum(w[node] * entropy(p[node], multi_label) for node in range(len(w)))
        assert got[image] == pytest.approx(entropy(mean, multi_label) - own, abs=1e-12)
    assert (got > 0).all() and (got < 1).all()
    expected = [[entropy(p, multi_label) for p in row] for row in probabilities.numpy()]
    np.testing.assert_allclose(normalised_entropy(probabilities, multi_label).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("multi_label", [False, True])
def test_disagreement_of_agreeing_and_of_opposite_nodes(multi_label):
    probabilities, weights = drawn(multi_label)
    agreeing = probabilities[:, :1].expand(-1, 4, -1)
    assert node_disagreement(agreeing, weights, multi_label).abs().max() < 1e-12
    opposite, half = torch.eye(2).unsqueeze(0), torch.full((1, 2), 0.5)
    assert node_disagreement(opposite, half, multi_label).item() == pytest.approx(1)


def as_pair(batchdata, device, non_blocking=False, **kwargs):
    return batchdata["image"].to(device), batchdata["label"].to(device)


@pytest.mark.parametrize("keep_nodes", [False, True])
def test_predict_runs_a_loader_with_an_uneven_last_batch(keep_nodes, ensembles):
    network = ensembles("lsanet", False)
    if not keep_nodes:
        weights = shipped_weights(network.state_dict(), keep_nodes=False)
        network = build_shipped(described())
        network.load_state_dict(weights)
    x = images(5)
    loader = DataLoader([{"image": image, "label": torch.zeros(())} for image in x], batch_size=2)
    found = predict(network, loader, prepare_batch=as_pair, device="cpu", amp=False)
    logits, disagreement = found["logits"], found.get("uncertainty")
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(x), rtol=1e-4, atol=1e-5)
    if not keep_nodes:
        assert disagreement is None
        return
    with torch.no_grad():
        expected = node_disagreement(*network.node_probabilities(x))
    torch.testing.assert_close(disagreement, expected, rtol=1e-3, atol=1e-5)


def test_inferer_forgets_the_disagreement_of_another_network(ensembles):
    inferer, network = NodeInferer(), ensembles("lsanet", False)
    with torch.no_grad():
        logits = inferer(images(), network)
        torch.testing.assert_close(logits, network(images()))
        assert inferer.disagreement.shape == (3,)
        assert inferer(images(), network.backbone).shape == (3, 3)
    assert inferer.disagreement is None
