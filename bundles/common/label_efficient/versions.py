"""Which versions of the library and of a bundle go together."""

import json
from pathlib import Path

from label_efficient import __version__

PACKAGES = {"label_efficient"}  # of ours that this process uses: the library, and the bundles'


def require(package_file: str) -> None:
    """Refuse (ImportError) a bundle, by its `__init__.py`, that needs another major or minor version of the library."""
    package = Path(package_file).resolve().parent
    PACKAGES.add(package.name)
    needed = _metadata(package.parent)["required_packages_version"]["label_efficient"]
    if __version__.split(".")[:2] != needed.split(".")[:2]:
        raise ImportError(
            f"bundle {package.name} needs label_efficient {needed} and this is {__version__} ({Path(__file__).parent}):"
            " type `python -m pip install .` in the bundle's repository, or use the released zip"
        )


def check_copy(package_file: str, bundle_root: str) -> None:
    """Refuse (ImportError) to run the config of a bundle by the code, as imported, of another version of it.

    Python imports a package once: where two copies of a bundle are in one process, the first one's code serves both.
    """
    package = Path(package_file).resolve().parent
    asked, loaded = (_metadata(root)["version"] for root in (Path(bundle_root), package.parent))
    if loaded != asked:
        raise ImportError(
            f"{bundle_root} is version {asked} of bundle {package.name}, and version {loaded} from {package.parent} is "
            "already loaded in this process: use another process"
        )


def _metadata(bundle_root: Path) -> dict:
    return json.loads((bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))
