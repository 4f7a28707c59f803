"""The settings of a run: read from the config that is being parsed, checked, each known by name."""

import difflib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from label_efficient import monai_bridge
from label_efficient.files import read_json
from label_efficient.setting_help import help_text
from label_efficient.setting_models import SettingsModel, TrainingSettings, problems_of
from label_efficient.versions import check_copy


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type, out of range, or without effect where it stands."""


class Settings(dict):
    """The settings of a run of a bundle by name, as resolved.

    `changed` has those that differ from the config file, `notes` what is worth a warning.
    """

    def __init__(self, values: Mapping[str, Any], changed: Mapping[str, Any], bundle_root: str = "") -> None:
        super().__init__(values)
        self.changed = dict(changed)
        self.bundle_root = bundle_root
        self.notes: list[str] = []


def read_settings(bundle_root: str, model: type[SettingsModel]) -> Settings:
    """Read and check the settings of the config that is being parsed; with `--help`, print them and exit.

    Called from within a config. Settings are the keys that stand before `bundle_root` in the config file. MONAI
    ignores a key that no config knows; here it is an error. Keys of a user's own start with an underscore.

    Raises:
        SettingsError: Naming all the settings at fault; for an unknown one, the nearest known one.
    """
    check_copy(inspect.getfile(model), bundle_root)
    folder = Path(bundle_root) / "configs"
    files = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
    defaults = files[model.config_name]
    names = setting_names(defaults)
    if monai_bridge.asks_for_help():
        print(help_text(model, {name: defaults[name] for name in names}))
        sys.exit(0)
    if monai_bridge.handed_over() is not None:
        weights, before = Path(bundle_root, "models", "model.pt"), monai_bridge.config_being_parsed() or {}
        wanted: dict[str, Any] = {"dataset": "handed-over"}
        if weights.is_file():
            info = read_json(weights.with_suffix(".json"), "the description of the released weights")
            wanted |= model.for_released_weights(info, str(weights))
        monai_bridge.put_into_config({n: v for n, v in wanted.items() if before.get(n) == defaults[n]})
    monai_bridge.read_words(defaults)
    config = monai_bridge.config_being_parsed()
    given = defaults if config is None else config
    if problems := (
        _unknown(given, files) or _without_effect(given, files, model.config_name) or _told_by_weights(given, defaults)
    ):
        raise SettingsError("; ".join(problems))
    values = {name: defaults[name] if config is None else monai_bridge.resolved(name) for name in names}
    settings = Settings(values, {n: values[n] for n in names if given.get(n) != defaults[n]}, bundle_root)
    if problems := problems_of(model, settings, settings.changed):
        raise SettingsError("; ".join(problems))
    if issubclass(model, TrainingSettings) and "evaluate" not in given:
        settings.notes += [
            f"{name}={settings[name]!r} has no effect with max_epochs={settings['max_epochs']}: {why}"
            for name, why in model.model_validate(dict(settings)).too_late().items()
            if name in settings.changed
        ]
    used = monai_bridge.reached_by("run", "initialize")
    if "evaluate" in given and (idle := [name for name in settings.changed if name not in used]):
        settings.notes.append(f"settings of a training, without effect on this evaluation: {', '.join(idle)}")
    changes = monai_bridge.changes_of_consumers()
    settings.update(changes)
    settings.changed.update(changes)
    return settings


def setting_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the settings of a complete config: what stands before `bundle_root`; none of an overlay."""
    names = list(config)
    if "bundle_root" not in names:
        return []
    return [n for n in names[: names.index("bundle_root")] if not n.startswith("_") and n != "imports"]


def _unknown(given: Iterable[str], files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    known = {key.lstrip("+~"): None for name in files if name != "metadata.json" for key in files[name]}
    allowed = known.keys() | files.get("metadata.json", {}).keys() | monai_bridge.CONSUMER_KEYS
    unknown = [k for k in given if k[0] != "_" and k.lstrip("+~").split("#")[0].split("::")[0] not in allowed]
    near = {k: difflib.get_close_matches(k, known, n=1, cutoff=0.4) for k in unknown}
    return [
        f"unknown setting {k!r}: {f'did you mean {near[k][0]!r}? ' if near[k] else ''}--help true lists the settings "
        "(a key of your own starts with an underscore)"
        for k in unknown
    ]


def _without_effect(given: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], config_name: str) -> list[str]:
    """Settings of another config alone: they would be accepted and ignored."""
    own = files[config_name]
    problems = []
    for name in given:
        homes = [f for f, content in files.items() if f != config_name and name in setting_names(content)]
        if homes and name not in own:
            where = config_name.removesuffix(".json")
            problems.append(f"{name}={given[name]!r} has no effect in {where}: it is a setting of {homes[0]}")
        elif homes and isinstance(own[name], dict) and not isinstance(given[name], dict):
            problems.append(f"{name}={given[name]!r}: give the images to predict with dataset_dir or datalist")
    return problems


def _told_by_weights(given: Mapping[str, Any], own: Mapping[str, Any], at: str = "") -> list[str]:
    """Parts of the config that repeat what the weights say of themselves: with another value they see other images."""
    problems = []
    for name, default in own.items():
        value = given.get(name, default)
        if isinstance(default, dict) and isinstance(value, dict):
            problems += _told_by_weights(value, default, f"{at}{name}#")
        elif str(default).startswith("$@model_info[") and value != default:
            problems.append(
                f"{at}{name}={value!r}: the weights were trained with their own {name}, as the .json beside them says; "
                "leave it out, or train with another"
            )
    return problems
