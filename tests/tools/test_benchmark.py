"""Benchmarks: the measuring core on made-up contenders, and one run on tiny sizes."""

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from benchmarks import measure
from benchmarks.lsanet_loads import Load
from benchmarks.lsanet_loops import plain_network
from benchmarks.measure import Bar, Benchmark

from label_efficient.networks.backbones import build_backbone

TINY = ["--image_sizes", "8", "--steps", "1", "--batch_size", "2", "--repeats", "1"]


def values(*numbers: float) -> Callable[[], float]:
    left = iter(numbers)
    return lambda: next(left)


def case(ours: float = 2.0, against: float = 1.0, bar: Bar | None = None, **options: Any) -> Benchmark:
    contenders = {"a": lambda: ours, "b": lambda: against}
    return Benchmark("x", "s", "a", contenders, {} if bar is None else {"b": bar}, **options)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("warm_up", "expected"), [(True, "abcabcabc"), (False, "abcabc")])
def test_contenders_take_turns(warm_up: bool, expected: str) -> None:
    turns: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        return lambda: turns.append(name) or float(len(turns))

    measured = measure.interleave({name: contender(name) for name in "abc"}, 2, warm_up)
    assert "".join(turns) == expected
    first = len(expected) - 5
    assert measured == {"a": [first, first + 3], "b": [first + 1, first + 4], "c": [first + 2, first + 5]}


def test_ratios_are_of_the_same_round() -> None:
    figures = measure.compare([2.0, 30.0, 8.0], [1.0, 10.0, 16.0])
    assert figures == {
        "median_ours": 8.0,
        "median_against": 10.0,
        "ratio": 2.0,
        "ratio_min": 0.5,
        "ratio_max": 3.0,
    }
    assert math.isnan(measure.compare([1.0], [0.0])["ratio"])


@pytest.mark.parametrize(
    ("bar", "text", "right", "wrong"),
    [
        (Bar(0.95, at_least=True), ">= 0.95", (0.95, -9), (0.949, 9)),
        (Bar(1.1), "<= 1.10", (1.1, 9), (1.101, -9)),
        (Bar(4, of_difference=True), "<= +4", (9, 4), (0.1, 4.1)),
    ],
)
def test_bars(bar: Bar, text: str, right: tuple[float, float], wrong: tuple[float, float]) -> None:
    assert str(bar) == text
    assert bar.holds(*right) and not bar.holds(*wrong)
    assert not bar.holds(math.nan, math.nan)


@pytest.mark.parametrize(
    ("bar", "holds"),
    [(None, ""), (Bar(2.0), "yes"), (Bar(1.9), "missed"), (Bar(0.5, of_difference=True), "missed")],
)
def test_row_of_a_benchmark(bar: Bar | None, holds: str) -> None:
    (row,) = measure.run_benchmark(case(bar=bar, image_size=28), repeats=3)
    assert row["holds"] == holds and row["repeats"] == 3 and row["image_size"] == 28
    assert (row["ours"], row["against"], row["median_ours"], row["ratio"]) == ("a", "b", 2.0, 2.0)


def test_one_row_for_each_of_the_others() -> None:
    contenders = {"b": values(1, 2, 4), "a": values(1, 2, 2), "c": values(1, 4, 4)}
    rows = measure.run_benchmark(Benchmark("x", "s", "a", contenders, {"b": Bar(1.0)}, repeats=2))
    assert [(r["against"], r["ratio"], r["holds"]) for r in rows] == [("b", 0.75, "yes"), ("c", 0.5, "")]


def test_bar_for_an_unknown_contender_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\['c'\] are no contenders"):
        Benchmark("x", "s", "a", {"a": float, "b": float}, {"c": Bar(1.0)})


@pytest.mark.slow
def test_csv_replaces_what_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "results" / "benchmark.csv"
    place = dict.fromkeys(("threads", "torch", "monai", "commit"), "1") | {"device": "cpu"}

    def write(*cases: Benchmark, **changed: str) -> None:
        measure.write_csv(path, [r | place | changed for c in cases for r in measure.run_benchmark(c, 1)])

    write(case(image_size=28), case(image_size=64))
    write(case(ours=3.0, bar=Bar(1.5), image_size=64), case(image_size=64), device="cuda")
    write(case(ours=3.0, bar=Bar(1.5), image_size=64))
    rows = read(path)
    assert path.read_text().splitlines()[0] == ",".join(measure.COLUMNS)
    found = [(r["device"], r["image_size"], r["ratio"]) for r in rows]
    assert found == [
        ("cpu", "28", "2.000"),
        ("cuda", "64", "3.000"),
        ("cuda", "64", "2.000"),
        ("cpu", "64", "3.000"),
    ]
    assert (rows[-1]["bar"], rows[-1]["holds"]) == ("<= 1.50", "missed")
    assert [p.name for p in path.parent.iterdir()] == ["benchmark.csv"]


def test_another_csv_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no CSV of this tool"):
        measure.write_csv(path, [])
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123456.7, "123457"),
        (12.3456, "12.35"),
        (0.00123456, "0.001235"),
        (0.0, "0"),
        (1e-9, "1e-09"),
        (3, "3"),
    ],
)
def test_four_significant_digits(value: float, text: str) -> None:
    assert measure.format_cell(value) == text


def test_table_is_aligned() -> None:
    lines = measure.table(measure.run_benchmark(case(), 1)).splitlines()
    assert lines[0].startswith("benchmark") and "median ours" in lines[0] and "_" not in lines[0]
    assert lines[1].index("2.000") + len("2.000") == lines[0].index("median ours") + len("median ours")


def test_fresh_process_and_its_memory() -> None:
    now, peak = measure.in_fresh_process(measure.process_memory)
    assert 2**20 < now <= peak < 2**31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "epoc"], "expected names out of epoch, loops"),
        (["--image_sizes", "28,x"], "invalid list of sizes"),
        (["--repeats", "0"], "invalid whole number"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    try:
        status: Any = benchmark.main(["lsanet", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status in (1, 2) and message in capsys.readouterr().err


@pytest.mark.parametrize(("strict", "status"), [(True, 1), (False, 0)])
def test_missed_bar_and_the_exit_status(
    strict: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cases = type(sys)("made_up_cases")
    cases.BENCHMARKS = {"x": lambda options: iter([case(bar=Bar(0.5))])}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_cases", cases)
    monkeypatch.setitem(benchmark.BUNDLES, "lsanet", "made_up_cases")
    arguments = ["lsanet", "--output", str(tmp_path / "b.csv"), "--device", "cpu"]
    assert benchmark.main([*arguments, *(["--strict"] if strict else [])]) == status
    assert "0 bars hold, 1 missed" in capsys.readouterr().out


def test_plain_network_computes_what_the_shipped_one_does() -> None:
    load = Load(32, 32, 2, 1, "cpu")
    plain = plain_network(load, channels_last=False).eval()
    shipped = build_backbone("resnet18", 8).eval()
    shipped.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(shipped(images), plain(images))


def run_lsanet(tmp_path: Path, only: str) -> list[dict[str, str]]:
    output = tmp_path / "benchmark.csv"
    assert benchmark.main(["lsanet", "--only", only, *TINY, "--device", "cpu", "--output", str(output)]) == 0
    return read(output)


@pytest.mark.slow
def test_run_on_tiny_sizes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = run_lsanet(tmp_path, "epoch,loading,inference")
    assert [r["benchmark"] for r in rows] == ["epoch", *["loading"] * 3, "inference"]
    assert all((r["bar"] == "") == (r["holds"] == "") == (r["benchmark"] == "loading") for r in rows)
    assert all(float(r["median_ours"]) > 0 and float(r["ratio"]) > 0 for r in rows)
    assert {(r["image_size"], r["batch_size"], r["repeats"]) for r in rows} == {("8", "2", "1")}
    assert capsys.readouterr().out.count("\n") == 7


@pytest.mark.release
def test_loops_processes_and_commands(tmp_path: Path) -> None:
    rows = run_lsanet(tmp_path, "loops,step,step_memory,startup,cache_memory")
    assert [r["benchmark"] for r in rows] == [
        *["loops"] * 5,
        "step",
        "step_memory",
        "startup",
        *["cache_memory"] * 2,
    ]
    assert [r["against"] for r in rows if not r["bar"]] == [
        "PIL loop, channels last",
        "CacheDataset, channels last",
    ]
    measured = {r["ours"]: float(r["median_ours"]) for r in rows}
    # ResNet-18 and Adam: 4 x 43 MiB.
    assert measured["lsanet"] > 150
    assert measured["arrays of the set"] > 0
