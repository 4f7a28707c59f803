"""The settings of the lsanet bundle: what each may be, and which have an effect with which method."""

from typing import Any

from label_efficient.data.label_files import read_changes_of_consumers
from label_efficient.networks.backbones import BACKBONES, check_image_size
from label_efficient.networks.block_attention import ATTENTIONS
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

from .layer_attention import LSA_VARIANTS
from .network import METHODS, METHODS_WITH_LSA, METHODS_WITH_SYNERGY
from .transforms import AUGMENTATIONS

LR_SCHEDULES = ("constant", "cosine")


def _weights(value: Any) -> bool:
    return value in ("none", "balanced") or (isinstance(value, (list, tuple)) and len(value) > 0)


_COMMON = {
    "dataset_dir": OPTIONAL_TEXT,
    "datalist": OPTIONAL_TEXT,
    "output_dir": TEXT,
    "image_size": whole(1),
    "batch_size": whole(1),
    "num_workers": whole(0),
    "amp": AMP,
    "keep_aspect": FLAG,
    "keep_nodes": FLAG,
    "mean": THREE_NUMBERS,
    "std": (lambda v: is_three_numbers(v) and min(v) > 0, "three numbers above 0"),
    "device": DEVICE,
    "backbone": one_of(*BACKBONES),
    "attention": one_of(*ATTENTIONS),
    "method": one_of(*METHODS),
    "lsa": one_of(*LSA_VARIANTS),
    "lsa_temperature": number(0, above=True),
    "embed_channels": whole(1),
}
_TRAINING = {
    "dataset": TEXT,
    "label_fraction": number(0, 1, above=True, optional=True),
    "labels_per_class": whole(1, optional=True),
    "class_weights": (_weights, "none, balanced or a list of one number per class"),
    "augment": one_of(*AUGMENTATIONS),
    "cache": FLAG,
    "max_epochs": whole(1),
    "batch_size": whole(2),
    "learning_rate": number(0, above=True),
    "lr_schedule": one_of(*LR_SCHEDULES),
    "weight_decay": number(0),
    "seed": whole(0),
    "val_interval": whole(1),
    "early_stop_patience": whole(0),
    "pretrained": FLAG,
    "ckpt_path": OPTIONAL_TEXT,
    "resume": FLAG,
    "alpha": number(0),
    "synergy_weight": number(0),
    "synergy_stop_gradient": FLAG,
    "calibrate": FLAG,
    "target_specificity": (
        lambda v: number(0, 1, above=True)[0](v) and v < 1,
        "a number between 0 and 1, both excluded",
    ),
}
_INFERENCE = {"contact_sheet": whole(0), "saliency": FLAG, "ckpt_path": TEXT}

# Settings that only some methods read: given with another method they would be accepted and ignored.
_ONLY_WITH = {
    "lsa": METHODS_WITH_LSA,
    "lsa_temperature": METHODS_WITH_LSA,
    "embed_channels": METHODS_WITH_LSA,
    "synergy_weight": METHODS_WITH_SYNERGY,
    "synergy_stop_gradient": METHODS_WITH_SYNERGY,
    "alpha": ("dsn", "dks", "dsn_ks"),
}


def training_settings(bundle_root: str) -> Settings:
    """Read and check the settings of `train.json` and its overlays.

    Raises:
        SettingsError: Naming the settings at fault.
    """
    settings = read_settings(bundle_root, "train.json")
    check_values(settings, _COMMON | _TRAINING)
    problems = [
        f"{name}={value!r} has no effect with method={settings['method']!r}: it is for {', '.join(_ONLY_WITH[name])}"
        for name, value in settings.changed.items()
        if name in _ONLY_WITH and settings["method"] not in _ONLY_WITH[name]
    ]
    if settings["label_fraction"] is not None and settings["labels_per_class"] is not None:
        problems.append("label_fraction and labels_per_class are two ways to say the same: give one")
    if settings["pretrained"] and settings["ckpt_path"] is not None:
        problems.append("pretrained and ckpt_path are two kinds of first weights: give one")
    if settings["dataset"] == "demo" and settings["dataset_dir"] is not None:
        problems.append("dataset_dir has no effect with dataset='demo': give dataset too")
    if settings["keep_nodes"] and len(settings["output_nodes"]) < 2:
        problems.append("keep_nodes=True needs an output node beside C4: choose another method than baseline")
    if settings["val_interval"] > settings["max_epochs"]:
        problems.append(
            f"val_interval={settings['val_interval']} is more than max_epochs={settings['max_epochs']}: no "
            "epoch would be validated, and none chosen"
        )
    try:
        check_image_size(settings["backbone"], settings["image_size"])
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise SettingsError("; ".join(problems))
    read_changes_of_consumers(settings)
    return settings


def inference_settings(bundle_root: str) -> Settings:
    """Read and check the settings of `inference.json`.

    Raises:
        SettingsError: Naming the settings at fault.
    """
    settings = read_settings(bundle_root, "inference.json")
    rules = {k: v for k, v in (_COMMON | _INFERENCE).items() if k in settings}
    check_values(settings, rules)
    return settings
