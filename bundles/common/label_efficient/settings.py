"""The settings of a run: read from the config that is being parsed, each known by name."""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from label_efficient.monai_bridge import CONSUMER_KEYS, calling_parser, read_words, show_cause_last


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type, out of range, or without effect where it stands."""


class Settings(dict):
    """The settings of a run by name, as resolved; `changed` has those that differ from the config file.

    `bundle_root` is the folder of the bundle that they are of.
    """

    def __init__(self, values: Mapping[str, Any], changed: Mapping[str, Any], bundle_root: str = "") -> None:
        super().__init__(values)
        self.changed = dict(changed)
        self.bundle_root = bundle_root


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
    show_cause_last()
    folder = Path(bundle_root) / "configs"
    files = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
    defaults = files[config_name]
    parser = calling_parser()
    if parser is not None:
        read_words(parser, defaults)
    current: Mapping[str, Any] = parser.config if parser is not None else defaults  # type: ignore[assignment]
    known = {key.lstrip("+~") for content in files.values() for key in content} | CONSUMER_KEYS
    names = _setting_names(defaults)
    unknown = [k for k in current if k.lstrip("+~").split("#")[0].split("::")[0] not in known and k[0] != "_"]
    if unknown:
        raise SettingsError("; ".join(_unknown_key(k, known) for k in unknown))
    values = {k: current.get(k) for k in names} if parser is None else {k: parser.get_parsed_content(k) for k in names}
    changed = {k: values[k] for k in names if current.get(k) != defaults[k]}
    return Settings(values, changed, bundle_root)


def _setting_names(config: Mapping[str, Any]) -> list[str]:
    names = list(config)
    return [n for n in names[: names.index("bundle_root")] if not n.startswith("_") and n != "imports"]


def _unknown_key(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "the model card lists the settings"
    return f"unknown setting {key!r}: {hint} (a key of your own starts with an underscore)"
