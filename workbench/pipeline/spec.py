"""The two files around one step's execution: the spec that goes in, the result that comes out."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from workbench.core.errors import WorkbenchError
from workbench.records.base import Ref

Json = dict[str, Any]

MODULE_OF_KIND = {
    "dataset": "workbench.records.dataset",
    "checkpoint": "workbench.detection.model",
    "bundle": "workbench.detection.model",
    "release": "workbench.detection.model",
}
"""Module that makes an object of a record of this kind, see `workbench.pipeline.step.Step.load`."""


class ExitStatus(IntEnum):
    """How ``workbench run-step`` ends, for executors that only see an exit status."""

    OK = 0
    CRASHED = 1
    PARAMETER = 2
    WAITING = 4
    USER_ERROR = 10
    KERNEL_DIED = 11
    TIMED_OUT = 12
    CONTRACT = 13
    SERVICE = 14
    CANCELLED = 15


class _VersionedFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1


class StepSpec(_VersionedFile):
    """Everything one step needs. ``secrets`` are names of environment variables, never values.

    ``project`` is the folder that relative paths start from, when it is not the notebook's own.
    """

    step: str
    notebook: str
    home: str
    folder: str
    cache: str
    parameters: Json
    inputs: dict[str, Ref | tuple[Ref, ...] | None]
    declared_inputs: dict[str, Json]
    declared_outputs: dict[str, Json]
    threads: int
    timeout_s: float
    memory_gib: float
    environment: dict[str, str]
    gpus: float = 0
    secrets: tuple[str, ...] = ()
    project: str | None = None


class Failure(BaseModel):
    """What went wrong in a step. ``cell`` counts from 1 as JupyterLab's prompts do."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    message: str
    where: str | None = None
    hint: str | None = None
    cell: int | None = None
    traceback: str | None = None

    @classmethod
    def of(cls, error: WorkbenchError) -> Failure:
        """One of our own errors, told as a failure."""
        return cls(kind=error.kind, message=error.what, where=error.where, hint=error.hint)

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"in {self.where}")
        if self.cell is not None:
            parts.append(f"(cell {self.cell})")
        text = " ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text


class StepResult(_VersionedFile):
    status: ExitStatus
    seconds: float
    peak_memory_mib: float
    cpu_seconds: float = 0.0
    outputs: dict[str, Ref] = {}
    failure: Failure | None = None

    @classmethod
    def unrun(cls, status: ExitStatus, failure: Failure) -> StepResult:
        """The result of a step that left none itself."""
        return cls(status=status, seconds=0, peak_memory_mib=0, failure=failure)

    @property
    def cost(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory_mib": self.peak_memory_mib,
        }
