"""Mining reports: what the mined arm found compared with the control arm.

Both arms come from the same drives, and some drives hold much and some nothing. The comparison
resamples drives, each with what both arms found in it and the time both took, which cancels that.
Labels and retrained models are inputs: whoever composes the stages reads them from labeling and
evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import counted, short_repr
from workbench.curation.selection.backtest import share_interval
from workbench.curation.selection.candidates import LabelingPace
from workbench.data import resampling
from workbench.data.slices import CONDITION_SYNTAX, parse_conditions
from workbench.records.base import Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, LabelSchema, Role, condition_values
from workbench.records.store import Store
from workbench.records.types import (
    Arm,
    ArmComparison,
    ArmOutcome,
    Backtest,
    MiningReport,
    PromiseCheck,
    Selection,
)

__all__ = [
    "LabelledSelection",
    "RetrainedModels",
    "describe_comparison",
    "parse_rare",
    "rare_classes",
    "report_mining",
]

_RARE_SHARE = 0.05
"""By default, a class is rare on fewer than this share of the frames labelled before."""

_Floats = NDArray[np.float64]
_RESAMPLES = 4000
_CONFIDENCE = 0.95
_MIN_UNITS_WITH_FINDS = 6
"""Fewer drives with finds cannot tell two arms apart at 95 %: under random exchange of the arms,
five drives all favour the same one in 2 of 32 cases, which is 6 %.
"""

_MIN_FINITE_SHARE = 0.5
"""Share of resamples in which a ratio must exist for its interval to be reported."""

_REPORT_FRAMES_FILE = "frames.jsonl"
_ARMS: tuple[Arm, Arm] = ("mined", "control")


@dataclass(frozen=True)
class RareCondition:
    """Terms that must all hold, such as ``class=pedestrian+light=night``.

    Attributes:
        text: As written.
        terms: Keys and values.
    """

    text: str
    terms: tuple[tuple[str, str], ...]

    def objects(self, frame: Frame, labels: Sequence[Label]) -> int:
        """Number of rare objects on a frame; one where the frame as such is rare."""
        conditions = [(key, value) for key, value in self.terms if key != "class"]
        if not all(value in condition_values(frame, key) for key, value in conditions):
            return 0
        classes = {value for key, value in self.terms if key == "class"}
        if not classes:
            return 1
        return sum(label.cls in classes and not label.ignore for label in labels)


@short_repr
@dataclass(frozen=True)
class LabelledSelection:
    """Labels of a selection.

    Attributes:
        dataset: A version in which the labelled frames have their labels.
        frames: Labelled frames, with minutes of labeling time; None where time was not measured, as
            with replayed labels.
        refs: The records it was read from.
        simulated: Whether labels were replayed or rendered instead of drawn by people.
        blind: Whether labelers could not see the arms.
    """

    dataset: Dataset
    frames: Mapping[str, float | None]
    refs: tuple[Ref, ...]
    simulated: bool
    blind: bool = True


@short_repr
@dataclass(frozen=True)
class RetrainedModels:
    """Two models that differ only in the arm they were trained with.

    Attributes:
        models: Checkpoint by arm.
        compared: Their differences.
    """

    models: Mapping[str, Ref]
    compared: tuple[ArmComparison, ...]


def report_mining(
    store: Store,
    selection_ref: Ref,
    labelled: LabelledSelection,
    rare: Sequence[RareCondition],
    *,
    pace: LabelingPace | None = None,
    retrained: RetrainedModels | None = None,
) -> Ref:
    """Compare the mined arm with the control arm, and keep the result as a MiningReport.

    Args:
        store: Holds the records.
        selection_ref: A selection with a control arm.
        labelled: Its labels.
        rare: A frame is rare when one of them holds.
        pace: Converts frames to time where none was measured; the record says so.
        retrained: Models trained on each arm, if any.

    Returns:
        The reference of the MiningReport.

    Raises:
        ParameterError: There is no control arm, an arm has no labels, or ``rare`` is empty.
    """
    selection = store.get(selection_ref, Selection)
    if not rare:
        raise ParameterError("no rare condition given", hint="Define what is rare with --rare")
    rows = _labelled_frames(selection, selection_ref, labelled, rare)
    costs, per, time_from = _labeling_time(rows, pace)
    units = resampling.resampling_units([row.frame for row in rows])
    comparisons = [
        compare_arms(
            f"rare {what} {per}",
            _arm_yield(rows, "mined", values, costs, units),
            _arm_yield(rows, "control", values, costs, units),
            units,
        )
        for what, values in _rare_counts(rows).items()
    ]
    is_control = np.array([row.arm == "control" for row in rows], float)
    finds = is_control * np.array([row.rare > 0 for row in rows])
    control = [row for row in rows if row.arm == "control"]
    record = MiningReport(
        selection=selection_ref,
        labels=labelled.refs,
        rare=tuple(one.text for one in rare),
        arms=tuple(_arm_outcome(rows, arm, selection, per, costs) for arm in _ARMS),
        per=per,
        time_from=time_from,
        prevalence=round(sum(row.rare > 0 for row in control) / len(control), 6),
        prevalence_interval=_share_interval(
            _sum_by_unit(finds, units), _sum_by_unit(is_control, units), units
        ),
        beaten=(*comparisons, *(retrained.compared if retrained else ())),
        models=dict(retrained.models) if retrained else {},
        resamples=_RESAMPLES,
        confidence=_CONFIDENCE,
        simulated=labelled.simulated,
        headline=_headline(comparisons[0], labelled),
        blind=labelled.blind,
        promises=_check_promises(selection.backtest, rows, labelled.dataset, rare),
    )
    return store.put(record, {_REPORT_FRAMES_FILE: _report_lines(rows)})


def _check_promises(
    promised: Backtest | None,
    rows: Sequence[_LabelledFrame],
    dataset: Dataset,
    rare: Sequence[RareCondition],
) -> tuple[PromiseCheck, ...]:
    """Yields that the backtest promised, beside what was found in the mined arm.

    Only of what the report calls rare, too; the union needs the same classes.
    """
    if promised is None:
        return ()
    mined = [row for row in rows if row.arm == "mined"]
    units = resampling.resampling_units([row.frame for row in mined])
    draws = resampling.draw_resamples(units.count, _RESAMPLES, 0)
    looked = _sum_by_unit(np.ones(len(mined)), units)
    labels = dataset.labels_by_frame
    by_text: dict[str, tuple[RareCondition, ...]] = {one.text: (one,) for one in rare}
    if {one.text for one in rare} == set(promised.any_of):
        by_text[Backtest.ANY] = tuple(rare)
    checks = []
    for one in promised.expected:
        if one.kind not in by_text:
            continue
        found = np.array(
            [
                any(part.objects(row.frame, labels[row.frame.id]) for part in by_text[one.kind])
                for row in mined
            ],
            float,
        )
        low, high = share_interval(_sum_by_unit(found, units), looked, draws)
        verdict: Literal["kept", "exceeded", "broken"] = "kept"
        if high < one.low:
            verdict = "broken"
        elif low > one.high:
            verdict = "exceeded"
        checks.append(
            PromiseCheck(
                kind=one.kind,
                promised=(one.rate, one.low, one.high),
                found=(round(float(found.mean()), 6), round(low, 6), round(high, 6)),
                verdict=verdict,
            )
        )
    return tuple(checks)


def describe_promise(one: PromiseCheck) -> str:
    """A promise and what came of it, in one line."""
    shares = (
        f"{name} {value:.1%} [{low:.1%}, {high:.1%}]"
        for name, (value, low, high) in (("promised", one.promised), ("found", one.found))
    )
    return f"{one.kind}: share of the mined frames, {', '.join(shares)}: {one.verdict}"


def describe_comparison(one: ArmComparison) -> str:
    """A comparison in one line, with its interval or the reason why there is none."""
    if one.value is None:
        return f"{one.figure}: {one.verdict}: {one.why}"
    low = "?" if one.low is None else f"{one.low:.3g}"
    high = "no upper bound" if one.high is None else f"{one.high:.3g}"
    interval = f"[{low}, {high}], 95 %, paired bootstrap over {one.unit}"
    values = f"mined {_format_number(one.mined)}, control {_format_number(one.control)}"
    effect = f"{one.value:.3g} times" if one.change == "ratio" else f"{one.value:+.4f}"
    reason = f" ({one.why})" if one.why else ""
    return f"{one.figure}: {values}: {effect} {interval}: {one.verdict}{reason}"


def parse_rare(text: str, schema: LabelSchema) -> RareCondition:
    """Parse ``KEY=VALUE`` terms joined by ``+``.

    Args:
        text: The condition.
        schema: Its classes are the known ones.

    Raises:
        ParameterError: A term is malformed, or its class, light or weather is unknown.
    """
    return RareCondition(text, parse_conditions(text, schema))


def rare_classes(dataset: Dataset) -> tuple[RareCondition, ...]:
    """Classes on fewer than 5 % of the frames that were labelled before mining.

    What is rare must not be derived from the labels that it is used to judge.

    Raises:
        ParameterError: No class is that rare.
    """
    known = dataset.role(Role.SEED, Role.TRAIN, Role.VAL, Role.SAFETY)
    frames_by_class: dict[str, set[str]] = {cls: set() for cls in dataset.label_schema.classes}
    for label in known.labels:
        if label.cls in frames_by_class and label.origin.is_ground_truth and not label.ignore:
            frames_by_class[label.cls].add(label.frame)
    rare = [
        cls
        for cls, frames in frames_by_class.items()
        if len(frames) < _RARE_SHARE * len(known.frames)
    ]
    if not rare:
        counts = ", ".join(f"{cls} {len(frames)}" for cls, frames in frames_by_class.items())
        raise ParameterError(
            f"no rare class: each is on at least {_RARE_SHARE:.0%} of the"
            f" {len(known.frames)} frames labelled before mining",
            where=f"frames by class: {counts}",
            hint=f"Define what is rare with --rare: {CONDITION_SYNTAX}",
        )
    return tuple(RareCondition(f"class={cls}", (("class", cls),)) for cls in rare)


@dataclass(frozen=True)
class ArmYield:
    """Result of one arm in each of ``u`` units.

    Attributes:
        finds: Float64 ``[u]``: what was found.
        cost: Float64 ``[u]``: frames or hours it took.
    """

    finds: _Floats
    cost: _Floats


def compare_arms(
    metric: str,
    mined: ArmYield,
    control: ArmYield,
    units: resampling.ResamplingUnits,
    *,
    seed: int = 0,
) -> ArmComparison:
    """Ratio of finds per cost, mined over control, with a paired bootstrap interval.

    Evidence is insufficient where an arm found nothing, where fewer than `_MIN_UNITS_WITH_FINDS`
    units have finds, or with fewer than ten drives, when the units are blocks of time that describe
    these drives only.

    Args:
        metric: Name of the metric.
        mined: The mined arm.
        control: The control arm.
        units: Units to resample.
        seed: Of the resampling.
    """
    weights = resampling.draw_resamples(units.count, _RESAMPLES, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [weights @ arm.finds / (weights @ arm.cost) for arm in (mined, control)]
        ratio = rates[0] / rates[1]
    without_finds = [
        arm for arm, part in (("mined", mined), ("control", control)) if not part.finds.sum() > 0
    ]
    low, high = _percentile_interval(ratio[1:], units.count)
    units_with_finds = int((mined.finds + control.finds > 0).sum())
    if without_finds:
        reason = f"the {' and the '.join(without_finds)} arm found nothing"
    elif not units.speaks_for_others:
        verb = "is" if units.drives == 1 else "are"
        reason = f"{counted(units.drives, 'drive')} {verb} too few to generalise"
    elif units_with_finds < _MIN_UNITS_WITH_FINDS:
        finds = counted(units_with_finds, "drive")
        reason = f"finds in {finds} only; at least {_MIN_UNITS_WITH_FINDS} are needed"
    else:
        reason = ""
    verdict = Verdict.INSUFFICIENT if reason else _interval_verdict(low, high, 1.0)
    if verdict is Verdict.INSUFFICIENT and not reason:
        reason = "the interval includes 1"
    return ArmComparison(
        figure=metric,
        change="ratio",
        mined=_finite_or_none(rates[0][0]),
        control=_finite_or_none(rates[1][0]),
        value=None if without_finds else _finite_or_none(ratio[0]),
        low=None if without_finds else low,
        high=None if without_finds else high,
        verdict=verdict,
        drives=units.drives,
        unit=units.name,
        why=reason,
    )


def _share_interval(
    finds: _Floats, frames: _Floats, units: resampling.ResamplingUnits
) -> tuple[float, float] | None:
    """Interval of the share of rare frames in the pool, from the control arm's frames."""
    weights = resampling.draw_resamples(units.count, _RESAMPLES, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _percentile_interval((weights @ finds / (weights @ frames))[1:], units.count)
    return None if low is None or high is None else (low, high)


def _percentile_interval(resampled: _Floats, units: int) -> tuple[float | None, float | None]:
    """Both ends of the expanded percentile interval; None for an end that does not exist.

    Args:
        resampled: Values; infinite where a resample's control arm found nothing, NaN where both
            did.
        units: Number of units that each resample drew.
    """
    finite = resampled[~np.isnan(resampled)]
    if units < 2 or len(finite) < _MIN_FINITE_SHARE * max(1, len(resampled)):
        return None, None
    tail = resampling.expanded_tail(units, _CONFIDENCE)
    # Round outwards: there is nothing to interpolate between a number and infinity.
    low = float(np.quantile(finite, tail, method="lower"))
    high = float(np.quantile(finite, 1 - tail, method="higher"))
    return _finite_or_none(low), _finite_or_none(high)


def _interval_verdict(low: float | None, high: float | None, even: float) -> Verdict:
    """PASS or FAIL when the whole interval is on one side of ``even``."""
    if low is not None and low > even:
        return Verdict.PASS
    if high is not None and high < even:
        return Verdict.FAIL
    return Verdict.INSUFFICIENT


def _finite_or_none(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


@dataclass(frozen=True)
class _LabelledFrame:
    frame: Frame
    arm: Arm
    rare: int
    minutes: float | None
    boxes: int


def _labelled_frames(
    selection: Selection, ref: Ref, labelled: LabelledSelection, rare: Sequence[RareCondition]
) -> list[_LabelledFrame]:
    if not selection.has_control:
        raise ParameterError(
            "the selection has no control arm to compare with",
            where=ref,
            hint="Mine with --control; the random share is too small to compare with",
        )
    frames = {frame.id: frame for frame in labelled.dataset.frames}
    labels = labelled.dataset.labels_by_frame
    rows = []
    for choice in selection.chosen:
        if choice.arm not in _ARMS or choice.frame not in labelled.frames:
            continue
        frame = frames[choice.frame]
        own_labels = labels[choice.frame]
        objects = max(one.objects(frame, own_labels) for one in rare)
        minutes = labelled.frames[choice.frame]
        rows.append(_LabelledFrame(frame, choice.arm, objects, minutes, len(own_labels)))
    missing_arms = [arm for arm in _ARMS if not any(row.arm == arm for row in rows)]
    if missing_arms:
        raise ParameterError(
            f"no frame of the {' and the '.join(missing_arms)} arm is labelled yet",
            where=ref,
            hint="Send it with `workbench label send` and collect the labels",
        )
    return rows


def _labeling_time(
    rows: Sequence[_LabelledFrame], pace: LabelingPace | None
) -> tuple[NDArray[np.float64], str, str]:
    """Cost of each frame, the unit that finds are counted per, and its source."""
    measured = [row.minutes for row in rows if row.minutes is not None]
    if len(measured) == len(rows) and sum(measured) > 0:
        hours = np.array(measured) / 60
        return hours, "per labeler hour", "measured by the label server"
    if pace is not None:
        hours = pace.seconds(np.array([row.boxes for row in rows])) / 3600
        return hours, "per labeler hour", f"not measured; estimated at {pace}"
    missing = len(rows) - len(measured)
    why = f"unknown for {missing} of {len(rows)} frames, so frames are counted"
    return np.full(len(rows), 0.01), "per 100 frames", why


def _rare_counts(rows: Sequence[_LabelledFrame]) -> dict[str, NDArray[np.float64]]:
    rare = np.array([row.rare for row in rows], float)
    return {"frames": (rare > 0).astype(float), "events": _first_of_events(rows), "objects": rare}


def _first_of_events(rows: Sequence[_LabelledFrame]) -> NDArray[np.float64]:
    """1 for the first rare frame of each event of each arm; rare frames within 10 s are one
    event."""
    blocks = resampling.time_blocks([row.frame for row in rows])
    seen: set[tuple[Arm, str, int]] = set()
    is_first = np.zeros(len(rows))
    for number, (row, block) in enumerate(zip(rows, blocks, strict=True)):
        event = (row.arm, row.frame.drive, block)
        if row.rare and event not in seen:
            seen.add(event)
            is_first[number] = 1
    return is_first


def _arm_yield(
    rows: Sequence[_LabelledFrame],
    arm: Arm,
    finds: NDArray[np.float64],
    cost: NDArray[np.float64],
    units: resampling.ResamplingUnits,
) -> ArmYield:
    in_arm = np.array([row.arm == arm for row in rows], float)
    return ArmYield(_sum_by_unit(finds * in_arm, units), _sum_by_unit(cost * in_arm, units))


def _sum_by_unit(
    values: NDArray[np.float64], units: resampling.ResamplingUnits
) -> NDArray[np.float64]:
    return np.bincount(units.of, weights=values, minlength=units.count).astype(np.float64)


def _arm_outcome(
    rows: Sequence[_LabelledFrame],
    arm: Arm,
    selection: Selection,
    per: str,
    cost: NDArray[np.float64],
) -> ArmOutcome:
    in_arm = np.array([row.arm == arm for row in rows])
    counts = {name: int(values[in_arm].sum()) for name, values in _rare_counts(rows).items()}
    selected = sum(choice.arm == arm for choice in selection.chosen)
    return ArmOutcome(
        arm=arm,
        frames=int(in_arm.sum()),
        unlabelled=selected - int(in_arm.sum()),
        rare_frames=counts["frames"],
        rare_objects=counts["objects"],
        rare_events=counts["events"],
        hours=round(float(cost[in_arm].sum()), 6) if per == "per labeler hour" else None,
    )


def _format_number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _headline(first: ArmComparison, labelled: LabelledSelection) -> str:
    summary = {
        Verdict.PASS: "Mining beat random selection",
        Verdict.FAIL: "Mining did worse than random selection",
        Verdict.INSUFFICIENT: "Insufficient evidence",
    }[first.verdict]
    warnings = (
        (labelled.simulated, "SIMULATED: labels were replayed or rendered, not drawn by people. "),
        (not labelled.blind, "NOT BLIND: labelers could tell the arms apart. "),
    )
    prefix = "".join(warning for applies, warning in warnings if applies)
    return f"{prefix}{summary}. {describe_comparison(first)}"


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
