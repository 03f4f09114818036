"""Python's audit hooks, for where seccomp is not to be had: partial, blind to C++ libraries.

The hook itself is ``audit/sitecustomize.py``, which every Python process below the step imports
at its start because ``PYTHONPATH`` leads there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from workbench.pipeline.checking.watch.events import Log

VARIABLE = "WORKBENCH_AUDIT_LOG"

_HOOK = Path(__file__).parent / "audit"


def environment(log: Path) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    path = f"{_HOOK}{os.pathsep}{before}" if before else str(_HOOK)
    return {VARIABLE: str(log), "PYTHONPATH": path}


def read(file: Path, log: Log) -> None:
    """Add what the hooks wrote; without a file the coverage stays ``none``."""
    if not file.exists():
        return
    log.coverage = "partial"
    for line in file.read_bytes().splitlines():
        try:
            at, kind, target, existed = json.loads(line)
        except ValueError:
            continue  # the last line of a process that was killed
        log.add(kind, target, at, existed=existed)
