"""Labeling: send frames with a model's boxes to labelers in Label Studio, and collect their labels.

::

    server = labeling.connect(url, token)
    batch = labeling.make_batch(store, dataset, selection, model, predictions)
    labeling.send(workspace, server, batch)
    labels = labeling.collect(workspace, server, batch)     # raises Waiting until people are done
    dataset = labeling.merge(store, dataset, labels)

Where several labelers answered a frame, `assess_agreement` measures their agreement, and
`make_adjudication` makes a batch of the disputed frames.
"""

from workbench.labeling.agreement import assess_agreement
from workbench.labeling.batches import (
    LabelingOptions,
    LabelingRule,
    load_labeling_rules,
    make_batch,
)
from workbench.labeling.collector import BatchStatus, InvalidAnswer, batch_status, collect
from workbench.labeling.first_boxes import predict_first_boxes
from workbench.labeling.replayer import ReplayNoise, ReplayResult, replay
from workbench.labeling.review import (
    labeling_effort,
    make_adjudication,
    minutes_by_frame,
    select_for_review,
    suspects_from_agreement,
    suspects_from_errors,
    suspects_from_model,
)
from workbench.labeling.sender import SentBatch, send
from workbench.labeling.server import LabelStudio, connect
from workbench.labeling.versions import WithdrawalResult, merge, migrate, preview_merge, withdraw

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
    "load_labeling_rules",
    "make_adjudication",
    "make_batch",
    "merge",
    "migrate",
    "minutes_by_frame",
    "predict_first_boxes",
    "preview_merge",
    "replay",
    "select_for_review",
    "send",
    "suspects_from_agreement",
    "suspects_from_errors",
    "suspects_from_model",
    "withdraw",
]
