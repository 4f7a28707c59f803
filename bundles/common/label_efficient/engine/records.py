"""Handlers that keep the record of a run: history, best weights, resumable checkpoint, log and progress."""

import logging
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.output_dir import check_output_dir
from label_efficient.files import write_csv, write_json, write_whole
from label_efficient.monai_bridge import config_being_parsed
from label_efficient.networks.weights import save_model
from label_efficient.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

# A run may be resumed with other values of these: they do not change what an epoch computes. (The number of epochs
# does where the learning rate falls along them.)
FREE_ON_RESUME = frozenset(
    "max_epochs resume output_dir ckpt_dir num_workers early_stop_patience dataset_dir device calibrate "
    "target_specificity write_masks reference_boxes".split()
)


class RunRecord:
    """Keeps a run's files in `output_dir`, whole at any moment, and resumes from them bit by bit.

    After every epoch: `history.csv`, TensorBoard, the best weights `model.pt` with `model.json` beside them (what the
    weights are: network, classes, preprocessing), and `checkpoint.pt` with the network, the optimizer, the scheduler,
    the gradient scaler, the random states and the record itself. Only rank 0 writes.

    Args:
        output_dir: Folder of the run.
        ckpt_dir: Folder of `model.pt`, usually the same.
        network: The network that is trained, not wrapped.
        shipped: The module whose weights become `model.pt`, usually a part of the network.
        optimizer: Its optimizer.
        scheduler: Its learning rate scheduler.
        validator: Evaluator that has run when an epoch ends; its metrics become `val_...`.
        key_metric: Name of the validator's metric that chooses the best epoch, the larger the better.
        settings: Of the run.
        model_info: Content of `model.json`.
        resume: Whether to continue from `checkpoint.pt`; without one the run starts at the beginning.
        early_stop_patience: Stop after so many validations without a better one; 0 never stops.
        val_interval: Validation runs every so many epochs.
        more_parts: Anything else with a state to be saved and restored, by name.

    Raises:
        SettingsError: On resuming, if settings or data differ from those of the checkpoint.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        ckpt_dir: str,
        network: torch.nn.Module,
        shipped: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        validator: Engine,
        key_metric: str,
        settings: Settings,
        model_info: Mapping[str, Any],
        resume: bool = False,
        early_stop_patience: int = 0,
        val_interval: int = 1,
        more_parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.ckpt_dir = Path(ckpt_dir)
        self.parts = {"model": network, "optimizer": optimizer, "scheduler": scheduler, **(more_parts or {})}
        self.shipped = shipped
        self.validator = validator
        self.key_metric = key_metric
        self.settings = settings
        self.model_info = dict(model_info)
        self.resume = resume
        self.early_stop_patience = early_stop_patience
        self.val_interval = val_interval
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.without_improvement = 0
        self.learning_rate = 0.0
        self.rank, self.num_ranks = rank_and_size()
        self.config = config_being_parsed()
        self._summary_writer: Any = None

    @property
    def checkpoint_path(self) -> Path:
        """Where the run can be resumed from."""
        return self.output_dir / "checkpoint.pt"

    def attach(self, engine: Engine) -> None:
        """Register on the trainer; after the handlers whose results it records."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start(self, engine: Engine) -> None:
        if engine.state.epoch:
            # The trainer goes on, as in the rounds of federated learning: the record does too.
            return
        self.history, self.best, self.without_improvement = [], {}, 0
        if self.rank == 0:
            for remains in self.output_dir.glob(".*.tmp"):  # of a run that was killed while it wrote
                remains.unlink()
        if self.resume and self.checkpoint_path.is_file():
            self._restore(engine)
        elif self.rank == 0:
            if self.resume:
                logger.warning("resume: no %s, starting at the first epoch", self.checkpoint_path)
            self._clear()
        if self.num_ranks > 1:
            dist.barrier()
        if self.rank == 0:
            write_json(self.output_dir / "config.json", {"settings": self.settings, "config": self.config})

    def _clear(self) -> None:
        check_output_dir(self.output_dir)
        # What an earlier run left would otherwise be taken for this one's.
        if self.checkpoint_path.is_file() and self.settings.get("dataset") != "demo":
            logger.warning("%s: the earlier run there is replaced (resume=true continues one)", self.output_dir)
        for name in ("checkpoint.pt", "model.pt", "model.json", "calibration.json", "history.csv", "metrics.json"):
            (self.output_dir / name).unlink(missing_ok=True)
        for name in ("predictions.csv", "report.html"):
            (self.output_dir / name).unlink(missing_ok=True)
        for name in ("tensorboard", "figures"):
            shutil.rmtree(self.output_dir / name, ignore_errors=True)

    def _start_epoch(self, engine: Engine) -> None:
        self.learning_rate = self.parts["optimizer"].param_groups[0]["lr"]
        sampler: Any = getattr(engine.state.dataloader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(engine.state.epoch)

    def __call__(self, engine: Engine) -> None:
        """Record the epoch that has just ended."""
        row = {"epoch": engine.state.epoch, **_scalars("train", engine.state.metrics)}
        # Not in the history, which two runs of one seed have the same to the last digit.
        speed = row.pop("train_images_per_second", None)
        row["learning_rate"] = self.learning_rate
        validated = engine.state.epoch % self.val_interval == 0
        if validated:
            row |= _scalars("val", self.validator.state.metrics)
            self._judge(engine, float(self.validator.state.metrics[self.key_metric]))
        self.history.append(row)
        random_states = self._random_states()
        if self.rank == 0:
            self._write_epoch(engine, row, random_states)
            if speed is not None:
                self._writer.add_scalar("train/images_per_second", speed, engine.state.epoch)
        stop = self.early_stop_patience and self.without_improvement >= self.early_stop_patience
        if stop:
            logger.info("no better validation %s %d times: stopping early", self.key_metric, self.without_improvement)
            engine.terminate()

    def _judge(self, engine: Engine, value: float) -> None:
        if not np.isfinite(value):
            epoch = engine.state.epoch
            raise ValueError(f"validation {self.key_metric} is {value} in epoch {epoch}: training diverged")
        if self.best and value <= self.best["value"]:
            self.without_improvement += 1
            return
        self.without_improvement = 0
        self.best = {"epoch": engine.state.epoch, "value": value}
        if self.rank == 0:
            # A temperature fitted to other weights would go on changing the probabilities of these.
            (self.ckpt_dir / "calibration.json").unlink(missing_ok=True)
            info = self.model_info | {"best_epoch": engine.state.epoch, f"val_{self.key_metric}": value}
            save_model(self.ckpt_dir / "model.pt", self.shipped.state_dict(), info)

    def _write_epoch(self, engine: Engine, row: Mapping[str, Any], random_states: list[Any]) -> None:
        write_csv(self.output_dir / "history.csv", self.history)
        for name, value in row.items():
            if name != "epoch" and np.isfinite(value):
                self._writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self._writer.flush()
        scaler = getattr(engine, "scaler", None)
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "trainer": {"epoch": engine.state.epoch},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "random": random_states,
            "record": {
                "history": self.history,
                "best": self.best,
                "without_improvement": self.without_improvement,
            },
            "data_sha256": self.model_info.get("data_sha256"),
            "settings": {k: repr(v) for k, v in self.settings.items()},
        }
        write_whole(self.checkpoint_path, lambda file: torch.save(state, file))

    def _random_states(self) -> list[Any]:
        state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": list(random.getstate()[1])}
        name, keys, position, *_ = np.random.get_state()
        state["numpy"] = [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position)]
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        if self.num_ranks == 1:
            return [state]
        gathered: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(gathered, state)
        return gathered

    def _restore(self, engine: Engine) -> None:
        state = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        free = FREE_ON_RESUME
        if self.settings.get("lr_schedule") in ("cosine", "one_cycle"):
            free = free - {"max_epochs"}
        differing = [
            f"{name} was {state['settings'].get(name)} and is {value!r}"
            for name, value in self.settings.items()
            if name not in free and state["settings"].get(name) != repr(value)
        ]
        if state["data_sha256"] != self.model_info.get("data_sha256"):
            differing.append("the data have changed: their checksum is another one")
        if len(state["random"]) != self.num_ranks:
            differing.append(f"the number of processes was {len(state['random'])} and is {self.num_ranks}")
        if differing:
            raise SettingsError(
                f"{self.checkpoint_path} cannot be resumed with other settings: {'; '.join(differing)}. Give the same "
                "ones, or another output_dir for a new run"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        record = state["record"]
        self.history, self.best = record["history"], record["best"]
        self.without_improvement = record["without_improvement"]
        mine = state["random"][self.rank]
        torch.set_rng_state(mine["torch"])
        random.setstate((3, tuple(mine["python"]), None))
        name, keys, position = mine["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, 0, 0.0))
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])
        epoch = state["trainer"]["epoch"]
        engine.state.epoch = epoch
        engine.state.iteration = epoch * (engine.state.epoch_length or 0)
        logger.info("resuming after epoch %d of %s", epoch, self.checkpoint_path)
        if self.early_stop_patience and self.without_improvement >= self.early_stop_patience:
            engine.terminate()

    @property
    def _writer(self) -> Any:
        if self._summary_writer is None:
            from torch.utils.tensorboard import SummaryWriter

            purge = self.history[-1]["epoch"] if len(self.history) > 1 else None
            self._summary_writer = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=purge)
        return self._summary_writer

    def _close(self, engine: Engine) -> None:
        if self._summary_writer is not None:
            self._summary_writer.close()


def _scalars(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}_{name}": float(value) for name, value in metrics.items()}
