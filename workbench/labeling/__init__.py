"""Labeling: frames go to people in Label Studio with the model's boxes, and come back as labels.

server = labeling.connect(url, token)
batch = labeling.make_batch(store, dataset, selection, model, predictions)
labeling.send(place, server, batch)
labels = labeling.collect(place, server, batch)     # raises Waiting until people are done
dataset = labeling.merge(store, dataset, labels)

Where several people labeled a frame, `assess` keeps how far they agree, and `make_adjudication`
makes a batch of what they disagree about.
"""

from workbench.labeling.adjudication import make_adjudication
from workbench.labeling.assessment import assess
from workbench.labeling.attention import Attention, Care
from workbench.labeling.batches import make_batch
from workbench.labeling.collect import BatchStatus, Mend, collect, status
from workbench.labeling.labels import merge, preview
from workbench.labeling.quality import effort, from_agreement, minutes_by_frame, suspects, to_review
from workbench.labeling.replay import Noise, Replayed, replay
from workbench.labeling.schemas import migrate
from workbench.labeling.send import SentBatch, send
from workbench.labeling.server import LabelStudio, connect
from workbench.labeling.withdrawal import Withdrawn, withdraw

__all__ = [
    "Attention",
    "BatchStatus",
    "Care",
    "LabelStudio",
    "Mend",
    "Noise",
    "Replayed",
    "SentBatch",
    "Withdrawn",
    "assess",
    "collect",
    "connect",
    "effort",
    "from_agreement",
    "make_adjudication",
    "make_batch",
    "merge",
    "migrate",
    "minutes_by_frame",
    "preview",
    "replay",
    "send",
    "status",
    "suspects",
    "to_review",
    "withdraw",
]
