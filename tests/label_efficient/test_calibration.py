"""Temperature scaling and its file."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp

from label_efficient.evaluation.calibration import HIGHEST, LOWEST, fit_temperature
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


def nll(logits, targets, multi_label):
    if multi_label:
        return np.mean(np.logaddexp(0, np.where(targets == 1, -logits, logits)))
    return np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(logits)), targets])


@pytest.mark.parametrize("multi_label", [False, True])
def test_samples_of_the_model_itself_need_no_temperature(multi_label):
    assert fit_temperature(*sample(multi_label), multi_label) == pytest.approx(1, abs=0.05)


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


def test_tensors_and_column_labels_are_accepted():
    logits, targets = sample(False, n=50)
    expected = fit_temperature(logits, targets)
    assert fit_temperature(torch.tensor(logits, requires_grad=True), torch.tensor(targets)) == expected
    assert fit_temperature(logits, targets[:, None].astype(np.uint8)) == expected
    assert fit_temperature(logits.astype(np.float32), targets) == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize(
    ("logits", "targets", "multi_label", "message"),
    [
        ([[1.0, 2.0]], [0], False, r"N >= 2, K >= 2\), got \(1, 2\)"),
        ([1.0, 2.0], [0, 1], False, r"got \(2,\)"),
        ([[1.0], [2.0]], [0, 0], False, r"got \(2, 1\)"),
        ([[1.0, math.nan], [math.inf, 0.0]], [0, 1], False, "finite, got 2"),
        ([[1.0, 2.0]] * 2, [0, 1, 1], False, r"targets must be \(2,\) .* got \(3,\)"),
        ([[1.0, 2.0]] * 2, [0, 2], False, "from 0 to 1, got 2"),
        ([[1.0, 2.0]] * 2, [0, -1], False, "got -1"),
        ([[1.0, 2.0]] * 2, [0.0, math.nan], False, "got nan"),
        ([[1.0, 2.0]] * 2, [0, 1], True, r"targets must be \(2, 2\)"),
        ([[1.0, 2.0]] * 2, [[0, 2]] * 2, True, "from 0 to 1, got 2"),
    ],
)
def test_wrong_input_is_refused(logits, targets, multi_label, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, targets, multi_label)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "1", True, None])
def test_a_temperature_is_positive_and_finite(temperature, tmp_path):
    path = tmp_path / "calibration.json"
    with pytest.raises(ValueError, match="temperature must be a"):
        write(path, **RECORD | {"temperature": temperature})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("point", [None, POINT])
def test_a_file_is_read_as_written(tmp_path, point):
    path = tmp_path / "new" / "calibration.json"
    write(path, **RECORD, operating_point=point)
    assert read(path) == RECORD | ({} if point is None else {"operating_point": point})
    assert read(str(path))["temperature"] == 1.5
    assert [file.name for file in path.parent.iterdir()] == ["calibration.json"]


def test_a_fitted_threshold_survives_the_file(tmp_path):
    threshold = float(np.nextafter(1, 2))
    write(tmp_path / "c.json", **RECORD, operating_point=POINT | {"threshold": threshold})
    assert read(tmp_path / "c.json")["operating_point"]["threshold"] == threshold


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    write(path, **RECORD)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("label_efficient.evaluation.calibration.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, **RECORD | {"temperature": 3.0})
    assert read(path) == RECORD and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be a positive"),
        ({"temperature": math.nan}, "temperature must be a finite"),
        ({"temperature": "1.5"}, "temperature must be a finite number, got '1.5'"),
        ({"temperature": 10**400}, "temperature must be a finite"),
        ({"nll_after": math.inf}, "nll_after must be a finite"),
        ({"ece_before": 1.5}, r"ece_before must be within \[0, 1\], got 1.5"),
        ({"n": 1}, "n must be an integer of at least 2, got 1"),
        ({"n": 2.5}, "got 2.5"),
        ({"fitted_on": ""}, "fitted_on must be a name"),
        ({"operating_point": None}, "operating_point must be a JSON object"),
        ({"operating_point": {}}, "operating_point.threshold is missing"),
        ({"operating_point": POINT | {"threshold": math.nan}}, "operating_point.threshold must be a finite"),
        ({"operating_point": POINT | {"sensitivity": 2}}, r"operating_point.sensitivity must be within"),
        ({"operating_point": POINT | {"target_specificity": 1}}, "target_specificity must be between"),
        ({"operating_point": POINT | {"fitted_on": 3}}, "operating_point.fitted_on must be a name"),
    ],
)
def test_reading_names_the_file_and_the_key(tmp_path, change, message):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(RECORD | change))
    with pytest.raises(ValueError, match=f"calibration.json: .*{message}"):
        read(path)


@pytest.mark.parametrize("key", RECORD)
def test_a_missing_key_is_named(tmp_path, key):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({name: value for name, value in RECORD.items() if name != key}))
    with pytest.raises(ValueError, match=rf"calibration.json: {key} is missing"):
        read(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"calibration.json is not a JSON file"):
        read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"calibration.json: the file must be a JSON object"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.json")
