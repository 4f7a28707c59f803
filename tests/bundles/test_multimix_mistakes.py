"""What a user of the multimix bundle gets wrong: an error that names it and says what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from PIL import Image

from label_efficient.data.image_files import UnreadableError
from label_efficient.settings import SettingsError
from multimix.data import load_data
from multimix.demo_data import make_demo_images
from multimix.transforms import Preprocess

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "multimix" / "configs"
TRAIN, EVALUATE = (str(CONFIGS / f"{name}.json") for name in ("train", "evaluate"))
TINY = {"image_size": 32, "steps_per_epoch": 1, "max_epochs": 1, "batch_size": 2, "num_workers": 1}
SECTIONS = {"training": 4, "validation": 2, "test": 2, "cross_domain": 2, "unlabelled": 2}
Content = dict[str, Any]


def says(error: BaseException, *parts: str) -> None:
    """Check that a message has all of these words, in any case."""
    text = str(error).lower()
    assert [part for part in parts if part.lower() not in text] == [], text


def cause_of(error: BaseException) -> BaseException:
    """What MONAI wraps when an object or expression of a config fails."""
    while error.__cause__ is not None and str(error).startswith("Failed to "):
        error = error.__cause__
    return error


def workflow_of(config: Any = TRAIN, **settings: Any) -> Any:
    return create_workflow(config_file=config, workflow_type="train", **settings)


@pytest.fixture
def films(tmp_path) -> Content:
    """Twelve films, and the content of a list of them; every one but the unlabelled has a class and a mask."""
    return write_films(tmp_path)


def write_films(folder: Path) -> Content:
    images, _, masks = make_demo_images(sum(SECTIONS.values()), size=40, seed=2)
    content: Content = {"labels": ["clear", "opacity"], **{name: [] for name in SECTIONS}}
    sections = [name for name, count in SECTIONS.items() for _ in range(count)]
    for i, name in enumerate(sections):
        Image.fromarray(images[i][:36]).save(folder / f"{i}.png")
        item = {"image": f"{i}.png"}
        if name != "unlabelled":
            Image.fromarray(masks[i][:36] * np.uint8(255)).save(folder / f"mask{i}.png")
            item |= {"label": ("clear", "opacity")[i % 2], "mask": f"mask{i}.png"}
        content[name].append(item)
    return content


def write_list(folder: Path, content: Content) -> str:
    (folder / "chest.json").write_text(json.dumps(content))
    return str(folder / "chest.json")


def load(folder: Path, content: Content, *, method: str = "multimix", **kwargs: Any) -> Any:
    preprocess = Preprocess(image_size=32)
    return load_data(write_list(folder, content), method=method, preprocess=preprocess, num_workers=1, **kwargs)


def refused(folder: Path, content: Content, **kwargs: Any) -> ValueError:
    with pytest.raises(ValueError) as caught:
        load(folder, content, **kwargs)
    assert "chest.json" in str(caught.value)
    return caught.value


def mask(folder: Path, values: np.ndarray, name: str = "mask0.png") -> None:
    Image.fromarray(values.astype(np.uint8)).save(folder / name)


# Settings


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"learning_rat": 0.1}, ["unknown setting 'learning_rat'", "did you mean 'learning_rate'?"]),
        ({"lambda": 0.1, "classlabels": 8}, ["did you mean 'lambda_'?", "did you mean 'class_labels'?"]),
        ({"max_epochs": 0, "amp": 2}, ["max_epochs=0: expected a whole number of at least 1", "amp=2"]),
        ({"max_epochs": 2.5}, ["max_epochs=2.5", "whole number"]),
        ({"batch_size": "ten"}, ["batch_size='ten'", "whole number"]),
        ({"steps_per_epoch": 0}, ["steps_per_epoch=0", "or null"]),
        ({"learning_rate": 0}, ["learning_rate=0", "above 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate=nan"]),
        ({"dropout": 1.0}, ["dropout=1.0", "below 1"]),
        ({"average_decay": 1}, ["average_decay=1", "below 1"]),
        ({"confidence_threshold": 1.5}, ["confidence_threshold=1.5", "at most 1"]),
        ({"lambda_": -1, "alpha": "much"}, ["lambda_=-1", "alpha='much'"]),
        ({"class_labels": 0, "mask_labels": 2.0}, ["class_labels=0", "mask_labels=2.0", "or null"]),
        ({"class_weights": "sometimes"}, ["class_weights='sometimes'", "none, balanced or a list"]),
        ({"mask_augment": "heavy"}, ["mask_augment='heavy'", "none, weak, strong"]),
        ({"method": "mixmix"}, ["method='mixmix'", "umtls_ssl, multimix"]),
        ({"lr_schedule": "cosine"}, ["lr_schedule='cosine'", "step, one_cycle, constant"]),
        ({"lr_factor": 2}, ["lr_factor=2", "at most 1"]),
        ({"image_size": 100}, ["image_size=100", "multiple of 32"]),
        ({"image_size": 16}, ["image_size=16", "multiple of 32"]),
        ({"image_size": [64, 64]}, ["image_size=[64, 64]"]),
        ({"device": "gpu"}, ["device='gpu'", "cpu"]),
        ({"device": "cuda:99"}, ["device='cuda:99'", "cpu"]),
        ({"method": "umtl", "beta": 0.1}, ["beta=0.1 has no effect with method='umtl'", "multimix"]),
        ({"method": "umtls_ssl", "kl_detach_labelled": False}, ["kl_detach_labelled=False has no effect", "multimix"]),
        ({"method": "enc", "mask_augment": "weak"}, ["mask_augment='weak' has no effect with method='enc'", "unet"]),
        ({"method": "umtls", "lambda_": 1}, ["lambda_=1 has no effect with method='umtls'", "encssl"]),
        ({"method": "unet", "class_weights": "balanced"}, ["class_weights='balanced' has no effect", "umtl"]),
        ({"method": "encssl", "alpha": 1, "write_masks": False}, ["alpha=1 has no effect", "write_masks=False has no"]),
        ({"method": "unet", "calibrate": True}, ["calibrate=True has no effect with method='unet'"]),
        (
            {"lr_schedule": "one_cycle", "lr_step": 3},
            ["lr_step=3 has no effect with lr_schedule='one_cycle'", "'step'"],
        ),
        ({"lr_schedule": "constant", "lr_factor": 0.5}, ["lr_factor=0.5 has no effect with lr_schedule='constant'"]),
        ({"pretrained": True, "ckpt_path": "a.pt"}, ["pretrained and ckpt_path", "give one"]),
        ({"dataset_dir": "somewhere"}, ["dataset_dir has no effect with dataset='demo'"]),
        ({"val_interval": 5, "max_epochs": 4}, ["val_interval=5 is more than max_epochs=4"]),
        ({"resume": "maybe"}, ["resume='maybe': expected true or false"]),
        ({"output_dir": 2024}, ["output_dir=2024", "text"]),
        ({"seed": -1}, ["seed=-1"]),
    ],
)
def test_settings(tmp_path, changes, parts):
    with pytest.raises(RuntimeError) as caught:
        workflow_of(**{"output_dir": str(tmp_path / "out"), **changes}).parser.get_parsed_content("settings")
    error = cause_of(caught.value)
    assert isinstance(error, SettingsError)
    says(error, *parts)
    assert list(tmp_path.iterdir()) == []


def test_words_of_the_command_line_are_read():
    changes = {"resume": "false", "reuse_labelled": "True", "steps_per_epoch": "null", "ckpt_path": "None"}
    settings = workflow_of(**changes, dataset=2024, _note="a key of one's own").parser.get_parsed_content("settings")
    assert settings["resume"] is False and settings["reuse_labelled"] is True
    assert settings["steps_per_epoch"] is None and settings["ckpt_path"] is None and settings["dataset"] == "2024"


# Which data


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"dataset": "dmeo"}, ["dataset='dmeo'", "'demo', 'datalist'", ".json or .csv", "make_data_lists"]),
        ({"dataset": "chest_images"}, ["dataset='chest_images'", "expected"]),
        ({"dataset": "nowhere/chest.json"}, ["nowhere/chest.json", "no such list"]),
        ({"dataset": "nowhere/chest.csv"}, ["nowhere/chest.csv", "no such list"]),
        ({"dataset": "datalist"}, ["needs datalist", ".json or .csv"]),
        ({"dataset": "datalist", "datalist": "nowhere.json"}, ["nowhere.json", "no such list"]),
        ({"dataset": "datalist", "datalist": "chest.txt"}, ["chest.txt", "(.json) or a .csv"]),
        ({"dataset": "demo", "datalist": "a.json"}, ["datalist='a.json'", "only read with dataset='datalist'"]),
        ({"dataset": "a.json", "dataset_dir": "nowhere"}, ["dataset_dir='nowhere'", "no such folder"]),
    ],
)
def test_dataset(tmp_path, monkeypatch, kwargs, parts):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_data(**kwargs, method="multimix", preprocess=Preprocess(image_size=32))
    says(caught.value, *parts)


def test_folder_of_the_images_is_another_one(tmp_path, films):
    (tmp_path / "empty").mkdir()
    says(refused(tmp_path, films, dataset_dir=str(tmp_path / "empty")), "22 problems", "0.png does not exist")


# Lists


def move(source: str, target: str) -> Callable[[Content], Any]:
    return lambda c: c[target].append(c[source].pop())


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["test"][0].update(image="lost.png"), ["test[0]", "lost.png does not exist"]),
        (lambda c: c["test"][0].update(mask="lost.png"), ["test[0]", "lost.png does not exist"]),
        (move("training", "unlabelled"), ["3.png", "labelled file among the unlabelled", "label and mask"]),
        (move("unlabelled", "test"), ["11.png", "neither label nor mask", "unlabelled"]),
        (lambda c: c["test"].append(dict(c["training"][0])), ["0.png stands in train and test"]),
        (
            lambda c: c["test"].append({"image": "10.png", "label": 0}),
            ["10.png stands in test and unlabelled (test[2], unlabelled[0])"],
        ),
        (
            lambda c: [c[k][0].update(group="p7") for k in ("training", "test")],
            ["group 'p7' crosses train (training[0]) and test (test[0])"],
        ),
        (lambda c: c["training"][0].update(lable=1), ["unknown key 'lable'", "did you mean 'label'?"]),
        (lambda c: c.update(trainning=c.pop("training")), ["unknown section 'trainning'", "did you mean 'training'?"]),
        (lambda c: c["training"][0].update(label="cloudy"), ["label='cloudy'", "clear, opacity"]),
        (lambda c: c["training"][0].update(label=2), ["label=2", "0 to 1"]),
        (lambda c: c.update(validation=[]), ["entries with a label, validation has none", "with a mask"]),
        (lambda c: c.update(labels=["clear", "opacity", "edema"]), ["class 'edema' has no image in train", "in val"]),
        (lambda c: c["validation"][1].update(label="clear"), ["class 'opacity' has no image in val"]),
        (
            lambda c: (
                [c.update(labels=["clear"])]
                + [i.update(label=0) for name in SECTIONS if name != "unlabelled" for i in c[name]]
            ),
            ["only the class 'clear'", "needs two"],
        ),
    ],
)
def test_lists(tmp_path, films, change, parts):
    change(films)
    says(refused(tmp_path, films), *parts)


def test_same_content_under_two_names_in_training_and_test(tmp_path, films):
    (tmp_path / "6.png").write_bytes((tmp_path / "0.png").read_bytes())
    says(refused(tmp_path, films), "6.png (test) is byte by byte 0.png (train) (test[0], training[0])")


@pytest.mark.parametrize(
    ("method", "parts", "fitting"),
    [
        ("multimix", ["unlabelled images for segmentation", "unlabelled images for classification"], True),
        ("umtls_ssl", ["unlabelled images for classification"], True),
        ("encssl", ["unlabelled images for classification"], True),
    ],
)
def test_methods_without_unlabelled_images(tmp_path, films, method, parts, fitting):
    films["unlabelled"] = []
    error = refused(tmp_path, films, method=method)
    says(error, f"method='{method}'", *parts, "methods that fit these data: unet, enc, umtl, umtls", "reuse_labelled")
    assert len(load(tmp_path, films, method=method, reuse_labelled=True).streams["class_unlabelled"][1]) == 4


def test_methods_without_labels_or_masks(tmp_path, films):
    for name in SECTIONS:
        for item in films[name]:
            item.pop("label", None)
    del films["labels"]
    says(refused(tmp_path, films, method="umtl"), "no training images with a label", "methods that fit", ": unet")
    assert load(tmp_path, films, method="unet").classes == []


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"class_labels": 5}, ["class_labels=5: expected 2 to 4"]),
        ({"class_labels": 1}, ["class_labels=1: expected 2 to 4"]),
        ({"mask_labels": 5}, ["mask_labels=5: expected 1 to 4"]),
    ],
)
def test_budgets(tmp_path, films, kwargs, parts):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, films, **kwargs)
    says(caught.value, *parts)


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [0, 1], [-1, 1], [float("inf"), 1]])
def test_class_weights(tmp_path, films, weights):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, films).class_weights(weights)
    says(caught.value, "class_weights=", "2 numbers above 0", "clear, opacity")


# Image and mask files

LUNGS = np.zeros((36, 40))
LUNGS[8:30, 4:16], LUNGS[8:30, 22:36] = 150, 200


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (np.ones((40, 40)) * np.eye(40), ["40 x 40 pixels", "36 x 40", "at the size of its image"]),
        (LUNGS, ["150", "200", "mask_values"]),
        (LUNGS * 0, ["no lungs in the mask"]),
        (np.ones((36, 40)), ["100% of the image would be lung", "inverted"]),
    ],
)
def test_masks(tmp_path, films, values, parts):
    mask(tmp_path, values)
    says(refused(tmp_path, films), "training[0]", "mask0.png", *parts)


def test_values_that_are_lung_are_said_and_another_value_is_not(tmp_path, films):
    mask(tmp_path, LUNGS)
    films["training"][0]["mask_values"] = [150, 200]
    part = load(tmp_path, films).splits["train"]
    assert part.masks[0].mean() == pytest.approx((LUNGS > 0).sum() / 40**2, abs=0.02)
    films["training"][0]["mask_values"] = [250]
    says(refused(tmp_path, films), "mask0.png", "no lungs in the mask", "mask_values is [250]")


def test_jpeg_mask(tmp_path, films):
    Image.fromarray((LUNGS > 0).astype(np.uint8) * 255).save(tmp_path / "mask.jpg")
    films["test"][0]["mask"] = "mask.jpg"
    says(refused(tmp_path, films), "mask.jpg", "JPEG changes the values", "PNG")


def test_damaged_images_and_masks_are_told_together(tmp_path, films):
    for name in ("0.png", "mask2.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "9.png").write_bytes(b"")
    mask(tmp_path, LUNGS, "mask5.png")
    error = refused(tmp_path, films)
    assert isinstance(error, UnreadableError) and len(error.problems) == 4
    says(error, "4 problems", "/0.png", "mask2.png", "9.png: the file is empty", "mask5.png", "training[2]")


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a list, chest.json, and a run trained on it, out."""
    folder = tmp_path_factory.mktemp("trained")
    write_list(folder, write_films(folder))
    train(folder)
    return folder


def train(folder: Path, **settings: Any) -> None:
    values = {**TINY, "dataset": str(folder / "chest.json"), "output_dir": str(folder / "out"), **settings}
    workflow_of(**values).parser.get_parsed_content("train::trainer").run()


def evaluate(folder: Path, **settings: Any) -> None:
    values = {**TINY, "dataset": str(folder / "chest.json"), "output_dir": str(folder / "again"), **settings}
    workflow_of([TRAIN, EVALUATE], **values).parser.get_parsed_content("evaluation").run()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"learning_rate": 0.01}, ["learning_rate was 0.0001 and is 0.01"]),
        ({"method": "umtls"}, ["method was 'multimix' and is 'umtls'"]),
        ({"class_labels": 2, "seed": 3}, ["class_labels was None and is 2", "seed was 0 and is 3"]),
    ],
)
def test_resuming_with_other_settings(trained, settings, parts):
    before = snapshot(trained / "out")
    with pytest.raises(SettingsError) as caught:
        train(trained, resume=True, max_epochs=2, **settings)
    says(caught.value, "checkpoint.pt cannot be resumed", *parts, "another output_dir")
    assert snapshot(trained / "out") == before


@pytest.mark.parametrize("changed", ["image", "mask"])
def test_resuming_with_other_data(trained, changed, tmp_path):
    content = write_films(tmp_path)
    write_list(tmp_path, content)
    train(tmp_path)
    if changed == "image":
        Image.fromarray(255 - np.asarray(Image.open(tmp_path / "3.png"))).save(tmp_path / "3.png")
    else:
        mask(tmp_path, LUNGS > 0)
    with pytest.raises(SettingsError, match="the data have changed"):
        train(tmp_path, resume=True, max_epochs=2)


def test_resuming_a_falling_rate_that_ends_elsewhere(tmp_path):
    write_list(tmp_path, write_films(tmp_path))
    train(tmp_path, lr_schedule="one_cycle")
    with pytest.raises(SettingsError, match="max_epochs was 1 and is 2"):
        train(tmp_path, lr_schedule="one_cycle", resume=True, max_epochs=2)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"ckpt_path": "nowhere.pt"}, ["nowhere", "train first"]),
        ({}, ["model", "train first"]),
        ({"method": "umtls"}, ["trained otherwise", "method was 'multimix' and is 'umtls'"]),
        ({"method": "unet"}, ["method was 'multimix' and is 'unet'"]),
        ({"image_size": 64}, ["image_size was 32 and is 64"]),
        ({"keep_aspect": False}, ["keep_aspect was True and is False"]),
    ],
)
def test_evaluating_what_does_not_fit(trained, settings, parts):
    if settings and "ckpt_path" not in settings:
        settings = {**settings, "ckpt_path": str(trained / "out" / "model.pt")}
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError)) as caught:
        evaluate(trained, **settings)
    says(cause_of(caught.value), *parts)
    assert not (trained / "again").exists()


def test_evaluating_data_with_the_classes_the_other_way_round(trained, tmp_path):
    content = write_films(tmp_path)
    write_list(tmp_path, content | {"labels": ["opacity", "clear"]})
    with pytest.raises(ValueError) as caught:
        evaluate(tmp_path, ckpt_path=str(trained / "out" / "model.pt"))
    says(caught.value, "classes was ['clear', 'opacity'] and is ['opacity', 'clear']")


def test_weights_exchanged_under_their_description(trained, tmp_path):
    other = torch.load(trained / "out" / "model.pt", weights_only=True)
    torch.save({key: value for key, value in other.items() if "decoder" not in key}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text((trained / "out" / "model.json").read_text())
    with pytest.raises(ValueError, match="does not hold the weights of this network"):
        evaluate(trained, ckpt_path=str(tmp_path / "model.pt"))


def test_weights_of_another_bundle(tmp_path):
    from label_efficient.networks.backbones import build_backbone

    torch.save(build_backbone("resnet18", 2).state_dict(), tmp_path / "model.pt")
    write_list(tmp_path, write_films(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, ckpt_path=str(tmp_path / "model.pt"))
    says(cause_of(caught.value), "ckpt_path", "does not hold the weights of this network")
    assert not (tmp_path / "out").exists()
    description = {"bundle": "lsanet", "classes": ["clear", "opacity"], "image_size": 28}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="bundle was 'lsanet' and is 'multimix'"):
        evaluate(tmp_path, ckpt_path=str(tmp_path / "model.pt"))


def test_a_diverged_run_fails_and_leaves_no_weights(tmp_path):
    write_list(tmp_path, write_films(tmp_path))
    with pytest.raises(ValueError) as caught:
        train(tmp_path, learning_rate=1e30, steps_per_epoch=6)
    says(caught.value, "training diverged", "epoch 1", "learning_rate")
    assert not (tmp_path / "out" / "model.pt").exists()


def test_weights_that_are_not_finite_are_not_evaluated(trained, tmp_path):
    weights = torch.load(trained / "out" / "model.pt", weights_only=True)
    torch.save({key: value * float("nan") for key, value in weights.items()}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text((trained / "out" / "model.json").read_text())
    with pytest.raises(ValueError, match="not finite"):
        evaluate(trained, ckpt_path=str(tmp_path / "model.pt"))


def test_a_lung_that_vanishes_at_the_size_of_the_network_is_no_divergence(tmp_path):
    content = write_films(tmp_path)
    big = np.zeros((360, 400), np.uint8)
    Image.fromarray(big + 90).save(tmp_path / "4.png")
    big[100:102, 100:102] = 255
    mask(tmp_path, big, "mask4.png")
    says(refused(tmp_path, content), "mask4.png", "image_size")


# The command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--learning_rat", "0.1"], "ERROR: SettingsError: unknown setting 'learning_rat': did you mean"),
        (["--dataset", "chest.json"], "labelled file among the unlabelled: it has label and mask"),
        (["--dataset", "nowhere.json"], "ERROR: FileNotFoundError: nowhere.json: no such list"),
    ],
)
def test_the_sentence_that_helps_stands_last(tmp_path, films, arguments, last):
    move("training", "unlabelled")(films)
    write_list(tmp_path, films)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", TRAIN, "--output_dir", "out", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert last in done.stderr.strip().splitlines()[-1], done.stderr[-2000:]
    assert not (tmp_path / "out").exists()
