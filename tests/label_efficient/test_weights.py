"""What weights say of themselves."""

import json

import pytest
import torch

from label_efficient.files import sha256
from label_efficient.networks.weights import read_model_info, read_weights, save_model
from lsanet.settings import Training


def test_the_description_of_weights_is_complete_and_of_the_bundle(tmp_path):
    def read():
        return read_model_info(str(tmp_path / "model.pt"), bundle="ours", needed=["classes", "size"])

    with pytest.raises(FileNotFoundError, match=r"model\.json: no such file.*keep them together"):
        read()
    for content, message in (
        ({"bundle": "lsanet", "classes": ["a"]}, "weights of the bundle 'lsanet', expected 'ours'"),
        ({"bundle": "ours"}, r"model\.json: classes, size missing"),
        ({"classes": ["a"], "size": 1}, "bundle missing"),
    ):
        (tmp_path / "model.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read()
    complete = {"bundle": "ours", "classes": ["a"], "size": 1, "more": None}
    (tmp_path / "model.json").write_text(json.dumps(complete))
    assert read() == complete


RIGHT = {"bundle": "lsanet", "classes": ["a", "b"], "image_size": 28, "mean": [0.5, 0.5, 0.5], "method": "lsanet"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": "abc"}, "classes='abc': expected a list of the names"),
        ({"classes": ["a", 1]}, r"classes=\['a', 1\]"),
        ({"classes": ["a", "a"]}, "a name stands there twice"),
        ({"classes": None}, "classes=None"),
        ({"image_size": "28"}, "image_size='28': expected a whole number"),
        ({"image_size": 0.5, "mean": [0.5]}, r"image_size=0.5.*mean=\[0.5\]: expected three numbers"),
        ({"method": "lsa", "seed": -1}, "method='lsa': expected one of baseline.*seed=-1|seed=-1.*method='lsa'"),
        ({"sha256": "abc"}, "sha256='abc': expected 64 hexadecimal digits"),
    ],
)
def test_a_description_of_wrong_types_names_its_fields(tmp_path, change, words):
    (tmp_path / "model.json").write_text(json.dumps(RIGHT | change))
    with pytest.raises(ValueError, match=rf"model\.json: .*({words})"):
        read_model_info(str(tmp_path / "model.pt"), bundle="lsanet", needed=["classes"], settings=Training)


def broken(kind, weights, path):
    """Weights of which nothing may be loaded, and what is said of them."""
    if kind in ("nan", "inf"):
        weights["layer.bias"] = weights["layer.bias"] * float(kind)
    if kind == "integers":
        weights["layer.count"] = torch.tensor(3)
    wrapped = {"state_dict": weights, "model": weights}.get(kind)
    torch.save({kind: wrapped} if kind in ("state_dict", "model") else weights, path)
    if kind == "bit":
        content = bytearray(path.read_bytes())
        content[content.index(weights["layer.weight"].numpy().tobytes()) + 3] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "1 of its tensors, the first layer.bias, are not finite"),
        ("inf", "not finite"),
        ("bit", "is damaged or was cut short|is not the file that .*model\\.json describes"),
        ("state_dict", r"no plain weights \(its first names are \['state_dict'\]"),
        ("model", "not its checkpoint.pt"),
        ("folder", "is a folder: give the file in it"),
        ("integers", None),
    ],
)
def test_broken_weights_are_never_loaded(tmp_path, kind, words, described, caplog):
    path = tmp_path / "model.pt"
    weights = {"layer.weight": torch.rand(4, 4), "layer.bias": torch.ones(4)}
    if kind == "folder":
        path.mkdir()
    elif described:
        save_model(path, weights, RIGHT)  # as it was before it was damaged
        broken(kind, weights, path)
        if kind != "bit":
            (tmp_path / "model.json").write_text(json.dumps(RIGHT | {"sha256": sha256(path)}))
    else:
        broken(kind, weights, path)
    if words is None:
        assert read_weights(path).keys() == read_weights(path).keys() == weights.keys()
        assert caplog.text.count("says its sha256") == (0 if described else 1)  # once
        return
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "weights_only" not in str(caught.value)
