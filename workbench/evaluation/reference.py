"""The one door to faster-coco-eval, the reference implementation that the figures come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.evaluation.matching import MAX_DETECTIONS, counts
from workbench.evaluation.scene import Floats, Ints, Predicted, Scene, Truth
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
    truth, found = _as_coco(scene, part, images, chosen)
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
    scene: Scene, part: Slice, images: list[int], classes: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    frame = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": scene.classes[number - 1]} for number in classes],
    }
    truth, predicted = scene.truth, scene.predicted
    area = np.where(counts(scene, part), truth.box[:, 2] * truth.box[:, 3], _NEVER)
    there = _annotations(truth, images, classes, area=area, iscrowd=truth.crowd.astype(np.int64))
    size = predicted.box[:, 2] * predicted.box[:, 3]
    found = _annotations(predicted, images, classes, area=size, score=predicted.score)
    return {**frame, "annotations": there}, {**frame, "annotations": found}


def _annotations(
    boxes: Truth | Predicted, images: list[int], classes: list[int], **more: Floats | Ints
) -> list[dict[str, Any]]:
    rows = np.flatnonzero(np.isin(boxes.frame + 1, images) & np.isin(boxes.cls + 1, classes))
    columns = {
        "id": rows + 1,
        "image_id": boxes.frame[rows] + 1,
        "category_id": boxes.cls[rows] + 1,
        "bbox": boxes.box[rows],
        **{name: value[rows] for name, value in more.items()},
    }
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


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
