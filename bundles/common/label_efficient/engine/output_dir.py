"""The folder of a run."""

import logging
import shutil
from pathlib import Path

from label_efficient.settings import SettingsError

logger = logging.getLogger(__name__)

_FILES = """checkpoint.pt model.pt model.json model.images.npy calibration.json history.csv metrics.json predictions.csv
    copies.csv report.html""".split()
_FOLDERS = ("tensorboard", "figures")


def check_output_dir(folder: Path) -> None:
    """Refuse a folder in which a run would replace what no run has written.

    Raises:
        SettingsError: If it holds a folder of a run's name, such as `masks`, and no record of a run.
    """
    if any((folder / name).is_file() for name in ("config.json", "metrics.json")):
        return
    found = [name for name in ("masks", "figures", "tensorboard") if (folder / name).exists()]
    if found:
        raise SettingsError(
            f"output_dir={str(folder)!r} holds {', '.join(found)}, which a run would replace, and no config.json of an "
            "earlier run: give an empty or a new folder"
        )


def clear_output_dir(folder: Path, *, warn: bool = True) -> None:
    """Take away what an earlier run left, after `check_output_dir`; warn of a run that could have been continued."""
    check_output_dir(folder)
    if warn and (folder / "checkpoint.pt").is_file():
        logger.warning("%s: the earlier run there is replaced (resume=true continues one)", folder)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
