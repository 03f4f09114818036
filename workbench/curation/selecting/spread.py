"""Spread: the best frames that keep their distance, loosened only as far as the budget needs.

Every turn of the loop chooses a frame and blocks all that would be too near to it, so the time
grows with the budget and not with its square, and hardly with the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workbench.curation.selecting.lanes import Lanes, Rows

_CHUNK = 4096
_TOP = 4
_PAIRS = 40_000_000
"""Comparisons that diversity may cost: a few seconds with vectors of 512 numbers."""


class Spread:
    """Frames chosen so far, and what may still be chosen.

    Args:
        cost: What each place takes of the budget.
        taken: Places that another arm has: never chosen here.
    """

    def __init__(self, lanes: Lanes, cost: NDArray[np.float64], budget: float, taken: Rows) -> None:
        self.lanes = lanes
        self.cost = cost
        self.left = budget + 1e-9
        self.chosen: list[int] = []
        self._never = np.zeros(len(cost), bool)
        self._never[taken] = True
        self._count = np.zeros(lanes.drives, np.int64)
        self._cheapest = float(cost.min())

    @property
    def spent_out(self) -> bool:
        """Whether not even the cheapest frame can be paid for any more."""
        return self.left < self._cheapest

    def take(self, ranked: Rows, cap: int, part: float, limit: int | None = None) -> int:
        """Choose places of ``ranked`` in order, until the budget or ``limit`` of them is reached.

        Args:
            cap: Frames of one drive, all chosen before included.
            part: Share of the gap that is kept.
        """
        blocked = self._blocked(cap, part)
        before = len(self.chosen)
        for place in self._free(ranked, blocked):
            if self.spent_out or (limit is not None and len(self.chosen) - before >= limit):
                break
            self._choose(place, blocked, cap, part)
        return len(self.chosen) - before

    def take_diverse(
        self, ranked: Rows, vectors: NDArray[np.floating], cap: int, weight: float, wanted: int
    ) -> None:
        """Choose by rank and by being unlike what is chosen already (greedy k-centre with ranks).

        Maximal marginal relevance (Carbonell and Goldstein 1998) over the best `_TOP` times as
        many frames as are wanted: ``(1 - weight) * rank + weight * distance to the nearest chosen
        one``. The pool below is never compared, so the cost is bounded.

        Args:
            vectors: ``[n, d]`` by row of the pool, see `Lanes.rows`.
            wanted: How many frames the budget will pay for, more or less.
        """
        top = ranked[~self._never[ranked]][: max(wanted, min(_TOP * wanted, _PAIRS // wanted))]
        if len(top) <= wanted or not weight:
            return
        unit = np.asarray(vectors[self.lanes.rows[top]], np.float32)
        unit -= unit.mean(axis=0)
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
        worth = (1 - weight) * np.linspace(1, 0, len(top))
        farness = np.ones(len(top), np.float32)
        position = np.full(len(self.cost), -1, np.int64)
        position[top] = np.arange(len(top))
        for place in self.chosen:
            if position[place] >= 0:
                farness = np.minimum(farness, 1 - unit @ unit[position[place]])
        blocked = self._blocked(cap, 1.0)
        while not self.spent_out:
            value = np.where(blocked[top], -np.inf, worth + weight * farness)
            best = int(value.argmax())
            if value[best] == -np.inf:
                return
            self._choose(int(top[best]), blocked, cap, 1.0)
            farness = np.minimum(farness, 1 - unit @ unit[best])

    def _blocked(self, cap: int, part: float) -> NDArray[np.bool_]:
        blocked = self._never.copy()
        blocked |= self._count[self.lanes.drive] >= cap
        for place in self.chosen:
            blocked[self.lanes.near(place, part)] = True
        return blocked

    def _free(self, ranked: Rows, blocked: NDArray[np.bool_]) -> Iterator[int]:
        """Those of ``ranked`` that are not blocked when their turn comes."""
        for start in range(0, len(ranked), _CHUNK):
            chunk = ranked[start : start + _CHUNK]
            for place in chunk[~blocked[chunk]].tolist():
                if not blocked[place]:
                    yield place

    def _choose(self, place: int, blocked: NDArray[np.bool_], cap: int, part: float) -> None:
        if self.cost[place] > self.left:
            blocked[place] = True  # too dear for what is left; a cheaper one may still fit
            return
        self.left -= float(self.cost[place])
        self.chosen.append(place)
        self._never[place] = True
        drive = int(self.lanes.drive[place])
        self._count[drive] += 1
        blocked[self.lanes.near(place, part)] = True
        if self._count[drive] >= cap:
            blocked[self.lanes.lane(place)] = True


def cap_of(share: float, wanted: int, drives: int) -> int:
    """Frames of one drive: its share, at least two, and an equal share where drives are few."""
    return max(2, math.ceil(share * wanted), math.ceil(wanted / max(1, drives)))


def keyframes(lanes: Lanes, ranked: Rows) -> Rows:
    """Those of ``ranked`` that are the best of their event, in the same order."""
    _, first = np.unique(lanes.event[ranked], return_index=True)
    best: Rows = ranked[np.sort(first)]
    return best
