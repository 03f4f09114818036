"""Does the exported file see what the trained network saw, on real frames, through the real input?

Two views: how far the raw maps are apart, which finds a broken export, and how far the boxes at
an operating threshold agree, which is what a driver would notice. Neither needs ground truth, so
neither says how good the model is; that is evaluation's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ContractError, ParameterError
from workbench.export.fidelity import decibels, energy
from workbench.export.pairing import Maps, is_set, paired
from workbench.perception.boxes import iou_matrix
from workbench.perception.contract import DetectorConfig
from workbench.perception.decode import Detections, decode
from workbench.perception.matching import match_optimal
from workbench.perception.models.registry import output_names
from workbench.perception.predictor import read_batches
from workbench.perception.preprocessing import Preprocessing, prepare_batch
from workbench.records.frames import Frame
from workbench.workspace import Workspace

Json = dict[str, Any]

SCORE = 0.3
IOU = 0.5
FLOAT_TOLERANCE = 1e-4
"""Largest difference of a raw value that rounding can explain between two float runtimes."""


class RawModel(Protocol):
    """A predictor whose network can be run alone; both kinds in `workbench.perception` can."""

    @property
    def config(self) -> DetectorConfig: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]: ...


@dataclass
class _Tally:
    """What has been seen of one target so far."""

    largest: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    boxes: int = 0
    reference_boxes: int = 0
    shifts: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    worst: tuple[float, str] = (1.0, "")

    def add_maps(self, names: Sequence[str], reference: Maps, found: Maps) -> None:
        for name, expected, actual in zip(names, reference, found, strict=True):
            apart = np.abs(actual.astype(np.float64) - expected)
            self.largest[name] = max(self.largest.get(name, 0.0), float(apart.max()))
            self.total[name] = self.total.get(name, 0.0) + float(apart.sum())
            self.values[name] = self.values.get(name, 0) + apart.size
            self.signal[name] = self.signal.get(name, 0.0) + energy(expected)
            self.noise[name] = self.noise.get(name, 0.0) + float(np.square(apart).sum())

    def add_boxes(self, frame: str, reference: Detections, found: Detections) -> None:
        pairs = match_optimal(
            reference.boxes,
            found.boxes,
            iou=IOU,
            classes=reference.classes,
            second_classes=found.classes,
        )
        self.boxes += len(found)
        self.reference_boxes += len(reference)
        self.shifts.extend((found.scores[pairs[:, 1]] - reference.scores[pairs[:, 0]]).tolist())
        overlap = iou_matrix(reference.boxes, found.boxes)
        self.overlaps.extend(overlap[pairs[:, 0], pairs[:, 1]].tolist())
        agreement = _agreement(len(pairs), len(reference), len(found))
        if agreement is not None and agreement < self.worst[0]:
            self.worst = (agreement, frame)

    def report(self) -> Json:
        maps = {
            name: {
                "max_abs_diff": _rounded(self.largest[name]),
                "mean_abs_diff": _rounded(self.total[name] / self.values[name]),
                "sqnr_db": _rounded(decibels(self.signal[name], self.noise[name])),
            }
            for name in self.largest
        }
        matched = len(self.shifts)
        return {
            "max_abs_diff": _rounded(max(self.largest.values())),
            "sqnr_db": _rounded(min(decibels(self.signal[n], self.noise[n]) for n in self.signal)),
            "maps": maps,
            **({"queries": self.values["boxes"] // 4} if is_set(tuple(maps)) else {}),
            "boxes": self.boxes,
            "reference_boxes": self.reference_boxes,
            "matched": matched,
            "agreement": _rounded(_agreement(matched, self.reference_boxes, self.boxes)),
            "score_shift_mean": _rounded(np.mean(self.shifts) if matched else None),
            "score_shift_p95": _rounded(
                np.quantile(np.abs(self.shifts), 0.95) if matched else None
            ),
            "iou_mean": _rounded(np.mean(self.overlaps) if matched else None),
            "worst_frame": {"frame": self.worst[1], "agreement": _rounded(self.worst[0])},
        }


def compare(
    place: Workspace,
    reference: RawModel,
    targets: Mapping[str, RawModel],
    frames: Sequence[Frame],
    *,
    limit: int = 200,
    score: float = SCORE,
    progress: Callable[[int, int], None] | None = None,
) -> Json:
    """Run all models on the same frames and report how far each is from the reference.

    Args:
        reference: The trained network in torch.
        targets: File name to the exported model.
        frames: Evaluation frames; of more than ``limit``, that many evenly spaced ones.
        score: Boxes below are not compared; near the point where the model will be used.

    Returns:
        Plain JSON. ``agreement`` is matched boxes over the mean of both counts (the Dice
        coefficient), None where neither model found any; matches are one to one, of one class,
        with IoU of 0.5 or more. ``score_shift`` is target minus reference over matches.
        ``queries`` is how many of a detection transformer's were compared, see `pairing`.

    Raises:
        ParameterError: There are no frames, or a target has another contract.
        ContractError: A target gives values that are not numbers.
    """
    if not frames:
        raise ParameterError("no frames to compare the models on")
    for name, target in targets.items():
        if (target.config, target.preprocessing) != (reference.config, reference.preprocessing):
            raise ParameterError("target carries another contract than the network", where=name)
    chosen = evenly(frames, limit)
    tallies = {name: _Tally() for name in targets}
    names, done = output_names(reference.config), 0
    for chunk, pixels in read_batches(place, chosen, 8):
        batch, _ = prepare_batch(pixels, reference.preprocessing)
        expected = reference.raw(batch)
        expected_boxes = decode(expected, reference.config, score_threshold=score)
        for name, target in targets.items():
            found = target.raw(batch)
            _require_numbers(name, chunk, found)
            tallies[name].add_maps(names, *paired(expected, found, reference.config))
            found_boxes = decode(found, reference.config, score_threshold=score)
            for frame, first, second in zip(chunk, expected_boxes, found_boxes, strict=True):
                tallies[name].add_boxes(frame.id, first, second)
        done += len(chunk)
        if progress:
            progress(done, len(chosen))
    return {
        "schema_version": 1,
        "reference": "torch",
        "frames": len(chosen),
        "frames_available": len(frames),
        "score_threshold": score,
        "iou": IOU,
        "targets": {name: tally.report() for name, tally in tallies.items()},
    }


def require_float_parity(report: Json, name: str = "fp32.onnx") -> None:
    """Raise `ContractError` when the float file is not the trained network."""
    apart = report["targets"][name]["max_abs_diff"]
    if not apart <= FLOAT_TOLERANCE:
        raise ContractError(
            f"exported raw maps are up to {apart:g} off the network's, {FLOAT_TOLERANCE:g} allowed",
            where=name,
            hint="The export changed the model: look for an operator that ONNX Runtime reads "
            "differently",
        )


def table(report: Json) -> list[dict[str, Any]]:
    """A row for each target, for a data frame or a picture."""
    keys = (
        "max_abs_diff",
        "sqnr_db",
        "boxes",
        "reference_boxes",
        "agreement",
        "score_shift_mean",
        "iou_mean",
    )
    return [
        {"target": name, "frames": report["frames"], **{key: found[key] for key in keys}}
        for name, found in report["targets"].items()
    ]


def evenly(frames: Sequence[Frame], limit: int) -> list[Frame]:
    """At most ``limit`` frames, spread over the whole sequence."""
    count = min(limit, len(frames))
    return [frames[index * len(frames) // count] for index in range(count)]


def _require_numbers(name: str, frames: Sequence[Frame], maps: Maps) -> None:
    if not all(np.isfinite(values).all() for values in maps):
        raise ContractError(
            f"{name} gives values that are not finite numbers",
            where=f"frames {frames[0].id} and following",
            hint="The ranges overflow: look at the calibration frames and at the weights",
        )


def _agreement(matched: int, first: int, second: int) -> float | None:
    return 2 * matched / (first + second) if first + second else None


def _rounded(value: Any) -> float | None:
    """Three digits: what is beyond them changes with the machine and says nothing."""
    return None if value is None else float(f"{float(value):.3g}")
