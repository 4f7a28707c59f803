"""Temperature scaling and its file."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp

from label_efficient.evaluation import calibration
from label_efficient.evaluation.calibration import HIGHEST, LOWEST, calibration_of
from label_efficient.evaluation.calibration import read_calibration as read
from label_efficient.evaluation.calibration import write_calibration as write

RECORD = {
    "temperature": 1.5,
    "fitted_on": "validation",
    "n": 100,
    "nll_before": 0.9,
    "nll_after": 0.7,
    "ece_before": 0.12,
    "ece_after": 0.03,
}
POINT = {
    "threshold": 0.4,
    "target_specificity": 0.9,
    "sensitivity": 0.8,
    "specificity": 0.91,
    "fitted_on": "validation",
}


def sample(multi_label, seed=0, n=4000, width=5):
    """Logits and targets drawn from them, so that the best temperature is about 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, width))
    if multi_label:
        return logits, (rng.uniform(size=logits.shape) < expit(logits)).astype(int)
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def fit_temperature(logits, targets, multi_label=False):
    return calibration.fit_temperature(torch.as_tensor(logits), np.asarray(targets), multi_label)


def nll(logits, targets, multi_label):
    if multi_label:
        return np.mean(np.logaddexp(0, np.where(targets == 1, -logits, logits)))
    return np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(logits)), targets])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("factor", [0.2, 3.0, 10.0])
def test_a_known_factor_is_recovered(factor, multi_label):
    logits, targets = sample(multi_label)
    base = fit_temperature(logits, targets, multi_label)
    assert fit_temperature(logits * factor, targets, multi_label) == pytest.approx(base * factor, rel=1e-9)


@pytest.mark.parametrize("multi_label", [False, True])
def test_it_is_the_minimum_and_never_worse_than_one(multi_label):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        logits, targets = sample(multi_label, seed, n=int(rng.integers(2, 60)))
        logits = logits * np.exp(rng.uniform(-2, 2))
        if seed % 2:
            targets = rng.permutation(targets)
        found = fit_temperature(logits, targets, multi_label)
        assert LOWEST <= found <= HIGHEST
        best = nll(logits / found, targets, multi_label)
        grid = np.geomspace(LOWEST, HIGHEST, 401)
        assert best <= nll(logits, targets, multi_label)
        assert best <= min(nll(logits / t, targets, multi_label) for t in grid) + 1e-12
        assert found == fit_temperature(logits, targets, multi_label)


@pytest.mark.parametrize(
    ("logits", "targets", "bound"),
    [
        ([[4.0, 0.0], [0.0, 4.0]], [0, 1], LOWEST),  # separated
        ([[900.0, 0.0], [0.0, 900.0], [0.0, 1.0]], [0, 1, 1], LOWEST),
        ([[4.0, 0.0], [0.0, 4.0]], [1, 0], HIGHEST),  # all wrong
    ],
)
def test_a_bound_is_reported(logits, targets, bound, caplog):
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(np.array(logits), targets) == bound
    assert "at the bound" in caplog.text


@pytest.mark.parametrize("logits", [np.zeros((4, 2)), np.full((4, 2), 7.3)])
def test_equal_logits_keep_one(logits, caplog):
    assert fit_temperature(logits, [0, 1, 1, 1]) == 1
    assert not caplog.records


@pytest.mark.parametrize("point", [{}, {"operating_point": POINT | {"threshold": float(np.nextafter(1, 2))}}])
def test_a_file_is_read_as_written(tmp_path, point):
    path = tmp_path / "new" / "calibration.json"
    write(path, RECORD | point)
    assert read(path) == RECORD | point
    assert calibration_of(path.with_name("model.pt"), {}) == RECORD | point
    assert calibration_of(tmp_path / "model.pt", {}) == {"temperature": 1}
    with pytest.raises(ValueError, match=r"calibration\.json: n: "):
        write(path, RECORD | {"n": 1})
    assert read(path) == RECORD | point and [file.name for file in path.parent.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"temperature": 0}, "temperature: "),
        ({"temperature": -1.5}, "temperature: "),
        ({"temperature": True}, "temperature: "),
        ({"temperature": math.nan}, "temperature: "),
        ({"temperature": "1.5"}, "temperature: "),
        ({"temperature": 10**400}, "temperature: "),
        ({"nll_after": math.inf}, "nll_after: "),
        ({"ece_before": 1.5}, "ece_before: "),
        ({"n": 1}, "n: "),
        ({"n": 2.5}, "n: "),
        ({"fitted_on": ""}, "fitted_on: "),
        ({"operating_point": {}}, "operating_point.threshold: Field required"),
        ({"operating_point": POINT | {"threshold": math.nan}}, "operating_point.threshold: "),
        ({"operating_point": POINT | {"sensitivity": 2}}, "operating_point.sensitivity: "),
        ({"operating_point": POINT | {"target_specificity": 1}}, "operating_point.target_specificity: "),
        ({"operating_point": POINT | {"fitted_on": 3}}, "operating_point.fitted_on: "),
        *(({key: None}, f"{key}: ") for key in RECORD),
    ],
)
def test_reading_names_the_file_and_the_key(tmp_path, change, key):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(RECORD | change))
    with pytest.raises(ValueError, match=f"calibration.json: {key}"):
        read(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"calibration.json is not a JSON file"):
        read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"calibration.json: the file: "):
        read(path)


def test_a_calibration_of_other_weights_is_refused_and_a_lost_one_is_missed(tmp_path, caplog):
    write(tmp_path / "calibration.json", RECORD | {"weights_sha256": "a" * 64})
    assert calibration_of(tmp_path / "model.pt", {"sha256": "a" * 64})["temperature"] == 1.5 and not caplog.text
    with pytest.raises(ValueError, match=r"calibration\.json was fitted to other weights than .*model\.pt"):
        calibration_of(tmp_path / "model.pt", {"sha256": "b" * 64})
    assert calibration_of(tmp_path / "elsewhere" / "model.pt", {"calibration": {}}) == {"temperature": 1}
    assert calibration_of(tmp_path / "elsewhere" / "model.pt", {"calibration": {"temperature": 2}})["temperature"] == 1
    assert caplog.text.count("its calibration.json is not beside it") == 1
