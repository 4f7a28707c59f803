"""Settings: what is refused, what is said, what --help and the model cards show."""

from typing import Any

import pytest

from label_efficient.setting_fields import setting
from label_efficient.setting_help import default_in_words, settings_table
from label_efficient.setting_models import SettingsModel, problems_of


class Model(SettingsModel):
    """One of each kind."""

    kind: str = setting("its kind", options=("a", "b"))
    rate: float = setting("a rate", ge=0, lt=1, only_with=("kind", ["b"]))
    count: int | None = setting("a count", ge=2)
    flag: bool = setting("a flag")


FINE: dict[str, Any] = {"kind": "a", "rate": 0, "count": None, "flag": True}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rate": "0.5"}, "rate='0.5': expected a number of at least 0 and below 1"),
        ({"rate": 1}, "rate=1: expected a number of at least 0 and below 1"),
        ({"rate": float("nan")}, "rate=nan: expected a number of at least 0 and below 1"),
        ({"rate": True}, "rate=True: expected a number of at least 0 and below 1"),
        ({"count": True}, "count=True: expected a whole number of at least 2 or null"),
        ({"count": 2.0}, "count=2.0: expected a whole number of at least 2 or null"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"kind": "c"}, "kind='c': expected one of a, b"),
    ],
)
def test_no_value_is_coerced_and_each_mistake_names_what_is_expected(changes, problem):
    assert problems_of(Model, FINE, {}) == []
    assert problems_of(Model, FINE | changes, changes) == [problem]


def test_all_mistakes_come_at_once():
    assert len(problems_of(Model, {"kind": 1, "rate": -1, "count": 1, "flag": "yes"}, {})) == 4


def test_a_setting_without_effect_is_refused_only_where_it_was_changed():
    assert problems_of(Model, FINE, {"rate": 0}) == ["rate=0 has no effect with kind='a': it is for 'b'"]
    assert problems_of(Model, FINE | {"kind": "b"}, {"rate": 0}) == []


def test_table_names_the_demos_default_beside_the_other():
    field = Model.model_fields["rate"]
    assert default_in_words(field, "$0.1 if @dataset == 'demo' else 0.5") == "0.5; demo 0.1"
    assert settings_table(Model, {"rate": 0.5}).splitlines()[-1] == (
        "| `rate` | 0.5 | a rate | a number of at least 0 and below 1; only with `kind` = b |"
    )
