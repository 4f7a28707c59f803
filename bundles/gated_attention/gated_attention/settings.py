"""The settings of the gated attention bundle: what each may be, and which have an effect with which others."""

from collections.abc import Mapping
from typing import Any

from label_efficient.networks.backbones import BACKBONES, check_image_size
from label_efficient.setting_fields import (
    DATA,
    RUN,
    TRAINING,
    Above,
    OtherThan,
    setting,
)
from label_efficient.setting_models import (
    AverageDecay,
    ClassifierTraining,
    InferenceSettings,
    LrFactor,
    LrSchedule,
    LrStep,
)

from .attention import ATTENTIONS
from .losses import lambda_at
from .network import METHODS, NO_ATTENTION, ONE_POSITION, POOLINGS
from .transforms import AUGMENTATIONS

OF_THE_FUSION = (
    "attended_classifier instance_backbone num_instances instance_size min_box max_box window_box pooling".split()
)
OF_THE_NETWORK = ["method", "attention", "global_backbone", *OF_THE_FUSION, "threshold", "image_size", "mean", "std"]
# Settings that only the fusion reads: given with the global branch alone they would be accepted and ignored. What
# makes the mask of the attention is read with both.
_FUSION = ("method", ["fusion"])


class Training(ClassifierTraining):
    """Settings of `train.json` and its overlays."""

    reference_boxes: str | None = setting(
        "folder of Pascal-VOC XML files, or a CSV, with boxes in the test images", DATA, min_length=1
    )
    method: str = setting("`global`: the global branch alone", options=METHODS)
    attention: str = setting("what chooses the instances; `none`: the features of a plain backbone", options=ATTENTIONS)
    attended_classifier: bool = setting(
        "whether the fusion sees attended features; false: those of the backbone, so that networks differ in "
        "where they look alone (Table 2 of the paper)", only_with=[_FUSION, ("attention", OtherThan("none"))],
    )  # fmt: skip
    global_backbone: str = setting("the network that sees the small copy", options=BACKBONES)
    instance_backbone: str = setting("the network that sees the instances", options=BACKBONES, only_with=_FUSION)
    num_instances: int = setting("K", ge=1, only_with=_FUSION)
    instance_size: int = setting("pixels a side of a crop", ge=1, only_with=_FUSION)
    threshold: float = setting("of the attention, stretched to 0..1", ge=0, lt=1)
    min_box: float = setting(
        "least side of a box, as a share of the image's shorter side", gt=0, le=1, only_with=_FUSION
    )
    max_box: float | None = setting(
        "largest side of a box, in the same unit; null: no limit", gt=0, le=1, only_with=_FUSION
    )
    window_box: float = setting(
        "side of the windows that stand in for missing components", gt=0, le=1, only_with=_FUSION
    )
    pooling: str = setting(
        "`attention`: mean of the instances' features, weighted by attention", options=POOLINGS,
        only_with=[_FUSION, ("num_instances", Above(1))],
    )  # fmt: skip
    lambda_start: float = setting(
        "lambda of the first epochs; below 1 from `ckpt_path`, whose fusion would fall behind",
        default="1.0; from `ckpt_path` 0.5", ge=0, le=1, only_with=_FUSION,
    )  # fmt: skip
    lambda_step: float = setting("what it falls by", ge=0, only_with=[_FUSION, ("lambda_start", Above(0))])
    lambda_every: int = setting("after so many epochs", ge=1, only_with=[_FUSION, ("lambda_step", Above(0))])
    lambda_floor: float = setting(
        "below which it does not fall", ge=0, le=1, only_with=[_FUSION, ("lambda_step", Above(0))]
    )
    image_size: int = setting("pixels a side of the small copy", DATA, ge=1)
    augment: str = setting(
        "`dihedral`: eight turns and mirrorings; `strong`: also random cuts, contrast, brightness, colour", TRAINING,
        options=AUGMENTATIONS,
    )  # fmt: skip
    learning_rate: float = setting(
        "of SGD; gentler from `ckpt_path`", TRAINING, default="0.05; demo 0.005; from `ckpt_path` 0.002", gt=0
    )
    lr_schedule: LrSchedule
    lr_step: LrStep
    lr_factor: LrFactor
    momentum: float = setting("of SGD", TRAINING, ge=0, lt=1)
    weight_decay: float = setting("of SGD", TRAINING, ge=0)
    average_decay: AverageDecay
    label_smoothing: float = setting("share of the target spread over all classes", TRAINING, ge=0, lt=1)
    num_workers: int = setting(
        "threads (`cache` true) or processes (false) that read files",
        RUN,
        default="cores, at most 8",
        ge=0,
        le=128,
    )
    cache: bool = setting("keep all images in memory, at their stored size", RUN)
    pretrained: bool = setting("first weights of both branches: ImageNet's", TRAINING)

    def broken_rules(self, changed: Mapping[str, Any]) -> list[str]:
        """As in `SettingsModel`."""
        problems = super().broken_rules(changed)
        if self.dataset == "demo" and self.reference_boxes is not None:
            problems.append("reference_boxes has no effect with dataset='demo': give dataset too")
        return problems + _problems_of_lambda(self) + _problems_of_sizes(self)

    def too_late(self) -> dict[str, str]:
        """As in `TrainingSettings`."""
        late = super().too_late()
        if self.method == "fusion" and self.lambda_every >= self.max_epochs:
            falls = f"lambda falls after epoch {self.lambda_every}"
            late |= dict.fromkeys(("lambda_step", "lambda_every", "lambda_floor"), falls)
        return late


class Inference(InferenceSettings):
    """Settings of `inference.json`."""

    overlays: bool = setting("attention, boxes and crops as pictures")


def _problems_of_lambda(settings: Training) -> list[str]:
    """Lambda that stays 1 whatever the run's length is a mistake; a default that is too long for a run is warned of."""
    if settings.method != "fusion":
        return []
    start, floor, every = settings.lambda_start, settings.lambda_floor, settings.lambda_every
    if floor > start:
        return [f"lambda_floor={floor} is above lambda_start={start}: give a floor of at most the start"]
    if lambda_at(every + 1, start=start, step=settings.lambda_step, every=every, floor=floor) == 1:
        why = f"lambda_floor={floor}" if floor == 1 else f"lambda_step={settings.lambda_step}"
        return [
            f"lambda stays 1 for ever ({why}): the fusion, which predicts, would never be trained; give a lambda_step "
            "above 0 and a lambda_floor below 1, or method='global' for the global branch alone"
        ]
    patience, interval = settings.early_stop_patience, settings.val_interval
    if start == 1 and patience and (patience + 1) * interval <= every:
        return [
            f"early_stop_patience={patience} may stop the run in epoch {(patience + 1) * interval}, and lambda is 1 up "
            f"to epoch {every}: the fusion, which predicts, would not be trained; give {every // interval} or more, or "
            "a smaller lambda_every"
        ]
    return []


def _problems_of_sizes(settings: Training) -> list[str]:
    problems = []
    largest = settings.max_box
    for name in ("min_box", "window_box"):
        if largest is not None and getattr(settings, name) > largest:
            problems.append(f"{name}={getattr(settings, name)} is more than max_box={largest}: give a smaller {name}")
    if settings.min_box > settings.window_box:
        problems.append(f"min_box={settings.min_box} is more than window_box={settings.window_box}")
    pairs = [("global_backbone", "image_size")]
    if settings.method == "fusion":
        pairs.append(("instance_backbone", "instance_size"))
        # Components and windows that are less than half a box apart show the same again.
        places = int(2 * (1 - settings.min_box) / settings.min_box + 1) ** 2
        if settings.num_instances > places:
            problems.append(
                f"num_instances={settings.num_instances}: a square image has {places} places for boxes of "
                f"min_box={settings.min_box}, half a box apart; give no more of them, or a smaller min_box"
            )
        if settings.image_size <= ONE_POSITION:
            problems.append(f"image_size={settings.image_size}: expected more than {ONE_POSITION}: {NO_ATTENTION}")
    for backbone, size in pairs:
        try:
            check_image_size(getattr(settings, backbone), getattr(settings, size))
        except ValueError as error:
            problems.append(str(error).replace("image_size", size))
    return problems
