"""What the tests of the bundles share: a description of each, tiny data, and the ways in which a bundle is used."""

import csv
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, create_workflow
from monai.data import MetaTensor
from monai.transforms import DeleteItemsd
from PIL import Image

from gated_attention.attention import ATTENTIONS
from multimix.demo_data import make_demo_images

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["dark", "middle", "light"]
FILMS = ["clear", "opacity"]
LEFT = """model.pt model.json model.images.npy checkpoint.pt checkpoint_before.pt history.csv metrics.json
predictions.csv config.json tensorboard figures report.html train.log .run""".split()
Content = dict[str, Any]


def grey_levels(folder: Path, *, same_size: bool = False, seed: int = 3) -> Path:
    """A list of colour pictures of three classes, levels of grey under noise, no two of one size unless asked for."""
    rng = np.random.default_rng(seed)
    content: Content = {"labels": CLASSES}
    number = 0
    for section, count in {"training": 12, "validation": 9, "test": 8}.items():
        (folder / section).mkdir(parents=True, exist_ok=True)
        content[section] = []
        for place in range(count):
            height, width = (48, 48) if same_size else (40 + number % 9, 56 - number % 7)
            blocks = rng.normal(90 + 35 * (place % 3), 45, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            name = f"{section}/{number}.png"
            Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(folder / name)
            content[section].append({"image": name, "label": place % 3})
            number += 1
    return write_list(folder, content, "cells.json")


def medmnist_file(
    folder: Path, *, classes: int = 3, per_class: int = 8, seed: int = 0, multi_label: bool = False
) -> Path:
    """A file of MedMNIST layout whose classes are levels of grey, hard enough not to be perfect."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {"classes": np.array([*CLASSES, "white"][:classes])}
    for split in ("train", "val", "test"):
        labels = np.repeat(np.arange(classes), per_class)
        rng.shuffle(labels)
        levels = 60 + 40 * labels
        if multi_label:
            labels = rng.integers(0, 2, (len(labels), classes))
            levels = 60 + 60 * labels[:, 0]
        images = rng.normal(0, 25, (len(labels), 28, 28, 3)) + levels[:, None, None, None]
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels if multi_label else labels[:, None]
    np.savez(folder / "cells.npz", **arrays)
    return folder / "cells.npz"


def films(folder: Path, *, label: bool = True, mask: bool = True, unlabelled: int = 6) -> Path:
    """A list of films that are not square, of two sources, with labels, masks or both."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"training": 8, "validation": 4, "test": 5, "cross_domain": 3, "unlabelled": unlabelled}
    images, labels, masks = make_demo_images(sum(counts.values()), size=48, seed=3)
    content: Content = {"labels": FILMS} if label else {}
    number = 0
    for section, count in counts.items():
        content[section] = []
        for place in range(count):
            name = f"{number}.png"
            cut = (slice(0, 48 - number % 3), slice(2, 44))
            Image.fromarray(images[number][cut]).save(folder / name)
            item: Content = {"image": name, "source": "north" if place % 3 else "south"}
            if section != "unlabelled" and mask:
                Image.fromarray(masks[number][cut] * np.uint8(255)).save(folder / f"mask{name}")
                item["mask"] = f"mask{name}"
            if section != "unlabelled" and label:
                item["label"] = int(labels[number])
            content[section].append(item)
            number += 1
    return write_list(folder, content, "chest.json")


def write_list(folder: Path, content: Content, name: str = "list.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


@dataclass(frozen=True)
class Case:
    """A bundle, and what a test of all bundles needs to know of it.

    Attributes:
        name: Of the bundle.
        data: Writes a tiny data set into a folder and returns what `dataset` is set to.
        tiny: Settings of a run of seconds.
        classes: Of the tiny data set.
        figures: Names of the figures of a calibrated run.
        columns: Of `predictions.csv` of a run; those of an inference are `predicted`.
        task: Where the figures of the classes stand in `metrics.json`.
        key: Column of `history.csv` by which the best epoch is chosen.
        loss: Recomputes the training loss from a row of `history.csv`.
        exported: Networks other than that of `tiny` that are exported too.
    """

    name: str
    data: Callable[..., Path]
    tiny: dict[str, Any]
    classes: list[str]
    figures: str
    columns: str
    predicted: str
    key: str
    loss: Callable[[dict[str, float]], float]
    exported: list[dict[str, Any]]
    task: str | None = None
    left: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """Its folder in this repository."""
        return ROOT / "bundles" / self.name

    def score(self, figures: dict[str, Any], name: str) -> float:
        """A figure of the classes, of one split of `metrics.json`."""
        return (figures[self.task] if self.task else figures)[name]


# The global branch alone has no instances: these settings would be refused as without effect.
ONLY_WITH_FUSION = (
    "instance_backbone instance_size num_instances window_box lambda_start lambda_step lambda_every".split()
)
LOSSES = {"class": 1, "pseudo_label": 0.25, "mask": 5, "kl": 0.01}
CASES = {
    "lsanet": Case(
        name="lsanet",
        data=medmnist_file,
        tiny={"image_size": 28, "max_epochs": 2, "batch_size": 8, "num_workers": 0},
        classes=CLASSES,
        figures="history beta confusion_matrix roc reliability",
        columns="file label pred p_dark p_middle p_light uncertainty error",
        predicted="file pred p_dark p_middle p_light uncertainty error",
        key="val_auc",
        loss=lambda row: row["train_branch_loss"] + row["train_synergy_loss"],
        exported=[],
    ),
    "multimix": Case(
        name="multimix",
        data=films,
        tiny={"image_size": 32, "steps_per_epoch": 2, "max_epochs": 2, "batch_size": 3, "num_workers": 1},
        classes=FILMS,
        figures="history pseudo_labels dice boundaries_test boundaries_cross_domain confusion_matrix roc reliability "
        "saliency",
        columns="file section source label pred p_clear p_opacity uncertainty error dice",
        predicted="file pred p_clear p_opacity uncertainty",
        key="val_score",
        loss=lambda row: sum(weight * row[f"train_{name}_loss"] for name, weight in LOSSES.items()),
        exported=[{"method": "umtl"}, {"method": "umtls"}],
        task="classification",
        left=["masks"],
    ),
    "gated_attention": Case(
        name="gated_attention",
        data=grey_levels,
        # At 64 pixels the attention has 2 x 2 positions: at 32 it would have one, and no instance but the whole image.
        # None of them but resnet18 is a default, of the demo neither: what is served and trained on is what was made.
        tiny={
            "image_size": 64, "instance_size": 32, "instance_backbone": "resnet18", "num_instances": 2,
            "window_box": 0.4, "lambda_step": 0.4, "lambda_every": 1, "max_epochs": 2, "batch_size": 4,
            "learning_rate": 0.01, "num_workers": 1, "device": "cpu",
        },
        classes=CLASSES,
        figures="history lambda confusion_matrix roc reliability attention",
        columns="file label pred p_dark p_middle p_light uncertainty error",
        predicted="file pred p_dark p_middle p_light uncertainty error",
        key="val_auc",
        loss=lambda row: row["train_lambda"] * row["train_global_loss"]
        + (1 - row["train_lambda"]) * row.get("train_fusion_loss", 0),
        exported=[
            *[{"attention": name} for name in ATTENTIONS if name != "gated"], {"method": "global"},
            {"pooling": "attention", "threshold": 0.1},
        ],
    ),
}  # fmt: skip


# The ways to use a bundle


def workflow(case: Case, *files: str, root: Path | None = None, **settings: Any) -> Any:
    """Configs of a bundle as a workflow, without a process of its own; "train" by default."""
    root = root or case.root
    paths = [str(root / "configs" / f"{name}.json") for name in files or ("train",)]
    kind = "infer" if "inference" in files else "train"
    return create_workflow(config_file=paths, workflow_type=kind, **{"logging_file": False, **settings})


def part(of: Any, name: str) -> Any:
    """An object of a workflow's config."""
    return of.parser.get_parsed_content(name)


def small(case: Case, dataset: Path | str, output_dir: Path | str, **settings: Any) -> dict[str, Any]:
    """The settings of a run of seconds."""
    left_out = ONLY_WITH_FUSION if settings.get("method") == "global" else []
    values = {name: value for name, value in case.tiny.items() if name not in left_out}
    return values | {"dataset": str(dataset), "output_dir": str(output_dir), **settings}


def train(case: Case, dataset: Path | str, output_dir: Path, **settings: Any) -> dict[str, Any]:
    """A whole run; returns its figures."""
    run = workflow(case, **small(case, dataset, output_dir, **settings))
    run.run()
    run.finalize()
    return metrics_of(output_dir)


def train_alone(case: Case, dataset: Path | str, output_dir: Path, stop_at: int = 0, **settings: Any) -> Any:
    """Training without the evaluation after it, broken off at a step if wanted; returns the trainer."""
    trainer = part(workflow(case, **small(case, dataset, output_dir, **settings)), "train::trainer")

    def stop(engine: Any) -> None:
        raise KeyboardInterrupt

    if stop_at:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), stop)
    trainer.run()
    return trainer


def evaluate(case: Case, dataset: Path | str, weights: Path, output_dir: Path, **settings: Any) -> dict[str, Any]:
    """Evaluation of the weights of a run; returns its figures."""
    values = small(case, dataset, output_dir, ckpt_path=str(weights), **settings)
    workflow(case, "train", "evaluate", **values).run()
    return metrics_of(output_dir)


def predict(case: Case, root: Path, images: Path | str, output_dir: Path, **settings: Any) -> list[dict[str, str]]:
    """Inference with the weights of a bundle's folder, or those of `ckpt_path`; returns the rows of the table."""
    values = {"dataset_dir": str(images), "output_dir": str(output_dir), "device": "cpu", "num_workers": 0, **settings}
    workflow(case, "inference", root=root, **values).run()
    return rows_of(output_dir / "predictions.csv")


def command(
    *arguments: Any, cwd: Path, launch: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m monai.bundle run ...` as a user types it."""
    line = [sys.executable, *launch.split(), "-m", "monai.bundle", "run", *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False)


def flags(settings: dict[str, Any]) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def installed(case: Case, trained: Path, root: Path) -> Path:
    """A copy of the bundle, elsewhere, with the weights of a run, and the metadata that belong to them."""
    ignored = shutil.ignore_patterns("runs", "models", "__pycache__", "docs")
    shutil.copytree(case.root, root, ignore=ignored)
    (root / "models").mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / name, root / "models" / name)
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    ports = metadata["network_data_format"]
    image, output = ports["inputs"]["image"], ports["outputs"]["pred"]
    size = json.loads((trained / "model.json").read_text())["image_size"]
    # A network that takes pixels as they are stored makes its small copy itself.
    image["spatial_shape"] = [72, 96] if image["value_range"] == [0, 255] else [size, size]
    names = case.classes
    if output["format"] == "segmentation":
        names = ["background", "lung", *names]
        output["spatial_shape"] = [size, size]
    output |= {"num_channels": len(names), "channel_def": {str(i): name for i, name in enumerate(names)}}
    path.write_text(json.dumps(metadata))
    return root


def served_config(root: Path, **values: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(root), "device": "cpu", **values})  # type: ignore[union-attr]
    return parser


def shipped_network(root: Path) -> torch.nn.Module:
    """The network of `inference.json` with the weights of the folder."""
    parser = served_config(root)
    parser.get_parsed_content("load_weights")
    return parser.get_parsed_content("network_def").eval()


def serve(root: Path, path: Path) -> dict[str, Any]:
    """As MONAI Label's stock app does: parts of one config by name, a plain device, one image."""
    parser = served_config(root, use_click=False)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True), strict=False)
    pre, inferer, post = (parser.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
    data = {"image": str(path), "image_path": str(path), "device": "cpu"}
    for transform in pre.transforms:
        data = transform(data)
    # `Restored` resizes where the metadata name another size, and takes the affine that the file had.
    assert isinstance(data["image"], MetaTensor) and "spatial_shape" not in data["image"].meta
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    # A classification is not restored to an image: MONAI Label leaves that out where the last transform is this.
    assert isinstance(post.transforms[-1], DeleteItemsd) or "multimix" in root.name
    for transform in post.transforms:
        data = transform(data)
    return data


# Looking at what a run left


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(folder: Path) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items() if v} for row in rows_of(folder / "history.csv")]


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def weights_of(folder: Path, name: str = "model.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.parent.name != ".run"
    }


def picture(path: Path) -> torch.Tensor:
    """The pixels of a colour picture, 3 x H x W, uint8."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def remove_weights(folder: Path) -> None:
    """Pytest keeps the folders of three sessions, and two ResNets with their momentum are 300 MB a run."""
    gc.collect()  # a config refers to itself, and so do its networks
    for pattern in ("*.pt", "*.ts", "*.onnx*"):
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)


# Mistakes


def cause_of(error: BaseException) -> BaseException:
    """What MONAI wraps when an object or expression of a config fails."""
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    return error


def refused(act: Callable[..., Any], *arguments: Any, **settings: Any) -> BaseException:
    """The error of something that must fail."""
    with pytest.raises((RuntimeError, ValueError, OSError)) as caught:
        act(*arguments, **settings)
    return cause_of(caught.value)


def says(error: BaseException, *parts: str) -> None:
    """Check that a message has all of these words, in any case."""
    text = str(error).lower()
    assert [part for part in parts if part.lower() not in text] == [], text


def asked(case: Any, name: str, *files: str, **settings: Any) -> Any:
    """An object of the configs under some settings."""
    return part(workflow(case, *files, **settings), name)
