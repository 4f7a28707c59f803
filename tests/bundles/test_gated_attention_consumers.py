"""What other programs do with the gated attention bundle: workflows, exports, federated learning, servers."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, onnx_export, verify_metadata, verify_net_in_out
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.data import MetaTensor, load_net_with_metadata
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict
from monai.transforms import Compose, DeleteItemsd
from PIL import Image

from gated_attention.attention import ATTENTIONS
from gated_attention.shipped import ShippedGatedAttention
from label_efficient.networks.weights import save_model

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "gated_attention"
CLASSES = ["dark", "bright", "Brightest"]
HEIGHT, WIDTH = 72, 96
# None of them but resnet18 is a default, of the demo neither: what is served and trained on is what was released.
NETWORK = {
    "method": "fusion", "attention": "gated", "global_backbone": "resnet18", "instance_backbone": "resnet18",
    "num_instances": 2, "instance_size": 32, "threshold": 0.4, "min_box": 0.2, "max_box": 0.6, "window_box": 0.4,
    "pooling": "attention", "image_size": 64, "mean": [0.5, 0.4, 0.6], "std": [0.5, 0.4, 0.3],
}  # fmt: skip


def _bundle(root: Path, **network: Any) -> Path:
    """A copy of the bundle, elsewhere, with weights (untrained) and metadata of three classes."""
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("runs", "models", "__pycache__", "docs"))
    torch.manual_seed(0)
    options = NETWORK | network
    weights = ShippedGatedAttention(num_classes=len(CLASSES), **options).state_dict()  # type: ignore[arg-type]
    info = {"bundle": "gated_attention", "task": "multi-class", "classes": CLASSES, **options}
    save_model(root / "models" / "model.pt", weights, info)
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    ports = metadata["network_data_format"]
    ports["inputs"]["image"]["spatial_shape"] = [HEIGHT, WIDTH]
    ports["outputs"]["pred"] |= {"num_channels": 3, "channel_def": {str(i): name for i, name in enumerate(CLASSES)}}
    path.write_text(json.dumps(metadata))
    return root


@pytest.fixture(autouse=True)
def _small_remains(tmp_path: Path) -> Iterator[None]:
    """Pytest keeps the folders of three sessions, and two ResNets with their momentum are 300 MB a run."""
    yield
    gc.collect()  # a config refers to itself, and so do its networks
    for path in [*tmp_path.rglob("*.pt"), *tmp_path.rglob("*.ts")]:
        path.unlink()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Iterator[Path]:
    root = _bundle(tmp_path_factory.mktemp("elsewhere") / "microscopy")
    yield root
    for path in root.rglob("*.pt"):
        path.unlink()


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> str:
    """A list of pictures of three classes, levels of grey, no two of one size."""
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    lines = ["file,label,class,split"]
    for split in ("train", "val", "test"):
        for index in range(9):
            shape = (50 + index, 70 - index, 3)
            picture = rng.normal(60 + 60 * (index % 3), 30, shape).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"{split}{index}.png")
            lines.append(f"{split}{index}.png,{index % 3},{CLASSES[index % 3]},{split}")
    (folder / "cells.csv").write_text("\n".join(lines))
    return str(folder / "cells.csv")


def _small(cells: str, output_dir: Path, **settings: Any) -> dict[str, Any]:
    values = {"dataset": cells, "image_size": 64, "instance_size": 32, "instance_backbone": "resnet18"}
    values |= {"num_instances": 2, "lambda_every": 1, "lambda_step": 0.4, "max_epochs": 1, "batch_size": 4}
    values |= {"learning_rate": 0.01, "num_workers": 0, "device": "cpu"}
    return values | {"output_dir": str(output_dir), **settings}


def _workflow(kind: str, *files: str, root: Path = BUNDLE, **settings: Any) -> Any:
    paths = [str(root / "configs" / f"{file}.json") for file in files]
    return create_workflow(config_file=paths, workflow_type=kind, logging_file=False, **settings)


def _rows(path: Path) -> list[dict[str, str]]:
    header, *lines = (line.split(",") for line in path.read_text().splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def _parser(root: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(root), "device": "cpu"})
    return parser


def _eager(root: Path) -> ShippedGatedAttention:
    parser = _parser(root)
    parser.get_parsed_content("load_weights")
    return parser.get_parsed_content("network_def").eval()


def _image(*shape: int, seed: int = 0) -> torch.Tensor:
    """Blocks, not single pixels: the small copy must show something."""
    blocks = torch.randint(256, (shape[0], 3, 5, 6), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(blocks, shape[1:])


@pytest.mark.parametrize("files", [("train",), ("train", "evaluate")])
def test_training_has_monais_properties(cells, tmp_path, files):
    workflow = _workflow("train", *files, **_small(cells, tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []
    values = {name: getattr(workflow, name) for name in TrainProperties | MetaProperties}
    absent = {name for name, value in values.items() if value is None}
    assert {n for n in absent if "processing" not in n} == {"dataset_dir", "train_key_metric"}
    assert len(values["train_dataset_data"]) == len(values["val_dataset"]) == 9
    assert list(values["val_key_metric"]) == ["auc"]
    assert not list(tmp_path.iterdir())


def test_number_of_epochs_set_as_a_property_is_that_of_schedule_and_record(cells, tmp_path):
    settings = _small(cells, tmp_path, lr_schedule="one_cycle", max_epochs=7)
    workflow = _workflow("train", "train", **settings)
    workflow.initialize()
    workflow.max_epochs = 2
    workflow.initialize()
    workflow.run()
    from label_efficient.engine.schedules import rate_factor

    expected = [0.01 * rate_factor("one_cycle", n, max_epochs=2, lr_step=1, lr_factor=1) for n in (0, 1)]
    rows = _rows(tmp_path / "history.csv")
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(expected)
    assert [float(row["train_lambda"]) for row in rows] == [1, 0.6]
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["max_epochs"] == 2


def test_inference_has_monais_properties(bundle):
    workflow = _workflow("infer", "inference", root=bundle, bundle_root=str(bundle), device="cpu")
    workflow.initialize()
    assert workflow.check_properties() == []
    values = {name: getattr(workflow, name) for name in InferProperties | MetaProperties}
    assert {name for name, value in values.items() if value is None} == {"dataset_dir", "key_metric"}
    assert values["bundle_root"] == str(bundle)


def test_keys_of_consumers_are_no_unknown_settings(cells, tmp_path):
    injected = ["tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "use_click"]
    workflow = _workflow("train", "train", **_small(cells, tmp_path), **dict.fromkeys(injected, "x"), _mine=1)
    workflow.initialize()
    assert workflow.network_def is not None


def test_federated_rounds_train_the_whole_network_and_lambda_goes_on(cells, tmp_path):
    given = _small(cells, tmp_path / "site")
    client = MonaiAlgo(bundle_root=str(BUNDLE), train_kwargs=dict(given), eval_kwargs=dict(given))
    client.initialize()
    weights = {name: w.clone() for name, w in get_state_dict(client.trainer.network).items()}
    for epoch in (1, 2):
        client.train(ExchangeObject(weights=weights))
        change = client.get_weights().weights
        assert change.keys() == weights.keys()
        moved = {name.split(".")[0] for name, w in change.items() if w.abs().max() > 0}
        fusion = {"instance_branch", "fusion_head"}
        assert moved == {"global_branch", "attention", "global_head"} | (fusion if epoch == 2 else set())
        weights = {name: w + change[name] for name, w in weights.items()}
        metrics = client.evaluate(ExchangeObject(weights=weights)).metrics
        assert {"auc", "acc", "global_auc", "global_acc", "loss"} <= set(metrics)
        rows = _rows(tmp_path / "site" / "history.csv")
        assert [float(row["train_lambda"]) for row in rows] == [1, 0.6][:epoch]
        assert (tmp_path / "site" / "model.pt").is_file()
    client.finalize()


@pytest.mark.parametrize(
    "network",
    [*[{"attention": name} for name in ATTENTIONS], {"pooling": "concat", "max_box": None}, {"method": "global"}],
    ids=lambda network: "-".join(map(str, network.values())),
)
def test_torchscript_computes_the_same_and_carries_config_and_metadata(tmp_path, network):
    root = _bundle(tmp_path / "microscopy", **network)
    exported = str(tmp_path / "model.ts")
    config = str(root / "configs" / "inference.json")
    ckpt_export(config_file=config, bundle_root=str(root), filepath=exported, device="cpu")
    loaded, metadata, extra = load_net_with_metadata(exported, more_extra_files=("inference.json",))
    eager = _eager(root)
    # Any size, also other than at export, and any number of images; as floats or as they are stored.
    for image in (_image(2, HEIGHT, WIDTH), _image(1, 40, 200, seed=1), _image(3, 9, 7, seed=2).to(torch.uint8)):
        with torch.no_grad():
            torch.testing.assert_close(loaded(image), eager(image), rtol=0, atol=1e-4)
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert "preprocessing" in json.loads(extra["inference.json"])


def test_what_is_recorded_for_an_export_computes_the_same():
    network = ShippedGatedAttention(num_classes=3, **NETWORK).eval()  # type: ignore[arg-type]
    recorded = torch.export.export(network, (_image(2, 150, 200),), strict=False).module()
    # In one of one colour nothing stands out, and the whole image is the instance.
    for image in (_image(2, 150, 200, seed=1), torch.full((2, 3, 150, 200), 90.0)):
        with torch.no_grad():
            torch.testing.assert_close(recorded(image), network(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "network",
    # Without a limit a box may be so large that a pixel of its crop is the mean of several samples.
    [*[{"attention": name} for name in ATTENTIONS], {"pooling": "concat", "max_box": None, "threshold": 0.1}],
    ids=lambda network: "-".join(map(str, network.values())),
)
def test_onnx_computes_the_same(tmp_path, network):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra 'export')")
    root = _bundle(tmp_path / "microscopy", **network)
    exported = str(tmp_path / "model.onnx")
    height, width = 150, 200
    onnx_export(
        net_id="network_def",
        config_file=str(root / "configs" / "inference.json"),
        meta_file=str(root / "configs" / "metadata.json"),
        ckpt_file=str(root / "models" / "model.pt"),
        filepath=exported,
        input_shape=[2, 3, height, width],
        bundle_root=str(root),
        device="cpu",
    )
    session = onnxruntime.InferenceSession(exported)
    eager = _eager(root)
    # In one of one colour nothing stands out, and the whole image is the instance.
    images = [*(_image(2, height, width, seed=seed) for seed in range(4)), torch.full((2, 3, height, width), 90.0)]
    for image in images:
        (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, eager(image).numpy(), rtol=0, atol=1e-4)


def test_what_is_shipped_computes_what_was_trained(bundle):
    from gated_attention.network import GatedAttentionNet

    trained = GatedAttentionNet(num_classes=3, **NETWORK).eval()  # type: ignore[arg-type]
    trained.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    image = _image(2, HEIGHT, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(_eager(bundle)(image), trained(image)["logits"], rtol=0, atol=1e-5)


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
    names += ["authors", "copyright", "intended_use", "data_source"]
    versions = {"type": "object", "minProperties": 1, "additionalProperties": text}
    tensor = {"required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"]}
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
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert "not for diagnosis" in metadata["intended_use"]
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["value_range"], image["dtype"]) == (3, [0, 255], "float32")


def _verify_net_in_out(root: Path) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(root),
    )


def test_network_takes_and_gives_what_the_metadata_say(bundle):
    _verify_net_in_out(bundle)


def test_released_network_takes_and_gives_what_the_metadata_say():
    if not (BUNDLE / "models" / "model.pt").is_file():
        pytest.skip("there are no released weights")
    _verify_net_in_out(BUNDLE)


def _served(root: Path, path: Path) -> dict[str, Any]:
    """As MONAI Label's stock app does: parts of one config by name, a plain device, one image."""
    parser = _parser(root)
    parser.config.update({"use_click": False})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True), strict=False)
    pre, inferer, post = (parser.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
    assert isinstance(post, Compose) and isinstance(post.transforms[-1], DeleteItemsd)
    data = {"image": str(path), "image_path": str(path), "device": "cpu"}
    for transform in pre.transforms:
        data = transform(data)
    assert isinstance(data["image"], MetaTensor) and "spatial_shape" not in data["image"].meta
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    for transform in post.transforms:
        data = transform(data)
    return data


def _answer(served: dict[str, Any]) -> dict[str, Any]:
    """What MONAI Label answers of a classification, and keeps as a label."""
    scores = served["pred"].array.tolist()
    prediction = [{"label": name, "score": score} for name, score in zip(CLASSES, scores, strict=True)]
    return {"prediction": prediction, "label_names": dict(enumerate(CLASSES))}


def _predict(root: Path, path: Path, output_dir: Path) -> list[dict[str, str]]:
    values = {"bundle_root": str(root), "dataset_dir": str(path), "output_dir": str(output_dir), "device": "cpu"}
    _workflow("infer", "inference", root=root, num_workers=0, contact_sheet=0, **values).run()
    return _rows(output_dir / "predictions.csv")


@pytest.mark.parametrize("name, mode", [("colour.png", "RGB"), ("grey.jpg", "L"), ("deep.tif", "I;16")])
def test_a_server_gets_the_scores_that_a_run_writes(bundle, tmp_path, name, mode):
    picture = _image(1, 47, 60)[0].permute(1, 2, 0).numpy().astype(np.uint8)
    kinds = {"RGB": picture, "L": picture[..., 0], "I;16": picture[..., 0].astype(np.uint16) * 200}
    Image.fromarray(kinds[mode]).save(tmp_path / name)
    served = _served(bundle, tmp_path / name)
    assert "image" not in served and served["pred"].array.shape == (3,)
    scores = {entry["label"]: entry["score"] for entry in json.loads(json.dumps(_answer(served)))["prediction"]}
    (row,) = _predict(bundle, tmp_path / name, tmp_path / "out")
    assert {label: float(row[f"p_{label}"]) for label in CLASSES} == pytest.approx(scores, abs=2e-6)
    assert row["pred"] == max(scores, key=lambda label: scores[label]) and sum(scores.values()) == pytest.approx(1)


def test_training_on_a_server_starts_from_the_released_network_and_weights(bundle, tmp_path):
    """As MONAI Label does: lists of images and label files, a loader of `model.pt` before the handlers."""
    entries = []
    for index in range(12):
        entries.append({"image": str(tmp_path / f"{index}.png"), "label": str(tmp_path / f"{index}.json")})
        Image.new("L", (60 + index, 48), 60 + 60 * (index % 3)).save(entries[-1]["image"])
        answers = [{"label": name, "score": float(k == index % 3)} for k, name in enumerate(CLASSES)]
        label = {"prediction": answers} if index % 2 else CLASSES[index % 3].lower()
        Path(entries[-1]["label"]).write_text(json.dumps(label))
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.json"))
    loader = {"_target_": "CheckpointLoader", "load_path": str(bundle / "models" / "model.pt"), "strict": False}
    handlers = [{**loader, "load_dict": {"model": "$@network"}}, *config["train#handlers"]]
    workflow = _workflow(
        "train",
        "train",
        root=bundle,
        bundle_root=str(bundle),
        output_dir=str(tmp_path / "out"),
        learning_rate=1e-12,
        device="cpu",
        **{"train#trainer#max_epochs": 1, "train#handlers": handlers},
        **{"train#dataset#data": entries[:6], "validate#dataset#data": entries[6:]},
    )
    workflow.run()
    released, trained = (torch.load(p / "model.pt", weights_only=True) for p in (bundle / "models", tmp_path / "out"))
    assert released.keys() == trained.keys()
    for name in ("global_branch.conv1.weight", "instance_branch.conv1.weight", "fusion_head.weight"):
        torch.testing.assert_close(trained[name], released[name])
    info = json.loads((tmp_path / "out" / "model.json").read_text())
    assert {name: info[name] for name in NETWORK} == NETWORK and info["classes"] == CLASSES
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["max_epochs"] == 1 and metrics["test"]["n"] == 6
    assert metrics["settings"]["dataset"] == "handed over by another program"
    assert {name: metrics["settings"][name] for name in NETWORK} == NETWORK


def test_two_bundles_in_one_process(bundle, tmp_path):
    other = BUNDLE.parent / "lsanet"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    first = _predict(bundle, tmp_path / "a.png", tmp_path / "first")
    between = _predict(other, tmp_path / "a.png", tmp_path / "second")
    assert _predict(bundle, tmp_path / "a.png", tmp_path / "third") == first
    assert "p_Brightest" in first[0] and "p_Brightest" not in between[0]


def _run(cwd: Path, *arguments: Any) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", *map(str, arguments), "--device", "cpu"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["root", "inside"])
def test_inference_from_the_root_of_the_repository_and_from_inside_the_bundle(bundle, tmp_path, where):
    Image.new("RGB", (70, 50), (90, 10, 200)).save(tmp_path / "colour.png")
    cwd, config = {"root": (ROOT, "bundles/gated_attention/configs"), "inside": (bundle, "configs")}[where]
    weights, out = bundle / "models" / "model.pt", tmp_path / "out"
    arguments = ["--config_file", f"{config}/inference.json", "--dataset_dir", tmp_path / "colour.png"]
    _run(cwd, *arguments, "--ckpt_path", weights, "--output_dir", out, "--overlays", "true")
    assert [row["file"] for row in _rows(out / "predictions.csv")] == ["colour.png"]
    assert len(_rows(out / "instances.csv")) == 2
    assert sorted(p.name for p in out.iterdir()) == [
        "attention", "figures", "inference.log", "instances.csv", "predictions.csv", "report.html"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_copy_elsewhere_uses_its_own_files_beside_other_code(bundle, tmp_path):
    Image.new("RGB", (70, 50), (90, 10, 200)).save(tmp_path / "colour.png")
    for name in ("scripts", "configs", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("raise RuntimeError('not the code of this bundle')")
    config = os.path.relpath(bundle / "configs" / "inference.json", tmp_path)
    _run(tmp_path, "inference", "--config_file", config, "--dataset_dir", ".")
    header, row = (bundle / "runs" / "inference" / "predictions.csv").read_text().splitlines()
    assert header == "file,pred,p_dark,p_bright,p_Brightest,uncertainty,error"
    assert row.startswith("colour.png,")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colour.png", "configs", "models", "scripts"]
