"""Where steps run. Every executor starts the same unit, ``workbench run-step SPEC.json``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from workbench.pipeline.spec import StepResult, StepSpec


class Executor(Protocol):
    """Runs single steps; the pipeline decides which, and when.

    ``threads`` and ``memory_gib`` are what it can hand out at once.
    """

    @property
    def threads(self) -> int: ...
    @property
    def memory_gib(self) -> float: ...

    def execute(
        self, spec: StepSpec, watch: Callable[[], None], stop: threading.Event
    ) -> StepResult:
        """Run one step to its end. Called from one thread a step, several at once.

        Args:
            watch: Called a few times a second while the step runs, and once after.
            stop: When set, the step is ended and its result says ``CANCELLED``.
        """
        ...

    def close(self) -> None:
        """Let go of what was started for running steps."""
        ...
