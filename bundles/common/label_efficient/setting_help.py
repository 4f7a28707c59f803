"""The settings as text: what `--help` prints, and the table of a model card."""

import ast
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from label_efficient.setting_fields import (
    DATA,
    METHOD,
    RUN,
    TRAINING,
    expectation,
    facts,
    in_words,
)
from label_efficient.setting_models import SettingsModel

_BY_DATASET = re.compile(r"\$(.+) if @dataset == 'demo' else (.+)")


def default_in_words(field: FieldInfo, value: Any) -> str:
    """The default of a setting, as the config has it, in Markdown; that of the demo is named beside it."""
    if facts(field)["default"]:
        return facts(field)["default"]
    if isinstance(value, str) and (match := _BY_DATASET.fullmatch(value)):
        demo, other = (_value(ast.literal_eval(part)) for part in match.groups())
        return f"{other}; demo {demo}"
    return _value(value)


def _value(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def help_text(model: type[SettingsModel], defaults: Mapping[str, Any]) -> str:
    """The settings with default (as in the config file), range and one line each, grouped, the method's own first."""
    lines = [f"The settings of {model.config_name}: give any as --name value"]
    for group in (METHOD, DATA, TRAINING, RUN):
        names = [n for n in defaults if n in model.model_fields and facts(model.model_fields[n])["group"] == group]
        lines += ["", group.upper()] if names else []
        for name in names:
            field = model.model_fields[name]
            text = f"{field.description}. Expected: {expectation(field)}{_effect(field)}"
            lines.append(f"  --{name} ({default_in_words(field, defaults[name])})".replace("`", ""))
            lines += textwrap.wrap(text.replace("`", ""), 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def settings_table(model: type[SettingsModel], defaults: Mapping[str, Any]) -> str:
    """The settings as a Markdown table, in the order of the config file."""
    lines = ["| setting | default | meaning | expected |", "|---|---|---|---|"]
    for name, value in defaults.items():
        field = model.model_fields[name]
        cells = [f"`{name}`", default_in_words(field, value), field.description, expectation(field) + _effect(field)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _effect(field: FieldInfo) -> str:
    conditions = [f"`{other}` = {in_words(values)}" for other, values in facts(field)["only_with"]]
    return f"; only with {' and '.join(conditions)}" if conditions else ""
