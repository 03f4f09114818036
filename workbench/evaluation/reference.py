"""The one door to faster-coco-eval, the reference implementation that the figures come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.evaluation.matching import MAX_DETECTIONS, counts
from workbench.evaluation.scene import Floats, Scene
from workbench.evaluation.slices import Slice

_NEVER = 1e12
"""An area outside every range: COCO ignores truth outside the range without making it a crowd."""


@dataclass(frozen=True)
class CocoFigures:
    """By class in the order of the slice's classes, NaN without truth; ``overall`` as COCOeval's.

    ``precision`` is [t, 101, k] and ``scores`` the same: the interpolated curve and the score
    at which each recall is reached.
    """

    ap: Floats
    ap50: Floats
    ar: Floats
    overall: tuple[float, float, float]
    precision: Floats
    scores: Floats


def coco_figures(scene: Scene, part: Slice) -> CocoFigures:
    """Run faster-coco-eval on one slice."""
    from faster_coco_eval import COCO, COCOeval_faster

    names = part.class_names(scene.schema)
    chosen = [cls + 1 for cls, name in enumerate(scene.classes) if name in names]
    images = [
        number + 1
        for number, frame in enumerate(scene.frames)
        if not part.frame or part.frame(frame)
    ]
    if not chosen or not images:
        return _nothing(len(names))
    truth, found = _as_coco(scene, part, set(images), set(chosen))
    run = COCOeval_faster(COCO(truth), COCO(found), iouType="bbox")
    run.params.imgIds, run.params.catIds = images, chosen
    run.params.areaRng, run.params.areaRngLbl = [list(part.area)], [part.name]
    run.params.maxDets = [MAX_DETECTIONS]
    run.evaluate()
    run.accumulate()
    size = (len(run.params.iouThrs), len(run.params.recThrs), len(chosen))
    precision = _or_nan(np.reshape(run.eval["precision"], size))
    recall = _or_nan(np.reshape(run.eval["recall"], (size[0], size[2])))
    return CocoFigures(
        ap=precision.mean(axis=(0, 1)),
        ap50=precision[0].mean(axis=0),
        ar=recall.mean(axis=0),
        overall=(_mean(precision), _mean(precision[0]), _mean(recall)),
        precision=precision,
        scores=np.reshape(run.eval["scores"], size),
    )


def _as_coco(
    scene: Scene, part: Slice, images: set[int], classes: set[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    frame = {
        "images": [{"id": number} for number in sorted(images)],
        "categories": [
            {"id": number, "name": scene.classes[number - 1]} for number in sorted(classes)
        ],
    }
    truth, predicted = scene.truth, scene.predicted
    counted = counts(scene, part)
    annotations: list[dict[str, Any]] = []
    for row, box in enumerate(truth.box.tolist()):
        image, cls = int(truth.frame[row]) + 1, int(truth.cls[row]) + 1
        if image in images and cls in classes:
            annotations.append(
                {
                    "id": row + 1,
                    "image_id": image,
                    "category_id": cls,
                    "bbox": box,
                    "area": box[2] * box[3] if counted[row] else _NEVER,
                    "iscrowd": int(truth.crowd[row]),
                }
            )
    found: list[dict[str, Any]] = []
    for row, box in enumerate(predicted.box.tolist()):
        image, cls = int(predicted.frame[row]) + 1, int(predicted.cls[row]) + 1
        if image in images and cls in classes:
            found.append(
                {
                    "id": row + 1,
                    "image_id": image,
                    "category_id": cls,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": float(predicted.score[row]),
                }
            )
    return {**frame, "annotations": annotations}, {**frame, "annotations": found}


def _or_nan(value: Floats) -> Floats:
    return np.where(value > -1, value, np.nan)


def _mean(value: Floats) -> float:
    """Mean of what is there, in COCOeval's own order of summation."""
    there = value[~np.isnan(value)]
    return float(np.mean(there)) if there.size else float("nan")


def _nothing(classes: int) -> CocoFigures:
    empty = np.full(classes, np.nan)
    curve = np.full((10, 101, classes), np.nan)
    nan = float("nan")
    return CocoFigures(empty, empty, empty, (nan, nan, nan), curve, curve)
