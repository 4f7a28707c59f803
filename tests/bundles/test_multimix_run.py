"""Whole runs of the multimix bundle: what they leave, resuming, evaluating again, every method, several processes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from PIL import Image

from multimix.demo_data import make_demo_images
from multimix.network import METHODS

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "multimix"
TRAIN, EVALUATE, MULTI_GPU = (str(BUNDLE / "configs" / f"{n}.json") for n in ("train", "evaluate", "multi_gpu_train"))
LEFT = """model.pt model.json checkpoint.pt history.csv metrics.json predictions.csv config.json tensorboard figures
report.html train.log masks""".split()
TINY = {"image_size": 32, "steps_per_epoch": 2, "max_epochs": 2, "batch_size": 3, "num_workers": 1}
COLUMNS = "file section source label pred p_clear p_opacity uncertainty error dice".split()


def make_list(folder: Path, *, label: bool = True, mask: bool = True, unlabelled: int = 6) -> Path:
    """A list of films that are not square, of two sources, with labels, masks or both."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"training": 8, "validation": 4, "test": 5, "cross_domain": 3, "unlabelled": unlabelled}
    images, labels, masks = make_demo_images(sum(counts.values()), size=48, seed=3)
    content: dict[str, Any] = {"labels": ["clear", "opacity"]} if label else {}
    number = 0
    for section, count in counts.items():
        content[section] = []
        for place in range(count):
            name = f"{number}.png"
            cut = (slice(0, 48 - number % 3), slice(2, 44))
            Image.fromarray(images[number][cut]).save(folder / name)
            item: dict[str, Any] = {"image": name, "source": "north" if place % 3 else "south"}
            if section != "unlabelled" and mask:
                Image.fromarray(masks[number][cut] * np.uint8(255)).save(folder / f"mask{name}")
                item["mask"] = f"mask{name}"
            if section != "unlabelled" and label:
                item["label"] = int(labels[number])
            content[section].append(item)
            number += 1
    (folder / "chest.json").write_text(json.dumps(content))
    return folder / "chest.json"


def workflow_of(dataset: Path | str, output_dir: Path | str, config: Any = TRAIN, **settings: Any) -> Any:
    values = {"dataset": str(dataset), "output_dir": str(output_dir), **TINY, **settings}
    return create_workflow(config_file=config, workflow_type="train", **values)


def train(dataset: Path | str, output_dir: Path, **settings: Any) -> dict[str, Any]:
    """A whole run; returns its figures."""
    workflow = workflow_of(dataset, output_dir, **settings)
    workflow.run()
    workflow.finalize()
    return json.loads((output_dir / "metrics.json").read_text())


def train_alone(dataset: Path | str, output_dir: Path, stop_at: int | None = None, **settings: Any) -> Any:
    """Training without the evaluation after it, broken off at a step if wanted; returns the trainer."""
    trainer = workflow_of(dataset, output_dir, **settings).parser.get_parsed_content("train::trainer")
    if stop_at is not None:

        def stop(engine: Any) -> None:
            raise KeyboardInterrupt

        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), stop)
    trainer.run()
    return trainer


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights_of(folder: Path, name: str = "model.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return make_list(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def run_folder(films, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    train(films, folder, calibrate=True, average_decay=0.5)
    return folder


def test_a_run_leaves_everything_and_no_temporary_files(run_folder):
    assert sorted(p.name for p in run_folder.iterdir()) == sorted([*LEFT, "calibration.json"])
    assert {p.stem for p in (run_folder / "figures").iterdir()} == {
        "history", "pseudo_labels", "dice", "boundaries_test", "boundaries_cross_domain", "confusion_matrix", "roc",
        "reliability", "saliency",
    }  # fmt: skip
    assert any("tfevents" in p.name for p in (run_folder / "tensorboard").iterdir())
    history = rows_of(run_folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    row = {key: float(value) for key, value in history[0].items() if value}
    terms = {"class": 1, "pseudo_label": 0.25, "mask": 5, "kl": 0.01}
    assert row["train_loss"] == pytest.approx(sum(w * row[f"train_{k}_loss"] for k, w in terms.items()), rel=1e-5)
    assert "SYNTHETIC" not in (run_folder / "train.log").read_text()


def test_predictions_have_every_image_and_the_figures_are_those_of_the_rows(run_folder):
    rows = rows_of(run_folder / "predictions.csv")
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["section"] for row in rows] == ["test"] * 5 + ["cross_domain"] * 3
    for section in ("test", "cross_domain"):
        own = [row for row in rows if row["section"] == section]
        right = np.mean([row["label"] == row["pred"] for row in own])
        assert metrics[section]["classification"]["acc"] == pytest.approx(right)
        dice = np.mean([float(row["dice"]) for row in own])
        assert metrics[section]["segmentation"]["dice"] == pytest.approx(dice, abs=1e-5)
    for row in rows:
        assert float(row["p_clear"]) + float(row["p_opacity"]) == pytest.approx(1, abs=2e-6)
        assert row["pred"] == ("opacity" if float(row["p_opacity"]) > 0.5 else "clear")
        assert 0 <= float(row["uncertainty"]) <= 1 and row["error"] == ""


def test_written_masks_have_the_size_of_their_images_and_the_dice_of_their_rows(run_folder, films):
    rows = rows_of(run_folder / "predictions.csv")
    assert sorted(p.name for p in (run_folder / "masks").rglob("*.png")) == sorted(row["file"] for row in rows)
    for row in rows:
        predicted = np.asarray(Image.open(run_folder / "masks" / row["file"])) > 0
        reference = np.asarray(Image.open(films.parent / f"mask{row['file']}")) > 0
        dice = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-5)


def test_evaluating_again_gives_the_same_figures(run_folder, films, tmp_path):
    before = json.loads((run_folder / "metrics.json").read_text())
    workflow = workflow_of(films, tmp_path, [TRAIN, EVALUATE], ckpt_path=str(run_folder / "model.pt"))
    workflow.run()
    after = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("validation", "test", "cross_domain", "temperature", "chosen_epoch"):
        assert after[name] == before[name]
    assert after["temperature"] != 1
    for name in ("label", "p_clear", "dice"):
        own, other = ([row[name] for row in rows_of(f / "predictions.csv")] for f in (tmp_path, run_folder))
        assert own == other
    assert (tmp_path / "evaluate.log").is_file() and not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    "settings",
    [{"average_decay": 0.5, "lr_step": 1, "mask_augment": "strong"}, {"lr_schedule": "one_cycle"}],
    ids=["step", "one_cycle"],
)
def test_broken_off_and_resumed_ends_bit_identical(films, tmp_path, settings):
    settings = {"max_epochs": 3, **settings}
    train_alone(films, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train_alone(films, tmp_path / "cut", stop_at=3, **settings)  # in the middle of the second epoch
    assert len(rows_of(tmp_path / "cut" / "history.csv")) == 1
    torch.rand(7)
    np.random.rand(7)
    train_alone(films, tmp_path / "cut", resume=True, **settings)
    for name in ("history.csv", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert same(weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole"))
    cut, whole = (weights_of(tmp_path / name, "checkpoint.pt") for name in ("cut", "whole"))
    assert same(cut["model"], whole["model"]) and all(cut[name] == whole[name] for name in ("best", "history"))
    if "average_decay" in settings:
        assert same(cut["average"], whole["average"])


def test_a_longer_run_continues_a_shorter_one(films, tmp_path):
    train_alone(films, tmp_path / "whole")
    train_alone(films, tmp_path / "cut", max_epochs=1)
    train_alone(films, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "history.csv").read_bytes() == (tmp_path / "whole" / "history.csv").read_bytes()
    assert same(*(weights_of(tmp_path / name, "checkpoint.pt")["model"] for name in ("cut", "whole")))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_its_parts_are_all_that_is_shipped(films, tmp_path, method):
    train_alone(films, tmp_path, method=method, max_epochs=1, steps_per_epoch=1)
    parts = METHODS[method]
    keys = weights_of(tmp_path).keys()
    assert any(key.startswith("branch.") for key in keys) == parts.classifies
    assert any(key.startswith("decoder.") for key in keys) == parts.segments
    assert not [key for key in keys if key.startswith(("module.", "_"))]
    row = rows_of(tmp_path / "history.csv")[0]
    expected = {"class": parts.classifies, "mask": parts.segments, "pseudo_label": parts.pseudo_labels,
                "kl": parts.mask_consistency}  # fmt: skip
    assert {name: f"train_{name}_loss" in row for name in expected} == expected


@pytest.mark.parametrize(("method", "task"), [("unet", "segmentation"), ("enc", "classification")])
def test_lists_of_one_task(tmp_path, method, task):
    films = make_list(tmp_path / "films", label=method == "enc", mask=method == "unet", unlabelled=0)
    metrics = train(films, tmp_path / "out", method=method, max_epochs=1)
    found = {key for name in ("validation", "test", "cross_domain") for key in metrics[name]}
    assert found == {task, "by_source"}
    row = rows_of(tmp_path / "out" / "predictions.csv")[0]
    assert ("dice" in row, "p_clear" in row) == ((True, False) if method == "unet" else (False, True))
    assert 0 <= float(row["uncertainty"]) <= 1 and row["file"] and row["error"] == ""


def test_files_of_many_kinds_and_sizes_train_together(tmp_path):
    images, _, masks = make_demo_images(12, size=64, seed=1)
    grey = [image[: 50 + i, : 64 - i].astype(float) for i, image in enumerate(images)]
    # Files of 16 bits are shown from their darkest to their brightest value: let all films reach from 0 to 255.
    grey = [((g - g.min()) / (g.max() - g.min()) * 255).astype(np.uint8) for g in grey]
    lines = ["file,class,mask,split,group"]
    for i, image in enumerate(grey):
        name, picture = [
            (f"{i}.png", Image.fromarray(image)),
            (f"{i}.jpg", Image.fromarray(np.stack([image] * 3, axis=2))),
            (f"{i}.tif", Image.fromarray(image.astype(np.uint16) * 256)),
            (f"{i}.bmp", Image.fromarray(image)),
        ][i % 4]
        picture.save(tmp_path / name)
        Image.fromarray(masks[i][: image.shape[0], : image.shape[1]]).save(tmp_path / f"mask{i}.png")
        split = ("train", "train", "val", "test")[i // 3]
        lines.append(f"{name},{('clear', 'opacity')[i % 2]},mask{i}.png,{split},p{i}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    workflow = workflow_of(tmp_path / "mine.csv", tmp_path / "out", method="umtls", max_epochs=1)
    data = workflow.parser.get_parsed_content("data")
    # The same film in any kind of file is the same picture, to what JPEG loses.
    for name, part in data.splits.items():
        for row, entry in enumerate(part.entries):
            preprocess = workflow.parser.get_parsed_content("preprocess")
            expected = preprocess(grey[int(Path(entry.file).stem)]).astype(int)
            assert np.abs(part.images[row].astype(int) - expected).mean() < 4, (name, entry.file)
    workflow.parser.get_parsed_content("train::trainer").run()
    workflow.parser.get_parsed_content("evaluation").run()
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["9.jpg", "10.tif", "11.bmp"]


def test_a_stream_shorter_than_a_batch_begins_again(films, tmp_path):
    trainer = train_alone(films, tmp_path, mask_labels=1, class_labels=2, batch_size=4, max_epochs=1)
    lengths = trainer.state.dataloader.sampler.lengths
    assert (lengths["mask_labelled"], lengths["class_labelled"]) == (1, 2)
    assert np.isfinite(trainer.state.metrics["loss"])


def test_labels_beyond_the_budget_are_never_trained_on(films, tmp_path):
    data = workflow_of(films, tmp_path, mask_labels=2, class_labels=4).parser.get_parsed_content("data")
    train_part, unlabelled = data.splits["train"], data.splits["unlabelled"]
    assert (len(train_part.labelled), len(train_part.masked)) == (4, 2)
    assert not len(unlabelled.labelled) and not len(unlabelled.masked)
    section, positions = data.streams["class_unlabelled"]
    labelled = {train_part.entries[i].file for i in train_part.labelled}
    assert section == "unlabelled" and len(positions) == 6 + 4
    assert not labelled & {unlabelled.entries[i].file for i in positions}


@pytest.fixture(scope="module")
def reference(films, tmp_path_factory) -> dict[str, Any]:
    """Weights and history of a run to compare runs with other settings with."""
    return _outcome(films, tmp_path_factory.mktemp("reference"))


def _outcome(films: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    settings = {"confidence_threshold": 0.0, **settings}
    train_alone(films, folder, **settings)
    return {"weights": weights_of(folder), "history": (folder / "history.csv").read_bytes()}


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 1.0}, {"beta": 1.0}, {"lambda_": 1.0}, {"confidence_threshold": 0.99}, {"class_weights": [1, 3]},
        {"kl_detach_labelled": False}, {"mask_augment": "weak"}, {"class_augment": "none"}, {"dropout": 0.0},
        {"average_decay": 0.5}, {"learning_rate": 0.01}, {"weight_decay": 0.5}, {"lr_step": 1},
        {"lr_step": 1, "lr_factor": 0.5}, {"lr_schedule": "constant", "learning_rate": 2e-4},
        {"lr_schedule": "one_cycle"}, {"seed": 1}, {"reuse_labelled": True}, {"class_labels": 4}, {"mask_labels": 4},
        {"keep_aspect": False}, {"image_size": 64}, {"batch_size": 2}, {"steps_per_epoch": 1}, {"amp": True},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_every_setting_has_an_effect(films, reference, tmp_path, change):
    # The weights of the KL and of the decay are too small for two steps: exact comparison, not closeness.
    outcome = _outcome(films, tmp_path, **change)
    assert outcome["history"] != reference["history"]
    assert not same(outcome["weights"], reference["weights"])


def test_a_second_run_of_the_same_seed_is_the_same(films, reference, tmp_path):
    outcome = _outcome(films, tmp_path)
    assert outcome["history"] == reference["history"] and same(outcome["weights"], reference["weights"])


def test_balanced_class_weights_are_the_inverse_frequencies(tmp_path):
    path = make_list(tmp_path)
    content = json.loads(path.read_text())
    content["training"] = [item for item in content["training"] if item["label"] == 1] + [
        item for item in content["training"] if item["label"] == 0
    ][:1]
    path.write_text(json.dumps(content))
    parser = workflow_of(path, tmp_path / "out", class_weights="balanced").parser
    count = len(content["training"]) - 1
    expected = [(count + 1) / 2, (count + 1) / (2 * count)]
    assert parser.get_parsed_content("loss_def").class_weights.tolist() == pytest.approx(expected)


def test_first_weights_are_those_of_the_path(run_folder, films, tmp_path):
    parser = workflow_of(films, tmp_path, ckpt_path=str(run_folder / "model.pt")).parser
    assert same(parser.get_parsed_content("initialised").state_dict(), weights_of(run_folder))


def test_early_stopping_and_validation_now_and_then(films, tmp_path):
    train_alone(
        films, tmp_path, max_epochs=40, learning_rate=1e-12, early_stop_patience=2, val_interval=2, steps_per_epoch=1
    )
    history = rows_of(tmp_path / "history.csv")
    info = json.loads((tmp_path / "model.json").read_text())
    assert [bool(row.get("val_score")) for row in history] == [bool(int(row["epoch"]) % 2 == 0) for row in history]
    assert len(history) == info["best_epoch"] + 4 < 40


def test_released_weights_are_not_touched_and_nothing_is_written_elsewhere(films, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in films.parent.rglob("*"))
    released = sorted((p, p.stat().st_mtime_ns) for p in BUNDLE.glob("models/*"))
    train_alone(films, tmp_path / "out", max_epochs=1, steps_per_epoch=1)
    assert sorted((p, p.stat().st_mtime_ns) for p in films.parent.rglob("*")) == before
    assert sorted((p, p.stat().st_mtime_ns) for p in BUNDLE.glob("models/*")) == released
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_demo_from_the_root_of_the_repository(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", "bundles/multimix/configs/train.json", "--output_dir", str(tmp_path / "out")]
    command += ["--image_size", "32", "--steps_per_epoch", "2", "--max_epochs", "1", "--num_workers", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(LEFT)
    log = (tmp_path / "out" / "train.log").read_text()
    for text in (done.stdout, log):
        assert "SYNTHETIC DEMO DATA" in text and "image_size=32" in text and "inference.json --ckpt_path" in text
    assert "Synthetic demo data" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]["classification"]["n"] == 200


@pytest.mark.slow
def test_a_copy_of_the_folder_alone_runs_from_another_directory(films, tmp_path):
    copy = tmp_path / "elsewhere" / "multimix"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (tmp_path / "cwd").mkdir()
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(copy / "configs" / "train.json")]
    command += ["--dataset", str(films), "--image_size", "32", "--steps_per_epoch", "1", "--max_epochs", "1"]
    env = {**environment(), "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=tmp_path / "cwd", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (copy / "runs" / "chest-multimix").iterdir()) == sorted(LEFT)
    assert list((tmp_path / "cwd").iterdir()) == []


WORKER = """
import sys
import torch
import torch.distributed as dist
from monai.bundle import create_workflow

sys.path.insert(0, {bundle!r})
workflow = create_workflow(config_file={config!r}, workflow_type="train", **{settings!r})
workflow.run()
for name in ("network_def", "average"):
    part = workflow.parser.get_parsed_content(name)
    mine = torch.cat([tensor.detach().double().flatten() for tensor in part.state_dict().values()])
    all_of_them = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    assert len(all_of_them) == 2 and torch.equal(*all_of_them), name
streams = workflow.parser.get_parsed_content("train::sampler")
drawn = [None, None]
dist.all_gather_object(drawn, next(iter(streams)))
assert drawn[0] != drawn[1]
print("EQUAL WEIGHTS", dist.get_rank(), flush=True)
workflow.finalize()
"""


@pytest.mark.slow
def test_two_processes_give_one_run(films, tmp_path):
    settings = {"dataset": str(films), "output_dir": str(tmp_path / "out"), **TINY, "average_decay": 0.5}
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(bundle=str(BUNDLE), config=[TRAIN, MULTI_GPU], settings=settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script)], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("EQUAL WEIGHTS") == 2 and "2 processes" in done.stdout
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(rows) == len({row["file"] for row in rows}) == 8
    assert len(rows_of(tmp_path / "out" / "history.csv")) == 2
