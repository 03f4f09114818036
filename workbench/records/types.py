"""The records that stages exchange. Their fields refer to each other by ``Ref``."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Literal

from workbench.records.base import Digest, Record, Ref, Row
from workbench.records.frames import Box, LabelSchema, Point, Turned, added

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


Arm = Literal["mined", "random", "control"]
"""How a frame came to be chosen: ranked; drawn so that rare frames can be counted; drawn so that
the ranked ones can be compared with chance."""

DRAWN = "drawn at random, so that the share of rare frames can be counted"
"""The reason of a frame of the random share, in the words that labelers read."""


class Choice(Row):
    """A frame that was chosen, how it ranked, and why in words a labeler can read.

    ``probability`` is the one with which a drawn frame was drawn from the usable pool; a ranked
    one has none. ``signals`` are its ranks in [0, 1] by signal, 1 the rarest.
    """

    frame: Digest
    rank: int
    score: float
    arm: Arm = "mined"
    reasons: tuple[str, ...] = ()
    probability: float | None = added(None)
    signals: dict[str, float] = added({})


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
    chosen: tuple[Choice, ...]
    minutes: float | None = added(None)
    parents: tuple[Ref, ...] = added(())
    notes: tuple[str, ...] = added(())

    @property
    def has_control(self) -> bool:
        return any(choice.arm == "control" for choice in self.chosen)


class Prediction(Row):
    """A model's box on a frame; ``score`` in [0, 1].

    Where people's drawings are shown to others, a turned rectangle stands in ``turned`` and a
    polygon's corners in ``polygon``; ``box`` is then the upright box that just holds it.
    """

    frame: Digest
    cls: str
    box: Box
    score: float
    turned: Turned | None = added(None)
    polygon: tuple[Point, ...] | None = added(None)


class FrameNeed(Row):
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
    needs: tuple[FrameNeed, ...] = added(())
    gold: tuple[Digest, ...] = added(())
    adjudicates: Ref | None = added(None)
    blind: bool = added(False)


class Annotator(Row):
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
    deleted: tuple[Digest, ...] = added(())


class Rate(Row):
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
    rates: tuple[Rate, ...]
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


class Supplier(Row):
    """Where a model that others made comes from: ``hub:OWNER/NAME`` or ``folder:NAME``.

    ``revision`` is the hub's commit, ``weights`` digests its weight files, None where only the
    architecture was taken.
    """

    origin: str
    revision: str = ""
    licence: str
    weights: Digest | None = None


class Checkpoint(Record):
    """Float weights. Payload: ``weights.safetensors``, ``curves.json``.

    ``architecture``, ``training`` and ``preprocessing`` rebuild the model and its input;
    ``conditions`` says under which threads and CPU features the weights repeat to the bit.
    ``family`` names the kind of model, ``supplier`` the part that somebody else made.
    """

    KIND: ClassVar[str] = "checkpoint"
    dataset: Ref
    parent: Ref | None = None
    classes: tuple[str, ...]
    architecture: Json
    training: Json
    preprocessing: Json
    conditions: Json = {}
    family: str = added("fpn-anchor-free-1")
    supplier: Supplier | None = added(None)


class Quantiser(Row):
    """One way of making 8-bit ranges, and how far its file is from the float network.

    Measured on ``frames`` frames that were learned from but not calibrated with. ``sqnr_db`` is the
    least signal-to-noise ratio of any raw output; ``agreement`` that of boxes, in [0, 1].
    """

    method: str
    frames: int
    sqnr_db: float
    agreement: float | None


class SweepModel(Row):
    """One training of a sweep: where it differs from the others, and its figure with interval."""

    checkpoint: Ref
    seed: int
    settings: Json
    value: float
    low: float | None = None
    high: float | None = None


class SweepSetting(Row):
    """Models of one setting: the mean over their seeds, with an interval from two seeds on."""

    settings: Json
    seeds: tuple[int, ...]
    mean: float
    low: float | None = None
    high: float | None = None


class SweepReport(Record):
    """Several trainings compared on the same frames.

    ``figure`` says what was measured on which of ``dataset``'s frames. ``settings`` are best
    first; ``decided`` tells whether the first one's interval lies above the next one's, None
    where there are not two intervals to compare.
    """

    KIND: ClassVar[str] = "sweep"
    dataset: Ref
    figure: str
    frames: int
    models: tuple[SweepModel, ...]
    settings: tuple[SweepSetting, ...]
    best: Ref
    decided: bool | None
    confidence: float
    simulated: bool = False

    @property
    def words(self) -> str:
        """What may be said of the first setting."""
        if len(self.settings) < 2:
            return f"{self.figure}: one setting, nothing to decide"
        if self.decided is None:
            return f"{self.figure}: INSUFFICIENT EVIDENCE, each setting needs two seeds or more"
        if self.decided:
            return f"{self.figure}: the first setting is better than the next"
        return f"{self.figure}: not decided, the intervals of the first two overlap"


class CalibrationSet(Record):
    """The frames that set the ranges of 8-bit numbers, and why they may.

    ``slices`` counts them by light and weather, ``variants`` the mirrored and re-exposed copies
    that make up for missing ones. ``required`` slices are among them; ``uncovered`` ones are
    judged on but not. None of ``evaluated`` evaluation frames is among them; ``apart`` says
    whether their drives are others too, and ``shared_drives`` counts those that are not. ``methods`` were
    compared, ``chosen`` is used, ``why`` says so in words.
    """

    KIND: ClassVar[str] = "calibration"
    dataset: Ref
    seed: int
    frames: tuple[Digest, ...]
    slices: dict[str, int]
    drives: int
    available: int
    variants: int = 0
    required: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()
    evaluated: int = 0
    apart: Literal["drive", "time blocks", "frame"] = "frame"
    shared_drives: int = 0
    methods: tuple[Quantiser, ...] = ()
    chosen: str = "minmax"
    why: str = ""
    simulated: bool = False


class ExportBundle(Record):
    """What goes to a car. Payload: the bundle folder without its signature.

    ``calibration`` is the dataset that was calibrated with, ``calibration_set`` the choice made
    of it.
    """

    KIND: ClassVar[str] = "bundle"
    checkpoint: Ref
    calibration: Ref
    classes: tuple[str, ...]
    parity: Json
    calibration_set: Ref | None = added(None)


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT EVIDENCE"


class GateResult(Row):
    """One gate: ``value`` against ``bound``; ``low`` and ``high`` are its interval.

    Only a ``required`` gate can refuse promotion; the others are shown beside.
    """

    name: str
    verdict: Verdict
    n: int
    unit: str
    value: float | None
    bound: float
    low: float | None = None
    high: float | None = None
    method: str
    slice: str = "all"
    required: bool = True
    why: str = ""


class GateReport(Record):
    """Payload: ``metrics.json``, every metric by class and slice with its interval."""

    KIND: ClassVar[str] = "gates"
    candidate: Ref
    reference: Ref | None
    dataset: Ref
    rules: Digest
    verdict: Verdict
    gates: tuple[GateResult, ...]
    simulated: bool = False


class ArmOutcome(Row):
    """What labeling the frames of one arm brought. ``hours`` None where no time is known."""

    arm: Arm
    frames: int
    unlabelled: int
    rare_frames: int
    rare_objects: int
    rare_events: int
    hours: float | None


class Beaten(Row):
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
    beaten: tuple[Beaten, ...]
    models: dict[str, Ref] = {}
    resamples: int
    confidence: float
    simulated: bool
    headline: str
    blind: bool = added(True)


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


class Release(Record):
    """A signed bundle under a name. ``promoted`` tells whether its gates let it be champion."""

    KIND: ClassVar[str] = "release"
    model: str
    bundle: Ref
    gates: Ref
    verdict: Verdict
    promoted: bool
    key: Digest
    signature: Digest


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
        Receipt,
        StepVersion,
    )
}
