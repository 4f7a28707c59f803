"""Whole runs of every bundle: what they leave, breaking off and resuming, evaluating and predicting again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from bundle_cases import (
    CASES,
    LEFT,
    ROOT,
    command,
    evaluate,
    flags,
    metrics_of,
    numbers_of,
    part,
    predict,
    refused,
    rows_of,
    same,
    says,
    small,
    snapshot,
    train,
    train_alone,
    weights_of,
    workflow,
)
from PIL import Image
from sklearn.metrics import roc_auc_score


def test_a_run_leaves_everything_and_no_temporary_files(case, trained):
    assert sorted(p.name for p in trained.iterdir()) == sorted([*LEFT, "calibration.json", *case.left])
    assert {p.name for p in (trained / "figures").iterdir()} == {f"{name}.png" for name in case.figures.split()}
    assert any("tfevents" in p.name for p in (trained / "tensorboard").iterdir())
    report, log = ((trained / name).read_text() for name in ("report.html", "train.log"))
    assert "data:image/png" in report and "Synthetic" not in report and "SYNTHETIC" not in log
    info = json.loads((trained / "model.json").read_text())
    assert info["classes"] == case.classes
    assert {name: info[name] for name in case.tiny if name in info} == {n: case.tiny[n] for n in case.tiny if n in info}
    recorded = json.loads((trained / "config.json").read_text())["settings"]
    assert recorded == metrics_of(trained)["settings"] and recorded["calibrate"] is True


def test_history_has_a_row_an_epoch_and_the_parts_of_the_loss(case, trained):
    rows = numbers_of(trained)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["train_loss"] == pytest.approx(case.loss(row), rel=1e-5)
    best = metrics_of(trained)["chosen_epoch"]
    assert rows[best - 1][case.key] == max(row[case.key] for row in rows)


def test_figures_are_those_of_the_rows_of_the_predictions(case, trained):
    rows, metrics = rows_of(trained / "predictions.csv"), metrics_of(trained)
    assert list(rows[0])[: len(case.columns.split())] == case.columns.split()
    rows = [row for row in rows if row.get("section", "test") == "test"]
    scores = np.array([[float(row[f"p_{name}"]) for name in case.classes] for row in rows])
    labels = np.array([case.classes.index(row["label"]) for row in rows])
    np.testing.assert_allclose(scores.sum(1), 1, atol=3e-6)
    if len(case.classes) > 2:  # of two classes the saved threshold decides
        assert [row["pred"] for row in rows] == [case.classes[i] for i in scores.argmax(1)]
    entropy = -(scores * np.log(np.maximum(scores, 1e-12))).sum(1) / np.log(len(case.classes))
    np.testing.assert_allclose([float(row["uncertainty"]) for row in rows], entropy, atol=1e-4)
    assert all(row["error"] == "" for row in rows)
    two = {"y_score": scores[:, 1]} if len(case.classes) == 2 else {"y_score": scores, "multi_class": "ovr"}
    assert case.score(metrics["test"], "acc") == pytest.approx(np.mean(scores.argmax(1) == labels))
    assert case.score(metrics["test"], "auc") == pytest.approx(roc_auc_score(labels, **two), abs=1e-4)


def test_evaluating_again_gives_the_same_figures(case, trained, dataset, tmp_path):
    before, after = metrics_of(trained), evaluate(case, dataset, trained / "model.pt", tmp_path)
    names = [n for n in before if n.startswith(("validation", "test", "cross_domain"))]
    for name in (*names, "temperature", "chosen_epoch", "weights_sha256"):
        assert after[name] == before[name], name
    assert after["temperature"] == json.loads((trained / "calibration.json").read_text())["temperature"] != 1
    assert (tmp_path / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()
    assert (tmp_path / "evaluate.log").is_file() and not (tmp_path / "model.pt").exists()


def test_prediction_of_files_equals_the_evaluation_and_a_bad_file_costs_its_row(case, trained, dataset, tmp_path):
    expected = rows_of(trained / "predictions.csv")[:4]
    images = tmp_path / "images"
    images.mkdir()
    for index, row in enumerate(expected):
        if dataset.suffix == ".npz":
            with np.load(dataset) as arrays:
                Image.fromarray(arrays["test_images"][index]).save(images / f"{index}.png")
        else:
            shutil.copy(dataset.parent / row["file"], images / f"{index}.png")
    (images / "5.png").write_bytes(b"not a picture")
    (images / "6.nii.gz").write_bytes(b"")
    pictures = {} if case.name == "gated_attention" else {"saliency": True}
    rows = predict(case, case.root, images, tmp_path / "out", ckpt_path=str(trained / "model.pt"), **pictures)
    assert list(rows[0])[: len(case.predicted.split())] == case.predicted.split()
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png", "3.png", "5.png", "6.nii.gz"]
    for ours, theirs in zip(rows[:4], expected, strict=True):
        assert ours["pred"] == theirs["pred"] and ours["error"] == ""
        for name in case.classes:
            assert float(ours[f"p_{name}"]) == pytest.approx(float(theirs[f"p_{name}"]), abs=2e-6)
    assert "5.png" in rows[4]["error"] and rows[4]["pred"] == rows[4][f"p_{case.classes[0]}"] == ""
    assert rows[5]["error"]
    if pictures:
        assert sorted(p.name[:5] for p in (tmp_path / "out" / "saliency").iterdir()) == [f"{i}.png" for i in range(4)]
    assert (tmp_path / "out" / "figures" / "least_certain.png").is_file()


BROKEN_OFF = [
    ("multimix", {"average_decay": 0.5, "lr_step": 1, "mask_augment": "strong"}),
    ("multimix", {"lr_schedule": "one_cycle"}),
    ("gated_attention", {"average_decay": 0.5, "augment": "strong"}),
    pytest.param("gated_attention", {"lr_schedule": "one_cycle", "cache": False}, marks=pytest.mark.release),
    ("gated_attention", {"method": "global", "lr_step": 1}),
    ("lsanet", {"augment": "light", "lr_schedule": "cosine"}),
]


@pytest.mark.parametrize(("case", "settings"), BROKEN_OFF, indirect=["case"])
def test_broken_off_and_resumed_ends_bit_identical(case, dataset, tmp_path, settings):
    settings = {"max_epochs": 3, **settings}
    whole = train_alone(case, dataset, tmp_path / "whole", **settings)
    middle = whole.state.epoch_length + whole.state.epoch_length // 2 + 1  # of the second epoch
    with pytest.raises(KeyboardInterrupt):
        train_alone(case, dataset, tmp_path / "cut", stop_at=middle, **settings)
    assert len(rows_of(tmp_path / "cut" / "history.csv")) == 1
    torch.rand(7)
    np.random.rand(7)
    train_alone(case, dataset, tmp_path / "cut", resume=True, **settings)
    for name in ("history.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert same(weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole"))
    one, other = (weights_of(tmp_path / name, "checkpoint.pt") for name in ("cut", "whole"))
    assert same(one["model"], other["model"]) and all(one[name] == other[name] for name in ("best", "history"))
    if "average_decay" in settings:
        assert same(one["average"], other["average"]) and not same(other["model"], weights_of(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lsanet"], indirect=True)
def test_killed_at_any_moment_and_resumed_ends_bit_identical(case, tmp_path):
    data = case.data(tmp_path, per_class=40)
    settings = {"max_epochs": 6, "augment": "light", "lr_schedule": "cosine"}
    train(case, data, tmp_path / "whole", **settings)
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(case.root / "configs" / "train.json")]
    line += flags(small(case, data, tmp_path / "cut", **settings))
    # Killed while the third epoch or its checkpoint is under way: nobody chose the moment.
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = tmp_path / "cut" / "history.csv"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (history.is_file() and len(history.read_text().splitlines()) >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    torch.rand(7)
    train(case, data, tmp_path / "cut", resume=True, **settings)
    for name in ("model.pt", "history.csv", "predictions.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert same(*(weights_of(tmp_path / name, "checkpoint.pt")["model"] for name in ("cut", "whole")))


@pytest.mark.parametrize("case", ["multimix"], indirect=True)
def test_a_longer_run_continues_a_shorter_one(case, dataset, tmp_path):
    train_alone(case, dataset, tmp_path / "whole")
    train_alone(case, dataset, tmp_path / "cut", max_epochs=1)
    train_alone(case, dataset, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "history.csv").read_bytes() == (tmp_path / "whole" / "history.csv").read_bytes()
    assert same(*(weights_of(tmp_path / name, "checkpoint.pt")["model"] for name in ("cut", "whole")))


@pytest.mark.parametrize("case", ["lsanet"], indirect=True)
def test_a_second_run_of_the_same_seed_is_the_same_and_replaces_the_first(case, dataset, tmp_path):
    histories = []
    for seed, overwrite in ((0, False), (0, True), (1, True)):
        train(case, dataset, tmp_path / "out", seed=seed, overwrite=overwrite)
        histories.append((tmp_path / "out" / "history.csv").read_bytes())
    assert histories[0] == histories[1] != histories[2]


def test_a_strangers_files_and_an_earlier_run_are_refused_before_anything_is_read(case, trained, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("mine")
    before = snapshot(tmp_path)
    training = workflow(case, **small(case, "nowhere.json", tmp_path, overwrite=True))
    says(refused(training.run), "holds masks", "no run of ours wrote", "a new folder")
    images = {"dataset_dir": str(tmp_path), "ckpt_path": str(trained / "model.pt"), "device": "cpu"}
    says(refused(workflow(case, "inference", output_dir=str(tmp_path), **images).run), "is dataset_dir")
    images["dataset_dir"] = "nowhere"
    says(refused(workflow(case, "inference", output_dir=str(tmp_path), **images).run), "holds masks")
    assert snapshot(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["masks"]
    before = snapshot(trained)
    inference = workflow(case, "inference", output_dir=str(trained), overwrite=True, **images)
    says(refused(inference.run), "belongs to an earlier training", "for this inference")
    says(refused(workflow(case, **small(case, "nowhere.json", trained)).run), "resume=true continues it", "overwrite")
    assert snapshot(trained) == before


def test_a_run_that_ends_without_a_model_leaves_the_earlier_one_whole(case, dataset, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train_alone(case, dataset, tmp_path / "out", stop_at=2, overwrite=True)
    assert snapshot_of_run(tmp_path / "out") == before


def snapshot_of_run(folder):
    return {name: content for name, content in snapshot(folder).items() if not name.startswith(".run")}


def outcome_of(case, dataset, folder, **settings):
    """Losses and weights of a training, in memory alone: a checkpoint takes longer than an epoch."""
    run = workflow(case, **small(case, dataset, folder, **{"max_epochs": 1, **settings}))
    recording = ("ValidationHandler", "Progress", "RunRecord")
    run.parser["train::handlers"] = [h for h in run.parser["train::handlers"] if not h["_target_"].endswith(recording)]
    run.initialize()
    trainer, network, average = (part(run, name) for name in ("train::trainer", "network_def", "average"))
    metrics = []
    trainer.add_event_handler("EPOCH_COMPLETED", lambda engine: metrics.append(dict(engine.state.metrics)))
    trainer.run()
    for row in metrics:
        row.pop("images_per_second", None)
    return {"metrics": metrics, "weights": (average or network).state_dict()}


BASE = {"multimix": {"max_epochs": 2, "confidence_threshold": 0.0}, "gated_attention": {"lambda_start": 0.7}}


@pytest.fixture
def references(once):
    """Outcomes to compare those of other settings with, by bundle and number of epochs."""

    def get(case, dataset, epochs):
        settings = BASE[case.name] | {"max_epochs": epochs}
        make = partial(outcome_of, case, dataset, **settings)
        return once(f"{case.name}_reference_{epochs}", make)

    return get


EFFECTS = {
    "multimix": [
        {"alpha": 1.0}, {"beta": 1.0}, {"lambda_": 1.0}, {"confidence_threshold": 0.99}, {"class_weights": [1, 3]},
        {"kl_detach_labelled": False}, {"mask_augment": "weak"}, {"class_augment": "none"}, {"dropout": 0.0},
        {"average_decay": 0.5}, {"learning_rate": 0.01}, {"weight_decay": 0.5}, {"lr_step": 1},
        {"lr_step": 1, "lr_factor": 0.5}, {"lr_schedule": "constant", "learning_rate": 2e-4},
        {"lr_schedule": "one_cycle"}, {"seed": 1}, {"reuse_labelled": True}, {"class_labels": 4}, {"mask_labels": 4},
        {"keep_aspect": False}, {"image_size": 64}, {"batch_size": 2}, {"steps_per_epoch": 1}, {"amp": True},
    ],
    "gated_attention": [
        {"attention": "se"}, {"num_instances": 1}, {"instance_size": 64}, {"threshold": 0.05},
        {"max_box": 0.5}, {"window_box": 0.2}, {"pooling": "attention"}, {"lambda_start": 0.9}, {"image_size": 96},
        {"mean": [0.4, 0.5, 0.5]}, {"std": [0.5, 0.5, 0.3]}, {"augment": "none"}, {"augment": "strong"},
        {"batch_size": 6}, {"learning_rate": 0.02}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"average_decay": 0.5},
        {"label_smoothing": 0.1}, {"class_weights": [1, 3, 1]}, {"seed": 1}, {"amp": True}, {"labels_per_class": 3},
        {"label_fraction": 0.75},
        # These only from the second epoch.
        {"max_epochs": 2, "lambda_step": 0.2}, {"max_epochs": 2, "lambda_every": 2}, {"max_epochs": 2, "lr_step": 1},
        {"max_epochs": 2, "lambda_floor": 0.5}, {"max_epochs": 2, "lr_schedule": "one_cycle"},
        {"max_epochs": 2, "lr_step": 1, "lr_factor": 0.5},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "change"),
    [(name, change) for name, changes in EFFECTS.items() for change in changes],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
    indirect=["case"],
)
def test_every_setting_has_an_effect(case, dataset, references, tmp_path, change):
    settings = BASE[case.name] | change
    reference = references(case, dataset, settings.get("max_epochs", 1))
    outcome = outcome_of(case, dataset, tmp_path, **settings)
    # Some weigh too little for a few steps: exact comparison, not closeness.
    assert not same(outcome["weights"], reference["weights"])
    if case.name == "gated_attention" and "max_epochs" in change and "lr_schedule" not in change:
        assert outcome["metrics"][0] == reference["metrics"][0] == references(case, dataset, 1)["metrics"][0]


@pytest.mark.parametrize("case", list(BASE), indirect=True)
def test_the_same_settings_have_the_same_outcome(case, dataset, references, tmp_path):
    settings = BASE[case.name]
    outcome, reference = (
        outcome_of(case, dataset, tmp_path, **settings),
        references(case, dataset, settings.get("max_epochs", 1)),
    )
    assert outcome["metrics"] == reference["metrics"] and same(outcome["weights"], reference["weights"])


@pytest.mark.parametrize("case", list(BASE), indirect=True)
def test_first_weights_are_those_of_the_path(case, dataset, trained, tmp_path):
    run = workflow(case, **small(case, dataset, tmp_path, ckpt_path=str(trained / "model.pt")))
    assert same(part(run, "initialised").state_dict(), weights_of(trained))


@pytest.mark.slow
def test_early_stopping_and_validation_now_and_then(case, dataset, tmp_path):
    settings = {"max_epochs": 40, "learning_rate": 1e-12, "early_stop_patience": 2, "val_interval": 2}
    fast = {"multimix": {"steps_per_epoch": 1}, "gated_attention": {"method": "global"}, "lsanet": {}}
    train_alone(case, dataset, tmp_path, **settings, **fast[case.name])
    history = rows_of(tmp_path / "history.csv")
    info = json.loads((tmp_path / "model.json").read_text())
    assert [bool(row.get(case.key)) for row in history] == [int(row["epoch"]) % 2 == 0 for row in history]
    assert len(history) == info["best_epoch"] + 4 < 40


def test_released_weights_are_not_touched_and_nothing_is_written_elsewhere(case, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = (dataset.parent, case.root / "models")
    before = [sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) for folder in folders]
    train_alone(case, dataset, tmp_path / "out", max_epochs=1)
    assert [sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) for folder in folders] == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_class_weights_balance_the_classes(case, tmp_path):
    data = case.data(tmp_path / "data")
    if data.suffix == ".npz":
        with np.load(data) as file:
            arrays = dict(file)
        kept = [*np.flatnonzero(arrays["train_labels"][:, 0] != 2), arrays["train_labels"].argmax()]
        arrays |= {f"train_{name}": arrays[f"train_{name}"][kept] for name in ("images", "labels")}
        np.savez(data, **arrays)
        labels = arrays["train_labels"][:, 0]
    else:
        content = json.loads(data.read_text())
        last = len(case.classes) - 1
        rare = [entry for entry in content["training"] if entry["label"] == last][:1]
        content["training"] = [entry for entry in content["training"] if entry["label"] != last] + rare
        data.write_text(json.dumps(content))
        labels = np.array([entry["label"] for entry in content["training"]])
    expected = len(labels) / np.bincount(labels) / len(case.classes)
    run = workflow(case, **small(case, data, tmp_path / "out", class_weights="balanced"))
    found = part(run, "data").class_weights("balanced")
    assert torch.as_tensor(found).tolist() == pytest.approx(expected.tolist())
    assert part(run, "loss_def").class_weights.tolist() == pytest.approx(expected.tolist())


RESUMED = [
    ("multimix", {"learning_rate": 0.01}, ["learning_rate was 0.0001 and is 0.01"]),
    ("multimix", {"method": "umtls"}, ["method was 'multimix' and is 'umtls'"]),
    ("multimix", {"class_labels": 2, "seed": 3}, ["class_labels was None and is 2", "seed was 0 and is 3"]),
    ("lsanet", {"learning_rate": 0.01}, ["learning_rate was 0.001 and is 0.01"]),
    (
        "gated_attention",
        {"lambda_every": 7, "num_instances": 3, "learning_rate": 0.02},
        ["lambda_every was 1 and is 7", "num_instances was 2 and is 3", "learning_rate was 0.01 and is 0.02"],
    ),
    (
        "gated_attention",
        {"lambda_step": 0.3, "lambda_start": 0.8, "lambda_floor": 0.1, "attention": "se"},
        ["lambda_step was 0.4 and is 0.3", "lambda_start was 1.0 and is 0.8", "lambda_floor was 0.0", "'se'"],
    ),
]


@pytest.mark.parametrize(("case", "change", "parts"), RESUMED, indirect=["case"])
def test_resuming_with_other_settings_is_refused(case, dataset, trained, change, parts):
    before = snapshot(trained)
    error = refused(train_alone, case, dataset, trained, resume=True, calibrate=True, max_epochs=3, **change)
    says(error, "checkpoint.pt cannot be resumed", *parts, "another output_dir")
    after = snapshot(trained)
    assert before.pop("train.log") in after.pop("train.log") and after == before  # the log has the refusal too


DAMAGED = {
    "cut short": lambda content: content[:5000],
    "empty": lambda content: b"",
    "another kind": lambda content: b"cos\nsystem\n(S'touch ran'\ntR.",
    "missing": None,
}


@pytest.mark.parametrize(
    ("case", "damage"),
    [*[("lsanet", kind) for kind in DAMAGED], ("multimix", "cut short"), ("gated_attention", "missing")],
    indirect=["case"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(case, dataset, once, tmp_path, caplog, damage, monkeypatch):
    def make(folder):
        train_alone(case, dataset, folder / "out", max_epochs=3)
        train_alone(case, dataset, folder / "short", max_epochs=2)
        return folder

    made = once(f"{case.name}_three_epochs", make)
    shutil.copytree(made / "short", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    newest, before = tmp_path / "out" / "checkpoint.pt", tmp_path / "out" / "checkpoint_before.pt"
    content = newest.read_bytes()
    newest.unlink() if DAMAGED[damage] is None else newest.write_bytes(DAMAGED[damage](content))
    train_alone(case, dataset, tmp_path / "out", resume=True, max_epochs=3)
    assert "going on from the epoch before" in caplog.text and str(before) in caplog.text
    assert (tmp_path / "out" / "history.csv").read_bytes() == (made / "out" / "history.csv").read_bytes()
    assert same(*(weights_of(folder / "out", "checkpoint.pt")["model"] for folder in (made, tmp_path)))
    assert weights_of(tmp_path / "out", "checkpoint_before.pt")["trainer"] == {"epoch": 2}
    for path in (newest, before):
        path.write_bytes(content[:5000])
    error = refused(train_alone, case, dataset, tmp_path / "out", resume=True, max_epochs=4)
    says(error, f"{newest} is damaged or was cut short", "checkpoint_before.pt", "another output_dir without resume")
    torch.save({"settings": {}, "data_sha256": 1}, newest)
    error = refused(train_alone, case, dataset, tmp_path / "out", resume=True, max_epochs=4)
    says(error, "no checkpoint of a run")
    assert not (tmp_path / "ran").exists()


FALLING = {"lsanet": "cosine", "multimix": "one_cycle", "gated_attention": "one_cycle"}


def test_resuming_with_other_data_or_a_falling_rate_that_ends_elsewhere_is_refused(case, tmp_path):
    data = case.data(tmp_path / "data")
    settings = {"max_epochs": 1, "lr_schedule": FALLING[case.name]}
    train_alone(case, data, tmp_path / "out", **settings)
    longer = settings | {"max_epochs": 2}
    says(refused(train_alone, case, data, tmp_path / "out", resume=True, **longer), "max_epochs was 1 and is 2")
    if data.suffix == ".npz":
        case.data(tmp_path / "data", seed=1)
    else:
        image = tmp_path / "data" / json.loads(data.read_text())["training"][0]["image"]
        Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    says(refused(train_alone, case, data, tmp_path / "out", resume=True, **settings), "the data have changed")


# Through the command line


@pytest.mark.release
def test_the_demo_from_the_root_of_the_repository(case, tmp_path):
    """With a word of every kind after it: an override, a number, no flag at all for the rest."""
    settings = {"output_dir": tmp_path / "out", "max_epochs": 1, "num_workers": 1}
    settings |= {"multimix": {"image_size": 32, "steps_per_epoch": 2}}.get(case.name, {})
    config = f"bundles/{case.name}/configs/train.json"
    done = command("training", "--config_file", config, *flags(settings), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*LEFT, *case.left])
    log = (tmp_path / "out" / "train.log").read_text()
    for text in (done.stdout, log):
        assert "SYNTHETIC DEMO DATA" in text and "max_epochs=1" in text and "inference.json --ckpt_path" in text
    assert "Synthetic demo data" in (tmp_path / "out" / "report.html").read_text()
    assert metrics_of(tmp_path / "out")["settings"]["num_workers"] == 1


@pytest.mark.release
def test_a_copy_of_the_folder_alone_runs_from_another_directory(case, dataset, tmp_path):
    copy = tmp_path / "elsewhere" / case.name
    shutil.copytree(case.root, copy, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (tmp_path / "cwd").mkdir()
    settings = small(case, dataset, "unused", max_epochs=1)
    del settings["output_dir"]
    config = copy / "configs" / "train.json"
    done = command("--config_file", config, *flags(settings), cwd=tmp_path / "cwd")
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (copy / "runs").iterdir()
    assert out.name.startswith(dataset.stem) and sorted(p.name for p in out.iterdir()) == sorted([*LEFT, *case.left])
    assert list((tmp_path / "cwd").iterdir()) == []


WORKER = """
import torch
import torch.distributed as dist
from monai.bundle import create_workflow

workflow = create_workflow(config_file={config!r}, workflow_type="train", **{settings!r})
part_of = workflow.parser.get_parsed_content
part_of("opening").show()
part_of("train::trainer").run()


def equal(tensors):
    mine = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    all_of_them = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    return len(all_of_them) == 2 and torch.equal(*all_of_them)


# Of the batch statistics only those that are validated and shipped are exchanged.
assert equal(part_of("network_def").parameters())
assert equal(part_of("validate::evaluator").network.state_dict().values())
gathered, sampler = [None, None], part_of("train::dataloader").sampler
dist.all_gather_object(gathered, (getattr(part_of("loss"), "lambda_", None), next(iter(sampler))))
(first, drawn), (second, others) = gathered
assert first == second, gathered
assert drawn != others and not ({disjoint!r} and set(drawn) & set(others)), gathered
print("EQUAL WEIGHTS", dist.get_rank(), "lambda", first, flush=True)
part_of("evaluation").run()
workflow.finalize()
"""
SHARED = [
    ("lsanet", {}),
    ("multimix", {"average_decay": 0.5}),
    # Of 9 validation images one process has two batches of 4, the other one: they must not wait for each other.
    ("gated_attention", {"lambda_every": 2, "max_epochs": 4}),
    pytest.param(
        "gated_attention", {"average_decay": 0.5, "lambda_every": 2, "max_epochs": 4}, marks=pytest.mark.release
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "settings"), SHARED, indirect=["case"])
def test_two_processes_give_one_run(case, dataset, trained, tmp_path, settings):
    settings = small(case, dataset, tmp_path / "out", **settings)
    settings.pop("device", None)
    files = [str(case.root / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    script, disjoint = tmp_path / "worker.py", case.name == "gated_attention"
    script.write_text(WORKER.format(config=files, settings=settings, disjoint=disjoint))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("EQUAL WEIGHTS") == 2 and "2 processes" in done.stdout
    rows, alone = (rows_of(folder / "predictions.csv") for folder in (tmp_path / "out", trained))
    assert [row["file"] for row in rows] == [row["file"] for row in alone]
    history, metrics = numbers_of(tmp_path / "out"), metrics_of(tmp_path / "out")
    assert len(history) == settings["max_epochs"]
    # The two validated the weights that one of them ships, each on its share of the images.
    if case.name == "gated_attention":
        assert [row["train_lambda"] for row in history] == [1, 1, 0.6, 0.6]
        assert [("train_fusion_loss" in row) for row in history] == [False, False, True, True]
        best = history[metrics["chosen_epoch"] - 1]
        assert metrics["validation"]["nll"] == pytest.approx(best["val_fusion_loss"], rel=1e-4)
        assert metrics["validation"]["auc"] == pytest.approx(best["val_auc"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lsanet"], indirect=True)
def test_torchrun_runs_the_command(case, dataset, tmp_path):
    files = [str(case.root / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    arguments = flags(small(case, dataset, tmp_path / "out", max_epochs=1))
    done = command("--config_file", str(files), *arguments, cwd=tmp_path, launch=launch)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout and len(rows_of(tmp_path / "out" / "predictions.csv")) == 24


def test_all_cases_are_all_bundles():
    assert sorted(CASES) == sorted(p.parent.parent.name for p in ROOT.glob("bundles/*/configs/train.json"))


def test_weights_know_the_images_they_were_trained_on(case, trained, dataset, tmp_path):
    for name in ("model.pt", "model.json", "model.images.npy"):
        shutil.copy(trained / name, tmp_path / name)
    data = part(workflow(case, dataset=str(dataset), **case.tiny), "data")
    opening = part(workflow(case, "train", "evaluate", **small(case, dataset, tmp_path / "out")), "opening")
    opening.ckpt_path, opening.data = str(tmp_path / "model.pt"), data
    opening.show()
    assert not any("were trained on" in note for note in data.notes)
    data.splits["train"], data.splits["test"] = data.splits["test"], data.splits["train"]
    number = len(data.splits["test"])
    says(refused(opening.show), f"were trained on {number} of {number} images of test", "exchanged", "copies=warn")
    opening.settings["copies"] = "warn"
    opening.show()
    assert f"were trained on {number} of {number} images of test" in data.notes[0]
    (tmp_path / "model.images.npy").unlink()  # as of released weights
    data.notes.clear()
    opening.show()
    assert data.notes == []
