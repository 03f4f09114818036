"""Nearest neighbours of embeddings."""

from workbench.curation.neighbours.exact import EXACT_LIMIT, directions, nearest_distance

__all__ = ["EXACT_LIMIT", "directions", "nearest_distance"]
