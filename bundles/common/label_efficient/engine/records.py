"""Handler that keeps the record of a run: best weights, history, checkpoint."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch.optim.swa_utils import AveragedModel

from label_efficient.data.seen_images import images_trained_on
from label_efficient.engine.best_weights import BestWeights
from label_efficient.engine.checkpoint import Checkpoint
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.history import History
from label_efficient.files import write_json
from label_efficient.monai_bridge import config_being_parsed
from label_efficient.run_folder import CHECKPOINTS, RunFolder
from label_efficient.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class RunRecord:
    """Keeps a run's files in its folder, whole at any moment, and resumes from them bit by bit.

    Args:
        network: The network that is trained, not wrapped.
        evaluated: The module that is validated, whose weights become `model.pt`: the network, its moving average, or a
            part of it.
        validator: Evaluator that has run when an epoch ends.
        key_metric: Name of its metric that chooses the best epoch, the larger the better.
        model_info: Content of `model.json`.
        data: The data set.
        first_weights: Weights that training starts from, or None: epoch 0, and kept where no epoch is better.
        free_on_resume: Settings of the bundle's own that may be others in a resumed run.
    """

    run_folder: RunFolder
    network: torch.nn.Module
    evaluated: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    validator: Engine
    key_metric: str
    settings: Settings
    model_info: Mapping[str, Any]
    data: Any
    average: torch.nn.Module | None = None
    first_weights: str | None = None
    free_on_resume: Collection[str] = ()

    def __post_init__(self) -> None:
        validated: Any = {"validator": self.validator, "val_interval": self.settings["val_interval"]}
        validated["run_folder"] = self.run_folder
        self.best_weights = BestWeights(
            shipped=self.evaluated,
            key_metric=self.key_metric,
            model_info=self.model_info,
            images=images_trained_on(self.data, self.settings["ckpt_path"]),
            early_stop_patience=self.settings["early_stop_patience"],
            **validated,
        )
        self.history = History(optimizer=self.optimizer, **validated)
        # What is there at the start: a trainer may be run more than once.
        self.at_start = {"best": self.best_weights.state_dict(), "history": self.history.state_dict()}
        parts = {"model": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
        parts |= {"average": self.average, "best": self.best_weights, "history": self.history}
        self.checkpoint = Checkpoint(
            path=self.run_folder.output_dir / CHECKPOINTS[0],
            parts={name: part for name, part in parts.items() if part is not None},
            settings=self.settings,
            data_sha256=self.model_info.get("data_sha256"),
            free_on_resume=self.free_on_resume,
        )
        self.config = config_being_parsed()

    def attach(self, engine: Engine) -> None:
        """Register on the trainer; after the handlers whose results it records."""
        engine.add_event_handler(Events.STARTED, self)
        # A run that is killed in between finds all of the epoch before in the checkpoint, which is written last.
        self.best_weights.attach(engine)
        self.history.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._place_checkpoint)
        self.checkpoint.attach(engine)

    def _place_checkpoint(self) -> None:
        if rank_and_size()[0] == 0:
            self.checkpoint.path, _ = map(self.run_folder.file, CHECKPOINTS)

    def __call__(self, engine: Engine) -> None:
        """Begin the record, or go on with that of the run that is resumed."""
        if engine.state.epoch:
            # The trainer goes on, as in the rounds of federated learning: the record does too.
            return
        self.best_weights.load_state_dict(self.at_start["best"])
        self.history.load_state_dict(self.at_start["history"])
        self.run_folder.open()
        resumed = self.run_folder.resumes
        if resumed:
            self.checkpoint.restore(engine)
            self.best_weights.stops(engine)
        else:
            if self.settings["resume"]:
                logger.warning("resume: no %s, starting at the first epoch", self.checkpoint.path)
            self.run_folder.restart()
        rank, num_ranks = rank_and_size()
        if num_ranks > 1:
            dist.barrier()
        if rank == 0:
            path = self.run_folder.file("config.json")
            write_json(path, {"settings": self.settings, "config": self.config})
        if self.first_weights is not None and not resumed:
            self._judge_start(engine)

    def _judge_start(self, engine: Engine) -> None:
        """Validate the weights that the training starts from, as epoch 0."""
        if isinstance(self.average, AveragedModel):  # made before another program loaded its weights
            self.average.module.load_state_dict(self.network.state_dict())
        self.validator.run()
        figures = ", ".join(
            f"{n} {v:.4g}" for n, v in self.validator.state.metrics.items() if n in (self.key_metric, "acc")
        )
        logger.info("starting from %s, on validation: %s", self.first_weights, figures)
        self.best_weights(engine)
        self.history(engine)
