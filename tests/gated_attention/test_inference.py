"""Inference of the gated_attention bundle: the network's own figures, images of any size, overlays, mistakes."""

import csv
import json
import logging
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, create_workflow
from monai.data import MetaTensor
from monai.transforms import DeleteItemsd
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from gated_attention.inference import InstanceInferer
from gated_attention.inference_batches import PictureBatches, collate_as_lists, limited_batches
from gated_attention.instance_figures import save_picture
from gated_attention.shipped import ShippedGatedAttention
from label_efficient.data.images import read_image
from label_efficient.data.picture_transforms import load_image
from label_efficient.evaluation.calibration import write_calibration
from label_efficient.networks.weights import save_model

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "gated_attention" / "configs"
CONFIG = CONFIGS / "inference.json"
CLASSES = ["round", "long", "none"]
BOX = ("x0", "y0", "x1", "y1")


def _weights(folder: Path, spoil: bool = False, **settings: Any) -> tuple[Path, ShippedGatedAttention]:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "method": "fusion", "attention": "gated", "global_backbone": "resnet18", "instance_backbone": "resnet18",
        "num_instances": 3, "instance_size": 32, "threshold": 0.5, "min_box": 0.2, "max_box": 0.6, "window_box": 0.4,
        "pooling": "concat", "image_size": 64, "mean": [0.5, 0.4, 0.6], "std": [0.5, 0.4, 0.3],
    }  # fmt: skip
    options |= settings
    network = ShippedGatedAttention(num_classes=len(CLASSES), **options).eval()
    if spoil:
        with torch.no_grad():
            network.global_head.bias.fill_(torch.nan)
            network.fusion_head.bias.fill_(torch.nan)
    info = {"bundle": "gated_attention", "task": "multi-class", "classes": CLASSES, **options}
    save_model(folder / "model.pt", network.state_dict(), info)
    return folder / "model.pt", network


def _run(dataset_dir: Path, weights: Path, output_dir: Path, **settings: Any) -> list[dict[str, str]]:
    values = {"dataset_dir": str(dataset_dir), "ckpt_path": str(weights), "output_dir": str(output_dir)}
    values |= {"num_workers": 0, "batch_size": 3, "device": "cpu", **settings}
    create_workflow(config_file=str(CONFIG), workflow_type="infer", logging_file=False, **values).run()
    return _rows(output_dir / "predictions.csv")


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _cause(function: Any, *arguments: Any, **settings: Any) -> str:
    """Messages of an error and of what caused it: MONAI wraps what an expression of a config raises."""
    with pytest.raises((RuntimeError, ValueError, FileNotFoundError)) as caught:
        function(*arguments, **settings)
    text, error = "", caught.value
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__
    return text


def _check(rows: list[dict[str, str]], output_dir: Path, folder: Path, network: ShippedGatedAttention) -> None:
    """Both tables against the network, called with one image after the other."""
    instances = _rows(output_dir / "instances.csv")
    for row in rows:
        own = [instance for instance in instances if instance["file"] == row["file"]]
        if row["error"]:
            assert not own and not row["pred"]
            continue
        image = load_image(folder / row["file"])
        with torch.no_grad():
            found = network.look([image], True)
            probabilities = network(image[None]).softmax(dim=1)[0]
        assert row["pred"] == CLASSES[int(probabilities.argmax())]
        values = [float(row[f"p_{name}"]) for name in CLASSES]
        np.testing.assert_allclose(values, probabilities, atol=1e-5)
        assert float(row["uncertainty"]) == pytest.approx(-sum(p * np.log(p) for p in values) / np.log(3), abs=1e-4)
        assert [instance["rank"] for instance in own] == ["1", "2", "3"]
        boxes = [[float(instance[name]) for name in BOX] for instance in own]
        np.testing.assert_allclose(boxes, found["instance_boxes"][0], atol=0.0051)
        scores = [float(instance["attention"]) for instance in own]
        np.testing.assert_allclose(scores, found["instance_scores"][0], atol=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Files of every kind and size: grey, colour, transparent, 16-bit, tiny, a strip, NIfTI, and damaged."""
    folder, rng = tmp_path_factory.mktemp("in"), np.random.default_rng(0)
    (folder / "sub").mkdir()
    # Blocks, not single pixels: the small copy of the global branch must differ from image to image.
    noise = np.kron(rng.integers(0, 256, (9, 12)), np.ones((16, 16))).astype(np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(np.stack([noise, noise.T.reshape(noise.shape), 255 - noise], axis=2)).save(folder / "a.jpg")
    alpha = np.stack([noise, 255 - noise, noise, noise // 2 + 100], axis=2)
    Image.fromarray(alpha[:, :60]).save(folder / "alpha.png")
    Image.fromarray(noise[:99, :70].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(noise[:3, :5]).save(folder / "tiny.tif")
    strip = np.kron(rng.integers(0, 256, (2, 100, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    Image.fromarray(strip).save(folder / "sub" / "strip.bmp")
    nibabel.save(nibabel.Nifti1Image(noise[..., None], np.diag([0.5, -0.5, 1, 1])), folder / "n.nii.gz")
    (folder / "e.png").write_bytes(b"not a picture")
    return folder


def test_a_folder_of_all_kinds(pictures, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights, network = _weights(tmp_path)
    out = tmp_path / "out"
    rows = _run(pictures, weights, out, overlays=True, num_workers=2)
    assert list(rows[0]) == ["file", "pred", "p_round", "p_long", "p_none", "uncertainty", "error"]
    assert list(_rows(out / "instances.csv")[0]) == ["file", "rank", *BOX, "attention"]
    files = [row["file"] for row in rows]
    assert files == "a.jpg a.png alpha.png deep.png e.png n.nii.gz sub/strip.bmp tiny.tif".split()
    assert [row["file"] for row in rows if row["error"]] == ["e.png"] and "e.png" in rows[4]["error"]
    _check(rows, out, pictures, network)
    assert len({row["p_round"] for row in rows}) == 8 and len({row["x0"] for row in _rows(out / "instances.csv")}) > 5
    drawn = sorted(p.relative_to(out / "attention").as_posix() for p in (out / "attention").rglob("*.png"))
    assert drawn == sorted(f"{file}.png" for file in files if file != "e.png")
    report = (out / "report.html").read_text()
    assert "e.png" in report and "not a medical device" in report and report.count("<img") == 1 + 6
    assert (out / "figures" / "least_certain.png").is_file()
    doubtful = sorted((row for row in rows if not row["error"]), key=lambda row: -float(row["uncertainty"]))
    shown = re.findall(r"<figcaption>(\S+): \w+, uncertainty", report)
    assert shown == [row["file"] for row in doubtful[:6]]
    assert "7 predictions, 1 files without" in (out / "inference.log").read_text()
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]

    again = _run(pictures, weights, tmp_path / "again", batch_size=1, contact_sheet=0)
    _check(again, tmp_path / "again", pictures, network)
    assert [row["file"] for row in again] == files
    assert not (tmp_path / "again" / "attention").exists()
    assert not (tmp_path / "again" / "figures" / "least_certain.png").exists()


def test_the_global_branch_alone_has_no_instances(pictures, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights, network = _weights(tmp_path, method="global")
    out = tmp_path / "out"
    rows = _run(pictures / "sub", weights, out, overlays=True)
    with torch.no_grad():
        expected = network(load_image(pictures / "sub" / "strip.bmp")[None]).softmax(dim=1)[0]
    np.testing.assert_allclose([float(rows[0][f"p_{name}"]) for name in CLASSES], expected, atol=1e-5)
    assert (out / "instances.csv").read_text().split() == ["file,rank,x0,y0,x1,y1,attention"]
    assert "instances.csv has no rows" in (out / "inference.log").read_text()
    assert Image.open(out / "attention" / "strip.bmp.png").size == (1024, 20)


def test_temperature_beside_the_weights_is_applied(pictures, tmp_path):
    weights, network = _weights(tmp_path)
    same: dict[str, Any] = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.5)
    write_calibration(tmp_path / "calibration.json", {"temperature": 3.0, "fitted_on": "validation", "n": 9, **same})
    row = _run(pictures / "sub", weights, tmp_path / "out")[0]
    with torch.no_grad():
        logits = network(load_image(pictures / "sub" / "strip.bmp")[None])[0]
    np.testing.assert_allclose([float(row[f"p_{name}"]) for name in CLASSES], (logits / 3).softmax(0), atol=1e-5)
    assert (logits / 3).softmax(0)[0] != pytest.approx(float(logits.softmax(0)[0]), abs=1e-3)


def test_a_list_with_missing_repeated_and_outside_files(pictures, tmp_path, monkeypatch):
    weights, _ = _weights(tmp_path)
    written: list[str] = []

    def save(path: Path, picture: Image.Image) -> None:
        written.append(path.name)
        save_picture(path, picture)

    monkeypatch.setattr("gated_attention.inference.save_picture", save)
    (tmp_path / "list.txt").write_text(f"a.png\nmissing.png\na.png\n../{pictures.name}/deep.png\n{pictures}/tiny.tif\n")
    rows = _run(pictures, weights, tmp_path / "out", datalist=str(tmp_path / "list.txt"), overlays=True)
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False]
    assert "missing.png" in rows[1]["error"] and rows[0] == rows[2]
    assert len(_rows(tmp_path / "out" / "instances.csv")) == 4 * 3
    assert len(list((tmp_path / "out" / "attention").rglob("*.png"))) == len(written) == 3
    assert len(list(tmp_path.rglob("*.png"))) == 3 + len(list((tmp_path / "out" / "figures").iterdir()))


def test_nothing_readable_is_an_error_after_the_tables(tmp_path):
    weights, _ = _weights(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    assert "none of the 1 files" in _cause(_run, tmp_path / "in", weights, tmp_path / "out")
    assert "a.png" in (tmp_path / "out" / "predictions.csv").read_text()
    assert _rows(tmp_path / "out" / "instances.csv") == []


def test_mistakes_are_named(pictures, tmp_path):
    weights, _ = _weights(tmp_path)
    (tmp_path / "in").mkdir()
    values = {"ckpt_path": str(weights), "output_dir": str(tmp_path / "out"), "num_workers": 0}
    workflow = create_workflow(config_file=str(CONFIG), workflow_type="infer", logging_file=False, **values)
    assert "no images: give --dataset_dir FOLDER" in _cause(workflow.run)
    assert "no image in it" in _cause(_run, tmp_path / "in", weights, tmp_path / "out")
    run = (_run, pictures, weights, tmp_path / "out")
    assert "no such file" in _cause(*run, datalist=str(tmp_path / "no.txt"))
    assert "did you mean 'overlays'" in _cause(*run, overlay=True)
    info = json.loads((tmp_path / "model.json").read_text())
    for change, message in (
        ({"bundle": "lsanet"}, "weights of the bundle 'lsanet'"),
        ({"method": "unknown"}, "method='unknown': expected one of fusion"),
        ({"classes": ["a", "b"]}, "does not hold the weights of this network"),
        ({"num_instances": 4}, "does not hold the weights of this network"),
    ):
        (tmp_path / "model.json").write_text(json.dumps(info | change))
        assert message in _cause(*run)
    del info["window_box"]
    (tmp_path / "model.json").write_text(json.dumps(info))
    assert "window_box missing" in _cause(*run)
    (tmp_path / "model.json").unlink()
    assert "model.json: no such file" in _cause(*run)


def test_outputs_that_are_not_finite_are_refused(pictures, tmp_path):
    weights, _ = _weights(tmp_path, spoil=True)
    assert "are not finite" in _cause(_run, pictures / "sub", weights, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.parametrize("name", ["a.png", "alpha.png"])
def test_a_server_predicts_one_image(pictures, tmp_path, name):
    """As MONAI Label's stock app does: parts of one config by name, one image made a batch, no workflow."""
    weights, network = _weights(tmp_path)
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    root = str(CONFIG.parents[1])
    parser.config.update({"bundle_root": root, "ckpt_path": str(weights), "use_click": False, "device": "cpu"})
    served = parser.get_parsed_content("network_def")
    served.load_state_dict(torch.load(weights, weights_only=True))
    pre, inferer, post = (parser.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
    assert isinstance(post.transforms[-1], DeleteItemsd)
    data: Any = {"image": str(pictures / name), "image_path": str(pictures / name), "device": "cpu"}
    for transform in pre.transforms:
        data = transform(data)
    assert data["image"].dtype == torch.uint8 and data["image"].ndim == 3
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], served.eval())[0]
        expected = network(load_image(pictures / name)[None]).softmax(dim=1)[0]
    for transform in post.transforms:
        data = transform(data)
    assert "image" not in data and isinstance(data["pred"], MetaTensor)
    np.testing.assert_allclose(data["pred"].array, expected, atol=1e-6)


class _LargestFloat(TorchDispatchMode):
    """Remembers the number of elements of the largest float tensor that an operation gave."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.largest = max(self.largest, result.numel())
        return result


def test_a_large_image_is_never_whole_in_float(tmp_path):
    _, network = _weights(tmp_path, instance_size=64, max_box=0.3, window_box=0.3)
    Image.new("RGB", (2048, 1536), (200, 90, 10)).save(tmp_path / "large.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    data = [{"image": str(tmp_path / f), "file": f} for f in ("large.png", "bad.png")]
    pictures = PictureBatches(data=data, transform=lambda x: {"image": load_image(x["image"])}, image_size=32)
    batch = collate_as_lists(pictures.__getitems__([0, 1]))
    assert [image.dtype for image in batch["image"]] == [torch.uint8, torch.uint8]
    inferer = InstanceInferer()
    with torch.no_grad(), _LargestFloat() as seen:
        logits = inferer(batch["image"], network)
    assert logits.shape == (2, 3) and 0 < seen.largest <= 2048 * 1536


def test_half_precision_is_used_and_close(pictures, tmp_path):
    _, network = _weights(tmp_path)
    images = [load_image(pictures / "a.jpg"), load_image(pictures / "alpha.png")]
    with torch.no_grad():
        exact, coarse = (InstanceInferer(amp=amp)(images, network) for amp in (False, True))
    assert exact.dtype == coarse.dtype == torch.float32 and not torch.equal(exact, coarse)
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0.1)


def test_batches_are_limited_in_images_and_pixels(tmp_path):
    sizes = [(10, 10), (10, 10), (10, 10), (40, 10), (30, 20), (10, 50), (10, 10), (90, 90), (10, 10)]
    data = []
    for number, size in enumerate(sizes):
        data.append({"image": str(tmp_path / f"{number}.png"), "file": f"{number}.png"})
        Image.new("L", size).save(data[-1]["image"])
    assert limited_batches(data, 2, 1000) == [[0, 1], [2, 3], [4], [5, 6], [7], [8]]
    assert limited_batches(data, 16, 1000) == [[0, 1, 2, 3], [4], [5, 6], [7], [8]]
    assert len(limited_batches(data, 16)) == 1 and limited_batches([], 16) == []
    (tmp_path / "1.png").write_bytes(b"?")  # of unknown size: alone
    assert limited_batches(data[:4], 16, 1000) == [[0], [1], [2, 3]]


def test_metadata_names_the_classes_of_the_data(real_data):
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    output = metadata["network_data_format"]["outputs"]["pred"]
    lines = _rows(real_data / "microscopy" / "aspergillus_512x384" / "images.csv")
    assert output["channel_def"] == {line["label"]: line["class"] for line in lines}
    assert output["num_channels"] == len(output["channel_def"]) == 7


def test_real_images_of_two_sizes(real_data, tmp_path):
    weights, network = _weights(tmp_path)
    microscopy = real_data / "microscopy"
    fungi = sorted((microscopy / "aspergillus_512x384" / "A_niger_AI1").glob("*.jpg"))[:2]
    cells = sorted((microscopy / "bccd" / "JPEGImages").glob("*.jpg"))[:2]
    files = [p.relative_to(microscopy).as_posix() for p in (fungi[0], cells[0], fungi[1], cells[1])]
    (tmp_path / "list.txt").write_text("\n".join(files))
    rows = _run(microscopy, weights, tmp_path / "out", datalist=str(tmp_path / "list.txt"))
    assert [row["file"] for row in rows] == files and not any(row["error"] for row in rows)
    _check(rows, tmp_path / "out", microscopy, network)
    for row in _rows(tmp_path / "out" / "instances.csv"):
        height, width = read_image(microscopy / row["file"]).shape[:2]
        x0, y0, x1, y1 = (float(row[name]) for name in BOX)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and x1 - x0 == pytest.approx(y1 - y0, abs=0.02)
