"""Curation: what to label next and why, dataset checks, and FiftyOne.

from workbench import curation
selection = curation.mine(store, dataset_ref, checkpoint_ref, budget=96)  # a Selection record
curation.publish(workspace, dataset, predictions, store.get(selection, Selection), "pool")
curation.tag_frames("pool", frames, "odd night scene", by="mia")
"""

from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.fiftyone.publishing import is_published, open_app, publish
from workbench.curation.fiftyone.tags import (
    read_tag_log,
    selection_from_tag,
    tag_frames,
    tagged_frames,
)
from workbench.curation.selection.candidates import Budget, LabelingPace, SelectionRules
from workbench.curation.selection.mining import (
    dataset_of_arm,
    mine,
    newest_selection,
    read_scores,
    select_manually,
)
from workbench.curation.selection.ranking import MiningQuery, parse_exemplar
from workbench.curation.selection.report import (
    LabelledSelection,
    RetrainedModels,
    parse_rare,
    rare_classes,
    report_mining,
)
from workbench.curation.signals.probe import SteeredSearch
from workbench.curation.signals.similarity import Exemplar

__all__ = [
    "Budget",
    "Embeddings",
    "Exemplar",
    "LabelingPace",
    "LabelledSelection",
    "MiningQuery",
    "QualityGate",
    "RetrainedModels",
    "SelectionRules",
    "SteeredSearch",
    "dataset_of_arm",
    "embed",
    "is_published",
    "mine",
    "newest_selection",
    "open_app",
    "parse_exemplar",
    "parse_rare",
    "publish",
    "rare_classes",
    "read_scores",
    "read_tag_log",
    "report_mining",
    "select_manually",
    "selection_from_tag",
    "tag_frames",
    "tagged_frames",
]
