"""Nearest neighbours of embeddings: exact among few, through an index among many."""

from workbench.curation.neighbours.exact import EXACT_LIMIT
from workbench.curation.neighbours.index import NeighbourIndex, Recall
from workbench.curation.neighbours.lookup import (
    Neighbours,
    all_neighbours,
    nearest_distance,
    search,
)
from workbench.curation.neighbours.storage import index_beside
from workbench.curation.neighbours.vectors import Directions, directions

__all__ = [
    "EXACT_LIMIT",
    "Directions",
    "NeighbourIndex",
    "Neighbours",
    "Recall",
    "all_neighbours",
    "directions",
    "index_beside",
    "nearest_distance",
    "search",
]
