"""Tables that a spreadsheet may open."""

import csv

import pytest

from label_efficient.data.tables import read_table
from label_efficient.engine.history import read_history
from label_efficient.files import read_csv, write_csv

HOSTILE = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1dcmd", "'=1", "''", "'a",
           "x;=1", '"quoted", comma', "-", "=", "-1 apple", "a=b", "", " =1"]  # fmt: skip
NUMBERS = ["-0.5", "+3", "-1e-05", "-inf", "nan", "-.5", "-7"]


@pytest.mark.parametrize("text", HOSTILE + NUMBERS)
def test_no_cell_is_a_formula_and_all_are_read_as_they_were(tmp_path, text):
    path = tmp_path / "predictions.csv"
    write_csv(path, [{"file": text, f"p_{text}": 0.25, text or "none": None}])
    with open(path, newline="", encoding="utf-8") as file:
        header, cells = csv.reader(file)
    for cell in (cells[0], header[2]):
        assert cell == text if text in NUMBERS else cell[:1] not in tuple("=+-@\t\r\n\uff1d")
    assert read_csv(path) == [{"file": text, f"p_{text}": "0.25", text or "none": ""}]
    if text.strip() == text:
        assert read_table(path).lines == [(2, {"file": text, f"p_{text}": "0.25", text or "none": ""})]


def test_what_is_harmless_is_written_as_ever(tmp_path):
    rows = [{"epoch": 1, "loss": -0.5, "rate": 1e-05, "none": None}, {"epoch": 2, "loss": float("nan"), "more": True}]
    write_csv(tmp_path / "history.csv", rows)
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,rate,none,more\n1,-0.5,1e-05,,\n2,nan,,,True\n"
    write_csv(tmp_path / "history.csv", rows[:1])
    assert read_history(tmp_path / "history.csv")[0]["loss"] == -0.5
    write_csv(tmp_path / "names.csv", [{"file": "a\udcff.png"}])
    assert read_csv(tmp_path / "names.csv") == [{"file": "a\\udcff.png"}]
