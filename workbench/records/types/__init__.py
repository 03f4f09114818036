"""The records that stages exchange. Their fields refer to each other by ``Ref``."""

from workbench.records.base import Record
from workbench.records.types.datasets import DatasetVersion, Inspection, Quarantined
from workbench.records.types.labeling import (
    Agreement,
    Annotator,
    FrameNeed,
    LabelBatch,
    LabelSet,
    Prediction,
    Rate,
    Withdrawal,
)
from workbench.records.types.models import (
    CalibrationSet,
    Checkpoint,
    ExportBundle,
    Quantiser,
    Release,
    Supplier,
    SweepModel,
    SweepReport,
    SweepSetting,
)
from workbench.records.types.selections import (
    DRAWN,
    Arm,
    ArmOutcome,
    Beaten,
    Choice,
    MiningReport,
    Selection,
)
from workbench.records.types.steps import Environment, NotebookSource, Receipt, StepRun, StepVersion
from workbench.records.types.verdicts import GateReport, GateResult, Verdict

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

__all__ = [
    "DRAWN",
    "RECORD_TYPES",
    "Agreement",
    "Annotator",
    "Arm",
    "ArmOutcome",
    "Beaten",
    "CalibrationSet",
    "Checkpoint",
    "Choice",
    "DatasetVersion",
    "Environment",
    "ExportBundle",
    "FrameNeed",
    "GateReport",
    "GateResult",
    "Inspection",
    "LabelBatch",
    "LabelSet",
    "MiningReport",
    "NotebookSource",
    "Prediction",
    "Quantiser",
    "Quarantined",
    "Rate",
    "Receipt",
    "Release",
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
