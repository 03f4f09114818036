"""Labeling: frames go to labelers in Label Studio with a model's boxes and come back as labels."""

from workbench.labeling.agreement import assess_agreement
from workbench.labeling.batches import make_batch
from workbench.labeling.collector import BatchStatus, InvalidAnswer, batch_status, collect
from workbench.labeling.label_config import migrate
from workbench.labeling.labeling_rules import LabelingOptions, LabelingRule
from workbench.labeling.replayer import ReplayNoise, ReplayResult, replay
from workbench.labeling.review import (
    labeling_effort,
    make_adjudication,
    minutes_by_frame,
    select_for_review,
    suspects_from_agreement,
    suspects_from_model,
)
from workbench.labeling.sender import SentBatch, send
from workbench.labeling.server import LabelStudio, connect
from workbench.labeling.versions import WithdrawalResult, merge, preview_merge, withdraw

__all__ = [
    "BatchStatus",
    "InvalidAnswer",
    "LabelStudio",
    "LabelingOptions",
    "LabelingRule",
    "ReplayNoise",
    "ReplayResult",
    "SentBatch",
    "WithdrawalResult",
    "assess_agreement",
    "batch_status",
    "collect",
    "connect",
    "labeling_effort",
    "make_adjudication",
    "make_batch",
    "merge",
    "migrate",
    "minutes_by_frame",
    "preview_merge",
    "replay",
    "select_for_review",
    "send",
    "suspects_from_agreement",
    "suspects_from_model",
    "withdraw",
]
