"""Neighbours of a million vectors: ``python -m benchmarks.curation_neighbours [--quick] [--json]``.

The vectors are real object features and, beyond their number, more of their kind made by a stated
procedure, see `benchmarks.curation_vectors`; recall is given on the real ones alone, too. Each size
runs in a process of its own, which tells its CPU seconds and its peak memory. The peer compares
all with all in blocks, as FiftyOne's brain does through scikit-learn: measured on three smaller
sizes and extrapolated with the square of the number.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Row, main, note, row
from benchmarks.curation_vectors import expanded, real_features

_K = 10
_RECALL = 0.97
_PEER_SIZES = (2000, 4000, 8000)


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes a tenth of the vectors and a barely trained model."""
    sizes = (10_000, 100_000) if quick else (100_000, 1_000_000)
    real = real_features(quick=quick)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        kept = Path(name) / "real.npy"
        np.save(kept, real)
        note(f"{len(real):,} real object features; making {sizes[1]:,} of their kind")
        many = Path(name) / "many.npy"
        expanded(real, sizes[1], many)
        small, large = (_apart(many, size) for size in sizes)
        own = _apart(kept, len(real))
        peer = _peer(many)
    scale = sizes[1] / _PEER_SIZES[-1]
    exponent = math.log(large["cpu"] / small["cpu"]) / math.log(sizes[1] / sizes[0])
    raw = sizes[1] * real.shape[1] * 4
    limit = 180 * sizes[1] / 1_000_000
    title = f"all-neighbours of {sizes[1]:,} x {real.shape[1]}"
    return [
        row(
            title,
            large["cpu"],
            "CPU-s",
            peer=peer * scale**2,
            peer_name="scikit-learn, brute force",
            peer_method="extrapolated",
            goal="<= 180 for 1,000,000",
            met=large["cpu"] <= limit,
        ),
        _recall(f"recall@{_K} of {title}", large),
        _recall(f"recall@{_K}, {len(real):,} real ones alone", own),
        row(
            f"growth exponent of CPU-s, {sizes[0]:,} to {sizes[1]:,}",
            exponent,
            "",
            goal="<= 1.2",
            met=exponent <= 1.2,
        ),
        row(
            f"peak memory of {title}",
            large["peak"] / 2**20,
            "MiB",
            peer=raw / 2**20,
            peer_name="the raw vectors, float32",
            goal="<= 1.5 for 1,000,000",
            met=large["peak"] <= 1.5 * raw,
        ),
    ]


def _recall(name: str, found: dict[str, float]) -> Row:
    met = found["recall"] >= _RECALL
    return row(name, found["recall"], f"± {found['error']:.3f}", goal=f">= {_RECALL}", met=met)


def _apart(vectors: Path, count: int) -> dict[str, Any]:
    """Build an index of the first ``count`` vectors and ask it for all, in a fresh process."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
    told = subprocess.run(
        [*command, "--child", str(vectors), str(count)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(told.stdout)
    note(f"{count:,} vectors: {found}")
    return found


def _child(vectors: Path, count: int) -> None:
    from workbench.curation.neighbours import NeighbourIndex

    mapped = np.load(vectors, mmap_mode="r", allow_pickle=False)[:count]
    started = time.process_time()
    index = NeighbourIndex(mapped, k=_K, target=_RECALL)
    built = time.process_time()
    rows, _ = index.all(_K)
    assert (rows >= 0).all()
    ended = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {
        "cpu": ended - started,
        "build": built - started,
        "peak": peak,
        "recall": index.recall.mean,
        "error": 1.96 * index.recall.error,
        "probes": index.probes,
        "distinct": len(index.groups),
    }
    print(json.dumps(told))


def _peer(vectors: Path) -> float:
    """CPU seconds of brute force for the largest of three sizes, by a fit with the square."""
    from sklearn.neighbors import NearestNeighbors

    mapped = np.load(vectors, mmap_mode="r", allow_pickle=False)
    spent = []
    for size in _PEER_SIZES:
        part = np.asarray(mapped[:size], np.float32)
        started = time.process_time()
        NearestNeighbors(n_neighbors=_K + 1, algorithm="brute", metric="cosine").fit(
            part
        ).kneighbors(part)
        spent.append(time.process_time() - started)
    squares = np.array(_PEER_SIZES, float) ** 2
    return float(squares[-1] * (squares @ spent) / (squares @ squares))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(measure)
