"""tools/release_bundle.py: what it packs, and what it refuses."""

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import release_bundle
from bundle_paths import ROOT
from releases import checks, trial
from releases.archive import LIBRARY, ReleaseError, build_archive, git, release_files

METADATA = "bundles/lsanet/configs/metadata.json"
WEIGHTS = "bundles/lsanet/models"


def run_git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one bundle and the library, as they are here, without what git does not track."""
    folder = tmp_path_factory.mktemp("repository")
    for path in git(ROOT, "ls-files", "-z", "--", "bundles/lsanet", LIBRARY):
        if (ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
    run_git(folder, "init", "-q")
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "all")
    return folder


@pytest.fixture
def repository(committed: Path) -> Iterator[Path]:
    """The same, set back after each test."""
    yield committed
    run_git(committed, "reset", "-q", "--hard", "HEAD")
    run_git(committed, "clean", "-fdq")


def test_same_bytes_whatever_the_day_and_the_permissions(repository: Path, tmp_path: Path) -> None:
    first = build_archive("lsanet", release_files(repository, "lsanet"))
    (repository / "bundles/lsanet/runs").mkdir()
    (repository / "bundles/lsanet/runs/model.pt").write_text("of a run")
    for path in repository.rglob("bundles/**/*.*"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o755)
    assert build_archive("lsanet", release_files(repository, "lsanet")) == first
    zip_path = tmp_path / "a.zip"
    zip_path.write_bytes(first)
    zipfile.ZipFile(zip_path).extractall(tmp_path)
    packed = {p.relative_to(tmp_path / "lsanet").as_posix() for p in (tmp_path / "lsanet").rglob("*") if p.is_file()}
    lines = [line.split("  ") for line in (tmp_path / "lsanet/SHA256SUMS").read_text().splitlines()]
    assert {path for _, path in lines} | {"SHA256SUMS"} == packed
    for checksum, path in lines:
        assert hashlib.sha256((tmp_path / "lsanet" / path).read_bytes()).hexdigest() == checksum
    assert {"LICENSE", "models/model.pt", "lsanet/network.py", "label_efficient/files.py"} < packed
    assert not any(path.startswith("runs") or "__pycache__" in path for path in packed)


def edit(path: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change a JSON file of the repository."""

    def work(root: Path) -> None:
        content = json.loads((root / path).read_text())
        change(content)
        (root / path).write_text(json.dumps(content))

    return work


def write(path: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text(text)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (edit(METADATA, lambda m: m.update(version="9.9.9")), "version is 9.9.9, and label_efficient.__version__ is"),
        (
            edit(METADATA, lambda m: m["required_packages_version"].update(label_efficient="0.0.1")),
            "and label_efficient in required_packages_version is 0.0.1",
        ),
        (
            edit(METADATA, lambda m: m["required_packages_version"].pop("label_efficient")),
            "and label_efficient in required_packages_version is missing",
        ),
        (write(f"{LIBRARY}/__init__.py", '"""Library."""\n\n__version__ = "8.0"\n'), "__version__ is 8.0"),
        (edit(METADATA, lambda m: m.update(changelog={"0.0.1": "old"})), "the changelog has no entry for"),
        (edit(METADATA, lambda m: m.pop("task")), "'task' is a required property"),
        (edit(METADATA, lambda m: m["network_data_format"].update(inputs={})), "should be non-empty"),
        (write(f"{WEIGHTS}/model.pt", "other weights"), "and model.json says"),
        (edit(f"{WEIGHTS}/model.json", lambda m: m.update(sha256="0" * 64)), f"and model.json says {'0' * 64}"),
        (write(f"{WEIGHTS}/README.md", "| sha256 of `model.pt` | lost |"), "and README.md says None"),
        (lambda root: (root / "bundles/lsanet/docs/data_license.txt").unlink(), "git tracks no docs/data_license.txt"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    break_it: Callable[[Path], object],
    message: str,
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    before = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout.strip()
    break_it(repository)
    run_git(repository, "commit", "-qam", "break it")
    try:
        assert release_bundle.main(["lsanet", "--output", str(tmp_path / "out")], repository) == 1
    finally:
        run_git(repository, "reset", "-q", "--hard", before)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["bundles/lsanet/lsanet/network.py", f"{LIBRARY}/new.py"])
def test_uncommitted_changes_are_refused(
    path: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (repository / path).write_text("x = 1\n")
    assert release_bundle.main(["lsanet", "--output", str(tmp_path / "out")], repository) == 1
    assert f"error: uncommitted changes: {path}\n" == capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        release_bundle.main(["lsa", "--output", str(tmp_path)])
    assert "'lsa' (choose from" in capsys.readouterr().err


def test_another_zip_of_the_version_stays_unless_asked(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(release_bundle, "try_release", lambda *_: 6)
    version = checks.library_version(ROOT / LIBRARY / "__init__.py")
    path = tmp_path / "out" / f"lsanet_v{version}.zip"
    command = ["lsanet", "--output", str(path.parent)]
    path.parent.mkdir()
    path.write_text("another")
    assert release_bundle.main(command, repository) == 1
    assert "is there with other bytes" in capsys.readouterr().err and path.read_text() == "another"
    for arguments in ([*command, "--overwrite"], command):
        assert release_bundle.main(arguments, repository) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.release
def test_a_prediction_that_differs_is_refused(repository: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked" / "lsanet"
    for inside, path in release_files(repository, "lsanet").items():
        (unpacked / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, unpacked / inside)
    (tmp_path / "same").mkdir()
    assert trial.try_release(repository, unpacked, tmp_path / "same") == 6
    calibration = json.loads((unpacked / "models/calibration.json").read_text())
    calibration["temperature"] *= 1.001
    (unpacked / "models/calibration.json").write_text(json.dumps(calibration))
    (tmp_path / "other").mkdir()
    with pytest.raises(ReleaseError, match=r"something else than the repository: predictions\.csv"):
        trial.try_release(repository, unpacked, tmp_path / "other")
