"""Ignite handlers that every bundle attaches.

This file is the same in all bundles: change it in one and run tools/sync_common.py.
"""

from typing import Any

from ignite.engine import Engine, Events


class OutputAsList:
    """Hands the output of a training step on as a list of one dictionary, as MONAI has it after decollating.

    For handlers that consumers append to the trainer's: MONAI's experiment tracking reads the loss of a list
    only. The last of the bundle's own handlers.
    """

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the handlers that read the output."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Wrap the output."""
        output: Any = engine.state.output
        engine.state.output = [output]  # type: ignore[assignment]
