"""Ways of making 8-bit ranges, compared on frames that none of them saw, and the choice explained.

Compared on frames that were learned from: had the evaluation set chosen the method, it could no
longer judge the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workbench.errors import ParameterError
from workbench.export.fidelity import Fidelity, Sample
from workbench.export.quantise import METHODS, Calibrated, Method
from workbench.export.target_file import OBSERVERS, Observer, int8_target
from workbench.perception.preprocessing import Pixels
from workbench.records.types import CalibrationSet, Quantiser

if TYPE_CHECKING:
    from workbench.perception.predictor import TorchPredictor

Progress = Callable[[int, int], None]
WORTH_DB = 1.0
"""What another method must win over the simplest to be taken: less is luck of the sample."""
TARGET = "target/"


@dataclass(frozen=True)
class Chosen:
    """The methods' figures, the one taken, why, and its ranges, ready to make files from."""

    rows: tuple[Quantiser, ...]
    method: Method
    why: str
    calibrated: Calibrated

    def beside(self, rows: Sequence[Quantiser]) -> Chosen:
        """With other files' figures to look at; the choice stays."""
        return replace(self, rows=(*self.rows, *rows))

    def noted(self, calibration: CalibrationSet) -> CalibrationSet:
        """The calibration set with what was compared and chosen."""
        given = {"methods": self.rows, "chosen": self.method, "why": self.why}
        return calibration.model_copy(update=given)


def choose(
    fp32: bytes,
    calibrate_with: Sequence[Pixels],
    compare_on: Sequence[Pixels],
    *,
    methods: Sequence[Method] = METHODS,
    threads: int = 2,
    progress: Progress | None = None,
) -> Chosen:
    """Make the CPU file with each method and take the one that is nearest to the float file.

    ``methods[0]`` is kept unless another's worst output is `WORTH_DB` better.

    Args:
        calibrate_with: RGB uint8 frames that ranges are made from.
        compare_on: Other such frames.

    Raises:
        ParameterError: No methods, or one that is not known.
    """
    if not methods:
        raise ParameterError("no calibration method to choose from", hint=", ".join(METHODS))
    sample = Sample(fp32, compare_on, threads=threads)
    made: dict[Method, Calibrated] = {}
    rows: list[Quantiser] = []
    for done, method in enumerate(methods, start=1):
        made[method] = Calibrated(fp32, calibrate_with, method)
        rows.append(_row(method, sample.compare(made[method].file()), sample.frames))
        if progress:
            progress(done, len(methods))
    best = max(rows, key=lambda row: row.sqnr_db)
    first = rows[0]
    taken = best if best.sqnr_db >= first.sqnr_db + WORTH_DB else first
    figures = ", ".join(f"{row.method} {row.sqnr_db:.1f} dB" for row in rows)
    reason = (
        f"at least {WORTH_DB:g} dB better than {first.method}"
        if taken is not first
        else f"none is {WORTH_DB:g} dB better"
        if len(rows) > 1
        else "the only one tried"
    )
    why = f"{taken.method}: {reason} (worst raw output on {sample.frames} frames: {figures})"
    index = [row.method for row in rows].index(taken.method)
    return Chosen(tuple(rows), methods[index], why, made[methods[index]])


def compare_observers(
    predictor: TorchPredictor,
    fp32: bytes,
    calibrate_with: Sequence[Pixels],
    compare_on: Sequence[Pixels],
    *,
    observers: Sequence[Observer] = OBSERVERS,
    threads: int = 2,
) -> tuple[Quantiser, ...]:
    """The same for the file for accelerators, whose ranges torchao makes. A look, not a choice."""
    sample = Sample(fp32, compare_on, threads=threads)
    return tuple(
        _row(
            f"{TARGET}{observer}",
            sample.compare(int8_target(predictor, calibrate_with, observer=observer)),
            sample.frames,
        )
        for observer in observers
    )


def _row(method: str, found: Fidelity, frames: int) -> Quantiser:
    agreement = None if found.agreement is None else float(f"{found.agreement:.3g}")
    # A tenth of a dB is above what threads and kernels change, so the record repeats.
    least = round(found.least_db, 1)
    return Quantiser(method=method, frames=frames, sqnr_db=least, agreement=agreement)
