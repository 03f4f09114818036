"""Curation: what to label next, why, and a place to look at it.

from workbench import curation
selection = curation.mine(store, dataset, model, budget=96)        # a Selection record
curation.publish(place, dataset, predictions, selection, "pool")   # look at it in FiftyOne
curation.tag("pool", frames, "odd night scene", by="mia")
"""

from workbench.curation.embedding.one_pass import Embeddings, embed
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.selecting.mining import (
    choose,
    embed_roles,
    mine,
    newest_selection,
    read_scores,
)
from workbench.curation.selecting.select import Candidate, SelectionRules, select
from workbench.curation.workshop.dataset import (
    is_published,
    open_app,
    publish,
    tag,
    tag_log,
    tagged,
)

__all__ = [
    "Candidate",
    "Embeddings",
    "QualityGate",
    "SelectionRules",
    "choose",
    "embed",
    "embed_roles",
    "is_published",
    "mine",
    "newest_selection",
    "open_app",
    "publish",
    "read_scores",
    "select",
    "tag",
    "tag_log",
    "tagged",
]
