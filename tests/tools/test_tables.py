"""tools/run_table.py and tools/render_tables.py: rows and seeds to a CSV, CSVs to Markdown."""

import argparse
import csv
import importlib
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import render_tables
import run_table

ROOT = Path(__file__).resolve().parents[2]

METRICS = {
    "dataset": "retina",
    "chosen_epoch": 3,
    "test": {"acc": 0.5, "auc": 0.75, "n": 400},
    "validation": {"acc": 0.6, "auc": 0.8, "n": 120},
    "last_epoch": {"epoch": 9, "test": {"acc": 0.4, "auc": 0.7, "n": 400}},
}


def _table(folder: Path) -> Path:
    path = folder / "methods.json"
    rows = {"lsanet": {"method": "lsanet"}, "baseline": {"method": "baseline"}}
    path.write_text(json.dumps({"bundle": "lsanet", "common": {"dataset": "demo"}, "rows": rows}))
    return path


def test_rows_by_seeds_are_kept_and_not_run_twice(tmp_path, monkeypatch):
    calls = []

    def run(bundle, settings, folder, **_):
        calls.append((settings["method"], settings["seed"]))
        if settings["method"] == "baseline" and len(calls) < 3:
            return None
        return run_table.figures(METRICS)

    monkeypatch.setattr(run_table, "run", run)
    output = tmp_path / "results" / "methods.csv"
    command = [str(_table(tmp_path)), "--seeds", "0", "--output", str(output), "--runs_dir", str(tmp_path)]
    assert run_table.main(command) == 1
    assert run_table.main(command) == 0
    assert calls == [("lsanet", 0), ("baseline", 0), ("baseline", 0)]
    rows = list(csv.DictReader(output.open()))
    assert [r["row"] for r in rows] == ["lsanet", "baseline"]
    assert rows[0]["acc"] == "0.5000" and rows[0]["last_auc"] == "0.7000" and rows[0]["val_acc"] == "0.6000"


@pytest.mark.parametrize(("jobs", "given", "expected"), [("1", None, None), ("4", None, "2"), ("2", "3", "3")])
def test_runs_side_by_side_share_the_cores(tmp_path, monkeypatch, jobs, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    seen = []
    monkeypatch.setattr(
        run_table, "run", lambda *_, **__: seen.append(os.environ.get("OMP_NUM_THREADS")) or run_table.figures(METRICS)
    )
    output = ["--output", str(tmp_path / "methods.csv"), "--runs_dir", str(tmp_path)]
    assert run_table.main([str(_table(tmp_path)), "--jobs", jobs, *output]) == 0
    assert seen == [expected, expected]


def test_a_changed_setting_runs_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run_table, "run", lambda *a, **_: calls.append(a) or run_table.figures(METRICS))
    path, output = _table(tmp_path), tmp_path / "methods.csv"
    command = [str(path), "--output", str(output), "--runs_dir", str(tmp_path)]
    assert run_table.main(command) == 0
    table = json.loads(path.read_text())
    table["common"]["image_size"] = 64
    path.write_text(json.dumps(table))
    assert run_table.main(command) == 0
    assert len(calls) == 4 and len(list(csv.DictReader(output.open()))) == 2


def test_failed_run_names_its_output(tmp_path, capfd):
    row = run_table.run("lsanet", {"dataset": "demo", "methud": "lsanet"}, tmp_path / "run")
    assert row is None
    assert "run.txt" in capfd.readouterr().err
    assert "did you mean 'method'" in (tmp_path / "run" / "run.txt").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"bundle": "lsanet"}, "common, rows missing"), ({"bundle": "x", "common": {}, "rows": {}}, "no such folder")],
)
def test_wrong_table_is_refused(tmp_path, content, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=message):
        run_table.main([str(path), "--output", str(tmp_path / "o.csv"), "--runs_dir", str(tmp_path)])


def test_tables_are_means_over_seeds_and_checked(tmp_path, capsys):
    (tmp_path / "r.csv").write_text("row,seed,acc,epoch\nlsanet,0,0.5,3\nlsanet,1,0.7,4\nbaseline,0,0.55,9\n")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table: r.csv row,acc,epoch -->\nold\n<!-- end of table -->\nb\n")
    assert render_tables.main(["--check", str(readme)]) == 1
    assert "README.md" in capsys.readouterr().err
    assert render_tables.main([str(readme)]) == 0
    assert "| lsanet | 60.0 ± 14.1 | 3, 4 |\n| baseline | 55.0 | 9 |" in readme.read_text()
    assert render_tables.main(["--check", str(readme)]) == 0


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "r.csv").write_text("row,acc\nlsanet,0.5\n")
    with pytest.raises(SystemExit, match="no column auc; it has row, acc"):
        render_tables.table(tmp_path / "r.csv", ["row", "auc"])


def test_a_benchmark_shows_the_rows_with_a_bar(tmp_path):
    header = "benchmark,image_size,ours,against,median_ours,median_against,ratio,ratio_min,ratio_max,bar,holds,device"
    lines = ["step,64,a,b,1,2,1.05,1.0,1.1,<= 1.10,yes,cpu", "step,28,a,b,1,2,1.2,1.0,1.3,<= 1.10,missed,cpu"]
    (tmp_path / "b.csv").write_text("\n".join([header, *lines, "loading,28,a,c,1,2,3,2,4,,,cpu"]))
    text = render_tables.render("<!-- benchmark: b.csv -->\n<!-- end of table -->", tmp_path)
    assert "| step | 28 | a / b | 1.2 (1.0 to 1.3) | <= 1.10 | missed |\n| step | 64 |" in text
    assert "loading" not in text


def test_the_readmes_are_in_step_with_their_results():
    assert render_tables.main(["--check"]) == 0


def test_every_row_of_results_is_of_a_commit_without_changes():
    results = sorted(ROOT.glob("bundles/*/docs/results/*.csv"))
    commits = {(path.name, row.get("commit", "")) for path in results for row in csv.DictReader(path.open())}
    assert results and {c for c in commits if not re.fullmatch("([0-9a-f]{7,40})?", c[1])} == set()


def documented(tool: str) -> list[list[str]]:
    """Arguments of every command with this tool in the documents and in the tool's own help."""
    texts = [
        path.read_text() for path in sorted({*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("bundles/*/*/*.md")})
    ]
    texts.append(importlib.import_module(tool).__doc__ or "")
    lines = re.sub(r"\\\n\s*", "", "\n".join(texts)).splitlines()
    found = [
        re.split("#|   +(?=[^ ])", line.strip())[0]
        for line in lines
        if re.match(rf"\s*python tools/{tool}\.py [^`]*$", line)
    ]
    return [shlex.split(line.split(f"{tool}.py", 1)[1]) for line in found]


@pytest.mark.parametrize("tool", ["run_table", "make_data_lists", "benchmark", "make_figures"])
def test_documented_commands_have_the_arguments_that_they_need(tool, monkeypatch):
    """Each parser is asked for the arguments; nothing is run."""

    class UnderstoodError(Exception):
        pass

    read = argparse.ArgumentParser.parse_args

    def parse(self, arguments=None, namespace=None):
        read(self, arguments, namespace)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    commands = documented(tool)
    assert commands
    for arguments in commands:
        with pytest.raises(UnderstoodError):
            importlib.import_module(tool).main(arguments)
