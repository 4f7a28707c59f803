"""Label budgets: which training images keep their labels when only so many may, and what becomes of the others."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from label_efficient.data.image_copies import copy_groups
from label_efficient.data.subsets import choose_labelled
from label_efficient.settings import SettingsError

from .losses import UNKNOWN
from .parts import Part

logger = logging.getLogger(__name__)


def apply_budgets(
    splits: dict[str, Part], class_labels: int | None, mask_labels: int | None, seed: int, num_classes: int
) -> dict[str, Part]:
    """Put training images beyond the budgets (None: all) among the unlabelled ones, without their labels and masks.

    Raises:
        SettingsError: If a budget is more than there are, or too small for a label of each class, or one mask.
    """
    train = splits["train"]
    chosen: dict[str, np.ndarray] = {}
    budgets = {"class_labels": (class_labels, train.labelled), "mask_labels": (mask_labels, train.masked)}
    for name, (budget, candidates) in budgets.items():
        chosen[name] = candidates
        if budget is None:
            continue
        least = num_classes if name == "class_labels" else 1
        if not least <= budget <= len(candidates):
            raise SettingsError(f"{name}={budget}: expected {least} to {len(candidates)}, the labels that there are")
        strata = train.labels[candidates] if name == "class_labels" else np.zeros(len(candidates), dtype=np.int64)
        chosen[name] = candidates[choose_labelled(strata.tolist(), budget, seed)]
    no_label = np.setdiff1d(train.labelled, chosen["class_labels"])
    no_mask = np.setdiff1d(train.masked, chosen["mask_labels"])
    if not len(no_label) and not len(no_mask):
        return splits
    labels, mask_rows, hidden = train.labels.copy(), train.mask_rows.copy(), np.full(len(train), UNKNOWN)
    hidden[no_label] = labels[no_label]
    labels[no_label], mask_rows[no_mask] = UNKNOWN, -1
    no_label, no_mask = (
        _without_copies(train, gone, chosen[name], name)
        for gone, name in ((no_label, "class_labels"), (no_mask, "mask_labels"))
    )
    freed: dict[int, str | None] = {int(i): "classification" for i in no_label}
    freed |= {int(i): None if int(i) in freed else "segmentation" for i in no_mask}
    positions = np.array(sorted(freed), dtype=np.int64)
    kept = np.flatnonzero((labels != UNKNOWN) | (mask_rows >= 0))
    unlabelled = _add_unlabelled(splits["unlabelled"], train, positions, [freed[i] for i in positions], hidden)
    new_train = replace(
        train,
        images=train.images[kept],
        labels=labels[kept],
        mask_rows=mask_rows[kept],
        entries=[train.entries[i] for i in kept],
        hidden_labels=np.full(len(kept), UNKNOWN),
        hashes=None if train.hashes is None else train.hashes[kept],
    )
    return {**splits, "train": new_train, "unlabelled": unlabelled}


def _without_copies(train: Part, gone: np.ndarray, chosen: np.ndarray, budget: str) -> np.ndarray:
    """Of the images that lose their annotation, those that are no copies of images that keep theirs."""
    if train.hashes is None or not len(gone):
        return gone
    groups = copy_groups(train.hashes)
    copies = np.isin(groups[gone], groups[chosen])
    if copies.any():
        text = "%s: %d unlabelled images are copies of images that keep their annotation, and are left out"
        logger.warning(text, budget, copies.sum())
    return gone[~copies]


def _add_unlabelled(
    unlabelled: Part, train: Part, positions: np.ndarray, tasks: Sequence[str | None], hidden: np.ndarray
) -> Part:
    """Training images at these positions, without their labels, behind the unlabelled ones."""
    entries = [
        replace(train.entries[i], task=task, label=None, masks=()) for i, task in zip(positions, tasks, strict=True)
    ]
    return Part(
        np.concatenate([unlabelled.images, train.images[positions]]),
        np.concatenate([unlabelled.labels, np.full(len(positions), UNKNOWN)]),
        unlabelled.masks,
        np.concatenate([unlabelled.mask_rows, np.full(len(positions), -1)]),
        [*unlabelled.entries, *entries],
        np.concatenate([unlabelled.hidden_labels, hidden[positions]]),
        None if train.hashes is None else np.concatenate([unlabelled.hashes, train.hashes[positions]]),
    )


def reuse_labelled_images(splits: dict[str, Part]) -> dict[str, Part]:
    """Put the labelled training images among the unlabelled ones too, without their labels."""
    train = splits["train"]
    tasks = [
        None if label and mask else "classification" if label else "segmentation"
        for label, mask in zip(train.labels != UNKNOWN, train.mask_rows >= 0, strict=True)
    ]
    # Their classes are trained on: counting them would flatter the pseudo-labels.
    hidden = np.full(len(train), UNKNOWN)
    return {**splits, "unlabelled": _add_unlabelled(splits["unlabelled"], train, np.arange(len(train)), tasks, hidden)}
