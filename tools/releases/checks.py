"""What must hold before a release is made; each check raises `ReleaseError` with what is wrong."""

import ast
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from label_efficient.files import read_json, sha256
from releases.archive import LIBRARY, ReleaseError, git

REQUIRED = (
    "LICENSE",
    "configs/inference.json",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/README.md",
    "models/model.json",
    "models/model.pt",
)
# MONAI's own schema asks for these; theirs is downloaded at every use.
TEXTS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


def check_files(name: str, files: dict[str, Path]) -> None:
    """Everything that a bundle is made of is there and tracked by git."""
    needed = (*REQUIRED, f"{name}/__init__.py", "label_efficient/__init__.py")
    if missing := [path for path in needed if path not in files]:
        raise ReleaseError(f"bundles/{name}: git tracks no {', '.join(missing)}")


def check_committed(root: Path, name: str) -> None:
    """The bundle and the library are as they were committed, and have no files that git does not know."""
    changed = git(root, "status", "--porcelain", "-z", "--no-renames", "--", f"bundles/{name}", LIBRARY)
    if changed:
        raise ReleaseError(f"uncommitted changes: {', '.join(item[3:] for item in changed)}")


def check_version(root: Path, name: str) -> str:
    """The bundle, the library and the library that the bundle requires are of one version; returns it."""
    metadata = read_json(root / "bundles" / name / "configs" / "metadata.json", "the bundle's metadata")
    version = metadata.get("version")
    required = metadata.get("required_packages_version", {})
    others = {
        "label_efficient.__version__": library_version(root / LIBRARY / "__init__.py"),
        "label_efficient in required_packages_version": required.get("label_efficient", "missing"),
    }
    for what, other in others.items():
        if other != version:
            raise ReleaseError(f"bundles/{name}/configs/metadata.json: version is {version}, and {what} is {other}")
    if version not in metadata.get("changelog", {}):
        raise ReleaseError(f"bundles/{name}/configs/metadata.json: the changelog has no entry for {version}")
    return version


def library_version(path: Path) -> Any:
    """`__version__` as the file has it, whichever library is installed."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["__version__"]:
            return ast.literal_eval(node.value)
    return None


def check_weights(folder: Path) -> None:
    """The weights have the checksum that model.json and the README beside them say."""
    found = sha256(folder / "model.pt")
    printed = re.search(r"sha256 of `model\.pt` \| `([0-9a-f]{64})`", (folder / "README.md").read_text("utf-8"))
    said = {
        "model.json": read_json(folder / "model.json", "what the weights are").get("sha256"),
        "README.md": printed[1] if printed else None,
    }
    for where, checksum in said.items():
        if checksum != found:
            raise ReleaseError(f"{folder / 'model.pt'}: sha256 is {found}, and {where} says {checksum}")


def check_metadata(path: Path) -> None:
    """MONAI's `verify_metadata` accepts the metadata, by a schema that needs no network."""
    from monai.bundle import verify_metadata

    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # MONAI downloads no schema over a file that is there, if its checksum is right.
            schema = Path(folder) / "schema.json"
            schema.write_text(json.dumps(metadata_schema()), encoding="utf-8")
            verify_metadata(meta_file=str(path), filepath=str(schema), hash_val=sha256(schema), hash_type="sha256")
    except ValueError as error:
        raise ReleaseError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        logging.disable(logging.NOTSET)


def metadata_schema() -> dict[str, Any]:
    """What MONAI's schema and the model zoo ask of `metadata.json`."""
    text = {"type": "string", "minLength": 1}
    versions = {"type": "object", "minProperties": 1, "additionalProperties": text}
    ports = {"type": "object", "minProperties": 1, "additionalProperties": {"required": list(TENSOR)}}
    others = {
        "changelog": versions,
        "required_packages_version": versions,
        "network_data_format": {"required": ["inputs", "outputs"], "properties": {"inputs": ports, "outputs": ports}},
    }
    names = (*TEXTS, "copyright")
    return {"type": "object", "required": [*names, *others], "properties": {**dict.fromkeys(names, text), **others}}
