"""Run steps as Ray tasks, on this machine or on an existing cluster.

A task starts the same ``run-step`` command as the local executor, in a process of its own, so the
result does not depend on the executor. Driver and workers share the workspace's folder or, if they
cannot, a URL through which records are sent (see `ray_worker`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from workbench.core.errors import ContractError, RecordError, ServiceError, WorkbenchError
from workbench.core.workspace import Workspace, find_workspace
from workbench.pipeline.executors import ray_worker
from workbench.pipeline.executors.artifacts import ArtifactStore
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.executors.ray_worker import WorkerEnvironment
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.services import ray_cluster

__all__ = ["RayExecutor"]

_POLL_S = 0.2
_CANCEL_GRACE_S = 20.0
_PROBE_TIMEOUT_S = 120.0
_GIB = 2**30


class RayExecutor:
    """Runs each step as a Ray task with the cores, GPUs and memory that it declares.

    Ray is started, or joined, when the first step has to run; `close` ends what was started.

    Args:
        address: A running cluster (``host:port``, ``auto``, ``ray://host:port``). None: start Ray
            on this machine until `close`.
        workspace: Default: the workspace of the current folder.
        artifacts: Where records are exchanged. None: workers see the workspace at the same path.
    """

    def __init__(
        self,
        address: str | None = None,
        workspace: Workspace | None = None,
        artifacts: ArtifactStore | None = None,
    ) -> None:
        self.address = address
        self.workspace = workspace or find_workspace()
        self.artifacts = artifacts
        self._local = LocalExecutor()
        self._lock = threading.Lock()
        self._ray: Any = None
        self._task: Any = None
        self._error: WorkbenchError | None = None
        self._exit_stack = contextlib.ExitStack()

    @property
    def threads(self) -> int:
        """Cores for all running steps together; on a cluster, all that it has now."""
        if self.address is None:
            return os.cpu_count() or 1
        return int(self._connected().cluster_resources().get("CPU", 1))

    @property
    def memory_gib(self) -> float:
        """Memory for all running steps together."""
        if self.address is None:
            return psutil.virtual_memory().total / _GIB
        return float(self._connected().cluster_resources().get("memory", 0)) / _GIB

    def execute(
        self, spec: StepSpec, watch: Callable[[], None], stop: threading.Event
    ) -> StepResult:
        """See `Executor.execute`. A step whose worker dies has crashed.

        Raises:
            ServiceError: Ray cannot be started or reached.
            ContractError: A worker's environment differs from this one.
        """
        if self.artifacts is not None and ray_worker.must_run_on_driver(spec):
            return self._local.execute(spec, watch, stop)
        ray = self._connected()
        try:
            running = self._submit(spec)
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
        """Leave the cluster; end Ray and all its processes if it was started here."""
        self._local.close()
        with self._lock:
            self._ray = None
            self._exit_stack.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._ray is None:
                try:
                    self._ray = self._connect()
                    if self.address is not None:
                        check_workers(self._ray, ray_worker.worker_environment())
                except WorkbenchError as error:
                    self._error = error
                    raise
            return self._ray

    def _connect(self) -> Any:
        address = ray_cluster.LOCAL if self.address is None else self.address
        ray = self._exit_stack.enter_context(
            ray_cluster.connect(self.workspace, address, cpus=os.cpu_count())
        )
        self._task = ray.remote(
            ray_worker.run_shared if self.artifacts is None else ray_worker.run_remote
        )
        return ray

    def _submit(self, spec: StepSpec) -> Any:
        driver = None if self.address is None else ray_worker.worker_environment()
        given: list[Any] = [spec.model_dump_json(), driver]
        if self.artifacts is not None:
            files = ray_worker.send_inputs(self.artifacts, spec)
            notebook = Path(spec.notebook).read_text(encoding="utf-8")
            given += [self.artifacts.url, notebook, files]
        # No retries by Ray: the run retries, and reports it.
        task = self._task.options(max_retries=0, name=spec.step, **self._resources(spec))
        return task.remote(*given)

    def _resources(self, spec: StepSpec) -> dict[str, float]:
        wanted = {
            "num_cpus": float(spec.threads),
            "num_gpus": spec.gpus,
            "memory": spec.memory_gib * _GIB,
        }
        if self.address is not None:
            return wanted  # the step waits until the cluster has them
        have = self._ray.cluster_resources()
        if wanted["num_gpus"] > have.get("GPU", 0):
            raise ContractError(
                f"the step needs {spec.gpus:g} GPUs, this machine has {have.get('GPU', 0):g}",
                where=spec.step,
                hint="Pass --ray-address of a cluster that has them",
            )
        # As with local processes, a step that needs more than the machine has gets all of it.
        wanted["num_cpus"] = min(wanted["num_cpus"], have.get("CPU", 1))
        wanted["memory"] = min(wanted["memory"], have.get("memory", 0))
        return wanted

    def _cancel(self, running: Any) -> StepResult:
        """Cancel the task, by force after a while."""
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
            hint = "Raise resources.memory_gib in the notebook's contract: Ray then reserves it"
            return StepResult.failed(
                ExitStatus.KERNEL_DIED, "out-of-memory", ray_cluster.first_line(error), hint
            )
        except errors.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except errors.RayError as error:
            log = Path(spec.folder) / "log.txt"
            log_hint = None if self.artifacts else f"Its output until then: {log}"
            message = f"the worker was lost: {ray_cluster.first_line(error)}"
            return StepResult.failed(ExitStatus.CRASHED, "crashed", message, log_hint)
        if self.artifacts is None:
            return StepResult.model_validate_json(answer)
        try:
            return ray_worker.receive_outputs(self.artifacts, spec, answer)
        except (RecordError, ServiceError) as error:
            return ray_worker.transfer_failed(error)


def check_workers(ray: Any, mine: WorkerEnvironment) -> None:
    """Compare the environment of every node with this machine's, before any step runs.

    Args:
        ray: The connected module.
        mine: This machine's `worker_environment`.

    Raises:
        ContractError: A worker cannot run the workbench, or its results would differ.
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
                f"the worker differs from this machine: {'; '.join(different)}",
                where=where,
                hint="Install requirements.lock there; results would differ otherwise",
            )
