"""Every setting reaches something; one without effect where it stands is said to have none; any value is answered."""

import importlib
from typing import Any

import pytest
from bundle_cases import part, refused, says, small, workflow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from label_efficient.engine.step_cost import device_memory
from label_efficient.monai_bridge import reached_by
from label_efficient.setting_fields import facts
from label_efficient.setting_models import problems_of
from label_efficient.settings import setting_names

# Read by name from the settings rather than through a reference.
BY_NAME = {"resume", "early_stop_patience", "overwrite"}
IDLE = {
    "lsanet": {"learning_rate": 0.1, "alpha": 2.0, "method": "dsn", "early_stop_patience": 1, "augment": "light"},
    "multimix": {"learning_rate": 0.1, "lambda_": 0.5, "val_interval": 2, "class_augment": "strong"},
    "gated_attention": {"learning_rate": 0.1, "momentum": 0.5, "lambda_start": 0.5, "average_decay": 0.9},
}


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_every_setting_reaches_an_object(case, kind):
    self = workflow(case, kind).parser  # the name by which a parser up the stack is found
    assert set(setting_names(self.config)) - reached_by("run", "initialize") <= BY_NAME


def test_settings_of_a_training_are_no_silent_part_of_an_evaluation(case):
    (note,) = part(workflow(case, "train", "evaluate", **IDLE[case.name]), "settings").notes
    assert set(note.split(": ")[1].split(", ")) == set(IDLE[case.name]) - {"method"}
    assert part(workflow(case, **IDLE[case.name]), "settings").notes == []


def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(case, dataset, tmp_path):
    large = {"batch_size": 10**7} if case.name == "multimix" else {"image_size": 64 * 1024}
    values = small(case, dataset, tmp_path / "out", **large)
    trainer = part(workflow(case, **values), "train::trainer")
    error = refused(trainer.run)
    assert type(error).__name__ == "SettingsError" and not (tmp_path / "out").exists()
    says(error, *(f"{name}={value}" for name, value in large.items()), "GiB of memory", "smaller")
    assert device_memory(trainer.state.device) > 2**28


def values_of(field: Any) -> st.SearchStrategy[Any]:
    kinds = getattr(field.annotation, "__args__", (field.annotation,))
    numbers = {int: st.integers(-(10**30), 10**30), float: st.floats() | st.integers(-(10**400), 10**400)}
    known = [st.booleans() if kind is bool else numbers[kind] for kind in kinds if kind in (bool, int, float)]
    options = [st.sampled_from(facts(field)["options"])] if facts(field)["options"] else []
    return st.one_of(*known, *options, st.text(max_size=5), st.none(), st.lists(st.floats(), max_size=4))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_is_taken_or_answered_with_the_settings_name(case, resolved, data):
    model = importlib.import_module(f"{case.name}.settings").Training
    name = data.draw(st.sampled_from([n for n in model.model_fields if n != "device"]))
    value = data.draw(values_of(model.model_fields[name]))
    problems = problems_of(model, resolved | {name: value}, {name: value})
    assert not problems or any(name in problem for problem in problems), problems


@pytest.fixture
def resolved(case) -> Any:
    return part(workflow(case), "settings")
