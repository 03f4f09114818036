"""What a step uses of the machine's memory, and whether the system killed for lack of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_MIB = 2**20
_EVENTS = Path("/sys/fs/cgroup/memory.events")
_EVENTS_V1 = Path("/sys/fs/cgroup/memory/memory.oom_control")


def resident_mib(pid: int | None) -> float:
    """Resident memory of a process and all below it; pages they share count in each."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total / _MIB


def oom_kills(*files: Path) -> int:
    """Processes that the system has killed in this control group because memory ran out.

    Always 0 where the system does not say; a difference of two calls is what tells something.
    """
    for path in files or (_EVENTS, _EVENTS_V1):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
