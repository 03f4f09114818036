"""Labeling: frames go to people in Label Studio with the model's boxes, and come back as labels.

server = labeling.connect(url, token)
batch = labeling.make_batch(store, dataset, selection, model, predictions)
labeling.send(place, server, batch)
labels = labeling.collect(place, server, batch)     # raises Waiting until people are done
dataset = labeling.merge(store, dataset, labels)
"""

from workbench.labeling.batches import make_batch
from workbench.labeling.collect import BatchStatus, Mend, collect, status
from workbench.labeling.labels import merge
from workbench.labeling.replay import Noise, Replayed, replay
from workbench.labeling.send import SentBatch, send
from workbench.labeling.server import LabelStudio, connect

__all__ = [
    "BatchStatus",
    "LabelStudio",
    "Mend",
    "Noise",
    "Replayed",
    "SentBatch",
    "collect",
    "connect",
    "make_batch",
    "merge",
    "replay",
    "send",
    "status",
]
