"""What weights say of themselves."""

import json

import pytest

from label_efficient.networks.weights import read_model_info


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
