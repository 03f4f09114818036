"""What a vehicle measures of each frame and its answer, as sketches of a ride."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError
from workbench.core.types import Progress
from workbench.data.telemetry import SIGNALS, Sketch, count, merge, sketch
from workbench.deployment.runtime import Answer, AnswerBox, AnswerStatus, Runtime
from workbench.deployment.session import InputFrame, run_session
from workbench.detection.boxes import iou_matrix
from workbench.detection.preprocessing import Pixels

__all__ = ["RideSignals", "measure_rides"]

_BUFFERED = 4096  # values before they are added to a sketch
_TILES = 8  # a side, for blockage
_FLAT = 2.0 / 255  # standard deviation of luma in a tile without detail

# A near miss: an object that was first seen when it was already close (its box is high), away from
# the sides, where objects may enter late, and that came closer in the next frame.
_CLOSE = 0.2  # of the image's height
_SIDE = 0.05  # of the image's width
_SAME_IOU = 0.3
_GROWTH = 1.05  # of the height, from one frame to the next


@dataclass(frozen=True)
class ImageDescriptors:
    """Of one image; luma in [0, 1].

    Attributes:
        brightness: Mean luma.
        contrast: Standard deviation of luma.
        noise: Standard deviation of its noise (Immerkær, 1996).
        blockage: Share of 8 x 8 tiles without detail: dirt, ice, glare, or darkness.
    """

    brightness: float
    contrast: float
    noise: float
    blockage: float


def describe_image(image: Pixels) -> ImageDescriptors:
    """Descriptors of an RGB uint8 image ``[height, width, 3]``."""
    luma = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    # The operator answers to noise and hardly to edges; pixels are taken as they are, not resized.
    operator = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    answer = np.abs(cv2.filter2D(luma, -1, operator))[1:-1, 1:-1]
    noise = float(np.sqrt(np.pi / 2) / 6 * answer.mean()) if answer.size else 0.0
    high, wide = (max(1, side // _TILES) for side in luma.shape)
    tiles = luma[: high * (luma.shape[0] // high), : wide * (luma.shape[1] // wide)]
    blocks = tiles.reshape(tiles.shape[0] // high, high, tiles.shape[1] // wide, wide)
    return ImageDescriptors(
        brightness=float(luma.mean()),
        contrast=float(luma.std()),
        noise=noise,
        blockage=float((blocks.std(axis=(1, 3)) < _FLAT).mean()),
    )


class RideSignals:
    """Sketches of one ride; memory and size do not grow with its length.

    Args:
        classes: Of the model; each has sketches even if it is never seen.
        threshold: Score from which a box is acted on, for near misses.
        budget_ms: Time budget of a frame, for lateness.
    """

    def __init__(
        self, classes: Sequence[str], threshold: float, *, budget_ms: float | None = None
    ) -> None:
        self._classes, self._threshold, self._budget_ms = tuple(classes), threshold, budget_ms
        self._values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._sketches: dict[tuple[str, str], Sketch] = {}
        self._statuses: Counter[AnswerStatus] = Counter()
        self._events: Counter[str] = Counter()
        self._boxes: Counter[str] = Counter()
        self._before: NDArray[np.uint8] | None = None
        self._last: tuple[AnswerBox, ...] = ()
        self._last_known = False  # nothing is new in the first frame of a ride
        self._new: list[AnswerBox] = []

    def add(self, answer: Answer, image: Pixels | DataError) -> None:
        """Measure the next frame and its answer."""
        self._statuses[answer.status] += 1
        if answer.ms is not None:
            self._value("latency", answer.ms)
            if answer.status is AnswerStatus.LATE and self._budget_ms is not None:
                self._value("lateness", answer.ms - self._budget_ms)
        if not isinstance(image, DataError):
            self._describe(image)
        if answer.status is not AnswerStatus.OK:
            return  # boxes of the rule are not the model's
        for box in answer.boxes:
            left, top, right, bottom = box.xyxy
            self._boxes[box.cls] += 1
            self._value("confidence", box.score, box.cls)
            self._value("size", float(np.sqrt((right - left) * (bottom - top))), box.cls)
        if not isinstance(image, DataError):
            self._find_near_misses(answer.boxes, image.shape[0], image.shape[1])

    def shadow_dropped(self) -> None:
        """Count a frame for which the shadow model had no time."""
        self._events["frames.shadow_dropped"] += 1

    def sketches(self) -> tuple[Sketch, ...]:
        """All signals so far."""
        for key in list(self._values):
            self._add_up(*key)
        frames = self._statuses.total()
        found = [
            count(f"frames.{status}", self._statuses[status], frames) for status in AnswerStatus
        ]
        for name in ("frames.frozen", "frames.shadow_dropped", "near_misses"):
            found.append(count(name, self._events[name], frames))
        answered = self._statuses[AnswerStatus.OK]
        for cls in self._classes:
            found.append(count("detections", self._boxes[cls], answered, cls=cls))
        for signal in SIGNALS.values():
            for cls in self._classes if signal.by_class else ("",):
                if signal.edges:
                    empty = sketch(signal.name, [], cls=cls)
                    found.append(self._sketches.get((signal.name, cls), empty))
        return tuple(found)

    def _value(self, signal: str, value: float, cls: str = "") -> None:
        values = self._values[signal, cls]
        values.append(value)
        if len(values) >= _BUFFERED:
            self._add_up(signal, cls)

    def _add_up(self, signal: str, cls: str) -> None:
        new = sketch(signal, self._values.pop((signal, cls)), cls=cls)
        before = self._sketches.get((signal, cls))
        self._sketches[signal, cls] = new if before is None else merge([before, new])

    def _describe(self, image: Pixels) -> None:
        found = describe_image(image)
        for name in ("brightness", "contrast", "noise", "blockage"):
            self._value(f"input.{name}", getattr(found, name))
        same = self._before is not None and np.array_equal(self._before, image)
        self._events["frames.frozen"] += same
        self._before = np.array(image)

    def _find_near_misses(self, boxes: tuple[AnswerBox, ...], height: int, width: int) -> None:
        seen = [box for box in boxes if box.score >= self._threshold]
        for new in self._new:  # first seen in the last frame, close
            follower = _match(new, seen)
            if follower is not None and _height(follower) >= _GROWTH * _height(new):
                self._events["near_misses"] += 1
        self._new = [
            box
            for box in seen
            if self._last_known
            and _height(box) >= _CLOSE * height
            and box.xyxy[0] > _SIDE * width
            and box.xyxy[2] < (1 - _SIDE) * width
            and _match(box, self._last) is None
        ]
        self._last, self._last_known = tuple(seen), True


def measure_rides(
    runtime: Runtime,
    sources: Sequence[InputFrame],
    *,
    threads: int = 2,
    watch: Callable[[Answer], None] = lambda _answer: None,
    progress: Progress | None = None,
) -> dict[str, tuple[Sketch, ...]]:
    """Answer frames as a vehicle would; the sketches of each sequence, by its name.

    Args:
        runtime: With a score of 0: drift shows in the boxes that are not acted on, too.
        watch: Called with each answer.
    """
    rides: dict[str, RideSignals] = {}

    def measure(image: Pixels | DataError, answer: Answer) -> None:
        watch(answer)
        threshold = runtime.bundles[0].threshold
        new = RideSignals(runtime.classes, threshold, budget_ms=runtime.budget_ms)
        rides.setdefault(answer.sequence, new).add(answer, image)

    run_session(runtime, sources, watch=measure, threads=threads, progress=progress)
    return {name: ride.sketches() for name, ride in rides.items()}


def _height(box: AnswerBox) -> float:
    return box.xyxy[3] - box.xyxy[1]


def _match(box: AnswerBox, others: Sequence[AnswerBox]) -> AnswerBox | None:
    same = [other for other in others if other.cls == box.cls]
    if not same:
        return None
    overlap = iou_matrix(np.array([box.xyxy]), np.array([other.xyxy for other in same]))[0]
    best = int(overlap.argmax())
    return same[best] if overlap[best] >= _SAME_IOU else None
