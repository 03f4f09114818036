"""Miss rates and latency under degraded input: rain, fog, night noise, faults, late frames, INT8.

Real frames are degraded by simple image operations in the spirit of ImageNet-C (Hendrycks and
Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019). They say whether a model is fragile, not how often it misses in real rain: the scene is dry,
and fog here knows no distances. So each rate stands beside that of the same frames untouched.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import did_you_mean
from workbench.core.types import Progress
from workbench.detection.model import Model
from workbench.detection.preprocessing import Pixels, load_frame
from workbench.evaluation.incidents import missed_labels
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, Label, Role
from workbench.records.held_out import refuse_held_out
from workbench.records.store import Store
from workbench.records.types import Prediction

__all__ = ["PERTURBATIONS", "PerturbedRate", "measure_perturbations"]

_MAX_SHIFT_US = 500_000
_Operation = Callable[[Pixels, np.random.Generator], Pixels]


def _rain(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Slanted streaks, less contrast."""
    height, width = image.shape[:2]
    veil = np.zeros((height, width), np.uint8)
    scale = width / 1280
    starts = np.stack((rng.integers(0, width, 900), rng.integers(-40, height, 900)), 1)
    length = rng.integers(15, 45, 900) * scale
    ends = starts + np.stack((0.15 * length, length), 1)
    lines = np.stack((starts, ends), 1).astype(np.int32)
    cv2.polylines(veil, list(lines), False, 90, max(1, round(scale)), cv2.LINE_AA)
    veil = np.asarray(cv2.GaussianBlur(veil, (0, 0), max(0.8 * scale, 0.4)), np.uint8)
    faded = cv2.convertScaleAbs(image, alpha=0.8, beta=28)
    return np.asarray(cv2.add(faded, cv2.merge((veil, veil, veil))), np.uint8)


def _fog(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """A grey veil, densest from a third to the half of the height, where a road is far away."""
    rows = np.linspace(0, 1, len(image))[:, None, None]
    density = np.where(rows < 0.5, 0.72, 0.72 - 0.9 * (rows - 0.5))
    return np.asarray(image * (1 - density) + 195 * density, np.uint8)


def _night_noise(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A quarter of the light, and the noise of a sensor that makes up for it (sigma 12 of 255)."""
    noise = rng.normal(0, 12, image.shape)
    return np.asarray(np.clip(image * 0.25 + noise, 0, 255), np.uint8)


def _blur(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Motion to the side of 1 % of the width."""
    size = max(3, round(image.shape[1] * 0.01))
    return np.asarray(cv2.filter2D(image, -1, np.full((1, size), 1 / size, np.float32)), np.uint8)


def _glare(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A low sun: a bright spot near the middle of the image that fades over half the width."""
    height, width = image.shape[:2]
    x, y = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.5)
    rows, columns = np.mgrid[0:height, 0:width]
    far = np.hypot(columns - x, rows - y) / width
    light = 255 * np.exp(-((far / 0.12) ** 2)) + 110 * np.exp(-far / 0.25)
    return np.asarray(np.clip(image + light[..., None], 0, 255), np.uint8)


def _dead_pixels(image: Pixels, rng: np.random.Generator) -> Pixels:
    """One pixel in 500 is black or white, and two columns are dead."""
    out = image.copy()
    broken = rng.random(image.shape[:2]) < 0.002
    out[broken] = np.where(rng.random(int(broken.sum())) < 0.5, 0, 255)[:, None]
    out[:, rng.integers(0, image.shape[1], 2)] = 0
    return out


PERTURBATIONS: dict[str, _Operation | None] = {
    "rain": _rain,
    "fog": _fog,
    "night_noise": _night_noise,
    "blur": _blur,
    "glare": _glare,
    "dead_pixels": _dead_pixels,
    "time_shift": None,
    "int8": None,
}
"""By name. ``time_shift``: the frame before, with the labels of now. ``int8``: the quantized file
of a bundle beside its float file."""


@dataclass(frozen=True)
class PerturbedRate:
    """Share of labels missed, of the same frames with and without a perturbation.

    Attributes:
        part: ``all`` labels, or those of vulnerable road users (``vru``).
        frames: On which both were measured; ``drives`` and ``labels`` of these.
        clean: Miss rate without it, in [0, 1]; ``perturbed`` with it.
        low: Lower end of the 95 % interval of the difference, resampling drives; also ``high``.
    """

    name: str
    part: str
    frames: int
    drives: int
    labels: int
    clean: float
    perturbed: float
    low: float
    high: float


@dataclass(frozen=True)
class DegradedLatency:
    """Time from pixels to boxes on one kind of input, on this machine.

    Intervals are 95 % and about this machine as busy as it was: those of quantiles by order
    statistics (Conover, "Practical Nonparametric Statistics", 3.2), that of a share by Clopper and
    Pearson (1934). None where so few calls tell no upper end: for the 99th percentile, below 368.

    Attributes:
        name: One of `LATENCY_INPUTS`.
        calls: Timed predictions, one frame each.
        boxes: Mean number of boxes found.
        p50_ms: Median, with ``p50_low_ms`` and ``p50_high_ms``; ``p99_ms`` likewise.
        late: Share of calls above the deadline, with ``late_low`` and ``late_high``.
    """

    name: str
    calls: int
    boxes: float
    p50_ms: float
    p50_low_ms: float | None
    p50_high_ms: float | None
    p99_ms: float
    p99_low_ms: float | None
    p99_high_ms: float | None
    late: float
    late_low: float
    late_high: float

    def line(self) -> str:
        """In words, for a terminal."""
        p50 = f"{self.p50_ms:.1f} ms ({_ms(self.p50_low_ms)} to {_ms(self.p50_high_ms)})"
        p99 = f"{self.p99_ms:.1f} ms ({_ms(self.p99_low_ms)} to {_ms(self.p99_high_ms)})"
        return (
            f"{self.name:<12} {self.calls:>4} calls {self.boxes:>6.1f} boxes  median {p50}  "
            f"p99 {p99}  late {self.late:.1%} ({self.late_low:.1%} to {self.late_high:.1%})"
        )


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


LATENCY_INPUTS = ("clean", "night_noise", "rain", "crowd", "odd_sizes")
"""``crowd``: nine frames in one, so that suppression has many objects to sort; ``odd_sizes``: VGA,
4K and upright, in turn."""
_ODD_SIZES = ((640, 480), (3840, 2160), (720, 1280))


def measure_latency(
    model: Model, dataset: Dataset, *, deadline_ms: float, calls: int = 40, seed: int = 0
) -> tuple[DegradedLatency, ...]:
    """Latency of a model on clean and degraded input, one frame a call, in turn.

    A network takes the same time for any image; decoding, suppression and resizing do not. Kinds of
    input take turns, so that a busy machine slows all of them alike.

    Args:
        dataset: Frames whose images lie in a workspace, taken evenly.
        deadline_ms: From when on an answer is late.
        calls: Of each kind.
        seed: Of the perturbations.

    Raises:
        DataError: There are no frames, or they have no images.
    """
    workspace = dataset.workspace
    if workspace is None or not dataset.frames:
        raise DataError("no frames with images", where=dataset.name)
    refuse_held_out(Store(workspace), dataset.frames, "latency", roles=(Role.BLIND,))
    times: dict[str, list[float]] = {name: [] for name in LATENCY_INPUTS}
    boxes: dict[str, list[int]] = {name: [] for name in LATENCY_INPUTS}
    step = max(1, len(dataset.frames) // calls)
    frames = dataset.frames[::step]
    for number in range(calls + 1):
        image = load_frame(workspace, frames[number % len(frames)])
        for name in LATENCY_INPUTS:
            shown = _latency_input(image, name, number, seed)
            before = time.perf_counter()
            found = model.predictor.predict([shown])[0]
            spent = 1000 * (time.perf_counter() - before)
            if number:  # the first call of each kind warms up
                times[name].append(spent)
                boxes[name].append(len(found))
    return tuple(
        _latency(name, np.sort(times[name]), float(np.mean(boxes[name])), deadline_ms)
        for name in LATENCY_INPUTS
    )


def _latency_input(image: Pixels, name: str, number: int, seed: int) -> Pixels:
    if name == "odd_sizes":
        return np.asarray(cv2.resize(image, _ODD_SIZES[number % len(_ODD_SIZES)]), np.uint8)
    if name == "crowd":
        height, width = image.shape[:2]
        return np.tile(np.asarray(cv2.resize(image, (width // 3, height // 3))), (3, 3, 1))
    return image if name == "clean" else perturb(image, name, seed + number)


def _latency(
    name: str, times: NDArray[np.float64], boxes: float, deadline_ms: float
) -> DegradedLatency:
    calls, late = len(times), int((times > deadline_ms).sum())

    def quantile(share: float) -> tuple[float, float | None, float | None]:
        low, high = (int(rank) for rank in stats.binom.ppf((0.025, 0.975), calls, share))
        below = float(times[low - 1]) if low else None
        above = float(times[high]) if high < calls else None
        return float(np.quantile(times, share)), below, above

    low, high = stats.binomtest(late, calls).proportion_ci(0.95, "exact")
    share = (late / calls, float(low), float(high))
    return DegradedLatency(name, calls, boxes, *quantile(0.5), *quantile(0.99), *share)


def perturb(image: Pixels, name: str, seed: int = 0) -> Pixels:
    """A degraded copy of an image uint8 ``[height, width, 3]``.

    Raises:
        ParameterError: There is no such operation on images.
    """
    operation = PERTURBATIONS.get(name)
    if operation is None:
        known = [one for one, act in PERTURBATIONS.items() if act]
        raise ParameterError(f"no perturbation {name!r}", hint=did_you_mean(name, known))
    return operation(image, np.random.default_rng([seed, len(name)]))


def measure_perturbations(
    model: Model,
    dataset: Dataset,
    names: Collection[str] = tuple(PERTURBATIONS),
    *,
    history: Dataset | None = None,
    threshold: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[PerturbedRate, ...]:
    """Miss rates at IoU 0.5 under each perturbation, beside those of the same frames untouched.

    Args:
        model: For ``int8`` a bundle.
        dataset: Labelled frames whose images lie in a workspace.
        names: Of `PERTURBATIONS`.
        history: Has the frames before, for ``time_shift``; by default ``dataset`` itself. A frame
            without one before it is left out there.
        threshold: Score from which a box counts; the model's by default.
        resamples: Bootstrap resamples over drives.
        seed: Of the perturbations and of the resampling.
        progress: Called with the perturbations done and their total.

    Raises:
        DataError: There are no frames, or they have no images.
        ParameterError: A name is unknown.
        VerificationError: A frame is blind.
    """
    unknown = [name for name in names if name not in PERTURBATIONS]
    if unknown:
        hint = did_you_mean(unknown[0], list(PERTURBATIONS))
        raise ParameterError(f"no perturbation {unknown[0]!r}", hint=hint)
    workspace = dataset.workspace
    if workspace is None or not dataset.frames:
        raise DataError("no frames with images", where=dataset.name)
    refuse_held_out(Store(workspace), dataset.frames, "perturbations", roles=(Role.BLIND,))
    before = _frames_before(history or dataset)
    least = model.threshold if threshold is None else threshold

    def misses(
        of: Model, frames: Sequence[Frame], change: Callable[[Frame], Pixels]
    ) -> dict[str, tuple[Label, ...]]:
        """The missed labels by frame."""
        found = {}
        for frame in frames:
            boxes = [box for box in _predict(of, frame, change(frame)) if box.score >= least]
            labels = [one for one in dataset.labels_by_frame[frame.id] if _counts(one)]
            found[frame.id] = missed_labels(labels, boxes)
        return found

    clean = misses(model, dataset.frames, lambda frame: load_frame(workspace, frame))
    rates: list[PerturbedRate] = []
    for done, name in enumerate(names, start=1):
        base, frames = clean, dataset.frames
        if name == "int8":
            # What is deployed is the clean measurement; the float file is what it is beside.
            base = misses(model.fp32, frames, lambda frame: load_frame(workspace, frame))
            changed = clean
        elif name == "time_shift":
            frames = tuple(frame for frame in frames if frame.id in before)
            changed = misses(model, frames, lambda frame: load_frame(workspace, before[frame.id]))
        else:
            changed = misses(
                model,
                frames,
                lambda frame, name=name: perturb(load_frame(workspace, frame), name, seed),  # type: ignore[misc]
            )
        for part in ("all", "vru"):
            rate = _compare(name, part, dataset, frames, base, changed, resamples, seed)
            rates += [rate] if rate else []
        if progress:
            progress(done, len(names))
    return tuple(rates)


def _counts(label: Label) -> bool:
    return not label.ignore and label.origin.is_ground_truth


def _frames_before(dataset: Dataset) -> dict[str, Frame]:
    """The frame before each frame of its drive, where there is one at most `_MAX_SHIFT_US` ago."""
    found: dict[str, Frame] = {}
    last: Frame | None = None
    for frame in sorted(dataset.frames, key=lambda one: (one.drive, one.index)):
        if last is not None and last.drive == frame.drive:
            now, then = frame.timestamp_us, last.timestamp_us
            if now is not None and then is not None and 0 < now - then <= _MAX_SHIFT_US:
                found[frame.id] = last
        last = frame
    return found


def _predict(model: Model, frame: Frame, image: Pixels) -> list[Prediction]:
    found = model.predictor.predict([image])[0]
    return [
        Prediction(
            frame=frame.id,
            cls=model.classes[cls],
            box=Box(x=x0, y=y0, w=x1 - x0, h=y1 - y0),
            score=score,
        )
        for (x0, y0, x1, y1), cls, score in zip(
            found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True
        )
    ]


def _compare(
    name: str,
    part: str,
    dataset: Dataset,
    frames: Sequence[Frame],
    clean: dict[str, tuple[Label, ...]],
    changed: dict[str, tuple[Label, ...]],
    resamples: int,
    seed: int,
) -> PerturbedRate | None:
    """Rates and the interval of their difference; None without a label."""
    vulnerable = dataset.label_schema.vulnerable

    def number(labels: Sequence[Label]) -> int:
        return sum(part == "all" or label.cls in vulnerable for label in labels)

    by_drive: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, np.int64))
    for frame in frames:
        labels = [one for one in dataset.labels_by_frame[frame.id] if _counts(one)]
        row = (number(labels), number(clean[frame.id]), number(changed[frame.id]))
        by_drive[frame.drive] += np.array(row)
    table = np.array(list(by_drive.values())).reshape(-1, 3)
    total = table.sum(0)
    if total[0] == 0:
        return None
    rng = np.random.default_rng(seed)
    drawn = table[rng.integers(0, len(table), (resamples, len(table)))].sum(1)
    drawn = drawn[drawn[:, 0] > 0]
    low, high = np.percentile((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0], (2.5, 97.5)).tolist()
    return PerturbedRate(
        name=name,
        part=part,
        frames=len(frames),
        drives=len(table),
        labels=int(total[0]),
        clean=float(total[1] / total[0]),
        perturbed=float(total[2] / total[0]),
        low=low,
        high=high,
    )
