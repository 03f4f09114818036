"""Record types of models (checkpoints, bundles, releases) and of the step runs that made them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from workbench.records.base import Digest, FrozenModel, Record, Ref, Verdict
from workbench.records.frames import optional_field

Json = dict[str, Any]


class Supplier(FrozenModel):
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
    family: str = optional_field("fpn-anchor-free-1")
    supplier: Supplier | None = optional_field(None)


class SweepModel(FrozenModel):
    """One training of a sweep: where it differs from the others, and its figure with interval."""

    checkpoint: Ref
    seed: int
    settings: Json
    value: float
    low: float | None = None
    high: float | None = None


class SweepSetting(FrozenModel):
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


class QuantizationResult(FrozenModel):
    """One way of making 8-bit ranges, and how far its file is from the float network.

    Measured on ``frames`` frames that were learned from but not calibrated with. ``sqnr_db`` is the
    least signal-to-noise ratio of any raw output; ``agreement`` that of boxes, in [0, 1].
    """

    method: str
    frames: int
    sqnr_db: float
    agreement: float | None


class CalibrationSet(Record):
    """The frames that set the ranges of 8-bit numbers, and why they may.

    ``slices`` counts them by light and weather, ``variants`` the mirrored and re-exposed copies
    that make up for missing ones. ``required`` slices are among them; ``uncovered`` ones are
    judged on but not. None of ``evaluated`` evaluation frames is among them; ``apart`` says
    whether their drives are others too, and ``shared_drives`` counts those that are not.
    ``methods`` were compared, ``chosen`` is used, ``why`` says so in words.
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
    methods: tuple[QuantizationResult, ...] = ()
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
    calibration_set: Ref | None = optional_field(None)


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


# ---- What ran: notebooks, environments, runs, receipts and versions of steps.


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


class CheckReceipt(Record):
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
