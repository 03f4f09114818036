"""Bundles in ONNX Runtime: one frame at a time, with a time budget, and always an answer.

There is an answer for every frame, with its status:

    ok          boxes of the model, in time
    late        the model exceeded the time budget; boxes of the fallback rule
    fallback    the model failed; boxes of the fallback rule
    unreadable  the image could not be decoded; boxes of the fallback rule
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import ContractError, DataError, ParameterError
from workbench.detection.boxes import iou_matrix
from workbench.detection.bundles import (
    INT8_CPU_FILE,
    MANIFEST_FILE,
    model_files,
    operating_point,
    read_files,
    read_manifest,
    threshold_of,
)
from workbench.detection.families import Detections, decode
from workbench.detection.predictor import OnnxPredictor, detections_to_image
from workbench.detection.preprocessing import Pixels, preprocess_batch, require_input
from workbench.records.base import FrozenModel

__all__ = ["Runtime", "load_bundle"]


class AnswerStatus(StrEnum):
    """Where the boxes of an answer come from, see the module."""

    OK = "ok"
    LATE = "late"
    FALLBACK = "fallback"
    UNREADABLE = "unreadable"


class AnswerBox(FrozenModel):
    """One box: ``xyxy`` in pixels of the frame, ``score`` in [0, 1]."""

    cls: str
    score: float
    xyxy: tuple[float, float, float, float]


class Answer(FrozenModel):
    """The answer to one frame.

    Attributes:
        by: Source of the boxes: bundles, or the fallback rule.
        age: Frames since a model last answered in time; 0 for its own answer.
        ms: Time of preprocessing, network and decoding; None where no model ran.
        why: Reason for any status but ``ok``, or what to know about the image.
        frame: Digest of the frame, if it is in a dataset.
    """

    file: str
    sequence: str
    status: AnswerStatus
    boxes: tuple[AnswerBox, ...]
    by: str
    age: int = 0
    ms: float | None = None
    why: str = ""
    frame: str | None = None


# The fallback rule repeats the last boxes that a model gave in time, with falling scores, for a
# quarter of a second of video at most. After that the answer is empty and says so: nothing is
# known, which is not the same as a free road. The rule is deterministic. It does not move boxes: at
# 30 frames per second a vehicle ahead moves less than the error of a predicted motion.

RULE_LAST_BOXES = "rule: last known boxes"
RULE_NO_BOXES = "rule: nothing is known"


@dataclass(frozen=True)
class FallbackRule:
    """Parameters of the fallback rule.

    Attributes:
        decay: Factor of the scores for each frame without an answer of a model, in (0, 1].
        max_frames: Frames after which no boxes are repeated.
        min_score: Boxes with a lower score are dropped, in [0, 1].

    Raises:
        ParameterError: A value is out of range.
    """

    decay: float = 0.8
    max_frames: int = 8
    min_score: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.max_frames < 0 or not 0 <= self.min_score <= 1:
            raise ParameterError(
                "invalid fallback rule",
                where=f"decay {self.decay}, max_frames {self.max_frames}, "
                f"min_score {self.min_score}",
                hint="decay must be in (0, 1], max_frames at least 0, min_score in [0, 1]",
            )


class FallbackMemory:
    """Last answer of a model in each sequence of frames."""

    def __init__(self, rule: FallbackRule | None = None) -> None:
        self.rule = rule or FallbackRule()
        self._last: dict[str, tuple[tuple[AnswerBox, ...], int]] = {}

    def remember(self, sequence: str, boxes: tuple[AnswerBox, ...]) -> None:
        """Store the boxes that a model gave in time."""
        self._last[sequence] = (boxes, 0)

    def recall(self, sequence: str) -> tuple[tuple[AnswerBox, ...], str, int]:
        """Boxes of the rule for the next frame of a sequence, name of the rule, age in frames."""
        boxes, age = self._last.get(sequence, ((), self.rule.max_frames))
        age += 1
        self._last[sequence] = (boxes, age)
        if age > self.rule.max_frames:
            return (), RULE_NO_BOXES, age
        factor = self.rule.decay**age
        repeated = tuple(
            AnswerBox(cls=box.cls, score=round(box.score * factor, 6), xyxy=box.xyxy)
            for box in boxes
            if box.score * factor >= self.rule.min_score
        )
        return repeated, RULE_LAST_BOXES, age


_BoxRows = NDArray[np.float64]


def fuse_boxes(members: Sequence[Detections], *, iou: float = 0.55, limit: int = 100) -> Detections:
    """Fuse the detections of several models on one frame (Solovyev et al., 2021).

    Weighted boxes fusion averages overlapping boxes of a class with their scores as weights, and
    lowers the score of a box that few models detect. The result does not depend on the order of the
    models.

    Args:
        members: Detections of each model, in pixels of the frame.
        iou: IoU with a fused box above which a box is merged into it.
        limit: Maximum number of boxes.

    Raises:
        ParameterError: There are no models.
    """
    if not members:
        raise ParameterError("no models to fuse")
    rows = np.concatenate([_box_rows(detections) for detections in members])
    # By class, falling score and position, so that ties do not depend on the order of models.
    order = np.lexsort((*(rows[:, column] for column in (3, 2, 1, 0)), -rows[:, 4], rows[:, 5]))
    fused: list[_BoxRows] = []
    for cls in np.unique(rows[:, 5]):
        fused += _fuse_class(rows[order][rows[order][:, 5] == cls], iou, len(members))
    table = np.array(fused, np.float64).reshape(-1, 6)
    best = np.lexsort((table[:, 0], table[:, 1], table[:, 5], -table[:, 4]))[:limit]
    table = table[best]
    return Detections(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.float32),
        table[:, 5].astype(np.int64),
    )


def _box_rows(detections: Detections) -> _BoxRows:
    """``[n, 6]``: box, score, class."""
    columns = (detections.boxes, detections.scores[:, None], detections.classes[:, None])
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def _fuse_class(rows: _BoxRows, iou: float, models: int) -> list[_BoxRows]:
    clusters: list[list[_BoxRows]] = []
    fused: list[_BoxRows] = []
    for row in rows:
        joined = -1
        if fused:
            overlap = iou_matrix(row[None, :4], np.array(fused)[:, :4])[0]
            best = int(overlap.argmax())
            joined = best if overlap[best] > iou else -1
        if joined < 0:
            clusters.append([row])
            fused.append(row.copy())
        else:
            clusters[joined].append(row)
            fused[joined] = _average_boxes(clusters[joined])
    for cluster, box in zip(clusters, fused, strict=True):
        box[4] *= min(len(cluster), models) / models
    return fused


def _average_boxes(cluster: list[_BoxRows]) -> _BoxRows:
    table = np.array(cluster)
    weights = table[:, 4] / table[:, 4].sum()
    box: _BoxRows = table[0].copy()
    box[:4] = weights @ table[:, :4]
    box[4] = table[:, 4].mean()
    return box


@dataclass(frozen=True)
class LoadedBundle:
    """A checked bundle with one of its models loaded.

    Attributes:
        file: Name of the model file.
        digest: Of the manifest, which lists the digest of every other file.
        simulated: Whether the bundle's evidence is simulated.
        threshold: Score from which its boxes are acted on.
    """

    folder: Path
    file: str
    digest: str
    predictor: OnnxPredictor
    simulated: bool
    threshold: float


def load_bundle(
    folder: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    file: str = INT8_CPU_FILE,
    threads: int = 2,
) -> LoadedBundle:
    """Check every file of a bundle, then load one of its models from the bytes that were checked.

    Args:
        folder: Of the bundle. Its signature is not checked here, see `workbench.release`.
        files: Its bytes by name, if a signature or record of them was verified; the folder, which
            may have changed since, is not read then.
        file: Name of an ONNX file of the bundle.
        threads: Threads per operator.

    Raises:
        RecordError: A file is missing, changed or not listed, or the contracts differ.
        ContractError: This machine's preprocessing gives another tensor than the model expects.
        ParameterError: The bundle has no such model.
    """
    files = read_files(folder) if files is None else files
    manifest = read_manifest(folder, files)
    if file not in model_files(manifest):
        raise ParameterError(
            f"bundle has no model {file!r}",
            where=folder,
            hint=f"Models: {', '.join(model_files(manifest))}",
        )
    return LoadedBundle(
        folder=folder,
        file=file,
        digest=digest.of_bytes(files[MANIFEST_FILE]),
        predictor=OnnxPredictor(files[file], threads=threads),
        simulated=bool(manifest.get("simulated")),
        threshold=threshold_of(operating_point(manifest)),
    )


class Runtime:
    """Answers frames in order with one or several bundles.

    The boxes of several bundles are fused. If one of them fails or the time budget does not suffice
    for it, the first bundle answers alone and the answer names it.

    Args:
        bundles: The first one is the primary.
        budget_ms: Time for preprocessing, networks and decoding of one frame; None for no limit.
        score: Boxes with a lower score are left out; None for the threshold of the first bundle.
        rule: Fallback rule for frames without an answer of a model.

    Raises:
        ParameterError: There is no bundle, the classes differ, or the budget is not positive.
    """

    def __init__(
        self,
        bundles: Sequence[LoadedBundle],
        *,
        budget_ms: float | None = None,
        score: float | None = None,
        rule: FallbackRule | None = None,
    ) -> None:
        if not bundles:
            raise ParameterError("no bundle to run")
        if budget_ms is not None and not budget_ms > 0:
            raise ParameterError(f"budget is {budget_ms} ms, must be above 0", where="budget")
        self.classes = bundles[0].predictor.classes
        for other in bundles[1:]:
            if other.predictor.classes != self.classes:
                raise ParameterError("bundles have different classes", where=other.folder)
        self.bundles = tuple(bundles)
        self.memory = FallbackMemory(rule)
        self.budget_ms = budget_ms
        self.score = bundles[0].threshold if score is None else score
        for bundle in bundles:  # warm-up: the first run of a network is slow
            spec = bundle.predictor.preprocessing
            blank = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
            self._ask(bundle, blank)

    def answer(
        self, image: Pixels | DataError, *, file: str, sequence: str, frame: str | None = None
    ) -> Answer:
        """Answer the next frame of a sequence.

        Args:
            image: RGB uint8 ``[height, width, 3]``, or the error of decoding it.
            file: Name of the frame in the answer.
            sequence: Name of the sequence; the fallback rule uses frames of the same one only.
            frame: Digest of the frame, if it is in a dataset.
        """
        if isinstance(image, DataError):
            return self._by_rule(file, sequence, frame, AnswerStatus.UNREADABLE, None, image.what)
        start = time.perf_counter()
        try:
            detections, by, why = self._by_models(image, start)
        except (ContractError, DataError) as error:
            spent = _elapsed_ms(start)
            return self._by_rule(file, sequence, frame, AnswerStatus.FALLBACK, spent, error.what)
        spent = _elapsed_ms(start)
        if self.budget_ms is not None and spent > self.budget_ms:
            reason = f"{spent:.1f} ms, budget is {self.budget_ms:g} ms"
            return self._by_rule(file, sequence, frame, AnswerStatus.LATE, spent, reason)
        boxes = self._boxes(detections)
        self.memory.remember(sequence, boxes)
        return Answer(
            file=file,
            sequence=sequence,
            frame=frame,
            status=AnswerStatus.OK,
            boxes=boxes,
            by=by,
            ms=spent,
            why=why,
        )

    def _by_models(self, image: Pixels, start: float) -> tuple[Detections, str, str]:
        first = self._ask(self.bundles[0], image)
        if len(self.bundles) == 1:
            return first, _bundle_name(self.bundles[0]), ""
        members, slowest = [first], _elapsed_ms(start)
        for bundle in self.bundles[1:]:
            spent = _elapsed_ms(start)
            if self.budget_ms is not None and spent + slowest > self.budget_ms:
                return first, _bundle_name(self.bundles[0]), f"no time for {_bundle_name(bundle)}"
            try:
                members.append(self._ask(bundle, image))
            except (ContractError, DataError) as error:
                return first, _bundle_name(self.bundles[0]), f"{_bundle_name(bundle)}: {error.what}"
            slowest = max(slowest, _elapsed_ms(start) - spent)
        limit = self.bundles[0].predictor.config.max_detections
        return fuse_boxes(members, limit=limit), "+".join(map(_bundle_name, self.bundles)), ""

    @staticmethod
    def _ask(bundle: LoadedBundle, image: Pixels) -> Detections:
        predictor = bundle.predictor
        batch, transforms = preprocess_batch([image], predictor.preprocessing)
        batch = require_input(batch, predictor.preprocessing, where=bundle.folder)
        try:
            maps = predictor.raw(batch)
        except Exception as error:  # ONNX Runtime's errors share no public base
            raise DataError(f"ONNX Runtime failed: {error}", where=bundle.folder) from error
        if not all(np.isfinite(values).all() for values in maps):
            raise ContractError("network output is NaN or infinite", where=bundle.folder)
        return detections_to_image(decode(maps, predictor.config)[0], transforms[0], image)

    def _boxes(self, detections: Detections) -> tuple[AnswerBox, ...]:
        kept = detections.above(self.score)
        return tuple(
            AnswerBox(
                cls=self.classes[int(number)],
                score=round(float(score), 6),
                xyxy=tuple(round(float(side), 3) for side in box),
            )
            for box, score, number in zip(kept.boxes, kept.scores, kept.classes, strict=True)
        )

    def _by_rule(
        self,
        file: str,
        sequence: str,
        frame: str | None,
        status: AnswerStatus,
        ms: float | None,
        why: str,
    ) -> Answer:
        boxes, by, age = self.memory.recall(sequence)
        return Answer(
            file=file,
            sequence=sequence,
            frame=frame,
            status=status,
            boxes=boxes,
            by=by,
            age=age,
            ms=ms,
            why=why,
        )


def _bundle_name(bundle: LoadedBundle) -> str:
    return f"bundle {digest.shorten(bundle.digest)}"


def _elapsed_ms(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 3)
