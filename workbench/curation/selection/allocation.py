"""Spend a budget on candidates: control arm, quotas, spacing in time, diversity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.curation.selection.candidates import Budget, Candidate, Candidates, SelectionRules
from workbench.records.types import RANDOM_SAMPLE_REASON, Arm, SelectedFrame

RowNumbers = NDArray[np.int64]

_EPSILON = 1e-9
"""Times are sums of frame periods: 2.0 s apart must not fail by the last binary digit."""


class DriveTimelines:
    """The usable rows of a pool in order of drive and time.

    Attributes:
        place: Int64 ``[n]``: where each of ``rows`` stands on its lane.
        drive: Int64 ``[n]``: number of the drive at each place.
        event: Int64 ``[n]``: number of the event at each place, once `mark_events` has run.
    """

    def __init__(self, candidates: Candidates, rows: RowNumbers, rules: SelectionRules) -> None:
        self.rules = rules
        codes = _drive_numbers([candidates.drives[row] for row in rows.tolist()])
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

    def unit(self, drives: RowNumbers, seconds: float, frames: float) -> NDArray[np.float64]:
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
            likeness = _neighbour_similarity(vectors, self.rows[places])
            begins[1:] |= likeness < rules.event_likeness
        first = np.maximum.accumulate(np.where(begins, np.arange(len(places)), 0))
        longest = self.unit(drive, rules.event_s, rules.event_frames)
        part = np.floor((axis - axis[first]) / longest)
        anew = begins.copy()
        anew[1:] |= part[1:] != part[:-1]
        opening = np.maximum.accumulate(np.where(anew, np.arange(len(places)), 0))
        self.event[places] = places[opening]


def _drive_numbers(names: Sequence[str]) -> RowNumbers:
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(n, len(numbers)) for n in names), np.int64, len(names))


def _neighbour_similarity(vectors: NDArray[np.floating], rows: RowNumbers) -> NDArray[np.float64]:
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


# ---- Spread: the best frames that keep their distance, loosened only as far as the budget needs.
#
# Every turn of the loop chooses a frame and blocks all that would be too near to it, so the time
# grows with the budget and not with its square, and hardly with the pool.


_CHUNK = 4096
_DIVERSITY_FACTOR = 4
_MAX_COMPARISONS = 40_000_000
"""Comparisons that diversity may cost: a few seconds with vectors of 512 numbers."""


class SpacedPicker:
    """Frames chosen so far, and what may still be chosen.

    Args:
        cost: What each place takes of the budget.
        taken: Places that another arm has: never chosen here.
    """

    def __init__(
        self, lanes: DriveTimelines, cost: NDArray[np.float64], budget: float, taken: RowNumbers
    ) -> None:
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

    def take(self, ranked: RowNumbers, cap: int, part: float, limit: int | None = None) -> int:
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
        self,
        ranked: RowNumbers,
        vectors: NDArray[np.floating],
        cap: int,
        weight: float,
        wanted: int,
    ) -> None:
        """Choose by rank and by being unlike what is chosen already (greedy k-centre with ranks).

        Maximal marginal relevance (Carbonell and Goldstein 1998) over the best `_TOP` times as
        many frames as are wanted: ``(1 - weight) * rank + weight * distance to the nearest chosen
        one``. The pool below is never compared, so the cost is bounded.

        Args:
            vectors: ``[n, d]`` by row of the pool, see `Lanes.rows`.
            wanted: How many frames the budget will pay for, more or less.
        """
        top = ranked[~self._never[ranked]][
            : max(wanted, min(_DIVERSITY_FACTOR * wanted, _MAX_COMPARISONS // wanted))
        ]
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

    def _free(self, ranked: RowNumbers, blocked: NDArray[np.bool_]) -> Iterator[int]:
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


def drive_cap(share: float, wanted: int, drives: int) -> int:
    """Frames of one drive: its share, at least two, and an equal share where drives are few."""
    return max(2, math.ceil(share * wanted), math.ceil(wanted / max(1, drives)))


def keyframes(lanes: DriveTimelines, ranked: RowNumbers) -> RowNumbers:
    """Those of ``ranked`` that are the best of their event, in the same order."""
    _, first = np.unique(lanes.event[ranked], return_index=True)
    best: RowNumbers = ranked[np.sort(first)]
    return best


# ---- Select: which frames to spend a budget on, and why, in words a labeler can read.
#
# Drawn first, from the whole usable pool, before anything is ranked: the control arm, that the
# ranked frames are compared with, or the random share, that keeps prevalence honest. Of the rest the
# best are taken: one keyframe an event, apart in time, a cap a drive, quotas by condition, and among
# the very best those that are unlike each other.


_EVENT_SHARE = 0.1
"""Of the pool, the best part in which neighbouring frames count as one event."""

CONTROL_REASON = "drawn at random before anything was ranked, to compare the ranked frames with"


@dataclass(frozen=True)
class Allocation:
    """How a budget was spent. ``cost`` is in the budget's unit; ``notes`` say what fell short."""

    chosen: tuple[SelectedFrame, ...]
    cost: float
    notes: tuple[str, ...]

    def of(self, arm: Arm) -> tuple[SelectedFrame, ...]:
        return tuple(choice for choice in self.chosen if choice.arm == arm)


def select_frames(
    candidates: Sequence[Candidate],
    budget: int,
    seed: int,
    rules: SelectionRules | None = None,
) -> tuple[SelectedFrame, ...]:
    """`allot` for candidates given one by one and a budget in frames; returns the choices."""
    return allocate(Candidates.of(candidates), Budget(frames=budget), seed, rules).chosen


def allocate(
    candidates: Candidates, budget: Budget, seed: int, rules: SelectionRules | None = None
) -> Allocation:
    """Choose frames under a budget; the same candidates in any order give the same choice.

    With a control arm, the budget is spent twice: on ranked frames and on as many drawn ones.
    When cap, events and gap leave the budget unspent, the cap is lifted first, then several frames
    of an event are taken, then the gap is halved and halved again, then dropped. A budget above
    the pool chooses all of it.

    Returns:
        Mined frames first, rarest first, then the drawn ones; ranks count from 1.

    Raises:
        ParameterError: The budget is nothing, a quota names no condition of the pool, or quotas
            ask for more than there is to spend.
        DataError: There is nothing to choose from.
    """
    rules = rules or SelectionRules()
    fit = candidates.usable()
    costs = budget.costs(candidates.boxes[fit])
    amount = min(budget.amount, float(costs.sum()) / (2 if rules.control else 1))
    drawn = _draw_random(costs, amount, seed, rules)
    lanes = DriveTimelines(candidates, fit, rules)
    left = amount if rules.control else amount - float(costs[drawn].sum())
    mined = _pick_mined(candidates, lanes, fit, costs, drawn, left, rules)
    chosen = _mined_choices(candidates, lanes, mined)
    chosen += _random_choices(candidates, fit[drawn], len(drawn) / len(fit), rules)
    choices = tuple(one.model_copy(update={"rank": n}) for n, one in enumerate(chosen, start=1))
    spent = float(costs[drawn].sum() + costs[np.argsort(lanes.place)][mined].sum())
    return Allocation(
        choices, spent, _shortfall_notes(candidates, choices, len(fit), budget, rules)
    )


def _draw_random(
    costs: NDArray[np.float64], amount: float, seed: int, rules: SelectionRules
) -> NDArray[np.int64]:
    """Numbers of the drawn among the usable rows, in order; scores have no say."""
    most = amount if rules.control else amount * rules.random_share + 0.5 * float(costs.min())
    order = np.random.default_rng([seed, 0x5E1EC7]).permutation(len(costs))
    count = int(np.searchsorted(np.cumsum(costs[order]), most + 1e-9, side="right"))
    return np.sort(order[:count])


def _pick_mined(
    candidates: Candidates,
    lanes: DriveTimelines,
    fit: RowNumbers,
    costs: NDArray[np.float64],
    drawn: RowNumbers,
    amount: float,
    rules: SelectionRules,
) -> list[int]:
    """Places of the mined frames, best first; see `allot` for what gives way when."""
    by_place = np.empty(len(fit))
    by_place[lanes.place] = costs
    spread = SpacedPicker(lanes, by_place, amount, lanes.place[drawn])
    order = np.argsort(-candidates.score[fit], kind="stable")
    order = order[~np.isin(order, drawn)]
    if not len(order) or spread.spent_out:
        return []
    wanted = min(len(order), max(1, round(amount / float(costs.mean()))))
    ranked = lanes.place[order]
    high = np.zeros(len(fit), bool)
    high[ranked[: max(4 * wanted, round(_EVENT_SHARE * len(fit)))]] = True
    lanes.mark_events(high, candidates.vectors)
    best = keyframes(lanes, ranked)
    cap = drive_cap(rules.drive_share, wanted, lanes.drives)
    _fill_quotas(candidates, lanes, spread, best, ranked, cap, wanted)
    if candidates.vectors is not None:
        spread.take_diverse(best, candidates.vectors, cap, rules.diversity, wanted)
    free = len(fit)
    for places, limit, part in (
        (best, cap, 1.0),
        (best, free, 1.0),
        (ranked, free, 1.0),
        (ranked, free, 0.5),
        (ranked, free, 0.25),
        (ranked, free, 0.0),
    ):
        if spread.spent_out:
            break
        spread.take(places, limit, part)
    return sorted(spread.chosen, key=lambda p: _rank_key(candidates, int(lanes.rows[p])))


def _fill_quotas(
    candidates: Candidates,
    lanes: DriveTimelines,
    spread: SpacedPicker,
    best: RowNumbers,
    ranked: RowNumbers,
    cap: int,
    wanted: int,
) -> None:
    """First of all the frames that quotas ask for, loosened in the same order."""
    quotas = lanes.rules.quotas
    if sum(quotas.values()) > wanted:
        raise ParameterError(
            f"the quotas ask for {sum(quotas.values())} frames, and the budget pays for {wanted}",
            where=", ".join(f"{name}={count}" for name, count in quotas.items()),
            hint="Ask for fewer, or give a larger budget",
        )
    known = sorted(set(candidates.conditions))
    for name, count in sorted(quotas.items()):
        meant = {condition for condition in known if condition_matches(name, condition)}
        if not meant:
            raise ParameterError(
                f"no frame of the pool is {name!r}",
                where=f"quota {name}={count}",
                hint=f"Its conditions are: {'; '.join(known)}",
            )
        inside = np.array([candidates.conditions[row] in meant for row in lanes.rows.tolist()])
        open_still = count - sum(bool(inside[place]) for place in spread.chosen)
        for places, limit in ((best, cap), (best, len(ranked)), (ranked, len(ranked))):
            if open_still > 0:
                open_still -= spread.take(places[inside[places]], limit, 1.0, open_still)


def condition_matches(name: str, condition: str) -> bool:
    """Whether ``condition``, such as ``night, rain``, is what ``name`` means, or has it as part."""
    return name in (condition, *condition.split(", "))


def _rank_key(candidates: Candidates, row: int) -> tuple[float, str]:
    return (-float(candidates.score[row]), candidates.frames[row])


def _mined_choices(
    candidates: Candidates, lanes: DriveTimelines, mined: Sequence[int]
) -> list[SelectedFrame]:
    by_drive: dict[int, list[int]] = {}
    for place in mined:
        by_drive.setdefault(int(lanes.drive[place]), []).append(place)
    found = []
    for place in mined:
        row = int(lanes.rows[place])
        others = [one for one in by_drive[int(lanes.drive[place])] if one != place]
        score = float(candidates.score[row])
        percent = max(1, math.ceil(100 * (1 - score)))
        group = (candidates.groups or candidates.conditions)[row]
        lead = candidates.lead.format(percent=percent, condition=group)
        found.append(
            SelectedFrame(
                frame=candidates.frames[row],
                rank=1,
                score=round(score, 6),
                reasons=(lead, *candidates.why(row), _spacing_reason(lanes, place, others)),
                signals=dict(candidates.signals(row)),
            )
        )
    return found


def _random_choices(
    candidates: Candidates, rows: RowNumbers, probability: float, rules: SelectionRules
) -> list[SelectedFrame]:
    return [
        SelectedFrame(
            frame=candidates.frames[row],
            rank=1,
            score=round(float(candidates.score[row]), 6),
            arm="control" if rules.control else "random",
            reasons=(CONTROL_REASON if rules.control else RANDOM_SAMPLE_REASON,),
            probability=round(probability, 9),
            signals=dict(candidates.signals(row)),
        )
        for row in rows.tolist()
    ]


def _spacing_reason(lanes: DriveTimelines, place: int, others: Sequence[int]) -> str:
    if not others:
        return "the only one chosen of its drive"
    distance, in_seconds = lanes.nearest(place, others)
    if in_seconds:
        return f"{distance:.1f} s from the next chosen one"
    return f"{distance:.0f} frames from the next chosen one of its drive"


def _shortfall_notes(
    candidates: Candidates,
    chosen: Sequence[SelectedFrame],
    usable: int,
    budget: Budget,
    rules: SelectionRules,
) -> tuple[str, ...]:
    """What did not go as asked for, in words."""
    notes = []
    asked = budget.frames or 0
    if len(chosen) == usable and (budget.frames is None or asked > usable):
        notes.append(f"the budget pays for more than the {usable} usable frames: all are chosen")
    elif rules.control and 2 * asked > usable:
        notes.append(
            f"two arms of {asked} frames need more than the {usable} usable ones:"
            f" each arm has {usable // 2}"
        )
    condition = dict(zip(candidates.frames, candidates.conditions, strict=True))
    mined = [condition[choice.frame] for choice in chosen if choice.arm == "mined"]
    for name, count in sorted(rules.quotas.items()):
        got = sum(condition_matches(name, each) for each in mined)
        if got < count:
            notes.append(f"the quota {name}={count} got {got} frames: the pool has no more")
    return tuple(notes)


__all__ = ["Allocation", "Candidate", "Candidates", "SelectionRules", "allocate", "select_frames"]
