"""What inference collects and writes, whatever the network."""

import csv
import logging
from collections import UserList

import pytest
import torch
from ignite.engine import Engine

from label_efficient.evaluation.decisions import Decision
from label_efficient.evaluation.inference_writer import InferenceWriter
from label_efficient.output_names import picture_names
from label_efficient.run_folder import RunFolder
from label_efficient.settings import SettingsError


class Writer(InferenceWriter):
    """Draws nothing but the names of what it would draw."""

    def interpret(self, output):
        """The certainty of the first class decides."""
        return output["pred"], 1 - output["pred"].max(dim=1).values

    def job(self, index, place, batch):
        """The image's name."""
        return lambda: self.draw(self.run_folder.file(self.names[self.files[index]]))

    def draw(self, path):
        """Nothing of what is called impossible."""
        if "impossible" in path.name:
            raise OSError(36, "File name too long")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.drawn.append(path.relative_to(self.run_folder.path).as_posix())

    def report(self, rows, bad):
        """What a report is given."""
        self.reported = [row["file"] for row in rows], bad, [self.files[i] for i in self.least_certain(2)]


class Batches(list):
    """A loader: batches, and the data set that they are of."""


def run(tmp_path, files, errors, pred, batch_size=2, **options):
    """A run of an engine over files with given predictions."""
    writer = Writer(
        run_folder=RunFolder(tmp_path, "inference", **options),
        classes=["a", "b"],
        decision=Decision(["a", "b"]),
        settings={"ckpt_path": "w.pt"},
    )
    writer.drawn = []
    batches = Batches(
        {"file": files[i : i + batch_size], "path": files[i : i + batch_size], "error": errors[i : i + batch_size]}
        for i in range(0, len(files), batch_size)
    )
    parts = iter(torch.tensor(pred).split(batch_size))
    engine = Engine(lambda engine, batch: {"pred": next(parts)})
    writer.attach(engine)
    batches.dataset = UserList({"file": file} for file in files)
    engine.run(batches)
    with open(tmp_path / "predictions.csv", newline="") as file:
        return writer, list(csv.DictReader(file))


def test_files_that_are_bad_repeated_or_outside(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    files = ["x.png", "bad.png", "/far/../away/x.png", "x.png", "sure.png"]
    pred = [[0.6, 0.4], [0.5, 0.5], [0.3, 0.7], [0.6, 0.4], [0.0, 1.0]]
    writer, rows = run(tmp_path, files, ["", "torn", "", "", ""], pred)
    assert list(rows[0]) == ["file", "pred", "p_a", "p_b", "uncertainty", "error"]
    assert list(rows[0].values()) == ["x.png", "a", "0.600000", "0.400000", "0.400000", ""]
    assert list(rows[1].values()) == ["bad.png", "", "", "", "", "torn"]
    assert rows[0] == rows[3] and rows[2]["pred"] == rows[4]["pred"] == "b"
    assert writer.drawn == ["x.png.png", "far/away/x.png.png", "sure.png.png"]  # the repeated one once
    assert writer.reported == (files, [("bad.png", "torn")], ["x.png", "/far/../away/x.png"])
    assert "no prediction for bad.png: torn" in caplog.text and "4 predictions, 1 files without" in caplog.text
    assert "5 files, w.pt" in (tmp_path / "inference.log").read_text()


def test_nothing_readable_is_an_error_after_the_table(tmp_path):
    with pytest.raises(ValueError, match="none of the 1 files has a prediction; the first: torn"):
        run(tmp_path, ["x.png"], ["torn"], [[0.5, 0.5]])
    assert "torn" in (tmp_path / "predictions.csv").read_text()


def test_a_name_that_nothing_can_be_written_to_costs_its_row(tmp_path):
    files = ["a.png", "impossible.png", "caf\udce9.png"]
    writer, rows = run(tmp_path, files, [""] * 3, [[0.6, 0.4], [0.0, 1.0], [0.3, 0.7]])
    assert [row["pred"] for row in rows] == ["a", "", "b"] and rows[2]["file"] == "caf\\udce9.png"
    assert "File name too long" in rows[1]["error"] and writer.reported[2] == ["a.png", "caf\udce9.png"]
    assert writer.drawn == ["a.png.png", "caf%E9.png.png"]


def test_an_earlier_run_goes_with_all_of_its_pictures_once_there_are_predictions(tmp_path):
    run(tmp_path, ["a.png"], [""], [[0.6, 0.4]])
    with pytest.raises(SettingsError, match="overwrite=true replaces it once the new one has predictions"):
        run(tmp_path, ["b.png"], [""], [[0.6, 0.4]])
    with pytest.raises(ValueError, match="none of the 1 files"):
        run(tmp_path, ["b.png"], ["torn"], [[0.6, 0.4]], overwrite=True)
    assert (tmp_path / "a.png.png").is_file() and "a.png" in (tmp_path / "predictions.csv").read_text()
    run(tmp_path, ["b.png"], [""], [[0.6, 0.4]], overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run", "b.png.png", "inference.log", "predictions.csv"]


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none of the 1 files has a prediction.*output is not finite"):
        run(tmp_path / "alone", ["x.png"], [""], [[float("nan"), 0.5]])
    pred = [[0.9, 0.1], [float("nan"), 0.5], [float("inf"), 0.5], [0.2, 0.8]]
    writer, rows = run(tmp_path, ["a.png", "b.png", "c.png", "d.png"], [""] * 4, pred)
    assert [row["pred"] for row in rows] == ["a", "", "", "b"] and rows[1]["p_a"] == rows[1]["uncertainty"] == ""
    assert "not finite" in rows[1]["error"] and writer.drawn == ["a.png.png", "d.png.png"]


@pytest.mark.parametrize(
    "files, names",
    [
        (["a/b.png", "c.JPEG", "a.png", "a.jpg"], ["a/b.png.png", "c.JPEG.png", "a.png.png", "a.jpg.png"]),
        (["/data/x.png", "../../y.png"], ["data/x.png.png", "y.png.png"]),
        (["../x.png", "x.png", "1_x.png"], ["x.png.png", "b74f9ac89822-x.png.png", "1_x.png.png"]),
        (["A.png", "a.png", "b/c.png"], ["A.png.png", "862ef84bc0ec-a.png.png", "b/c.png.png"]),
        ([], []),
    ],
)
def test_no_two_images_share_an_overlay(files, names):
    assert picture_names(files) == dict(zip(files, names, strict=True))
