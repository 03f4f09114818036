"""The kernel that steps run in: IPython's, but one that ends when it is asked to.

After the answer to a shutdown, ipykernel 7 flushes output and says that it is idle, from a thread
that races with the one that would send it. Where the sender has gone, two threads wait for each
other until the process is killed: nearly every other kernel of short notebooks, a second each.

It also asks all its children to end, and waits. The one that watches multiprocessing's semaphores
ignores the request, and ends by itself as soon as the kernel has: it is not asked.
"""

from __future__ import annotations

import sys
from multiprocessing import resource_tracker
from typing import Any

from ipykernel.ipkernel import IPythonKernel


class StepKernel(IPythonKernel):  # type: ignore[misc]  # ipykernel's traits carry no types
    """Says nothing more once it ends."""

    _ending = False

    def do_shutdown(self, restart: bool) -> Any:
        # Nothing is left to flush: a cell that has ended was flushed.
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        self._ending = True
        return super().do_shutdown(restart)  # type: ignore[no-untyped-call]

    def _publish_status_and_flush(self, *args: Any, **options: Any) -> None:
        if not self._ending:
            super()._publish_status_and_flush(*args, **options)  # type: ignore[no-untyped-call]

    def _process_children(self) -> list[Any]:
        tracker = getattr(resource_tracker._resource_tracker, "_pid", None)
        children: list[Any] = super()._process_children()  # type: ignore[no-untyped-call]
        return [child for child in children if child.pid != tracker]
