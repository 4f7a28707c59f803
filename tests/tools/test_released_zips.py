"""Released zips work where they are unpacked, in an environment that has third-party packages and nothing of ours."""

import io
import zipfile
from pathlib import Path

import pytest
from bundle_paths import BUNDLES, ROOT
from PIL import Image
from releases.archive import build_archive, release_files
from releases.trial import run_python, third_party_environment

IN_ONE_PROCESS = """
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

folder, pictures, *names = sys.argv[1:]
assert not any(find_spec(name) for name in ("label_efficient", *names))

from monai.bundle import create_workflow, load
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict

for name in names:
    root = Path(folder, name)
    assert load(name, bundle_dir=folder, device="cpu").state_dict()
    settings = {"dataset_dir": pictures, "output_dir": f"{name}-inference", "num_workers": 0, "device": "cpu"}
    config = str(root / "configs" / "inference.json")
    create_workflow(config_file=config, workflow_type="infer", logging_file=False, **settings).run()
    small = {"image_size": 64, "max_epochs": 1, "num_workers": 0, "device": "cpu", "output_dir": f"{name}-site"}
    client = MonaiAlgo(bundle_root=str(root), train_kwargs=dict(small), eval_kwargs=dict(small))
    client.initialize()
    weights = {key: value.clone() for key, value in get_state_dict(client.trainer.network).items()}
    client.train(ExchangeObject(weights=weights))
    assert any(change.abs().max() > 0 for change in client.get_weights().weights.values())
    client.finalize()
    assert Path(import_module(name).__file__).is_relative_to(root)
assert Path(import_module("label_efficient").__file__).is_relative_to(Path(folder, names[0]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return third_party_environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the three zips were unpacked beside one another."""
    folder = tmp_path_factory.mktemp("unpacked")
    for name in BUNDLES:
        zipfile.ZipFile(io.BytesIO(build_archive(name, release_files(ROOT, name)))).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        Image.effect_noise((90, 70), 60 + 40 * number).save(folder / f"{number}.png")
    return folder


@pytest.mark.release
@pytest.mark.parametrize("name", BUNDLES)
def test_commands_from_another_folder(name: str, python: Path, unpacked: Path, pictures: Path, tmp_path: Path) -> None:
    configs = unpacked / name / "configs"
    start = ("-m", "monai.bundle", "run")
    here = ("--device", "cpu", "--num_workers", "0", "--output_dir")
    run_python(
        python,
        *(*start, "training", "--config_file", str(configs / "train.json"), "--max_epochs", "1"),
        *("--image_size", "64", *here, str(tmp_path / "run")),
        folder=tmp_path,
    )
    assert len((tmp_path / "run/history.csv").read_text().splitlines()) == 2
    assert (tmp_path / "run/model.pt").is_file() and (tmp_path / "run/report.html").is_file()
    run_python(
        python,
        *(*start, "inference", "--config_file", str(configs / "inference.json")),
        *("--dataset_dir", str(pictures), *here, str(tmp_path / "predictions")),
        folder=tmp_path,
    )
    lines = (tmp_path / "predictions/predictions.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["0.png", "1.png"]
    assert not list((unpacked / name).rglob("__pycache__")) and not (unpacked / name / "runs").exists()


@pytest.mark.release
def test_all_in_one_process_without_a_path(python: Path, unpacked: Path, pictures: Path, tmp_path: Path) -> None:
    run_python(python, "-c", IN_ONE_PROCESS, str(unpacked), str(pictures), *BUNDLES, folder=tmp_path)
    for name in BUNDLES:
        assert (tmp_path / f"{name}-inference" / "predictions.csv").is_file()
        assert (tmp_path / f"{name}-site" / "model.pt").is_file()
