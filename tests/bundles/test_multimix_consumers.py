"""What other programs do with the multimix bundle's inference: workflows, exports, checks, servers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
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
from monai.bundle.properties import InferProperties, MetaProperties
from monai.data import MetaTensor, load_net_with_metadata
from PIL import Image

from label_efficient.networks.weights import save_model
from multimix.network import MultiMixNet
from multimix.shipped import ShippedMultiMix, split_output

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "multimix"
CLASSES = ["NORMAL", "PNEUMONIA"]
SIZE = 32


def _bundle(root: Path, method: str) -> Path:
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("runs", "models", "__pycache__", "docs"))
    torch.manual_seed(0)
    weights = ShippedMultiMix(method=method, num_classes=2).state_dict()
    info = {"bundle": "multimix", "method": method, "classes": CLASSES, "image_size": SIZE, "keep_aspect": True}
    save_model(root / "models" / "model.pt", weights, info)
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    ports = metadata["network_data_format"]
    for port in (ports["inputs"]["image"], ports["outputs"]["pred"]):
        port["spatial_shape"] = [SIZE, SIZE]
    path.write_text(json.dumps(metadata))
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A copy of the bundle, elsewhere, with weights (untrained) of the full method."""
    return _bundle(tmp_path_factory.mktemp("elsewhere") / "multimix", "multimix")


def _parser(root: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(root)})
    return parser


def _eager(root: Path) -> ShippedMultiMix:
    parser = _parser(root)
    parser.get_parsed_content("load_weights")
    return parser.get_parsed_content("network_def").eval()


def test_inference_has_monais_properties(bundle):
    config = str(bundle / "configs" / "inference.json")
    workflow = create_workflow(
        config_file=config, workflow_type="infer", logging_file=False, bundle_root=str(bundle), device="cpu"
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    values = {name: getattr(workflow, name) for name in InferProperties | MetaProperties}
    assert {name for name, value in values.items() if value is None} == {"dataset_dir", "key_metric"}
    assert values["bundle_root"] == str(bundle)


@pytest.mark.parametrize("method, trace", [("umtl", False), ("umtls", False), ("multimix", True)])
def test_torchscript_computes_the_same_and_carries_config_and_metadata(tmp_path, method, trace):
    root = _bundle(tmp_path / "multimix", method)
    exported = str(tmp_path / "model.ts")
    config = str(root / "configs" / "inference.json")
    ckpt_export(config_file=config, bundle_root=str(root), filepath=exported, use_trace=trace, device="cpu")
    network, metadata, extra = load_net_with_metadata(exported, more_extra_files=("inference.json",))
    image = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network(image), _eager(root)(image), rtol=0, atol=1e-5)
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 4
    assert "preprocessing" in json.loads(extra["inference.json"])


def test_what_is_shipped_computes_what_was_trained(bundle):
    trained = MultiMixNet(method="multimix", num_classes=2).eval()
    trained.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    image = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        expected = trained(image)
        mask_logits, logits = split_output(_eager(bundle)(image), "multimix")
    torch.testing.assert_close(mask_logits, expected["mask_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)


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
        input_shape=[2, 1, SIZE, SIZE],
        bundle_root=str(bundle),
    )
    image = torch.rand(2, 1, SIZE, SIZE)
    session = onnxruntime.InferenceSession(exported)
    (pred,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(pred, _eager(bundle)(image).numpy(), rtol=0, atol=1e-4)


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
    for meta_file in (bundle / "configs" / "metadata.json", BUNDLE / "configs" / "metadata.json"):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(meta_file),
            config_file=str(bundle / "configs" / "inference.json"),
            device="cpu",
            bundle_root=str(bundle),
        )
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert "not for diagnosis" in metadata["intended_use"]
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values()) == ["background", "lung", *CLASSES]


def _served(root: Path, path: Path) -> dict[str, Any]:
    """As MONAI Label's stock app does: parts of one config by name, a plain device, one image."""
    parser = _parser(root)
    parser.config.update({"use_click": False, "device": "cpu"})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True), strict=False)
    pre, inferer, post = (parser.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
    data = {"image": str(path), "image_path": str(path), "device": "cpu"}
    for transform in pre.transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    for transform in post.transforms:
        data = transform(data)
    return data


def _predict(root: Path, path: Path, output_dir: Path) -> None:
    config = str(root / "configs" / "inference.json")
    values = {"bundle_root": str(root), "dataset_dir": str(path), "output_dir": str(output_dir), "device": "cpu"}
    create_workflow(
        config_file=config, workflow_type="infer", logging_file=False, num_workers=0, contact_sheet=0, **values
    ).run()


@pytest.mark.parametrize("name, mode", [("colour.png", "RGB"), ("grey.jpg", "L")])
def test_a_server_gets_the_mask_that_a_run_writes(bundle, tmp_path, name, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    served = _served(bundle, tmp_path / name)
    _predict(bundle, tmp_path / name, tmp_path / "out")
    written = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{Path(name).stem}.png"))
    pred = served["pred"]
    assert isinstance(pred, MetaTensor) and pred.dtype == torch.uint8 and written.any() and not written.all()
    # MONAI Label hands the array to ITK transposed, whose first axis is then the last.
    assert np.array_equal(pred.array.transpose()[0] * 255, written)
    row = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1].split(",")
    assert served["result"]["pred"] == row[1]
    assert served["result"]["probabilities"]["NORMAL"] == pytest.approx(float(row[2]), abs=1e-6)
    assert served["result"]["uncertainty"] == pytest.approx(float(row[4]), abs=1e-6)
    json.dumps(served["result"])
    assert served.get("result_extension") == (None if name.endswith(".png") else ".png")
    # `Restored` resizes where the metadata name another size, and takes the affine that the file had.
    assert "spatial_shape" not in served["image"].meta and isinstance(served["image"], MetaTensor)


def test_a_server_gets_the_mask_of_a_nifti_picture_on_its_voxels(bundle, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (30, 40, 1), dtype=np.uint8)
    affine = np.array([[0.0, -2, 0, 5], [0, 0, 1, 6], [3, 0, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    pred = _served(bundle, tmp_path / "a.nii.gz")["pred"]
    _predict(bundle, tmp_path / "a.nii.gz", tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "masks" / "a.nii.gz")
    assert np.array_equal(pred.array, np.asarray(written.dataobj)) and pred.shape == voxels.shape
    np.testing.assert_allclose(pred.affine, written.affine)


def test_two_bundles_in_one_process(bundle, tmp_path):
    other = BUNDLE.parent / "lsanet"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)).save(tmp_path / "a.png")
    _predict(bundle, tmp_path / "a.png", tmp_path / "first")
    _predict(other, tmp_path / "a.png", tmp_path / "second")
    _predict(bundle, tmp_path / "a.png", tmp_path / "third")
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("first", "second", "third")]
    assert tables[0] == tables[2] and "p_PNEUMONIA" in tables[0] and "p_PNEUMONIA" not in tables[1]


def test_a_copy_elsewhere_uses_its_own_files_beside_other_code(bundle, tmp_path):
    Image.new("RGB", (40, 30), (90, 10, 200)).save(tmp_path / "colour.png")
    for name in ("scripts", "configs", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("raise RuntimeError('not the code of this bundle')")
    config = os.path.relpath(bundle / "configs" / "inference.json", tmp_path)
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", config]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--dataset_dir", ".", "--device", "cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    row = (bundle / "runs" / "inference" / "predictions.csv").read_text().splitlines()[1]
    assert row.startswith("colour.png,") and row.endswith("masks/colour.png,")
    assert (bundle / "runs" / "inference" / "masks" / "colour.png").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colour.png", "configs", "models", "scripts"]
