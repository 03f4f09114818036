"""Leakage: frames of one moment, place or scene on both sides of a split.

What a model learned from must not come back in what it is judged by. Frames are on one of three
sides: learned from (``seed``, ``train``, and ``pool``, which may be next), tuned on (``val``) and
judged by (``safety``, ``blind``). Four checks, each a gate with its evidence:

    drive      no drive has frames on two sides, unless drives were cut into blocks of time
    time       frames of one drive, or of two drives that one vehicle recorded in one go, lie
               a gap apart
    place      frames that tell their position lie a distance apart
    embedding  no frame is as alike to one across a side as consecutive frames are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from workbench.curation.hygiene.alike import Likeness, Yardstick, measure
from workbench.curation.hygiene.pairs import pairs_within
from workbench.curation.hygiene.sides import EARTH_M, clock, on_sphere, side_of, sides_in_words
from workbench.records.base import Digest, Row
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame
from workbench.records.types import GateResult, Verdict

_NAMED = 3  # leaks that a gate names; all are in the inspection

Kind = Literal["drive", "time", "place", "embedding"]


class LeakageRules(Row):
    """How far apart sides have to be.

    Args:
        gap_s: Seconds between frames of one recording; the split's own gap is asked for where it
            states a smaller one.
        radius_m: Metres between frames that tell their position.
        share: Of consecutive pairs, how many are at least as alike as two frames may be.
    """

    gap_s: float = Field(default=10.0, ge=0)
    radius_m: float = Field(default=25.0, ge=0)
    share: float = Field(default=0.5, gt=0, lt=1)


class Leak(Row):
    """Two frames on different sides that are too near, by one measure.

    ``value`` is seconds, metres, or cosine distance (hash bits without a model); for ``drive`` it
    is the number of frames on the smaller side.
    """

    kind: Kind
    first: Digest
    second: Digest
    value: float
    why: str


@dataclass(frozen=True)
class Leakage:
    """Four gates and the pairs they rest on, worst first in each kind, one a frame."""

    gates: tuple[GateResult, ...]
    leaks: tuple[Leak, ...]
    yardstick: Yardstick

    @property
    def verdict(self) -> Verdict:
        """FAIL when a required gate fails; INSUFFICIENT when likeness could not be judged."""
        asked = [gate.verdict for gate in self.gates if gate.required]
        for verdict in (Verdict.FAIL, Verdict.INSUFFICIENT):
            if verdict in asked:
                return verdict
        return Verdict.PASS


def check(dataset: Dataset, like: Likeness, rules: LeakageRules | None = None) -> Leakage:
    """Judge a split.

    Args:
        like: Fingerprints, and vectors where a model is at hand, of frames of ``dataset``.

    Returns:
        Without a split, as in a pool that nothing was held out of, evidence is insufficient.
    """
    rules = rules or LeakageRules()
    sided = [frame for frame in dataset.frames if side_of(frame)]
    sides = {side_of(frame) for frame in sided}
    yardstick = measure(like, rules.share)
    if len(sides) < 2:
        roles = ", ".join(sorted({str(frame.role) for frame in sided})) or "none"
        why = f"there is no split to judge, the only role is {roles}: ingest with roles"
        kinds: tuple[Kind, ...] = get_args(Kind)
        gates = tuple(_insufficient(kind, "frames", "two sides", why) for kind in kinds)
        return Leakage(gates, (), yardstick)
    judged = [
        _by_drive(dataset, sided),
        _by_time(dataset, sided, rules),
        _by_place(sided, rules),
        _by_likeness(like, yardstick),
    ]
    gates = tuple(gate for gate, _ in judged)
    leaks = tuple(leak for _, found in judged for leak in found)
    return Leakage(gates, leaks, yardstick)


def _by_drive(dataset: Dataset, frames: Sequence[Frame]) -> tuple[GateResult, list[Leak]]:
    sides: dict[str, dict[str, list[Frame]]] = {}
    for frame in frames:
        sides.setdefault(frame.drive, {}).setdefault(side_of(frame), []).append(frame)
    leaks = []
    for drive, found in sorted(sides.items()):
        if len(found) > 1:
            small, large = sorted(found.values(), key=len)[:2]
            told = f"drive {drive} has frames on sides {' and '.join(sorted(found))}"
            leaks.append(_leak("drive", small[0], large[0], len(small), told))
    cut = dataset.split.get("method") == "time blocks"
    why = "drives were cut into blocks of time on purpose: time decides" if cut and leaks else ""
    gate = _gate("drive", len(sides), "drives", leaks, "no drive on two sides", why, not cut)
    return gate, leaks


def _by_time(
    dataset: Dataset, frames: Sequence[Frame], rules: LeakageRules
) -> tuple[GateResult, list[Leak]]:
    """Each frame against the nearest in time on another side of its recording."""
    gap = min(rules.gap_s, float(dataset.split.get("gap_s", rules.gap_s)))
    recordings: dict[str, list[tuple[float, Frame]]] = {}
    for frame in frames:
        at = clock(frame, dataset.drive_by_id.get(frame.drive))
        if at is not None:
            recordings.setdefault(at[0], []).append((at[1], frame))
    leaks = []
    for timed in recordings.values():
        timed.sort(key=lambda pair: (pair[0], pair[1].id))
        if len({side_of(frame) for _, frame in timed}) > 1:
            leaks += _too_soon(timed, gap)
    method = f"frames of one recording on two sides lie {gap:g} s apart"
    clockless = len(frames) - sum(map(len, recordings.values()))
    why = f"{clockless} frames tell no time" if clockless else ""
    if not recordings:
        return _insufficient("time", "frames", method, why, required=False), []
    count = sum(map(len, recordings.values()))
    return _gate("time", count, "frames", leaks, method, why), _worst_first(leaks)


def _too_soon(timed: Sequence[tuple[float, Frame]], gap: float) -> list[Leak]:
    found = []
    for number, (at, frame) in enumerate(timed):
        later = next(
            (pair for pair in timed[number + 1 :] if side_of(pair[1]) != side_of(frame)), None
        )
        if later is not None and later[0] - at < gap:
            apart = later[0] - at
            why = f"{apart:.1f} s apart in one recording, {sides_in_words(frame, later[1])}"
            found.append(_leak("time", frame, later[1], apart, why))
    return found


def _by_place(frames: Sequence[Frame], rules: LeakageRules) -> tuple[GateResult, list[Leak]]:
    method = f"positions on two sides lie {rules.radius_m:g} m apart"
    placed = [frame for frame in frames if frame.position is not None]
    sides = {side_of(frame) for frame in placed}
    missing = len(frames) - len(placed)
    why = f"{missing} of {len(frames)} frames tell no position" if missing else ""
    if len(sides) < 2:
        return _insufficient("place", "frames", method, why, required=False), []
    leaks = _too_close(placed, rules.radius_m)
    return _gate("place", len(placed), "frames", leaks, method, why), _worst_first(leaks)


def _too_close(placed: Sequence[Frame], radius: float) -> list[Leak]:
    """Each frame's nearest on another side, on a sphere: chords of unit vectors in a k-d tree."""
    from scipy.spatial import cKDTree

    points = on_sphere(placed)
    sides = np.array([side_of(frame) for frame in placed])
    found: dict[tuple[str, str], Leak] = {}
    for side in np.unique(sides):
        mine, others = np.flatnonzero(sides == side), np.flatnonzero(sides != side)
        chords, nearest = cKDTree(points[others]).query(points[mine])
        metres = 2 * EARTH_M * np.arcsin(np.clip(chords / 2, 0, 1))
        for row, near, apart in zip(mine.tolist(), nearest.tolist(), metres.tolist(), strict=True):
            if apart < radius:
                one, other = placed[row], placed[int(others[near])]
                one, other = sorted((one, other), key=lambda frame: frame.id)
                why = f"{apart:.0f} m apart, {sides_in_words(one, other)}"
                found[one.id, other.id] = _leak("place", one, other, apart, why)
    return list(found.values())


def _by_likeness(like: Likeness, yardstick: Yardstick) -> tuple[GateResult, list[Leak]]:
    method = f"no frame as alike to one on another side as {yardstick.told}"
    judged = sum(side_of(frame) != "" for frame in like.frames)
    if not yardstick.measured:
        why = f"{yardstick.told}: ingest drives with more frames"
        return _insufficient("embedding", "frames", method, why), []
    why = "" if like.directions is not None else "by hash alone: no model was given"
    leaks = _worst_first(_too_alike(like, yardstick))
    return _gate("embedding", judged, "frames", leaks, method, why), leaks


def _too_alike(like: Likeness, yardstick: Yardstick) -> list[Leak]:
    """The closest partner on another side of each frame that has one; one leak a frame.

    A frame that met its own hash looks no further, so that a pool of one picture is no square.
    """
    sides = np.array([side_of(frame) for frame in like.frames])
    best: dict[int, tuple[float, int, int]] = {}
    for side, others in (("judged", ("learned", "tuned")), ("tuned", ("learned",))):
        mine = np.flatnonzero(sides == side)
        theirs = np.flatnonzero(np.isin(sides, others))
        settled = np.zeros(len(mine), bool)
        found = pairs_within(
            like.rows(mine.tolist()), yardstick, like.rows(theirs.tolist()), settled
        )
        for block in found:
            settled[block.first[block.bits == 0]] = True  # nothing is nearer than the same hash
            apart = block.distance if block.distance is not None else block.bits
            for row in _nearest_each(block.first, apart):
                one = int(mine[block.first[row]])
                pair = (float(apart[row]), int(theirs[block.second[row]]), int(block.bits[row]))
                best[one] = min(best.get(one, pair), pair)
    leaks = []
    for row, (value, other, bits) in sorted(best.items()):
        frame, twin = like.frames[row], like.frames[other]
        far = "" if like.directions is None else f"cosine distance {value:.4f} and "
        why = f"{far}{bits} hash bits apart, {sides_in_words(frame, twin)}"
        leaks.append(_leak("embedding", frame, twin, value, why))
    return leaks


def _nearest_each(rows: NDArray[np.int64], apart: NDArray[np.generic]) -> list[int]:
    """Where each row's smallest value stands."""
    order = np.lexsort((apart, rows))
    _, first = np.unique(rows[order], return_index=True)
    return [int(where) for where in order[first]]


def _worst_first(leaks: Sequence[Leak]) -> list[Leak]:
    return sorted(leaks, key=lambda leak: (leak.value, leak.first, leak.second))


def _leak(kind: Kind, first: Frame, second: Frame, value: float, why: str) -> Leak:
    return Leak(kind=kind, first=first.id, second=second.id, value=round(value, 6), why=why)


def _gate(
    kind: Kind,
    n: int,
    unit: str,
    leaks: Sequence[Leak],
    method: str,
    why: str = "",
    required: bool = True,
) -> GateResult:
    named = [f"{leak.first[:12]} and {leak.second[:12]}: {leak.why}" for leak in leaks[:_NAMED]]
    return GateResult(
        name=f"leakage-{kind}",
        verdict=Verdict.FAIL if leaks else Verdict.PASS,
        n=n,
        unit=unit,
        value=float(len(leaks)),
        bound=0.0,
        method=method,
        required=required,
        why="; ".join(part for part in (why, *named) if part),
    )


def _insufficient(
    kind: Kind, unit: str, method: str, why: str, *, required: bool = True
) -> GateResult:
    return GateResult(
        name=f"leakage-{kind}",
        verdict=Verdict.INSUFFICIENT,
        n=0,
        unit=unit,
        value=None,
        bound=0.0,
        method=method,
        required=required,
        why=why,
    )
