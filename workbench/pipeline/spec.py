"""The files around one execution of a step: the spec that goes in, the result that comes out."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from workbench.core import secret_scan
from workbench.core.errors import WorkbenchError
from workbench.core.types import Json
from workbench.records.base import Ref

__all__ = ()

RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
OUTPUT_FILE = "output.txt"
EXECUTED_NOTEBOOK = "executed.ipynb"

MODULE_OF_KIND = {
    "dataset": "workbench.records.dataset",
    "checkpoint": "workbench.detection.model",
    "bundle": "workbench.detection.model",
    "release": "workbench.detection.model",
}
"""Module that makes an object of a record of this kind, see `workbench.pipeline.step.Step.load`."""


class ExitStatus(IntEnum):
    """Exit status of ``workbench run-step``, for executors that see nothing else."""

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
    """Everything that one execution of a step needs.

    Attributes:
        notebook: Path of the ``.ipynb`` file.
        code: Digest of its code cells when the run was planned.
        home: Root of the workspace.
        folder: Where results go.
        cache: A folder that later attempts of the same work find again.
        inputs: A reference for each declared input; several where it takes many.
        environment: Variables of the kernel, such as the addresses of servers. ``${env:NAME}``
            stands for the variable of the process, which an address with a password stays in.
        secrets: Names of environment variables, never values.
        project: Folder that relative paths start from, if not the notebook's project.
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
    code: str | None = None


class Failure(BaseModel):
    """Why a step failed, with credentials redacted. ``cell`` counts from 1, as JupyterLab does."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    message: str
    where: str | None = None
    hint: str | None = None
    cell: int | None = None
    traceback: str | None = None

    @field_validator("message", "where", "hint", "traceback")
    @classmethod
    def _without_credentials(cls, text: str | None) -> str | None:
        return text and secret_scan.mask(text)

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"in {self.where}")
        if self.cell is not None:
            parts.append(f"(cell {self.cell})")
        text = " ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text


class StepResult(_VersionedFile):
    """How an execution ended, with its outputs and cost (seconds, MiB)."""

    status: ExitStatus
    seconds: float
    peak_memory_mib: float
    cpu_seconds: float = 0.0
    outputs: dict[str, Ref] = {}
    failure: Failure | None = None

    @classmethod
    def failed(
        cls, status: ExitStatus, kind: str, message: str, hint: str | None = None
    ) -> StepResult:
        """The result of a step that wrote none itself."""
        failure = Failure(kind=kind, message=message, hint=hint)
        return cls(status=status, seconds=0, peak_memory_mib=0, failure=failure)

    @classmethod
    def from_error(cls, status: ExitStatus, error: WorkbenchError) -> StepResult:
        """The result of a step that could not be started or whose files could not be moved."""
        failure = Failure(kind=error.kind, message=error.what, where=error.where, hint=error.hint)
        return cls(status=status, seconds=0, peak_memory_mib=0, failure=failure)

    @property
    def cost(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory_mib": self.peak_memory_mib,
        }
