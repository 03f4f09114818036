"""Records of datasets, selections and labeling; `RECORD_TYPES` lists the record types of all."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from workbench.core.types import Json
from workbench.records.base import Digest, FrozenModel, GateReport, GateResult, Record, Ref, Verdict
from workbench.records.evidence_types import Holdout, Incident, IncidentSuite, ScenarioReport
from workbench.records.frames import Box, LabelSchema, Point, RotatedBox, optional_field
from workbench.records.model_types import (
    CalibrationSet,
    Checkpoint,
    CheckReceipt,
    Claim,
    Environment,
    ExportBundle,
    NotebookSource,
    Release,
    Rollback,
    StepRun,
    StepVersion,
    SweepReport,
)

__all__ = [
    "RANDOM_SAMPLE_REASON",
    "RECORD_TYPES",
    "Agreement",
    "AgreementRate",
    "Alarm",
    "Annotator",
    "Arm",
    "ArmComparison",
    "ArmOutcome",
    "Backtest",
    "DatasetVersion",
    "ExpectedYield",
    "FrameRequirement",
    "Inspection",
    "LabelBatch",
    "LabelSet",
    "MiningReport",
    "Prediction",
    "PromiseCheck",
    "Quarantined",
    "SelectedFrame",
    "Selection",
    "SignalLift",
    "Withdrawal",
]


class DatasetVersion(Record):
    """Immutable frames and labels.

    Payload: ``drives.jsonl``, ``frames.jsonl``, ``labels.jsonl``, ``quarantine.jsonl``. Each line
    is canonical JSON, in a fixed order: the digest depends on the content only.

    Attributes:
        made_by: The operation, such as ``ingest`` or ``collect``.
        split: How roles were assigned.
        quarantined: Number of inputs that were left out, by reason.
        licence: Licence of the source, as an SPDX identifier or in words; empty where not stated.
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
    licence: str = optional_field("")


class Quarantined(FrozenModel):
    """An input that was left out: ``file`` relative to the source, ``detail`` says why.

    Bytes of a file name that are not UTF-8 are written as escapes.
    """

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

    @field_validator("file", "detail", mode="before")
    @classmethod
    def _escape(cls, text: object) -> object:
        if not isinstance(text, str):
            return text
        return text.encode(errors="backslashreplace").decode()


class Inspection(Record):
    """How clean a dataset version is.

    Payload: ``leaks.jsonl``, ``duplicates.jsonl``, ``coverage.jsonl``, ``label_errors.jsonl``.

    Attributes:
        verdict: Whether the split has leaks, from ``gates``.
        exact: Frames that are identical to another.
        near: Frames that are near-duplicates of another.
        thin: Cells of the coverage target with too few frames.
        suspects: Labels that look wrong; None without a model.
        parameters: Rules and thresholds, and how the thresholds were measured.
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


Arm = Literal["mined", "random", "control"]
"""Why a frame was selected: ranked, drawn to estimate the share of rare frames, or drawn as the
control to compare the ranked ones with."""

RANDOM_SAMPLE_REASON = "drawn at random, so that the share of rare frames can be counted"
"""Reason of a frame of the random arm, as labelers read it."""


class SelectedFrame(FrozenModel):
    """A selected frame, its rank, and the reasons in words for labelers.

    Attributes:
        probability: Probability with which a randomly drawn frame was drawn; None for a ranked one.
        signals: Rank by signal in [0, 1], 1 the rarest.
        box: x, y, width and height, pixels: where the frame shows what it was selected for, if that
            is a part of it.
    """

    frame: Digest
    rank: int
    score: float
    arm: Arm = "mined"
    reasons: tuple[str, ...] = ()
    probability: float | None = optional_field(None)
    signals: dict[str, float] = optional_field({})
    box: tuple[float, float, float, float] | None = optional_field(None)


class SignalLift(FrozenModel):
    """How well one signal ranked frames that are labelled already.

    Attributes:
        strength: Mean of ``-log(1 - rank)`` of the frames that were sought, over its mean over all
            frames; 1 is chance. The mean over the kinds, each counted once.
        low: Lower bound of ``strength``, one-sided, with Bonferroni's correction for the number of
            signals; a signal gets a weight where it exceeds 1.
        weight: Share in the combined ranking; the weights sum to one, or are all zero.
    """

    signal: str
    strength: float
    low: float
    weight: float


class ExpectedYield(FrozenModel):
    """Share of the mined frames that should have what is rare, estimated on labelled frames.

    Attributes:
        kind: What is sought, such as ``class=rider``; `Backtest.ANY` for any of the rare classes.
        frames: Labelled frames that have it.
        prevalence: Share of the labelled frames that have it.
        rate: Share of the first frames of the ranking that have it.
        low: Lower end of the interval of ``rate``, 95 %, over drives.
        lift: ``rate`` over ``prevalence``, with its own interval.
    """

    kind: str
    frames: int
    prevalence: float
    rate: float
    low: float
    high: float
    lift: float
    lift_low: float
    lift_high: float


class Backtest(FrozenModel):
    """What a ranking would have found among the labelled frames, had they not been labelled.

    Attributes:
        frames: Number of labelled frames that were ranked.
        drives: Number of their drives.
        share: Share of the ranking, from the top, that the yields are of.
        led_by: What ranks the pool: signals ``weighed`` by this backtest, the ``default`` weights
            or the ``given`` signals, or ``entropy`` or ``random`` where no signal beat chance.
        signals: The signals tested.
        any_of: The rare classes that `ANY` stands for, as conditions.
        expected: Yield by kind.
        reason: Why the ranking is led so.
    """

    ANY: ClassVar[str] = "any rare class"
    frames: int
    drives: int
    share: float
    led_by: Literal["weighed", "default", "given", "entropy", "random"]
    signals: tuple[SignalLift, ...]
    any_of: tuple[str, ...]
    expected: tuple[ExpectedYield, ...]
    reason: str


class Selection(Record):
    """Frames selected under a budget.

    Attributes:
        budget: Number of frames, without a control arm (of the same size).
        minutes: Labeling time that ``budget`` was computed from, if it was given.
        parameters: Everything that shaped the selection.
        notes: What could not be done as requested.
        backtest: What the ranking should find, estimated before anything is spent; None where too
            little is labelled, or where frames were searched for.
    """

    KIND: ClassVar[str] = "selection"
    dataset: Ref
    model: Ref | None = None
    budget: int
    seed: int
    method: str
    parameters: Json = {}
    chosen: tuple[SelectedFrame, ...]
    minutes: float | None = optional_field(None)
    parents: tuple[Ref, ...] = optional_field(())
    notes: tuple[str, ...] = optional_field(())
    backtest: Backtest | None = optional_field(None)

    @property
    def has_control(self) -> bool:
        """Whether frames of a control arm are among the selected ones."""
        return any(choice.arm == "control" for choice in self.chosen)


class ArmOutcome(FrozenModel):
    """What labeling the frames of one arm yielded. ``hours`` is None if the time is unknown."""

    arm: Arm
    frames: int
    unlabelled: int
    rare_frames: int
    rare_objects: int
    rare_events: int
    hours: float | None


class ArmComparison(FrozenModel):
    """One metric of the mined arm compared with the control arm, with a paired interval.

    Attributes:
        change: ``ratio`` (mined over control) or ``difference`` (mined minus control).
        low: Lower end of the interval; None if it has none, as for ``high``.
        verdict: PASS if the whole interval is in favour of mining, FAIL if it is against it.
        drives: Number of drives.
        unit: What was resampled.
    """

    figure: str
    change: Literal["ratio", "difference"]
    mined: float | None
    control: float | None
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    drives: int
    unit: str
    why: str


class PromiseCheck(FrozenModel):
    """What a selection's backtest promised of one kind, beside what labelers found.

    Attributes:
        promised: Share of the mined frames, and the ends of its interval; the same for ``found``.
        verdict: ``kept`` where the intervals overlap, else ``exceeded`` or ``broken``.
    """

    kind: str
    promised: tuple[float, float, float]
    found: tuple[float, float, float]
    verdict: Literal["kept", "exceeded", "broken"]


class MiningReport(Record):
    """How much better than chance the mined arm of a selection was, after both arms were labeled.

    Payload: ``frames.jsonl``, every labeled frame with its arm.

    Attributes:
        rare: Conditions that counted as rare, fixed before any label was read.
        per: What yields are divided by.
        time_from: Where the labeling time comes from.
        models: Models trained with each arm, if they were compared.
        headline: The result in one sentence; it begins with what is simulated.
        blind: False if labelers could have known the arms.
        promises: What the selection's backtest promised, and what was found.
    """

    KIND: ClassVar[str] = "mining"
    selection: Ref
    labels: tuple[Ref, ...]
    rare: tuple[str, ...]
    arms: tuple[ArmOutcome, ...]
    per: str
    time_from: str
    prevalence: float | None
    prevalence_interval: tuple[float, float] | None
    beaten: tuple[ArmComparison, ...]
    models: dict[str, Ref] = {}
    resamples: int
    confidence: float
    simulated: bool
    headline: str
    blind: bool = optional_field(True)
    promises: tuple[PromiseCheck, ...] = optional_field(())


class Prediction(FrozenModel):
    """A predicted box on a frame; ``score`` in [0, 1].

    Of a rotated box or a polygon, ``box`` is the bounding box.
    """

    frame: Digest
    cls: str
    box: Box
    score: float
    turned: RotatedBox | None = optional_field(None)
    polygon: tuple[Point, ...] | None = optional_field(None)


class FrameRequirement(FrozenModel):
    """What a frame of a batch requires because of the ``slices`` it is in.

    Attributes:
        labelers: Number of labelers who have to answer.
        priority: Frames of higher priority come first.
        least_s: Minimum time of an answer, s.
    """

    frame: Digest
    labelers: int = 1
    priority: int = 0
    least_s: float | None = None
    slices: tuple[str, ...] = ()


class LabelBatch(Record):
    """Frames that are sent to labelers together; sending the same batch again changes nothing.

    Payload: ``predictions.jsonl``, the boxes that labelers start from.

    Attributes:
        overlap: Fraction of the frames that two labelers answer.
        gold: Frames with trusted labels, which measure labelers.
        adjudicates: The label set whose disagreements this batch resolves.
        blind: Whether labelers may not see why a frame was selected.
    """

    KIND: ClassVar[str] = "batch"
    dataset: Ref
    selection: Ref
    model: Ref | None
    label_schema: LabelSchema
    frames: tuple[Digest, ...]
    overlap: float = 0.0
    needs: tuple[FrameRequirement, ...] = optional_field(())
    gold: tuple[Digest, ...] = optional_field(())
    adjudicates: Ref | None = optional_field(None)
    blind: bool = optional_field(False)


class Annotator(FrozenModel):
    """One labeler's work. ``minutes`` are measured by the server; None if no person worked."""

    id: str
    frames: int
    boxes: int
    minutes: float | None = None
    simulated: bool = False


class LabelSet(Record):
    """Everything that was collected for a completed batch.

    Payload: ``labels.jsonl``; ``answers.jsonl``, one line per labeler and frame, skips included;
    ``annotations.jsonl``, every annotation as the server stored it, superseded ones included.

    Attributes:
        deleted: Frames whose task was deleted in Label Studio.
    """

    KIND: ClassVar[str] = "label"
    batch: Ref
    annotators: tuple[Annotator, ...]
    labels: int
    skipped: tuple[Digest, ...] = ()
    agreement: Json = {}
    simulated: bool = False
    deleted: tuple[Digest, ...] = optional_field(())


LABEL_SET_PURPOSE = "label set"
"""What the signature beside a label set is for."""


class AgreementRate(FrozenModel):
    """Agreement of labelers on a ``subject``: a class, a slice, a labeler, or all.

    Rates have 95 % intervals from resampling frames if there are two frames or more; a rate is None
    if nothing could be compared.

    Attributes:
        against: Compared with other labelers, or with the trusted labels of gold frames.
        n: Number of boxes compared.
    """

    subject: Literal["all", "class", "slice", "labeler"]
    name: str
    against: Literal["labelers", "gold"] = "labelers"
    frames: int
    n: int
    iou: float | None
    iou_interval: tuple[float, float] | None = None
    missed: float | None
    missed_interval: tuple[float, float] | None = None
    kappa: float | None
    kappa_interval: tuple[float, float] | None = None


class Agreement(Record):
    """Agreement of the labelers of a label set. Payload: ``disagreements.jsonl``."""

    KIND: ClassVar[str] = "agreement"
    labels: Ref
    same_object_iou: float
    rule: str
    rates: tuple[AgreementRate, ...]
    frames: int
    disputed: int
    simulated: bool = False


class Withdrawal(Record):
    """Labelers or frames that must not be used any more, and why.

    Payload: ``models.json``, the models that had been trained on them at that time.
    """

    KIND: ClassVar[str] = "withdrawal"
    dataset: Ref
    annotators: tuple[str, ...] = ()
    frames: tuple[Digest, ...] = ()
    reason: str
    labels_removed: int


class Alarm(Record):
    """What monitoring found, and where to look for more of it: the first record of a new round.

    Attributes:
        signal: The strongest of the signals that changed, by its name in telemetry; ``also`` are
            the others.
        what: Kind of the change; ``disagreement``: a candidate in the shadow answers differently.
        slice: Where it changed, such as ``light=night``; ``all`` without slices.
        cause: What it comes from, as far as the data can tell, and ``why`` that is said.
        reference, current: Mean over drives in the two periods, in the signal's unit.
        effect: The change in standard deviations of drives.
        p_value: Adjusted for all that was looked at; ``alpha`` is the level of that look.
        days: First and last fleet day of the current period; ``reference_days`` likewise.
        drives: The drives that changed most, as ``VEHICLE/RIDE``.
        frames: Frames that show it, where they are known.
        model: What answered the frames: a release, bundle or checkpoint.
    """

    KIND: ClassVar[str] = "alarm"
    signal: str
    also: tuple[str, ...] = ()
    what: Literal["location", "shape", "mix", "disagreement"]
    slice: str
    cause: Literal["fleet-mix", "sensor", "season", "world", "model", "unknown"]
    why: str
    reference: float
    current: float
    effect: float
    p_value: float
    alpha: float
    days: tuple[int, int]
    reference_days: tuple[int, int]
    drives: tuple[str, ...]
    frames: tuple[Digest, ...] = ()
    model: Ref | None = None
    evidence: Literal["real", "replayed", "simulated"]

    def quotas(self, budget: int) -> dict[str, int]:
        """For `SelectionRules.quotas`: half of a budget for frames of the alarm's slice.

        Empty where the slice is no condition of frames.
        """
        kind, _, value = self.slice.partition("=")
        return {value: (budget + 1) // 2} if kind in {"light", "weather"} and value else {}


class Campaign(Record):
    """A query that vehicles answer with frames, within a budget and rules of privacy.

    A frame matches if all that is asked for is true of it. Nothing but the frame, its drive's
    conditions and the vehicle's name comes back: no position, no time of day.

    Attributes:
        conditions: Values of the drive by condition, such as ``light: night``.
        classes: The model has a box of one of these.
        score: Lowest and highest score of that box.
        exemplar: Frame to look like; ``vector`` is its unit vector by ``encoder`` (digest).
        similarity: Least cosine of a frame's vector with it.
        regions: Vehicles there are asked; all if empty.
        share: Of the vehicles, drawn by a hash of campaign and vehicle.
        bytes_a_vehicle: Of all images that a vehicle sends for it.
        frames_a_drive: Most frames of one drive, so that they show no route.
        days: First and last fleet day.
        redacted: Only frames whose faces and number plates were removed.
        alarm: What asked for it.
    """

    KIND: ClassVar[str] = "campaign"
    name: str
    conditions: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    score: tuple[float, float] = (0.0, 1.0)
    exemplar: Digest | None = None
    vector: tuple[float, ...] = ()
    encoder: str = ""
    similarity: float = 0.0
    regions: tuple[str, ...] = ()
    share: float = 1.0
    bytes_a_vehicle: int
    frames_a_drive: int
    days: tuple[int, int]
    redacted: bool = True
    by: str
    alarm: Ref | None = None


RECORD_TYPES: dict[str, type[Record]] = {
    record.KIND: record
    for record in (
        Alarm,
        Campaign,
        DatasetVersion,
        Selection,
        LabelBatch,
        LabelSet,
        Agreement,
        Withdrawal,
        Checkpoint,
        SweepReport,
        CalibrationSet,
        ExportBundle,
        GateReport,
        Inspection,
        MiningReport,
        Release,
        Rollback,
        Claim,
        NotebookSource,
        Environment,
        StepRun,
        CheckReceipt,
        StepVersion,
        Incident,
        IncidentSuite,
        Holdout,
        ScenarioReport,
    )
}
"""Record types by kind."""
