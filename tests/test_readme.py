"""The table of cases in README.md has the numbers of the tests."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_table_of_cases_counts_the_tests(collected):
    table = README.read_text(encoding="utf-8").partition("<!-- cases -->")[2].partition("<!-- end of cases -->")[0]
    rows = re.findall(r"^\|.*\| ([a-z_/, ]+) \| (\d+) \|$", table, re.MULTILINE)
    counted = {tests: sum(collected.get(name, 0) for name in tests.split(", ")) for tests, _ in rows}
    if not all(name in collected for tests in counted for name in tests.split(", ")):
        pytest.skip("a part of the tests was collected: the numbers are those of all")
    assert rows and {tests: int(cases) for tests, cases in rows} == counted
