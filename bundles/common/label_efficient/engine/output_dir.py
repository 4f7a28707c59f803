"""The folder of a run."""

from pathlib import Path

from label_efficient.settings import SettingsError


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
