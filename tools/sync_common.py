"""Copy the shared modules of lsanet (``_*.py``) into the packages of the other bundles.

A bundle must work when its folder is copied alone, so each carries these modules; lsanet has the originals.

    python tools/sync_common.py            copy
    python tools/sync_common.py --check    write nothing; exit 1 and name the files that are not in step
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

SOURCE = "lsanet"


def shared_modules(package: Path) -> dict[str, bytes]:
    """Read the underscore modules of a package, by file name; ``__init__.py`` and its like are not shared."""
    return {path.name: path.read_bytes() for path in sorted(package.glob("_*.py")) if not path.name.startswith("__")}


def other_packages(bundles: Path) -> list[Path]:
    """List the packages ``<name>/<name>`` of the bundles other than the source, sorted."""
    packages = (folder / folder.name for folder in sorted(bundles.iterdir()) if folder.name != SOURCE)
    return [package for package in packages if package.is_dir()]


def differences(bundles: Path) -> dict[Path, str]:
    """Say what is wrong, by file: ``missing``, ``differs`` or ``extra`` (the source has no such module)."""
    originals = shared_modules(bundles / SOURCE / SOURCE)
    found: dict[Path, str] = {}
    for package in other_packages(bundles):
        copies = shared_modules(package)
        for name in sorted(originals.keys() | copies.keys()):
            if name not in copies:
                found[package / name] = "missing"
            elif name not in originals:
                found[package / name] = "extra"
            elif copies[name] != originals[name]:
                found[package / name] = "differs"
    return found


def main(argv: list[str] | None = None) -> int:
    """Copy or check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where files differ")
    default = Path(__file__).resolve().parents[1] / "bundles"
    parser.add_argument("--bundles_dir", type=Path, default=default, help="the folder of the bundles")
    args = parser.parse_args(argv)
    bundles: Path = args.bundles_dir
    if not (bundles / SOURCE / SOURCE).is_dir():
        print(f"error: no package {SOURCE}/{SOURCE} in {bundles}", file=sys.stderr)
        return 1
    found = differences(bundles)
    if args.check:
        for path, problem in found.items():
            print(f"{problem}: {path.relative_to(bundles).as_posix()}", file=sys.stderr)
        if found:
            print("run python tools/sync_common.py; extra modules are yours to rename", file=sys.stderr)
        return 1 if found else 0
    for path, problem in found.items():
        name = path.relative_to(bundles).as_posix()
        if problem == "extra":
            # Deleting it might lose somebody's work.
            print(f"error: {name} is in no other bundle; give it a name without underscore", file=sys.stderr)
            continue
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes((bundles / SOURCE / SOURCE / path.name).read_bytes())
        os.replace(temporary, path)
        print(f"wrote {name}")
    return 1 if "extra" in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
