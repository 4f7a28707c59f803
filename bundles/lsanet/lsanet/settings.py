"""The settings of the lsanet bundle: what each may be, and which have an effect with which method."""

from collections.abc import Mapping, Sequence
from typing import Any

from label_efficient.networks.backbones import BACKBONES, check_attention, check_image_size
from label_efficient.networks.block_attention import ATTENTIONS
from label_efficient.setting_fields import DATA, RUN, TRAINING, Above, setting
from label_efficient.setting_models import ClassifierTraining, InferenceSettings, KeepAspect

from .layer_attention import LSA_VARIANTS
from .network import METHODS, METHODS_WITH_LSA, METHODS_WITH_SYNERGY, check_nodes
from .transforms import AUGMENTATIONS

LR_SCHEDULES = ("constant", "cosine")
_WITH_LSA = ("method", METHODS_WITH_LSA)
_WITH_SYNERGY = ("method", METHODS_WITH_SYNERGY)


class Training(ClassifierTraining):
    """Settings of `train.json` and its overlays."""

    dataset: str = setting(
        "`demo`; a 2-D MedMNIST flag (`bloodmnist`, or with its size, `bloodmnist_64`); `datalist`; or the path of a "
        "MedMNIST-layout `.npz`, of a `.csv` or `.json` list, or of a folder with `images.csv`", DATA, min_length=1,
    )  # fmt: skip
    dataset_dir: str | None = setting(
        "where MedMNIST files lie (else medmnist's own folder); or what the paths of a list are relative to (else the "
        "list's folder)", DATA, min_length=1,
    )  # fmt: skip
    method: str = setting("what is trained: from one classifier to LSANet", options=METHODS)
    backbone: str = setting("the classifier that all methods build on", options=BACKBONES)
    attention: str = setting("in the residual blocks", options=ATTENTIONS)
    output_nodes: Sequence[str] = setting(
        "which nodes give an output: `\"['C2','C4']\"`", default="all that the method has",
        expected="C4 and any of C1, C2, C3, as a list such as \"['C2','C4']\"",
    )  # fmt: skip
    lsa: str = setting("the layer attention (Table 2 of the paper)", options=LSA_VARIANTS, only_with=_WITH_LSA)
    lsa_temperature: float = setting("the gates are divided by it before the softmax", gt=0, only_with=_WITH_LSA)
    embed_channels: int = setting("channels of the feature embedding", ge=1, only_with=_WITH_LSA)
    alpha: float = setting("weight of each auxiliary loss", ge=0, only_with=("method", ("dsn", "dks", "dsn_ks")))
    synergy_weight: float = setting("mu of the knowledge synergy", ge=0, only_with=_WITH_SYNERGY)
    synergy_stop_gradient: bool = setting(
        "whether the teacher of each pair is a constant", only_with=[_WITH_SYNERGY, ("synergy_weight", Above(0))]
    )
    keep_nodes: bool = setting("ship all nodes as a beta-weighted ensemble instead of C4 alone")
    keep_aspect: KeepAspect
    augment: str = setting(
        "`light`: mirrored, turned, shifted, scaled, brightness, contrast; `dihedral`: also the eight turns of a "
        "square",
        TRAINING, options=AUGMENTATIONS,
    )  # fmt: skip
    lr_schedule: str = setting("`cosine`: to 0 at `max_epochs`", TRAINING, options=LR_SCHEDULES)
    num_workers: int = setting(
        "threads that read a list's files; processes that do so with `cache` = false", RUN, default="cores, at most 8",
        ge=0, le=128,
    )  # fmt: skip
    cache: bool = setting(
        "read a list's files once and keep them as 8-bit images in memory; false reads them for every batch (and once "
        "before training, to find the bad ones)", RUN,
    )  # fmt: skip

    def broken_rules(self, changed: Mapping[str, Any]) -> list[str]:
        """As in `SettingsModel`."""
        problems = super().broken_rules(changed)
        if self.keep_nodes and len(self.output_nodes) < 2:
            problems.append("keep_nodes=True needs an output node beside C4: choose another method than baseline")
        for check, *values in (
            (check_nodes, self.method, self.output_nodes),
            (check_attention, self.backbone, self.attention),
            (check_image_size, self.backbone, self.image_size),
        ):
            try:
                check(*values)
            except ValueError as error:
                problems.append(str(error))
        return problems


class Inference(InferenceSettings):
    """Settings of `inference.json`."""

    saliency: bool = setting("Grad-CAM overlays")
