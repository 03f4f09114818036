"""Mining on real drives: ``python -m benchmarks.mining_real [--quick] [--json]``.

``BENCHMARK_DRIVES`` names a folder of labelled drives. One class, or one light, is treated as rare
and unlabelled: a detector learns from one drive without the frames that have it, all frames of the
other drives are the pool, and the labels then tell who would have found it. Every drive is learned
from in turn, each with several seeds of training. The arms are those of `benchmarks.mining`, with
the settings that were fixed on simulated drives; nothing was tuned here.

A class that is in 2 to 25 % of a pool is judged as recorded. One that is in more than 10 % is also
made rarer, where enough frames remain: whole events are drawn, the last one cut, until they are
10 % of the pool, and other frames that have it leave the pool; a model's figure is the mean over
several such draws. An event is a run of consecutive frames that have it. For a light, the frames'
own word for it is hidden, or it would be a question for a database; where one drive alone has it,
what is found may be the drive as well as the light.

Intervals are 95 % (Student's t) over the models, which share their few drives. They say how much
seeds and draws move the figure, nothing about other drives: this describes and decides nothing.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import mining, trained
from benchmarks.common import Row, main, note, row
from benchmarks.mining_drives import Rare, Split, groups, runs, splits, thinned
from benchmarks.mining_pools import Pool, Truth, learned
from benchmarks.mining_rows import Tally, arm_rows, exemplar_rows
from workbench import data
from workbench.core import processes
from workbench.core.workspace import Workspace
from workbench.curation.embedding.compute import embed
from workbench.detection.predictor import TorchPredictor
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role
from workbench.training.config import TrainingConfig

DRIVES = "BENCHMARK_DRIVES"
BUDGETS = (0.05, 0.10, 0.20)
TOPS = (10, 25)
DRAWS = 3
SEEDS = (0, 1, 2)
STEPS = 200
APART_S = 2.0
"""As `workbench mine` keeps frames of a drive apart: these have about one frame a second."""


@dataclass(frozen=True)
class Ready(mining.Ready):
    """As in `benchmarks.mining`, but for events: what is rare comes and goes in a drive."""

    def events(self) -> dict[tuple[str, str], list[int]]:
        return {
            (
                self.pool.truth[rows[0]].kinds[0],
                f"{self.pool.frames[rows[0]].drive}@{rows[0]}",
            ): rows
            for rows in runs([frame.drive for frame in self.pool.frames], self.rare.tolist())
        }


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes one hasty detector of one drive."""
    folder = os.environ.get(DRIVES)
    if not folder or not Path(folder).is_dir():
        note(f"mining on real drives skipped: {DRIVES} names no folder of drives")
        return []
    steps, seeds = (30, SEEDS[:1]) if quick else (STEPS, SEEDS)
    workspace, dataset = ingested(Path(folder))
    found = splits(dataset)
    if quick:
        found = found[:1]
    if not found:
        note(f"no class and no light is rare enough in {Path(folder).name}, or it has one drive")
        return []
    learn_all(workspace, dataset, [(split, seed) for seed in seeds for split in found], steps)
    rows = []
    for name, judged, thin in groups(found):
        note(f"judging {name}")
        rows += judge(
            name, judged, lambda s, k: detector(workspace, dataset, s, k, steps), seeds, thin
        )
    drives = len(dataset.drives)
    note(f"{drives} drives show little: these figures describe just them")
    return [replace(one, unit=f"{one.unit}; descriptive, {drives} drives") for one in rows]


def ingested(source: Path) -> tuple[Workspace, Dataset]:
    """The drives, read anew each time: hundreds of frames take seconds, and media are kept."""
    workspace = Workspace(trained.cache() / f"{source.name}-mining" / ".workbench")
    return workspace, data.ingest(workspace, source, name=source.name).dataset


def detector(
    workspace: Workspace, dataset: Dataset, split: Split, seed: int, steps: int
) -> tuple[Workspace, TorchPredictor]:
    """Learned from the split's known frames alone, on one thread; kept."""
    own = {frame.id for frame in split.known}
    lessons = dataset.where(lambda frame: frame.id in own)
    frames = tuple(frame.model_copy(update={"role": Role.SEED}) for frame in lessons.frames)
    config = TrainingConfig(steps=steps, seed=seed, threads=1)
    return workspace, learned(workspace, replace(lessons, frames=frames), config)


def learn_all(
    workspace: Workspace, dataset: Dataset, wanted: Sequence[tuple[Split, int]], steps: int
) -> None:
    """Train and embed what is not kept yet, two at a time."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, context, initializer=processes.die_with_pool_owner) as running:
        jobs = [running.submit(_learn, workspace, dataset, *one, steps) for one in wanted]
        for done, job in enumerate(jobs, start=1):
            job.result()
            note(f"  {done} of {len(jobs)} detectors")


def _learn(workspace: Workspace, dataset: Dataset, split: Split, seed: int, steps: int) -> None:
    import torch

    torch.set_num_threads(1)
    embed(*detector(workspace, dataset, split, seed, steps), (*split.known, *split.pool))


def judge(
    name: str,
    found: Sequence[Split],
    model: Callable[[Split, int], tuple[Workspace, TorchPredictor]],
    seeds: Sequence[int],
    thin: bool,
) -> list[Row]:
    """All arms on all splits and seeds; one value a model."""
    tally, alike = Tally(), Tally()
    pools: list[Pool] = []
    for split in found:
        for seed in seeds:
            arms, searches = Tally(), Tally()
            for draw in range(DRAWS if thin else 1):
                frames = thinned(split, 1000 * seed + draw) if thin else split.pool
                ready = prepared(split, frames, DRAWS * seed + draw, *model(split, seed))
                for arm, order in mining.arms(ready, BUDGETS):
                    mining.count(arms, arm, order(), ready, BUDGETS)
                mining.count(arms, "oracle", mining.oracle(ready), ready, BUDGETS)
                mining.search(searches, ready, TOPS)
                pools.append(ready.pool)
            average(arms, tally)
            average(searches, alike)
    rows = [about(found, pools), *arm_rows(tally)]
    if alike.recall:
        rows += exemplar_rows(alike, judged=False, goals=dict.fromkeys(TOPS))
    return [replace(one, name=f"{name}: {one.name}") for one in rows]


def about(found: Sequence[Split], pools: Sequence[Pool]) -> Row:
    """How common it is; the first thing to know of every figure below."""
    rare = [[bool(truth.kinds) for truth in pool.truth] for pool in pools]
    events = [
        len(list(runs([f.drive for f in pool.frames], flags)))
        for pool, flags in zip(pools, rare, strict=True)
    ]
    known = ", ".join(split.drive for split in found)
    return row(
        "prevalence",
        100 * float(np.mean([np.mean(flags) for flags in rare])),
        f"% of {np.mean([len(flags) for flags in rare]):.0f} frames in {np.mean(events):.0f} "
        f"events (means of {len(pools)} pools); learned from {known}",
    )


def average(inner: Tally, outer: Tally) -> None:
    """Draws of one model share it, so they count as one."""
    for name, values in inner.recall.items():
        outer.recall[name].append(float(np.mean(values)))
        outer.ratio[name].append(float(np.mean(inner.ratio[name])))


def prepared(
    split: Split, frames: tuple[Frame, ...], seed: int, workspace: Workspace, model: TorchPredictor
) -> Ready:
    """What the arms look at."""
    pool, known = (_pool(split.rare, part, seed) for part in (frames, split.known))
    seen, labelled = embed(workspace, model, pool.frames), embed(workspace, model, known.frames)
    return Ready(pool, known, seen, labelled, APART_S)


def _pool(rare: Rare, frames: tuple[Frame, ...], seed: int) -> Pool:
    truth = tuple(
        Truth((rare.name,), tuple(rare.boxes[f.id] for _ in (0,) if f.id in rare.boxes))
        if f.id in rare.frames
        else Truth((), ())
        for f in frames
    )
    return Pool(seed, frames, truth, ())


if __name__ == "__main__":
    main(measure)
