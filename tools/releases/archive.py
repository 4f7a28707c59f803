"""The archive of a release: the files that git tracks, in the order and with the bytes of any other day."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

# Not before 1980 in a zip. Nothing of the machine or the day is in the archive.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)
MODE = 0o100644
LIBRARY = "bundles/common/label_efficient"
SUMS = "SHA256SUMS"


class ReleaseError(ValueError):
    """What is in the way of a release; one sentence for the one who makes it."""


def git(root: Path, *arguments: str) -> list[str]:
    """What a git command lists, NUL-separated.

    Raises:
        ReleaseError: If git fails, as it does outside of a repository.
    """
    found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ReleaseError(f"git {arguments[0]} in {root}: {found.stderr.strip()}")
    return [item for item in found.stdout.split("\0") if item]


def release_files(root: Path, name: str) -> dict[str, Path]:
    """Files of a bundle's release by their path in its folder: those of the bundle, and the library beside them.

    Raises:
        ReleaseError: If both have a file of one path, or a file that git tracks is not there.
    """
    found: dict[str, Path] = {}
    for folder, place in ((f"bundles/{name}", ""), (LIBRARY, "label_efficient/")):
        for path in git(root, "ls-files", "-z", "--", folder):
            inside = place + str(Path(path).relative_to(folder).as_posix())
            if inside in found or inside == SUMS:
                raise ReleaseError(f"{path}: the release has another file {inside}")
            if not (root / path).is_file():
                raise ReleaseError(f"{path}: git tracks it, and it is not there")
            found[inside] = root / path
    return dict(sorted(found.items()))


def build_archive(name: str, files: dict[str, Path]) -> bytes:
    """The zip: one folder with the files and their checksums, as `sha256sum -c SHA256SUMS` reads them."""
    contents = {inside: path.read_bytes() for inside, path in files.items()}
    sums = [f"{hashlib.sha256(content).hexdigest()}  {inside}\n" for inside, content in contents.items()]
    contents[SUMS] = "".join(sums).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for inside, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(f"{name}/{inside}", TIMESTAMP)
            entry.create_system = 3  # Unix, whose permissions these are
            entry.external_attr = MODE << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
