"""Curation: what to label next, why, and a place to look at it.

from workbench import curation
selection = curation.mine(store, dataset, model, budget=96)        # a Selection record
curation.publish(place, dataset, predictions, selection, "pool")   # look at it in FiftyOne
curation.tag("pool", frames, "odd night scene", by="mia")
"""

from workbench.curation.embedding.one_pass import Embeddings, embed
from workbench.curation.embedding.quality import QualityGate
from workbench.curation.finding import Exemplar
from workbench.curation.selecting.arms import one_arm
from workbench.curation.selecting.budget import Budget, Pace
from workbench.curation.selecting.choosing import choose, newest_selection, read_scores
from workbench.curation.selecting.mining import embed_roles, mine
from workbench.curation.selecting.query import Query, exemplar
from workbench.curation.selecting.rare import Rare, rare_classes
from workbench.curation.selecting.rare import parse as rare
from workbench.curation.selecting.report import Answered, Retrained, report
from workbench.curation.selecting.select import Candidate, SelectionRules, select
from workbench.curation.workshop.dataset import is_published, open_app, publish
from workbench.curation.workshop.tags import selection_of_tag, tag, tag_log, tagged

__all__ = [
    "Answered",
    "Budget",
    "Candidate",
    "Embeddings",
    "Exemplar",
    "Pace",
    "QualityGate",
    "Query",
    "Rare",
    "Retrained",
    "SelectionRules",
    "choose",
    "embed",
    "embed_roles",
    "exemplar",
    "is_published",
    "mine",
    "newest_selection",
    "one_arm",
    "open_app",
    "publish",
    "rare",
    "rare_classes",
    "read_scores",
    "report",
    "select",
    "selection_of_tag",
    "tag",
    "tag_log",
    "tagged",
]
