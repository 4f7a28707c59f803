"""Binary tasks of every bundle: figures name the positive class, and the saved threshold decides."""

import json
import logging

import pytest
from bundle_cases import Case, evaluate, medmnist_file, part, predict, refused, rows_of, says, small, train, workflow

NAMES = ["ill", "healthy"]


@pytest.fixture
def two(case, once):
    """A list of two classes, and the folder of a calibrated run on it whose positive class is the first."""

    def make(folder):
        path = medmnist_file(folder, classes=2, per_class=12) if case.name == "lsanet" else case.data(folder)
        names = ["dark", "middle"]
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            content["labels"] = names = NAMES
            for item in (item for items in content.values() for item in items if isinstance(item, dict)):
                item |= {"label": min(item["label"], 1)} if "label" in item else {}
            path.write_text(json.dumps(content))
        settings = {"calibrate": True, "positive_class": names[0], "target_specificity": 0.7, "max_epochs": 1}
        train(case, path, folder / "out", **settings, logging_file=None)
        return path, folder / "out", names

    return once(f"{case.name}_two", make)


def decided(rows, names, threshold):
    """What the rows must say; of a probability that its digits cannot tell from the threshold, what they do say."""
    found = [(float(row[f"p_{names[0]}"]), row["pred"]) for row in rows]
    return [pred if abs(p - threshold) < 1e-6 else names[int(p < threshold)] for p, pred in found]


def test_every_place_names_the_class_and_the_saved_threshold_decides(case: Case, two, tmp_path):
    path, run, names = two
    metrics, info, saved = (json.loads((run / f"{n}.json").read_text()) for n in ("metrics", "model", "calibration"))
    point = saved["operating_point"]
    threshold = point["threshold"]
    assert info["positive_class"] == point["positive_class"] == names[0] and info["sha256"] == saved["weights_sha256"]
    assert info["calibration"]["operating_point"] == point and metrics["operating_point"]["validation"] == point
    for section in ("validation", "test"):
        figures = metrics[section][case.task] if case.task else metrics[section]
        assert figures["positive_class"] == names[0]
    report, log = (run / "report.html").read_text(), (run / "train.log").read_text()
    assert f"sensitivity of {names[0]} at 0.5" in report and f"of {names[0]}, chosen on validation" in report
    assert f"at the threshold {threshold:.4f} of {names[0]}" in log and "positive_class" in log
    rows = rows_of(run / "predictions.csv")
    assert [row["pred"] for row in rows] == decided(rows, names, threshold)
    test = [row for row in rows if row.get("section", "test") == "test"]
    ill = [row["pred"] for row in test if row["label"] == names[0]]
    assert metrics["operating_point"]["test"]["sensitivity"] == pytest.approx(ill.count(names[0]) / len(ill))
    evaluate(case, path, run / "model.pt", tmp_path / "again")
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    error = refused(evaluate, case, path, run / "model.pt", tmp_path / "b", target_specificity=0.8)
    says(error, "target_specificity=0.8 has no effect", "for 0.7", "calibrate=true")
    images = path.parent if path.suffix == ".json" else tmp_path / "again" / "figures"
    for given, limit in ((None, threshold), (0.5, 0.5), (0.9, 0.9)):
        folder = tmp_path / str(given)
        rows = predict(case, case.root, images, folder, ckpt_path=str(run / "model.pt"), operating_threshold=given)
        rows = [row for row in rows if not row["error"]]
        assert [row["pred"] for row in rows] == decided(rows, names, limit) and len(rows) > 2
    says(
        refused(ask, case, run, positive_class=names[1]),
        "calibration.json saves is of",
        names[0],
        "operating_threshold",
    )
    (tmp_path / "calibration.json").write_text(json.dumps(saved | {"weights_sha256": "0" * 64}))
    for name in ("model.pt", "model.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    says(refused(ask, case, tmp_path), "calibration.json was fitted to other weights")


def ask(case, folder, **settings):
    return part(workflow(case, "inference", ckpt_path=str(folder / "model.pt"), **settings), "decision")


def test_a_wrong_class_is_refused_before_training_and_an_unnamed_one_is_told(case: Case, two, tmp_path, caplog):
    path, run, names = two
    values = small(case, path, tmp_path / "out")
    error = refused(lambda: part(workflow(case, **values, positive_class="sick"), "network"))
    says(error, "positive_class='sick'", f"'{names[0]}' (0)", f"'{names[1]}' (1)")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        evaluate(case, path, run / "model.pt", tmp_path / "out")
    assert f"are of {names[0]!r}: give positive_class={names[1]!r}" in caplog.text
