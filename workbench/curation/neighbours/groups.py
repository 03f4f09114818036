"""Identical vectors as groups: an index sees each vector once, however often it was recorded.

A parked car gives thousands of equal frames. In an index they would fill one list, which every
query there would have to read to its end; and which of them are "nearest" would be chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.curation.neighbours.vectors import Directions

_BLOCK = 16_384


class Groups:
    """Rows of equal vectors.

    Attributes:
        first: Int64 ``[u]``: the lowest row of each group, ascending.
        of: Int64 ``[n]``: the group of each row.
        sizes: Int64 ``[u]``.
    """

    def __init__(self, known: Directions) -> None:
        _, first, inverse = np.unique(known.prints, return_index=True, return_inverse=True)
        lowest = first[inverse]
        repeated = np.flatnonzero(lowest != np.arange(len(known)))
        for start in range(0, len(repeated), _BLOCK):
            rows = repeated[start : start + _BLOCK]
            # Two vectors may share a print by chance; then each stays alone.
            differ = (known.take(rows) != known.take(lowest[rows])).any(axis=1)
            lowest[rows[differ]] = rows[differ]
        self.first, self.of, self.sizes = np.unique(lowest, return_inverse=True, return_counts=True)
        self._members = np.argsort(self.of, kind="stable")
        self._starts = np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        return len(self.first)

    def spread(
        self, groups: NDArray[np.int64], distances: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Groups ``[q, j]``, nearest first, as the first ``k`` of their rows; -1 where none is."""
        if len(self) == len(self.of):
            return groups[:, :k], distances[:, :k]
        there = groups >= 0
        sizes = np.where(there, np.minimum(self.sizes[groups], k), 0)
        ends = np.cumsum(sizes.ravel())
        starts = ends - sizes.ravel()
        begins = starts.reshape(sizes.shape)[:, :1]  # of each query, in the run of all
        places = np.arange(ends[-1])
        rows = self._members[
            places + np.repeat(self._starts[groups].ravel() - starts, sizes.ravel())
        ]
        query = np.repeat(np.arange(len(groups)), sizes.sum(1))
        column = places - begins[query, 0]
        kept = column < k
        out = np.full((len(groups), k), -1, np.int64)
        out[query[kept], column[kept]] = rows[kept]
        far = np.full((len(groups), k), np.inf, np.float32)
        far[query[kept], column[kept]] = np.repeat(distances.ravel(), sizes.ravel())[kept]
        return out, far
