"""The settings of the multimix bundle: what each may be, and which have an effect with which method."""

from collections.abc import Mapping
from typing import Any

from label_efficient.setting_fields import DATA, RUN, TRAINING, setting
from label_efficient.setting_models import (
    AverageDecay,
    ClassWeights,
    InferenceSettings,
    KeepAspect,
    LrFactor,
    LrSchedule,
    LrStep,
    TrainingSettings,
)

from .augment import AUGMENTATIONS
from .network import METHODS, check_image_size


def _methods_with(part: str) -> tuple[str, list[str]]:
    return "method", [name for name, method in METHODS.items() if getattr(method, part)]


_CLASSIFIES, _SEGMENTS = _methods_with("classifies"), _methods_with("segments")
_PSEUDO_LABELS, _CONSISTENCY = _methods_with("pseudo_labels"), _methods_with("mask_consistency")


class Training(TrainingSettings):
    """Settings of `train.json` and its overlays."""

    dataset: str = setting("`demo`, `datalist`, or the path of a list (`.json`, `.csv`)", DATA, min_length=1)
    class_labels: int | None = setting(
        "training images that keep their class; null: all", DATA, ge=1, only_with=_CLASSIFIES
    )
    mask_labels: int | None = setting(
        "training images that keep their mask; null: all", DATA, ge=1, only_with=_SEGMENTS
    )
    reuse_labelled: bool = setting("labelled images are in the unlabelled streams too", only_with=_PSEUDO_LABELS)
    method: str = setting("what is trained: one task alone, or both, with or without labels", options=METHODS)
    dropout: float = setting("after each block of the encoder", ge=0, lt=1)
    decoder_dropout: float = setting("after each block of the decoder", ge=0, lt=1, only_with=_SEGMENTS)
    confidence_threshold: float = setting(
        "t, from which on a pseudo-label counts", ge=0, le=1, only_with=_PSEUDO_LABELS
    )
    lambda_: float = setting("weight of the pseudo-labels", ge=0, only_with=_PSEUDO_LABELS)
    alpha: float = setting("weight of the Dice loss", ge=0, only_with=_SEGMENTS)
    beta: float = setting("weight of the KL", ge=0, only_with=_CONSISTENCY)
    kl_detach_labelled: bool = setting("whether the labelled side of the KL is a constant", only_with=_CONSISTENCY)
    class_weights: ClassWeights = setting(
        "of the cross-entropy of labelled images: `balanced` (inverse frequency), or a list of one weight per class",
        TRAINING, expected="none, balanced or a list of one number per class", only_with=_CLASSIFIES,
    )  # fmt: skip
    image_size: int = setting("pixels a side that the network sees; a multiple of 32", DATA, ge=1)
    keep_aspect: KeepAspect
    mask_augment: str = setting(
        "views of the images of both mask streams, masks moving along", TRAINING, options=AUGMENTATIONS,
        only_with=_SEGMENTS,
    )  # fmt: skip
    class_augment: str = setting(
        "views of the images with a class", TRAINING, options=AUGMENTATIONS, only_with=_CLASSIFIES
    )
    average_decay: AverageDecay
    steps_per_epoch: int | None = setting(
        "null: one pass over the unlabelled images for classification, or else over the longest stream", TRAINING, ge=1
    )
    batch_size: int = setting("images of each stream per step and process", TRAINING, ge=1)
    learning_rate: float = setting("of Adam", TRAINING, default="0.0001; demo 0.001, from first weights 0.0001", gt=0)
    lr_schedule: LrSchedule
    lr_step: LrStep
    lr_factor: LrFactor
    pretrained: bool = setting("first weights: the released ones", TRAINING)
    calibrate: bool = setting("fit a temperature of the classes on validation", RUN, only_with=_CLASSIFIES)
    write_masks: bool = setting("write the predicted masks of test and other hospitals", RUN, only_with=_SEGMENTS)

    def broken_rules(self, changed: Mapping[str, Any]) -> list[str]:
        """As in `SettingsModel`."""
        problems = super().broken_rules(changed)
        if self.method not in _CLASSIFIES[1]:
            of_classes = [n for n in ("target_specificity", "positive_class", "operating_threshold") if n in changed]
            problems += [f"{n}={changed[n]!r} has no effect with method={self.method!r}" for n in of_classes]
        for name, weight in (("confidence_threshold", "lambda_"), ("kl_detach_labelled", "beta")):
            if name in changed and getattr(self, weight) == 0:
                problems.append(f"{name}={changed[name]!r} has no effect with {weight}=0, the weight of its loss")
        try:
            check_image_size(self.image_size)
        except ValueError as error:
            problems.append(str(error))
        return problems

    @classmethod
    def for_released_weights(cls, info: Mapping[str, Any], ckpt_path: str) -> dict[str, Any]:
        """Their network goes on learning masks; without one that segments, only the U-Net learns from masks alone."""
        segments = METHODS.get(info.get("method", ""), METHODS["enc"]).segments
        return super().for_released_weights(info, ckpt_path) if segments else {"method": "unet"}


class Inference(InferenceSettings):
    """Settings of `inference.json`."""

    saliency: bool = setting("saliency maps over the images")
    overlays: bool = setting("outlines of the lungs on the images")
