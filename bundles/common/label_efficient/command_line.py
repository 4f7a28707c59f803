"""A run on the command line: errors as one sentence, and what is left when it is broken off."""

import dis
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from label_efficient import monai_bridge
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.ending import ending, left
from label_efficient.engine.log import WarningsOfRun, log_traceback
from label_efficient.files import DISK_FULL
from label_efficient.versions import PACKAGES

logger = logging.getLogger(__name__)

_NO_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")


def guard_run(debug: Any = False) -> None:
    """Let the workflow whose config is being parsed tidy up after `run`, however that ends, and repeat its warnings.

    On the command line, too: an error is one sentence, with its traceback only with `debug` or where it is a mistake of
    the software; Ctrl-C and SIGTERM say what is safe, and how to go on. A program gets every exception as it is.
    """
    monai_bridge.wrap_run(_guarded)
    if not monai_bridge.on_command_line():
        return
    logging.raiseExceptions = False  # a terminal that is gone, or a full file in its place, stops no run
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_no_echo)
    sys.excepthook = partial(_last_words, str(debug).lower() == "true")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _is_no_echo(record: logging.LogRecord) -> bool:
    # ignite says before what the last line says.
    return "is terminating due to exception" not in str(record.msg)


def _guarded(run: Callable[[], Any]) -> Callable[[], Any]:
    def guarded() -> Any:
        with ending(), WarningsOfRun() as warnings:
            try:
                result = run()
            except BaseException as error:
                log_traceback(error)
                raise
            if (lines := warnings.lines()) and rank_and_size()[0] == 0:
                logger.info("Warnings of this run:\n%s", "\n".join(f"- {line}" for line in lines))
            return result

    return guarded


def _last_words(debug: bool, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        why, code = ("SIGTERM", 143) if isinstance(error, _Terminated) else ("Ctrl-C", 130)
        if rank_and_size()[0] == 0:
            print(f"\nSTOPPED by {why}: {left[0].safe}. {_how_to_go_on()}", file=sys.stderr)
        raise SystemExit(code)
    sentence = in_a_sentence(error)
    if debug or sentence is None:
        sys.__excepthook__(kind, error, trace)
    if sentence is None:
        cause = monai_bridge.causes(error)[-1]
        sentence = f"{type(cause).__name__}: {cause}\nThis is a mistake of the software: please report all of the above"
    print(f"\nERROR: {sentence}", file=sys.stderr)


def _how_to_go_on() -> str:
    words = list(sys.orig_argv)
    given = "--resume true" in " ".join(words).lower().replace("=", " ")
    more = ["--resume", "true"] if left[0].resume and not given else []
    begin = "To go on" if left[0].resume else "To start again"
    if rank_and_size()[1] > 1:  # torchrun's own arguments are not to be known
        return f"{begin}, give the same command{' with ' + ' '.join(more) if more else ''}"
    return f"{begin}: {shlex.join([os.path.basename(words[0]), *words[1:], *more])}"


def in_a_sentence(error: BaseException) -> str | None:
    """What an error says to who gave the command; None where it is a mistake of the software.

    Documented are the errors that our code, or MONAI's of configs, raises itself; those of the file system; that memory
    is used up; and what a value or an expression on the command line raises in a config.
    """
    *around, cause = monai_bridge.causes(error)
    text = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
    if isinstance(cause, MemoryError) or any(part in text for part in _NO_MEMORY):
        return f"out of memory: give a smaller batch_size or image_size ({text.partition(chr(10))[0]})"
    if isinstance(cause, OSError) and (cause.filename is not None or cause.errno in DISK_FULL):
        return f"{cause.filename or 'a file of this run'}: {DISK_FULL.get(cause.errno or 0, cause.strerror)}"
    if (trace := cause.__traceback__) is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, module = trace.tb_frame.f_code, str(trace.tb_frame.f_globals.get("__name__"))
    if around and (code.co_filename == "<string>" or (module == "monai.utils.module" and isinstance(cause, TypeError))):
        return f"{' '.join(str(around[-1]).split())[:300]}: {type(cause).__name__}: {text}"
    if not isinstance(cause, (ValueError, OSError, ImportError, KeyError)):
        return None
    if module == "torch._utils":  # out of a process that reads ahead: its traceback is in the text
        return text.strip().splitlines()[-1].partition(": ")[2]
    ours = module.split(".")[0] in PACKAGES or module.startswith(("monai.bundle", "monai.utils.module"))
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return text if ours and raised else None
