"""Spend a budget on candidates: control arm, quotas, spacing in time, diversity.

Random frames are drawn first, from all usable frames and before anything is ranked: the control arm
that mined frames are compared with, or the random share that keeps prevalence measurable. From the
rest the best are mined: one keyframe per event, spaced in time, capped per drive, with quotas by
condition, and diverse among the very best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.curation.selection.candidates import Budget, Candidates, SelectionRules
from workbench.records.types import RANDOM_SAMPLE_REASON, Arm, SelectedFrame

__all__ = ()

_RowNumbers = NDArray[np.int64]
_EPSILON = 1e-9
"""Timestamps are sums of frame periods; a gap of 2.0 s must not fail by rounding."""

_CHUNK = 4096
_DIVERSITY_FACTOR = 4
"""Diversity considers this many times as many frames as the budget pays for."""

_MAX_COMPARISONS = 40_000_000
"""Comparisons that diversity may take: a few seconds with vectors of 512 numbers."""

_EVENT_SHARE = 0.1
"""Best share of the pool in which neighbouring frames count as one event."""

_CONTROL_REASON = "drawn at random before anything was ranked, to compare the ranked frames with"


@dataclass(frozen=True)
class Allocation:
    """How a budget was spent.

    Attributes:
        chosen: The choices of all arms.
        cost: In units of the budget.
        notes: What fell short, in words.
    """

    chosen: tuple[SelectedFrame, ...]
    cost: float
    notes: tuple[str, ...]

    def of(self, arm: Arm) -> tuple[SelectedFrame, ...]:
        """The choices of one arm."""
        return tuple(choice for choice in self.chosen if choice.arm == arm)


def allocate(
    candidates: Candidates, budget: Budget, seed: int, rules: SelectionRules | None = None
) -> Allocation:
    """Choose frames under a budget; the order of candidates has no influence.

    With a control arm the budget is spent twice: on mined frames and on as many random ones. When
    cap, events and gap leave budget unspent, the cap is lifted first, then several frames per event
    are allowed, then the gap is halved twice and dropped. A budget above the pool chooses all of
    it.

    Args:
        candidates: The frames to choose from.
        budget: Frames or minutes.
        seed: Of the random arm.
        rules: How to spend it.

    Returns:
        Mined frames first, best first, then random ones; ranks count from 1.

    Raises:
        ParameterError: The budget is not positive, a quota matches no condition of the pool, or
            quotas exceed the budget.
        DataError: No frame is usable.
    """
    rules = rules or SelectionRules()
    usable = candidates.usable_rows()
    costs = budget.costs(candidates.boxes[usable])
    amount = min(budget.amount, float(costs.sum()) / (2 if rules.control else 1))
    random_rows = _draw_random(costs, amount, seed, rules)
    timelines = _DriveTimelines(candidates, usable, rules)
    mined_budget = amount if rules.control else amount - float(costs[random_rows].sum())
    mined = _pick_mined(candidates, timelines, usable, costs, random_rows, mined_budget, rules)
    chosen = _mined_choices(candidates, timelines, mined)
    chosen += _random_choices(
        candidates, usable[random_rows], len(random_rows) / len(usable), rules
    )
    choices = tuple(one.model_copy(update={"rank": n}) for n, one in enumerate(chosen, start=1))
    spent = float(costs[random_rows].sum() + costs[np.argsort(timelines.position)][mined].sum())
    return Allocation(
        choices, spent, _shortfall_notes(candidates, choices, len(usable), budget, rules)
    )


def _draw_random(
    costs: NDArray[np.float64], amount: float, seed: int, rules: SelectionRules
) -> NDArray[np.int64]:
    """Numbers of the random frames among the usable rows, in order; independent of scores."""
    most = amount if rules.control else amount * rules.random_share + 0.5 * float(costs.min())
    order = np.random.default_rng([seed, 0x5E1EC7]).permutation(len(costs))
    count = int(np.searchsorted(np.cumsum(costs[order]), most + 1e-9, side="right"))
    return np.sort(order[:count])


def _pick_mined(
    candidates: Candidates,
    timelines: _DriveTimelines,
    usable: _RowNumbers,
    costs: NDArray[np.float64],
    random_rows: _RowNumbers,
    amount: float,
    rules: SelectionRules,
) -> list[int]:
    """Positions of the mined frames, best first; see `allocate` for what is relaxed when."""
    costs_by_position = np.empty(len(usable))
    costs_by_position[timelines.position] = costs
    picker = _SpacedPicker(timelines, costs_by_position, amount, timelines.position[random_rows])
    order = np.argsort(-candidates.score[usable], kind="stable")
    order = order[~np.isin(order, random_rows)]
    if not len(order) or picker.exhausted:
        return []
    wanted = min(len(order), max(1, round(amount / float(costs.mean()))))
    ranked = timelines.position[order]
    high = np.zeros(len(usable), bool)
    high[ranked[: max(4 * wanted, round(_EVENT_SHARE * len(usable)))]] = True
    timelines.mark_events(high, candidates.vectors)
    best = _keyframes(timelines, ranked)
    cap = _drive_cap(rules.drive_share, wanted, timelines.drives)
    _fill_quotas(candidates, timelines, picker, best, ranked, cap, wanted)
    if candidates.vectors is not None:
        picker.take_diverse(best, candidates.vectors, cap, rules.diversity, wanted)
    free = len(usable)
    for positions, limit, gap_share in (
        (best, cap, 1.0),
        (best, free, 1.0),
        (ranked, free, 1.0),
        (ranked, free, 0.5),
        (ranked, free, 0.25),
        (ranked, free, 0.0),
    ):
        if picker.exhausted:
            break
        picker.take(positions, limit, gap_share)
    return sorted(picker.chosen, key=lambda p: _rank_key(candidates, int(timelines.rows[p])))


def _fill_quotas(
    candidates: Candidates,
    timelines: _DriveTimelines,
    picker: _SpacedPicker,
    best: _RowNumbers,
    ranked: _RowNumbers,
    cap: int,
    wanted: int,
) -> None:
    """Choose the frames that quotas ask for first, relaxed in the same order."""
    quotas = timelines.rules.quotas
    if sum(quotas.values()) > wanted:
        raise ParameterError(
            f"quotas ask for {sum(quotas.values())} frames, but the budget pays for {wanted}",
            where=", ".join(f"{name}={count}" for name, count in quotas.items()),
            hint="Reduce the quotas or increase the budget",
        )
    conditions = sorted(set(candidates.conditions))
    for name, count in sorted(quotas.items()):
        matching = {condition for condition in conditions if _condition_matches(name, condition)}
        if not matching:
            raise ParameterError(
                f"no frame of the pool has condition {name!r}",
                where=f"quota {name}={count}",
                hint=f"Conditions: {'; '.join(conditions)}",
            )
        inside = np.array(
            [candidates.conditions[row] in matching for row in timelines.rows.tolist()]
        )
        missing = count - sum(bool(inside[position]) for position in picker.chosen)
        for positions, limit in ((best, cap), (best, len(ranked)), (ranked, len(ranked))):
            if missing > 0:
                missing -= picker.take(positions[inside[positions]], limit, 1.0, missing)


def _condition_matches(name: str, condition: str) -> bool:
    """Whether ``name`` is the condition, such as ``night, rain``, or one part of it."""
    return name in (condition, *condition.split(", "))


def _mined_choices(
    candidates: Candidates, timelines: _DriveTimelines, mined: Sequence[int]
) -> list[SelectedFrame]:
    by_drive: dict[int, list[int]] = {}
    for position in mined:
        by_drive.setdefault(int(timelines.drive[position]), []).append(position)
    choices = []
    for position in mined:
        row = int(timelines.rows[position])
        others = [one for one in by_drive[int(timelines.drive[position])] if one != position]
        score = float(candidates.score[row])
        percent = max(1, math.ceil(100 * (1 - score)))
        group = (candidates.groups or candidates.conditions)[row]
        lead = candidates.lead.format(percent=percent, condition=group)
        choices.append(
            SelectedFrame(
                frame=candidates.frames[row],
                rank=1,
                score=round(score, 6),
                reasons=(
                    lead,
                    *candidates.reasons(row),
                    _spacing_reason(timelines, position, others),
                ),
                signals=dict(candidates.signals(row)),
                box=candidates.box(row),
            )
        )
    return choices


def _random_choices(
    candidates: Candidates, rows: _RowNumbers, probability: float, rules: SelectionRules
) -> list[SelectedFrame]:
    return [
        SelectedFrame(
            frame=candidates.frames[row],
            rank=1,
            score=round(float(candidates.score[row]), 6),
            arm="control" if rules.control else "random",
            reasons=(_CONTROL_REASON if rules.control else RANDOM_SAMPLE_REASON,),
            probability=round(probability, 9),
            signals=dict(candidates.signals(row)),
        )
        for row in rows.tolist()
    ]


def _spacing_reason(timelines: _DriveTimelines, position: int, others: Sequence[int]) -> str:
    if not others:
        return "the only chosen frame of its drive"
    distance, in_seconds = timelines.nearest_distance(position, others)
    if in_seconds:
        return f"{distance:.1f} s from the nearest chosen frame"
    return f"{distance:.0f} frames from the nearest chosen frame of its drive"


def _rank_key(candidates: Candidates, row: int) -> tuple[float, str]:
    return (-float(candidates.score[row]), candidates.frames[row])


def _shortfall_notes(
    candidates: Candidates,
    chosen: Sequence[SelectedFrame],
    usable: int,
    budget: Budget,
    rules: SelectionRules,
) -> tuple[str, ...]:
    """Where the result falls short of the request, in words."""
    notes = []
    requested = budget.frames or 0
    if len(chosen) == usable and (budget.frames is None or requested > usable):
        notes.append(f"the budget pays for more than the {usable} usable frames; all were chosen")
    elif rules.control and 2 * requested > usable:
        notes.append(
            f"two arms of {requested} frames need more than the {usable} usable ones;"
            f" each arm has {usable // 2}"
        )
    condition = dict(zip(candidates.frames, candidates.conditions, strict=True))
    mined = [condition[choice.frame] for choice in chosen if choice.arm == "mined"]
    for name, count in sorted(rules.quotas.items()):
        got = sum(_condition_matches(name, each) for each in mined)
        if got < count:
            notes.append(
                f"quota {name}={count}: only {counted(got, 'frame')}, the pool has no more"
            )
    return tuple(notes)


class _SpacedPicker:
    """Frames chosen so far, and which may still be chosen.

    Each choice blocks the frames too near to it, so the time grows linearly with the budget and
    hardly with the pool.

    Args:
        timelines: The usable frames.
        cost: Cost of each position.
        budget: Amount to spend.
        taken: Positions of another arm, never chosen here.
    """

    def __init__(
        self,
        timelines: _DriveTimelines,
        cost: NDArray[np.float64],
        budget: float,
        taken: _RowNumbers,
    ) -> None:
        self.timelines = timelines
        self.cost = cost
        self.remaining = budget + 1e-9
        self.chosen: list[int] = []
        self._excluded = np.zeros(len(cost), bool)
        self._excluded[taken] = True
        self._count = np.zeros(timelines.drives, np.int64)
        self._cheapest = float(cost.min())

    @property
    def exhausted(self) -> bool:
        """Whether not even the cheapest frame can be paid for."""
        return self.remaining < self._cheapest

    def take(
        self, ranked: _RowNumbers, cap: int, gap_share: float, limit: int | None = None
    ) -> int:
        """Choose positions in order until the budget or ``limit`` is reached; returns how many.

        Args:
            ranked: Positions, best first.
            cap: Frames of one drive, including those chosen before.
            gap_share: Share of the gap to keep.
            limit: Largest number to choose.
        """
        blocked = self._blocked(cap, gap_share)
        before = len(self.chosen)
        for position in self._free(ranked, blocked):
            if self.exhausted or (limit is not None and len(self.chosen) - before >= limit):
                break
            self._pick(position, blocked, cap, gap_share)
        return len(self.chosen) - before

    def take_diverse(
        self,
        ranked: _RowNumbers,
        vectors: NDArray[np.floating],
        cap: int,
        weight: float,
        wanted: int,
    ) -> None:
        """Choose by rank and by distance to the frames chosen so far.

        Maximal marginal relevance (Carbonell and Goldstein 1998) over the best `_DIVERSITY_FACTOR`
        times as many frames as wanted: ``(1 - weight) * rank + weight * distance``, where the
        distance is to the nearest chosen one.

        Args:
            ranked: Positions, best first.
            vectors: ``[n, d]`` by row of the pool.
            cap: Frames of one drive.
            weight: Weight of the distance in [0, 1].
            wanted: Number of frames the budget pays for, approximately.
        """
        top = ranked[~self._excluded[ranked]][
            : max(wanted, min(_DIVERSITY_FACTOR * wanted, _MAX_COMPARISONS // wanted))
        ]
        if len(top) <= wanted or not weight:
            return
        unit = np.asarray(vectors[self.timelines.rows[top]], np.float32)
        unit -= unit.mean(axis=0)
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
        rank_value = (1 - weight) * np.linspace(1, 0, len(top))
        distance = np.ones(len(top), np.float32)
        index = np.full(len(self.cost), -1, np.int64)
        index[top] = np.arange(len(top))
        for row in index[self.chosen]:
            if row >= 0:
                distance = np.minimum(distance, 1 - unit @ unit[row])
        blocked = self._blocked(cap, 1.0)
        while not self.exhausted:
            value = np.where(blocked[top], -np.inf, rank_value + weight * distance)
            best = int(value.argmax())
            if value[best] == -np.inf:
                return
            self._pick(int(top[best]), blocked, cap, 1.0)
            distance = np.minimum(distance, 1 - unit @ unit[best])

    def _blocked(self, cap: int, gap_share: float) -> NDArray[np.bool_]:
        blocked = self._excluded.copy()
        blocked |= self._count[self.timelines.drive] >= cap
        for position in self.chosen:
            blocked[self.timelines.within_gap(position, gap_share)] = True
        return blocked

    def _free(self, ranked: _RowNumbers, blocked: NDArray[np.bool_]) -> Iterator[int]:
        """Those of ``ranked`` that are not blocked when their turn comes."""
        for start in range(0, len(ranked), _CHUNK):
            chunk = ranked[start : start + _CHUNK]
            for position in chunk[~blocked[chunk]].tolist():
                if not blocked[position]:
                    yield position

    def _pick(self, position: int, blocked: NDArray[np.bool_], cap: int, gap_share: float) -> None:
        if self.cost[position] > self.remaining:
            blocked[position] = True  # unaffordable; a cheaper frame may still fit
            return
        self.remaining -= float(self.cost[position])
        self.chosen.append(position)
        self._excluded[position] = True
        drive = int(self.timelines.drive[position])
        self._count[drive] += 1
        blocked[self.timelines.within_gap(position, gap_share)] = True
        if self._count[drive] >= cap:
            blocked[self.timelines.positions_of_drive(position)] = True


def _drive_cap(share: float, wanted: int, drives: int) -> int:
    """Frames of one drive: its share, at least two, and an equal share with few drives."""
    return max(2, math.ceil(share * wanted), math.ceil(wanted / max(1, drives)))


def _keyframes(timelines: _DriveTimelines, ranked: _RowNumbers) -> _RowNumbers:
    """Those of ``ranked`` that are the best of their event, in the same order."""
    _, first = np.unique(timelines.event[ranked], return_index=True)
    best: _RowNumbers = ranked[np.sort(first)]
    return best


class _DriveTimelines:
    """The usable rows of a pool, drive after drive in order of time.

    Attributes:
        rows: Int64 ``[n]``: the row at each position.
        position: Int64 ``[n]``: position of each given row.
        drive: Int64 ``[n]``: number of the drive at each position.
        event: Int64 ``[n]``: number of the event at each position, set by `mark_events`.
    """

    def __init__(self, candidates: Candidates, rows: _RowNumbers, rules: SelectionRules) -> None:
        self.rules = rules
        numbers = _drive_numbers([candidates.drives[row] for row in rows.tolist()])
        times, index = candidates.time_s[rows], candidates.index[rows].astype(float)
        untimed = np.zeros(int(numbers.max()) + 1, bool)
        untimed[numbers[~np.isfinite(times)]] = True
        self._timed = ~untimed
        axis = np.where(self._timed[numbers], times, index)
        order = np.lexsort((axis, numbers))
        self.rows = rows[order]
        self.drive, self._axis = numbers[order], axis[order]
        self._start = np.searchsorted(self.drive, np.arange(len(untimed)), side="left")
        self._end = np.searchsorted(self.drive, np.arange(len(untimed)), side="right")
        self.drives = len(untimed)
        self.position = np.empty(len(rows), np.int64)
        self.position[order] = np.arange(len(rows))
        self.event = np.arange(len(rows))

    def distance_limit(
        self, drives: _RowNumbers, seconds: float, frames: float
    ) -> NDArray[np.float64]:
        """Limit for each of these drives: in seconds, or frames without timestamps."""
        distance: NDArray[np.float64] = np.where(self._timed[drives], seconds, frames)
        return distance

    def within_gap(self, position: int, gap_share: float) -> slice:
        """Positions of the same drive within ``gap_share`` of the gap, its own included."""
        drive = int(self.drive[position])
        timed = bool(self._timed[drive])
        gap = gap_share * (self.rules.gap_s if timed else self.rules.gap_frames) - _EPSILON
        axis = self._axis[self._start[drive] : self._end[drive]]
        at = self._axis[position]
        low = int(np.searchsorted(axis, at - gap, side="left")) + int(self._start[drive])
        high = int(np.searchsorted(axis, at + gap, side="right")) + int(self._start[drive])
        return slice(min(low, position), max(high, position + 1))

    def positions_of_drive(self, position: int) -> slice:
        """All positions of the drive at ``position``."""
        drive = int(self.drive[position])
        return slice(int(self._start[drive]), int(self._end[drive]))

    def nearest_distance(self, position: int, others: Sequence[int]) -> tuple[float, bool]:
        """Distance to the nearest of ``others`` in the drive, and whether it is in seconds."""
        at = self._axis[position]
        distance = min(abs(float(self._axis[other] - at)) for other in others)
        return distance, bool(self._timed[int(self.drive[position])])

    def mark_events(self, high: NDArray[np.bool_], vectors: NDArray[np.floating] | None) -> None:
        """Number the events: runs of neighbouring high-scoring frames.

        Neighbours are of one drive, closer than the gap, and similar where there are vectors.
        Events longer than ``event_s`` are split. Every other frame is an event of its own.

        Args:
            high: Bool ``[n]`` by position: the frames that can form events.
            vectors: ``[n, d]`` by row of the pool; only high frames are read.
        """
        positions = np.flatnonzero(high)
        if len(positions) < 2:
            return
        axis, drive = self._axis[positions], self.drive[positions]
        rules = self.rules
        gap = self.distance_limit(drive[1:], rules.gap_s, rules.gap_frames)
        new_event = np.ones(len(positions), bool)
        new_event[1:] = (drive[1:] != drive[:-1]) | (np.diff(axis) > gap + _EPSILON)
        if vectors is not None:
            similarity = _neighbour_similarity(vectors, self.rows[positions])
            new_event[1:] |= similarity < rules.event_likeness
        first = np.maximum.accumulate(np.where(new_event, np.arange(len(positions)), 0))
        longest_event = self.distance_limit(drive, rules.event_s, rules.event_frames)
        part = np.floor((axis - axis[first]) / longest_event)
        starts = new_event.copy()
        starts[1:] |= part[1:] != part[:-1]
        event_start = np.maximum.accumulate(np.where(starts, np.arange(len(positions)), 0))
        self.event[positions] = positions[event_start]


def _drive_numbers(names: Sequence[str]) -> _RowNumbers:
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(n, len(numbers)) for n in names), np.int64, len(names))


def _neighbour_similarity(vectors: NDArray[np.floating], rows: _RowNumbers) -> NDArray[np.float64]:
    """Cosine of each row's centred vector with the next one's, in bounded memory."""
    block = 8192
    sums = sum(
        np.asarray(vectors[rows[s : s + block]], np.float32).sum(axis=0, dtype=np.float64)
        for s in range(0, len(rows), block)
    )
    centre = np.asarray(sums / len(rows), np.float32)
    similarity = np.empty(len(rows) - 1)
    for start in range(0, len(rows) - 1, block):
        part = np.asarray(vectors[rows[start : start + block + 1]], np.float32) - centre
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
        similarity[start : start + len(part) - 1] = np.einsum("ij,ij->i", part[:-1], part[1:])
    return similarity
