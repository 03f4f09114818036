"""What runs on a Ray worker, and how a step's data gets there and back.

Where driver and worker share the workspace's folder, the step's spec is all that travels. Where they
do not, the driver sends the records of the inputs to a URL, the task carries spec and notebook, and
the worker sends back outputs and the step's folder. Progress shows only when the folder has arrived.
Steps that need more of the driver's machine than records stay there (see `must_run_on_driver`).
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
from typing import Any

from workbench.core import digest, workspace
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline import environment, secret_scan, unit
from workbench.pipeline.executors import artifacts as step_folder
from workbench.pipeline.executors import local
from workbench.pipeline.executors.artifacts import ArtifactStore
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.records.base import refs_in
from workbench.records.model_types import Release
from workbench.records.store import Store

Json = dict[str, Any]

_MAX_NAMES = 4  # differing distributions that a message names one by one


def worker_environment() -> Json:
    """All of this machine that can shape a result: its environment and the workbench's own code."""
    return {
        "host": socket.gethostname(),
        "code": _code_digest(),
        "environment": environment.current_environment().model_dump(mode="json"),
    }


def environment_differences(ours: Json, theirs: Json) -> list[str]:
    """What sets a worker apart from the driver, in words; empty when results would be the same."""
    found = []
    mine, other = ours["environment"], theirs["environment"]
    if mine["python"] != other["python"]:
        found.append(f"Python {other['python']} instead of {mine['python']}")
    here, there = set(mine["distributions"]), set(other["distributions"])
    found += _summarize_names("lacks", here - there) + _summarize_names("has besides", there - here)
    for part, value in mine["machine"].items():
        if other["machine"].get(part) != value:
            found.append(f"{part} {other['machine'].get(part)} instead of {value}")
    if ours["code"] != theirs["code"]:
        found.append("another version of the workbench's own code")
    return found


def run_shared(spec_json: str, driver: Json | None) -> str:
    """Run the step of ``spec_json`` in a process of its own; returns its result as JSON.

    Args:
        driver: The driver's `surroundings`, where it is another machine. They are compared here
            as well, because a worker may join after the others were looked at.
    """
    refused = check_environment(driver)
    if refused is not None:
        return refused.model_dump_json()
    return _execute_step(StepSpec.model_validate_json(spec_json)).model_dump_json()


def _execute_step(spec: StepSpec) -> StepResult:
    """Run one step in a process of its own."""
    # Cancelled by Ray with a KeyboardInterrupt, upon which the executor ends the step.
    return local.run_in_new_process(spec, _ignore_progress)


def check_environment(driver: Json | None) -> StepResult | None:
    """Why nothing may run here for ``driver``: this machine differs from it; None if it may."""
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


def _ignore_progress() -> None:
    """The driver follows the step's files itself."""


# ---- A step on a worker that does not see the driver's workspace: all it needs goes by a URL.
#
# The driver sends the records of the inputs, the task carries spec and notebook, the worker runs the
# step in its own workspace and sends back the outputs and the step's folder. Before that folder has
# come back nothing of the step is to be seen: its progress shows at its end. Steps that need more of
# the driver's machine than records do not go (see `stays`).


_STATUS_OF_KIND = {"parameter": ExitStatus.PARAMETER, "service": ExitStatus.SERVICE}


def must_run_on_driver(spec: StepSpec) -> bool:
    """Whether a step runs beside the driver: it talks to this workspace's servers, or it signs.

    The servers may listen on this machine only and show its media; the signing key never leaves it.
    """
    signs = any(output["kind"] == Release.KIND for output in spec.declared_outputs.values())
    return bool(spec.environment) or signs


def send_inputs(artifacts: ArtifactStore, spec: StepSpec) -> dict[str, str]:
    """Driver, before the task: the step's inputs with all that they name, and files it reads.

    Returns:
        Digests of the files that parameters name. A folder may hold a fleet's drives, and stays.

    Raises:
        RecordError: An input is missing or damaged.
        ServiceError: The URL cannot be written.
    """
    unit.write_spec(spec)
    artifacts.push(Store(Workspace(Path(spec.home))), refs_in(spec.inputs))
    files: dict[str, str] = {}
    contract = contracts.read_contract(Path(spec.notebook))
    for name in contract.path_parameters(spec.parameters):
        path = Path(str(spec.parameters[name]))
        if path.is_file():
            files[name] = digest.of_file(path)
            artifacts.send_once(path, f"files/{files[name]}")
    return files


def run_remote(
    spec_json: str, driver: Json | None, url: str, notebook: str, files: Mapping[str, str]
) -> str:
    """Worker: fetch the inputs, run the step, send what it made.

    Args:
        spec_json: The step as the driver sees it, with the driver's paths.
        driver: See `ray_worker.run`.
        notebook: The text of the notebook.
        files: What `send` returned.

    Returns:
        JSON: ``result`` with the driver's paths, and ``folder``, the name and digest of the
        archive of the step's folder, None when the step was never begun.
    """
    theirs = StepSpec.model_validate_json(spec_json)
    refused = check_environment(driver)
    if refused is not None:
        return _task_result(refused)
    place = _worker_workspace()
    apart = place.scratch / "ray" / secrets.token_hex(8)
    try:
        artifacts = ArtifactStore(url)
        spec = _local_spec(theirs, place, apart, notebook)
        spec = _with_local_files(spec, artifacts, files, apart / "files")
        artifacts.pull(Store(place), refs_in(spec.inputs))
        result = _execute_step(spec)
        artifacts.push(Store(place), result.outputs.values())
        folder = _send_folder(artifacts, Path(spec.folder), apart / "folder.tar.gz")
        return _task_result(_with_driver_paths(result, spec, theirs), folder)
    except WorkbenchError as error:
        return _task_result(transfer_failed(error))
    finally:
        shutil.rmtree(apart, ignore_errors=True)


def receive_outputs(artifacts: ArtifactStore, spec: StepSpec, answer: str) -> StepResult:
    """Driver, after the task: the outputs into the store, the step's files into its folder.

    Raises:
        RecordError: What came is not what the worker sent.
        ServiceError: The URL cannot be read.
    """
    told = json.loads(answer)
    result = StepResult.model_validate(told["result"])
    place, folder = Workspace(Path(spec.home)), Path(spec.folder)
    if told["folder"] is not None:
        _fetch_folder(artifacts, told["folder"], folder)
    # The worker knows the step's own secrets; those of our servers are known here.
    leaked = secret_scan.redact_folder(folder, secret_scan.known_secrets(place, spec.secrets))
    if leaked:
        failure = unit.secrets_leaked(leaked)
        result = result.model_copy(
            update={"status": ExitStatus.CONTRACT, "outputs": {}, "failure": failure}
        )
    artifacts.pull(Store(place), result.outputs.values())
    workspace.write_atomic(folder / unit.RESULT_FILE, result.model_dump_json(indent=1).encode())
    return result


def transfer_failed(error: WorkbenchError) -> StepResult:
    """A step whose way there or back broke; the run's policy decides on a retry."""
    return StepResult.from_error(_STATUS_OF_KIND.get(error.kind, ExitStatus.CONTRACT), error)


def _local_spec(theirs: StepSpec, place: Workspace, apart: Path, notebook: str) -> StepSpec:
    """The same step in this machine's folders."""
    path = apart / "notebooks" / Path(theirs.notebook).name
    path.parent.mkdir(parents=True)
    path.write_text(notebook, encoding="utf-8")
    return theirs.model_copy(
        update={
            "notebook": str(path),
            "project": theirs.project or str(workspace.project_root(Path(theirs.notebook))),
            "home": str(place.root),
            "folder": str(apart / "run" / Path(theirs.folder).name),
            "cache": str(place.scratch / "steps" / Path(theirs.cache).name),
        }
    )


def _with_local_files(
    spec: StepSpec, artifacts: ArtifactStore, files: Mapping[str, str], folder: Path
) -> StepSpec:
    """The step with its path parameters naming what is here."""
    parameters = dict(spec.parameters)
    contract = contracts.read_contract(Path(spec.notebook))
    for name in contract.path_parameters(parameters):
        theirs = Path(str(parameters[name]))
        if name in files:
            here = folder / name / theirs.name
            here.parent.mkdir(parents=True)
            artifacts.fetch(f"files/{files[name]}", here)
            if digest.of_file(here) != files[name]:
                raise RecordError(f"file {theirs.name} was changed on the way", where=name)
            parameters[name] = str(here)
        elif not theirs.exists():
            raise ParameterError(
                f"parameter {name!r}: no such folder on worker {socket.gethostname()}",
                where=theirs,
                hint="Records and single files travel to workers, folders do not: put it at the "
                "same path there, or run this step with --executor local",
            )
    return spec.model_copy(update={"parameters": parameters})


def _worker_workspace() -> Workspace:
    """The worker's own workspace; without a name for it, one that may be thrown away."""
    if os.environ.get(workspace.HOME_VARIABLE):
        return workspace.find_workspace()
    return Workspace(Path.home() / ".cache" / "workbench" / "worker")


def _send_folder(artifacts: ArtifactStore, folder: Path, archive: Path) -> Json:
    step_folder.pack_folder(folder, archive)
    name = f"steps/{secrets.token_hex(16)}.tar.gz"
    artifacts.send(archive, name)
    return {"name": name, "sha256": digest.of_file(archive)}


def _fetch_folder(artifacts: ArtifactStore, told: Json, folder: Path) -> None:
    archive = folder / "folder.tar.gz"
    try:
        artifacts.fetch(told["name"], archive)
        if digest.of_file(archive) != told["sha256"]:
            raise RecordError("a worker's step folder was changed", where=artifacts.shown)
        step_folder.unpack_folder(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
        with contextlib.suppress(WorkbenchError):
            artifacts.remove(told["name"])


def _with_driver_paths(result: StepResult, ours: StepSpec, theirs: StepSpec) -> StepResult:
    """Messages name files where the driver finds them."""
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
