"""Every record type: dataset versions, selections, labeling, models, step runs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from workbench.records.base import Digest, FrozenModel, GateReport, GateResult, Record, Ref, Verdict
from workbench.records.frames import Box, LabelSchema, Point, RotatedBox, optional_field
from workbench.records.model_types import (
    CalibrationSet,
    Checkpoint,
    CheckReceipt,
    Environment,
    ExportBundle,
    NotebookSource,
    Release,
    StepRun,
    StepVersion,
    Supplier,
    SweepModel,
    SweepReport,
    SweepSetting,
)

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


class Quarantined(FrozenModel):
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


# ---- Which frames were chosen, why, and by how much the choice beat chance.


Arm = Literal["mined", "random", "control"]
"""How a frame came to be chosen: ranked; drawn so that rare frames can be counted; drawn so that
the ranked ones can be compared with chance."""


RANDOM_SAMPLE_REASON = "drawn at random, so that the share of rare frames can be counted"
"""The reason of a frame of the random share, in the words that labelers read."""


class SelectedFrame(FrozenModel):
    """A frame that was chosen, how it ranked, and why in words a labeler can read.

    ``probability`` is the one with which a drawn frame was drawn from the usable pool; a ranked
    one has none. ``signals`` are its ranks in [0, 1] by signal, 1 the rarest.
    """

    frame: Digest
    rank: int
    score: float
    arm: Arm = "mined"
    reasons: tuple[str, ...] = ()
    probability: float | None = optional_field(None)
    signals: dict[str, float] = optional_field({})


class Selection(Record):
    """Frames chosen under a budget, with everything that shaped the choice in ``parameters``.

    ``budget`` counts frames; where labelers' time was given, ``minutes`` is that time and
    ``budget`` how many frames it paid for. A control arm of the same size comes on top, and then
    labelers must not see who was ranked. ``notes`` say what did not go as asked for.
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

    @property
    def has_control(self) -> bool:
        return any(choice.arm == "control" for choice in self.chosen)


class ArmOutcome(FrozenModel):
    """What labeling the frames of one arm brought. ``hours`` None where no time is known."""

    arm: Arm
    frames: int
    unlabelled: int
    rare_frames: int
    rare_objects: int
    rare_events: int
    hours: float | None


class ArmComparison(FrozenModel):
    """One figure of the mined arm against the control arm's, with a paired interval.

    ``change`` is ``ratio`` (mined over control) or ``difference`` (mined less control). The verdict
    is PASS where the whole interval speaks for mining, FAIL where it speaks against it. ``low`` and
    ``high`` None: there is no such end. ``drives`` and ``unit`` say what was drawn again.
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


class MiningReport(Record):
    """By how much the mined arm of a selection beat chance, once both arms were labelled.

    ``rare`` says what counted as rare, and was fixed before the labels were looked at.
    ``per`` is what yields are divided by and ``time_from`` where its time comes from. ``models``
    are those trained with each arm, where they were compared. ``headline`` says what is simulated
    before it says anything else. ``blind`` is False where labelers could have known the arms.
    Payload: ``frames.jsonl``, every labelled frame with its arm.
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


# ---- What goes to labelers and what comes back.


class Prediction(FrozenModel):
    """A model's box on a frame; ``score`` in [0, 1].

    Where people's drawings are shown to others, a turned rectangle stands in ``turned`` and a
    polygon's corners in ``polygon``; ``box`` is then the upright box that just holds it.
    """

    frame: Digest
    cls: str
    box: Box
    score: float
    turned: RotatedBox | None = optional_field(None)
    polygon: tuple[Point, ...] | None = optional_field(None)


class FrameRequirement(FrozenModel):
    """What a frame of a batch asks of labelers beyond the rule, because of the ``slices`` it is in.

    ``labelers`` so many have to answer it; a higher ``priority`` comes sooner; an answer that took
    less than ``least_s`` seconds is no review.
    """

    frame: Digest
    labelers: int = 1
    priority: int = 0
    least_s: float | None = None
    slices: tuple[str, ...] = ()


class LabelBatch(Record):
    """Frames sent out together. Its digest is the key that makes every retry safe.

    Frames of ``gold`` have trusted labels in the dataset already: they measure labelers, who do
    not know which they are. ``adjudicates`` names the label set whose disagreements this batch
    settles. ``blind`` batches tell nobody why a frame was chosen, for its arms are to be compared.
    Payload: ``predictions.jsonl``, the boxes that labelers start from.
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
    """Who labeled: minutes are measured by the server, and None when nobody's time was spent."""

    id: str
    frames: int
    boxes: int
    minutes: float | None = None
    simulated: bool = False


class LabelSet(Record):
    """All that came back for a complete batch.

    Payload: ``labels.jsonl``, ``answers.jsonl`` (an answer a labeler and frame, skips included) and
    ``annotations.jsonl`` (every annotation as the server kept it, also those answered again).
    ``deleted`` are frames whose task somebody deleted, and which the batch goes without.
    """

    KIND: ClassVar[str] = "label"
    batch: Ref
    annotators: tuple[Annotator, ...]
    labels: int
    skipped: tuple[Digest, ...] = ()
    agreement: Json = {}
    simulated: bool = False
    deleted: tuple[Digest, ...] = optional_field(())


class AgreementRate(FrozenModel):
    """How far labelers agree on one ``subject``: a class, a slice, a labeler, or all.

    ``against`` tells whom with: other labelers, or the trusted labels of gold frames. ``n`` counts
    boxes compared. Each rate has the interval ``[low, high]`` of 95 % by resampling frames, where
    there are two or more, and is None where nothing could be compared.
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
    """How far the labelers of a label set agree, and where they do not.

    Payload: ``disagreements.jsonl``.
    """

    KIND: ClassVar[str] = "agreement"
    labels: Ref
    same_object_iou: float
    rule: str
    rates: tuple[AgreementRate, ...]
    frames: int
    disputed: int
    simulated: bool = False


class Withdrawal(Record):
    """Labelers or frames that may no longer be used, and why. Payload: ``models.json``.

    ``models.json`` lists the models that had been trained on them when this was written.
    """

    KIND: ClassVar[str] = "withdrawal"
    dataset: Ref
    annotators: tuple[str, ...] = ()
    frames: tuple[Digest, ...] = ()
    reason: str
    labels_removed: int


# ---- The records that stages exchange. Their fields refer to each other by ``Ref``.


RECORD_TYPES: dict[str, type[Record]] = {
    record.KIND: record
    for record in (
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
        NotebookSource,
        Environment,
        StepRun,
        CheckReceipt,
        StepVersion,
    )
}


__all__ = [
    "RANDOM_SAMPLE_REASON",
    "RECORD_TYPES",
    "Agreement",
    "AgreementRate",
    "Annotator",
    "Arm",
    "ArmComparison",
    "ArmOutcome",
    "CalibrationSet",
    "CheckReceipt",
    "Checkpoint",
    "DatasetVersion",
    "Environment",
    "ExportBundle",
    "FrameRequirement",
    "GateReport",
    "GateResult",
    "Inspection",
    "LabelBatch",
    "LabelSet",
    "MiningReport",
    "NotebookSource",
    "Prediction",
    "Quarantined",
    "Release",
    "SelectedFrame",
    "Selection",
    "StepRun",
    "StepVersion",
    "Supplier",
    "SweepModel",
    "SweepReport",
    "SweepSetting",
    "Verdict",
    "Withdrawal",
]
