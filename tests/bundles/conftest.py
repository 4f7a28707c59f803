"""Fixtures of the bundles' tests: a bundle, its tiny data, one trained run that all tests look at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_cases import CASES, Case, installed, remove_weights, train

Once = Callable[[str, Callable[[Path], Any]], Any]


@pytest.fixture(params=list(CASES))
def case(request) -> Case:
    """Each bundle in turn, or those that a test names (`indirect`)."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Iterator[Once]:
    """Makes a thing once a session, whatever the order of the tests: a fixture with parameters is made anew."""
    made: dict[str, Any] = {}
    folders = []

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        if name not in made:
            folders.append(tmp_path_factory.mktemp(name))
            made[name] = make(folders[-1])
        return made[name]

    yield get
    for folder in folders:
        remove_weights(folder)


@pytest.fixture
def dataset(case, once) -> Path:
    return once(f"{case.name}_data", case.data)


@pytest.fixture
def trained(case, dataset, once) -> Path:
    """The folder of a tiny calibrated run; tests look at it and leave it as it is."""

    def make(folder: Path) -> Path:
        train(case, dataset, folder / "out", calibrate=True, logging_file=None)
        return folder / "out"

    return once(f"{case.name}_run", make)


@pytest.fixture
def bundle(case, trained, once) -> Path:
    """A copy of the bundle, elsewhere, with the weights of the tiny run."""
    return once(f"{case.name}_elsewhere", lambda folder: installed(case, trained, folder / f"{case.name}_copy"))


@pytest.fixture(autouse=True)
def _small_remains(tmp_path) -> Iterator[None]:
    yield
    if any(tmp_path.iterdir()):
        remove_weights(tmp_path)
