"""Which versions of the library and of a bundle go together."""

import json
from pathlib import Path

from label_efficient import __version__


def require(package_file: str) -> None:
    """Check that this library is one that a bundle can use: of the same major and minor version as it requires.

    Args:
        package_file: The `__init__.py` of the bundle's package.

    Raises:
        ImportError: If it is another one.
    """
    name, metadata = _bundle(Path(package_file))
    needed = metadata["required_packages_version"]["label_efficient"]
    if __version__.split(".")[:2] != needed.split(".")[:2]:
        raise ImportError(
            f"bundle {name} needs label_efficient {needed} and this is {__version__} ({Path(__file__).parent}): type "
            "`python -m pip install .` in the bundle's repository, or use the released zip"
        )


def check_copy(package_file: str | None, bundle_root: str) -> None:
    """Check that a bundle's config is run by code of its own version.

    Python imports a package once: where two copies of a bundle are in one process, the first one's code serves both.

    Args:
        package_file: A module of the bundle's package as imported.
        bundle_root: Folder of the bundle whose config is run.

    Raises:
        ImportError: If their versions differ.
    """
    if package_file is None or not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        return
    name, loaded = _bundle(Path(package_file))
    asked = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    if loaded["version"] != asked["version"]:
        raise ImportError(
            f"{bundle_root} is version {asked['version']} of bundle {name}, and version {loaded['version']} from "
            f"{Path(package_file).resolve().parents[1]} is already loaded in this process: use another process"
        )


def _bundle(package_file: Path) -> tuple[str, dict]:
    folder = package_file.resolve().parent
    return folder.name, json.loads((folder.parent / "configs" / "metadata.json").read_text(encoding="utf-8"))
