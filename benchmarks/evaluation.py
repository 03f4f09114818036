"""What intervals cost, and whether they hold: ``python -m benchmarks.evaluation``.

The peer is what people do today: run faster-coco-eval again on every resample of the drives, and
read off plain percentiles.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from workbench.core.keyring import signing_key
from workbench.core.workspace import Workspace
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
from workbench.release.signing import sign_folder, verify_folder

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
        *(gate_coverage(drives, 1000 if quick else 10_000) for drives in (100, 300)),
        family_errors(200 if quick else 2000),
        *matching_speed(100_000 if quick else 1_000_000),
        *signing(64 if quick else 512),
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


def gate_coverage(drives: int, gates: int) -> dict[str, Any]:
    """How often one-sided 95 % bounds of a gate on recall hold the truth, on the worse side.

    Drives differ in their number of boxes (negative binomial) and in their recall (beta). Limits
    are at the truth, so a bound that misses it is a wrong PASS or FAIL.
    """
    truth = 0.3
    held, percentile = np.zeros(2), np.zeros(2)
    for block in range(gates // 500):
        hits, boxes = _simulated(np.random.default_rng([7, drives, block]), drives, 500, truth)
        weights = resampling_module.draw_resamples(drives, 1000, seed=block)
        for own, of in zip(hits.T, boxes.T, strict=True):
            low, high = metrics.StudentizedRatio.of(own, of, weights).bounds(0.05)
            plain = metrics.percentile_interval(((weights @ own) / (weights @ of))[1:], drives, 0.9)
            assert plain is not None
            held += [low <= truth, truth <= high]
            percentile += [plain[0] <= truth, truth <= plain[1]]
    lower, upper = (held / (gates // 500 * 500)).tolist()
    worse = min(lower, upper)
    return row(
        f"one-sided 95 % bounds hold the truth, {drives} drives, {gates:,} gates"
        f" (lower {lower:.3f}, upper {upper:.3f})",
        ours=worse,
        peer=float(min(percentile / (gates // 500 * 500))),
        peer_name="expanded percentile",
        peer_method="measured",
        unit="share of gates",
        goal="0.94 to 0.96",
        met=lambda _: 0.94 <= lower <= 0.96 and 0.94 <= upper <= 0.96,
    )


def family_errors(families: int) -> dict[str, Any]:
    """How often any of eight gates at their limit passes wrongly, with and without correction."""
    truth, drives, count = 0.3, 100, 8
    wrong = np.zeros(2)
    for family in range(families):
        hits, boxes = _simulated(np.random.default_rng([8, family]), drives, count, truth)
        weights = resampling_module.draw_resamples(drives, 1000, seed=family)
        ratios = [
            metrics.StudentizedRatio.of(own, of, weights)
            for own, of in zip(hits.T, boxes.T, strict=True)
        ]
        p = [one.one_sided_p(truth, above=True) for one in ratios]
        levels = metrics.holm_levels(p, 0.05)
        wrong += [
            any(one <= level for one, level in zip(p, levels, strict=True)),
            min(p) <= 0.05,
        ]
    ours, peer = (wrong / families).tolist()
    return row(
        f"any of {count} gates passes wrongly, {drives} drives, {families:,} families",
        ours=ours,
        peer=peer,
        peer_name="no correction",
        peer_method="measured",
        unit="share of families",
        goal="<= 0.06",
        met=lambda _: ours <= 0.06,
    )


def signing(mebibytes: int) -> Iterator[dict[str, Any]]:
    """Signing and verifying a bundle of four files, sizes as those of an exported one."""
    content = os.urandom(2**20) * mebibytes
    with tempfile.TemporaryDirectory() as temporary:
        workspace, folder = Workspace(Path(temporary) / ".workbench"), Path(temporary) / "bundle"
        workspace.root.mkdir()
        folder.mkdir()
        key = signing_key(workspace)
        ends = [len(content) * tenth // 10 for tenth in (0, 4, 8, 9, 10)]
        for number, (start, end) in enumerate(pairwise(ends)):
            (folder / f"{number}.onnx").write_bytes(content[start:end])

        def speed(work: Callable[[], object]) -> float:
            spent = []
            for _ in range(3):
                begun = time.perf_counter()
                work()
                spent.append(time.perf_counter() - begun)
            return len(content) / 1e6 / min(spent)

        plain = speed(lambda: hashlib.sha256(content).digest())
        signed = speed(lambda: sign_folder(folder, key))
        verified = speed(lambda: verify_folder(folder, key.public))
    for name, ours in (("signing", signed), ("verifying", verified)):
        yield row(
            f"{name} a bundle of {mebibytes} MiB",
            ours=ours,
            peer=plain,
            peer_name="SHA-256 of the same bytes in memory, one thread",
            peer_method="measured",
            unit="MB/s",
            goal=">= 500 MB/s",
            met=lambda _, ours=ours: ours >= 500,  # type: ignore[misc]
        )


def _simulated(
    random: np.random.Generator, drives: int, gates: int, truth: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Hits and boxes ``[drives, gates]`` of drives that differ in both."""
    boxes = random.poisson(random.gamma(2, 10, (drives, gates))) + 1
    rate = random.beta(6 * truth, 6 * (1 - truth), (drives, gates))
    return random.binomial(boxes, rate), boxes


def matching_speed(detections: int) -> list[dict[str, Any]]:
    """Match detections and compute AP; nothing where pycocotools is not installed."""
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError:
        return []
    whole = _random_set(detections)

    def ours() -> float:
        table = match_slice(whole, ALL_FRAMES)
        one = np.zeros(len(whole.frames), np.int64)
        return float(np.nanmean(pool_metrics(table, one, np.ones((1, 1)), 0.3).ap[0]))

    def peer() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = COCO(), COCO()
            for one, rows in ((truth, False), (found, True)):
                one.dataset = {
                    "images": [{"id": n + 1} for n in range(len(whole.frames))],
                    "categories": [{"id": n + 1} for n in range(len(whole.classes))],
                    "annotations": _numbered(
                        _by_frame(whole, predicted=rows), list(range(len(whole.frames)))
                    ),
                }
                one.createIndex()
            run = COCOeval(truth, found, "bbox")
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            run.params.maxDets = [100]
            begun = time.process_time()
            run.evaluate()
            run.accumulate()
            spent.append(time.process_time() - begun)
        precision = run.eval["precision"][:, :, :, 0, 0]
        return float(precision[precision > -1].mean())

    spent: list[float] = []
    theirs = peer()
    begun = time.process_time()
    with threadpool_limits(1, user_api="blas"):
        mine = ours()
    used = time.process_time() - begun
    return [
        row(
            f"match {detections:,} detections and AP (differs by {abs(mine - theirs):.0e})",
            ours=used,
            peer=spent[0],
            peer_name="pycocotools",
            peer_method="measured",
            unit="CPU-s",
            goal="<= 0.2, same digits",
            met=lambda ratio: ratio <= 0.2 and abs(mine - theirs) < 1e-9,
        )
    ]


def _random_set(detections: int) -> EvaluationSet:
    """50 detections and 20 labels a frame, of four classes, as arrays."""
    random = np.random.default_rng(0)
    count = detections // 50
    frames = tuple(
        Frame(id=f"{n:064x}", drive=f"d{n}", index=0, width=1280, height=720, suffix=".jpg")
        for n in range(count)
    )
    at = np.repeat(np.arange(count), 20)
    box = np.concatenate(
        [random.uniform(0, (1100, 600), (len(at), 2)), random.uniform(8, 150, (len(at), 2))], axis=1
    )
    cls = random.integers(0, 4, len(at))
    truth = matching.GroundTruthBoxes(at, cls, box, np.zeros(len(at), np.bool_), np.arange(len(at)))
    near = box + random.normal(0, 4, box.shape)
    near[:, 2:] = np.maximum(near[:, 2:], 2)
    far = np.repeat(np.arange(count), 30)
    noise = np.concatenate(
        [random.uniform(0, (1100, 600), (len(far), 2)), random.uniform(8, 150, (len(far), 2))],
        axis=1,
    )
    frame = np.concatenate([at, far])
    kind = np.concatenate([cls, random.integers(0, 4, len(far))])
    boxes, score = np.concatenate([near, noise]), random.uniform(size=len(frame))
    order = np.lexsort((-score, kind, frame))
    predicted = matching.PredictedBoxes(
        frame[order], kind[order], boxes[order], score[order], np.arange(len(order))
    )
    return EvaluationSet(_SCHEMA, frames, (), truth, predicted)


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
