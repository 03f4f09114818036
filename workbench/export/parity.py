"""How far an exported file is from the trained network: raw outputs and boxes on the same frames.

The signal-to-quantization-noise ratio (SQNR) of an output in dB is
``10 log10(sum(x^2) / sum((x - y)^2))``, ``x`` the float network's values; 6 dB more is one more
correct bit. Box agreement is what a driver would notice. Neither needs ground truth, so neither
says how good the model is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ContractError, ParameterError
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.detection import families
from workbench.detection.boxes import CONFIDENCE_THRESHOLD, iou_matrix, match_optimal
from workbench.detection.config import DetectorConfig
from workbench.detection.families import Detections, decode, output_names
from workbench.detection.predictor import OnnxPredictor, Predictor, read_batches
from workbench.detection.preprocessing import Pixels, preprocess_batch, require_input
from workbench.records.frames import Frame

__all__ = ["parity_table"]

MAX_DB = 150.0
"""SQNR of equal outputs: float32 holds no more."""
FLOAT_TOLERANCE = 1e-4
"""Largest difference of a raw value that rounding can explain between two float runtimes."""
_MATCH_IOU = 0.5

_Outputs = Sequence[NDArray[np.float32]]
"""Raw outputs of a network, each ``[frames, ...]``."""


@dataclass(frozen=True)
class Fidelity:
    """Distance of a file from the float file.

    Attributes:
        sqnr_db: SQNR of each raw output.
        agreement: Dice coefficient of the boxes in [0, 1]; None where there are no boxes.
    """

    sqnr_db: dict[str, float]
    agreement: float | None

    @property
    def least_db(self) -> float:
        """SQNR of the worst output."""
        return min(self.sqnr_db.values())


class ReferenceSample:
    """Frames on which files are compared with a float file, which is run once.

    Args:
        fp32: The float ONNX file.
        images: RGB uint8 frames of any size.
        threads: Of each session.

    Raises:
        ParameterError: There are no frames.
    """

    def __init__(self, fp32: bytes, images: Sequence[Pixels], *, threads: int = 2) -> None:
        if not images:
            raise ParameterError("no frames to compare files on")
        reference = OnnxPredictor(fp32, threads=threads)
        self._threads = threads
        self._config = reference.config
        spec = reference.preprocessing
        self._batches = [
            require_input(preprocess_batch(images[first : first + 8], spec)[0], spec)
            for first in range(0, len(images), 8)
        ]
        self._outputs = [reference.raw(batch) for batch in self._batches]
        self._boxes = [self._decode(outputs) for outputs in self._outputs]
        self.frames = len(images)

    def compare(self, content: bytes) -> Fidelity:
        """Run another file on the sample and compare it with the float file."""
        other = OnnxPredictor(content, threads=self._threads)
        noise = np.zeros(len(self._outputs[0]))
        signal = np.zeros_like(noise)
        matched = total = 0
        for batch, expected, boxes in zip(self._batches, self._outputs, self._boxes, strict=True):
            actual = other.raw(batch)
            pairs = zip(*match_outputs(expected, actual, self._config), strict=True)
            for position, (right, wrong) in enumerate(pairs):
                signal[position] += signal_energy(right)
                noise[position] += signal_energy(right - wrong)
            for first, second in zip(boxes, self._decode(actual), strict=True):
                matched += len(_match_boxes(first, second))
                total += len(first) + len(second)
        names = output_names(self._config)
        ratios = {name: decibels(signal[i], noise[i]) for i, name in enumerate(names)}
        return Fidelity(ratios, _dice(matched, total))

    def _decode(self, outputs: _Outputs) -> list[Detections]:
        return decode(outputs, self._config, score_threshold=CONFIDENCE_THRESHOLD)


def compare_models(
    workspace: Workspace,
    reference: Predictor,
    targets: Mapping[str, Predictor],
    frames: Sequence[Frame],
    *,
    score: float = CONFIDENCE_THRESHOLD,
    progress: Progress | None = None,
) -> Json:
    """Run models on the same frames and report how far each is from the reference.

    Args:
        workspace: Where the images are.
        reference: The trained network in torch.
        targets: Exported models by file name.
        frames: Evaluation frames.
        score: Boxes below this score are not compared.
        progress: Called with the frames done and their total.

    Returns:
        The parity report. ``agreement`` is the Dice coefficient of the boxes: matches are one to
        one, of one class, with an IoU of 0.5 or more; None where neither model found any.
        ``score_shift`` is target minus reference over matches. ``queries`` counts the compared
        queries of a detection transformer, see `match_outputs`.

    Raises:
        ParameterError: There are no frames, or a target has another contract.
        ContractError: A target's outputs are not finite.
    """
    if not frames:
        raise ParameterError("no frames to compare the models on")
    for name, target in targets.items():
        if (target.config, target.preprocessing) != (reference.config, reference.preprocessing):
            raise ParameterError("the file has another contract than the network", where=name)
    tallies = {name: _ParityTally() for name in targets}
    names, done = output_names(reference.config), 0
    for chunk, pixels in read_batches(workspace, frames, 8):
        batch, _ = preprocess_batch(pixels, reference.preprocessing)
        expected = reference.raw(batch)
        expected_boxes = decode(expected, reference.config, score_threshold=score)
        for name, target in targets.items():
            actual = target.raw(batch)
            _require_finite(name, chunk, actual)
            tallies[name].add_outputs(names, *match_outputs(expected, actual, reference.config))
            boxes = decode(actual, reference.config, score_threshold=score)
            for frame, first, second in zip(chunk, expected_boxes, boxes, strict=True):
                tallies[name].add_boxes(frame.id, first, second)
        done += len(chunk)
        if progress:
            progress(done, len(frames))
    return {
        "schema_version": 1,
        "reference": "torch",
        "frames": len(frames),
        "frames_available": len(frames),
        "score_threshold": score,
        "iou": _MATCH_IOU,
        "targets": {name: tally.report() for name, tally in tallies.items()},
    }


def require_float_parity(report: Json, name: str = "fp32.onnx") -> None:
    """Check that the float file computes what the trained network does.

    Raises:
        ContractError: Its raw outputs differ by more than rounding can explain.
    """
    difference = report["targets"][name]["max_abs_diff"]
    if not difference <= FLOAT_TOLERANCE:
        raise ContractError(
            f"raw outputs differ from the network's by up to {difference:g}; at most "
            f"{FLOAT_TOLERANCE:g} is allowed",
            where=name,
            hint="The export changed the model: look for an operator that ONNX Runtime reads "
            "differently",
        )


def parity_table(report: Json) -> list[Json]:
    """The parity report as a row for each file, for a data frame or a plot."""
    keys = (
        "max_abs_diff", "sqnr_db", "boxes", "reference_boxes", "agreement", "score_shift_mean",
        "iou_mean",
    )  # fmt: skip
    return [
        {"target": name, "frames": report["frames"], **{key: values[key] for key in keys}}
        for name, values in report["targets"].items()
    ]


def evenly_spaced(frames: Sequence[Frame], limit: int) -> list[Frame]:
    """At most ``limit`` frames, evenly spaced over the whole sequence."""
    count = min(limit, len(frames))
    return [frames[index * len(frames) // count] for index in range(count)]


@dataclass
class _ParityTally:
    """Sums over the frames of one file."""

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

    def add_outputs(self, names: Sequence[str], expected: _Outputs, actual: _Outputs) -> None:
        for name, right, wrong in zip(names, expected, actual, strict=True):
            apart = np.abs(wrong.astype(np.float64) - right)
            self.largest[name] = max(self.largest.get(name, 0.0), float(apart.max()))
            self.total[name] = self.total.get(name, 0.0) + float(apart.sum())
            self.values[name] = self.values.get(name, 0) + apart.size
            self.signal[name] = self.signal.get(name, 0.0) + signal_energy(right)
            self.noise[name] = self.noise.get(name, 0.0) + float(np.square(apart).sum())

    def add_boxes(self, frame: str, reference: Detections, actual: Detections) -> None:
        pairs = _match_boxes(reference, actual)
        self.boxes += len(actual)
        self.reference_boxes += len(reference)
        self.shifts.extend((actual.scores[pairs[:, 1]] - reference.scores[pairs[:, 0]]).tolist())
        overlap = iou_matrix(reference.boxes, actual.boxes)
        self.overlaps.extend(overlap[pairs[:, 0], pairs[:, 1]].tolist())
        agreement = _dice(len(pairs), len(reference) + len(actual))
        if agreement is not None and agreement < self.worst[0]:
            self.worst = (agreement, frame)

    def report(self) -> Json:
        outputs = {
            name: {
                "max_abs_diff": _three_digits(self.largest[name]),
                "mean_abs_diff": _three_digits(self.total[name] / self.values[name]),
                "sqnr_db": _three_digits(decibels(self.signal[name], self.noise[name])),
            }
            for name in self.largest
        }
        matched = len(self.shifts)
        least_db = min(decibels(self.signal[name], self.noise[name]) for name in self.signal)
        return {
            "max_abs_diff": _three_digits(max(self.largest.values())),
            "sqnr_db": _three_digits(least_db),
            "maps": outputs,
            **({"queries": self.values["boxes"] // 4} if _is_query_output(tuple(outputs)) else {}),
            "boxes": self.boxes,
            "reference_boxes": self.reference_boxes,
            "matched": matched,
            "agreement": _three_digits(_dice(matched, self.reference_boxes + self.boxes)),
            "score_shift_mean": _three_digits(np.mean(self.shifts) if matched else None),
            "score_shift_p95": _three_digits(
                np.quantile(np.abs(self.shifts), 0.95) if matched else None
            ),
            "iou_mean": _three_digits(np.mean(self.overlaps) if matched else None),
            "worst_frame": {"frame": self.worst[1], "agreement": _three_digits(self.worst[0])},
        }


def match_outputs(
    reference: _Outputs, actual: _Outputs, config: DetectorConfig
) -> tuple[_Outputs, _Outputs]:
    """Raw outputs of two models with corresponding values at the same positions.

    Cell maps correspond as they are. A detection transformer chooses its queries by score: rounding
    swaps two of them, or replaces one at the cut by another of the same score, and neither changes
    the boxes. So its queries are matched, and only those are compared that either model makes a box
    of, or the best one in a frame without boxes.

    Returns:
        Both outputs; of queries ``[queries, classes]`` and ``[queries, 4]`` over all frames.
    """
    if not _is_query_output(output_names(config)):
        return reference, actual
    ordered = _match_queries(reference, actual)
    scoring = config.network["scoring"]
    right, wrong = (
        families.query_scores(outputs[0], scoring).max(-1) for outputs in (reference, ordered)
    )
    least = np.minimum(config.score_threshold, right.max(axis=1, keepdims=True))
    shown = (right >= least) | (wrong >= least)
    return [values[shown] for values in reference], [values[shown] for values in ordered]


def _is_query_output(names: Sequence[str]) -> bool:
    """Whether a model with outputs of these names gives queries rather than cell maps."""
    return tuple(names) == families.QUERY_OUTPUTS


def _match_queries(reference: _Outputs, actual: _Outputs) -> _Outputs:
    """The queries of ``actual`` in the order of their nearest ones in ``reference``.

    Nearest by logits and boxes together, one to one, frame by frame (Hungarian method).
    """
    from scipy.optimize import linear_sum_assignment

    ordered = [values.copy() for values in actual]
    for frame in range(len(reference[0])):
        first = np.concatenate([values[frame] for values in reference], axis=-1)
        second = np.concatenate([values[frame] for values in actual], axis=-1)
        distance = np.abs(first[:, None].astype(np.float64) - second[None]).sum(axis=-1)
        _, columns = linear_sum_assignment(np.nan_to_num(distance, nan=1e9))
        for values, given in zip(ordered, actual, strict=True):
            values[frame] = given[frame][columns]
    return ordered


def signal_energy(values: NDArray[np.float32]) -> float:
    """Sum of squares."""
    return float(np.square(values, dtype=np.float64).sum())


def decibels(signal: float, noise: float) -> float:
    """A ratio of energies in dB, at most `MAX_DB`."""
    if noise <= 0:
        return MAX_DB
    return round(min(MAX_DB, 10 * float(np.log10(max(signal, 1e-30) / noise))), 2)


def _match_boxes(first: Detections, second: Detections) -> NDArray[np.int64]:
    return match_optimal(
        first.boxes,
        second.boxes,
        iou=_MATCH_IOU,
        classes=first.classes,
        second_classes=second.classes,
    )


def _require_finite(name: str, frames: Sequence[Frame], outputs: _Outputs) -> None:
    if not all(np.isfinite(values).all() for values in outputs):
        raise ContractError(
            f"outputs of {name} contain NaN or infinity",
            where=f"frames {frames[0].id} and following",
            hint="The INT8 ranges overflow: check the calibration frames and the weights",
        )


def _dice(matched: int, total: int) -> float | None:
    return 2 * matched / total if total else None


def _three_digits(value: Any) -> float | None:
    """Three significant digits: the rest changes with the machine."""
    return None if value is None else float(f"{float(value):.3g}")
