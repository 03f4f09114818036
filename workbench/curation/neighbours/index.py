"""An index for more vectors than can all be compared: cells of similar vectors, few of them read.

Inverted lists of vectors with eight bits a number (faiss, IVF-SQ8), their cells found through a
small graph (HNSW, Malkov and Yashunin, 2018). Many small cells: reading them costs more than
finding them. The bits are of the vectors themselves, not of what a cell's centre leaves: compared
as whole numbers they take half the time, and what they blur is mended, because the true distances
order what the lists propose. So an answer depends on the query alone: not on what else is asked,
nor in which order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.neighbours.exact import nearest_exact, refined
from workbench.curation.neighbours.groups import Groups
from workbench.curation.neighbours.partition import centres, one_thread
from workbench.curation.neighbours.vectors import Directions, Vectors
from workbench.errors import ParameterError

Built = tuple[Any, float, int, "Recall"]
Answer = tuple[NDArray[np.int64], NDArray[np.float32]]

_CELL = 64
"""Vectors in a cell, on average. Cells grow in number, not in size, so a query costs the same."""

_SAMPLE = 16
"""Vectors a cell that its centre is found from."""

_CHUNK = 8192
_SPARE = 6
_PROBES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)
_JUDGED = 256
_MARGIN = 0.008
_GRAPH, _CONSTRUCTION, _BREADTH = 16, 80, 64


@dataclass(frozen=True)
class Recall:
    """How many of the true ``k`` nearest are found: the mean over ``sample`` random queries.

    ``error`` is its standard error.
    """

    k: int
    sample: int
    mean: float
    error: float

    def __str__(self) -> str:
        return f"recall@{self.k} {self.mean:.3f} ± {1.96 * self.error:.3f} (n={self.sample})"


class NeighbourIndex:
    """Vectors and their index.

    Args:
        vectors: ``[n, d]``, any floating type, such as a mapped file; read again when asked.
        k: Neighbours that the recall is meant for.
        target: Recall that as many cells are read for as it takes, judged on random queries.
        centre: Float32 ``[d]``; by default, their mean.
        seed: Of the sample that cells are found from.
        queries: Unit vectors ``[q, d]`` about ``centre`` of the kind that will be asked, to judge
            the recall on: what lies off the vectors needs more cells. By default, the vectors.
        built: Lists, cells to read and recall of an index of the same vectors, read from disk.

    Attributes:
        lists: What faiss keeps.
        unit: The value of one step of the eight bits.
        probes: Cells that a query reads.
        recall: Measured against all vectors, on other queries than those it was set on.

    Raises:
        DataError: A number is missing or infinite.
        ParameterError: ``k`` or ``target`` make no sense.
    """

    def __init__(
        self,
        vectors: Vectors,
        *,
        k: int = 10,
        target: float = 0.97,
        centre: NDArray[np.float32] | None = None,
        seed: int = 0,
        queries: NDArray[np.float32] | None = None,
        built: Built | None = None,
    ) -> None:
        if k < 1 or not 0 < target <= 1:
            raise ParameterError(
                "an index needs k of 1 or more and a target in (0, 1]", where=f"{k=}, {target=}"
            )
        self.known = Directions(vectors, centre)
        self.groups = Groups(self.known)
        self.k, self.target, self.seed = k, target, seed
        self._queries = queries
        if built is not None:
            self.lists, self.unit, self.probes, self.recall = built
            return
        self.lists, self.unit = _trained(self.known, self.groups.first, seed)
        self._add(self.groups.first)
        self.probes, self.recall = self._tuned()

    def __len__(self) -> int:
        return len(self.known)

    def add(self, vectors: Vectors) -> None:
        """More vectors, in the cells that are there; their rows follow.

        Recall is measured again and more cells are read if need be. Cells grow fuller by this: when
        there are twice as many vectors as it was built from, build anew.
        """
        before = len(self.groups)
        self.known.append(vectors)
        self.groups = Groups(self.known)
        self._add(self.groups.first[before:])
        self.probes, self.recall = self._tuned()

    def search(self, queries: NDArray[np.float32], k: int) -> Answer:
        """The ``k`` nearest vectors of each query, as rows and cosine distances ``[q, k]``.

        Args:
            queries: Unit vectors ``[q, d]`` about this index's centre, see `Directions.units`.
        """
        parts = [
            self.groups.spread(*self._nearest(queries[start : start + _CHUNK], k), k)
            for start in range(0, max(len(queries), 1), _CHUNK)
        ]
        rows, far = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(far)

    def all(self, k: int) -> Answer:
        """The ``k`` nearest other vectors of each vector, int64 and float32 ``[n, k]``."""

        def ask(groups: NDArray[np.int64], wide: int) -> Answer:
            return self._nearest(self.known.take(self.groups.first[groups]), wide)

        return everyone(self.groups, ask, k)

    def _nearest(self, queries: NDArray[np.float32], k: int, probes: int | None = None) -> Answer:
        """Groups, not rows, and distances, nearest first; -1 and infinity where none is left."""
        probes = probes or self.probes
        self.lists.nprobe = probes
        asked = in_bytes(queries, self.unit)
        likeness, cells = self.lists.quantizer.search(asked, probes)
        order = np.argsort(cells[:, 0], kind="stable")  # neighbours in turn read the same lists
        _, found = self.lists.search_preassigned(
            asked[order], k + _SPARE, cells[order], likeness[order]
        )
        candidates = np.empty_like(found)
        candidates[order] = found
        return refined(queries, self.known, self.groups.first, candidates, k)

    def _add(self, rows: NDArray[np.int64]) -> None:
        for start in range(0, len(rows), _CHUNK):
            self.lists.add(in_bytes(self.known.take(rows[start : start + _CHUNK]), self.unit))

    def _tuned(self) -> tuple[int, Recall]:
        """The fewest cells that reach the target, and the recall on other queries."""
        own = self._queries is None
        pool = self.groups.first if self._queries is None else np.arange(len(self._queries))
        rng = np.random.default_rng([self.seed, 1])
        drawn = rng.choice(len(pool), min(len(pool), 2 * _JUDGED), replace=False)
        asked = self._queries[drawn] if self._queries is not None else self.known.take(pool[drawn])
        k = min(self.k + own, len(self.groups))  # a vector of its own finds itself, and k others
        true, _ = nearest_exact(asked, self.known, self.groups.first, k)
        half = max(1, len(drawn) // 2)
        probes = _PROBES[0]
        for probes in _PROBES:
            found, _ = self._nearest(asked[:half], k, probes)
            enough = _found(found, true[:half], own).mean() >= min(1.0, self.target + _MARGIN)
            if enough or probes >= self.lists.nlist:
                break
        found, _ = self._nearest(asked[-half:], k, probes)
        shares = _found(found, true[-half:], own)
        error = float(shares.std() / np.sqrt(len(shares)))
        return probes, Recall(self.k, len(shares), float(shares.mean()), error)


def everyone(groups: Groups, ask: Any, k: int) -> Answer:
    """The ``k`` nearest others of every row, from the nearest groups of each group.

    Args:
        ask: Groups ``[q]`` and a count to their nearest groups and distances ``[q, count]``.
    """
    total = len(groups.of)
    k = min(k, total - 1)
    whole = np.full((len(groups), k + 1), -1, np.int32)
    whole_far = np.full((len(groups), k + 1), np.inf, np.float32)
    for start in range(0, len(groups), _CHUNK):
        own = np.arange(start, min(start + _CHUNK, len(groups)))
        found, far = ask(own, min(k + 1, len(groups)))
        missing = ~(found == own[:, None]).any(axis=1)
        found[missing, -1] = own[missing]
        far[found == own[:, None]] = -1
        order = np.argsort(far, axis=1, kind="stable")
        found, far = np.take_along_axis(found, order, 1), np.take_along_axis(far, order, 1)
        far[:, 0] = 0
        rows, distances = groups.spread(found, far, k + 1)
        whole[own, : rows.shape[1]], whole_far[own, : rows.shape[1]] = rows, distances
    return _without_self(groups, whole, whole_far, k)


def _without_self(
    groups: Groups, whole: NDArray[np.int32], far: NDArray[np.float32], k: int
) -> Answer:
    """From each group's ``k + 1`` nearest rows, its own among them, to ``k`` others a row."""
    total = len(groups.of)
    rows, distances = np.empty((total, k), np.int64), np.empty((total, k), np.float32)
    columns = np.arange(k)
    for start in range(0, total, _CHUNK):
        part = np.arange(start, min(start + _CHUNK, total))
        mine = whole[groups.of[part]]
        own = mine == part[:, None]
        at = np.where(own.any(axis=1), own.argmax(axis=1), k)  # in a large group, maybe not there
        chosen = columns + (columns >= at[:, None])
        rows[part] = np.take_along_axis(mine, chosen, axis=1)
        distances[part] = np.take_along_axis(far[groups.of[part]], chosen, axis=1)
    return rows, distances


def _found(found: NDArray[np.int64], true: NDArray[np.int64], own: bool) -> NDArray[np.float64]:
    """The share of each query's true neighbours that were found; ``own``: itself counts not."""
    hits = (found[:, :, None] == true[:, None, :]).any(axis=1).sum(axis=1)
    shares: NDArray[np.float64] = np.maximum(hits - own, 0) / max(true.shape[1] - own, 1)
    return shares


def in_bytes(units: NDArray[np.float32], unit: float) -> NDArray[np.float32]:
    """Whole numbers from 0 to 255, 128 for zero, as the float32 that faiss wants to be given."""
    scaled = units / np.float32(unit)
    np.rint(scaled, out=scaled)
    scaled += 128
    return np.clip(scaled, 0, 255, out=scaled)


def _trained(known: Directions, rows: NDArray[np.int64], seed: int) -> tuple[Any, float]:
    """Empty lists with their cells, and the unit of the bytes."""
    import faiss

    cells = max(1, len(rows) // _CELL)
    rng = np.random.default_rng([seed, 0])
    drawn = np.sort(rng.choice(len(rows), min(len(rows), _SAMPLE * cells), replace=False))
    sample = known.take(rows[drawn])
    unit = float(max(np.abs(sample).max(), 1e-3) / 127)
    found = centres(sample, cells, seed=seed) / np.float32(unit) + 128
    graph = faiss.IndexHNSWFlat(known.width, _GRAPH)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = _CONSTRUCTION, _BREADTH
    lists = faiss.IndexIVFScalarQuantizer(
        graph,
        known.width,
        len(found),
        faiss.ScalarQuantizer.QT_8bit_direct,
        faiss.METRIC_L2,
        False,  # no residuals
    )
    with one_thread():
        graph.add(found)
        lists.train(found)  # nothing is learned for bytes; faiss wants to be told
    return lists, unit
