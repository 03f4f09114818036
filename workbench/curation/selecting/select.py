"""Select: which frames to spend a budget on, and why, in words a labeler can read.

Drawn first, from the whole usable pool, before anything is ranked: the control arm, that the
ranked frames are compared with, or the random share, that keeps prevalence honest. Of the rest the
best are taken: one keyframe an event, apart in time, a cap a drive, quotas by condition, and among
the very best those that are unlike each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.curation.selecting.budget import Budget
from workbench.curation.selecting.candidates import Candidate, Candidates
from workbench.curation.selecting.lanes import Lanes, Rows
from workbench.curation.selecting.rules import SelectionRules
from workbench.curation.selecting.spread import Spread, cap_of, keyframes
from workbench.errors import ParameterError
from workbench.records.types import DRAWN, Arm, Choice

__all__ = ["Allotted", "Candidate", "Candidates", "SelectionRules", "allot", "select"]

_EVENT_SHARE = 0.1
"""Of the pool, the best part in which neighbouring frames count as one event."""

CONTROL = "drawn at random before anything was ranked, to compare the ranked frames with"


@dataclass(frozen=True)
class Allotted:
    """How a budget was spent. ``cost`` is in the budget's unit; ``notes`` say what fell short."""

    chosen: tuple[Choice, ...]
    cost: float
    notes: tuple[str, ...]

    def of(self, arm: Arm) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.chosen if choice.arm == arm)


def select(
    candidates: Sequence[Candidate],
    budget: int,
    seed: int,
    rules: SelectionRules | None = None,
) -> tuple[Choice, ...]:
    """`allot` for candidates given one by one and a budget in frames; returns the choices."""
    return allot(Candidates.of(candidates), Budget(frames=budget), seed, rules).chosen


def allot(
    candidates: Candidates, budget: Budget, seed: int, rules: SelectionRules | None = None
) -> Allotted:
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
    drawn = _draw(costs, amount, seed, rules)
    lanes = Lanes(candidates, fit, rules)
    left = amount if rules.control else amount - float(costs[drawn].sum())
    mined = _mine(candidates, lanes, fit, costs, drawn, left, rules)
    chosen = _ranked(candidates, lanes, mined)
    chosen += _drawn(candidates, fit[drawn], len(drawn) / len(fit), rules)
    choices = tuple(one.model_copy(update={"rank": n}) for n, one in enumerate(chosen, start=1))
    spent = float(costs[drawn].sum() + costs[np.argsort(lanes.place)][mined].sum())
    return Allotted(choices, spent, _notes(candidates, choices, len(fit), budget, rules))


def _draw(
    costs: NDArray[np.float64], amount: float, seed: int, rules: SelectionRules
) -> NDArray[np.int64]:
    """Numbers of the drawn among the usable rows, in order; scores have no say."""
    most = amount if rules.control else amount * rules.random_share + 0.5 * float(costs.min())
    order = np.random.default_rng([seed, 0x5E1EC7]).permutation(len(costs))
    count = int(np.searchsorted(np.cumsum(costs[order]), most + 1e-9, side="right"))
    return np.sort(order[:count])


def _mine(
    candidates: Candidates,
    lanes: Lanes,
    fit: Rows,
    costs: NDArray[np.float64],
    drawn: Rows,
    amount: float,
    rules: SelectionRules,
) -> list[int]:
    """Places of the mined frames, best first; see `allot` for what gives way when."""
    by_place = np.empty(len(fit))
    by_place[lanes.place] = costs
    spread = Spread(lanes, by_place, amount, lanes.place[drawn])
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
    cap = cap_of(rules.drive_share, wanted, lanes.drives)
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
    return sorted(spread.chosen, key=lambda p: _order(candidates, int(lanes.rows[p])))


def _fill_quotas(
    candidates: Candidates,
    lanes: Lanes,
    spread: Spread,
    best: Rows,
    ranked: Rows,
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
        meant = {condition for condition in known if is_part(name, condition)}
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


def is_part(name: str, condition: str) -> bool:
    """Whether ``condition``, such as ``night, rain``, is what ``name`` means, or has it as part."""
    return name in (condition, *condition.split(", "))


def _order(candidates: Candidates, row: int) -> tuple[float, str]:
    return (-float(candidates.score[row]), candidates.frames[row])


def _ranked(candidates: Candidates, lanes: Lanes, mined: Sequence[int]) -> list[Choice]:
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
            Choice(
                frame=candidates.frames[row],
                rank=1,
                score=round(score, 6),
                reasons=(lead, *candidates.why(row), _alone(lanes, place, others)),
                signals=dict(candidates.signals(row)),
            )
        )
    return found


def _drawn(
    candidates: Candidates, rows: Rows, probability: float, rules: SelectionRules
) -> list[Choice]:
    return [
        Choice(
            frame=candidates.frames[row],
            rank=1,
            score=round(float(candidates.score[row]), 6),
            arm="control" if rules.control else "random",
            reasons=(CONTROL if rules.control else DRAWN,),
            probability=round(probability, 9),
            signals=dict(candidates.signals(row)),
        )
        for row in rows.tolist()
    ]


def _alone(lanes: Lanes, place: int, others: Sequence[int]) -> str:
    if not others:
        return "the only one chosen of its drive"
    distance, in_seconds = lanes.nearest(place, others)
    if in_seconds:
        return f"{distance:.1f} s from the next chosen one"
    return f"{distance:.0f} frames from the next chosen one of its drive"


def _notes(
    candidates: Candidates,
    chosen: Sequence[Choice],
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
        got = sum(is_part(name, each) for each in mined)
        if got < count:
            notes.append(f"the quota {name}={count} got {got} frames: the pool has no more")
    return tuple(notes)
