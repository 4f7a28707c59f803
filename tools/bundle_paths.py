"""Where the bundles are: their packages are not installed, and a command puts the one it needs on the import path."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = tuple(sorted(path.parts[-3] for path in ROOT.glob("bundles/*/configs/metadata.json")))


def use_bundle(name: str) -> Path:
    """Put a bundle's folder on `sys.path`, so that its package can be imported; returns the folder.

    Raises:
        ValueError: If there is no such bundle.
    """
    if name not in BUNDLES:
        raise ValueError(f"bundle is {name!r}, expected one of {', '.join(BUNDLES)}")
    folder = ROOT / "bundles" / name
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder
