"""Does mining find the long tail? ``python -m benchmarks.mining [--quick] [--json]``.

Five simulated pools of 6,000 frames, each with eleven rare slices of about 0.15 %, are ranked by
our finding and by what people use instead; the detector behind all of them never saw anything rare.
What a person would label first is then looked up in the truth of the simulation. Settings were
fixed on the pools of `TUNING`; those of `JUDGED` were only judged.

Every arm has the same frame vectors, those of the detector. Ours takes one keyframe an event, as
`workbench mine` does: of frames of one drive within `APART_S`, the best comes first and the others
only after all other events. An event counts as found when one of its frames is chosen. A ratio is
to the expectation of a random choice; intervals are 95 % (Student's t over the pools).

An exemplar is the middle frame of an event with a box around what is rare; frames of its own drive
are left out of the search, as finding those is no feat.

Rendering, training and embedding are kept in the scratch folder of the workspace and go on after a
kill. Everything here is simulated.
"""

from __future__ import annotations

import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks import mining_peers, mining_pools
from benchmarks.common import Row, main, note
from benchmarks.mining_pools import Pool
from benchmarks.mining_rows import (
    CORRECTED,
    GOALS,
    OURS,
    Tally,
    arm_rows,
    cost_rows,
    exemplar_rows,
    headlines,
    slice_rows,
)
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals import rarity, similarity
from workbench.curation.signals.similarity import Exemplar
from workbench.detection.predictor import TorchPredictor
from workbench.simulation import traffic

TUNING, JUDGED = (101, 102), (1, 2, 3, 4, 5)
BUDGETS = (0.01, 0.02, 0.05)
APART_S = 1.5

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Ready:
    """A pool, what is labelled, and both as the detector sees them.

    Of frames of one drive within ``apart_s`` seconds, one comes first and the others later.
    """

    pool: Pool
    known: Pool
    seen: Embeddings
    labelled: Embeddings
    apart_s: float = APART_S

    @property
    def rare(self) -> NDArray[np.bool_]:
        return np.array([bool(truth.kinds) for truth in self.pool.truth])

    def events(self) -> dict[tuple[str, str], list[int]]:
        """Frames of each event: a kind happens once in a drive."""
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, (frame, truth) in enumerate(
            zip(self.pool.frames, self.pool.truth, strict=True)
        ):
            for kind in truth.kinds:
                found[kind, frame.drive].append(number)
        return found


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes two small pools, a hasty detector and judges none."""
    profile = (
        mining_pools.smaller(traffic.LONG_TAIL_PROFILE, 24) if quick else traffic.LONG_TAIL_PROFILE
    )
    known = mining_pools.ordinary(16 if quick else mining_pools.ORDINARY.drives)
    model = mining_pools.detector(known, 60 if quick else mining_pools.STEPS)
    tally, alike = Tally(), Tally()
    slices: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, float] = {}
    for seed in JUDGED[:2] if quick else JUDGED:
        ready = prepared(mining_pools.pool(profile, seed), known, model)
        for name, arm in arms(ready):
            began = time.process_time()
            order = arm()
            costs[name].append(time.process_time() - began)
            if name not in peaks:
                peaks[name] = peak_mb(arm)
            count(tally, name, order, ready)
            if name == OURS:
                by_slice(slices, order, ready)
        count(tally, "oracle", oracle(ready), ready)
        search(alike, ready)
        note(f"pool {seed}: ours {tally.ratio[f'{OURS}, frames at 1 %'][-1]:.1f} x random at 1 %")
    return [
        *headlines(tally, judged=not quick),
        *arm_rows(tally),
        *exemplar_rows(alike, judged=not quick),
        *slice_rows(slices),
        *cost_rows(costs, peaks, len(ready.seen.frames)),
    ]


def prepared(pool: Pool, known: Pool, model: TorchPredictor) -> Ready:
    """Embed what is not embedded yet."""
    home = mining_pools.pool_workspace()
    seen, labelled = embed(home, model, pool.frames), embed(home, model, known.frames)
    return Ready(pool, known, seen, labelled)


def arms(
    ready: Ready, budgets: Sequence[float] = BUDGETS
) -> Iterator[tuple[str, Callable[[], Rows]]]:
    """Names, and how each orders the pool."""
    seen = ready.seen
    most = round(max(budgets) * len(seen.frames))
    yield OURS, partial(ours, ready)
    yield "ours, every frame for itself", partial(ranked, ready)
    yield CORRECTED, partial(mining_peers.corrected_uniqueness, seen)
    yield "FiftyOne uniqueness", partial(mining_peers.fiftyone_uniqueness, seen)
    yield "k-centre", partial(mining_peers.k_centre, seen, ready.labelled, most)
    yield "entropy", partial(mining_peers.entropy, seen)
    drawn = np.random.default_rng(ready.pool.seed).permutation(len(seen.frames))
    yield "random, drawn once", partial(np.copy, drawn)


def ranked(ready: Ready) -> Rows:
    """Frames by `finding.score`, the rarest first."""
    scores = rarity.score_rarity(
        ready.seen,
        ready.labelled,
        ready.pool.conditions,
        known_conditions=ready.known.conditions,
        drives=[frame.drive for frame in ready.pool.frames],
    )
    order: Rows = np.argsort(-scores.fused, kind="stable")
    return order


def ours(ready: Ready) -> Rows:
    """The same, one keyframe an event first."""
    order = ranked(ready)
    frames = ready.pool.frames
    taken: dict[str, list[float]] = defaultdict(list)
    first, later = [], []
    for number in order.tolist():
        at = (frames[number].timestamp_us or 0) / 1e6
        near = any(abs(at - other) <= ready.apart_s for other in taken[frames[number].drive])
        (later if near else first).append(number)
        if not near:
            taken[frames[number].drive].append(at)
    return np.array(first + later)


def oracle(ready: Ready) -> Rows:
    """The best there is: one frame of each event, then the rest of their frames."""
    heads = [frames[0] for frames in ready.events().values()]
    rare = np.flatnonzero(ready.rare)
    return np.array(list(dict.fromkeys([*heads, *rare.tolist()])))


def count(
    tally: Tally, name: str, order: Rows, ready: Ready, budgets: Sequence[float] = BUDGETS
) -> None:
    """Frames and events found at each budget."""
    rare, total = ready.rare, len(ready.rare)
    for share in budgets:
        chosen = order[: round(share * total)]
        label = f"at {share:.0%}".replace("%", " %")
        tally.add(f"{name}, frames {label}", rare[chosen].sum() / rare.sum(), share)
        picked = set(chosen.tolist())
        events = list(ready.events().values())
        found = [not picked.isdisjoint(event) for event in events]
        by_chance = [1 - (1 - share) ** len(event) for event in events]
        tally.add(f"{name}, events {label}", float(np.mean(found)), float(np.mean(by_chance)))


def by_slice(slices: dict[str, list[float]], order: Rows, ready: Ready) -> None:
    """Which kinds of event are found at the largest budget."""
    picked = set(order[: round(max(BUDGETS) * len(order))].tolist())
    for (kind, _), event in ready.events().items():
        slices[kind].append(float(not picked.isdisjoint(event)))


def search(tally: Tally, ready: Ready, tops: Sequence[int] = tuple(GOALS)) -> None:
    """One boxed exemplar an event; how many other frames of its slice come first?"""
    kinds = [set(truth.kinds) for truth in ready.pool.truth]
    drives = np.array([frame.drive for frame in ready.pool.frames])
    places: dict[int, list[float]] = defaultdict(list)
    chance = []
    for (kind, _), event in ready.events().items():
        shown = event[len(event) // 2]
        drive = drives[shown]
        wanted = np.array([kind in found for found in kinds]) & (drives != drive)
        if not wanted.any():
            continue
        one = exemplar(ready, shown, kind)
        order = similarity.search_by_example(ready.seen, [one]).order
        order = order[drives[order] != drive]
        chance.append(wanted.sum() / len(order))
        for top in tops:
            places[top].append(wanted[order[:top]].sum() / min(top, len(order)))
    for top in tops:
        if chance:
            tally.add(f"top {top}", float(np.mean(places[top])), float(np.mean(chance)))


def exemplar(ready: Ready, shown: int, kind: str) -> Exemplar:
    truth, frame = ready.pool.truth[shown], ready.pool.frames[shown]
    return Exemplar(frame.id, truth.boxes[truth.kinds.index(kind)])


def peak_mb(arm: Callable[[], Rows]) -> float:
    """Largest sum of arrays and objects while an arm runs, beyond what was there before."""
    tracemalloc.start()
    arm()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


if __name__ == "__main__":
    main(measure)
