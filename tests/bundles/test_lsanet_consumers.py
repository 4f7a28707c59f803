"""What other programs do with the lsanet bundle: workflows, exports, federated learning, servers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import (
    ConfigParser,
    ckpt_export,
    create_workflow,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.data import MetaTensor, load_net_with_metadata
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict
from monai.transforms import Compose, DeleteItemsd
from PIL import Image

from label_efficient.data.label_files import class_index
from label_efficient.networks.backbones import build_backbone
from label_efficient.networks.weights import save_model

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "lsanet"
CLASSES = ["dark", "bright", "Brightest"]
SIZE = 28


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> str:
    """A small file of MedMNIST layout whose classes are levels of grey."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(15) % 3
        images = rng.normal(60 + 60 * labels[:, None, None], 20, (15, SIZE, SIZE))
        arrays |= {
            f"{split}_images": images.clip(0, 255).astype(np.uint8),
            f"{split}_labels": labels[:, None],
        }
    path = tmp_path_factory.mktemp("cells") / "cells.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A copy of the bundle, elsewhere, with weights (untrained) and metadata of three classes."""
    root = tmp_path_factory.mktemp("elsewhere") / "lsanet_classification"
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("runs", "models", "__pycache__", "docs"))
    torch.manual_seed(0)
    weights = build_backbone("resnet18", 3).state_dict()
    info = {
        "bundle": "lsanet",
        "task": "multi-class",
        "classes": CLASSES,
        "keep_aspect": True,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "backbone": "resnet18",
        "attention": "none",
        "method": "lsanet",
        "output_nodes": ["C1", "C2", "C3", "C4"],
        "lsa": "fc_r8",
        "lsa_temperature": 1.0,
        "embed_channels": 64,
        "keep_nodes": False,
        "image_size": SIZE,
    }
    save_model(root / "models" / "model.pt", weights, info)
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] = [SIZE, SIZE]
    output = metadata["network_data_format"]["outputs"]["pred"]
    output |= {"num_channels": 3, "channel_def": {str(i): name for i, name in enumerate(CLASSES)}}
    path.write_text(json.dumps(metadata))
    return root


def _small(cells: str, output_dir: Path, **settings) -> dict:
    values = {"dataset": cells, "image_size": SIZE, "max_epochs": 1, "batch_size": 8}
    return values | {"num_workers": 0, "output_dir": str(output_dir), **settings}


def _workflow(kind: str, *files: str, root: Path = BUNDLE, **settings):
    paths = [str(root / "configs" / f"{file}.json") for file in files]
    return create_workflow(config_file=paths, workflow_type=kind, logging_file=False, **settings)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) - 1


@pytest.mark.parametrize("files", [("train",), ("train", "evaluate")])
def test_training_has_monais_properties(cells, tmp_path, files):
    workflow = _workflow("train", *files, **_small(cells, tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []
    values = {name: getattr(workflow, name) for name in TrainProperties | MetaProperties}
    absent = {name for name, value in values.items() if value is None}
    assert {n for n in absent if "processing" not in n} == {"dataset_dir", "train_key_metric"}
    assert len(values["train_dataset_data"]) == len(values["val_dataset"]) == 15
    assert list(values["val_key_metric"]) == ["auc"]
    assert not list(tmp_path.iterdir())


def test_number_of_epochs_set_as_a_property_is_that_of_schedule_and_record(cells, tmp_path):
    workflow = _workflow("train", "train", **_small(cells, tmp_path, lr_schedule="cosine"))
    workflow.initialize()
    workflow.max_epochs = 2
    workflow.initialize()
    workflow.run()
    rates = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    column = rates[0].index("learning_rate")
    assert [float(line[column]) for line in rates[1:]] == pytest.approx([0.001, 0.0005])
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["max_epochs"] == 2


def test_inference_has_monais_properties(bundle):
    workflow = _workflow("infer", "inference", root=bundle, bundle_root=str(bundle))
    workflow.initialize()
    assert workflow.check_properties() == []
    values = {name: getattr(workflow, name) for name in InferProperties | MetaProperties}
    assert {name for name, value in values.items() if value is None} == {"dataset_dir", "key_metric"}
    assert values["bundle_root"] == str(bundle)


def test_unknown_setting_is_an_error_with_the_nearest_name(cells, tmp_path):
    workflow = _workflow("train", "train", **_small(cells, tmp_path, leraning_rate=0.1))
    workflow.initialize()
    with pytest.raises(RuntimeError) as caught:
        _ = workflow.network_def
    text, error = "", caught.value
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__
    assert "unknown setting 'leraning_rate': did you mean 'learning_rate'?" in text


def test_keys_of_consumers_are_no_unknown_settings(cells, tmp_path):
    injected = [
        "tracking_uri",
        "experiment_name",
        "run_name",
        "save_execute_config",
        "is_not_rank0",
        "use_click",
    ]
    workflow = _workflow("train", "train", **_small(cells, tmp_path), **dict.fromkeys(injected, "x"), _mine=1)
    workflow.initialize()
    assert workflow.network_def is not None


def test_federated_rounds_train_the_whole_network_and_keep_one_record(cells, tmp_path):
    given = _small(cells, tmp_path / "site")
    client = MonaiAlgo(bundle_root=str(BUNDLE), train_kwargs=dict(given), eval_kwargs=dict(given))
    client.initialize()
    weights = {name: w.clone() for name, w in get_state_dict(client.trainer.network).items()}
    for epoch in (1, 2):
        client.train(ExchangeObject(weights=weights))
        change = client.get_weights().weights
        assert change.keys() == weights.keys()
        assert any(w.abs().max() > 0 for w in change.values())
        weights = {name: w + change[name] for name, w in weights.items()}
        metrics = client.evaluate(ExchangeObject(weights=weights)).metrics
        assert {"auc", "acc", "loss"} <= set(metrics)
        assert _lines(tmp_path / "site" / "history.csv") == epoch
        assert (tmp_path / "site" / "model.pt").is_file()
    client.finalize()


def _eager(root: Path) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser["bundle_root"] = str(root)
    parser.get_parsed_content("load_weights")
    return parser.get_parsed_content("network_def").eval()


@pytest.mark.parametrize("trace", [False, True])
def test_torchscript_computes_the_same_and_carries_config_and_metadata(bundle, tmp_path, trace):
    config, exported = str(bundle / "configs" / "inference.json"), str(tmp_path / "model.ts")
    ckpt_export(config_file=config, bundle_root=str(bundle), filepath=exported, use_trace=trace)
    network, metadata, extra = load_net_with_metadata(exported, more_extra_files=("inference.json",))
    image = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network(image), _eager(bundle)(image), rtol=0, atol=1e-5)
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert "preprocessing" in json.loads(extra["inference.json"])


def test_onnx_computes_the_same(bundle, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra 'export')")
    exported = str(tmp_path / "model.onnx")
    onnx_export(
        net_id="network_def",
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        filepath=exported,
        input_shape=[2, 3, SIZE, SIZE],
        bundle_root=str(bundle),
    )
    image = torch.randn(2, 3, SIZE, SIZE)
    session = onnxruntime.InferenceSession(exported)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, _eager(bundle)(image).numpy(), rtol=0, atol=1e-5)


def test_tracking_with_mlflow_writes_into_the_output_folder_only(cells, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra 'tracking')")
    monkeypatch.chdir(tmp_path)
    # An expression, as the default is: of plain text MONAI makes no path for its artifact.
    output_dir = f"${str(tmp_path / 'out')!r}"
    workflow = _workflow("train", "train", tracking="mlflow", **_small(cells, tmp_path) | {"output_dir": output_dir})
    workflow.initialize()
    workflow.run()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out/mlruns.db")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert {"train_loss", "loss", "auc", "acc"} <= set(run.data.metrics)
    assert [a.path.startswith("config_") for a in client.list_artifacts(run.info.run_id)] == [True]


def test_metadata_pass_monais_checks(bundle, tmp_path):
    text = {"type": "string", "minLength": 1}
    names = ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description"]
    names += ["authors", "copyright"]
    versions = {"type": "object", "minProperties": 1, "additionalProperties": text}
    tensor = {"required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]}
    ports = {"type": "object", "minProperties": 1, "additionalProperties": tensor}
    network = {"required": ["inputs", "outputs"], "properties": {"inputs": ports, "outputs": ports}}
    others = {"required_packages_version": versions, "network_data_format": network}
    schema = {
        "type": "object",
        "required": [*names, *others],
        "properties": {**{name: text for name in names}, "changelog": versions, **others},
    }
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    # MONAI downloads no schema over a file that is there.
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(path))
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )


@pytest.mark.parametrize("name, mode", [("colour.png", "RGB"), ("grey.jpg", "L")])
def test_a_server_gets_a_score_for_every_class(bundle, tmp_path, name, mode):
    """As MONAI Label's stock app does: parts of one config by name, `Restored` appended, a plain device."""
    Image.new(mode, (40, 30), 90 if mode == "L" else (90, 10, 200)).save(tmp_path / name)
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle), "use_click": False, "device": "cpu"})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=False)
    pre, inferer, post = (parser.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
    assert isinstance(post, Compose) and isinstance(post.transforms[-1], DeleteItemsd)
    data = {"image": str(tmp_path / name), "image_path": str(tmp_path / name), "device": "cpu"}
    for transform in pre.transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    for transform in post.transforms:
        data = transform(data)
    assert "image" not in data
    assert isinstance(data["pred"], MetaTensor) and data["pred"].array.shape == (3,)
    assert float(data["pred"].sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "BRIGHT\n"),
        ("a.txt", "1"),
        ("a.json", '"bright"'),
        ("a.json", "1"),
        ("a.json", '{"label": "bright"}'),
        ("a.json", '{"prediction": [{"label": "dark", "score": 0.2}, {"label": "bright", "score": 0.8}]}'),
    ],
)
def test_label_file_names_a_class(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert class_index(str(tmp_path / name), CLASSES) == 1


@pytest.mark.parametrize("content", ["3", "-1", "blue", "[]", "{}", "not json"])
def test_label_file_without_a_class_is_an_error(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        class_index(str(tmp_path / "a.json"), CLASSES)


def test_training_on_a_server_starts_from_the_released_weights(bundle, tmp_path):
    """As MONAI Label does: lists of images and label files, a loader of `model.pt` before the handlers."""
    entries = []
    for index in range(12):
        entries.append({"image": str(tmp_path / f"{index}.png"), "label": str(tmp_path / f"{index}.txt")})
        Image.new("L", (30 + index, SIZE), 60 + 60 * (index % 3)).save(entries[-1]["image"])
        Path(entries[-1]["label"]).write_text(CLASSES[index % 3].lower())
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.json"))
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(bundle / "models" / "model.pt"),
        "strict": False,
    }
    handlers = [{**loader, "load_dict": {"model": "$@network"}}, *config["train#handlers"]]
    workflow = _workflow(
        "train",
        "train",
        root=bundle,
        bundle_root=str(bundle),
        output_dir=str(tmp_path / "out"),
        image_size=SIZE,
        learning_rate=1e-12,
        device="cpu",
        **{"train#trainer#max_epochs": 1, "train#handlers": handlers},
        **{"train#dataset#data": entries[:6], "validate#dataset#data": entries[6:]},
    )
    workflow.run()
    released = torch.load(bundle / "models" / "model.pt", weights_only=True)
    trained = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    torch.testing.assert_close(trained["conv1.weight"], released["conv1.weight"])
    assert json.loads((tmp_path / "out" / "model.json").read_text())["classes"] == CLASSES
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["max_epochs"] == 1
    assert metrics["settings"]["dataset"] == "handed over by another program"


def test_a_copy_elsewhere_uses_its_own_files_beside_other_code(bundle, tmp_path):
    Image.new("RGB", (40, 30), (90, 10, 200)).save(tmp_path / "colour.png")
    for name in ("scripts", "configs", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("raise RuntimeError('not the code of this bundle')")
    config = os.path.relpath(bundle / "configs" / "inference.json", tmp_path)
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", config]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--dataset_dir", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    header, row = (bundle / "runs" / "inference" / "predictions.csv").read_text().splitlines()
    assert header == "file,pred,p_dark,p_bright,p_Brightest,uncertainty,error"
    assert row.startswith("colour.png,")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colour.png", "configs", "models", "scripts"]
