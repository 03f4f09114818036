"""Raw outputs of two models side by side, also where these are sets without an order.

A detection transformer chooses its queries by score. A rounding swaps two of them, and at the cut
it takes one for another that scores the same: neither changes what a driver would see. So outputs
that are sets are compared query by query, each with the one it is nearest to (Hungarian method),
and only queries that become boxes: those at the threshold that decoding drops boxes by, and in a
frame that has none the best one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.perception.contract import DetectorConfig
from workbench.perception.models import queries
from workbench.perception.models.registry import output_names

Maps = Sequence[NDArray[np.float32]]


def paired(reference: Maps, found: Maps, config: DetectorConfig) -> tuple[Maps, Maps]:
    """Both outputs with what belongs together at the same place.

    Maps of cells as they are. Of sets, ``[queries, c]`` and ``[queries, 4]`` of all frames, where
    one of the two gives a box; a query that the other lost or moved still shows.
    """
    if not is_set(output_names(config)):
        return reference, found
    ordered = in_order_of(reference, found)
    scoring = config.network["scoring"]
    right, wrong = (queries.scores(maps[0], scoring).max(-1) for maps in (reference, ordered))
    least = np.minimum(config.score_threshold, right.max(axis=1, keepdims=True))
    seen = (right >= least) | (wrong >= least)
    return [values[seen] for values in reference], [values[seen] for values in ordered]


def is_set(names: Sequence[str]) -> bool:
    """Whether a model with outputs of these names gives queries rather than maps of cells."""
    return tuple(names) == queries.OUTPUTS


def in_order_of(reference: Maps, found: Maps) -> Maps:
    """The queries of ``found``, each frame's in the order of those they are nearest to.

    Nearest by logits and boxes together, every query once.
    """
    from scipy.optimize import linear_sum_assignment

    ordered = [values.copy() for values in found]
    for frame in range(len(reference[0])):
        first = np.concatenate([values[frame] for values in reference], axis=-1)
        second = np.concatenate([values[frame] for values in found], axis=-1)
        apart = np.abs(first[:, None].astype(np.float64) - second[None]).sum(axis=-1)
        _, columns = linear_sum_assignment(np.nan_to_num(apart, nan=1e9))
        for values, given in zip(ordered, found, strict=True):
            values[frame] = given[frame][columns]
    return ordered
