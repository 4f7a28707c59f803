"""The settings of the gated attention bundle: what each may be, and which have an effect with which others."""

from pathlib import Path
from typing import Any

from label_efficient.data.label_files import handed_over, read_changes_of_consumers, use_settings
from label_efficient.engine.schedules import LR_SCHEDULES
from label_efficient.files import read_json
from label_efficient.monai_bridge import calling_parser
from label_efficient.networks.backbones import BACKBONES, check_image_size
from label_efficient.rules import (
    AMP,
    DEVICE,
    FLAG,
    OPTIONAL_TEXT,
    TEXT,
    THREE_NUMBERS,
    check_values,
    is_three_numbers,
    number,
    one_of,
    whole,
)
from label_efficient.settings import Settings, SettingsError, read_settings

from .attention import ATTENTIONS
from .losses import lambda_at
from .network import METHODS, NO_ATTENTION, ONE_POSITION, POOLINGS
from .transforms import AUGMENTATIONS


def _weights(value: Any) -> bool:
    return value in ("none", "balanced") or (isinstance(value, (list, tuple)) and len(value) > 0)


OF_THE_FUSION = "instance_backbone num_instances instance_size min_box max_box window_box pooling".split()
OF_THE_NETWORK = ["method", "attention", "global_backbone", *OF_THE_FUSION, "threshold", "image_size", "mean", "std"]
_BELOW_ONE = (lambda v: number(0)[0](v) and v < 1, "a number of at least 0 and below 1")
_COMMON = {
    "dataset_dir": OPTIONAL_TEXT,
    "datalist": OPTIONAL_TEXT,
    "output_dir": TEXT,
    "image_size": whole(1),
    "batch_size": whole(1),
    "num_workers": whole(0),
    "amp": AMP,
    "mean": THREE_NUMBERS,
    "std": (lambda v: is_three_numbers(v) and min(v) > 0, "three numbers above 0"),
    "device": DEVICE,
    "method": one_of(*METHODS),
    "attention": one_of(*ATTENTIONS),
    "global_backbone": one_of(*BACKBONES),
    "instance_backbone": one_of(*BACKBONES),
    "num_instances": whole(1),
    "instance_size": whole(1),
    "threshold": _BELOW_ONE,
    "min_box": number(0, 1, above=True),
    "max_box": number(0, 1, above=True, optional=True),
    "window_box": number(0, 1, above=True),
    "pooling": one_of(*POOLINGS),
}
_TRAINING = {
    "dataset": TEXT,
    "label_fraction": number(0, 1, above=True, optional=True),
    "labels_per_class": whole(1, optional=True),
    "reference_boxes": OPTIONAL_TEXT,
    "class_weights": (_weights, "none, balanced or a list of one number per class"),
    "label_smoothing": _BELOW_ONE,
    "lambda_start": number(0, 1),
    "lambda_step": number(0),
    "lambda_every": whole(1),
    "lambda_floor": number(0, 1),
    "augment": one_of(*AUGMENTATIONS),
    "average_decay": _BELOW_ONE,
    "max_epochs": whole(1),
    "batch_size": whole(2),
    "learning_rate": number(0, above=True),
    "lr_schedule": one_of(*LR_SCHEDULES),
    "lr_step": whole(1),
    "lr_factor": number(0, 1, above=True),
    "momentum": _BELOW_ONE,
    "weight_decay": number(0),
    "seed": whole(0),
    "cache": FLAG,
    "val_interval": whole(1),
    "early_stop_patience": whole(0),
    "pretrained": FLAG,
    "ckpt_path": OPTIONAL_TEXT,
    "resume": FLAG,
    "calibrate": FLAG,
    "target_specificity": (
        lambda v: number(0, 1, above=True)[0](v) and v < 1,
        "a number between 0 and 1, both excluded",
    ),
}
_INFERENCE = {"overlays": FLAG, "ckpt_path": TEXT, "contact_sheet": whole(0)}

# Settings that only the fusion reads: given with the global branch alone they would be accepted and ignored. What
# makes the mask of the attention is read with both.
_ONLY_WITH_FUSION = [*OF_THE_FUSION, "lambda_start", "lambda_step", "lambda_every", "lambda_floor"]
_ONLY_WITH_STEPS = ("lr_step", "lr_factor")


def training_settings(bundle_root: str) -> Settings:
    """Read and check the settings of `train.json` and its overlays.

    Raises:
        SettingsError: Naming the settings at fault.
    """
    _take_released_network(bundle_root)
    settings = read_settings(bundle_root, "train.json")
    check_values(settings, _COMMON | _TRAINING)
    problems: list[str] = []
    if settings["method"] == "global":
        problems += [
            f"{name}={value!r} has no effect with method='global': it is for 'fusion'"
            for name, value in settings.changed.items()
            if name in _ONLY_WITH_FUSION
        ]
    if settings["lr_schedule"] != "step":
        problems += [
            f"{name}={value!r} has no effect with lr_schedule={settings['lr_schedule']!r}: it is for 'step'"
            for name, value in settings.changed.items()
            if name in _ONLY_WITH_STEPS
        ]
    if settings["label_fraction"] is not None and settings["labels_per_class"] is not None:
        problems.append("label_fraction and labels_per_class are two ways to say the same: give one")
    if settings["pretrained"] and settings["ckpt_path"] is not None:
        problems.append("pretrained and ckpt_path are two kinds of first weights: give one")
    if settings["dataset"] == "demo":
        problems += [
            f"{name} has no effect with dataset='demo': give dataset too"
            for name in ("dataset_dir", "reference_boxes")
            if settings[name] is not None
        ]
    if settings["val_interval"] > settings["max_epochs"]:
        problems.append(
            f"val_interval={settings['val_interval']} is more than max_epochs={settings['max_epochs']}: no "
            "epoch would be validated, and none chosen"
        )
    problems += _problems_of_lambda(settings) + _problems_of_sizes(settings)
    if problems:
        raise SettingsError("; ".join(problems))
    read_changes_of_consumers(settings)
    return settings


def _take_released_network(bundle_root: str) -> None:
    # MONAI Label hands over images and puts the released weights into whatever network there is: another threshold or
    # other boxes would not be noticed, and other figures come out.
    released = Path(bundle_root) / "models" / "model.json"
    if handed_over() is None or not released.is_file():
        return
    info = read_json(released, "the description of the released weights")
    use_settings({name: info[name] for name in OF_THE_NETWORK if name in info})


def _problems_of_lambda(settings: Settings) -> list[str]:
    """Lambda that stays 1 whatever the run's length is a mistake; a run that is too short for it is warned of."""
    if settings["method"] != "fusion":
        return []
    start, floor, every = (settings[f"lambda_{name}"] for name in ("start", "floor", "every"))
    if floor > start:
        return [f"lambda_floor={floor} is above lambda_start={start}: give a floor of at most the start"]
    if lambda_at(every + 1, start=start, step=settings["lambda_step"], every=every, floor=floor) == 1:
        why = f"lambda_floor={floor}" if floor == 1 else f"lambda_step={settings['lambda_step']}"
        return [
            f"lambda stays 1 for ever ({why}): the fusion, which predicts, would never be trained; give a lambda_step "
            "above 0 and a lambda_floor below 1, or method='global' for the global branch alone"
        ]
    patience, interval = settings["early_stop_patience"], settings["val_interval"]
    if start == 1 and patience and (patience + 1) * interval <= every:
        return [
            f"early_stop_patience={patience} may stop the run in epoch {(patience + 1) * interval}, and lambda is 1 up "
            f"to epoch {every}: the fusion, which predicts, would not be trained; give {every // interval} or more, or "
            "a smaller lambda_every"
        ]
    return []


def _problems_of_sizes(settings: Settings) -> list[str]:
    problems = []
    largest = settings["max_box"]
    for name in ("min_box", "window_box"):
        if largest is not None and settings[name] > largest:
            problems.append(f"{name}={settings[name]} is more than max_box={largest}: give a smaller {name}")
    if settings["min_box"] > settings["window_box"]:
        problems.append(f"min_box={settings['min_box']} is more than window_box={settings['window_box']}")
    pairs = [("global_backbone", "image_size")]
    if settings["method"] == "fusion":
        pairs.append(("instance_backbone", "instance_size"))
        if settings["image_size"] <= ONE_POSITION:
            problems.append(f"image_size={settings['image_size']}: expected more than {ONE_POSITION}: {NO_ATTENTION}")
    for backbone, size in pairs:
        try:
            check_image_size(settings[backbone], settings[size])
        except ValueError as error:
            problems.append(str(error).replace("image_size", size))
    return problems


def inference_settings(bundle_root: str) -> Settings:
    """Read and check the settings of `inference.json`.

    Raises:
        SettingsError: Naming the settings at fault.
    """
    settings = read_settings(bundle_root, "inference.json")
    parser = calling_parser()
    given: Any = {} if parser is None else parser.config
    problems = [
        f"{name}={given[name]!r} has no effect in inference, whose network is that of ckpt_path and the .json beside it"
        for name in (_COMMON | _TRAINING)
        if name in given and name not in settings and name != "dataset"
    ]
    if not isinstance(given.get("dataset", {}), dict):
        problems.append(f"dataset={given['dataset']!r}: give the images to predict with dataset_dir or datalist")
    if problems:
        raise SettingsError("; ".join(problems))
    check_values(settings, {k: v for k, v in (_COMMON | _INFERENCE).items() if k in settings})
    return settings
