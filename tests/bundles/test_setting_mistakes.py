"""Settings that a bundle refuses, and the words that say why."""

from pathlib import Path
from typing import Any

import pytest
from bundle_cases import (
    CASES,
    asked,
    refused,
    says,
)

NAN = float("nan")
SECTIONS = {"training": 4, "validation": 4, "test": 4}


EVERY_BUNDLE = [
    ({"learning_rat": 0.1}, ["unknown setting 'learning_rat'", "did you mean 'learning_rate'?"]),
    ({"epochs": 3, "batchsize": 8}, ["'max_epochs'", "'batch_size'"]),
    ({"max_epochs": 0, "amp": 2}, ["max_epochs=0: expected a whole number of at least 1", "amp=2"]),
    ({"max_epochs": 2.5}, ["max_epochs=2.5", "whole number"]),
    ({"max_epochs": "ten"}, ["max_epochs='ten'"]),
    ({"batch_size": "ten"}, ["batch_size='ten'", "whole number"]),
    ({"learning_rate": 0}, ["learning_rate=0", "above 0"]),
    ({"learning_rate": NAN}, ["learning_rate=nan"]),
    ({"class_weights": "sometimes"}, ["class_weights='sometimes'", "none, balanced or a list"]),
    ({"image_size": [64, 64]}, ["image_size=[64, 64]"]),
    ({"device": "gpu"}, ["device='gpu'", "cpu"]),
    *[({"device": name}, [f"device='{name}': expected cpu"]) for name in ("cuda:99", "meta", "xpu:7", "hpu")],
    ({"num_workers": 500, "max_epochs": 10**9}, ["num_workers=500", "at most 128", "max_epochs=1000000000"]),
    ({"pretrained": True, "ckpt_path": "a.pt"}, ["pretrained and ckpt_path", "give one"]),
    ({"dataset_dir": "somewhere"}, ["dataset_dir has no effect with dataset='demo'"]),
    ({"val_interval": 5, "max_epochs": 4}, ["val_interval=5 is more than max_epochs=4"]),
    ({"resume": "maybe"}, ["resume='maybe': expected", "true", "false"]),
    ({"calibrate": "yes"}, ["calibrate='yes'"]),
    ({"output_dir": 2024}, ["output_dir=2024", "text"]),
    ({"seed": -1}, ["seed=-1"]),
    ({"target_specificity": 1.0}, ["target_specificity=1.0: expected a number between 0 and 1"]),
    ({"num_workers": "many"}, ["num_workers='many'"]),
    ({"max_pixels": 0}, ["max_pixels=0: expected a whole number from 1 to 178956970"]),
    ({"max_pixels": 200_000_000}, ["max_pixels=200000000: expected a whole number from 1 to 178956970"]),
]
OF_ONE_BUNDLE = {
    "lsanet": [
        ({"batch_size": 1}, ["batch_size=1", "at least 2"]),
        ({"label_fraction": 1.5}, ["label_fraction=1.5", "at most 1"]),
        ({"labels_per_class": 0}, ["labels_per_class=0"]),
        ({"label_fraction": 0.1, "labels_per_class": 3}, ["label_fraction and labels_per_class", "give one"]),
        ({"augment": "heavy"}, ["augment='heavy'", "dihedral"]),
        ({"method": "lsa"}, ["method='lsa'", "lsanet"]),
        ({"backbone": "resnet19"}, ["backbone='resnet19'", "resnet18"]),
        ({"backbone": "densenet121", "image_size": 28}, ["image_size=28 is too small for densenet121", ">=29"]),
        ({"backbone": "vgg16", "image_size": 28}, ["image_size=28 is too small for vgg16", ">=32"]),
        ({"mean": [0.5]}, ["mean=[0.5]", "three numbers"]),
        ({"mean": ["a", 0.5, 0.5]}, ["mean=['a', 0.5, 0.5]"]),
        ({"std": [0.5, 0.5, 0]}, ["std=[0.5, 0.5, 0]", "above 0"]),
        ({"method": "baseline", "lsa": "gated"}, ["lsa='gated' has no effect with method='baseline'", "lsanet"]),
        ({"method": "lsanet", "alpha": 0.5}, ["alpha=0.5 has no effect", "dsn"]),
        ({"synergy_weight": 0, "synergy_stop_gradient": False}, ["synergy_stop_gradient=False has no", "above 0"]),
        ({"output_nodes": "C4"}, ["output_nodes='C4'", "as a list such as"]),
        ({"output_nodes": ["C2"]}, ["output_nodes is ['C2']", "expected C4"]),
        ({"backbone": "vgg16", "attention": "se"}, ["attention='se' goes into residual blocks"]),
        ({"method": "dsn", "synergy_weight": 2}, ["synergy_weight=2 has no effect"]),
        ({"method": "baseline", "keep_nodes": True}, ["keep_nodes=True needs an output node beside C4"]),
    ],
    "multimix": [
        (
            {"method": "unet", "positive_class": "clear", "operating_threshold": 0.3},
            ["positive_class='clear' has no effect with method='unet'", "operating_threshold=0.3 has no"],
        ),
        ({"lambda": 0.1, "classlabels": 8}, ["did you mean 'lambda_'?", "did you mean 'class_labels'?"]),
        ({"steps_per_epoch": 0}, ["steps_per_epoch=0", "or null"]),
        ({"dropout": 1.0}, ["dropout=1.0", "below 1"]),
        ({"method": "enc", "decoder_dropout": 0.1}, ["decoder_dropout=0.1 has no effect with method='enc'"]),
        ({"confidence_threshold": 0.9, "lambda_": 0}, ["confidence_threshold=0.9 has no effect with lambda_=0"]),
        ({"kl_detach_labelled": False, "beta": 0.0}, ["kl_detach_labelled=False has no effect with beta=0"]),
        ({"average_decay": 1}, ["average_decay=1", "below 1"]),
        ({"confidence_threshold": 1.5}, ["confidence_threshold=1.5", "at most 1"]),
        ({"lambda_": -1, "alpha": "much"}, ["lambda_=-1", "alpha='much'"]),
        ({"class_labels": 0, "mask_labels": 2.0}, ["class_labels=0", "mask_labels=2.0", "or null"]),
        ({"mask_augment": "heavy"}, ["mask_augment='heavy'", "none, weak, strong"]),
        ({"method": "mixmix"}, ["method='mixmix'", "umtls_ssl, multimix"]),
        ({"lr_schedule": "cosine"}, ["lr_schedule='cosine'", "step, one_cycle, constant"]),
        ({"lr_factor": 2}, ["lr_factor=2", "at most 1"]),
        ({"image_size": 100}, ["image_size=100", "multiple of 32"]),
        ({"image_size": 16}, ["image_size=16", "multiple of 32"]),
        ({"method": "umtl", "beta": 0.1}, ["beta=0.1 has no effect with method='umtl'", "multimix"]),
        ({"method": "umtls_ssl", "kl_detach_labelled": False}, ["kl_detach_labelled=False has no effect", "multimix"]),
        ({"method": "enc", "mask_augment": "weak"}, ["mask_augment='weak' has no effect with method='enc'", "unet"]),
        ({"method": "umtls", "lambda_": 1}, ["lambda_=1 has no effect with method='umtls'", "encssl"]),
        ({"method": "unet", "class_weights": "balanced"}, ["class_weights='balanced' has no effect", "umtl"]),
        ({"method": "encssl", "alpha": 1, "write_masks": False}, ["alpha=1 has no effect", "write_masks=False has no"]),
        ({"method": "unet", "calibrate": True}, ["calibrate=True has no effect with method='unet'"]),
        ({"lr_factor": 1, "lr_step": 2}, ["lr_step=2 has no effect with lr_factor=1", "other than 1"]),
        ({"lr_schedule": "one_cycle", "lr_step": 3}, ["lr_step=3 has no effect", "lr_schedule='one_cycle'", "'step'"]),
        ({"lr_schedule": "constant", "lr_factor": 0.5}, ["lr_factor=0.5 has no effect with lr_schedule='constant'"]),
    ],
    "gated_attention": [
        ({"num_instance": 3, "windowbox": 1, "atention": "se"}, ["'num_instances'?", "'window_box'?", "'attention'?"]),
        (
            {"threshold": 1, "num_instances": 0, "label_smoothing": 1, "batch_size": 1, "lambda_every": 2.5},
            [
                "threshold=1: expected a number of at least 0 and below 1", "num_instances=0: expected a whole number",
                "label_smoothing=1", "batch_size=1: expected a whole number of at least 2", "lambda_every=2.5",
            ],
        ),
        (
            {"attention": "gate", "global_backbone": "resnet19", "instance_backbone": "vgg", "pooling": "mean"},
            ["attention='gate'", "gated, spatial", "='resnet19'", "vgg16", "='vgg'", "concat, attention"],
        ),
        (
            {"method": "both", "augment": "heavy", "lr_schedule": "cosine"},
            ["method='both'", "fusion, global", "dihedral", "one_cycle"],
        ),
        (
            {"min_box": 0, "max_box": 1.5, "window_box": -1, "lambda_step": -1, "mean": [0.5], "std": [1, 1, 0]},
            ["min_box=0", "max_box=1.5", "window_box=-1", "lambda_step=-1", "three numbers", "three numbers above 0"],
        ),
        ({"lambda_start": 0.2, "lambda_floor": 0.5}, ["lambda_floor=0.5 is above lambda_start=0.2"]),
        (
            {"lambda_start": 1.0, "lambda_step": 0},
            ["lambda stays 1", "lambda_step=0", "never be trained", "method='global'"],
        ),
        ({"lambda_start": 1.0, "lambda_floor": 1}, ["lambda stays 1", "lambda_floor=1", "never be trained"]),
        (
            {"early_stop_patience": 19, "lambda_start": 1.0, "lambda_every": 20, "max_epochs": 100},
            ["early_stop_patience=19 may stop the run in epoch 20", "lambda is 1 up to epoch 20", "20 or more"],
        ),
        ({"num_instances": 5000}, ["num_instances=5000: a square image has 625 places", "smaller min_box"]),
        ({"num_instances": 1, "pooling": "concat"}, ["pooling='concat' has no effect with num_instances=1", "above 1"]),
        ({"attention": "none", "attended_classifier": False}, ["attended_classifier=False has no", "other than none"]),
        ({"max_box": 0.3, "min_box": 0.4}, ["min_box=0.4 is more than max_box=0.3", "smaller min_box"]),
        ({"max_box": 0.3, "window_box": 0.4}, ["window_box=0.4 is more than max_box=0.3"]),
        (
            {"method": "global", "num_instances": 8, "max_box": 0.3, "lambda_every": 5},
            ["num_instances=8 has no effect with method='global'", "max_box=0.3 has no", "lambda_every=5 has no"],
        ),
        ({"lr_schedule": "constant", "lr_step": 3}, ["lr_step=3 has no effect with lr_schedule='constant'", "'step'"]),
        ({"instance_backbone": "densenet121", "instance_size": 28}, ["instance_size=28 is too", "instance_size>=29"]),
        ({"instance_backbone": "vgg16", "instance_size": 31}, ["instance_size=31 is too small", "instance_size>=32"]),
        ({"global_backbone": "densenet121", "image_size": 28}, ["image_size=28 is too small", "image_size>=29"]),
        ({"label_fraction": 0.5, "labels_per_class": 3}, ["label_fraction and labels_per_class", "give one"]),
        ({"reference_boxes": "boxes"}, ["reference_boxes has no effect with dataset='demo'", "give dataset"]),
    ],
}  # fmt: skip
OF_INFERENCE = [
    (None, {"image_size": 99}, ["image_size=99 has no effect in inference"]),
    (None, {"dataset#image_size": 99}, ["dataset#image_size=99", "trained with their own image_size"]),
    ("lsanet", {"preprocess#image_size": 99}, ["preprocess#image_size=99", "trained with their own image_size"]),
    ("multimix", {"preprocess#image_size": 99}, ["preprocess#image_size=99", "trained with their own image_size"]),
    (None, {"operating_threshold": 1.5}, ["operating_threshold=1.5: expected a number between 0 and 1"]),
    ("gated_attention", {"dataset": "pictures"}, ["dataset='pictures'", "dataset_dir or datalist"]),
    (None, {"contact_shet": 3}, ["did you mean 'contact_sheet'?"]),
    (None, {"batch_size": 0, "contact_sheet": -1, "amp": "often"}, ["batch_size=0", "contact_sheet=-1", "amp='often'"]),
    (
        "gated_attention",
        {"threshold": 0.3, "num_instances": 8},
        ["threshold=0.3 has no effect in inference", "num_instances=8 has no"],
    ),
]


def settings_errors() -> list[Any]:
    found = [(name, *row) for name in CASES for row in [*EVERY_BUNDLE, *OF_ONE_BUNDLE[name]]]
    return [pytest.param(*row, id=f"{row[0]}-{','.join(f'{k}={v}' for k, v in row[1].items())}") for row in found]


@pytest.mark.parametrize(("case", "changes", "parts"), settings_errors(), indirect=["case"])
def test_settings(case, tmp_path, changes, parts):
    error = refused(asked, case, "settings", **{"output_dir": str(tmp_path / "out"), **changes})
    assert type(error).__name__ == "SettingsError" and isinstance(error, ValueError)
    says(error, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("case", "changes", "parts"),
    [(name, changes, parts) for only, changes, parts in OF_INFERENCE for name in ([only] if only else CASES)],
    indirect=["case"],
)
def test_settings_of_inference(case, changes, parts):
    says(refused(asked, case, "settings", "inference", **changes), *parts)
    says(refused(asked, case, "images_found", "inference", **changes), *parts)


RIGHT = [
    {"early_stop_patience": 20, "lambda_every": 20, "max_epochs": 100},
    {"early_stop_patience": 1, "lambda_start": 0.9, "lambda_every": 20, "max_epochs": 100},
    {"early_stop_patience": 1, "method": "global"},
    {"lambda_step": 0, "lambda_start": 0.5},
    {"max_box": 0.3, "min_box": 0.3, "window_box": 0.3},
    {"instance_backbone": "densenet121", "instance_size": 29},
]


@pytest.mark.parametrize(("case", "changes"), [("gated_attention", changes) for changes in RIGHT], indirect=["case"])
def test_settings_at_the_border_are_right(case, changes):
    settings = asked(case, "settings", **changes)
    assert {name: settings[name] for name in changes} == changes


TOO_LATE = [
    *[(name, {"early_stop_patience": 5, "max_epochs": 6}, ["early_stop_patience=5"]) for name in CASES],
    ("multimix", {"lr_step": 9, "max_epochs": 9}, ["lr_step=9"]),
    (
        "gated_attention",
        {"lambda_every": 6, "lambda_step": 0.2, "max_epochs": 6},
        ["lambda_step=0.2", "lambda_every=6"],
    ),
    ("gated_attention", {"lambda_every": 6, "lambda_floor": 0.2, "max_epochs": 7}, []),
]


@pytest.mark.parametrize(("case", "changes", "late"), TOO_LATE, indirect=["case"])
def test_settings_that_act_after_the_last_epoch_are_said(case, changes, late):
    notes = asked(case, "settings", **changes).notes
    assert [note.partition(" has no effect with max_epochs=")[0] for note in notes] == late


WORDS = {
    "lsanet": ({"keep_aspect": "False", "labels_per_class": "null"}, {"keep_aspect": False, "labels_per_class": None}),
    "multimix": (
        {"reuse_labelled": "True", "steps_per_epoch": "null"},
        {"reuse_labelled": True, "steps_per_epoch": None},
    ),
    "gated_attention": (
        {"pretrained": "TRUE", "max_box": "null", "reference_boxes": "none"},
        {"pretrained": True, "max_box": None, "reference_boxes": None, "mean": [0.485, 0.456, 0.406]},
    ),
}


def test_words_of_the_command_line_are_read(case):
    words, expected = WORDS[case.name]
    given = {"resume": "false", "calibrate": "true", "ckpt_path": "None", "dataset": 2024, **words}
    settings = asked(case, "settings", **given, _note="a key of one's own")
    expected = {"resume": False, "calibrate": True, "ckpt_path": None, "dataset": "2024", **expected}
    assert {name: settings[name] for name in expected} == expected
    assert Path(settings["output_dir"]).name.startswith("2024-")
    if case.name == "lsanet":
        assert asked(case, "settings", resume="false", keep_aspect="False").changed == {"keep_aspect": False}
    if case.name == "gated_attention":
        assert asked(case, "settings", pretrained="false")["mean"] == [0.5, 0.5, 0.5]
