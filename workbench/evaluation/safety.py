"""Errors that matter to a driver: misses by distance, size and occlusion, and critical errors.

A critical error is one inside the ego path within stopping distance: a missed object there could be
driven into, a box there that is nothing could brake the vehicle for nothing. The two are never
averaged. Lyssenko et al., "From Evaluation to Verification: Towards Task-oriented Relevance Metrics
for Pedestrian Detection in Safety-critical Domains" (CVPR workshops 2021), weigh errors by the same
reach; here an error is inside or outside.

Positions come from one camera and hold under these assumptions, which a report prints:

* the road is a plane, and an object touches it at the lower edge of its box; a box whose lower
  edge is hidden or cut off by the image therefore seems farther or nearer than it is;
* camera height, pitch and focal length are those of the drive, else those of `SafetyAssumptions`;
  where neither tells them, the frame is excluded and counted, never guessed;
* the ego vehicle drives straight ahead with the speed that the frame's attribute ``speed_kmh``
  tells, else with the assumed one, and stops within ``v * reaction + v^2 / (2 * deceleration)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from workbench.core.text import counted
from workbench.data import resampling
from workbench.data.slices import ALL_FRAMES
from workbench.detection.boxes import iou_matrix
from workbench.evaluation.confidence import Calibration, calibration
from workbench.evaluation.matching import Bools, Floats, Ints, match_slice
from workbench.evaluation.metrics import Clusters, Evaluation, cluster_frames, ratio_samples
from workbench.evaluation.metrics import estimate as estimate_of
from workbench.evaluation.results import Estimate
from workbench.evaluation.sequences import DetectionDelay, detection_delay
from workbench.records.base import FrozenModel
from workbench.records.frames import Drive, Frame

__all__ = ["SafetyAssumptions", "measure_safety"]

_KMH = 1 / 3.6
_FOUND_IOU = 0.5

_BINS: dict[str, tuple[float, ...]] = {
    "distance": (0, 10, 20, 30, 50, 80, math.inf),
    "size": (0, 16, 32, 64, 96, math.inf),
    "occlusion": (0, 0.1, 0.4, 0.8, math.inf),
}
"""Edges of the bins: metres, root of the box area in pixels, hidden fraction."""
_UNITS = {"distance": "m", "size": "px", "occlusion": "hidden"}


class SafetyAssumptions(FrozenModel):
    """What is assumed about vehicle and camera where the data does not tell it.

    The default deceleration is what UN R152 demands at least of emergency braking (5 m/s^2).

    Attributes:
        camera_height_m: Above the road, for drives without a height of their own.
        camera_pitch_deg: Positive when looking down, for drives without one.
        horizontal_view_deg: Horizontal field of view, for drives without a focal length; square
            pixels, and the optical axis in the middle of the image.
        speed_kmh: For frames without the attribute ``speed_kmh``.
        reaction_s: From the image to full braking.
        deceleration_ms2: While braking.
        path_width_m: Width of the strip in front of the vehicle.
        off_road: Classes that do not stand on the road; they have no distance and are never
            critical.
    """

    camera_height_m: float | None = Field(default=None, gt=0, le=10)
    camera_pitch_deg: float | None = Field(default=None, gt=-45, lt=45)
    horizontal_view_deg: float | None = Field(default=None, gt=0, lt=170)
    speed_kmh: float | None = Field(default=None, gt=0, le=300)
    reaction_s: float = Field(default=1.0, ge=0, le=10)
    deceleration_ms2: float = Field(default=5.0, gt=0, le=15)
    path_width_m: float = Field(default=2.5, gt=0, le=20)
    off_road: tuple[str, ...] = ("traffic_sign", "traffic_light")

    def stopping_distance(self, speed_kmh: float) -> float:
        """Metres until the vehicle stands: reaction, then constant deceleration."""
        speed = speed_kmh * _KMH
        return speed * self.reaction_s + speed**2 / (2 * self.deceleration_ms2)


class MissRate(FrozenModel):
    """Share of labels that the model missed, in one bin.

    Attributes:
        by: ``distance``, ``size`` or ``occlusion``.
        bin: In words, such as ``10-20 m``; ``unknown`` where it cannot be told.
        drives: With such labels.
        usable: Whether the interval also speaks for other drives.
    """

    by: str
    bin: str
    boxes: int
    misses: int
    drives: int
    rate: Estimate
    usable: bool


class CriticalErrors(FrozenModel):
    """Misses and false positives in the ego path within stopping distance.

    Attributes:
        frames: Frames that could be judged, of ``drives`` drives.
        excluded: Frames left out, by what they lack.
        assumed: Every assumption in words.
        boxes: Labels in the path within stopping distance.
        misses: Of these, missed; ``confused_misses`` of them have a box of another class.
        false_positives: Boxes there that match no label; ``confused_false_positives`` of them lie
            on an object of another class.
        miss_rate: ``misses / boxes``.
        false_positive_rate: Share of judged frames with at least one.
        misses_by_class: Class to misses and labels.
    """

    frames: int
    drives: int
    excluded: dict[str, int]
    assumed: tuple[str, ...]
    boxes: int
    misses: int
    confused_misses: int
    false_positives: int
    confused_false_positives: int
    miss_rate: Estimate
    false_positive_rate: Estimate
    misses_by_class: dict[str, tuple[int, int]]
    usable: bool


class SafetyMetrics(FrozenModel):
    """What an evaluation says about safety; stored with the gate report."""

    threshold: float
    miss_rates: tuple[MissRate, ...]
    critical: CriticalErrors
    calibration: tuple[Calibration, ...]
    delay: DetectionDelay

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The figures that gates can be put on, by name."""
        found = {
            "critical_miss_rate": self.critical.miss_rate,
            "critical_false_positive_rate": self.critical.false_positive_rate,
        }
        for one in self.calibration:
            if one.slice == ALL_FRAMES.name:
                found["calibration_error"] = one.error
        return found

    def lines(self) -> list[str]:
        """The figures in words, with what was assumed and what was left out."""
        critical = self.critical
        lines = [
            f"critical misses: {critical.misses} of {counted(critical.boxes, 'label')}"
            f" ({critical.miss_rate}); {critical.confused_misses} have a box of another class",
            f"critical false positives: {critical.false_positives} on "
            f"{counted(critical.frames, 'frame')}, share of frames {critical.false_positive_rate};"
            f" {critical.confused_false_positives} lie on an object of another class",
            *(f"  assumed: {text}" for text in critical.assumed),
            *(f"  excluded: {counted(n, 'frame')}, {why}" for why, n in critical.excluded.items()),
        ]
        whole = next((one for one in self.calibration if one.slice == ALL_FRAMES.name), None)
        if whole is not None:
            lines.append(
                f"expected calibration error: {whole.error} of "
                f"{counted(whole.boxes, 'box', 'boxes')}"
            )
        return [*lines, *self.delay.lines()]


@dataclass(frozen=True)
class Safety:
    """Safety metrics, with the resampled values that gates decide by.

    Attributes:
        samples: ``critical_miss_rate``, ``critical_false_positive_rate`` and ``calibration_error``
            to ``[1 + r]`` values: of all drives, then of each resample.
        clusters: The same names to the units of resampling.
    """

    metrics: SafetyMetrics
    samples: dict[str, Floats]
    clusters: dict[str, Clusters]


def measure_safety(evaluation: Evaluation, assumptions: SafetyAssumptions | None = None) -> Safety:
    """Misses by distance, size and occlusion, critical errors, calibration and detection delay.

    Args:
        evaluation: Of the model; its settings give the threshold and the level of the intervals.
        assumptions: About vehicle and camera.
    """
    assumptions = assumptions or SafetyAssumptions()
    scene = _Scene(evaluation, assumptions)
    rates = tuple(rate for by in _BINS for rate in scene.miss_rates(by))
    critical, samples, clusters = scene.critical_errors()
    # A box that matches nothing belongs to no slice of labels, so these have no calibration.
    whole = [name for name, part in evaluation.slices.items() if part.judges_all_boxes]
    reliability = [calibration(evaluation, name) for name in whole]
    for one in reliability:
        if one.metrics.slice == ALL_FRAMES.name:
            samples["calibration_error"] = one.samples
            clusters["calibration_error"] = evaluation.clusters[ALL_FRAMES.name]
    metrics = SafetyMetrics(
        threshold=evaluation.metrics.settings.threshold,
        miss_rates=rates,
        critical=critical,
        calibration=tuple(one.metrics for one in reliability if one.metrics.boxes),
        delay=detection_delay(evaluation),
    )
    return Safety(metrics, samples, clusters)


def ground_positions(box: Floats, camera: Floats) -> Floats:
    """Where the lower edges of boxes touch a flat road.

    A pixel's ray is intersected with the plane below a pinhole camera (Hartley and Zisserman,
    "Multiple View Geometry", 2004, 6.1); distances are measured from the point below the camera.

    Args:
        box: ``[n, 4]`` x, y, w, h in pixels.
        camera: ``[n, 6]`` height in m, pitch in degrees (positive down), fx, fy, cx, cy in pixels.

    Returns:
        ``[n, 3]`` metres: forward, and to the right the lower left and the lower right corner; NaN
        where the lower edge is on or above the horizon.
    """
    height, pitch, fx, fy, cx, cy = camera.T
    pitch = np.radians(pitch)
    below = (box[:, 1] + box[:, 3] - cy) / fy
    down = np.sin(pitch) + below * np.cos(pitch)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(down > 1e-9, height / down, np.nan)
    forward = scale * (np.cos(pitch) - below * np.sin(pitch))
    forward = np.where(forward > 0, forward, np.nan)
    left = scale * (box[:, 0] - cx) / fx
    right = scale * (box[:, 0] + box[:, 2] - cx) / fx
    return np.stack((forward, left, right), axis=1)


class _Scene:
    """The evaluation set with the camera and stopping distance of each frame."""

    def __init__(self, evaluation: Evaluation, assumptions: SafetyAssumptions) -> None:
        self._evaluation, self._assumptions = evaluation, assumptions
        self._data = data = evaluation.data
        self._settings = evaluation.metrics.settings
        name = ALL_FRAMES.name
        self._table = evaluation.tables.get(name) or match_slice(data, ALL_FRAMES)
        self._clusters = evaluation.clusters.get(name) or cluster_frames(
            data.frames, self._table.frames
        )
        drives = {drive.id: drive for drive in evaluation.predictions.dataset.drives}
        self._camera = np.array(
            [_camera(drives.get(one.drive), one, assumptions) for one in data.frames]
        )
        self._speed = np.array([_speed(one, assumptions) for one in data.frames])
        self._missing = [_missing(*row) for row in zip(self._camera, self._speed, strict=True)]
        self._assumed = _assumed(data.frames, drives, assumptions)
        above = self._table.score >= self._settings.threshold
        matched = self._table.matched_by
        self._missed: Bools = np.array([row < 0 or not above[row] for row in matched], np.bool_)
        labels = [data.labels[label] for label in self._table.truth_label]
        self._labels = labels
        self._box = np.array(
            [(one.box.x, one.box.y, one.box.w, one.box.h) for one in labels]
        ).reshape(-1, 4)
        self._on_road = np.array([one.cls not in assumptions.off_road for one in labels], np.bool_)
        self._position = ground_positions(self._box, self._camera[self._table.truth_frame])

    def miss_rates(self, by: str) -> Iterable[MissRate]:
        edges = _BINS[by]
        if by == "distance":
            value = np.where(self._on_road, self._position[:, 0], np.nan)
        elif by == "size":
            value = np.sqrt(self._box[:, 2] * self._box[:, 3])
        else:
            hidden = [math.nan if one.occluded is None else one.occluded for one in self._labels]
            value = np.array(hidden, np.float64)
        bins = np.where(np.isnan(value), -1, np.searchsorted(edges, value, side="right") - 1)
        for number in (*range(len(edges) - 1), -1):
            chosen = bins == number
            if not chosen.any():
                continue
            of = self._clusters.of[self._table.truth_frame[chosen]]
            samples = self._ratio(of, self._missed[chosen])
            drives = {self._data.frames[f].drive for f in self._table.truth_frame[chosen]}
            yield MissRate(
                by=by,
                bin=_bin_name(by, number),
                boxes=int(chosen.sum()),
                misses=int(self._missed[chosen].sum()),
                drives=len(drives),
                rate=estimate_of(samples, len(drives), self._settings.confidence),
                usable=len(drives) >= resampling.MIN_DRIVES,
            )

    def critical_errors(self) -> tuple[CriticalErrors, dict[str, Floats], dict[str, Clusters]]:
        table, data = self._table, self._data
        excluded = Counter(why for why in self._missing if why)
        judged = np.flatnonzero([not why for why in self._missing])
        drives = {data.frames[f].drive for f in judged}
        clusters = cluster_frames(data.frames, judged)
        truth = self._in_reach(self._position, table.truth_frame) & self._on_road
        missed = truth & self._missed
        wrong, wrong_box, wrong_frame, wrong_class = self._false_positives()
        position = ground_positions(wrong_box, self._camera[wrong_frame])
        on_road = np.array([name not in self._assumptions.off_road for name in wrong_class])
        false = self._in_reach(position, wrong_frame) & on_road.astype(np.bool_)
        frames_false = np.isin(judged, wrong_frame[false])
        ratio = _Ratio(clusters, self._settings.resamples, self._settings.seed)
        samples = {
            "critical_miss_rate": ratio(clusters.of[table.truth_frame[truth]], missed[truth]),
            "critical_false_positive_rate": ratio(clusters.of[judged], frames_false),
        }
        confidence = self._settings.confidence
        by_class: dict[str, tuple[int, int]] = {}
        for label, gone in zip(
            (self._labels[row] for row in np.flatnonzero(truth)), missed[truth], strict=True
        ):
            misses, boxes = by_class.get(label.cls, (0, 0))
            by_class[label.cls] = (misses + int(gone), boxes + 1)
        result = CriticalErrors(
            frames=len(judged),
            drives=len(drives),
            excluded=dict(sorted(excluded.items())),
            assumed=self._assumed,
            boxes=int(truth.sum()),
            misses=int(missed.sum()),
            confused_misses=self._seen_otherwise(np.flatnonzero(missed)),
            false_positives=int(false.sum()),
            confused_false_positives=self._on_object(
                wrong[false], wrong_box[false], wrong_frame[false]
            ),
            miss_rate=estimate_of(samples["critical_miss_rate"], clusters.count, confidence),
            false_positive_rate=estimate_of(
                samples["critical_false_positive_rate"], clusters.count, confidence
            ),
            misses_by_class=dict(sorted(by_class.items())),
            usable=clusters.usable,
        )
        return result, samples, dict.fromkeys(samples, clusters)

    def _ratio(self, of: Ints, hits: Bools) -> Floats:
        return _Ratio(self._clusters, self._settings.resamples, self._settings.seed)(of, hits)

    def _in_reach(self, position: Floats, frames: Ints) -> Bools:
        """Whether positions lie in the ego path within stopping distance of their frame."""
        half = self._assumptions.path_width_m / 2
        reach = np.array([self._assumptions.stopping_distance(v) for v in self._speed])[frames]
        forward, left, right = position.T
        with np.errstate(invalid="ignore"):
            inside: Bools = (forward <= reach) & (left <= half) & (right >= -half)
        return inside

    def _false_positives(self) -> tuple[Ints, Floats, Ints, list[str]]:
        """Rows, boxes, frames and classes of confident predictions that match nothing."""
        table = self._table
        above = table.score >= self._settings.threshold
        rows = np.flatnonzero(above & ~table.hit[0] & ~table.ignored[0])
        place = np.empty(len(self._data.predicted.source), np.int64)
        place[self._data.predicted.source] = np.arange(len(place))
        boxes = self._data.predicted.box[place[table.source[rows]]].reshape(-1, 4)
        return rows, boxes, table.frame[rows], [table.classes[k] for k in table.cls[rows]]

    def _seen_otherwise(self, rows: Ints) -> int:
        """How many missed labels have a confident box of another class on them."""
        predicted, table = self._data.predicted, self._table
        sure = predicted.score >= self._settings.threshold
        count = 0
        for row in rows:
            here = sure & (predicted.frame == table.truth_frame[row])
            here &= predicted.cls != self._class_number(self._labels[row].cls)
            count += _overlaps(self._box[row], predicted.box[here])
        return count

    def _on_object(self, rows: Ints, boxes: Floats, frames: Ints) -> int:
        """How many false positives lie on an object of another class."""
        truth, table = self._data.truth, self._table
        count = 0
        for row, box, frame in zip(rows, boxes, frames, strict=True):
            here = (truth.frame == frame) & ~truth.crowd
            here &= truth.cls != self._class_number(table.classes[table.cls[row]])
            count += _overlaps(box, truth.box[here])
        return count

    def _class_number(self, name: str) -> int:
        return self._data.classes.index(name)


class _Ratio:
    """Ratio of counts over units of resampling, of all drives and of each resample."""

    def __init__(self, clusters: Clusters, resamples: int, seed: int) -> None:
        self._count = clusters.count
        self._weights = resampling.draw_resamples(max(1, clusters.count), resamples, seed)

    def __call__(self, of: Ints, hits: Bools) -> Floats:
        size = max(1, self._count)
        return ratio_samples(
            np.bincount(of[hits], minlength=size), np.bincount(of, minlength=size), self._weights
        )


def _overlaps(box: Floats, others: Floats) -> bool:
    if not len(others):
        return False
    corners = np.concatenate([np.atleast_2d(box), others])
    corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    return bool((iou_matrix(corners[:1], corners[1:]) >= _FOUND_IOU).any())


def _camera(
    drive: Drive | None, frame: Frame, assumptions: SafetyAssumptions
) -> tuple[float, float, float, float, float, float]:
    """Height, pitch, fx, fy, cx, cy; NaN for what nobody tells."""
    height = drive.camera_height_m if drive else None
    pitch = drive.camera_pitch_deg if drive else None
    own = drive.calibration if drive else None
    fx = own.fx if own else None
    fy = own.fy if own else None
    cx = own.cx if own else None
    cy = own.cy if own else None
    if (fx is None or fy is None) and assumptions.horizontal_view_deg is not None:
        fx = fy = frame.width / 2 / math.tan(math.radians(assumptions.horizontal_view_deg) / 2)
        cx = cy = None
    return (
        _first(height, assumptions.camera_height_m),
        _first(pitch, assumptions.camera_pitch_deg),
        _first(fx),
        _first(fy),
        _first(cx, frame.width / 2),
        _first(cy, frame.height / 2),
    )


def _first(*values: float | None) -> float:
    return next((value for value in values if value is not None), math.nan)


def _speed(frame: Frame, assumptions: SafetyAssumptions) -> float:
    try:
        speed = float(frame.attributes["speed_kmh"])
    except (KeyError, ValueError):
        speed = math.nan
    return speed if math.isfinite(speed) else _first(assumptions.speed_kmh)


def _missing(camera: Floats, speed: float) -> str:
    """What a frame lacks to be judged, in words; empty if nothing."""
    names = ("camera height", "camera pitch", "focal length")
    lacking = [name for name, value in zip(names, camera, strict=False) if math.isnan(value)]
    lacking += ["speed"] if math.isnan(speed) else []
    return f"no {', '.join(lacking)}" if lacking else ""


def _assumed(
    frames: Sequence[Frame], drives: dict[str, Drive], assumptions: SafetyAssumptions
) -> tuple[str, ...]:
    """Every assumption in words, with how many frames it stands in for."""
    one = Drive(id="unknown")
    known: dict[str, Callable[[Frame], bool]] = {
        "camera_height_m": lambda f: drives.get(f.drive, one).camera_height_m is not None,
        "camera_pitch_deg": lambda f: drives.get(f.drive, one).camera_pitch_deg is not None,
        "horizontal_view_deg": lambda f: drives.get(f.drive, one).calibration.fx is not None,
        "speed_kmh": lambda f: "speed_kmh" in f.attributes,
    }
    units = {
        "camera_height_m": "camera height {:g} m",
        "camera_pitch_deg": "camera pitch {:g} degrees",
        "horizontal_view_deg": "horizontal field of view {:g} degrees",
        "speed_kmh": "speed {:g} km/h",
    }
    lines = [
        "flat road; objects touch it at the lower edge of their box; the vehicle goes straight"
    ]
    for name, text in units.items():
        value = getattr(assumptions, name)
        count = sum(not known[name](frame) for frame in frames)
        if value is not None and count:
            lines.append(f"{text.format(value)} for {counted(count, 'frame')}")
    lines.append(
        f"stops after {assumptions.reaction_s:g} s at {assumptions.deceleration_ms2:g} m/s^2;"
        f" path {assumptions.path_width_m:g} m wide"
    )
    if assumptions.speed_kmh is not None:
        reach = assumptions.stopping_distance(assumptions.speed_kmh)
        lines.append(f"{assumptions.speed_kmh:g} km/h stop within {reach:.1f} m")
    return tuple(lines)


def _bin_name(by: str, number: int) -> str:
    if number < 0:
        return "unknown"
    low, high = _BINS[by][number], _BINS[by][number + 1]
    if by == "occlusion":
        return f"{low:.0%}-{min(high, 1):.0%} {_UNITS[by]}"
    if math.isinf(high):
        return f"from {low:g} {_UNITS[by]}"
    return f"{low:g}-{high:g} {_UNITS[by]}"
