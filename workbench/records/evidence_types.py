"""Records of evidence that outlives a candidate: incidents to replay, and the blind holdout."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from workbench.core.types import Json
from workbench.records.base import Digest, FrozenModel, Record, Ref
from workbench.records.frames import LabelSchema, optional_field

__all__ = ["Holdout", "Incident", "IncidentSuite", "ScenarioReport", "ScenarioResult"]

FoundIn = Literal["notebook", "fiftyone", "telemetry", "command"]


class Incident(Record):
    """Objects that a model missed: every later candidate has to find them.

    Payload: ``drives.jsonl``, ``frames.jsonl``, ``labels.jsonl``: the frames, pinned by the digest
    of their image files, and the missed objects. So relabelling never changes an incident.

    Attributes:
        name: Unique in a workspace.
        dataset: Version that the frames were taken from.
        label_schema: Candidates that are judged on a dataset with a schema of this name have to
            pass the incident.
        iou: Overlap from which on a box of the same class finds an object.
        why: What happened, in a sentence.
        found_in: Where the miss was found.
        scenario: Id of the test case that the frames are a real example of, if any.
    """

    KIND: ClassVar[str] = "incident"
    name: str
    dataset: Ref
    label_schema: LabelSchema
    frames: tuple[Digest, ...] = Field(min_length=1)
    objects: int = Field(ge=1)
    iou: float = Field(default=0.5, gt=0, le=1)
    why: str
    by: str
    found_in: FoundIn
    simulated: bool = False
    scenario: str = optional_field("")


class IncidentSuite(Record):
    """The incidents that were active at a time: an input of the step that judges a candidate."""

    KIND: ClassVar[str] = "incidents"
    incidents: tuple[Ref, ...] = Field(min_length=1)


class Holdout(Record):
    """Blind frames, the rules they judge by, and how often they may be asked.

    How often they were asked stands in the audit log.

    Attributes:
        frames: All blind frames of the dataset version.
        rules: Gate rules, fixed when the holdout is opened.
        budget: Number of models that may be judged.
    """

    KIND: ClassVar[str] = "holdout"
    dataset: Ref
    frames: tuple[Digest, ...] = Field(min_length=1)
    rules: Json
    budget: int = Field(ge=1)
    by: str


class ScenarioResult(FrozenModel):
    """How a model did on one rendered test case. Speeds in km/h, times in seconds before contact.

    Attributes:
        case: Its id.
        frames: Rendered frames, of which the target is visible in ``visible`` and found in
            ``found``.
        first_s: Time to collision at the first frame in which the target is visible.
        confirmed_s: Time to collision when the target was found in enough frames in a row; None if
            it never was.
        outcome: ``avoided``, ``mitigated`` (slower than without braking) or ``hit``.
        impact_kmh: Closing speed at contact; 0 where it is avoided.
        unbraked_kmh: The same without braking.
    """

    case: str
    frames: int
    visible: int
    found: int
    first_s: float | None
    confirmed_s: float | None
    outcome: Literal["avoided", "mitigated", "hit"]
    impact_kmh: float
    unbraked_kmh: float


class ScenarioReport(Record):
    """Rendered test cases, found by a model and braked for by a stated model: never a rating.

    Attributes:
        model: What found the targets.
        evidence: Always simulated.
        assumptions: Of the renderer, of what counts as found, and of the braking model.
    """

    KIND: ClassVar[str] = "scenarios"
    model: Ref
    grid: str
    evidence: Literal["simulated"] = "simulated"
    assumptions: Json
    results: tuple[ScenarioResult, ...]
