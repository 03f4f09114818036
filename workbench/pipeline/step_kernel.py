"""The kernel that steps run in: IPython's kernel, with a shutdown that does not hang.

After it has answered a shutdown request, ipykernel 7 flushes output and reports that it is idle,
from a thread that races with the sending thread. If that one has already ended, both wait for each
other until the process is killed, which costs a second in nearly half of all short notebooks.

ipykernel also terminates its children and waits for them. multiprocessing's resource tracker
ignores the signal and ends by itself after the kernel, so it is left out.
"""

from __future__ import annotations

import sys
from multiprocessing import resource_tracker
from typing import Any

from ipykernel.ipkernel import IPythonKernel

__all__ = ()


class StepKernel(IPythonKernel):  # type: ignore[misc]  # ipykernel's traits carry no types
    """An IPython kernel that sends nothing during its shutdown."""

    _shutting_down = False

    def do_shutdown(self, restart: bool) -> Any:
        # Nothing is left to flush: output is flushed at the end of each cell.
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        self._shutting_down = True
        return super().do_shutdown(restart)  # type: ignore[no-untyped-call]

    def _publish_status_and_flush(self, *args: Any, **options: Any) -> None:
        if not self._shutting_down:
            super()._publish_status_and_flush(*args, **options)  # type: ignore[no-untyped-call]

    def _process_children(self) -> list[Any]:
        tracker = getattr(resource_tracker._resource_tracker, "_pid", None)
        children: list[Any] = super()._process_children()  # type: ignore[no-untyped-call]
        return [child for child in children if child.pid != tracker]
