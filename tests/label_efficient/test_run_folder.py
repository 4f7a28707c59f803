"""The folder of a run: nobody's file is lost, an earlier run only for a new one that is complete, one run at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from label_efficient.data.image_files import list_images
from label_efficient.default_folder import default_folder
from label_efficient.files import short_name
from label_efficient.run_account import Account
from label_efficient.run_folder import OUR_NAMES, RunFolder
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
    with pytest.raises(SettingsError, match="holds masks, which no run of ours wrote"):
        again.open()
    (tmp_path / "masks").rename(tmp_path / "mine")
    with pytest.raises(SettingsError, match=r"b\.png was not written by a run of ours"):
        again.file("figures/b.png")
    again.forget("figures")
    again.close()
    assert _files(tmp_path) == {"model.pt": "old", "figures/b.png": "mine", "mine/a.png": "mine too"}


def test_an_earlier_run_is_replaced_only_if_asked(tmp_path):
    _run(tmp_path).close()
    with pytest.raises(SettingsError, match="holds an earlier training: resume=true continues it, overwrite=true"):
        RunFolder(tmp_path, "training").open()
    _run(tmp_path / "p", "inference", names=["predictions.csv"]).close()
    with pytest.raises(SettingsError, match="overwrite=true replaces it once the new one has predictions"):
        RunFolder(tmp_path / "p", "inference").open()


def test_the_earlier_run_stands_until_the_new_one_is_complete(tmp_path):
    _run(tmp_path).close()
    new = _run(tmp_path, overwrite=True, content="new", names=("model.pt", "history.csv"))
    assert _files(tmp_path) == {"model.pt": "old", "figures/a.png": "old"}
    new.complete()
    assert _files(tmp_path) == {"model.pt": "new", "history.csv": "new"}
    new.file("metrics.json").write_text("new")
    new.close()
    assert _files(tmp_path)["metrics.json"] == "new" and Account(tmp_path).marker["kind"] == "training"


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_new_run_that_ends_before_it_has_a_model_leaves_the_earlier_one(tmp_path, end):
    _run(tmp_path).close()
    new = _run(tmp_path, overwrite=True, content="new", names=("history.csv",))
    if end == "close":
        new.close()
    else:
        new._lock.release()  # as the system does when a process is killed
        new._lock = None
    assert _files(tmp_path) == {"model.pt": "old", "figures/a.png": "old"}
    _run(tmp_path, "evaluation", names=()).close()
    assert _files(tmp_path) == {"model.pt": "old", "figures/a.png": "old"}


@pytest.mark.parametrize(("first", "second"), [("training", "inference"), ("inference", "training"),
                                               ("inference", "evaluation")])  # fmt: skip
def test_one_kind_of_run_never_writes_into_another_kinds_folder(tmp_path, first, second):
    _run(tmp_path, first, names=["metrics.json", "predictions.csv"]).close()
    with pytest.raises(SettingsError, match=f"belongs to an earlier {first}: give another folder for this {second}"):
        RunFolder(tmp_path, second, overwrite=True).open()


def test_an_evaluation_adds_to_the_training_whose_weights_it_evaluates(tmp_path):
    _run(tmp_path, names=("model.pt", "metrics.json")).close()
    _run(tmp_path, "evaluation", content="again", names=("metrics.json", "predictions.csv")).close()
    assert _files(tmp_path) == {"model.pt": "old", "metrics.json": "again", "predictions.csv": "again"}
    assert Account(tmp_path).marker["kind"] == "training"


def test_two_runs_at_a_time_are_refused_with_the_holders_name(tmp_path):
    code = (
        "import sys; from label_efficient import run_folder; run_folder._PATIENCE = 0;"
        "run_folder.RunFolder(sys.argv[1], 'training').open()"
    )
    with_lock = RunFolder(tmp_path, "training")
    with_lock.file("model.pt").touch()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"is in use by process {os.getpid()} on " in done.stderr
    with_lock.close()
    with pytest.raises(SettingsError, match="holds an earlier training"):
        RunFolder(tmp_path, "training").open()


def test_a_file_and_a_folder_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match="is a file: give a folder"):
        RunFolder(tmp_path / "file", "training").open()
    with pytest.raises(SettingsError, match="cannot be written to"):
        RunFolder("/proc/1/run", "training").open()


@pytest.mark.parametrize("moment", range(6))
def test_a_run_killed_while_it_takes_the_place_of_another_is_complete_at_the_next_start(tmp_path, monkeypatch, moment):
    _run(tmp_path, names=("model.pt", "figures/a.png", "history.csv")).close()
    new = _run(tmp_path, overwrite=True, content="new", names=("model.pt", "figures/b.png", "metrics.json"))
    calls, real = [], {"replace": os.replace, "unlink": Path.unlink}

    def dies(name, *arguments, **options):
        if len(calls) == moment + 1:
            raise KeyboardInterrupt
        calls.append(name)
        return real[name](*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a, **k: dies("replace", *a, **k))
        patch.setattr(Path, "unlink", lambda *a, **k: dies("unlink", *a, **k))
        with pytest.raises(KeyboardInterrupt):
            new.complete()
    new._lock.release()
    again = RunFolder(tmp_path, "evaluation")
    again.open()
    again.close()
    assert _files(tmp_path) == {"model.pt": "new", "figures/b.png": "new", "metrics.json": "new"}


def test_remains_of_a_killed_run_go_and_nobody_elses(tmp_path):
    _run(tmp_path, names=["checkpoint.pt"]).close()
    (tmp_path / f".{short_name('checkpoint.pt')}.77.tmp").write_text("half")
    (tmp_path / ".mine.77.tmp").write_text("mine")
    (tmp_path / ".run" / "files.jsonl").open("a").write('"torn')
    run = RunFolder(tmp_path, "training", resume=True)
    run.open()
    run.close()
    assert Account(tmp_path).names == {"checkpoint.pt"}
    assert _files(tmp_path) == {"checkpoint.pt": "old", ".mine.77.tmp": "mine"}


def test_a_run_that_came_to_nothing_is_replaced_without_asking(tmp_path):
    _run(tmp_path, names=("train.log", "masks/a.png")).close()
    _run(tmp_path, "inference", content="new", names=["predictions.csv"]).close()
    assert _files(tmp_path) == {"predictions.csv": "new"}


def test_resuming_without_a_checkpoint(tmp_path):
    _run(tmp_path, names=["model.pt"]).close()
    run = _run(tmp_path, content="new", resume=True, names=["model.pt"])
    assert _files(tmp_path) == {"model.pt": "old"} and not run.resumes
    run.close()
    _run(tmp_path / "done", names=["model.pt", "metrics.json"]).close()
    with pytest.raises(SettingsError, match=r"finished run without its checkpoint\.pt"):
        RunFolder(tmp_path / "done", "training", resume=True).open()


def test_an_evaluation_of_other_weights_does_not_replace_a_trainings_figures(tmp_path):
    _run(tmp_path / "a").close()
    with pytest.raises(SettingsError, match="are the weights of another"):
        RunFolder(tmp_path / "a", "evaluation", evaluated=tmp_path / "b" / "model.pt").open()
    RunFolder(tmp_path / "a", "evaluation", evaluated=tmp_path / "a" / "model.pt").open()


def test_weights_elsewhere_are_guarded_the_same_way(tmp_path):
    for name in ("mine", "run", "weights"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "model.pt").write_text("mine")
    with pytest.raises(SettingsError, match=r"ckpt_dir=.*mine' holds model\.pt, which no run of ours wrote"):
        RunFolder(tmp_path / "run", "training", ckpt_dir=tmp_path / "mine").open()
    assert os.listdir(tmp_path / "run") == []
    for content, options in (("old", {}), ("new", {"overwrite": True})):
        run = RunFolder(tmp_path / "run", "training", ckpt_dir=tmp_path / "weights", **options)
        run.file("checkpoint.pt").write_text(content)
        run.weights.file("model.pt").write_text(content)
        assert _files(tmp_path / "weights") == {"model.pt": "old"}
        run.complete()
        run.close()
    assert _files(tmp_path / "weights") == {"model.pt": "new"} and _files(tmp_path / "run") == {"checkpoint.pt": "new"}


def test_links_and_names_that_lead_elsewhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_text("mine")
    out = tmp_path / "out"
    _run(out, names=("model.pt", "masks/a.png")).close()
    (out / "masks" / "a.png").unlink()
    (out / "masks").rmdir()
    (out / "masks").symlink_to(tmp_path / "elsewhere")
    with (out / ".run" / "files.jsonl").open("a") as account:
        account.write('"../elsewhere/a.png"\n"/etc/hostname"\n')
    run = _run(out, overwrite=True, names=["model.pt"])
    with pytest.raises(SettingsError, match="masks is a link to another folder"):
        run.file("masks/a.png")
    with pytest.raises(ValueError, match="is no name of a file in"):
        run.file("../a.png")
    run.account.names.discard("masks/a.png")
    run.complete()
    run.close()
    assert (tmp_path / "elsewhere" / "a.png").read_text() == "mine"


@pytest.mark.parametrize("make", [lambda p: (p / ".run").mkdir() or (p / ".run" / "x").touch(),
                                  lambda p: (p / ".run").symlink_to(p), lambda p: (p / ".run").touch()])  # fmt: skip
def test_a_folder_of_books_that_is_not_ours(tmp_path, make):
    make(tmp_path)
    with pytest.raises(SettingsError, match=r"holds \.run, which no run of ours wrote"):
        RunFolder(tmp_path, "training").open()


def test_nothing_is_written_among_the_images_that_are_all_read(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="is dataset_dir, all of whose images are predicted"):
        RunFolder(tmp_path, "inference", images=tmp_path).open()
    run = RunFolder(tmp_path / "out", "inference", images=tmp_path)
    Image.new("L", (4, 4)).save(run.file("overlay.png"))
    run.close()
    assert list_images(tmp_path) == [tmp_path / "a.png"]


def test_a_run_that_was_refused_before_it_wrote_leaves_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "out", tmp_path / "mine"):
        run = RunFolder(folder, "inference")
        run.open()
        run.close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_default_folders_are_numbered(tmp_path):
    def new(latest=False):
        return default_folder(str(tmp_path), "cells", "training", latest)

    first = tmp_path / "cells"
    assert new() == new(True) == str(first)
    running = RunFolder(first, "training")
    running.open()
    assert new() == f"{first}-2"
    running.close()
    assert new() == str(first)  # it came to nothing
    _run(first).close()
    _run(Path(f"{first}-7")).close()
    _run(Path(f"{first}-8"), "evaluation", names=["metrics.json"]).close()
    (tmp_path / "cells-more").mkdir()
    assert new() == f"{first}-9" and new(True) == f"{first}-7"
