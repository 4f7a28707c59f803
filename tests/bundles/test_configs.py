"""The configs of all bundles: the same settings everywhere, in step with the model cards, nothing undocumented."""

import hashlib
import importlib
import json
import re
from pathlib import Path

import pytest
import render_settings

from label_efficient.settings import setting_names

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(p.parent.parent for p in ROOT.glob("bundles/*/configs/train.json"))
COMMON = """dataset dataset_dir datalist output_dir image_size max_epochs batch_size learning_rate seed device amp
num_workers val_interval early_stop_patience pretrained ckpt_path resume""".split()


@pytest.fixture(params=BUNDLES, ids=lambda p: p.name)
def bundle(request) -> Path:
    return request.param


def _read(bundle: Path, name: str) -> dict:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def test_common_settings_have_the_same_names(bundle):
    assert set(COMMON) <= set(setting_names(_read(bundle, "train")))


def test_settings_of_configs_models_and_model_cards_are_the_same(bundle):
    models = importlib.import_module(f"{bundle.name}.settings")
    for name, model in (("train", models.Training), ("inference", models.Inference)):
        assert set(model.model_fields) == set(setting_names(_read(bundle, name)))
    card = (bundle / "docs" / "README.md").read_text()
    assert render_settings.render(card, bundle) == card and card.count("<!-- settings:") == 2


def test_configs_can_be_read(bundle):
    for path in (bundle / "configs").glob("*[!a].json"):  # prose in metadata.json
        text = path.read_text()
        assert text.count("\n") <= 380
        assert max(map(len, re.findall(r'"((?:[^"\\]|\\.)*)"', text))) <= 120, path.name


def test_every_reference_in_a_config_exists(bundle):
    train = _read(bundle, "train")
    known = set(train) | {n for name in ("evaluate", "multi_gpu_train") for n in _read(bundle, name)}
    for config in (train, {**train, **_read(bundle, "evaluate")}, {**train, **_read(bundle, "multi_gpu_train")}):
        names = re.findall(r"[\"$ \[({]@([a-z_0-9]+)", json.dumps(config).replace("\\", ""))
        assert len(names) > 50
        assert not [n for n in names if n not in known]


def test_metadata_says_what_the_zoo_asks_for(bundle):
    metadata = _read(bundle, "metadata")
    needed = """schema version changelog monai_version pytorch_version numpy_version required_packages_version task
    description authors copyright network_data_format""".split()
    assert [n for n in needed if n not in metadata] == []
    assert metadata["version"] in metadata["changelog"]
    for path in "LICENSE configs/inference.json configs/logging.conf docs/README.md docs/data_license.txt".split():
        assert (bundle / path).is_file()


def test_released_weights_are_what_their_description_says(bundle):
    path = bundle / "models" / "model.pt"
    info = json.loads(path.with_suffix(".json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert info["sha256"] == digest
    assert digest in (bundle / "models" / "README.md").read_text()
    outputs = _read(bundle, "metadata")["network_data_format"]["outputs"]["pred"]
    # A network that also segments has the mask's channels before those of the classes.
    mask = ["background", "lung"] if outputs["format"] == "segmentation" else []
    assert list(outputs["channel_def"].values()) == [*mask, *info["classes"]]
    assert outputs["num_channels"] == len(outputs["channel_def"])
    inputs = _read(bundle, "metadata")["network_data_format"]["inputs"]["image"]
    # A network that takes pixels as they are stored makes its small copy itself.
    if inputs["value_range"] != [0, 255]:
        assert inputs["spatial_shape"] == [info["image_size"]] * 2
