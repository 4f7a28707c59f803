"""The folder of a run that was given none."""

import glob
import os
from pathlib import Path

import torch.distributed as dist

from label_efficient import monai_bridge
from label_efficient.engine.distributed import rank_and_size
from label_efficient.output_names import output_name
from label_efficient.run_account import Account, in_use
from label_efficient.run_folder import OUR_NAMES, Kind


def default_folder(parent: str, name: str, kind: Kind, latest: bool = False) -> str:
    """A folder of that name in `parent`, with the next number (`cells`, `cells-2`) where runs stand; one for all ranks.

    With `latest` that of the last run of a kind, if there is one.
    """
    chosen = [""]
    if rank_and_size()[0] == 0:
        if "dataset" in monai_bridge.changes_of_consumers():
            name = "handed-over"  # not what the setting says
        first = Path(parent, output_name(name).replace("/", "-"))
        others = glob.glob(f"{glob.escape(str(first))}-*")
        numbers = [1, *(int(n) for path in others if (n := path[len(str(first)) + 1 :]).isdecimal())]
        folders = {n: first if n == 1 else Path(f"{first}-{n}") for n in sorted(numbers)}
        runs = [n for n, folder in folders.items() if latest and Account(folder).marker.get("kind") == kind]
        taken = [n for n, folder in folders.items() if _is_taken(folder)]
        number = max(runs) if runs else max(taken, default=0) + 1
        chosen = [str(first if number == 1 else f"{first}-{number}")]
    if rank_and_size()[1] > 1:
        dist.broadcast_object_list(chosen)
    return chosen[0]


def _is_taken(folder: Path) -> bool:
    # Not by other names: experiment tracking writes to it before the run does.
    return os.path.lexists(folder) and (
        not folder.is_dir() or in_use(folder) or not OUR_NAMES.isdisjoint(os.listdir(folder))
    )
