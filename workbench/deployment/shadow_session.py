"""A champion with a candidate in its shadow: which frames come back, within a number of bytes."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from workbench.core.errors import DataError
from workbench.core.types import Json, Progress
from workbench.deployment.runtime import Answer, AnswerBox, AnswerStatus, Runtime
from workbench.deployment.session import InputFrame, decode_ahead
from workbench.deployment.shadow import ShadowPair, ShadowProcess
from workbench.detection.boxes import match_greedy

__all__ = ["FrameSample", "run_shadow"]

_SAME_IOU: Final = 0.5
_DISAGREEMENT_WEIGHT: Final = 10.0
_LAST_S: Final = 30.0


@dataclass
class ShadowSummary:
    """Result of `run_shadow`.

    Attributes:
        answers: Of the champion, in order.
        compared: Frames that both models answered.
        disagreeing: Frames among them with a box that only one model has.
        dropped: Frames that the candidate was not shown: no time.
    """

    answers: list[Answer] = field(default_factory=list)
    compared: int = 0
    disagreeing: int = 0
    dropped: int = 0


def run_shadow(
    runtime: Runtime,
    shadow: ShadowProcess,
    sources: Sequence[InputFrame],
    sample: FrameSample,
    *,
    fps: float | None = None,
    progress: Progress | None = None,
) -> ShadowSummary:
    """Answer frames with the champion, and show them to the candidate.

    Args:
        runtime: The champion. It is warm: its answers do not depend on the shadow.
        sample: Gets the frames to send back.
        fps: Frames a second, as from a camera; None waits for the candidate, and drops nothing.
    """
    summary, start = ShadowSummary(), time.monotonic()
    by_name = {source.file: source for source in sources}

    def take(pairs: list[ShadowPair]) -> None:
        for pair in pairs:
            summary.compared += 1
            summary.disagreeing += sample.offer(pair, by_name[pair.champion.file])

    for number, (source, image) in enumerate(decode_ahead(sources)):
        if fps is not None:
            time.sleep(max(0.0, start + number / fps - time.monotonic()))
        shadow.pause()
        answer = runtime.answer(
            image, file=source.file, sequence=source.sequence, frame=source.frame
        )
        shadow.resume()
        summary.answers.append(answer)
        if answer.status is AnswerStatus.OK and not isinstance(image, DataError):
            shadow.offer(answer, image)
        take(shadow.collect(wait_s=0.0 if fps is not None else _LAST_S))
        if progress:
            progress(number + 1, len(sources))
    take(shadow.collect(wait_s=_LAST_S))
    summary.dropped = shadow.dropped
    return summary


def disagreement(first: tuple[AnswerBox, ...], second: tuple[AnswerBox, ...]) -> int:
    """Boxes of either answer that have no counterpart of their class in the other (IoU 0.5).

    Each answer has the boxes that its model acts on.
    """
    if not first or not second:
        return len(first) + len(second)
    names = sorted({box.cls for box in (*first, *second)})
    boxes = [np.array([box.xyxy for box in boxes]) for boxes in (first, second)]
    classes = [np.array([names.index(box.cls) for box in boxes]) for boxes in (first, second)]
    matched = match_greedy(
        boxes[0], np.array([box.score for box in first]), boxes[1], iou=_SAME_IOU,
        classes=classes[0], truth_classes=classes[1],
    )  # fmt: skip
    same = int((matched >= 0).sum())
    return len(first) + len(second) - 2 * same


@dataclass(frozen=True, order=True)
class ReturnedFrame:
    """A frame that is sent back to be labelled.

    Attributes:
        priority: Decides what is kept; the lowest goes first.
        weight: 1 for a frame on which both agree, more for a disagreement.
        about: Both answers, and the frame's names.
        image: Encoded.
    """

    priority: float
    weight: float = field(compare=False)
    about: Json = field(compare=False)
    image: bytes = field(compare=False)


class FrameSample:
    """Frames to send back within a number of bytes: disagreements, and a random arm.

    Priority sampling (Duffield, Lund and Thorup, 2007) with a threshold that adapts to the bytes
    (Ting, 2022): a frame's priority is its weight divided by a random number in (0, 1]; the frames
    of highest priority are kept. Given the threshold, each frame was kept with a known probability,
    whatever the others are, so what is kept estimates all frames without bias. Frames on which both
    models agree have weight 1: they are the random arm, without which nobody could say what both
    models missed.

    Args:
        max_bytes: Of the images of one day, or of one ride.
        seed: Of the random numbers.
    """

    def __init__(self, max_bytes: int, *, seed: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._rng = np.random.default_rng(seed)
        self._heap: list[ReturnedFrame] = []
        self.threshold = 0.0
        self.compared: dict[str, int] = {}
        """Frames that both models answered, by sequence."""

    def offer(self, pair: ShadowPair, source: InputFrame) -> bool:
        """Consider a frame that both models answered; returns whether they disagree.

        The image's file is read only for frames that are kept.
        """
        sequence = pair.champion.sequence
        self.compared[sequence] = self.compared.get(sequence, 0) + 1
        only_one = disagreement(pair.champion.boxes, pair.candidate.boxes)
        weight = sample_weight(only_one)
        priority = weight / (1.0 - self._rng.random())
        if priority > self.threshold:
            self._keep(pair, source.path.read_bytes(), weight, priority)
        return only_one > 0

    def _keep(self, pair: ShadowPair, image: bytes, weight: float, priority: float) -> None:
        about: Json = {
            "file": pair.champion.file,
            "drive": pair.champion.sequence,
            "frame": pair.champion.frame,
            "champion": [box.model_dump(mode="json") for box in pair.champion.boxes],
            "candidate": [box.model_dump(mode="json") for box in pair.candidate.boxes],
        }
        heapq.heappush(self._heap, ReturnedFrame(priority, weight, about, image))
        self._bytes += len(image)
        while self._bytes > self._max_bytes:
            lowest = heapq.heappop(self._heap)
            self._bytes -= len(lowest.image)
            self.threshold = max(self.threshold, lowest.priority)

    def kept(self) -> list[tuple[Json, bytes]]:
        """What is said about each kept frame, and its image; highest priority first.

        ``arm`` is ``disagreement`` or ``random``, and ``probability`` that with which it was kept.
        """
        found = []
        for frame in sorted(self._heap, reverse=True):
            arm = "random" if frame.weight == 1 else "disagreement"
            kept = keep_probability(frame.weight, self.threshold)
            found.append(({**frame.about, "arm": arm, "probability": kept}, frame.image))
        return found


def sample_weight(boxes: int) -> float:
    """Weight of a frame with so many boxes that only one model has.

    The variance is least if it is proportional to the square root of the expected square of the
    difference in misses; its ratio is a guess that affects the width of the interval only.
    """
    return _DISAGREEMENT_WEIGHT * float(np.sqrt(boxes)) if boxes else 1.0


def keep_probability(weight: float, threshold: float) -> float:
    """Probability with which a frame was kept, given the threshold."""
    return 1.0 if threshold <= weight else weight / threshold
