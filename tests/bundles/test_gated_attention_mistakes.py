"""What a user of the gated attention bundle gets wrong: an error or a warning that names it, or the right result."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from PIL import Image

from gated_attention.data import load_data
from gated_attention.instances import select_instances
from gated_attention.losses import GatedAttentionLoss
from gated_attention.network import GatedAttentionNet
from label_efficient.data.image_files import UnreadableError
from label_efficient.settings import SettingsError

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "gated_attention" / "configs"
TRAIN, EVALUATE, INFERENCE = (str(CONFIGS / f"{name}.json") for name in ("train", "evaluate", "inference"))
TINY: dict[str, Any] = {
    "instance_backbone": "resnet18", "image_size": 64, "instance_size": 32, "num_instances": 2, "max_epochs": 1,
    "lambda_start": 0.5, "batch_size": 2, "num_workers": 0, "device": "cpu",
}  # fmt: skip
SECTIONS = {"training": 4, "validation": 2, "test": 2}
Content = dict[str, Any]


def says(error: BaseException, *parts: str) -> None:
    """Check that a message has all of these words, in any case."""
    text = str(error).lower()
    assert [part for part in parts if part.lower() not in text] == [], text


def cause_of(error: BaseException) -> BaseException:
    """What MONAI wraps when an object or expression of a config fails."""
    while error.__cause__ is not None and str(error).startswith("Failed to "):
        error = error.__cause__
    return error


def parsed(key: str, config: Any = TRAIN, **settings: Any) -> Any:
    workflow = create_workflow(config_file=config, workflow_type="train", logging_file=False, **settings)
    return workflow.parser.get_parsed_content(key)


def refused(act: Callable[..., Any], *arguments: Any, **settings: Any) -> BaseException:
    with pytest.raises((RuntimeError, ValueError, OSError)) as caught:
        act(*arguments, **settings)
    return cause_of(caught.value)


# Settings


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"learning_rat": 0.1, "num_instance": 3, "windowbox": 1, "atention": "se"},
            ["unknown setting 'learning_rat'", "'learning_rate'?", "'num_instances'?", "'window_box'?", "'attention'?"],
        ),
        (
            {"threshold": 1, "num_instances": 0, "label_smoothing": 1, "batch_size": 1, "lambda_every": 2.5},
            [
                "threshold=1: expected a number of at least 0 and below 1", "num_instances=0: expected a whole number",
                "label_smoothing=1", "batch_size=1: expected a whole number of at least 2", "lambda_every=2.5",
            ],
        ),
        (
            {"attention": "gate", "global_backbone": "resnet19", "instance_backbone": "vgg", "pooling": "mean"},
            ["attention='gate'", "gated, spatial", "='resnet19'", "vgg16", "='vgg'", "concat, attention"],
        ),
        (
            {"method": "both", "augment": "heavy", "lr_schedule": "cosine", "class_weights": "sometimes"},
            ["method='both'", "fusion, global", "dihedral", "one_cycle", "none, balanced or a list"],
        ),
        (
            {"min_box": 0, "max_box": 1.5, "window_box": -1, "lambda_step": -1, "mean": [0.5], "std": [1, 1, 0]},
            ["min_box=0", "max_box=1.5", "window_box=-1", "lambda_step=-1", "three numbers", "three numbers above 0"],
        ),
        (
            {"amp": 2, "resume": "maybe", "calibrate": "yes", "learning_rate": float("nan"), "device": "gpu"},
            ["amp=2", "resume='maybe': expected true or false", "calibrate='yes'", "learning_rate=nan", "='gpu'"],
        ),
        ({"lambda_start": 0.2, "lambda_floor": 0.5}, ["lambda_floor=0.5 is above lambda_start=0.2"]),
        (
            {"lambda_start": 1.0, "lambda_step": 0},
            ["lambda stays 1", "lambda_step=0", "never be trained", "method='global'"],
        ),
        ({"lambda_start": 1.0, "lambda_floor": 1}, ["lambda stays 1", "lambda_floor=1", "never be trained"]),
        (
            {"early_stop_patience": 19, "lambda_start": 1.0, "lambda_every": 20, "max_epochs": 100},
            ["early_stop_patience=19 may stop the run in epoch 20", "lambda is 1 up to epoch 20", "20 or more"],
        ),
        ({"max_box": 0.3, "min_box": 0.4}, ["min_box=0.4 is more than max_box=0.3", "smaller min_box"]),
        ({"max_box": 0.3, "window_box": 0.4}, ["window_box=0.4 is more than max_box=0.3"]),
        (
            {"method": "global", "num_instances": 8, "max_box": 0.3, "lambda_every": 5},
            ["num_instances=8 has no effect with method='global'", "max_box=0.3 has no", "lambda_every=5 has no"],
        ),
        ({"lr_schedule": "constant", "lr_step": 3}, ["lr_step=3 has no effect with lr_schedule='constant'", "'step'"]),
        ({"instance_backbone": "densenet121", "instance_size": 28}, ["instance_size=28 is too", "instance_size>=29"]),
        ({"instance_backbone": "vgg16", "instance_size": 31}, ["instance_size=31 is too small", "instance_size>=32"]),
        ({"global_backbone": "densenet121", "image_size": 28}, ["image_size=28 is too small", "image_size>=29"]),
        ({"pretrained": True, "ckpt_path": "a.pt"}, ["pretrained and ckpt_path", "give one"]),
        ({"label_fraction": 0.5, "labels_per_class": 3}, ["label_fraction and labels_per_class", "give one"]),
        ({"reference_boxes": "boxes"}, ["reference_boxes has no effect with dataset='demo'", "give dataset"]),
        ({"val_interval": 5, "max_epochs": 4}, ["val_interval=5 is more than max_epochs=4"]),
        ({"dataset": "datalist"}, ["dataset='datalist' needs datalist", ".json", ".csv"]),
    ],
)  # fmt: skip
def test_settings(tmp_path, changes, parts):
    error = refused(parsed, "data", **{"output_dir": str(tmp_path / "out"), **changes})
    assert isinstance(error, SettingsError)
    says(error, *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_is_not_given_is_named_without_an_output_dir_too():
    says(refused(parsed, "data", dataset="datalist"), "dataset='datalist' needs datalist")


@pytest.mark.parametrize(
    "changes",
    [
        {"early_stop_patience": 20, "lambda_every": 20, "max_epochs": 100},
        {"early_stop_patience": 1, "lambda_start": 0.9, "lambda_every": 20, "max_epochs": 100},
        {"early_stop_patience": 1, "method": "global"},
        {"lambda_step": 0, "lambda_start": 0.5},
        {"max_box": 0.3, "min_box": 0.3, "window_box": 0.3},
        {"instance_backbone": "densenet121", "instance_size": 29},
    ],
)
def test_settings_that_are_right(changes):
    settings = parsed("settings", **changes)
    assert {name: settings[name] for name in changes} == changes


def test_words_of_the_command_line_are_read():
    words = {"resume": "false", "calibrate": "True", "pretrained": "TRUE", "max_box": "null", "ckpt_path": "None"}
    settings = parsed("settings", **words, reference_boxes="none", dataset=2024, _note="a key of one's own")
    assert settings["resume"] is False and settings["calibrate"] is True and settings["pretrained"] is True
    assert settings["max_box"] is settings["ckpt_path"] is settings["reference_boxes"] is None
    assert settings["mean"] == [0.485, 0.456, 0.406] and settings["dataset"] == "2024"
    assert parsed("settings", pretrained="false")["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"threshold": 0.3, "num_instances": 8},
            ["threshold=0.3 has no effect in inference", "num_instances=8 has no"],
        ),
        ({"dataset": "pictures"}, ["dataset='pictures'", "dataset_dir or datalist"]),
        ({"overlay": True, "batch_size": 0}, ["did you mean 'overlays'?"]),
        ({"batch_size": 0, "contact_sheet": -1, "amp": "often"}, ["batch_size=0", "contact_sheet=-1", "amp='often'"]),
    ],
)
def test_settings_of_inference(changes, parts):
    says(refused(parsed, "settings", INFERENCE, **changes), *parts)
    if "dataset" in changes:
        says(refused(parsed, "images_found", INFERENCE, **changes), *parts)


# Data


@pytest.fixture
def colonies(tmp_path) -> Content:
    """Eight images of two classes, all of another size, and the content of a list of them."""
    return write_colonies(tmp_path)


def write_colonies(folder: Path) -> Content:
    rng = np.random.default_rng(2)
    content: Content = {"labels": ["flavus", "niger"], **{name: [] for name in SECTIONS}}
    sections = [name for name, count in SECTIONS.items() for _ in range(count)]
    for i, name in enumerate(sections):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((10 + i, 12, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        content[name].append({"image": f"{i}.png", "label": ("flavus", "niger")[i % 2]})
    return content


def write_list(folder: Path, content: Content) -> str:
    (folder / "colonies.json").write_text(json.dumps(content))
    return str(folder / "colonies.json")


def each(content: Content, change: Callable[[Content], Any]) -> None:
    for name in SECTIONS:
        for item in content[name]:
            change(item)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: each(c, lambda i: i.update(label=[0, 1])), ["lists of labels", "one class per image", "lsanet"]),
        (lambda c: [c.update(labels=["flavus"]), each(c, lambda i: i.update(label=0))], ["only the class 'flavus'"]),
        (lambda c: c["validation"][1].update(label=0), ["class 'niger' has no image in val", "make_data_lists"]),
        (
            lambda c: [c[k][0].update(group="plate 7") for k in ("training", "test")],
            ["group 'plate 7' crosses train (training[0]) and test (test[0])"],
        ),
        (lambda c: c["test"].append(dict(c["training"][0])), ["0.png stands in train and test"]),
        (lambda c: c["test"][0].update(image="lost.png"), ["test[0]", "lost.png does not exist"]),
        (lambda c: c["test"][0].update(label="nigre"), ["test[0] (6.png) has label='nigre'", "flavus, niger"]),
        (lambda c: c["training"][0].update(label=2), ["label=2", "0 to 1"]),
        (lambda c: c.update(validation=[]), ["no entries for val", "make_data_lists"]),
    ],
)
def test_lists(tmp_path, colonies, change, parts):
    change(colonies)
    error = refused(load_data, write_list(tmp_path, colonies))
    says(error, "colonies.json", *parts)


def test_damaged_images_are_told_together_before_training(tmp_path, colonies):
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "7.png").write_text("no picture")
    for cache in (True, False):
        error = refused(load_data, write_list(tmp_path, colonies), cache=cache)
        assert isinstance(error, UnreadableError)
        says(error, "3 problems", "/0.png", "5.png: the file is empty", "7.png: cannot be read")


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"dataset": "dmeo"}, ["dataset='dmeo'", "did you mean 'demo'?"]),
        ({"dataset": "nowhere/a.json"}, ["nowhere/a.json", "no such list"]),
        ({"dataset": "demo", "datalist": "a.json"}, ["datalist='a.json'", "only read with dataset='datalist'"]),
        ({"dataset": "colonies.json", "dataset_dir": "nowhere"}, ["dataset_dir='nowhere'", "no such folder"]),
        ({"dataset": "."}, ["without images.csv", "make_data_lists"]),
        ({"dataset": "colonies.json", "labels_per_class": 9}, ["labels_per_class is 9", "flavus"]),
    ],
)
def test_dataset(tmp_path, colonies, monkeypatch, kwargs, parts):
    write_list(tmp_path, colonies)
    monkeypatch.chdir(tmp_path)
    says(refused(load_data, **kwargs), *parts)


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [0, 1], [-1, 1], [float("nan"), 1], ["a", "b"]])
def test_class_weights(tmp_path, colonies, weights):
    error = refused(load_data(write_list(tmp_path, colonies)).class_weights, weights)
    says(error, "class_weights=", "2 numbers above 0", "flavus, niger")


# Images that leave little to choose from


def network_of(**changes: Any) -> GatedAttentionNet:
    options: dict[str, Any] = {"global_backbone": "resnet18", "instance_backbone": "resnet18", "num_classes": 2}
    options |= {"image_size": 64, "instance_size": 96, "num_instances": 3}
    torch.manual_seed(0)
    return GatedAttentionNet(**{**options, **changes}).eval()


@torch.no_grad()
def test_images_smaller_than_a_crop_single_pixels_and_strips():
    instance_size = 96
    network, shapes = network_of(instance_size=instance_size), [(1, 1), (1, 700), (700, 1), (2, 900), (3, 2), (50, 40)]
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, *shape), dtype=np.uint8)) for shape in shapes]
    found = network(images)
    boxes = found["instance_boxes"]
    crops = network.crops(images, boxes)
    assert all(torch.isfinite(found[name]).all() for name in found) and torch.isfinite(crops).all()
    for index, (image, (height, width)) in enumerate(zip(images, shapes, strict=True)):
        alone = network([image])
        torch.testing.assert_close(alone["logits"][0], found["logits"][index], atol=1e-4, rtol=1e-3)
        for box, crop in zip(boxes[index].tolist(), crops[index], strict=True):
            x0, y0, x1, y1 = box
            assert x1 - x0 == pytest.approx(y1 - y0, abs=1e-3) and x1 > x0
            # Within the image where it fits, else around it; never beside it.
            for low, high, side in ((x0, x1, width), (y0, y1, height)):
                inside = low >= -1e-3 and high <= side + 1e-3
                assert inside or (low <= 1e-3 and high >= side - 1e-3), (box, height, width)
            # Samples are up to two pixels apart: of a thinner image a crop far larger than it may hold nothing.
            assert crop.abs().max() > 0 or (min(height, width) == 1 and y1 - y0 > instance_size)
    # A single pixel, enlarged, is that pixel.
    expected = (images[0].float() - network.mean[0]) / network.std[0]
    inner = network.crops(images[:1], torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))[0, 0]
    torch.testing.assert_close(inner, expected.expand(-1, instance_size, instance_size), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (1, 1), (1, 90)])
@pytest.mark.parametrize("case", ["equal", "zero", "none above the threshold", "single position"])
def test_without_a_component_the_whole_image_is_the_instance(case, height, width):
    attention, threshold = torch.ones(1, 2, 2) * 0.3, 0.5
    if case == "zero":
        attention = attention * 0
    if case == "none above the threshold":
        attention, threshold = torch.zeros(1, 5, 5), 0.999
        attention[0, 2, 2] = 1.0  # enlarged by a factor without a sample in its very middle
    if case == "single position":
        attention = torch.ones(1, 1, 1)
    boxes, scores = select_instances(attention, torch.tensor([[height, width]]), 3, 160, threshold, 0.1, 0.4, 0.3)
    side = max(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    expected = torch.tensor([left, top, left + side, top + side])
    torch.testing.assert_close(boxes, expected.expand(1, 3, 4))
    assert torch.equal(scores, torch.ones(1, 3))


def test_lambda_below_1_needs_a_fusion():
    loss = GatedAttentionLoss()
    loss.lambda_ = 0.5
    says(refused(loss, {"global_logits": torch.zeros(2, 2)}, torch.zeros(2, dtype=torch.long)), "lambda is 0.5")


# Reference boxes


def voc(file: str = "6.png", size: tuple[int, int] = (48, 64), box: tuple[int, ...] = (2, 2, 20, 20)) -> str:
    corners = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return (
        f"<annotation><filename>{file}</filename>{sides}<object><name>head</name><bndbox>{corners}</bndbox></object>"
        "</annotation>"
    )


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"boxes/6.xml": voc()}, []),
        ({"boxes/6.xml": voc(box=(2, 2, 60, 20))}, ["6.xml: box 1 (head)", "outside of the image of 48 x 64"]),
        ({"boxes/6.xml": voc("7.png")}, ["6.xml", "<filename> is 7.png", "expected 6.png"]),
        ({"boxes/6.xml": voc(size=(96, 128))}, ["<size> is 96 x 128", "6.png has 48 x 64"]),
        ({"boxes/6.xml": "<annotation>"}, ["6.xml: not readable as XML"]),
        ({"boxes/0.xml": voc("0.png")}, ["no box for any of the 2 images", "named like the images"]),
        ({"boxes/notes.txt": "none"}, ["boxes: no XML file"]),
        ({"boxes": "file,xmin,ymin,xmax,ymax\nlost.png,1,1,9,9\n"}, ["line 2", "'lost.png' is no image of the data"]),
        ({"boxes": "file,left,top\n6.png,1,1\n"}, ["its columns are file, left, top", "xmin, ymin, xmax, ymax"]),
        ({}, ["boxes", "no such folder"]),
    ],
)
def test_reference_boxes_are_checked_before_training(tmp_path, colonies, files, parts):
    place = tmp_path / "boxes"
    for name, content in files.items():
        place = tmp_path / "boxes.csv" if name == "boxes" else place
        path = place if name == "boxes" else tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    settings = {"dataset": write_list(tmp_path, colonies), "output_dir": str(tmp_path / "out"), **TINY}
    settings |= {"method": "fusion", "reference_boxes": str(place)}
    if not parts:
        assert parsed("evaluation", **settings).boxes["6.png"][0].x1 == 20
        return
    says(refused(parsed, "opening", **settings), *parts)
    assert not (tmp_path / "out").exists()


# First weights


def test_first_weights_that_do_not_fit_stop_before_training(tmp_path):
    from label_efficient.networks.backbones import build_backbone

    torch.save(build_backbone("resnet18", 2).state_dict(), tmp_path / "lsanet.pt")
    settings = {**TINY, "output_dir": str(tmp_path / "out"), "instance_backbone": "resnet34"}
    error = refused(parsed, "initialised", **settings, ckpt_path=str(tmp_path / "lsanet.pt"))
    says(error, "ckpt_path", "lsanet.pt", "of another bundle")
    torch.save(network_of().state_dict(), tmp_path / "model.pt")
    error = refused(parsed, "initialised", **settings, ckpt_path=str(tmp_path / "model.pt"))
    says(error, "ckpt_path", "model.pt does not fit", "both backbones")
    assert not (tmp_path / "out").exists()


def test_pretrained_without_a_network_names_the_file(tmp_path, monkeypatch):
    from label_efficient.networks import first_weights
    from label_efficient.networks.imagenet_weights import load_imagenet

    monkeypatch.setattr(
        first_weights, "load_imagenet", lambda backbone, _: load_imagenet(backbone, "http://127.0.0.1:9/")
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    error = refused(parsed, "initialised", **TINY, pretrained="true")
    says(error, "pretrained=true", "resnet18-f37072fd.pth", str(tmp_path), "pretrained=false")


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a list, colonies.json, and a run trained on it, out."""
    folder = tmp_path_factory.mktemp("trained")
    write_list(folder, write_colonies(folder))
    train(folder)
    return folder


def train(folder: Path, **settings: Any) -> None:
    values = {**TINY, "dataset": str(folder / "colonies.json"), "output_dir": str(folder / "out"), **settings}
    parsed("train::trainer", **values).run()


def evaluate(folder: Path, **settings: Any) -> None:
    values = {**TINY, "dataset": str(folder / "colonies.json"), "output_dir": str(folder / "again"), **settings}
    parsed("evaluation", [TRAIN, EVALUATE], **values).run()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_resuming_with_another_schedule(trained):
    before = snapshot(trained / "out")
    changes = {"lambda_every": 7, "num_instances": 3, "learning_rate": 0.01}
    error = refused(train, trained, resume=True, max_epochs=2, **changes)
    says(error, "checkpoint.pt cannot be resumed", "lambda_every was 20 and is 7", "num_instances was 2 and is 3")
    says(error, "learning_rate was 0.05 and is 0.01", "another output_dir")
    assert snapshot(trained / "out") == before


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"threshold": 0.3, "num_instances": 3}, ["threshold was 0.5 and is 0.3", "num_instances was 2 and is 3"]),
        ({"mean": [0.4, 0.5, 0.5], "max_box": 0.5}, ["mean was [0.5, 0.5, 0.5] and is [0.4", "max_box was None and"]),
        ({"method": "global"}, ["method was 'fusion' and is 'global'"]),
        ({"attention": "se", "pooling": "attention"}, ["attention was 'gated' and is 'se'", "pooling was 'concat'"]),
        ({"ckpt_path": "nowhere.pt"}, ["nowhere.json is missing", "train first"]),
    ],
)
def test_evaluating_what_does_not_fit(trained, settings, parts):
    values = {"ckpt_path": str(trained / "out" / "model.pt"), **settings}
    if settings.get("method") == "global":
        unused = ("instance_backbone", "instance_size", "num_instances", "lambda_start")
        values |= {name: json.loads(Path(TRAIN).read_text())[name] for name in unused}
    says(refused(evaluate, trained, **values), *parts)
    assert not (trained / "again").exists()


def test_evaluating_other_data_and_other_weights(trained, tmp_path):
    content = write_colonies(tmp_path)
    write_list(tmp_path, content | {"labels": ["niger", "flavus"]})
    model = trained / "out" / "model.pt"
    says(
        refused(evaluate, tmp_path, ckpt_path=str(model)), "classes was ['flavus', 'niger'] and is ['niger', 'flavus']"
    )
    info = json.loads(model.with_suffix(".json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(info))
    weights = torch.load(model, weights_only=True)
    bad = {
        "does not hold the weights of this network": {k: v for k, v in weights.items() if "fusion" not in k},
        "not finite": {k: v * float("nan") if v.is_floating_point() else v for k, v in weights.items()},
    }
    for message, changed in bad.items():
        torch.save(changed, tmp_path / "model.pt")
        says(refused(evaluate, trained, ckpt_path=str(tmp_path / "model.pt")), message, "model.pt")
    (tmp_path / "model.pt").write_bytes(model.read_bytes()[:9999])
    says(refused(evaluate, trained, ckpt_path=str(tmp_path / "model.pt")), "does not hold the weights")
    assert not (trained / "again").exists()


@pytest.mark.parametrize("act", [train, evaluate])
def test_a_folder_with_figures_of_somebody(trained, tmp_path, act):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "history.png").write_text("mine")
    settings = {"ckpt_path": str(trained / "out" / "model.pt")} if act is evaluate else {}
    error = refused(act, trained, output_dir=str(tmp_path), **settings)
    says(error, f"output_dir='{tmp_path}' holds figures", "empty or a new folder")
    assert [p.name for p in tmp_path.rglob("*")] == ["figures", "history.png"]


def test_a_diverged_run_fails_and_leaves_no_weights(tmp_path, colonies):
    write_list(tmp_path, colonies)
    error = refused(train, tmp_path, learning_rate=1e30)
    says(error, "training diverged", "nan", "epoch 1", "learning_rate")
    assert not (tmp_path / "out" / "model.pt").exists()


# The command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--threshhold", "0.3"], "ERROR: SettingsError: unknown setting 'threshhold': did you mean 'threshold'?"),
        (["--dataset", "nowhere.json"], "ERROR: FileNotFoundError: nowhere.json: no such list"),
    ],
)
def test_the_sentence_that_helps_stands_last(tmp_path, arguments, last):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", TRAIN, "--output_dir", "out", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert last in done.stderr.strip().splitlines()[-1], done.stderr[-2000:]
    assert not (tmp_path / "out").exists()
