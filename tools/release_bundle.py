"""Make the zip of a bundle's release, with the library that it needs inside.

    python tools/release_bundle.py lsanet --output releases

NAME_vX.Y.Z.zip holds one folder NAME that runs wherever it is unpacked and third-party packages are installed: what
git tracks of the bundle, the library, and SHA256SUMS. Built twice from one commit it has the same bytes.

Nothing is released that does not fit together: versions (of the metadata, of the library, of the library that the
metadata require, of the changelog), the checksum of the weights, MONAI's verify_metadata, uncommitted changes. The zip
is unpacked and tried in an environment without the repository; its predictions must be the repository's.
"""

import argparse
import hashlib
import io
import sys
import tempfile
import zipfile
from pathlib import Path

from bundle_paths import BUNDLES, ROOT
from releases.archive import ReleaseError, build_archive, release_files
from releases.checks import check_committed, check_files, check_metadata, check_version, check_weights
from releases.trial import try_release

from label_efficient.files import write_whole


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the command; returns 1 if there is no release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BUNDLES, help="of the bundle")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the zip; nothing else is written"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a zip of this version with other bytes")
    options = parser.parse_args(arguments)
    try:
        path = release(root, options.name, options.output, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return 0


def release(root: Path, name: str, output: Path, *, overwrite: bool = False) -> Path:
    """Check, build and try a release, then write it; returns the zip.

    Raises:
        ReleaseError: If anything does not fit together, or another zip of this version is there.
    """
    bundle = root / "bundles" / name
    files = release_files(root, name)
    check_files(name, files)
    check_committed(root, name)
    print(f"files: {len(files)}, as committed", flush=True)
    version = check_version(root, name)
    print(f"version: {version}, of the bundle, the library and the changelog", flush=True)
    check_weights(bundle / "models")
    print("weights: as model.json and their README say", flush=True)
    check_metadata(bundle / "configs" / "metadata.json")
    print("metadata: verified", flush=True)
    content = build_archive(name, files)
    path = output / f"{name}_v{version}.zip"
    print(f"archive: {len(content) / 2**20:.1f} MiB", flush=True)
    same = path.is_file() and path.read_bytes() == content
    if path.exists() and not same and not overwrite:
        raise ReleaseError(f"{path} is there with other bytes: raise the version, or replace it with --overwrite")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(content)).extractall(Path(folder) / "unpacked")
        count = try_release(root, Path(folder) / "unpacked" / name, Path(folder))
    print(f"trial: {count} pictures, predictions as the repository's", flush=True)
    if not same:
        write_whole(path, lambda file: file.write(content))
    return path


if __name__ == "__main__":
    sys.exit(main())
