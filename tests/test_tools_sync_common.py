"""Copying the shared modules into the other bundles, and noticing when they are not in step."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import sync_common


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    for name in ("lsanet", "other"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "__init__.py").write_text(f"# {name}\n")
    (tmp_path / "lsanet/lsanet/_common.py").write_text("A = 1\n")
    (tmp_path / "lsanet/lsanet/_images.py").write_text("B = 1\n")
    (tmp_path / "lsanet/lsanet/network.py").write_text("C = 1\n")
    return tmp_path


def run(bundles: Path, *options: str) -> int:
    return sync_common.main(["--bundles_dir", str(bundles), *options])


def test_copies_underscore_modules_only(bundles: Path) -> None:
    assert run(bundles) == 0
    package = bundles / "other/other"
    assert sorted(p.name for p in package.iterdir()) == ["__init__.py", "_common.py", "_images.py"]
    assert (package / "_common.py").read_text() == "A = 1\n"
    assert (package / "__init__.py").read_text() == "# other\n"
    assert run(bundles, "--check") == 0


def test_check_names_files_and_writes_nothing(bundles: Path, capsys: pytest.CaptureFixture) -> None:
    package = bundles / "other/other"
    (package / "_common.py").write_text("A = 2\n")
    (package / "_own.py").write_text("D = 1\n")
    assert run(bundles, "--check") == 1
    error = capsys.readouterr().err
    assert "differs: other/other/_common.py" in error
    assert "missing: other/other/_images.py" in error
    assert "extra: other/other/_own.py" in error
    assert (package / "_common.py").read_text() == "A = 2\n" and not (package / "_images.py").exists()


def test_extra_module_is_kept_and_reported(bundles: Path, capsys: pytest.CaptureFixture) -> None:
    extra = bundles / "other/other/_own.py"
    extra.write_text("D = 1\n")
    assert run(bundles) == 1
    assert extra.exists() and "_own.py" in capsys.readouterr().err


def test_works_with_lsanet_alone(bundles: Path) -> None:
    (bundles / "other/other/__init__.py").unlink()
    (bundles / "other/other").rmdir()
    assert run(bundles) == 0 and run(bundles, "--check") == 0


def test_without_lsanet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path) == 1
    assert "no package lsanet/lsanet" in capsys.readouterr().err


def test_repository_is_in_step() -> None:
    assert sync_common.main(["--check"]) == 0
