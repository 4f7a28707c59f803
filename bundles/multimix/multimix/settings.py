"""The settings of the multimix bundle: what each may be, and which have an effect with which method."""

from pathlib import Path

from label_efficient.data.label_files import handed_over, read_changes_of_consumers, use_settings
from label_efficient.engine.schedules import LR_SCHEDULES
from label_efficient.files import read_json
from label_efficient.rules import AMP, DEVICE, FLAG, OPTIONAL_TEXT, TEXT, check_values, number, one_of, whole
from label_efficient.settings import Settings, SettingsError, read_settings

from .augment import AUGMENTATIONS
from .network import METHODS, check_image_size

_COMMON = {
    "dataset_dir": OPTIONAL_TEXT,
    "datalist": OPTIONAL_TEXT,
    "output_dir": TEXT,
    "image_size": whole(1),
    "batch_size": whole(1),
    "num_workers": whole(0),
    "amp": AMP,
    "keep_aspect": FLAG,
    "device": DEVICE,
    "method": one_of(*METHODS),
}
_TRAINING = {
    "dataset": TEXT,
    "class_labels": whole(1, optional=True),
    "mask_labels": whole(1, optional=True),
    "reuse_labelled": FLAG,
    "dropout": (lambda v: number(0)[0](v) and v < 1, "a number of at least 0 and below 1"),
    "confidence_threshold": number(0, 1),
    "lambda_": number(0),
    "alpha": number(0),
    "beta": number(0),
    "kl_detach_labelled": FLAG,
    "class_weights": (
        lambda v: v in ("none", "balanced") or (isinstance(v, (list, tuple)) and len(v) > 0),
        "none, balanced or a list of one number per class",
    ),
    "mask_augment": one_of(*AUGMENTATIONS),
    "class_augment": one_of(*AUGMENTATIONS),
    "average_decay": (lambda v: number(0)[0](v) and v < 1, "a number of at least 0 and below 1"),
    "steps_per_epoch": whole(1, optional=True),
    "max_epochs": whole(1),
    "learning_rate": number(0, above=True),
    "lr_schedule": one_of(*LR_SCHEDULES),
    "lr_step": whole(1),
    "lr_factor": number(0, 1, above=True),
    "weight_decay": number(0),
    "seed": whole(0),
    "val_interval": whole(1),
    "early_stop_patience": whole(0),
    "pretrained": FLAG,
    "ckpt_path": OPTIONAL_TEXT,
    "resume": FLAG,
    "calibrate": FLAG,
    "write_masks": FLAG,
}
_INFERENCE = {"saliency": FLAG, "overlays": FLAG, "ckpt_path": TEXT, "contact_sheet": whole(0)}


def _methods_with(part: str) -> tuple[str, ...]:
    return tuple(name for name, method in METHODS.items() if getattr(method, part))


# Settings that only some methods read: given with another method they would be accepted and ignored.
_ONLY_WITH = {
    "class_labels": _methods_with("classifies"),
    "mask_labels": _methods_with("segments"),
    "reuse_labelled": _methods_with("pseudo_labels"),
    "confidence_threshold": _methods_with("pseudo_labels"),
    "lambda_": _methods_with("pseudo_labels"),
    "beta": _methods_with("mask_consistency"),
    "kl_detach_labelled": _methods_with("mask_consistency"),
    "alpha": _methods_with("segments"),
    "mask_augment": _methods_with("segments"),
    "class_augment": _methods_with("classifies"),
    "class_weights": _methods_with("classifies"),
    "calibrate": _methods_with("classifies"),
    "write_masks": _methods_with("segments"),
}
_ONLY_WITH_SCHEDULE = {"lr_step": "step", "lr_factor": "step"}


def training_settings(bundle_root: str) -> Settings:
    """Read and check the settings of `train.json` and its overlays.

    Raises:
        SettingsError: Naming the settings at fault.
    """
    _adapt_to_masks_alone(bundle_root)
    settings = read_settings(bundle_root, "train.json")
    check_values(settings, _COMMON | _TRAINING)
    method, schedule = settings["method"], settings["lr_schedule"]
    problems = [
        f"{name}={value!r} has no effect with method={method!r}: it is for {', '.join(_ONLY_WITH[name])}"
        for name, value in settings.changed.items()
        if name in _ONLY_WITH and method not in _ONLY_WITH[name]
    ]
    problems += [
        f"{name}={value!r} has no effect with lr_schedule={schedule!r}: it is for {_ONLY_WITH_SCHEDULE[name]!r}"
        for name, value in settings.changed.items()
        if name in _ONLY_WITH_SCHEDULE and schedule != _ONLY_WITH_SCHEDULE[name]
    ]
    if settings["pretrained"] and settings["ckpt_path"] is not None:
        problems.append("pretrained and ckpt_path are two kinds of first weights: give one")
    if settings["dataset"] == "demo" and settings["dataset_dir"] is not None:
        problems.append("dataset_dir has no effect with dataset='demo': give dataset too")
    if settings["val_interval"] > settings["max_epochs"]:
        problems.append(
            f"val_interval={settings['val_interval']} is more than max_epochs={settings['max_epochs']}: no "
            "epoch would be validated, and none chosen"
        )
    try:
        check_image_size(settings["image_size"])
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise SettingsError("; ".join(problems))
    read_changes_of_consumers(settings)
    return settings


def _adapt_to_masks_alone(bundle_root: str) -> None:
    # MONAI Label hands over images with masks and knows no classes. The released network goes on learning masks, if
    # there is one; without one, only the U-Net can learn from masks alone.
    if handed_over() is None:
        return
    released = Path(bundle_root) / "models" / "model.json"
    info = read_json(released, "the description of the released weights") if released.is_file() else {}
    given = {name: info[name] for name in ("method", "image_size", "keep_aspect") if name in info} | {
        "pretrained": True
    }
    if not METHODS.get(info.get("method", ""), METHODS["enc"]).segments:
        given = {"method": "unet"}
    use_settings(given)


def inference_settings(bundle_root: str) -> Settings:
    """Read and check the settings of `inference.json`.

    Raises:
        SettingsError: Naming the settings at fault.
    """
    settings = read_settings(bundle_root, "inference.json")
    check_values(settings, {k: v for k, v in (_COMMON | _INFERENCE).items() if k in settings})
    return settings
