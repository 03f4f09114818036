"""Mining reports: what the mined arm found compared with the control arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.curation.selection.candidates import LabelingPace
from workbench.data import resampling
from workbench.data.slices import CONDITION_SYNTAX, parse_conditions
from workbench.records.base import Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, LabelSchema, Role, condition_values
from workbench.records.store import Store
from workbench.records.types import Arm, ArmComparison, ArmOutcome, MiningReport, Selection

RARE_SHARE = 0.05
"""A class on fewer of the frames labelled before is rare where nothing else is said."""


@dataclass(frozen=True)
class RareCondition:
    """All of some conditions at once, such as ``class=pedestrian+light=night``."""

    written: str
    terms: tuple[tuple[str, str], ...]

    def objects(self, frame: Frame, labels: Sequence[Label]) -> int:
        """How many rare objects a frame holds; one where frames are rare as such."""
        conditions = [(key, value) for key, value in self.terms if key != "class"]
        if not all(value in condition_values(frame, key) for key, value in conditions):
            return 0
        classes = {value for key, value in self.terms if key == "class"}
        if not classes:
            return 1
        return sum(label.cls in classes and not label.ignore for label in labels)


def parse_rare(written: str, schema: LabelSchema) -> RareCondition:
    """Read ``KEY=VALUE``, several of them joined by ``+``.

    Raises:
        ParameterError: A class, light or weather that there is not, or no condition at all.
    """
    return RareCondition(written, parse_conditions(written, schema))


def rare_classes(dataset: Dataset) -> tuple[RareCondition, ...]:
    """Classes on fewer than 5 % of the frames that were labelled before anything was mined.

    What is rare must not be read from the labels that are to be judged by it.

    Raises:
        ParameterError: Nothing was labelled before, or every class is common.
    """
    known = dataset.role(Role.SEED, Role.TRAIN, Role.VAL, Role.SAFETY)
    holding: dict[str, set[str]] = {cls: set() for cls in dataset.label_schema.classes}
    for label in known.labels:
        if label.cls in holding and label.origin.is_ground_truth and not label.ignore:
            holding[label.cls].add(label.frame)
    few = [cls for cls, frames in holding.items() if len(frames) < RARE_SHARE * len(known.frames)]
    if not few:
        counts = ", ".join(f"{cls} {len(frames)}" for cls, frames in holding.items())
        raise ParameterError(
            f"no class is on fewer than {RARE_SHARE:.0%} of the {len(known.frames)} frames"
            " that were labelled before",
            where=f"frames by class: {counts}",
            hint=f"Say what is rare with --rare: {CONDITION_SYNTAX}",
        )
    return tuple(RareCondition(f"class={cls}", (("class", cls),)) for cls in few)


# ---- Chance: a mined arm against a control arm, paired by the drives that both came from.
#
# Both arms are drawn from the same drives, and some drives hold much and some nothing. Drawing the
# drives again, each with what both arms found in it and the time both took, cancels that.


_Floats = NDArray[np.float64]

RESAMPLES = 4000
CONFIDENCE = 0.95

MIN_UNITS_WITH_FINDS = 6
"""Drives with finds below which two arms cannot be told apart at 95 %: were arms exchanged drive by
drive, five drives would all favour the same one in 2 of 32 cases, which is 6 %."""

_MIN_FINITE_SHARE = 0.5
"""Share of resamples in which a figure must exist for its interval to be shown."""


@dataclass(frozen=True)
class ArmYield:
    """What each of ``u`` units gave one arm and took of it: float64 ``[u]`` each."""

    found: _Floats
    taken: _Floats


def compare_arms(
    figure: str,
    mined: ArmYield,
    control: ArmYield,
    drawn_again: resampling.ResamplingUnits,
    *,
    seed: int = 0,
) -> ArmComparison:
    """How many times as much the mined arm found per what it took, with a paired interval.

    An arm that found none decides nothing: the ratio is none, or has no upper end. Nor do finds in
    fewer than `ENOUGH_FINDS` units, for which a bootstrap promises too much, nor fewer than ten
    drives: the interval is then of their blocks of time, and describes just these drives.
    """
    weights = resampling.draw_resamples(drawn_again.count, RESAMPLES, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [weights @ arm.found / (weights @ arm.taken) for arm in (mined, control)]
        ratio = rates[0] / rates[1]
    none = [
        arm for arm, part in (("mined", mined), ("control", control)) if not part.found.sum() > 0
    ]
    low, high = percentile_interval(ratio[1:], drawn_again.count)
    with_finds = int((mined.found + control.found > 0).sum())
    if none:
        why = f"the {' and the '.join(none)} arm found none"
    elif not drawn_again.speaks_for_others:
        why = f"{drawn_again.drives} drives are too few to speak of others"
    elif with_finds < MIN_UNITS_WITH_FINDS:
        why = f"found in {with_finds} drives only; below {MIN_UNITS_WITH_FINDS} chance cannot be ruled out"
    else:
        why = ""
    verdict = Verdict.INSUFFICIENT if why else interval_verdict(low, high, 1.0)
    if verdict is Verdict.INSUFFICIENT and not why:
        why = "the interval holds 1: it may as well be chance"
    return ArmComparison(
        figure=figure,
        change="ratio",
        mined=_finite_or_none(rates[0][0]),
        control=_finite_or_none(rates[1][0]),
        value=None if none else _finite_or_none(ratio[0]),
        low=None if none else low,
        high=None if none else high,
        verdict=verdict,
        drives=drawn_again.drives,
        unit=drawn_again.name,
        why=why,
    )


def share_interval(
    found: _Floats, frames: _Floats, drawn_again: resampling.ResamplingUnits
) -> tuple[float, float] | None:
    """Interval of the share of rare frames in the pool, from frames drawn at random."""
    weights = resampling.draw_resamples(drawn_again.count, RESAMPLES, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = percentile_interval(
            (weights @ found / (weights @ frames))[1:], drawn_again.count
        )
    return None if low is None or high is None else (low, high)


def percentile_interval(resampled: _Floats, units: int) -> tuple[float | None, float | None]:
    """Both ends of the expanded percentile interval; None where there is no such end.

    Args:
        resampled: Values, infinite where a resample's control arm found none, NaN where both did.
        units: How many each resample drew.
    """
    there = resampled[~np.isnan(resampled)]
    if units < 2 or len(there) < _MIN_FINITE_SHARE * max(1, len(resampled)):
        return None, None
    tail = resampling.expanded_tail(units, CONFIDENCE)
    # To the next value outwards: between a number and infinity there is nothing to interpolate.
    low = float(np.quantile(there, tail, method="lower"))
    high = float(np.quantile(there, 1 - tail, method="higher"))
    return _finite_or_none(low), _finite_or_none(high)


def interval_verdict(low: float | None, high: float | None, even: float) -> Verdict:
    """PASS or FAIL where the whole interval lies on one side of ``even``."""
    if low is not None and low > even:
        return Verdict.PASS
    if high is not None and high < even:
        return Verdict.FAIL
    return Verdict.INSUFFICIENT


def _finite_or_none(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


# ---- Report: what the mined arm of a selection found, against the arm that chance chose.
#
# The stage's pure core: it is given what came back from labelers and, where two models were trained,
# how they differ; whoever composes the stages reads those from labeling and evaluation.


REPORT_FRAMES_FILE = "frames.jsonl"
_ARMS: tuple[Arm, Arm] = ("mined", "control")


@dataclass(frozen=True)
class LabelledSelection:
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
class RetrainedModels:
    """Two models that differ only in the arm they were trained with, and how they compare."""

    models: Mapping[str, Ref]
    compared: tuple[ArmComparison, ...]


@dataclass(frozen=True)
class _LabelledFrame:
    frame: Frame
    arm: Arm
    rare: int
    minutes: float | None
    boxes: int


def report_mining(
    store: Store,
    selection_ref: Ref,
    answered: LabelledSelection,
    rare: Sequence[RareCondition],
    *,
    pace: LabelingPace | None = None,
    retrained: RetrainedModels | None = None,
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
    rows = _labelled_frames(selection, selection_ref, answered, rare)
    minutes, per, time_from = _labeling_time(rows, pace)
    units = resampling.resampling_units([row.frame for row in rows])
    beaten = [
        compare_arms(
            f"rare {what} {per}",
            _arm_yield(rows, "mined", values, minutes, units),
            _arm_yield(rows, "control", values, minutes, units),
            units,
        )
        for what, values in _rare_counts(rows).items()
    ]
    drawn = np.array([row.arm == "control" for row in rows], float)
    found = drawn * np.array([row.rare > 0 for row in rows])
    control = [row for row in rows if row.arm == "control"]
    record = MiningReport(
        selection=selection_ref,
        labels=answered.refs,
        rare=tuple(one.written for one in rare),
        arms=tuple(_arm_outcome(rows, arm, selection, per, minutes) for arm in _ARMS),
        per=per,
        time_from=time_from,
        prevalence=round(sum(row.rare > 0 for row in control) / len(control), 6),
        prevalence_interval=share_interval(
            _sum_by_unit(found, units), _sum_by_unit(drawn, units), units
        ),
        beaten=(*beaten, *(retrained.compared if retrained else ())),
        models=dict(retrained.models) if retrained else {},
        resamples=RESAMPLES,
        confidence=CONFIDENCE,
        simulated=answered.simulated,
        headline=_headline(beaten[0], answered),
        blind=answered.blind,
    )
    return store.put(record, {REPORT_FRAMES_FILE: _report_lines(rows)})


def _labelled_frames(
    selection: Selection, ref: Ref, answered: LabelledSelection, rare: Sequence[RareCondition]
) -> list[_LabelledFrame]:
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
        rows.append(_LabelledFrame(frame, choice.arm, objects, minutes, len(drawn)))
    lacking = [arm for arm in _ARMS if not any(row.arm == arm for row in rows)]
    if lacking:
        raise ParameterError(
            f"nothing of the {' and the '.join(lacking)} arm is labelled yet",
            where=ref,
            hint="Send it with `workbench label send`, collect it, then come back",
        )
    return rows


def _labeling_time(
    rows: Sequence[_LabelledFrame], pace: LabelingPace | None
) -> tuple[NDArray[np.float64], str, str]:
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


def _rare_counts(rows: Sequence[_LabelledFrame]) -> dict[str, NDArray[np.float64]]:
    rare = np.array([row.rare for row in rows], float)
    return {"frames": (rare > 0).astype(float), "events": _first_of_events(rows), "objects": rare}


def _first_of_events(rows: Sequence[_LabelledFrame]) -> NDArray[np.float64]:
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


def _arm_yield(
    rows: Sequence[_LabelledFrame],
    arm: Arm,
    found: NDArray[np.float64],
    taken: NDArray[np.float64],
    units: resampling.ResamplingUnits,
) -> ArmYield:
    mine = np.array([row.arm == arm for row in rows], float)
    return ArmYield(_sum_by_unit(found * mine, units), _sum_by_unit(taken * mine, units))


def _sum_by_unit(
    values: NDArray[np.float64], units: resampling.ResamplingUnits
) -> NDArray[np.float64]:
    return np.bincount(units.of, weights=values, minlength=units.count).astype(np.float64)


def _arm_outcome(
    rows: Sequence[_LabelledFrame],
    arm: Arm,
    selection: Selection,
    per: str,
    taken: NDArray[np.float64],
) -> ArmOutcome:
    mine = np.array([row.arm == arm for row in rows])
    counts = {name: int(values[mine].sum()) for name, values in _rare_counts(rows).items()}
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


def describe_comparison(one: ArmComparison) -> str:
    """A figure in a line, never without its interval or the reason why there is none."""
    if one.value is None:
        return f"{one.figure}: {one.verdict}: {one.why}"
    low = "?" if one.low is None else f"{one.low:.3g}"
    high = "no upper end" if one.high is None else f"{one.high:.3g}"
    told = f"[{low}, {high}], 95 %, paired bootstrap over {one.unit}"
    values = f"mined {_format_number(one.mined)}, control {_format_number(one.control)}"
    how = f"{one.value:.3g} times" if one.change == "ratio" else f"{one.value:+.4f}"
    why = f" ({one.why})" if one.why else ""
    return f"{one.figure}: {values}: {how} {told}: {one.verdict}{why}"


def _format_number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _headline(first: ArmComparison, answered: LabelledSelection) -> str:
    said = {
        Verdict.PASS: "Mining beat chance",
        Verdict.FAIL: "Mining did worse than chance",
        Verdict.INSUFFICIENT: "Nothing is shown yet",
    }[first.verdict]
    marks = (
        (answered.simulated, "SIMULATED, labels are replayed or rendered, no person drew them. "),
        (not answered.blind, "NOT BLIND, labelers could tell the arms apart. "),
    )
    return f"{''.join(mark for holds, mark in marks if holds)}{said}. {describe_comparison(first)}"


def _report_lines(rows: Sequence[_LabelledFrame]) -> bytes:
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
