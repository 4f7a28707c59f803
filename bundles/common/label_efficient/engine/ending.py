"""What happens when a run ends, fails or is broken off."""

import atexit
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

_run: ContextVar[contextlib.ExitStack | None] = ContextVar("run", default=None)


class Left(NamedTuple):
    """What a run that is broken off now leaves: what is `safe`, and whether resume=true goes on with it."""

    safe: str = "nothing was saved yet"
    resume: bool = False


left = [Left()]  # of the run that is under way


def if_broken_off(safe: str, *, resume: bool = False) -> None:
    """Say what a run leaves that is broken off from here on."""
    left[:] = [Left(safe, resume)]


def at_end(callback: Callable[[], Any]) -> None:
    """Call when the run that is under way ends, fails or is broken off, the last one first.

    Outside of any, where a program runs a trainer alone, it is when the process ends.
    """
    run = _run.get()
    if run is None:
        atexit.register(callback)
    else:
        run.callback(callback)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """A run: what `at_end` is told within is done when it is left, however that is."""
    left[:] = [Left()]
    with contextlib.ExitStack() as stack:
        stack.callback(_run.reset, _run.set(stack))
        yield
