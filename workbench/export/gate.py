"""The parity gate: how much an INT8 file may lose against the float network.

Each loss is float minus INT8 with a paired interval from resampling drives, so that what makes a
drive easy or hard cancels out. The *upper* bound must stay below its limit. The metrics come from
the caller's evaluation; this module only knows what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field

from workbench.core.errors import ContractError
from workbench.core.types import Json
from workbench.detection.bundles import FP32_FILE
from workbench.records.base import FrozenModel, Verdict

__all__ = ["require_gates"]

_ALL = "all"
_DIGITS = 5


class LossLimits(FrozenModel):
    """What a file may lose against the float network.

    Attributes:
        ap: AP of all frames, as a share: 0.005 is half a point.
        f1: F1 of all frames at the deployed threshold, as a share.
        ap_slice: AP of every slice and class of ``slice_boxes`` boxes or more.
        slice_boxes: Boxes from which a slice decides.
        score_shift: 95th percentile of the absolute score shifts of matched boxes.
        float_maps: Raw outputs of the float file against torch.
        head_db: Lowest SQNR of any raw output in dB.
    """

    ap: float = Field(default=0.005, ge=0)
    f1: float = Field(default=0.01, ge=0)
    ap_slice: float = Field(default=0.02, ge=0)
    slice_boxes: int = Field(default=200, ge=1)
    score_shift: float = Field(default=0.1, ge=0)
    float_maps: float = Field(default=1e-4, ge=0)
    head_db: float = Field(default=30.0)


class _EvaluatedSlice(Protocol):
    """A slice and class of an evaluation, with its number of true boxes."""

    @property
    def slice(self) -> str: ...
    @property
    def cls(self) -> str: ...
    @property
    def boxes(self) -> int: ...


class _LossInterval(Protocol):
    """A loss with its two-sided interval; None where there is nothing to measure."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


class _MetricDifference(Protocol):
    """A paired difference; ``usable`` tells whether there were enough drives to decide."""

    @property
    def estimate(self) -> _LossInterval: ...
    @property
    def usable(self) -> bool: ...
    @property
    def method(self) -> str: ...


_MetricName = Literal["ap", "ap50", "ar", "precision", "recall", "f1"]
PairedDifference = Callable[[Any, Any, _MetricName, str, str], _MetricDifference]
"""Float evaluation, INT8 evaluation, metric, slice and class to float minus INT8."""


class _LimitResult(FrozenModel):
    """One limit and what was measured; ``required`` ones decide."""

    name: str
    verdict: Verdict
    value: float | None
    low: float | None = None
    high: float | None = None
    limit: float
    boxes: int = 0
    required: bool = True
    method: str = ""


class ParityGate(FrozenModel):
    """The verdict on one file: FAIL if a required limit is proven broken, PASS if all hold."""

    file: str
    verdict: Verdict
    limits: LossLimits
    rows: tuple[_LimitResult, ...]

    def table(self) -> list[Json]:
        """A row for each limit, for a data frame or a plot."""
        keys = ("name", "verdict", "value", "low", "high", "limit", "boxes", "required")
        return [{key: getattr(row, key) for key in keys} for row in self.rows]


def judge_files(
    evaluations: Mapping[str, Any],
    difference: PairedDifference,
    report: Json,
    limits: LossLimits | None = None,
) -> tuple[ParityGate, ...]:
    """Hold every INT8 file to the limits.

    Args:
        evaluations: By file name, the float file's among them, on the same frames.
        difference: Paired difference of two evaluations.
        report: Of `parity.compare_models` on these frames.
        limits: What may be lost.
    """
    reference = evaluations[FP32_FILE]

    def judge(name: str, evaluation: Any) -> ParityGate:
        return judge_file(
            name,
            reference.metrics.rows,
            lambda metric, part, cls: difference(reference, evaluation, metric, part, cls),
            report["targets"][name],
            limits=limits,
        )

    return tuple(judge(name, one) for name, one in evaluations.items() if name != FP32_FILE)


def judge_file(
    file: str,
    slices: Iterable[_EvaluatedSlice],
    loss: Callable[[_MetricName, str, str], _MetricDifference],
    parity: Json,
    *,
    limits: LossLimits | None = None,
) -> ParityGate:
    """Hold one INT8 file to the limits.

    Args:
        file: Its name.
        slices: Every slice and class that was evaluated.
        loss: Metric, slice and class to what the file lost there.
        parity: The file's part of the parity report.
        limits: What may be lost.
    """
    limits = limits or LossLimits()
    rows = []
    for part in slices:
        if part.slice == part.cls == _ALL:
            rows.append(_loss_result("ap", part, loss, limits.ap, required=True))
            rows.append(_loss_result("f1", part, loss, limits.f1, required=True))
        elif _ALL in (part.slice, part.cls) and part.boxes:
            required = part.boxes >= limits.slice_boxes
            rows.append(_loss_result("ap", part, loss, limits.ap_slice, required=required))
    shift, least_db = parity["score_shift_p95"], parity["sqnr_db"]
    if shift is not None:
        holds = shift <= limits.score_shift
        rows.append(
            _measured_result("score shift, 95th percentile", shift, limits.score_shift, holds)
        )
    holds = least_db >= limits.head_db
    rows.append(_measured_result("least SQNR of a raw output, dB", least_db, limits.head_db, holds))
    return ParityGate(file=file, verdict=_overall_verdict(rows), limits=limits, rows=tuple(rows))


def require_gates(gates: Iterable[ParityGate]) -> None:
    """Refuse a file that is proven to lose more than it may.

    Too few drives or boxes to decide is no failure here: the gates before a release ask for more.

    Raises:
        ContractError: A required limit is broken.
    """
    for gate in gates:
        broken = [row for row in gate.rows if row.required and row.verdict is Verdict.FAIL]
        if broken:
            row = broken[0]
            raise ContractError(
                f"{gate.file} loses too much: {row.name} {row.value:.4g}, {row.limit:g} allowed",
                where=f"{len(broken)} of {len(gate.rows)} limits",
                hint="Its most sensitive layers are in float already: try quantization-aware "
                "training (qat_steps)",
            )


def _loss_result(
    metric: _MetricName,
    part: _EvaluatedSlice,
    loss: Callable[[_MetricName, str, str], _MetricDifference],
    limit: float,
    *,
    required: bool,
) -> _LimitResult:
    difference = loss(metric, part.slice, part.cls)
    interval = difference.estimate
    where = part.cls if part.slice == _ALL else part.slice
    return _LimitResult(
        name=f"{metric} lost, {'all frames' if part.slice == part.cls == _ALL else where}",
        verdict=_loss_verdict(interval, limit, usable=difference.usable),
        value=_rounded(interval.value),
        low=_rounded(interval.low),
        high=_rounded(interval.high),
        limit=limit,
        boxes=part.boxes,
        required=required,
        method=difference.method,
    )


def _loss_verdict(interval: _LossInterval, limit: float, *, usable: bool) -> Verdict:
    if interval.value is None or interval.low is None or interval.high is None:
        return Verdict.INSUFFICIENT
    if interval.low > limit:
        return Verdict.FAIL
    return Verdict.PASS if usable and interval.high <= limit else Verdict.INSUFFICIENT


def _measured_result(name: str, value: float, limit: float, holds: bool) -> _LimitResult:
    verdict = Verdict.PASS if holds else Verdict.FAIL
    return _LimitResult(
        name=name, verdict=verdict, value=_rounded(value), limit=limit, method="measured"
    )


def _overall_verdict(rows: Sequence[_LimitResult]) -> Verdict:
    verdicts = {row.verdict for row in rows if row.required}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if Verdict.INSUFFICIENT in verdicts or not verdicts:
        return Verdict.INSUFFICIENT
    return Verdict.PASS


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
