"""The pass on Ray, for pools that one machine cannot hold: each worker embeds whole shards.

Every worker sees the workspace's folder at the same path, and writes into it what one machine
would have written: a shard's bytes depend on its own frames only, and each worker gives the
network as many threads as this process does, since sums depend on that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.curation.embedding.encoder import Encoder
from workbench.errors import ServiceError, WorkbenchError
from workbench.records.frames import Frame
from workbench.services import ray_cluster
from workbench.workspace import Workspace

LeftOut = list[tuple[str, str]]


def write_parts(
    place: Workspace,
    encoder: Encoder,
    parts: Sequence[Sequence[Frame]],
    batch: int,
    step: Callable[[int], None],
    *,
    address: str,
) -> LeftOut:
    """As `one_pass.write_parts`, with Ray's workers; what was left out, and why.

    Args:
        address: Of a cluster (``host:port``, ``auto``, ``ray://host:port``), or ``local``.

    Raises:
        ServiceError: Ray is not there, or lost a worker for good; finished shards are kept.
        WorkbenchError: As on one machine.
    """
    if not parts:
        return []
    import torch

    threads = torch.get_num_threads()
    with ray_cluster.connected(place, address, cpus=max(threads, os.cpu_count() or 1)) as ray:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        actor = ray.remote(_Worker).options(num_cpus=threads, max_restarts=2, max_task_retries=2)
        shared = ray.put(encoder)
        pool = [
            actor.remote(str(place.root), shared, batch, threads)
            for _ in range(min(workers, len(parts)))
        ]
        return _handed_out(ray, pool, parts, step)


def _handed_out(
    ray: Any, pool: Sequence[Any], parts: Sequence[Sequence[Frame]], step: Callable[[int], None]
) -> LeftOut:
    waiting = list(enumerate(parts))[::-1]
    running: dict[Any, tuple[Any, int]] = {}
    found: dict[int, LeftOut] = {}
    idle = list(pool)
    try:
        while waiting or running:
            while waiting and idle:
                worker, (number, part) = idle.pop(), waiting.pop()
                running[worker.write.remote(list(part))] = (worker, number)
            for done in ray.wait(list(running))[0]:
                worker, number = running.pop(done)
                found[number] = ray.get(done)
                idle.append(worker)
                step(len(parts[number]))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WorkbenchError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"a worker was lost: {ray_cluster.first_line(error)}",
            hint="Run it again: finished shards are kept",
        ) from error
    return [one for number in sorted(found) for one in found[number]]


class _Worker:
    """Holds the encoder, loaded once, and embeds one shard at a time."""

    def __init__(self, root: str, encoder: Encoder, batch: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.place, self.encoder, self.batch = Workspace(Path(root)), encoder, batch

    def write(self, part: list[Frame]) -> LeftOut:
        from workbench.curation.embedding import one_pass

        return one_pass.write_parts(self.place, self.encoder, [part], self.batch, lambda _: None)
