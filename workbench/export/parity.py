"""How far an exported file is from the trained network: raw outputs and boxes on the same frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ContractError, ParameterError
from workbench.core.workspace import Workspace
from workbench.detection import families
from workbench.detection.boxes import CONFIDENCE_THRESHOLD, iou_matrix, match_optimal
from workbench.detection.config import DetectorConfig
from workbench.detection.families import Detections, decode, output_names
from workbench.detection.predictor import OnnxPredictor, read_batches
from workbench.detection.preprocessing import Pixels, Preprocessing, preprocess_batch, require_input
from workbench.records.frames import Frame

Maps = Sequence[NDArray[np.float32]]


def match_outputs(reference: Maps, found: Maps, config: DetectorConfig) -> tuple[Maps, Maps]:
    """Both outputs with what belongs together at the same place.

    Maps of cells as they are. Of sets, ``[queries, c]`` and ``[queries, 4]`` of all frames, where
    one of the two gives a box; a query that the other lost or moved still shows.
    """
    if not is_query_output(output_names(config)):
        return reference, found
    ordered = match_queries(reference, found)
    scoring = config.network["scoring"]
    right, wrong = (families.query_scores(maps[0], scoring).max(-1) for maps in (reference, ordered))
    least = np.minimum(config.score_threshold, right.max(axis=1, keepdims=True))
    seen = (right >= least) | (wrong >= least)
    return [values[seen] for values in reference], [values[seen] for values in ordered]


def is_query_output(names: Sequence[str]) -> bool:
    """Whether a model with outputs of these names gives queries rather than maps of cells."""
    return tuple(names) == families.QUERY_OUTPUTS


def match_queries(reference: Maps, found: Maps) -> Maps:
    """The queries of ``found``, each frame's in the order of those they are nearest to.

    Nearest by logits and boxes together, every query once.
    """
    from scipy.optimize import linear_sum_assignment

    ordered = [values.copy() for values in found]
    for frame in range(len(reference[0])):
        first = np.concatenate([values[frame] for values in reference], axis=-1)
        second = np.concatenate([values[frame] for values in found], axis=-1)
        apart = np.abs(first[:, None].astype(np.float64) - second[None]).sum(axis=-1)
        _, columns = linear_sum_assignment(np.nan_to_num(apart, nan=1e9))
        for values, given in zip(ordered, found, strict=True):
            values[frame] = given[frame][columns]
    return ordered


# ---- How far one file is from another on the same frames: noise of the raw maps, and boxes.
#
# The signal-to-quantisation-noise ratio of a map is ``10 log10(sum(x^2) / sum((x - y)^2))`` in dB,
# ``x`` the float network's values; each 6 dB more is one bit more that is right.


MAX_DB = 150.0
"""Shown for maps that are equal: float32 holds no more."""
_MATCH_IOU = 0.5


@dataclass(frozen=True)
class Fidelity:
    """``sqnr_db`` by output; ``agreement`` of boxes in [0, 1], None where there are none."""

    sqnr_db: dict[str, float]
    agreement: float | None

    @property
    def least_db(self) -> float:
        return min(self.sqnr_db.values())


class ReferenceSample:
    """Frames on which files are compared with a float file, whose answers are found once."""

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
            pairs = zip(*match_outputs(maps, raw, self._config), strict=True)
            for position, (right, wrong) in enumerate(pairs):
                signal[position] += signal_energy(right)
                noise[position] += signal_energy(right - wrong)
            for first, second in zip(boxes, self._decoded(raw), strict=True):
                matched += len(_match_boxes(first, second))
                ours, theirs = ours + len(first), theirs + len(second)
        names = output_names(self._config)
        ratio = {name: decibels(signal[i], noise[i]) for i, name in enumerate(names)}
        return Fidelity(ratio, 2 * matched / (ours + theirs) if ours + theirs else None)

    def _decoded(self, maps: Maps) -> list[Detections]:
        return decode(maps, self._config, score_threshold=CONFIDENCE_THRESHOLD)


def signal_energy(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def decibels(signal: float, noise: float) -> float:
    """A ratio of energies in dB, at most `CEILING_DB`."""
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


# ---- Does the exported file see what the trained network saw, on real frames, through the real input?
#
# Two views: how far the raw maps are apart, which finds a broken export, and how far the boxes at
# an operating threshold agree, which is what a driver would notice. Neither needs ground truth, so
# neither says how good the model is; that is evaluation's.


Json = dict[str, Any]

MATCH_IOU = 0.5
FLOAT_TOLERANCE = 1e-4
"""Largest difference of a raw value that rounding can explain between two float runtimes."""


class RawModel(Protocol):
    """A predictor whose network can be run alone; both kinds in `workbench.detection` can."""

    @property
    def config(self) -> DetectorConfig: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def raw(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]: ...


@dataclass
class _ParityTally:
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
            self.signal[name] = self.signal.get(name, 0.0) + signal_energy(expected)
            self.noise[name] = self.noise.get(name, 0.0) + float(np.square(apart).sum())

    def add_boxes(self, frame: str, reference: Detections, found: Detections) -> None:
        pairs = match_optimal(
            reference.boxes,
            found.boxes,
            iou=MATCH_IOU,
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
                "max_abs_diff": _three_digits(self.largest[name]),
                "mean_abs_diff": _three_digits(self.total[name] / self.values[name]),
                "sqnr_db": _three_digits(decibels(self.signal[name], self.noise[name])),
            }
            for name in self.largest
        }
        matched = len(self.shifts)
        return {
            "max_abs_diff": _three_digits(max(self.largest.values())),
            "sqnr_db": _three_digits(
                min(decibels(self.signal[n], self.noise[n]) for n in self.signal)
            ),
            "maps": maps,
            **({"queries": self.values["boxes"] // 4} if is_query_output(tuple(maps)) else {}),
            "boxes": self.boxes,
            "reference_boxes": self.reference_boxes,
            "matched": matched,
            "agreement": _three_digits(_agreement(matched, self.reference_boxes, self.boxes)),
            "score_shift_mean": _three_digits(np.mean(self.shifts) if matched else None),
            "score_shift_p95": _three_digits(
                np.quantile(np.abs(self.shifts), 0.95) if matched else None
            ),
            "iou_mean": _three_digits(np.mean(self.overlaps) if matched else None),
            "worst_frame": {"frame": self.worst[1], "agreement": _three_digits(self.worst[0])},
        }


def compare_models(
    place: Workspace,
    reference: RawModel,
    targets: Mapping[str, RawModel],
    frames: Sequence[Frame],
    *,
    limit: int = 200,
    score: float = CONFIDENCE_THRESHOLD,
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
    chosen = evenly_spaced(frames, limit)
    tallies = {name: _ParityTally() for name in targets}
    names, done = output_names(reference.config), 0
    for chunk, pixels in read_batches(place, chosen, 8):
        batch, _ = preprocess_batch(pixels, reference.preprocessing)
        expected = reference.raw(batch)
        expected_boxes = decode(expected, reference.config, score_threshold=score)
        for name, target in targets.items():
            found = target.raw(batch)
            _require_finite(name, chunk, found)
            tallies[name].add_maps(names, *match_outputs(expected, found, reference.config))
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
        "iou": MATCH_IOU,
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


def parity_table(report: Json) -> list[dict[str, Any]]:
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


def evenly_spaced(frames: Sequence[Frame], limit: int) -> list[Frame]:
    """At most ``limit`` frames, spread over the whole sequence."""
    count = min(limit, len(frames))
    return [frames[index * len(frames) // count] for index in range(count)]


def _require_finite(name: str, frames: Sequence[Frame], maps: Maps) -> None:
    if not all(np.isfinite(values).all() for values in maps):
        raise ContractError(
            f"{name} gives values that are not finite numbers",
            where=f"frames {frames[0].id} and following",
            hint="The ranges overflow: look at the calibration frames and at the weights",
        )


def _agreement(matched: int, first: int, second: int) -> float | None:
    return 2 * matched / (first + second) if first + second else None


def _three_digits(value: Any) -> float | None:
    """Three digits: what is beyond them changes with the machine and says nothing."""
    return None if value is None else float(f"{float(value):.3g}")
