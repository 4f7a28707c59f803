"""What other programs do with every bundle: workflows, exports, checks, federated learning, tracking, servers."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_cases import (
    CASES,
    ROOT,
    command,
    installed,
    metrics_of,
    numbers_of,
    part,
    predict,
    rows_of,
    serve,
    shipped_network,
    small,
    train_alone,
    weights_of,
    workflow,
)
from monai.bundle import (
    ConfigParser,
    ckpt_export,
    create_workflow,
    load,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.data import MetaTensor, load_net_with_metadata
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict
from PIL import Image

WITHOUT_MASKS = ["lsanet", "gated_attention"]


def config_of(root: Path, name: str = "inference") -> str:
    return str(root / "configs" / f"{name}.json")


# Properties


@pytest.mark.parametrize("files", [("train",), ("train", "evaluate")])
def test_training_has_monais_properties(case, dataset, tmp_path, files):
    run = workflow(case, *files, **small(case, dataset, tmp_path))
    assert run.check_properties() == []
    values = {name: getattr(run, name) for name in TrainProperties | MetaProperties}
    absent = {name for name, value in values.items() if value is None}
    assert {n for n in absent if "processing" not in n} == {"dataset_dir", "train_key_metric"}
    data = part(run, "data")
    assert len(values["val_dataset"]) == len(data.splits["val"].entries if case.task else data.splits["val"])
    assert f"val_{next(iter(values['val_key_metric']))}" == case.key
    assert not list(tmp_path.iterdir())


def test_inference_has_monais_properties(case, bundle):
    run = workflow(case, "inference", root=bundle, device="cpu")
    assert run.check_properties() == []
    values = {name: getattr(run, name) for name in InferProperties | MetaProperties}
    assert {name for name, value in values.items() if value is None} == {"dataset_dir", "key_metric"}
    assert values["bundle_root"] == str(bundle)


def test_a_workflow_finds_its_bundle_alone(case, dataset, bundle, tmp_path, monkeypatch):
    """Nobody put the folder on the path, nobody says where it is, and the current one is another."""
    monkeypatch.chdir(tmp_path)
    settings = small(case, dataset, tmp_path / "out", max_epochs=1)
    run = create_workflow(
        config_file=config_of(case.root, "train"), workflow_type="train", logging_file=False, **settings
    )
    assert run.check_properties() == [] and Path(run.bundle_root) == case.root
    served = create_workflow(config_file=config_of(bundle), workflow_type="infer", logging_file=False)
    assert Path(served.bundle_root) == bundle and served.network_def is not None
    assert list(tmp_path.iterdir()) == []


def test_load_gives_the_network_with_its_weights(bundle):
    network = load(bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", device="cpu")
    weights = weights_of(bundle / "models")
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(network.state_dict()[name], weights[name]) for name in weights)


def test_number_of_epochs_set_as_a_property_is_that_of_schedule_and_record(case, dataset, tmp_path):
    schedule = {"lsanet": "cosine"}.get(case.name, "one_cycle")
    run = workflow(case, **small(case, dataset, tmp_path / "out", max_epochs=7, lr_schedule=schedule))
    run.max_epochs = 2
    run.initialize()
    run.run()
    train_alone(case, dataset, tmp_path / "short", max_epochs=2, lr_schedule=schedule)
    for name in {"learning_rate", "train_lambda"} & set(numbers_of(tmp_path / "short")[0]):
        ours, theirs = ([row[name] for row in numbers_of(tmp_path / folder)] for folder in ("out", "short"))
        assert ours == theirs and len(set(ours)) == 2
    assert metrics_of(tmp_path / "out")["settings"]["max_epochs"] == 2


def test_keys_of_consumers_are_no_unknown_settings(case, dataset, tmp_path):
    keys = ["tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "use_click"]
    run = workflow(case, **small(case, dataset, tmp_path), **dict.fromkeys(keys, "x"), _mine=1)
    assert run.network_def is not None


@pytest.mark.parametrize("case", WITHOUT_MASKS, indirect=True)
def test_federated_rounds_train_the_whole_network_and_keep_one_record(case, dataset, tmp_path):
    given = small(case, dataset, tmp_path / "site", max_epochs=1)
    client = MonaiAlgo(bundle_root=str(case.root), train_kwargs=dict(given), eval_kwargs=dict(given))
    client.initialize()
    weights = {name: w.clone() for name, w in get_state_dict(client.trainer.network).items()}
    for epoch in (1, 2):
        client.train(ExchangeObject(weights=weights))
        change = client.get_weights().weights
        assert change.keys() == weights.keys()
        moved = {name.split(".")[0] for name, w in change.items() if w.abs().max() > 0}
        if case.name == "gated_attention":  # lambda is 1, then 0.6: it goes on with the rounds
            fusion = {"instance_branch", "fusion_head"}
            assert moved == {"global_branch", "attention", "global_head"} | (fusion if epoch == 2 else set())
            assert [row["train_lambda"] for row in numbers_of(tmp_path / "site")] == [1, 0.6][:epoch]
        assert moved
        weights = {name: w + change[name] for name, w in weights.items()}
        metrics = client.evaluate(ExchangeObject(weights=weights)).metrics
        assert {"auc", "acc", "loss"} <= set(metrics)
        assert len(numbers_of(tmp_path / "site")) == epoch
        assert (tmp_path / "site" / "model.pt").is_file()
    client.finalize()


def test_tracking_with_mlflow_writes_into_the_output_folder_only(case, dataset, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra 'tracking')")
    monkeypatch.chdir(tmp_path)
    # An expression, as the default is: of plain text MONAI makes no path for its artifact.
    output_dir = f"${str(tmp_path / 'out')!r}"
    workflow(case, tracking="mlflow", **small(case, dataset, output_dir, max_epochs=1)).run()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out/mlruns.db")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert {"train_loss", "loss", case.key.removeprefix("val_")} <= set(run.data.metrics)
    assert [a.path.startswith("config_") for a in client.list_artifacts(run.info.run_id)] == [True]


# Exports


def example(root: Path, count: int, size: tuple[int, int] | None = None, seed: int = 0) -> torch.Tensor:
    """Images such as the metadata describe: blocks, not single pixels, for a small copy must show something."""
    image = json.loads((root / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    blocks = torch.rand(count, image["num_channels"], 6, 8, generator=torch.Generator().manual_seed(seed))
    low, high = image["value_range"]
    blocks = (blocks * 256).floor() if high == 255 else low + (high - low) * blocks
    return torch.nn.functional.interpolate(blocks, tuple(size or image["spatial_shape"]))


def variants() -> list[Any]:
    tiny = [pytest.param(name, {}, id=name) for name in CASES]
    others = [
        pytest.param(name, change, id=f"{name}-{'-'.join(map(str, change.values()))}", marks=pytest.mark.slow)
        for name, case in CASES.items()
        for change in case.exported
    ]
    return [*tiny, *others]


@pytest.fixture
def exported(case, change, dataset, bundle, tmp_path) -> Path:
    """A bundle with weights to export: those of the tiny run, or of a shorter one of another network."""
    if not change:
        return bundle
    settings = (
        change
        if change.get("method") == "global" or case.name != "gated_attention"
        else {"lambda_start": 0.5, **change}
    )
    train_alone(case, dataset, tmp_path / "trained", max_epochs=1, **settings)
    return installed(case, tmp_path / "trained", tmp_path / "bundle")


@pytest.mark.parametrize(("case", "change"), variants(), indirect=["case"])
def test_torchscript_computes_the_same_and_carries_config_and_metadata(case, change, exported, tmp_path):
    file = str(tmp_path / "model.ts")
    ckpt_export(config_file=config_of(exported), bundle_root=str(exported), filepath=file, device="cpu")
    network, metadata, extra = load_net_with_metadata(file, more_extra_files=("inference.json",))
    ours = shipped_network(exported)
    images = [example(exported, 2)]
    if case.name == "gated_attention":
        # Any size, also other than at export, and any number of images; as floats or as they are stored.
        images += [example(exported, 1, (40, 200), seed=1), example(exported, 3, (9, 7), seed=2).to(torch.uint8)]
    for image in images:
        with torch.no_grad():
            torch.testing.assert_close(network(image), ours(image), rtol=0, atol=1e-4 if len(images) > 1 else 1e-5)
    channels = 2 + len(case.classes) if case.task else len(case.classes)
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == channels
    assert "preprocessing" in json.loads(extra["inference.json"])


@pytest.mark.parametrize("case", ["lsanet", "multimix"], indirect=True)
def test_traced_torchscript_computes_the_same(case, bundle, tmp_path):
    file = str(tmp_path / "model.ts")
    ckpt_export(config_file=config_of(bundle), bundle_root=str(bundle), filepath=file, use_trace=True, device="cpu")
    image = example(bundle, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            load_net_with_metadata(file)[0](image), shipped_network(bundle)(image), rtol=0, atol=1e-5
        )


@pytest.fixture
def onnxruntime() -> Any:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        module = pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("case", "change"), variants(), indirect=["case"])
def test_onnx_computes_the_same(onnxruntime, case, change, exported, tmp_path):
    file, first = str(tmp_path / "model.onnx"), example(exported, 2)
    onnx_export(
        net_id="network_def",
        config_file=config_of(exported),
        meta_file=config_of(exported, "metadata"),
        ckpt_file=str(exported / "models" / "model.pt"),
        filepath=file,
        input_shape=list(first.shape),
        bundle_root=str(exported),
        device="cpu",
    )
    session, ours = onnxruntime.InferenceSession(file), shipped_network(exported)
    # In one of one colour nothing stands out, and the whole image is the instance.
    one_colour = torch.full_like(first, 0.5 * first.max().item())
    for image in (*(example(exported, 2, seed=seed) for seed in range(3)), one_colour):
        (pred,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(pred, ours(image).numpy(), rtol=0, atol=1e-4)


# Checks of metadata


def schema() -> dict[str, Any]:
    """What the model zoo's schema requires, and what it calls a port of a network."""
    text = {"type": "string", "minLength": 1}
    names = ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description"]
    names += ["authors", "copyright", "intended_use", "data_source"]
    versions = {"type": "object", "minProperties": 1, "additionalProperties": text}
    tensor = {"required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"]}
    ports = {"type": "object", "minProperties": 1, "additionalProperties": tensor}
    network = {"required": ["inputs", "outputs"], "properties": {"inputs": ports, "outputs": ports}}
    others = {"required_packages_version": versions, "network_data_format": network}
    return {
        "type": "object",
        "required": [*names, *others],
        "properties": {**{name: text for name in names}, "changelog": versions, **others},
    }


def test_metadata_pass_monais_checks(case, bundle, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(schema()))
    # MONAI downloads no schema over a file that is there.
    verify_metadata(meta_file=config_of(case.root, "metadata"), filepath=str(tmp_path / "schema.json"))
    assert "not for diagnosis" in json.loads(Path(config_of(case.root, "metadata")).read_text())["intended_use"]
    for root in (bundle, case.root):
        verify_net_in_out(
            net_id="network_def",
            meta_file=config_of(root, "metadata"),
            config_file=config_of(root),
            device="cpu",
            bundle_root=str(root),
        )


# Servers


PICTURES = {"colour.png": "RGB", "grey.jpg": "L", "deep.tif": "I;16"}


def write_picture(path: Path) -> Path:
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (8, 6, 3)), np.ones((5, 6, 1))).astype(np.uint8)
    kinds = {"RGB": pixels, "L": pixels[..., 0], "I;16": pixels[..., 0].astype(np.uint16) * 200}
    Image.fromarray(kinds[PICTURES[path.name]]).save(path)
    return path


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("case", WITHOUT_MASKS, indirect=True)
def test_a_server_gets_the_scores_that_a_run_writes(case, bundle, tmp_path, name):
    path = write_picture(tmp_path / name)
    served = serve(bundle, path)
    assert "image" not in served and isinstance(served["pred"], MetaTensor)
    scores = served["pred"].array
    assert scores.shape == (len(case.classes),) and scores.sum() == pytest.approx(1)
    (row,) = predict(case, bundle, path, tmp_path / "out", contact_sheet=0)
    # Weights without calibration.json beside them: the same on both ways.
    assert [float(row[f"p_{label}"]) for label in case.classes] == pytest.approx(scores.tolist(), abs=2e-6)
    assert row["pred"] == case.classes[int(scores.argmax())]


@pytest.mark.parametrize("case", WITHOUT_MASKS, indirect=True)
def test_training_on_a_server_starts_from_the_released_network_and_weights(case, bundle, tmp_path, caplog):
    """As MONAI Label does: lists of images and label files, a loader of `model.pt` before the handlers."""
    entries = []
    for index in range(12):
        entries.append({"image": str(tmp_path / f"{index}.png"), "label": str(tmp_path / f"{index}.json")})
        Image.new("L", (60 + index, 48), 60 + 60 * (index % 3)).save(entries[-1]["image"])
        answers = [{"label": name, "score": float(k == index % 3)} for k, name in enumerate(case.classes)]
        label = {"prediction": answers} if index % 2 else case.classes[index % 3].upper()
        Path(entries[-1]["label"]).write_text(json.dumps(label))
    config = ConfigParser()
    config.read_config(config_of(bundle, "train"))
    released = str(bundle / "models" / "model.pt")
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": released,
        "strict": False,
        "load_dict": {"model": "$@network"},
    }
    overrides: dict[str, Any] = {"train#trainer#max_epochs": 1, "train#handlers": [loader, *config["train#handlers"]]}
    # Training would be without the third class: a server cuts its list where it likes.
    entries.sort(key=lambda entry: int(Path(entry["image"]).stem) % 3)
    overrides |= {"train#dataset#data": entries[:8], "validate#dataset#data": entries[8:]}
    settings = {"output_dir": str(tmp_path / "out"), "learning_rate": 1e-12, "device": "cpu"}
    workflow(case, root=bundle, **settings, **overrides).run()
    before, after = weights_of(bundle / "models"), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in [name for name in before if name.endswith("conv1.weight") or "head" in name]:
        torch.testing.assert_close(after[name], before[name])
    info, metrics = json.loads((tmp_path / "out" / "model.json").read_text()), metrics_of(tmp_path / "out")
    own = json.loads((bundle / "models" / "model.json").read_text())
    network = {n for n in own if n in metrics["settings"] and n not in ("dataset", "seed")}
    assert len(network) > 5 and {n: metrics["settings"][n] for n in network} == {n: own[n] for n in network}
    assert {n: info[n] for n in network} == {n: own[n] for n in network} and info["classes"] == case.classes
    assert metrics["settings"]["max_epochs"] == 1 and metrics["test"]["n"] == 3
    assert metrics["settings"]["dataset"] == "handed over by another program"
    start, epoch = numbers_of(tmp_path / "out")
    better = epoch["val_auc"] > start["val_auc"] and epoch["val_acc"] >= start["val_acc"]
    assert start["epoch"] == 0 and info["best_epoch"] == metrics["chosen_epoch"] == int(better)
    assert ("no epoch was better on validation" in caplog.text) != better and "divided again by class" in caplog.text


def test_what_a_server_trains_is_named_after_it_and_starts_gently(case, bundle, tmp_path):
    entries = [{"image": str(tmp_path / f"{i}.png"), "label": str(tmp_path / f"{i}.txt")} for i in range(6)]
    overrides = {"train#dataset#data": entries, "validate#dataset#data": []}
    run = workflow(case, root=bundle, device="cpu", **overrides)
    settings = part(run, "settings")
    assert Path(settings["output_dir"]).name.startswith("handed-over")
    assert settings["ckpt_path"] == str(bundle / "models" / "model.pt")
    usual = part(workflow(case, root=bundle, dataset="x.csv"), "learning_rate")
    assert settings["learning_rate"] <= 0.1 * usual or case.task


# Beside other code


def test_bundles_in_one_process(case, bundle, tmp_path):
    path = write_picture(tmp_path / "colour.png")
    first = predict(case, bundle, path, tmp_path / "first")
    for other in [other for other in CASES.values() if other is not case]:
        between = predict(other, other.root, path, tmp_path / other.name)
        assert f"p_{case.classes[0]}" in first[0] and f"p_{case.classes[0]}" not in between[0]
    assert predict(case, bundle, path, tmp_path / "third") == first


@pytest.mark.slow
def test_a_copy_elsewhere_uses_its_own_files_beside_other_code(case, bundle, tmp_path):
    """In a folder that has a package such as bundles had, in a new process, started by a relative path."""
    write_picture(tmp_path / "colour.png")
    for name in ("scripts", "configs", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("raise RuntimeError('not the code of this bundle')")
    config = os.path.relpath(config_of(bundle), tmp_path)
    done = command("inference", "--config_file", config, "--dataset_dir", ".", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = rows_of(bundle / "runs" / "inference" / "predictions.csv")
    assert row["file"] == "colour.png" and row["error"] == "" and list(row)[:2] == case.predicted.split()[:2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colour.png", "configs", "models", "scripts"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["root", "inside"])
def test_inference_from_the_root_of_the_repository_and_from_inside_the_bundle(case, bundle, tmp_path, where):
    path = write_picture(tmp_path / "colour.png")
    cwd, folder = {"root": (ROOT, f"bundles/{case.name}/configs"), "inside": (bundle, "configs")}[where]
    arguments = ["--config_file", f"{folder}/inference.json", "--dataset_dir", path, "--output_dir", tmp_path / "out"]
    done = command(*arguments, "--ckpt_path", bundle / "models" / "model.pt", "--device", "cpu", cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["colour.png"]
    assert {"figures", "inference.log", "predictions.csv", "report.html"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
