"""Lanes: a pool laid out drive after drive in time, where events and distances can be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.curation.selecting.candidates import Candidates
from workbench.curation.selecting.rules import SelectionRules

Rows = NDArray[np.int64]

_EPSILON = 1e-9
"""Times are sums of frame periods: 2.0 s apart must not fail by the last binary digit."""


class Lanes:
    """The usable rows of a pool in order of drive and time.

    Attributes:
        place: Int64 ``[n]``: where each of ``rows`` stands on its lane.
        drive: Int64 ``[n]``: number of the drive at each place.
        event: Int64 ``[n]``: number of the event at each place, once `mark_events` has run.
    """

    def __init__(self, candidates: Candidates, rows: Rows, rules: SelectionRules) -> None:
        self.rules = rules
        codes = _codes([candidates.drives[row] for row in rows.tolist()])
        times, index = candidates.time_s[rows], candidates.index[rows].astype(float)
        without = np.zeros(int(codes.max()) + 1, bool)
        without[codes[~np.isfinite(times)]] = True
        self._timed = ~without
        axis = np.where(self._timed[codes], times, index)
        order = np.lexsort((axis, codes))
        self.rows = rows[order]
        self.drive, self._axis = codes[order], axis[order]
        self._start = np.searchsorted(self.drive, np.arange(len(without)), side="left")
        self._end = np.searchsorted(self.drive, np.arange(len(without)), side="right")
        self.drives = len(without)
        self.place = np.empty(len(rows), np.int64)
        self.place[order] = np.arange(len(rows))
        self.event = np.arange(len(rows))

    def unit(self, drives: Rows, seconds: float, frames: float) -> NDArray[np.float64]:
        """A distance on each of these drives' lanes: seconds, or frames where it has no times."""
        distance: NDArray[np.float64] = np.where(self._timed[drives], seconds, frames)
        return distance

    def near(self, place: int, part: float) -> slice:
        """Places of the same drive that lie within ``part`` of the gap, itself included."""
        drive = int(self.drive[place])
        timed = bool(self._timed[drive])
        gap = part * (self.rules.gap_s if timed else self.rules.gap_frames) - _EPSILON
        lane = self._axis[self._start[drive] : self._end[drive]]
        at = self._axis[place]
        low = int(np.searchsorted(lane, at - gap, side="left")) + int(self._start[drive])
        high = int(np.searchsorted(lane, at + gap, side="right")) + int(self._start[drive])
        return slice(min(low, place), max(high, place + 1))

    def lane(self, place: int) -> slice:
        """All places of the drive at ``place``."""
        drive = int(self.drive[place])
        return slice(int(self._start[drive]), int(self._end[drive]))

    def nearest(self, place: int, others: Sequence[int]) -> tuple[float, bool]:
        """Distance to the nearest of ``others`` on the same lane, and whether it is in seconds."""
        at = self._axis[place]
        distance = min(abs(float(self._axis[other] - at)) for other in others)
        return distance, bool(self._timed[int(self.drive[place])])

    def mark_events(self, high: NDArray[np.bool_], vectors: NDArray[np.floating] | None) -> None:
        """Number the events: runs of ``high`` frames (by place) that are neighbours.

        Neighbours are of one drive, nearer than the gap, and look alike where vectors tell. An
        event that goes on for longer than ``event_s`` is cut. Every other frame stays alone.

        Args:
            vectors: ``[n, d]`` in the order of `rows`, of which only the high ones are read.
        """
        places = np.flatnonzero(high)
        if len(places) < 2:
            return
        axis, drive = self._axis[places], self.drive[places]
        rules = self.rules
        gap = self.unit(drive[1:], rules.gap_s, rules.gap_frames)
        begins = np.ones(len(places), bool)
        begins[1:] = (drive[1:] != drive[:-1]) | (np.diff(axis) > gap + _EPSILON)
        if vectors is not None:
            likeness = _neighbour_likeness(vectors, self.rows[places])
            begins[1:] |= likeness < rules.event_likeness
        first = np.maximum.accumulate(np.where(begins, np.arange(len(places)), 0))
        longest = self.unit(drive, rules.event_s, rules.event_frames)
        part = np.floor((axis - axis[first]) / longest)
        anew = begins.copy()
        anew[1:] |= part[1:] != part[:-1]
        opening = np.maximum.accumulate(np.where(anew, np.arange(len(places)), 0))
        self.event[places] = places[opening]


def _codes(names: Sequence[str]) -> Rows:
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(n, len(numbers)) for n in names), np.int64, len(names))


def _neighbour_likeness(vectors: NDArray[np.floating], rows: Rows) -> NDArray[np.float64]:
    """Cosine of each row's vector with the next one's about their mean, in bounded memory."""
    block = 8192
    sums = sum(
        np.asarray(vectors[rows[s : s + block]], np.float32).sum(axis=0, dtype=np.float64)
        for s in range(0, len(rows), block)
    )
    centre = np.asarray(sums / len(rows), np.float32)
    found = np.empty(len(rows) - 1)
    for start in range(0, len(rows) - 1, block):
        part = np.asarray(vectors[rows[start : start + block + 1]], np.float32) - centre
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
        found[start : start + len(part) - 1] = np.einsum("ij,ij->i", part[:-1], part[1:])
    return found
