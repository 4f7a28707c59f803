"""A release is tried where only third-party packages are installed, against what the repository predicts."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from bundle_paths import BUNDLES

from releases.archive import LIBRARY, ReleaseError

# Run in the repository: pictures of the bundle's own demo.
DRAW = """
import importlib, sys
from pathlib import Path
from PIL import Image
name, folder = sys.argv[1:]
pictures = importlib.import_module(name + ".demo_data").make_demo_images(6)[0]
for number, picture in enumerate(pictures):
    Image.fromarray(picture).save(Path(folder) / f"{number}.png")
"""
OURS = ("label_efficient", *BUNDLES)


def third_party_environment(folder: Path) -> Path:
    """Make a virtual environment of all that is installed here but our own library; returns its Python.

    Its packages are links; .pth files, which may name a folder of the repository, stay behind.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for place in map(Path, sys.path):
        if place.name in ("site-packages", "dist-packages") and place.is_dir():
            for entry in place.iterdir():
                own = entry.name.startswith((*OURS, "__editable__")) or entry.suffix == ".pth"
                if not own and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def run_python(python: Path, *arguments: str, folder: Path, path: tuple[Path, ...] = ()) -> str:
    """Run a Python in a folder, with these folders alone on PYTHONPATH; returns what it printed.

    Raises:
        ReleaseError: If it fails; the text ends with the last line that it wrote.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(folder / ".matplotlib")}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [str(python), *arguments]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        last = (found.stderr.strip() or found.stdout.strip()).splitlines()[-1:]
        raise ReleaseError(f"{' '.join(command[:6])} ended with {found.returncode}: {''.join(last)}")
    return found.stdout


def predict(python: Path, bundle: Path, pictures: Path, output: Path, path: tuple[Path, ...] = ()) -> dict[str, bytes]:
    """Run a bundle's inference on a folder of pictures; returns table and masks by name."""
    config = str(bundle / "configs" / "inference.json")
    settings = ["--dataset_dir", str(pictures), "--output_dir", str(output), "--device", "cpu", "--num_workers", "0"]
    arguments = ["-m", "monai.bundle", "run", "inference", "--config_file", config, *settings]
    run_python(python, *arguments, folder=output.parent, path=path)
    files = [output / "predictions.csv", *sorted(output.glob("masks/**/*.*"))]
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}


def try_release(root: Path, unpacked: Path, folder: Path) -> int:
    """Predict with an unpacked release and with the repository, in a temporary folder; returns how many pictures.

    Raises:
        ReleaseError: If a command fails or a prediction differs.
    """
    name = unpacked.name
    library, bundle = root / Path(LIBRARY).parent, root / "bundles" / name
    python = third_party_environment(folder / "environment")
    look = "from importlib.util import find_spec; print(find_spec('label_efficient') or '')"
    if own := run_python(python, "-c", look, folder=folder).strip():
        raise ReleaseError(f"nothing can be tried where the library is found without the release: {own}")
    pictures = folder / "pictures"
    pictures.mkdir()
    run_python(python, "-c", DRAW, name, str(pictures), folder=folder, path=(bundle, library))
    expected = predict(python, bundle, pictures, folder / "of_repository", (library,))
    found = predict(python, unpacked, pictures, folder / "of_release")
    if different := sorted(file for file in expected.keys() | found.keys() if expected.get(file) != found.get(file)):
        raise ReleaseError(f"the release predicts something else than the repository: {', '.join(different)}")
    return len(list(pictures.iterdir()))
