"""The checkpoint of a run: everything that an epoch leaves to the next, from which a run goes on bit by bit."""

import logging
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.ending import if_broken_off
from label_efficient.engine.schedules import ALONG_THE_RUN
from label_efficient.files import write_whole
from label_efficient.settings import Settings, SettingsError
from label_efficient.tensor_files import read_tensors

logger = logging.getLogger(__name__)

# A run may be resumed with other values of these settings of all bundles: they do not change what an epoch computes.
FREE_ON_RESUME = frozenset(
    """max_epochs resume overwrite output_dir ckpt_dir num_workers early_stop_patience dataset_dir device
    calibrate debug""".split()
)
_START_ANEW = "put the checkpoint.pt of the run back, or start anew in another output_dir without resume"


@dataclass(kw_only=True, eq=False)
class Checkpoint:
    """Writes `checkpoint.pt` after every epoch, whole or not at all, and restores a run from it.

    The one of the epoch before stays as `checkpoint_before.pt`, which a run goes on from where the newer is damaged.

    It holds the state of the `parts`, of the gradient scaler, and of the random numbers of every rank. Only rank 0
    writes. (MONAI's `CheckpointSaver` keeps no random states.) The settings of a resumed run must be the same, but for
    `FREE_ON_RESUME` and those of the bundle's own that are `free_on_resume`.
    """

    path: Path
    parts: Mapping[str, Any]
    settings: Settings
    data_sha256: str | None
    free_on_resume: Collection[str]
    from_before: bool = field(default=False, init=False)

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
        # What is damaged does not take the place of what is whole.
        earlier = None if self.from_before else self.before
        write_whole(self.path, lambda file: torch.save(state, file), earlier=earlier)
        self.from_before = False
        self._is_safe(engine, engine.state.epoch)

    @property
    def before(self) -> Path:
        """Where the checkpoint of the epoch before is."""
        return self.path.with_stem(f"{self.path.stem}_before")

    def exists(self) -> bool:
        """Whether there is anything to resume from."""
        return self.path.is_file() or self.before.is_file()

    def restore(self, engine: Engine) -> None:
        """Put the parts, the random numbers and the trainer back to where the file was written.

        Raises:
            SettingsError: If settings, data or the number of processes are others, or the files hold no such state.
        """
        path, state = self._read()
        self._check(path, state)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            scaler = getattr(engine, "scaler", None)
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
            _restore_random_state(state["random"][rank_and_size()[0]])
            epoch = int(state["trainer"]["epoch"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise SettingsError(f"{path} does not hold the state of this run: {_START_ANEW}") from error
        engine.state.epoch = epoch
        engine.state.iteration = epoch * (engine.state.epoch_length or 0)
        logger.info("resuming after epoch %d of %s", epoch, path)
        self._is_safe(engine, epoch)

    def _is_safe(self, engine: Engine, epoch: int) -> None:
        if_broken_off(f"epoch {epoch} of {engine.state.max_epochs} is safe in {self.path}", resume=True)

    def _read(self) -> tuple[Path, Mapping[str, Any]]:
        """The newest of the files that is whole, and its content."""
        problems: list[str] = []
        for path in (self.path, self.before):
            try:
                state = read_tensors(path)
                if isinstance(state, dict) and {"settings", "data_sha256", "random", "trainer"} <= state.keys():
                    if problems:
                        logger.warning("%s: going on from the epoch before, in %s", problems[0], path)
                        self.from_before = True
                    return path, state
                problems.append(f"{path} is of another kind, no checkpoint of a run")
            except FileNotFoundError:
                problems.append(f"{path} is missing")
            except ValueError as error:
                problems.append(str(error))
        raise SettingsError(f"{problems[0]}, and {problems[1]}: {_START_ANEW}")

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
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
                f"{path} cannot be resumed with other settings: {'; '.join(differing)}. Give the same ones, or "
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
