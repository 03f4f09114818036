"""Runs steps as Ray tasks: on this machine's cores, or on a cluster that is already there.

A task starts the same ``run-step`` command as the local executor, in a process of its own, so a
result cannot depend on who started it. Driver and workers share the workspace's folder, or, where
they cannot, a URL by which records travel (see `ray_apart`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from workbench.core import workspace
from workbench.core.errors import ContractError, RecordError, ServiceError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline.executors import ray_worker
from workbench.pipeline.executors.artifacts import ArtifactStore
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.services import ray_cluster

Json = dict[str, Any]

_POLL_S = 0.2
_CANCEL_GRACE_S = 20.0
_PROBE_TIMEOUT_S = 120.0
_GIB = 2**30


class RayExecutor:
    """Hands each step to Ray with the cores, GPUs and memory that it declares.

    Ray is started, or joined, when the first step has to run; `close` ends what was started.

    Args:
        address: Of a running cluster (``host:port``, ``auto``, ``ray://host:port``); without one
            Ray is started on this machine for the length of the run.
        place: The workspace; by default, the one found here.
        artifacts: Where records travel by; without it, every worker sees ``place`` at its path.
    """

    def __init__(
        self,
        address: str | None = None,
        place: Workspace | None = None,
        artifacts: ArtifactStore | None = None,
    ) -> None:
        self.address = address
        self.place = place or workspace.find_workspace()
        self.artifacts = artifacts
        self._here = LocalExecutor()
        self._lock = threading.Lock()
        self._ray: Any = None
        self._task: Any = None
        self._failed: WorkbenchError | None = None
        self._open = contextlib.ExitStack()

    @property
    def threads(self) -> int:
        """Cores that can be handed out at once; on a cluster, all it has now."""
        if self.address is None:
            return os.cpu_count() or 1
        return int(self._connected().cluster_resources().get("CPU", 1))

    @property
    def memory_gib(self) -> float:
        """Memory that can be handed out at once."""
        if self.address is None:
            return psutil.virtual_memory().total / _GIB
        return float(self._connected().cluster_resources().get("memory", 0)) / _GIB

    def execute(
        self, spec: StepSpec, watch: Callable[[], None], stop: threading.Event
    ) -> StepResult:
        """Run one step as a Ray task and wait for it; a worker that dies is a crashed step.

        Raises:
            ServiceError: Ray cannot be started or reached.
            ContractError: A worker's environment differs from this one.
        """
        if self.artifacts is not None and ray_worker.must_run_on_driver(spec):
            return self._here.execute(spec, watch, stop)
        ray = self._connected()
        try:
            running = self._begin(spec)
        except (RecordError, ServiceError) as error:
            return ray_worker.transfer_failed(error)
        try:
            while not ray.wait([running], timeout=_POLL_S)[0]:
                watch()
                if stop.is_set():
                    return self._cancel(running)
        except BaseException:
            self._cancel(running)
            raise
        result = self._result(running, spec)
        watch()
        return result

    def close(self) -> None:
        """Leave the cluster; a Ray that was started here ends with all its processes."""
        self._here.close()
        with self._lock:
            self._ray = None
            self._open.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._ray is None:
                try:
                    self._ray = self._connect()
                    if self.address is not None:
                        check_workers(self._ray, ray_worker.worker_environment())
                except WorkbenchError as error:
                    self._failed = error
                    raise
            return self._ray

    def _connect(self) -> Any:
        address = ray_cluster.LOCAL if self.address is None else self.address
        ray = self._open.enter_context(
            ray_cluster.connect(self.place, address, cpus=os.cpu_count())
        )
        self._task = ray.remote(
            ray_worker.run_shared if self.artifacts is None else ray_worker.run_remote
        )
        return ray

    def _begin(self, spec: StepSpec) -> Any:
        driver = None if self.address is None else ray_worker.worker_environment()
        given: list[Any] = [spec.model_dump_json(), driver]
        if self.artifacts is not None:
            files = ray_worker.send_inputs(self.artifacts, spec)
            notebook = Path(spec.notebook).read_text(encoding="utf-8")
            given += [self.artifacts.url, notebook, files]
        # Ray's own retries are off: the run's policy decides, and says so in its report.
        task = self._task.options(max_retries=0, name=spec.step, **self._resources(spec))
        return task.remote(*given)

    def _resources(self, spec: StepSpec) -> dict[str, float]:
        wanted = {
            "num_cpus": float(spec.threads),
            "num_gpus": spec.gpus,
            "memory": spec.memory_gib * _GIB,
        }
        if self.address is not None:
            return wanted  # a cluster may grow; until it does, the step is pending
        have = self._ray.cluster_resources()
        if wanted["num_gpus"] > have.get("GPU", 0):
            raise ContractError(
                f"the step needs {spec.gpus:g} GPU, this machine has {have.get('GPU', 0):g}",
                where=spec.step,
                hint="Give --ray-address of a cluster that has one",
            )
        # As with local processes, a step that asks for more than the machine has gets all of it.
        wanted["num_cpus"] = min(wanted["num_cpus"], have.get("CPU", 1))
        wanted["memory"] = min(wanted["memory"], have.get("memory", 0))
        return wanted

    def _cancel(self, running: Any) -> StepResult:
        """End the step's process tree, by force if it does not end by itself."""
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(running)
            if not self._ray.wait([running], timeout=_CANCEL_GRACE_S)[0]:
                self._ray.cancel(running, force=True)
        return StepResult.failed(ExitStatus.CANCELLED, "cancelled", "cancelled")

    def _result(self, running: Any, spec: StepSpec) -> StepResult:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(running)
        except errors.OutOfMemoryError as error:
            hint = "Raise resources.memory_gib in the notebook's contract: Ray then plans for it"
            return StepResult.failed(
                ExitStatus.KERNEL_DIED, "out-of-memory", ray_cluster.first_line(error), hint
            )
        except errors.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except errors.RayError as error:
            log = Path(spec.folder) / "log.txt"
            told = None if self.artifacts else f"What it said until then: {log}"
            message = f"the worker was lost: {ray_cluster.first_line(error)}"
            return StepResult.failed(ExitStatus.CRASHED, "crashed", message, told)
        if self.artifacts is None:
            return StepResult.model_validate_json(answer)
        try:
            return ray_worker.receive_outputs(self.artifacts, spec, answer)
        except (RecordError, ServiceError) as error:
            return ray_worker.transfer_failed(error)


def check_workers(ray: Any, mine: Json) -> None:
    """Compare every node with what this machine is made of, before any step runs.

    Raises:
        ContractError: A worker cannot run the workbench, or would come to other results.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(ray_worker.worker_environment)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        probe.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        for node in nodes
    ]
    for node, answer in zip(nodes, asked, strict=True):
        where = node["NodeManagerHostname"]
        try:
            theirs = ray.get(answer, timeout=_PROBE_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise ContractError(
                f"the worker cannot run the workbench: {ray_cluster.first_line(error)}",
                where=where,
                hint="Install requirements.lock and this version of the workbench there",
            ) from error
        different = ray_worker.environment_differences(mine, theirs)
        if different:
            raise ContractError(
                f"the worker is not like this machine: {'; '.join(different)}",
                where=where,
                hint="Install requirements.lock there; results would differ otherwise",
            )
