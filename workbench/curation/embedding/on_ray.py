"""The pass on Ray, for pools that one machine cannot hold: each worker embeds whole shards.

Every worker sees the workspace's folder at the same path, and writes into it what one machine
would have written: a shard's bytes depend on its own frames only, and each worker gives the
network as many threads as this process does, since sums depend on that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.curation.embedding.encoder import Encoder
from workbench.errors import ServiceError, WorkbenchError
from workbench.records.frames import Frame
from workbench.workspace import Workspace, write_atomic

LeftOut = list[tuple[str, str]]

LOCAL = "local"
"""Instead of an address: Ray is started on this machine for the length of the pass."""

_KNOCK_S = 20.0
_OBJECT_STORE = 200 * 2**20  # bytes; encoders and lists of frames pass through it


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
    with _connected(place, address, threads) as ray:
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
            f"a worker was lost: {_first_line(error)}",
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


@contextlib.contextmanager
def _connected(place: Workspace, address: str, threads: int) -> Iterator[Any]:
    """Ray, joined or started; what was started here ends with the pass."""
    if "ray" not in sys.modules:  # it reads them when it is imported, and never again
        os.environ.update(_settings(place, local=address == LOCAL))
    try:
        import ray
    except ImportError as error:
        raise ServiceError(
            "Ray is not installed", hint='Install the extra: pip install "workbench[scale]"'
        ) from error
    joined = ray.is_initialized()
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {
            "num_cpus": max(threads, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
        }
    # Ray prints what befell a worker on standard output, which belongs to --json.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if not joined:
                _begin(ray, options)
        except Exception as error:  # Ray raises bare ones, too
            raise ServiceError(
                f"Ray could not be started or reached: {_first_line(error)}",
                where=address,
                hint="`ray status --address …` says whether a cluster is up; without --ray the "
                "pass runs in this process",
            ) from error
        try:
            yield ray
        finally:
            if not joined:
                ray.shutdown()


def _begin(ray: Any, options: dict[str, Any]) -> None:
    """A start is tried twice, for on a busy machine Ray's agents come too late."""
    _knock(options["address"])
    for last in (options["address"] != LOCAL, True):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


def _settings(place: Workspace, *, local: bool) -> dict[str, str]:
    """Read by Ray when it is imported: no telemetry; one started here hears loopback only, and
    whoever knows the token."""
    always = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if not local:
        return always
    token = place.secrets / "ray-token"
    if not token.exists():
        write_atomic(token, secrets.token_hex(32).encode(), mode=0o600)
    return {
        **always,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _knock(address: str) -> None:
    """Raise at once where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
            pass


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
