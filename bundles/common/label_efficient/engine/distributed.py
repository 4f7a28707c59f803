"""This process among those of a distributed run."""

import torch.distributed as dist


def rank_and_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
