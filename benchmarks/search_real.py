"""Steered search and backtest on real rides: ``python -m benchmarks.search_real [--quick]``.

``BENCHMARK_RIDES`` names a folder with ``labels.coco.json`` and images of many rides, by default
``shared/data/bdd`` beside the repository. Rides are cut in halves by the digest of their names.
Methods and settings were chosen on the first half; every figure is of the second one as the pool,
searched with boxes drawn from the first. A box is any of its class, however small.

A figure is the share of the class among the first frames over its share in the pool, averaged over
draws of the boxes; its interval, 95 %, is over the pool's rides and holds the draws. After answers,
a person keeps what was confirmed and the best of the rest: that is ``kept``. ``unseen`` are the
first frames that were not answered for yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import trained
from benchmarks.common import Row, main, note, row
from workbench import data
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.lite0 import Lite0Encoder
from workbench.curation.selection.backtest import Signals, backtest, hidden_kinds
from workbench.curation.signals.probe import SteeredSearch
from workbench.curation.signals.rarity import SIGNAL_WEIGHTS, score_rarity
from workbench.curation.signals.similarity import Exemplar
from workbench.curation.signals.words import read_watch_list
from workbench.data import resampling
from workbench.data.slices import describe_conditions
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, LabelSchema
from workbench.records.types import Backtest

RIDES = "BENCHMARK_RIDES"
TOP = 25
CLICKS, ROUNDS = 20, 3
DRAWS = 4
BOXES = (5, 20)
GOALS = {5: 6.0, 20: 14.0}
AFTER_ROUNDS = 14.0
CLASSES = ("motor", "rider", "bike", "bus")
_RESAMPLES = 1000
_RARE_SHARE = 0.06


@dataclass(frozen=True)
class Pool:
    """The second half, embedded, and where it was searched from.

    Attributes:
        frames: Frames of the pool and of the exemplars, in the order of ``seen``.
        seen: Their embeddings.
        in_pool: Bool ``[n]``: frames of the second half.
        truth: Bool ``[n]`` by class.
        boxes: Labels of the first half by class.
        draws: Resamples of the rides, ``[r, n]`` counts of each frame.
    """

    frames: tuple[Frame, ...]
    seen: Embeddings
    in_pool: np.ndarray
    truth: dict[str, np.ndarray]
    boxes: dict[str, list[Label]]
    draws: np.ndarray

    def lift(self, order: np.ndarray, cls: str, count: int) -> np.ndarray:
        """Share among the first ``count`` over the share in the pool, ``[r]``; row 0 is the sample.

        A frame of a ride that was drawn twice counts twice among the first.
        """
        order = order[self.in_pool[order]]
        weights = self.draws[:, order]
        first = np.minimum(weights, np.clip(count - (np.cumsum(weights, 1) - weights), 0, None))
        hits = first @ self.truth[cls][order]
        share = (self.draws @ (self.truth[cls] & self.in_pool)) / (self.draws @ self.in_pool)
        return hits / first.sum(1) / np.maximum(share, 1e-9)


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` draws boxes twice."""
    folder = rides_folder()
    if folder is None:
        note(f"search on real rides skipped: no folder of rides; name one in {RIDES}")
        return []
    pool, dataset = prepared(folder)
    rows = []
    for cls in CLASSES:
        if len(pool.boxes.get(cls, [])) >= BOXES[0]:
            rows += search_rows(pool, cls, 2 if quick else DRAWS)
    return [*rows, *backtest_rows(pool, dataset)]


def rides_folder() -> Path | None:
    """The folder that the environment names, or the shared one beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "bdd"
    folder = Path(os.environ.get(RIDES) or beside)
    return folder if (folder / "labels.coco.json").is_file() else None


def first_half(drive: str) -> bool:
    return int(digest.of_bytes(drive.encode()), 16) % 2 == 0


def prepared(folder: Path) -> tuple[Pool, Dataset]:
    """Both halves, embedded once and kept."""
    workspace = Workspace(trained.cache() / f"{folder.name}-search" / ".workbench")
    # The source's own names: bicycles and their riders are two kinds here.
    annotations = json.loads((folder / "labels.coco.json").read_text())
    names = tuple(one["name"].replace(" ", "_") for one in annotations["categories"])
    schema = LabelSchema(name=folder.name, version=1, classes=names)
    dataset = data.ingest(workspace, folder, name=folder.name, format="coco", schema=schema).dataset
    note(f"embedding {len(dataset.frames)} frames")
    seen = embed(workspace, Lite0Encoder(workspace=workspace), dataset.frames)
    by_id = {frame.id: frame for frame in dataset.frames}
    frames = tuple(by_id[name] for name in seen.frames)
    row_of = {frame.id: number for number, frame in enumerate(frames)}
    in_pool = np.array([not first_half(frame.drive) for frame in frames])
    truth = {cls: np.zeros(len(frames), bool) for cls in dataset.label_schema.classes}
    boxes: dict[str, list[Label]] = {}
    for label in dataset.labels:
        if label.frame in row_of and label.box is not None:
            truth[label.cls][row_of[label.frame]] = True
            if not in_pool[row_of[label.frame]]:
                boxes.setdefault(label.cls, []).append(label)
    names, unit = np.unique([frame.drive for frame in frames], return_inverse=True)
    draws = resampling.draw_resamples(len(names), _RESAMPLES, 0)[:, unit]
    return Pool(frames, seen, in_pool, truth, boxes, draws), dataset


def search_rows(pool: Pool, cls: str, draws: int) -> list[Row]:
    """From five and twenty boxes, and after rounds of answers from five."""
    own = sorted(pool.boxes[cls], key=lambda one: (one.frame, one.box.x, one.box.y))
    found = int((pool.truth[cls] & pool.in_pool).sum())
    about = f"{found} of {int(pool.in_pool.sum())} frames have it"
    rows = []
    for count in BOXES:
        if len(own) < count:
            continue
        values, kept, unseen = [], [], []
        for seed in range(draws):
            chosen = np.random.default_rng(seed).permutation(len(own))[:count]
            search = SteeredSearch(pool.seen, [_exemplar(own[n]) for n in chosen])
            values.append(pool.lift(_order(search), cls, TOP))
            if count == BOXES[0]:
                answer(pool, search, cls)
                best = [pool.seen.frames.index(frame) for frame in search.accepted]
                left = _order(search)
                kept.append(pool.lift(np.array([*best, *left]), cls, TOP))
                unseen.append(pool.lift(left, cls, TOP))
        boxes = f"{count} boxes"
        rows.append(_row(f"{cls}, {boxes}, first {TOP}", values, about, GOALS[count]))
        if kept:
            after = f"{cls}, {boxes} and {ROUNDS} x {CLICKS} answers"
            rows.append(_row(f"{after}, {TOP} kept", kept, about, AFTER_ROUNDS))
            rows.append(_row(f"{after}, first {TOP} unseen", unseen, about, None))
    return rows


def answer(pool: Pool, search: SteeredSearch, cls: str) -> None:
    """Answer truly for the first frames, round by round."""
    for _ in range(ROUNDS):
        shown = _order(search)
        shown = shown[pool.in_pool[shown]][:CLICKS]
        search.refit(
            yes=[pool.seen.frames[n] for n in shown if pool.truth[cls][n]],
            no=[pool.seen.frames[n] for n in shown if not pool.truth[cls][n]],
        )


def backtest_rows(pool: Pool, dataset: Dataset) -> list[Row]:
    """Promise of a backtest on the first half, and truth on the second; no detector."""
    known, new = np.flatnonzero(~pool.in_pool), np.flatnonzero(pool.in_pool)
    labelled = pool.seen.take(known)
    frames = [pool.frames[n] for n in known.tolist()]
    rare = [cls for cls, found in pool.truth.items() if 0 < found[known].mean() < _RARE_SHARE]
    words = read_watch_list()
    names = ("watch", "frame")
    tested = backtest(
        labelled,
        hidden_kinds(frames, dataset.labels, dataset.label_schema.classes, rare),
        [frame.drive for frame in frames],
        Signals(names, {"watch": 1.0}, watch_list=words),
        share=0.05,
    )
    if tested is None:
        return []
    weights = {one.signal: one.weight for one in tested.signals if one.weight > 0}
    if not weights:
        note(f"backtest: {tested.reason}")
        return []
    scores = score_rarity(
        pool.seen.take(new),
        labelled,
        [describe_conditions(pool.frames[n], unknown="all") for n in new.tolist()],
        known_conditions=[describe_conditions(frame, unknown="all") for frame in frames],
        signals=tuple(weights),
        weights={**SIGNAL_WEIGHTS, **weights},
        watch_list=words,
    )
    top = new[scores.fused > 1 - tested.share]
    rows = []
    for one in tested.expected:
        cls = one.kind.removeprefix("class=")
        kinds = rare if one.kind == Backtest.ANY else [cls] if cls in pool.truth else []
        if not kinds:
            continue
        found = np.any([pool.truth[kind] for kind in kinds], axis=0)[top].mean()
        rows.append(
            row(
                f"backtest, {one.kind}: % of the first {tested.share:.0%}",
                100 * float(found),
                f"% found; promised [{100 * one.low:.1f}, {100 * one.high:.1f}];"
                f" {100 * one.prevalence:.1f} % of the labelled frames have it",
                peer=100 * one.rate,
                peer_name="promised",
                goal="in the interval",
                met=bool(one.low <= found <= one.high),
            )
        )
    return rows


def _exemplar(label: Label) -> Exemplar:
    box = label.box
    return Exemplar(label.frame, (box.x, box.y, box.w, box.h))


def _order(search: SteeredSearch) -> np.ndarray:
    return np.asarray(search.scores.order)


def _row(name: str, values: Sequence[np.ndarray], about: str, goal: float | None) -> Row:
    mean = np.mean(values, axis=0)
    low, high = np.quantile(mean[1:], [0.025, 0.975])
    note(f"  {name}: {mean[0]:.1f} [{low:.1f}, {high:.1f}]")
    return row(
        name,
        float(mean[0]),
        f"x chance [{low:.1f}, {high:.1f}]; {about}; {len(values)} draws",
        goal="" if goal is None else f"≥ {goal:g}",
        met=None if goal is None else bool(mean[0] >= goal),
    )


if __name__ == "__main__":
    main(measure)
