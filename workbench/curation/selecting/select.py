"""Select: which frames to spend a budget on, and why, in words a labeler can read.

Frames of one drive are near-duplicates, so choices keep a distance in time and a drive has a cap.
A random share, drawn from the whole pool before anything is ranked, keeps prevalence honest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from workbench.errors import DataError, ParameterError
from workbench.records.base import Row
from workbench.records.types import Choice


class SelectionRules(Row):
    """How a budget is spent.

    Args:
        random_share: Of the budget, drawn at random.
        drive_share: Of the mined part, at most from one drive; at least two frames, and an
            equal share where drives are few.
        gap_s: Seconds between mined frames of one drive.
        gap_frames: The same, for drives without time.
    """

    random_share: float = Field(default=0.15, ge=0, le=1)
    drive_share: float = Field(default=0.08, gt=0, le=1)
    gap_s: float = Field(default=2.0, ge=0)
    gap_frames: int = Field(default=5, ge=0)


@dataclass(frozen=True)
class Candidate:
    """A frame that may be chosen: ``score`` is its rarity in [0, 1], ``why`` the words for it.

    ``fault`` is the quality gate's verdict; with one, the frame is never chosen.
    """

    frame: str
    drive: str
    index: int
    time_s: float | None
    condition: str
    score: float
    why: tuple[str, ...] = ()
    fault: str = ""


def select(
    candidates: Sequence[Candidate],
    budget: int,
    seed: int,
    rules: SelectionRules | None = None,
) -> tuple[Choice, ...]:
    """Choose frames under a budget; the same candidates in any order give the same choice.

    When cap and gap leave the budget unspent, the cap is lifted, then the gap halved and halved
    again, then dropped. A budget above the pool chooses all of it.

    Returns:
        Mined frames first, rarest first, then the random ones; ranks count from 1.

    Raises:
        ParameterError: The budget is not positive.
        DataError: There is nothing to choose from.
    """
    rules = rules or SelectionRules()
    if budget < 1:
        raise ParameterError("a budget must be at least one frame", where=f"budget={budget}")
    fit = sorted((one for one in candidates if not one.fault), key=lambda one: one.frame)
    if not fit:
        faults = sorted({one.fault for one in candidates})
        raise DataError(
            f"none of {len(candidates)} frames can be chosen",
            where=f"quality gate: {', '.join(faults)}" if faults else "the pool",
            hint="Ingest drives whose frames get the role pool, or widen the quality gate",
        )
    budget = min(budget, len(fit))
    drawn = _draw(fit, round(budget * rules.random_share), seed)
    taken = {one.frame for one in drawn}
    ranked = sorted((c for c in fit if c.frame not in taken), key=lambda c: (-c.score, c.frame))
    mined = _spread(ranked, budget - len(drawn), rules)
    chosen = [(one, "mined") for one in mined] + [(one, "random") for one in drawn]
    return tuple(
        Choice(
            frame=one.frame,
            rank=rank,
            score=round(one.score, 6),
            arm="mined" if arm == "mined" else "random",
            reasons=_reasons(one, arm, mined),
        )
        for rank, (one, arm) in enumerate(chosen, start=1)
    )


def _draw(fit: Sequence[Candidate], count: int, seed: int) -> list[Candidate]:
    rows = np.random.default_rng([seed, 0x5E1EC7]).choice(len(fit), size=count, replace=False)
    return [fit[row] for row in sorted(rows.tolist())]


def _spread(ranked: Sequence[Candidate], count: int, rules: SelectionRules) -> list[Candidate]:
    """The first ``count`` that keep their distance, loosening only as far as need be.

    First the cap goes, then the gap: two frames of one moment teach less than two of one drive.
    """
    drives = len({one.drive for one in ranked})
    cap = max(2, math.ceil(rules.drive_share * count), math.ceil(count / max(1, drives)))
    free = len(ranked)
    chosen: dict[str, Candidate] = {}
    for part, limit in ((1.0, cap), (1.0, free), (0.5, free), (0.25, free), (0.0, free)):
        per_drive: dict[str, list[Candidate]] = {}
        for one in chosen.values():
            per_drive.setdefault(one.drive, []).append(one)
        for one in ranked:
            if len(chosen) >= count:
                break
            others = per_drive.setdefault(one.drive, [])
            if one.frame in chosen or len(others) >= limit:
                continue
            if all(
                _apart(one, other, rules.gap_s * part, rules.gap_frames * part) for other in others
            ):
                chosen[one.frame] = one
                others.append(one)
    return sorted(chosen.values(), key=lambda one: (-one.score, one.frame))


def _apart(one: Candidate, other: Candidate, gap_s: float, gap_frames: float) -> bool:
    if one.time_s is None or other.time_s is None:
        return abs(one.index - other.index) >= gap_frames
    return abs(one.time_s - other.time_s) >= gap_s


def _reasons(one: Candidate, arm: str, mined: Iterable[Candidate]) -> tuple[str, ...]:
    if arm == "random":
        return ("drawn at random, so that the share of rare frames can be counted",)
    percent = max(1, math.ceil(100 * (1 - one.score)))
    rarest = f"rarest {percent} % among {one.condition} frames"
    return (rarest, *one.why, *_alone(one, mined))


def _alone(one: Candidate, mined: Iterable[Candidate]) -> tuple[str, ...]:
    others = [other for other in mined if other.drive == one.drive and other.frame != one.frame]
    if not others:
        return ("the only one chosen of its drive",)
    times = [other.time_s for other in others if other.time_s is not None]
    if one.time_s is None or not times:
        frames = min(abs(other.index - one.index) for other in others)
        return (f"{frames} frames from the next chosen one of its drive",)
    return (f"{min(abs(t - one.time_s) for t in times):.1f} s from the next chosen one",)
