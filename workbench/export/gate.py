"""The parity gate: how much an INT8 file may lose against the float network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from pydantic import Field

from workbench.core.errors import ContractError
from workbench.records.base import FrozenModel, Verdict

Json = dict[str, Any]
MetricName = Literal["ap", "ap50", "ar", "precision", "recall", "f1"]
ALL = "all"
_DIGITS = 5


class LossLimits(FrozenModel):
    """What a file may lose against the float network. AP and F1 are shares: 0.005 is half a point.

    ``ap`` and ``f1`` of all frames (F1 at the deployed threshold), ``ap_slice`` of every slice and
    class of ``slice_boxes`` boxes or more; ``score_shift`` the 95th percentile of how far scores of
    matched boxes move; ``float_maps`` the raw maps of the float file against torch; ``head_db`` the
    noise of any raw output.
    """

    ap: float = Field(default=0.005, ge=0)
    f1: float = Field(default=0.01, ge=0)
    ap_slice: float = Field(default=0.02, ge=0)
    slice_boxes: int = Field(default=200, ge=1)
    score_shift: float = Field(default=0.1, ge=0)
    float_maps: float = Field(default=1e-4, ge=0)
    head_db: float = Field(default=30.0)


class EvaluatedSlice(Protocol):
    """What is evaluated: a slice and class, and how many true boxes it has."""

    @property
    def slice(self) -> str: ...
    @property
    def cls(self) -> str: ...
    @property
    def boxes(self) -> int: ...


class LossInterval(Protocol):
    """A loss with its two-sided interval, None where there is nothing to measure."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


class MetricDifference(Protocol):
    """As evaluation gives it; ``usable`` tells whether there were drives enough to decide."""

    @property
    def estimate(self) -> LossInterval: ...
    @property
    def usable(self) -> bool: ...
    @property
    def method(self) -> str: ...


CompareFunction = Callable[[MetricName, str, str], MetricDifference]
"""Metric, slice and class to float minus 8-bit."""


class LimitResult(FrozenModel):
    """One limit and what was found; ``required`` ones decide."""

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
    """The verdict on one file: FAIL if any required limit is proven broken, PASS if all hold."""

    file: str
    verdict: Verdict
    limits: LossLimits
    rows: tuple[LimitResult, ...]

    def table(self) -> list[Json]:
        """A row for each limit, for a data frame or a picture."""
        keys = ("name", "verdict", "value", "low", "high", "limit", "boxes", "required")
        return [{key: getattr(row, key) for key in keys} for row in self.rows]

    def as_json(self) -> Json:
        return self.model_dump(mode="json")


def judge_file(
    file: str,
    grounds: Iterable[EvaluatedSlice],
    compare: CompareFunction,
    report: Json,
    *,
    limits: LossLimits | None = None,
    head_db: float | None = None,
) -> ParityGate:
    """Hold one file to the limits.

    Args:
        file: Its name in ``report``.
        grounds: Every slice and class that was evaluated.
        compare: What the file lost there.
        report: Of `parity.compare` on the evaluation frames.
        head_db: Least SQNR of its raw outputs where that was measured.
    """
    allowed = limits or LossLimits()
    rows = []
    for ground in grounds:
        overall = ground.slice == ground.cls == ALL
        if overall:
            rows.append(_loss_result("ap", ground, compare, allowed.ap, required=True))
            rows.append(_loss_result("f1", ground, compare, allowed.f1, required=True))
        elif ALL in (ground.slice, ground.cls) and ground.boxes:
            counted = ground.boxes >= allowed.slice_boxes
            rows.append(_loss_result("ap", ground, compare, allowed.ap_slice, required=counted))
    found = report["targets"][file]
    shift = found["score_shift_p95"]
    if shift is not None:
        rows.append(_measured_result("score shift, 95th percentile", shift, allowed.score_shift))
    if head_db is not None:
        rows.append(
            _measured_result("least SQNR of a raw output, dB", head_db, allowed.head_db, least=True)
        )
    return ParityGate(file=file, verdict=_overall_verdict(rows), limits=allowed, rows=tuple(rows))


def require_gates(gates: Iterable[ParityGate]) -> None:
    """Raise `ContractError` where a file is proven to lose more than it may.

    Too few drives or boxes to tell is no failure here: the gates before a release ask for more.
    """
    for gate in gates:
        broken = [row for row in gate.rows if row.required and row.verdict is Verdict.FAIL]
        if broken:
            row = broken[0]
            raise ContractError(
                f"{gate.file} loses too much: {row.name} {row.value:.4g}, {row.limit:g} allowed",
                where=f"{len(broken)} of {len(gate.rows)} limits",
                hint="Keep its most sensitive layers in float (keep_float), then try "
                "quantisation-aware training (qat_steps)",
            )


def _loss_result(
    metric: MetricName,
    ground: EvaluatedSlice,
    compare: CompareFunction,
    limit: float,
    *,
    required: bool,
) -> LimitResult:
    difference = compare(metric, ground.slice, ground.cls)
    figure = difference.estimate
    return LimitResult(
        name=f"{metric} lost, {_slice_name(ground)}",
        verdict=_verdict(figure, limit, usable=difference.usable),
        value=_rounded(figure.value),
        low=_rounded(figure.low),
        high=_rounded(figure.high),
        limit=limit,
        boxes=ground.boxes,
        required=required,
        method=difference.method,
    )


def _verdict(figure: LossInterval, limit: float, *, usable: bool) -> Verdict:
    if figure.value is None or figure.low is None or figure.high is None:
        return Verdict.INSUFFICIENT
    if figure.low > limit:
        return Verdict.FAIL
    return Verdict.PASS if usable and figure.high <= limit else Verdict.INSUFFICIENT


def _measured_result(name: str, value: float, limit: float, *, least: bool = False) -> LimitResult:
    holds = value >= limit if least else value <= limit
    verdict = Verdict.PASS if holds else Verdict.FAIL
    return LimitResult(
        name=name, verdict=verdict, value=_rounded(value), limit=limit, method="measured"
    )


def _overall_verdict(rows: Iterable[LimitResult]) -> Verdict:
    said = {row.verdict for row in rows if row.required}
    if Verdict.FAIL in said:
        return Verdict.FAIL
    return Verdict.INSUFFICIENT if Verdict.INSUFFICIENT in said or not said else Verdict.PASS


def _slice_name(ground: EvaluatedSlice) -> str:
    if ground.slice == ground.cls == ALL:
        return "all frames"
    return ground.cls if ground.slice == ALL else ground.slice


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
