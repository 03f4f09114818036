"""Limits on memory: how much may wait decoded, and a clear word when there is not enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import ParameterError, StepFailed
from workbench.training.config import TrainingConfig

_MIB = 1 << 20
_SHARE = 0.5  # of what is free: the network, the system and other steps need the rest
_GROUP = Path("/sys/fs/cgroup")
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "Insufficient memory")


def cache_mib(config: TrainingConfig) -> float:
    """MiB that decoded frames may take: what is configured, or less where less is free."""
    free = _free_mib()
    if config.limit_mib is not None:
        free = min(free, config.limit_mib - used_mib())
    return min(config.memory_mib, max(0.0, free * _SHARE))


def used_mib() -> float:
    """Resident memory of this process."""
    import psutil

    return float(psutil.Process().memory_info().rss) / _MIB


def peak_mib() -> float:
    """The most that this process has ever been resident."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def limited(config: TrainingConfig) -> Iterator[None]:
    """Hold the process to ``limit_mib``, and say in plain words that memory ran out.

    The limit is the system's own on written-to memory (``RLIMIT_DATA``): an allocation beyond it
    fails here, instead of somebody's process being killed.

    Raises:
        ParameterError: The process already uses more.
        StepFailed: Memory ran out.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    if config.limit_mib is not None:
        used = _written_mib()
        if used >= config.limit_mib:
            raise ParameterError(
                f"limit_mib is {config.limit_mib}: the process uses {used:.0f} MiB already",
                where="TrainingConfig.limit_mib",
                hint="Torch alone takes some hundred MiB; give it more",
            )
        resource.setrlimit(resource.RLIMIT_DATA, (config.limit_mib * _MIB, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        raise _ran_out(config) from error
    except Exception as error:  # OpenCV's own error has no public base beside Exception
        if type(error).__module__.startswith("cv2") and any(s in str(error) for s in _SIGNS):
            raise _ran_out(config) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _ran_out(config: TrainingConfig) -> StepFailed:
    limit = "" if config.limit_mib is None else f" of {config.limit_mib} MiB"
    return StepFailed(
        f"out of memory{limit}: a step of {config.batch} frames in {config.accumulate} part(s) "
        "does not fit",
        where="training",
        hint="Raise accumulate (the same step in smaller parts), or lower batch, memory_mib or "
        "the network's input; what was kept of the training is taken up again",
    )


def _written_mib() -> float:
    """What counts against ``RLIMIT_DATA``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) / 1024
    return used_mib()


def _free_mib() -> float:
    """What the machine, or the control group that this runs in, has left."""
    import psutil

    free = float(psutil.virtual_memory().available) / _MIB
    with contextlib.suppress(OSError, ValueError):
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        free = min(free, (limit - used) / _MIB)
    return free
