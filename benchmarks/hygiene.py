"""What hygiene finds of what was planted, and what it costs: ``python -m benchmarks.hygiene``.

Everything is planted into simulated drives whose boxes are known, so recall and precision are
counted against the truth. Label errors are judged by a small detector that was trained, here, on
the very labels that hold the errors, as a team's own would be. The peers are FiftyOne's own words
for the same: mistakenness of a label by the model's confidence in it, and duplicates by the file.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import Row, main, note, row
from workbench import data
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.curation import hygiene
from workbench.curation.hygiene import duplicates, leakage
from workbench.curation.hygiene.duplicates import FrameFeatures
from workbench.detection import label_errors
from workbench.detection.predictor import predict_frames
from workbench.detection.preprocessing import Preprocessing
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Frame, Label, Role
from workbench.records.types import Prediction
from workbench.simulation import traffic, write_drives
from workbench.training import TrainingConfig, train

PER_KIND = 25
_SMALLEST = 20.0
_SIDE = (320, 192)


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` renders a third of the drives and hardly trains."""
    count, steps = (16, 150) if quick else (48, 700)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / ".workbench")
        profile = traffic.FleetProfile("hygiene", drives=count, frames_per_drive=12)
        source = write_drives(Path(folder) / "drives", profile, seed=11)
        found = data.ingest(workspace, source, name="hygiene").dataset
        shares = {Role.SEED: 0.7, Role.VAL: 0.1, Role.SAFETY: 0.2}
        dataset = data.assign_roles(found, data.RolePolicy(shares=shares))
        note(f"{len(dataset.frames)} frames of {len(dataset.drives)} simulated drives")
        return [*_copies(workspace, dataset), *_labels(workspace, dataset, steps), *_cost(quick)]


def _copies(workspace: Workspace, dataset: Dataset) -> list[Row]:
    """Copies across the split: half with the same pixels, half saved worse and smaller."""
    rng = np.random.default_rng(1)
    judged = [frame for frame in dataset.frames if frame.role is Role.SAFETY]
    each = min(PER_KIND, len(judged) // 2)
    picked = rng.choice(len(judged), 2 * each, replace=False).tolist()
    added = []
    for number, row_ in enumerate(picked):
        original = judged[row_]
        copy = _copy(workspace, original, number, exact=number < each)
        added.append(copy)
    planted = replace(dataset, frames=(*dataset.frames, *added))
    start = time.process_time()
    prints = hygiene.compute_fingerprints(workspace, planted.frames)
    spent = (time.process_time() - start) / len(planted.frames)
    like = FrameFeatures(planted.frames, prints.hashes)
    twins = duplicates.find_duplicates(like, prints.pixels)
    leaks = leakage.check_leakage(planted, like).leaks
    alone = leakage.check_leakage(
        dataset, FrameFeatures(dataset.frames, prints.hashes[: len(dataset.frames)])
    )
    false = sum(leak.kind == "embedding" for leak in alone.leaks)
    exact = [set(cluster.frames) for cluster in twins.exact]
    near = [set(cluster.frames) for cluster in twins.near]
    names = [copy.id for copy in added]
    return [
        _share("exact duplicates found (other bytes)", _inside(names[:each], exact), each),
        _share("near duplicates found (JPEG 60, 0.7 of the size)",
               _inside(names[each:], near), each),
        _share("leaks across the split found",
               len({leak.second for leak in leaks if leak.kind == "embedding"} & set(names)),
               2 * each),
        row("leaks reported where none was planted", false, "pairs", goal="0", met=false == 0),
        row("fingerprint of a frame", 1000 * spent, "CPU-ms"),
    ]  # fmt: skip


def _labels(workspace: Workspace, dataset: Dataset, steps: int) -> list[Row]:
    """Errors planted among labels that a model then learns from."""
    spoilt, planted = plant(dataset)
    lessons = spoilt.role(Role.SEED)
    config = TrainingConfig(steps=steps, threads=2)
    size = Preprocessing(width=_SIDE[0], height=_SIDE[1])
    classes = dataset.label_schema.classes
    note(f"training {steps} steps on labels with {len(planted)} planted errors")
    model = train(lessons, config, classes=classes, preprocessing=size).predictor()
    predictions = list(predict_frames(workspace, model, spoilt.frames))
    start = time.process_time()
    found = label_errors.find_label_errors(spoilt, predictions)
    spent = time.process_time() - start
    total = len(planted)
    first = found[:total]
    hits = {key for one in first for key in [_match(one.frame, one.box, planted)] if key}
    anywhere = {key for one in found for key in [_match(one.frame, one.box, planted)] if key}
    boxes = len(spoilt.labels)
    chance = total / (boxes + total)
    theirs = _least_confident(spoilt, predictions, planted, total)
    precision = len(hits) / total
    rows = [
        row(
            f"label errors in the first {total} (of {boxes} boxes)",
            precision,
            "precision = recall",
            peer=chance,
            peer_name="looking at boxes at random",
            goal=">= 10x chance",
            met=precision >= 10 * chance,
        ),
        row(
            f"labels spoilt in the first {total}, missed boxes apart",
            len({k for k in hits if k[1] != "missed"}) / total,
            "share of all planted",
            peer=theirs / total,
            peer_name="labels the model is least sure of",
        ),
        _share("label errors found at all", len(anywhere), total),
        row("comparing labels of 100 frames", 100 * spent / len(spoilt.frames), "CPU-s"),
    ]
    for kind in ("missed", "class", "placed", "twice"):
        ours = sum(key[1] == kind for key in hits)
        count = sum(key[1] == kind for key in planted)
        rows.append(row(f"  {kind}: in the first {total}", ours / count, f"of {count}"))
    return rows


Planted = dict[tuple[str, str, int], Box]
"""Frame, kind and number of an error, and where it is."""


def plant(dataset: Dataset) -> tuple[Dataset, Planted]:
    """`PER_KIND` errors of each kind among well visible labels, at most one a frame."""
    rng = np.random.default_rng(2)
    plain = [
        number
        for number, one in enumerate(dataset.labels)
        if not one.ignore
        and min(one.box.w, one.box.h) >= _SMALLEST
        and (one.occluded or 0) < 0.3
        and (one.truncated or 0) < 0.1
    ]
    rng.shuffle(plain)
    labels: list[Label | None] = list(dataset.labels)
    more: list[Label] = []
    planted: Planted = {}
    used: set[str] = set()
    kinds = [kind for kind in ("missed", "class", "placed", "twice") for _ in range(PER_KIND)]
    for number in plain:
        one = dataset.labels[number]
        if not kinds or one.frame in used:
            continue
        kind = kinds.pop()
        used.add(one.frame)
        spoilt = _spoil(one, kind, dataset.label_schema.classes, rng)
        labels[number] = one if kind == "twice" else spoilt
        if kind == "twice" and spoilt is not None:
            more.append(spoilt)
        planted[one.frame, kind, number] = (spoilt or one).box
    kept = tuple(one for one in labels if one is not None)
    return replace(dataset, labels=(*kept, *more), ref=None), planted


def _spoil(one: Label, kind: str, classes: Sequence[str], rng: np.random.Generator) -> Label | None:
    box = one.box
    if kind == "missed":
        return None
    if kind == "class":
        others = [cls for cls in classes if cls != one.cls]
        return one.model_copy(update={"cls": others[int(rng.integers(len(others)))]})
    if kind == "placed":
        x, y = (float(rng.choice([-1, 1]) * rng.uniform(0.25, 0.4)) for _ in range(2))
        moved = box.model_copy(update={"x": box.x + x * box.w, "y": box.y + y * box.h * 0.3})
        return one.model_copy(update={"box": moved})
    return one.model_copy(update={"box": box.model_copy(update={"x": box.x + 0.04 * box.w})})


def _match(frame: str, box: Box, planted: Planted) -> tuple[str, str, int] | None:
    """The planted error that a finding is about: on the same frame, overlapping by 0.3."""
    from workbench.detection.boxes import boxes_to_array, iou_matrix

    for key, workspace in planted.items():
        if (
            key[0] == frame
            and iou_matrix(boxes_to_array([box]), boxes_to_array([workspace]))[0, 0] >= 0.3
        ):
            return key
    return None


def _least_confident(
    dataset: Dataset, predictions: Sequence[Prediction], planted: Planted, count: int
) -> int:
    """Spoilt labels among the ``count`` that the model bears out least: the peer."""
    from workbench.detection.boxes import boxes_to_array, iou_matrix

    by_frame: dict[str, list[Prediction]] = {}
    for one in predictions:
        by_frame.setdefault(one.frame, []).append(one)
    doubts = []
    for label in dataset.labels:
        if label.ignore:
            continue
        same = [one for one in by_frame.get(label.frame, ()) if one.cls == label.cls]
        overlap = iou_matrix(boxes_to_array([label.box]), boxes_to_array([one.box for one in same]))
        sure = max(
            (one.score for one, iou in zip(same, overlap[0], strict=True) if iou >= 0.5),
            default=0.0,
        )
        doubts.append((sure, label))
    doubts.sort(key=lambda pair: (pair[0], pair[1].id))
    first = {_match(label.frame, label.box, planted) for _, label in doubts[:count]}
    return len({key for key in first if key and key[1] != "missed"})


def _cost(quick: bool) -> list[Row]:
    """Duplicates among hashes that are drawn, not computed from images, and how the cost grows."""
    counts = (5_000, 10_000, 20_000) if quick else (10_000, 50_000, 200_000)
    spent = []
    rows = []
    for count in counts:
        like = FrameFeatures((), _driven(count))
        start = time.process_time()
        duplicates.connected_groups(like, hygiene.SimilarityThreshold(None, 40, 100, 0.1))
        spent.append(time.process_time() - start)
        rows.append(row(f"near duplicates among {count:,} hashes", spent[-1], "CPU-s"))
    growth = float(np.log(spent[-1] / spent[-2]) / np.log(counts[-1] / counts[-2]))
    million = spent[-1] * (1e6 / counts[-1]) ** 2
    rows.append(row("  growth exponent between the last two", growth, "2 is all with all"))
    rows.append(row("  a million, EXTRAPOLATED with the square", million, "CPU-s"))
    same = FrameFeatures((), _driven(1).repeat(counts[-1], axis=0))
    start = time.process_time()
    duplicates.connected_groups(same, hygiene.SimilarityThreshold(None, 40, 100, 0.1))
    spent_same = time.process_time() - start
    rows.append(row(f"  {counts[-1]:,} frames of one picture", spent_same, "CPU-s"))
    return rows


def _driven(count: int) -> NDArray[np.uint64]:
    """Hashes ``[count, 4]``: drives of 300 frames, 30 % standing, else 1 to 60 bits a frame."""
    rng = np.random.default_rng(7)
    bits = np.empty((count, 256), bool)
    for number in range(count):
        if number % 300 == 0:
            bits[number] = rng.random(256) < 0.5
            continue
        bits[number] = bits[number - 1]
        if rng.random() > 0.3:
            bits[number, rng.integers(0, 256, rng.integers(1, 61))] ^= True
    return np.packbits(bits, axis=1).view("<u8").astype(np.uint64)


def _copy(workspace: Workspace, original: Frame, number: int, *, exact: bool) -> Frame:
    with Image.open(media_path(workspace, original)) as opened:
        image = opened.convert("RGB")
    stream = io.BytesIO()
    if exact:
        image.save(stream, "PNG")
    else:
        smaller = image.resize((round(image.width * 0.7), round(image.height * 0.7)))
        smaller.save(stream, "JPEG", quality=60)
    content = stream.getvalue()
    size = Image.open(io.BytesIO(content)).size
    copy = Frame(
        id=digest.of_bytes(content),
        drive="copies",
        index=100 * number,
        width=size[0],
        height=size[1],
        suffix=".png" if exact else ".jpg",
        role=Role.SEED,
    )
    path = media_path(workspace, copy)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return copy


def _inside(names: Sequence[str], groups: Sequence[set[str]]) -> int:
    return sum(any(name in group and len(group) > 1 for group in groups) for name in names)


def _share(name: str, found: int, planted: int) -> Row:
    judged = "at all" not in name
    goal = ">= 0.95" if judged else ""
    met = found >= 0.95 * planted if judged else None
    return row(name, found / planted, f"of {planted}", goal=goal, met=met)


if __name__ == "__main__":
    main(measure)
