"""Shared fixtures: the bundles on the import path, and the folder of real images where there is one."""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(p.parent.parent for p in ROOT.glob("bundles/*/configs/train.json"))

# The networks of the tests are tiny: more threads than one only wait for each other, most of all beside other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# hypothesis keeps what it has found out: not in the checkout.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir(), "hypothesis")))

for _folder in (
    *BUNDLES,
    ROOT / "bundles" / "common",
    ROOT / "tools",
    ROOT / "tests" / "bundles",
    ROOT / "tests" / "label_efficient",
):
    sys.path.insert(0, str(_folder))
# Commands that the tests start use this checkout's library too, not one that was installed from elsewhere.
os.environ["PYTHONPATH"] = str(ROOT / "bundles" / "common")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public development images; the test is skipped where it is absent."""
    folder = Path(os.environ.get("REAL_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images are not on this machine: {folder} (set REAL_DATA_DIR)")
    return folder


_COLLECTED = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Count the tests of each module, before those that a marker leaves out are taken away."""
    config.stash[_COLLECTED] = Counter(
        item.path.relative_to(ROOT / "tests").with_suffix("").as_posix() for item in items
    )


@pytest.fixture
def collected(request) -> Counter[str]:
    """Number of tests by module, of all that were collected."""
    return request.config.stash[_COLLECTED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test has logged, names that are not UTF-8 escaped: a report goes to another process as UTF-8."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report
