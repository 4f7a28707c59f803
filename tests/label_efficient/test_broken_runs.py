"""Runs that end otherwise than planned: full disks, damaged files, errors, interruptions, warnings, logs."""

import errno
import io
import logging
import pickle
import resource
import signal
import sys

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow

from label_efficient import command_line, monai_bridge
from label_efficient.command_line import in_a_sentence
from label_efficient.engine.ending import at_end, ending, if_broken_off
from label_efficient.engine.log import WarningsOfRun, log_to_file, log_traceback, warnings_so_far
from label_efficient.engine.progress import Bar
from label_efficient.files import write_json, write_whole
from label_efficient.report.bundle_page import write_bundle_page
from label_efficient.run_folder import RunFolder
from label_efficient.settings import Settings, SettingsError
from label_efficient.tensor_files import read_tensors

logger = logging.getLogger(__name__)


# Files


@pytest.fixture
def small_files():
    """No file may be larger than 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "torch": lambda file: torch.save({"a": torch.zeros(100_000)}, file),
    "bytes": lambda file: file.write(b"x" * 400_000),
    "numpy": lambda file: np.savez(file, a=np.zeros(100_000)),
}


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize("before", [b"earlier", None])
def test_a_file_that_is_too_large_leaves_what_was_there(small_files, tmp_path, writer, before):
    path = tmp_path / "checkpoint.pt"
    if before:
        path.write_bytes(before)
    with pytest.raises(OSError, match="ulimit -f") as caught:
        write_whole(path, WRITERS[writer])
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])
    assert in_a_sentence(caught.value).startswith(f"{path}: larger than a file may be here")


def test_a_full_disk_is_named_with_what_to_do(monkeypatch, tmp_path):
    def full(self, data):
        self.error = OSError(errno.ENOSPC, "No space left on device")
        raise self.error

    monkeypatch.setattr("label_efficient.files._Disk.write", full)
    with pytest.raises(OSError, match=r"no space left on its disk: free some, .* resume=true") as caught:
        write_whole(tmp_path / "model.pt", WRITERS["torch"])
    assert in_a_sentence(caught.value).startswith(f"{tmp_path / 'model.pt'}: no space left")
    with pytest.raises(OSError, match="no space left"):
        write_json(tmp_path / "metrics.json", {})
    assert not list(tmp_path.iterdir())


def test_the_earlier_file_is_kept_under_another_name_and_names_may_be_long(tmp_path):
    for content in (b"1", b"2", b"3"):
        write_whole(tmp_path / ("n" * 255), lambda file, c=content: file.write(c), earlier=tmp_path / "before")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"3" and (tmp_path / "before").read_bytes() == b"2"
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "before", lambda file: 1 / 0)
    assert len(list(tmp_path.iterdir())) == 2


def saved(content, **kwargs) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **kwargs)
    return file.getvalue()


WHOLE = saved({"a": torch.arange(9999), "b": [1, "x"]})
FLIPPED = bytearray(WHOLE)
FLIPPED[len(WHOLE) // 2] ^= 1
NOT_TENSORS = {
    "empty": b"",
    "cut": WHOLE[: len(WHOLE) // 2],
    "short": WHOLE[:-9],
    "flipped": bytes(FLIPPED),
    "text": b"hello",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "pickle": pickle.dumps({"settings": print}),
    "command": b"cos\nsystem\n(S'touch ran'\ntR.",
    "module": saved(torch.nn.Linear(2, 2)),
    "legacy cut": saved({"a": torch.ones(99)}, _use_new_zipfile_serialization=False)[:-9],
}


@pytest.mark.parametrize("kind", list(NOT_TENSORS))
def test_what_holds_no_tensors_is_refused_in_our_words(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    path.write_bytes(NOT_TENSORS[kind])
    with pytest.raises(ValueError, match=r"x\.pt is (empty|damaged)") as caught:
        read_tensors(path)
    text = str(caught.value)
    assert "weights_only" not in text and "trust" not in text and "\n" not in text
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or kind == "empty")
    assert not (tmp_path / "ran").exists()


def test_tensors_of_both_formats_are_read(tmp_path):
    for content in (WHOLE, saved({"a": torch.arange(9999)}, _use_new_zipfile_serialization=False)):
        (tmp_path / "x.pt").write_bytes(content)
        assert read_tensors(tmp_path / "x.pt")["a"].sum() == 9999 * 9998 // 2


# Errors as one sentence


def raised(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError


def wrapped(cause):
    """As MONAI wraps it."""
    error = RuntimeError("Failed to instantiate component 'a.b'\n set _mode_")
    error.__cause__ = cause
    return error


def test_documented_errors_are_a_sentence_and_mistakes_of_the_software_are_not(tmp_path):
    missing = raised(open, tmp_path / "none.csv")
    assert in_a_sentence(missing) == f"{tmp_path / 'none.csv'}: No such file or directory"
    ours = raised(read_tensors, write_empty(tmp_path))
    assert in_a_sentence(wrapped(wrapped(ours))) == f"{tmp_path / 'empty.pt'} is empty"
    assert "out of memory" in in_a_sentence(MemoryError())
    assert "out of memory" in in_a_sentence(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    unknown = raised(monai_bridge.ConfigParser({"a": "@b"}).get_parsed_content, "a")
    assert in_a_sentence(unknown) == "the referring item `@b` is not defined in the config content."
    wrong = raised(monai_bridge.ConfigParser({"a": "$1 / 0"}).get_parsed_content, "a")
    assert "ZeroDivisionError: division by zero" in in_a_sentence(wrong)
    call = {"_target_": "torch.nn.ReLU", "inplaced": True}
    typing_error = raised(monai_bridge.ConfigParser({"a": call}).get_parsed_content, "a")
    assert "torch.nn.ReLU" in in_a_sentence(typing_error) and "inplaced" in in_a_sentence(typing_error)
    for bug in (
        raised(Settings, {}, 3),
        raised(np.zeros(3).reshape, 2),
        raised(in_a_sentence),
        raised(lambda: SettingsError.nothing),
        ValueError("never raised"),
    ):
        assert in_a_sentence(bug) is None


def write_empty(folder):
    (folder / "empty.pt").write_bytes(b"")
    return folder / "empty.pt"


def test_an_error_of_a_process_that_reads_ahead_is_its_sentence():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise FileNotFoundError("/data/a.png does not exist")

    error = raised(list, torch.utils.data.DataLoader(Broken(), num_workers=1))
    assert in_a_sentence(error) == "/data/a.png does not exist"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), command_line._Terminated()])
@pytest.mark.parametrize("resume", [True, False])
def test_an_interruption_says_what_is_safe_and_how_to_go_on(error, resume, monkeypatch, capsys):
    command = ["/bin/python", "-m", "monai.bundle", "run", "training", "--dataset", "a b.json"]
    monkeypatch.setattr("sys.orig_argv", command)
    if_broken_off("epoch 3 of 9 is safe", resume=resume)
    with pytest.raises(SystemExit) as caught:
        command_line._last_words(False, type(error), error, None)
    assert caught.value.code == (130 if type(error) is KeyboardInterrupt else 143)
    said = capsys.readouterr().err
    assert "epoch 3 of 9 is safe. To " in said and said.count("\n") == 2
    end = "python -m monai.bundle run training --dataset 'a b.json'" + (" --resume true" if resume else "")
    assert said.strip().endswith(end)


def test_only_mistakes_of_the_software_show_their_traceback(capsys):
    ours = raised(monai_bridge.ConfigParser({"a": "@b"}).get_parsed_content, "a")
    bug = raised(np.zeros(3).reshape, 2)
    for error, debug, traced in ((ours, False, False), (ours, True, True), (bug, False, True)):
        command_line._last_words(debug, type(error), error, error.__traceback__)
        said = capsys.readouterr().err
        assert ("Traceback" in said) == traced and ("mistake of the software" in said) == (error is bug)
        assert "\nERROR: " in said


# The ending of a run, its log and its warnings


def test_a_run_ends_once_however_it_ends(tmp_path):
    before = list(logging.getLogger().handlers)
    for problem in (None, ValueError, KeyboardInterrupt):
        told = []

        def run(problem=problem, told=told):
            at_end(lambda: told.append("first"))
            at_end(lambda: told.append("last"))
            log_to_file(tmp_path / "train.log")
            if problem:
                raise problem("a \udcff \u00e9 problem")

        if problem:
            raised(command_line._guarded(run))
        else:
            command_line._guarded(run)()
        assert told == ["last", "first"] and logging.getLogger().handlers == before
    logger.warning("of a later request of a server")
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "later request" not in text and "a \\udcff \u00e9 problem" in text and text.count("Traceback") == 2


def test_a_program_gets_the_exception_and_keeps_its_hooks(tmp_path):
    hooks = sys.excepthook, signal.getsignal(signal.SIGTERM), logging.raiseExceptions
    (tmp_path / "train.json").write_text('{"initialize": ["$@g"], "run": "$int(\'x\')"}')
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        guard = {"_target_": "label_efficient.command_line.guard_run"}
        create_workflow(config_file=str(tmp_path / "train.json"), g=guard, logging_file=False, meta_file=[]).run()
    assert isinstance(caught.value.__cause__, ValueError)
    assert hooks == (sys.excepthook, signal.getsignal(signal.SIGTERM), logging.raiseExceptions)


def test_a_log_on_a_full_disk_costs_its_lines_and_says_so_once(monkeypatch, caplog, tmp_path):
    with ending():
        log_to_file(tmp_path / "train.log")
        log = logging.getLogger().handlers[-1]

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        log.stream.close()
        log.stream = io.StringIO()
        monkeypatch.setattr(log, "flush", full)
        for _ in range(5):
            logger.warning("a line")
        log_traceback(ValueError("no"))
    assert caplog.text.count("lacks lines from here on") == 1 and "No space left" in caplog.text
    assert log not in logging.getLogger().handlers


def test_equal_warnings_are_one_and_of_a_kind_only_a_few_are_kept():
    with WarningsOfRun() as warnings:
        logger.info("no warning")
        for _ in range(1000):
            logger.warning("lambda stays 1")
        for number in range(1000):
            logger.warning("no prediction for %s", number)
        assert warnings_so_far() == warnings.lines()
    logger.warning("after it")
    assert warnings_so_far() == []
    assert warnings.lines() == [
        "lambda stays 1 (1000 times)",
        *[f"no prediction for {number}" for number in range(5)],
        "and 995 more of this kind",
    ]


def test_the_report_begins_with_the_warnings_escaped_and_the_terminal_ends_with_them(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = RunFolder(tmp_path, "inference")

    def run():
        logger.warning("<script>alert(%s)</script> \udcff", 1)
        write_bundle_page(folder, "title", [], Settings({"debug": False}, {}), {})
        logger.info("next")

    command_line._guarded(run)()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert (
        page.index("Warnings of this run") < page.index("&lt;script&gt;alert(1)") < page.index("Settings and versions")
    )
    assert caplog.records[-1].getMessage().startswith("Warnings of this run:\n- <script>alert(1)")
    write_bundle_page(folder, "title", [], Settings({"debug": False}, {}), {})
    assert "Warnings" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_log_says_now_and_then_how_far_it_is(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr("label_efficient.engine.progress.time.perf_counter", lambda: now[0])
    bar = Bar("evaluation", 200)
    for done in range(1, 201):
        now[0] = float(done)
        bar.to(done)
    bar.close()
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "evaluation: 5 of 200 images, 3 min left" and len(said) == 4
