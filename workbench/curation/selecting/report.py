"""Report: what the mined arm of a selection found, against the arm that chance chose.

The stage's pure core: it is given what came back from labelers and, where two models were trained,
how they differ; whoever composes the stages reads those from labeling and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.curation.selecting import chance
from workbench.curation.selecting.budget import Pace
from workbench.curation.selecting.chance import Yield
from workbench.curation.selecting.rare import Rare
from workbench.data import resampling
from workbench.errors import ParameterError
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import Arm, ArmOutcome, Beaten, MiningReport, Selection, Verdict

FRAMES = "frames.jsonl"
_ARMS: tuple[Arm, Arm] = ("mined", "control")


@dataclass(frozen=True)
class Answered:
    """What came back of a selection.

    Attributes:
        dataset: A version in which the answered frames have their labels.
        frames: Those that somebody answered, with the minutes that it took people; None where
            nobody's time was measured, as with replayed labels.
        refs: The records it was read from.
        simulated: Whether labels were replayed or rendered instead of drawn by people.
        blind: Whether the batches told labelers nothing of the arms.
    """

    dataset: Dataset
    frames: Mapping[str, float | None]
    refs: tuple[Ref, ...]
    simulated: bool
    blind: bool = True


@dataclass(frozen=True)
class Retrained:
    """Two models that differ only in the arm they were trained with, and how they compare."""

    models: Mapping[str, Ref]
    compared: tuple[Beaten, ...]


@dataclass(frozen=True)
class _Row:
    frame: Frame
    arm: Arm
    rare: int
    minutes: float | None
    boxes: int


def report(
    store: Store,
    selection_ref: Ref,
    answered: Answered,
    rare: Sequence[Rare],
    *,
    pace: Pace | None = None,
    retrained: Retrained | None = None,
) -> Ref:
    """Keep by how much the mined arm beat chance.

    Args:
        rare: A frame is rare where one of them holds.
        pace: Turns frames into time where none was measured; said so in the record.

    Raises:
        ParameterError: The selection has no control arm, nothing of it is labelled yet, or nothing
            is called rare.
    """
    selection = store.get(selection_ref, Selection)
    if not rare:
        raise ParameterError("nothing is called rare", hint="Say what is rare with --rare")
    rows = _rows(selection, selection_ref, answered, rare)
    minutes, per, time_from = _time(rows, pace)
    units = resampling.units([row.frame for row in rows])
    beaten = [
        chance.beaten(
            f"rare {what} {per}",
            _yield(rows, "mined", values, minutes, units),
            _yield(rows, "control", values, minutes, units),
            units,
        )
        for what, values in _counts(rows).items()
    ]
    drawn = np.array([row.arm == "control" for row in rows], float)
    found = drawn * np.array([row.rare > 0 for row in rows])
    control = [row for row in rows if row.arm == "control"]
    record = MiningReport(
        selection=selection_ref,
        labels=answered.refs,
        rare=tuple(one.written for one in rare),
        arms=tuple(_outcome(rows, arm, selection, per, minutes) for arm in _ARMS),
        per=per,
        time_from=time_from,
        prevalence=round(sum(row.rare > 0 for row in control) / len(control), 6),
        prevalence_interval=chance.share(_sums(found, units), _sums(drawn, units), units),
        beaten=(*beaten, *(retrained.compared if retrained else ())),
        models=dict(retrained.models) if retrained else {},
        resamples=chance.RESAMPLES,
        confidence=chance.CONFIDENCE,
        simulated=answered.simulated,
        headline=_headline(beaten[0], answered),
        blind=answered.blind,
    )
    return store.put(record, {FRAMES: _lines(rows)})


def _rows(selection: Selection, ref: Ref, answered: Answered, rare: Sequence[Rare]) -> list[_Row]:
    if not selection.has_control:
        raise ParameterError(
            "this selection has no control arm, so nothing can be said of chance",
            where=ref,
            hint="Mine with --control; the share drawn at random is too small to compare with",
        )
    frames = {frame.id: frame for frame in answered.dataset.frames}
    labels = answered.dataset.labels_by_frame
    rows = []
    for choice in selection.chosen:
        if choice.arm not in _ARMS or choice.frame not in answered.frames:
            continue
        frame = frames[choice.frame]
        drawn = labels[choice.frame]
        objects = max(one.objects(frame, drawn) for one in rare)
        minutes = answered.frames[choice.frame]
        rows.append(_Row(frame, choice.arm, objects, minutes, len(drawn)))
    lacking = [arm for arm in _ARMS if not any(row.arm == arm for row in rows)]
    if lacking:
        raise ParameterError(
            f"nothing of the {' and the '.join(lacking)} arm is labelled yet",
            where=ref,
            hint="Send it with `workbench label send`, collect it, then come back",
        )
    return rows


def _time(rows: Sequence[_Row], pace: Pace | None) -> tuple[NDArray[np.float64], str, str]:
    """What each frame took, in the unit that yields are counted per, and where it comes from."""
    measured = [row.minutes for row in rows if row.minutes is not None]
    if len(measured) == len(rows) and sum(measured) > 0:
        hours = np.array(measured) / 60
        return hours, "per labeler hour", "measured by the label server"
    if pace is not None:
        hours = pace.seconds(np.array([row.boxes for row in rows])) / 3600
        return hours, "per labeler hour", f"not measured; counted at {pace}"
    missing = len(rows) - len(measured)
    why = f"not known for {missing} of {len(rows)} frames, so frames are counted"
    return np.full(len(rows), 0.01), "per 100 frames", why


def _counts(rows: Sequence[_Row]) -> dict[str, NDArray[np.float64]]:
    rare = np.array([row.rare for row in rows], float)
    return {"frames": (rare > 0).astype(float), "events": _firsts(rows), "objects": rare}


def _firsts(rows: Sequence[_Row]) -> NDArray[np.float64]:
    """1 for the first rare frame of each event of each arm: rare frames within 10 s are one."""
    blocks = resampling.time_blocks([row.frame for row in rows])
    seen: set[tuple[Arm, str, int]] = set()
    first = np.zeros(len(rows))
    for number, (row, block) in enumerate(zip(rows, blocks, strict=True)):
        event = (row.arm, row.frame.drive, block)
        if row.rare and event not in seen:
            seen.add(event)
            first[number] = 1
    return first


def _yield(
    rows: Sequence[_Row],
    arm: Arm,
    found: NDArray[np.float64],
    taken: NDArray[np.float64],
    units: resampling.Units,
) -> Yield:
    mine = np.array([row.arm == arm for row in rows], float)
    return Yield(_sums(found * mine, units), _sums(taken * mine, units))


def _sums(values: NDArray[np.float64], units: resampling.Units) -> NDArray[np.float64]:
    return np.bincount(units.of, weights=values, minlength=units.count).astype(np.float64)


def _outcome(
    rows: Sequence[_Row],
    arm: Arm,
    selection: Selection,
    per: str,
    taken: NDArray[np.float64],
) -> ArmOutcome:
    mine = np.array([row.arm == arm for row in rows])
    counts = {name: int(values[mine].sum()) for name, values in _counts(rows).items()}
    asked = sum(choice.arm == arm for choice in selection.chosen)
    return ArmOutcome(
        arm=arm,
        frames=int(mine.sum()),
        unlabelled=asked - int(mine.sum()),
        rare_frames=counts["frames"],
        rare_objects=counts["objects"],
        rare_events=counts["events"],
        hours=round(float(taken[mine].sum()), 6) if per == "per labeler hour" else None,
    )


def words(one: Beaten) -> str:
    """A figure in a line, never without its interval or the reason why there is none."""
    if one.value is None:
        return f"{one.figure}: {one.verdict}: {one.why}"
    low = "?" if one.low is None else f"{one.low:.3g}"
    high = "no upper end" if one.high is None else f"{one.high:.3g}"
    told = f"[{low}, {high}], 95 %, paired bootstrap over {one.unit}"
    values = f"mined {_number(one.mined)}, control {_number(one.control)}"
    how = f"{one.value:.3g} times" if one.change == "ratio" else f"{one.value:+.4f}"
    why = f" ({one.why})" if one.why else ""
    return f"{one.figure}: {values}: {how} {told}: {one.verdict}{why}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _headline(first: Beaten, answered: Answered) -> str:
    said = {
        Verdict.PASS: "Mining beat chance",
        Verdict.FAIL: "Mining did worse than chance",
        Verdict.INSUFFICIENT: "Nothing is shown yet",
    }[first.verdict]
    marks = (
        (answered.simulated, "SIMULATED, labels are replayed or rendered, no person drew them. "),
        (not answered.blind, "NOT BLIND, labelers could tell the arms apart. "),
    )
    return f"{''.join(mark for holds, mark in marks if holds)}{said}. {words(first)}"


def _lines(rows: Sequence[_Row]) -> bytes:
    return b"".join(
        digest.canonical_json(
            {
                "frame": row.frame.id,
                "drive": row.frame.drive,
                "arm": row.arm,
                "rare_objects": row.rare,
                "boxes": row.boxes,
                "minutes": row.minutes,
            }
        )
        + b"\n"
        for row in sorted(rows, key=lambda one: one.frame.id)
    )
