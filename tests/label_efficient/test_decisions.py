"""Of which class the figures are, and what decides a class."""

import numpy as np
import pytest

from label_efficient.evaluation.decisions import Decision, positive_index, saved_decision
from label_efficient.evaluation.predictions import prediction_rows
from label_efficient.settings import SettingsError

CLASSES = ["malignant", "normal, benign"]
POINT = {"operating_point": {"threshold": 0.7995, "positive_class": "malignant"}}


@pytest.mark.parametrize(
    ("given", "recorded", "index"),
    [
        ("malignant", None, 0), (0, None, 0), ("1", None, 1), ("normal, benign", "malignant", 1),
        (("normal", "benign"), None, 1),  # as the command line cuts it at the comma
        (None, "malignant", 0), (None, None, 1), (None, "gone", 1),
    ],
)  # fmt: skip
def test_the_positive_class_is_that_of_the_setting_or_of_the_weights_or_the_second(given, recorded, index):
    assert positive_index(given, CLASSES, "binary-class", recorded) == index


def test_names_are_taken_before_indices():
    assert [positive_index(given, ["1", "0"]) for given in (1, 0)] == [0, 1]


@pytest.mark.parametrize("given", ["benign", 2, -1, True, 0.5, ["malignant", "normal"]])
def test_a_wrong_class_lists_the_right_ones(given):
    with pytest.raises(SettingsError, match=r"positive_class=.*expected .*'malignant' \(0\) or 'normal, benign' \(1\)"):
        positive_index(given, CLASSES)


def test_a_positive_class_is_for_two_classes_alone():
    assert (
        positive_index(None, ["a", "b", "c"]) is positive_index(None, ["a", "b"], "multi-label, binary-class") is None
    )
    for act in (
        lambda: positive_index("a", ["a", "b", "c"]),
        lambda: saved_decision({"classes": ["a"]}, {}, None, 0.3),
    ):
        with pytest.raises(SettingsError, match="has no effect"):
            act()


def test_a_saved_threshold_decides_unless_it_is_turned_off_or_of_the_other_class():
    scores = np.array([[0.776, 0.224], [0.7995, 0.2005], [0.4, 0.6]])
    info = {"classes": CLASSES, "positive_class": "malignant"}

    def said(*given):
        decide = saved_decision(info, POINT, *given)
        rows = prediction_rows(files="xyz", classes=CLASSES, probabilities=scores, uncertainty=[0] * 3, decide=decide)
        return [row["pred"][0] for row in rows], str(decide)

    assert said() == (
        ["n", "m", "n"],
        "pred is malignant where its probability is at least 0.7995, else normal, benign",
    )
    assert said(None, 0.5) == (["m", "m", "n"], "pred is the most probable class")
    assert said(1, 0.21)[0] == ["n", "m", "n"]
    with pytest.raises(SettingsError, match=r"calibration\.json saves is of 'malignant'; give operating_threshold"):
        said("normal, benign")
    assert Decision(CLASSES)(scores).tolist() == [0, 0, 1]
