"""A copy of a bundle's folder with the library inside, its folder on nobody's path; and one without the library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
ALONE = """
import json, sys
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, load
from monai.bundle.properties import InferProperties, TrainProperties
from monai.fl.client import MonaiAlgo

root = sys.argv[1]
for kind, name, properties in (("train", "train", TrainProperties), ("infer", "inference", InferProperties)):
    config = f"{root}/configs/{name}.json"
    for start in (create_workflow, ConfigWorkflow):
        workflow = start(config_file=config, workflow_type=kind, logging_file=False)
        workflow.initialize()
        for key in reversed(properties) if start is create_workflow else ["network_def"]:
            if key != "evaluator" or kind == "train":  # needs images to predict
                getattr(workflow, key)
    assert workflow.parser.get_parsed_content("bundle_root") == root
name = root.rsplit("/", 1)[1]
load(name=name, bundle_dir=root.rsplit("/", 1)[0], workflow_type="inference", source="monaihosting")
client = MonaiAlgo(bundle_root=root)
client.initialize(extra={"CLIENT_NAME": "a", "APP_ROOT": root})
print("fine")
"""


def _copy(bundle: str, folder: Path, library: bool = True) -> Path:
    root = folder / bundle
    shutil.copytree(BUNDLES / bundle, root, ignore=shutil.ignore_patterns("runs", "figures", "__pycache__"))
    if library:
        shutil.copytree(BUNDLES / "common" / "label_efficient", root / "label_efficient")
    return root


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["lsanet", "multimix", pytest.param("gated_attention", marks=pytest.mark.release)])
def test_every_consumer_finds_the_code_of_the_folder(bundle, tmp_path):
    root = _copy(bundle, tmp_path / "unpacked")
    (tmp_path / "elsewhere").mkdir()
    done = _python("-c", ALONE, str(root), cwd=tmp_path / "elsewhere")
    assert done.stdout.endswith("fine\n"), done.stderr[-3000:]


@pytest.mark.parametrize("words", [["--help"], ["--help", "true"]])
def test_help_is_printed_before_anything_is_written(words, tmp_path):
    root = _copy("lsanet", tmp_path / "unpacked")
    command = ["-m", "monai.bundle", "run", "training", "--config_file", str(root / "configs" / "train.json")]
    done = _python(*command, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--weight_decay (0.0)\n      of Adam. Expected: a number of at least 0" in done.stdout
    assert not (root / "runs").exists() and [p.name for p in tmp_path.iterdir()] == ["unpacked"]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("import sys; sys.modules['label_efficient'] = None; ", "lsanet needs label_efficient: `python -m pip install"),
        (
            "import label_efficient; label_efficient.__version__ = '0.1.9'; ",
            "needs label_efficient 0.3.0 and this is 0.1.9",
        ),
    ],
)
def test_a_library_that_is_missing_or_of_another_version_is_one_sentence(block, sentence, tmp_path):
    root = _copy("lsanet", tmp_path)
    done = _python("-c", f"{block}import lsanet", cwd=root)
    assert sentence in done.stderr.splitlines()[-1]


def test_a_second_copy_of_another_version_is_refused(tmp_path):
    first, second = _copy("lsanet", tmp_path / "a"), _copy("lsanet", tmp_path / "b", library=False)
    code = "import sys, lsanet; from label_efficient.versions import check_copy as check; "
    code += "check(lsanet.__file__, sys.argv[1]); print('fine')"
    assert _python("-c", code, str(second), cwd=first).stdout == "fine\n"
    metadata = second / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"version": "0.3.0"', '"version": "0.4.0"'))
    done = _python("-c", code, str(second), cwd=first)
    assert "is version 0.4.0 of bundle lsanet, and version 0.3.0 from" in done.stderr.splitlines()[-1]
