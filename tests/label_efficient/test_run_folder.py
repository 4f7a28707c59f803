"""The folder of a run: nobody's file is lost, an earlier run only for a new one that is complete, one run at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from label_efficient.run_folder import OUR_NAMES, RunFolder, kind_of_run, latest_folder, new_folder
from label_efficient.settings import SettingsError


def _run(folder: Path, kind="training", content="old", names=("model.pt", "figures/a.png"), **options) -> RunFolder:
    run = RunFolder(folder, kind, **options)
    for name in names:
        place = run.file(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return run


def _files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*"))
            if p.is_file() and ".run" not in p.relative_to(folder).parts}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OUR_NAMES))
def test_a_folder_with_a_strangers_file_of_our_name_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SettingsError, match=f"holds {name}, which no run of ours wrote"):
        RunFolder(tmp_path, "inference", overwrite=True).open()
    assert sorted(os.listdir(tmp_path)) == [name] and (tmp_path / name).read_text() == "mine"


def test_other_files_of_a_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    _run(tmp_path).close()
    _run(tmp_path, overwrite=True, content="new").close()
    assert _files(tmp_path)["notes.txt"] == "mine"


def test_a_strangers_file_put_into_a_run_later_is_neither_replaced_nor_deleted(tmp_path):
    _run(tmp_path).close()
    (tmp_path / "figures" / "b.png").write_text("mine")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("mine too")
    again = RunFolder(tmp_path, "evaluation")
    with pytest.raises(SettingsError, match=r"a\.png was not written by a run of ours"):
        again.file("masks/a.png")
    again.forget("figures")
    again.close()
    assert _files(tmp_path) == {"model.pt": "old", "figures/b.png": "mine", "masks/a.png": "mine too"}


def test_an_earlier_run_is_replaced_only_if_asked(tmp_path):
    _run(tmp_path).close()
    with pytest.raises(SettingsError, match="holds an earlier run: resume=true continues it, overwrite=true"):
        RunFolder(tmp_path, "training").open()
    _run(tmp_path / "p", "inference").close()
    with pytest.raises(SettingsError, match="overwrite=true replaces them"):
        RunFolder(tmp_path / "p", "inference").open()


def test_the_earlier_run_stands_until_the_new_one_is_complete(tmp_path):
    _run(tmp_path).close()
    new = _run(tmp_path, overwrite=True, content="new", names=("model.pt", "history.csv"))
    assert _files(tmp_path) == {"model.pt": "old", "figures/a.png": "old"}
    new.complete()
    assert _files(tmp_path) == {"model.pt": "new", "history.csv": "new"}
    new.file("metrics.json").write_text("new")
    new.close()
    assert _files(tmp_path)["metrics.json"] == "new" and kind_of_run(tmp_path) == "training"


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_new_run_that_ends_before_it_has_a_model_leaves_the_earlier_one(tmp_path, end):
    _run(tmp_path).close()
    new = _run(tmp_path, overwrite=True, content="new", names=("history.csv",))
    if end == "close":
        new.close()
    else:
        new._lock.release()  # as the system does when a process is killed
    assert _files(tmp_path) == {"model.pt": "old", "figures/a.png": "old"}
    _run(tmp_path, resume=True, names=()).close()
    assert _files(tmp_path) == {"model.pt": "old", "figures/a.png": "old"}


@pytest.mark.parametrize(("first", "second"), [("training", "inference"), ("inference", "training"),
                                               ("inference", "evaluation")])  # fmt: skip
def test_one_kind_of_run_never_writes_into_another_kinds_folder(tmp_path, first, second):
    _run(tmp_path, first).close()
    with pytest.raises(SettingsError, match=f"belongs to an earlier {first}: give another folder for this {second}"):
        RunFolder(tmp_path, second, overwrite=True).open()


def test_an_evaluation_adds_to_the_training_whose_weights_it_evaluates(tmp_path):
    _run(tmp_path, names=("model.pt", "metrics.json")).close()
    _run(tmp_path, "evaluation", content="again", names=("metrics.json", "predictions.csv")).close()
    assert _files(tmp_path) == {"model.pt": "old", "metrics.json": "again", "predictions.csv": "again"}
    assert kind_of_run(tmp_path) == "training"


def test_two_runs_at_a_time_are_refused_with_the_holders_name(tmp_path):
    code = "import sys; from label_efficient.run_folder import RunFolder; RunFolder(sys.argv[1], 'training').open()"
    with_lock = RunFolder(tmp_path, "training")
    with_lock.open()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"is in use by process {os.getpid()} on " in done.stderr
    with_lock.close()
    with pytest.raises(SettingsError, match="holds an earlier run"):
        RunFolder(tmp_path, "training").open()


def test_a_file_and_a_folder_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match="is a file: give a folder"):
        RunFolder(tmp_path / "file", "training").open()
    with pytest.raises(SettingsError, match="cannot be written to"):
        RunFolder("/proc/1/run", "training").open()


def test_default_folders_are_numbered(tmp_path):
    wanted = str(tmp_path / "cells")
    assert new_folder(wanted) == wanted
    _run(Path(wanted)).close()
    assert new_folder(wanted) == f"{wanted}-2" and latest_folder(wanted, "training") == wanted
    _run(Path(f"{wanted}-2")).close()
    assert new_folder(wanted) == f"{wanted}-3" and latest_folder(wanted, "training") == f"{wanted}-2"
