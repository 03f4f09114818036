"""Which of several processes this one is."""

from __future__ import annotations


def rank_and_size() -> tuple[int, int]:
    """``(0, 1)`` where a process trains alone."""
    import torch.distributed as together

    if not together.is_available() or not together.is_initialized():
        return 0, 1
    return together.get_rank(), together.get_world_size()
