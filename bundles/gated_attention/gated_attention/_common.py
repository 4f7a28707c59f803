"""What every bundle needs and neither MONAI nor torch has: checked settings and files written whole or not at all.

This file is the same in all bundles: change it in one and run tools/sync_common.py.
"""

import csv
import difflib
import hashlib
import io
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from monai.bundle import ConfigParser

# Written into a parsed config by MONAI's experiment tracking and by MONAI Label: nobody's typing error.
_CONSUMER_KEYS = frozenset(
    {
        "_meta_",
        "tracking_uri",
        "experiment_name",
        "run_name",
        "save_execute_config",
        "is_not_rank0",
        "multi_gpu",
        "displayable_configs",
        "use_click",
        "class_names",
    }
)


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type, out of range, or without effect where it stands."""


class Settings(dict):
    """The settings of a run by name, as resolved; `changed` has those that differ from the config file."""

    def __init__(self, values: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.changed = dict(changed)


def read_settings(bundle_root: str, config_name: str) -> Settings:
    """Read the settings of the config that is being parsed, after checking that each of them exists.

    Called from within a config. Settings are the keys that stand before `bundle_root` in the config file. MONAI
    ignores a key that no config knows; here it is an error. Keys of a user's own start with an underscore.

    Args:
        bundle_root: Folder of the bundle.
        config_name: Which file has the defaults, "train.json" or "inference.json".

    Raises:
        SettingsError: If a top-level key is unknown; the message names the nearest known one.
    """
    _show_cause_last()
    folder = Path(bundle_root) / "configs"
    files = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
    defaults = files[config_name]
    parser = calling_parser()
    if parser is not None:
        _read_words(parser, defaults)
    current: Mapping[str, Any] = parser.config if parser is not None else defaults  # type: ignore[assignment]
    known = {key.lstrip("+~") for content in files.values() for key in content} | _CONSUMER_KEYS
    names = _setting_names(defaults)
    unknown = [k for k in current if k.lstrip("+~").split("#")[0].split("::")[0] not in known and k[0] != "_"]
    if unknown:
        raise SettingsError("; ".join(_unknown_key(k, known) for k in unknown))
    values = {k: current.get(k) for k in names} if parser is None else {k: parser.get_parsed_content(k) for k in names}
    changed = {k: values[k] for k in names if current.get(k) != defaults[k]}
    return Settings(values, changed)


def _read_words(parser: ConfigParser, defaults: Mapping[str, Any]) -> None:
    # The command line hands over `--resume true` as the text "true", which would count as true even as "false", and
    # `--dataset 2024`, a folder, as a number.
    words = {"true": True, "false": False, "null": None, "none": None}
    for name, default in defaults.items():
        given = parser.config.get(name)  # type: ignore[union-attr]
        word = given
        computed = isinstance(default, str) and default[:1] == "$"
        if isinstance(given, str) and (isinstance(default, bool) or default is None or computed):
            word = words.get(given.lower(), given)
        elif isinstance(default, str) and default[:1] not in ("$", "@", "%") and type(given) in (int, float):
            word = str(given)
        if word is not given and (computed or type(word) is type(default)):
            parser.config[name] = word  # type: ignore[index]
            parser.ref_resolver.items[name].update_config(word)
            parser.ref_resolver.resolved_content[name] = word


def _setting_names(config: Mapping[str, Any]) -> list[str]:
    names = list(config)
    return [n for n in names[: names.index("bundle_root")] if not n.startswith("_") and n != "imports"]


def _unknown_key(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "the model card lists the settings"
    return f"unknown setting {key!r}: {hint} (a key of your own starts with an underscore)"


def _show_cause_last() -> None:
    # MONAI wraps what its objects raise into "Failed to instantiate component": on the command line, the sentence
    # that helps would stand in the middle of a long traceback.
    if sys.excepthook is not sys.__excepthook__:
        return

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        sys.__excepthook__(kind, error, trace)
        cause: BaseException = error
        while type(cause) is RuntimeError and str(cause).startswith("Failed to ") and cause.__cause__ is not None:
            cause = cause.__cause__
        print(f"\nERROR: {type(cause).__name__}: {cause}", file=sys.stderr)

    sys.excepthook = hook


def calling_parser() -> ConfigParser | None:
    """The parser whose config is being resolved further up the stack; MONAI hands it to no object it builds."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def write_whole(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all. NaN becomes null: it is not JSON. Other objects become their text."""
    text = json.dumps(_json_safe(content), indent=2, ensure_ascii=False)
    write_whole(path, lambda file: file.write((text + "\n").encode()))


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return _json_safe(value.item()) if hasattr(value, "item") else str(value)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV, whole or not at all; a missing or None value is an empty cell."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; `what` is what the file should be, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}), expected {what}") from error


def sha256(path: str | Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _sha256(file)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's figures."""
    found = {"python": platform.python_version()}
    for name in ("torch", "monai", "pytorch-ignite", "numpy", "medmnist", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
