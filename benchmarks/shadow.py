"""What a shadow costs the champion, and how few labels tell it from the candidate.

``python -m benchmarks.shadow``. Frames of the label figures are simulated: drives differ (gamma),
objects and flips between the models are Poisson, and most boxes that only one model has are false
alarms and no misses. The peer draws frames at random. Latency is measured on this machine with the
bundle whose folder BENCHMARK_BUNDLE names: it answers a frame every 200 ms, alone and, in turns,
with itself in its shadow. Where other programs disturb both by more than the goal, only processor
time is reported: what the shadow adds in the champion's own thread.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Row, main, note, row
from workbench.deployment.runtime import Runtime, load_bundle
from workbench.deployment.shadow import ShadowProcess
from workbench.deployment.shadow_estimate import LabelledFrame, estimate_difference
from workbench.deployment.shadow_session import keep_probability, sample_weight
from workbench.detection.bundles import INT8_CPU_FILE

BUNDLE = "BENCHMARK_BUNDLE"
_PERIOD_S = 0.2
_TURN = 20  # frames
_WARM = 8  # frames until all of the shadow's memory was touched

_FLIPS = 0.012  # of an object, each way
_OBJECTS = 3.0
_FALSE_ALARMS = 0.08  # boxes that only one model has and that are no miss, a frame
_LABELS = 400

_Ints = NDArray[np.int64]


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` simulates 400 estimates of each world instead of 4,000."""
    trials = 400 if quick else 4000
    rows = []
    for drives, frames, worse in ((200, 50, 0.004), (400, 25, 0.0), (100, 100, 0.008)):
        note(f"{trials} estimates, {drives} drives of {frames} frames")
        rows += _estimates(drives, frames, worse, trials)
    bundle = os.environ.get(BUNDLE)
    if bundle:
        return rows + _latency(Path(bundle), 60 if quick else 600)
    note(f"latency skipped: {BUNDLE} names no bundle's folder")
    return rows


def _estimates(drives: int, frames: int, worse: float, trials: int) -> list[Row]:
    rng = np.random.default_rng(18)
    covered, ours, random = 0, [], []
    for _ in range(trials):
        difference, only_one = _world(drives, frames, worse, rng)
        weights = np.vectorize(sample_weight, otypes=[float])(only_one)
        found = _estimate(difference, weights, _LABELS, rng)
        covered += found[0] <= _OBJECTS * worse <= found[1]
        ours.append(found[1] - found[0])
        peer = _estimate(difference, np.ones_like(weights), 3 * _LABELS, rng)
        random.append(peer[1] - peer[0])
    share = covered / trials
    world = f"{drives} drives of {frames} frames, {_OBJECTS * worse:g} more misses a frame"
    # Widths fall with the root of the number of labels.
    needed = 3 * _LABELS * float(np.mean(random) / np.mean(ours)) ** 2
    return [
        row(
            f"the 95 % interval covers, {world}", share, f"of {trials:,}",
            goal="0.94 to 0.96", met=0.94 <= share <= 0.96,
        ),
        row(
            f"labels for the same width, {world}", _LABELS, "labels", peer=needed,
            peer_name="random frames", goal="<= 1/3", met=needed / 3 >= _LABELS,
        ),
    ]  # fmt: skip


def _world(drives: int, frames: int, worse: float, rng: np.random.Generator) -> tuple[_Ints, _Ints]:
    """Candidate minus champion in misses, and boxes that only one model has, by drive and frame."""
    hard = rng.gamma(2.0, 0.5, drives)[:, None]
    lost = rng.poisson(_OBJECTS * (_FLIPS + worse) * hard, (drives, frames))
    gained = rng.poisson(_OBJECTS * _FLIPS * hard, (drives, frames))
    seen = rng.binomial(lost + gained, 0.97)  # another box stands in for the rest
    return lost - gained, seen + rng.poisson(_FALSE_ALARMS, (drives, frames))


def _estimate(
    difference: _Ints, weights: NDArray[np.float64], labels: int, rng: np.random.Generator
) -> tuple[float, float]:
    priority = weights / (1 - rng.random(weights.shape))
    threshold = float(np.partition(priority.ravel(), -labels - 1)[-labels - 1])
    labelled = [
        LabelledFrame(
            str(drive),
            keep_probability(float(weights[drive, frame]), threshold),
            int(difference[drive, frame]),
        )
        for drive, frame in zip(*np.nonzero(priority > threshold), strict=True)
    ]
    drives, frames = weights.shape
    found = estimate_difference(labelled, {str(drive): frames for drive in range(drives)})
    return found.low, found.high


def _latency(bundle: Path, frames: int) -> list[Row]:
    """Time from a frame to when the champion could take the next one."""
    opened = load_bundle(bundle)
    runtime, image = Runtime([opened]), np.full((720, 1280, 3), 90, np.uint8)
    note(f"latency of {2 * frames} frames")
    times: dict[bool, list[float]] = {False: [], True: []}
    before: list[float] = []
    after: list[float] = []
    with ShadowProcess(bundle, opened.digest, file=INT8_CPU_FILE) as shadow:
        for number in range(2 * frames):
            beside = number // _TURN % 2 == 1  # in turns: other programs disturb both alike
            start, busy = time.perf_counter(), time.thread_time()
            if beside:
                shadow.pause()
                before.append(1000 * (time.thread_time() - busy))
            answer = runtime.answer(image, file=str(number), sequence="s")
            busy = time.thread_time()
            if beside:
                shadow.resume()
                shadow.offer(answer, image)
                after.append(1000 * (time.thread_time() - busy))
            times[beside].append(1000 * (time.perf_counter() - start))
            more = (number + 1) // _TURN % 2 == 1
            shadow.collect(wait_s=0.0 if more else 5.0)  # it is idle when a turn alone begins
            time.sleep(max(0.0, _PERIOD_S - (time.perf_counter() - start)))
        dropped = shadow.dropped
    alone, with_it = (float(np.quantile(times[beside], 0.99)) for beside in (False, True))
    low, high = _interval(times[False], times[True])
    first, then = (float(np.quantile(one[_WARM:], 0.99)) for one in (before, after))
    return [
        row(
            "processor time that a shadow adds to an answer of the champion, p99", first, "ms",
            goal="<= 1 ms", met=first <= 1.0,
        ),
        row(
            "and between an answer and the next frame: signal, copy of the image, p99", then, "ms",
            peer=float(np.median(after[_WARM:])), peer_name="its median",
        ),
        row(
            f"p99 latency with a shadow, {frames} frames, {dropped} not shown to it; difference "
            f"{low:.1f} to {high:.1f} ms (95 % over turns)", with_it, "ms", peer=alone,
            peer_name="alone", goal="<= 1 ms more",
            met=True if high <= 1 else False if low > 1 else None,
        ),
        row(
            "median latency with a shadow", float(np.median(times[True])), "ms",
            peer=float(np.median(times[False])), peer_name="alone",
        ),
    ]  # fmt: skip


def _interval(alone: list[float], beside: list[float]) -> tuple[float, float]:
    """95 % of the difference in p99, beside minus alone; turns are drawn, not frames."""
    rng = np.random.default_rng(0)
    turns = [
        np.array(one[: len(one) // _TURN * _TURN]).reshape(-1, _TURN) for one in (alone, beside)
    ]
    found = []
    for _ in range(2000):
        drawn = (one[rng.integers(0, len(one), len(one))] for one in turns)
        first, second = (np.quantile(one, 0.99) for one in drawn)
        found.append(second - first)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


if __name__ == "__main__":
    main(measure)
