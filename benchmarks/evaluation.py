"""What intervals cost, and whether they hold: ``python -m benchmarks.evaluation``.

The peer is what people do today: run faster-coco-eval again on every resample of the drives, and
read off plain percentiles.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from workbench.data import resampling as resampling_module
from workbench.data.slices import ALL_FRAMES, STANDARD_SLICES
from workbench.detection.model import Predictions
from workbench.evaluation import matching, metrics
from workbench.evaluation.coco import coco_metrics, pool_metrics
from workbench.evaluation.matching import EvaluationSet, match_slice
from workbench.evaluation.metrics import evaluate
from workbench.records.dataset import Dataset
from workbench.records.frames import (
    Box,
    Conditions,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Light,
    Origin,
    Weather,
)
from workbench.records.types import Prediction

RESAMPLES = 500
_SCHEMA = LabelSchema(
    name="benchmark",
    version=1,
    classes=("car", "truck", "pedestrian", "cyclist"),
    vulnerable=("pedestrian", "cyclist"),
)


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the benchmark; ``quick`` takes a fifth of the frames and trials."""
    frames = 200 if quick else 1000
    dataset, predictions = made(frames)
    return [
        resampling(dataset, predictions),
        everything(dataset, predictions),
        coverage(200 if quick else 1500),
    ]


def resampling(dataset: Dataset, predictions: list[Prediction]) -> dict[str, Any]:
    """AP, AP50 and AR of all classes with their intervals, without slices."""
    whole = matching.build_evaluation_set(dataset, predictions)

    def ours() -> None:
        table = match_slice(whole, ALL_FRAMES)
        groups = metrics.cluster_frames(whole.frames, table.frames)
        weights = resampling_module.draw_resamples(groups.count, RESAMPLES, seed=0)
        with threadpool_limits(1, user_api="blas"):  # as `evaluate` does
            pool_metrics(table, groups.of, weights, 0.3)

    sizes = (2, 4, 8)
    spent = [seconds(partial(_reruns, dataset, predictions, size)) for size in sizes]
    each, fixed = np.polyfit(sizes, spent, 1)
    return row(
        f"interval of AP, {len(dataset.frames)} frames, {RESAMPLES} resamples of drives",
        ours=seconds(ours),
        peer=float(fixed + each * RESAMPLES),
        peer_name="faster-coco-eval run on every resample",
        peer_method="extrapolated",
        unit="CPU-s",
        goal="<= 0.02",
        met=lambda ratio: ratio <= 0.02,
    )


def everything(dataset: Dataset, predictions: list[Prediction]) -> dict[str, Any]:
    """All slices, classes and metrics with intervals, against the bare point estimates."""
    whole = matching.build_evaluation_set(dataset, predictions)
    return row(
        f"{len(STANDARD_SLICES)} slices with intervals, {len(dataset.frames)} frames,"
        " 1000 resamples",
        ours=seconds(lambda: evaluate(Predictions(dataset, predictions))),
        peer=seconds(lambda: [coco_metrics(whole, part) for part in STANDARD_SLICES]),
        peer_name="faster-coco-eval on every slice, no intervals",
        peer_method="measured",
        unit="CPU-s",
        goal="<= 4",
        met=lambda ratio: ratio <= 4,
    )


def coverage(trials: int) -> dict[str, Any]:
    """How often a 95 % interval of ten drives, each with a recall of its own, holds the truth."""
    random = np.random.default_rng(1)
    held = np.zeros(2)
    for trial in range(trials):
        boxes = random.poisson(40, 10) + 1
        hits = random.binomial(boxes, random.beta(7, 3, 10))
        weights = resampling_module.draw_resamples(10, RESAMPLES, seed=trial)
        samples = ((weights @ hits) / (weights @ boxes))[1:]
        ends = metrics.percentile_interval(samples, 10, 0.95)
        assert ends is not None
        plain = np.quantile(samples, [0.025, 0.975])
        held += [low <= 0.7 <= high for low, high in (ends, plain)]
    ours, plain_share = (held / trials).tolist()
    return row(
        f"truth held by 95 % intervals, 10 drives, {trials} trials",
        ours=ours,
        peer=plain_share,
        peer_name="plain percentile bootstrap",
        peer_method="measured",
        unit="share of trials",
        goal="ours >= 0.92",
        met=lambda _: ours >= 0.92,
    )


def made(frames: int, drives: int = 20) -> tuple[Dataset, list[Prediction]]:
    """Frames with five boxes and about ten predictions each."""
    random = np.random.default_rng(0)
    rows: list[Frame] = []
    labels: list[Label] = []
    found: list[Prediction] = []
    for number in range(frames):
        drive = number % drives
        frame = Frame(
            id=f"{number:064x}",
            drive=f"d{drive:03d}",
            index=number // drives,
            timestamp_us=number // drives * 500_000,
            width=480,
            height=288,
            suffix=".jpg",
            conditions=Conditions(
                light=list(Light)[drive % 3],
                weather=list(Weather)[drive % 4],
                construction=drive % 7 == 0,
            ),
        )
        rows.append(frame)
        for _ in range(5):
            cls = _SCHEMA.classes[random.integers(4)]
            x, y = random.uniform(0, 350), random.uniform(0, 180)
            w, h = random.uniform(5, 120, 2)
            box = Box(x=x, y=y, w=w, h=h)
            hidden = float(random.uniform())
            labels.append(
                Label(frame=frame.id, cls=cls, box=box, origin=Origin.RENDERED, occluded=hidden)
            )
            if random.uniform() < 0.7:
                dx, dy, dw, dh = random.normal(0, 0.08, 4)
                near = Box(x=x + dx * w, y=y + dy * h, w=w * (1 + dw), h=h * (1 + dh))
                found.append(_prediction(random, frame, cls, near, (4, 2)))
        for _ in range(6):
            x, y = random.uniform(0, 350), random.uniform(0, 180)
            w, h = random.uniform(5, 120, 2)
            cls = _SCHEMA.classes[random.integers(4)]
            found.append(_prediction(random, frame, cls, Box(x=x, y=y, w=w, h=h), (2, 4)))
    names = tuple(Drive(id=f"d{drive:03d}", simulated=True) for drive in range(drives))
    return Dataset("benchmark", _SCHEMA, names, tuple(rows), tuple(labels), simulated=True), found


def _prediction(
    random: np.random.Generator, frame: Frame, cls: str, box: Box, shape: tuple[float, float]
) -> Prediction:
    return Prediction(frame=frame.id, cls=cls, box=box, score=float(random.beta(*shape)))


def _reruns(dataset: Dataset, predictions: list[Prediction], resamples: int) -> None:
    """Draw drives, copy their frames, and evaluate from the start, so many times."""
    from faster_coco_eval import COCO, COCOeval_faster

    whole = matching.build_evaluation_set(dataset, predictions)
    drives = sorted({frame.drive for frame in whole.frames})
    members: dict[str, list[int]] = {name: [] for name in drives}
    for number, frame in enumerate(whole.frames):
        members[frame.drive].append(number)
    truth = _by_frame(whole, predicted=False)
    found = _by_frame(whole, predicted=True)
    random = np.random.default_rng(0)
    for _ in range(resamples):
        drawn = [n for name in random.choice(drives, len(drives)) for n in members[name]]
        both = [
            {
                "images": [{"id": place + 1} for place in range(len(drawn))],
                "categories": [{"id": cls + 1} for cls in range(len(whole.classes))],
                "annotations": _numbered(rows, drawn),
            }
            for rows in (truth, found)
        ]
        run = COCOeval_faster(COCO(both[0]), COCO(both[1]), iouType="bbox")
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.maxDets = [100]
        run.evaluate()
        run.accumulate()


def _by_frame(whole: EvaluationSet, *, predicted: bool) -> list[list[dict[str, Any]]]:
    boxes = whole.predicted if predicted else whole.truth
    rows: list[list[dict[str, Any]]] = [[] for _ in whole.frames]
    for number in range(len(boxes.frame)):
        x, y, w, h = boxes.box[number].tolist()
        each: dict[str, Any] = {"category_id": int(boxes.cls[number]) + 1, "iscrowd": 0}
        each |= {"bbox": [x, y, w, h], "area": w * h}
        if predicted:
            each["score"] = float(whole.predicted.score[number])
        rows[boxes.frame[number]].append(each)
    return rows


def _numbered(rows: list[list[dict[str, Any]]], drawn: list[int]) -> list[dict[str, Any]]:
    there = [(place + 1, each) for place, frame in enumerate(drawn) for each in rows[frame]]
    return [
        each | {"id": number + 1, "image_id": image} for number, (image, each) in enumerate(there)
    ]


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the quicker of two runs: what else the machine does changes them little."""
    spent = []
    for _ in range(2):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return min(spent)


def row(
    name: str,
    *,
    ours: float,
    peer: float,
    peer_name: str,
    peer_method: str,
    unit: str,
    goal: str,
    met: Callable[[float], bool],
) -> dict[str, Any]:
    """One line of the table that all benchmarks share; the ratio is ours to the peer's."""
    ratio = ours / peer
    return {
        "name": name,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "peer_name": peer_name,
        "peer_method": peer_method,
        "ratio": round(ratio, 4),
        "unit": unit,
        "goal": goal,
        "met": met(ratio),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    for each in measure(chosen.quick):
        print(json.dumps(each) if chosen.json else each)


if __name__ == "__main__":
    main()
