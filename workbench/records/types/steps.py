"""What ran: notebooks, environments, runs, receipts and versions of steps."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from workbench.records.base import Digest, Record, Ref

Json = dict[str, Any]


class NotebookSource(Record):
    """The notebook as it was run, outputs removed. Payload: ``notebook.ipynb``."""

    KIND: ClassVar[str] = "notebook"
    name: str
    code: Digest


class Environment(Record):
    """Installed distributions as ``name==version`` with their build, and the machine's class."""

    KIND: ClassVar[str] = "environment"
    python: str
    distributions: tuple[str, ...]
    machine: Json


class StepRun(Record):
    """One finished step: what it was given, by which code, and what it made.

    ``threads`` it ran with, None in records from before that was kept. Payload:
    ``files/PARAMETER``, the small files that its path parameters named.
    """

    KIND: ClassVar[str] = "run"
    step: str
    key: Digest
    notebook: Ref
    environment: Ref
    modules: Digest
    parameters: Json
    inputs: dict[str, Ref | tuple[Ref, ...]]
    outputs: dict[str, Ref]
    metrics: Json = {}
    threads: int | None = None


class Receipt(Record):
    """A notebook that passed its check, and all that the verdict hangs on.

    ``contract`` digests the whole declaration, ``code`` and parameters stand in ``notebook``.
    ``checks`` maps each check to how it ended; ``watch`` says how much of the notebook's reading
    and writing was seen; ``outputs`` are those made on the fixture, by name. ``lock`` digests the
    project's ``requirements.lock``, None where it has none.
    """

    KIND: ClassVar[str] = "receipt"
    notebook: Ref
    contract: Digest
    modules: Digest
    environment: Ref
    checks: dict[str, Literal["passed", "partial", "not-applicable"]]
    watch: Literal["complete", "partial", "none"]
    warnings: tuple[Json, ...] = ()
    outputs: dict[str, Ref] = {}
    lock: Digest | None = None


class StepVersion(Record):
    """A notebook promoted to a production step: who answers for it and on what evidence."""

    KIND: ClassVar[str] = "step"
    name: str
    version: int
    notebook: Ref
    contract: Digest
    modules: Digest
    environment: Ref
    receipt: Ref
    owner: str
    reviewer: str
    commit: str
