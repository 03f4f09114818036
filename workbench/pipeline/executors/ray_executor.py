"""Run steps as Ray tasks, on this machine or on an existing cluster.

A task starts the same ``run-step`` command as the local executor, in a process of its own, so the
result does not depend on the executor.

If driver and worker share the workspace's folder, only the step's spec is sent. If not, the driver
copies the input records to a URL, the task carries the spec and the notebook, and the worker sends
back the outputs and the step's folder; progress is visible only once that folder has arrived. Steps
that need more of the driver's machine than records run there (see `must_run_on_driver`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import psutil

from workbench.core import digest
from workbench.core.errors import (
    ContractError,
    ParameterError,
    RecordError,
    ServiceError,
    WorkbenchError,
)
from workbench.core.types import Json
from workbench.core.workspace import (
    HOME_VARIABLE,
    Workspace,
    find_workspace,
    project_root,
    write_atomic,
)
from workbench.pipeline import environment, unit
from workbench.pipeline.contract import read_contract
from workbench.pipeline.executors import local
from workbench.pipeline.executors.artifacts import ArtifactStore, pack_folder, unpack_folder
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.spec import RESULT_FILE, ExitStatus, StepResult, StepSpec
from workbench.records.base import refs_in
from workbench.records.model_types import Release
from workbench.records.store import Store
from workbench.services import ray_cluster

__all__ = ["RayExecutor"]


_MAX_NAMES = 4  # differing distributions that a message lists
_STATUS_OF_KIND = {"parameter": ExitStatus.PARAMETER, "service": ExitStatus.SERVICE}


class _WorkerEnvironment(TypedDict):
    """What a machine contributes to results. Plain JSON, which any version can read."""

    host: str
    code: str
    environment: Json


def worker_environment() -> _WorkerEnvironment:
    """What this machine contributes to results: its environment and the workbench's own code."""
    return {
        "host": socket.gethostname(),
        "code": _code_digest(),
        "environment": environment.current_environment().model_dump(mode="json"),
    }


def environment_differences(ours: _WorkerEnvironment, theirs: _WorkerEnvironment) -> list[str]:
    """How a worker differs from the driver, in words; empty if results would be the same."""
    differences = []
    mine, other = ours["environment"], theirs["environment"]
    if mine["python"] != other["python"]:
        differences.append(f"Python {other['python']} instead of {mine['python']}")
    here, there = set(mine["distributions"]), set(other["distributions"])
    differences += _summarize_names("lacks", here - there) + _summarize_names(
        "also has", there - here
    )
    for part, value in mine["machine"].items():
        if other["machine"].get(part) != value:
            differences.append(f"{part} {other['machine'].get(part)} instead of {value}")
    if ours["code"] != theirs["code"]:
        differences.append("another version of the workbench's own code")
    return differences


def run_shared(spec_json: str, driver: _WorkerEnvironment | None) -> str:
    """Task: run a step of a shared workspace.

    Args:
        spec_json: A `StepSpec`.
        driver: The driver's `worker_environment`, if it is another machine. It is compared here
            as well, because a worker may join after the others were checked.

    Returns:
        The `StepResult` as JSON.
    """
    mismatch = _check_environment(driver)
    if mismatch is not None:
        return mismatch.model_dump_json()
    return _execute_step(StepSpec.model_validate_json(spec_json)).model_dump_json()


def _execute_step(spec: StepSpec) -> StepResult:
    # Ray cancels with a KeyboardInterrupt, which ends the step. The driver follows its files.
    return local.run_in_new_process(spec, lambda: None)


def _check_environment(driver: _WorkerEnvironment | None) -> StepResult | None:
    """The failure of a worker that differs from the driver; None if it does not."""
    different = environment_differences(driver, worker_environment()) if driver else []
    if not different:
        return None
    return StepResult.failed(
        ExitStatus.CONTRACT,
        "contract",
        f"worker {socket.gethostname()} differs from the driver: {'; '.join(different)}",
        "Install requirements.lock and this version of the workbench there",
    )


@lru_cache(maxsize=1)
def _code_digest() -> str:
    sources = {
        str(path.relative_to(environment.PACKAGE_ROOT)): digest.of_file(path)
        for path in sorted(environment.PACKAGE_ROOT.rglob("*.py"))
    }
    return digest.of_json(sources)


def _summarize_names(verb: str, names: set[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(name.partition("#")[0] for name in sorted(names)[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return [f"{verb} {shown}{more}"]


def must_run_on_driver(spec: StepSpec) -> bool:
    """Whether a step must run on the driver's machine: it uses its servers, or it signs.

    The servers may listen on this machine only; the signing key never leaves it.
    """
    signs = any(output["kind"] == Release.KIND for output in spec.declared_outputs.values())
    return bool(spec.environment) or signs


def send_inputs(artifacts: ArtifactStore, spec: StepSpec) -> dict[str, str]:
    """Driver, before the task: send the step's input records and the files that it reads.

    Args:
        artifacts: Where to send them.
        spec: The step.

    Returns:
        Digests of the files that parameters name. Folders, which may be large, are not sent.

    Raises:
        RecordError: An input is missing or damaged.
        ServiceError: The URL cannot be written.
    """
    unit.write_spec(spec)
    artifacts.push(Store(Workspace(Path(spec.home))), refs_in(spec.inputs))
    files: dict[str, str] = {}
    contract = read_contract(Path(spec.notebook))
    for name in contract.path_parameters(spec.parameters):
        path = Path(str(spec.parameters[name]))
        if path.is_file():
            files[name] = digest.of_file(path)
            artifacts.send_once(path, f"files/{files[name]}")
    return files


def run_remote(
    spec_json: str,
    driver: _WorkerEnvironment | None,
    url: str,
    notebook: str,
    files: Mapping[str, str],
) -> str:
    """Task: fetch the inputs, run the step in the worker's workspace, send its outputs.

    Args:
        spec_json: A `StepSpec` with the driver's paths.
        driver: See `run_shared`.
        url: Of the artifacts.
        notebook: The text of the notebook.
        files: What `send_inputs` returned.

    Returns:
        JSON: ``result`` with the driver's paths, and ``folder``, the name and digest of the
        archive of the step's folder, None if the step was not started.
    """
    theirs = StepSpec.model_validate_json(spec_json)
    mismatch = _check_environment(driver)
    if mismatch is not None:
        return _task_result(mismatch)
    workspace = _worker_workspace()
    scratch = workspace.scratch / "ray" / secrets.token_hex(8)
    try:
        artifacts = ArtifactStore(url)
        spec = _local_spec(theirs, workspace, scratch, notebook)
        spec = _with_local_files(spec, artifacts, files, scratch / "files")
        artifacts.pull(Store(workspace), refs_in(spec.inputs))
        result = _execute_step(spec)
        artifacts.push(Store(workspace), result.outputs.values())
        folder = _send_folder(artifacts, Path(spec.folder), scratch / "folder.tar.gz")
        return _task_result(_with_driver_paths(result, spec, theirs), folder)
    except WorkbenchError as error:
        return _task_result(_transfer_failed(error))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def receive_outputs(artifacts: ArtifactStore, spec: StepSpec, answer: str) -> StepResult:
    """Driver, after the task: fetch the outputs and the step's folder.

    Args:
        artifacts: Where the worker sent them.
        spec: The step.
        answer: What `run_remote` returned.

    Raises:
        RecordError: What arrived is not what the worker sent.
        ServiceError: The URL cannot be read.
    """
    message = json.loads(answer)
    result = StepResult.model_validate(message["result"])
    workspace, folder = Workspace(Path(spec.home)), Path(spec.folder)
    if message["folder"] is not None:
        _fetch_folder(artifacts, message["folder"], folder)
    # The worker redacted the step's own secrets; those of the servers are known only here.
    failure = unit.redact_files(spec)
    if failure is not None:
        result = result.model_copy(
            update={"status": ExitStatus.CONTRACT, "outputs": {}, "failure": failure}
        )
    artifacts.pull(Store(workspace), result.outputs.values())
    write_atomic(folder / RESULT_FILE, result.model_dump_json(indent=1).encode())
    return result


def _transfer_failed(error: WorkbenchError) -> StepResult:
    """The result of a step whose files could not be sent; the run decides on a retry."""
    return StepResult.from_error(_STATUS_OF_KIND.get(error.kind, ExitStatus.CONTRACT), error)


def _local_spec(theirs: StepSpec, workspace: Workspace, scratch: Path, notebook: str) -> StepSpec:
    """The same step with this machine's folders."""
    path = scratch / "notebooks" / Path(theirs.notebook).name
    path.parent.mkdir(parents=True)
    path.write_text(notebook, encoding="utf-8")
    return theirs.model_copy(
        update={
            "notebook": str(path),
            "project": theirs.project or str(project_root(Path(theirs.notebook))),
            "home": str(workspace.root),
            "folder": str(scratch / "run" / Path(theirs.folder).name),
            "cache": str(workspace.scratch / "steps" / Path(theirs.cache).name),
        }
    )


def _with_local_files(
    spec: StepSpec, artifacts: ArtifactStore, files: Mapping[str, str], folder: Path
) -> StepSpec:
    """The step with path parameters of this machine."""
    parameters = dict(spec.parameters)
    contract = read_contract(Path(spec.notebook))
    for name in contract.path_parameters(parameters):
        theirs = Path(str(parameters[name]))
        if name in files:
            here = folder / name / theirs.name
            here.parent.mkdir(parents=True)
            artifacts.fetch(f"files/{files[name]}", here)
            if digest.of_file(here) != files[name]:
                raise RecordError(f"file {theirs.name} was changed during the transfer", where=name)
            parameters[name] = str(here)
        elif not theirs.exists():
            raise ParameterError(
                f"parameter {name!r}: no such folder on worker {socket.gethostname()}",
                where=theirs,
                hint="Records and files are sent to workers, folders are not: copy it to the same "
                "path there, or use --executor local",
            )
    return spec.model_copy(update={"parameters": parameters})


def _worker_workspace() -> Workspace:
    """The worker's own workspace: ``WORKBENCH_HOME``, else one in its cache folder."""
    if os.environ.get(HOME_VARIABLE):
        return find_workspace()
    return Workspace(Path.home() / ".cache" / "workbench" / "worker")


def _send_folder(artifacts: ArtifactStore, folder: Path, archive: Path) -> Json:
    pack_folder(folder, archive)
    name = f"steps/{secrets.token_hex(16)}.tar.gz"
    artifacts.send(archive, name)
    return {"name": name, "sha256": digest.of_file(archive)}


def _fetch_folder(artifacts: ArtifactStore, archived: Json, folder: Path) -> None:
    archive = folder / "folder.tar.gz"
    try:
        artifacts.fetch(archived["name"], archive)
        if digest.of_file(archive) != archived["sha256"]:
            raise RecordError("a worker's step folder was changed", where=artifacts.display_url)
        unpack_folder(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
        with contextlib.suppress(WorkbenchError):
            artifacts.remove(archived["name"])


def _with_driver_paths(result: StepResult, ours: StepSpec, theirs: StepSpec) -> StepResult:
    """The result with the driver's paths in its messages."""
    if result.failure is None:
        return result
    changed = {}
    for field in ("message", "where", "hint", "traceback"):
        text = getattr(result.failure, field)
        if text is not None:
            text = text.replace(ours.folder, theirs.folder)
            changed[field] = text.replace(ours.notebook, theirs.notebook)
    return result.model_copy(update={"failure": result.failure.model_copy(update=changed)})


def _task_result(result: StepResult, folder: Json | None = None) -> str:
    return json.dumps({"result": result.model_dump(mode="json"), "folder": folder})


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
        if self.artifacts is not None and must_run_on_driver(spec):
            return self._local.execute(spec, watch, stop)
        ray = self._connected()
        try:
            running = self._submit(spec)
        except (RecordError, ServiceError) as error:
            return _transfer_failed(error)
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
                        check_workers(self._ray, worker_environment())
                except WorkbenchError as error:
                    self._error = error
                    raise
            return self._ray

    def _connect(self) -> Any:
        address = ray_cluster.LOCAL if self.address is None else self.address
        ray = self._exit_stack.enter_context(
            ray_cluster.connect(self.workspace, address, cpus=os.cpu_count())
        )
        self._task = ray.remote(run_shared if self.artifacts is None else run_remote)
        return ray

    def _submit(self, spec: StepSpec) -> Any:
        driver = None if self.address is None else worker_environment()
        given: list[Any] = [spec.model_dump_json(), driver]
        if self.artifacts is not None:
            files = send_inputs(self.artifacts, spec)
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
            return receive_outputs(self.artifacts, spec, answer)
        except (RecordError, ServiceError) as error:
            return _transfer_failed(error)


def check_workers(ray: Any, mine: _WorkerEnvironment) -> None:
    """Compare the environment of every node with this machine's, before any step runs.

    Args:
        ray: The connected module.
        mine: This machine's `worker_environment`.

    Raises:
        ContractError: A worker cannot run the workbench, or its results would differ.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(worker_environment)
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
        different = environment_differences(mine, theirs)
        if different:
            raise ContractError(
                f"the worker differs from this machine: {'; '.join(different)}",
                where=where,
                hint="Install requirements.lock there; results would differ otherwise",
            )
