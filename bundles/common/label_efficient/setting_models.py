"""What the settings of a run may be: one model of those that the bundles share, which each bundle extends."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator

from label_efficient.data.images import MOST_PIXELS
from label_efficient.engine.schedules import LR_SCHEDULES
from label_efficient.setting_fields import DATA, METHOD, RUN, TRAINING, OtherThan, expectation, facts, in_words, setting

ClassWeights = Literal["none", "balanced"] | Annotated[Sequence[float], Field(min_length=1)]
PositiveClass = Annotated[
    Any,
    setting(
        "two classes: the one that sensitivity, specificity, precision and threshold are of; null: that of the "
        "weights, or else the second", RUN, expected="the name or index of a class, or null",
    ),
]  # fmt: skip
OperatingThreshold = Annotated[
    float | None,
    setting(
        "two classes: probability of the positive class from which on `pred` is it; null: the one saved beside the "
        "weights, if there is one; 0.5: the more probable class", RUN, gt=0, lt=1,
        expected="a number between 0 and 1, both excluded, or null",
    ),
]  # fmt: skip


class SettingsModel(BaseModel):
    """Settings with their types and bounds. No value is coerced: neither "3" nor true is a number."""

    config_name: ClassVar[str]  # the file that they stand in
    model_config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    @field_validator("*")
    @classmethod
    def _is_an_option(cls, value: Any, info: Any) -> Any:
        options = facts(cls.model_fields[info.field_name])["options"]
        if options and value not in options:
            raise ValueError("none of the options")
        return value

    def broken_rules(self, changed: Mapping[str, Any]) -> list[str]:
        """Sentences on settings that do not go together; `changed` has those that differ from the defaults."""
        fields = {name: field for name, field in type(self).model_fields.items() if name in changed}
        return [
            f"{name}={changed[name]!r} has no effect with {other}={given!r}: it is for {in_words(values, repr)}"
            for name, field in fields.items()
            for other, values in facts(field)["only_with"]
            if (given := getattr(self, other)) not in values
        ]

    @classmethod
    def for_released_weights(cls, info: Mapping[str, Any], ckpt_path: str) -> dict[str, Any]:
        """Settings by name with which training goes on from the released weights, described by `info`.

        A program that hands over its own images, such as MONAI Label, leaves no room for settings, and puts the weights
        into whatever network there is.
        """
        own = {name: value for name, value in info.items() if name in cls.model_fields}
        return {n: v for n, v in own.items() if n not in ("dataset", "seed")} | {"ckpt_path": ckpt_path}


def problems_of(
    model: type[SettingsModel], values: Mapping[str, Any], changed: Mapping[str, Any], given_alone: bool = False
) -> list[str]:
    """All that is wrong with settings, a sentence each: first each alone; where these are fine, those together.

    With `given_alone` those that are missing are none of it.
    """
    try:
        return model.model_validate(dict(values)).broken_rules(changed)
    except ValidationError as error:
        names = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
    return [
        f"{name}={values.get(name)!r}: expected {expectation(model.model_fields[name])}"
        for name in names
        if name in values or not given_alone
    ]


class _AnyRun(SettingsModel):
    """What training and inference have in common."""

    dataset_dir: str | None = setting(
        "what the paths of a list are relative to (else the list's folder)", DATA, min_length=1
    )
    datalist: str | None = setting("the list, for `dataset` = `datalist`", DATA, min_length=1)
    max_pixels: int = setting(
        "a picture of more pixels is refused by its header, before it takes the memory", DATA, ge=1, le=MOST_PIXELS,
        expected=f"a whole number from 1 to {MOST_PIXELS}",
    )  # fmt: skip
    batch_size: int = setting("images per step and process", TRAINING, ge=1)
    device: Any = setting(
        "where the network runs", RUN, default="GPU if there is one",
        expected="cpu, or a device that this machine and its torch have, such as cuda or cuda:1",
    )  # fmt: skip
    amp: bool | Literal["auto"] = setting(
        "half precision: float16 on a GPU, bfloat16 on a CPU; `auto`: where the processor computes in it", RUN,
        expected="true, false or auto",
    )  # fmt: skip
    num_workers: int = setting("threads that read files", RUN, default="cores, at most 8", ge=0, le=128)
    output_dir: str = setting(
        "where everything is written; nothing there that no run wrote is replaced", RUN,
        default="`runs/<dataset>-<method>` in the bundle, with a number where a run is; the latest with `resume`",
        min_length=1,
    )  # fmt: skip
    overwrite: bool = setting(
        "replace an earlier run in `output_dir` once there is a model (inference: predictions) to take its place", RUN
    )

    debug: bool = setting("on the command line: show the traceback of an error, not its sentence alone", RUN)

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: Any) -> Any:
        if not isinstance(value, str | torch.device):
            raise ValueError("no device")
        try:
            torch.zeros(1, device=value).item()  # which has no value on `meta`
        except Exception as error:  # each kind of device has its own for not being there
            raise ValueError("not on this machine") from error
        return value


class TrainingSettings(_AnyRun):
    """Settings of `train.json` that all bundles have."""

    config_name = "train.json"
    dataset: str = setting(
        "`demo`, `datalist`, or the path of a list (`.json`, `.csv`) or of a folder with `images.csv`", DATA,
        min_length=1,
    )  # fmt: skip
    image_size: int = setting("pixels a side that the network sees", DATA, ge=1)
    copies: str = setting(
        "images with the same pixels in two sections or under two labels: `error`; `warn`, with all pairs in "
        "`copies.csv` and the report, as of nearly the same images always; or `ignore`", DATA,
        options=("error", "warn", "ignore"),
    )  # fmt: skip
    class_weights: ClassWeights = setting(
        "of the loss: `balanced` (inverse frequency), or a list of one weight per class; their mean over the "
        "images is 1", TRAINING,
        expected="none, balanced or a list of one number per class",
    )  # fmt: skip
    max_epochs: int = setting("passes over the training images", TRAINING, ge=1, le=100_000)
    learning_rate: float = setting(
        "of Adam; gentler from `ckpt_path`", TRAINING, default="0.001; from `ckpt_path` 0.0001", gt=0
    )
    weight_decay: float = setting("of Adam", TRAINING, ge=0)
    seed: int = setting("of weights, order, augmentation, label budgets", RUN, ge=0, le=2**31)
    val_interval: int = setting("validate every so many epochs", RUN, ge=1)
    early_stop_patience: int = setting("stop after so many validations without a better score; 0: never", RUN, ge=0)
    pretrained: bool = setting("first weights from ImageNet (downloaded, checksum verified)", TRAINING)
    ckpt_path: str | None = setting(
        "first weights from an earlier run, kept where no epoch is better; in `evaluate` the weights to evaluate",
        TRAINING,
        min_length=1,
    )
    resume: bool = setting("go on with the run in `output_dir`", RUN)
    calibrate: bool = setting("fit a temperature on validation", RUN)
    target_specificity: float = setting(
        "two classes: specificity for which the operating threshold is chosen on validation; `calibrate` saves it",
        RUN, gt=0, lt=1, expected="a number between 0 and 1, both excluded",
    )  # fmt: skip
    positive_class: PositiveClass
    operating_threshold: OperatingThreshold
    ckpt_dir: str = setting("where `model.pt` is written", RUN, default="`output_dir`", min_length=1)

    def broken_rules(self, changed: Mapping[str, Any]) -> list[str]:
        """As in `SettingsModel`."""
        problems = super().broken_rules(changed)
        if self.pretrained and self.ckpt_path is not None:
            problems.append("pretrained and ckpt_path are two kinds of first weights: give one")
        if self.resume and self.overwrite:
            problems.append("resume continues an earlier run and overwrite replaces it: give one")
        if self.dataset == "demo" and self.dataset_dir is not None:
            problems.append("dataset_dir has no effect with dataset='demo': give dataset too")
        if self.val_interval > self.max_epochs:
            problems.append(
                f"val_interval={self.val_interval} is more than max_epochs={self.max_epochs}: no epoch would be "
                "validated, and none chosen"
            )
        return problems

    def too_late(self) -> dict[str, str]:
        """Settings that act after the last epoch alone, and when: a longer run may yet continue this one."""
        stop, late = (self.early_stop_patience + 1) * self.val_interval, {}
        if self.early_stop_patience and stop >= self.max_epochs:
            late["early_stop_patience"] = f"a run may stop from epoch {stop} on"
        if getattr(self, "lr_schedule", "") == "step" and (step := getattr(self, "lr_step", 0)) >= self.max_epochs:
            late |= dict.fromkeys(("lr_step", "lr_factor"), f"the rate falls after epoch {step}")
        return late


class ClassifierTraining(TrainingSettings):
    """Settings of the bundles that only classify."""

    label_fraction: float | None = setting(
        "share of the training labels to keep, stratified, chosen by `seed`; smaller subsets are contained in larger "
        "ones", DATA, gt=0, le=1,
    )  # fmt: skip
    labels_per_class: int | None = setting("or their number per class", DATA, ge=1)
    batch_size: int = setting("images per step and process", TRAINING, ge=2)
    mean: Annotated[Sequence[float], Field(min_length=3, max_length=3)] = setting(
        "subtracted from the channels (range 0..1)", DATA, default="[0.5, 0.5, 0.5]; `pretrained` ImageNet's",
        expected="three numbers, as a list",
    )  # fmt: skip
    std: Annotated[Sequence[PositiveFloat], Field(min_length=3, max_length=3)] = setting(
        "divided by",
        DATA,
        default="[0.5, 0.5, 0.5]; `pretrained` ImageNet's",
        expected="three numbers above 0, as a list",
    )

    def broken_rules(self, changed: Mapping[str, Any]) -> list[str]:
        """As in `SettingsModel`."""
        problems = super().broken_rules(changed)
        if self.label_fraction is not None and self.labels_per_class is not None:
            problems.append("label_fraction and labels_per_class are two ways to say the same: give one")
        return problems


class InferenceSettings(_AnyRun):
    """Settings of `inference.json` that all bundles have."""

    config_name = "inference.json"
    dataset_dir: str | None = setting("the images to predict: a folder, or one file", DATA, min_length=1)
    datalist: str | None = setting("instead: a list of files", DATA, min_length=1)
    batch_size: int = setting("images per step", RUN, ge=1, le=4096)
    ckpt_path: str = setting(
        "the weights; what they are is read from the `.json` beside them", METHOD, default="`models/model.pt`",
        min_length=1,
    )  # fmt: skip
    output_dir: str = setting(
        "where everything is written; nothing there that no run wrote is replaced", RUN,
        default="`runs/inference` in the bundle, with a number where predictions are", min_length=1,
    )  # fmt: skip
    positive_class: PositiveClass
    operating_threshold: OperatingThreshold
    contact_sheet: int = setting("number of least certain images shown", RUN, ge=0, le=1000)


KeepAspect = Annotated[bool, setting("pad to a square with black; false squeezes", DATA)]
AverageDecay = Annotated[
    float, setting("of the moving average of the weights, such as 0.99 per step; 0: none", TRAINING, ge=0, lt=1)
]
LrSchedule = Annotated[
    str,
    setting(
        "`one_cycle`: up from 1/25 in the first quarter of the run, down along a cosine", TRAINING, options=LR_SCHEDULES
    ),
]
LrStep = Annotated[
    int,
    setting(
        "epochs between the steps of `step`",
        TRAINING,
        ge=1,
        only_with=[("lr_schedule", ["step"]), ("lr_factor", OtherThan(1))],
    ),
]
LrFactor = Annotated[float, setting("of a step of `step`", TRAINING, gt=0, le=1, only_with=("lr_schedule", ["step"]))]
