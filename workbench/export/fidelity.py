"""How far one file is from another on the same frames: noise of the raw maps, and boxes.

The signal-to-quantisation-noise ratio of a map is ``10 log10(sum(x^2) / sum((x - y)^2))`` in dB,
``x`` the float network's values; each 6 dB more is one bit more that is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ParameterError
from workbench.export.pairing import Maps, paired
from workbench.perception.decode import Detections, decode
from workbench.perception.golden import require_input
from workbench.perception.matching import match_optimal
from workbench.perception.models.registry import output_names
from workbench.perception.predictor import OnnxPredictor
from workbench.perception.preprocessing import Pixels, prepare_batch

CEILING_DB = 150.0
"""Shown for maps that are equal: float32 holds no more."""
_SCORE, _IOU = 0.3, 0.5


@dataclass(frozen=True)
class Fidelity:
    """``sqnr_db`` by output; ``agreement`` of boxes in [0, 1], None where there are none."""

    sqnr_db: dict[str, float]
    agreement: float | None

    @property
    def least_db(self) -> float:
        return min(self.sqnr_db.values())


class Sample:
    """Frames on which files are compared with a float file, whose answers are found once."""

    def __init__(self, fp32: bytes, images: Sequence[Pixels], *, threads: int = 2) -> None:
        if not images:
            raise ParameterError("no frames to compare files on")
        reference = OnnxPredictor(fp32, threads=threads)
        self._threads = threads
        self._config = reference.config
        spec = reference.preprocessing
        self._batches = [
            require_input(prepare_batch(images[first : first + 8], spec)[0], spec)
            for first in range(0, len(images), 8)
        ]
        self._maps = [reference.raw(batch) for batch in self._batches]
        self._boxes = [self._decoded(maps) for maps in self._maps]
        self.frames = len(images)

    def compare(self, content: bytes) -> Fidelity:
        """One pass of another file over the sample."""
        other = OnnxPredictor(content, threads=self._threads)
        noise = np.zeros(len(self._maps[0]))
        signal = np.zeros_like(noise)
        matched = ours = theirs = 0
        for batch, maps, boxes in zip(self._batches, self._maps, self._boxes, strict=True):
            raw = other.raw(batch)
            pairs = zip(*paired(maps, raw, self._config), strict=True)
            for position, (right, wrong) in enumerate(pairs):
                signal[position] += energy(right)
                noise[position] += energy(right - wrong)
            for first, second in zip(boxes, self._decoded(raw), strict=True):
                matched += len(_pairs(first, second))
                ours, theirs = ours + len(first), theirs + len(second)
        names = output_names(self._config)
        ratio = {name: decibels(signal[i], noise[i]) for i, name in enumerate(names)}
        return Fidelity(ratio, 2 * matched / (ours + theirs) if ours + theirs else None)

    def _decoded(self, maps: Maps) -> list[Detections]:
        return decode(maps, self._config, score_threshold=_SCORE)


def energy(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def decibels(signal: float, noise: float) -> float:
    """A ratio of energies in dB, at most `CEILING_DB`."""
    if noise <= 0:
        return CEILING_DB
    return round(min(CEILING_DB, 10 * float(np.log10(max(signal, 1e-30) / noise))), 2)


def _pairs(first: Detections, second: Detections) -> NDArray[np.int64]:
    return match_optimal(
        first.boxes,
        second.boxes,
        iou=_IOU,
        classes=first.classes,
        second_classes=second.classes,
    )
