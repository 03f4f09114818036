"""Vectors as a field of FiftyOne's samples, beside our shards: what `benchmarks.curation` compares.

mongod is the workbench's own, started for the benchmark in its temporary workspace; where it cannot
start, the rows are left out and a note says why. CPU seconds are those of this process and, for
FiftyOne, of mongod as well. The samples are there before the clock starts, and both sides keep the
same float16 vectors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.common import Row, note, row
from workbench import services
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.curation.embedding import embeddings
from workbench.curation.fiftyone import connection

Vectors = NDArray[np.float16]

_FIELD = "embedding"
_SHARD = 4096


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float


@contextmanager
def database(workspace: Workspace) -> Iterator[Any]:
    """FiftyOne on a mongod of ``workspace``, stopped at the end; None where there is none."""
    # One that the user works with must not get a benchmark's datasets.
    os.environ.pop("FIFTYONE_DATABASE_URI", None)
    try:
        services.up(workspace, ("mongod",))
        fiftyone = connection.connect(workspace)
    except (WorkbenchError, ImportError) as error:
        note(f"FiftyOne's field write is left out: {error}")
        fiftyone = None
    try:
        yield fiftyone
    finally:
        services.down(workspace, ("mongod",))


def beside_shards(workspace: Workspace, fiftyone: Any, vectors: Vectors) -> list[Row]:
    """Write and read ``vectors`` ``[n, d]`` both ways; frames a second, and CPU seconds."""
    folder = workspace.root / "embeddings" / "beside-fields"
    names = [f"{number:064x}" for number in range(len(vectors))]
    kept: dict[str, Vectors] = {}

    def load() -> None:
        kept["ours"] = read(folder)

    written, loaded = _cost(lambda: write(folder, names, vectors)), _cost(load)
    put, got = in_field(workspace, fiftyone, vectors, kept)
    assert np.array_equal(kept["ours"], vectors)
    assert np.array_equal(kept["field"], vectors)
    rows = []
    for what, ours, theirs in (("write", written, put), ("read", loaded, got)):
        name = f"{what} {len(vectors):,} x {vectors.shape[1]} vectors"
        peer = "FiftyOne field: set_values" if what == "write" else "FiftyOne field: values"
        count = len(vectors)
        rows += [
            row(name, count / ours.wall_s, "frames/s", peer=count / theirs.wall_s, peer_name=peer),
            row(f"{name}: CPU", ours.cpu_s, "CPU-s", peer=theirs.cpu_s, peer_name=peer),
        ]
    return rows


def after_loop(workspace: Workspace, fiftyone: Any, vectors: Vectors, bare: float) -> Row:
    """What a loop that does ``bare`` frames a CPU second comes to with a field written after it."""
    in_field(workspace, fiftyone, vectors[:16])  # the first write of a process is slower
    written, _ = in_field(workspace, fiftyone, vectors)
    return row(
        "that loop, then its frame vectors into a FiftyOne field",
        1 / (1 / bare + written.cpu_s / len(vectors)),
        "frames/CPU-s",
        peer=bare,
        peer_name="decode, forward and boxes, nothing kept",
    )


def in_field(
    workspace: Workspace, fiftyone: Any, vectors: Vectors, kept: dict[str, Vectors] | None = None
) -> tuple[Cost, Cost]:
    """What a field costs to write and to read back; what is read goes into ``kept``."""
    mongod = services.status(workspace, ("mongod",))["mongod"].pid
    shown = fiftyone.Dataset()
    samples = [fiftyone.Sample(f"/{number}.jpg") for number in range(len(vectors))]
    shown.add_samples(samples, progress=False)

    def load() -> None:
        found = np.stack(shown.values(_FIELD))
        if kept is not None:
            kept["field"] = found

    written = _cost(lambda: shown.set_values(_FIELD, list(vectors)), mongod)
    loaded = _cost(load, mongod)
    shown.delete()
    return written, loaded


def write(folder: Path, names: Sequence[str], vectors: Vectors) -> None:
    """Vectors alone into shards."""
    empty = {name: np.zeros((0, 1), np.float16) for name in embeddings.ARRAY_NAMES}
    for first in range(0, len(names), _SHARD):
        part = slice(first, first + _SHARD)
        embeddings.write_shard(folder, names[part], {**empty, "vectors": vectors[part]})


def read(folder: Path) -> Vectors:
    """All of them, in the order of their names."""
    found = sorted(embeddings.read_shards(folder), key=lambda shard: shard.frames[0])
    return np.concatenate([shard.array("vectors") for shard in found])


def _cost(work: Callable[[], None], server: int | None = None) -> Cost:
    def spent() -> float:
        if server is None:
            return time.process_time()
        times = psutil.Process(server).cpu_times()
        return float(time.process_time() + times.user + times.system)

    began, before = time.perf_counter(), spent()
    work()
    return Cost(time.perf_counter() - began, spent() - before)
