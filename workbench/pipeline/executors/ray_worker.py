"""What runs on a Ray worker, and how a step's data gets there and back.

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
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
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
from workbench.pipeline.spec import RESULT_FILE, ExitStatus, StepResult, StepSpec
from workbench.records.base import refs_in
from workbench.records.model_types import Release
from workbench.records.store import Store

__all__ = ()

_MAX_NAMES = 4  # differing distributions that a message lists
_STATUS_OF_KIND = {"parameter": ExitStatus.PARAMETER, "service": ExitStatus.SERVICE}


class WorkerEnvironment(TypedDict):
    """What a machine contributes to results. Plain JSON, which any version can read."""

    host: str
    code: str
    environment: Json


def worker_environment() -> WorkerEnvironment:
    """What this machine contributes to results: its environment and the workbench's own code."""
    return {
        "host": socket.gethostname(),
        "code": _code_digest(),
        "environment": environment.current_environment().model_dump(mode="json"),
    }


def environment_differences(ours: WorkerEnvironment, theirs: WorkerEnvironment) -> list[str]:
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


def run_shared(spec_json: str, driver: WorkerEnvironment | None) -> str:
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


def _check_environment(driver: WorkerEnvironment | None) -> StepResult | None:
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
    driver: WorkerEnvironment | None,
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
        return _task_result(transfer_failed(error))
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


def transfer_failed(error: WorkbenchError) -> StepResult:
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
