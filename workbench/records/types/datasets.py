"""Frames and labels as versions, and how clean one is."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from workbench.records.base import Record, Ref, Row
from workbench.records.frames import LabelSchema
from workbench.records.types.verdicts import GateResult, Verdict

Json = dict[str, Any]


class DatasetVersion(Record):
    """Immutable frames and labels.

    Payload: ``drives.jsonl``, ``frames.jsonl``, ``labels.jsonl``, ``quarantine.jsonl``, each
    canonical JSON a line in a fixed order, so the digest depends on content alone.
    ``split`` says how roles were given; ``quarantined`` counts inputs left out, by reason.
    """

    KIND: ClassVar[str] = "dataset"
    name: str
    label_schema: LabelSchema
    frames: int
    labels: int
    drives: int
    parents: tuple[Ref, ...] = ()
    made_by: str
    split: Json = {}
    quarantined: dict[str, int] = {}
    simulated: bool = False


class Quarantined(Row):
    """One input that was left out: ``file`` relative to its source, ``detail`` inside it."""

    file: str
    reason: Literal[
        "unreadable",
        "missing",
        "duplicate",
        "mislabelled",
        "out-of-bounds",
        "unknown-class",
        "degenerate",
    ]
    detail: str = ""


class Inspection(Record):
    """How clean a dataset version is: ``verdict`` and ``gates`` judge its split for leaks.

    ``exact`` and ``near`` count frames that copy another, ``thin`` cells of the coverage target
    that are not filled, ``suspects`` labels that look wrong (None without a model). ``parameters``
    has the rules and how the thresholds were measured. Payload: ``leaks.jsonl``,
    ``duplicates.jsonl``, ``coverage.jsonl``, ``label_errors.jsonl``.
    """

    KIND: ClassVar[str] = "inspection"
    dataset: Ref
    model: Ref | None = None
    verdict: Verdict
    gates: tuple[GateResult, ...]
    exact: int
    near: int
    thin: int
    suspects: int | None = None
    parameters: Json = {}
    simulated: bool = False
