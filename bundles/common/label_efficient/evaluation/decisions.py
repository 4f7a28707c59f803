"""How the class of an image is decided, and of which class sensitivity, specificity and a threshold are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from label_efficient.evaluation.metrics import BINARY
from label_efficient.settings import SettingsError


@dataclass(frozen=True)
class Decision:
    """The class of an image, out of its probabilities.

    Attributes:
        classes: The K classes.
        positive: Of a binary task the index of the class that sensitivity, specificity and threshold are of; else None.
        threshold: Its probability from which on an image is of it; None: the most probable class.
    """

    classes: Sequence[str]
    positive: int | None = None
    threshold: float | None = None

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities N x K to class indices (N,)."""
        if self.positive is None or self.threshold is None:
            return probabilities.argmax(axis=1)
        return np.where(probabilities[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)

    def __str__(self) -> str:
        if self.positive is None or self.threshold is None:
            return "pred is the most probable class"
        name, other = self.classes[self.positive], self.classes[1 - self.positive]
        return f"pred is {name} where its probability is at least {self.threshold:.4f}, else {other}"


def positive_index(
    positive_class: Any, classes: Sequence[str], task: str | None = None, recorded: str | None = None
) -> int | None:
    """Index of the positive class of a binary task: of the setting, else of the weights, else 1; None of other tasks.

    The setting is a name or an index (the command line hands over a name with a comma in parts), a SettingsError if it
    is neither, or the task, one of MedMNIST's if known, is not binary. `recorded` is what the weights say.
    """
    binary = len(classes) == 2 and task in (None, BINARY)
    if positive_class is None:
        return (classes.index(recorded) if recorded in classes else 1) if binary else None
    name = ", ".join(map(str, positive_class)) if isinstance(positive_class, (list, tuple)) else str(positive_class)
    if not binary:
        raise SettingsError(f"positive_class={name!r} has no effect: it is one of two, here are {', '.join(classes)}")
    if name in classes:
        return classes.index(name)
    if name in ("0", "1"):
        return int(name)
    names = " or ".join(f"{name!r} ({index})" for index, name in enumerate(classes))
    raise SettingsError(f"positive_class={name!r}: expected the name or index of one of the classes: {names}")


def positive_name(positive_class: Any, classes: Sequence[str], task: str | None = None) -> str | None:
    """Name of the positive class, for the description of the weights; see `positive_index`."""
    index = positive_index(positive_class, classes, task)
    return None if index is None else classes[index]


def saved_decision(
    info: Mapping[str, Any],
    calibration: Mapping[str, Any],
    positive_class: Any = None,
    operating_threshold: float | None = None,
) -> Decision:
    """The decision of weights that `info` describes: at the threshold of the setting, or else the saved one.

    That is of the operating point of `calibration` (see `calibration.calibration_of`); at 0.5 the more probable class
    is taken. A SettingsError if the task is not binary, or the saved threshold is of the other class.
    """
    classes = info["classes"]
    positive = positive_index(positive_class, classes, info.get("task"), info.get("positive_class"))
    point = calibration.get("operating_point")
    if positive is None:
        if operating_threshold is not None:
            raise SettingsError(f"operating_threshold={operating_threshold} has no effect: it is for two classes alone")
        return Decision(classes)
    if operating_threshold is None and point is not None:
        operating_threshold, of = point["threshold"], point.get("positive_class", classes[1])
        if of != classes[positive]:
            raise SettingsError(
                f"positive_class={classes[positive]!r}: the threshold that calibration.json saves is of {of!r}; give "
                "operating_threshold too (0.5: the more probable class), or evaluate with calibrate=true"
            )
    return Decision(classes, positive, None if operating_threshold == 0.5 else operating_threshold)
