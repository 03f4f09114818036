"""Executors: where steps run. Each starts the same unit, ``workbench run-step SPEC.json``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from workbench.pipeline.spec import StepResult, StepSpec

__all__ = ["Executor"]


class Executor(Protocol):
    """Runs single steps; the pipeline decides which, and when."""

    @property
    def threads(self) -> int:
        """CPU threads for all running steps together."""
        ...

    @property
    def memory_gib(self) -> float:
        """Memory for all running steps together."""
        ...

    def execute(
        self, spec: StepSpec, watch: Callable[[], None], stop: threading.Event
    ) -> StepResult:
        """Run one step and wait for it. Called from several threads, one per step.

        Args:
            spec: The step.
            watch: Called a few times a second while the step runs, and once after.
            stop: When set, the step is ended with status ``CANCELLED``.
        """
        ...

    def close(self) -> None:
        """End what was started to run steps."""
        ...
