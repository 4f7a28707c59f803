"""The checkpoint of a run: everything that an epoch leaves to the next, from which a run goes on bit by bit."""

import logging
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.schedules import ALONG_THE_RUN
from label_efficient.files import write_whole
from label_efficient.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

# A run may be resumed with other values of these settings of all bundles: they do not change what an epoch computes.
FREE_ON_RESUME = frozenset(
    """max_epochs resume overwrite output_dir ckpt_dir num_workers early_stop_patience dataset_dir device
    calibrate""".split()
)


@dataclass(kw_only=True, eq=False)
class Checkpoint:
    """Writes `checkpoint.pt` after every epoch, whole or not at all, and restores a run from it.

    It holds the state of the `parts`, of the gradient scaler, and of the random numbers of every rank. Only rank 0
    writes. (MONAI's `CheckpointSaver` keeps no random states.) The settings of a resumed run must be the same, but for
    `FREE_ON_RESUME` and those of the bundle's own that are `free_on_resume`.
    """

    path: Path
    parts: Mapping[str, Any]
    settings: Settings
    data_sha256: str | None
    free_on_resume: Collection[str]

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the handlers whose states it saves."""
        engine.add_event_handler(Events.EPOCH_STARTED, _set_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the epoch that has just ended."""
        rank, num_ranks = rank_and_size()
        random_states: list[Any] = [_random_state()] * num_ranks
        if num_ranks > 1:
            dist.all_gather_object(random_states, random_states[rank])
        if rank != 0:
            return
        scaler = getattr(engine, "scaler", None)
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "trainer": {"epoch": engine.state.epoch},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "random": random_states,
            "data_sha256": self.data_sha256,
            "settings": {name: repr(value) for name, value in self.settings.items()},
        }
        write_whole(self.path, lambda file: torch.save(state, file))

    def restore(self, engine: Engine) -> None:
        """Put the parts, the random numbers and the trainer back to where the file was written.

        Raises:
            SettingsError: If settings, data or the number of processes are others.
        """
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self._check(state)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        _restore_random_state(state["random"][rank_and_size()[0]])
        epoch = state["trainer"]["epoch"]
        engine.state.epoch = epoch
        engine.state.iteration = epoch * (engine.state.epoch_length or 0)
        logger.info("resuming after epoch %d of %s", epoch, self.path)

    def _check(self, state: Mapping[str, Any]) -> None:
        ranks, before = rank_and_size()[1], state["settings"]
        free = FREE_ON_RESUME.union(self.free_on_resume)
        if self.settings.get("lr_schedule") in ALONG_THE_RUN:
            free -= {"max_epochs"}
        differing = [
            f"{name} was {before.get(name)} and is {value!r}"
            for name, value in self.settings.items()
            if name not in free and before.get(name) != repr(value)
        ]
        if state["data_sha256"] != self.data_sha256:
            differing.append("the data have changed: their checksum is another one")
        if len(state["random"]) != ranks:
            differing.append(f"the number of processes was {len(state['random'])} and is {ranks}")
        if differing:
            raise SettingsError(
                f"{self.path} cannot be resumed with other settings: {'; '.join(differing)}. Give the same ones, or "
                "another output_dir for a new run"
            )


def _set_epoch(engine: Engine) -> None:
    # The order of the images follows from the number of the epoch, in a resumed run too.
    sampler: Any = getattr(engine.state.dataloader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(engine.state.epoch)


def _random_state() -> dict[str, Any]:
    """States of the random numbers of this process, of types that `weights_only` loads."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": list(random.getstate()[1])}
    name, keys, position, *_ = np.random.get_state()
    state["numpy"] = [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position)]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"]), None))
    name, keys, position = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, 0, 0.0))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
