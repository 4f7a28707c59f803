"""Which epoch's weights are shipped where training starts from weights: never ones that are worse than those."""

import json

import pytest
import torch
from ignite.engine import Engine

from label_efficient.engine.best_weights import BestWeights
from label_efficient.run_folder import RunFolder


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([(0.9, 0.8), (0.95, 0.9)], 1),
        ([(0.9, 0.8), (0.9, 0.9), (0.8, 0.7)], 0),
        ([(0.998, 0.98), (0.999, 0.5)], 0),  # a better AUC, and half of the accuracy gone
        ([(0.9, 0.8), (0.95, 0.7), (0.92, 0.8)], 2),
        ([(0.9, None), (0.95, None)], 1),
    ],
)
def test_the_weights_at_the_start_are_replaced_by_better_ones_only(tmp_path, scores, expected):
    trainer, validator = Engine(lambda *_: None), Engine(lambda *_: None)
    given = {"shipped": torch.nn.Linear(1, 1), "validator": validator, "key_metric": "auc", "model_info": {}}
    given |= {"run_folder": RunFolder(tmp_path, "training"), "early_stop_patience": 0, "val_interval": 1}
    handler = BestWeights(**given)
    for epoch, (auc, acc) in enumerate(scores):
        trainer.state.epoch = epoch
        validator.state.metrics = {"auc": auc} | ({} if acc is None else {"acc": acc})
        handler(trainer)
        state, handler = handler.state_dict(), BestWeights(**given)  # as after a crash
        handler.load_state_dict(state)
    assert json.loads((tmp_path / "model.json").read_text())["best_epoch"] == expected
