"""Mining on real rides: ``python -m benchmarks.mining_real [--quick] [--json]``.

``BENCHMARK_DRIVES`` names a folder of labelled rides; by default ``../shared/data/bdd`` where it
exists. A class on at most a tenth of the frames is a rare kind. Everything starts cold: nobody has
labelled any of it, and the labels only tell who would have found it.

Rides are split in halves by the digest of their names. Settings were tuned on the one half of
BDD100K's rides and are judged on the other; both are shown. Each half is a pool of its own, and
how many times chance a ranking finds a kind has a 95 % interval by resampling rides (bootstrap,
1,000 times). Small pools limit the figure: a kind on 6 % of the frames is found 17 times chance at
most.

Peers rank the same pools in the same run: FiftyOne's uniqueness and representativeness, uniqueness
without its fault and greedy k-centre by the same encoder's vectors; and entropy and the signals of
rendered drives by a compact detector of 200 labelled frames that show nothing rare, learned in
``BENCHMARK_STEPS`` steps (60; 0 leaves these arms out).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import mining_peers as peers
from benchmarks import trained
from benchmarks.common import Row, main, note, row
from benchmarks.mining_pools import learned
from workbench import data
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.lite0 import Lite0Encoder
from workbench.curation.selection.mining import condition_of
from workbench.curation.signals.rarity import score_rarity
from workbench.curation.signals.words import find_words, read_watch_list, watch, word_evidence
from workbench.data import readers
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, LabelSchema, Role
from workbench.training.config import TrainingConfig

DRIVES = "BENCHMARK_DRIVES"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "bdd"
SHARES, TOPS = (0.01, 0.02, 0.05, 0.10), (25, 50, 100)
RARE_AT_MOST, LEAST_FRAMES = 0.10, 8
RESAMPLES, LABELLED = 1000, 200
STEPS = int(os.environ.get("BENCHMARK_STEPS", "60"))
ANY = "any rare kind"
OURS = "default (watch list)"
DETECTOR_SIGNALS = ("entropy", "novelty", "doubt", "objects", "tiles")

Floats = NDArray[np.float64]
Lifts = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Half:
    """A pool: frames of some rides, as the encoder and the detector see them."""

    name: str
    frames: tuple[Frame, ...]
    seen: Embeddings
    detected: Embeddings | None
    labelled: Embeddings | None
    known: tuple[Frame, ...]
    kinds: dict[str, NDArray[np.bool_]]
    rides: NDArray[np.int64]


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes every fourth ride and a hasty detector."""
    folder = Path(os.environ.get(DRIVES) or SHARED)
    if not folder.is_dir():
        note(f"mining on real rides skipped: {DRIVES} names no folder of rides")
        return []
    workspace, dataset = ingested(folder, quick=quick)
    encoder = Lite0Encoder(workspace=workspace)
    kinds = rare_kinds(dataset)
    if not kinds:
        note(f"no class of {folder.name} is on at most {RARE_AT_MOST:.0%} of the frames")
        return []
    note(f"embedding {len(dataset.frames)} frames of {len(dataset.drives)} rides")
    embed(workspace, encoder, dataset.frames)
    tuning, judged = halves(workspace, dataset, encoder, kinds, STEPS // 4 if quick else STEPS)
    return [
        *headlines(judged, judge=not quick),
        *half_rows(judged),
        *(one for one in half_rows(tuning) if ANY in one.name),
        *cost_rows(workspace, dataset, encoder),
    ]


def ingested(source: Path, *, quick: bool = False) -> tuple[Workspace, Dataset]:
    """The rides, read anew each time: it takes seconds, and media are kept."""
    workspace = Workspace(trained.cache() / f"{source.name}-mining" / ".workbench")
    boxes = (box for frame in readers.read_source(source, "auto").frames for box in frame.boxes)
    classes = tuple(sorted({box.name for box in boxes}))
    schema = LabelSchema(name="own", version=1, classes=classes)  # the source's own classes
    dataset = data.ingest(workspace, source, name=source.name, schema=schema).dataset
    if quick:
        dataset = dataset.where(lambda frame: _parity(frame.drive, 8) < 2)
    return workspace, dataset


def rare_kinds(dataset: Dataset) -> dict[str, frozenset[str]]:
    """Frames by rare class, and of any of them."""
    frames: dict[str, set[str]] = {}
    for label in dataset.labels:
        if not label.ignore:
            frames.setdefault(label.cls, set()).add(label.frame)
    rare = {
        name: frozenset(own)
        for name, own in sorted(frames.items())
        if len(own) <= RARE_AT_MOST * len(dataset.frames)
    }
    return {**rare, ANY: frozenset().union(*rare.values())} if rare else {}


def halves(
    workspace: Workspace,
    dataset: Dataset,
    encoder: Lite0Encoder,
    kinds: dict[str, frozenset[str]],
    steps: int,
) -> Iterator[Half]:
    """The tuning half, then the judged one; what is labelled is of the tuning half."""
    parts = [tuple(f for f in dataset.frames if _parity(f.drive) == side) for side in (0, 1)]
    known = tuple(frame for frame in parts[0] if frame.id not in kinds[ANY])[:LABELLED]
    model = detector(workspace, dataset, known, steps) if steps else None
    labelled = embed(workspace, model, known) if model else None
    for name, frames in zip(("tuning half", "judged half"), parts, strict=True):
        rides = {drive: number for number, drive in enumerate(sorted({f.drive for f in frames}))}
        yield Half(
            name=name,
            frames=frames,
            seen=embed(workspace, encoder, frames),
            detected=embed(workspace, model, frames) if model else None,
            labelled=labelled,
            known=known,
            kinds={
                kind: truth
                for kind, own in kinds.items()
                if (truth := np.array([f.id in own for f in frames])).sum() >= LEAST_FRAMES
            },
            rides=np.array([rides[frame.drive] for frame in frames]),
        )


def detector(
    workspace: Workspace, dataset: Dataset, known: Sequence[Frame], steps: int
) -> TorchPredictor:
    """The compact detector, learned from frames that show nothing rare; kept."""
    own = {frame.id for frame in known}
    lessons = dataset.where(lambda frame: frame.id in own)
    frames = tuple(frame.model_copy(update={"role": Role.SEED}) for frame in lessons.frames)
    return learned(workspace, replace(lessons, frames=frames), TrainingConfig(steps=steps))


def _parity(drive: str, parts: int = 2) -> int:
    return int(hashlib.sha256(drive.encode()).hexdigest(), 16) % parts


def lifts(value: Floats, truth: NDArray[np.bool_], rides: NDArray[np.int64]) -> Lifts:
    """Times chance at each of `SHARES` and `TOPS`, with the ends of its 95 % interval.

    Args:
        value: ``[n]``, the largest first.
        truth: Bool ``[n]``: frames that have the kind.
        rides: Int64 ``[n]``: number of each frame's ride.
    """
    order = np.argsort(-value, kind="stable")
    found, ride = truth[order].astype(float), rides[order]
    draws = np.random.default_rng(0).multinomial(
        rides.max() + 1, np.full(rides.max() + 1, 1 / (rides.max() + 1)), RESAMPLES
    )
    weights = np.vstack([np.ones(len(order)), draws[:, ride]])
    before = np.cumsum(weights, axis=1) - weights
    total, rate = weights.sum(1), (weights * found).sum(1) / weights.sum(1)
    results: Lifts = []
    for top in (*(share * total for share in SHARES), *TOPS):
        limit = np.broadcast_to(np.maximum(1.0, np.round(top)), total.shape)[:, None]
        taken = np.clip(limit - before, 0, weights)  # the last frame may count in part
        with np.errstate(invalid="ignore"):
            ratio = (taken * found).sum(1) / taken.sum(1) / rate
        low, high = np.nanpercentile(ratio[1:], [2.5, 97.5])
        results.append((float(ratio[0]), float(low), float(high)))
    return results


def arms(half: Half) -> Iterator[tuple[str, Floats]]:
    """Rankings that do not know which class is rare: a value a frame, the largest first."""
    seen, count = half.seen, len(half.frames)
    yield OURS, watch(seen, read_watch_list()).value
    yield "FiftyOne uniqueness", peers.fiftyone_values(seen.vectors)
    yield "FiftyOne representativeness", peers.fiftyone_representativeness(seen.vectors)
    yield "corrected uniqueness", _as_values(peers.corrected_uniqueness(seen), count)
    yield "k-centre", _as_values(peers.k_centre(seen, None, count), count)
    yield "random, drawn once", np.random.default_rng(1).random(count)
    if half.detected is None:
        return
    scores = score_rarity(
        half.detected,
        half.labelled,
        [condition_of(frame) for frame in half.frames],
        known_conditions=[condition_of(frame) for frame in half.known],
        signals=DETECTOR_SIGNALS,
        drives=[frame.drive for frame in half.frames],
    )
    yield from zip(scores.names, scores.ranks.T, strict=True)


def rankings_by_word(half: Half, kind: str) -> Iterator[tuple[str, Floats]]:
    """Rankings for one kind: by its word, and by the watch list without it."""
    try:
        words = find_words(kind)
    except ParameterError:
        return
    yield "its word", word_evidence(half.seen, words).value
    own = {number for word in words for number in word.classes}
    others = [word for word in read_watch_list() if not own & set(word.classes)]
    yield "watch list without it", watch(half.seen, others).value


def headlines(half: Half, *, judge: bool) -> list[Row]:
    """The goals, on the judged half."""
    truth = half.kinds[ANY]
    by_arm = {name: lifts(value, truth, half.rides) for name, value in arms(half)}
    rows = []
    for at, share, goal in ((0, "1 %", 6.0), (2, "5 %", 4.0)):
        name = max((name for name in by_arm if name != OURS), key=lambda one: by_arm[one][at][0])
        ours = by_arm[OURS][at]
        rows.append(
            row(
                f"{ANY}, default mining, first {share}",
                ours[0],
                f"x chance ({ours[1]:.1f} to {ours[2]:.1f})",
                peer=by_arm[name][at][0],
                peer_name=f"{name}, the best of them",
                goal=f">= {goal:g}",
                met=ours[0] >= goal if judge else None,
            )
        )
    for kind in (one for one in half.kinds if one != ANY):
        for name, value in rankings_by_word(half, kind):
            result = lifts(value, half.kinds[kind], half.rides)
            at, goal = (len(SHARES), 12.0) if name == "its word" else (0, 2.5)
            where = "first 25 frames" if name == "its word" else "first 1 %"
            most = f"; {1 / half.kinds[kind].mean():.0f} at most"
            rows.append(
                row(
                    f"{kind} by {name}, {where}",
                    result[at][0],
                    f"x chance ({result[at][1]:.1f} to {result[at][2]:.1f}{most})",
                    goal=f">= {goal:g}",
                    met=result[at][0] >= goal if judge else None,
                )
            )
    return rows


def half_rows(half: Half) -> list[Row]:
    """Every arm on every kind of one half, at all budgets."""
    arms_of_half = list(arms(half))
    rows = []
    for kind, truth in half.kinds.items():
        everything = [*arms_of_half, *(rankings_by_word(half, kind) if kind != ANY else ())]
        for name, value in everything:
            result = lifts(value, truth, half.rides)
            at = [f"{middle:.1f} ({low:.1f}-{high:.1f})" for middle, low, high in result]
            rows.append(
                row(
                    f"{half.name}, {kind} ({truth.sum()} of {len(truth)}): {name}",
                    result[0][0],
                    f"x chance at 1 / 2 / 5 / 10 %: {' / '.join(at[: len(SHARES)])}; "
                    f"first 25 / 50 / 100: {' / '.join(at[len(SHARES) :])}",
                    detail=True,
                )
            )
    return rows


def cost_rows(workspace: Workspace, dataset: Dataset, encoder: Lite0Encoder) -> list[Row]:
    """CPU time, which other programs disturb least, of decoding and embedding some frames."""
    paths = [media_path(workspace, frame) for frame in dataset.frames[:48]]
    encoder.embed([load_rgb(paths[0])])
    start = time.process_time()
    for first in range(0, len(paths), 16):
        encoder.embed([load_rgb(path) for path in paths[first : first + 16]])
    hourly = 2 * 3600 * len(paths) / (time.process_time() - start)
    return [
        row(
            "frames embedded in an hour of two cores",
            hourly,
            f"frames, by CPU time; a million take {1e6 / hourly:.0f} h, extrapolated",
        )
    ]


def _as_values(order: NDArray[np.int64], count: int) -> Floats:
    values = np.zeros(count)
    values[order] = np.arange(len(order), 0, -1)
    return values


if __name__ == "__main__":
    main(measure)
